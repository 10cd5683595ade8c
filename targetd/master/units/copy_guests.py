"""Copies to and from a unit of another target of this server (EXTENDED COPY, scsi.copy.extended_copy;
ARCHITECTURE D16).

A worker requests the unit with a designation descriptor of VPD page 83h. If the initiator of its
session may log in to the unit's target now, the worker receives the unit and its descriptor. It is
then a *guest* of the unit until it reports that the copy has ended: like the workers that serve the
unit, it receives every change and acknowledges it. Its nexus has no state at the other target: no
reservation, no prevention of removal, and no unit attention condition that an initiator would see.
"""

from targetd import log
from targetd.master.processes.worker_messages import VALUE_ERRORS
from targetd.master.units import sharing
from targetd.master.units.transitions import Malformed, Refusal
from targetd.master.units.unit import to_message_with_descriptors
from targetd.scsi import sam
from targetd.scsi.copy import extended_copy
from targetd.scsi.facts import UnitFacts
from targetd.scsi.medium_state import EJECTED


class CopyGuests(object):
    """Grants units to copies. map_of(worker, target name): the lun_maps.LunMap that the initiator of the
    worker's session would have at this target now, None if it may not log in there."""

    def __init__(self, replication, map_of):
        self.replication = replication
        self.map_of = map_of

    def on_copy_reach(self, unit, worker, message, answer):
        """`ask copy-reach` at `unit`; answer(decision, words, descriptors) with the unit that the
        designator names, or with null. Raises Malformed."""
        try:
            designator = (
                int(message['code_set']),
                int(message['kind']),
                bytes.fromhex(message['designator']),
            )
        except VALUE_ERRORS as e:
            raise Malformed('copy-reach: %s' % e)
        found = self._find(unit, worker, designator)
        if found is None:
            answer(Refusal(sam.GOOD), {'reached': None})
            return
        log.debug('worker %d: a copy at unit %s reaches unit %s', worker.pid, unit.id, found.id)
        nexus = worker.session.nexus._replace(target_name=found.target_name)
        _, count = found.guests.get(worker, (nexus, 0))
        found.guests[worker] = nexus, count + 1
        worker.has_keys = worker.has_keys or bool(found.store.cipher_key)
        dicts, descriptors = to_message_with_descriptors(
            self.replication.descriptions.lend, None, [found]
        )
        answer(
            Refusal(sam.GOOD),
            {'reached': dict(dicts[0], target_name=found.target_name)},
            descriptors,
        )

    def _find(self, unit, worker, designator):
        """The unit of another target with this designator that the worker may use, or None."""
        for other in self.replication.by_id.values():
            if (
                other.target_name != unit.target_name
                and extended_copy.has_designator(UnitFacts.from_message(other.facts), *designator)
                and self.may_use(worker, other)
                and self._may_write(other, worker.session.nexus.initiator_name)
            ):
                return other
        return None

    def may_use(self, worker, unit):
        """True if the initiator of the worker's session would see this unit of another target now, and the
        maps of that target would let it write."""
        lun_map = self.map_of(worker, unit.target_name)
        shown = lun_map.shown(unit.lun.number) if lun_map is not None else None
        return shown is not None and not shown.read_only

    def _may_write(self, unit, initiator_name):
        if sharing.is_single(unit) and unit.replica_holders():
            return False
        same_medium = self.replication.by_id.same_medium(unit)
        return sharing.access(unit, same_medium, initiator_name)[0] == sharing.WRITE

    def on_copy_left(self, worker, message):
        """`report copy-left`: one copy of the worker has ended. The worker stops being a guest with
        its last copy."""
        unit = self.replication.by_id.get(message.get('unit'))
        if unit is None or worker not in unit.guests:
            return
        nexus, count = unit.guests[worker]
        if count > 1:
            unit.guests[worker] = nexus, count - 1
        else:
            del unit.guests[worker]

    def end_copies(self, unit, done):
        """Abort the copies of other targets' sessions that use this unit; done() when none of them
        can access its medium."""
        guests, unit.guests = list(unit.guests), {}
        words = {'medium': EJECTED, 'abort': {'tas': False}}
        self.replication.send_change_to(guests, unit, words, done)
