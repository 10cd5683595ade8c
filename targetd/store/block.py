"""A block device as a medium.

Imports base, linux, posix. Unmapping is honest about zeroes (SBC-3, LBPRZ): where the device makes
zeroes itself and gives the space back in doing so, unmap is fallocate(PUNCH_HOLE) on the device,
which zeroes or fails (Linux 4.9), and zeroes_after_unmap is True; where it only discards, unmap is
BLKDISCARD for the whole granules of the range, the rest is left alone, and zeroes_after_unmap is
False, whatever the device happens to read as afterwards.
"""

from . import linux
from .posix import PosixStore

#: One ioctl is not longer than this: it cannot be interrupted, and a task management function may
#: be waiting for it.
LONGEST_CALL = 1 << 30


class BlockStore(PosixStore):
    """A disk, partition, logical volume, loop device."""

    def __init__(self, description, descriptor):
        super(BlockStore, self).__init__(description, descriptor)
        self.sector = description.get('sector') or 512  # the device's own logical block size, bytes

    def unmap(self, offset, length):
        self._check_range(offset, length)
        if self.capabilities.zeroes_after_unmap:
            self._make_zeroes(offset, length, linux.PUNCH_HOLE)
        elif self.capabilities.unmap:
            granule, alignment = (
                self.capabilities.unmap_granularity or self.sector,
                self.capabilities.unmap_alignment,
            )
            start, end = _whole(offset, length, granule, alignment)
            for at in range(start, end, LONGEST_CALL):
                linux.discard(self.descriptor, at, min(LONGEST_CALL, end - at))

    def write_zeroes(self, offset, length, may_unmap):
        self._check_range(offset, length)
        may_unmap = may_unmap and self.capabilities.unmap
        self._make_zeroes(offset, length, linux.PUNCH_HOLE if may_unmap else linux.ZERO_RANGE)

    def _make_zeroes(self, offset, length, mode):
        """Zeroes, by the device for whole sectors, through the page cache for what is left at the
        edges."""
        start, end = _whole(offset, length, self.sector, 0)
        if start >= end:
            self._put_zeroes(offset, length)
            return
        self._put_zeroes(offset, start - offset)
        for at in range(start, end, LONGEST_CALL):
            self._zero_sectors(at, min(LONGEST_CALL, end - at), mode)
        self._put_zeroes(end, offset + length - end)

    def _zero_sectors(self, offset, length, mode):
        try:
            linux.fallocate(self.descriptor, mode | linux.KEEP_SIZE, offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            self._zero_sectors_slowly(offset, length)

    def _zero_sectors_slowly(self, offset, length):
        """Linux before 4.9, or a device without WRITE ZEROES: the kernel writes them, or we do."""
        try:
            linux.zero_out(self.descriptor, offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            self._put_zeroes(offset, length)

    def resize_check(self):
        return linux.device_size(self.descriptor)

    def allocated(self):
        return self.size


def _whole(offset, length, granule, alignment):
    """(start, end) of the whole granules within a range; start >= end if there are none. All bytes."""
    start = offset + (alignment - offset) % granule
    end = offset + length
    return start, end - (end - alignment) % granule
