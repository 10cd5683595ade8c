"""A store that keeps the old blocks of every write in a journal: guard = undo-journal.

Imports base, filters, file, range_locks, undo_records. It is directly on the store of a medium, below
encryption, so what is kept of an encrypted disk is encrypted. If the journal cannot be written, the write
is not done.

The order, for each verb that changes the medium, with its range locked among all processes:

     old blocks read --> record in the segment --> segment flushed --> new blocks written --> unlocked
                                                   (one flush for all threads that wait)

So no byte of the medium changes before the byte that it replaces is durable in the journal, and of two
writes to one block the later one records what the earlier one wrote. A process that is killed leaves
records whose writes were not done, or in part: putting their blocks back is right in each case.

A segment that was removed meanwhile (SANITIZE, `guard remove`) is not written any more: the remover
locks the whole medium, and a thread looks after it has locked its range.
"""

import functools
import os
import queue
import time
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .. import log
from . import undo_records
from .base import BytesLike, Store, beyond, pieces
from .file import FileStore
from .filters import Filter
from .range_locks import LockedRanges, RangeLocks
from .undo_records import PIECE, Stamp

#: Bytes that are read at a time where the medium has bad blocks.
SMALL = 4096
#: The range that the remover of segments locks: all of any medium.
WHOLE = 1 << 60


def clocks() -> Tuple[int, int]:
    """(monotonic clock of this boot, time of day), in nanoseconds."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e9), int(time.time() * 1e9)


class Segment(object):
    """A segment of the journal that this process fills. descriptor: of its file, which has its full length;
    owned. capacity: bytes of the whole journal."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self.capacity = capacity
        self._file = FileStore({'kind': 'file', 'size': self.size}, descriptor)
        self.position = self.durable = undo_records.first_position(descriptor)
        self._is_complete = False

    def has_room(self, length: int) -> bool:
        return self.position + length <= self.size

    def is_removed(self) -> bool:
        return os.fstat(self._file.descriptor).st_nlink == 0

    def append(self, record: bytes) -> None:
        """Add a record, not yet durable. One thread at a time. Raises OSError."""
        self._file.write(self.position, record, False)
        self.position += len(record)

    def flush(self) -> None:
        """Make durable what was appended before this call. Any thread. Raises OSError."""
        position = self.position
        try:
            self._file.flush(0, self.size)
        except OSError:
            if not self._is_complete:  # else complete() has flushed it, and closed the file
                raise
        self.durable = max(self.durable, position)

    def discard(self) -> None:
        """Close it after a flush has failed."""
        self._file.close()

    def complete(self) -> None:
        """Flush and close. Raises OSError if the flush fails; then so does flush() of other threads."""
        try:
            self.flush()
            self._is_complete = True
        finally:
            self._file.close()


#: How a process gets to the journal. new_segment() -> (Segment, descriptor of the file for its range locks,
#: owned by the receiver), raises OSError; refused(OSError) -> the OSError of a write that was not done
#: because of this one.
Journal = NamedTuple(
    'Journal',
    [('new_segment', Callable[[], Tuple[Segment, int]]), ('refused', Callable[[OSError], OSError])],
)


class Undoable(Filter):
    """See the module."""

    inline_write_limit = 0  # a write waits for the journal
    durable_is_free = False

    def __init__(
        self, store: Store, journal: Journal, clock: Optional[Callable[[], Tuple[int, int]]] = None
    ) -> None:
        super(Undoable, self).__init__(store)
        self._journal, self._clocks = journal, clock or clocks
        self._segment: Any = None
        self._lock = -1
        self._locks: Any = None  # RangeLocks, as soon as there was a segment
        # the thread that has taken its one item may append, and replace the segment
        self._turn: 'queue.Queue[None]' = queue.Queue()
        self._turn.put(None)

    def _recorded(self, offset, length):
        return _Recorded(self, offset, length)

    # -- the journal -------------------------------------------------------------------------------

    def lock_and_record(self, offset: int, length: int) -> LockedRanges:
        """Lock a range and record its old blocks durably. Returns the lock, which the caller exits after
        the write. Raises OSError."""
        if offset < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
        try:
            self._turn.get()
            try:
                self._require_segment()
            finally:
                self._turn.put(None)
            locked = LockedRanges(None, [(self._locks, True, offset, length)])
            locked.__enter__()
            try:
                self._record([(offset, length)])
            except BaseException:
                locked.__exit__()
                raise
        except OSError as e:
            raise self._journal.refused(e)
        return locked

    def _require_segment(self):
        """The segment to append to. The caller has the turn. Raises OSError."""
        if self._segment is None:
            segment, lock = self._journal.new_segment()
            if self._locks is None:
                try:
                    self._locks, self._lock = RangeLocks(lock), lock
                except OSError:
                    os.close(lock)
                    raise
            else:
                os.close(lock)
            self._segment = segment
        return self._segment

    def _record(self, ranges):
        touched: List[Segment] = []
        for offset, length in ranges:
            for pack in self._packers(offset, length):
                self._append(pack, touched)
        for segment in touched:
            try:
                segment.flush()
            except OSError:
                self._abandon(segment)
                raise

    def _packers(self, offset, length):
        """Functions of a Stamp that return the records of a range."""
        if length <= PIECE:
            return self._of_pieces([(offset, length)])
        extents = self.store.extents(offset, length)
        if sum(count for _, count, is_mapped in extents if is_mapped) > self._capacity():
            return [undo_records.pack_gap]
        return self._of_extents(extents)

    def _capacity(self):
        self._turn.get()
        try:
            return self._require_segment().capacity
        finally:
            self._turn.put(None)

    def _of_extents(self, extents):
        for offset, length, is_mapped in extents:
            if is_mapped:
                for pack in self._of_pieces(pieces(offset, length, PIECE)):
                    yield pack
            else:
                yield functools.partial(undo_records.pack_zeroes, offset, length)

    def _of_pieces(self, pieces: Iterable[Tuple[int, int]]) -> Iterator[Callable[[Stamp], bytes]]:
        for offset, length in pieces:
            for start, data in self._readable(offset, length):
                yield functools.partial(undo_records.pack_old, start, data)

    def _readable(self, offset, length):
        """[(offset, data)] of a range without the blocks that cannot be read: a write may be about to
        repair them."""
        try:
            return [(offset, self.store.read(offset, length))]
        except OSError:
            pass
        found, size = [], max(self.block_size, SMALL)
        for start in range(offset, offset + length, size):
            try:
                found.append((start, self.store.read(start, min(size, offset + length - start))))
            except OSError as e:
                log.warning(
                    '%s: bytes %d and following cannot be kept: %s', self.path, start, e.strerror
                )
        return found

    def _append(self, pack, touched):
        """Append a record, to a new segment if this one is full; add its segment to `touched`."""
        self._turn.get()
        try:
            segment = self._require_segment()
            if not segment.has_room(undo_records.LONGEST) or segment.is_removed():
                self._segment = None
                if segment in touched:
                    touched.remove(segment)
                segment.complete()
                segment = self._require_segment()
            segment.append(pack(Stamp(*self._clocks() + (segment.durable,))))
            if segment not in touched:
                touched.append(segment)
        finally:
            self._turn.put(None)

    def _abandon(self, segment):
        """A segment that cannot be flushed is not used any more."""
        self._turn.get()
        try:
            if self._segment is segment:
                self._segment = None
                segment.discard()
        finally:
            self._turn.put(None)

    def overwrite(self, pieces: Sequence[Tuple[int, BytesLike]]) -> None:
        """Write [(offset, data)] with one flush of the journal, for a caller that alone uses the medium.
        Raises OSError."""
        self._record([(offset, len(data)) for offset, data in pieces])
        for offset, data in pieces:
            self.store.write(offset, data, False)

    def record_all(self) -> None:
        """Record the blocks of the whole medium, before a caller that alone uses it overwrites them below
        this store. Raises OSError."""
        self._record([(0, self.size)])

    # -- verbs -------------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        with self._recorded(offset, len(data)):
            self.store.write(offset, data, durable)

    def unmap(self, offset: int, length: int) -> None:
        with self._recorded(offset, length):
            self.store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        with self._recorded(offset, length):
            self.store.write_zeroes(offset, length, may_unmap)

    def copy(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        with self._recorded(offset, length):
            self.store.copy(self.store if source is self else source, source_offset, offset, length)

    def reading(self) -> Store:
        return self.store.reading()

    def close(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.complete()
            except OSError:
                pass  # every record whose write was done has been flushed
        if self._locks is not None:
            self._locks.close()
            os.close(self._lock)
            self._locks = None
        self.store.close()


class _Recorded(object):
    """Context manager of a write: its range is locked, and its old blocks are in the journal."""

    __slots__ = ('_store', '_range', '_locked')

    def __init__(self, store, offset, length):
        self._store, self._range = store, (offset, length)

    def __enter__(self):
        self._locked = self._store.lock_and_record(*self._range)

    def __exit__(self, *failure):
        self._locked.__exit__()
