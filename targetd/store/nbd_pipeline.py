"""Requests to an NBD server of a thread that does not wait for their replies.

Imports base, nbd_connection, nbd, shared_flushes. The thread *begins* many requests, sends them at once,
and looks for replies when there is something to receive:

     begin_read(), begin_write() --> send_begun() --> ... the descriptor is readable --> receive_ready()
                                                                                              |
         what the requests that have ended were begun for <-- Begun.outcome() <---------------+

While another thread receives the replies (nbd_connection: it waits for its own), it passes those of begun
requests to their `owner`. The same happens to all of them when the connection is lost. A request that
cannot be begun, or whose outcome is AGAIN, is done by the verb that waits: only this one connects again
and repeats what was lost.

When the log of unflushed changes is half full, the next WRITE is followed by a FLUSH (a Begun without a
context). It has the turn of shared_flushes from its begin to its outcome, so no other flush of the
session can succeed, and be believed, before the failure of this one is known. If the connection is
lost, nothing is durable, and the next WRITE or flush goes on as if this one had not been begun.
"""

import errno
import os
import queue
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from targetd.nbd import messages, numbers
from targetd.nbd.handshake import Export

from .. import log
from ..compat import raw_buffer
from .base import AGAIN, FULL, BytesLike, failure
from .nbd_connection import Connection, Request
from .nbd_log import Mark, UnflushedChanges
from .shared_flushes import FlushingStore

#: The most bytes of a request that is begun.
LONGEST_BEGUN = 1 << 20
#: So many requests in flight are enough for one connection; qemu-nbd and nbdkit work on 16 of each.
BUSY = 16
#: What one sendmsg() takes (IOV_MAX is 1024).
_MOST_BUFFERS = 1000
#: At the end of a session the reply to a FLUSH is waited for so long, and looked for in this interval.
SETTLE_SECONDS, _SETTLE_STEP = 5.0, 0.01
# plain numbers: to combine the enumerations of the module takes longer than to send
_DONTWAIT, _NOSIGNAL = int(socket.MSG_DONTWAIT), int(socket.MSG_NOSIGNAL)

#: owner(requests): ends requests that another thread has received; it must not wait. Any thread.
Owner = Callable[[List['Begun']], None]


class Begun(Request):
    """A READ or WRITE for whose reply no thread waits, or a FLUSH. context: of the one who began it, None of
    a FLUSH; payload: of a WRITE; data: of a READ; durable, is_logged, generation: of a WRITE, see
    PipelinedStore.begin_write; mark: of a FLUSH, the newest change that it covers."""

    # Made for every command: the defaults are those of the class, and there is no lock as in a Request.
    waits = False
    flags = received = error = generation = 0
    mark: Optional[Mark] = None
    text = ''
    extents = None
    payload: Optional[BytesLike] = None
    data: Optional[BytesLike] = None
    is_done = is_lost = durable = is_logged = False

    def __init__(
        self,
        store: 'PipelinedStore',
        owner: Owner,
        context: Any,
        command: int,
        offset: int,
        length: int,
    ) -> None:
        self.store, self.owner, self.context = store, owner, context
        self.command, self.offset, self.length = command, offset, length

    @property
    def into(self) -> memoryview:  # type: ignore[override]
        """The buffer of a READ whose reply is not here at once, or not a single chunk."""
        if self.data is None:
            self.data = raw_buffer(self.length)  # without all of it the READ fails
        return memoryview(self.data)

    def put(self, data: memoryview) -> None:
        self.data = bytes(data)
        self.received = self.length

    def outcome(self) -> Any:
        """The request has ended. Returns the data of a READ, None for a WRITE or FLUSH, FULL for a WRITE, see
        base, or AGAIN: the verb that waits must do it. Raises OSError, but not for a FLUSH. Call it
        once; any thread."""
        if self.command == numbers.CMD_READ:  # read() gets an error again
            return AGAIN if self.is_lost or self.error else self.data
        return self.store.outcome_of_change(self)


def _rest(buffers, sent):
    """What remains of the buffers after so many bytes."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:]] + buffers[index + 1 :]
        sent -= len(buffer)
    return []


class PipelinedConnection(Connection):
    """One thread at a time calls send_begun()."""

    def __init__(self, sock: socket.socket, export: Export) -> None:
        super(PipelinedConnection, self).__init__(sock, export)
        # of begun requests; guarded by the lock, as `begun` and _ended
        self._unsent: List[BytesLike] = []
        self._has_payload = False  # there are not only headers among them
        self._ended: List[Begun] = []
        self._is_left = False  # send_left() is going to send, or sends
        self._is_held = False  # it is to begin with `_sending` held: a request is sent in part

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    def begin(self, request: Begun) -> bool:
        """send_begun() must follow. Returns False if the connection is lost."""
        with self._lock:
            if self.is_lost:
                return False
            self._cookie = cookie = self._cookie + 1
            self._pending[cookie] = request
            self.begun += 1
            self._unsent.append(
                messages.request(
                    request.command,
                    request.flags,
                    cookie,
                    request.offset,
                    request.length,
                    self.export.extended,
                )
            )
            if request.payload is not None:
                self._unsent.append(request.payload)
                self._has_payload = True
        return True

    # -- sending -----------------------------------------------------------------------------------

    def send_begun(self) -> bool:
        """Send what was begun. Never waits; returns False if a thread that may wait has to call
        send_left()."""
        if self._is_left or not self._unsent:
            return True
        if not self._sending.acquire(False):
            self._is_left = True
            return False
        if self._send_unsent(_DONTWAIT):
            self._sending.release()
            return True
        self._is_left = self._is_held = True
        return False

    def send_left(self) -> None:
        """Send what send_begun() has left, and what is begun meanwhile. Waits for the server."""
        if not self._is_held:
            self._sending.acquire()
        self._is_held = False
        try:
            while self._is_left:
                self._send_unsent(0)
                with self._lock:
                    self._is_left = bool(self._unsent)
        finally:
            self._sending.release()

    def _send_unsent(self, flags):
        """Send once. Returns False if the server does not take all of it now. Called with `_sending` held."""
        with self._lock:
            buffers = [] if self.is_lost else self._unsent
            has_payload, self._unsent, self._has_payload = self._has_payload, [], False
        if not buffers:
            return True
        try:
            if has_payload:
                sent = self._socket.sendmsg(buffers[:_MOST_BUFFERS], (), flags | _NOSIGNAL)
            else:  # only headers: one buffer is cheaper than many
                buffers = [b''.join(buffers)]
                sent = self._socket.send(buffers[0], flags | _NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            self.fail('nothing can be sent: %s' % (e.strerror or e))
            return True
        if sent == sum(map(len, buffers)):
            return True
        with self._lock:
            if not self.is_lost:
                self._unsent[:0] = _rest(buffers, sent)
                self._has_payload = True
        return False

    # -- replies -----------------------------------------------------------------------------------

    def receive_ready(self) -> Tuple[List[Begun], bool]:
        """Receive what is here, without waiting. Returns (the begun requests that have ended, False if
        another thread receives now: it gives the others to their owners)."""
        if not self._has_received():
            return [], False
        with self._lock:
            ended, self._ended = self._ended, []
        return ended, True

    def receive_for_owners(self) -> None:
        """Receive what is here, without waiting; give the begun requests that have ended to their owners."""
        if self._has_received():
            self._hand_over()

    def _has_received(self):
        with self._lock:
            if self._has_reader:
                return False
            self._has_reader = True
        self._as_reader(self._receive_now)
        return True

    def _receive_now(self):
        replies, has_more = self._replies, True
        while has_more:
            try:
                has_more = replies.receive(_DONTWAIT)
            except BlockingIOError:
                return
            replies.handle()

    def _finish(self, request):
        if request.waits:
            super(PipelinedConnection, self)._finish(request)
        elif not request.is_done:
            request.is_done = True
            self.begun -= 1
            self._ended.append(request)

    def _receive_until(self, request):
        while not request.is_done:
            self._replies.receive()
            self._replies.handle()
            self._hand_over()

    def fail(self, why: str) -> None:
        """As Connection.fail; the owners of the begun requests get them."""
        super(PipelinedConnection, self).fail(why)
        self._hand_over()

    def _hand_over(self):
        """Give the begun requests that have ended to their owners."""
        if not self._ended:
            return
        with self._lock:
            ended, self._ended = self._ended, []
        by_owner: Dict[Owner, List[Begun]] = {}
        for request in ended:
            by_owner.setdefault(request.owner, []).append(request)
        for owner, requests in by_owner.items():
            owner(requests)


class PipelinedStore(FlushingStore):
    """A store with requests that are begun; the class that extends this one makes the connections."""

    pipelines = True
    # a begun FLUSH has the turn; set by the thread that begins requests, and reset by its outcome
    is_flushing_ahead = False
    _connections: List[Optional[PipelinedConnection]]
    _changes: UnflushedChanges
    _is_multi: bool
    _writes_durable: bool
    _second_after: float
    _has_left: bool

    def begin_read(
        self, offset: int, length: int, context: Any, owner: Owner
    ) -> Optional[PipelinedConnection]:
        """Begin a READ, without waiting. Returns the connection, whose send_begun() must follow, or
        None: then read() must do it, in a thread that may wait. owner: see Owner."""
        connection = self._link(offset, length)
        if connection is None:
            return None
        request = Begun(self, owner, context, numbers.CMD_READ, offset, length)
        if connection.export.flags & numbers.SEND_DF:
            request.flags = numbers.FLAG_DF
        return connection if connection.begin(request) else None

    def begin_write(
        self, offset: int, data: BytesLike, durable: bool, context: Any, owner: Owner
    ) -> Optional[PipelinedConnection]:
        """As begin_read, for write(). `data` must not change until the request has ended."""
        # read before the connection, which may be replaced meanwhile
        generation = self._changes.generation
        connection = self._link(offset, len(data))
        if connection is None or self.lost:
            return None
        durable = durable or self._writes_durable
        if durable and not connection.export.flags & numbers.SEND_FUA:
            return None
        request = Begun(self, owner, context, numbers.CMD_WRITE, offset, len(data))
        request.payload, request.durable, request.generation = data, durable, generation
        request.is_logged = not durable or self._changes.is_dirty  # as in NbdStore._change
        request.flags = numbers.FLAG_FUA if durable else 0
        if not connection.begin(request):
            return None
        if self._changes.is_half_full:
            self._begin_flush(connection, owner)
        return connection

    def _link(self, offset, length):
        """Returns the connection for a request of these bytes, or None if it cannot be begun."""
        first, second = self._connections
        if (
            self._has_left
            or first is None
            or first.is_lost
            or second is not None
            and second.is_lost
        ):
            return None
        export = first.export
        if (offset | length) % export.minimum or length > LONGEST_BEGUN or length > export.maximum:
            return None
        if length <= 0 or offset < 0 or offset + length > self.size:
            return None
        if not self._is_multi or first.in_flight < BUSY:
            return first
        if second is None:  # a verb that waits asks for another one
            return None if time.monotonic() >= self._second_after else first
        return second if second.in_flight < first.in_flight else first

    def outcome_of_change(self, request: Begun) -> Any:
        """As Begun.outcome, of a WRITE or FLUSH."""
        if request.command == numbers.CMD_FLUSH:
            self._end_flush(request)
            return None
        if request.is_lost or request.error == errno.ESHUTDOWN:
            return AGAIN
        if request.error:
            text = request.text or os.strerror(request.error)
            raise OSError(request.error, 'the NBD server says: %s' % text)
        if request.is_logged and not self._changes.add(
            request.generation,
            numbers.CMD_WRITE,
            request.flags,
            request.offset,
            request.length,
            request.payload,
        ):
            return AGAIN
        if request.durable:
            self._require_not_lost()
        return FULL if self._changes.is_full else None

    # -- flushes that make room in the log ---------------------------------------------------------

    def _begin_flush(self, connection, owner):
        """Begin a FLUSH, unless another flush is in progress."""
        try:
            self._flush_turn.get(False)
        except queue.Empty:
            return
        request = Begun(self, owner, None, numbers.CMD_FLUSH, 0, 0)
        request.mark = self._changes.mark()
        self._begun += 1
        self.is_flushing_ahead = True
        if not connection.begin(request):
            request.is_lost = True
            self._end_flush(request)

    def _end_flush(self, request):
        """As _flush_medium ends."""
        try:
            if request.is_lost or request.error == errno.ESHUTDOWN:
                return
            if request.error:
                log.error('%s: a flush failed: %s', self.path, os.strerror(request.error))
                self._flush_failed(request.error)
            self._require_not_lost()
            if self._changes.forget(request.mark):
                self._succeeded = self._begun
        except OSError:
            pass  # data is lost: every later flush says so
        finally:
            self.is_flushing_ahead = False
            self._flush_turn.put(None)

    def _settle_flush(self) -> None:
        """The session is over: wait for the reply to the FLUSH that was begun. If it failed and nobody read
        the reply, the failure would be lost, because the server answers the next flush with success.
        Without a reply in time the connection counts as lost."""
        end = time.monotonic() + SETTLE_SECONDS
        while self.is_flushing_ahead:
            is_late = time.monotonic() >= end
            for connection in self._connections:
                if connection is not None and is_late:
                    connection.fail('a flush is not answered')
                elif connection is not None:
                    connection.receive_for_owners()
            if is_late:
                return
            time.sleep(_SETTLE_STEP)

    def make_room(self, is_ahead: bool = False) -> None:
        """If the log is full, wait for the flush that is in progress, which usually makes room, or flush.
        is_ahead: flush before it is full, unless another flush is in progress. Raises OSError."""
        is_full = self._changes.is_full
        if not is_full and not is_ahead:
            return
        try:
            self._flush_turn.get(is_full)
        except queue.Empty:
            return
        try:
            if self.lost:
                raise failure(self.lost, self.path)
            if self._changes.is_full or not is_full:
                self._begun += 1
                self._flush_medium()
                self._succeeded = self._begun
        finally:
            self._flush_turn.put(None)

    def _flush_failed(self, error: int) -> None:
        """A FLUSH failed with this errno: acknowledged data may be lost, of all sessions."""
        raise NotImplementedError

    def _require_not_lost(self) -> None:
        """Raises OSError if acknowledged data of the export was lost, in this or another session."""
        raise NotImplementedError
