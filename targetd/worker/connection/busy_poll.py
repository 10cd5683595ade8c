"""Waiting for the next commands without going to sleep, for an initiator that has few on their way.

Between two commands of depth 1 both sides sleep, and waking takes far longer than the command
itself. So a connection that got few PDUs at once asks for the next a little while before it sleeps.
That costs processor time which others may want; so it is done only while it pays: not on one
processor, not after it was in vain, not while others had to wait for the processor.
"""

import os
import socket
from time import perf_counter

#: A batch of more PDUs is not waited for: by the time it was acted upon the next has usually come.
FEW = 8

_NOW = socket.MSG_DONTWAIT

#: In vain so often in a row, and it is left alone for a number of receives; for the most after
#: repeated failure.
_CREDIT = 4
_PAUSE, _LONGEST_PAUSE = 64, 4096
#: A poll that took this long beyond its end was interrupted: somebody else needs the processor.
_INTERRUPTED_SECONDS = 0.0005


def processors():
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def polling(seconds):
    """A Polling, or None where it could not pay."""
    return Polling(seconds) if seconds and processors() > 1 else None


class Polling(object):
    """Of one connection, in its thread alone. seconds: how long to ask before sleeping."""

    __slots__ = ('_seconds', '_credit', '_pause', '_clock')

    def __init__(self, seconds, clock=perf_counter):
        self._seconds = seconds
        self._credit = 0  # below zero: so many receives to come just sleep
        self._pause = _PAUSE
        self._clock = clock

    def receive(self, receive_into, view):
        """receive_into(view) of a blocking socket: the same count, the same errors. Hot where few
        commands are on their way."""
        if self._credit < 0:
            self._credit += 1
            return receive_into(view)
        clock = self._clock
        now = clock()
        end = now + self._seconds
        looked = False
        while now < end:
            try:
                count = receive_into(view, 0, _NOW)
            except BlockingIOError:
                if not looked:
                    looked = True
                    os.sched_yield()  # the initiator may be waiting for this very processor
                now = clock()
                continue
            if self._credit < _CREDIT:
                self._credit += 1
                self._pause = _PAUSE
            return count
        self._in_vain(now - end > _INTERRUPTED_SECONDS)
        return receive_into(view)

    def _in_vain(self, interrupted):
        if self._credit and not interrupted:
            self._credit -= 1
            return
        self._credit = -self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
