"""Locks on ranges of bytes, which every thread of every process that has the lock file respects.

Imports base, compat. They are locks of open file descriptions: each command has a description of
its own while it works, so that two threads are told apart like two processes, and nobody else need
keep count. A description that a process alone has goes with it, and its locks go too; one that
another process has as well keeps them. The lock file's bytes are not touched: range and file only
share numbers.

No deadlock: one command has one range at a time, or takes several in ascending order of medium and
offset (Held). No endless wait: LOCK_SECONDS. Writers that wait stand at a gate, the same range far
up, which readers look at first: a stream of readers cannot keep a writer out.
"""

import errno
import os
import time

from .. import compat

#: Less than the master gives a worker to acknowledge that an aborted command is at its end.
LOCK_SECONDS = 8.0
GATE = 1 << 62
# seconds between two tries; the last again and again
PAUSES = (0.0002, 0.0005, 0.001, 0.002, 0.005)


def another(descriptor):
    """A further open file description of the same file, for reading and writing. Raises OSError."""
    return os.open('/proc/self/fd/%d' % descriptor, os.O_RDWR | os.O_CLOEXEC)


def why_not(descriptor):
    """Why ranges cannot be locked on this file, or ''."""
    one = two = None
    try:
        one, two = another(descriptor), another(descriptor)
        if (
            compat.try_lock(one, True, 0, 1)
            and not compat.try_lock(two, False, 0, 1)
            and compat.is_locked(two, 0, 1)
        ):
            return ''
        return 'its file system does not keep locks apart'
    except OSError as e:
        if e.errno == errno.EINVAL:
            return (
                'this kernel has no locks of open file descriptions, which Linux has had since 3.15'
            )
        return e.strerror
    finally:
        for descriptor in (one, two):
            if descriptor is not None:
                os.close(descriptor)


def deadline():
    """Until when a command that begins now waits for its ranges."""
    return time.monotonic() + LOCK_SECONDS


def take(descriptor, is_exclusive, offset, length, end):
    """Wait until this description has the range, but not beyond `end`. Raises OSError(ETIMEDOUT)."""
    tries = 0
    is_at_gate = False
    while not (
        try_shared(descriptor, offset, length)
        if not is_exclusive
        else compat.try_lock(descriptor, True, offset, length)
    ):
        if is_exclusive and not is_at_gate:
            is_at_gate = compat.try_lock(descriptor, True, GATE + offset, length)
        if time.monotonic() >= end:
            compat.unlock(descriptor)
            raise OSError(
                errno.ETIMEDOUT,
                'bytes %d..%d are locked by another command' % (offset, offset + length),
            )
        time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
        tries += 1


def try_shared(descriptor, offset, length):
    """True if this description could have the range at once, beside other readers. Raises OSError."""
    return not compat.is_locked(descriptor, GATE + offset, length) and compat.try_lock(
        descriptor, False, offset, length
    )


class Ranges(object):
    """The ranges of one medium, for this process. descriptor: of the lock file, which this does not
    own. Any thread."""

    def __init__(self, descriptor):
        self._origin = descriptor
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        # what this process may not do it shall not find out in a command
        self._idle = [another(descriptor)]
        self._is_closed = False

    def get(self):
        """A description without locks, for one command. Raises OSError."""
        try:
            return self._idle.pop()
        except IndexError:
            return another(self._origin)

    def give_back(self, descriptor):
        """The command is done: nothing is locked by it any more."""
        compat.unlock(descriptor)
        if self._is_closed:
            os.close(descriptor)
        else:
            self._idle.append(descriptor)

    def close(self):
        """Nobody is to ask any more; who is still at it gives back in vain."""
        self._is_closed = True
        while self._idle:
            os.close(self._idle.pop())


class Held(object):
    """A context manager: these ranges, each (Ranges, is exclusive, offset, length), are held
    inside; `value` is what it gives.

    Raises OSError, then nothing is held."""

    __slots__ = ('_wanted', '_value', '_taken')

    def __init__(self, value, wanted):
        self._wanted = sorted(wanted, key=lambda each: (each[0].identity, each[2]))
        self._value = value
        self._taken = []

    def __enter__(self):
        end = deadline()
        try:
            for ranges, is_exclusive, offset, length in self._wanted:
                descriptor = ranges.get()
                self._taken.append((ranges, descriptor))
                take(descriptor, is_exclusive, offset, max(1, length), end)
        except BaseException:
            self.__exit__()
            raise
        return self._value

    def __exit__(self, *failure):
        while self._taken:
            ranges, descriptor = self._taken.pop()
            ranges.give_back(descriptor)
