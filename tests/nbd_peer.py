"""A scripted NBD server in a thread, for what real servers do not do: it closes in mid-request, and
sends wrong replies. It has a memory of its own, which it can lose."""

import queue
import socket
import struct
import threading
import time

from targetd.nbd import numbers

FLAGS = (
    numbers.HAS_FLAGS
    | numbers.SEND_FLUSH
    | numbers.SEND_FUA
    | numbers.SEND_TRIM
    | numbers.SEND_WRITE_ZEROES
    | numbers.SEND_DF
    | numbers.CAN_MULTI_CONN
)
_REQUEST = struct.Struct('>IHHQQI')


class Closed(Exception):
    """The client has closed the connection."""


def receive(sock, count):
    data = b''
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise Closed
        data += part
    return data


class Peer(object):
    """A server on a Unix socket. answer(request) returns bytes to send in place of the reply, None
    for the usual reply, or raises Closed; request: (command, flags, cookie, offset, length, data).
    requests: all that arrived."""

    def __init__(self, path, size=1 << 20, flags=FLAGS, answer=None):
        self.path = path
        self.size, self.flags = size, flags
        self.answer = answer or (lambda request: None)
        self.memory = bytearray(size)
        self.requests = []
        self.connections = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self):
        return 'nbd+unix:///?socket=' + self.path

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def close(self):
        """No client can connect any more, and connections end."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._listener.close()
        self.drop()

    def drop(self):
        """Close every connection."""
        for sock in self.connections:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _serve(self, sock):
        try:
            self._negotiate(sock)
            while True:
                self._request(sock)
        except (Closed, OSError):
            pass
        finally:
            sock.close()

    def _negotiate(self, sock):
        sock.sendall(struct.pack('>QQH', numbers.INIT_PASSWORD, numbers.OPTION_MAGIC, 3))
        receive(sock, 4)
        while True:
            _, option, length = struct.unpack('>QII', receive(sock, 16))
            receive(sock, length)
            if option == numbers.OPT_STRUCTURED_REPLY:
                self._reply(sock, option, numbers.REP_ACK)
            elif option == numbers.OPT_GO:
                info = struct.pack('>HQH', numbers.INFO_EXPORT, self.size, self.flags)
                self._reply(sock, option, numbers.REP_INFO, info)
                self._reply(sock, option, numbers.REP_ACK)
                return
            else:
                self._reply(sock, option, numbers.REP_ERR_UNSUP)

    @staticmethod
    def _reply(sock, option, kind, data=b''):
        head = struct.pack('>QIII', numbers.OPTION_REPLY_MAGIC, option, kind, len(data))
        sock.sendall(head + data)

    def _request(self, sock):
        _, flags, command, cookie, offset, length = _REQUEST.unpack(receive(sock, 28))
        data = receive(sock, length) if command == numbers.CMD_WRITE else b''
        request = (command, flags, cookie, offset, length, data)
        self.requests.append(request)
        reply = self.answer(request)
        sock.sendall(self.usual_reply(request) if reply is None else reply)

    def usual_reply(self, request):
        """Executes the request; returns the reply."""
        command, _, cookie, offset, length, data = request
        if command == numbers.CMD_READ:
            content = bytes(self.memory[offset : offset + length])
            return chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', offset) + content)
        if command == numbers.CMD_WRITE:
            self.memory[offset : offset + length] = data
        elif command == numbers.CMD_WRITE_ZEROES:
            self.memory[offset : offset + length] = bytes(length)
        return simple(cookie)


def chunk(kind, cookie, payload, flags=numbers.REPLY_DONE):
    """A structured reply."""
    magic = numbers.STRUCTURED_REPLY_MAGIC
    return struct.pack('>IHHQI', magic, flags, kind, cookie, len(payload)) + payload


def simple(cookie, error=0):
    """A simple reply."""
    return struct.pack('>IIQ', numbers.SIMPLE_REPLY_MAGIC, error, cookie)


class SlowDisk(Peer):
    """A server that executes the requests of all its connections one after the other, in the order in which
    they arrive, each in so many seconds: a disk that its exports share."""

    def __init__(self, path, seconds, **more):
        self.seconds = seconds
        self._queue = queue.Queue()
        threading.Thread(target=self._execute, daemon=True).start()
        super().__init__(path, **more)

    def _request(self, sock):
        _, flags, command, cookie, offset, length = _REQUEST.unpack(receive(sock, 28))
        data = receive(sock, length) if command == numbers.CMD_WRITE else b''
        self._queue.put((sock, (command, flags, cookie, offset, length, data)))

    def _execute(self):
        due = time.monotonic()
        while True:
            sock, request = self._queue.get()
            due = max(due, time.monotonic() - self.seconds) + self.seconds
            time.sleep(max(0, due - time.monotonic()))  # late wake-ups do not add up
            try:
                sock.sendall(self.usual_reply(request))
            except OSError:
                pass  # the client has gone
