"""The media of several LUNs opened side by side, each by a child (jobs): one that does not
answer holds up no other.

     round 1: all at once --all answered or given up--> round 2: those that were refused, one after the other --> done

Round 2 is for LUNs that share a medium: the second can share the claim of the first only when the
first has it. There is none if nothing was opened meanwhile that could make a difference.
"""

from collections import deque

from targetd.errors import StoreError
from targetd.master.exports import open_medium

HANGS = 'the disk, or what leads to it, hangs: dmesg may say why'


class Batch(object):
    """One call of Exports.open_all."""

    def __init__(self, exports, wanted, done):
        self.exports = exports
        self.jobs = exports.jobs
        self.outcomes = {}  # (target name, number) -> Unit or StoreError
        self._wanted = wanted
        self._done = done
        self._missing = 0
        self._refused = deque()  # (target, lun) for round 2
        self._is_second = False
        self._something_moves = False  # others open or close media at the same time

    def begin(self):
        """Call done, now or later."""
        self._something_moves = not self.jobs.is_idle
        self._missing = len(self._wanted) + 1
        for target, lun in self._wanted:
            self._open(target, lun)
        self._one_less()

    def _open(self, target, lun):
        key = (target.name, lun.number)
        if not lun.backing_store:  # memory, or nothing
            words, descriptors = open_medium.open_medium(
                target, lun, (), self.exports.server, self.exports.units.state, None, None
            )
            self._take(target, lun, words, list(descriptors), False)
        elif self.jobs.is_stuck(key):
            self._outcome(
                key,
                StoreError(
                    '%s: the last attempt to open it has no answer yet; %s'
                    % (lun.backing_store, HANGS)
                ),
            )
        else:
            held = self.held()
            kept = [descriptor for store in held for descriptor in store.owned()]
            arguments = (
                target,
                lun,
                held,
                self.exports.server,
                self.exports.units.state,
                self.exports.process,
                self.exports.known.get(*key),
            )
            self.jobs.submit_job(
                key,
                lambda: open_medium.open_medium(*arguments),
                lambda answer: self._answered(target, lun, answer),
                kept,
            )

    def held(self):
        """Every store that is open: those of others, and of this batch so far."""
        return self.exports.held() + [
            outcome.store
            for outcome in self.outcomes.values()
            if not isinstance(outcome, StoreError)
        ]

    def others(self):
        """The Units there will be beside one of this batch."""
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
                StoreError('%s: %s to opening it; %s' % (lun.backing_store, answer.why, HANGS)),
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
            self._outcome(key, self.exports.made(target, lun, words, descriptors, self.others()))
        except StoreError as e:
            self._outcome(key, e)

    def _outcome(self, key, outcome):
        self.outcomes[key] = outcome
        self._one_less()

    def _one_less(self):
        self._missing -= 1
        if self._missing:
            return
        opened = any(not isinstance(outcome, StoreError) for outcome in self.outcomes.values())
        self._is_second = True
        if self._refused and (opened or self._something_moves):
            self._missing = 1
            self._open(*self._refused.popleft())
        else:
            self._done(self.outcomes)
