"""The commands that targetdctl executes itself: without a server, or from several replies of it.

May import base, host (process_usage), migration and admin. A command is a
function of the parsed arguments that returns a reply as in admin.commands; it may have the keys `text`
(printed as it is), `messages` (lines for standard error) and `exit_code` too.
"""

import sys
import time

from targetd.admin import disk_answers, exporter, image_answers, live_table, monitoring, windows
from targetd.admin.protocol import NotRunning, default_socket, send_request
from targetd.admin.rates import BY, Sample, statistics
from targetd.errors import TargetdError
from targetd.host import process_usage

#: Time for all requests of a monitoring command; monitoring systems give up after 10 seconds.
MONITORING_SECONDS = 8.0


def answer_import(parsed):
    """The reply of `import`."""
    # only here: reading a configuration is slow to load, and other commands do not need it
    from targetd.migration import command

    outcome = command.run_import(
        parsed.files, parsed.format, parsed.output, parsed.force, parsed.running
    )
    return dict(outcome._asdict(), ok=outcome.exit_code == 0)


def answer_rehearse(parsed):
    """The reply of `rehearse`. Raises TargetdError if the server cannot be asked."""
    from targetd.rehearsal import places, rehearse  # slow to load, as above

    asked = places.Asked(
        parsed.target.lower(),
        getattr(parsed, 'from'),
        parsed.portal,
        parsed.user,
        parsed.secret_file,
        parsed.scratch,
        parsed.reservations,
    )
    socket = parsed.socket or default_socket()

    def ask(name):
        return send_request(socket, {'command': name}, 30)['rows']

    rehearsal = rehearse.Rehearsal(
        places.request(asked, None if parsed.portal else ask, windows.message, windows.advice)
    )
    rehearsal.run()
    outcome = {'text': rehearsal.text()} if not parsed.json else rehearsal.report()
    return dict(outcome, ok=True, exit_code=rehearsal.exit_code())


def answer_export(parsed):
    """The reply of `export`. Raises TargetdError if the server cannot be asked."""
    from targetd.migration import command  # slow to load, as above

    if parsed.config:
        outcome = command.run_export(parsed.config, parsed.output, parsed.force)
        return dict(outcome._asdict(), ok=outcome.exit_code == 0)
    socket = parsed.socket or default_socket()

    def ask(name, **arguments):
        return send_request(socket, dict(arguments, command=name), 120)['rows']

    path = {row['name']: row['value'] for row in ask('status')}['configuration']
    outcome = command.run_export(
        path,
        parsed.output,
        parsed.force,
        ask('reload', plan=True),
        ask('show-alua'),
        ask('show-units') if parsed.identities else None,
    )
    return dict(outcome._asdict(), ok=outcome.exit_code == 0)


def _snapshot(parsed, with_counters=False):
    """The monitoring.Snapshot of the server. Raises NotRunning or TargetdError."""
    path = parsed.socket or default_socket()
    deadline = time.monotonic() + MONITORING_SECONDS

    def ask(name):
        left = max(0.1, deadline - time.monotonic())
        return send_request(path, {'command': name}, left)['rows']

    return monitoring.take_snapshot(ask, with_counters)


def answer_nagios(parsed):
    """The reply of `nagios`; its exit code is that of a check of Nagios."""
    try:
        code, text = monitoring.nagios(_snapshot(parsed))
    except NotRunning as e:
        code, text = monitoring.nagios_failure(e, False)
    except TargetdError as e:
        code, text = monitoring.nagios_failure(e, True)
    return {'ok': code == monitoring.OK, 'text': text, 'exit_code': code}


def answer_metrics(parsed):
    """The reply of `metrics`. Raises TargetdError if the server runs and cannot be asked, or the file
    cannot be written."""
    try:
        text = monitoring.metrics(_snapshot(parsed, True))
    except NotRunning:
        text = monitoring.metrics(None)
    if not parsed.output:
        return {'ok': True, 'text': text}
    exporter.write_whole(parsed.output, text)
    return {'ok': True}


def answer_snmp(parsed):
    """Answer snmpd until it ends."""
    from targetd.admin import snmp

    def write(text):
        sys.stdout.write(text)
        sys.stdout.flush()

    snmp.Answers(lambda: _snapshot(parsed, True), parsed.base or snmp.BASE).run(
        iter(sys.stdin.readline, ''), write
    )
    return {'ok': True}


#: Seconds between the two samples of `stats`, and between two pictures of `top`.
STATISTICS_SECONDS = 2


def _take_sample(parsed):
    """(a Sample, the server's message about sessions that are not counted)."""
    reply = send_request(parsed.socket or default_socket(), {'command': 'show-counters'}, 10)
    rows = reply['rows']
    processes = {row['pid'] for row in rows if row['pid'] is not None}
    usage = {pid: process_usage.usage(pid) for pid in processes}
    return Sample(time.monotonic(), rows, usage), reply.get('message', '')


def _grouping(parsed):
    by = (parsed.by or BY[0]).lower()
    if by not in BY:
        raise TargetdError('--by %s is not possible; write one of %s' % (by, ', '.join(BY)))
    return by


def answer_stats(parsed):
    """The reply of `stats`. Raises TargetdError."""
    by = _grouping(parsed)
    before, _ = _take_sample(parsed)
    time.sleep(parsed.seconds or STATISTICS_SECONDS)
    after, message = _take_sample(parsed)
    rows = statistics(before, after, by)
    reply = {'ok': True, 'rows': rows, 'messages': [message] if message else []}
    if rows and not parsed.json:
        lines = live_table.table(rows, by, None if parsed.wide else 80)
        del reply['rows']
        reply['text'] = '\n'.join(lines) + '\n'
    return reply


def answer_top(parsed):
    """Run `top` until the user leaves it. Raises TargetdError."""
    by = _grouping(parsed)
    latest = []

    def sample(by):
        now, message = _take_sample(parsed)
        latest.append(now)
        del latest[:-2]
        return statistics(latest[0], now, by), message

    live_table.Top(sample, by, parsed.seconds or STATISTICS_SECONDS).run()
    return {'ok': True}


def answer_web(parsed):
    """Serve the status page until the process is ended. Raises TargetdError."""
    from targetd.web import launcher  # slow to load, as above

    return {'ok': False, 'exit_code': launcher.run(parsed)}


#: Words of a local command -> function of the parsed arguments that returns the reply. Complete for every
#: row of commands.TABLE that is local; a test compares them.
ANSWERS = {
    'create': image_answers.answer_create,
    'snapshot': image_answers.answer_snapshot,
    'restore': image_answers.answer_restore,
    'disks': disk_answers.answer_disks,
    'import': answer_import,
    'rehearse': answer_rehearse,
    'export': answer_export,
    'nagios': answer_nagios,
    'metrics': answer_metrics,
    'snmp': answer_snmp,
    'stats': answer_stats,
    'top': answer_top,
    'web': answer_web,
}
