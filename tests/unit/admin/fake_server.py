"""A fake server on a control socket; each test supplies its replies."""

import json
import os
import socket
import threading


class FakeServer(object):
    """Accepts one connection after the other. `answers`: the bytes to send to each, or a function of
    this server that yields them.

    `requests` contains the requests that were received. The socket is removed after the last reply
    unless `stays` is true.
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
