"""A store in which one flush serves all threads that wait for it."""

import queue
from typing import Any, Dict, Optional

from .base import Store, failure


class FlushingStore(Store):
    """One thread at a time flushes; the class that extends this one has `_flush_medium`."""

    def __init__(self, description: Dict[str, Any], descriptor: Optional[int]) -> None:
        super(FlushingStore, self).__init__(description, descriptor)
        # the thread that has taken its one item may flush
        self._flush_turn: Any = getattr(queue, 'SimpleQueue', queue.Queue)()
        self._flush_turn.put(None)
        self._begun = self._succeeded = 0  # numbers of the latest flushes

    def flush(self, offset: int, length: int) -> None:
        """One thread at a time flushes, for all that wait. A flush that began before this call does
        not count, because it need not include the caller's data. After a failed flush every waiting
        call fails (invariant 4 of base)."""
        wanted = self._begun + 1
        self._flush_turn.get()
        try:
            if self.lost:
                raise failure(self.lost, self.path)
            if self._succeeded < wanted:
                self._begun = number = self._begun + 1
                self._flush_medium()
                self._succeeded = number
        finally:
            self._flush_turn.put(None)

    def _flush_medium(self) -> None:
        """Make the medium durable. Sets self.lost if acknowledged data may be lost, and raises OSError."""
        raise NotImplementedError
