"""A regular file as a medium: sparse, holes punched by unmap, extents from SEEK_DATA and SEEK_HOLE.

Imports base, linux, posix.
"""

import errno
import os
from typing import Optional

from . import linux
from .base import Extents
from .posix import PosixStore


class FileStore(PosixStore):
    """A store on a file. It is thin by nature: bytes that were never written or were unmapped
    occupy no space. A full file system raises OSError(ENOSPC)."""

    def unmap(self, offset: int, length: int) -> None:
        """Punch a hole. The file system zeroes the incomplete blocks at its ends, so any range is
        possible."""
        self._check_range(offset, length)
        if (
            length
            and not self._allocate(linux.PUNCH_HOLE, offset, length)
            and self.capabilities.zeroes_after_unmap
        ):
            self._put_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._check_range(offset, length)
        mode = linux.PUNCH_HOLE if may_unmap else linux.ZERO_RANGE
        if length and not self._allocate(mode, offset, length):
            self._put_zeroes(offset, length)

    def _allocate(self, mode, offset, length):
        """Returns False if the file system does not support this mode."""
        try:
            linux.fallocate(self.descriptor, mode | linux.KEEP_SIZE, offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            return False
        return True

    def available(self) -> int:
        # the whole free space: other files may use it first, which the thresholds allow for
        room = os.fstatvfs(self.descriptor)
        return room.f_bavail * room.f_frsize

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        self._check_range(offset, length)
        if not self.capabilities.extents:
            return super(FileStore, self).extents(offset, length)
        found: Extents = []
        end = offset + length
        while offset < end and (maximum is None or len(found) < maximum):
            edge = min(self._seek(offset, os.SEEK_DATA), end)
            mapped = edge <= offset
            if mapped:
                edge = min(self._seek(offset, os.SEEK_HOLE), end)
            if edge > offset:  # else a hole was punched between the two calls: repeat them
                found.append((offset, edge - offset, mapped))
                offset = edge
        return found

    def _seek(self, offset, whence):
        try:
            return os.lseek(self.descriptor, offset, whence)
        except OSError as e:
            if e.errno != errno.ENXIO:  # no data from here to the end
                raise
            return self.size
