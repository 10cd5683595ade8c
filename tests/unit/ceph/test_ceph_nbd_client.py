"""A connection of the store process, with an image that the test makes: our own NBD client talks to it."""

import errno
import os
import socket
import struct
import threading

import pytest

from targetd.ceph import nbd_client, rbd_server
from targetd.nbd import handshake, numbers
from targetd.store.nbd_connection import Connection

SIZE = 1 << 20


class Completion(object):
    def __init__(self, number):
        self.number = number

    def get_return_value(self):
        return self.number


class Image(object):
    """Like rbd.Image: completes each operation from another thread; hold: operations wait for it."""

    def __init__(self):
        self.content = bytearray(SIZE)
        self.hold = threading.Event()
        self.hold.set()
        self.error = 0
        self.began = []

    def size(self):
        return len(self.content)

    def features(self):
        return 3

    def _later(self, name, call, *result):
        self.began.append(name)

        def run():
            self.hold.wait(20)
            call(Completion(-self.error), *result)

        threading.Thread(target=run, daemon=True).start()

    def aio_read(self, offset, length, call):
        self._later(
            'read', call, None if self.error else bytes(self.content[offset : offset + length])
        )

    def aio_write(self, data, offset, call):
        self.content[offset : offset + len(data)] = data
        self._later('write', call)

    def aio_flush(self, call):
        self._later('flush', call)

    def aio_discard(self, offset, length, call):
        self._later('discard', call)

    def aio_write_zeroes(self, offset, length, call, flags):
        self.content[offset : offset + length] = bytes(length)
        self._later('zeroes %d' % flags, call)

    def diff_iterate(self, offset, length, _, call, parent, whole):
        call(65536, 65536, True)  # a whole object, wherever the range begins


class Library(object):
    """Like the module rbd."""

    RBD_FEATURE_FAST_DIFF, RBD_FEATURE_OBJECT_MAP = 1, 2
    RBD_WRITE_ZEROES_FLAG_THICK_PROVISION = 1
    Error = OSError


class Opened(object):
    """Like rbd_image.OpenImage."""

    def __init__(self, image, read_only=False):
        self.image = image
        self.read_only = read_only
        self.wanted = {'is_plan': False}


@pytest.fixture
def memory():
    descriptor = (
        os.memfd_create('size') if hasattr(os, 'memfd_create') else os.open('/dev/null', os.O_RDWR)
    )
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def connect(memory):
    """connect(image, read_only) -> Connection of our NBD client."""
    opened = []

    def make(image, read_only=False):
        server = rbd_server.Server(Opened(image, read_only), Library, memory)
        server.later = lambda function: threading.Thread(target=function, daemon=True).start()
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        threading.Thread(target=nbd_client.Client(theirs, server).run, daemon=True).start()
        steps = handshake.negotiate('')
        wanted = next(steps)
        try:
            while True:
                if isinstance(wanted, bytes):
                    ours.sendall(wanted)
                    wanted = steps.send(None)
                else:
                    wanted = steps.send(ours.recv(wanted, socket.MSG_WAITALL))
        except StopIteration as e:
            opened.append(Connection(ours, e.value))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


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
    rbd_server.Server(Opened(Image()), Library, memory)
    if hasattr(os, 'memfd_create'):
        assert os.pread(memory, 8, rbd_server.SIZE_PLACE) == struct.pack('>Q', SIZE)


def test_a_client_that_was_fenced_ends_the_process(memory, monkeypatch):
    ended = []
    monkeypatch.setattr(rbd_server, 'leave', lambda why, status: ended.append(status))
    server = rbd_server.Server(Opened(Image()), Library, memory)
    server.failed(errno.EIO)
    assert ended == []
    server.failed(errno.ESHUTDOWN)
    server.failed(errno.EROFS)  # the lock is gone
    assert ended == [rbd_server.FENCED] * 2
