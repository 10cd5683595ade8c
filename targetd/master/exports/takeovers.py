"""LUNs whose state can be on another server (unit-state): takeover, standby, and the loss of the state.

     standby --takeover: this server holds the state, opens the medium--> served
     served --standby: logout, flush, release--> standby
     served --another server holds the state: removed at once--> standby

A server in standby answers logins with 'service unavailable' (RFC 7143 11.13.5, 0301h), which initiators
retry; with partner-groups, its sessions see the LUNs in standby instead (standby_units), and go on when
they are served. Unless the medium has a fence (disk_fence, an image in a Ceph cluster), who orders a
takeover has made certain that the other server does not write any more: what the kernel of that server has
in its page cache is written to a shared disk whatever targetd does there.
"""

from targetd import events, log
from targetd.errors import TargetdError
from targetd.master.exports import disk_fence
from targetd.master.exports.exports import UnavailableLun
from targetd.master.exports.fence_watch import FenceWatch
from targetd.master.state import state_places
from targetd.store import nbd_line

SECONDS = 2.0  # interval at which a server looks whether it still holds the states
POOL_ROUNDS = 5  # of them, at which it looks into a pool of a Ceph cluster, which costs a process


class Takeovers(object):
    """exports: Exports; sessions: Sessions; replacements: Replacements; configuration(): the
    model.Configuration in force. `watch` is called as soon as the server runs."""

    def __init__(self, loop, exports, sessions, replacements, configuration):
        self._loop = loop
        self._exports = exports
        self._units = exports.units
        self._state = exports.units.replication.state
        self._sessions = sessions
        self._replacements = replacements
        self._configuration = configuration
        self._timer = None
        self._round = 0
        self._looking = set()  # names of jobs that have not answered
        self._fences = FenceWatch(loop, exports.units, exports.jobs, self.lost)
        exports.units.replication.on_taken_over = self.lost
        exports.units.on_refresh = self._refresh

    # -- orders ------------------------------------------------------------------------------------

    @staticmethod
    def require_movable(target):
        """Raises TargetdError unless every LUN of the model.Target has unit-state."""
        without = [str(number) for number, lun in target.luns.items() if not lun.unit_state]
        if without or not target.luns:
            raise TargetdError(
                'target %s cannot move between servers: %s no unit-state, so the reservations would stay here'
                % (
                    target.name,
                    'LUN %s has' % ', '.join(without) if without else 'it has no LUN, and',
                )
            )

    def take_over(self, target, done):
        """Serve the LUNs of a model.Target that are in standby. done({number that is served: its Unit},
        [sentence about one that is not])."""
        wanted = [
            (target.name, number)
            for number, lun in target.luns.items()
            if lun.unit_state and (target.name, number) in self._exports.unavailable
        ]
        self._state.ordered.update(wanted)
        log.warning(
            'the administrator orders this server to take over target %s: LUNs %s',
            target.name,
            ', '.join(str(number) for _, number in wanted) or 'none, since all are served',
        )

        def opened():
            self._state.ordered.difference_update(wanted)
            served = self._units.of_target(target.name)
            done(
                dict(served),
                [
                    'lun %d: %s' % (missing.lun.number, missing.why)
                    for key, missing in sorted(self._exports.unavailable.items())
                    if key[0] == target.name
                ],
            )

        self._exports.open_unavailable(wanted, opened)

    def stand_by(self, target, done):
        """Stop to serve the target: its sessions are asked to log out, or go on in standby; its LUNs are
        flushed and their states released. done([sentence about a LUN that could not be flushed])."""
        served = list(self._units.of_target(target.name).values())
        log.warning('the administrator orders target %s into standby', target.name)

        def replaced(errors):
            failed = [
                'lun %d could not be flushed: %s' % (unit.lun.number, error.strerror)
                for unit, error in errors
                if error is not None
            ]
            for unit in served:
                self._remember(unit, 'standby: it is being released')
            self._release(served, lambda: done(failed))

        for unit in served:
            self._exports.discard_pending(target.name, unit.lun.number)
        if target.partner_groups:
            self._demote(target, served, replaced)
            return
        self._replacements.swap_after_logout(
            target.name, [(unit, None) for unit in served], 'the target goes into standby', replaced
        )

    def _demote(self, target, units, done):
        """The sessions of these Units go on in standby, then the media are flushed and closed; done([(Unit,
        None or the OSError of its flush)])."""
        errors = []

        def flushed(unit, error):
            self._exports.close_unit(unit)
            errors.append((unit, error))
            if len(errors) == len(units):
                done(errors)

        def demoted(unit):
            self._units.flushes.flush_removed(unit, lambda error: flushed(unit, error))

        for unit in units:
            self._exports.standby.demote(target, unit, '', lambda unit=unit: demoted(unit))
        if not units:
            done([])

    def _release(self, units, done):
        places = [(state_places.place_of(self._state, unit.lun), unit.key) for unit in units]
        kept = {unit.store.key for unit in self._units.by_id.values() if unit not in units}
        fenced = [
            (unit.lun, unit.store.path)
            for unit in units
            if unit.store.fence and unit.store.key not in kept
        ]

        def in_child():
            for lun, path in fenced:
                disk_fence.release(lun, path)
            for place, key in places:
                place.release(key)
            return {}, ()

        def released(answer):
            if answer.why:
                log.error('the states of units in standby are not released: %s', answer.why)
            self._exports.retry_now()
            done()

        # a save may be under way, which would hold the state again
        self._units.replication.saver.when_idle(
            lambda: self._exports.jobs.submit_job(('release', id(units)), in_child, released)
        )

    def _remember(self, unit, why):
        target = self._configuration().targets.get(unit.target_name)
        lun = target and target.luns.get(unit.lun.number)
        self._state.active.discard((unit.target_name, unit.lun.number))
        self._units.replication.forget_saved(unit.key)
        if lun is not None:
            key = unit.target_name, unit.lun.number
            self._exports.unavailable[key] = UnavailableLun(target, lun, why)
            self._exports.retry_later()

    # -- loss --------------------------------------------------------------------------------------

    def lost(self, unit, why):
        """Another server holds the state of the unit: end its export at once, without a flush. why: who
        has it. Does nothing for a unit that is not served."""
        if self._units.by_id.get(unit.id) is not unit:
            return
        remedy = 'it is served again when this server can open it'
        if unit.lun.unit_state:
            remedy = (
                'this server does not write to it again until it is ordered to: targetdctl takeover %s'
                % unit.target_name
            )
        log.error(
            'unit %s, %s, is not served any more: %s; %s', unit.id, unit.store.path, why, remedy
        )
        events.emit('taken_over', unit=unit.id, path=unit.store.path, why=why)
        target = self._configuration().targets.get(unit.target_name)
        if target is not None and target.partner_groups:
            close = self._exports.close_unit
            self._exports.standby.demote(target, unit, why, lambda: close(unit))
            self._remember(unit, 'standby: ' + why)
            return
        self._units.remove_unit(unit)
        self._remember(unit, 'standby: ' + why)
        self._units.take_from_sessions(unit, lambda: self._exports.close_unit(unit))
        if not self._units.of_target(unit.target_name):
            seconds = self._configuration().server.stop_timeout
            for session in self._sessions.of_target(unit.target_name):
                self._sessions.logout_session(
                    session, seconds, 'another server has taken over its target'
                )

    def watch(self):
        """Look from now on whether another server has taken over what this one serves. Costs nothing while no
        unit has unit-state."""
        self._fences.watch()
        if self._timer is None:
            self._timer = self._loop.call_later(SECONDS, self._look)

    def close(self):
        """Cancel the timers."""
        self._fences.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self):
        self._timer = self._loop.call_later(SECONDS, self._look)
        self._round += 1
        by_directory = {}
        for unit in list(self._units.by_id.values()) + list(self._units.in_standby.values()):
            if unit.store.kind == 'nbd' and unit.store.claims:
                if nbd_line.was_fenced(unit.store.claims[0]):  # reads memory only
                    self.lost(unit, 'another client of the Ceph cluster has its image')
                    continue
            is_due = not state_places.is_pool(unit.lun.unit_state) or not self._round % POOL_ROUNDS
            if unit.lun.unit_state and is_due:
                by_directory.setdefault(unit.lun.unit_state, []).append(unit)
        for directory, units in by_directory.items():
            name = ('holders', directory)
            if name not in self._looking and not self._exports.jobs.is_stuck(name):
                self._looking.add(name)
                self._look_in(name, units)

    def _look_in(self, name, units):
        places = [
            (unit.id, state_places.place_of(self._state, unit.lun), unit.key) for unit in units
        ]

        in_standby = set(self._units.in_standby)

        def in_child():
            lost, shown = {}, {}
            for id, place, key in places:
                try:
                    if id in in_standby:
                        shown[id] = place.glance(key)
                    else:
                        lost[id] = place.successor(key)
                except (OSError, TargetdError):
                    pass  # the place cannot be reached now; it is looked at again
            return {'lost': lost, 'shown': shown}, ()

        def answered(answer):
            self._looking.discard(name)
            for unit in units:
                successor = answer.values.get('lost', {}).get(unit.id)
                if successor:
                    self.lost(unit, 'the server %s has taken it over' % successor)
                if unit.id in answer.values.get('shown', {}):
                    self._exports.standby.refresh(unit, answer.values['shown'][unit.id])

        self._exports.jobs.submit_job(name, in_child, answered)

    def _refresh(self, unit, done):
        """Read the state of a StandbyUnit again; done(True if its sessions have what is saved)."""
        place = state_places.place_of(self._state, unit.lun)

        def answered(answer):
            shown = answer.values.get('shown')
            self._exports.standby.refresh(unit, shown, lambda: done(shown is not None))

        self._exports.jobs.submit_job(
            ('state of', unit.id), lambda: ({'shown': place.glance(unit.key)}, ()), answered
        )
