"""Reload: read the configuration again, check all of it, and apply what is different. A broken file
changes nothing.

     load --> diff --> open new stores ···> open new portals --> apply the steps (cannot fail) --> new spares
       |                    |                   |
       +------ any failure: what was opened is closed, everything stays as it was

The master goes on with its work (···) while children open the stores.

A LUN that becomes another (another store, another block size) cannot change under a session's feet:
the target's sessions are asked to log out, ended after stop-timeout, and the target refuses logins
('service unavailable', which initiators retry) until the last old session is gone and the new units
are in their place.
"""

from targetd import log
from targetd.config import acl, loader, model, settings
from targetd.errors import ConfigError, StoreError, TargetdError
from targetd.master.exports import exports, open_medium
from targetd.master.units import transitions
from targetd.scsi import attention

MODE_FIELDS = ('write_cache', 'sense_format', 'thin_threshold')
ACCESS_FIELDS = ('alua', 'alua_state', 'portal_groups')


class Prepared(object):
    """What was opened before anything changed. units: {(target name, number): Unit};
    close_unit(unit): lets go of one."""

    def __init__(self, units, close_unit):
        self.units = units
        self._close_unit = close_unit

    def close(self):
        """Nothing of it is wanted."""
        for unit in self.units.values():
            self._close_unit(unit)


class Reload(object):
    """The reloads of one Master."""

    def __init__(self, master):
        self.master = master
        # target name -> [(old Unit, new Unit or None)] that wait for its sessions' end
        self.changing = {}
        self._is_opening = False  # stores, for a reload that is under way
        self.visited = []  # units of these that copies reach yet
        self._again = False  # a SIGHUP came meanwhile

    # -- doors -------------------------------------------------------------------------------------------------------

    def on_signal(self):
        """SIGHUP: as start_reload(), but every complaint goes to the log."""
        if self.changing or self._is_opening:
            log.info(
                'the reload waits until %s',
                'the sessions of %s have logged out' % ', '.join(sorted(self.changing))
                if self.changing
                else 'the one that is under way is done',
            )
            self._again = True
        else:
            self.start_reload(self._log_outcome)

    @staticmethod
    def _log_outcome(rows, error):
        if error is not None:
            log.error('the configuration is not reloaded, nothing was changed:')
            for line in str(error).split('\n'):
                log.error('  %s', line)
        elif not rows:
            log.info('reloaded: nothing changed')

    def reload_and_wait(self, plan_only=False):
        """start_reload(), and wait for its end: [{'step', 'effect'} …]. Raises TargetdError, and then
        nothing has changed."""
        outcome = []
        self.start_reload(lambda *values: outcome.append(values), plan_only)
        self.master.jobs.wait()
        ((rows, error),) = outcome
        if error is not None:
            raise error
        return rows

    def start_reload(self, done, plan_only=False):
        """Load, and unless `plan_only` apply. done([{'step', 'effect'} …], None), now or later; or
        done(None, TargetdError): then nothing has changed."""
        try:
            new = self._loaded()
        except TargetdError as e:
            done(None, e)
            return
        steps = model.diff(self.master.configuration, new)
        rows = [{'step': step.text, 'effect': settings.WHEN[step.when]} for step in steps]
        if plan_only:
            done(rows, None)
            return
        wanted = [(new.targets[target_name], lun) for target_name, lun in wanted_luns(steps)]
        self._is_opening = True
        self.master.exports.open_media(
            wanted, lambda outcomes: self._opened(new, steps, rows, outcomes, done)
        )

    def _loaded(self):
        master = self.master
        if master.stop.is_stopping:
            raise TargetdError('targetd is being stopped')
        if self.changing:
            raise TargetdError(
                'the last reload still waits for sessions of %s to log out; try again in %d seconds'
                % (', '.join(sorted(self.changing)), master.configuration.server.stop_timeout + 5)
            )
        if self._is_opening:
            raise TargetdError(
                'the last reload still waits for a disk to answer; try again in some seconds'
            )
        if not master.path:
            raise TargetdError(
                'targetd runs without a configuration file; there is nothing to reload'
            )
        return loader.load(master.path)

    def _opened(self, new, steps, rows, outcomes, done):
        self._is_opening = False
        try:
            self._apply(new, steps, self._prepared(outcomes))
        except TargetdError as e:
            done(None, e)
        except Exception as e:  # the boundary: somebody waits for the outcome
            log.exception('a reload met an unexpected failure')
            done(None, TargetdError('an unexpected failure: %s; the log has the details' % e))
        else:
            done(rows, None)
        self.check()

    # -- apply -------------------------------------------------------------------------------------------------------

    def _apply(self, new, steps, prepared):
        master = self.master
        try:
            self._change_portals(steps)
        except BaseException:
            prepared.close()
            raise
        for step in steps:
            log.info('reload: %s', model.described(step))
        master.configuration = self._with_server(new, steps)
        master.apply_server()
        for step in steps:
            STEPS.get(type(step), Reload._nothing)(self, step, prepared)
        master.exports.retry_now()
        self._follow_media()
        self._end_unwelcome()
        self.check()
        master.isns.apply_configuration(master.configuration)
        if steps:
            master.workers.new_generation()

    def _nothing(self, step, prepared):
        """A step that was made already, or that is in force by being in the configuration."""

    def _prepared(self, outcomes):
        """What was opened. Raises TargetdError with all that cannot be, and nothing stays open."""
        prepared = Prepared(
            {key: unit for key, unit in outcomes.items() if not isinstance(unit, StoreError)},
            self.master.exports.close_unit,
        )
        failures = [
            'lun %d of %s: %s' % (number, target_name, outcomes[target_name, number])
            for target_name, number in outcomes
            if (target_name, number) not in prepared.units
        ]
        if self.master.stop.is_stopping:
            failures = ['targetd is being stopped']
        if failures:
            prepared.close()
            raise StoreError('\n'.join(failures))
        return prepared

    def _change_portals(self, steps):
        """Close the removed, then open the added, because one may need the other's port; all or
        nothing."""
        master = self.master
        removed = [s for s in steps if isinstance(s, model.RemovePortal)]
        added = [s for s in steps if isinstance(s, model.AddPortal)]
        opened = []
        for step in removed:
            master.close_portal(step.tag, *step.portal)
        try:
            for step in added:
                master.open_portal(step.tag, *step.portal)
                opened.append(step)
        except TargetdError:
            for step in opened:
                master.close_portal(step.tag, *step.portal)
            for step in removed:
                self._reopen(step)
            raise

    def _reopen(self, step):
        try:
            self.master.open_portal(step.tag, *step.portal)
        except TargetdError as e:
            log.error('%s', e)

    def _with_server(self, new, steps):
        """The new configuration, with the old value of what only a restart can change."""
        kept = {
            s.field: s.old
            for s in steps
            if isinstance(s, model.ChangeServer) and s.when == settings.NEEDS_RESTART
        }
        return new._replace(server=new.server._replace(**kept))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _change_server(self, step, prepared):
        if step.field in ('log', 'log_level'):
            self.master.start_log()

    def _add_target(self, step, prepared):
        for number in step.target.luns:
            self.master.exports.add_unit(prepared.units[step.target.name, number])

    def _remove_target(self, step, prepared):
        name = step.target.name
        for number in step.target.luns:
            self.master.exports.forget_lun(name, number)
        swaps = [(unit, None) for unit in self.master.units.of_target(name).values()]
        self._swap_after_logout(name, swaps, 'target %s is removed' % name)

    def _change_target(self, step, prepared):
        """States of target port groups are in force at once; TPGS is what a session found when it
        logged in."""
        for late in self.master.exports.unavailable.values():
            if late.target_name == step.new.name:
                late.target = step.new
        if set(ACCESS_FIELDS) & set(step.fields):
            for unit in self.master.units.of_target(step.new.name).values():
                unit.facts.update(open_medium.alua_facts(step.new, unit.lun))
                configured = exports.configured_alua(step.new)
                self.master.units.replication.apply_decision(
                    unit, transitions.access_configured(unit.shared, configured)
                )

    def _add_lun(self, step, prepared):
        unit = prepared.units[step.target_name, step.lun.number]
        self.master.exports.add_unit(unit)
        workers = [s.worker for s in self.master.sessions.of_target(step.target_name)]
        self.master.units.replication.order_units(
            workers, add=[unit], attentions=[attention.LUNS_CHANGED]
        )

    def _remove_lun(self, step, prepared):
        self.master.exports.forget_lun(step.target_name, step.lun.number)
        unit = self.master.units.of_target(step.target_name).get(step.lun.number)
        if unit is None:
            return
        self.master.units.remove_unit(unit)
        workers = list(unit.workers)
        unit.workers = {}
        self.master.copy_guests.end_copies(
            unit,
            lambda: self.master.units.replication.order_units(
                workers,
                remove=[step.lun.number],
                attentions=[attention.LUNS_CHANGED],
                done=lambda: self.master.exports.close_unit(unit),
            ),
        )

    def _change_lun(self, step, prepared):
        unit = self.master.units.of_target(step.target_name).get(step.new.number)
        fresh = prepared.units.get((step.target_name, step.new.number))
        late = self.master.exports.unavailable.get((step.target_name, step.new.number))
        if late is not None:
            late.lun = step.new
        if fresh is not None:
            self.master.exports.forget_unavailable(step.target_name, step.new.number)
            self._swap_after_logout(
                step.target_name,
                [(unit, fresh)],
                'lun %d of %s becomes another' % (step.new.number, step.target_name),
            )
        elif unit is not None:
            unit.lun = step.new
            if set(MODE_FIELDS) & set(step.fields):
                unit.facts.update(
                    write_cache=step.new.write_cache,
                    descriptor_sense=step.new.sense_format == 'descriptor',
                )
                unit.facts.update(open_medium.threshold_facts(step.new, unit.store))
                self.master.units.replication.apply_decision(
                    unit, transitions.facts_changed(unit.shared, unit.facts)
                )

    # -- what has to wait for sessions -------------------------------------------------------------------------------

    def _swap_after_logout(self, target_name, swaps, why):
        master = self.master
        self.changing.setdefault(target_name, []).extend(swaps)
        seconds = master.configuration.server.stop_timeout
        for unit in filter(None, (unit for unit, _ in swaps)):
            self.visited.append(unit)
            master.copy_guests.end_copies(unit, lambda unit=unit: self._left(unit))
        for session in master.sessions.of_target(target_name):
            log.info(
                'session %d of %s is asked to log out: %s',
                session.tsih,
                session.initiator_name,
                why,
            )
            master.logout_session(session, seconds, why)

    def _left(self, unit):
        """No copy of another target's session reaches the unit any more."""
        self.visited.remove(unit)
        self.master.loop.call_later(0, self.check)

    def check(self):
        """After a death, or when the last copy has left: put new units in place where nobody uses
        the old, and nothing on their media is half done."""
        used = {unit.target_name for unit in self.visited}
        for target_name in [
            name
            for name in self.changing
            if name not in used and not self.master.sessions.of_target(name)
        ]:
            if any(
                old is not None and self.master.atomic_writes.is_repairing(old)
                for old, _ in self.changing[target_name]
            ):
                continue
            for old, new in self.changing.pop(target_name):
                if old is not None:
                    self.master.units.remove_unit(old)
                    self.master.exports.close_unit(old)
                if new is not None:
                    if old is not None and old.key == new.key:
                        exports.carry_over_state(old, new)
                    self.master.exports.add_unit(new)
        if self._again and not self.changing and not self._is_opening:
            self._again = False
            self.master.loop.call_later(0, self.on_signal)

    # -- what a reload looks at besides ------------------------------------------------------------------------------

    def _follow_media(self):
        for unit in list(self.master.units.by_id.values()):
            if unit.target_name in self.changing:
                continue
            self.master.exports.recover_unit(unit)
            try:
                self.master.exports.resize_unit(unit, unit.lun.size)
            except StoreError as e:
                log.error('%s', e)

    def _end_unwelcome(self):
        """End the sessions that the rules no longer admit."""
        master = self.master
        for session in master.sessions.all():
            target = (
                master.configuration.targets.get(session.nexus.target_name)
                if session.nexus
                else None
            )
            if target is None or session.ended_why is not None:
                continue
            refusals = [
                acl.refusal(target, session.initiator_name, peer[0])
                for peer in session.peers.values()
            ]
            if any(refusals):
                why = next(r for r in refusals if r)
                log.warning(
                    'session %d of %s is ended: %s', session.tsih, session.initiator_name, why
                )
                master.end_session(session, why, 'administrator')


def wanted_luns(steps):
    """[(target name, Lun)] of the stores that have to be opened for these steps."""
    found = []
    for step in steps:
        if isinstance(step, model.AddTarget):
            found += [(step.target.name, lun) for lun in step.target.luns.values()]
        elif isinstance(step, model.AddLun):
            found.append((step.target_name, step.lun))
        elif isinstance(step, model.ChangeLun) and step.when != settings.LIVE:
            found.append((step.target_name, step.new))
    return found


STEPS = {
    model.ChangeServer: Reload._change_server,
    model.AddTarget: Reload._add_target,
    model.ChangeTarget: Reload._change_target,
    model.RemoveTarget: Reload._remove_target,
    model.AddLun: Reload._add_lun,
    model.RemoveLun: Reload._remove_lun,
    model.ChangeLun: Reload._change_lun,
}

__all__ = ('Reload', 'ConfigError', 'wanted_luns')
