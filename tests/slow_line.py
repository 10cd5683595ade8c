"""A line between an initiator and the daemon that carries the target's answers slowly."""

import socket
import threading
import time

#: The receive buffer of the line, in bytes: what is on its way waits at the target.
BUFFER = 16384


class SlowLine(object):
    """Forwards one connection to `target` (address, port). bytes_per_second: the rate towards the
    initiator; the other direction is not limited. address: where the initiator connects to. Use as a
    context manager; its threads end with the connection."""

    def __init__(self, target, bytes_per_second):
        self._rate = bytes_per_second
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(1)
        self.address = self._listener.getsockname()
        self._target = socket.socket()
        self._target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._target.connect(target)
        self._initiator = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        for sock in (self._initiator, self._target):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._target.close()

    def _run(self):
        try:
            self._initiator = self._listener.accept()[0]
        except OSError:
            return
        back = threading.Thread(target=self._forward, args=(self._initiator, self._target, None))
        back.start()
        self._forward(self._target, self._initiator, self._rate)
        back.join(10)
        self._initiator.close()

    @staticmethod
    def _forward(source, sink, rate):
        try:
            while True:
                data = source.recv(BUFFER)
                if not data:
                    break
                if rate:
                    time.sleep(len(data) / rate)
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
