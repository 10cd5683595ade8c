"""A regular file as a medium: sparse, holes punched by unmap, extents from SEEK_DATA and SEEK_HOLE.

Imports base, linux, posix.
"""

import errno
import os

from . import linux
from .posix import PosixStore


class FileStore(PosixStore):
    """A file. Thin in itself: what was never written or was unmapped takes no space; a full file
    system is OSError(ENOSPC)."""

    def unmap(self, offset, length):
        """Punch a hole. The file system zeroes the parts of its blocks that lie at the edges, so
        every range is honoured."""
        self._check_range(offset, length)
        if (
            length
            and not self._allocate(linux.PUNCH_HOLE, offset, length)
            and self.capabilities.zeroes_after_unmap
        ):
            self._put_zeroes(offset, length)

    def write_zeroes(self, offset, length, may_unmap):
        self._check_range(offset, length)
        mode = linux.PUNCH_HOLE if may_unmap else linux.ZERO_RANGE
        if length and not self._allocate(mode, offset, length):
            self._put_zeroes(offset, length)

    def _allocate(self, mode, offset, length):
        """False where the file system cannot."""
        try:
            linux.fallocate(self.descriptor, mode | linux.KEEP_SIZE, offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            return False
        return True

    def available(self):
        # all of it: what other files may take first is what thresholds are for
        room = os.fstatvfs(self.descriptor)
        return room.f_bavail * room.f_frsize

    def extents(self, offset, length, maximum=None):
        self._check_range(offset, length)
        if not self.capabilities.extents:
            return super(FileStore, self).extents(offset, length)
        found, end = [], offset + length
        while offset < end and (maximum is None or len(found) < maximum):
            edge = min(self._seek(offset, os.SEEK_DATA), end)
            mapped = edge <= offset
            if mapped:
                edge = min(self._seek(offset, os.SEEK_HOLE), end)
            if edge > offset:  # else a hole was punched between the two questions: ask again
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
