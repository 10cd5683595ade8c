"""The worker's side of what sessions share (plan D3): the units of its nexus, and the master's
changes to them.

May import scsi, store, channel's words. begin() in the connection's thread before the login is
answered; everything else in the control thread. Units read their replicas as plain attributes, so a
command pays nothing for them.
"""

import os
import time

from targetd import log, store
from targetd.scsi.copy.extended_copy import NoReach
from targetd.scsi.device import Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit, UnitServices
from targetd.scsi.sam import Port
from targetd.worker.copy.guests import Guests, Reach
from targetd.worker.copy.rod_tokens import UnitRods


class Replica(object):
    """Of one session. worker: is told when a unit lost data; nexus: sam.Nexus; ports: of the
    target, see ports_of()."""

    def __init__(self, worker, nexus, configuration):
        self._worker = worker
        self._nexus = nexus
        self._configuration = configuration
        self._by_id = {}  # unit id -> LogicalUnit
        self._ids = {}  # LogicalUnit -> unit id
        self.device = Device(nexus, ports_of(configuration, nexus))
        self.guests = Guests(self._guest, lambda unit_id: worker.report('copy-left', unit=unit_id))

    def begin(self, units, descriptors):
        """The Device with these units of the answer to the claim."""
        for message in units:
            self._add(message, descriptors)
        self._close_untaken(units, descriptors)
        return self.device

    def close(self):
        """The session is over: let go of every medium."""
        for unit in self._ids:
            unit.store.close()
        self.guests.close()

    def unit(self, unit_id):
        """The LogicalUnit of this session with this id, or None."""
        return self._by_id.get(unit_id)

    def concerned(self, unit_id):
        """The LogicalUnit with this id, or None; also of another target, where a copy reached it."""
        return self._by_id.get(unit_id) or self.guests.unit(unit_id)

    def unit_id(self, unit):
        """The id of a LogicalUnit, or None for an absent one."""
        return self._ids.get(unit)

    def any_unit_id(self):
        """The id of some unit of the target, or None if it has none: target resets are asked
        through it."""
        return next(iter(self._by_id), None)

    def change(self, message):
        """A `change`: new replicas and unit attentions of one unit."""
        unit = self.concerned(message['unit'])
        if unit is None:
            return
        replicas = {
            name: message[name]
            for name in ('reservations', 'modes', 'medium', 'access', 'records', 'progress')
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

    def units(self, message, descriptors):
        """A `units` order. Gives the LogicalUnits that are gone; their stores are still open."""
        gone = [self._remove(lun) for lun in message.get('remove', ())]
        for replacement in message.get('replace', ()):
            gone.append(self._remove(replacement['lun']))
            self._add(replacement, descriptors)
        for addition in message.get('add', ()):
            self._add(addition, descriptors)
        self._close_untaken(
            list(message.get('add', ())) + list(message.get('replace', ())), descriptors
        )
        for asc, ascq in message.get('attentions', ()):
            self.device.raise_attention(asc, ascq)
        return [unit for unit in gone if unit is not None]

    def _add(self, message, descriptors):
        unit_id = message['unit']
        guests = Reach(self._worker, unit_id, self.guests)
        unit = self._made(message, descriptors, self._nexus, self.device, guests)
        self._by_id[unit_id] = unit
        self._ids[unit] = unit_id
        self.device.add(message['lun'], unit)

    def _guest(self, message, descriptors):
        """The LogicalUnit of another target, as the nexus would find it there. [control]"""
        nexus = self._nexus._replace(target_name=message['target_name'])
        return self._made(
            message,
            descriptors,
            nexus,
            Device(nexus, ports_of(self._configuration, nexus)),
            NoReach,
        )

    def _made(self, message, descriptors, nexus, device, copy_guests):
        index = message['descriptor']
        medium = store.from_descriptor(
            message['store'], None if index is None else descriptors[index]
        )
        locked = message.get('atomic')
        if locked:
            medium = store.Atomic(
                medium, descriptors[locked['descriptor']], locked['slot'], locked['path']
            )
        return LogicalUnit(
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
            services=WorkerServices(self._worker, self, message, copy_guests),
        )

    def _remove(self, lun):
        unit = self.device.remove(lun)
        if unit is None:
            log.debug('the master takes away LUN %d, which was not there', lun)
            return None
        self._by_id.pop(self._ids.pop(unit), None)
        return unit

    @staticmethod
    def _close_untaken(units, descriptors):
        taken = {message['descriptor'] for message in units}
        taken |= {message['atomic']['descriptor'] for message in units if message.get('atomic')}
        for index, descriptor in enumerate(descriptors):
            if index not in taken:
                os.close(descriptor)


class WorkerServices(UnitServices):
    """UnitServices of a unit in this worker process.

    worker: worker.main.Worker; message: the unit, in the words of channel.py; copy_guests: how its
    copies find units of other targets.
    """

    def __init__(self, worker, replica, message, copy_guests):
        self._worker = worker
        self._unit_id = message['unit']
        self.started_at = message.get('since', 0)
        self.rod_tokens = UnitRods(worker, self._unit_id, replica)
        self.copy_guests = copy_guests

    def milliseconds(self):
        return int(time.time() * 1000)

    def run_in_thread(self, work, argument):
        """Run work(argument) in an executor thread. [any]"""

        def guarded(_):
            try:
                work(argument)
            except Exception:  # a defect of targetd must not end the thread
                log.exception('a background self-test failed unexpectedly')

        self._worker.executor.submit(guarded, None)

    def note(self, kind, message):
        self._worker.report('note', unit=self._unit_id, kind=kind, note=message)

    def data_lost(self, text):
        self._worker.unit_failed(self._unit_id, text)


def ports_of(configuration, nexus):
    """The target's ports: one for each portal group, relative identifiers in the order of the
    groups' tags."""
    target = configuration.targets.get(nexus.target_name)
    tags = sorted(target.portal_groups) if target else [nexus.target_port_group_tag]
    return [
        Port(number, tag, '%s,t,0x%04x' % (nexus.target_name, tag))
        for number, tag in enumerate(tags, 1)
    ]
