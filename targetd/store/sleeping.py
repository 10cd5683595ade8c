"""A store whose disk may sleep: the first access afterwards has the master wake it.

Imports base, filters. It is directly on the store of a medium. The master decides when the disk sleeps
(master.units.spin_down):

     ROTATES --the master is about to stop it--> FALLING --it was flushed and stopped--> STOPPED
        ^                                           |                                      |
        +------------------------ an access: wake(), which waits for the master -----------+

FALLING is acknowledged when no write is in progress; the master flushes the disk afterwards. So a flush has
nothing to do while it is STOPPED, and wakes no disk: every write since then has woken it.
"""

from typing import Callable, List, Optional

from .base import BytesLike, Extents, Store
from .filters import Filter

ROTATES, FALLING, STOPPED = 0, 1, 2


class Sleep(object):
    """Whether the disk of a unit sleeps, in one process. wake(): has the master wake it, and returns when
    the disk is ready; raises OSError if nobody answers. writes: an entry for each write in progress. Any
    thread reads state; the control thread sets it."""

    __slots__ = ('state', 'wake', 'writes')

    def __init__(self, state: int, wake: Callable[[], None]) -> None:
        self.state = state
        self.wake = wake
        self.writes: List[object] = []

    def has_writes(self) -> bool:
        """True if a write is in progress that began before the state was set."""
        return bool(self.writes)


class _Writing(object):
    """In its `with` block the disk does not sleep, and FALLING waits for its end."""

    __slots__ = ('_sleep',)

    def __init__(self, sleep):
        self._sleep = sleep

    def __enter__(self):
        sleep = self._sleep
        while True:
            if sleep.state:
                sleep.wake()
            sleep.writes.append(self)
            # the state may have been set between the two: then the control thread may not have seen
            # the entry
            if not sleep.state:
                return
            sleep.writes.remove(self)

    def __exit__(self, *failure):
        self._sleep.writes.remove(self)


class Sleeping(Filter):
    """See the module."""

    def __init__(self, store: Store, sleep: Sleep) -> None:
        super(Sleeping, self).__init__(store)
        self._sleep = sleep

    def _wake(self):
        if self._sleep.state:
            self._sleep.wake()

    # -- verbs -------------------------------------------------------------------------------------

    def try_read(self, offset: int, length: int) -> Optional[BytesLike]:
        """None unless the disk rotates, although the page cache may have the data: whoever needs it will
        need more."""
        if self._sleep.state:
            return None
        return self.store.try_read(offset, length)

    def read(self, offset: int, length: int) -> BytesLike:
        self._wake()
        return self.store.read(offset, length)

    def flush(self, offset: int, length: int) -> None:
        if self._sleep.state != STOPPED:
            self.store.flush(offset, length)

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        self._wake()
        return self.store.extents(offset, length, maximum)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        with _Writing(self._sleep):
            self.store.write(offset, data, durable)

    def unmap(self, offset: int, length: int) -> None:
        with _Writing(self._sleep):
            self.store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        with _Writing(self._sleep):
            self.store.write_zeroes(offset, length, may_unmap)

    def copy(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        with _Writing(self._sleep):
            self.store.copy(self.store if source is self else source, source_offset, offset, length)
