"""store.nbd_store on a scripted server, with a keeper in a thread: verbs, lost connections, lost data."""

import errno
import fcntl
import os
import struct
import threading

import pytest
from daemon import eventually
from keeper_export import MULTI, SIZE, commands, exports
from nbd_peer import FLAGS, Closed, chunk, simple

from targetd.nbd import numbers
from targetd.store import failure_flags, nbd_line, nbd_store
from targetd.store.filter_settings import parse_filters

export = pytest.fixture(exports)


def test_verbs(export):
    one = export()
    store = one.session()
    store.write(1000, b'x' * 3000, False)
    assert store.read(999, 3002) == b'\0' + b'x' * 3000 + b'\0'
    assert store.try_read(0, 512) is None
    store.write_zeroes(1000, 1000, True)
    assert store.read(1000, 1001) == bytes(1000) + b'x'
    store.unmap(0, 4096)
    store.flush(0, SIZE)
    assert commands(one.peer)[-2:] == [numbers.CMD_TRIM, numbers.CMD_FLUSH]
    with pytest.raises(OSError) as caught:
        store.write(SIZE - 1, b'xy', False)
    assert caught.value.errno == errno.EINVAL


def test_a_read_always_has_df_where_it_is_offered(export):
    """Without it, qemu-nbd closes the connection at a read error."""
    one = export()
    one.session().read(0, 512)
    assert [request[1] for request in one.peer.requests] == [numbers.FLAG_DF]


def test_nothing_is_sent_that_was_not_offered(export):
    one = export(flags=numbers.HAS_FLAGS | numbers.SEND_FLUSH | MULTI)
    store = one.session()
    store.write(0, b'x' * 512, True)
    store.write_zeroes(0, 512, False)
    store.unmap(0, 4096)
    store.read(0, 512)
    assert one.peer.memory[:512] == bytes(512)
    for command, flags, _, _, _, _ in one.peer.requests:
        assert not flags
        assert command in (numbers.CMD_READ, numbers.CMD_WRITE, numbers.CMD_FLUSH)


def test_a_durable_write_has_fua_and_is_not_remembered(export):
    one = export()
    store = one.session()
    store.write(0, b'x' * 512, True)
    assert one.peer.requests[0][1] == numbers.FLAG_FUA
    one.restart(memory='lost')
    assert store.read(0, 512) == bytes(512)  # it was on the medium of the server


def test_a_durable_write_is_repeated_after_an_earlier_one_of_the_same_blocks(export):
    one = export()
    store = one.session()
    store.write(0, b'1' * 512, False)
    store.write(0, b'2' * 512, True)
    one.restart()
    assert store.read(0, 512) == b'2' * 512
    assert commands(one.peer) == [numbers.CMD_WRITE, numbers.CMD_WRITE, numbers.CMD_READ]


def test_without_multi_conn_every_write_is_durable(export):
    one = export(flags=numbers.HAS_FLAGS | numbers.SEND_FLUSH | numbers.SEND_FUA)
    one.session().write(0, b'x' * 512, False)
    assert one.peer.requests[0][1] == numbers.FLAG_FUA


def test_unflushed_changes_are_repeated_after_a_loss(export):
    one = export()
    store = one.session()
    store.write(0, b'1' * 512, False)
    store.flush(0, SIZE)
    store.write(512, b'2' * 512, False)
    store.write(512, b'3' * 512, False)
    old = one.restart(memory='lost')
    one.peer.memory[:512] = old.memory[:512]
    assert store.read(0, 1024) == b'1' * 512 + b'3' * 512
    assert commands(one.peer) == [numbers.CMD_WRITE, numbers.CMD_WRITE, numbers.CMD_READ]


def test_a_server_that_closes_in_mid_request_gets_the_request_again(export):
    closed = []

    def answer(request):
        if request[0] == numbers.CMD_WRITE and len(closed) < 2:
            closed.append(request)
            raise Closed
        return None

    one = export(answer=answer)
    one.session().write(0, b'x' * 512, False)
    assert len(closed) == 2
    assert one.peer.memory[:512] == b'x' * 512


def test_a_server_that_sends_nonsense_gets_the_request_on_a_new_connection(export):
    wrong = [b'nonsense' * 4]
    one = export(answer=lambda request: wrong.pop() if wrong else None)
    assert one.session().read(0, 512) == bytes(512)
    assert len(one.peer.connections) == 2


def test_two_sessions_with_unflushed_writes_have_lost_data(export):
    """Which of their writes was the later one is not known."""
    one = export()
    store, other = one.session(), one.session()
    store.write(0, b'1' * 512, False)
    other.write(0, b'2' * 512, False)
    one.restart(memory='lost')
    store.read(0, 512)
    other.read(0, 512)
    assert numbers.CMD_WRITE not in commands(one.peer)
    for each in (store, other):
        with pytest.raises(OSError):
            each.flush(0, SIZE)


def test_a_write_in_flight_of_one_of_two_sessions_is_not_lost(export):
    """It was not acknowledged, so it is just sent again."""
    one = export()
    store, other = one.session(), one.session()
    other.read(0, 512)
    store.write(0, b'1' * 512, False)
    store.flush(0, SIZE)
    one.restart()
    store.write(512, b'2' * 512, False)
    store.flush(0, SIZE)
    assert other.read(0, 1024) == b'1' * 512 + b'2' * 512


def test_durable_writes_of_two_sessions_survive_a_loss(export):
    one = export()
    store, other = one.session(), one.session()
    store.write(0, b'1' * 512, True)
    other.write(512, b'2' * 512, True)
    one.restart()
    assert store.read(0, 1024) == other.read(0, 1024) == b'1' * 512 + b'2' * 512
    store.flush(0, SIZE)


def test_the_keeper_flushes_what_a_session_has_left(export):
    one = export()
    store = one.session()
    store.write(0, b'x' * 512, False)
    store.close()
    eventually(lambda: numbers.CMD_FLUSH in commands(one.peer), 10)
    one.session().flush(0, SIZE)


def test_a_worker_that_was_killed_while_the_server_was_away_has_lost_its_writes(export):
    one = export()
    store = one.session()
    store.write(0, b'x' * 512, False)
    one.peer.close()
    store._line.close()  # the worker is killed
    eventually(lambda: failure_flags.is_set(one.flag), 10)


def test_what_a_session_leaves_while_the_server_is_away_is_repeated(export):
    """Before the next session gets a connection."""
    one = export()
    store = one.session()
    store.write(0, b'x' * 200000, False)
    store.write_zeroes(512, 512, True)
    one.peer.close()
    thread = threading.Thread(
        target=lambda: pytest.raises(OSError, store.read, 0, 512), daemon=True
    )
    thread.start()
    eventually(lambda: store._connections[0].is_lost, 10)
    store.close()
    other = one.session()
    one.restart(memory='lost')
    assert other.read(0, 2048) == b'x' * 512 + bytes(512) + b'x' * 1024
    assert commands(one.peer)[:3] == [
        numbers.CMD_WRITE,
        numbers.CMD_WRITE_ZEROES,
        numbers.CMD_FLUSH,
    ]
    other.flush(0, SIZE)
    thread.join(10)


def test_a_session_gets_its_connection_after_what_another_one_is_leaving_was_repeated(export):
    one = export()
    store = one.session()
    store.write(0, b'x' * 512, False)
    one.peer.close()
    eventually(lambda: store._connections[0]._socket.recv(1, 0x42) == b'', 10)
    nbd_line.send(store._line, {'change': [numbers.CMD_WRITE, 0, 0, 512, 512]})
    other = one.session()
    one.restart(memory='lost')
    read = []
    thread = threading.Thread(target=lambda: read.append(other.read(0, 512)), daemon=True)
    thread.start()
    eventually(lambda: one.keeper._waiting, 10)
    store._line.send(b'x' * 512)
    nbd_line.send(store._line, {'left': True})
    store._has_left = True
    store.close()
    thread.join(10)
    assert read == [b'x' * 512]


def test_what_an_idle_session_leaves_after_the_server_died_is_repeated(export):
    """It has not noticed that the server has closed the connection."""
    one = export()
    store = one.session()
    store.write(0, b'x' * 512, False)
    one.peer.close()
    eventually(lambda: store._connections[0]._socket.recv(1, 0x42) == b'', 10)
    store.close()
    other = one.session()
    one.restart(memory='lost')
    assert other.read(0, 512) == b'x' * 512
    other.flush(0, SIZE)
    assert not failure_flags.is_set(one.flag)


def test_what_one_of_two_sessions_leaves_is_lost(export):
    one = export()
    store, other = one.session(), one.session()
    other.read(0, 512)
    store.write(0, b'x' * 512, False)
    one.peer.close()
    eventually(lambda: store._connections[0]._socket.recv(1, 0x42) == b'', 10)
    store._connections[0].fail('noticed')
    store.close()
    eventually(lambda: failure_flags.is_set(one.flag), 10)


def test_blocks_of_the_server(export, monkeypatch):
    """Requests that begin or end within its blocks are widened."""
    one = export()
    store = one.session()
    real = nbd_store.PipelinedConnection

    def with_blocks(sock, offered):
        return real(sock, offered._replace(minimum=4096, maximum=8192))

    monkeypatch.setattr(nbd_store, 'PipelinedConnection', with_blocks)
    store.write(100, b'x' * 10000, False)
    assert store.read(0, 12288) == bytes(100) + b'x' * 10000 + bytes(12288 - 10100)
    assert store.read(99, 3) == b'\0xx'
    for _, _, _, offset, length, _ in one.peer.requests:
        assert offset % 4096 == length % 4096 == 0 and length <= 8192


def test_a_range_is_locked_between_the_processes_of_the_unit(export):
    """On the memory file, also above filters."""
    one = export()
    store = one.session(filters=parse_filters('delay read=1ms'))
    with store.exclusive_range(0, 512) as inside:
        inside.write(0, b'x' * 512, False)
        pid = os.fork()
        if pid == 0:
            try:
                fcntl.lockf(one.claim, fcntl.LOCK_EX | fcntl.LOCK_NB, 512, 0)
            except OSError:
                os._exit(7)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WEXITSTATUS(status) == 7


def test_many_requests_use_a_second_connection(export):
    """A server works on few requests of each connection."""
    go = threading.Event()

    def answer(request):
        go.wait(20)

    one = export(answer=answer)
    store = one.session()
    threads = [
        threading.Thread(target=store.read, args=(512 * number, 512), daemon=True)
        for number in range(nbd_store.BUSY + 4)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(one.peer.connections) == 2, 20)
    go.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(one.peer.connections) == 2


def test_extents(export):
    one = export()
    store = one.session()
    assert store.extents(512, 1024) == [(512, 1024, True)]


def test_a_hole_reads_as_zeroes(export):
    def answer(request):
        payload = struct.pack('>QI', request[3], request[4])
        return chunk(numbers.REPLY_OFFSET_HOLE, request[2], payload)

    assert export(answer=answer).session().read(512, 1024) == bytes(1024)


def test_close_ends_a_verb_that_waits_for_a_connection(export):
    one = export()
    one.peer.close()
    store, caught = one.session(), []

    def reading():
        try:
            store.read(0, 512)
        except OSError as e:
            caught.append(e.errno)

    thread = threading.Thread(target=reading, daemon=True)
    thread.start()
    eventually(lambda: one.keeper._waiting or one.keeper._back_off, 10)
    store.close()
    thread.join(10)
    assert caught == [errno.EBADF]


def test_many_threads(export):
    one = export()
    store, failed = one.session(), []

    def work(number):
        for turn in range(50):
            data = bytes([number, turn]) * 256
            store.write(512 * number, data, False)
            if store.read(512 * number, 512) != data:
                failed.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(24)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        one.peer.drop()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failed == []


def resized(one, size, may_shrink=False):
    """Has the keeper give the sessions this size."""
    reply = nbd_line.order_size(one.control.fileno(), size, may_shrink)
    return nbd_line.received_size(reply, 20)


def test_a_new_size_replaces_the_connections_and_repeats_nothing(export):
    """Two sessions have written without a flush: their changes could not be repeated."""
    one = export()
    store, other = one.session(), one.session()
    store.write(0, b'a' * 512, False)
    other.write(512, b'b' * 512, False)
    one.peer.size = 2 * SIZE
    one.peer.memory += bytes(SIZE)
    assert resized(one, 2 * SIZE) == 2 * SIZE
    assert commands(one.peer)[-1] == numbers.CMD_FLUSH
    count = len(one.peer.requests)
    for each in (store, other):
        each.size = 2 * SIZE
        assert each.read(0, 1024) == b'a' * 512 + b'b' * 512
        assert not each._changes.is_dirty
    store.write(2 * SIZE - 512, b'c' * 512, True)
    assert numbers.CMD_FLUSH not in commands(one.peer)[count:]
    assert commands(one.peer)[count:].count(numbers.CMD_WRITE) == 1
    assert not failure_flags.is_set(one.flag)
    # everyone has the size: nothing is disturbed
    count = len(one.peer.connections)
    assert resized(one, 2 * SIZE) == 2 * SIZE
    assert len(one.peer.connections) == count + 1


def test_a_session_that_was_flushed_for_a_new_size_can_be_killed_without_a_loss(export):
    one = export()
    store = one.session()
    store.write(0, b'a' * 512, False)
    one.peer.size = 2 * SIZE
    resized(one, 2 * SIZE)
    store._line.close()
    other = one.session()
    assert other.read(0, 512) == b'a' * 512
    other.flush(0, SIZE)
    assert not failure_flags.is_set(one.flag)


def test_a_flush_that_fails_for_a_new_size_is_a_loss(export):
    def answer(request):
        return simple(request[2], 5) if request[0] == numbers.CMD_FLUSH else None

    one = export(answer=answer)
    store = one.session()
    store.write(0, b'a' * 512, False)
    one.peer.size = 2 * SIZE
    with pytest.raises(OSError) as caught:
        resized(one, 2 * SIZE)
    assert 'cannot make its data durable' in str(caught.value)
    assert failure_flags.is_set(one.flag)


def test_a_server_that_dies_meanwhile_gets_the_changes_again(export):
    """The own connection of the change is lost, too, so nothing counts as durable."""
    one = export()
    store = one.session()
    store.write(0, b'a' * 512, False)

    def answer(request):
        if request[0] == numbers.CMD_FLUSH:
            one.restart(memory='lost')
            raise Closed
        return None

    one.peer.answer, one.peer.size = answer, 2 * SIZE
    with pytest.raises(OSError) as caught:
        resized(one, 2 * SIZE)
    assert 'has lost the connection' in str(caught.value)
    one.peer.answer = lambda request: None
    assert store.read(0, 512) == b'a' * 512
    assert not failure_flags.is_set(one.flag)


def test_a_size_that_new_connections_do_not_have_is_refused(export):
    one = export()
    store = one.session()
    store.write(0, b'a' * 512, False)
    for size, why in ((2 * SIZE, 'for new connections'), (SIZE // 2, 'is not made shorter')):
        with pytest.raises(OSError) as caught:
            resized(one, size)
        assert why in str(caught.value)
    assert store.read(0, 512) == b'a' * 512 and not failure_flags.is_set(one.flag)


def test_pre_fetch(export):
    one = export(flags=FLAGS | numbers.SEND_CACHE)
    one.session().prefetch(1024, 4096)
    assert [each[:1] + each[3:5] for each in one.peer.requests] == [(numbers.CMD_CACHE, 1024, 4096)]
    other = export()
    other.session().prefetch(1024, 4096)
    assert commands(other.peer) == [numbers.CMD_READ]
