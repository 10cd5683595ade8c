"""The send queue of a connection that must never delay others, and the reads that wait until earlier data
has left.

May import what outbox may.
"""

import errno
import socket
import threading
from collections import deque

from targetd.worker.connection.outbox import (
    KERNEL_BUFFERS,
    WAITING_BYTES,
    WAITING_ENTRIES,
    DiscardingSocket,
    Outbox,
    unsent,
)
from targetd.worker.connection.read_budget import NEXT_READ_BYTES, READ_BUDGET_BYTES


class PostponedReads(Outbox):
    """An outbox whose connection reads no more than can be kept. budget_bytes: of the data that is queued
    or being read; start_read(task): starts a postponed read."""

    __slots__ = ()
    budget_bytes = READ_BUDGET_BYTES

    def begin_postponing(self):
        """Set what postponed reads need."""
        self._guard = threading.Lock()
        self._reading = 0  # bytes that executor threads are reading and will queue
        self._readers = {}  # unit -> number of its tasks that these bytes are for
        self._postponed = deque()  # (task, the PostponedRead that is its transfer)
        self.on_failure = self.start_read = None

    def _is_overfull(self):
        entries = list(self.queue)
        return (
            len(entries) > WAITING_ENTRIES
            or sum(len(pdu.data) for entry in entries if entry[0] is None for pdu in entry[1])
            > WAITING_BYTES
        )

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
        while self._postponed and self._socket is not DiscardingSocket:
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


class SharedOutbox(PostponedReads):
    """Send queue of a connection whose session may have others: an initiator that does not read
    this connection must not delay the others.

    drain() never blocks. Data that does not fit into the socket's buffer is sent by a dedicated
    sender thread, which keeps the lock until the queue is empty. numbering: the lock of the
    session's command window; on_failure(error): called by the sender thread when sending fails;
    start_read(task): starts a postponed read."""

    __slots__ = ()
    is_paced = False

    def __init__(self, sock, session, stat_sn, crc32c, values, numbering):
        super(SharedOutbox, self).__init__(sock, session, stat_sn, crc32c, values)
        self._numbering = numbering
        self.begin_postponing()

    def _stamp(self):
        with self._numbering:
            return Outbox._stamp(self)

    # -- sending ------------------------------------------------------------------------------

    def drain(self):
        """Send what fits into the socket's buffer now; a sender thread sends the rest. Raises
        OSError as Outbox.drain. [any]"""
        queue, lock = self.queue, self._lock
        while queue and not self.is_paced and lock.acquire(False):
            is_left = False
            try:
                buffers = self._stamp()
                sent = SharedOutbox._send_what_fits(self, buffers)
                is_left = sent < sum(map(len, buffers))
            finally:
                if not is_left:
                    lock.release()
            if is_left:
                SharedOutbox._start_sender(self, buffers, sent)
                return
        self.start_postponed()

    def _send_what_fits(self, buffers):
        """Send without blocking; returns the number of bytes that were sent."""
        total, rest = 0, buffers
        while rest:
            try:
                sent = self._socket.sendmsg(rest[:KERNEL_BUFFERS], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            total, rest = total + sent, unsent(rest, sent)
        return total

    def _start_sender(self, buffers, sent):
        thread = threading.Thread(target=self._send_the_rest, args=(buffers, sent), name='sender')
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:  # part of a PDU may have been sent: the connection must end
            self._lock.release()
            raise OSError(errno.EAGAIN, 'no sender thread can be started')

    def _send_the_rest(self, buffers, sent):
        """[the sender thread, which holds the lock]"""
        error = None
        try:
            self._send_slowly(buffers, sent)
            while self.queue and not self.is_paced:
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
        PostponedReads.drain_and_wait(self)
        self.start_postponed()

    def wait_while_overfull(self):
        """Block while more PDU objects are queued than the commands of one window can cause. Raises
        OSError. [connection]"""
        while self._is_overfull():
            with self._lock:
                pass  # the thread that held it has sent everything, or failed
            self.drain()
