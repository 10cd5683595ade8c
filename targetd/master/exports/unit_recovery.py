"""Units that the administrator puts into service again after a failure of their media.

acknowledge --failed--> the master's description is flushed --> saved --> new stores in the workers
            --other faults---------------------------------------^
"""

import os
import time

from targetd import log
from targetd.errors import TargetdError
from targetd.master.units import descriptions, fault_transitions, flushing, transitions
from targetd.scsi.medium_state import FAILED, SHRUNK
from targetd.store import failure_flags


class UnitRecovery(object):
    """units: logical_units.Units; jobs: Jobs; watch: MediaWatch."""

    def __init__(self, units, jobs, watch):
        self.units = units
        self.jobs = jobs
        self.watch = watch

    def recover_unit(self, unit, done):
        """Puts a failed or restricted unit into service again at the administrator's request, and
        forgets its faults. Returns False if the unit is healthy; otherwise done(None), or
        done(TargetdError) if that cannot be saved, is called now or later."""
        if unit.shared.medium == SHRUNK:
            self.watch.acknowledge_shrunk(unit)
            if not fault_transitions.is_degraded(unit.shared):
                done(None)
                return True
        has_failed = unit.shared.medium == FAILED
        if not has_failed and not fault_transitions.is_degraded(unit.shared):
            return False
        if has_failed and flushing.has_cache(unit):
            self._forget_errors(unit, lambda why: self._recover(unit, done, why))
            return True
        if has_failed:
            unit.store.renew_flag(failure_flags.new_flag())
        self._recover(unit, done)
        return True

    def _forget_errors(self, unit, done):
        """The master's open file description still has the error, and so may the spare ones: a flush,
        whose outcome nobody needs, takes it away, and there are new spare ones afterwards. done('' or
        why the medium does not answer)."""
        description = dict(
            flushing.flush_description(unit.store), flag=failure_flags.NO_FLAG, is_shared=False
        )
        descriptor = unit.store.descriptor

        def forgotten(answer):
            has_failed = unit.shared.medium == FAILED  # else a second command was quicker
            if answer.why or unit.store.descriptor is None or not has_failed:
                for opened in answer.descriptors:
                    os.close(opened)
            else:
                unit.store.renew_flag(failure_flags.new_flag(), answer.descriptors)
            done(answer.why)

        self.jobs.submit_job(
            ('forget errors', unit.id),
            lambda: _without_errors(description, descriptor, unit.store.kind),
            forgotten,
            [descriptor],
        )

    def _recover(self, unit, done, why=''):
        """why: '', or why the unit cannot be used."""
        replication = self.units.replication
        if why:
            done(TargetdError('unit %s stays as it is: %s' % (unit.id, why)))
            return

        def saved(error):
            if error is not None:
                text = 'unit %s stays as it is, because its state cannot be saved in %s: %s'
                done(TargetdError(text % (unit.id, replication.state.path, error.strerror)))
                return
            if replication.by_id.get(unit.id) is unit:
                self._recover_saved(unit)
            done(None)

        replication.save_state(unit, _recovered(unit).shared, saved)

    def _recover_saved(self, unit):
        replication, decision = self.units.replication, _recovered(unit)
        has_failed = unit.shared.medium == FAILED
        log.warning(
            'unit %s is put into service again after a failure (%s)',
            unit.id,
            unit.failure or 'errors of the medium',
        )
        if has_failed:  # new Stores, because the old ones keep the failure state
            replication.order_units(unit.workers, replace=[unit])
        unit.acknowledged_at = int(time.monotonic() * 1e6)
        replication.distribute(unit, decision, None, lambda: None)
        if has_failed and unit.atomic is not None:
            replication.atomic_writes.retry_repairs(unit)


def _without_errors(description, descriptor, kind):
    """A job in a child process: flushes the medium, and opens spare descriptions of a block device."""
    flushing.flush_medium(description, os.dup(descriptor))
    return descriptions.open_spares(descriptor) if kind == 'block' else ({}, ())


def _recovered(unit):
    """The Decision of recover_unit() for the state of the unit now."""
    has_failed = unit.shared.medium == FAILED
    decision = transitions.failure_acknowledged(unit.shared) if has_failed else None
    return fault_transitions.acknowledged(unit.shared, decision)
