"""The server of one disk image: qemu-nbd, a child process of the keeper of its export (nbd_keeper).

     stopped --connect()--> starting --the greeting came--> serves --dies--> stopped, until connect()
                                                              +--stop(): SIGTERM, later SIGKILL--> stopped

It gets a listening socket that only this user can reach, so no other program connects to it, and its format
by name: a guest that writes another format's signature into its disk changes nothing. It runs as the owner
of the image, without capabilities. qemu-nbd takes connections before it has opened the image, so that the
greeting, not the connection, says that it is ready; and it does not obey SIGTERM while it opens or hangs.

May import host and nbd. Used by one thread of one process.
"""

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import time

from targetd.errors import StoreError
from targetd.host import image_info
from targetd.master.exports import nbd_connecting
from targetd.master.exports.nbd_size_change import Failed
from targetd.master.processes import child, sandbox
from targetd.nbd import uri

PROGRAM = 'qemu-nbd'
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
COPIES = 64  # numbers of descriptors from here on are used while they are put into place
LISTEN_DESCRIPTOR = 3  # of the socket that the service manager's protocol hands over (LISTEN_FDS)
#: io_uring costs half the processor time of the threads, where the kernel has it and allows it.
ASYNCHRONOUS = ('io_uring', 'threads')


class ImageServer(object):
    """path: of the image; kind: its format in the names of QEMU; read_only: no program writes to it."""

    PACKAGE = 'qemu-utils'

    def __init__(self, path, kind, read_only, program=PROGRAM):
        self._path = path
        self._kind = kind
        self._read_only = read_only
        self._program = program
        self._directory = tempfile.mkdtemp(prefix='targetd-image-')  # mode 0700
        self._socket_path = os.path.join(self._directory, 'nbd')
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._socket_path)
        self._listener.listen(64)
        self._errors = tempfile.TemporaryFile()
        self._ways = list(ASYNCHRONOUS)
        self._pid = None
        self.status = 0  # of the process that has ended last, as of waitpid

    @property
    def pid(self):
        """The process id of the server, or None."""
        return self._pid

    def connect(self, _, seconds):
        """Like nbd_connecting.connect(); starts the server if it does not run. Raises Unavailable with
        the server's own words if it ends."""
        address = uri.Address('', 0, self._socket_path, '')
        end = time.monotonic() + seconds
        while True:
            if not self._is_running():
                self._start()
            try:
                left = max(0.01, end - time.monotonic())
                return nbd_connecting.connect(address, left, self._is_running)
            except nbd_connecting.Unavailable:
                if self._is_running():
                    raise
                if len(self._ways) > 1 and self._has_failed_way():
                    del self._ways[0]
                    continue
                raise nbd_connecting.Unavailable(self._why())

    #: A function that starts the server if it does not run; None if connect() is soon enough.
    tend = None

    def _has_failed_way(self):
        return 'io_uring' in self._message() or 'aio' in self._message()

    def _why(self):
        return 'cannot be opened by %s: %s; check the image with "qemu-img check -f %s %s"' % (
            self._program,
            self._message() or 'it ended without a message',
            self._kind,
            self._path,
        )

    def _printed(self):
        """The last lines that the server has printed."""
        self._errors.seek(0)
        return self._errors.read()[-4096:].decode('utf-8', 'replace').strip().splitlines()

    def _message(self):
        """The last line that the server has printed."""
        return (self._printed() or [''])[-1]

    def _is_running(self):
        if self._pid is None:
            return False
        try:
            pid, self.status = os.waitpid(self._pid, os.WNOHANG)
            is_over = pid == self._pid
        except ChildProcessError:
            is_over = True
        if is_over:
            self._pid = None
        return not is_over

    def _start(self):
        if shutil.which(self._program) is None:
            raise nbd_connecting.Unavailable(
                'needs the program %s; install it (Debian: %s)' % (self._program, self.PACKAGE)
            )
        self._errors.seek(0)
        self._errors.truncate()
        parent = os.getpid()
        try:
            self._pid = child.fork(os.fork, lambda: self._become_server(parent))
        except OSError as e:
            raise nbd_connecting.Unavailable('%s cannot be started: %s' % (self._program, e))

    def _words(self):
        words = [self._program, '--persistent', '--shared=0', '--format=' + self._kind]
        words += ['--aio=' + self._ways[0], '--discard=unmap', '--export-name=']
        words += ['--read-only'] if self._read_only else []
        return words + [self._path]

    def _become_server(self, parent):
        """[the server's process]"""
        self._take_descriptors()
        self._take_user()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        child.die_with(parent)
        environment = {
            'PATH': os.environ.get('PATH', os.defpath),
            'LC_ALL': 'C',
            'LISTEN_FDS': '1',
            'LISTEN_PID': str(os.getpid()),
        }
        os.chdir('/')
        os.execvpe(self._program, self._words(), environment)

    def resize(self, size, may_shrink):
        """Give the disk in the image this size (bytes). The server is stopped for it, and started again by
        connect(). Raises nbd_size_change.Failed."""
        self._end()
        try:
            image_info.resize(
                self._path, self._kind, size, may_shrink, lambda: become_owner(self._path)
            )
        except StoreError as e:
            raise Failed(str(e))

    def _descriptors(self):
        """What the server gets: {number: descriptor}."""
        return {2: self._errors.fileno(), LISTEN_DESCRIPTOR: self._listener.fileno()}

    def _take_descriptors(self):
        """[the server's process]"""
        null = os.open(os.devnull, os.O_RDWR)
        wanted = {0: null, 1: null}
        wanted.update(self._descriptors())
        # first copies with high numbers: the number of one can be the place of another one
        copies = {
            number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, COPIES)
            for number, descriptor in wanted.items()
        }
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.set_inheritable(number, True)
        child.close_descriptors(set(wanted))

    def _take_user(self):
        """[the server's process]"""
        become_owner(self._path)

    def stop(self):
        """End the server, and accept no connection any more."""
        self._end()
        self._listener.close()
        self._errors.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self):
        """End the server: it finishes what it has received. Waits STOP_SECONDS at most, then kills it."""
        end = time.monotonic() + STOP_SECONDS
        number = signal.SIGTERM
        while self._is_running():
            if number is not None:
                os.kill(self._pid, number)
            number = None
            if time.monotonic() > end:
                number, end = signal.SIGKILL, end + STOP_SECONDS
            time.sleep(POLL_SECONDS)


def become_owner(path):
    """Become the owner of this file, without any capability, if this process is root's. Raises OSError."""
    if os.geteuid() == 0:
        sandbox.drop_capabilities()
    image_info.become_owner(path)
