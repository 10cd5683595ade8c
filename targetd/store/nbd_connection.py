"""One connection to an NBD server in its transmission phase: many requests of many threads at the same time.

Imports base, nbd. There is no thread for the replies: one of the threads that wait for a reply, the *reader*,
receives them for all. When it has its own, the next one becomes the reader. So a single request
costs no switch of threads.

    call(): send the request --> another thread reads? --yes--> sleep until the reply is here, or the
                                     |no                        reader leaves
                                     +--> read replies until the own one is here --> wake the next reader

A server that does not answer is waited for without a limit, as a disk is. Any thread may call any function.
"""

import errno
import functools
import os
import socket
import struct
import threading
from typing import Any, Dict, List, Optional, Tuple

from targetd.nbd import messages, numbers
from targetd.nbd.handshake import Export

#: One receive asks for so many bytes at most, so that the data of a long READ goes to its place at once.
RECEIVE_BYTES = 64 << 10
#: Room for what was received and not handled.
BUFFER_BYTES = 256 << 10
#: A chunk of data with its offset: magic, flags, type, cookie, bytes of the payload, offset.
DATA_REPLY = struct.Struct('>IHHQIQ')


class Lost(Exception):
    """The connection is broken: what was in flight has no reply, and may or may not have been done."""


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


class Connection(object):
    """sock: a connected socket, which this object owns; export: what handshake.negotiate returned."""

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
        # of the reader
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

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
            self._handle_reply()

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
            for other in self._pending.values():
                # a thread that still sends looks by itself afterwards
                if other.waits and other.is_sent:
                    self._wake(other)
                    break

    def _complete(self, cookie, request):
        with self._lock:
            self._pending.pop(cookie, None)
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
        """While no request waits nobody reads, so nobody has seen that the server has closed the connection:
        look, without waiting."""
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

    # -- replies (the reader) ----------------------------------------------------------------------

    def _fill(self, count):
        """Receive until the buffer has `count` bytes, which are at most RECEIVE_BYTES."""
        while self._end - self._start < count:
            if self._start == self._end:
                self._start = self._end = 0
            elif BUFFER_BYTES - self._start < count:
                left = self._end - self._start
                self._buffer[:left] = self._buffer[self._start : self._end]
                self._start, self._end = 0, left
            received = self._socket.recv_into(self._view[self._end : self._end + RECEIVE_BYTES])
            if not received:
                raise Lost('the server has closed the connection')
            self._end += received

    def _take(self, count):
        """Returns the next `count` bytes, at most messages.LONGEST_PAYLOAD."""
        if count <= RECEIVE_BYTES // 2:
            self._fill(count)
            data = bytes(self._view[self._start : self._start + count])
            self._start += count
            return data
        data = bytearray(count)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, target):
        """Receive into all of a memoryview."""
        done = min(self._end - self._start, len(target))
        target[:done] = self._view[self._start : self._start + done]
        self._start += done
        while done < len(target):
            received = self._socket.recv_into(target[done:])
            if not received:
                raise Lost('the server has closed the connection')
            done += received

    def _handle_reply(self):
        """Receive one simple reply or one chunk of a structured one."""
        export, size = self.export, 0
        if self._end - self._start >= DATA_REPLY.size and export.structured and not export.extended:
            if self._handle_whole_read():
                return
        while not size:
            available = self._end - self._start
            size = messages.header_size(
                self._buffer, self._start, available, export.structured, export.extended
            )
            if not size:
                self._fill(available + 1 if available >= 4 else 4)
        header = messages.parse_header(self._buffer, self._start, size)
        self._start += size
        request = self._pending.get(header.cookie)
        if request is None:
            raise messages.ProtocolError('a reply to a request that was not sent')
        if header.kind is None:
            self._simple(header, request)
        else:
            messages.check_length(header, request.command, request.length)
            self._chunk(header, request)
        if header.is_last:
            if not request.error:
                self._require_complete(request)
            self._complete(header.cookie, request)

    def _handle_whole_read(self):
        """Receive the reply to a READ that is one chunk, as with DF, whose header has arrived. Returns False,
        and has done nothing, if this is something else."""
        magic, flags, kind, cookie, size, offset = DATA_REPLY.unpack_from(self._buffer, self._start)
        request = self._pending.get(cookie)
        if (
            magic != numbers.STRUCTURED_REPLY_MAGIC
            or kind != numbers.REPLY_OFFSET_DATA
            or not flags & numbers.REPLY_DONE
            or request is None
            or request.command != numbers.CMD_READ
            or (offset, size) != (request.offset, 8 + request.length)
            or request.received
            or request.error
        ):
            return False
        self._start += DATA_REPLY.size
        self._receive_into(request.into)
        request.received = request.length
        self._complete(cookie, request)
        return True

    def _simple(self, header, request):
        if header.error:
            request.error = numbers.ERRNO.get(header.error, errno.EIO)
        elif request.command == numbers.CMD_READ:
            if self.export.structured:
                raise messages.ProtocolError('a simple reply to READ')
            self._receive_into(request.into)
            request.received = request.length

    def _chunk(self, header, request):
        kind = header.kind
        if kind == numbers.REPLY_OFFSET_DATA:
            offset = int.from_bytes(self._take(8), 'big')
            self._receive_into(self._part(request, offset, header.length - 8))
        elif kind == numbers.REPLY_OFFSET_HOLE:
            offset, length = messages.parse_hole(self._take(12))
            self._part(request, offset, length)[:] = bytes(length)
        elif kind == numbers.REPLY_NONE:
            pass
        elif kind & numbers.REPLY_ERROR_BIT:
            number, request.text = messages.parse_error(self._take(header.length))
            request.error = numbers.ERRNO.get(number, errno.EIO)
        else:
            payload = self._take(header.length)
            request.extents = messages.parse_status(kind, payload, self.export.allocation)

    def _part(self, request, offset, length):
        """The part of a READ's buffer that a chunk fills."""
        start = offset - request.offset
        if start < 0 or not 0 < length <= request.length - start:
            raise messages.ProtocolError('data that was not requested')
        request.received += length
        return request.into[start : start + length]

    def _require_complete(self, request):
        if request.command == numbers.CMD_READ and request.received != request.length:
            raise messages.ProtocolError(
                '%d bytes in the reply to READ of %d bytes' % (request.received, request.length)
            )
        if request.command == numbers.CMD_BLOCK_STATUS and not request.extents:
            raise messages.ProtocolError('a reply to BLOCK_STATUS without an extent')
