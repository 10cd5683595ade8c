"""The store that records old blocks in the undo journal: the order of its steps, and what it does when the
journal cannot be written."""

import errno
import os
import threading

import pytest

from targetd.master.state import undo_files
from targetd.store import from_descriptor, kept_blocks, range_locks, undo_records, undoing
from targetd.store.base import failure

SIZE = 8 << 20
CAPACITY = 16 << 20


class Refusal(OSError):
    """What the journal's owner makes of an error."""


class Steps(object):
    """The journal and the lower store of a test: notes each step."""

    def __init__(self, place):
        self.place, self.log, self.error, self.made = place, [], None, 0

    def new_segment(self):
        if self.error:
            raise self.error
        self.made += 1
        segment, lock = undo_files.make_segment(
            self.place, CAPACITY, {'by': 'me', 'unit': 't/0', 'key_check': ''}
        )
        made = undoing.Segment(segment, CAPACITY)
        flush, append = made.flush, made.append
        made.flush = lambda: (flush(), self.log.append('flushed'))
        made.append = lambda record: (append(record), self.log.append('recorded'))
        return made, lock

    def refused(self, error):
        return Refusal(errno.EROFS, str(error))


@pytest.fixture
def steps(tmp_path):
    return Steps(str(tmp_path / 'guards' / 'name.undo'))


@pytest.fixture
def lower(tmp_path, steps):
    path = str(tmp_path / 'medium')
    with open(path, 'wb') as image:
        image.write(b'old!' * (SIZE // 8))
        image.truncate(SIZE)
    store = from_descriptor({'kind': 'file', 'path': path, 'size': SIZE}, os.open(path, os.O_RDWR))
    for verb in ('write', 'unmap', 'write_zeroes', 'copy'):
        method = getattr(store, verb)
        setattr(store, verb, noted(steps.log, method))
    return store


def noted(log, method):
    def call(*arguments):
        log.append('changed')
        return method(*arguments)

    return call


@pytest.fixture
def store(lower, steps):
    with undoing.Undoable(lower, undoing.Journal(steps.new_segment, steps.refused)) as made:
        yield made


def recorded(steps):
    """[(offset, blocks or length of zeroes)] of the whole journal, in order."""
    found = []
    for name in sorted(os.listdir(steps.place)):
        if name.endswith('.undo'):
            with open(os.path.join(steps.place, name), 'rb') as file:
                size = os.fstat(file.fileno()).st_size
                for position, entry in undo_records.entries(file.fileno(), size):
                    blocks = undo_records.read_blocks(file.fileno(), position)[1]
                    found.append((entry.offset, blocks or entry.length))
    return found


VERBS = {
    'write': lambda store: store.write(4096, b'x' * 512, False),
    'durable': lambda store: store.write(4096, b'x' * 512, True),
    'unmap': lambda store: store.unmap(4096, 512),
    'zeroes': lambda store: store.write_zeroes(4096, 512, False),
    'copy': lambda store: store.copy(store, 0, 4096, 512),
}


@pytest.mark.parametrize('verb', sorted(VERBS))
def test_the_old_blocks_are_durable_before_the_medium_changes(store, steps, verb):
    VERBS[verb](store)
    assert steps.log[:3] == ['recorded', 'flushed', 'changed']
    assert recorded(steps) == [(4096, b'old!' * 128)]


@pytest.mark.parametrize('verb', sorted(VERBS))
@pytest.mark.parametrize('where', ['segment', 'append', 'flush', 'lock'])
def test_nothing_changes_if_the_journal_cannot_be_written(
    store, lower, steps, verb, where, monkeypatch
):
    store.write(0, b'1' * 512, False)
    del steps.log[:]

    def fail(*arguments):
        raise failure(errno.EIO)

    if where == 'segment':
        store._segment, steps.error = None, failure(errno.ENOSPC)
    elif where == 'lock':
        monkeypatch.setattr(range_locks, 'lock_range', fail)
    else:
        monkeypatch.setattr(store._segment, where, fail)
    with pytest.raises(Refusal):
        VERBS[verb](store)
    assert 'changed' not in steps.log
    assert bytes(lower.read(4096, 512)) == b'old!' * 128
    monkeypatch.undo()
    steps.error = None
    VERBS[verb](store)  # it goes on as soon as the cause is gone
    assert 'changed' in steps.log


def test_a_segment_that_could_not_be_flushed_is_not_used_again(store, steps, monkeypatch):
    store.write(0, b'1' * 512, False)
    monkeypatch.setattr(store._segment, 'flush', lambda: (_ for _ in ()).throw(failure(errno.EIO)))
    with pytest.raises(Refusal):
        store.write(0, b'2' * 512, False)
    store.write(0, b'3' * 512, False)
    assert steps.made == 2


def test_reads_and_flushes_need_no_journal(store, steps):
    store.read(0, 4096)
    store.try_read(0, 4096)
    store.flush(0, SIZE)
    store.extents(0, SIZE)
    assert steps.made == 0 and steps.log == []


def test_a_large_range_is_recorded_in_pieces_and_holes_as_zeroes(store, lower, steps):
    lower.extents = lambda *_: [(0, SIZE // 2, True), (SIZE // 2, SIZE // 2, False)]
    store.unmap(0, SIZE)
    found = recorded(steps)
    assert found[:-1] == [
        (offset, b'old!' * (undo_records.PIECE // 4))
        for offset in range(0, SIZE // 2, undo_records.PIECE)
    ]
    assert found[-1] == (SIZE // 2, SIZE // 2) and steps.log[-1] == 'changed'
    # one for the command and for each segment, not one for each piece
    assert steps.log.count('flushed') <= steps.made + 1


def test_more_than_the_journal_holds_is_a_gap(store, steps, monkeypatch):
    store.write(0, b'1' * 512, False)
    store._segment.capacity = 1 << 20
    store.unmap(0, SIZE)
    assert recorded(steps)[-1] == (0, 0)


def test_blocks_that_cannot_be_read_do_not_prevent_a_write_that_repairs_them(store, lower, steps):
    read = lower.read

    def failing(offset, length):
        if offset < 8192 and offset + length > 4096:
            raise failure(errno.EIO)
        return read(offset, length)

    lower.read = failing
    store.write(0, b'x' * 16384, False)
    assert [offset for offset, _ in recorded(steps)] == [0, 8192, 12288]


def test_a_full_segment_and_a_removed_one_are_replaced(store, steps):
    for n in range(4):
        store.write(n << 20, os.urandom(1 << 20), False)
        store.write(n << 20, bytes(1 << 20), False)
    assert steps.made > 2
    made = steps.made
    for name in os.listdir(steps.place):
        if name.endswith('.undo'):
            os.unlink(os.path.join(steps.place, name))
    store.write(0, b'x' * 512, False)
    assert steps.made == made + 1 and len(recorded(steps)) == 1


def test_threads_that_write_the_same_block_record_each_other(store, steps):
    def write(n):
        for _ in range(20):
            store.write(0, bytes([n]) * 512, False)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    values = [blocks for _, blocks in recorded(steps)] + [bytes(store.read(0, 512))]
    assert len(values) == 81 and values[0] == b'old!' * 128
    assert all(len(set(blocks)) == 1 for blocks in values[1:])
    # every value that was written, but the last one, was recorded by the next
    for n in range(1, 5):
        assert sum(blocks[0] == n for blocks in values[1:]) == 20


def test_a_range_beyond_the_medium_is_not_the_journals_error(store, steps):
    with pytest.raises(OSError) as caught:
        store.write(SIZE, b'x' * 512, False)
    assert caught.value.errno == errno.EINVAL and not isinstance(caught.value, Refusal)
    assert steps.made == 0


def test_the_description_is_in_front(store, steps):
    store.write(0, b'x' * 512, False)
    with open(os.path.join(steps.place, '000001.undo'), 'rb') as file:
        assert kept_blocks.read_description(file.fileno())['by'] == 'me'
