"""What `targetdctl nagios` and `targetdctl metrics` say about a running server.

Pure: functions of a Snapshot, the replies of four commands. The exit codes and the form of the line
of nagios are those of the Monitoring Plugins Development Guidelines; metrics are in the text format
0.0.4 of Prometheus.
"""

from collections import namedtuple

from targetd.scsi.counters import upper_bound

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')

#: The commands whose rows are looked at.
COMMANDS = ('status', 'show-targets', 'show-units', 'show-portals')

#: Rows of COMMANDS, in their order; `status` as a dict of its facts; counters, limits: rows of `show
#: counters` and `show limits`, () if they were not asked for.
Snapshot = namedtuple('Snapshot', 'status targets units portals counters limits')
Snapshot.__new__.__defaults__ = ((),)

#: The first words of a unit's state: (words, severity). A state that is not listed is a warning.
UNIT_STATES = (
    (('ready',), OK),
    (('degraded', 'failing', 'hot', 'read-only', 'stopped', 'ejected'), WARNING),
    (('failed', 'shrunk', 'missing', 'offline', 'hanging'), CRITICAL),
)


def take_snapshot(ask, with_counters=False):
    """ask(name of a command): its rows. Raises what it raises."""
    status, targets, units, portals = [ask(name) for name in COMMANDS]
    further = [ask(n) if with_counters else [] for n in ('show-counters', 'show-limits')]
    return Snapshot({r['name']: r['value'] for r in status}, targets, units, portals, *further)


# -- nagios ----------------------------------------------------------------------------------------


def _severity_of_state(state):
    """The severity of a part of a unit's state, such as 'degraded: 3 errors, …'."""
    first = state.split(':')[0].split(' ')[0]
    return next((severity for words, severity in UNIT_STATES if first in words), WARNING)


def unit_severity(state):
    """The severity of the state of a unit as in `show units`; the parts are separated by '; '."""
    return max(_severity_of_state(part) for part in state.split('; '))


def _unit_name(row):
    return '%s/%d' % (row['target_name'], row['lun'])


def problems(snapshot):
    """[(severity, sentence)] of all that is not as it should be, the most severe first."""
    found = []
    for row in snapshot.units:
        severity = unit_severity(row['state'])
        if severity:
            found.append((severity, '%s is %s' % (_unit_name(row), row['state'])))
    missing = {row['target_name'] for row in snapshot.units if row['size'] is None}
    for row in snapshot.targets:
        if row['state'].startswith('not ready') and row['target_name'] not in missing:
            found.append((CRITICAL, '%s is %s' % (row['target_name'], row['state'])))
    for row in snapshot.portals:
        if row['state'] != 'open':
            portal = '%s:%d' % (row['address'], row['port'])
            found.append((WARNING, 'portal %s is %s' % (portal, row['state'])))
    if snapshot.portals and all(row['state'] != 'open' for row in snapshot.portals):
        found.append((CRITICAL, 'no portal is open'))
    if snapshot.status.get('state') == 'stopping':
        found.append((WARNING, 'the server is stopping'))
    return sorted(found, key=lambda problem: -problem[0])


def _count(snapshot, severity):
    return sum(unit_severity(row['state']) == severity for row in snapshot.units)


def nagios(snapshot):
    """(exit code, text) of a server that answers."""
    found = problems(snapshot)
    severity = found[0][0] if found else OK
    numbers = (
        ('sessions', snapshot.status.get('sessions', 0)),
        ('targets', len(snapshot.targets)),
        ('units', len(snapshot.units)),
        ('units_warning', _count(snapshot, WARNING)),
        ('units_critical', _count(snapshot, CRITICAL)),
        ('medium_errors', sum(row.get('errors') or 0 for row in snapshot.units)),
    )
    performance = ' '.join(
        '%s=%s%s;;;0' % (name, number, 'c' if name == 'medium_errors' else '')
        for name, number in numbers
    )
    summary = '%s sessions, %d logical units' % (numbers[0][1], len(snapshot.units))
    if found:
        more = len(found) - 1
        summary = found[0][1] + (' (and %d more)' % more if more else '') + '; ' + summary
    lines = ['TARGETD %s - %s | %s' % (WORDS[severity], _without_bar(summary), performance)]
    lines += ['%s: %s' % (WORDS[each], _without_bar(sentence)) for each, sentence in found]
    return severity, '\n'.join(lines) + '\n'


def nagios_failure(error, is_running):
    """(exit code, text) if the server cannot be asked. is_running: False if it is certainly not."""
    severity = UNKNOWN if is_running else CRITICAL
    return severity, 'TARGETD %s - %s\n' % (WORDS[severity], _without_bar(str(error)))


def _without_bar(text):
    """A '|' separates the performance data, and a line end the long text."""
    return text.replace('|', '/').replace('\n', ' ')


# -- the status file -------------------------------------------------------------------------------


def status(snapshot):
    """The contents of status-file: lines "name: value", the problems last."""
    if snapshot is None:
        return 'state: not running\n'
    found = problems(snapshot)
    lines = ['%s: %s' % (name, value) for name, value in snapshot.status.items()]
    lines.append('severity: %s' % WORDS[found[0][0] if found else OK])
    lines += ['problem: %s' % sentence.replace('\n', ' ') for _, sentence in found]
    return '\n'.join(lines) + '\n'


# -- metrics ---------------------------------------------------------------------------------------


def _of_limits(snapshot, key):
    """[(labels, value)] of the rows of `show limits` that have this value."""
    rows = [row for row in snapshot.limits if row.get(key) is not None]
    return [(_labels(row, 'target', 'limit'), row[key]) for row in rows]


def _total(name):
    """A function of a Snapshot: the sum of a counter for each unit, sessions that are over included."""

    def samples(snapshot):
        sums = {}
        for row in snapshot.counters:
            key = row['target_name'], row['lun']
            sums[key] = sums.get(key, 0) + row[name]
        return [({'target': target, 'lun': lun}, n) for (target, lun), n in sorted(sums.items())]

    return samples


#: Upper bounds of the histogram, in microseconds.
BOUNDS = (50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000)
BOUNDS += (1000000, 2500000, 5000000, 10000000)
LATENCY = 'targetd_unit_latency_seconds'
LATENCY_HELP = (
    'Latency of one command in about 61, or, with latency-target, of the disk for each; a bucket is exact to '
    'a quarter.'
)


def _latency_lines(snapshot):
    """The lines of the histogram of latencies."""
    sums = {}
    for row in snapshot.counters:
        for kind in ('read', 'other'):
            histogram = sums.setdefault((row['target_name'], row['lun'], kind), {})
            for bucket, samples in row[kind + '_latencies']:
                histogram[bucket] = histogram.get(bucket, 0) + samples
    for (target, lun, kind), histogram in sorted(sums.items()):
        labels = 'kind="%s",lun="%s",target="%s"' % (kind, lun, _escaped(target))
        for bound in BOUNDS:
            count = sum(n for bucket, n in histogram.items() if upper_bound(bucket) <= bound)
            yield '%s_bucket{%s,le="%g"} %d' % (LATENCY, labels, bound / 1e6, count)
        total = sum(histogram.values())
        seconds = sum(upper_bound(bucket) * n for bucket, n in histogram.items()) / 1e6
        yield '%s_bucket{%s,le="+Inf"} %d' % (LATENCY, labels, total)
        yield '%s_sum{%s} %g' % (LATENCY, labels, seconds)
        yield '%s_count{%s} %d' % (LATENCY, labels, total)


# fmt: off
#: Name, type and help of each metric, and a function of a Snapshot: [({label: value}, number)].
METRICS = (
    ('targetd_info', 'gauge', 'Version of the server; the value is always 1.',
     lambda s: [({'version': s.status.get('version', '')}, 1)]),
    ('targetd_spare_workers', 'gauge', 'Worker processes that wait for a session.',
     lambda s: [({}, int(s.status.get('spare workers', 0)))]),
    ('targetd_target_ready', 'gauge', '1 if the target accepts logins.',
     lambda s: [(_labels(row, 'target'), int(not row['state'].startswith('not ready')))
                for row in s.targets]),
    ('targetd_target_sessions', 'gauge', 'Sessions of the target.',
     lambda s: [(_labels(row, 'target'), row['sessions']) for row in s.targets]),
    ('targetd_unit_size_bytes', 'gauge', 'Size of the logical unit.',
     lambda s: [(_labels(row, 'target', 'lun'), row['size'])
                for row in s.units if row['size'] is not None]),
    ('targetd_unit_severity', 'gauge', '0 if the logical unit is ready, 1 if its state needs '
     'attention, 2 if it does not serve all commands.',
     lambda s: [(_labels(row, 'target', 'lun'), unit_severity(row['state'])) for row in s.units]),
    ('targetd_unit_sessions', 'gauge', 'Sessions that have the logical unit.',
     lambda s: [(_labels(row, 'target', 'lun'), row['sessions']) for row in s.units]),
    ('targetd_unit_medium_errors', 'gauge', 'Errors of the medium since the last acknowledge.',
     lambda s: [(_labels(row, 'target', 'lun'), row.get('errors') or 0) for row in s.units]),
    ('targetd_unit_disk_failing', 'gauge', '1 if a disk behind the logical unit predicts its failure.',
     lambda s: [(_labels(row, 'target', 'lun'), int(row['health'] == 'failing'))
                for row in s.units if row.get('health')]),
    ('targetd_unit_temperature_celsius', 'gauge', 'Temperature of the hottest disk behind the logical unit.',
     lambda s: [(_labels(row, 'target', 'lun'), row['temperature'])
                for row in s.units if row.get('temperature') is not None]),
    ('targetd_portal_open', 'gauge', '1 if the server listens on the portal.',
     lambda s: [(_labels(row, 'group', 'address', 'port'), int(row['state'] == 'open'))
                for row in s.portals]),
    ('targetd_portal_group_connections', 'gauge', 'Connections of the portal group.',
     lambda s: [({'group': group}, count) for group, count in sorted(
         {row['group']: row['connections'] for row in s.portals}.items())]),
    ('targetd_unit_reads_total', 'counter', 'READ commands.', _total('reads')),
    ('targetd_unit_read_bytes_total', 'counter', 'Bytes read.', _total('bytes_read')),
    ('targetd_unit_writes_total', 'counter', 'WRITE commands.', _total('writes')),
    ('targetd_unit_written_bytes_total', 'counter', 'Bytes written.', _total('bytes_written')),
    ('targetd_unit_other_commands_total', 'counter', 'Commands other than READ and WRITE.',
     _total('others')),
    ('targetd_unit_command_errors_total', 'counter',
     'Commands that ended with an error of the medium or the server.', _total('errors')),
    ('targetd_limit_delayed_commands_total', 'counter', 'Commands that the limit has delayed.',
     lambda s: [(_labels(row, 'target', 'limit'), row['delayed']) for row in s.limits]),
    ('targetd_limit_delay_seconds_total', 'counter', 'Sum of the delays by the limit.',
     lambda s: [(_labels(row, 'target', 'limit'), row['delay_seconds']) for row in s.limits]),
    ('targetd_latency_target_seconds', 'gauge', 'The latency-target of a LUN or an initiator.',
     lambda s: _of_limits(s, 'latency_target_seconds')),
    ('targetd_latency_seconds', 'gauge', 'Time within which the disk answered 90 percent of the commands '
     'in the last second, where there is a latency-target.',
     lambda s: _of_limits(s, 'latency_seconds')),
    ('targetd_slowed_down_iops', 'gauge', 'Commands per second that a LUN may execute which is slowed down '
     'for the latency-target of another one.',
     lambda s: [(_labels(row, 'target', 'limit'), row['iops'])
                for row in s.limits if row.get('slowed_for')]),
    ('targetd_unit_unfinished_commands', 'gauge', 'Commands that are not answered yet.',
     _total('unfinished')),
)
# fmt: on

_KEYS = {'target': 'target_name', 'limit': 'what'}


def _labels(row, *names):
    return {name: row[_KEYS.get(name, name)] for name in names}


def _escaped(value):
    return str(value).replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')


def metrics(snapshot):
    """The metrics of a server that answers, or of one that does not run (snapshot None)."""
    lines = [
        '# HELP targetd_up 1 if the server answers on its control socket.',
        '# TYPE targetd_up gauge',
        'targetd_up %d' % (snapshot is not None),
    ]
    for name, kind, text, samples in METRICS if snapshot is not None else ():
        lines += ['# HELP %s %s' % (name, text), '# TYPE %s %s' % (name, kind)]
        for labels, number in samples(snapshot):
            pairs = ','.join('%s="%s"' % (key, _escaped(labels[key])) for key in sorted(labels))
            lines.append('%s%s %s' % (name, '{%s}' % pairs if pairs else '', number))
    if snapshot is not None and snapshot.counters:
        lines += ['# HELP %s %s' % (LATENCY, LATENCY_HELP), '# TYPE %s histogram' % LATENCY]
        lines += _latency_lines(snapshot)
    return '\n'.join(lines) + '\n'
