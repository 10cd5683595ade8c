"""How much space files occupy, and what their file system has left.

Imports base, linux. The extents are those of FIEMAP, where the file system has it (not tmpfs, NFS, ZFS):
mapped is what was written, reserved what is allocated in advance, shared what another file has too
(reflinks, snapshots).
"""

import errno
import os
import time
from typing import Any, Dict, Optional

from . import linux
from .base import failure


def usage(descriptor: int, seconds: float) -> Dict[str, Any]:
    """Returns what is known of a file: size, allocated, available (in its file system) and, None if they
    are not known or counting them takes longer than `seconds`, mapped, reserved and shared, in bytes; device:
    the number of the file system. Raises OSError."""
    status, space = os.fstat(descriptor), os.fstatvfs(descriptor)
    found: Dict[str, Any] = {
        'size': status.st_size,
        'allocated': status.st_blocks * 512,
        'available': space.f_bavail * space.f_frsize,
        'device': status.st_dev,
        'inode': status.st_ino,
        'mapped': None,
        'reserved': None,
        'shared': None,
    }
    try:
        found.update(_of_extents(descriptor, status.st_size, seconds) or {})
    except OSError as e:
        if e.errno not in linux.UNSUPPORTED:
            raise
    return found


def _of_extents(descriptor, size, seconds) -> Optional[Dict[str, int]]:
    end = time.monotonic() + seconds
    position = mapped = reserved = shared = 0
    while position < size:
        extents = linux.file_extents(descriptor, position, size - position)
        if not extents:
            break
        for offset, length, flags in extents:
            length = min(offset + length, size) - max(offset, position)
            if flags & linux.EXTENT_UNWRITTEN:
                reserved += length
            else:
                mapped += length
            if flags & linux.EXTENT_SHARED:
                shared += length
        offset, length, flags = extents[-1]
        if flags & linux.EXTENT_LAST:
            break
        if offset + length <= position:
            raise failure(errno.EIO)  # a file system that reports the same extents again
        position = offset + length
        if time.monotonic() > end:
            return None
    return {'mapped': mapped, 'reserved': reserved, 'shared': shared}
