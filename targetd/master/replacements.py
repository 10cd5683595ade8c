"""Replaces units that sessions use: LUNs with another store or other settings, removed targets.

A LUN that gets another store or block size cannot be changed while a session uses it. The new unit is
*pending* until no session of the target is left; until then the sessions, and new ones, use the old unit.

     ChangeLun --> exports.pending --no session left, or reload --now--> state.changing --> flushed, replaced

With --now, and if the target is removed, its sessions are asked to log out, and ended after stop-timeout.
A target in `changing` refuses logins ('service unavailable', which initiators retry).
"""

from targetd import log
from targetd.master.exports import exports


class Replacements(object):
    """The units that wait for their sessions. check_later(): calls Reload.check from the loop; for the other
    arguments see Master."""

    def __init__(self, loop, state, sessions, units, exports, check_later):
        self.loop = loop
        self.state = state
        self.sessions = sessions
        self.units = units
        self.exports = exports
        self.check_later = check_later
        self._flushing = set()  # targets in `changing` whose old units are being flushed
        self._replaced = {}  # target name -> functions to call when its units are replaced
        self._with_copies = []  # old units that copies of other targets' sessions still use

    def replace_later(self, step, unit, fresh):
        """The LUN gets this fresh Unit as soon as no session uses the old one; at once if there is no old
        one. A fresh unit with the settings in force is not needed: the change is taken back."""
        self.exports.forget_unavailable(step.target_name, step.new.number)
        if unit is None:
            self.exports.add_unit(fresh)
            self.exports.announce_unit(fresh)
        elif fresh.lun == unit.lun:
            self.exports.discard_unit(fresh)
        else:
            self.exports.pending[step.target_name, step.new.number] = fresh
            if self.sessions.of_target(step.target_name):
                log.info(
                    'lun %d of %s: the change waits until the sessions of the target have logged out '
                    '("targetdctl reload --now" asks them to)',
                    step.new.number,
                    step.target_name,
                )

    def replace_pending(self, target_names):
        """Replace the units of these targets for which there are pending ones, after the logout of their
        sessions."""
        for name in target_names:
            served = self.units.of_target(name)
            keys = [key for key in self.exports.pending if key[0] == name]
            swaps = [(served.get(key[1]), self.exports.pending.pop(key)) for key in keys]
            self.swap_after_logout(name, swaps, 'the settings of its LUNs change')

    def swap_after_logout(self, target_name, swaps, why, done=lambda errors: None):
        """Ask the sessions of the target to log out, then replace [(old Unit, new Unit or None)];
        done([(old Unit, None or the OSError of its flush)]) afterwards."""
        self.state.changing.setdefault(target_name, []).extend(swaps)
        self._replaced.setdefault(target_name, []).append(done)
        seconds = self.state.configuration.server.stop_timeout
        for unit in filter(None, (unit for unit, _ in swaps)):
            self._with_copies.append(unit)
            self.units.copy_guests.end_copies(unit, lambda unit=unit: self._copies_ended(unit))
        for session in self.sessions.of_target(target_name):
            log.info(
                'session %d of %s is asked to log out: %s',
                session.tsih,
                session.initiator_name,
                why,
            )
            self.sessions.logout_session(session, seconds, why)

    def _copies_ended(self, unit):
        """No copy of another target's session uses the unit any more."""
        self._with_copies.remove(unit)
        self.check_later()

    def check(self, is_reloading):
        """Replace units that no session and no copy uses any more, and whose media have no incomplete
        atomic write. is_reloading: a reload in progress may replace what is pending."""
        if not is_reloading:
            self.replace_pending(
                name for name in self.exports.pending_targets() if not self.sessions.of_target(name)
            )
        used = {unit.target_name for unit in self._with_copies}
        for target_name in [
            name
            for name in self.state.changing
            if name not in used and not self.sessions.of_target(name)
        ]:
            if any(
                old is not None and self.units.replication.atomic_writes.is_repairing(old)
                for old, _ in self.state.changing[target_name]
            ):
                continue
            if target_name not in self._flushing:
                self._flush_replaced(target_name)

    def _flush_replaced(self, target_name):
        """Flush the units that are removed or replaced, then replace them. A flush that fails is logged
        and saved: the unit stays failed."""
        self._flushing.add(target_name)
        units = [old for old, _ in self.state.changing[target_name] if old is not None]

        def flushed(errors):
            self._flushing.discard(target_name)
            for old, new in self.state.changing.pop(target_name):
                self._replace(old, new)
            for done in self._replaced.pop(target_name, ()):
                done(errors)
            self.check_later()

        self.units.flushes.flush_units(units, flushed)

    def _replace(self, old, new):
        if old is not None:
            self.units.remove_unit(old)
            self.exports.close_unit(old)
        if new is not None:
            if old is not None and old.key == new.key:
                exports.carry_over_state(old, new)
            self.exports.add_unit(new)
            self.exports.watch.check_now()  # it may have been opened long ago
