"""The bound on the data that executor threads have read for a connection and not yet sent."""

import threading

#: Data that executor threads may have read for a connection and not yet sent. A read that would
#: exceed it waits.
READ_BUDGET_BYTES = 64 << 20
#: A read of at most this size does not wait if no other read of its unit runs: reads of a unit that
#: hangs keep their part of the budget.
NEXT_READ_BYTES = 1 << 20


class ByteBudget(object):
    """Byte budget: take() blocks until enough bytes are free. [any]"""

    def __init__(self, limit):
        self._limit = self._left = limit
        self._users = {}  # unit -> number of its reads that hold bytes
        self._condition = threading.Condition()

    def take(self, count, unit=None):
        """Block until `count` bytes are free, and take them. A count above the limit takes the
        whole budget; NEXT_READ_BYTES are taken at once for a unit that holds none."""
        count = min(count, self._limit)
        with self._condition:
            while not self._may_take(count, unit):
                self._condition.wait()
            self._take(count, unit)

    def try_take(self, count, unit=None):
        """As take(), but returns False if it would block."""
        count = min(count, self._limit)
        with self._condition:
            if not self._may_take(count, unit):
                return False
            self._take(count, unit)
        return True

    def _may_take(self, count, unit):
        return self._left >= count or unit not in self._users and count <= NEXT_READ_BYTES

    def _take(self, count, unit):
        self._left -= count
        self._users[unit] = self._users.get(unit, 0) + 1

    def hold(self, count, unit=None):
        """Take `count` bytes even if they are not free: who calls this has waited in another way."""
        with self._condition:
            self._take(min(count, self._limit), unit)

    @property
    def held(self):
        """The bytes that are taken."""
        return self._limit - self._left

    def give_back(self, count, unit=None):
        """Free the bytes that take(count, unit) took."""
        with self._condition:
            self._left += min(count, self._limit)
            self._users[unit] -= 1
            if not self._users[unit]:
                del self._users[unit]
            self._condition.notify_all()
