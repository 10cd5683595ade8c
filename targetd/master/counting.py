"""The counters of the sessions, collected from the workers when somebody asks for them.

     collect --order `count` to each worker with a session--> all have reported, or SECONDS are over --> done

A worker that does not report in time is left out and named; it is not ordered to count again before it
has reported. Each worker also reports when its session is over, so that the totals of a unit include
the sessions that have ended. The counters of a worker that was killed are lost since its last report.
"""

from targetd.master.processes.worker_messages import BadMessage
from targetd.message_fields import is_number

SECONDS = 1.0
FINAL = 0  # the number of the report of a session that is over

#: The values of a row of the report `counted` after the id of the unit.
NUMBERS = (
    'reads',
    'bytes_read',
    'writes',
    'bytes_written',
    'others',
    'errors',
    'unfinished',
    'oldest',
)
#: Those that only increase.
COUNTED = NUMBERS[:-2]
HISTOGRAMS = ('read_latencies', 'other_latencies')
MOST_BUCKETS = 512


class _Collection(object):
    """An unfinished collect(): the workers that have not reported, and what the others reported."""

    def __init__(self, waiting, done):
        self.waiting = waiting
        self.done = done
        self.rows = []  # (SessionRecord, {name: value})
        self.timer = None


class Counting(object):
    """loop: Loop; workers: Workers; units: Units, for the ids of the exported units."""

    def __init__(self, loop, workers, units):
        self._loop = loop
        self._workers = workers
        self._units = units
        self._number = FINAL
        self._asked = {}  # worker -> number of the order that it has not answered
        self._latest = {}  # worker -> {unit id: its latest row, flat}
        self._ended = {}  # unit id -> sum of the rows of sessions that are over, flat
        self._collections = []

    @property
    def is_idle(self):
        """True if no collect() is unfinished."""
        return not self._collections

    def handed_over(self):
        """The counters as plain values, for the program that takes over (ARCHITECTURE D24)."""
        latest = {worker.pid: rows for worker, rows in self._latest.items()}
        return {'number': self._number, 'latest': latest, 'ended': self._ended}

    def take_over(self, words):
        """Continue with the counters of another program."""
        by_pid = self._workers.by_pid
        self._number = words['number']
        self._latest.update((by_pid[p], rows) for p, rows in words['latest'].items() if p in by_pid)
        self._ended.update(words['ended'])

    def collect(self, done, only=None):
        """Call done(rows, workers that did not report). rows: [(SessionRecord, {'unit': id, and the
        values of NUMBERS and HISTOGRAMS})], one for each unit of a session that has received a
        command. only: the workers that are asked, None: all."""
        asked = [
            w
            for w in self._workers.busy()
            if w.session is not None and w.session.nexus and (only is None or w in only)
        ]
        collection = _Collection(set(asked), done)
        self._collections.append(collection)
        for worker in asked:
            if worker not in self._asked:
                self._number += 1
                self._asked[worker] = self._number
                self._workers.send(worker, {'do': 'count', 'id': self._number})
        collection.timer = self._loop.call_later(SECONDS, lambda: self._finish(collection))
        if not asked:
            self._loop.call_later(0, lambda: self._finish(collection))

    def _finish(self, collection):
        if collection in self._collections:
            self._collections.remove(collection)
            collection.timer.cancel()
            collection.done(collection.rows, sorted(collection.waiting, key=lambda w: w.pid))

    def on_counted(self, worker, message):
        """`report counted`, in one or more parts."""
        session = worker.session
        rows = [_checked(row) for row in message['units']]
        if session is None:
            return
        units = self._units.by_id
        rows = [r for r in rows if r['unit'] in units and worker in units[r['unit']].workers]
        for row in rows:
            self._note(worker, row)
        for collection in self._collections:
            if worker in collection.waiting and message['id'] != FINAL:
                collection.rows += [(session, row) for row in rows]
        if not message['more'] and self._asked.get(worker) == message['id']:
            self._forget(worker)

    def _note(self, worker, row):
        latest, now = self._latest.setdefault(worker, {}), flat(row)
        before = latest.get(row['unit'], {})
        if any(now.get(key, 0) < value for key, value in before.items()):
            self._add_ended(row['unit'], before)  # the unit has another store: it counts anew
        latest[row['unit']] = now

    def _add_ended(self, unit_id, row):
        if unit_id in self._units.by_id:
            total = self._ended.setdefault(unit_id, {})
            for key, value in row.items():
                total[key] = total.get(key, 0) + value

    def _forget(self, worker):
        self._asked.pop(worker, None)
        for collection in list(self._collections):
            collection.waiting.discard(worker)
            if not collection.waiting:
                self._finish(collection)

    def session_over(self, worker):
        """The session of the worker is over: nothing more is expected of it."""
        for unit_id, row in self._latest.pop(worker, {}).items():
            self._add_ended(unit_id, row)
        self._forget(worker)

    def sums(self, unit_id):
        """The values of COUNTED of a unit, of all its sessions: those that have ended, and what the
        others reported last."""
        rows = [self._ended.get(unit_id, {})]
        rows += [latest.get(unit_id, {}) for latest in self._latest.values()]
        return {name: sum(row.get(name, 0) for row in rows) for name in COUNTED}

    def ended(self):
        """Return [{'unit': id, and values as in collect()}]: the sums of the sessions that are over."""
        for unit_id in set(self._ended) - set(self._units.by_id):
            del self._ended[unit_id]
        return [dict(deep(row), unit=unit_id) for unit_id, row in sorted(self._ended.items())]


def flat(row):
    """The values of a row that only increase: {name, or (name, bucket): value}."""
    found = {name: row[name] for name in COUNTED}
    for name in HISTOGRAMS:
        found.update(((name, bucket), samples) for bucket, samples in row[name])
    return found


def deep(values):
    """A row from flat values; it has no unfinished commands."""
    row = {name: values.get(name, 0) for name in COUNTED}
    row['unfinished'] = row['oldest'] = 0
    for name in HISTOGRAMS:
        row[name] = sorted([key[1], n] for key, n in values.items() if key[0] == name)
    return row


def _is_count(value):
    return is_number(value) and 0 <= value < 1 << 64


def _checked(row):
    """A row of the report as {name: value}. Raises BadMessage."""
    width = 1 + len(NUMBERS) + len(HISTOGRAMS)
    if not isinstance(row, list) or len(row) != width or not isinstance(row[0], str):
        raise BadMessage('counted with a malformed row: %.100r' % (row,))
    numbers, histograms = row[1 : 1 + len(NUMBERS)], row[1 + len(NUMBERS) :]
    if not all(map(_is_count, numbers)) or not all(map(_is_histogram, histograms)):
        raise BadMessage('counted with a malformed row: %.100r' % (row,))
    found = dict(zip(NUMBERS, numbers), unit=row[0])
    found.update(zip(HISTOGRAMS, histograms))
    return found


def _is_histogram(value):
    return (
        isinstance(value, list)
        and len(value) <= MOST_BUCKETS
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair))
            for pair in value
        )
    )
