"""Connections of the store process, with an image that the test makes: our own NBD client talks to it."""

import errno
import os
import shutil
import socket
import struct
import tempfile
import threading

import pytest
from daemon import eventually
from fake_image import SIZE, CFunctions, Image, Library, Opened

from targetd.ceph import callback_operations, nbd_client, poll_operations, rbd_server
from targetd.nbd import handshake, numbers
from targetd.store.nbd_connection import Connection

KINDS = ('polled', 'called back')


def operations_of(image, kind, functions=None):
    if kind == 'polled':
        return poll_operations.Operations(functions, image)
    return callback_operations.Operations(image)


@pytest.fixture
def memory():
    descriptor = (
        os.memfd_create('size') if hasattr(os, 'memfd_create') else os.open('/dev/null', os.O_RDWR)
    )
    yield descriptor
    os.close(descriptor)


class Served(object):
    """A server with its loop in a thread. connect(): returns a socket; client(): a Connection of our NBD
    client."""

    def __init__(self, image, memory, kind, read_only=False):
        self.functions = CFunctions()
        self.operations = operations_of(image, kind, self.functions)
        self.opened = Opened(image, read_only)
        self.server = rbd_server.Server(self.opened, self.operations, Library, memory)
        self._directory = tempfile.mkdtemp()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._directory + '/nbd')
        self._listener.listen(8)
        self._thread = threading.Thread(target=self.server.run, args=(self._listener,), daemon=True)
        self._thread.start()
        self._sockets = []

    def connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(self._directory + '/nbd')
        self._sockets.append(sock)
        return sock

    def client(self):
        sock = self.connect()
        steps = handshake.negotiate('')
        wanted = next(steps)
        try:
            while True:
                if isinstance(wanted, bytes):
                    sock.sendall(wanted)
                    wanted = steps.send(None)
                else:
                    wanted = steps.send(sock.recv(wanted, socket.MSG_WAITALL))
        except StopIteration as e:
            return Connection(sock, e.value)

    def close(self):
        for sock in self._sockets:
            sock.close()
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive() and self.opened.is_closed
        self._listener.close()
        shutil.rmtree(self._directory)


@pytest.fixture(params=KINDS)
def serve(request, memory):
    """serve(image, read_only) -> Served."""
    served = []

    def make(image, read_only=False):
        served.append(Served(image, memory, request.param, read_only))
        return served[-1]

    yield make
    for each in served:
        each.close()


@pytest.fixture
def connect(serve):
    """connect(image, read_only) -> Connection of our NBD client."""
    return lambda image, read_only=False: serve(image, read_only).client()


def read(connection, offset, length):
    data = bytearray(length)
    connection.call(numbers.CMD_READ, numbers.FLAG_DF, offset, length, into=memoryview(data))
    return bytes(data)


def test_what_is_written_is_read(connect):
    image = Image()
    connection = connect(image)
    assert connection.export.flags & numbers.CAN_MULTI_CONN
    connection.call(numbers.CMD_WRITE, numbers.FLAG_FUA, 4096, 8192, b'ab' * 4096)
    assert read(connection, 0, 16384) == bytes(4096) + b'ab' * 4096 + bytes(4096)
    connection.call(numbers.CMD_WRITE_ZEROES, numbers.FLAG_NO_HOLE, 4096, 4096)
    connection.call(numbers.CMD_TRIM, 0, 0, 4096)
    connection.call(numbers.CMD_FLUSH, 0, 0, 0)
    assert read(connection, 4096, 4096) == bytes(4096)
    assert image.began == ['write', 'read', 'zeroes 1', 'discard', 'flush', 'read']


def test_many_large_replies_are_sent_although_the_client_reads_late(connect):
    """They do not fit into the socket, so the sender thread does the rest."""
    image = Image()
    image.content[:] = os.urandom(SIZE)
    connection = connect(image)
    image.hold.clear()
    found = {}

    def one(number):
        found[number] = read(connection, number * 4096, SIZE - 32 * 4096)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    image.hold.set()
    for each in threads:
        each.join(20)
    assert len(found) == 16
    for number, data in found.items():
        assert data == image.content[number * 4096 :][: SIZE - 32 * 4096]


def test_a_large_write_arrives_in_pieces_and_the_next_ones_use_its_memory_later(connect):
    image = Image()
    connection = connect(image)
    data = os.urandom(SIZE - 8192)
    for number in range(3):
        connection.call(numbers.CMD_WRITE, 0, 4096 * number, len(data), data)
        assert read(connection, 4096 * number, len(data)) == data


def test_many_writes_in_flight_keep_their_data(connect):
    """They are received in several chunks of memory, while the earlier ones have not ended."""
    image = Image()
    connection = connect(image)
    image.hold.clear()
    threads = [
        threading.Thread(
            target=connection.call,
            args=(numbers.CMD_WRITE, 0, number * 8192, 8192, bytes([number]) * 8192),
        )
        for number in range(100)
    ]
    for each in threads:
        each.start()
    eventually(lambda: len(image.began) == 100, 20, 'all writes in flight')
    image.hold.set()
    for each in threads:
        each.join(20)
    for number in range(100):
        assert image.content[number * 8192 :][:8192] == bytes([number]) * 8192


# -- requests as bytes -----------------------------------------------------------------------------


def request(command, cookie, offset, length, data=b''):
    head = struct.pack('>IHHQQI', numbers.REQUEST_MAGIC, 0, command, cookie, offset, length)
    return head + data


def received(sock):
    """All that comes until the server closes the connection."""
    found = bytearray()
    while True:
        data = sock.recv(1 << 20)
        if not data:
            return bytes(found)
        found += data


def test_a_client_that_leaves_gets_the_answers_to_all_that_it_has_sent(serve):
    image = Image()
    served = serve(image)
    sock = raw_client(served)
    image.hold.clear()
    writes = b''.join(
        request(numbers.CMD_WRITE, cookie, cookie * 512, 512, bytes([cookie]) * 512)
        for cookie in range(50)
    )
    sock.sendall(writes + request(numbers.CMD_DISC, 0, 0, 0))
    sock.shutdown(socket.SHUT_WR)
    eventually(lambda: len(image.began) == 50, 20, 'all writes in flight')
    image.hold.set()
    replies = received(sock)
    cookies = [struct.unpack_from('>IIQ', replies, at) for at in range(0, len(replies), 16)]
    assert sorted(cookies) == [(numbers.SIMPLE_REPLY_MAGIC, 0, cookie) for cookie in range(50)]
    assert image.content[: 50 * 512] == b''.join(bytes([each]) * 512 for each in range(50))


def raw_client(served):
    """A socket whose handshake is over; simple replies."""
    sock = served.connect()
    sock.recv(18, socket.MSG_WAITALL)
    sock.sendall(
        struct.pack('>I', numbers.FLAG_FIXED_NEWSTYLE | numbers.FLAG_NO_ZEROES)
        + struct.pack('>QIIIH', numbers.OPTION_MAGIC, numbers.OPT_GO, 6, 0, 0)
    )
    for _ in range(3):  # export, block sizes, acknowledgement
        (length,) = struct.unpack_from('>I', sock.recv(20, socket.MSG_WAITALL), 16)
        sock.recv(length, socket.MSG_WAITALL)
    return sock


def test_a_client_that_does_not_read_is_not_read_from_and_delays_no_other(serve):
    image = Image()
    served = serve(image)
    sock = raw_client(served)
    reads = b''.join(request(numbers.CMD_READ, cookie, 0, 65536) for cookie in range(600))
    sock.sendall(reads)
    eventually(lambda: len(image.began) >= nbd_client.MOST_REQUESTS, 20, 'the first reads')
    other = served.client()
    for _ in range(20):
        other.call(numbers.CMD_WRITE, 0, 4096, 4, b'abcd')
        assert read(other, 4096, 4) == b'abcd'
    assert len(image.began) < 400  # the rest was not begun
    sock.shutdown(socket.SHUT_WR)
    assert len(received(sock)) == 600 * (16 + 65536)


def test_requests_that_the_cluster_does_not_answer_delay_no_new_client(serve):
    image = Image()
    served = serve(image)
    sock = raw_client(served)
    image.hold.clear()
    sock.sendall(request(numbers.CMD_WRITE, 1, 0, 512, bytes(512)))
    eventually(lambda: image.began, 20, 'the write in flight')
    served.client()
    with pytest.raises(OSError) as caught:
        served.client().call(numbers.CMD_WRITE, 0, SIZE, 512, bytes(512))
    assert caught.value.errno == errno.ENOSPC
    image.hold.set()
    assert len(sock.recv(16, socket.MSG_WAITALL)) == 16


def test_a_request_that_is_none_ends_the_connection_after_the_others(serve):
    sock = raw_client(serve(Image()))
    sock.sendall(request(numbers.CMD_FLUSH, 5, 0, 0) + b'x' * 28)
    assert received(sock) == struct.pack('>IIQ', numbers.SIMPLE_REPLY_MAGIC, 0, 5)


def test_a_request_that_librbd_does_not_take_is_answered(connect):
    image = Image()
    connection = connect(image)
    image.refuses = errno.ENOMEM
    for command, data in ((numbers.CMD_WRITE, bytes(512)), (numbers.CMD_TRIM, None)):
        with pytest.raises(OSError) as caught:
            connection.call(command, 0, 0, 512, data)
        assert caught.value.errno == errno.ENOMEM
    image.refuses = 0
    assert read(connection, 0, 512) == bytes(512)


def test_what_librbd_does_not_read_is_zeroes(memory):
    image = Image()
    image.content[:] = b'x' * SIZE
    served = Served(image, memory, 'polled')
    try:
        connection = served.client()
        assert read(connection, 0, 4096) == b'x' * 4096
        served.functions.short = 96
        assert read(connection, 0, 4096) == b'x' * 4000 + bytes(96)
        assert not served.functions.flying  # all completions were released
    finally:
        served.close()


def test_a_server_that_is_stopped_finishes_what_it_has_received(serve):
    image = Image()
    served = serve(image)
    sock = raw_client(served)
    image.hold.clear()
    sock.sendall(request(numbers.CMD_WRITE, 1, 0, 512, b'z' * 512))
    eventually(lambda: image.began, 20, 'the write in flight')
    stopping = threading.Thread(target=served.server.stop)
    stopping.start()
    image.hold.set()
    assert len(sock.recv(16, socket.MSG_WAITALL)) == 16
    sock.close()
    stopping.join(20)
    assert served.opened.is_closed and image.content[:512] == b'z' * 512


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('error, seen', [(errno.EDQUOT, errno.ENOSPC), (errno.EIO, errno.EIO)])
def test_an_error_of_the_cluster_is_the_answer(connect, error, seen):
    image = Image()
    image.error = error
    connection = connect(image)
    for command, data in ((numbers.CMD_WRITE, bytes(512)), (numbers.CMD_FLUSH, None)):
        with pytest.raises(OSError) as caught:
            connection.call(command, 0, 0, 512 if data else 0, data)
        assert caught.value.errno == seen
    with pytest.raises(OSError) as caught:
        read(connection, 0, 512)
    assert caught.value.errno == seen


def test_what_is_beyond_the_end_or_not_allowed_is_refused(connect):
    connection = connect(Image())
    for command, data in ((numbers.CMD_WRITE, bytes(512)), (numbers.CMD_TRIM, None)):
        with pytest.raises(OSError) as caught:
            connection.call(command, 0, SIZE, 512, data)
        assert caught.value.errno == errno.ENOSPC
    connection = connect(Image(), True)
    assert connection.export.flags & numbers.READ_ONLY
    with pytest.raises(OSError) as caught:
        connection.call(numbers.CMD_WRITE, 0, 0, 512, bytes(512))
    assert caught.value.errno == errno.EPERM


def test_the_extents_are_those_of_the_range(connect):
    connection = connect(Image())

    def status(offset, length):
        return connection.call(numbers.CMD_BLOCK_STATUS, 0, offset, length).extents

    assert status(0, SIZE) == [(65536, True), (65536, False), (SIZE - 131072, True)]
    assert status(65536 + 4096, 4096) == [(4096, False)]


def test_the_size_is_noted_for_the_master(memory):
    image = Image()
    rbd_server.Server(Opened(image), operations_of(image, KINDS[1]), Library, memory)
    if hasattr(os, 'memfd_create'):
        assert os.pread(memory, 8, rbd_server.SIZE_PLACE) == struct.pack('>Q', SIZE)


def test_a_client_that_was_fenced_ends_the_process(memory, monkeypatch):
    ended = []
    monkeypatch.setattr(rbd_server, 'leave', lambda why, status: ended.append(status))
    image = Image()
    server = rbd_server.Server(Opened(image), operations_of(image, KINDS[1]), Library, memory)
    server.failed(errno.EIO)
    assert ended == []
    server.failed(errno.ESHUTDOWN)
    server.failed(errno.EROFS)  # the lock is gone
    assert ended == [rbd_server.FENCED] * 2
