"""Unit attention conditions (SAM-5): the ones that have names here, and the queue of one nexus for
one logical unit. Pure.

A worker keeps a Queue per logical unit and swaps its dispatch table only while the queue holds
something (ARCHITECTURE D10). Invariants: a code stands in the queue at most once; a reset condition
stands before all others and has swept away what it covers; at most CAPACITY conditions wait.
"""

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

#: The reset conditions, most important first (SAM-5 table 59). A reset makes pointless what an
#: earlier, lesser one says.
RESETS = (POWER_ON, POWER_ON_OR_RESET, BUS_RESET, DEVICE_RESET, NEXUS_LOSS)

#: What a reset of the logical unit or the power makes stale: commands that another cleared are gone
#: anyway.
COVERED_BY_RESET = frozenset([COMMANDS_CLEARED_BY_ANOTHER_INITIATOR])

# more conditions than have names here; beyond it POWER_ON_OR_RESET says 'look at everything'
CAPACITY = 32


class Queue(object):
    """The unit attention conditions that one nexus is owed by one logical unit, in the order they
    will be reported."""

    __slots__ = ('_conditions',)

    def __init__(self, conditions=()):
        self._conditions = []
        for asc, ascq in conditions:
            self.add(asc, ascq)

    def __len__(self):
        return len(self._conditions)

    def add(self, asc, ascq):
        """Owe the nexus this condition. One that already waits keeps its place."""
        code = (asc, ascq)
        waiting = self._conditions
        if code in waiting:
            return
        if code not in RESETS:
            if len(waiting) >= CAPACITY:
                self._conditions = [POWER_ON_OR_RESET]
            else:
                waiting.append(code)
            return
        rank = RESETS.index(code)
        if any(c in RESETS and RESETS.index(c) < rank for c in waiting):
            return
        kept = [
            c
            for c in waiting
            if c not in RESETS and (code == NEXUS_LOSS or c not in COVERED_BY_RESET)
        ]
        self._conditions = [code] + kept

    def peek(self):
        """The (asc, ascq) that comes next, or None. REQUEST SENSE with nothing else to say takes
        it, INQUIRY leaves it."""
        return self._conditions[0] if self._conditions else None

    def take(self):
        """The (asc, ascq) that comes next, now reported and gone; None if there is none."""
        return self._conditions.pop(0) if self._conditions else None

    def drop(self, asc, ascq):
        """What another command has told already is owed no more: REPORT LUNS clears 3F/0E (SPC-4
        6.33)."""
        self._conditions = [c for c in self._conditions if c != (asc, ascq)]

    def clear(self):
        """Forget everything: the nexus is gone."""
        self._conditions = []
