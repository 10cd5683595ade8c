"""store.nbd_connection: requests of many threads, replies in any order, replies that violate the protocol."""

import errno
import socket
import struct
import threading

import pytest
from nbd_peer import chunk, receive, simple

from targetd.nbd import numbers
from targetd.nbd.handshake import Export
from targetd.store.nbd_connection import Connection, Lost

READ, WRITE, FLUSH = numbers.CMD_READ, numbers.CMD_WRITE, numbers.CMD_FLUSH
SIZE = 1 << 20


@pytest.fixture
def peer():
    """peer(extended=False, structured=True) -> (Connection, the server's socket)."""
    sockets = []

    def make(extended=False, structured=True):
        ours, theirs = socket.socketpair()
        sockets.extend((ours, theirs))
        theirs.settimeout(10)
        return Connection(
            ours, Export(SIZE, 0, 1, 4096, SIZE, structured, extended, 5 if structured else None)
        ), theirs

    yield make
    for sock in sockets:
        sock.close()


def request(sock, data=0):
    """Returns (flags, command, cookie, offset, length) of the request that arrives."""
    head = receive(sock, 28)
    receive(sock, data)
    return struct.unpack('>4xHHQQI', head)


class Call(threading.Thread):
    """A call in a thread of its own. outcome: the Request or the exception."""

    def __init__(self, connection, *arguments, **more):
        super(Call, self).__init__(daemon=True)
        self.connection, self.arguments, self.more = connection, arguments, more
        self.outcome = None
        self.start()

    def run(self):
        try:
            self.outcome = self.connection.call(*self.arguments, **self.more)
        except Exception as e:
            self.outcome = e

    def result(self):
        self.join(10)
        assert not self.is_alive(), 'the call has not ended'
        return self.outcome


def read(connection, offset, length):
    """Returns (Call, buffer)."""
    buffer = bytearray(length)
    return Call(connection, READ, 0, offset, length, into=memoryview(buffer)), buffer


def test_replies_in_another_order_go_to_their_requests(peer):
    connection, server = peer()
    calls = [read(connection, number * 512, 512) for number in range(8)]
    seen = [request(server) for _ in calls]
    for _, _, cookie, offset, length in reversed(seen):
        data = bytes([offset // 512 + 1]) * length
        server.sendall(chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', offset) + data))
    for number, (call, buffer) in enumerate(calls):
        assert call.result().error == 0
        assert buffer == bytes([number + 1]) * 512
    assert connection.in_flight == 0


def test_a_thread_whose_reply_comes_early_hands_the_reading_over(peer):
    connection, server = peer()
    first, _ = read(connection, 0, 512)
    cookie = request(server)[2]
    second = Call(connection, WRITE, 0, 0, 4, b'data')
    other = request(server, 4)[2]
    server.sendall(chunk(numbers.REPLY_OFFSET_HOLE, cookie, struct.pack('>QI', 0, 512)))
    assert first.result().received == 512
    server.sendall(simple(other))
    assert second.result().error == 0


def test_a_large_write_is_sent_whole_while_the_server_is_slow(peer):
    connection, server = peer()
    data = bytes(range(256)) * 16384
    call = Call(connection, WRITE, 0, 0, len(data), data)
    head = receive(server, 28)
    assert receive(server, len(data)) == data
    server.sendall(simple(struct.unpack_from('>Q', head, 8)[0]))
    assert call.result().error == 0


@pytest.mark.parametrize(
    'error, expected', [(22, errno.EIO), (28, errno.ENOSPC), (1, errno.EPERM), (999, errno.EIO)]
)
def test_errors_of_the_server(peer, error, expected):
    connection, server = peer()
    call = Call(connection, WRITE, 0, 0, 1, b'x')
    cookie = request(server, 1)[2]
    payload = struct.pack('>IH', error, 4) + b'text'
    server.sendall(chunk(numbers.REPLY_ERROR, cookie, payload))
    outcome = call.result()
    assert isinstance(outcome, OSError) and outcome.errno == expected
    assert 'text' in str(outcome)
    assert not connection.is_lost


def test_a_server_that_shuts_down_is_a_lost_connection(peer):
    connection, server = peer()
    call = Call(connection, WRITE, 0, 0, 1, b'x')
    server.sendall(simple(request(server, 1)[2], 108))
    assert isinstance(call.result(), Lost)
    assert connection.is_lost


def test_a_connection_that_ends_wakes_every_thread(peer):
    connection, server = peer()
    calls = [read(connection, 0, 512)[0] for _ in range(5)]
    for _ in calls:
        request(server)
    server.close()
    for call in calls:
        assert isinstance(call.result(), Lost)
    with pytest.raises(Lost, match='closed the connection'):
        connection.call(FLUSH, 0, 0, 0)


def offset_data(cookie, offset, length, **more):
    payload = struct.pack('>Q', offset) + bytes(length)
    return chunk(numbers.REPLY_OFFSET_DATA, cookie, payload, **more)


@pytest.mark.parametrize(
    'reply, text',
    [
        (lambda cookie: b'HTTP/1.1 400 Bad Request\r\n', 'begins with'),
        (lambda cookie: simple(cookie + 1), 'not sent'),
        (lambda cookie: simple(cookie), 'simple reply to READ'),
        (lambda cookie: offset_data(cookie, 0, 513), 'a chunk of type 1'),
        (lambda cookie: offset_data(cookie, 512, 512), 'not requested'),
        (lambda cookie: offset_data(cookie, 0, 511), '511 bytes in the reply'),
        (lambda cookie: chunk(numbers.REPLY_NONE, cookie, b''), '0 bytes in the reply'),
        (lambda cookie: chunk(numbers.REPLY_OFFSET_HOLE, cookie, bytes(12)), 'not requested'),
        (lambda cookie: chunk(numbers.REPLY_ERROR, cookie, bytes(6)), 'invalid error'),
        (lambda cookie: chunk(5, cookie, bytes(12)), 'a chunk of type 5'),
    ],
)
def test_replies_that_violate_the_protocol(peer, reply, text):
    connection, server = peer()
    call, _ = read(connection, 0, 512)
    cookie = request(server)[2]
    server.sendall(reply(cookie))
    assert isinstance(call.result(), Lost)
    assert 'violates the NBD protocol' in connection.why and text in connection.why


def test_a_read_without_structured_replies(peer):
    connection, server = peer(structured=False)
    call, buffer = read(connection, 0, 512)
    server.sendall(simple(request(server)[2]) + b'y' * 512)
    assert call.result().error == 0
    assert buffer == b'y' * 512


def test_extended_headers(peer):
    connection, server = peer(extended=True)
    call, buffer = read(connection, 4096, 512)
    magic, _, command, cookie, offset, length = struct.unpack('>IHHQQQ', receive(server, 32))
    assert (magic, command, offset, length) == (numbers.EXTENDED_REQUEST_MAGIC, READ, 4096, 512)
    payload = struct.pack('>Q', 4096) + b'z' * 512
    head = struct.pack(
        '>IHHQQQ', numbers.EXTENDED_REPLY_MAGIC, 1, numbers.REPLY_OFFSET_DATA, cookie, 4096, 520
    )
    server.sendall(head + payload)
    assert call.result().error == 0
    assert buffer == b'z' * 512


def test_block_status(peer):
    connection, server = peer()
    call = Call(connection, numbers.CMD_BLOCK_STATUS, 0, 0, 8192)
    payload = struct.pack('>IIIII', 5, 4096, 0, 4096, 3)
    server.sendall(chunk(numbers.REPLY_BLOCK_STATUS, request(server)[2], payload))
    assert call.result().extents == [(4096, False), (4096, True)]


def test_a_request_that_is_woken_before_it_sleeps_gets_its_reply(peer, monkeypatch):
    """The thread that has received the replies leaves between the send of another one and its wait."""
    connection, server = peer()
    wait = connection._wait

    def woken_early(request):
        with connection._lock:
            connection._wake(request)
        wait(request)

    monkeypatch.setattr(connection, '_wait', woken_early)
    for offset in (0, 4096):
        call, buffer = read(connection, offset, 512)
        cookie = request(server)[2]
        data = struct.pack('>Q', offset) + b'x' * 512
        server.sendall(chunk(numbers.REPLY_OFFSET_DATA, cookie, data))
        assert not isinstance(call.result(), Exception)
        assert buffer == b'x' * 512


@pytest.mark.parametrize('pieces', [[512], [100, 412]], ids=['at once', 'in parts'])
def test_the_data_of_a_read_in_one_chunk_is_received_whole(peer, pieces):
    connection, server = peer()
    call, buffer = read(connection, 4096, 512)
    cookie = request(server)[2]
    reply = chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', 4096) + b'y' * 512)
    server.sendall(reply[: 28 + pieces[0]])
    server.sendall(reply[28 + pieces[0] :])
    assert not isinstance(call.result(), Exception) and buffer == b'y' * 512


def test_a_chunk_with_another_offset_than_requested_ends_the_connection(peer):
    connection, server = peer()
    call, _ = read(connection, 4096, 512)
    cookie = request(server)[2]
    server.sendall(chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', 0) + b'y' * 512))
    assert isinstance(call.result(), Lost)
