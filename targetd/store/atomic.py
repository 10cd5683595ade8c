"""A store whose medium everybody locks while they are at it, and which can write all or nothing:
the setting atomic-writes.

Imports base, filters, journal, ranges. It stands on top of the store and its filters. Every verb
locks its range: readers beside each other, a writer alone. So does everyone else who has the
medium, in whatever process (the master sees to that); the lock file is the journal's. A worker has
one slot of the journal and one open file description, which the master has too: if the worker ends
amid a write, the range stays locked until somebody has put the slot right.
"""

import errno
import logging
import queue

from .. import compat
from . import journal, ranges
from .base import failure
from .filters import Filter

_log = logging.getLogger('targetd.store')


class Atomic(Filter):
    """store: with its filters; descriptor: of the journal, this worker's own description, which
    this takes over; number: of its slot, or None for one who writes nothing atomically; path: of
    the journal, for people."""

    inline_write_limit = 0  # a write may have to wait for a lock

    def __init__(self, store, descriptor, number, path=None):
        super(Atomic, self).__init__(store)
        self.slot = journal.opened(descriptor, number or 0, path)
        self.ranges = ranges.Ranges(descriptor)
        self.turn = queue.Queue()  # who has taken its token has the slot
        self.turn.put(None)
        self.is_in_doubt = False
        self._is_guest = number is None

    # -- verbs -------------------------------------------------------------------------------------------------------

    def _locked(self, is_exclusive, offset, length):
        return ranges.Held(self.store, [(self.ranges, is_exclusive, offset, length)])

    def exclusive(self, offset, length):
        return self._locked(True, offset, length)

    def held(self, offset, length, alone):
        return self._locked(alone, offset, length)

    def read(self, offset, length):
        with self._locked(False, offset, length) as store:
            return store.read(offset, length)

    def try_read(self, offset, length):
        descriptor = self.ranges.get()
        try:
            if ranges.try_shared(descriptor, offset, length):
                return self.store.try_read(offset, length)
            return None
        finally:
            self.ranges.give_back(descriptor)

    def write(self, offset, data, durable):
        with self._locked(True, offset, len(data)) as store:
            store.write(offset, data, durable)

    def unmap(self, offset, length):
        with self._locked(True, offset, length) as store:
            store.unmap(offset, length)

    def write_zeroes(self, offset, length, may_unmap):
        with self._locked(True, offset, length) as store:
            store.write_zeroes(offset, length, may_unmap)

    def copy(self, source, source_offset, offset, length):
        wanted = [(self.ranges, True, offset, length)]
        if isinstance(source, Atomic):
            start, end = min(source_offset, offset), max(source_offset, offset) + length
            if source.ranges.identity == self.ranges.identity and end - start < 2 * length:
                wanted = [(self.ranges, True, start, end - start)]
            else:
                wanted.append((source.ranges, False, source_offset, length))
            source = self.store if source is self else source.store
        with ranges.Held(self.store, wanted) as store:
            store.copy(source, source_offset, offset, length)

    def atomically(self, offset, length):
        """A context manager: write() inside writes bytes of this range all or nothing, as
        journal.write says."""
        if self._is_guest:
            raise OSError(errno.EREMOTEIO, 'no slot of the journal', self.path)
        return Atomically(self, offset, length)

    def close(self):
        self.ranges.close()
        self.slot.close()
        self.store.close()


class Atomically(object):
    """See Atomic.atomically(). Raises OSError: ETIMEDOUT, or EREMOTEIO if a write of before is in
    doubt."""

    __slots__ = ('_store', '_offset', '_length')

    def __init__(self, store, offset, length):
        self._store = store
        self._offset = offset
        self._length = length

    def __enter__(self):
        store, end = self._store, ranges.deadline()
        try:
            store.turn.get(timeout=ranges.LOCK_SECONDS)
        except queue.Empty:
            raise failure(errno.ETIMEDOUT, store.path)
        try:
            if store.is_in_doubt:
                raise OSError(errno.EREMOTEIO, 'an atomic write of before is in doubt', store.path)
            ranges.take(store.slot.descriptor, True, self._offset, max(1, self._length), end)
        except BaseException:
            store.turn.put(None)
            raise
        return self

    def write(self, offset, data):
        """Raises OSError."""
        store = self._store
        store.is_in_doubt = True
        try:
            journal.write(store.store, store.slot, offset, data)
        except journal.Full:
            raise
        except OSError as e:
            store.is_in_doubt = False
            if e.errno == errno.EREMOTEIO:
                _log.error(
                    '%s: an atomic write is refused, nothing was changed: %s (%s)',
                    store.path or store.kind,
                    e.strerror,
                    store.slot.path or 'in memory',
                )
            raise
        store.is_in_doubt = False

    def __exit__(self, kind, *failure_of_it):
        store = self._store
        try:
            if store.is_in_doubt:
                store.lost = store.lost or errno.EIO
                _log.error(
                    '%s: bytes %d..%d are in doubt, and locked: %s',
                    store.path or store.kind,
                    self._offset,
                    self._offset + self._length,
                    failure_of_it[0] if kind else 'the write did not end',
                )
            else:
                compat.unlock(store.slot.descriptor)
        finally:
            store.turn.put(None)
