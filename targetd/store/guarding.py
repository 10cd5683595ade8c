"""A store whose first write waits until old blocks are kept elsewhere: the setting guard.

Imports base, filters. It is directly on the store of a medium, below encryption, so that what is kept
of an encrypted disk is encrypted. It does not know what is kept, nor where: `keep(reason)` has the
master keep the partition table and the heads of the file systems, and raises OSError if that is not
possible; then the write is not done.

     new --first write: keep('first')--> kept --a write to the partition table, or a large unmap or zeroing,
                                          ^       KEEP_AGAIN_SECONDS after the last time: keep(...)
                                          +---------------------------------+
"""

import queue
import time
from typing import Any, Callable, Optional

from .base import BytesLike, Store
from .filters import Filter

FIRST, TABLE, LARGE = 'first', 'table', 'large'

#: A write to this many bytes at the start or the end of the medium can change the partition table.
TABLE_BYTES = 34 * 512
#: An unmap or a zeroing of this many bytes can erase a file system.
LARGE_BYTES = 16 << 20
KEEP_AGAIN_SECONDS = 600.0


class Guarded(Filter):
    """See the module. keep(reason): FIRST, TABLE or LARGE; it may wait for the master. Raises OSError."""

    inline_write_limit = 0  # a write may wait until blocks are kept
    durable_is_free = False

    def __init__(
        self, store: Store, keep: Callable[[str], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super(Guarded, self).__init__(store)
        self._keep, self._clock = keep, clock
        # the thread that has taken its one item may call keep()
        self._turn: 'queue.Queue[None]' = queue.Queue()
        self._turn.put(None)
        self._kept_at: Optional[float] = None

    def _before(self, offset, length, is_data):
        if self._reason(offset, length, is_data) is None:
            return
        self._turn.get()
        try:
            reason = self._reason(offset, length, is_data)  # another thread may have kept them
            if reason is not None:
                began = self._clock()
                self._keep(reason)
                self._kept_at = began
        finally:
            self._turn.put(None)

    def _reason(self, offset, length, is_data):
        if self._kept_at is None:
            return FIRST
        touches_table = offset < TABLE_BYTES or offset + length > self.size - TABLE_BYTES
        is_large = not is_data and length >= LARGE_BYTES
        if not (touches_table or is_large):
            return None
        if self._clock() - self._kept_at < KEEP_AGAIN_SECONDS:
            return None
        return TABLE if touches_table else LARGE

    # -- verbs -------------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        self._before(offset, len(data), True)
        self.store.write(offset, data, durable)

    def unmap(self, offset: int, length: int) -> None:
        self._before(offset, length, False)
        self.store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._before(offset, length, False)
        self.store.write_zeroes(offset, length, may_unmap)

    def copy(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        self._before(offset, length, True)
        self.store.copy(self.store if source is self else source, source_offset, offset, length)

    def reading(self) -> Store:
        return self.store.reading()
