"""The locks and journals of atomic writes (the setting atomic-writes): one file for each medium,
which is both.

     open --grant--> a slot for each session that has the medium --retire: its worker is gone--> empty: unlocked, free
                                                                     | amid a write
                                                                     v
                                     a job puts the old bytes back --done--> unlocked, free
                                                                     |
                                                                     +--> it cannot: the unit failed, and the range stays
                                                                          locked until it was tried again, and done

Invariants: a slot's locks are those of an open file description that the worker and the master
have, so they last as long as the master wants; they end when the slot is known to be empty. A
medium has one file, whoever serves it: by the data's key, so that a later server finds what an
earlier one left (exports.open_medium). May import store, master.state.
"""

import os

from targetd import compat, log
from targetd.errors import StoreError
from targetd.master.state import journal_recovery
from targetd.master.state.state_directory import sync_directory
from targetd.store import from_descriptor, journal, ranges


class Medium(object):
    """One medium. descriptor: of its file; path: of that, or None (memory); users: how many units
    have it."""

    def __init__(self, key, descriptor, path):
        self.key = key
        self.descriptor = descriptor
        self.path = path
        self.users = 0
        self.slots = {}  # number -> journal.Slot that a worker has, or that has to be put right

    def grant(self):
        """A Slot for a worker. Raises OSError."""
        number = next(n for n in range(len(self.slots) + 1) if n not in self.slots)
        descriptor = ranges.another(self.descriptor)
        try:
            if os.fstat(descriptor).st_size < (number + 1) * journal.SLOT:
                os.ftruncate(descriptor, (number + 1) * journal.SLOT)
        except BaseException:
            os.close(descriptor)
            raise
        self.slots[number] = slot = journal.opened(descriptor, number, self.path)
        return slot

    def free(self, slot):
        """The slot is empty and nobody has it: its locks end, whoever else may still have the
        description."""
        compat.unlock(slot.descriptor)
        slot.close()
        del self.slots[slot.number]


class Repair(object):
    """A slot to be put right. descriptor: of the unit's medium, its own, or None."""

    def __init__(self, unit, slot):
        self.unit = unit
        self.medium = unit.atomic
        self.slot = slot
        self.name = ('repair', unit.id, id(slot))
        self.has_failed = False
        self._description = unit.store.description()
        self._descriptor = None if unit.store.descriptor is None else os.dup(unit.store.descriptor)

    def kept(self):
        """The descriptors that do() needs."""
        return [self.slot.descriptor] + ([] if self._descriptor is None else [self._descriptor])

    def do(self):
        """In a child."""
        try:
            with from_descriptor(self._description, self._descriptor) as medium:
                self.slot.put_right(medium)
        except OSError as e:
            return {'failed': e.strerror or str(e)}, ()
        return {}, ()

    def close(self):
        """It is done."""
        if self._descriptor is not None:
            os.close(self._descriptor)


class AtomicWrites(object):
    """`units`: units.Units; `jobs`: who repairs; on_repaired(): something is whole again."""

    def __init__(self, units, jobs, on_repaired):
        self.units = units
        self.jobs = jobs
        self.on_repaired = on_repaired
        self.is_over = False  # the server ends: what is half done is left to the next one
        self._media = {}  # store.key -> Medium
        self._repairs = []  # under way, or failed

    # -- media -------------------------------------------------------------------------------------------------------

    def open(self, store, path):
        """The Medium of an opened store; path: of its journal, or None. Raises StoreError."""
        medium = self._media.get(store.key)
        if medium is None:
            medium = self._media[store.key] = Medium(store.key, create(path), path)
        medium.users += 1
        return medium

    def close(self, medium):
        """One unit less has it."""
        medium.users -= 1
        self._end(medium)

    def _end(self, medium):
        if (
            medium.users
            or (medium.slots and not self.is_over)
            or self._media.get(medium.key) is not medium
        ):
            return
        del self._media[medium.key]
        if medium.path is not None and not medium.slots:
            os.unlink(medium.path)
        for slot in medium.slots.values():
            slot.close()
        os.close(medium.descriptor)

    # -- slots -------------------------------------------------------------------------------------------------------

    def retire(self, unit, slot):
        """The worker that had the slot is gone, or has closed it. Before the unit's store is
        closed."""
        medium = unit.atomic
        try:
            is_empty = slot.is_empty()
        except OSError as e:
            log.error('%s: %s', medium.path, e.strerror)
            is_empty = False
        if is_empty:
            medium.free(slot)
            self._end(medium)
        elif self.is_over:
            log.warning(
                'unit %s: an atomic write was under way; the next start takes it back (%s)',
                unit.id,
                medium.path,
            )
        else:
            log.warning(
                'unit %s: an atomic write was under way in a worker that is gone; it is taken back',
                unit.id,
            )
            repair = Repair(unit, slot)
            self._repairs.append(repair)
            self._begin(repair)

    # -- repairs -----------------------------------------------------------------------------------------------------

    def is_repairing(self, unit):
        """Is something on this unit's medium half done?"""
        return unit.atomic is not None and any(
            repair.medium is unit.atomic for repair in self._repairs
        )

    def _begin(self, repair):
        repair.has_failed = False
        self.jobs.submit_job(
            repair.name, repair.do, lambda answer: self._over(repair, answer), repair.kept()
        )

    def _over(self, repair, answer):
        if answer.why:
            repair.has_failed = True
            self.units.fail(
                repair.unit,
                'an atomic write that was left half done cannot be taken back: %s; its blocks cannot '
                'be read or written' % answer.why,
            )
            return
        log.info('unit %s: the atomic write was taken back', repair.unit.id)
        self._repairs.remove(repair)
        repair.close()
        repair.medium.free(repair.slot)
        self._end(repair.medium)
        self.on_repaired()

    def retry(self, unit):
        """The administrator has seen to it: try again what failed. One that got no answer may still
        be at it: not before."""
        for repair in [
            repair for repair in self._repairs if repair.medium is unit.atomic and repair.has_failed
        ]:
            if self.jobs.is_stuck(repair.name):
                self.units.fail(
                    unit,
                    'what was to take an atomic write back still waits for the disk; its blocks cannot be '
                    'read or written',
                )
            else:
                self._begin(repair)


def create(path):
    """The descriptor of a new journal. Nobody but workers gets at it, and these may open it. Raises
    StoreError.

    path: None for one in memory. One that is there was put right."""
    try:
        if path is None:
            descriptor = compat.memory_file('targetd-atomic', 0)
        else:
            directory = os.path.dirname(path)
            os.makedirs(directory, 0o700, exist_ok=True)
            os.chmod(directory, 0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(
            'atomic writes need a journal, and %s cannot be written: %s; make it writable, or write '
            'atomic-writes = no' % (path or 'memory', e.strerror)
        )
    try:
        if path is not None:
            journal_recovery.lock_journal(descriptor, path)
            sync_directory(os.path.dirname(path))
        os.fchmod(descriptor, 0o666)
        why_not = ranges.why_not(descriptor)
        if why_not:
            if path is not None:
                os.unlink(path)
            raise StoreError(
                'atomic writes need locks on %s: %s; write atomic-writes = no'
                % (path or 'memory', why_not)
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
