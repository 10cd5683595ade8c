"""The answers to the commands of targetdctl that the server executes: a method for each row of
admin.commands.TABLE that is not local.
"""

import os

from targetd import __version__, events, log
from targetd.admin import commands
from targetd.config import model, network_kinds
from targetd.config.sharing_rules import sharing_of
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.master import fault_report
from targetd.master.control.control import Stream
from targetd.master.control.control_changes import ANSWERS as CHANGES
from targetd.master.control.control_changes import ChangeAnswers, named_lun
from targetd.master.control.control_counters import counters_reply
from targetd.master.control.control_guards import ANSWERS as GUARDS
from targetd.master.control.control_guards import GuardAnswers
from targetd.master.control.control_images import ANSWERS as IMAGES
from targetd.master.control.control_images import ImageAnswers
from targetd.master.control.control_space import ANSWERS as SPACE
from targetd.master.control.control_space import SpaceAnswers
from targetd.master.control.control_takeovers import ANSWERS as TAKEOVERS
from targetd.master.control.control_takeovers import TakeoverAnswers
from targetd.master.control.control_views import ANSWERS as VIEWS
from targetd.master.control.control_views import ViewAnswers
from targetd.master.fault_report import state_of, when
from targetd.master.live_changes import Cause
from targetd.master.logins.portals import plain
from targetd.master.reload import BY_HAND
from targetd.master.units import sharing, transitions
from targetd.scsi import alua, faults
from targetd.scsi.medium_state import FAILED

#: Bytes of user data of each PDU that `trace` receives: it shows none of them.
TRACE_DATA = 0


class ControlAnswers(object):
    """Executes commands; for the arguments see Master."""

    def __init__(
        self,
        loop,
        state,
        workers,
        sessions,
        units,
        exports,
        listeners,
        isns,
        log_files,
        reload,
        stop,
        counting,
        line_sampling,
        history,
        upgrade,
        captures,
        rate_limits,
        takeovers,
    ):
        self.loop = loop
        self.state = state
        self.workers = workers
        self.sessions = sessions
        self.units = units
        self.exports = exports
        self.listeners = listeners
        self.isns = isns
        self.log_files = log_files
        self.reload = reload
        self.stop = stop
        self.counting = counting
        self.line_sampling = line_sampling
        self.changes = ChangeAnswers(self, history)
        self.upgrade = upgrade
        self.captures = captures
        self.rate_limits = rate_limits
        self.views = ViewAnswers(self, history)
        self.guards = GuardAnswers(self)
        self.images = ImageAnswers(self, history)
        self.space = SpaceAnswers(self)
        self.takeovers = TakeoverAnswers(self, takeovers)

    def answer(self, words, arguments, client=None):
        """Execute a command of commands.TABLE by its row of ANSWERS, or of control_changes.ANSWERS.

        words: as in the row, 'show sessions'; arguments: {name: value}; client: control.Client. Returns
        the reply (bytes), or, for a command that takes time, a function that takes the function that
        sends the reply. Raises TargetdError.
        """
        arguments = {name.replace('-', '_'): value for name, value in arguments.items()}
        for table, owner in (
            (CHANGES, self.changes),
            (VIEWS, self.views),
            (GUARDS, self.guards),
            (IMAGES, self.images),
            (SPACE, self.space),
            (TAKEOVERS, self.takeovers),
        ):
            if words in table:
                return table[words](owner, client, **arguments)
        if words == 'reload':
            arguments['client'] = client
        return ANSWERS[words](self, **arguments)

    def _answer_status(self):
        spares = [w for w in self.workers.all() if w.state == 'spare']
        failing = [u for u in self.units.by_id.values() if u.shared.medium == FAILED]
        facts = [
            ('version', __version__),
            ('process', os.getpid()),
            ('since', when(self.state.started)),
            ('configuration', self.state.path or '(none)'),
            ('sessions', len(self.sessions.normal())),
            ('sessions of an earlier program', self._sessions_of_earlier()),
            ('targets', len(self.state.configuration.targets)),
            ('units', len(self.units.by_id)),
            ('failed units', len(failing)),
        ]
        facts += fault_report.status_facts(self.units.by_id.values())
        facts += [
            ('missing stores', len(self.exports.unavailable)),
            ('pending changes', len(self.exports.pending)),
            ('waiting portals', len(self.listeners.waiting)),
            ('replaced stores', sum(bool(u.path_problem) for u in self.units.by_id.values())),
            ('spare workers', len(spares)),
            ('state', 'stopping' if self.state.is_stopping else 'running'),
        ]
        facts += self.isns.facts()
        return commands.reply_rows([{'name': name, 'value': str(value)} for name, value in facts])

    def _sessions_of_earlier(self):
        versions = [s.worker.version for s in self.sessions.normal() if s.worker.version]
        shown = ', '.join(sorted(set(versions)))
        return '%d (version %s)' % (len(versions), shown) if versions else 0

    def _answer_show_sessions(self):
        rows = []
        for session in self.sessions.all():
            row = session.described()
            row.update(since=when(session.since))
            rows.append(row)
        return commands.reply_rows(rows)

    def _answer_show_targets(self):
        rows = []
        for target in self.state.configuration.targets.values():
            missing, state = self.exports.why_unavailable(target.name), target.state
            if missing:
                is_ready = not self.exports.why_not_ready(target.name)
                state = '%s: %s' % ('not complete' if is_ready else 'not ready', missing)
            rows.append(
                {
                    'target_name': target.name,
                    'alias': target.alias,
                    'groups': ', '.join(str(tag) for tag in target.portal_groups),
                    'units': len(target.luns),
                    'sessions': len(self.sessions.of_target(target.name)),
                    'state': state,
                }
            )
        return commands.reply_rows(rows)

    def _answer_show_units(self):
        rows = [self._unit_row(unit) for unit in self.units.by_id.values()]
        rows += [
            {
                'unit': '',
                'target_name': missing.target_name,
                'lun': missing.lun.number,
                'path': missing.lun.backing_store,
                'size': None,
                'state': missing.shown,
                'read_only': None,
                'encrypted': None,
                'fence': '',
                'reserved_by': '',
                'sessions': self.exports.standby.sessions(missing.target_name, missing.lun.number),
                'errors': None,
            }
            for missing in self.exports.unavailable.values()
        ]
        return commands.reply_rows(sorted(rows, key=lambda row: (row['target_name'], row['lun'])))

    def _unit_row(self, unit):
        hanging = self.units.hanging.described(unit)
        fresh = self.exports.pending.get((unit.target_name, unit.lun.number))
        pending = fresh and 'pending: %s' % ', '.join(model.changed_settings(unit.lun, fresh.lun))
        health = self.exports.health.described(unit)
        parts = state_of(unit), hanging, unit.path_problem, health, pending
        return {
            'unit': unit.id,
            'target_name': unit.target_name,
            'lun': unit.lun.number,
            'path': unit.store.path or unit.store.kind,
            'size': unit.store.size,
            'state': '; '.join(filter(None, parts)),
            'pending': pending,
            'read_only': bool(unit.facts.get('read_only'))
            or unit.shared.in_force == faults.READ_ONLY,
            'atomic_writes': unit.atomic is not None,
            'encrypted': bool(unit.facts.get('encrypted')),
            'fence': unit.store.fenced_by,
            'reserved_by': reserved_by(unit.shared.reservations),
            'sessions': len(unit.workers),
            'sharing': sharing_of(unit.lun),
            'holders': sorted(sharing.holders(unit)),
            'errors': faults.count(unit.shared.records['faults']),
            'health': self.exports.health.state(unit),
            'temperature': (unit.shared.records.get('health') or {}).get('temperature'),
            'latest_error': fault_report.latest_of(unit),
            'serial': unit.facts.get('serial'),
            'naa': unit.facts.get('naa'),
        }

    def _answer_show_counters(self):
        def collect_and_reply(reply):
            self.counting.collect(
                lambda rows, silent: reply(
                    counters_reply(self.units.by_id, rows, self.counting.ended(), silent)
                )
            )

        return collect_and_reply

    def _answer_show_portals(self):
        rows = []
        for tag, group in self.state.configuration.portal_groups.items():
            for address, port in group.portals:
                is_open = (tag, address, port) in self.listeners.sockets
                why = self.listeners.waiting.get((tag, address, port))
                rows.append(
                    {
                        'group': tag,
                        'address': address,
                        'port': port,
                        'state': 'open' if is_open else 'waiting' if why else 'closed',
                        'why': why or '',
                        'interface': group.interface,
                        'advertise': None
                        if group.advertise is None
                        else network_kinds.Advertised().write(group.advertise),
                        'connections': sum(
                            len(s.peers) for s in self.sessions.all() if s.group == tag
                        ),
                    }
                )
        return commands.reply_rows(rows)

    def _answer_show_alua(self):
        rows = []
        for unit in list(self.units.by_id.values()) + list(self.units.in_standby.values()):
            if unit.facts.get('implicit_alua') or unit.facts.get('explicit_alua'):
                rows += alua_rows(unit)
        return commands.reply_rows(
            sorted(rows, key=lambda row: (row['target_name'], row['lun'], row['group']))
        )

    def _answer_alua(self, target, group, state, lun=None):
        units, word = self.units.of_target(target.lower()), state.lower().replace('-', '')
        if not units:
            raise TargetdError(
                'there is no target %s with units; targetdctl show targets lists them' % target
            )
        if word not in alua.STATE_OF_WORD:
            raise TargetdError(
                'there is no state %s; write one of %s'
                % (state, ', '.join(each for each, _ in alua.WORDS))
            )
        if lun is not None and lun not in units:
            raise TargetdError('target %s has no lun %d' % (target, lun))
        chosen = [unit for number, unit in units.items() if lun in (None, number)]
        if group in self.state.configuration.targets[target.lower()].partner_groups:
            raise TargetdError('portal group %d is on the other server' % group)
        for unit in chosen:
            if not (unit.facts.get('implicit_alua') or unit.facts.get('explicit_alua')):
                raise TargetdError(
                    'target %s does not report the states of portal groups to initiators; write '
                    'alua = implicit in the target and reload' % target
                )
            if str(group) not in unit.shared.access['states']:
                raise TargetdError(
                    'target %s is not reached through portal group %d' % (target, group)
                )
        log.info('the administrator set portal group %d of %s to %s', group, target, word)
        events.emit('access', target=target, group=group, state=word)
        return lambda reply: self._set_access(
            chosen,
            {str(group): alua.STATE_OF_WORD[word]},
            'portal group %d of %s is %s' % (group, target, word),
            reply,
        )

    def _set_access(self, chosen, states, message, reply):
        """Set the ALUA states of units, and reply when what was written before is durable."""
        decisions = [(unit, transitions.access_set(unit.shared, states)) for unit in chosen]
        waiting = {unit.id for unit, decision in decisions if decision is not None}
        failures = []

        def done(unit, error):
            waiting.discard(unit.id)
            if error is not None:
                failures.append('%s: %s' % (unit.id, error.strerror))
            if waiting:
                return
            if failures:
                reply(
                    commands.reply_error(
                        '%s, but what initiators wrote before is not durable, a flush failed: %s; '
                        'check the disk and the data, then targetdctl acknowledge'
                        % (message, ', '.join(failures))
                    )
                )
            else:
                reply(commands.reply_message(message))

        if not waiting:
            reply(commands.reply_message(message))
        for unit, decision in decisions:
            self.units.apply_and_flush(unit, decision, lambda error, unit=unit: done(unit, error))

    def reload_reply(self, rows, error, message=''):
        """The reply after a reload, or after a change of the configuration."""
        if error is not None:
            return commands.reply_error(str(error), error.exit_code)
        waiting = len(self.exports.pending)
        return commands.reply_rows(
            rows,
            message
            or waiting
            and 'the change of %s waits for the logout of its sessions; "targetdctl show units" lists it; '
            '"targetdctl reload --now" asks the initiators to log out'
            % counted(waiting, 'LUN'),
        )

    def _answer_reload(self, plan=False, now=False, client=None):
        cause = Cause(client.who, client.what, None) if client is not None else BY_HAND

        def reload_and_reply(reply):
            self.reload.start_reload(
                lambda rows, error: reply(self.reload_reply(rows, error)), plan, now, cause
            )

        return reload_and_reply

    def _answer_stop(self):
        self.loop.call_later(0, lambda: self.stop.start_stop('targetdctl stop'))
        return commands.reply_message('targetd stops')

    def _answer_capture(self, who, file, seconds=None, data=None):
        log.info('the administrator captures %s into %s', who, file)
        return self._stream(who, data)

    def _answer_trace(self, who, seconds=None):
        log.info('the administrator traces %s', who)
        return self._stream(who, TRACE_DATA)

    def _stream(self, who, data):
        self.captures.check(who)
        return Stream(
            commands.reply_message('%s is captured' % who),
            lambda link: self.captures.begin(link, who, data),
        )

    def _answer_reopen_logs(self):
        def reopen_and_reply(reply):
            self.log_files.reopen_logs(
                lambda complaint: reply(
                    commands.reply_error(complaint)
                    if complaint
                    else commands.reply_message('the log was opened again')
                )
            )

        return reopen_and_reply

    def session(self, number):
        """The SessionRecord of this number. Raises TargetdError."""
        session = self.sessions.by_tsih.get(number)
        if session is None:
            raise TargetdError(
                'there is no session %d; targetdctl show sessions lists them' % number
            )
        return session

    def _answer_logout(self, session, seconds=None):
        session, seconds = self.session(session), 10 if seconds is None else seconds
        self.sessions.logout_session(
            session, seconds, 'the administrator asked it to log out and it did not'
        )
        return commands.reply_message(
            '%s is asked to log out of session %d within %d seconds'
            % (session.initiator_name, session.tsih, seconds)
        )

    def _answer_kick(self, who, seconds=None):
        seconds = 10 if seconds is None else seconds
        found = [
            session
            for session in self.sessions.normal()
            if who.lower() in (str(session.tsih), session.initiator_name.lower())
            or any(plain(who) == peer[0] for peer in session.peers.values())
        ]
        if not found:
            raise TargetdError('%s has no session; targetdctl show sessions lists them' % who)
        for session in found:
            self.sessions.logout_session(
                session, seconds, 'the administrator asked it to log out and it did not'
            )
        return commands.reply_message(
            '%s of %s %s asked to log out within %d seconds'
            % (
                counted(len(found), 'session'),
                ', '.join(sorted({session.initiator_name for session in found})),
                'is' if len(found) == 1 else 'are',
                seconds,
            )
        )

    def _answer_end(self, session):
        session = self.session(session)
        log.info(
            'session %d of %s is ended by the administrator', session.tsih, session.initiator_name
        )
        self.sessions.end_session(session, 'the administrator ended it', 'administrator')
        return commands.reply_message(
            'session %d of %s is ended' % (session.tsih, session.initiator_name)
        )

    def unit(self, text):
        """The Unit of this name. Raises TargetdError."""
        found = self.units.find(text)
        if found is None:
            raise TargetdError('there is no unit %s; targetdctl show units lists them' % text)
        return found

    def _answer_show_errors(self, unit=None):
        units = self.units.by_id.values() if unit is None else [self.unit(unit)]
        return commands.reply_rows(
            [dict(row, unit=each.id) for each in units for row in fault_report.error_rows(each)]
        )

    def _answer_acknowledge(self, unit):
        found = self.unit(unit)

        def recover_and_reply(reply):
            def recovered(error):
                if error is not None:
                    reply(commands.reply_error(str(error), error.exit_code))
                else:
                    reply(commands.reply_message('unit %s is used again' % found.id))

            if not self.exports.recovery.recover_unit(found, recovered):
                text = 'unit %s has not failed and has no errors' % found.id
                reply(commands.reply_error(text))

        return recover_and_reply

    def _answer_upgrade(self):
        def upgrade_and_reply(reply):
            """The new program replies to a success (handover)."""
            self.upgrade.start_upgrade(
                lambda error: reply(commands.reply_error(str(error), error.exit_code))
            )

        return upgrade_and_reply

    def _answer_accept(self, unit):
        target_name, number = named_lun(unit)
        if not self.exports.accept_medium(target_name, number):
            raise TargetdError(
                'no medium is recorded for lun %d of %s: the next one that is found is accepted anyway'
                % (number, target_name)
            )
        log.warning(
            'the administrator accepts the next medium that is found for lun %d of %s',
            number,
            target_name,
        )
        return commands.reply_message(
            'the next medium that is found for lun %d of %s is accepted; targetdctl show units shows '
            'whether it is served' % (number, target_name)
        )


#: Words of a command -> the method that executes it. Complete for every row of commands.TABLE that
#: is not local; a method named _answer_... without a row is an error (a test compares them).
ANSWERS = {
    'status': ControlAnswers._answer_status,
    'show sessions': ControlAnswers._answer_show_sessions,
    'show targets': ControlAnswers._answer_show_targets,
    'show units': ControlAnswers._answer_show_units,
    'show errors': ControlAnswers._answer_show_errors,
    'show counters': ControlAnswers._answer_show_counters,
    'show portals': ControlAnswers._answer_show_portals,
    'show alua': ControlAnswers._answer_show_alua,
    'reload': ControlAnswers._answer_reload,
    'upgrade': ControlAnswers._answer_upgrade,
    'stop': ControlAnswers._answer_stop,
    'capture': ControlAnswers._answer_capture,
    'trace': ControlAnswers._answer_trace,
    'reopen-logs': ControlAnswers._answer_reopen_logs,
    'logout': ControlAnswers._answer_logout,
    'kick': ControlAnswers._answer_kick,
    'end': ControlAnswers._answer_end,
    'acknowledge': ControlAnswers._answer_acknowledge,
    'accept': ControlAnswers._answer_accept,
    'alua': ControlAnswers._answer_alua,
}


def alua_rows(unit):
    """The rows of `show alua` for one unit."""
    state, rows = unit.shared.access, []
    for tag, (now, status) in state['states'].items():
        set_by = {alua.SET_BY_COMMAND: 'initiator', alua.SET_IMPLICITLY: 'administrator'}.get(
            status, 'configuration'
        )
        rows.append(
            {
                'target_name': unit.target_name,
                'lun': unit.lun.number,
                'group': int(tag),
                'access': alua.WORD_OF_STATE[now],
                'set_by': set_by,
                'sessions': sum(
                    nexus.target_port_group_tag == int(tag) for nexus in unit.workers.values()
                ),
            }
        )
    return rows


def reserved_by(state):
    """What has reserved a unit, as text: an initiator port, or 'all registrants'; '' if there is no
    reservation. state: see scsi.reservations."""
    if state.get('reserved_by'):
        return '%s (RESERVE)' % state['reserved_by'][0]
    if state.get('holder'):
        return '%s (persistent, type %d)' % (state['holder'][0], state['type'])
    return 'all registrants (persistent, type %d)' % state['type'] if state.get('type') else ''


__all__ = ('ControlAnswers', 'when', 'reserved_by')
