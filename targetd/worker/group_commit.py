"""Group commit: one flush for all durable writes and SYNCHRONIZE CACHE commands of a unit that wait
for one.

     connection's thread: data into the page cache, add(task) --> waiting
     at the end of the batch of PDUs, begin():
         a flush of the unit is running       --> the next flush is for these tasks
         flushes of the unit are short        --> the connection's thread flushes
         they are long, or this is not known  --> an executor thread flushes
     that thread: a flush begins for all that wait now --> their replies in one send --> the next flush

A flush in the connection's thread needs no other thread to wake up, but the session's other commands
wait for it. If it takes unexpectedly long, another thread goes on with the connection
(Blocking.take_over), and this one ends as an executor thread would.

May import base, scsi, worker.connection.blocking. A task is answered only after a flush that began
after its write had returned: it is added after the write, and the batch is taken before the flush. A
failed flush fails every task of its batch, and marks the store, so later flushes fail too. A batch
holds at most LIMIT bytes of data (scsi.sbc), and waits for at most one other flush; the writes of a unit
that hangs are not added here.
"""

import threading
from time import monotonic

from targetd import log
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition
from targetd.worker.connection.blocking import has_received

#: The connection's thread flushes if the last flush of the unit took less: passing the work to another
#: thread would delay the session's other commands for about as long.
SHORT_SECONDS = 0.001
#: The same while the session has no other command.
ALONE_SECONDS = 0.01
#: Number of flushes for which a session is not considered alone after it was found that it is not.
_NOT_ALONE = 64

_INTERNAL_TARGET_FAILURE = (HARDWARE_ERROR, 0x44, 0x00)


class GroupCommit(object):
    """The batches of all units of one worker. worker: has executor, watch and allegiance. due: units
    whose tasks wait and that no thread flushes yet."""

    def __init__(self, worker):
        self.due = []
        self._worker = worker
        self._lock = threading.Lock()
        self._waiting = {}  # unit -> [Task], from its first add() until none waits
        self._not_alone = 0  # flushes to come for which the session is not considered alone

    def add(self, task):
        """The data of a retained task is in the store's cache: it waits for a flush. begin() must
        follow. [connection, or any with `working` held]"""
        unit, worker = task.unit, self._worker
        task.data_out = None
        task.started = monotonic()  # the hang watch counts it as a command that runs
        if not worker.watch.is_running:
            worker.watch.start()
        with self._lock:
            unit.unflushed += task.length
            waiting = self._waiting.get(unit)
            if waiting is not None:
                waiting.append(task)
                return
            self._waiting[unit] = [task]
            self.due.append(unit)

    def begin(self, connection=None):
        """Flush the units that are due. connection: its thread calls this, and may flush. Raises
        TakenOver. [any]"""
        with self._lock:
            due, self.due = self.due, []
        here = None
        if connection is not None and len(due) == 1 and self._may_flush_here(due[0], connection):
            here = due.pop()
        for unit in due:
            self._worker.executor.submit(self._flush, unit, unit)
        if here is not None:
            connection.blocking.call(self._flush, here)
            if here.flush_seconds > SHORT_SECONDS and has_received(connection.socket):
                self._not_alone = _NOT_ALONE

    def _may_flush_here(self, unit, connection):
        if unit.store.is_flushing_ahead:  # the connection's thread receives the reply to that flush
            return False
        seconds = unit.flush_seconds
        if seconds < SHORT_SECONDS:
            return True
        if seconds > ALONE_SECONDS:
            return False
        if self._not_alone:
            self._not_alone -= 1
            return False
        return len(connection.session.tasks) == len(self._waiting[unit])

    def _flush(self, unit):
        """Flush until no task waits. [connection, executor]"""
        while True:
            with self._lock:
                batch, self._waiting[unit] = self._waiting[unit], []
                unit.unflushed = 0
                if not batch:
                    del self._waiting[unit]
                    return
            began = monotonic()
            error = self._error(unit)
            unit.flush_seconds = monotonic() - began
            self._answer(batch, error)

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
