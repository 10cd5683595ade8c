"""A server on a control socket that answers what a test tells it to."""

import json
import os
import socket
import threading


class FakeServer(object):
    """Takes one connection after the other. `answers`: bytes to send for each, or a function of the
    received request (a dict).

    What it was asked stands in `requests`. Its socket is gone after the last answer unless it
    `stays`.
    """

    def __init__(self, path, *answers, **more):
        self.path = path
        self.stays = more.get('stays', False)
        self.answers = list(answers)
        self.requests = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        for answer in self.answers:
            connection, _ = self.listener.accept()
            received = b''
            while not received.endswith(b'\n'):
                data = connection.recv(1 << 16)
                if not data:
                    break
                received += data
            if received:
                self.requests.append(json.loads(received.decode('utf-8')))
            try:
                for piece in answer(self) if callable(answer) else [answer]:
                    connection.sendall(piece)
            except OSError:
                pass
            connection.close()
        if not self.stays:
            self.close_listener()

    def close_listener(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener.close()

    def wait(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.close_listener()
