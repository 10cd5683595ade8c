"""Commands for which the medium does not answer (SAM-5 has no limit for them).

A thread looks at the running commands while there are any. It gives up waiting for aborted commands
after QUIET_SECONDS, so that task management is answered although a call of the kernel does not
return; if such a command may still write, its unit is *fenced* first: the master has every session
answer BUSY for the unit, until the call has returned or the process is dead. It also reports the
oldest command of a unit that has not answered for HANGING_SECONDS.

    running --abort--> aborted --ended in time--> quiet
                          |
                          +--QUIET_SECONDS--> forgotten --the unit is fenced--> quiet
                                                  |
                                                  +--its call returns--> report fence-over

May import base, scsi. Threads are marked as in Connection.
"""

import sys
import threading
import time

from targetd.scsi import passthrough
from targetd.scsi.mmc_opcodes import name_of
from targetd.scsi.opcodes import EXTENDED_COPY

#: An abort is answered after this time at the latest, plus the time of the fence.
QUIET_SECONDS = 1.0
#: A connection whose thread flushes for so long goes on in another thread at the next look.
LATE_SECONDS = 0.02
#: A command that takes longer is reported to the master.
HANGING_SECONDS = 5.0
#: The same for a command that blocks the connection's thread. Shorter than the time after which the
#: master kills a worker that does not end its session: it fences the units that were reported.
BLOCKING_SECONDS = 2.0

#: Operation codes of commands that can take long although the medium answers: SEND DIAGNOSTIC, VERIFY,
#: WRITE SAME, UNMAP, EXTENDED COPY. They are not reported.
LONG_COMMANDS = frozenset((0x1D, 0x2F, 0x41, 0x42, 0x83, 0x8F, 0x93, 0xAF))

_LOOK_SECONDS = 0.25
_IDLE_LOOKS = 40  # the thread ends after so many looks without a command


#: Functions in which a thread holds `working` of the session: Connection._act, Worker._resume.
_HOLDERS = ('_act', '_resume')


def task_of_holder():
    """Returns the task of the thread that holds `working`, if this thread is in a call of a store
    (usually a write into the page cache that blocks); otherwise None. [any]"""
    for frame in sys._current_frames().values():
        if not frame.f_globals.get('__name__', '').startswith('targetd.store.'):
            continue
        task = None
        while frame is not None:
            task = frame.f_locals.get('task', task)
            if task is not None and frame.f_code.co_name in _HOLDERS:
                return task
            frame = frame.f_back
    return None


class Fences(object):
    """The units of this worker that are fenced. worker: asks and reports; is_touched(unit): may a
    forgotten command still write the unit?"""

    def __init__(self, worker, is_touched):
        self._worker = worker
        self._is_touched = is_touched
        self._lock = threading.Lock()
        self._waiting = {}  # unit -> [callback] until its fence is in force, then None
        self._held = []  # sets of units that are fenced until release()

    def put_up(self, units, done):
        """Call done() when every session answers BUSY for these units. [any]"""
        left = [len(units)]

        def one_done():
            left[0] -= 1
            if not left[0]:
                done()

        for unit in units:
            self._put_up_one(unit, one_done)
        if not units:
            done()

    def hold(self, units, done):
        """Like put_up(), and the units stay fenced until release() with the same object. [any]"""
        with self._lock:
            self._held.append(units)
        self.put_up(units, done)

    def release(self, units):
        """[any]"""
        with self._lock:
            self._held = [each for each in self._held if each is not units]
        self.take_down()

    def _put_up_one(self, unit, done):
        with self._lock:
            is_asked = unit in self._waiting
            waiting = self._waiting.setdefault(unit, [])
            if waiting is not None:
                waiting.append(done)
        if waiting is None:
            done()
        elif not is_asked:
            self._worker.ask_master(
                'fence', lambda answer: self._is_up(unit), unit=unit.services.unit_id
            )

    def _is_up(self, unit):
        """[control]"""
        with self._lock:
            waiting, self._waiting[unit] = self._waiting[unit], None
        for done in waiting:
            done()
        self.take_down()

    def take_down(self):
        """A command has returned: end the fences for which it was the last one. [any]"""
        over = []
        with self._lock:
            for unit, waiting in list(self._waiting.items()):
                is_held = any(unit in units for units in self._held)
                if waiting is None and not is_held and not self._is_touched(unit):
                    del self._waiting[unit]
                    over.append(unit)
        for unit in over:
            self._worker.report('fence-over', unit=unit.services.unit_id)

    def are_up(self):
        """True if a unit is fenced, or about to be. [any]"""
        return bool(self._waiting)


class Watch(object):
    """The thread that looks. worker: its tasks and replica change with the session."""

    def __init__(self, worker):
        self.is_running = False
        self.fences = Fences(worker, self._is_touched)
        self._worker = worker
        self._lock = threading.Lock()
        self._reported = {}  # unit id -> task that was reported as the oldest one
        self._to_close = []  # removed units whose stores are still used by a command that hangs

    def start(self):
        """Look at the commands from now on, until there are none. [any]"""
        with self._lock:
            if self.is_running:
                return
            self.is_running = True
        thread = threading.Thread(target=self._run, name='watch')
        thread.daemon = True
        thread.start()

    def take_working(self, working, units, on_quiet):
        """Take `working` of the session, for an abort of the tasks of these units. If its holder is in
        a call of the medium, on_quiet() is called as soon as the units are fenced. Returns the function
        to call when the aborted tasks are quiet. [any]"""
        while task_of_holder() is None:
            if working.acquire(timeout=QUIET_SECONDS):
                return on_quiet
        self.start()
        held = set(units)
        self.fences.hold(held, on_quiet)
        working.acquire()
        return lambda: self.fences.release(held)

    def close_store(self, unit):
        """Close the store of a removed unit, now or when the last command that hangs has returned: it
        may still use the number of the descriptor. [any]"""
        with self._lock:
            self._to_close.append(unit)
        self._close_unused()
        if self._to_close:
            self.start()

    def _close_unused(self):
        with self._lock:
            unused = [unit for unit in self._to_close if not self._is_used(unit)]
            self._to_close = [unit for unit in self._to_close if unit not in unused]
        for unit in unused:
            unit.store.close()

    def _is_used(self, unit):
        tasks, replica = self._worker.tasks, self._worker.replica
        if tasks is None or replica is None:
            return False
        return unit in replica.guests.units_of_copies() or any(
            task.unit is unit for task in list(tasks.hung)
        )

    def _run(self):
        idle = 0
        while idle < _IDLE_LOOKS:
            time.sleep(_LOOK_SECONDS)
            idle = 0 if self.look(time.monotonic()) else idle + 1
        self.is_running = False
        if self.look(time.monotonic()):  # a command began meanwhile and saw a running thread
            self.start()

    def look(self, now):
        """Give up what has waited too long, report what hangs. Returns False if there is nothing to
        look at. [any]"""
        tasks, replica = self._worker.tasks, self._worker.replica
        if tasks is None or replica is None:
            return False
        for connection in list(self._worker.connections):
            connection.blocking.take_over(now - LATE_SECONDS)
        for on_quiet, late in tasks.give_up(now - QUIET_SECONDS):
            units = {unit for task in late for unit in self._units_of(task)}
            self.fences.put_up(units, self._in_executor(on_quiet))
        for on_quiet, units in replica.guests.give_up(now - QUIET_SECONDS):
            self.fences.put_up(units, self._in_executor(on_quiet))
        self.fences.take_down()
        self._close_unused()
        blocking = self._blocking(now)
        limits = [(task, HANGING_SECONDS) for task in tasks.running()]
        self._report(limits + [(task, BLOCKING_SECONDS) for task in blocking], now)
        is_waiting = self.fences.are_up() or bool(self._reported or self._to_close or blocking)
        return is_waiting or tasks.are_unfinished()

    def _blocking(self, now):
        """Returns [the task that blocks the connection's thread], or []."""
        task = task_of_holder() if self._worker.working.locked() else None
        if task is None:
            return []
        if task.started is None:
            task.started = now
        return [task]

    def _in_executor(self, on_quiet):
        """on_quiet() may have to wait for a slow initiator."""
        return lambda: self._worker.executor.submit(lambda _: on_quiet(), None)

    def _units_of(self, task):
        """The units that a running command may still write."""
        may_write = getattr(task.unit, 'may_still_write', None)
        if may_write is None or not may_write(task):
            return set()
        is_copy = task.cdb[0] == EXTENDED_COPY
        return {task.unit} | (self._worker.replica.guests.units_of_copies() if is_copy else set())

    def _is_touched(self, unit):
        tasks, replica = self._worker.tasks, self._worker.replica
        if tasks is None or replica is None:
            return False
        return unit in replica.guests.units_of_copies() or any(
            unit in self._units_of(task) for task in list(tasks.hung)
        )

    def _report(self, running, now):
        """Report the oldest command of each unit that hangs, when it has changed. running: [(task,
        seconds after which it hangs)]."""
        oldest, counts = {}, {}
        for task, limit in running:
            services = getattr(task.unit, 'services', None)
            if services is None or task.cdb[0] in LONG_COMMANDS or passthrough.is_patient(task):
                continue
            if now - task.started < limit:
                continue
            unit_id = services.unit_id
            counts[unit_id] = counts.get(unit_id, 0) + 1
            if unit_id not in oldest or task.started < oldest[unit_id].started:
                oldest[unit_id] = task
        for unit_id, task in oldest.items():
            if self._reported.get(unit_id) is not task:
                self._worker.report(
                    'hanging',
                    unit=unit_id,
                    commands=counts[unit_id],
                    command=name_of(task.cdb[0]),
                    lba=_lba(task),
                    milliseconds=int((now - task.started) * 1000),
                )
        for unit_id in set(self._reported) - set(oldest):
            self._worker.report('hanging', unit=unit_id, commands=0)
        self._reported = oldest


def _lba(task):
    """The first logical block of the command, or None."""
    offset = getattr(task, 'offset', None)  # not every command has one
    return None if offset is None else offset // task.unit.block_size
