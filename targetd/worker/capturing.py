"""Captures of the connections of this worker, by order of the master: PDUs are recorded before they are
acted on, or sent.

A connection that is not captured has no Tap and executes nothing of this module. A Tap takes the place of
Connection._act and of the outbox's socket; a record goes to each sink: a Stream, which a thread writes
into the socket that targetdctl reads, or a Ring, which keeps the last records. Nothing here waits for the
reader: what does not fit is dropped and counted.
"""

import itertools
import socket
import threading
import time
from collections import deque

from targetd import pcapng
from targetd.iscsi.framing import BHS
from targetd.iscsi.stream_cutter import Cutter, LoginMask

#: Records that wait for the reader; more are dropped.
MOST_WAITING = 16 << 20

#: How long the end of a session waits for a reader.
CLOSE_SECONDS = 1.0

#: The ring of capture-on-error: records, bytes of user data of each, bytes that are reported at most,
#: seconds between two reports, seconds until the answer to what went wrong was sent.
RING_RECORDS = 256
RING_DATA = 64
RING_BYTES = 100 << 10
RING_SECONDS = 10.0
ANSWER_SECONDS = 0.3


def _now():
    return int(time.time() * 1e6)


class Stream(object):
    """A sink that writes records into a socket. limit: bytes of user data to keep of each PDU."""

    def __init__(self, descriptor, limit):
        self.limit = limit
        self.is_closed = False
        self._socket = socket.socket(fileno=descriptor)
        self._changed = threading.Condition()
        self._waiting = deque()
        self._bytes = 0
        self._lost = 0
        self._is_finished = False
        self._thread = threading.Thread(target=self._write, name='capture')
        self._thread.daemon = True
        self._thread.start()

    def put(self, record):
        """Queue a Record, or count it as lost. [any]"""
        packed = pcapng.pack(record)
        with self._changed:
            if self._bytes + len(packed) > MOST_WAITING and record.kind != pcapng.CONNECTION:
                self._lost += 1
                return
            self._waiting.append(packed)
            self._bytes += len(packed)
            self._changed.notify()

    def finish(self):
        """Close the socket when everything is written. [any]"""
        with self._changed:
            self._is_finished = True
            self._changed.notify()

    def wait(self):
        """Wait a moment until everything is written. [any]"""
        self._thread.join(CLOSE_SECONDS)

    def _write(self):
        """[the capture's thread]"""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._waiting or self._lost or self._is_finished, 1.0
                    )
                    taken, self._waiting, self._bytes = self._waiting, deque(), 0
                    lost, self._lost = self._lost, 0
                if lost:
                    record = pcapng.Record(pcapng.LOST, 0, _now(), 0, lost, b'')
                    taken.append(pcapng.pack(record))
                if taken:
                    self._socket.sendall(b''.join(taken))
                elif self._is_finished or self._is_left():
                    break
        except OSError:  # the reader has left
            pass
        self.is_closed = True
        self._socket.close()

    def _is_left(self):
        """True if the reader has closed the socket. It never sends."""
        try:
            return not self._socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False


class Ring(object):
    """A sink that keeps the last records, for capture-on-error."""

    limit = RING_DATA
    is_closed = False

    def __init__(self):
        self._records = deque(maxlen=RING_RECORDS)
        self._connections = {}

    def put(self, record):
        """[any]"""
        if record.kind == pcapng.CONNECTION:
            self._connections[record.connection] = record
        else:
            self._records.append(record)

    def packed(self):
        """The last records, in their binary form. [any]"""
        parts, left = [], RING_BYTES
        for record in reversed(list(self._records)):
            part = pcapng.pack(record)
            left -= len(part)
            if left < 0:
                break
            parts.append(part)
        first = [pcapng.pack(record) for record in list(self._connections.values())[-8:]]
        return b''.join(first + parts[::-1])


class RecordingSocket(object):
    """Records what is sent, before it is sent. record(view): called once for each byte, in order."""

    def __init__(self, real, record):
        self.real = real
        self._record = record
        self._ahead = 0  # bytes that are recorded and not sent yet

    def fileno(self):
        """As socket.fileno."""
        return self.real.fileno()

    def sendmsg(self, buffers, *more):
        """As socket.sendmsg."""
        self._record_new(buffers)
        sent = self.real.sendmsg(buffers, *more)
        self._ahead -= sent
        return sent

    def sendall(self, data):
        """As socket.sendall."""
        self._record_new([data])
        self.real.sendall(data)
        self._ahead = 0

    def _record_new(self, buffers):
        skipped = self._ahead
        for buffer in buffers:
            view = memoryview(buffer)[skipped:]
            skipped = max(0, skipped - len(buffer))
            self._ahead += len(view)
            if len(view):
                self._record(view)


class _Feed(object):
    """One sink of one connection. number: of the connection in the sink."""

    def __init__(self, sink, number):
        self.sink = sink
        self.is_begun = False
        self._number = number
        self._offsets = {pcapng.RECEIVED: 0, pcapng.SENT: 0}
        self._cutters = {}

    def begin(self, header_digest, data_digest):
        """Both directions are at the first byte of a PDU of the full feature phase."""
        for kind in (pcapng.RECEIVED, pcapng.SENT):
            self._cutters[kind] = Cutter(header_digest, data_digest, self.sink.limit)
        self.is_begun = True

    def moved(self, kind, chunk):
        """Bytes were received, or are about to be sent; ignored before begin()."""
        if self.is_begun:
            for data, length in self._cutters[kind].feed(chunk):
                self.pdu_moved(kind, data, length)

    def pdu_moved(self, kind, data, length):
        """A PDU, or what is kept of it."""
        record = pcapng.Record(kind, self._number, _now(), self._offsets[kind], length, data)
        self._offsets[kind] += length
        self.sink.put(record)


class Tap(object):
    """Records one connection. where: its description in `serve` or `join`; cid: its CID."""

    def __init__(self, where, cid=0):
        self._where = where
        self._cid = cid
        self._connection = None
        self._feeds = []
        self._masks = {pcapng.RECEIVED: LoginMask(), pcapng.SENT: LoginMask()}

    def add(self, sink, number):
        """Record for this sink too, from the next PDU that arrives on. [any]"""
        where = self._where
        sink.put(pcapng.connection_record(number, _now(), where['peer'], where['local'], self._cid))
        self._feeds = self._feeds + [_Feed(sink, number)]
        if self._connection is not None:
            self._connection._act = self._act

    # -- the login ----------------------------------------------------------------------------

    def login_received(self, fields, ahs, data):
        """A PDU of the login has arrived. [connection]"""
        data = b'' if data is None else bytes(data)
        pdu = BHS.pack(*fields) + (ahs or b'') + data + bytes(-len(data) % 4)
        self._login(pcapng.RECEIVED, pdu)

    def login_sent(self, pdus):
        """PDUs of the login are about to be sent. [connection]"""
        for one in pdus:
            data = bytes(one.data)
            self._login(pcapng.SENT, one.encode() + data + bytes(-len(data) % 4))

    def _login(self, kind, pdu):
        masked = self._masks[kind].masked(pdu)
        for feed in self._feeds:
            feed.pdu_moved(kind, masked, len(masked))

    # -- full feature phase -------------------------------------------------------------------

    def attach(self, connection):
        """Record this connection, which is in full feature phase. [connection or control]"""
        self._connection = connection
        connection.tap = self
        if self._feeds:
            connection._act = self._act

    def _act(self, count):
        """Takes the place of Connection._act. [connection]"""
        connection, framer = self._connection, self._connection.framer
        feeds = self._feeds = [feed for feed in self._feeds if not feed.sink.is_closed]
        if not feeds:
            with connection.outbox.held():
                connection.outbox.replace_socket(lambda sock: getattr(sock, 'real', sock))
            connection.__dict__.pop('_act', None)
        new = [feed for feed in feeds if not feed.is_begun]
        if new and framer.landing is None:
            self._begin(new)
        for view in framer.arrived(count) if feeds else ():
            for feed in feeds:
                feed.moved(pcapng.RECEIVED, view)
        type(connection)._act(connection, count)

    def _begin(self, feeds):
        connection, values = self._connection, self._connection.values
        digests = [values.get(key) == 'CRC32C' for key in ('HeaderDigest', 'DataDigest')]
        with connection.outbox.held():  # nothing is half sent
            for feed in feeds:
                feed.begin(*digests)
            connection.outbox.replace_socket(self._recording)
        for feed in feeds:
            feed.moved(pcapng.RECEIVED, connection.framer.remaining_bytes())

    def _recording(self, sock):
        return sock if isinstance(sock, RecordingSocket) else RecordingSocket(sock, self._sent)

    def _sent(self, view):
        """[any, with the outbox's lock held]"""
        for feed in self._feeds:
            feed.moved(pcapng.SENT, view)


class Captures(object):
    """The sinks of the session that the worker serves. worker: its connections; reports the ring."""

    def __init__(self, worker):
        self._worker = worker
        self._of_session = []  # sinks that record every connection of the session
        self._streams = []
        self._numbers = itertools.count(1)
        self._reported = -RING_SECONDS
        self.ring = None

    def order(self, message, descriptors):
        """The order `capture`: record every connection of the session. [control]"""
        worker, stream = self._worker, Stream(descriptors[0], message['data'])
        session = worker.session
        if session is None or session.tsih != message['tsih']:
            stream.finish()
            return
        self._streams.append(stream)
        self._of_session.append(stream)
        for connection in list(worker.connections):
            self._record(connection, stream)

    def _record(self, connection, sink):
        if connection.tap is None:
            Tap(connection.where, connection.cid).attach(connection)
        connection.tap.add(sink, next(self._numbers))

    def new_tap(self, order, descriptors):
        """The Tap of a connection that is handed to this worker, or None. order: `serve` or `join`.
        [control]"""
        if 'capture' not in order:
            return None
        tap = Tap(order['connection'], order.get('cid', 0))
        stream = Stream(descriptors[1], order['capture'])
        self._streams.append(stream)
        tap.add(stream, next(self._numbers))
        return tap

    def added(self, connection, tap):
        """A connection is about to begin its full feature phase. tap: of its login, or None.
        [connection]"""
        if tap is not None:
            tap.attach(connection)
        if self.ring is None and self._worker.configuration.server.capture_on_error:
            self.ring = Ring()
            self._of_session.append(self.ring)
        for sink in self._of_session:
            self._record(connection, sink)

    def on_trouble(self, why, at_once=False):
        """Report the ring to the master, after the answer to what went wrong was sent. [any]"""
        ring, now = self.ring, time.monotonic()
        if ring is None or now < self._reported + RING_SECONDS:
            return
        self._reported = now
        session = self._worker.session
        if at_once:
            self._report(ring, session.tsih, why)
            return
        timer = threading.Timer(ANSWER_SECONDS, self._report, (ring, session.tsih, why))
        timer.daemon = True
        timer.start()

    def _report(self, ring, tsih, why):
        self._worker.report('ring', tsih=tsih, why=why, data=ring.packed().hex())

    def close(self):
        """The session is over. [any]"""
        streams, self._streams, self._of_session, self.ring = self._streams, [], [], None
        for stream in streams:
            stream.finish()
        for stream in streams:
            stream.wait()
