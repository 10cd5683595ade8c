"""store.nbd_log: which changes are repeated, and when a session counts as dirty."""

from targetd.nbd.numbers import CMD_WRITE, CMD_WRITE_ZEROES
from targetd.store import nbd_log
from targetd.store.nbd_log import UnflushedChanges


def acknowledged(log, offset, data):
    """A WRITE was sent and acknowledged. Returns what add() does."""
    return log.add(log.generation, CMD_WRITE, 0, offset, len(data), data)


def repeated(log):
    return [(offset, data) for _, _, _, offset, _, data in log.begin_generation()]


def test_changes_are_repeated_in_order_until_a_flush_covers_them():
    log = UnflushedChanges()
    acknowledged(log, 0, b'one')
    mark = log.mark()
    acknowledged(log, 512, b'two')
    log.forget(mark)
    acknowledged(log, 0, b'three')
    assert repeated(log) == [(512, b'two'), (0, b'three')]
    assert repeated(log) == [(512, b'two'), (0, b'three')]  # the next connection was lost, too


def test_a_flush_of_an_earlier_connection_does_not_cover_what_was_repeated():
    """Until both are repeated, the medium may have the first change in place of the second one."""
    log = UnflushedChanges()
    acknowledged(log, 0, b'one')
    acknowledged(log, 0, b'two')
    mark = log.mark()
    log.begin_generation()
    assert not log.forget(mark) and len(log) == 2
    assert log.forget(log.mark()) and not log.is_dirty


def test_the_log_has_a_copy_of_the_data():
    """The buffers of large writes are used again."""
    log, data = UnflushedChanges(), bytearray(b'first')
    acknowledged(log, 0, memoryview(data))
    data[:] = b'other'
    assert repeated(log) == [(0, b'first')]


def test_a_reply_of_an_earlier_connection_does_not_count():
    """The log may have been repeated without this change."""
    log = UnflushedChanges()
    generation = log.generation
    log.begin_generation()
    assert not log.add(generation, CMD_WRITE, 0, 0, 3, b'one')
    assert len(log) == 0
    assert acknowledged(log, 0, b'one')


def test_the_log_is_full_by_bytes_and_by_changes(monkeypatch):
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 1000)
    monkeypatch.setattr(nbd_log, 'MOST_CHANGES', 5)
    log = UnflushedChanges()
    acknowledged(log, 0, bytes(499))
    assert not log.is_half_full
    acknowledged(log, 0, bytes(1))
    assert log.is_half_full
    acknowledged(log, 0, bytes(499))
    assert not log.is_full
    acknowledged(log, 0, bytes(1))
    assert log.is_full
    log.forget(log.mark())
    assert not log.is_half_full
    for number in range(5):
        assert log.is_half_full == (number > 2) and not log.is_full
        log.add(log.generation, CMD_WRITE_ZEROES, 0, 0, 1 << 30, None)
    assert log.is_full


def test_a_session_is_dirty_from_the_first_acknowledged_change_to_the_flush():
    """What is in flight was not promised to anyone."""
    states = []
    log = UnflushedChanges(states.append)
    acknowledged(log, 0, b'x')
    assert states == [True] and log.is_dirty
    mark = log.mark()
    acknowledged(log, 0, b'y')
    log.forget(mark)
    assert states == [True]
    log.forget(log.mark())
    assert states == [True, False] and not log.is_dirty
    log.forget(log.mark())
    assert states == [True, False]


def test_what_a_session_leaves_is_all_of_it_in_order():
    log = UnflushedChanges()
    acknowledged(log, 0, b'one')
    acknowledged(log, 512, b'two')
    assert [change[3:] for change in log.all()] == [(0, 3, b'one'), (512, 3, b'two')]
