"""Reads and writes a descriptor at offsets: the common part of files, memory and block devices.

Imports base, compat, direct, failure_flags. The hot path is try_read: for 4 KiB it is one system
call into a new bytearray, with a budget of two other Python calls. Measured on Python 3.11 for 4 KiB
in the page cache: os.preadv(RWF_NOWAIT) into a new bytearray 0.8 us, into a reused buffer 0.7,
os.pread, which may wait, 0.5, a probe of one byte before os.pread 1.1.
"""

import errno
import os
from typing import Any, Callable, Dict, Optional

from .. import compat
from . import failure_flags, linux
from .base import CHUNK, INLINE_WRITE_LIMIT, BytesLike, Store, beyond, failure, pieces
from .direct import DirectAccess
from .shared_flushes import FlushingStore

_pwrite = os.pwrite

#: From this number of bytes, a zeroed buffer costs more than an uninitialized one.
LARGE = 48 << 10


def try_read_unsupported(offset: int, length: int) -> None:
    """try_read() of a store that cannot read without the risk of waiting: always None."""
    return None


def supports_nowait(descriptor: int) -> bool:
    """Returns True if preadv(RWF_NOWAIT) works on this descriptor: Linux 4.14 or later and a file
    system that supports it."""
    if compat.preadv is None:
        return False
    try:
        compat.preadv(descriptor, [bytearray(1)], 0, compat.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


class PosixStore(FlushingStore):
    """A store on a descriptor, which it owns; through the page cache, or bypassing it (`direct`)."""

    inline_write_limit = INLINE_WRITE_LIMIT

    def __init__(self, description: Dict[str, Any], descriptor: int) -> None:
        super(PosixStore, self).__init__(description, descriptor)
        self._flag = description.get('flag') or failure_flags.NO_FLAG
        self._is_shared = bool(description.get('is_shared'))
        self._ends_doubt = bool(description.get('ends_doubt'))
        # no data is in the page cache of a fenced disk, so a flush that it refuses has lost none
        self._harmless = failure_flags.HARMLESS.union(
            [errno.EBADE] if description.get('fence') else []
        )
        if self.direct:
            access = DirectAccess(descriptor, description.get('direct_alignment') or 4096)
            self._replace_verb('read', access.read)
            self._replace_verb('_put', access.write)
            self._replace_verb('try_read', try_read_unsupported)
            self._forget_descriptor: Optional[Callable[[], None]] = access.close
            self.inline_write_limit = 0
        else:
            try_read, self._forget_descriptor = self._make_try_read()
            self._replace_verb('try_read', try_read)

    def _replace_verb(self, name, function):
        setattr(self, name, function)

    # -- reading -----------------------------------------------------------------------------------

    def _make_try_read(self):
        """Returns (try_read, forget): the function, bound only to the descriptor, and a function
        that makes it forget the descriptor."""
        descriptor = self.descriptor
        if not supports_nowait(descriptor):
            return try_read_unsupported, None
        preadv, flag, zeroed, raw, large = (
            compat.preadv,
            compat.RWF_NOWAIT,
            bytearray,
            compat.raw_buffer,
            LARGE,
        )

        def try_read(offset, length):
            data = zeroed(length) if length < large else raw(length)
            try:
                if preadv(descriptor, (data,), offset, flag) == length:
                    return data
            except OSError:  # EAGAIN; read() raises any other error
                pass
            return None

        def forget():
            nonlocal descriptor
            descriptor = -1

        return try_read, forget

    def read(self, offset: int, length: int) -> BytesLike:
        data = os.pread(self.descriptor, length, offset)
        if len(data) == length:
            return data
        return self._read_rest(offset, length, data)

    def _read_rest(self, offset, length, data):
        parts = [data]
        done = len(data)
        while done < length:
            data = os.pread(self.descriptor, length - done, offset + done)
            if not data:
                raise OSError(errno.EIO, 'the medium ends at %d' % (offset + done), self.path)
            parts.append(data)
            done += len(data)
        return b''.join(parts)

    # -- writing -----------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        if offset + len(data) > self.size:
            raise beyond(self, offset, len(data))
        if durable:
            self._write_durably(offset, data)
        else:
            self._put(offset, data)

    def _put(self, offset, data):
        """Write all of `data` into the page cache."""
        done = _pwrite(self.descriptor, data, offset)
        if done != len(data):
            view = memoryview(data)
            while done < len(view):
                done += self._some(_pwrite(self.descriptor, view[done:], offset + done))

    @staticmethod
    def _some(count):
        if not count:
            # POSIX allows write() to return 0 if the medium is full
            raise failure(errno.ENOSPC)
        return count

    def _write_durably(self, offset, data):
        """Write and flush, in two calls: of two writes with RWF_DSYNC at the same time, the kernel may
        report the loss of the one to the other."""
        if self.lost:
            raise failure(self.lost, self.path)
        self._put(offset, data)
        self.flush(offset, len(data))

    def _flush_medium(self):
        try:
            failure_flags.sync(
                self.descriptor, self._flag, self._is_shared, self._ends_doubt, self._harmless
            )
        except OSError as e:
            if e.errno not in self._harmless:
                self.lost = e.errno
            raise

    def _put_zeroes(self, offset, length):
        zeroes = memoryview(bytes(min(length, CHUNK)))
        for start, count in pieces(offset, length, CHUNK):
            self._put(start, zeroes[:count])

    def _check_range(self, offset, length):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise beyond(self, offset, length)

    # -- copying -----------------------------------------------------------------------------------

    def copy(self, source: 'Store', source_offset: int, offset: int, length: int) -> None:
        self._check_range(offset, length)
        done = 0
        source = source.reading()
        if (
            isinstance(source, PosixStore)
            and source.kind == self.kind == 'file'
            and not (self.direct or source.direct)
        ):
            done = self._copy_in_kernel(source, source_offset, offset, length)
        if done < length:
            super(PosixStore, self).copy(source, source_offset + done, offset + done, length - done)

    def _copy_in_kernel(self, source, source_offset, offset, length):
        """Copy in the kernel (by reference if the file system can) and return the number of bytes
        copied; less than `length` if the kernel cannot copy."""
        if source is self and abs(source_offset - offset) < length:
            return 0
        done = 0
        try:
            while done < length:
                count = linux.copy_file_range(
                    source.descriptor,
                    self.descriptor,
                    min(length - done, 1 << 30),
                    source_offset + done,
                    offset + done,
                )
                if not count:
                    break
                done += count
        except OSError as e:
            if e.errno not in linux.UNSUPPORTED and e.errno not in (
                errno.EXDEV,
                errno.EPERM,
                errno.EBADF,
            ):
                raise
        return done

    # -- the rest ----------------------------------------------------------------------------------

    def resize_check(self) -> int:
        return os.fstat(self.descriptor).st_size

    def allocated(self) -> int:
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        if self._forget_descriptor:
            self._forget_descriptor()
        super(PosixStore, self).close()
