"""store.nbd_store: flushes that fail or lose their server, also its own, and the log that they empty."""

import errno
import select
import threading

import pytest
from daemon import eventually
from keeper_export import SIZE, commands, exports
from nbd_peer import Closed, simple

from targetd.nbd import numbers
from targetd.store import failure_flags, nbd_log, nbd_pipeline

export = pytest.fixture(exports)


def test_a_flush_that_failed_fails_ever_after_in_every_session(export):
    def answer(request):
        return simple(request[2], 5) if request[0] == numbers.CMD_FLUSH and failing else None

    failing = [True]
    one = export(answer=answer)
    store, other = one.session(), one.session()
    store.write(0, b'x' * 512, False)
    with pytest.raises(OSError):
        store.flush(0, SIZE)
    failing.pop()
    for each in (store, other):
        with pytest.raises(OSError):
            each.flush(0, SIZE)
        assert each.lost


def test_the_log_is_flushed_when_it_is_half_full(export, monkeypatch):
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 8192)
    one = export()
    store = one.session()
    for number in range(16):
        store.write(512 * number, b'x' * 512, False)
    assert commands(one.peer).count(numbers.CMD_FLUSH) == 2


def begin_writes(store, count):
    """Begin so many WRITEs of 512 bytes, as the connection's thread of a session does. The next one begins
    when nothing is on its way, also no FLUSH that the store has begun. Returns the outcomes."""
    outcomes = []

    def end(requests):
        outcomes.extend(request.outcome() for request in requests)

    for number in range(count):
        link = store.begin_write(512 * number, bytes([number + 1]) * 512, False, number, end)
        link.send_begun()
        while link.begun:
            assert select.select([link], [], [], 10)[0], 'nothing arrives'
            end(link.receive_ready()[0])
    return outcomes


def test_a_server_that_dies_during_a_begun_flush_gets_the_changes_again(export, monkeypatch):
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 4096)

    def answer(request):
        if request[0] == numbers.CMD_FLUSH and not died:
            died.append(one.restart(memory='lost'))
            raise Closed
        return None

    died = []
    one = export(answer=answer)
    store = one.session()
    store.read(0, 512)
    outcomes = begin_writes(store, 5)
    eventually(lambda: died, 10)
    expected = b''.join(bytes([number + 1]) * 512 for number in range(4))
    assert store.read(0, 2048) == expected
    assert len(store._changes) == outcomes.count(None) - 1  # the FLUSH has an outcome, too
    store.flush(0, SIZE)
    assert not store._changes.is_dirty and not failure_flags.is_set(one.flag)


@pytest.fixture
def leaving(export, monkeypatch):
    """leaving(error) -> an Export, its store, which has begun a FLUSH, and an Event: then the server answers
    with this error, but only that FLUSH."""
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 4096)
    events = []

    def make(error):
        def answer(request):
            if request[0] == numbers.CMD_FLUSH and not begun:
                begun.append(request)
                go.wait(20)
                return simple(request[2], error)
            return None

        go, begun = threading.Event(), []
        events.append(go)
        one = export(answer=answer)
        store = one.session()
        store.read(0, 512)
        for _ in range(4):
            generation = store._changes.generation
            store._changes.add(generation, numbers.CMD_WRITE, 0, 0, 512, b'x' * 512)

        def end(requests):
            for request in requests:
                request.outcome()

        store.begin_write(0, b'x' * 512, False, None, end).send_begun()
        eventually(lambda: begun, 10)
        return one, store, go

    yield make
    for event in events:
        event.set()


def test_a_begun_flush_that_fails_after_the_end_of_its_session_is_a_loss(leaving):
    """The server answers the next flush, that of the keeper, with success."""
    one, store, go = leaving(5)
    thread = threading.Thread(target=store.close, daemon=True)
    thread.start()
    go.set()
    thread.join(10)
    assert not thread.is_alive() and failure_flags.is_set(one.flag)


def test_a_begun_flush_without_an_answer_at_the_end_of_its_session(leaving, monkeypatch):
    """The keeper gets the changes, and repeats them when the server has closed the connection."""
    monkeypatch.setattr(nbd_pipeline, 'SETTLE_SECONDS', 0.05)
    one, store, go = leaving(5)
    store.close()
    go.set()
    eventually(lambda: commands(one.peer).count(numbers.CMD_FLUSH) == 2, 10)
    assert commands(one.peer).count(numbers.CMD_WRITE) >= 5
    assert not failure_flags.is_set(one.flag)


def test_a_flush_during_which_the_changes_were_repeated_is_done_again(export):
    def answer(request):
        if request[0] == numbers.CMD_FLUSH and not repeated:
            repeated.append(store._changes.begin_generation())
        return None

    repeated = []
    one = export(answer=answer)
    store = one.session()
    store.write(0, b'x' * 512, False)
    store.flush(0, SIZE)
    assert commands(one.peer).count(numbers.CMD_FLUSH) == 2 and not store._changes.is_dirty


def test_a_begun_flush_that_fails_is_a_loss_for_every_session(export, monkeypatch):
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 4096)

    def answer(request):
        return simple(request[2], 5) if request[0] == numbers.CMD_FLUSH and failing else None

    failing = [True]
    one = export(answer=answer)
    store, other = one.session(), one.session()
    store.read(0, 512)
    assert begin_writes(store, 5) == [None] * 6
    failing.pop()
    for each in (store, other):
        with pytest.raises(OSError):
            each.flush(0, SIZE)
        assert each.lost


def test_a_flush_alone_waits_for_the_server_if_something_is_not_durable(export):
    """Without a connection while everything is; for some seconds only with a limit, and then data is lost."""
    made = export()
    session = made.session()
    made.session(only_flushes=True).flush(0, SIZE)
    assert made.peer.requests == []
    session.write(0, b'a' * 512, False)
    made.session(only_flushes=True).flush(0, SIZE)
    assert made.peer.requests[-1][0] == numbers.CMD_FLUSH
    session.write(0, b'b' * 512, False)
    made.peer.close()
    with pytest.raises(OSError) as failed:
        made.session(only_flushes=True, patience=0.2).flush(0, SIZE)
    assert failed.value.errno == errno.ETIMEDOUT and failure_flags.is_set(made.flag)
