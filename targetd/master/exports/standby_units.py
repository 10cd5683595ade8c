"""LUNs in standby that initiators see (setting partner-groups): paths through a server that does not
serve them, so that multipath software holds both paths.

     Standby, and the state file knows the medium --present--> in standby: no medium is open
     in standby --activate(Unit)--> served: the sessions go on with the medium, and get 2A/06
     served --demote--> in standby: the sessions end every access to the medium first, and get 2A/06

A unit in standby has the size, the facts and the reservations that the server which serves it has
written into the state file (unit_state). PERSISTENT RESERVE IN has the file read (refresh); nothing is
ever written to it.

May import scsi, store, master.state and master.units.
"""

from targetd import log
from targetd.errors import StoreError
from targetd.master.exports import open_medium
from targetd.master.units import shared_state
from targetd.master.units.transitions import Decision, Others
from targetd.master.units.unit import StandbyUnit, shown_to
from targetd.scsi import alua, attention
from targetd.store import open_store


class StandbyUnits(object):
    """units: logical_units.Units, whose `in_standby` this fills; new_id(target name, number): of Exports;
    workers_of(target name): the workers of its sessions."""

    def __init__(self, units, new_id, workers_of):
        self._units = units
        self._replication = units.replication
        self._new_id = new_id
        self._workers_of = workers_of

    def of_lun(self, target_name, number):
        """The StandbyUnit of this LUN, or None."""
        for unit in self._units.in_standby.values():
            if (unit.target_name, unit.lun.number) == (target_name, number):
                return unit
        return None

    def sessions(self, target_name, number):
        """How many sessions have this LUN in standby."""
        unit = self.of_lun(target_name, number)
        return 0 if unit is None else len(unit.workers)

    def present(self, target, lun, shown):
        """Show a LUN in standby to initiators. shown: of unit_state.UnitState.glance(), with `key`; None if
        nobody can know what it is: then the LUN is not shown."""
        former = self.of_lun(target.name, lun.number)
        if shown is None or not target.partner_groups:
            if former is not None:
                self.remove(target.name, lun.number)
            return
        try:
            is_known = former is not None and former.facts == self._facts(target, lun, shown)
            unit = self._made(target, lun, shown, former.id if is_known else None)
        except (StoreError, ValueError, TypeError, KeyError) as e:
            log.error(
                'lun %d of %s is not shown in standby: its state file is not understood: %s',
                lun.number,
                target.name,
                e,
            )
            return
        if former is None:
            self._units.in_standby[unit.id] = unit
            log.info('lun %d of %s is shown to initiators in standby', lun.number, target.name)
            self._replication.order_units(
                self._workers_of(target.name), add=[unit], attentions=[attention.LUNS_CHANGED]
            )
        elif not is_known:
            self._replace(former, unit, attention.INQUIRY_CHANGED)
        else:
            former.target, former.lun = target, lun
            self._adopt(former, unit)

    def _made(self, target, lun, shown, unit_id=None):
        medium, facts = shown['medium'], self._facts(target, lun, shown)
        store = open_store(
            {
                'kind': 'null',
                'size': medium['size'],
                'block_size': facts['block_size'],
                'read_only': bool(facts.get('read_only')),
            }
        )
        boot_id = self._replication.state.boot_id
        state = dict(shown['state'], boot_id=boot_id)  # as after a takeover: no power was lost
        state.pop('access', None)
        state.pop('operation', None)
        shared = shared_state.initial_state(
            facts, state, boot_id, standby_access(target, shown['holder'])
        )
        unit_id = unit_id or self._new_id(target.name, lun.number)
        return StandbyUnit(unit_id, shown['key'], target, lun, store, facts, shared)

    @staticmethod
    def _facts(target, lun, shown):
        return dict(shown['medium']['facts'], **open_medium.alua_facts(target, lun))

    def _adopt(self, unit, fresh, done=lambda: None):
        """The unit has the state of a fresh one from now on; done() when every session has it in force."""
        attentions = []
        if not alua.is_same(unit.shared.access, fresh.shared.access):
            attentions.append((Others(None),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED)
        size = fresh.store.size if fresh.store.size != unit.replicated_size else None
        if size is not None:
            attentions.append((Others(None),) + attention.CAPACITY_CHANGED)
            unit.store.set_size(size)
            unit.replicated_size = size
        self._replication.distribute(
            unit, Decision(fresh.shared, attentions, size=size), None, done
        )

    def refresh(self, unit, shown, done=lambda: None):
        """The state file of a StandbyUnit was read again. shown: of glance(), or None; done() when every
        session has what it says."""
        if self._units.in_standby.get(unit.id) is not unit or shown is None:
            done()
            return
        try:
            fresh = self._made(unit.target, unit.lun, dict(shown, key=unit.key), unit.id)
        except (StoreError, ValueError, TypeError, KeyError) as e:
            log.error('unit %s: its state file is not understood: %s', unit.id, e)
            done()
            return
        self._adopt(unit, fresh, done)

    def activate(self, unit):
        """A LUN that was in standby is served now, by this Unit, which is added already. Returns False if
        it was not shown in standby."""
        former = self.of_lun(unit.target_name, unit.lun.number)
        if former is None:
            return False
        del self._units.in_standby[former.id]
        self._swap(former, unit, attention.ASYMMETRIC_ACCESS_STATE_CHANGED, lambda: None)
        return True

    def demote(self, target, unit, holder, done):
        """This server does not serve the Unit any more: its sessions go on in standby. holder: the
        server that serves it now, or ''; done() when no command can touch the medium any more; the
        caller closes it."""
        shown = {
            'key': unit.key,
            'medium': {'facts': unit.facts, 'size': unit.replicated_size},
            'state': shared_state.saved_state(unit.shared, self._replication.state.boot_id),
            'holder': holder,
        }
        fresh = self._made(target, unit.lun, shown)
        self._units.remove_unit(unit)
        self._units.in_standby[fresh.id] = fresh
        self._units.copy_guests.end_copies(
            unit, lambda: self._swap(unit, fresh, attention.ASYMMETRIC_ACCESS_STATE_CHANGED, done)
        )

    def remove(self, target_name, number):
        """The LUN is not shown any more."""
        unit = self.of_lun(target_name, number)
        if unit is not None:
            del self._units.in_standby[unit.id]
            self._units.take_from_sessions(unit, lambda: None)

    def _replace(self, former, fresh, reason):
        del self._units.in_standby[former.id]
        self._units.in_standby[fresh.id] = fresh
        self._swap(former, fresh, reason, lambda: None)

    def _swap(self, former, fresh, reason, done):
        """The sessions of a unit get another one in its place, with this unit attention; those that may not
        have it lose the LUN. done() when the former one is used by no command any more."""
        nexuses = dict(former.workers)
        numbers = former.forget_sessions()
        same = self._units.by_id.same_medium(fresh)
        given, left_out = [], []
        for worker, nexus in nexuses.items():
            shown = shown_to(worker.session, fresh)
            is_given = shown is not None and fresh.give_to(worker, nexus, same, shown)
            (given if is_given else left_out).append(worker)
        missing = [1, 1]

        def one_done():
            missing.pop()
            if not missing:
                done()

        self._replication.order_units(
            given, replace=[fresh], replaced_attention=reason, done=one_done
        )
        self._replication.order_units(
            left_out,
            remove={worker: [numbers[worker]] for worker in left_out},
            attentions=[attention.LUNS_CHANGED],
            done=one_done,
        )


def standby_access(target, holder):
    """The scsi.alua state of a LUN in standby. holder: the name of the server that serves it; without
    one, its portal groups are not available either."""
    states = dict.fromkeys(target.partner_groups, alua.OPTIMIZED if holder else alua.UNAVAILABLE)
    states.update(dict.fromkeys(target.portal_groups, alua.STANDBY))
    return dict(alua.initial(states, states), elsewhere=True)
