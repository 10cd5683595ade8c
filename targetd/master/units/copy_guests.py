"""Copies that reach a unit of another target of this server (EXTENDED COPY, scsi.third_party).

A worker asks for the unit with a designator of VPD page 83h. It gets the unit, and its descriptor,
if the initiator of its session may log in to the unit's target now: then it is the unit's *guest*
until it tells that it left, and every change of the unit is told to it, and acknowledged by it, as
to those who serve the unit. Nothing is in force for its nexus at that target: it holds no
reservation, prevents nothing, and is owed no unit attention that anybody would see.

May import scsi.facts, scsi.third_party.
"""

from targetd import log
from targetd.master.units.replication import with_descriptors
from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import sam
from targetd.scsi.copy import extended_copy
from targetd.scsi.facts import UnitFacts
from targetd.scsi.medium_state import EJECTED


def nobody(worker, target_name):
    """Who may visit which target, before anybody has said."""
    return False


class Visits(object):
    """units: units.Units; may_visit(worker, target name): may the initiator of the worker's session
    log in there?"""

    def __init__(self, units):
        self.units = units
        self.may_visit = nobody

    def ask(self, unit, worker, message, answer):
        """`copy-reach`; answer(decision, words, descriptors). Raises Malformed."""
        try:
            named = (
                int(message['code_set']),
                int(message['kind']),
                bytes.fromhex(message['designator']),
            )
        except (KeyError, ValueError, TypeError) as e:
            raise Malformed('copy-reach: %s' % e)
        found = next(
            (
                other
                for other in self.units.by_id.values()
                if other.target_name != unit.target_name
                and extended_copy.is_named(UnitFacts.from_message(other.facts), *named)
                and self.may_visit(worker, other.target_name)
            ),
            None,
        )
        if found is None:
            answer(Refusal(sam.GOOD), {'reached': None})
            return
        log.debug('worker %d: a copy at unit %s reaches unit %s', worker.pid, unit.id, found.id)
        session = worker.session
        nexus = session.nexus._replace(target_name=found.target_name)
        _, count = found.guests.get(worker, (nexus, 0))
        found.guests[worker] = nexus, count + 1
        dicts, descriptors = with_descriptors(None, [found])
        answer(
            Refusal(sam.GOOD),
            {'reached': dict(dicts[0], target_name=found.target_name)},
            descriptors,
        )

    def left(self, worker, message):
        """A worker tells that it uses a unit no more, as often as it was given it."""
        unit = self.units.by_id.get(message.get('unit'))
        if unit is None or worker not in unit.guests:
            return
        nexus, count = unit.guests[worker]
        if count > 1:
            unit.guests[worker] = nexus, count - 1
        else:
            del unit.guests[worker]

    def end(self, unit, done):
        """The copies that reach this unit end; done() when none can touch its medium."""
        guests, unit.guests = list(unit.guests), {}
        number = self.units.await_acknowledgements(guests, done)
        for worker in guests:
            self.units.send(
                worker,
                {
                    'do': 'change',
                    'id': number,
                    'unit': unit.id,
                    'medium': EJECTED,
                    'abort': {'initiator_port': None, 'own_too': True, 'tas': False},
                },
                (),
            )
        self.units.watch(number)
