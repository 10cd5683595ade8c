"""The changes of a session that the server has acknowledged and that no flush has made durable yet.
If the server dies they are lost with its cache, so they are repeated on the next connection.

Imports nothing of targetd. The log is bounded: a flush begins when it is half full, so that changes go on
while the first half becomes durable; who finds it full waits for the flush.

     acknowledged --add--> in the log --a flush that began later has succeeded--> gone
"""

import threading
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple

#: Bytes of data that the log keeps, and changes. It is full then, and a caller waits for a flush. A session
#: has so much memory for each of its LUNs on an NBD server; twice as much made writes no faster.
MOST_BYTES = 32 << 20
MOST_CHANGES = 16384

#: A change: (number, command, flags, offset, length, data of a WRITE or None).
Change = Tuple[int, int, int, int, int, Optional[bytes]]
#: (generation, number of a change).
Mark = Tuple[int, int]


class UnflushedChanges(object):
    """set_dirty(bool): tells the keeper whether there are changes, if this process should be
    killed. generation: how often the connection was replaced. A reply counts only in the generation
    in which it came: the log may have been repeated without this change. Any thread may call any
    function."""

    def __init__(self, set_dirty: Callable[[bool], None] = lambda is_dirty: None) -> None:
        self.generation = 0
        self._set_dirty = set_dirty
        self._lock = threading.Lock()  # guards everything
        self._changes: Deque[Change] = deque()
        self._number = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def is_full(self) -> bool:
        """True if the caller should wait for a flush."""
        return self._bytes >= MOST_BYTES or len(self._changes) >= MOST_CHANGES

    @property
    def is_half_full(self) -> bool:
        """True if a flush should begin."""
        return 2 * self._bytes >= MOST_BYTES or 2 * len(self._changes) >= MOST_CHANGES

    @property
    def is_dirty(self) -> bool:
        """True if there are changes."""
        return bool(self._changes)

    def add(
        self, generation: int, command: int, flags: int, offset: int, length: int, data: Any
    ) -> bool:
        """A change was acknowledged. Returns False if it was in an earlier
        generation, and must be done again."""
        kept = None if data is None else bytes(data)
        with self._lock:
            if generation != self.generation:
                return False
            self._number += 1
            if not self._changes:
                self._set_dirty(True)
            self._changes.append((self._number, command, flags, offset, length, kept))
            self._bytes += 0 if kept is None else len(kept)
            return True

    def mark(self) -> Mark:
        """Returns the mark of the newest change; a flush that begins afterwards covers it."""
        with self._lock:
            return self.generation, self._number

    def forget(self, mark: Mark) -> bool:
        """The changes up to this mark are durable. Returns False if they were repeated meanwhile: a repeated
        change may have replaced a later one on the medium until that is repeated, too, so another flush
        has to cover them."""
        generation, number = mark
        with self._lock:
            if generation != self.generation:
                return False
            had_changes = bool(self._changes)
            while self._changes and self._changes[0][0] <= number:
                data = self._changes.popleft()[5]
                self._bytes -= 0 if data is None else len(data)
            if had_changes and not self._changes:
                self._set_dirty(False)
            return True

    def all(self) -> List[Change]:
        """Returns the changes, in order."""
        with self._lock:
            return list(self._changes)

    def begin_generation(self) -> List[Change]:
        """The connection was replaced. Returns what must be repeated on the new one, in order."""
        with self._lock:
            self.generation += 1
            return list(self._changes)
