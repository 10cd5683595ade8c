"""Opens the media of several LUNs in parallel, in child processes (processes.jobs), so that a medium
that does not respond delays no other.

     round 1: all in parallel --(all answered or timed out)--> round 2: the refused ones, one by one --> done

Each disk has a job of its own. Files of one directory share a job, since a thousand forks take far
longer than opening a thousand files; if such a job does not answer in time, each of its files gets a
job of its own. Round 2 is for LUNs that share a medium: the second LUN can share the claim of the
first only after the first is open. It is skipped if nothing was opened in the meantime that could
change the result.
"""

import os
from collections import deque, namedtuple

from targetd.errors import Standby, StoreError
from targetd.master.exports import open_medium, rbd_export, unit_identity
from targetd.master.processes import jobs

#: Files that one job opens: their descriptors must fit into one message of the channel.
FILES_PER_JOB = 64
MEMORY_DISKS_PER_JOB = 200  # memory disks have one descriptor, null stores have none

#: What each file adds to the time limit of a job: far more than opening it takes on a busy host.
SECONDS_PER_FILE = 0.2

HANGS = 'the disk, or the path to it, does not respond; see dmesg'


#: A medium that was opened for `reload --plan` only. It has the attributes of a Unit that decide
#: whether another LUN can be served beside it.
PlannedUnit = namedtuple('PlannedUnit', 'target_name lun store facts')


class OpenBatch(object):
    """The media opened by one call of Exports.open_media; the arguments are those of that method."""

    def __init__(self, exports, wanted, done, plan_only=False, leaving=()):
        self.leaving = leaving
        self.plan_only = plan_only
        self.exports = exports
        self.jobs = exports.jobs
        self.outcomes = {}  # (target name, number) -> Unit or StoreError
        self._wanted = wanted
        self._done = done
        self._missing = 0
        self._refused = deque()  # (target, lun) for round 2
        self._is_second = False
        self._others_active = False  # other jobs open or close media at the same time
        # key of a medium -> the Units on it that will be served, those of this batch included
        self._units_by_medium = {}
        self._units_by_identity = {}  # (setting, identifier) -> a Unit that has it
        self._index_units()

    def open_all(self):
        """Starts to open all media; calls done now or later."""
        self._others_active = not self.jobs.is_idle
        self._missing = len(self._wanted) + 1
        for group in grouped_by_directory(self._wanted):
            if len(group) == 1:
                self._open(*group[0])
            else:
                self._open_group(group)
        self._one_less()

    def _open_group(self, group):
        """Opens several files in one job."""
        arguments = [
            (target, lun, self.exports.known.get(target.name, lun.number)) for target, lun in group
        ]
        held = self.open_stores()
        exports, journals = self.exports, self.exports.journals
        self.jobs.submit_job(
            tuple((target.name, lun.number) for target, lun in group),
            lambda: open_medium.open_files(
                arguments,
                held,
                exports.server,
                exports.units.replication.state,
                exports.process,
                self.plan_only,
                exports.served,
                journals,
            ),
            lambda answer: self._group_answered(group, answer),
            [descriptor for store in held for descriptor in store.descriptors()],
            jobs.SECONDS + SECONDS_PER_FILE * len(group),
        )

    def _group_answered(self, group, answer):
        media = answer.values.get('media')
        if media is None:
            for target, lun in group:
                self._open(target, lun)
            return
        taken = 0
        for (target, lun), words in zip(group, media):
            own = answer.descriptors[taken : taken + words['descriptors']]
            taken += words['descriptors']
            self._take(target, lun, words, own)

    def _open(self, target, lun):
        key = (target.name, lun.number)
        if self.jobs.is_stuck(key):
            self._outcome(
                key,
                StoreError(
                    '%s: the last attempt to open it has not finished yet; %s'
                    % (lun.backing_store or lun.type, HANGS)
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
                self.plan_only,
                None,
                self.exports.served,
                self.exports.journals,
            )
            self.jobs.submit_job(
                key,
                lambda: open_medium.open_medium(*arguments),
                lambda answer: self._answered(target, lun, answer),
                kept,
                self._seconds(key, lun),
            )

    def _seconds(self, key, lun):
        """The time limit of the job for this LUN; None: the usual one."""
        if not rbd_export.is_image(lun.backing_store):
            return None
        is_ordered = key in self.exports.units.replication.state.ordered
        return rbd_export.JOB_SECONDS if is_ordered else None

    def open_stores(self):
        """Returns all open stores: those of served units and those that this batch has opened."""
        return self.exports.open_stores() + [
            outcome.store
            for outcome in self.outcomes.values()
            if not isinstance(outcome, StoreError)
        ]

    def _index_units(self):
        places = {(target.name, lun.number) for target, lun in self._wanted}.union(self.leaving)
        for unit in list(self.exports.units.by_id.values()) + list(self.exports.pending.values()):
            if (unit.target_name, unit.lun.number) not in places:
                self._index(unit)

    def _index(self, unit):
        self._units_by_medium.setdefault(unit.store.key, []).append(unit)
        for identifier in unit_identity.identifiers(unit.facts):
            self._units_by_identity.setdefault(identifier, unit)

    def _require_own_identity(self, unit):
        """Raises StoreError if another medium is shown to initiators under the same identity."""
        for setting, value in unit_identity.identifiers(unit.facts):
            other = self._units_by_identity.get((setting, value))
            if other is not None and other.store.key != unit.store.key:
                raise StoreError(
                    'it would have the same %s as lun %d of %s (%s), which is another disk; multipath '
                    'software makes one disk of both, and a failover writes to the wrong one; write '
                    'another %s for one of them'
                    % (setting, other.lun.number, other.target_name, value, setting)
                )

    def _answered(self, target, lun, answer):
        if answer.is_late:
            self._outcome(
                (target.name, lun.number),
                StoreError(
                    '%s cannot be opened: %s; %s'
                    % (lun.backing_store or lun.type, answer.why, HANGS)
                ),
            )
        elif answer.why and not answer.values:
            self._outcome(
                (target.name, lun.number),
                StoreError('%s: %s' % (lun.backing_store or lun.type, answer.why)),
            )
        else:
            self._take(target, lun, answer.values, answer.descriptors)

    def _take(self, target, lun, words, descriptors):
        key = (target.name, lun.number)
        if 'failed' in words:
            if not self._is_second:
                self._refused.append((target, lun))
            error = (Standby if words.get('is_standby') else StoreError)(words['failed'])
            error.shown = words.get('shown')
            self._outcome(key, error)
            return
        others = self._units_by_medium.get(tuple(words['medium']), [])
        unit = None
        try:
            make = self.exports.make_planned_unit if self.plan_only else self.exports.make_unit
            unit = make(target, lun, words, descriptors, others)
            self._require_own_identity(unit)
        except StoreError as e:
            if unit is not None:
                self.exports.discard_unit(unit)
            self._outcome(key, e)
        else:
            self._index(unit)
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


def grouped_by_directory(wanted):
    """Returns [[(target, lun), ...], ...]: files whose paths have the same directory together, at most
    FILES_PER_JOB of them; memory disks and null stores together; everything else alone. Looks at the
    text of the paths only: the master must not wait for a file system."""
    groups, by_directory = [], {}
    for target, lun in wanted:
        path = lun.backing_store or ''
        if path and (not path.startswith('/') or path.startswith('/dev/')):
            groups.append([(target, lun)])
            continue
        group = by_directory.get(os.path.dirname(path))
        limit = FILES_PER_JOB if path else MEMORY_DISKS_PER_JOB
        if group is None or len(group) == limit:
            group = by_directory[os.path.dirname(path)] = []
            groups.append(group)
        group.append((target, lun))
    return groups
