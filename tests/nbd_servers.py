"""NBD servers for tests: nbdkit and qemu-nbd on Unix sockets, and a scripted server that misbehaves."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from daemon import eventually

START_SECONDS = 20


def require(program):
    """Skips the test without this program; fails it where the clients are required."""
    if shutil.which(program) is None:
        if os.environ.get('TARGETD_CLIENTS') == 'required':
            pytest.fail('%s is missing' % program)
        pytest.skip('%s is not installed' % program)


def greets(path):
    """True if a server sends the greeting on this Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect(path)
            return sock.recv(18) != b''
        except OSError:
            return False


class Server(object):
    """A server process. words: the command without the socket; path: of its Unix socket."""

    def __init__(self, directory, words, path=None):
        require(words[0])
        self.words = list(words)
        self.path = path or os.path.join(str(directory), 'nbd-%d.sock' % time.monotonic_ns())
        self.process = None
        self.start()

    @property
    def uri(self):
        return 'nbd+unix:///?socket=' + self.path

    def start(self):
        """Starts the process, and waits until it greets. Returns self."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        eventually(lambda: greets(self.path), START_SECONDS, 'an NBD server: %s' % self.words)
        return self

    def _command(self):
        raise NotImplementedError

    def kill(self):
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)

    def pause(self):
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        if self.process.poll() is None:
            self.resume()
            self.kill()


class Nbdkit(Server):
    """words: plug-in and parameters, with options before."""

    def __init__(self, directory, *words, **more):
        super(Nbdkit, self).__init__(directory, ('nbdkit',) + words, **more)

    def _command(self):
        return ['nbdkit', '-f', '-U', self.path] + self.words[1:]


class QemuNbd(Server):
    """words: options and the image."""

    def __init__(self, directory, *words, **more):
        super(QemuNbd, self).__init__(directory, ('qemu-nbd',) + words, **more)

    def _command(self):
        return ['qemu-nbd', '-t', '-k', self.path] + self.words[1:]
