"""The log writer: the process that writes the log, so that nobody else ever waits for it.

     master, jobs --records--> queue (pipe) --> log writer --> file, syslog or stderr
     master <--answers-- control socket --orders--> log writer

The writer may wait for an unread /dev/log, for a full pipe or for a file system that does not answer.
Meanwhile the queue fills, and log.py counts and drops what does not fit. The writer counts what the
destination refuses (a full disk, no syslogd) and reports the number when it takes lines again. It ends
at the end of file of its control socket, after it has written what is in the queue: also when the
master was killed.
"""

import errno
import fcntl
import json
import os
import select
import signal
import socket
import syslog
import time

from targetd import log
from targetd.master.processes import child
from targetd.trusted_path import open_trusted

START_SECONDS = 10.0  # until the destination is open
ANSWER_SECONDS = 5.0  # until the file is open again
FINISH_SECONDS = 2.0  # until the queue is empty, at the end
QUEUE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
PATIENCE_MILLISECONDS = 500  # between two looks at the control socket
RECONNECT_SECONDS = 1.0

SOCKET_OF_SYSLOG = '/dev/log'
PRIORITIES = (syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_WARNING, syslog.LOG_ERR)
MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split()


# -- destinations ----------------------------------------------------------------------------------


class StandardError(object):
    """Lines to the standard error of the server."""

    def open(self):
        """Open the destination. Raises OSError."""

    def write(self, level, pid, seconds, text):
        """Write a line. Raises BlockingIOError if it cannot be written now, OSError if it is lost."""
        # a pipe that is ready takes PIPE_BUF bytes, which is more than a line
        _wait_writable(2)
        os.write(2, b'targetd: ' + text + b'\n')

    def close(self):
        """Close the destination."""


class LogFile(object):
    """Lines to a file."""

    def __init__(self, path):
        self.path = path
        self.descriptor = None

    def open(self):
        """Open the file, or open it again after a rotation. Raises OSError; then the old one is
        used."""
        new = open_log_file(self.path)
        self.close()
        self.descriptor = new

    def write(self, level, pid, seconds, text):
        """As StandardError.write()."""
        when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds)).encode('ascii')
        os.write(self.descriptor, b'%s targetd[%d] %s\n' % (when, pid, text))

    def close(self):
        """Close the file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Syslog(object):
    """Messages to the socket of syslogd. It is connected again when syslogd was restarted."""

    def __init__(self, path=SOCKET_OF_SYSLOG):
        self.path = path
        self.socket = None
        self._next_attempt = 0.0

    def open(self):
        """Connect again at the next message: syslogd may be started later."""
        self.close()
        self._next_attempt = 0.0

    def write(self, level, pid, seconds, text):
        """As StandardError.write()."""
        t = time.localtime(seconds)
        head = '<%d>%s %2d %02d:%02d:%02d targetd[%d]: ' % (
            syslog.LOG_DAEMON | PRIORITIES[level],
            MONTHS[t.tm_mon - 1],
            t.tm_mday,
            t.tm_hour,
            t.tm_min,
            t.tm_sec,
            pid,
        )
        message = head.encode('ascii') + text
        try:
            self._send(message)
        except BlockingIOError:
            raise
        except OSError:  # syslogd was restarted: its old socket is dead
            self.close()
            self._send(message)

    def _send(self, message):
        if self.socket is None:
            self._connect()
        is_stream = self.socket.type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) == 1
        _wait_writable(self.socket.fileno())
        self.socket.send(message + b'\0' if is_stream else message, socket.MSG_NOSIGNAL)

    def _connect(self):
        if time.monotonic() < self._next_attempt:
            raise OSError(errno.ENOTCONN, 'no syslogd answers at %s' % self.path)
        self._next_attempt = time.monotonic() + RECONNECT_SECONDS
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_UNIX, kind)
            try:
                sock.setblocking(False)
                sock.connect(self.path)
            except OSError as e:
                sock.close()
                if e.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                    raise
            else:
                self.socket = sock
                return

    def close(self):
        """Disconnect."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _wait_writable(descriptor):
    """Wait PATIENCE_MILLISECONDS until a write does not block. Raises BlockingIOError."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(PATIENCE_MILLISECONDS):
        raise BlockingIOError(errno.EAGAIN, 'the log is not read')


def open_log_file(path):
    """The descriptor of a log file, which is created if it does not exist. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return open_trusted(path, flags, 0o640)


def destination(where):
    """The destination that the setting `log` names: syslog, stderr or a path."""
    if where == 'syslog':
        return Syslog()
    return StandardError() if where == 'stderr' else LogFile(where)


def try_destination(where):
    """Raise OSError if the log cannot be written to this place. Changes nothing. It may block."""
    if where not in ('syslog', 'stderr'):
        is_new = not os.path.exists(where)
        os.close(open_log_file(where))
        if is_new:
            os.unlink(where)


# -- the process -----------------------------------------------------------------------------------


class _Writer(object):
    """The loop of the log writer. place: a destination; queue: read end of the pipe; control:
    socket."""

    def __init__(self, place, queue, control):
        self.place = place
        self.queue = queue
        self.control = control
        self._is_ending = False
        self._has_given_up = False  # the destination takes nothing, and the master is gone
        self._pending = b''
        self._lost = [0, '']  # lines that the destination refused, and why

    def run(self):
        """Write until the control socket or the queue is closed."""
        if not self._obey(self._open):
            return
        poll = select.poll()
        poll.register(self.queue, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        while not self._is_ending:
            ready = dict(poll.poll())
            if self.control.fileno() in ready:
                self._receive_order()
            elif not self._take():
                return
        while self._take():  # what is in the queue is written before the end
            pass

    def _receive_order(self):
        if not self.control.recv(64):
            self._is_ending = True
            return
        self._take()  # these lines belong to the old file
        self._obey(self._open)

    def _open(self):
        self.place.open()

    def _obey(self, action):
        """Do it and send the answer. Returns False if it failed."""
        failed = ''
        try:
            action()
        except OSError as e:
            failed = e.strerror or str(e)
        try:
            self.control.sendall(json.dumps({'failed': failed}).encode('ascii') + b'\n')
        except OSError:  # the master is gone
            self._is_ending = True
        return not failed

    def _take(self):
        """Write what is in the queue now. Returns False if there was nothing, or the queue is
        closed."""
        try:
            data = os.read(self.queue, QUEUE_BYTES)
        except BlockingIOError:
            return not self._is_ending
        if not data:
            return False
        *records, self._pending = (self._pending + data).split(b'\n')
        for record in records:
            level, pid, seconds, text = record.split(b' ', 3)
            self._write(int(level), int(pid), int(seconds), text)
        return True

    def _write(self, level, pid, seconds, text):
        if self._has_given_up:
            return
        if self._lost[0]:
            note = '%d messages suppressed, because the log could not be written: %s' % tuple(
                self._lost
            )
            if not self._try(log.WARNING, os.getppid(), seconds, note.encode('utf-8', 'replace')):
                self._lost[0] += 1
                return
            self._lost[0] = 0
        if not self._try(level, pid, seconds, text):
            self._lost[0] += 1

    def _try(self, level, pid, seconds, text):
        """Returns False if the destination refuses the line. Waits as long as it is only slow."""
        while True:
            try:
                self.place.write(level, pid, seconds, text)
                return True
            except BlockingIOError:
                if self._master_is_gone():
                    self._has_given_up = True
                    return False
            except OSError as e:
                self._lost[1] = e.strerror or str(e)
                return False

    def _master_is_gone(self):
        """True if the control socket is closed. An order is left in it."""
        try:
            return self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b''
        except BlockingIOError:
            return False
        except OSError:
            return True


def _run_in_child(where, queue, control):
    """[the log writer] Never returns."""
    child.name_process('targetd-log')
    child.close_descriptors({0, 1, 2, queue, control.fileno()})
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if where == 'stderr' else (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.set_blocking(queue, False)
    _Writer(destination(where), queue, control).run()
    os._exit(0)


class LogWriter(object):
    """The log writer, as the master sees it. where: the setting `log`; fork: os.fork, or a substitute
    of a test; adopted: (pid, descriptor of the queue, of the control socket) of a log writer that the
    program has started that this one replaces (ARCHITECTURE D24). Raises OSError if it cannot be
    started."""

    def __init__(self, where, fork=os.fork, adopted=None):
        self.where = where
        self._received = b''
        if adopted is not None:
            self.pid, self.queue, control = adopted
            self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, control)
            self.control.setblocking(False)
            return
        reading, self.queue = os.pipe()
        self.control, theirs = socket.socketpair()
        try:
            self.pid = child.fork(fork, lambda: _run_in_child(where, reading, theirs))
        except OSError:
            os.close(self.queue)
            self.control.close()
            raise
        finally:
            os.close(reading)
            theirs.close()
        self.control.setblocking(False)
        os.set_blocking(self.queue, False)
        try:
            fcntl.fcntl(self.queue, F_SETPIPE_SZ, QUEUE_BYTES)
        except OSError:  # the limit of the user: the queue is smaller
            pass

    def wait_started(self, seconds=START_SECONDS):
        """Wait until the destination is open. Raises OSError if that failed or takes too long."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        end = time.monotonic() + seconds
        while True:
            poll.poll(max(0.0, end - time.monotonic()) * 1000)
            failed = self.answer()
            if failed is None and time.monotonic() >= end:
                failed = 'there was no answer within %d seconds' % seconds
            if failed:
                self.kill()
                raise OSError(errno.EIO, failed)
            if failed == '':
                return

    def use(self):
        """Log through this writer from now on."""
        log.start_queue(self.queue, self.finish)

    def order_reopen(self):
        """Have the file opened again. The answer comes later."""
        try:
            self.control.send(b'reopen')
        except OSError:  # it is dead; the master starts another one
            pass

    def answer(self):
        """The answer that has arrived: '' or a complaint. None if there is none yet."""
        try:
            data = self.control.recv(4096)
        except BlockingIOError:
            return None
        except OSError as e:
            return e.strerror
        if not data:
            return 'the log writer died'
        self._received += data
        line, newline, rest = self._received.partition(b'\n')
        if not newline:
            return None
        self._received = rest
        return json.loads(line.decode('ascii'))['failed']

    def release(self):
        """It writes what is in the queue and ends; it is reaped by has_ended()."""
        if self.queue is not None:
            os.close(self.queue)
            self.control.close()
            self.queue = None

    def has_ended(self):
        """Reap the process. Returns True if it is gone."""
        if self.pid is not None:
            try:
                if not os.waitpid(self.pid, os.WNOHANG)[0]:
                    return False
            except ChildProcessError:
                pass
            self.pid = None
        return True

    def finish(self, seconds=FINISH_SECONDS):
        """Release it and wait until the queue is written, at most so long."""
        self.release()
        end = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > end:
                self.kill()
                return
            time.sleep(0.002)

    def kill(self):
        """End it now. A process that waits for a dead file system ends when that answers."""
        self.release()
        if self.pid is not None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.has_ended()


__all__ = ('LogWriter', 'open_log_file', 'try_destination')
