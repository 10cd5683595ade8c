"""What the master tells systemd (sd_notify(3)): a line of text to the socket NOTIFY_SOCKET. Without that
variable nothing is sent."""

import os
import socket
import time

STATUS_SECONDS = 10.0


#: For the master only: an upgrade keeps them, a program that the master starts does not get them.
VARIABLES = ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')


def of_children():
    """The environment of the programs that the master starts."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


class ServiceNotices(object):
    """environment: os.environ, or a substitute of a test; status(): one line for `systemctl status`."""

    def __init__(self, loop, status, environment=os.environ):
        self._loop = loop
        self._status = status
        self._address = environment.get('NOTIFY_SOCKET', '')
        microseconds = environment.get('WATCHDOG_USEC', '')
        pid = environment.get('WATCHDOG_PID', str(os.getpid()))
        self._interval = STATUS_SECONDS
        self._has_watchdog = microseconds.isdigit() and pid == str(os.getpid())
        if self._has_watchdog:
            self._interval = min(STATUS_SECONDS, int(microseconds) / 2e6)
        self._reloads = 0

    def ready(self):
        """The server serves."""
        if self._address:
            self._send('READY=1', 'STATUS=' + self._status())
            self._loop.call_later(self._interval, self._repeat)

    def reload_began(self, done):
        """A reload has begun: returns the function to call at its end, which calls done."""
        if not self._address:
            return done
        self._reloads += 1
        self._send('RELOADING=1', 'MONOTONIC_USEC=%d' % (time.monotonic() * 1e6))

        def reload_over(*arguments):
            self._reloads -= 1
            if not self._reloads:
                self._send('READY=1', 'STATUS=' + self._status())
            done(*arguments)

        return reload_over

    def stopping(self):
        """The ordered stop has begun."""
        self._send('STOPPING=1', 'STATUS=asking the initiators to log out')

    def _repeat(self):
        lines = ['WATCHDOG=1'] if self._has_watchdog else []
        self._send(*(lines + ['STATUS=' + self._status()]))
        self._loop.call_later(self._interval, self._repeat)

    def _send(self, *lines):
        if not self._address:
            return
        address = self._address
        if address.startswith('@'):
            address = '\0' + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto('\n'.join(lines).encode('utf-8'), address)
        except OSError:  # the manager is gone or busy; the next line comes soon
            pass
