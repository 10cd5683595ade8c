"""Transfers that bypass the page cache (O_DIRECT), through aligned buffers.

Imports base, compat. Offsets and lengths must be multiples of the alignment; opening ensures this
for the blocks of a unit. (A read-modify-write of smaller pieces could overwrite what another
session writes next to them at the same time.)
"""

import errno
import mmap
import os
from typing import Dict, List

from .. import compat
from .base import BytesLike, failure

#: Bytes of free buffers that are kept for later transfers.
KEEP = 8 << 20


class AlignedBuffers(object):
    """Page-aligned buffers by size class (powers of two from 4 KiB), reused after they are
    returned. [any]: list.pop is atomic."""

    def __init__(self) -> None:
        self._free: Dict[int, List[mmap.mmap]] = {}
        self._kept = 0

    def take(self, length: int) -> mmap.mmap:
        """Returns an mmap of at least `length` bytes."""
        size = max(4096, 1 << (length - 1).bit_length())
        try:
            buffer = self._free.setdefault(size, []).pop()
        except IndexError:
            return mmap.mmap(-1, size)
        self._kept -= size
        return buffer

    def give_back(self, buffer: mmap.mmap) -> None:
        """Return a buffer for reuse. The caller must hold no view of it."""
        size = len(buffer)
        if self._kept + size <= KEEP:
            self._kept += size
            self._free.setdefault(size, []).append(buffer)
        else:
            try:
                buffer.close()
            except BufferError:
                # The traceback of a failed call still refers to a view (ctypes on Python 3.6); the
                # buffer is freed with it.
                pass


_buffers = AlignedBuffers()


class DirectAccess(object):
    """Reads and writes through a descriptor opened with O_DIRECT, which this object does not own."""

    def __init__(self, descriptor: int, alignment: int) -> None:
        self._descriptor = descriptor
        self._alignment = alignment

    def _check(self, offset, length):
        if (offset | length) % self._alignment:
            raise OSError(
                errno.EINVAL, 'direct transfers are in multiples of %d bytes' % self._alignment
            )

    def read(self, offset: int, length: int) -> bytes:
        """Returns all `length` bytes. Raises OSError."""
        self._check(offset, length)
        if not length:
            return b''
        if compat.preadv is None:
            raise failure(errno.ENOSYS)
        buffer = _buffers.take(length)
        try:
            with memoryview(buffer) as whole:
                done = 0
                while done < length:
                    with whole[done:length] as rest:
                        count = compat.preadv(self._descriptor, [rest], offset + done)
                    if not count:
                        raise OSError(errno.EIO, 'the medium ends at %d' % (offset + done))
                    done += count
            return buffer[:length]
        finally:
            _buffers.give_back(buffer)

    def write(self, offset: int, data: BytesLike) -> None:
        """Write all of `data`. Raises OSError."""
        length = len(data)
        self._check(offset, length)
        if not length:
            return
        buffer = _buffers.take(length)
        try:
            buffer[:length] = data
            with memoryview(buffer) as whole:
                done = 0
                while done < length:
                    with whole[done:length] as rest:
                        done += os.pwrite(self._descriptor, rest, offset + done)
        finally:
            _buffers.give_back(buffer)

    def close(self) -> None:
        """Forget the descriptor without closing it."""
        self._descriptor = -1
