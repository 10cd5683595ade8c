"""The replies that arrive on a connection to an NBD server. Imports nbd.

     receive(), one system call --> buffer --handle()--> requests that have ended --> ended(cookies)
                           +--> the rest of a payload goes to its place

Between two calls nothing that has arrived is unhandled, but for a header of which a part is here. The data
of a READ of which a part is here is already in its place, and the next receive() continues there. So the
reader may wait for bytes or not, and any thread may continue where another one has left. One thread at a time
uses this object.
"""

import errno
import socket
import struct
from typing import Any, Callable, Dict, List, Optional, Tuple

from targetd.nbd import messages, numbers
from targetd.nbd.handshake import Export

#: Room for what was received and not handled.
BUFFER_BYTES = 256 << 10
#: Of them, what is received together with the rest of a payload: it is copied once more.
_TAIL_BYTES = 64 << 10
#: Less room than this is not offered for a receive.
_LEAST_ROOM = 64 << 10

READ, WRITE = numbers.CMD_READ, numbers.CMD_WRITE
#: A simple reply: magic and error as one number, cookie.
_SIMPLE = struct.Struct('>QQ')
#: A chunk of data, up to the data: magic, flags and type as one number, cookie, bytes of the payload, offset.
_DATA = struct.Struct('>QQIQ')
_EXTENDED_DATA = struct.Struct('>QQ8xQQ')
#: The flags and the type of the last chunk with data.
_LAST_DATA = numbers.REPLY_DONE << 16 | numbers.REPLY_OFFSET_DATA


class Lost(Exception):
    """The connection is broken: what was in flight has no reply, and may or may not have been done."""


class Replies(object):
    """pending: the requests without a reply by their cookies (nbd_connection.Request); ended(cookies) is
    called with those to which the reply is whole."""

    def __init__(
        self,
        sock: socket.socket,
        export: Export,
        pending: Dict[int, Any],
        ended: Callable[[List[int]], None],
    ) -> None:
        self._socket, self._export = sock, export
        self._pending, self._ended = pending, ended
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._tail = self._view[:_TAIL_BYTES]
        self._start = self._end = 0
        # the part of a payload that has not arrived: then the buffer is empty
        self._rest: Optional[memoryview] = None
        self._half: Optional[Tuple[messages.Header, Any, Any]] = None
        magic, layout = numbers.STRUCTURED_REPLY_MAGIC, _DATA
        if export.extended:
            magic, layout = numbers.EXTENDED_REPLY_MAGIC, _EXTENDED_DATA
        self._data_layout = magic << 32 | _LAST_DATA, layout.unpack_from, layout.size
        # the first number of a simple reply without an error; with extended headers there is none
        self._success = None if export.extended else numbers.SIMPLE_REPLY_MAGIC << 32

    def receive(self, flags: int = 0) -> bool:
        """Receive once. Returns False if that was all that was here. Raises Lost, and OSError: with the flag
        MSG_DONTWAIT BlockingIOError, if nothing is here."""
        rest = self._rest
        if rest is not None:
            received = self._socket.recvmsg_into((rest, self._tail), 0, flags)[0]
            part = min(received, len(rest))
            room = len(rest) + _TAIL_BYTES
            self._rest, self._start, self._end = rest[part:], 0, received - part
        else:
            if self._start == self._end:
                self._start = self._end = 0
            elif BUFFER_BYTES - self._end < _LEAST_ROOM:
                left = self._end - self._start
                self._buffer[:left] = self._buffer[self._start : self._end]
                self._start, self._end = 0, left
            room = BUFFER_BYTES - self._end
            received = self._socket.recv_into(self._view[self._end :], 0, flags)
            self._end += received
        if not received:
            raise Lost('the server has closed the connection')
        return received == room

    def handle(self) -> None:
        """Handle what has arrived. Raises messages.ProtocolError."""
        done: List[int] = []
        try:
            if self._rest is not None:
                if len(self._rest):
                    return
                self._end_chunk(done)
            while self._handle_plain(done) and self._handle_one(done):
                pass
        finally:
            if done:
                self._ended(done)

    def _handle_plain(self, done):
        """Handle the replies that consist of nothing but all data of a READ, or the success of a WRITE.
        Returns True if the next one is another one, or is not here as a whole. Hot."""
        data_word, unpack, size = self._data_layout
        view, pending, start, end = self._view, self._pending, self._start, self._end
        while True:
            if end - start >= size:
                word, cookie, length, offset = unpack(view, start)
                if word == data_word:
                    request, after = pending.get(cookie), start + size + length - 8
                    if (
                        after > end
                        or request is None
                        or request.command != READ
                        or length != request.length + 8
                        or offset != request.offset
                        or request.received
                        or request.error
                    ):
                        break
                    request.put(view[start + size : after])
                    start = after
                    done.append(cookie)
                    continue
            if end - start < _SIMPLE.size:
                break
            word, cookie = _SIMPLE.unpack_from(view, start)
            request = pending.get(cookie)
            if word != self._success or request is None or request.command != WRITE:
                break
            start += _SIMPLE.size
            done.append(cookie)
        self._start = start
        return start < end

    def _handle_one(self, done):
        """Handle one simple reply, or chunk of a structured one. Returns False if a part is not here."""
        export, start = self._export, self._start
        available = self._end - start
        size = messages.header_size(
            self._buffer, start, available, export.structured, export.extended
        )
        if not size:
            return False
        header = messages.parse_header(self._buffer, start, size)
        request = self._pending.get(header.cookie)
        if request is None:
            raise messages.ProtocolError('a reply to a request that was not sent')
        if header.kind is None:
            target = self._of_simple(header, request)
        else:
            messages.check_length(header, request.command, request.length)
            if header.kind == numbers.REPLY_OFFSET_DATA:
                if available < size + 8:
                    return False
                offset = int.from_bytes(self._view[start + size : start + size + 8], 'big')
                size += 8
                target = _part(request, offset, header.length - 8)
            else:
                target = memoryview(bytearray(header.length))
        start += size
        count = min(self._end - start, len(target))
        target[:count] = self._view[start : start + count]
        self._start = start + count
        self._half, self._rest = (header, request, target), target[count:]
        if count < len(target):
            return False
        self._end_chunk(done)
        return True

    def _of_simple(self, header, request):
        """Where the payload of a simple reply goes."""
        if header.error:
            request.error = numbers.ERRNO.get(header.error, errno.EIO)
        elif request.command == READ:
            if self._export.structured:
                raise messages.ProtocolError('a simple reply to READ')
            return _part(request, request.offset, request.length)
        return memoryview(bytearray())

    def _end_chunk(self, done):
        """The payload is whole."""
        header, request, payload = self._half
        self._half = self._rest = None
        kind = header.kind
        if kind is None or kind in (numbers.REPLY_OFFSET_DATA, numbers.REPLY_NONE):
            pass
        elif kind == numbers.REPLY_OFFSET_HOLE:
            offset, length = messages.parse_hole(payload)
            _part(request, offset, length)[:] = bytes(length)
        elif kind & numbers.REPLY_ERROR_BIT:
            number, request.text = messages.parse_error(payload)
            request.error = numbers.ERRNO.get(number, errno.EIO)
        else:
            request.extents = messages.parse_status(kind, payload, self._export.allocation)
        if header.is_last:
            if not request.error:
                _require_complete(request)
            done.append(header.cookie)


def _part(request, offset, length):
    """The part of a READ's buffer that a chunk fills."""
    start = offset - request.offset
    if start < 0 or not 0 < length <= request.length - start:
        raise messages.ProtocolError('data that was not requested')
    request.received += length
    return request.into[start : start + length]


def _require_complete(request):
    if request.command == READ and request.received != request.length:
        raise messages.ProtocolError(
            '%d bytes in the reply to READ of %d bytes' % (request.received, request.length)
        )
    if request.command == numbers.CMD_BLOCK_STATUS and not request.extents:
        raise messages.ProtocolError('a reply to BLOCK_STATUS without an extent')
