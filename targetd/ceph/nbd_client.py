"""One NBD client of the store process, and how its requests become asynchronous operations of an image.

     reader thread --aio_…--> librbd --its thread calls back--> reply in the queue --> sent, by who
                                                                      |              gets the lock
                                                                      +--socket full--> sender thread

Replies are in the order of completion. A client that does not read its replies does not delay
the others. A request that the cluster does not answer stays without a reply.
"""

import collections
import errno
import select
import socket
import threading

from targetd.nbd import numbers, server_side

#: What one connection may have in progress.
MOST_REQUESTS, MOST_BYTES = 256, 32 << 20
_BUFFERS = 64  # of one sendmsg
_DATA = (numbers.CMD_READ, numbers.CMD_WRITE)


class Client(object):
    """sock: the connection; served: what is served (rbd_server.Server)."""

    def __init__(self, sock, served):
        self._socket = sock
        self._served = served
        self._image = served.image
        self._room = threading.Condition()
        self._count = self._bytes = 0
        self._replies = collections.deque()
        self._rest = []  # what a sendmsg has left
        self._sending = threading.Lock()
        self._is_stuck = threading.Event()
        self._is_over = False
        self._structured = False
        self._has_sender = False

    # -- reading -----------------------------------------------------------------------------------

    def run(self):
        """Serve until the client leaves. What it has sent is finished and answered before the connection is
        closed."""
        try:
            with self._socket.makefile('rb', 1 << 17) as stream:
                if self._negotiate(stream):
                    while self._step(stream):
                        pass
        except (OSError, server_side.ProtocolError):
            pass
        with self._room:
            while self._count:
                self._room.wait()
        self._finish()

    def _finish(self):
        """Send what is left, and close."""
        with self._sending:
            self._is_over = True
        self._is_stuck.set()
        try:
            self._socket.settimeout(5.0)
            for part in self._rest + [each for reply in self._replies for each in reply]:
                self._socket.sendall(part)
        except OSError:
            pass
        self._socket.close()

    def _negotiate(self, stream):
        offer = self._served.offer()
        self._has_allocation = offer.has_allocation
        steps = server_side.negotiate(offer)
        wanted = next(steps)
        try:
            while True:
                if isinstance(wanted, bytes):
                    self._socket.sendall(wanted)
                    wanted = steps.send(None)
                else:
                    wanted = steps.send(_exactly(stream, wanted))
        except StopIteration as e:
            if e.value is None:
                return False
            self._structured, self._has_allocation = e.value
            return True

    def _step(self, stream):
        """Take one request. Returns False at the end."""
        header = stream.read(server_side.REQUEST_SIZE)
        if len(header) < server_side.REQUEST_SIZE:
            return False
        flags, command, cookie, offset, length = server_side.parse_request(header)
        if command == numbers.CMD_DISC:
            return False
        size = length if command in _DATA else 0
        if size > MOST_BYTES:
            raise server_side.ProtocolError('a request of %d bytes' % length)
        data = _exactly(stream, length) if command == numbers.CMD_WRITE else None
        self._enter(size)
        error = self._why_not(command, offset, length)
        if error:
            self._answer(command, cookie, error, size)
            return True
        try:
            self._begin(flags, command, cookie, offset, length, data)
        except Exception as e:  # of librbd: the request was not taken
            self._completed(command, cookie, -abs(getattr(e, 'errno', 0) or errno.EIO), size)
        return True

    def _why_not(self, command, offset, length):
        """The errno that a request is refused with, or 0."""
        changes = command in (numbers.CMD_WRITE, numbers.CMD_TRIM, numbers.CMD_WRITE_ZEROES)
        if changes and not self._served.can_write:
            return errno.EPERM
        if command == numbers.CMD_FLUSH:
            return 0
        if offset + length > self._served.size or not length:
            return errno.ENOSPC if changes else errno.EINVAL
        return 0

    def _enter(self, size):
        with self._room:
            while self._count and (self._count >= MOST_REQUESTS or self._bytes + size > MOST_BYTES):
                self._room.wait()
            self._count += 1
            self._bytes += size

    def _leave(self, size):
        with self._room:
            self._count -= 1
            self._bytes -= size
            self._room.notify()

    # -- operations --------------------------------------------------------------------------------

    def _begin(self, flags, command, cookie, offset, length, data):
        """Start the operation of a request. FUA needs nothing: what is acknowledged is durable."""
        image = self._image
        if command == numbers.CMD_READ:

            def was_read(completion, content):
                number = completion.get_return_value()
                if number < 0 or content is None:
                    self._completed(command, cookie, number or -errno.EIO, length)
                    return
                if len(content) < length:
                    content += bytes(length - len(content))
                if self._structured:
                    header = server_side.data_header(cookie, offset, length)
                else:
                    header = server_side.done(cookie)
                self._reply((header, content), length)

            image.aio_read(offset, length, was_read)
            return
        size = length if data is not None else 0

        # `data` is a default so that it lives as long as librbd uses it
        def was_done(completion, data=data):
            self._completed(command, cookie, completion.get_return_value(), size)

        if command == numbers.CMD_WRITE:
            image.aio_write(data, offset, was_done)
        elif command == numbers.CMD_FLUSH:
            image.aio_flush(was_done)
        elif command == numbers.CMD_TRIM:
            image.aio_discard(offset, length, was_done)
        elif command == numbers.CMD_WRITE_ZEROES:
            is_thick = flags & numbers.FLAG_NO_HOLE
            image.aio_write_zeroes(offset, length, was_done, self._served.thick if is_thick else 0)
        elif command == numbers.CMD_BLOCK_STATUS and self._has_allocation:
            self._served.later(lambda: self._report_extents(cookie, offset, length))
        else:
            self._answer(command, cookie, errno.EINVAL, size)

    def _report_extents(self, cookie, offset, length):
        """[the thread for what blocks]"""
        try:
            extents = self._served.extents(offset, length)
        except Exception as e:
            error = abs(getattr(e, 'errno', 0) or errno.EIO)
            self._completed(numbers.CMD_BLOCK_STATUS, cookie, -error, 0)
            return
        self._reply((server_side.status(cookie, extents),), 0)

    def _completed(self, command, cookie, number, size):
        """An operation has ended with this negative errno, or without an error."""
        if number < 0:
            self._served.failed(-number)
        self._answer(command, cookie, -number if number < 0 else 0, size)

    def _answer(self, command, cookie, error, size):
        if error and self._structured and command in (numbers.CMD_READ, numbers.CMD_BLOCK_STATUS):
            reply = server_side.failed(cookie, error)
        else:
            reply = server_side.done(cookie, error)
        self._reply((reply,), size)

    # -- replies -----------------------------------------------------------------------------------

    def _reply(self, parts, size):
        self._replies.append(parts)
        self._drain()
        self._leave(size)

    def _drain(self):
        """Send what is in the queue, unless another thread does, or the socket is full."""
        while self._replies and not self._is_stuck.is_set() and self._sending.acquire(False):
            try:
                if not self._is_over and not self._send(socket.MSG_DONTWAIT):
                    self._is_stuck.set()
                    self._start_sender()
            except OSError:
                self._replies.clear()  # the client is gone
                self._rest = []
            finally:
                self._sending.release()

    def _send(self, flags):
        """Returns False if the socket is full. Called with the lock held."""
        while self._replies or self._rest:
            parts = self._rest
            while self._replies and len(parts) < _BUFFERS:
                parts.extend(self._replies.popleft())
            self._rest = parts
            try:
                sent = self._socket.sendmsg(parts, (), flags | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            if sent == sum(map(len, parts)):
                self._rest = []
            else:
                self._rest = _after(parts, sent)
        return True

    def _start_sender(self):
        if not self._has_sender:
            self._has_sender = True
            threading.Thread(target=self._send_later, daemon=True).start()

    def _send_later(self):
        """[sender thread] Sends whenever the socket was full."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while True:
            self._is_stuck.wait()
            if self._is_over:
                return
            poll.poll(1000)
            with self._sending:
                if self._is_over:
                    return
                try:
                    if not self._send(socket.MSG_DONTWAIT):
                        continue
                except OSError:
                    self._replies.clear()
                    self._rest = []
                self._is_stuck.clear()
            self._drain()


def _after(parts, sent):
    """The buffers that are left when so many bytes were sent."""
    left = []
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            left.append(memoryview(part)[sent:])
            sent = 0
    return left


def _exactly(stream, count):
    """Returns so many bytes. Raises OSError at the end."""
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionResetError()
    return data
