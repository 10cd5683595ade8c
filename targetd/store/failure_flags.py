"""Which media have lost data, in memory that all processes of the server share: some bytes for each
medium.

Imports compat. Linux reports a failed write-back once to each open file description, and kernels
before 4.13 once for each file. The process that gets the error sets the medium's flag, and every
process looks at the flag after each flush of its own. So a process to which the kernel does not report it
(its description was opened later, or it shares one) fails too. The memory exists before the first
fork, because it is made when this module is imported.

A process that is killed within fdatasync takes the error with it. A description that was opened
earlier still has it: the medium is *in doubt*, and no flush of another process succeeds, until the
master has flushed through its own. Among processes that share a description nothing else would have
it, so the next one counts a flush that has no end as failed.
"""

import errno
import fcntl
import mmap
import os
import time
from typing import FrozenSet, Tuple

from .. import compat
from .base import failure, wait_for_lock

#: Numbers are given out in turn, so a process of a unit that is gone does not meet a new unit's flag.
COUNT = 1 << 16
NO_FLAG = 0  # the number of a store that other processes do not use

#: Byte of the medium that sync_in_turn() locks; no medium has so many bytes.
TURN = (1 << 62) + (1 << 61)

#: Errors of fdatasync that do not mean a loss of data.
HARMLESS = frozenset([errno.EBADF, errno.EINVAL, errno.EROFS])

#: A flush looks at this interval whether its medium is still in doubt.
DOUBT_SECONDS = 0.01

#: Offsets in the memory: 1 if data of the medium is lost, if it is in doubt, and if the process whose
#: turn it is flushes.
_LOST, _DOUBT, _FLUSHING = 0, COUNT, 2 * COUNT
_SIZE = 3 * COUNT

_descriptor = compat.memory_file('targetd-flags', _SIZE)
_memory = mmap.mmap(_descriptor, _SIZE)
_given_out = 0


def new_flag() -> int:
    """Returns the number of a flag that is not set."""
    global _given_out
    number = 1 + _given_out % (COUNT - 1)
    _given_out += 1
    for kind in (_LOST, _DOUBT, _FLUSHING):
        _memory[kind + number] = 0
    return number


def handed_over() -> Tuple[int, int]:
    """Returns (descriptor of the memory, how many flags were given out), for the program that takes over
    (ARCHITECTURE D24)."""
    return _descriptor, _given_out


def take_over(descriptor: int, given_out: int) -> None:
    """Use the memory of the program that this one replaces; its worker processes look at it, too."""
    global _descriptor, _memory, _given_out
    if os.fstat(descriptor).st_size < _SIZE:  # of an earlier version
        os.ftruncate(descriptor, _SIZE)
    _memory = mmap.mmap(descriptor, _SIZE)
    os.close(_descriptor)
    _descriptor, _given_out = descriptor, given_out


def set_flag(number: int) -> None:
    """Data of this medium is lost."""
    if number != NO_FLAG:
        _memory[number] = 1


def is_set(number: int) -> bool:
    """Returns True if data of this medium is lost."""
    return _memory[number] != 0


def set_doubt(number: int, is_in_doubt: bool) -> None:
    """A process was killed that may have flushed this medium; or this is over."""
    if number != NO_FLAG:
        _memory[_DOUBT + number] = is_in_doubt


def is_in_doubt(number: int) -> bool:
    """Returns True if an error of this medium may have been reported to a process that is dead."""
    return _memory[_DOUBT + number] != 0


def sync(
    descriptor: int,
    number: int,
    is_shared: bool,
    ends_doubt: bool = False,
    harmless: FrozenSet[int] = HARMLESS,
) -> None:
    """Make durable what any process wrote to the medium; set the flag if that fails. Raises OSError,
    also if the flag was set by another process.

    is_shared: other processes flush through the same open file description, so the kernel would
    report an error to one of them only: they take turns. ends_doubt: this is the flush for which the
    others wait while the medium is in doubt. harmless: errnos that do not mean a loss of data.
    """
    if is_shared or not compat.HAS_ERROR_PER_DESCRIPTION:
        _sync_in_turn(descriptor, number, harmless)
    else:
        _sync(descriptor, number, harmless)
    while is_in_doubt(number) and not (ends_doubt or is_set(number)):
        time.sleep(DOUBT_SECONDS)
    if is_set(number):
        raise failure(errno.EIO)  # errno is not harmless: the caller's store has lost data, too


def _sync(descriptor, number, harmless):
    try:
        os.fdatasync(descriptor)
    except OSError as e:
        if e.errno not in harmless:
            set_flag(number)
        raise


def _sync_in_turn(descriptor, number, harmless):
    """The lock is a POSIX lock, because it must exclude processes that share one file description."""
    wait_for_lock(descriptor, 1, TURN)
    try:
        if _memory[_FLUSHING + number]:  # the process whose turn it was died, and its error with it
            set_flag(number)
        if number != NO_FLAG:
            _memory[_FLUSHING + number] = 1
        _sync(descriptor, number, harmless)
        _memory[_FLUSHING + number] = 0
    except OSError:
        _memory[_FLUSHING + number] = 0
        raise
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, TURN, os.SEEK_SET)
