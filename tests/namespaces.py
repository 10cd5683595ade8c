"""A network namespace for a test: no address of the host is used, and several hosts are addresses of
its loopback interface.

Threads and processes that are started within `entered()` are in the namespace, and so are sockets made
there, wherever they are used later.
"""

import contextlib
import ctypes
import os
import subprocess

CLONE_NEWNET = 0x40000000
PLACE = '/run/netns'


def why_not():
    """Why there can be no namespace here, or ''."""
    if os.geteuid() != 0:
        return 'only root may make a network namespace'
    done = subprocess.run(['unshare', '-n', 'true'], stderr=subprocess.DEVNULL)
    return 'the kernel permits no network namespace' if done.returncode else ''


class Namespace(object):
    """addresses: those that its loopback interface has besides its own, with prefix length."""

    def __init__(self, name, addresses=()):
        self.name = name
        run('ip', 'netns', 'add', name)
        self.within('ip', 'link', 'set', 'lo', 'up')
        for address in addresses:
            more = ('nodad',) if ':' in address else ()
            self.within('ip', 'address', 'add', address, 'dev', 'lo', *more)

    def within(self, *command):
        run('ip', 'netns', 'exec', self.name, *command)

    @contextlib.contextmanager
    def entered(self):
        """This thread is in the namespace in the `with` block."""
        with open('/proc/thread-self/ns/net') as before:
            _enter(os.path.join(PLACE, self.name))
            try:
                yield
            finally:
                _set(before.fileno())

    def remove(self):
        run('ip', 'netns', 'delete', self.name)


def _enter(path):
    with open(path) as file:
        _set(file.fileno())


def _set(descriptor):
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    assert done.returncode == 0, (command, done.stdout.decode('utf-8', 'replace'))
