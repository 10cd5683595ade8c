"""Group commit: one flush for all durable writes and SYNCHRONIZE CACHE commands of a unit that wait
for one.

     connection's thread: data into the page cache, add(task) --> waiting
     executor thread:  a flush begins for all that wait now --> their replies in one send --> the next flush

May import base, scsi. A task is answered only after a flush that began after its write had returned:
it is added after the write, and the batch is taken before the flush. A failed flush fails every task of
its batch, and marks the store, so later flushes fail too. A batch holds at most LIMIT bytes of data
(scsi.sbc), and waits for at most one other flush; the writes of a unit that hangs are not added here.
"""

import threading
from time import monotonic

from targetd import log
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition

_INTERNAL_TARGET_FAILURE = (HARDWARE_ERROR, 0x44, 0x00)


class GroupCommit(object):
    """The batches of all units of one worker. worker: has executor, watch and allegiance."""

    def __init__(self, worker):
        self._worker = worker
        self._lock = threading.Lock()
        self._waiting = {}  # unit -> [Task], while an executor thread flushes the unit

    def add(self, task):
        """The data of a retained task is in the store's cache: flush and reply. [connection]"""
        unit, worker = task.unit, self._worker
        task.data_out = None
        task.started = monotonic()  # the hang watch counts it as a command that runs
        if not worker.watch.is_running:
            worker.watch.start()
        with self._lock:
            waiting = self._waiting.get(unit)
            if waiting is not None:
                waiting.append(task)
                unit.unflushed += task.length
                return
            self._waiting[unit] = [task]
        worker.executor.submit(self._flush, unit, unit)

    def _flush(self, unit):
        """Flush until no task waits. [executor]"""
        while True:
            with self._lock:
                batch, self._waiting[unit] = self._waiting[unit], []
                unit.unflushed = 0
                if not batch:
                    del self._waiting[unit]
                    return
            self._answer(batch, self._error(unit))

    @staticmethod
    def _error(unit):
        """Flush the unit; returns the error or None."""
        try:
            unit.flush(0, unit.blocks * unit.block_size)
        except Exception as e:
            if not isinstance(e, OSError):  # a defect in targetd must not end the thread
                log.exception('a flush failed unexpectedly')
            return e
        return None

    def _answer(self, batch, error):
        connections = []
        for task in batch:
            outcome = None
            if isinstance(error, OSError):
                outcome = task.unit.write_failure(error, task)
            elif error is not None:
                outcome = CheckCondition(*_INTERNAL_TARGET_FAILURE)
            with self._worker.allegiance:
                connection = task.connection
                if connection.finish(task, outcome) and connection not in connections:
                    connections.append(connection)
        for connection in connections:
            connection.drain_or_stop()
