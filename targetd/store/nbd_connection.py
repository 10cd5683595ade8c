"""One connection to an NBD server in its transmission phase: many requests of many threads at the same time.

Imports nbd_replies, nbd. There is no thread for the replies: one of the threads that wait for a reply, the
*reader*, receives them for all. When it has its own, the next one becomes the reader. So a single
request costs no switch of threads.

    call(): send the request --> another thread reads? --yes--> sleep until the reply is here, or the
                                     |no                        reader leaves
                                     +--> read replies until the own one is here --> wake the next reader

A server that does not answer is waited for without a limit, as a disk is. Any thread may call any function.
"""

import errno
import functools
import os
import socket
import threading
from typing import Any, Dict, List, Optional, Tuple

from targetd.nbd import messages
from targetd.nbd.handshake import Export

from .nbd_replies import Lost, Replies


class Request(object):
    """A request that waits for its reply. into: the buffer of a READ; extents: of a BLOCK_STATUS;
    error: errno, or 0. `wake` is locked while its thread sleeps; is_sent and the rest are guarded
    by the connection's lock. waits: a thread waits for the reply (otherwise see nbd_pipeline)."""

    __slots__ = (
        'command',
        'offset',
        'length',
        'into',
        'received',
        'extents',
        'error',
        'text',
        'is_sent',
        'is_done',
        'is_lost',
        'is_woken',
        'wake',
    )
    waits = True

    def __init__(self, command: int, offset: int, length: int, into: Optional[memoryview]) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.into = into
        self.received = 0
        self.extents: Optional[List[Tuple[int, bool]]] = None
        self.error = 0
        self.text = ''
        self.is_sent = self.is_done = self.is_lost = self.is_woken = False
        self.wake = threading.Lock()
        self.wake.acquire()

    def put(self, data: memoryview) -> None:
        """This is all data of a READ."""
        assert self.into is not None
        self.into[:] = data
        self.received = self.length


class Connection(object):
    """sock: a connected socket, which this object owns; export: what handshake.negotiate returned; begun:
    number of the requests without a reply for which no thread waits (nbd_pipeline)."""

    begun = 0

    def __init__(self, sock: socket.socket, export: Export) -> None:
        self.export = export
        self.is_lost = False
        self.why = ''
        self._socket = sock
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # guards the rest
        self._pending: Dict[int, Request] = {}  # by cookie
        self._cookie = 0
        self._has_reader = False
        self._replies = Replies(sock, export, self._pending, self._complete)  # of the reader

    @property
    def in_flight(self) -> int:
        """The number of requests that have no reply yet."""
        return len(self._pending)

    def call(
        self,
        command: int,
        flags: int,
        offset: int,
        length: int,
        data: Any = None,
        into: Optional[memoryview] = None,
    ) -> Request:
        """Send a request and wait for its reply. data: of a WRITE. Raises Lost, or OSError with the server's
        error."""
        request = Request(command, offset, length, into)
        with self._lock:
            if self.is_lost:
                raise Lost(self.why)
            self._cookie = cookie = self._cookie + 1
            self._pending[cookie] = request
        header = messages.request(command, flags, cookie, offset, length, self.export.extended)
        try:
            with self._sending:
                self._send(header, data)
        except OSError as e:
            self.fail('nothing can be sent: %s' % (e.strerror or e))
        request.is_sent = True  # a reader that leaves before this is seen by _wait()
        self._wait(request)
        if request.is_lost or request.error == errno.ESHUTDOWN:
            self.fail('the server is shutting down')  # unless it has failed before
            raise Lost(self.why)
        if request.error:
            text = request.text or os.strerror(request.error)
            raise OSError(request.error, 'the NBD server says: %s' % text)
        return request

    def _send(self, header, data):
        if data is None:
            self._socket.sendall(header)
            return
        sent = self._socket.sendmsg((header, data))
        if sent < len(header):
            self._socket.sendall(header[sent:])
            sent = len(header)
        if sent < len(header) + len(data):
            self._socket.sendall(memoryview(data)[sent - len(header) :])

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, request):
        while True:
            with self._lock:
                if request.is_woken:
                    request.is_woken = False
                    request.wake.acquire(False)  # it may have been woken before it slept
                if request.is_done:
                    return
                reads = not self._has_reader
                if reads:
                    self._has_reader = True
            if reads:
                self._read_until(request)
            else:
                request.wake.acquire()

    def _wake(self, request):
        """Called with the lock held."""
        if not request.is_woken:
            request.is_woken = True
            request.wake.release()

    def _read_until(self, request):
        """This thread is the reader until its own reply is here."""
        self._as_reader(functools.partial(self._receive_until, request))

    def _receive_until(self, request):
        while not request.is_done:
            self._replies.receive()
            self._replies.handle()

    def _as_reader(self, receive):
        """Call receive() in the thread that has become the reader; then it is not the reader any more."""
        try:
            receive()
        except messages.ProtocolError as e:
            self.fail('the server violates the NBD protocol: %s' % e)
        except (OSError, Lost) as e:
            self.fail(str(getattr(e, 'strerror', None) or e))
        with self._lock:
            self._has_reader = False
            if len(self._pending) == self.begun:
                return
            for other in self._pending.values():
                # a thread that still sends looks by itself afterwards
                if other.waits and other.is_sent:
                    self._wake(other)
                    break

    def _complete(self, cookies):
        with self._lock:
            for cookie in cookies:
                request = self._pending.pop(cookie, None)
                if request is not None:  # else the connection was lost meanwhile
                    self._finish(request)

    def _finish(self, request):
        """Called with the lock held."""
        request.is_done = True
        self._wake(request)

    def fail(self, why: str) -> None:
        """The connection cannot be used any more; every request that waits ends with Lost."""
        with self._lock:
            if not self.is_lost:
                self.is_lost, self.why = True, why
            for request in self._pending.values():
                request.is_lost = True
                self._finish(request)
            self._pending.clear()
        try:
            # the server finishes what it has received, and closes; the keeper waits for that
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def notice_end(self) -> None:
        """Look, without waiting, whether the server has closed the connection; if so, it is lost. Without a
        request that waits for a reply no thread reads, and the end is not noticed otherwise."""
        try:
            if self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return
            why = 'the server has closed the connection'
        except BlockingIOError:
            return
        except OSError as e:
            why = str(e.strerror or e)
        self.fail(why)

    def close(self) -> None:
        """Close the descriptor. The caller knows that no other thread uses the connection. The keeper has a
        descriptor, too: it can see whether the server lives, and then ends the connection."""
        self.is_lost, self.why = True, 'the store was closed'
        self._socket.close()
