"""Reload: read the configuration again, check all of it, and apply the differences. An invalid file
changes nothing.

     load --> diff --> open new stores ···> extend files ···> log, portals --> apply the steps --> new spares
       |                    |                   |                |               (cannot fail)
       +------ any failure: what was opened is closed, what was extended is shortened: nothing has changed

The master continues its work (···) while child processes open the stores. A plan tries the same
things and changes nothing: it opens disks for reading only, and in the place of files files without a
name.

Units that sessions use are replaced by master.replacements.
"""

import time

from targetd import log
from targetd.config import model, settings
from targetd.errors import StoreError, TargetdError
from targetd.master import feasible, live_changes
from targetd.master.attempt import Attempt, prepare
from targetd.master.exports import exports, open_medium
from targetd.master.exports.resizing import Resizes
from targetd.master.live_changes import Cause, LiveChanges
from targetd.master.replacements import Replacements
from targetd.master.units import transitions
from targetd.master.units.map_changes import MapChanges
from targetd.master.vault import load
from targetd.scsi import attention

MODE_FIELDS = ('write_cache', 'sense_format', 'thin_threshold')
ACCESS_FIELDS = ('alua', 'alua_state', 'portal_groups', 'partner_groups')


BY_HAND = Cause('root', 'reload', None)


class Reload(object):
    """The reloads of a master. apply_server() applies the [server] section; for the other arguments
    see Master."""

    def __init__(
        self,
        loop,
        state,
        workers,
        sessions,
        units,
        exports,
        jobs,
        listeners,
        isns,
        log_files,
        apply_server,
        history,
    ):
        self.loop = loop
        self.state = state
        self.workers = workers
        self.sessions = sessions
        self.units = units
        self.exports = exports
        self.jobs = jobs
        self.listeners = listeners
        self.isns = isns
        self.log_files = log_files
        self.apply_server = apply_server
        self.history = history
        self.live_changes = LiveChanges(jobs, state)
        self.map_changes = MapChanges(units, sessions)
        self.on_begin = lambda done: done  # called with done of a reload; returns what replaces it
        # of logins.origins: calls then() when the host names of the access rules are known
        self.when_known = lambda then: then()
        self.is_opening = False  # True while child processes open stores for a reload
        self.replacements = Replacements(
            loop, state, sessions, units, exports, lambda: self.loop.call_later(0, self.check)
        )
        self._is_requested_again = False  # SIGHUP arrived during a reload

    # -- start -------------------------------------------------------------------------------------

    def on_signal(self):
        """SIGHUP: start_reload() with the outcome in the log. During a reload it is postponed."""
        if self.state.changing or self.is_opening:
            log.info(
                'the reload waits until %s',
                'the sessions of %s have logged out' % ', '.join(sorted(self.state.changing))
                if self.state.changing
                else 'the reload in progress is done',
            )
            self._is_requested_again = True
        else:
            self.start_reload(self._log_outcome, cause=Cause('root', 'SIGHUP', None))

    @staticmethod
    def _log_outcome(rows, error):
        if error is not None:
            log.error('the configuration is not reloaded, nothing was changed:')
            for line in str(error).split('\n'):
                log.error('  %s', line)
        elif not rows:
            log.info('reloaded: nothing changed')

    def reload_and_wait(self, plan_only=False, now=False):
        """start_reload(), and wait for its end. Returns [{'step', 'effect'} …]. Raises TargetdError;
        then nothing has changed."""
        outcome = []
        self.start_reload(lambda *values: outcome.append(values), plan_only, now)
        self.jobs.wait()
        ((rows, error),) = outcome
        if error is not None:
            raise error
        return rows

    def start_reload(self, done, plan_only=False, now=False, cause=BY_HAND):
        """Load the configuration and, unless `plan_only`, apply it. now: ask the sessions that changes
        wait for to log out, also for changes of earlier reloads; cause: of live_changes, with the edit
        that is written to live.conf before it is applied. Calls, now or later, done([{'step',
        'effect'} …], None), or done(None, TargetdError) if nothing has changed."""
        try:
            loaded = self._loaded(cause)
        except TargetdError as e:
            done(None, e)
            return
        if not plan_only:
            done = self.on_begin(done)
        new = loaded.configuration
        steps = model.diff(self.state.configuration, new)
        rows = [{'step': step.text, 'effect': settings.WHEN[step.when]} for step in steps]
        wanted = [
            (new.targets[target_name], lun)
            for target_name, lun in wanted_luns(steps, self.exports.pending)
        ]
        self.is_opening = True
        self.exports.open_media(
            wanted,
            lambda outcomes: self._opened(
                Attempt(loaded, cause, steps, rows, plan_only, now, done), outcomes
            ),
            plan_only,
            leaving_units(steps),
        )

    def _loaded(self, cause):
        if self.state.is_stopping:
            raise TargetdError('targetd is being stopped')
        if self.state.changing:
            raise TargetdError(
                'the last reload still waits for sessions of %s to log out; try again in %d seconds'
                % (
                    ', '.join(sorted(self.state.changing)),
                    self.state.configuration.server.stop_timeout + 5,
                )
            )
        if self.is_opening:
            raise TargetdError(
                'the last reload still waits for a disk to answer; try again in some seconds'
            )
        if not self.state.path:
            raise TargetdError(
                'targetd runs without a configuration file; there is nothing to reload'
            )
        loaded = load(
            self.state.path, self.state.vault, edit=cause.edit, comment=live_changes.comment(cause)
        )
        try:
            feasible.require_feasible(loaded.configuration.server, self.state.configuration.server)
        except TargetdError:
            loaded.close()
            raise
        return loaded

    def _opened(self, attempt, outcomes):
        try:
            prepared = prepare(outcomes, self.exports.discard_unit, self.state.is_stopping)
        except TargetdError as e:
            self._ended(attempt, e)
            return
        prepared.resizes = Resizes(self.jobs, self._wanted_sizes(attempt.steps), attempt.plan_only)
        prepared.resizes.prepare(lambda failures: self._flush_first(attempt, prepared, failures))

    def _flush_first(self, attempt, prepared, failures):
        """Flush the units whose write cache the steps disable. If one cannot be flushed, the reload is
        refused."""

        def flushed(errors):
            failures.extend(
                'write-cache = off of lun %d of %s: its data cannot be flushed: %s'
                % (unit.lun.number, unit.target_name, error.strerror)
                for unit, error in errors
                if error is not None
            )
            self._try_log(attempt, prepared, failures)

        self.units.flushes.flush_units(self._losing_cache(attempt.steps), flushed)

    def _losing_cache(self, steps):
        """The units in service whose write cache these steps disable."""
        found = [
            self.units.of_target(step.target_name).get(step.new.number)
            for step in steps
            if isinstance(step, model.ChangeLun) and 'write_cache' in step.fields
        ]
        return [
            unit for unit in found if unit is not None and unit.lun.write_cache and not unit.failure
        ]

    def _wanted_sizes(self, steps):
        """[(Unit, bytes)] of the units in service whose size setting changes."""
        found = []
        for step in steps:
            is_live_change = isinstance(step, model.ChangeLun) and step.when == settings.LIVE
            if is_live_change and 'size' in step.fields and step.new.size is not None:
                unit = self.units.of_target(step.target_name).get(step.new.number)
                found += [(unit, step.new.size)] if unit is not None else []
        return found

    def _resized(self, attempt, prepared, refusal):
        try:
            if refusal is not None:
                prepared.close()
                raise refusal
            if attempt.plan_only:
                self._try_rest(attempt, prepared)
        except TargetdError as e:
            self._ended(attempt, e)
            return
        if attempt.plan_only:
            self._ended(attempt, None)
        elif attempt.loaded.is_edited:
            self.live_changes.put(
                attempt.loaded, lambda error: self._written(attempt, prepared, error)
            )
        else:
            self._apply_and_end(attempt, prepared, lambda why: self._ended(attempt, why))

    def _written(self, attempt, prepared, error):
        """The change is in live.conf: apply it, or take it back."""
        if error is None and self.state.is_stopping:
            error = TargetdError('targetd is being stopped')
            self.live_changes.take_back(lambda _: None)
        if error is not None:
            prepared.close()
            self._ended(attempt, error)
            return
        self._apply_and_end(
            attempt,
            prepared,
            lambda why: self.live_changes.take_back(
                lambda error: self._ended(attempt, error or why)
            ),
        )

    def _apply_and_end(self, attempt, prepared, refused):
        """Apply the steps, and end when they are in force; refused(TargetdError) if nothing has
        changed."""
        try:
            self._apply(attempt, prepared)
        except TargetdError as e:
            refused(e)
            return
        except Exception as e:  # the boundary: done() must be called
            log.exception('a reload met an unexpected failure')
            refused(TargetdError('an unexpected failure: %s; the log has the details' % e))
            return
        if attempt.loaded.is_edited:
            self.live_changes.forget_former()
        self.history.record(
            attempt.loaded.whole, time.time(), attempt.cause.who, attempt.cause.what
        )
        prepared.when_in_force(lambda: self._ended(attempt, None))

    def _try_rest(self, attempt, prepared):
        """The part of a plan that needs no stores. Raises TargetdError if a step would fail."""
        prepared.close()
        for step in attempt.steps:
            if isinstance(step, (model.AddPortal, model.ChangePortalGroup)):
                is_new = isinstance(step, model.AddPortal)
                group = attempt.new.portal_groups[step.tag] if is_new else step.new
                for address, port in [step.portal] if is_new else step.reopened:
                    self.listeners.try_portal(
                        group, address, port, attempt.new.server.portal_required
                    )

    def _ended(self, attempt, error):
        self.is_opening = False
        attempt.loaded.live.close()
        if error is not None or attempt.plan_only:
            attempt.loaded.whole.close()
        attempt.vault.close()  # of the new configuration if it is not in force, else of the old one
        attempt.done(attempt.rows if error is None else None, error)
        self.check()

    # -- apply -------------------------------------------------------------------------------------

    def _apply(self, attempt, prepared):
        new, steps = attempt.new, attempt.steps
        try:
            self._change_portals(steps, new)
        except BaseException:
            prepared.close()
            raise
        for step in steps:
            log.info('reload: %s', model.described(step))
        self.state.configuration = self._with_server(new, steps)
        self.state.vault, attempt.vault = attempt.vault, self.state.vault
        self.apply_server()
        for step in steps:
            STEPS.get(type(step), Reload._nothing)(self, step, prepared)
        prepared.resizes.finish()
        self.exports.after_reload()
        self._end_inadmissible_sessions()
        if attempt.now:
            self.replacements.replace_pending(self.exports.pending_targets())
        self.check()
        self.isns.apply_configuration(self.state.configuration)
        if steps:
            self.workers.new_generation()

    def _try_log(self, attempt, prepared, failures):
        """Continue when a child process has tried whether the log of the new configuration can be
        written."""

        def tried(error):
            refusal = None  # the exit code is that of a start, which tries the log first
            if error is not None or failures or self.state.is_stopping:
                texts = failures + ([str(error)] if error is not None else [])
                kind = StoreError if error is None else TargetdError
                refusal = kind('\n'.join(texts) or 'targetd is being stopped')
            self._resized(attempt, prepared, refusal)

        if attempt.new.server.log != self.state.configuration.server.log:
            self.log_files.try_log(attempt.new.server, tried)
        else:
            tried(None)

    def _nothing(self, step, prepared):
        """The step was applied already, or is in force because it is in the configuration."""

    def _change_portals(self, steps, new):
        """Close the removed portals, then open the added ones, which may need the same port. If one
        cannot be opened, restore all of them and raise TargetdError."""
        old_groups, is_required = self.state.configuration.portal_groups, new.server.portal_required
        reopened = [
            (step.new.tag, portal)
            for step in steps
            if isinstance(step, model.ChangePortalGroup)
            for portal in step.reopened
        ]
        removed = reopened + [tuple(s) for s in steps if isinstance(s, model.RemovePortal)]
        added = reopened + [tuple(s) for s in steps if isinstance(s, model.AddPortal)]
        opened = []
        for tag, portal in removed:
            self.listeners.close_portal(tag, *portal)
        try:
            for tag, portal in added:
                self.listeners.open_or_wait(
                    new.portal_groups[tag], portal[0], portal[1], is_required
                )
                opened.append((tag, portal))
        except TargetdError:
            for tag, portal in opened:
                self.listeners.close_portal(tag, *portal)
            for tag, portal in removed:
                self._reopen(old_groups[tag], portal)
            raise

    def _reopen(self, group, portal):
        try:
            self.listeners.open_or_wait(group, portal[0], portal[1], False)
        except TargetdError as e:
            log.error('%s', e)

    def _with_server(self, new, steps):
        """The new configuration, but with the old values of the settings that need a restart."""
        kept = {
            s.field: s.old
            for s in steps
            if isinstance(s, model.ChangeServer) and s.when == settings.NEEDS_RESTART
        }
        return new._replace(server=new.server._replace(**kept))

    # -- steps -------------------------------------------------------------------------------------

    def _change_server(self, step, prepared):
        if step.field in ('log', 'log_level'):
            self.log_files.restart_log()

    def _add_target(self, step, prepared):
        for lun in step.target.luns.values():
            self._add_unit(step.target, lun, prepared)

    def _add_unit(self, target, lun, prepared):
        """The Unit of a new LUN, which is served from now on; None if another server serves the LUN."""
        key = target.name, lun.number
        if key in prepared.standby:
            self.exports.note_standby(target, lun, prepared.standby[key])
            return None
        self.exports.add_unit(prepared.units[key])
        return prepared.units[key]

    def _remove_target(self, step, prepared):
        name = step.target.name
        for number in step.target.luns:
            self.exports.discard_pending(name, number)
            self.exports.forget_lun(name, number)
        swaps = [(unit, None) for unit in self.units.of_target(name).values()]
        self.replacements.swap_after_logout(name, swaps, 'target %s is removed' % name)

    def _change_target(self, step, prepared):
        """The states of target port groups change at once. The TPGS field of INQUIRY data does not
        change for sessions that exist."""
        for unavailable in self.exports.unavailable.values():
            if unavailable.target_name == step.new.name:
                unavailable.target = step.new
        if set(ACCESS_FIELDS) & set(step.fields):
            for unit in self.units.of_target(step.new.name).values():
                unit.facts.update(open_medium.alua_facts(step.new, unit.lun))
                configured = exports.configured_alua(step.new)
                self.units.apply_and_flush(
                    unit, transitions.access_configured(unit.shared, configured)
                )

    def _change_maps(self, step, prepared):
        self.map_changes.change(step.new.name, prepared.hold())

    def _add_lun(self, step, prepared):
        target = self.state.configuration.targets[step.target_name]
        unit = self._add_unit(target, step.lun, prepared)
        if unit is None:
            return
        workers = [s.worker for s in self.sessions.of_target(step.target_name)]
        self.units.replication.order_units(workers, add=[unit], attentions=[attention.LUNS_CHANGED])

    def _remove_lun(self, step, prepared):
        self.exports.discard_pending(step.target_name, step.lun.number)
        self.exports.forget_lun(step.target_name, step.lun.number)
        unit = self.units.of_target(step.target_name).get(step.lun.number)
        if unit is None:
            return
        self.units.remove_unit(unit)
        self.units.take_from_sessions(unit, lambda: self._flush_and_close(unit))

    def _flush_and_close(self, unit):
        """The unit is not served any more. If its flush fails, that is logged and saved: the unit is
        failed when it is exported again."""
        self.units.flushes.flush_removed(unit, lambda error: self.exports.close_unit(unit))

    def _change_lun(self, step, prepared):
        unit = self.units.of_target(step.target_name).get(step.new.number)
        fresh = prepared.units.get((step.target_name, step.new.number))
        unavailable = self.exports.unavailable.get((step.target_name, step.new.number))
        if unavailable is not None:
            unavailable.lun = step.new
        self.exports.discard_pending(step.target_name, step.new.number)
        if fresh is not None and unit is not None and step.loads_medium:
            self.exports.load_medium(unit, fresh, prepared.hold())
        elif fresh is not None:
            self.replacements.replace_later(step, unit, fresh)
        elif unit is not None:
            unit.lun = step.new
            if unit in prepared.resizes.sizes:
                self.exports.watch.adopt_size(unit, prepared.resizes.sizes[unit])
            ordered = self.exports.read_only_times.decision(unit)
            if ordered is not None:
                in_force = prepared.hold()
                self.units.apply_and_flush(unit, ordered, lambda error: in_force())
            if set(MODE_FIELDS) & set(step.fields):
                unit.facts.update(
                    write_cache=step.new.write_cache,
                    descriptor_sense=step.new.sense_format == 'descriptor',
                )
                unit.facts.update(open_medium.threshold_facts(step.new, unit.store))
                self.units.apply_and_flush(unit, transitions.facts_changed(unit.shared, unit.facts))

    # -- after the steps ---------------------------------------------------------------------------

    def check(self):
        """Continue what waits for the end of a session, a copy or a repair. Call when one has ended."""
        self.replacements.check(self.is_opening)
        if self._is_requested_again and not self.state.changing and not self.is_opening:
            self._is_requested_again = False
            self.loop.call_later(0, self.on_signal)

    def _end_inadmissible_sessions(self):
        """End the sessions that the rules no longer admit, when their host names are resolved."""
        if not self.state.is_stopping:
            self.when_known(self._end_inadmissible_now)

    def _end_inadmissible_now(self):
        for session, why in self.sessions.admission.inadmissible(self.sessions.normal()):
            log.warning('session %d of %s is ended: %s', session.tsih, session.initiator_name, why)
            self.sessions.end_session(session, why, 'administrator')


def wanted_luns(steps, pending=()):
    """[(target name, Lun)] of the stores that must be opened for these steps. pending: {(target name,
    number)} of LUNs of which a change is pending, so that each further change waits too."""
    found = []
    for step in steps:
        if isinstance(step, model.AddTarget):
            found += [(step.target.name, lun) for lun in step.target.luns.values()]
        elif isinstance(step, model.AddLun):
            found.append((step.target_name, step.lun))
        elif isinstance(step, model.ChangeLun) and (
            step.opens_medium or (step.target_name, step.new.number) in pending
        ):
            found.append((step.target_name, step.new))
    return found


def leaving_units(steps):
    """{(target name, number)} of the units whose export these steps end."""
    found = {(s.target_name, s.lun.number) for s in steps if isinstance(s, model.RemoveLun)}
    for step in steps:
        if isinstance(step, model.RemoveTarget):
            found.update((step.target.name, number) for number in step.target.luns)
    return found


STEPS = {
    model.ChangeServer: Reload._change_server,
    model.AddTarget: Reload._add_target,
    model.ChangeTarget: Reload._change_target,
    model.RemoveTarget: Reload._remove_target,
    model.AddLun: Reload._add_lun,
    model.RemoveLun: Reload._remove_lun,
    model.ChangeMaps: Reload._change_maps,
    model.ChangeLun: Reload._change_lun,
}

__all__ = ('Reload', 'wanted_luns')
