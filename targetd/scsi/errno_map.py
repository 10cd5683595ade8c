"""What an OSError from a store means to the initiator: one row per errno. Pure.

The texts that initiators act on: 0B is retried, 03 and 04 are not; 07/27/07 tells a
thin-provisioning client to free space (and Windows to take the disk offline); 02/3A tells it that
the medium is gone.
"""

import errno

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
# ID CRC or ECC error: the data is there and is known to be wrong
CORRUPTED = (MEDIUM_ERROR, 0x10, 0x00)
UNIT_FAILURE = (HARDWARE_ERROR, 0x3E, 0x01)
COMMUNICATION = (HARDWARE_ERROR, 0x08, 0x00)
INTERNAL = (HARDWARE_ERROR, 0x44, 0x00)
TIMEOUT = (ABORTED_COMMAND, 0x3E, 0x02)
NO_RESOURCES = (ABORTED_COMMAND, 0x55, 0x03)
SPACE = (DATA_PROTECT, 0x27, 0x07)
PROTECTED = (DATA_PROTECT, 0x27, 0x00)
NO_MEDIUM = (NOT_READY, 0x3A, 0x00)

#: errno -> (sense of a read, sense of a write); what is not here is INTERNAL.
# fmt: off
ROWS = {
    errno.EIO: (UNRECOVERED_READ, WRITE_ERROR),
    # the kernel's word for a medium error of a disk
    errno.ENODATA: (UNRECOVERED_READ, WRITE_ERROR),
    errno.EILSEQ: (CORRUPTED, CORRUPTED),                  # the kernel's word for a failed protection check
    errno.EBADMSG: (CORRUPTED, CORRUPTED),                 # a file system's word for a bad checksum
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
    errno.EBADF: (UNIT_FAILURE, UNIT_FAILURE),             # the store was closed under the command
    errno.ENOMEDIUM: (NO_MEDIUM, NO_MEDIUM),
    errno.ENOSPC: (INTERNAL, SPACE),
    errno.EDQUOT: (INTERNAL, SPACE),
    errno.EFBIG: (INTERNAL, SPACE),                        # the file may not grow to there
    errno.EROFS: (PROTECTED, PROTECTED),
    errno.EPERM: (PROTECTED, PROTECTED),
    errno.EACCES: (PROTECTED, PROTECTED),
}
# fmt: on

#: Where asking again block by block can tell which one is bad.
LOCALIZED = frozenset((errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN))


def read_failure(error, lba=None):
    """The CheckCondition for a read that ended with this OSError. `lba`: the first block that
    cannot be read, if known."""
    return _condition(error, 0, lba)


def write_failure(error, lba=None):
    """The same for a write, a flush, an unmap."""
    return _condition(error, 1, lba)


def _condition(error, column, lba):
    key, asc, ascq = ROWS.get(error.errno, (INTERNAL, INTERNAL))[column]
    return CheckCondition(key, asc, ascq, information=lba)
