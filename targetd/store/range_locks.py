"""Locks on byte ranges between all threads of all processes that have the lock file.

Imports compat, linux. They are locks of open file descriptions: each command uses a separate
description while it runs, so two threads exclude each other like two processes. A description that
only one process has is closed with the process, which releases its locks; one that another process
has too keeps them. The lock file is not read or written: the ranges only use the same offsets as
the medium.

There is no deadlock: a command has one range at a time, or takes several in ascending order of
medium and offset (LockedRanges). No wait exceeds LOCK_SECONDS. A waiting writer locks a gate, the
same range at a high offset, which readers check first; so a stream of readers cannot block a
writer.
"""

import errno
import os
import time
from typing import Any, Iterable, List, Tuple

from .. import compat
from . import linux

#: Less than the time in which a worker must report to the master that an aborted command has ended.
LOCK_SECONDS = 8.0
GATE = 1 << 62
# seconds between two tries; the last value repeats
PAUSES = (0.0002, 0.0005, 0.001, 0.002, 0.005)


def unsupported_reason(descriptor: int) -> str:
    """Returns why ranges cannot be locked on this file, or ''."""
    one = two = None
    try:
        one, two = linux.reopen(descriptor), linux.reopen(descriptor)
        if (
            compat.try_lock(one, True, 0, 1)
            and not compat.try_lock(two, False, 0, 1)
            and compat.is_locked(two, 0, 1)
        ):
            return ''
        return 'its file system does not separate locks of open file descriptions'
    except OSError as e:
        if e.errno == errno.EINVAL:
            return (
                'this kernel has no locks of open file descriptions (they need Linux 3.15 or later)'
            )
        return e.strerror or str(e)
    finally:
        for opened in (one, two):
            if opened is not None:
                os.close(opened)


def deadline() -> float:
    """Returns the time (time.monotonic) until which a command that starts now waits for its ranges."""
    return time.monotonic() + LOCK_SECONDS


def lock_range(descriptor: int, is_exclusive: bool, offset: int, length: int, end: float) -> None:
    """Wait until this description has locked the range, at most until `end`. Raises
    OSError(ETIMEDOUT)."""
    tries = 0
    is_at_gate = False
    while not (
        try_lock_shared(descriptor, offset, length)
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


def try_lock_shared(descriptor: int, offset: int, length: int) -> bool:
    """Lock the range for reading if that is possible without waiting; returns True on success.
    Raises OSError."""
    return not compat.is_locked(descriptor, GATE + offset, length) and compat.try_lock(
        descriptor, False, offset, length
    )


class RangeLocks(object):
    """The range locks of one medium in this process. descriptor: of the lock file, not owned by
    this object. [any]"""

    def __init__(self, descriptor: int) -> None:
        self._origin = descriptor
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        # Reopening now shows a missing permission at the start, and not during a command.
        self._idle = [linux.reopen(descriptor)]
        self._is_closed = False

    def get_description(self) -> int:
        """Returns a descriptor of a description without locks, for one command. Raises OSError."""
        try:
            return self._idle.pop()
        except IndexError:
            return linux.reopen(self._origin)

    def return_description(self, descriptor: int) -> None:
        """Unlock everything that the command has locked and keep the description for the next one."""
        compat.unlock(descriptor)
        if self._is_closed:
            os.close(descriptor)
        else:
            self._idle.append(descriptor)

    def close(self) -> None:
        """Close the descriptions. A command that still runs closes its description when it returns
        it."""
        self._is_closed = True
        while self._idle:
            os.close(self._idle.pop())


class LockedRanges(object):
    """Context manager that locks several ranges, each (RangeLocks, is exclusive, offset, length).
    Entering it returns `value`.

    Entering it raises OSError if a range cannot be locked; no range is locked then.
    """

    __slots__ = ('_wanted', '_value', '_taken')

    def __init__(self, value: Any, wanted: Iterable[Tuple[RangeLocks, bool, int, int]]) -> None:
        self._wanted = sorted(wanted, key=lambda each: (each[0].identity, each[2]))
        self._value = value
        self._taken: List[Tuple[RangeLocks, int]] = []

    def __enter__(self) -> Any:
        end = deadline()
        try:
            for locks, is_exclusive, offset, length in self._wanted:
                descriptor = locks.get_description()
                self._taken.append((locks, descriptor))
                lock_range(descriptor, is_exclusive, offset, max(1, length), end)
        except BaseException:
            self.__exit__()
            raise
        return self._value

    def __exit__(self, *failure):
        while self._taken:
            locks, descriptor = self._taken.pop()
            locks.return_description(descriptor)
