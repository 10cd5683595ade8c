"""Opens the media of several LUNs in parallel, each in a child process (processes.jobs), so that a
medium that does not respond delays no other.

     round 1: all in parallel --(all answered or timed out)--> round 2: the refused ones, one by one --> done

Round 2 is for LUNs that share a medium: the second LUN can share the claim of the first only after
the first is open. It is skipped if nothing was opened in the meantime that could change the result.
"""

from collections import deque

from targetd.errors import StoreError
from targetd.master.exports import open_medium

HANGS = 'the disk, or the path to it, does not respond; see dmesg'


class OpenBatch(object):
    """The media opened by one call of Exports.open_media."""

    def __init__(self, exports, wanted, done):
        self.exports = exports
        self.jobs = exports.jobs
        self.outcomes = {}  # (target name, number) -> Unit or StoreError
        self._wanted = wanted
        self._done = done
        self._missing = 0
        self._refused = deque()  # (target, lun) for round 2
        self._is_second = False
        self._others_active = False  # other jobs open or close media at the same time

    def open_all(self):
        """Starts to open all media; calls done now or later."""
        self._others_active = not self.jobs.is_idle
        self._missing = len(self._wanted) + 1
        for target, lun in self._wanted:
            self._open(target, lun)
        self._one_less()

    def _open(self, target, lun):
        key = (target.name, lun.number)
        if not lun.backing_store:  # a memory disk or the null store: opening never blocks
            words, descriptors = open_medium.open_medium(
                target,
                lun,
                (),
                self.exports.server,
                self.exports.units.replication.state,
                None,
                None,
            )
            self._take(target, lun, words, list(descriptors), False)
        elif self.jobs.is_stuck(key):
            self._outcome(
                key,
                StoreError(
                    '%s: the last attempt to open it has not finished yet; %s'
                    % (lun.backing_store, HANGS)
                ),
            )
        else:
            held = self.open_stores()
            kept = [descriptor for store in held for descriptor in store.descriptors()]
            arguments = (
                target,
                lun,
                held,
                self.exports.server,
                self.exports.units.replication.state,
                self.exports.process,
                self.exports.known.get(*key),
            )
            self.jobs.submit_job(
                key,
                lambda: open_medium.open_medium(*arguments),
                lambda answer: self._answered(target, lun, answer),
                kept,
            )

    def open_stores(self):
        """Returns all open stores: those of served units and those that this batch has opened."""
        return self.exports.open_stores() + [
            outcome.store
            for outcome in self.outcomes.values()
            if not isinstance(outcome, StoreError)
        ]

    def other_units(self):
        """Returns the Units that will be served besides a unit of this batch."""
        places = {(target.name, lun.number) for target, lun in self._wanted}
        return [
            unit
            for unit in self.exports.units.by_id.values()
            if (unit.target_name, unit.lun.number) not in places
        ] + [outcome for outcome in self.outcomes.values() if not isinstance(outcome, StoreError)]

    def _answered(self, target, lun, answer):
        if answer.is_late:
            self._outcome(
                (target.name, lun.number),
                StoreError('%s cannot be opened: %s; %s' % (lun.backing_store, answer.why, HANGS)),
            )
        elif answer.why and not answer.values:
            self._outcome(
                (target.name, lun.number), StoreError('%s: %s' % (lun.backing_store, answer.why))
            )
        else:
            self._take(target, lun, answer.values, answer.descriptors, True)

    def _take(self, target, lun, words, descriptors, may_share):
        key = (target.name, lun.number)
        if 'failed' in words:
            if may_share and not self._is_second:
                self._refused.append((target, lun))
            self._outcome(key, StoreError(words['failed']))
            return
        try:
            unit = self.exports.make_unit(target, lun, words, descriptors, self.other_units())
        except StoreError as e:
            self._outcome(key, e)
        else:
            self._outcome(key, unit)

    def _outcome(self, key, outcome):
        self.outcomes[key] = outcome
        self._one_less()

    def _one_less(self):
        self._missing -= 1
        if self._missing:
            return
        opened = any(not isinstance(outcome, StoreError) for outcome in self.outcomes.values())
        self._is_second = True
        if self._refused and (opened or self._others_active):
            self._missing = 1
            self._open(*self._refused.popleft())
        else:
            self._done(self.outcomes)
