"""The latencies of commands, and the counters of a session as the master receives them.

May import scsi. One batch of commands in many is measured (worker.connection.measuring): from its
arrival until the replies are handed to the kernel, or, for a command that waits for Data-Out, for an
executor thread or for the master, until its reply is queued.

Of a unit with a latency-target every command that reads or writes is measured, and nothing else, and only
the time that its store takes: not the time in which its limits, the Data-Out of the initiator or a slow
line delay it (worker.throttling.Throttle.timed_run).
"""

import threading
import time

from targetd.scsi import limits

#: The number of the report that a worker sends when its session is over.
FINAL = 0
#: Units in one report: a message has at most channel.MAXIMUM_REQUEST bytes.
UNITS_PER_REPORT = 256


#: UNMAP, WRITE SAME(10) and (16) take as long as the initiator makes them.
NOT_TIMED = (0x42, 0x41, 0x93)


def is_timed(unit):
    """True if the store of this unit is timed (latency-target). [any]"""
    throttle = getattr(unit, 'throttle', None)
    return throttle is not None and throttle.is_timed


class Latency(object):
    """Adds samples to the counters of units, one at a time."""

    def __init__(self):
        self._lock = threading.Lock()

    def note(self, unit, is_read, seconds):
        """Add a sample of one command in many of this unit; ignored if the LUN does not exist, or if its
        store is timed. [any]"""
        if not is_timed(unit):
            self._add(unit, is_read, seconds)

    def note_finished(self, task):
        """A retained command that is measured has ended. [any]"""
        now = time.monotonic()
        if not is_timed(task.unit):
            self._add(task.unit, task.expects_read, now - task.arrived)
        elif getattr(task, 'run', None) is limits.run_limited:
            self.note_store(task, now - (task.started or task.arrived))

    def note_store(self, task, seconds):
        """The store of a timed unit took so long for this command. [any]"""
        if task.cdb[0] not in NOT_TIMED:
            self._add(task.unit, task.expects_read, seconds)

    def _add(self, unit, is_read, seconds):
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
    oldest = oldest_by_unit(tasks.running(), time.monotonic()) if tasks is not None else {}
    rows = counted_rows(replica.units() if replica is not None else {}, waiting, oldest)
    for start in range(0, max(len(rows), 1), UNITS_PER_REPORT):
        part = rows[start : start + UNITS_PER_REPORT]
        more = start + UNITS_PER_REPORT < len(rows)
        worker.report('counted', id=number, units=part, more=more)


def oldest_by_unit(running, now):
    """Return {timed unit: microseconds since an executor thread began with the oldest of its commands}.
    running: the tasks that executor threads run. [any]"""
    found = {}
    for task in running:
        if is_timed(task.unit) and task.cdb[0] not in NOT_TIMED:
            age = int((now - task.started) * 1e6)
            found[task.unit] = max(age, found.get(task.unit, 0))
    return found


def counted_rows(units, waiting, oldest=None):
    """Return the rows of the report `counted` (channel.py). units: {unit id: LogicalUnit}; waiting:
    {unit: number of its unfinished commands}; oldest: of oldest_by_unit. [any]"""
    rows = []
    for unit_id, unit in sorted(units.items()):
        counters = unit.counters
        if not counters.are_used():
            continue
        row = [unit_id]
        for commands, blocks in (counters.reads, counters.writes):
            row += [commands, blocks * unit.block_size]
        row += [counters.others, counters.errors, waiting.get(unit, 0)]
        row.append((oldest or {}).get(unit, 0))
        row += [sorted(list(pair) for pair in dict(h).items()) for h in counters.latencies]
        rows.append(row)
    return rows
