"""Real SCSI devices (type = passthrough): what the master does about them while they are served.

     a device is gone --> log, unit.path_problem; its commands end as if the medium had been removed
     it is back, perhaps with another node --> opened, by its WWN or serial number --> the sessions get it,
                                               with unit attention 28/00
     a session reports a unit attention of the device --> the other sessions have it too
     device-reset, and a session resets the unit --> so is the device
     no session prevents the removal of the medium any more --> the device is told so

Only /sys is read; a job opens a device that has returned, and sends commands. May import host, store.
"""

from targetd import log, sg_io
from targetd.host import sg_nodes
from targetd.master.exports import passthrough_export
from targetd.master.units import transitions
from targetd.master.units.transitions import Decision, Others
from targetd.master.units.unit import Unit

SECONDS = 2.0
RESET_SECONDS = 30.0
#: Task management functions that reset units (channel.py).
RESETS = frozenset(('logical-unit-reset', 'target-warm-reset', 'target-cold-reset'))


class DeviceWatch(object):
    """exports: Exports; jobs: Jobs. targets: set by Master; it returns {name: model.Target} in force."""

    def __init__(self, loop, exports, jobs, is_attached=sg_nodes.is_attached):
        self.loop = loop
        self.exports = exports
        self.jobs = jobs
        self.targets = dict
        self._is_attached = is_attached
        self._opening = set()  # ids of units whose device is being opened
        self._timer = None
        exports.units.replication.allow_removal = self.allow_removal
        exports.units.reset_device = self.after_reset

    # -- timer -------------------------------------------------------------------------------------

    def reconsider(self):
        """There may be such units now: look at them from time to time."""
        if self._timer is None and self._watched():
            self._timer = self.loop.call_later(SECONDS, self._tick)

    def close(self):
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watched(self):
        units = self.exports.units.by_id.values()
        return [unit for unit in units if unit.store.kind == passthrough_export.KIND]

    def _tick(self):
        self._timer = None
        for unit in self._watched():
            self._look_at(unit)
        self.reconsider()

    # -- a device that goes and returns ------------------------------------------------------------

    def _look_at(self, unit):
        if unit.store.descriptor is None or unit.id in self._opening:
            return
        if self._is_attached(unit.store.key[1:]):
            return
        if not unit.path_problem:
            unit.path_problem = '%s is not attached any more' % unit.store.shown
            log.error(
                'unit %s: %s; its commands fail until the device returns',
                unit.id,
                unit.path_problem,
            )
        target = self.targets().get(unit.target_name)
        if target is not None and target.luns.get(unit.lun.number) == unit.lun:
            self._open(unit, target)

    def _open(self, unit, target):
        self._opening.add(unit.id)
        key, store = (target.name, unit.lun.number), unit.store

        def opened(outcomes):
            fresh = outcomes[key]
            is_current = self.exports.units.by_id.get(unit.id) is unit and unit.store is store
            if not isinstance(fresh, Unit):
                self._opening.discard(unit.id)
                log.debug('unit %s: %s', unit.id, fresh)
            elif not is_current:
                self._opening.discard(unit.id)
                self.exports.close_unit(fresh)
            else:
                log.info('unit %s: the device is back: %s', unit.id, fresh.store.shown)
                unit.facts = fresh.facts
                self.exports.load_medium(unit, fresh, lambda: self._opening.discard(unit.id))

        self.exports.open_media([(target, unit.lun)], opened)

    # -- what concerns all nexuses -----------------------------------------------------------------

    def on_attention(self, worker, message):
        """`report attention`: ignored if the unit is no real device of this worker's session."""
        units = self.exports.units
        unit = units.by_id.get(message['unit'])
        nexus = unit.workers.get(worker) if unit is not None else None
        code = message['asc'], message['ascq']
        if nexus is None or unit.store.kind != passthrough_export.KIND:
            return
        if all(0 <= number <= 0xFF for number in code):
            others = Others(transitions.nexus_ports(nexus))
            units.replication.apply_decision(unit, Decision(unit.shared, [(others,) + code]))

    def after_reset(self, unit, message, answer):
        """device-reset: a function that calls answer(outcome) when the device was reset, too. message: the
        `ask reset` of a worker; answer(outcome) is called at once if it resets no unit."""

        def reset(outcome):
            store = unit.store
            if message.get('function') not in RESETS or store.descriptor is None:
                answer(outcome)
                return
            log.warning('unit %s: %s is reset, as an initiator wants it', unit.id, store.shown)
            descriptor = store.descriptor
            self.jobs.submit_job(
                ('reset', unit.id),
                lambda: (sg_io.reset(descriptor) or {}, ()),
                lambda result: self._was_reset(unit, result, lambda: answer(outcome)),
                [descriptor],
                RESET_SECONDS,
            )

        return reset

    @staticmethod
    def _was_reset(unit, result, done):
        if result.why:
            log.error('unit %s: the device was not reset: %s', unit.id, result.why)
        done()

    def allow_removal(self, unit, done):
        """No nexus prevents the removal of the medium any more; done() when the device knows."""
        store = unit.store
        if store.kind != passthrough_export.KIND or store.descriptor is None:
            done()
            return
        self.jobs.submit_job(
            ('allow removal', unit.id),
            lambda: (passthrough_export.allow_removal(store) or {}, ()),
            lambda answer: done(),
            [store.descriptor],
        )
