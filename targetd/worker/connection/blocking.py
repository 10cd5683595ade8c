"""Calls in which a connection's thread may block although they usually take little time.

    the thread: call() -----------------> returns in time, the thread continues
                  |
                  +--the call takes long, take_over()--> another thread serves the connection;
                                                         the first one ends when its call has returned

So a medium that stops answering delays the session's pings, task management and other LUNs once, and
for a short time only. Imports nothing of targetd.
"""

import socket
import threading
from time import monotonic


def has_received(sock):
    """Return True if there is more to receive, or the connection has ended. [connection]"""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:  # the next receive reports it
        return True
    return True


class TakenOver(Exception):
    """Another thread has become the thread of the connection while this one was in a call."""


class Blocking(object):
    """The calls of one connection's thread. start(): has another thread serve the connection; None
    while that is not possible."""

    def __init__(self):
        self.start = None
        self._lock = threading.Lock()  # guards the rest
        self._thread = None  # the thread of the connection
        self._call = None  # [when the call began]

    def begin(self):
        """The calling thread is the thread of the connection from now on. [connection]"""
        self._thread = threading.get_ident()

    def is_in_charge(self):
        """Return False in a thread from which another one has taken over the connection. [any]"""
        return self._thread == threading.get_ident()

    def call(self, function, argument):
        """Call function(argument). Raises TakenOver. [connection, without `working`]"""
        mine = self._call = [monotonic()]
        function(argument)
        with self._lock:
            if self._call is not mine:
                raise TakenOver
            self._call = None

    def take_over(self, before):
        """If the thread is in a call that began before this monotonic time, have another thread
        serve the connection. [any]"""
        with self._lock:
            if self._call is None or self._call[0] > before:
                return
            self._call = self._thread = None
        self.start()
