"""What every store is: its verbs, its facts, and what they promise. Knows bytes at offsets and
OSError; no SCSI.

Imports base only. Invariants:
1. A verb does all of what it was asked or raises OSError; there is no short read or short write.
2. Offsets and lengths are bytes, within 0..size; a write beyond `size` raises OSError(EINVAL), so a file never grows by a bug.
3. Any thread may call any verb at any time. No verb uses the file position: workers share one open file description, and
   with it one position (lseek for SEEK_DATA and SEEK_HOLE moves it; nothing reads it).
4. Once a flush has failed, data that was acknowledged may be gone and the kernel will not say so again: `lost` remembers
   it, and every later flush and durable write fails with the same errno until the store is opened anew.
"""

import errno
import fcntl
import os
import queue
from collections import namedtuple

#: Bytes that copy() and the writing of zeroes move at a time.
CHUNK = 1 << 20

#: Bytes up to which a write that only fills the page cache is done by the connection's own thread
#: (plan D5).
INLINE_WRITE_LIMIT = 1 << 20


class Capabilities(
    namedtuple(
        'Capabilities',
        (
            'unmap zeroes_after_unmap unmap_granularity unmap_alignment maximum_unmap_length physical_block_size '
            'alignment_offset minimum_io_size optimal_io_size rotational extents'
        ),
    )
):
    """What the medium can do; of one that is served read-only too: it says what it is, and
    read_only that it stays so.

    unmap: bool, unmap() gives space back; zeroes_after_unmap: bool, reads after unmap() are certain
    to give zeroes; unmap_granularity, unmap_alignment: bytes, what unmap() gives back are whole
    granules that start at alignment + n * granularity; maximum_unmap_length: bytes that are
    reasonable in one call, 0 without limit; physical_block_size: bytes; alignment_offset: bytes
    from the start of the medium to its first physical block boundary; minimum_io_size,
    optimal_io_size: bytes, 0 where the medium names none; rotational: True, False, None (unknown);
    extents: bool, extents() tells mapped from unmapped.
    """

    __slots__ = ()


NO_CAPABILITIES = Capabilities(False, False, 0, 0, 0, 512, 0, 0, 0, None, False)

# Whoever of this process's threads is inside exclusive() has taken the baton. One for all stores:
# the kernel counts POSIX locks per process, and would see a deadlock between two processes whose
# *threads* wait for each other's different files.
_baton = queue.Queue()
_baton.put(None)


class Exclusive(object):
    """A range that nobody else who asks for it has: no thread of this process, no other process
    (see Store.exclusive). store: what the context manager gives."""

    __slots__ = ('_descriptor', '_offset', '_length', '_local', '_store')

    def __init__(self, descriptor, offset, length, local=False, store=None):
        self._descriptor = descriptor
        self._offset = offset
        self._length = length
        self._local = local
        self._store = store

    def __enter__(self):
        _baton.get()
        if not self._local:
            try:
                fcntl.lockf(
                    self._descriptor, fcntl.LOCK_EX, self._length, self._offset, os.SEEK_SET
                )
            except BaseException:
                _baton.put(None)
                raise
        return self._store

    def __exit__(self, *failure):
        try:
            if not self._local:
                fcntl.lockf(
                    self._descriptor, fcntl.LOCK_UN, self._length, self._offset, os.SEEK_SET
                )
        finally:
            _baton.put(None)


class Unheld(object):
    """What held() gives of a medium that nobody locks: the store, and nothing else."""

    __slots__ = ('_store',)

    def __init__(self, store):
        self._store = store

    def __enter__(self):
        return self._store

    def __exit__(self, *failure):
        """Nothing was held."""


class Store(object):
    """The verbs, and those of them that can be made from the others.

    Attributes, all plain: kind 'file' 'block' 'ram' 'null'; path or None; size, block_size bytes;
    read_only, direct, thin bool; capabilities; inline_write_limit: bytes up to which write(…,
    durable=False) does not wait for a disk, 0 if it may; durable_is_free: bool, writes are as
    durable as they will ever be, so durable ones may be inline too; lost: errno of the flush that
    failed, or None.
    """

    inline_write_limit = 0
    durable_is_free = False
    lost = None

    def __init__(self, description, descriptor):
        self.kind = description['kind']
        self.path = description.get('path')
        self.size = description['size']
        self.block_size = description.get('block_size') or 512
        self.read_only = bool(description.get('read_only'))
        self.direct = bool(description.get('direct'))
        self.thin = bool(description.get('thin'))
        self.capabilities = Capabilities(
            **description.get('capabilities') or NO_CAPABILITIES._asdict()
        )
        self.descriptor = -1 if descriptor is None else descriptor

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def read(self, offset, length):
        """All `length` bytes at `offset`, bytes-like; may wait. Raises OSError; EIO where the
        medium ends early."""
        raise NotImplementedError

    def try_read(self, offset, length):
        """The same bytes if no disk has to be waited for, else None: then ask read() where waiting
        is allowed."""
        raise NotImplementedError

    def write(self, offset, data, durable):
        """Write all of `data` (bytes-like, of bytes); `durable`: and return only when it would
        survive a power failure."""
        raise NotImplementedError

    def flush(self, offset, length):
        """Make everything written there durable (in fact: everything written anywhere)."""
        raise NotImplementedError

    def unmap(self, offset, length):
        """Give the space back. Reads give zeroes afterwards if capabilities.zeroes_after_unmap,
        else anything."""
        raise NotImplementedError

    def write_zeroes(self, offset, length, may_unmap):
        """Make reads give zeroes; with `may_unmap` the space may be given back, without it stays
        reserved where it can."""
        raise NotImplementedError

    def extents(self, offset, length, maximum=None):
        """[(offset, length, mapped)], adjoining, covering exactly the range; at most `maximum`
        (then covering its start).

        Unmapped extents read as zeroes.
        """
        return [(offset, length, True)] if length else []

    def copy(self, source, source_offset, offset, length):
        """Copy from another store, or from this one (overlapping ranges too). Not durable before
        flush()."""
        backwards = source is self and source_offset < offset < source_offset + length
        done = 0
        while done < length:
            count = min(CHUNK, length - done)
            at = length - done - count if backwards else done
            self.write(offset + at, source.read(source_offset + at, count), False)
            done += count

    def exclusive(self, offset, length):
        """A context manager: nobody else is inside exclusive() for these bytes, in no thread and no
        process. It gives the store to use inside.

        It does not keep plain reads and writes out. Across processes it is a POSIX lock, because
        those belong to processes: the locks of open file descriptions would not tell workers apart,
        who share one. It ends when the process does. A process must not close another descriptor of
        the same file meanwhile, which would drop the lock.
        """
        return Exclusive(
            self.descriptor, offset, length, local=self.descriptor < 0 or self.read_only, store=self
        )

    def held(self, offset, length, alone):
        """A context manager for work on one range in several steps; it gives the store to use
        inside. Where every verb locks its range (atomic.Atomic) all of the range is locked
        meanwhile, for writers too (`alone`); elsewhere nothing is.
        """
        return Unheld(self)

    def rekey(self, key):
        """Encrypt and decrypt with this key (bytes) from now on. Only stores that encrypt can
        (store.encrypting)."""
        raise failure(errno.EOPNOTSUPP, self.path)

    def reading(self):
        """The store that gives the same bytes as this one and has a descriptor to copy from."""
        return self

    # -- the rest ----------------------------------------------------------------------------------------------------

    def resize_check(self):
        """The medium's size now, in bytes. `size` is not touched: whoever asked decides what
        becomes of the news."""
        return self.size

    def allocated(self):
        """Bytes of space that the medium takes now."""
        return self.size

    def available(self):
        """Bytes of space that the medium could still take, as far as its surroundings have them."""
        return max(0, self.size - self.allocated())

    def close(self):
        """Close the descriptor. Verbs raise OSError(EBADF) afterwards; closing twice is harmless."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def __repr__(self):
        return '<%s %s %d bytes>' % (type(self).__name__, self.path or self.kind, self.size)


def failure(number, path=None):
    """An OSError with the system's own words."""
    return OSError(number, os.strerror(number), path)


def beyond(store, offset, length):
    """The OSError for a range that does not lie within the store."""
    return OSError(
        errno.EINVAL,
        'bytes %d..%d do not lie within %d' % (offset, offset + length, store.size),
        store.path,
    )
