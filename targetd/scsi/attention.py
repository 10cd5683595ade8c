"""Unit attention conditions (SAM-5): their names, and the queue of one nexus for one logical unit.
Pure.

A worker keeps a Queue per logical unit and changes the dispatch table only while the queue is not
empty (ARCHITECTURE D10). Invariants: a condition is in the queue at most once; a reset condition
comes before all others and has removed those that it covers; at most CAPACITY conditions are
pending.
"""

from typing import Iterable, List, Optional, Tuple

# (ASC, ASCQ), SPC-4 annex D
POWER_ON_OR_RESET = (0x29, 0x00)  # POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
POWER_ON = (0x29, 0x01)
BUS_RESET = (0x29, 0x02)  # target reset
DEVICE_RESET = (0x29, 0x03)  # BUS DEVICE RESET FUNCTION OCCURRED: logical unit reset
NEXUS_LOSS = (0x29, 0x07)
MEDIUM_MAY_HAVE_CHANGED = (0x28, 0x00)
MODE_PARAMETERS_CHANGED = (0x2A, 0x01)
LOG_PARAMETERS_CHANGED = (0x2A, 0x02)
RESERVATIONS_PREEMPTED = (0x2A, 0x03)
RESERVATIONS_RELEASED = (0x2A, 0x04)
REGISTRATIONS_PREEMPTED = (0x2A, 0x05)
ASYMMETRIC_ACCESS_STATE_CHANGED = (0x2A, 0x06)
IMPLICIT_TRANSITION_FAILED = (0x2A, 0x07)
CAPACITY_CHANGED = (0x2A, 0x09)
TIMESTAMP_CHANGED = (0x2A, 0x10)
COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = (0x2F, 0x00)
THRESHOLD = (0x38, 0x07)  # thin provisioning soft threshold reached
MICROCODE_CHANGED = (0x3F, 0x01)
INQUIRY_CHANGED = (0x3F, 0x03)
DEVICE_IDENTIFIER_CHANGED = (0x3F, 0x05)
LUNS_CHANGED = (0x3F, 0x0E)
MEDIUM_REMOVAL_REQUESTED = (0x5A, 0x01)

#: The reset conditions in order of precedence (SAM-5 table 59). A reset condition replaces those of
#: lower precedence.
RESETS = (POWER_ON, POWER_ON_OR_RESET, BUS_RESET, DEVICE_RESET, NEXUS_LOSS)

#: The conditions that power on or a reset makes obsolete: the reset has also ended the commands that
#: another initiator cleared.
COVERED_BY_RESET = frozenset([COMMANDS_CLEARED_BY_ANOTHER_INITIATOR])

# More than there are names above. If there are more, POWER_ON_OR_RESET replaces them all: the
# initiator then reads everything again.
CAPACITY = 32


class Queue(object):
    """The unit attention conditions of one logical unit that are pending for one nexus, in the
    order in which they will be reported."""

    __slots__ = ('_conditions',)

    def __init__(self, conditions: Iterable[Tuple[int, int]] = ()) -> None:
        self._conditions: List[Tuple[int, int]] = []
        for asc, ascq in conditions:
            self.add(asc, ascq)

    def __len__(self) -> int:
        return len(self._conditions)

    def __contains__(self, code: Tuple[int, int]) -> bool:
        return code in self._conditions

    def add(self, asc: int, ascq: int) -> None:
        """Make this condition pending. If it is pending already, it keeps its place."""
        code = (asc, ascq)
        pending = self._conditions
        if code in pending:
            return
        if code not in RESETS:
            if len(pending) >= CAPACITY:
                self._conditions = [POWER_ON_OR_RESET]
            else:
                pending.append(code)
            return
        rank = RESETS.index(code)
        if any(c in RESETS and RESETS.index(c) < rank for c in pending):
            return
        kept = [
            c
            for c in pending
            if c not in RESETS and (code == NEXUS_LOSS or c not in COVERED_BY_RESET)
        ]
        self._conditions = [code] + kept

    def peek(self) -> Optional[Tuple[int, int]]:
        """Return the (asc, ascq) of the next condition, which stays pending; None if there is
        none."""
        return self._conditions[0] if self._conditions else None

    def take(self) -> Optional[Tuple[int, int]]:
        """Remove and return the (asc, ascq) of the next condition; None if there is none."""
        return self._conditions.pop(0) if self._conditions else None

    def drop(self, asc: int, ascq: int) -> None:
        """Remove this condition, if it is pending: REPORT LUNS clears 3F/0E (SPC-4 6.33)."""
        self._conditions = [c for c in self._conditions if c != (asc, ascq)]
