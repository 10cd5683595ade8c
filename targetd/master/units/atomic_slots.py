"""The journals of atomic writes (the setting atomic-writes): one file for each medium holds both
the locks and the saved old blocks.

     open --grant_slot--> a slot for each session --retire_slot: the worker is gone--> empty: free
                                                       | a write was in progress
                                                       v
           a child process writes the old blocks back --done--> free
                                                       |
                                                       +--> failed: the unit has failed, and the range
                                                            stays locked until a retry succeeds

Invariants: the locks of a slot belong to an open file description that both the worker and the
master have, so they outlast the worker; the master unlocks them when it knows that the slot is
empty. A medium has one journal, whichever server serves it: the file is named by the data's key, so
that a later server finds what an earlier one left (exports.open_medium).

The disk of state-dir may be slow or may not respond, so the job that opens a medium creates its journal,
with room for journal.READY_SLOTS slots, and another job extends it when half of them are granted.
"""

import errno
import os

from targetd import compat, log
from targetd.master.state import journal_recovery
from targetd.store import failure_flags, from_descriptor, journal, linux


class JournaledMedium(object):
    """A medium with atomic writes. descriptor: of its journal; path: of the journal, or None if it
    is in memory; users: the number of units that use the medium; jobs: extends the journal."""

    def __init__(self, key, descriptor, path, jobs):
        self.key = key
        self.jobs = jobs
        self.is_extending = False
        self.descriptor = descriptor
        self.path = path
        self.users = 0
        self.slots = {}  # number -> journal.Slot: granted to a worker, or to be repaired

    def grant_slot(self):
        """A free journal.Slot for a worker. Raises OSError, with EAGAIN if there is no room and the
        job that extends the journal has not ended."""
        number = next(n for n in range(len(self.slots) + 1) if n not in self.slots)
        descriptor = linux.reopen(self.descriptor)
        try:
            self._make_room(number, os.fstat(descriptor).st_size // journal.SLOT)
        except BaseException:
            os.close(descriptor)
            raise
        self.slots[number] = slot = journal.open_slot(descriptor, number, self.path)
        return slot

    def _make_room(self, number, room):
        """room: the number of slots that the journal has room for."""
        if self.path is None:  # memory does not wait for a disk
            os.ftruncate(self.descriptor, max(number + 1, room) * journal.SLOT)
            return
        name = ('extend journal', self.path)
        is_extending = self.is_extending or self.jobs.is_stuck(name)
        if number >= room:
            if is_extending:
                raise OSError(
                    errno.EAGAIN,
                    'the journal %s is being extended; its disk is slow or does not respond'
                    % self.path,
                )
            room = number + 1  # taken over from a program that did not extend it beforehand
            os.ftruncate(self.descriptor, room * journal.SLOT)
        if not is_extending and room - number <= journal.READY_SLOTS // 2:
            self.is_extending = True
            descriptor = self.descriptor
            self.jobs.submit_job(
                name,
                lambda: extend_journal(descriptor, room + journal.READY_SLOTS),
                self._on_extended,
                [descriptor],
            )

    def _on_extended(self, answer):
        self.is_extending = False
        if answer.why:
            log.warning('the journal %s cannot be extended: %s', self.path, answer.why)

    def free_slot(self, slot):
        """The slot is empty and no worker uses it: unlock its ranges. (Closing is not enough: a
        process that is about to end may still have the description.)"""
        compat.unlock(slot.descriptor)
        slot.close()
        del self.slots[slot.number]


class Repair(object):
    """The write-back of one slot's old blocks, in a child process. It has its own descriptor of the
    unit's medium, because the unit's store may be closed meanwhile."""

    def __init__(self, unit, slot):
        self.unit = unit
        self.medium = unit.atomic
        self.slot = slot
        self.name = ('repair', unit.id, id(slot))
        self.has_failed = False
        # without the flag of the unit, whose failure must not prevent that the old blocks are restored
        self._description = dict(unit.store.description(), flag=failure_flags.NO_FLAG)
        self._descriptor = None if unit.store.descriptor is None else os.dup(unit.store.descriptor)

    def descriptors(self):
        """The descriptors that the child process needs."""
        return [self.slot.descriptor] + ([] if self._descriptor is None else [self._descriptor])

    def write_back(self):
        """Runs in the child process, with an open file description of its own: an error of writing
        back is reported to each."""
        try:
            own = None if self._descriptor is None else linux.reopen(self._descriptor)
            with from_descriptor(self._description, own) as medium:
                self.slot.recover(medium)
        except OSError as e:
            return {'failed': e.strerror or str(e)}, ()
        return {}, ()

    def close(self):
        """Close the descriptor of the medium."""
        if self._descriptor is not None:
            os.close(self._descriptor)


class AtomicWrites(object):
    """The journals of all media, and their repairs.

    jobs runs a repair in a child process; on_failed(unit, why): a repair failed; on_repaired(): a
    repair is done."""

    def __init__(self, jobs, on_failed, on_repaired):
        self.jobs = jobs
        self.on_failed = on_failed
        self.on_repaired = on_repaired
        self.is_stopping = False  # the server stops: repairs are left to the next start
        self._media = {}  # store.key -> JournaledMedium
        self._repairs = []  # in progress, or failed

    # -- media -------------------------------------------------------------------------------------

    def open_medium(self, store, path, descriptor=None):
        """The JournaledMedium of an opened store. path: of its journal, or None for one in memory;
        descriptor: of the new journal, which becomes this object's; None if the medium had one when
        the store was opened. Raises StoreError."""
        medium = self._media.get(store.key)
        if medium is None:
            if descriptor is None:  # or the last unit that used it has ended meanwhile
                descriptor = journal_recovery.create_journal(path)
            medium = JournaledMedium(store.key, descriptor, path, self.jobs)
            self._media[store.key] = medium
        elif descriptor is not None:
            # the medium has another name, for which another journal was created
            remove_new_journal(descriptor, path)
        medium.users += 1
        return medium

    @property
    def paths(self):
        """The paths of the journals in state-dir."""
        return frozenset(m.path for m in self._media.values() if m.path is not None)

    def close_medium(self, medium):
        """One unit less uses the medium. The journal is removed with the last unit, unless a repair
        still needs it."""
        medium.users -= 1
        self._close_if_unused(medium)

    def _close_if_unused(self, medium):
        has_slots = bool(medium.slots) and not self.is_stopping
        if medium.users or has_slots or self._media.get(medium.key) is not medium:
            return
        del self._media[medium.key]
        if medium.path is not None and not medium.slots:
            os.unlink(medium.path)
        for slot in medium.slots.values():
            slot.close()
        os.close(medium.descriptor)

    # -- slots -------------------------------------------------------------------------------------

    def retire_slot(self, unit, slot):
        """The worker that had the slot is gone, or has closed it. If an atomic write was in
        progress, its old blocks are written back. Call before the unit's store is closed."""
        medium = unit.atomic
        try:
            is_empty = slot.is_empty()
        except OSError as e:
            log.error('%s: %s', medium.path, e.strerror)
            is_empty = False
        if is_empty:
            medium.free_slot(slot)
            self._close_if_unused(medium)
        elif self.is_stopping:
            log.warning(
                'unit %s: an atomic write was in progress; the next start of targetd writes its old '
                'blocks back (%s)',
                unit.id,
                medium.path,
            )
        else:
            log.warning(
                'unit %s: a worker died during an atomic write; its old blocks are being written back',
                unit.id,
            )
            repair = Repair(unit, slot)
            self._repairs.append(repair)
            self._start_repair(repair)

    # -- repairs -----------------------------------------------------------------------------------

    def is_repairing(self, unit):
        """True if an atomic write on this unit's medium is incomplete and not written back yet."""
        return unit.atomic is not None and any(
            repair.medium is unit.atomic for repair in self._repairs
        )

    @property
    def has_repairs(self):
        """True if an incomplete atomic write is not written back yet."""
        return bool(self._repairs)

    def handed_over(self, keep):
        """The journals as plain values, for the program that takes over (ARCHITECTURE D24). keep(descriptor):
        that program gets the descriptor, too."""
        return [
            {
                'key': medium.key,
                'descriptor': keep(medium.descriptor),
                'path': medium.path,
                'users': medium.users,
                'slots': {number: keep(slot.descriptor) for number, slot in medium.slots.items()},
            }
            for medium in self._media.values()
        ]

    def take_over(self, rows):
        """Continue with the journals of another program, whose locks belong to their open files."""
        for row in rows:
            medium = JournaledMedium(row['key'], row['descriptor'], row['path'], self.jobs)
            medium.users = row['users']
            for number, descriptor in row['slots'].items():
                medium.slots[number] = journal.open_slot(descriptor, number, medium.path)
            self._media[medium.key] = medium

    def of_store(self, key):
        """The JournaledMedium of the store with this key, or None."""
        return self._media.get(key)

    def _start_repair(self, repair):
        repair.has_failed = False
        self.jobs.submit_job(
            repair.name,
            repair.write_back,
            lambda answer: self._on_repair_ended(repair, answer),
            repair.descriptors(),
        )

    def _on_repair_ended(self, repair, answer):
        if answer.why:
            repair.has_failed = True
            self.on_failed(
                repair.unit,
                'the old blocks of an incomplete atomic write cannot be written back: %s; these '
                'blocks cannot be read or written' % answer.why,
            )
            return
        log.info('unit %s: the atomic write was rolled back', repair.unit.id)
        self._repairs.remove(repair)
        repair.close()
        repair.medium.free_slot(repair.slot)
        self._close_if_unused(repair.medium)
        self.on_repaired()

    def retry_repairs(self, unit):
        """The administrator acknowledged the failure: repeat the failed repairs of the medium. One
        whose child process is still blocked in the disk is not repeated, because that process could
        write old blocks over newer ones."""
        for repair in list(self._repairs):
            if repair.medium is not unit.atomic or not repair.has_failed:
                continue
            if self.jobs.is_stuck(repair.name):
                self.on_failed(
                    unit,
                    'the process that writes the old blocks of an incomplete atomic write back is '
                    'still waiting for the disk; these blocks cannot be read or written',
                )
            else:
                self._start_repair(repair)


def extend_journal(descriptor, slots):
    """Runs in a child process: makes room for so many slots."""
    try:
        if os.fstat(descriptor).st_size < slots * journal.SLOT:
            os.ftruncate(descriptor, slots * journal.SLOT)
    except OSError as e:
        return {'failed': e.strerror or str(e)}, ()
    return {}, ()


def remove_new_journal(descriptor, path):
    """Remove a journal that no unit uses."""
    try:
        os.unlink(path)
    except OSError as e:
        log.warning('%s: %s', path, e.strerror)
    os.close(descriptor)
