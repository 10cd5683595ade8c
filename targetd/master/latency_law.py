"""Decides which units are slowed down while others miss their latency-target, and to how many commands per
second. Pure: it takes the numbers of one second, and has no clock.

     missed --> x 3/4 of the measured rate, again each second, down to a floor
     met for `patience` seconds --> x 5/4 each second --> the rate that it had at first is exceeded: free

If the target is missed soon after a rate was raised, or a unit freed, the next attempt comes later each time,
so that the protected commands are late in a small part of the seconds only. Linux does the
same for cgroups (Documentation/admin-guide/cgroup-v2.rst, io.latency), with queue depths instead of rates.
"""

from targetd.scsi.counters import upper_bound

SLOWER, FASTER = 0.75, 1.25
#: No unit is slowed down to less than this part of its first rate, or than so many commands per second.
FLOOR_SHARE, FLOOR_COMMANDS = 0.05, 10
#: Seconds for which the targets must have been met before a rate is raised: at first, and at most.
PATIENCE, LONGEST_PATIENCE = 3, 24
#: The part of the commands that must be answered within the latency-target.
SHARE = 0.9


class Slowed(object):
    """A unit that is slowed down. rate: commands per second that it may execute; first: what it executed
    before; causes: names of those for which it is slowed down; patience: seconds for which the targets must
    have been met."""

    def __init__(self, rate, causes, patience=PATIENCE):
        self.rate = self.first = rate
        self.causes = causes
        self.patience = patience
        self._met = 0  # seconds since the targets were missed
        self._raised = 0  # how often the rate was raised since

    @property
    def floor(self):
        return max(FLOOR_COMMANDS, FLOOR_SHARE * self.first)

    def missed(self, rate, causes):
        """The targets were missed in the last second, in which the unit executed so many commands."""
        if 0 < self._raised <= PATIENCE:
            self.patience = longer(self.patience)
        self._met = self._raised = 0
        self.causes = causes
        self.rate = max(self.floor, SLOWER * min(self.rate, rate))

    def met(self):
        """The targets were met in the last second. Returns True if the unit is free again."""
        self._met += 1
        if self._met < self.patience:
            return False
        self._raised += 1
        self.rate *= FASTER
        return self.rate > self.first


def longer(patience):
    """The patience after an attempt that came too early."""
    return min(2 * patience, LONGEST_PATIENCE)


class Law(object):
    """slowed: {unit: Slowed}. A unit is any hashable value."""

    def __init__(self):
        self.slowed = {}
        self._freed = {}  # unit that is free since a short time -> [seconds, its patience]

    def step(self, rates, missing):
        """A second is over. rates: {unit: commands that it executed}; missing: {unit: [names of those that
        missed their target and share its disk]}. Returns ([units that are slowed down from now on],
        [those that are free again])."""
        begun, ended = [], []
        for unit, causes in missing.items():
            rate = rates.get(unit, 0)
            slowed = self.slowed.get(unit)
            if slowed is None and rate > FLOOR_COMMANDS:
                _, patience = self._freed.pop(unit, (0, None))
                slowed = Slowed(rate, causes, longer(patience) if patience else PATIENCE)
                self.slowed[unit] = slowed
                begun.append(unit)
            if slowed is not None:
                slowed.missed(rate, causes)
        for freed in self._freed.values():
            freed[0] += 1
        self._freed = {u: freed for u, freed in self._freed.items() if freed[0] <= LONGEST_PATIENCE}
        for unit, slowed in list(self.slowed.items()):
            if unit not in missing and slowed.met():
                del self.slowed[unit]
                self._freed[unit] = [0, slowed.patience]
                ended.append(unit)
        return begun, ended

    def forget(self, unit):
        """The unit is not exported any more, or nothing that shares its disk has a target."""
        self.slowed.pop(unit, None)
        self._freed.pop(unit, None)


def within(histogram, share=SHARE):
    """The seconds within which this share of the samples was answered, with the samples of a bucket spread
    evenly; None without samples. histogram: {bucket of scsi.counters: samples}."""
    left = share * sum(histogram.values())
    if not left:
        return None
    for bucket in sorted(histogram):
        if left <= histogram[bucket]:
            low = upper_bound(bucket - 1) if bucket else 0
            return (low + (upper_bound(bucket) - low) * left / histogram[bucket]) / 1e6
        left -= histogram[bucket]
    return upper_bound(max(histogram)) / 1e6
