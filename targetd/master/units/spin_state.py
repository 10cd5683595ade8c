"""When the disk of one unit sleeps: the states and what changes them. Pure; times are seconds of one clock.

AWAKE --idle for spin-down, or a stop by the only initiator--> STOPPING --stopped--> ASLEEP
  ^                                                             |                     |
  +----------------------failed---------------------------------+                     |
  +<--started, or failed-- STARTING <--an access (wake) ------------------------------+
  +<--an access of which targetd did not know (the kernel has started the disk)-------+
"""

AWAKE, STOPPING, ASLEEP, STARTING = 'awake', 'stopping', 'asleep', 'starting'

#: After so many stops that failed one after the other the disk is left alone.
MOST_FAILURES = 3


class SpinState(object):
    """limit: `spin-down` of the LUN, seconds; 0 or less: only by order. Public to read: state; why: the
    reason of the last stop ('idle for …' or 'ordered by …') or of the last failure; given_up: why it is not
    stopped any more, or ''."""

    def __init__(self, limit, now):
        self.limit = limit
        self.state = AWAKE
        self.why = ''
        self.given_up = ''
        self._failures = 0
        self._accesses = None
        self._active = now  # time of the last access that was noticed

    def note_accesses(self, now, accesses):
        """The disk's counters (host.spin.Accesses, None if they are not known). Returns True if somebody has
        accessed the disk while it slept, so that it is awake now."""
        if accesses is None or self.state in (STOPPING, STARTING):
            return False
        before, self._accesses = self._accesses, accesses
        if before is None:
            # the first look: nothing is known about the time before
            self._active = max(self._active, now) if self.state == AWAKE else self._active
            return False
        if accesses.completed == before.completed and not accesses.in_flight:
            return False
        self._active = now
        if self.state == ASLEEP:
            self.state = AWAKE
            return True
        return False

    def is_idle(self, now):
        """True if the disk was idle for the time of `spin-down`."""
        return (
            self.state == AWAKE
            and self.limit > 0
            and not self.given_up
            and self._accesses is not None
            and now - self._active >= self.limit
        )

    def seconds_left(self, now):
        """The time after which the disk may have been idle for long enough, None if there is none."""
        if self.limit <= 0 or self.given_up or self.state != AWAKE:
            return None
        return max(0, self.limit - (now - self._active))

    def stop_begins(self, why):
        """Every session learns that the disk sleeps; then it is stopped."""
        self.state, self.why = STOPPING, why

    def stopped(self, accesses):
        """The disk has stopped. accesses: its counters afterwards."""
        self.state, self._accesses = ASLEEP, accesses
        self._failures = 0

    def stop_failed(self, now, why):
        """The disk has not stopped, and is used as before."""
        self.state, self.why, self._active = AWAKE, why, now
        self._accesses = None
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self.given_up = why

    def start_begins(self):
        """An access waits for the disk."""
        self.state = STARTING

    def started(self, now):
        """The disk is ready, or its start has failed: accesses go to it, and report what it says."""
        self.state, self._active = AWAKE, now
        self._accesses = None
