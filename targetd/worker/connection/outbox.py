"""What a connection still has to send: replies wait here, whoever gets the transmit lock without
waiting sends them all.

StatSN, ExpCmdSN and MaxCmdSN are stamped under the lock, so StatSN order is wire order (RFC 7143
4.2.2.2).

Entries of the queue
  (itt, data)             the usual case: GOOD, `data` (bytes-like, exactly EDTL bytes) or None (a GOOD SCSI Response)
  (None, pdus, numbered)  PDU objects in order; numbered: they answer a command that took a CmdSN, so the window moves on
Any thread may put and drain. At most one thread is ever inside the socket; the others go on. Where a session has several
connections, nobody but a thread of its own ever waits in there (SharedOutbox).
"""

import errno
import socket
import struct
import threading
from collections import deque

from targetd.iscsi import const

_PAD = (b'', b'\0\0\0', b'\0\0', b'\0')
_DIGEST = struct.Struct('<I').pack

#: A SCSI Data-In with F and S, status GOOD; Data-In without status; a SCSI Response with GOOD. The
#: rest of the BHS is zero.
_DATA_IN_GOOD = struct.Struct('>II8xIIIII12x').pack
_DATA_IN = struct.Struct('>II8xII4xIIII4x').pack
_RESPONSE_GOOD = struct.Struct('>I12xI4xIII12x').pack
_DATA_IN_GOOD_WORD = 0x25810000
_DATA_IN_LAST_WORD = struct.Struct('>II8xIIIIIII4x').pack
_NO_TAG = 0xFFFFFFFF
_MASK = 0xFFFFFFFF

#: A batch is sent when it has this many buffers or bytes; one entry more may make it longer than
#: the kernel takes in a call.
_BATCH_BUFFERS = 900
_KERNEL_BUFFERS = 1024  # IOV_MAX
_BATCH_BYTES = 4 << 20

#: Who finds more than this waiting behind another thread's send waits as well, and so takes no more
#: from the initiator.
_WAITING_ENTRIES = 512
_WAITING_BYTES = 8 << 20

#: Data of commands in executor threads that is read but not yet sent; those that would make it more
#: wait.
READ_BUDGET_BYTES = 64 << 20

#: PDUs that carry the next StatSN without using it up (RFC 7143 11.8.5, 11.19.2); NOP-In only when
#: it asks for an answer.
_UNNUMBERED = frozenset((const.READY_TO_TRANSFER, const.DATA_IN))


class ByteBudget(object):
    """A count of bytes that waits for no less than it has. Any thread."""

    def __init__(self, limit):
        self._limit = self._left = limit
        self._condition = threading.Condition()

    def take(self, count):
        """Wait until `count` bytes are left (all of them, for one that asks for more) and take
        them."""
        count = min(count, self._limit)
        with self._condition:
            while self._left < count:
                self._condition.wait()
            self._left -= count

    def give_back(self, count):
        """What take(count) took."""
        with self._condition:
            self._left += min(count, self._limit)
            self._condition.notify_all()


class _Nowhere(object):
    """In place of the socket of a connection that is over."""

    @staticmethod
    def sendmsg(buffers, *_):
        return sum(map(len, buffers))

    @staticmethod
    def sendall(buffer):
        return None


class Outbox(object):
    """One connection's. `session`: the numbering that is shared by its connections; limits in
    bytes."""

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
        """What the initiator declares as its MaxRecvDataSegmentLength from now on. The connection's
        thread."""
        self._segment = min(length, self._burst)

    def put_pdu(self, pdu, numbered=False):
        """Queue one PDU."""
        self.queue.append((None, (pdu,), numbered))

    def put_pdus(self, pdus, numbered=False):
        """Queue PDUs that must follow each other."""
        self.queue.append((None, pdus, numbered))

    def drain(self):
        """Send what is queued, unless another thread is at it (it will send ours as well). Any
        thread. Hot, once a batch.

        Who finds that too much waits already waits for the other thread: that bounds what an
        initiator that does not read can make us keep. Raises OSError when the connection is gone.
        """
        queue, lock = self.queue, self._lock
        while queue:
            if not lock.acquire(False):
                if self._is_little():
                    return
                lock.acquire()
            try:
                self._send(self._stamp())
            finally:
                lock.release()

    def held(self):
        """A context in which nothing is sent."""
        return self._lock

    def bury(self):
        """The connection is over and its socket shut down: what is queued, now or later, only moves
        the command window."""
        with self._lock:
            self._socket = _Nowhere
        self.drain_and_wait()

    def _is_little(self):
        """May what is queued wait for the thread that is sending?"""
        return len(self.queue) <= _WAITING_ENTRIES and self._waiting() <= _WAITING_BYTES

    def _waiting(self):
        """Bytes of data that are queued."""
        total = 0
        for entry in list(self.queue):
            if entry[0] is None:
                total += sum(len(pdu.data) for pdu in entry[1])
            elif entry[1] is not None:
                total += len(entry[1])
        return total

    def drain_and_wait(self):
        """Send what is queued; if another thread is sending, wait for it first. For a connection's
        last words."""
        with self._lock:
            while self.queue:
                self._send(self._stamp())

    def _stamp(self):
        """Take entries off the queue and make buffers of them. Under the lock. Hot."""
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
                            # not only the last: any segment length may have been declared
                            if len(piece) & 3:
                                append(_PAD[len(piece) & 3])
                    total += length
                stat_sn = stat_sn + 1 & _MASK
            if total > _BATCH_BYTES or len(buffers) > _BATCH_BUFFERS:
                break
        self.stat_sn, session.max_cmd_sn = stat_sn, max_cmd_sn
        return buffers

    def _segments(self, itt, data, stat_sn, exp_cmd_sn, max_cmd_sn):
        """(header, piece) of a Data-In sequence that ends with GOOD; F where a burst ends."""
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
        """(header, data) of each PDU object of an entry."""
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
                if (
                    opcode not in _UNNUMBERED
                    and not (opcode == const.NOP_IN and pdu.ttt != _NO_TAG)
                    or (opcode == const.DATA_IN)
                ):
                    self.stat_sn = self.stat_sn + 1 & _MASK
            yield pdu.encode(), pdu.data

    def _stamp_with_digests(self):
        """As _stamp, with CRC32C behind each header and each data segment (RFC 7143 11.2.3, 11.2.4;
        pad bytes count)."""
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
        """All of it, in one call where the kernel takes it in one."""
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
            buffers = _without(buffers, sent)
            sent = self._socket.sendmsg(buffers)


class SharedOutbox(Outbox):
    """Of a connection beside which the session may have others: who does not read this one must not
    hold those up.

    drain() never waits. What the socket does not take is sent by a thread that is made for it; it
    keeps the lock until the queue is empty. numbering: the lock that the connections' command
    window is under; failed(error): called by that thread when nothing can be sent any more;
    begin(task): starts a read that was put off."""

    __slots__ = ('failed', 'begin', '_numbering', '_guard', '_reading', '_put_off')
    budget_bytes = READ_BUDGET_BYTES

    def __init__(self, sock, session, stat_sn, crc32c, values, numbering):
        super(SharedOutbox, self).__init__(sock, session, stat_sn, crc32c, values)
        self._numbering = numbering
        self._guard = threading.Lock()
        self._reading = 0  # bytes that commands in executor threads are about to queue
        self._put_off = deque()  # (task, what stands in place of its transfer)
        self.failed = self.begin = None

    def _stamp(self):
        with self._numbering:
            return Outbox._stamp(self)

    # -- sending -----------------------------------------------------------------------------------------------------

    def drain(self):
        """Send what the socket takes now; the rest is sent as it takes it. Any thread. Raises
        OSError as Outbox.drain."""
        queue, lock = self.queue, self._lock
        while queue and lock.acquire(False):
            rest = ()
            try:
                rest = self._send_what_fits(self._stamp())
            finally:
                if not rest:
                    lock.release()
            if rest:
                self._begin_sender(rest)
                return
        self.begin_put_off()

    def _send_what_fits(self, buffers):
        """What the socket does not take now."""
        while buffers:
            try:
                sent = self._socket.sendmsg(buffers[:_KERNEL_BUFFERS], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            buffers = _without(buffers, sent)
        return buffers

    def _begin_sender(self, rest):
        thread = threading.Thread(target=self._send_the_rest, args=(rest,), name='sender')
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:  # half of a PDU may be sent: this connection is over
            self._lock.release()
            raise OSError(errno.EAGAIN, 'there is no thread to send with')

    def _send_the_rest(self, buffers):
        """[sender, who has the lock]"""
        error = None
        try:
            self._send(buffers)
            while self.queue:
                self.begin_put_off()
                self._send(self._stamp())
        except OSError as e:
            error = e
        finally:
            self._lock.release()
        if error is None:
            try:
                self.drain()  # what came between the last look at the queue and the release
            except OSError as e:
                error = e
        if error is not None:
            self.failed(error)

    def drain_and_wait(self):
        super(SharedOutbox, self).drain_and_wait()
        self.begin_put_off()

    def wait_while_much(self):
        """Wait while more is queued than commands within their window can ask for. Raises OSError.
        The connection's thread."""
        while self._is_much():
            with self._lock:
                pass  # who had it has sent everything, or failed
            self.drain()

    def _is_much(self):
        entries = list(self.queue)
        return (
            len(entries) > _WAITING_ENTRIES
            or sum(len(pdu.data) for entry in entries if entry[0] is None for pdu in entry[1])
            > _WAITING_BYTES
        )

    # -- reading no more than can be kept ----------------------------------------------------------------------------

    def is_little(self):
        """May a large read be carried out at once? Any thread."""
        return self._is_little()

    def may_read(self, task, put_off):
        """True if the data of this task may be read now: has_read() must follow. Else it is put
        off, with `put_off` in place of its transfer, so that it can be aborted meanwhile.
        [executor]"""
        with self._guard:
            if self._fits_budget(task.edtl) and not self._put_off:
                self._reading += task.edtl
                return True
            task.transfer = put_off
            if task.aborted:  # by one who may have looked before: it ends now
                task.transfer = None
                self._reading += task.edtl
                return True
            self._put_off.append((task, put_off))
        self.begin_put_off()  # the room may have come while we looked
        return False

    def has_read(self, task):
        """Its data is queued. [executor]"""
        with self._guard:
            self._reading -= task.edtl
        self.begin_put_off()

    def begin_put_off(self):
        """Begin the tasks that were put off, as far as there is room. Once the connection is over
        nothing is begun: its tasks end, or go on elsewhere (take_back). Any thread."""
        while self._put_off and self._socket is not _Nowhere:
            with self._guard:
                if not self._put_off or not self._fits_budget(self._put_off[0][0].edtl):
                    return
                task, put_off = self._put_off.popleft()
                if task.transfer is not put_off:
                    continue  # it was aborted
                task.transfer = None
                self._reading += task.edtl
            self.begin(task)

    def take_back(self, task):
        """True if it was put off; it is not begun here any more, then. Any thread."""
        with self._guard:
            found = [
                entry for entry in self._put_off if entry[0] is task and task.transfer is entry[1]
            ]
            for entry in found:
                self._put_off.remove(entry)
                task.transfer = None
        return bool(found)

    def _fits_budget(self, count):
        used = self._reading + self._waiting()
        return not used or used + count <= self.budget_bytes


def _without(buffers, sent):
    """What is left of `buffers` when their first `sent` bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:]] + list(buffers[index + 1 :])
        sent -= len(buffer)
    return []
