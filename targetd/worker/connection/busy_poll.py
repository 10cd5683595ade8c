"""Busy polling of the socket for an initiator that has few commands outstanding.

At queue depth 1 both sides sleep between two commands, and waking up takes far longer than the
command itself. So a connection whose last batch had few PDUs polls its socket for a short time
before it blocks in recv(). Polling uses CPU time that other processes may need. It is disabled on
single-CPU hosts, pauses after it did not help, and pauses while other processes need the CPU.
"""

import os
import socket
from time import perf_counter

#: After a batch of more PDUs the connection does not poll: the next batch has usually arrived by the
#: time that this one is finished.
FEW = 8

_NOW = socket.MSG_DONTWAIT

#: After so many polls in a row that found nothing, a number of receives are done without polling.
#: The number doubles with each further failure, up to the longest pause.
_CREDIT = 4
_PAUSE, _LONGEST_PAUSE = 64, 4096
#: A connection does its first receives without polling: many sessions have a few commands in all.
_FIRST = 8
#: A poll that ended this much too late was interrupted: another process needs the CPU.
_INTERRUPTED_SECONDS = 0.0005


def usable_cpus():
    """Return the number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def busy_poll(seconds):
    """Return a BusyPoll, or None if polling is off or could not help."""
    return BusyPoll(seconds) if seconds and usable_cpus() > 1 else None


class BusyPoll(object):
    """Busy polling of one connection; used only in its thread. seconds: how long to poll before
    recv() blocks."""

    __slots__ = ('_seconds', '_credit', '_pause', '_clock')

    def __init__(self, seconds, clock=perf_counter):
        self._seconds = seconds
        self._credit = -_FIRST  # below zero: the number of receives to come without polling
        self._pause = _PAUSE
        self._clock = clock

    def receive(self, receive_into, view):
        """Poll, then call receive_into(view) of a blocking socket; returns its count and raises its
        errors. Hot while few commands are outstanding."""
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
                    os.sched_yield()  # the initiator may be waiting for this CPU
                now = clock()
                continue
            if self._credit < _CREDIT:
                self._credit += 1
                self._pause = _PAUSE
            return count
        self._poll_failed(now - end > _INTERRUPTED_SECONDS)
        return receive_into(view)

    def _poll_failed(self, interrupted):
        if self._credit and not interrupted:
            self._credit -= 1
            return
        self._credit = -self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
