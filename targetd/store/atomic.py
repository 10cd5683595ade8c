"""A store that locks the range of every verb and supports all-or-nothing writes: the setting
atomic-writes.

Imports base, filters, journal, range_locks. It is on top of the store and its filters. Every verb
locks its range: readers share it, a writer has it exclusively. All users of the medium, in any
process, do the same (the master ensures that); the lock file is that of the journal. A worker has
one journal slot and one open file description, which the master shares: if the worker ends during a
write, the range stays locked until the slot has been recovered.
"""

import errno
import queue
from typing import Any, Optional

from .. import compat, log
from . import journal, range_locks
from .base import BytesLike, Store, failure
from .filters import Filter


class Atomic(Filter):
    """See the module. store: with its filters; descriptor: an open file description of the journal
    that only this worker and the master have (taken over); number: that of the slot, or None if
    this worker never writes atomically; path: of the journal, for messages."""

    inline_write_limit = 0  # a write may wait for a lock

    def __init__(
        self, store: 'Store', descriptor: int, number: Optional[int], path: Optional[str] = None
    ) -> None:
        super(Atomic, self).__init__(store)
        self.slot = journal.open_slot(descriptor, number or 0, path)
        self.range_locks = range_locks.RangeLocks(descriptor)
        # the thread that has taken its one item may use the slot
        self.slot_token: 'queue.Queue[None]' = queue.Queue()
        self.slot_token.put(None)
        self.is_in_doubt = False
        self._is_guest = number is None

    # -- verbs -------------------------------------------------------------------------------------

    def _locked(self, is_exclusive, offset, length):
        return range_locks.LockedRanges(
            self.store, [(self.range_locks, is_exclusive, offset, length)]
        )

    def exclusive_range(self, offset: int, length: int) -> Any:
        return self._locked(True, offset, length)

    def locked_range(self, offset: int, length: int, exclusive: bool) -> Any:
        return self._locked(exclusive, offset, length)

    def read(self, offset: int, length: int) -> BytesLike:
        with self._locked(False, offset, length) as store:
            return store.read(offset, length)

    def try_read(self, offset: int, length: int) -> Optional[BytesLike]:
        descriptor = self.range_locks.get_description()
        try:
            if range_locks.try_lock_shared(descriptor, offset, length):
                return self.store.try_read(offset, length)
            return None
        finally:
            self.range_locks.return_description(descriptor)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        with self._locked(True, offset, len(data)) as store:
            store.write(offset, data, durable)

    def unmap(self, offset: int, length: int) -> None:
        with self._locked(True, offset, length) as store:
            store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        with self._locked(True, offset, length) as store:
            store.write_zeroes(offset, length, may_unmap)

    def copy(self, source: 'Store', source_offset: int, offset: int, length: int) -> None:
        wanted = [(self.range_locks, True, offset, length)]
        if isinstance(source, Atomic):
            start, end = min(source_offset, offset), max(source_offset, offset) + length
            if (
                source.range_locks.identity == self.range_locks.identity
                and end - start < 2 * length
            ):
                wanted = [(self.range_locks, True, start, end - start)]
            else:
                wanted.append((source.range_locks, False, source_offset, length))
            source = self.store if source is self else source.store
        with range_locks.LockedRanges(self.store, wanted) as store:
            store.copy(source, source_offset, offset, length)

    def atomic_write(self, offset: int, length: int) -> 'AtomicWrite':
        """Returns a context manager; its write() writes bytes of this range all or nothing, see
        journal.write(). Raises OSError(EREMOTEIO) without a journal slot."""
        if self._is_guest:
            raise OSError(errno.EREMOTEIO, 'there is no journal slot', self.path)
        return AtomicWrite(self, offset, length)

    def close(self) -> None:
        self.range_locks.close()
        self.slot.close()
        self.store.close()


class AtomicWrite(object):
    """The context manager of Atomic.atomic_write(). Entering it raises OSError: ETIMEDOUT, or
    EREMOTEIO if the result of an earlier write is in doubt."""

    __slots__ = ('_store', '_offset', '_length')

    def __init__(self, store: Atomic, offset: int, length: int) -> None:
        self._store = store
        self._offset = offset
        self._length = length

    def __enter__(self) -> 'AtomicWrite':
        store, end = self._store, range_locks.deadline()
        try:
            store.slot_token.get(timeout=range_locks.LOCK_SECONDS)
        except queue.Empty:
            raise failure(errno.ETIMEDOUT, store.path)
        try:
            if store.is_in_doubt:
                raise OSError(
                    errno.EREMOTEIO, 'the result of an earlier atomic write is in doubt', store.path
                )
            range_locks.lock_range(
                store.slot.descriptor, True, self._offset, max(1, self._length), end
            )
        except BaseException:
            store.slot_token.put(None)
            raise
        return self

    def write(self, offset: int, data: BytesLike) -> None:
        """Write `data` all or nothing. Raises OSError."""
        store = self._store
        store.is_in_doubt = True
        try:
            journal.write(store.store, store.slot, offset, data)
        except journal.RecordPending:
            raise
        except OSError as e:
            store.is_in_doubt = False
            if e.errno == errno.EREMOTEIO:
                log.error(
                    '%s: an atomic write was refused, nothing was changed: %s (%s)',
                    store.path or store.kind,
                    e.strerror,
                    store.slot.path or 'in memory',
                )
            raise
        store.is_in_doubt = False

    def __exit__(self, kind: Any, *failure_of_it: Any) -> None:
        store = self._store
        try:
            if store.is_in_doubt:
                store.lost = store.lost or errno.EIO
                log.error(
                    '%s: bytes %d..%d are in doubt, and stay locked: %s',
                    store.path or store.kind,
                    self._offset,
                    self._offset + self._length,
                    failure_of_it[0] if kind else 'the write did not end',
                )
            else:
                compat.unlock(store.slot.descriptor)
        finally:
            store.slot_token.put(None)
