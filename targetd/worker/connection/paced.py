"""A connection while its line is slow: the only one of a session, or one of several (multi_connection).

What a fast line has in its queues would take seconds on a slow one, and the answer to a ping, task
management and the other LUNs would wait behind it. So a connection whose send does not return, and whose
line drains less than pace.SLOW, changes its class, and that of its outbox, until the line is fast again:

     PaceableConnection, PaceableOutbox --on_slow--> PacedConnection, PacedOutbox
              ^                                                |
              +---------------- Pace.is_over ------------------+

Meanwhile a sender thread sends, a little at a time (Pace); the connection's thread goes on receiving;
short replies, pings and R2Ts overtake the data of long replies, and reads wait until earlier data has
left. StatSN is stamped when a piece is sent, so its order is still that of the wire. A fast line never
comes here: a send that returns costs it nothing.

A thread may be in a method of the class of before when the class changes: what such a method calls exists
in both, and none uses super().

May import what outbox and Connection may.
"""

import contextlib
import errno
import os
import socket
import threading
import time
from collections import deque
from time import monotonic

from targetd import log
from targetd.crc32c import crc32c
from targetd.iscsi import const
from targetd.worker.connection.connection import SEND_NOW_BYTES, Connection
from targetd.worker.connection.outbox import (
    DATA_IN,
    DATA_IN_GOOD_WORD,
    DATA_IN_LAST_WORD,
    KERNEL_BUFFERS,
    NO_TAG,
    PAD,
    SEND_SECONDS,
    WAITING_BYTES,
    WAITING_ENTRIES,
    DiscardingSocket,
    Outbox,
    unsent,
)
from targetd.worker.connection.pace import FAST, Pace
from targetd.worker.connection.postponing import PostponingConnection
from targetd.worker.connection.shared_outbox import PostponedReads
from targetd.worker.connection.stamped import LongReply, Pdu, long_reply, split

_MASK = 0xFFFFFFFF
_TCP_NOTSENT_LOWAT = 25
#: Long replies whose data is sent at the same time; the next ones wait. The one with the least data left
#: is next, and the oldest at each fourth turn: so none waits for ever, and those of equal length end one
#: after the other and not all of them late, when the initiator has given them up.
_AT_ONCE = 4
_TURN_OF_THE_OLDEST = 4
#: What the kernel may hold unsent after the line was quiet; it may still be slow.
_UNSENT_BYTES = 128 << 10
#: Pauses of the threads that wait for the sender, which are woken before.
_PAUSE = 0.25
#: SO_SNDTIMEO: a send that takes longer returns, so that the line can be judged.
SEND_STEP = 0.25
#: Reads of more may be postponed while the line is slow.
PACED_POSTPONED_BYTES = 8 << 10
#: PDUs that may not overtake the replies before them (RFC 7143 4.2.3.2: the initiator may forget its
#: tasks, or close the connection, when it receives them).
_BARRIERS = (
    const.TASK_MANAGEMENT_RESPONSE,
    const.LOGOUT_RESPONSE,
    const.ASYNC_MESSAGE,
    const.REJECT,
    const.TEXT_RESPONSE,
)
_URGENT = (const.NOP_IN, const.READY_TO_TRANSFER)


class PaceableOutbox(PostponedReads):
    """The send queue of a PaceableConnection."""

    __slots__ = ()

    def __init__(self, *arguments):
        super(PaceableOutbox, self).__init__(*arguments)
        self._numbering = threading.Lock()  # the session has no other connection
        self.begin_postponing()

    def has_more(self):
        """True if anything is queued or being sent. [any]"""
        pacing = self._pacing
        return (
            bool(self.queue or pacing.urgent or pacing.long or pacing.stamped or pacing.rest)
            or self._lock.locked()
        )

    def wait_while_overfull(self):
        """Only a PacedOutbox may be. [connection]"""

    # Executor threads that began to read before the line was found slow, or fast again, hold bytes of
    # read_budget; the others respect them, and the other way round.

    def _begin_read(self, task):
        PostponedReads._begin_read(self, task)
        self.read_budget.hold(task.edtl, task.unit)

    def release_read(self, task):
        self.read_budget.give_back(task.edtl, task.unit)
        PostponedReads.release_read(self, task)

    def _fits_budget(self, count):
        used = self.read_budget.held + self._queued_bytes()
        return not used or used + count <= self.budget_bytes

    def _return_urgent(self, pacing):
        """The sender thread of this _Pacing has ended: another thread sends what it was to send."""
        while pacing.urgent:
            try:
                self.queue.append(pacing.urgent.popleft())
            except IndexError:  # another thread did it
                return


class PacedOutbox(PaceableOutbox):
    """The send queue of a PacedConnection. A PaceableOutbox becomes it by begin(). fast_class: what it
    becomes when the line is fast again."""

    __slots__ = ()
    fast_class = PaceableOutbox

    def begin(self, buffers, sent, rate, on_end):
        """Take over the buffers of a send, of which `sent` bytes are sent, and start the sender thread.
        on_end(): called by it when the line is fast again. The lock is held. Raises OSError."""
        self._pacing = _Pacing(Pace(rate, monotonic()), on_end)
        self._take_over(buffers, sent)
        self._limit_kernel(self._pacing.pace.unsent_bytes)
        thread = threading.Thread(target=self._run, name='sender', daemon=True)
        try:
            thread.start()
        except RuntimeError:  # part of a PDU may have been sent: the connection must end
            self._pacing.is_over = True
            raise OSError(errno.EAGAIN, 'no sender thread can be started')

    def _take_over(self, buffers, sent):
        pacing = self._pacing
        # a capture has recorded these bytes: they are sent as they are
        if hasattr(self._socket, 'real'):
            pacing.rest = unsent(buffers, sent)
            return
        whole = []
        for pdu in split(buffers, self._header_digest, self._data_digest):
            if sent >= len(pdu):
                sent -= len(pdu)
                continue
            if sent:
                pacing.rest = unsent(pdu.buffers, sent)
                sent = 0
            else:
                whole.append(pdu)
                if pdu.takes_stat_sn:
                    self.stat_sn = self.stat_sn - 1 & _MASK
        while whole:
            tag, count = whole[0].buffers[0][16:20], 1
            if whole[0].opcode == const.DATA_IN:
                while not whole[count - 1].has_stat_sn and count < len(whole):
                    if (
                        whole[count].opcode != const.DATA_IN
                        or whole[count].buffers[0][16:20] != tag
                    ):
                        break
                    count += 1
                reply = long_reply(whole[:count], self._header_digest)
                pacing.stamped.extend(whole[:count] if reply is None else [reply])
            else:
                pacing.stamped.append(whole[0])
            del whole[:count]

    def _limit_kernel(self, count):
        """Let the kernel hold at most so many unsent bytes, about, or as many as for other sockets (0);
        Linux before 3.12 cannot."""
        try:
            sock = getattr(self._socket, 'real', self._socket)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, count)
        except (AttributeError, OSError):
            pass

    # -- the interface of Outbox --------------------------------------------------------------

    def put_pdu(self, pdu, numbered=False):
        if pdu.opcode in _URGENT:
            pacing = self._pacing
            pacing.urgent.append((None, (pdu,), numbered))
            if pacing.is_over:
                PaceableOutbox._return_urgent(self, pacing)
        else:
            self.queue.append((None, (pdu,), numbered))

    def drain(self):
        """Let the sender thread send what is queued. Blocks while more is queued than the commands of a
        batch may cause. Raises OSError. [any]"""
        pacing = self._pacing
        pacing.wake.set()
        while not pacing.is_over and self._queued_bytes() > WAITING_BYTES:
            pacing.wait_for_progress()
        PacedOutbox._wake_sender(self)
        self.start_postponed()

    def _wake_sender(self):
        """Let the sender thread send what is queued, if it has not ended. [any]"""
        pacing = self._pacing
        pacing.wake.set()
        if pacing.is_over and self._socket is DiscardingSocket:
            PacedOutbox._forget(self)

    def drain_and_wait(self):
        pacing = self._pacing
        while not pacing.is_over:
            pacing.progress.clear()
            if not PaceableOutbox.has_more(self):
                break
            pacing.wake.set()
            pacing.progress.wait(_PAUSE)
        if pacing.error is not None and self._socket is not DiscardingSocket:
            raise pacing.error
        if not isinstance(self, PacedOutbox):
            self.drain_and_wait()  # the line is fast again
        elif self._socket is DiscardingSocket:
            PacedOutbox._forget(self)
        self.start_postponed()

    def _forget(self):
        """The connection has ended: what is queued only advances the command window. [any]"""
        pacing, session = self._pacing, self._session
        with self._lock:
            PaceableOutbox._return_urgent(self, pacing)
            while self.queue:
                with self._numbering:
                    Outbox._stamp(self)
            uncounted = sum(not reply.is_counted for reply in pacing.long)
            with self._numbering:
                session.max_cmd_sn = session.max_cmd_sn + uncounted & _MASK
            pacing.long.clear()
            pacing.stamped.clear()
            pacing.rest = ()

    def discard(self):
        with self.held():
            self._socket = DiscardingSocket
        self.drain_and_wait()

    @contextlib.contextmanager
    def held(self):
        pacing = self._pacing
        pacing.waiting += 1  # a hint: the sender thread lets this one have the lock
        self._lock.acquire()
        while pacing.rest and not pacing.is_over:  # a PDU is half sent
            self._lock.release()
            pacing.wait_for_progress()
            self._lock.acquire()
        pacing.waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    def wait_while_overfull(self):
        pacing = self._pacing
        while not pacing.is_over and (self._is_overfull() or len(pacing.urgent) > WAITING_ENTRIES):
            pacing.wait_for_progress()

    def may_leave_to_sender(self):
        return True

    def has_little_queued(self):
        return self._queued_bytes() <= self._pacing.pace.queue_bytes

    def is_outstanding(self):
        return PaceableOutbox.has_more(self) or self._outstanding() > 0

    @property
    def budget_bytes(self):
        """Of the data of postponed reads, see SharedOutbox."""
        return self._pacing.pace.queue_bytes

    def _queued_bytes(self):
        pacing = self._pacing
        return (
            PaceableOutbox._queued_bytes(self)
            + sum(map(len, list(pacing.long)))
            + sum(map(len, list(pacing.stamped)))
        )

    def _stamp(self):
        """A thread that is still in Outbox.drain sends nothing: the sender thread does."""
        self._pacing.wake.set()
        return ()

    # -- the sender thread --------------------------------------------------------------------

    def _run(self):
        """[the sender thread]"""
        pacing = self._pacing
        try:
            while self._send_or_wait(pacing):
                pass
        except OSError as e:
            pacing.error = e
        finally:  # other threads wait for this one
            pacing.is_over = True
            PaceableOutbox._return_urgent(self, pacing)
            pacing.progress.set()
        if pacing.error is not None:
            self.on_failure(pacing.error)
            return
        try:
            self.drain()  # entries that were queued meanwhile
        except OSError as e:
            self.on_failure(e)

    def _send_or_wait(self, pacing):
        """Send a piece, or wait until there is one; returns False if this is over. [the sender thread]"""
        while pacing.waiting:
            time.sleep(0.001)  # another thread waits for the lock
        with self._lock:
            is_idle = self._send_one_piece(pacing)
            if is_idle and (self._socket is DiscardingSocket or self._has_ended(pacing)):
                return False
        pacing.progress.set()
        self.start_postponed()
        if is_idle:
            pacing.pace.note_idle()
            pacing.wake.wait(_PAUSE)
            pacing.wake.clear()
        return True

    def _has_ended(self, pacing):
        """True if the line is not slow any more: this is a PaceableOutbox again. The lock is held."""
        if not pacing.pace.is_over(monotonic()):
            return False
        self._limit_kernel(0 if pacing.pace.rate > FAST else _UNSENT_BYTES)
        self.__class__ = self.fast_class
        pacing.on_end()
        return True

    def _send_one_piece(self, pacing):
        """Send the next piece; returns True if there is none. The lock is held."""
        buffers = pacing.rest
        if not buffers:
            with self._numbering:
                buffers = self._next_buffers(pacing)
        last = monotonic()
        while buffers:
            pacing.rest = buffers
            try:
                count = self._socket.sendmsg(buffers[:KERNEL_BUFFERS])
            except BlockingIOError:
                count = 0
            now = monotonic()
            pacing.handed_over += count
            buffers = unsent(buffers, count)
            if buffers or now - last > 0.01:
                pacing.pace.note(now, pacing.handed_over - self._outstanding())
                self._limit_kernel(pacing.pace.unsent_bytes)
            if count:
                last = now
            elif now - last >= SEND_SECONDS:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        is_idle, pacing.rest = not pacing.rest, ()
        return is_idle

    def _next_buffers(self, pacing):
        """Take about one piece from what is queued and return its buffers. The lock and the session's
        numbering are held."""
        most, out = pacing.pace.piece_bytes, _Buffers(self)
        # when the line is fast again, the replies that are half sent are finished, and nothing begun
        at_once = 0 if pacing.pace.is_over(monotonic()) else _AT_ONCE
        while pacing.urgent:
            out.add(self._headers(pacing.urgent.popleft()))
        while pacing.stamped and out.size < most:
            pdu = pacing.stamped[0]
            if pdu.__class__ is Pdu and pdu.opcode in _BARRIERS and pacing.long:
                break
            pacing.stamped.popleft()
            if pdu.__class__ is LongReply:
                pacing.long.append(pdu)
                continue
            pdu.restamp(self.stat_sn, self._crc32c if self._header_digest else None)
            if pdu.takes_stat_sn:
                self.stat_sn = self.stat_sn + 1 & _MASK
            out.add_framed(pdu.buffers)
        while self.queue and not pacing.stamped and out.size < most:
            entry = self.queue[0]
            if entry[0] is None and pacing.long and _is_barrier(entry):
                break
            if entry[0] is not None and entry[1] is not None and len(entry[1]) > most:
                if len(pacing.long) >= at_once:
                    break
                pacing.long.append(LongReply(entry[0], (entry[1],)))
                self.queue.popleft()
                continue
            self.queue.popleft()
            out.add(self._headers(entry))
        if pacing.long and out.size < most:
            pacing.turn = (pacing.turn + 1) % _TURN_OF_THE_OLDEST
            reply = min(pacing.long, key=len) if pacing.turn else pacing.long[0]
            while len(reply) and out.size < most:  # a segment of the initiator may be far shorter
                out.add((self._piece(reply, most - out.size),))
            if not len(reply):
                pacing.long.remove(reply)
        return out.buffers

    def framed(self, header, data):
        """The buffers of a PDU with pad bytes and digests (RFC 7143 11.2.3, 11.2.4)."""
        out, digest = [header], self._crc32c
        if self._header_digest:
            out.append(digest(header, 0).to_bytes(4, 'little'))
        if data:
            pad = PAD[len(data) & 3]
            out += [data, pad] if pad else [data]
            if self._data_digest:
                crc = digest(data, 0)
                out.append((digest(pad, crc) if pad else crc).to_bytes(4, 'little'))
        return out

    def _piece(self, reply, most):
        """Return (header, data) of the next Data-In of a reply, the last one with its status."""
        session = self._session
        offset, data_sn = reply.offset, reply.data_sn
        data = reply.take(min(self._segment, self._burst - offset % self._burst, max(most, 512)))
        size = len(data)
        if not len(reply):
            if not reply.is_counted:
                session.max_cmd_sn = session.max_cmd_sn + 1 & _MASK
            stat_sn, self.stat_sn = self.stat_sn, self.stat_sn + 1 & _MASK
            numbers = (NO_TAG, stat_sn, session.exp_cmd_sn, session.max_cmd_sn, data_sn, offset)
            return DATA_IN_LAST_WORD(DATA_IN_GOOD_WORD, size, reply.itt, *numbers), data
        word = 0x25000000 if reply.offset % self._burst else 0x25800000
        numbers = (NO_TAG, session.exp_cmd_sn, session.max_cmd_sn, data_sn, offset)
        return DATA_IN(word, size, reply.itt, *numbers), data


def _is_barrier(entry):
    return any(pdu.opcode in _BARRIERS for pdu in entry[1])


class _Pacing(object):
    """The state of a PacedOutbox. Deques: any thread appends to `urgent`; the rest is used with the
    outbox's lock held. on_end(): called by the sender thread, with the lock held."""

    def __init__(self, pace, on_end):
        self.pace = pace
        self.on_end = on_end
        self.urgent = deque()  # entries that overtake data
        self.stamped = deque()  # Pdus
        self.long = deque()  # _LongReplies
        self.turn = 0
        self.rest = ()  # buffers: the end of a PDU of which a part is sent
        self.handed_over = 0  # bytes that the kernel has accepted
        self.wake, self.progress = threading.Event(), threading.Event()
        self.waiting = 0  # threads that wait for the lock
        self.is_over = False
        self.error = None

    def wait_for_progress(self):
        """Wait until a piece is sent, or a moment. [any]"""
        self.progress.clear()
        if not self.is_over:
            self.progress.wait(_PAUSE)


class _Buffers(object):
    """Buffers of PDUs, with the digests of this outbox, and their size."""

    def __init__(self, outbox):
        self.buffers = []
        self.size = 0
        self._outbox = outbox

    def add(self, pairs):
        """Add PDUs: (header, data)."""
        for header, data in pairs:
            self.add_framed(self._outbox.framed(header, data))

    def add_framed(self, buffers):
        """Add buffers of a whole PDU."""
        self.buffers += buffers
        self.size += sum(map(len, buffers))


class PaceableConnection(Connection):
    """The connection of a session that has one connection and ErrorRecoveryLevel 0."""

    send_seconds = SEND_STEP
    postponed_bytes = SEND_NOW_BYTES
    may_pipeline = True

    def make_outbox(self, stat_sn):
        outbox = PaceableOutbox(self.socket, self.session, stat_sn, crc32c, self.values)
        self.with_callbacks(outbox)
        outbox.on_slow = self._become_paced
        return outbox

    def _become_paced(self, buffers, sent, rate):
        """[any, with the outbox's lock held]"""
        outbox = self.outbox
        log.debug('%s: the line is slow (%d KiB/s)', self.session.initiator_name, rate / 1024)
        outbox.__class__ = PacedOutbox
        outbox.begin(buffers, sent, rate, self.become_fast)
        self._change_class(PacedConnection)

    def _change_class(self, to):
        self.__class__ = to
        self._handlers[const.SCSI_COMMAND] = self._command

    def become_fast(self):
        """[the sender thread, with the outbox's lock held]"""
        log.debug('%s: the line is fast again', self.session.initiator_name)
        self._change_class(PaceableConnection)

    def with_callbacks(self, outbox):
        """Set the outbox's callbacks."""
        PostponingConnection.with_callbacks(self, outbox)

    def _read_and_send(self, task):
        return PostponingConnection._read_and_send(self, task)


class PacedConnection(PostponingConnection, PaceableConnection):
    """A PaceableConnection while its line is slow."""

    postponed_bytes = PACED_POSTPONED_BYTES
    may_pipeline = False

    def _receive_and_act(self):
        PaceableConnection._receive_and_act(self)
        self.outbox.wait_while_overfull()
