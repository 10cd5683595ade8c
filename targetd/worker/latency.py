"""The latencies of commands, and the counters of a session as the master receives them.

May import scsi. One batch of commands in many is measured (worker.connection.measuring): from its
arrival until the replies are handed to the kernel, or, for a command that waits for Data-Out, for an
executor thread or for the master, until its reply is queued.
"""

import threading

#: The number of the report that a worker sends when its session is over.
FINAL = 0
#: Units in one report: a message has at most channel.MAXIMUM_REQUEST bytes.
UNITS_PER_REPORT = 256


class Latency(object):
    """Adds samples to the counters of units, one at a time."""

    def __init__(self):
        self._lock = threading.Lock()

    def note(self, unit, is_read, seconds):
        """Add a sample of a command of this unit; ignored if the LUN does not exist. [any]"""
        counters = getattr(unit, 'counters', None)
        if counters is not None:
            with self._lock:
                counters.note_latency(bool(is_read), int(seconds * 1e6))


def report_counters(worker, number):
    """Report the counters of the session to the master. number: of its order, or FINAL. [any]"""
    replica, tasks = worker.replica, worker.tasks
    if replica is None and number == FINAL:
        return  # a discovery session
    waiting = tasks.by_unit() if tasks is not None else {}
    rows = counted_rows(replica.units() if replica is not None else {}, waiting)
    for start in range(0, max(len(rows), 1), UNITS_PER_REPORT):
        part = rows[start : start + UNITS_PER_REPORT]
        more = start + UNITS_PER_REPORT < len(rows)
        worker.report('counted', id=number, units=part, more=more)


def counted_rows(units, waiting):
    """Return the rows of the report `counted` (channel.py). units: {unit id: LogicalUnit}; waiting:
    {unit: number of its unfinished commands}. [any]"""
    rows = []
    for unit_id, unit in sorted(units.items()):
        counters = unit.counters
        if not counters.are_used():
            continue
        row = [unit_id]
        for commands, blocks in (counters.reads, counters.writes):
            row += [commands, blocks * unit.block_size]
        row += [counters.others, counters.errors, waiting.get(unit, 0)]
        row += [sorted(list(pair) for pair in dict(h).items()) for h in counters.latencies]
        rows.append(row)
    return rows
