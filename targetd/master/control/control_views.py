"""The answers to the commands of admin.view_commands: sessions, workers, reservations, the configuration."""

from targetd import log
from targetd.admin import commands
from targetd.config import edits, explain
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.host import disks, process_usage
from targetd.master.control import line_samples, slowness
from targetd.master.fault_report import when
from targetd.master.live_changes import Cause
from targetd.master.logins.portals import plain, shown
from targetd.master.state import history as histories
from targetd.master.units import sharing, transitions
from targetd.master.units.unit import shown_to

DRAIN_POLL_SECONDS = 0.1
LONGEST_DRAIN = 240


class ViewAnswers(object):
    """answers: ControlAnswers, whose parts this uses; history: History."""

    def __init__(self, answers, history):
        self.answers = answers
        self.history = history

    # -- sessions and workers ----------------------------------------------------------------------

    def _answer_show_connections(self, client):
        rows = []
        for session in self.answers.sessions.all():
            for cid in sorted(session.peers):
                rows.append(
                    {
                        'tsih': session.tsih,
                        'cid': cid,
                        'address': shown(*session.peers[cid]),
                        'group': session.group,
                        'initiator_name': session.initiator_name,
                        'target_name': session.nexus.target_name if session.nexus else '',
                        'pid': session.worker.pid,
                    }
                )
        return commands.reply_rows(rows)

    def _answer_show_luns(self, client, who=None):
        rows = [
            row
            for session in self.answers.sessions.normal()
            if who is None or _is_session(session, who)
            for row in lun_rows(session, self.answers.units.of_target(session.nexus.target_name))
        ]
        return commands.reply_rows(rows)

    def _answer_show_settings(self, client, session):
        keys = self.answers.session(session).keys
        return commands.reply_rows(
            [{'key': key, 'value': plain_value(keys[key])} for key in sorted(keys)]
        )

    def _answer_show_workers(self, client):
        rows = []
        for worker in self.answers.workers.all():
            session, usage = worker.session, process_usage.usage(worker.pid)
            rows.append(
                {
                    'pid': worker.pid,
                    'state': worker.state,
                    'tsih': session.tsih if session else None,
                    'initiator_name': session.initiator_name if session else '',
                    'age': usage and usage.age,
                    'memory': usage and usage.memory,
                    'cpu_seconds': usage and round(usage.seconds, 1),
                }
            )
        return commands.reply_rows(sorted(rows, key=lambda row: row['pid']))

    def _answer_show_config(self, client):
        def ask_and_reply(reply):
            def done(rows, error):
                if error is not None:
                    reply(commands.reply_error(str(error)))
                else:
                    reply(commands.pack({'ok': True, 'text': rows[0]['text']}))

            self.history.ask(histories.present_text, done)

        return ask_and_reply

    # -- refused logins ----------------------------------------------------------------------------

    def _answer_why(self, client, who=None, target=None):
        rows = [
            dict(entry, time=when(entry['when']))
            for entry in reversed(self.answers.sessions.refusals)
            if _is_about(entry, who) and (target is None or entry['target_name'] == target.lower())
        ]
        rows += [
            row
            for row in self._left_out_rows()
            if _is_about(row, who) and (target is None or row['target_name'] == target.lower())
        ]
        named = self.answers.state.configuration.targets.get((target or who or '').lower())
        now = self.answers.sessions.admission.origins_now() if named else {}
        clauses = [explain.admission(named, now)] + explain.maps(named) if named else []
        text = named and 'target %s %s' % (named.name, '; '.join(clauses))
        if text and not rows:
            text = 'no login was refused; ' + text
        return commands.reply_rows(rows, text)

    def _left_out_rows(self):
        """Rows of `why` about the LUNs that sessions do not see because of other initiators."""
        return [
            {
                'time': when(worker.session.since),
                'initiator_name': worker.session.initiator_name,
                'target_name': unit.target_name,
                'address': next(iter(worker.session.peers.values()), ('',))[0],
                'why': 'lun %d is not shown: %s'
                % (unit.lun.number, sharing.why_left_out(unit, holder)),
                'status': '',
            }
            for unit in self.answers.units.by_id.values()
            for worker, holder in unit.left_out.items()
            if worker.session is not None
        ]

    def _answer_why_slow(self, client, session, seconds=None):
        """Measure, then answer: the session ends the measurement if it ends."""
        record = self.answers.session(session)
        seconds = line_samples.DEFAULT if seconds is None else seconds
        if not 1 <= seconds <= line_samples.LONGEST:
            raise TargetdError('--seconds is a number from 1 to %d' % line_samples.LONGEST)
        before = process_usage.usage(record.worker.pid)
        limits = self.answers.rate_limits.of_session
        limits_before = limits(record.nexus) if record.nexus else []

        def measure_and_reply(reply):
            def done(samples, why):
                if why:
                    reply(commands.reply_error('session %d: %s' % (session, why)))
                    return
                rows = limits_before, limits(record.nexus) if record.nexus else []
                observed = slowness.Observed(samples, record.keys, limits=rows)
                after = process_usage.usage(record.worker.pid)
                if before is not None and after is not None:
                    observed.processor = (after.seconds - before.seconds) / observed.seconds
                rows = [{'seen': slowness.summary(observed)}]
                for found in slowness.findings(observed):
                    share = None if found.share is None else '%.0f %%' % (found.share * 100)
                    rows.append(dict(found._asdict(), share=share))
                reply(commands.reply_rows(rows))

            self.answers.line_sampling.measure(record.worker, seconds, done)

        return measure_and_reply

    # -- reservations ------------------------------------------------------------------------------

    def _answer_reservation_show(self, client, unit):
        units = self.answers.units.by_id.values() if unit is None else [self.answers.unit(unit)]
        rows = [row for each in units for row in reservation_rows(each)]
        return commands.reply_rows(sorted(rows, key=lambda row: (row['target_name'], row['lun'])))

    def _answer_reservation_clear(self, client, unit):
        found = self.answers.unit(unit)
        decision = transitions.reservations_cleared(found.shared)
        if decision is None:
            raise TargetdError('unit %s has no reservation and no registration' % found.id)
        replication = self.answers.units.replication

        def clear_and_reply(reply):
            def saved(error):
                if error is not None:
                    text = 'the reservations of %s stay, because that cannot be saved: %s'
                    reply(commands.reply_error(text % (found.id, error.strerror)))
                    return
                log.warning('unit %s: %s cleared its reservations', found.id, client.who)
                now = transitions.reservations_cleared(found.shared)
                message = 'unit %s has no reservation any more' % found.id
                if now is None:
                    reply(commands.reply_message(message))
                else:
                    replication.apply_decision(
                        found, now, lambda: reply(commands.reply_message(message))
                    )

            replication.save_state(found, decision.shared, saved)

        return clear_and_reply

    # -- drain -------------------------------------------------------------------------------------

    def _answer_drain(self, client, target, seconds, dry_run):
        sessions, loop = self.answers.sessions, self.answers.loop
        seconds = min(10 if seconds is None else seconds, LONGEST_DRAIN)
        name = target.lower()
        if name not in self.answers.state.configuration.targets:
            raise TargetdError('there is no target %s; targetdctl show targets lists them' % target)
        cause = Cause(
            client.who,
            client.what,
            lambda sections: edits.set_target(sections, target, 'state', 'offline'),
        )

        def drain_and_reply(reply):
            def wait(rows, deadline):
                left = len(sessions.of_target(name))
                if left and loop.clock() < deadline:
                    loop.call_later(DRAIN_POLL_SECONDS, lambda: wait(rows, deadline))
                elif left:
                    text = 'target %s refuses logins, but %s not ended: %s'
                    words = target, counted(left, 'session'), 'targetdctl show sessions'
                    reply(commands.reply_error(text % words))
                else:
                    text = 'target %s is drained: it has no session and refuses logins' % target
                    reply(commands.reply_rows(rows, text))

            def done(rows, error):
                if error is not None or dry_run:
                    reply(self.answers.reload_reply(rows, error))
                    return
                for session in sessions.of_target(name):
                    sessions.logout_session(session, seconds, 'the target is drained')
                wait(rows, loop.clock() + seconds + 10)

            self.answers.reload.start_reload(done, dry_run, False, cause)

        return drain_and_reply

    # -- disks -------------------------------------------------------------------------------------

    def _answer_show_disks(self, client, unit):
        answers = self.answers
        units = answers.units.by_id.values() if unit is None else [answers.unit(unit)]
        rows = [row for each in units for row in self._disk_rows(each)]
        return commands.reply_rows(sorted(rows, key=lambda row: (row['unit'], row['node'])))

    # -- limits ------------------------------------------------------------------------------------

    def _answer_show_limits(self, client):
        return commands.reply_rows(self.answers.rate_limits.rows())

    def _disk_rows(self, unit):
        """The rows about the disks behind a unit: their health, and whether they sleep."""
        found = self.answers.exports.health.rows(unit)
        spin_down = self.answers.units.spin_down
        power = spin_down.described(unit)
        if power and not found:
            found = [self.answers.exports.health.empty_row(unit, spin_down.node(unit))]
        words = {'power': power or None, 'spin_downs': unit.spin_downs if power else None}
        words['spin_ups'] = unit.spin_ups if power else None
        return [dict(row, **words) for row in found]

    # -- identify ----------------------------------------------------------------------------------

    def _answer_identify(self, client, unit):
        found = self.answers.unit(unit)
        naa = str(found.facts.get('naa') or '').split()
        rows = [
            ('target and LUN', '%s, LUN %d' % (found.target_name, found.lun.number)),
            ('vendor, product', '%s, %s' % (found.facts.get('vendor'), found.facts.get('product'))),
            ('serial number', found.facts.get('serial')),
            ('NAA', ', '.join(naa)),
            ('EUI-64', found.facts.get('eui')),
        ]
        if naa:
            rows += [
                ('Linux', '/dev/disk/by-id/wwn-0x%s, scsi-3%s' % (naa[0][:16], naa[0])),
                ('Windows', 'Get-Disk -UniqueId %s' % naa[0].upper()),
                ('VMware', 'naa.%s' % naa[0]),
            ]
        rows.append(('store', found.store.path or found.store.kind))
        if found.store.kind == 'block':
            rows.append(('disk', disks.one_line(disks.describe_disk(found.store.path))))
        elif found.store.kind == 'passthrough':
            rows.append(('device', found.store.shown))
        for nexus in found.workers.values():
            rows.append(('logged in', nexus.initiator_name))
        return commands.reply_rows(
            [{'what': what, 'value': str(value)} for what, value in rows if value]
        )


def _is_session(session, who):
    """True if this text names the session, its initiator, its target or an address of it."""
    named = (str(session.tsih), session.initiator_name.lower(), session.nexus.target_name)
    return who.lower() in named or plain(who) in [peer[0] for peer in session.peers.values()]


def lun_rows(session, units):
    """The rows of `show luns` of one session. units: {LUN: Unit} of its target."""
    rows, worker = [], session.worker
    for unit in units.values():
        if worker in unit.workers:
            shown, access = unit.view_of(worker), 'read-write'
            if worker in unit.readers or unit.facts.get('read_only'):
                access = 'read-only'
        elif worker in unit.left_out:
            shown = shown_to(session, unit)
            access = 'none: ' + sharing.why_left_out(unit, unit.left_out[worker])
        else:
            continue
        rows.append(
            {
                'tsih': session.tsih,
                'initiator_name': session.initiator_name,
                'target_name': unit.target_name,
                'number': shown.number if shown is not None else None,
                'lun': unit.lun.number,
                'path': unit.store.path or unit.store.kind,
                'access': access,
            }
        )
    return sorted(rows, key=lambda row: (row['number'] is None, row['number']))


def _is_about(entry, who):
    """True if a refused login is from this address, of this initiator, or to this target."""
    return (
        who is None
        or plain(who) == entry['address']
        or who.lower() in (entry['initiator_name'].lower(), entry['target_name'])
    )


def plain_value(value):
    """A negotiated value as RFC 7143 writes it."""
    if isinstance(value, bool):
        return 'Yes' if value else 'No'
    return ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def reservation_rows(unit):
    """The rows of `reservation show` of one unit."""
    state, rows = unit.shared.reservations, []
    base = {'target_name': unit.target_name, 'lun': unit.lun.number}
    if state.get('reserved_by'):
        rows.append(
            dict(base, initiator_name=state['reserved_by'][0], key='', type='RESERVE', holds=True)
        )
    for each in state['registrations']:
        ports = [each['initiator_port'], each['target_port']]
        holds = bool(state['type']) and state['holder'] in (None, ports)
        rows.append(
            dict(
                base,
                initiator_name=each['initiator_port'],
                key='0x' + each['key'],
                type=TYPE_WORDS.get(state['type'], ''),
                holds=holds,
            )
        )
    return rows


#: SPC-4, the types of persistent reservations.
TYPE_WORDS = {
    1: 'write exclusive',
    3: 'exclusive access',
    5: 'write exclusive, registrants only',
    6: 'exclusive access, registrants only',
    7: 'write exclusive, all registrants',
    8: 'exclusive access, all registrants',
}

#: Words of a command -> the method that executes it; it also gets the control.Client.
ANSWERS = {
    'show connections': ViewAnswers._answer_show_connections,
    'show luns': ViewAnswers._answer_show_luns,
    'show settings': ViewAnswers._answer_show_settings,
    'show workers': ViewAnswers._answer_show_workers,
    'show config': ViewAnswers._answer_show_config,
    'why': ViewAnswers._answer_why,
    'why slow': ViewAnswers._answer_why_slow,
    'reservation show': ViewAnswers._answer_reservation_show,
    'reservation clear': ViewAnswers._answer_reservation_clear,
    'drain': ViewAnswers._answer_drain,
    'identify': ViewAnswers._answer_identify,
    'show disks': ViewAnswers._answer_show_disks,
    'show limits': ViewAnswers._answer_show_limits,
}
