"""What is recorded of a connection: each byte once, before it is sent, without waiting for a reader."""

import socket
import threading

from targetd import pcapng
from targetd.worker import capturing
from targetd.worker.capturing import RecordingSocket, Ring, Stream


class Slow(object):
    """A socket that takes a few bytes of each send."""

    def __init__(self, counts):
        self.counts, self.sent, self.recorded_at_send = list(counts), b'', []
        self.recorded = b''

    def record(self, view):
        self.recorded += bytes(view)

    def sendmsg(self, buffers, *_):
        self.recorded_at_send.append(len(self.recorded))
        count = self.counts.pop(0)
        if count is None:
            raise BlockingIOError()
        data = b''.join(map(bytes, buffers))
        self.sent += data[:count]
        return min(count, len(data))

    def sendall(self, data):
        self.sent += bytes(data)


def test_each_byte_is_recorded_once_and_before_it_is_sent():
    slow = Slow([3, None, 100])
    recording = RecordingSocket(slow, slow.record)
    assert recording.sendmsg([b'abcd', b'efgh']) == 3
    assert slow.recorded_at_send == [8]
    try:
        recording.sendmsg([b'd', b'efgh'], (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
    assert recording.sendmsg([b'd', b'efgh', b'ijkl']) == 9
    recording.sendall(b'mn')
    assert slow.recorded == b'abcdefghijklmn' == slow.sent


def record(data=b'x', kind=pcapng.SENT):
    return pcapng.Record(kind, 1, 0, 0, len(data), data)


def read_all(reader):
    data = b''
    while True:
        piece = reader.recv(1 << 16)
        if not piece:
            return pcapng.unpack(data)[0]
        data += piece


def test_a_stream_writes_what_it_has_when_it_is_finished():
    writer, reader = socket.socketpair()
    stream = Stream(writer.detach(), 16)
    for number in range(1000):
        stream.put(record(b'%d' % number))
    stream.finish()
    assert [r.data for r in read_all(reader)] == [b'%d' % n for n in range(1000)]
    stream.wait()
    assert stream.is_closed
    reader.close()


def test_a_reader_that_does_not_read_delays_nobody_and_is_told_what_it_missed(monkeypatch):
    monkeypatch.setattr(capturing, 'MOST_WAITING', 1 << 20)
    writer, reader = socket.socketpair()
    stream = Stream(writer.detach(), 16)
    for _ in range(400):
        stream.put(record(bytes(10000)))  # 4 MB: more than the socket and the queue take
    stream.finish()
    records = read_all(reader)
    lost = sum(r.length for r in records if r.kind == pcapng.LOST)
    assert lost > 0 and lost + sum(r.kind == pcapng.SENT for r in records) == 400
    reader.close()


def test_a_reader_that_leaves_closes_the_stream():
    before = set(threading.enumerate())
    writer, reader = socket.socketpair()
    stream = Stream(writer.detach(), 16)
    reader.close()
    stream.put(record())
    stream.wait()
    for _ in range(3):
        stream.wait()
    assert stream.is_closed
    assert set(threading.enumerate()) <= before


def test_a_ring_keeps_the_last_records_and_the_connections():
    ring = Ring()
    ring.put(pcapng.connection_record(1, 0, ('1.2.3.4', 5), ('1.2.3.5', 3260), 0))
    for number in range(2 * capturing.RING_RECORDS):
        ring.put(record(b'%d' % number))
    records, rest = pcapng.unpack(ring.packed())
    assert rest == b'' and records[0].kind == pcapng.CONNECTION
    assert records[-1].data == b'%d' % (2 * capturing.RING_RECORDS - 1)
    assert len(records) == capturing.RING_RECORDS + 1
