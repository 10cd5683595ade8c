"""The send queue of a connection: replies wait here until a thread that gets the transmit lock
sends them all.

StatSN, ExpCmdSN and MaxCmdSN are stamped under the lock, so StatSN order is wire order (RFC 7143
4.2.2.2).

Entries of the queue
  (itt, data)             the hot path: GOOD with `data` (bytes-like, exactly EDTL bytes), or with
                          None (a SCSI Response with GOOD)
  (None, pdus, numbered)  PDU objects in order; numbered: they answer a command that used a CmdSN,
                          so MaxCmdSN increases

Any thread may put and drain. At most one thread at a time sends; the others do not wait for it. If
the session may have several connections, only a dedicated sender thread may block in send()
(shared_outbox); on a slow line the
same holds for the only connection of a session (paced).
"""

import errno
import fcntl
import os
import struct
import termios
import threading
from collections import deque
from time import monotonic

from targetd.iscsi import const
from targetd.worker.connection.pace import SLOW
from targetd.worker.connection.read_budget import READ_BUDGET_BYTES, ByteBudget

PAD = (b'', b'\0\0\0', b'\0\0', b'\0')
_DIGEST = struct.Struct('<I').pack

#: A SCSI Data-In with F and S, status GOOD; Data-In without status; a SCSI Response with GOOD. The
#: other fields of the BHS are zero.
_DATA_IN_GOOD = struct.Struct('>II8xIIIII12x').pack
DATA_IN = struct.Struct('>II8xII4xIIII4x').pack
_RESPONSE_GOOD = struct.Struct('>I12xI4xIII12x').pack
DATA_IN_GOOD_WORD = 0x25810000
DATA_IN_LAST_WORD = struct.Struct('>II8xIIIIIII4x').pack
NO_TAG = 0xFFFFFFFF
_MASK = 0xFFFFFFFF
_NO_COUNT = struct.pack('i', 0)

#: A batch is sent when it has this many buffers or bytes. The last entry may make it longer than
#: the kernel accepts in one call.
_BATCH_BUFFERS = 900
KERNEL_BUFFERS = 1024  # IOV_MAX
_BATCH_BYTES = 4 << 20

#: An initiator that takes no byte for so long is considered lost.
SEND_SECONDS = 60

#: A thread that finds more than this queued while another thread sends waits for that thread, and
#: so receives nothing more from the initiator.
WAITING_ENTRIES = 512
WAITING_BYTES = 8 << 20


class DiscardingSocket(object):
    """Replaces the socket of a connection that has ended: accepts everything, sends nothing."""

    @staticmethod
    def sendmsg(buffers, *_):
        return sum(map(len, buffers))


class Outbox(object):
    """Send queue of one connection. session: has the CmdSN window, which the connections of a
    session share; crc32c: the digest function; values: the negotiated keys."""

    __slots__ = (
        'queue',
        'stat_sn',
        'read_budget',
        '_socket',
        '_session',
        '_lock',
        '_segment',
        '_burst',
        '_crc32c',
        '_header_digest',
        '_data_digest',
        # of the outboxes derived from this one, which a connection may become: see paced
        'on_slow',
        'on_failure',
        'start_read',
        '_numbering',
        '_guard',
        '_reading',
        '_readers',
        '_postponed',
        '_pacing',
    )

    def __init__(self, sock, session, stat_sn, crc32c, values):
        self.queue = deque()
        self.stat_sn = stat_sn
        self.read_budget = ByteBudget(READ_BUDGET_BYTES)
        self._socket = sock
        self._session = session
        self._lock = threading.Lock()
        self._burst = values['MaxBurstLength']
        self.take_segment_length(values['MaxRecvDataSegmentLength'])
        self._crc32c = crc32c
        self._header_digest = values.get('HeaderDigest') == 'CRC32C'
        self._data_digest = values.get('DataDigest') == 'CRC32C'
        # on_slow(buffers, sent, rate): the line is slow; takes over what is not sent. [any, the lock held]
        self.on_slow = None

    def take_segment_length(self, length):
        """The initiator has declared this MaxRecvDataSegmentLength, in bytes. [connection]"""
        self._segment = min(length, self._burst)

    def put_pdu(self, pdu, numbered=False):
        """Queue one PDU."""
        self.queue.append((None, (pdu,), numbered))

    def put_pdus(self, pdus, numbered=False):
        """Queue PDUs that must be sent in this order with nothing between them."""
        self.queue.append((None, pdus, numbered))

    def drain(self):
        """Send what is queued, unless another thread is sending: that thread sends these entries
        too. Raises OSError if the connection is broken. [any] Hot, once per batch.

        If too much is queued, wait for the other thread. This bounds the memory that an initiator
        which does not read can occupy.
        """
        queue, lock = self.queue, self._lock
        while queue:
            if not lock.acquire(False):
                if self.may_leave_to_sender():
                    return
                lock.acquire()
            try:
                self._send(self._stamp())
            finally:
                lock.release()

    def held(self):
        """Return a context manager that holds back all sending."""
        return self._lock

    def replace_socket(self, make):
        """Send through make(the present socket) from now on. Called within held(); does nothing if
        the connection has ended."""
        if self._socket is not DiscardingSocket:
            self._socket = make(self._socket)

    def discard(self):
        """The connection has ended and its socket is shut down: entries that are queued now or
        later only advance the command window."""
        with self._lock:
            self._socket = DiscardingSocket
        self.drain_and_wait()

    def has_little_queued(self):
        """Return True if the queued entries may wait for the thread that is sending, and a large
        read may run at once. [any]"""
        return len(self.queue) <= WAITING_ENTRIES and self._queued_bytes() <= WAITING_BYTES

    def may_leave_to_sender(self):
        """Return True if drain() need not wait for the thread that is sending. [any]"""
        return self.has_little_queued()

    def is_outstanding(self):
        """Return True if data is queued or being sent, or the initiator's TCP has not yet
        acknowledged all that was sent: a ping would wait behind it. [any]"""
        return bool(self.queue) or self._lock.locked() or self._outstanding() > 0

    def unsent_bytes(self):
        """Return the bytes of data that are queued; at least 1 while a thread sends. [any]"""
        return max(self._queued_bytes(), int(self._lock.locked()))

    def _queued_bytes(self):
        """Return the number of data bytes in the queue."""
        total = 0
        for entry in list(self.queue):
            if entry[0] is None:
                total += sum(len(pdu.data) for pdu in entry[1])
            elif entry[1] is not None:
                total += len(entry[1])
        return total

    def drain_and_wait(self):
        """Send what is queued; if another thread is sending, wait for it first. Used before a
        connection is closed. Raises OSError."""
        with self._lock:
            while self.queue:
                buffers = self._stamp()
                if not buffers:  # the line was found slow meanwhile: this is a PacedOutbox
                    break
                self._send(buffers)
        if self.queue:
            self.drain_and_wait()

    def _stamp(self):
        """Take entries from the queue and return them as buffers. Called under the lock. Hot."""
        queue = self.queue
        if self._header_digest or self._data_digest:
            return self._stamp_with_digests()
        session = self._session
        stat_sn, exp_cmd_sn, max_cmd_sn = self.stat_sn, session.exp_cmd_sn, session.max_cmd_sn
        segment = self._segment
        buffers = []
        append = buffers.append
        total = 0
        while queue:
            entry = queue.popleft()
            itt, data = entry[0], entry[1]
            if itt is None:
                self.stat_sn, session.max_cmd_sn = stat_sn, max_cmd_sn
                for header, data in self._stamp_slow(entry):
                    append(header)
                    if data:
                        append(data)
                        if len(data) & 3:
                            append(PAD[len(data) & 3])
                        total += len(data)
                stat_sn, max_cmd_sn = self.stat_sn, session.max_cmd_sn
            else:
                max_cmd_sn = max_cmd_sn + 1 & _MASK
                if data is None:
                    append(_RESPONSE_GOOD(0x21800000, itt, stat_sn, exp_cmd_sn, max_cmd_sn))
                else:
                    length = len(data)
                    if length <= segment:
                        # fmt: off
                        append(_DATA_IN_GOOD(DATA_IN_GOOD_WORD, length, itt, NO_TAG, stat_sn,
                                             exp_cmd_sn, max_cmd_sn))
                        # fmt: on
                        append(data)
                        if length & 3:
                            append(PAD[length & 3])
                    else:
                        for header, piece in self._segments(
                            itt, data, stat_sn, exp_cmd_sn, max_cmd_sn
                        ):
                            append(header)
                            append(piece)
                            # pad every piece: the declared segment length need not be a multiple of 4
                            if len(piece) & 3:
                                append(PAD[len(piece) & 3])
                    total += length
                stat_sn = stat_sn + 1 & _MASK
            if total > _BATCH_BYTES or len(buffers) > _BATCH_BUFFERS:
                break
        self.stat_sn, session.max_cmd_sn = stat_sn, max_cmd_sn
        return buffers

    def _segments(self, itt, data, stat_sn, exp_cmd_sn, max_cmd_sn):
        """Yield (header, piece) of a Data-In sequence that ends with GOOD; F at the end of each
        burst."""
        view = memoryview(data)
        length, segment, burst = len(view), self._segment, self._burst
        offset = data_sn = 0
        left_in_burst = burst
        while True:
            size = min(segment, left_in_burst, length - offset)
            left_in_burst -= size
            piece = view[offset : offset + size]
            if offset + size == length:
                yield (
                    DATA_IN_LAST_WORD(
                        DATA_IN_GOOD_WORD,
                        size,
                        itt,
                        NO_TAG,
                        stat_sn,
                        exp_cmd_sn,
                        max_cmd_sn,
                        data_sn,
                        offset,
                    ),
                    piece,
                )
                return
            word = 0x25000000
            if not left_in_burst:
                word, left_in_burst = 0x25800000, burst
            yield DATA_IN(word, size, itt, NO_TAG, exp_cmd_sn, max_cmd_sn, data_sn, offset), piece
            offset += size
            data_sn += 1

    def _stamp_slow(self, entry):
        """Yield (header, data) of each PDU object of an entry."""
        session = self._session
        if entry[2]:
            session.max_cmd_sn = session.max_cmd_sn + 1 & _MASK
        for pdu in entry[1]:
            pdu.exp_cmd_sn, pdu.max_cmd_sn = session.exp_cmd_sn, session.max_cmd_sn
            opcode = pdu.opcode
            if opcode == const.DATA_IN and not pdu.has_status:
                pdu.stat_sn = 0
            else:
                pdu.stat_sn = self.stat_sn
                # an R2T or a ping carries the next StatSN but does not use it (RFC 7143 11.8.5,
                # 11.19.2)
                is_ping = opcode == const.NOP_IN and pdu.ttt != NO_TAG
                if opcode != const.READY_TO_TRANSFER and not is_ping:
                    self.stat_sn = self.stat_sn + 1 & _MASK
            yield pdu.encode(), pdu.data

    def _stamp_with_digests(self):
        """As _stamp, with CRC32C after each header and each data segment, pad bytes included
        (RFC 7143 11.2.3, 11.2.4)."""
        buffers = []
        total = 0
        while self.queue and total <= _BATCH_BYTES and len(buffers) <= _BATCH_BUFFERS:
            for header, data in self._headers(self.queue.popleft()):
                buffers.append(header)
                if self._header_digest:
                    buffers.append(_DIGEST(self._crc32c(header, 0)))
                if data:
                    pad = PAD[len(data) & 3]
                    buffers.append(data)
                    if pad:
                        buffers.append(pad)
                    if self._data_digest:
                        crc = self._crc32c(data, 0)
                        buffers.append(_DIGEST(self._crc32c(pad, crc) if pad else crc))
                    total += len(data)
        return buffers

    def _headers(self, entry):
        itt, data = entry[0], entry[1]
        if itt is None:
            for pair in self._stamp_slow(entry):
                yield pair
            return
        session = self._session
        max_cmd_sn = session.max_cmd_sn = session.max_cmd_sn + 1 & _MASK
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & _MASK
        if data is None:
            yield _RESPONSE_GOOD(0x21800000, itt, stat_sn, session.exp_cmd_sn, max_cmd_sn), None
        else:
            for pair in self._segments(itt, data, stat_sn, session.exp_cmd_sn, max_cmd_sn):
                yield pair

    def _send(self, buffers):
        """Send all buffers, in one call if the kernel accepts them. Raises OSError."""
        if not buffers:
            return
        if len(buffers) > KERNEL_BUFFERS:
            self._send_slowly(buffers, 0)
            return
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        if sent < sum(map(len, buffers)):
            self._send_slowly(buffers, sent)

    def _send_slowly(self, buffers, sent):
        """Send what the kernel has not accepted within one SO_SNDTIMEO; `sent` bytes of the buffers are
        sent. If the line is slow and on_slow is set, on_slow takes the rest over. Raises OSError if
        nothing could be sent for SEND_SECONDS."""
        rest, last = unsent(buffers, sent), monotonic()
        while rest:
            began, before = monotonic(), self._outstanding()
            try:
                count = self._socket.sendmsg(rest[:KERNEL_BUFFERS])
            except BlockingIOError:
                count = 0
            sent, now = sent + count, monotonic()
            rest, last = unsent(rest, count), now if count else last
            if now - last >= 0.9 * SEND_SECONDS:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if rest and self.on_slow is not None and now - began > 0.1:
                rate = max(0, before + count - self._outstanding()) / (now - began)
                if rate < SLOW:
                    self.on_slow(buffers, sent, rate)
                    return

    def _outstanding(self):
        """Return the bytes that the initiator's TCP has not acknowledged."""
        try:
            count = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, _NO_COUNT)  # SIOCOUTQ
        except (AttributeError, OSError, ValueError):
            return 0  # the connection has ended: another thread may have closed the socket
        return struct.unpack('i', count)[0]


def unsent(buffers, sent):
    """Return the buffers that remain after the first `sent` bytes of `buffers` were sent."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:]] + list(buffers[index + 1 :])
        sent -= len(buffer)
    return []
