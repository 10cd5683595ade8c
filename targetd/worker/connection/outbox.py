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
(SharedOutbox).
"""

import errno
import fcntl
import socket
import struct
import termios
import threading
from collections import deque

from targetd.iscsi import const
from targetd.worker.connection.read_budget import NEXT_READ_BYTES, READ_BUDGET_BYTES, ByteBudget

_PAD = (b'', b'\0\0\0', b'\0\0', b'\0')
_DIGEST = struct.Struct('<I').pack

#: A SCSI Data-In with F and S, status GOOD; Data-In without status; a SCSI Response with GOOD. The
#: other fields of the BHS are zero.
_DATA_IN_GOOD = struct.Struct('>II8xIIIII12x').pack
_DATA_IN = struct.Struct('>II8xII4xIIII4x').pack
_RESPONSE_GOOD = struct.Struct('>I12xI4xIII12x').pack
_DATA_IN_GOOD_WORD = 0x25810000
_DATA_IN_LAST_WORD = struct.Struct('>II8xIIIIIII4x').pack
_NO_TAG = 0xFFFFFFFF
_MASK = 0xFFFFFFFF
_NO_COUNT = struct.pack('i', 0)

#: A batch is sent when it has this many buffers or bytes. The last entry may make it longer than
#: the kernel accepts in one call.
_BATCH_BUFFERS = 900
_KERNEL_BUFFERS = 1024  # IOV_MAX
_BATCH_BYTES = 4 << 20

#: A thread that finds more than this queued while another thread sends waits for that thread, and
#: so receives nothing more from the initiator.
_WAITING_ENTRIES = 512
_WAITING_BYTES = 8 << 20


class _DiscardingSocket(object):
    """Replaces the socket of a connection that has ended: accepts everything, sends nothing."""

    @staticmethod
    def sendmsg(buffers, *_):
        return sum(map(len, buffers))

    @staticmethod
    def sendall(buffer):
        return None


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
                if self.has_little_queued():
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
        if self._socket is not _DiscardingSocket:
            self._socket = make(self._socket)

    def discard(self):
        """The connection has ended and its socket is shut down: entries that are queued now or
        later only advance the command window."""
        with self._lock:
            self._socket = _DiscardingSocket
        self.drain_and_wait()

    def has_little_queued(self):
        """Return True if the queued entries may wait for the thread that is sending, and a large
        read may run at once. [any]"""
        return len(self.queue) <= _WAITING_ENTRIES and self._queued_bytes() <= _WAITING_BYTES

    def is_outstanding(self):
        """Return True if data is queued or being sent, or the initiator's TCP has not yet
        acknowledged all that was sent: a ping would wait behind it. [any]"""
        if self.queue or self._lock.locked():
            return True
        try:
            count = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, _NO_COUNT)  # SIOCOUTQ
        except (AttributeError, OSError):
            return False  # the connection has ended
        return count != _NO_COUNT

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
                self._send(self._stamp())

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
                            append(_PAD[len(data) & 3])
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
                        append(_DATA_IN_GOOD(_DATA_IN_GOOD_WORD, length, itt, _NO_TAG, stat_sn,
                                             exp_cmd_sn, max_cmd_sn))
                        # fmt: on
                        append(data)
                        if length & 3:
                            append(_PAD[length & 3])
                    else:
                        for header, piece in self._segments(
                            itt, data, stat_sn, exp_cmd_sn, max_cmd_sn
                        ):
                            append(header)
                            append(piece)
                            # pad every piece: the declared segment length need not be a multiple of 4
                            if len(piece) & 3:
                                append(_PAD[len(piece) & 3])
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
                    _DATA_IN_LAST_WORD(
                        _DATA_IN_GOOD_WORD,
                        size,
                        itt,
                        _NO_TAG,
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
            yield _DATA_IN(word, size, itt, _NO_TAG, exp_cmd_sn, max_cmd_sn, data_sn, offset), piece
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
                is_ping = opcode == const.NOP_IN and pdu.ttt != _NO_TAG
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
                    pad = _PAD[len(data) & 3]
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
        while len(buffers) > _KERNEL_BUFFERS:
            self._send(buffers[:_KERNEL_BUFFERS])
            buffers = buffers[_KERNEL_BUFFERS:]
        if len(buffers) == 1:
            self._socket.sendall(buffers[0])
            return
        sent = self._socket.sendmsg(buffers)
        total = sum(map(len, buffers))
        while sent < total:
            total -= sent
            buffers = _unsent(buffers, sent)
            sent = self._socket.sendmsg(buffers)


class SharedOutbox(Outbox):
    """Send queue of a connection whose session may have others: an initiator that does not read
    this connection must not delay the others.

    drain() never blocks. Data that does not fit into the socket's buffer is sent by a dedicated
    sender thread, which keeps the lock until the queue is empty. numbering: the lock of the
    session's command window; on_failure(error): called by the sender thread when sending fails;
    start_read(task): starts a postponed read."""

    __slots__ = (
        'on_failure',
        'start_read',
        '_numbering',
        '_guard',
        '_reading',
        '_readers',
        '_postponed',
    )
    budget_bytes = READ_BUDGET_BYTES

    def __init__(self, sock, session, stat_sn, crc32c, values, numbering):
        super(SharedOutbox, self).__init__(sock, session, stat_sn, crc32c, values)
        self._numbering = numbering
        self._guard = threading.Lock()
        self._reading = 0  # bytes that executor threads are reading and will queue
        self._readers = {}  # unit -> number of its tasks that these bytes are for
        self._postponed = deque()  # (task, the PostponedRead that is its transfer)
        self.on_failure = self.start_read = None

    def _stamp(self):
        with self._numbering:
            return Outbox._stamp(self)

    # -- sending ------------------------------------------------------------------------------

    def drain(self):
        """Send what fits into the socket's buffer now; a sender thread sends the rest. Raises
        OSError as Outbox.drain. [any]"""
        queue, lock = self.queue, self._lock
        while queue and lock.acquire(False):
            rest = ()
            try:
                rest = self._send_what_fits(self._stamp())
            finally:
                if not rest:
                    lock.release()
            if rest:
                self._start_sender(rest)
                return
        self.start_postponed()

    def _send_what_fits(self, buffers):
        """Send without blocking; returns the buffers that did not fit."""
        while buffers:
            try:
                sent = self._socket.sendmsg(buffers[:_KERNEL_BUFFERS], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            buffers = _unsent(buffers, sent)
        return buffers

    def _start_sender(self, rest):
        thread = threading.Thread(target=self._send_the_rest, args=(rest,), name='sender')
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:  # part of a PDU may have been sent: the connection must end
            self._lock.release()
            raise OSError(errno.EAGAIN, 'no sender thread can be started')

    def _send_the_rest(self, buffers):
        """[the sender thread, which holds the lock]"""
        error = None
        try:
            self._send(buffers)
            while self.queue:
                self.start_postponed()
                self._send(self._stamp())
        except OSError as e:
            error = e
        finally:
            self._lock.release()
        if error is None:
            try:
                self.drain()  # entries that were queued just before the lock was released
            except OSError as e:
                error = e
        if error is not None:
            self.on_failure(error)

    def drain_and_wait(self):
        super(SharedOutbox, self).drain_and_wait()
        self.start_postponed()

    def wait_while_overfull(self):
        """Block while more PDU objects are queued than the commands of one window can cause. Raises
        OSError. [connection]"""
        while self._is_overfull():
            with self._lock:
                pass  # the thread that held it has sent everything, or failed
            self.drain()

    def _is_overfull(self):
        entries = list(self.queue)
        return (
            len(entries) > _WAITING_ENTRIES
            or sum(len(pdu.data) for entry in entries if entry[0] is None for pdu in entry[1])
            > _WAITING_BYTES
        )

    # -- reading no more than can be kept -----------------------------------------------------

    def reserve_read(self, task, postponed):
        """Return True if the data of this task may be read now; release_read() must follow. Else
        postpone the task, with `postponed` as its transfer so that it can be aborted meanwhile.
        [executor]"""
        with self._guard:
            if self._is_next(task) or self._fits_budget(task.edtl) and not self._postponed:
                self._begin_read(task)
                return True
            task.transfer = postponed
            if task.aborted:  # perhaps before its transfer was set: it ends now
                task.transfer = None
                self._begin_read(task)
                return True
            self._postponed.append((task, postponed))
        self.start_postponed()  # the budget may have become free meanwhile
        return False

    def release_read(self, task):
        """The data of the task is queued, or the read has failed. [executor]"""
        with self._guard:
            self._reading -= task.edtl
            self._readers[task.unit] -= 1
            if not self._readers[task.unit]:
                del self._readers[task.unit]
        self.start_postponed()

    def _is_next(self, task):
        """True if the task may read at once, whatever the reads of other units hold."""
        return (
            task.edtl <= NEXT_READ_BYTES
            and task.unit not in self._readers
            and self._queued_bytes() + task.edtl <= self.budget_bytes
        )

    def _begin_read(self, task):
        self._reading += task.edtl
        self._readers[task.unit] = self._readers.get(task.unit, 0) + 1

    def start_postponed(self):
        """Start the postponed reads that fit into the budget. Starts nothing after the connection
        has ended: its tasks are aborted, or reassigned (withdraw_postponed). [any]"""
        while self._postponed and self._socket is not _DiscardingSocket:
            with self._guard:
                if not self._postponed or not self._fits_budget(self._postponed[0][0].edtl):
                    return
                task, postponed = self._postponed.popleft()
                if task.transfer is not postponed:
                    continue  # it was aborted
                task.transfer = None
                self._begin_read(task)
            self.start_read(task)

    def withdraw_postponed(self, task):
        """Return True if the task was postponed; it is then not started here any more. [any]"""
        with self._guard:
            found = [
                entry for entry in self._postponed if entry[0] is task and task.transfer is entry[1]
            ]
            for entry in found:
                self._postponed.remove(entry)
                task.transfer = None
        return bool(found)

    def _fits_budget(self, count):
        used = self._reading + self._queued_bytes()
        return not used or used + count <= self.budget_bytes


def _unsent(buffers, sent):
    """Return the buffers that remain after the first `sent` bytes of `buffers` were sent."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:]] + list(buffers[index + 1 :])
        sent -= len(buffer)
    return []
