"""The worker's replicas of state that sessions share (ARCHITECTURE D3): the units of its nexus, and
the master's changes to them.

May import scsi, store. Everything here runs in the control thread. Units read their replicas as
plain attributes, so they cost a command nothing.
"""

import os
import time

from targetd import log, store
from targetd.scsi.attention import POWER_ON_OR_RESET
from targetd.scsi.copy.extended_copy import NoCopyGuests
from targetd.scsi.device import FLAT, Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit, UnitServices
from targetd.scsi.sam import Port
from targetd.worker import block_keeping, sleeping_disks
from targetd.worker.copy.guest_units import GuestFinder, GuestUnits
from targetd.worker.copy.rod_tokens import UnitRodTokens
from targetd.worker.fault_reports import FaultReports


class Replica(object):
    """The units of one session. worker: sends questions and reports to the master; nexus: sam.Nexus;
    configuration: config.model.Configuration."""

    def __init__(self, worker, nexus, configuration):
        self._worker = worker
        self._nexus = nexus
        self._configuration = configuration
        self._by_id = {}  # unit id -> LogicalUnit
        self._ids = {}  # LogicalUnit -> unit id
        target = configuration.targets.get(nexus.target_name)
        self.device = Device(
            nexus, ports_of(configuration, nexus), target.lun_addressing if target else FLAT
        )
        self.guests = GuestUnits(
            self._new_guest, lambda unit_id: worker.report('copy-left', unit=unit_id)
        )

    def create_units(self, units, descriptors):
        """Create the units in the answer to the claim; returns the Device."""
        self._add(units, descriptors)
        self._close_untaken(units, descriptors)
        return self.device

    def close(self):
        """The session is over: close every store."""
        for unit in self._ids:
            unit.store.close()
        self.guests.close()

    def leave(self):
        """The session is over, and the process ends; a command may still wait for its medium. [any]"""
        for unit in list(self._ids):
            unit.store.leave()

    def unit(self, unit_id):
        """Return the LogicalUnit of this session with this id, or None."""
        return self._by_id.get(unit_id)

    def unit_or_guest(self, unit_id):
        """Return the LogicalUnit with this id, or None; includes units of other targets that copies
        use."""
        return self._by_id.get(unit_id) or self.guests.unit(unit_id)

    def units(self):
        """Return {unit id: LogicalUnit} of this session, a copy. [any]"""
        return dict(self._by_id)

    def unit_id(self, unit):
        """Return the id of a LogicalUnit, or None if it does not exist."""
        return self._ids.get(unit)

    def any_unit_id(self):
        """Return the id of any unit of the target, or None if it has none. Questions about target
        resets need one."""
        return next(iter(self._by_id), None)

    def apply_change(self, message):
        """Apply a `change` order: new replicas and unit attentions of one unit."""
        unit = self.unit_or_guest(message['unit'])
        if unit is None:
            return
        replicas = {
            name: message[name]
            for name in (
                'reservations',
                'modes',
                'medium',
                'access',
                'records',
                'progress',
                'restriction',
                'hanging',
            )
            if name in message
        }
        if message.get('watched', unit.watched) != unit.watched:
            replicas['watched'] = message['watched']
        if replicas:
            unit.replace_shared_state(**replicas)
        if 'key' in message:
            unit.store.rekey(bytes.fromhex(message['key']))
        if 'size' in message:
            unit.store.size = message['size']
            unit.resized(message['size'])
        for asc, ascq in message.get('attentions', ()):
            unit.raise_attention(asc, ascq)

    def apply_units(self, message, descriptors):
        """Apply a `units` order. Returns (the removed LogicalUnits, those that were replaced by
        others); their stores are still open."""
        removed = [self._remove(lun) for lun in message.get('remove', ())]
        replaced = []
        for replacement in message.get('replace', ()):
            replaced.append(self._remove(replacement['lun']))
            self._add([replacement], descriptors)
        self._add(message.get('add', ()), descriptors)
        self._close_untaken(
            list(message.get('add', ())) + list(message.get('replace', ())), descriptors
        )
        for asc, ascq in message.get('attentions', ()):
            self.device.raise_attention(asc, ascq)
        return [unit for unit in removed if unit], [unit for unit in replaced if unit]

    def _add(self, messages, descriptors):
        added = {}
        for message in messages:
            unit_id = message['unit']
            guests = GuestFinder(self._worker, unit_id, self.guests)
            unit = self._new_unit(message, descriptors, self._nexus, self.device, guests)
            self._worker.limits.apply(unit, message['number'])
            self._by_id[unit_id] = unit
            self._ids[unit] = unit_id
            added[message['lun']] = unit
        self.device.add_units(added)

    def _new_guest(self, message, descriptors):
        """Return a LogicalUnit of another target, with the nexus that the initiator would have
        there."""
        nexus = self._nexus._replace(target_name=message['target_name'])
        return self._new_unit(
            message,
            descriptors,
            nexus,
            Device(nexus, ports_of(self._configuration, nexus)),
            NoCopyGuests,
        )

    def _new_unit(self, message, descriptors, nexus, device, copy_guests):
        index, claim = message['descriptor'], message.get('claim')
        sleep = sleeping_disks.sleep_of(self._worker, message)
        medium = store.from_descriptor(
            message['store'],
            None if index is None else descriptors[index],
            None if claim is None else descriptors[claim],
            block_keeping.keeper(self._worker, message['unit']) if message.get('guard') else None,
            sleep,
            block_keeping.journal(self._worker, message['unit']) if message.get('undo') else None,
        )
        journal = message.get('atomic')
        if journal:
            medium = store.Atomic(
                medium, descriptors[journal['descriptor']], journal['slot'], journal['path']
            )
        unit = LogicalUnit(
            UnitFacts.from_message(message['facts']),
            medium,
            nexus,
            device,
            modes=message['modes'],
            reservations=message['reservations'],
            medium=message['medium'],
            lun=message['lun'],
            access=message.get('access'),
            records=message.get('records'),
            watched=message.get('watched') or (),
            progress=message.get('progress', 0),
            restriction=message.get('restriction', ''),
            hanging=message.get('hanging', 0),
            services=WorkerServices(self._worker, self, message, copy_guests, sleep),
        )
        if message.get('attention'):  # it takes the place of the same unit: nothing was reset
            unit.drop_attention(*POWER_ON_OR_RESET)
            unit.raise_attention(*message['attention'])
        return unit

    def _remove(self, lun):
        unit = self.device.remove(lun)
        if unit is None:
            log.debug('the master removes LUN %d, which does not exist', lun)
            return None
        self._by_id.pop(self._ids.pop(unit), None)
        return unit

    @staticmethod
    def _close_untaken(units, descriptors):
        taken = {message['descriptor'] for message in units}
        taken |= {message.get('claim') for message in units}
        taken |= {message['atomic']['descriptor'] for message in units if message.get('atomic')}
        for index, descriptor in enumerate(descriptors):
            if index not in taken:
                os.close(descriptor)


def leave_media(worker):
    """The session of a Worker is over, and its process ends. Returns True if a command still waits for its
    medium. [connection]"""
    if worker.replica is not None:
        worker.replica.leave()
    return worker.tasks is not None and bool(worker.tasks.hung)


class WorkerServices(UnitServices):
    """UnitServices of a unit in this worker process.

    worker: worker.main.Worker; message: the unit as described in channel.py; copy_guests: finds units
    of other targets for its copies; sleep: store.sleeping.Sleep, None if the disk never sleeps.
    """

    def __init__(self, worker, replica, message, copy_guests, sleep=None):
        self._worker = worker
        self.sleep = sleep
        self.unit_id = message['unit']
        self.started_at = message.get('since', 0)
        self.rod_tokens = UnitRodTokens(worker, self.unit_id, replica)
        self.copy_guests = copy_guests
        self._faults = FaultReports(lambda note: self._report('error', note))

    def milliseconds(self):
        return int(time.time() * 1000)

    def monotonic_seconds(self):
        return time.monotonic()

    def run_in_thread(self, work, unit):
        """Run work(unit) in an executor thread. [any]"""

        def guarded(_):
            try:
                work(unit)
            except Exception:  # a defect in targetd must not end the thread
                log.exception('a background self-test failed unexpectedly')

        self._worker.executor.submit(guarded, None, unit)

    def note(self, kind, message):
        if kind == 'error':
            self._faults.add(message)
        else:
            self._report(kind, message)

    def _report(self, kind, message):
        self._worker.report('note', unit=self.unit_id, kind=kind, note=message)

    def share_attention(self, asc, ascq):
        self._worker.report('attention', unit=self.unit_id, asc=asc, ascq=ascq)

    def data_lost(self, text):
        self._worker.unit_failed(self.unit_id, text)


def ports_of(configuration, nexus):
    """Return the target's ports: one for each portal group, also of the other server of a pair, with
    relative port identifiers in the order of the groups' tags."""
    target = configuration.targets.get(nexus.target_name)
    tags = [nexus.target_port_group_tag]
    if target:
        tags = sorted(set(target.portal_groups).union(target.partner_groups))
    return [
        Port(number, tag, '%s,t,0x%04x' % (nexus.target_name, tag))
        for number, tag in enumerate(tags, 1)
    ]
