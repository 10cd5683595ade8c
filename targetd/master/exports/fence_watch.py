"""Whether this server still has the disks that it has fenced (disk_fence), while it serves them.

     a session reports that the disk refuses a write, or SECONDS are over --> a job asks the disk
         ours --> nothing, and after a refusal the key is registered again: a path had come without it
         the disk has forgotten it (a loss of power) --> registered and reserved again, if the state is ours
         another server's --> lost(): the export ends at once

A session that cannot flush asks, too, before the unit counts as failed: a failure that another server has
caused must not be saved. May import master.state, master.units.
"""

from targetd import log
from targetd.errors import Standby, TargetdError
from targetd.master.exports import disk_fence
from targetd.master.state import state_places
from targetd.scsi.errno_map import FENCED

SECONDS = 10.0  # a takeover is noticed earlier: by the state, or by a refused write


class FenceWatch(object):
    """units: logical_units.Units; jobs: Jobs; lost(unit, why): of Takeovers."""

    def __init__(self, loop, units, jobs, lost):
        self._loop = loop
        self._units = units
        self._jobs = jobs
        self._lost = lost
        self._timer = None
        self._asking = {}  # key of a medium -> [function that is called afterwards if the disk is ours]
        self._again = set()  # keys of media that are asked about once more
        self._unknown = {}  # key of a medium -> why it did not answer, as logged
        units.replication.on_refused = self.on_refused
        units.replication.before_failure = self.before_failure

    def watch(self):
        """Look from now on. Costs nothing while no disk is fenced."""
        if self._timer is None:
            self._timer = self._loop.call_later(SECONDS, self._look)

    def close(self):
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self):
        self._timer = self._loop.call_later(SECONDS, self._look)
        for unit in {unit.store.key: unit for unit in self._fenced()}.values():
            self._ask(unit, False)

    def _fenced(self):
        return [unit for unit in self._units.by_id.values() if unit.store.fence]

    def on_refused(self, unit, number):
        """A session reports an access to the unit that ended with this errno. Returns True if another server
        may have the disk, so that it is not a fault of the disk."""
        if number != FENCED or not unit.store.fence:
            return False
        self._ask(unit, True)
        return True

    def before_failure(self, unit, fail):
        """Call fail(), now or later, unless another server has the disk of the unit, which is the reason
        then."""
        if unit.store.fence:
            self._ask(unit, True, fail)
        else:
            fail()

    def _ask(self, unit, is_refused, then=None):
        key = unit.store.key
        if key in self._asking:
            self._asking[key] += [then] if then else []
            if is_refused:
                self._again.add(key)
            return
        name = 'fence', key
        if self._jobs.is_stuck(name):
            if then:
                then()
            return
        self._asking[key] = [then] if then else []
        place, lun, path = state_places.place_of(self._state, unit.lun), unit.lun, unit.store.path
        arguments = lun, path, place, unit.key, unit.target_name, is_refused
        self._jobs.submit_job(
            name, lambda: (_settle(*arguments), ()), lambda answer: self._answered(key, answer)
        )

    @property
    def _state(self):
        return self._units.replication.state

    def _answered(self, key, answer):
        waiting, is_again = self._asking.pop(key), key in self._again
        self._again.discard(key)
        units = [unit for unit in self._fenced() if unit.store.key == key]
        why = answer.values.get('lost')
        for unit in units:
            if why:
                self._lost(unit, why)
        if why:
            return
        if answer.values.get('repaired') and units:
            log.warning(
                '%s had lost the reservation of this server, or a path had come without its key; it is '
                'reserved again',
                units[0].store.path,
            )
        if answer.why and units and self._unknown.get(key) != answer.why:
            log.warning(
                '%s: whether it is still reserved is not known: %s', units[0].store.path, answer.why
            )
        self._unknown[key] = answer.why
        for then in waiting:
            then()
        if is_again and units:
            self._ask(units[0], True)


def _settle(lun, path, place, state_key, name, is_refused):
    """Asks the disk, and puts the fence up again where it is incomplete. Returns {'lost': why, '' if it is
    not; 'repaired': bool}, or {'failed': why not}. Runs in a job."""
    outcome = {'lost': '', 'repaired': False}
    try:
        fence = disk_fence.find_fence(lun, path)
        if fence is None:
            return {'failed': 'it has no reservations any more'}
        found, other = disk_fence.look(fence, disk_fence.key_of(place.node.id))
        if found == disk_fence.LOST:
            shown = disk_fence.shown(other)
            return dict(
                outcome, lost='the server with the reservation key %s has taken it over' % shown
            )
        if is_refused or found == disk_fence.INCOMPLETE:
            disk_fence.take_held(fence, place, state_key, name, False)
            outcome['repaired'] = True
    except Standby as e:
        return dict(outcome, lost=str(e).replace('standby: ', '', 1).partition('; ')[0])
    except (OSError, TargetdError) as e:
        return {'failed': str(e)}
    return outcome
