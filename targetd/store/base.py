"""The interface of every store: its verbs, its attributes, and what they guarantee. Stores know
bytes at offsets and OSError, but not SCSI.

Imports base only. Invariants:

  1. A verb does all that was requested or raises OSError; there is no short read or short write.
  2. Offsets and lengths are bytes, within 0..size; a write beyond `size` raises OSError(EINVAL),
     so a defect cannot make a file grow.
  3. Any thread may call any verb at any time. No verb depends on the file position, because
     threads share one open file description and so one position (lseek for SEEK_DATA and
     SEEK_HOLE moves it; nothing reads it).
  4. After a failed flush, acknowledged data may be lost, and the kernel reports the error only
     once to each open file description. So each process has its own, its threads share flushes
     (posix), and the processes share a flag (failure_flags). `lost` stores the errno, and every
     later flush and durable write fails with it until the store is opened again.
"""

import errno
import fcntl
import os
import queue
import time
from collections import namedtuple
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

BytesLike = Union[bytes, bytearray, memoryview]

#: Extents: (offset, length, is mapped), in bytes.
Extents = List[Tuple[int, int, bool]]

#: Bytes that copy() and the writing of zeroes move at a time.
CHUNK = 1 << 20

#: Up to this number of bytes, the connection's thread itself does a write that only fills the page
#: cache (ARCHITECTURE D5).
INLINE_WRITE_LIMIT = 1 << 20


class Capabilities(
    namedtuple(
        'Capabilities',
        (
            'unmap zeroes_after_unmap unmap_granularity unmap_alignment maximum_unmap_length '
            'physical_block_size alignment_offset minimum_io_size optimal_io_size rotation_rate extents'
        ),
    )
):
    """What the medium can do. A medium that is served read-only has the capabilities of the medium
    too.

    unmap: bool, unmap() frees space; zeroes_after_unmap: bool, reads after unmap() are guaranteed
    to return zeroes; unmap_granularity, unmap_alignment: bytes, unmap() frees whole granules that
    start at alignment + n * granularity; maximum_unmap_length: reasonable bytes per call, 0 means
    unlimited; physical_block_size: bytes; alignment_offset: bytes from the start of the medium to
    its first physical block boundary; minimum_io_size, optimal_io_size: bytes, 0 if the medium does
    not report them; rotation_rate: revolutions per minute, 1: does not rotate, 0: unknown; extents:
    bool, extents() distinguishes mapped from unmapped ranges.
    """

    __slots__ = ()


NO_CAPABILITIES = Capabilities(False, False, 0, 0, 0, 512, 0, 0, 0, 0, False)

#: The outcome of a request that was begun (Store.pipelines) and must be done by the verb that waits.
AGAIN = object()
#: The outcome of a WRITE that was begun and is done; its reply waits for the store's make_room().
FULL = object()

# The thread of this process that is inside exclusive_range() has taken this token. There is one token
# for all stores: POSIX locks belong to processes, so the kernel would report a deadlock between two
# processes whose threads wait for locks on different files.
_exclusive_token: 'queue.Queue[None]' = queue.Queue()
_exclusive_token.put(None)


#: Interval at which a lock is tried again after EDEADLK.
_DEADLOCK_SECONDS = 0.005


def wait_for_lock(descriptor: int, length: int, offset: int) -> None:
    """Take an exclusive POSIX lock. Such a lock belongs to a process, so the kernel reports a deadlock
    (EDEADLK) if another thread of this process has a lock for which the holder of this one waits. It
    is not a real one, because every thread takes its locks in the same order. Raises OSError."""
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX, length, offset, os.SEEK_SET)
            return
        except OSError as e:
            if e.errno != errno.EDEADLK:
                raise
        time.sleep(_DEADLOCK_SECONDS)


class ExclusiveRange(object):
    """Context manager for a range that only one caller of Store.exclusive_range() can have at a
    time, among all threads and processes. Entering it returns `store`.

    local: True if only the threads of this process are excluded.
    """

    __slots__ = ('_descriptor', '_offset', '_length', '_local', '_store')

    def __init__(
        self,
        descriptor: int,
        offset: int,
        length: int,
        local: bool = False,
        store: Optional['Store'] = None,
    ) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._length = length
        self._local = local
        self._store = store

    def __enter__(self) -> Any:
        _exclusive_token.get()
        if not self._local:
            try:
                wait_for_lock(self._descriptor, self._length, self._offset)
            except BaseException:
                _exclusive_token.put(None)
                raise
        return self._store

    def __exit__(self, *failure):
        try:
            if not self._local:
                fcntl.lockf(
                    self._descriptor, fcntl.LOCK_UN, self._length, self._offset, os.SEEK_SET
                )
        finally:
            _exclusive_token.put(None)


def pieces(offset: int, length: int, longest: int) -> Iterator[Tuple[int, int]]:
    """Yields (offset, length) of the parts of a range, each of at most `longest` bytes."""
    for start in range(offset, offset + length, longest):
        yield start, min(longest, offset + length - start)


class UnlockedRange(object):
    """Context manager that locks nothing: the result of locked_range() of a store without locks.
    Entering it returns the store."""

    __slots__ = ('_store',)

    def __init__(self, store: 'Store') -> None:
        self._store = store

    def __enter__(self) -> 'Store':
        return self._store

    def __exit__(self, *failure):
        """Does nothing: no lock is held."""


class Store(object):
    """Base class of stores: declares the verbs, and implements those that can be built from the
    others.

    Plain attributes: kind 'file' 'block' 'ram' 'null'; path or None; size, block_size bytes;
    read_only, direct, thin bool; capabilities; inline_write_limit: bytes up to which write(…,
    durable=False) does not wait for a disk, 0 if it may always wait; durable_is_free: bool, a
    durable write costs no more than another one, so it may be done inline too; lost: errno of the
    flush that failed, or None; claim: a further descriptor, owned by the store, that keeps the
    medium claimed, or None; pipelines: bool, it has begin_read() and begin_write()
    (nbd_pipeline.PipelinedStore), which wait for nothing. Of the filters only ReadOnly has them;
    is_flushing_ahead: bool, a flush() would wait for the end of one that was begun.
    """

    pipelines = False
    is_flushing_ahead = False
    inline_write_limit = 0
    durable_is_free = False
    lost: Optional[int] = None

    def __init__(self, description: Dict[str, Any], descriptor: Optional[int]) -> None:
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
        self.claim: Optional[int] = None

    # -- the verbs ---------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> BytesLike:
        """Returns all `length` bytes at `offset`; may wait for the disk. Raises OSError; EIO if the
        medium ends early."""
        raise NotImplementedError

    def try_read(self, offset: int, length: int) -> Optional[BytesLike]:
        """Returns the same bytes as read() if no disk access is needed, otherwise None. The caller
        then calls read() in a thread that may wait."""
        raise NotImplementedError

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        """Write all of `data`. With `durable`, returns only when the data would survive a power
        failure."""
        raise NotImplementedError

    def flush(self, offset: int, length: int) -> None:
        """Make all data of this range durable (the implementations flush the whole medium)."""
        raise NotImplementedError

    def unmap(self, offset: int, length: int) -> None:
        """Free the space. Later reads return zeroes if capabilities.zeroes_after_unmap is True;
        otherwise their data is undefined."""
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """Make reads return zeroes. With `may_unmap` the space may be freed; without it the space
        stays reserved if the medium can do that."""
        raise NotImplementedError

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        """Returns adjoining extents that cover exactly the range; or at most `maximum` of them,
        which then cover its start. Unmapped extents read as zeroes."""
        return [(offset, length, True)] if length else []

    def prefetch(self, offset: int, length: int) -> None:
        """Have the data of this range in a cache, so that a read() soon is quick. Raises OSError."""
        self.read(offset, length)

    def copy(self, source: 'Store', source_offset: int, offset: int, length: int) -> None:
        """Copy from another store, or from this one (the ranges may overlap). The data is not
        durable before flush()."""
        backwards = source is self and source_offset < offset < source_offset + length
        done = 0
        while done < length:
            count = min(CHUNK, length - done)
            at = length - done - count if backwards else done
            self.write(offset + at, source.read(source_offset + at, count), False)
            done += count

    def exclusive_range(self, offset: int, length: int) -> Any:
        """Returns a context manager that only one caller at a time can enter for these bytes, among
        all threads and processes. Entering it returns the store to use inside.

        It does not exclude plain reads and writes. Between processes it is a POSIX lock, because a
        POSIX lock belongs to a process; a lock of an open file description would not distinguish
        workers that share one description. The lock ends with the process. While it is held, the
        process must not close another descriptor of the same file, because that would release the
        lock.
        """
        file = self.lock_file()
        return ExclusiveRange(file, offset, length, local=file < 0 or self.read_only, store=self)

    def lock_file(self) -> int:
        """Returns the descriptor of the file on which exclusive_range() takes its locks, or -1."""
        return self.descriptor

    def locked_range(self, offset: int, length: int, exclusive: bool) -> Any:
        """Returns a context manager for several steps on one range; entering it returns the store
        to use inside.

        If every verb locks its range (atomic.Atomic), the whole range is locked meanwhile, for one
        writer (`exclusive`) or for readers. Other stores lock nothing.
        """
        return UnlockedRange(self)

    def rekey(self, key: bytes) -> None:
        """Encrypt and decrypt with this key from now on. Only a store that encrypts
        (store.encrypting) supports it; others raise OSError(EOPNOTSUPP)."""
        raise failure(errno.EOPNOTSUPP, self.path)

    def reading(self) -> 'Store':
        """Returns the store below that reads the same bytes as this one and has a descriptor to
        copy from."""
        return self

    # -- the rest ----------------------------------------------------------------------------------

    def resize_check(self) -> int:
        """Returns the current size of the medium in bytes. Does not change `size`; the caller
        decides what to do."""
        return self.size

    def allocated(self) -> int:
        """Returns the bytes of space that the medium occupies now."""
        return self.size

    def available(self) -> int:
        """Returns the bytes of space that the medium could still occupy, limited by its file system
        or memory."""
        return max(0, self.size - self.allocated())

    def leave(self) -> None:
        """The session is over. Pass on what would be lost with this process, although a thread may
        still be in a verb, which ends then if it can; close() follows, or the end of the
        process."""

    def close(self) -> None:
        """Close the descriptors. Verbs raise OSError(EBADF) afterwards; closing twice is harmless."""
        descriptor, self.descriptor = self.descriptor, -1
        claim, self.claim = self.claim, None
        if descriptor >= 0:
            os.close(descriptor)
        if claim is not None:
            os.close(claim)

    def __enter__(self) -> 'Store':
        return self

    def __exit__(self, *failure):
        self.close()

    def __repr__(self):
        return '<%s %s %d bytes>' % (type(self).__name__, self.path or self.kind, self.size)


def failure(number: int, path: Optional[str] = None) -> OSError:
    """Returns an OSError with the system's message for this errno."""
    return OSError(number, os.strerror(number), path)


def beyond(store: 'Store', offset: int, length: int) -> OSError:
    """Returns the OSError for a range that is not within the store."""
    return OSError(
        errno.EINVAL,
        'bytes %d..%d are not within %d' % (offset, offset + length, store.size),
        store.path,
    )
