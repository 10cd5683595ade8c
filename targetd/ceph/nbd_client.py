"""One NBD client of the store process, in its event loop (event_loop).

     receive() --many requests at once--> operations --ended()--> replies --send()--> all in one sendmsg

Replies are in the order of completion. What a client has sent is finished and answered before the connection
is closed. A client that does not read its replies is not read from either, as soon as it has MOST_REQUESTS or
MOST_BYTES in progress, and delays no other client. A request that the cluster does not answer stays without
a reply.

Everything is used by the thread of the loop.
"""

import ctypes
import errno
import select
import socket

from targetd.ceph.image_buffers import HEAD, Input, ReplyBuffers
from targetd.nbd import numbers, server_side

#: What one connection may have in progress.
MOST_REQUESTS, MOST_BYTES = 256, 32 << 20
_DATA = (numbers.CMD_READ, numbers.CMD_WRITE)
_PARTS = 256  # of one sendmsg
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _Request(object):
    """size: the bytes of data that it counts for; chunk: of Input, with the data of a WRITE; buffer: for the
    data of a READ."""

    __slots__ = ('client', 'command', 'cookie', 'offset', 'length', 'size', 'chunk', 'buffer')

    def __init__(self, client, command, cookie, offset, length):
        self.client = client
        self.command = command
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.size = length if command in _DATA else 0
        self.chunk = self.buffer = None


class Client(object):
    """sock: the connection; served: rbd_server.Server; operations: Operations of poll_operations or
    callback_operations; later(function, call): has a thread call the function, and then the loop call(its
    result)."""

    def __init__(self, sock, served, operations, later):
        self.socket = sock
        self.descriptor = sock.fileno()
        self._served = served
        self._operations = operations
        self._later = later
        self._input = Input()
        self._missing = 0  # bytes that the next request has at least
        self._buffers = ReplyBuffers()
        self._replies = []  # memoryviews or bytes
        self._answered = []  # for each of them its _Request, or None
        self._count = self._bytes = 0
        self._is_full = False  # more requests are not begun now
        self._is_stuck = False  # the socket takes no more
        self._is_lost = False  # the client does not receive replies any more
        self.has_left = False  # nothing more is received
        offer = served.offer()
        self._structured, self._has_allocation = False, offer.has_allocation
        self._steps = server_side.negotiate(offer)
        self._wanted = next(self._steps)
        self._negotiate()

    # -- for the loop ------------------------------------------------------------------------------

    @property
    def mask(self):
        """What the client waits for, as of epoll; None if nothing is left to do but to close it."""
        if not self.has_left:
            mask = 0 if self._is_full else select.EPOLLIN
        elif self._count or self._replies:
            mask = 0
        else:
            return None
        return mask | select.EPOLLOUT if self._is_stuck else mask

    @property
    def only_sends(self):
        """True if the client has left, and replies are left that it does not take."""
        return self.has_left and self._is_stuck and self._count == sum(map(bool, self._answered))

    def receive(self):
        """Take what the client has sent, and begin its requests."""
        if self._is_full or self.has_left:
            return
        given = self._input
        try:
            count = self.socket.recv_into(given.space(self._missing), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.has_left = True
            return
        given.end += count
        self._go_on()

    def send(self):
        """Send what the socket takes, and begin the requests that have waited for it."""
        while self._replies:
            parts = self._replies[:_PARTS]
            try:
                sent = 0 if self._is_lost else self.socket.sendmsg(parts, (), _FLAGS)
            except BlockingIOError:
                self._is_stuck = True
                return
            except OSError:
                self._is_lost = True
            if self._is_lost:
                sent = sum(map(len, parts))
            self._sent(parts, sent)
            if self._is_full:
                self._is_full = False
                self._go_on()
        self._is_stuck = False

    def _sent(self, parts, sent):
        """So many bytes of these replies have been sent."""
        count = len(parts)
        if sent < sum(map(len, parts)):
            count = 0
            while sent >= len(parts[count]):
                sent -= len(parts[count])
                count += 1
            self._replies[count] = memoryview(parts[count])[sent:]
        for request in self._answered[:count]:
            if request is not None:
                self._count -= 1
                self._bytes -= request.size
                if request.buffer is not None:
                    self._buffers.give_back(request.buffer)
        del self._replies[:count], self._answered[:count]

    # -- requests ----------------------------------------------------------------------------------

    def _go_on(self):
        """Use what has been received."""
        try:
            if self._steps is not None:
                self._negotiate()
            while self._steps is None and not (self._is_full or self.has_left):
                if not self._step():
                    break
        except server_side.ProtocolError:
            self.has_left = True

    def _negotiate(self):
        given = self._input
        try:
            while self._steps is not None:
                if isinstance(self._wanted, bytes):
                    self._put(self._wanted, None)
                    self._wanted = self._steps.send(None)
                    continue
                after = given.start + self._wanted
                self._missing = self._wanted
                if given.end < after:
                    return
                data = bytes(given.chunk.view[given.start : after])
                given.start = after
                self._wanted = self._steps.send(data)
        except StopIteration as e:
            self._steps, self._missing = None, server_side.REQUEST_SIZE
            if e.value is None:
                self.has_left = True
            else:
                self._structured, self._has_allocation = e.value

    def _step(self):
        """Begin the next request. Returns False if it is not there yet, or has to wait."""
        given = self._input
        start, size = given.start, server_side.REQUEST_SIZE
        self._missing = size
        if given.end - start < size:
            return False
        chunk = given.chunk
        flags, command, cookie, offset, length = server_side.parse_request(chunk.content, start)
        if command == numbers.CMD_DISC:
            self.has_left = True
            return False
        request = _Request(self, command, cookie, offset, length)
        if request.size > MOST_BYTES:
            raise server_side.ProtocolError('a request of %d bytes' % length)
        if self._count >= MOST_REQUESTS or self._count and self._bytes + request.size > MOST_BYTES:
            self._is_full = True
            return False
        if command == numbers.CMD_WRITE:
            self._missing = size + length
            if given.end - start < self._missing:
                return False
            request.chunk = chunk
            chunk.users += 1
        given.start = start + self._missing
        self._missing = size
        self._count += 1
        self._bytes += request.size
        try:
            if command == numbers.CMD_READ and 0 < length <= self._served.size - offset:
                request.buffer = buffer = self._buffers.take(length)
                self._operations.read(request, offset, length, buffer.address + HEAD)
                return True
            error = self._served.why_not(command, offset, length)
            if error:
                self._answer(request, error)
            else:
                self._begin(request, flags, chunk.address + start + size)
        except OSError as e:  # of librbd: the request was not taken
            self.ended(request, -(e.errno or errno.EIO))
        return True

    def _begin(self, request, flags, address):
        """Start the operation of a request. FUA needs nothing: what is acknowledged is durable. Raises
        OSError."""
        command, offset, length = request.command, request.offset, request.length
        if command == numbers.CMD_WRITE:
            self._operations.write(request, offset, length, address)
        elif command == numbers.CMD_FLUSH:
            self._operations.flush(request)
        elif command == numbers.CMD_TRIM:
            self._operations.discard(request, offset, length)
        elif command == numbers.CMD_WRITE_ZEROES:
            is_thick = flags & numbers.FLAG_NO_HOLE
            thick = self._served.thick if is_thick else 0
            self._operations.write_zeroes(request, offset, length, thick)
        elif command == numbers.CMD_BLOCK_STATUS and self._has_allocation:
            self._later(
                lambda: _extents(self._served, offset, length),
                lambda found: self._report_extents(request, *found),
            )
        else:
            self._answer(request, errno.EINVAL)

    # -- replies -----------------------------------------------------------------------------------

    def ended(self, request, number):
        """The operation of a request has ended with this number: a negative errno, or, for a READ, the bytes
        that were read."""
        if number < 0:
            self._served.failed(-number)
            self._answer(request, -number)
            return
        buffer = request.buffer
        if buffer is None:
            self._answer(request, 0)
            return
        length = request.length
        if number < length:
            ctypes.memset(buffer.address + HEAD + number, 0, length - number)
        start = server_side.put_data_header(
            self._structured, buffer.content, HEAD, request.cookie, request.offset, length
        )
        self._replies.append(buffer.view[start : HEAD + length])
        self._answered.append(request)

    def _report_extents(self, request, error, extents):
        if error:
            self.ended(request, -error)
        else:
            self._put(server_side.status(request.cookie, extents), request)

    def _answer(self, request, error):
        if request.chunk is not None:
            self._input.release(request.chunk)
            request.chunk = None
        reply = server_side.ended(self._structured, request.command, request.cookie, error)
        self._put(reply, request)

    def _put(self, reply, request):
        self._replies.append(reply)
        self._answered.append(request)


def _extents(served, offset, length):
    """[the thread for what blocks] Returns (errno or 0, extents)."""
    try:
        return 0, served.extents(offset, length)
    except Exception as e:
        return abs(getattr(e, 'errno', 0) or errno.EIO), ()
