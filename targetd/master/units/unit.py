"""One exported logical unit in the master: its configuration, its store, its shared state and the
workers that hold a replica of that state."""

import time
from collections import deque

from targetd.config.lun_maps import EVERY_LUN, Shown
from targetd.master.units import guards, sharing
from targetd.scsi import operations
from targetd.store.sleeping import ROTATES


class Unit(object):
    """A logical unit that is exported.

    id: str, unique as long as the export lasts; key: str, belongs to the data and names the saved
    state; lun: config.model.Lun; store: the Store that the master opened; facts: dict of the unit's
    properties; shared: shared_state.Shared; atomic: atomic_slots.JournaledMedium or None; found:
    dict with seen, contents, auto_assembled (exports.open_medium).

    workers: {worker: Nexus}, the workers whose sessions serve the unit; readers: those of them that see
    it read-only; views: {worker: lun_maps.Shown} of those that see it otherwise than the target has it;
    left_out: {worker: name of the initiator that holds the unit} of the sessions of the target that do
    not see it (sharing); leaving: {worker: name of its initiator, '' if it only reads} of sessions whose
    map does not have the unit any more, but whose commands may not have ended (map_changes); guests:
    {worker: (Nexus, count of copies)}, the workers whose copies read or write the unit (copy_guests);
    watched: byte ranges that ROD tokens represent (rod_tokens); slots: {worker, or (message id, worker) for a
    store that is being replaced: journal.Slot}, the journal slots that were granted."""

    def __init__(
        self, unit_id, key, target_name, lun, store, facts, shared, atomic=None, found=None
    ):
        self.id = unit_id
        self.key = key
        self.target_name = target_name
        self.lun = lun
        self.store = store
        self.facts = facts
        self.shared = shared
        self.atomic = atomic
        self.slots = {}
        self.found = found
        self.workers = {}
        self.readers = set()
        self.views = {}
        self.left_out = {}
        self.leaving = {}
        self.guests = {}
        self.watched = []
        self.trim_window = None  # (offset, length) where blocks are being freed (trimming)
        self.is_restoring = False  # old blocks are being put back: no session gets the unit
        self.queue = deque()  # (worker, message, answer): requests for a change, oldest first
        self.is_busy = False  # a change is being distributed; the queue waits for it
        self.sleep = ROTATES  # of store.sleeping, as the replicas know it
        self.asleep_since = 0  # wall clock, seconds
        self.spin_downs = self.spin_ups = 0  # how often its disk was stopped and started
        self.path_problem = ''  # how the medium at the path differs from the one that is open
        self.shrinkage = ''  # how much smaller the medium has become while the unit is SHRUNK
        self.is_resizing = False  # a reload has extended its medium, and may be refused yet
        self.sizes_changed = (
            0  # counts such changes: what was seen before one does not count after it
        )
        self.replicated_size = store.size  # bytes, as the replicas know it
        self.hanging = 0  # ANSWERS, HANGS or FENCED of scsi.medium_state, as the replicas know it
        self.since = int(time.time() * 1000)
        self.has_flush_timed_out = False
        self.position = None  # bytes of the operation that are done, though not yet durable
        self.are_records_scheduled = False  # changed records will be sent within RECORDS_SECONDS
        self.acknowledged_at = 0  # when faults were acknowledged, µs of CLOCK_MONOTONIC
        self.is_unsaved = False  # `shared` differs from the saved state

    @property
    def failure(self):
        """Why acknowledged data may be lost; '' if the medium has not failed."""
        return self.shared.failure

    @property
    def progress(self):
        """How much of the operation in progress is done, 0..65535."""
        operation = self.shared.operation
        if operation is not None and self.position is not None:
            operation = dict(operation, position=self.position)
        return operations.progress(operation, self.store.size)

    def replica_holders(self):
        """[(worker, Nexus)] of the workers that must receive changes of this unit."""
        return list(self.workers.items()) + [
            (worker, nexus) for worker, (nexus, _) in self.guests.items()
        ]

    def has_replica_in(self, worker):
        """True if this worker has a descriptor of the medium."""
        return worker in self.workers or worker in self.guests or worker in self.leaving

    def view_of(self, worker):
        """How the session of the worker sees the unit: lun_maps.Shown."""
        return self.views.get(worker) or Shown(self.lun.number, False)

    def show(self, worker, shown):
        """The session of the worker, which has the unit, sees it like this (lun_maps.Shown) from now on."""
        self.views.pop(worker, None)
        if shown != self.view_of(worker):
            self.views[worker] = shown
        if shown.read_only:
            self.readers.add(worker)
        else:
            self.readers.discard(worker)

    def give_to(self, worker, nexus, same_medium=(), shown=None):
        """The session of the worker gets the unit, unless another initiator holds it. Returns True if
        it does. same_medium: the other Units of the medium; shown: how it sees the unit (lun_maps.Shown)."""
        allowed, holder = sharing.access(self, same_medium, nexus.initiator_name, worker)
        self.forget_session(worker)
        if sharing.is_single(self) and self.replica_holders():
            allowed, holder = sharing.NOTHING, sharing.SINGLE
        if sharing.is_too_confined(self, worker):
            allowed, holder = sharing.NOTHING, sharing.CONFINED
        if allowed == sharing.NOTHING:
            self.left_out[worker] = holder
            return False
        self.workers[worker] = nexus
        if shown is not None:
            self.show(worker, shown)
        if allowed == sharing.READ:
            self.readers.add(worker)
        return True

    def forget_session(self, worker):
        """The session of the worker does not use the unit any more. Returns its Nexus, or None."""
        self.left_out.pop(worker, None)
        self.readers.discard(worker)
        self.views.pop(worker, None)
        return self.workers.pop(worker, None)

    def forget_sessions(self):
        """No session uses the unit any more. Returns {worker: the LUN that it was} of those that did."""
        numbers = {worker: self.view_of(worker).number for worker in self.workers}
        self.workers, self.readers, self.views, self.left_out = {}, set(), {}, {}
        return numbers

    def initiator_ports(self):
        """Sorted initiator port names that are logged in to the unit's target."""
        return sorted({nexus.initiator_port for nexus in self.workers.values()})

    def involves(self, worker):
        """True if the worker holds a replica, a journal slot or a queued request of the unit."""
        return (
            worker in self.workers
            or worker in self.left_out
            or worker in self.leaving
            or worker in self.guests
            or worker in self.slots
            or bool(self.queue)
        )

    def to_message(self, descriptor):
        """The unit as a dict (catalogue in channel.py). descriptor: index of the medium's
        descriptor in the message, or None."""
        shared = self.shared
        return {
            'lun': self.lun.number,
            'number': self.lun.number,
            'unit': self.id,
            'descriptor': descriptor,
            'store': self.store.description(),
            'facts': self.facts,
            'reservations': shared.reservations,
            'modes': shared.modes,
            'medium': shared.medium,
            'access': shared.access,
            'progress': self.progress,
            'hanging': self.hanging,
            'sleep': self.sleep if self.lun.spin_down else None,
            'records': shared.records,
            'since': self.since,
            'watched': self.watched,
            'restriction': shared.in_force,
            'guard': guards.has_snapshot(self.lun),
            'undo': guards.journal_bytes(self.lun) > 0,
        }

    def __repr__(self):
        return '<unit %s>' % self.id


class StandbyUnit(Unit):
    """A logical unit that another server serves and that initiators see in standby (standby_units). It has no
    medium. target: model.Target."""

    def __init__(self, unit_id, key, target, lun, store, facts, shared):
        super(StandbyUnit, self).__init__(unit_id, key, target.name, lun, store, facts, shared)
        self.target = target

    def to_message(self, descriptor):
        """See Unit."""
        return dict(
            super(StandbyUnit, self).to_message(descriptor), sleep=None, guard=False, undo=False
        )


def shown_to(session, unit):
    """How a SessionRecord sees a Unit (lun_maps.Shown), or None if its map does not have it. session: None
    for a worker whose session is not known yet, which has no map."""
    lun_map = EVERY_LUN if session is None else session.lun_map
    return lun_map.shown(unit.lun.number) if lun_map is not None else None


def to_message_with_descriptors(lend, worker, units):
    """(dicts, descriptors): these units, for a message to this worker, or to a copy's guest if
    worker is None. Each dict has the index of the medium's descriptor, that of its claim, and, if
    writes are atomic, that of the journal, in which a worker (not a guest) is granted a slot. lend:
    Descriptions.lend. Raises OSError."""
    dicts, descriptors = [], []
    for unit in units:
        store, index = unit.store, None
        if worker is not None and store.cipher_key:
            worker.has_keys = True
        own, is_shared = lend(store)
        if own is not None:
            index = len(descriptors)
            descriptors.append(own)
        dicts.append(unit.to_message(index))
        dicts[-1]['lun'] = unit.view_of(worker).number
        if worker in unit.readers:
            dicts[-1]['facts'] = dict(unit.facts, read_only=True)
        if is_shared:
            dicts[-1]['store']['is_shared'] = True
        if own != store.claim:
            dicts[-1]['claim'] = len(descriptors)
            descriptors.append(store.claim)
        if unit.atomic is not None:
            slot = None
            if worker is not None:
                slot = unit.slots[worker] = unit.atomic.grant_slot()
            dicts[-1]['atomic'] = {
                'descriptor': len(descriptors),
                'slot': slot and slot.number,
                'path': unit.atomic.path,
            }
            descriptors.append(slot.descriptor if slot else unit.atomic.descriptor)
    return dicts, descriptors


class UnitTable(dict):
    """{Unit.id: Unit} of all exported units, with an index by target and one by medium: a login looks
    at the units of its target, however many others the server has."""

    def __init__(self):
        super(UnitTable, self).__init__()
        self._by_target = {}
        self._by_medium = {}  # key of the store -> {Unit.id: Unit}

    def __setitem__(self, unit_id, unit):
        self.pop(unit_id, None)
        super(UnitTable, self).__setitem__(unit_id, unit)
        self._by_target.setdefault(unit.target_name, {})[unit_id] = unit
        self._by_medium.setdefault(unit.store.key, {})[unit_id] = unit

    def __delitem__(self, unit_id):
        self.pop(unit_id)

    def pop(self, unit_id, *default):
        """Remove the unit and return it; without it, return the default or raise KeyError."""
        if unit_id in self:
            unit = self[unit_id]
            for index, key in (
                (self._by_target, unit.target_name),
                (self._by_medium, unit.store.key),
            ):
                del index[key][unit_id]
                if not index[key]:
                    del index[key]
        return super(UnitTable, self).pop(unit_id, *default)

    def clear(self):
        """Remove every unit."""
        super(UnitTable, self).clear()
        self._by_target.clear()
        self._by_medium.clear()

    def of_target(self, target_name):
        """{lun number: Unit} of a target."""
        return {unit.lun.number: unit for unit in self._by_target.get(target_name, {}).values()}

    def same_medium(self, unit):
        """The other Units that serve the medium of this Unit, under another name of it."""
        if unit.store.kind not in ('file', 'block', 'nbd', 'passthrough'):
            return []
        return [u for u in self._by_medium.get(unit.store.key, {}).values() if u is not unit]
