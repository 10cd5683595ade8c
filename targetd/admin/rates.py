"""Rates and latencies between two replies of `show counters`, for `targetdctl stats` and `top`. Pure."""

from collections import namedtuple

from targetd.scsi.counters import percentile

#: What a row of the statistics stands for -> the keys of a row of `show counters` that identify it.
GROUPS = {
    'session': ('tsih', 'initiator_name'),
    'lun': ('target_name', 'lun'),
    'target': ('target_name',),
    'initiator': ('initiator_name',),
}
BY = ('session', 'lun', 'target', 'initiator')

#: With fewer measured commands in the interval, the latencies are those since the login.
FEW_SAMPLES = 20

_COUNTED = ('reads', 'bytes_read', 'writes', 'bytes_written', 'others', 'errors')

#: when: monotonic seconds; rows: of `show counters`; usage: {process id: host.process_usage.Usage}.
Sample = namedtuple('Sample', 'when rows usage')


class _Sum(object):
    """The sum of the rows of one group."""

    def __init__(self):
        self.counted = dict.fromkeys(_COUNTED, 0)
        self.total = dict.fromkeys(_COUNTED, 0)
        self.unfinished = 0
        self.recent = {}
        self.since_login = {}
        self.processes = set()
        self.sessions = set()

    def add(self, row, before):
        """before: the row of the same session and unit in the earlier sample, or None."""
        for name in _COUNTED:
            self.counted[name] += row[name] - (before[name] if before else 0)
            self.total[name] += row[name]
        for name in ('read_latencies', 'other_latencies'):
            earlier = dict(map(tuple, before[name])) if before else {}
            for bucket, samples in row[name]:
                _add(self.since_login, bucket, samples)
                _add(self.recent, bucket, samples - earlier.get(bucket, 0))
        self.unfinished += row['unfinished']
        self.processes.add(row['pid'])
        self.sessions.add(row['tsih'])


def _add(histogram, bucket, samples):
    if samples > 0:
        histogram[bucket] = histogram.get(bucket, 0) + samples


def statistics(before, after, by):
    """The rows of `stats`: one for each group of the sessions that are logged in. before, after:
    Samples; by: a key of GROUPS."""
    seconds = max(after.when - before.when, 1e-6)
    earlier = {(row['tsih'], row['unit']): row for row in before.rows}
    sums = {}
    for row in after.rows:
        if row['tsih'] is None:
            continue
        old = earlier.get((row['tsih'], row['unit']))
        if old and any(row[name] < old[name] for name in _COUNTED):
            old = None  # another session, or another store of the unit
        sums.setdefault(tuple(row[key] for key in GROUPS[by]), _Sum()).add(row, old)
    return [
        _row(dict(zip(GROUPS[by], group)), found, seconds, before, after, by)
        for group, found in sorted(sums.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _row(row, found, seconds, before, after, by):
    counted = found.counted
    latencies = found.recent
    if sum(latencies.values()) < FEW_SAMPLES:
        latencies = found.since_login
    row.update(
        name=_name(row, by),
        iops=round((counted['reads'] + counted['writes'] + counted['others']) / seconds, 1),
        reads=round(counted['reads'] / seconds, 1),
        writes=round(counted['writes'] / seconds, 1),
        read_rate=int(counted['bytes_read'] / seconds),
        write_rate=int(counted['bytes_written'] / seconds),
        queue=found.unfinished,
        errors=found.total['errors'],
        sessions=len(found.sessions),
        measured=sum(latencies.values()),
        cpu=None,
        memory=None,
    )
    for name, share in (('p50', 0.5), ('p95', 0.95), ('p99', 0.99)):
        row[name] = percentile(latencies, share) if latencies else None
    if by != 'lun':  # a worker process serves all LUNs of its session
        row.update(_usage(found.processes, seconds, before.usage, after.usage))
    return row


def _name(row, by):
    if by == 'session':
        return '%d %s' % (row['tsih'], row['initiator_name'])
    if by == 'lun':
        return '%s/%d' % (row['target_name'], row['lun'])
    return row[GROUPS[by][0]]


def _usage(processes, seconds, before, after):
    known = [pid for pid in processes if before.get(pid) and after.get(pid)]
    if not known:
        return {}
    used = sum(after[pid].seconds - before[pid].seconds for pid in known)
    return {
        'cpu': max(0.0, round(100.0 * used / seconds, 1)),
        'memory': sum(after[pid].memory for pid in known),
    }
