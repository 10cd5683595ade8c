"""A block device as a medium.

Imports base, linux, posix. LBPRZ (SBC-3) is reported only where zeroes are guaranteed. If the
device zeroes and frees space in one operation, unmap() is fallocate(PUNCH_HOLE) on the device,
which zeroes or fails (Linux 4.9), and zeroes_after_unmap is True. If the device only discards,
unmap() is BLKDISCARD for the whole granules of the range, the rest is left unchanged, and
zeroes_after_unmap is False, even if the device happens to return zeroes.
"""

from typing import Any, Dict

from . import linux
from .posix import PosixStore

#: Bytes of one ioctl at most: it cannot be interrupted, and a task management function may be waiting
#: for it.
LONGEST_CALL = 1 << 30


class BlockStore(PosixStore):
    """A store on a disk, partition, logical volume or loop device."""

    def __init__(self, description: Dict[str, Any], descriptor: int) -> None:
        super(BlockStore, self).__init__(description, descriptor)
        self.sector = description.get('sector') or 512  # the device's own logical block size, bytes

    def unmap(self, offset: int, length: int) -> None:
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
                linux.discard(self._exclusive_descriptor(), at, min(LONGEST_CALL, end - at))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._check_range(offset, length)
        may_unmap = may_unmap and self.capabilities.unmap
        self._make_zeroes(offset, length, linux.PUNCH_HOLE if may_unmap else linux.ZERO_RANGE)

    def _exclusive_descriptor(self) -> int:
        """The descriptor for discarding and zeroing. The kernel refuses both with EBUSY
        where the range has unwritten data in the page cache and another open file description holds
        the device exclusively: a worker has to use the one that holds the claim, not its own."""
        return self.descriptor if self.claim is None else self.claim

    def _make_zeroes(self, offset, length, mode):
        """Write zeroes: the device zeroes whole sectors, the page cache the remaining bytes at both
        ends."""
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
            linux.fallocate(self._exclusive_descriptor(), mode | linux.KEEP_SIZE, offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            self._zero_sectors_slowly(offset, length)

    def _zero_sectors_slowly(self, offset, length):
        """For Linux before 4.9 or a device without WRITE ZEROES: the kernel writes the zeroes, or
        else this process."""
        try:
            linux.zero_out(self._exclusive_descriptor(), offset, length)
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED:
                raise
            self._put_zeroes(offset, length)

    def resize_check(self) -> int:
        return linux.device_size(self.descriptor)

    def allocated(self) -> int:
        return self.size


def _whole(offset, length, granule, alignment):
    """Returns (start, end) in bytes of the whole granules within a range; start >= end if there are
    none."""
    start = offset + (alignment - offset) % granule
    end = offset + length
    return start, end - (end - alignment) % granule
