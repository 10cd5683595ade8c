"""store.nbd_pipeline: requests that are begun, on a scripted server: replies in any order and in parts, other
threads that receive them, lost connections, acknowledged writes."""

import errno
import select
import socket
import struct
import threading
from types import SimpleNamespace

import pytest
from fake_pipeline import FLAGS, SIZE, Store, arrived, data_reply
from nbd_peer import chunk, receive, simple

from targetd.nbd import numbers
from targetd.nbd.handshake import Export
from targetd.store import nbd_log, nbd_pipeline
from targetd.store.base import AGAIN, FULL
from targetd.store.nbd_pipeline import PipelinedConnection

READ, WRITE = numbers.CMD_READ, numbers.CMD_WRITE


@pytest.fixture
def peer():
    """peer(extended=False, structured=True, flags=FLAGS) -> (Store, its connection, the server's socket)."""
    sockets = []

    def make(extended=False, structured=True, flags=FLAGS, **more):
        ours, theirs = socket.socketpair()
        sockets.extend((ours, theirs))
        theirs.settimeout(10)
        connection = PipelinedConnection(
            ours, Export(SIZE, flags, 1, 4096, SIZE, structured, extended, 5)
        )
        return Store(connection, **more), connection, theirs

    yield make
    for sock in sockets:
        sock.close()


def ended(connection, count=1):
    """{context: outcome} of the next `count` requests that end in this thread."""
    found = {}
    while len(found) < count:
        assert select.select([connection], [], [], 10)[0], 'nothing arrives'
        found.update((each.context, each.outcome()) for each in connection.receive_ready()[0])
    return found


def test_many_requests_are_sent_at_once_and_end_in_any_order(peer):
    store, connection, server = peer()
    for number in range(8):
        assert store.read(512 * number, 512, number) is connection
    assert not select.select([server], [], [], 0)[0]  # nothing is sent before
    assert connection.send_begun()
    assert connection.in_flight == connection.begun == 8
    out = b''
    for flags, command, cookie, offset, length in reversed(arrived(server, 8)):
        assert (flags, command, length) == (numbers.FLAG_DF, READ, 512)
        out += data_reply(cookie, offset, bytes([offset // 512 + 1]) * 512)
    server.sendall(out)
    found = ended(connection, 8)
    assert found == {number: bytes([number + 1]) * 512 for number in range(8)}
    assert connection.in_flight == connection.begun == 0


@pytest.mark.parametrize('cut', [1, 15, 27, 28, 100, 539])
def test_a_reply_in_parts_is_waited_for_without_blocking(peer, cut):
    store, connection, server = peer()
    store.read(0, 512, 'read')
    store.write(0, b'x' * 512, context='write')
    connection.send_begun()
    read, write = arrived(server)[0][2], arrived(server, 1, 512)[0][2]
    out = data_reply(read, 0, b'y' * 512) + simple(write)
    server.sendall(out[:cut])
    assert connection.receive_ready() == ([], True)
    server.sendall(out[cut:])
    assert ended(connection, 2) == {'read': b'y' * 512, 'write': None}


@pytest.mark.parametrize('structured', [True, False])
def test_replies_of_other_forms(peer, structured):
    """Simple replies, and a READ in two chunks, of which one is a hole."""
    store, connection, server = peer(structured=structured)
    store.read(0, 1024, 'read')
    store.write(0, b'x' * 512, context='write')
    connection.send_begun()
    read, write = arrived(server)[0][2], arrived(server, 1, 512)[0][2]
    if structured:
        payload = struct.pack('>QI', 0, 512)
        server.sendall(chunk(numbers.REPLY_OFFSET_HOLE, read, payload, 0))
        server.sendall(data_reply(read, 512, b'y' * 512))
        server.sendall(chunk(numbers.REPLY_NONE, write, b''))
    else:
        server.sendall(simple(read) + bytes(512) + b'y' * 512 + simple(write))
    assert ended(connection, 2) == {'read': bytes(512) + b'y' * 512, 'write': None}


def test_extended_headers(peer):
    store, connection, server = peer(extended=True)
    store.read(4096, 512, 'read')
    connection.send_begun()
    cookie = struct.unpack('>IHHQQQ', receive(server, 32))[3]
    layout, magic = '>IHHQQQQ', numbers.EXTENDED_REPLY_MAGIC
    head = struct.pack(layout, magic, 1, numbers.REPLY_OFFSET_DATA, cookie, 4096, 520, 4096)
    server.sendall(head + b'z' * 512)
    assert ended(connection) == {'read': b'z' * 512}


def test_errors_of_the_server(peer):
    """That of a READ is examined by the verb that waits."""
    store, connection, server = peer()
    store.read(0, 512, 'read')
    store.write(0, b'x' * 512, context='write')
    connection.send_begun()
    cookies = arrived(server)[0][2], arrived(server, 1, 512)[0][2]
    for cookie in cookies:
        server.sendall(chunk(numbers.REPLY_ERROR, cookie, struct.pack('>IH', 28, 4) + b'text'))
    (first, second), goes_on = connection.receive_ready()
    assert goes_on and first.outcome() is AGAIN
    with pytest.raises(OSError, match='text') as caught:
        second.outcome()
    assert caught.value.errno == errno.ENOSPC
    assert not connection.is_lost and not store.changes.is_dirty


@pytest.mark.parametrize(
    'reply',
    [
        lambda cookie: simple(cookie),
        lambda cookie: data_reply(cookie, 512, b'x' * 512),
        lambda cookie: data_reply(cookie, 0, b'x' * 513),
        lambda cookie: data_reply(cookie + 1, 0, b'x' * 512),
        lambda cookie: chunk(numbers.REPLY_OFFSET_DATA, cookie, b'')[:16] + b'\x7f' * 4,
        lambda cookie: b'HTTP/1.1 400 Bad Request\r\n',
    ],
)
def test_replies_that_violate_the_protocol_lose_the_connection(peer, reply):
    store, connection, server = peer()
    store.read(0, 512)
    connection.send_begun()
    server.sendall(reply(arrived(server)[0][2]))
    assert connection.receive_ready()[0] == []
    assert connection.is_lost and 'violates the NBD protocol' in connection.why
    assert [each.outcome() for each in store.given] == [AGAIN]


def test_a_lost_connection_gives_everything_to_the_owner(peer):
    store, connection, server = peer()
    for number in range(3):
        store.write(0, b'x' * 512, context=number)
    connection.send_begun()
    server.close()
    assert connection.receive_ready()[0] == []
    assert [each.context for each in store.given] == [0, 1, 2]
    assert {each.outcome() for each in store.given} == {AGAIN}
    assert connection.begun == 0 and store.read(0, 512) is None
    assert not store.changes.is_dirty


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def send(connection):
    """Send what was begun; another thread may not have left its send yet."""
    if not connection.send_begun():
        connection.send_left()


def call_in_thread(connection, length):
    """A READ of another thread, which waits for it. Returns (thread, buffer)."""
    buffer = bytearray(length)
    thread = threading.Thread(
        target=connection.call, args=(READ, 0, 0, length, None, memoryview(buffer)), daemon=True
    )
    thread.start()
    return thread, buffer


def test_a_thread_that_waits_receives_the_replies_to_begun_requests(peer):
    """Also one that arrives together with its own and would be in its buffer when it leaves."""
    store, connection, server = peer()
    thread, buffer = call_in_thread(connection, 512)
    own = arrived(server)[0][2]
    for number in range(2):
        store.read(512, 512, number)
    send(connection)
    first, last = [request[2] for request in arrived(server, 2)]
    while not connection._has_reader:
        pass
    assert connection.receive_ready() == ([], False)
    server.sendall(
        data_reply(first, 512, b'1' * 512)
        + data_reply(own, 0, b'o' * 512)
        + data_reply(last, 512, b'2' * 512)
    )
    thread.join(10)
    assert not thread.is_alive() and buffer == b'o' * 512
    outcomes = {each.context: each.outcome() for each in store.given}
    assert outcomes == {0: b'1' * 512, 1: b'2' * 512}
    assert connection.receive_ready() == ([], True)


LONG = 400 << 10  # more than the buffer has room for


@pytest.mark.parametrize('cut', [20, 28, 1000, 100000])
def test_a_thread_that_waits_goes_on_with_a_reply_that_another_one_has_in_part(peer, cut):
    """Its own reply, and a long one of a request that was begun."""
    store, connection, server = peer()
    with connection._lock:
        connection._has_reader = True  # until the other thread sleeps
    thread, buffer = call_in_thread(connection, LONG)
    own = arrived(server)[0][2]
    store.read(0, LONG, 'read')
    send(connection)
    cookie = arrived(server)[0][2]
    connection._has_reader = False
    first, last = data_reply(cookie, 0, b'r' * LONG), data_reply(own, 0, b'l' * LONG)
    server.sendall(first[:cut])
    assert connection.receive_ready() == ([], True)
    server.sendall(first[cut:] + last)
    thread.join(10)
    assert not thread.is_alive() and buffer == b'l' * LONG
    assert [each.outcome() for each in store.given] == [b'r' * LONG]


@pytest.mark.parametrize('cut', [20, 28, 1000, 100000])
def test_this_thread_goes_on_with_a_reply_that_another_one_has_in_part(peer, cut):
    store, connection, server = peer()
    thread, buffer = call_in_thread(connection, 512)
    own = arrived(server)[0][2]
    store.read(0, LONG, 'read')
    store.read(4096, 512, 'short')
    send(connection)
    cookie, short = [each[2] for each in arrived(server, 2)]
    while not connection._has_reader:
        pass
    reply = data_reply(cookie, 0, b'r' * LONG)
    server.sendall(data_reply(own, 0, b'o' * 512) + reply[:cut])
    thread.join(10)
    assert not thread.is_alive() and buffer == b'o' * 512 and not store.given
    rest = reply[cut:] + data_reply(short, 4096, b's' * 512)
    sender = in_thread(lambda: server.sendall(rest))
    assert ended(connection, 2) == {'read': b'r' * LONG, 'short': b's' * 512}
    sender.join(10)


@pytest.mark.parametrize('cut', [20, 28, 1000, 100000])
def test_a_connection_that_is_lost_in_the_middle_of_a_long_reply(peer, cut):
    store, connection, server = peer()
    store.read(0, LONG, 'long')
    store.read(4096, 512, 'next')
    connection.send_begun()
    server.sendall(data_reply(arrived(server, 2)[0][2], 0, b'r' * LONG)[:cut])
    assert connection.receive_ready() == ([], True)
    server.close()
    assert connection.receive_ready() == ([], True) and connection.is_lost
    assert [(each.context, each.outcome()) for each in store.given] == [
        ('long', AGAIN),
        ('next', AGAIN),
    ]


@pytest.mark.parametrize('length', [1000, 300000])
def test_a_long_read_in_chunks(peer, length):
    """The last one is a hole, and arrives in part."""
    store, connection, server = peer()
    store.read(4096, length + 512, 'read')
    connection.send_begun()
    cookie = arrived(server)[0][2]
    data = struct.pack('>Q', 4096) + b'd' * length
    hole = struct.pack('>QI', 4096 + length, 512)
    out = chunk(numbers.REPLY_OFFSET_DATA, cookie, data, 0)
    out += chunk(numbers.REPLY_OFFSET_HOLE, cookie, hole)
    sender = in_thread(lambda: server.sendall(out[:-5]))
    while connection._replies._half is None or len(connection._replies._rest) != 5:
        assert select.select([connection], [], [], 10)[0], 'nothing arrives'
        assert connection.receive_ready() == ([], True)
    sender.join(10)
    server.sendall(out[-5:])
    assert ended(connection) == {'read': b'd' * length + bytes(512)}


def test_a_server_that_takes_nothing_leaves_the_rest_to_a_thread(peer):
    store, connection, server = peer()
    count, data = 100, bytes(range(256)) * 256
    for number in range(count):
        store.write(0, data, context=number)
    assert not connection.send_begun()
    store.write(0, data, context=count)
    assert connection.send_begun()  # the thread sends it, too
    thread = threading.Thread(target=connection.send_left, daemon=True)
    thread.start()
    for _ in range(count + 1):
        receive(server, 28)
        assert receive(server, len(data)) == data
    thread.join(10)
    assert not thread.is_alive()
    store.read(0, 512)
    assert connection.send_begun() and len(arrived(server)) == 1


def test_a_write_is_in_the_log_before_it_is_acknowledged(peer):
    store, connection, server = peer()
    store.write(4096, b'x' * 512, context='write')
    connection.send_begun()
    cookie = arrived(server, 1, 512)[0][2]
    assert not store.changes.is_dirty
    server.sendall(simple(cookie))
    assert ended(connection) == {'write': None}
    assert [each[3:] for each in store.changes.all()] == [(4096, 512, b'x' * 512)]


def test_a_write_of_an_earlier_generation_is_done_again(peer):
    store, connection, server = peer()
    store.write(0, b'x' * 512, context='write')
    connection.send_begun()
    server.sendall(simple(arrived(server, 1, 512)[0][2]))
    store.changes.begin_generation()
    assert ended(connection) == {'write': AGAIN}
    assert not store.changes.is_dirty


@pytest.mark.parametrize('is_dirty', [False, True])
def test_a_durable_write_has_fua_and_is_in_the_log_if_earlier_changes_are(peer, is_dirty):
    store, connection, server = peer()
    if is_dirty:
        store.changes.add(0, WRITE, 0, 0, 512, b'o' * 512)
    store.write(0, b'x' * 512, True, 'write')
    connection.send_begun()
    ((flags, _, cookie, _, _),) = arrived(server, 1, 512)
    assert flags == numbers.FLAG_FUA
    server.sendall(simple(cookie))
    assert ended(connection) == {'write': None}
    assert len(store.changes) == 2 * is_dirty


def test_a_durable_write_fails_after_a_loss(peer):
    store, connection, server = peer()
    store.write(0, b'x' * 512, True)
    connection.send_begun()
    server.sendall(simple(arrived(server, 1, 512)[0][2]))
    store.lost = errno.EIO
    (request,), _ = connection.receive_ready()
    with pytest.raises(OSError):
        request.outcome()
    assert store.write(0, b'x' * 512) is None


@pytest.fixture
def half_full(peer, monkeypatch):
    """A store whose log is full with 4 writes of 512 bytes and has 2, its connection and the server's socket;
    the third WRITE and a FLUSH have been sent. cookies: of both."""
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 2048)
    store, connection, server = peer()
    for number in range(2):
        store.write(512 * number, b'x' * 512)
        connection.send_begun()
        server.sendall(simple(arrived(server, 1, 512)[0][2]))
        ended(connection)
    store.write(1024, b'x' * 512, context='write')
    connection.send_begun()
    write, flush = arrived(server, 1, 512)[0], arrived(server)[0]
    assert (write[1], flush[1]) == (WRITE, numbers.CMD_FLUSH) and store.is_flushing_ahead
    return SimpleNamespace(
        store=store, connection=connection, server=server, cookies=(write[2], flush[2])
    )


def test_a_flush_begins_when_the_log_is_half_full(half_full):
    """One at a time; it covers what was acknowledged before it."""
    store, server = half_full.store, half_full.server
    store.write(1536, b'x' * 512, context='next')
    half_full.connection.send_begun()
    next_one = arrived(server, 1, 512)[0][2]
    for cookie in (next_one,) + half_full.cookies:
        server.sendall(simple(cookie))
    assert ended(half_full.connection, 3) == {'next': None, 'write': FULL, None: None}
    assert [change[3] for change in store.changes.all()] == [1536, 1024]
    assert not store.is_flushing_ahead
    store.make_room()  # of the WRITE that found the log full
    assert not store.flushes
    store.write(0, b'x' * 512)
    assert store.is_flushing_ahead and half_full.connection.in_flight == 2


def test_a_full_log_is_waited_for_until_the_flush_ends(half_full):
    half_full.store.changes.add(0, WRITE, 0, 0, 1024, b'o' * 1024)
    thread = in_thread(half_full.store.make_room)
    thread.join(0.05)
    assert thread.is_alive()
    half_full.server.sendall(simple(half_full.cookies[1]))
    ended(half_full.connection)
    thread.join(10)
    assert not thread.is_alive() and not half_full.store.flushes


def test_another_flush_waits_for_the_one_that_was_begun(half_full):
    """It could succeed before the failure of that one is known, which the server does not report twice."""
    store, failed = half_full.store, []

    def flush():
        try:
            store.flush(0, SIZE)
        except OSError as e:
            failed.append(e.errno)

    thread = in_thread(flush)
    thread.join(0.05)
    assert thread.is_alive() and not store.flushes
    half_full.server.sendall(simple(half_full.cookies[1], 5))
    ended(half_full.connection)
    thread.join(10)
    assert failed == [errno.EIO] and not store.flushes and len(store.changes) == 2
    assert store.write(0, b'x' * 512) is None  # a thread gets the error


@pytest.mark.parametrize('loss', ['noticed here', 'the server shuts down', 'noticed elsewhere'])
def test_a_begun_flush_whose_connection_is_lost_makes_nothing_durable(half_full, loss):
    store, connection, server = half_full.store, half_full.connection, half_full.server
    if loss == 'the server shuts down':
        for cookie in half_full.cookies:
            server.sendall(simple(cookie, 108))
        assert ended(connection, 2) == {'write': AGAIN, None: None}
    else:
        if loss == 'noticed here':
            server.close()
            assert connection.receive_ready()[0] == []
        else:
            connection.fail('lost')
        assert [each.outcome() for each in store.given] == [AGAIN, None]
    assert len(store.changes) == 2 and not store.lost and not store.is_flushing_ahead
    store.flush(0, SIZE)
    assert store.flushes == 1


def test_what_cannot_be_begun_is_left_to_the_verbs(peer, monkeypatch):
    store, connection, _ = peer(flags=0)
    assert store.write(0, b'x' * 512, True) is None  # no FUA
    assert store.read(0, nbd_pipeline.LONGEST_BEGUN + 512) is None
    assert store.read(SIZE - 512, 1024) is None
    assert store.read(0, 512) is connection
    monkeypatch.setattr(nbd_pipeline, 'BUSY', 1)
    assert store.read(0, 512) is connection  # no second connection is to be had now
    store._second_after = 0.0
    assert store.read(0, 512) is None
    connection.fail('lost')
    assert store.read(0, 512) is None
