"""store.nbd_replies: replies that arrive in any pieces, many at once, and that violate the protocol."""

import errno
import socket
import struct

import pytest
from nbd_peer import chunk, simple

from targetd.nbd import numbers
from targetd.nbd.handshake import Export
from targetd.nbd.messages import ProtocolError
from targetd.store.nbd_connection import Request
from targetd.store.nbd_replies import BUFFER_BYTES, Lost, Replies

READ, WRITE = numbers.CMD_READ, numbers.CMD_WRITE
SIZE = 4 << 20


class Link(object):
    """Replies, the server's socket, and the cookies of what has ended, in order."""

    def __init__(self, structured=True, extended=False):
        ours, self.server = socket.socketpair()
        self.sockets = ours, self.server
        # With a limit on the other one, too, Python would wait in spite of MSG_DONTWAIT.
        self.server.settimeout(10)
        self.pending = {}
        self.ended = []
        export = Export(SIZE, 0, 1, 4096, SIZE, structured, extended, 5 if structured else None)
        self.replies = Replies(ours, export, self.pending, self.ended.extend)

    def read(self, cookie, offset, length):
        """A READ without a reply. Returns its buffer."""
        data = bytearray(length)
        self.pending[cookie] = Request(READ, offset, length, memoryview(data))
        return data

    def write(self, cookie):
        self.pending[cookie] = Request(WRITE, 0, 512, None)

    def take(self):
        """Receive and handle what is here."""
        has_more = True
        while has_more:
            try:
                has_more = self.replies.receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self.replies.handle()

    def arrive(self, data):
        self.server.sendall(data)
        self.take()


@pytest.fixture
def link():
    made = []

    def make(**more):
        made.append(Link(**more))
        return made[-1]

    yield make
    for each in made:
        for sock in each.sockets:
            sock.close()


def data_chunk(cookie, offset, data, **more):
    return chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', offset) + data, **more)


def test_replies_that_arrive_together_end_their_requests_in_order(link):
    one = link()
    first, second = one.read(1, 0, 4096), one.read(2, 8192, 512)
    one.write(3)
    one.arrive(data_chunk(2, 8192, b'b' * 512) + simple(3) + data_chunk(1, 0, b'a' * 4096))
    assert one.ended == [2, 3, 1]
    assert (first, second) == (b'a' * 4096, b'b' * 512)


@pytest.mark.parametrize('step', [1, 7, 28, 29])
def test_replies_that_arrive_in_pieces(link, step):
    one = link()
    read = one.read(1, 512, 100)
    one.write(2)
    both = data_chunk(1, 512, bytes(range(100))) + simple(2)
    for start in range(0, len(both), step):
        assert one.ended in ([], [1])
        one.arrive(both[start : start + step])
    assert one.ended == [1, 2] and read == bytes(range(100))


def test_data_that_is_longer_than_the_buffer_and_the_reply_behind_it(link):
    one = link()
    length = 3 * BUFFER_BYTES
    read = one.read(1, 0, length)
    one.write(2)
    data = bytes(range(256)) * (length // 256)
    rest = data_chunk(1, 0, data) + simple(2)
    while rest:
        rest = rest[one.server.send(rest[: 64 << 10]) :]
        one.take()
    assert one.ended == [1, 2] and read == data


def test_a_read_in_several_chunks_and_a_hole(link):
    one = link()
    read = one.read(1, 1024, 1024)
    read[:] = b'?' * 1024
    hole = chunk(numbers.REPLY_OFFSET_HOLE, 1, struct.pack('>QI', 1024, 512), flags=0)
    one.arrive(hole)
    assert one.ended == []
    one.arrive(data_chunk(1, 1536, b'x' * 512))
    assert one.ended == [1] and read == bytes(512) + b'x' * 512


def test_an_error_in_words_ends_only_its_request(link):
    one = link()
    one.read(1, 0, 512)
    read = one.read(2, 0, 512)
    text = struct.pack('>IH', 5, 3) + b'bad'
    one.arrive(chunk(numbers.REPLY_ERROR, 1, text) + data_chunk(2, 0, b'y' * 512))
    assert one.ended == [1, 2] and read == b'y' * 512


def test_simple_replies_of_a_server_without_structured_ones(link):
    one = link(structured=False)
    read, failed = one.read(1, 0, 512), one.read(2, 0, 512)
    request = one.pending[2]
    one.arrive(simple(1) + b'z' * 512 + simple(2, error=28))
    assert one.ended == [1, 2] and read == b'z' * 512 and not any(failed)
    assert request.error == errno.ENOSPC


def test_extended_headers(link):
    one = link(extended=True)
    read = one.read(1, 512, 512)
    head = struct.pack(
        '>IHHQQQ',
        numbers.EXTENDED_REPLY_MAGIC,
        numbers.REPLY_DONE,
        numbers.REPLY_OFFSET_DATA,
        1,
        512,
        520,
    )
    both = head + struct.pack('>Q', 512) + b'e' * 512
    one.arrive(both[:100])
    assert one.ended == []
    one.arrive(both[100:])
    assert one.ended == [1] and read == b'e' * 512


@pytest.mark.parametrize(
    'reply',
    [
        simple(9),
        data_chunk(1, 0, b'x' * 512),  # not where the READ begins
        data_chunk(1, 1024, b'x' * 1024),
        data_chunk(1, 512, b'x' * 256),  # and no more follows
        simple(1),  # of a server that has agreed to structured ones
        b'no reply' * 4,
    ],
)
def test_a_reply_that_violates_the_protocol_ends_no_request(link, reply):
    one = link()
    read = one.read(1, 512, 512)
    with pytest.raises(ProtocolError):
        one.arrive(reply)
    assert one.ended == [] and b'x' * 512 != read


def test_what_was_whole_before_a_violation_has_ended(link):
    one = link()
    one.write(1)
    with pytest.raises(ProtocolError):
        one.arrive(simple(1) + simple(9))
    assert one.ended == [1]


@pytest.mark.parametrize('part', [0, 10, 300])
def test_a_server_that_closes_the_connection(link, part):
    one = link()
    one.read(1, 0, 512)
    one.arrive(data_chunk(1, 0, b'x' * 512)[:part])
    one.server.shutdown(socket.SHUT_WR)
    with pytest.raises(Lost):
        one.take()
    assert one.ended == []
