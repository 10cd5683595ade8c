"""The sense data for an OSError of a store: one row per errno. Pure.

Initiators retry after sense key 0B, but not after 03 and 04. After 07/27/07 a thin-provisioning
client frees space (and Windows takes the disk offline); 02/3A means that the medium was removed.
"""

import errno
from typing import Optional

from targetd.scsi.sense import (
    ABORTED_COMMAND,
    DATA_PROTECT,
    HARDWARE_ERROR,
    MEDIUM_ERROR,
    NOT_READY,
    CheckCondition,
)

UNRECOVERED_READ = (MEDIUM_ERROR, 0x11, 0x00)
WRITE_ERROR = (MEDIUM_ERROR, 0x0C, 0x00)
# ID CRC OR ECC ERROR: the data can be read and is known to be wrong
CORRUPTED = (MEDIUM_ERROR, 0x10, 0x00)
UNIT_FAILURE = (HARDWARE_ERROR, 0x3E, 0x01)
COMMUNICATION = (HARDWARE_ERROR, 0x08, 0x00)
INTERNAL = (HARDWARE_ERROR, 0x44, 0x00)
TIMEOUT = (ABORTED_COMMAND, 0x3E, 0x02)
NO_RESOURCES = (ABORTED_COMMAND, 0x55, 0x03)
SPACE = (DATA_PROTECT, 0x27, 0x07)
PROTECTED = (DATA_PROTECT, 0x27, 0x00)
NO_MEDIUM = (NOT_READY, 0x3A, 0x00)
# ASYMMETRIC ACCESS STATE TRANSITION: initiators repeat the command, on another path if they have one
TRANSITION = (NOT_READY, 0x04, 0x0A)
#: The errno of a disk that another server has taken over (store.fenced).
FENCED = errno.EKEYREVOKED

#: {errno: (sense of a read, sense of a write)}; every other errno is INTERNAL.
# fmt: off
ROWS = {
    errno.EIO: (UNRECOVERED_READ, WRITE_ERROR),
    errno.ENODATA: (UNRECOVERED_READ, WRITE_ERROR),        # the kernel: medium error of a disk
    errno.EILSEQ: (CORRUPTED, CORRUPTED),                  # the kernel: protection information does not match
    errno.EBADMSG: (CORRUPTED, CORRUPTED),                 # a file system: wrong checksum
    errno.EUCLEAN: (CORRUPTED, CORRUPTED),
    errno.EREMOTEIO: (INTERNAL, INTERNAL),                 # the disk itself refused the command
    errno.ENOLINK: (COMMUNICATION, COMMUNICATION),         # no path to the disk
    errno.ETIMEDOUT: (TIMEOUT, TIMEOUT),
    errno.EAGAIN: (NO_RESOURCES, NO_RESOURCES),
    errno.EBUSY: (NO_RESOURCES, NO_RESOURCES),
    errno.ENOMEM: (NO_RESOURCES, NO_RESOURCES),
    errno.ENOBUFS: (NO_RESOURCES, NO_RESOURCES),
    errno.ENOLCK: (NO_RESOURCES, NO_RESOURCES),
    errno.EINTR: (NO_RESOURCES, NO_RESOURCES),
    errno.ENXIO: (UNIT_FAILURE, UNIT_FAILURE),
    errno.ENODEV: (UNIT_FAILURE, UNIT_FAILURE),
    errno.ESTALE: (UNIT_FAILURE, UNIT_FAILURE),
    errno.ESHUTDOWN: (UNIT_FAILURE, UNIT_FAILURE),
    errno.EBADF: (UNIT_FAILURE, UNIT_FAILURE),             # the store was closed during the command
    errno.ENOMEDIUM: (NO_MEDIUM, NO_MEDIUM),
    errno.ENOSPC: (INTERNAL, SPACE),
    errno.EDQUOT: (INTERNAL, SPACE),
    errno.EFBIG: (INTERNAL, SPACE),                        # the file may not become so long
    errno.EROFS: (PROTECTED, PROTECTED),
    errno.EPERM: (PROTECTED, PROTECTED),
    errno.EACCES: (PROTECTED, PROTECTED),
    FENCED: (TRANSITION, TRANSITION),
}
# fmt: on

#: Errors of a range whose bad block can be located by reading block by block.
LOCALIZED = frozenset((errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN))


def read_failure(error: OSError, lba: Optional[int] = None) -> CheckCondition:
    """The CheckCondition for a read that ended with this OSError. lba: the first block that cannot
    be read, or None if it is not known."""
    return _condition(error, 0, lba)


def write_failure(error: OSError, lba: Optional[int] = None) -> CheckCondition:
    """The same for a write, a flush or an unmap."""
    return _condition(error, 1, lba)


def _condition(error: OSError, column: int, lba: Optional[int]) -> CheckCondition:
    key, asc, ascq = ROWS.get(error.errno or 0, (INTERNAL, INTERNAL))[column]
    return CheckCondition(key, asc, ascq, information=lba)
