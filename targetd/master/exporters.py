"""The processes that publish the state: one that answers HTTP (`metrics`), as an unprivileged user, and one
that writes files (`metrics-file`, `status-file`). Each is a separate program (admin.exporter) with a
connection on which it may only read the state; the master parses no HTTP, and waits for neither of them.
"""

import os
import signal
import socket
import sys
import time

import targetd
from targetd import log
from targetd.errors import PortalError
from targetd.master import service_notices
from targetd.master.logins.portals import open_portal
from targetd.master.processes import child

RETRY_SECONDS = 10.0
END_SECONDS = 1.0
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(targetd.__file__)))


class Exporters(object):
    """loop: Loop; control: Control; credentials(): of the unprivileged user, or None; fork: os.fork, or a
    substitute of a test."""

    def __init__(self, loop, control, credentials, fork=os.fork):
        self._loop = loop
        self._control = control
        self._credentials = credentials
        self._fork = fork
        self._wanted = {}  # name -> settings
        self._running = {}  # name -> pid
        self._links = {}  # name -> our socket, whose end ends the process
        self._ending = set()
        self._is_closed = False

    def apply(self, server):
        """Start what the [server] section wants, and end what it does not want any more."""
        wanted = {}
        if server.metrics:
            wanted['http'] = server.metrics
        if server.metrics_file or server.status_file:
            wanted['files'] = server.metrics_file, server.status_file
        for name in list(self._running):
            if wanted.get(name) != self._wanted.get(name):
                self._end(name)
        self._wanted = wanted
        for name in wanted:
            self._start(name)

    def _start(self, name):
        if name in self._running or name not in self._wanted or self._is_closed:
            return
        try:
            self._run(name, self._wanted[name])
        except (PortalError, OSError) as e:
            log.error('the state is not published (%s): %s', name, e)
            self._retry(name)

    def _retry(self, name):
        self._loop.call_later(RETRY_SECONDS, lambda: self._start(name))

    def _run(self, name, settings):
        listeners, arguments = [], []
        ours, theirs = socket.socketpair()
        try:
            if name == 'http':
                listeners = [open_portal(address, port) for address, port in settings]
                for listener in listeners:
                    arguments += ['--listen', str(listener.fileno())]
                credentials = self._credentials()
                if os.geteuid() == 0 and credentials and credentials[0]:
                    arguments += ['--user', '%d:%d' % credentials[:2]]
            else:
                for option, path in zip(('--metrics-file', '--status-file'), settings):
                    arguments += [option, path] if path else []
            kept = [theirs.fileno()] + [listener.fileno() for listener in listeners]
            arguments = ['--control', str(theirs.fileno())] + arguments
            pid = child.fork(self._fork, lambda: _become_exporter(kept, arguments))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for listener in listeners:
                listener.close()
        self._running[name] = pid
        self._links[name] = ours
        self._control.adopt(ours)

    def _end(self, name):
        self._ending.add(self._running.pop(name))
        self._control.forget(self._links.pop(name))

    def reap(self):
        """Reap the processes that have exited. Call after SIGCHLD."""
        for pid in list(self._ending):
            if _has_exited(pid):
                self._ending.discard(pid)
        for name, pid in list(self._running.items()):
            if _has_exited(pid):
                del self._running[name]
                self._control.forget(self._links.pop(name))
                log.warning('the process that publishes the state (%s) ended; trying again', name)
                self._retry(name)

    def close(self):
        """End all processes."""
        self._is_closed = True
        for name in list(self._running):
            self._end(name)

    def stop_and_wait(self):
        """End all processes, and wait a moment for them: another program takes the place of this one."""
        for name in list(self._running):
            self._end(name)
        until = time.monotonic() + END_SECONDS
        while self._ending and time.monotonic() < until:
            self.reap()
            time.sleep(0.01)
        for pid in self._ending:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._ending.clear()

    def resume(self):
        """Start again what stop_and_wait() has ended."""
        for name in list(self._wanted):
            self._start(name)


def _has_exited(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _become_exporter(kept, arguments):
    """In the child: keep these descriptors, and execute the program."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    child.close_descriptors({0, 1, 2} | set(kept))
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    environment = dict(service_notices.of_children(), PYTHONPATH=_ROOT)
    command = [sys.executable, '-s', '-m', 'targetd.admin.exporter'] + arguments
    os.chdir('/')
    os.execve(sys.executable, command, environment)
