"""Transfers past the page cache (O_DIRECT): through aligned buffers of our own.

Imports base, compat. Offsets and lengths must be multiples of the alignment; opening sees to it
that a unit's blocks are. (A read-modify-write of smaller pieces would undo what another session
writes beside them at the same moment.)
"""

import errno
import mmap
import os

from .. import compat
from .base import failure

#: Bytes of buffers that are kept for the next transfer.
KEEP = 8 << 20


class Buffers(object):
    """Page-aligned buffers by size class (powers of two from 4 KiB), handed out and taken back. Any
    thread: list.pop is atomic."""

    def __init__(self):
        self._free = {}
        self._kept = 0

    def take(self, length):
        """An mmap of at least `length` bytes."""
        size = max(4096, 1 << (length - 1).bit_length())
        try:
            buffer = self._free.setdefault(size, []).pop()
        except IndexError:
            return mmap.mmap(-1, size)
        self._kept -= size
        return buffer

    def give_back(self, buffer):
        """The caller must hold no view of it."""
        size = len(buffer)
        if self._kept + size <= KEEP:
            self._kept += size
            self._free.setdefault(size, []).append(buffer)
        else:
            try:
                buffer.close()
            except BufferError:
                # the traceback of a failed call still has a view (ctypes on 3.6): it goes with that
                pass


_buffers = Buffers()


class DirectAccess(object):
    """read and write of a descriptor opened with O_DIRECT, which it does not own."""

    def __init__(self, descriptor, alignment):
        self._descriptor = descriptor
        self._alignment = alignment

    def _check(self, offset, length):
        if (offset | length) % self._alignment:
            raise OSError(
                errno.EINVAL, 'direct transfers are in multiples of %d bytes' % self._alignment
            )

    def read(self, offset, length):
        """All of it, as bytes. Raises OSError."""
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

    def write(self, offset, data):
        """All of it. Raises OSError."""
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

    def close(self):
        """Forget the descriptor."""
        self._descriptor = -1
