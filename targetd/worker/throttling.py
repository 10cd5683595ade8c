"""The limits of one session's units, and the commands that wait for them.

     connection's thread: run_limited --> Throttle.admits()? --yes--> the command runs
                                              | no
     add(task) --> queue of the unit --> its first command has reserved a time --> timer thread
                                                                                       |
                                   executor thread: run_in_executor(task) <--- the time has come

The state of the limits (scsi.limits.STATE) is in a memory file that all sessions of the target share, and
a lock of an open file description guards it, so a limit holds for the sum of the sessions. While the
buckets are more than half full, a session that sends many commands counts some of the next ones ahead,
which then cost no lock and no file access, but only for AHEAD nanoseconds: what it does not use is lost. Of
each unit of a session only the first waiting command has reserved its time, so sessions that wait take
turns, and what an aborted command has reserved is lost to nobody else.

Nothing waits for the lock: a command that does not get it is queued, and a lock that another process does
not release for PATIENCE is ignored.

May import base, scsi. One lock guards everything in this module and is held over no other lock; one thread
of the process serves all queues, from the first command that is delayed on.
"""

import heapq
import itertools
import os
import threading
import time
from collections import deque

from targetd import compat, log
from targetd.scsi.limits import SECOND, STATE, Limit
from targetd.scsi.sam import HEAD_OF_QUEUE, WOULD_BLOCK, Change

#: Attempts to lock the state before a command is queued instead, and the time after which its next attempt
#: is made.
ATTEMPTS = 4
RETRY = 300000
#: For this time commands are counted ahead, and at most so many.
AHEAD = SECOND // 20
MOST_AHEAD = 63
#: After this time without the lock the limits admit commands uncounted: another process has it and hangs.
PATIENCE = SECOND


def now():
    """The clock of the limits. [any]"""
    return int(time.monotonic() * SECOND)


class SharedState(object):
    """The states of the places of one target. descriptor: of the memory file, owned by this object; it has
    an open file description of its own. Called with the lock of Limits held."""

    def __init__(self, descriptor, clock=now):
        self._descriptor = descriptor
        self._clock = clock
        self._failing_since = None
        self._has_warned = False
        self.ahead = 0  # commands that the last take() has counted ahead

    def close(self):
        """Close the memory file."""
        os.close(self._descriptor)

    def take(self, limits, length, since=None, must_run=False, ahead=0):
        """Count a command with so many bytes in these Limits, and at most `ahead` further ones like it if
        there is much room. Returns the time from which it may run.

        since: None, or the time at which the command was queued. Without it, a command that must wait is
        not counted, and None is returned, unless must_run is true. With it, it is counted as delayed in
        any case, unless the state is locked: then the time of the next attempt is returned, with a minus
        sign."""
        self.ahead = 0
        if not self._is_locked():
            return self._without_lock(since)
        try:
            self._failing_since = None
            moment = self._clock()
            states = [self._read(limit.place) for limit in limits]
            dues = [limit.due(state, moment, length) for limit, state in zip(limits, states)]
            due = max(dues)
            if due > moment and since is None and not must_run:
                return None
            if ahead and due <= moment:
                for limit, state in zip(limits, states):
                    ahead = limit.ahead(state, moment, length, ahead)
                self.ahead = ahead
            # the delay is counted at the limit that causes it
            cause = dues.index(due) if since is not None else None
            for number, (limit, state) in enumerate(zip(limits, states)):
                delay = (1, max(0, due - since)) if number == cause else (0, 0)
                after = limit.taken(state, moment, length, *delay, count=1 + self.ahead)
                self._write(limit.place, after)
            return due
        finally:
            compat.unlock(self._descriptor)

    def forgive(self, limits):
        """The rates of these Limits have changed: what sessions owe in time counts no longer."""
        if not self._is_locked():
            return
        try:
            for limit in limits:
                state = self._read(limit.place)
                times = [min(full_at, self._clock() + limit.burst) for full_at in state[:2]]
                self._write(limit.place, tuple(times) + state[2:])
        finally:
            compat.unlock(self._descriptor)

    def _is_locked(self):
        return any(compat.try_lock(self._descriptor, True, 0, 1) for _ in range(ATTEMPTS))

    def _without_lock(self, since):
        moment = self._clock()
        if self._failing_since is None:
            self._failing_since = moment
        if moment - self._failing_since > PATIENCE:
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    'the limits of the target are not applied in this session, because the process of '
                    'another session blocks them; targetdctl show workers lists the processes'
                )
            return moment
        return None if since is None else -(moment + RETRY)

    def _read(self, place):
        return STATE.unpack(os.pread(self._descriptor, STATE.size, place * STATE.size))

    def _write(self, place, state):
        os.pwrite(self._descriptor, STATE.pack(*state), place * STATE.size)


class Throttle(object):
    """The limits of one unit in this session. limits: Limits; unit: LogicalUnit; rates: [Limit] in force,
    () if they were removed; is_timed: its store is timed (latency-target); queue: [(task, time at which it
    was queued)]; due: the time that the first of them waits for.

    Counted ahead: credit commands and credit_bytes, until a time; lease: how many there were."""

    __slots__ = (
        'limits', 'unit', 'rates', 'is_timed', 'queue', 'due', 'credit', 'credit_bytes', 'until', 'lease',
    )  # fmt: skip

    def __init__(self, limits, unit, rates, is_timed=False):
        self.limits = limits
        self.unit = unit
        self.rates = rates
        self.is_timed = is_timed
        self.queue = deque()
        self.due = None
        self.forget_credit()

    def forget_credit(self):
        """Nothing is counted ahead any more."""
        self.credit = self.credit_bytes = self.until = self.lease = 0

    def spend(self, length, now):
        """True if a command with so many bytes is counted already."""
        if self.credit and now < self.until and length <= self.credit_bytes:
            self.credit -= 1
            self.credit_bytes -= length
            return True
        return False

    def wanted_ahead(self, now):
        """How many commands are to be counted ahead now: more each time while they are used up in time."""
        if now < self.until:
            return min(2 * self.lease + 1, MOST_AHEAD)
        return self.lease // 2

    def credited(self, count, length, now):
        """So many commands were counted ahead, each with so many bytes."""
        self.credit = self.lease = count
        self.credit_bytes, self.until = count * length, now + AHEAD

    def timed_run(self, task):
        """The run() of a command of a unit whose store is timed. What does not end here ends in
        Latency.note_finished. [connection, or any with `working` held]"""
        began = time.monotonic()
        result = task.unlimited_run(task)
        if result is WOULD_BLOCK or result.__class__ is Change:
            task.arrived = began
        else:
            self.limits.note_latency(task, time.monotonic() - began)
        return result

    def admits(self, task):
        """Count the command and return True if it may run now. A HEAD OF QUEUE command always may.
        [connection, or any with `working` held]"""
        return self.limits.admits(self, task)


class Limits(object):
    """The limits of the session of one worker. worker: has executor, latency, and device, the Device of the
    session or None; clock, start_thread: for tests."""

    def __init__(self, worker, clock=now, start_thread=True):
        self._worker = worker
        self._clock = clock
        self._start_thread = start_thread
        self._lock = threading.Lock()
        self._has_changed = threading.Condition(self._lock)
        self._thread = None
        self._state = None  # SharedState
        self._of_session = []  # [Limit] of every unit
        self._of_luns = {}  # number of a LUN in the configuration -> [Limit]
        self._timed = set()  # numbers of the LUNs there whose stores are timed
        self._numbers_of_units = {}  # LogicalUnit -> its number there
        self._throttles = {}  # LogicalUnit -> Throttle
        self._waiting = {}  # Task -> Throttle
        self._heap = []  # (due, number, Throttle)
        self._numbers = itertools.count()

    # -- control thread ----------------------------------------------------------------------------

    def order(self, message, descriptors):
        """The order `limits`: put them in force. [control]"""
        device = self._worker.device
        units = list(device.luns.values()) if device is not None else []
        with self._has_changed:
            if self._state is not None:
                self._state.close()
            self._state = SharedState(descriptors[0], self._clock)
            self._of_session = [Limit(*row) for row in message['session']]
            self._of_luns = {
                int(lun): [Limit(*row) for row in rows] for lun, rows in message['luns'].items()
            }
            self._timed = set(message['timed'])
            for unit in set(self._throttles) - set(units):
                if not self._throttles[unit].queue:
                    del self._throttles[unit]
            numbers = self._numbers_of_units
            self._numbers_of_units = {unit: numbers[unit] for unit in units}
        for unit in units:
            self.apply(unit, self._numbers_of_units[unit])

    def apply(self, unit, number):
        """Put the limits of the unit in force. number: of its LUN in the configuration. [control]"""
        with self._has_changed:
            self._numbers_of_units[unit] = number
            rates = self._of_luns.get(number, []) + self._of_session
            is_timed = number in self._timed
            throttle = self._throttles.get(unit)
            if throttle is None and (rates or is_timed):
                throttle = self._throttles[unit] = Throttle(self, unit, rates, is_timed)
            elif throttle is not None:
                throttle.is_timed = is_timed
            if throttle is not None and throttle.rates != rates:
                throttle.rates = rates
                throttle.forget_credit()
                self._state.forgive(rates)
                if throttle.queue:
                    self._reserve(throttle)
        unit.limit(throttle if rates or is_timed else None)

    def close(self):
        """The session is over, and no command waits any more. [connection]"""
        with self._has_changed:
            if self._state is not None:
                self._state.close()
                self._state = None
            self._of_session, self._of_luns, self._timed = [], {}, set()
            self._throttles.clear()
            self._numbers_of_units.clear()
            self._waiting.clear()
            del self._heap[:]

    # -- commands ----------------------------------------------------------------------------------

    def admits(self, throttle, task):
        """As Throttle.admits."""
        with self._lock:
            if not throttle.rates or self._state is None:
                return True
            must_run = task.attribute == HEAD_OF_QUEUE
            if throttle.queue and not must_run:
                return False
            length, moment = task.charged, self._clock()
            if throttle.spend(length, moment):
                return True
            wanted = throttle.wanted_ahead(moment)
            due = self._state.take(throttle.rates, length, None, must_run, wanted)
            throttle.credited(self._state.ahead, length, moment)
            return due is not None or must_run

    def add(self, task):
        """A retained task has to wait. [connection, or any with `working` held]"""
        throttle = task.unit.throttle or Throttle(self, task.unit, [])
        with self._has_changed:
            self._waiting[task] = throttle
            throttle.queue.append((task, self._clock()))
            if len(throttle.queue) == 1:
                self._reserve(throttle)
            if self._thread is None and self._start_thread:
                self._thread = threading.Thread(target=self._run, name='limits', daemon=True)
                self._thread.start()

    def cancel(self, task):
        """The task is aborted. Returns True if it was waiting, and does so no longer: no thread will run
        it. [any]"""
        with self._has_changed:
            throttle = self._waiting.pop(task, None)
            if throttle is None:
                return False
            is_first = throttle.queue[0][0] is task
            throttle.queue = deque(entry for entry in throttle.queue if entry[0] is not task)
            if is_first and throttle.queue:
                self._reserve(throttle)
        return True

    def waiting(self):
        """The number of commands that wait. [any]"""
        return len(self._waiting)

    def is_waiting(self, task):
        """Does this command wait? [any]"""
        return task in self._waiting

    def note_latency(self, task, seconds):
        """The store has answered a command of a timed unit at once. [any]"""
        self._worker.latency.note_store(task, seconds)

    # -- timer thread ------------------------------------------------------------------------------

    def _reserve(self, throttle):
        """Reserve a time for the first command in the queue. Called with the lock held."""
        task, since = throttle.queue[0]
        moment = self._clock()
        due = moment
        if throttle.rates and self._state is not None:
            due = self._state.take(throttle.rates, task.charged, since)
        throttle.due = due
        heapq.heappush(self._heap, (abs(due), next(self._numbers), throttle, due))
        self._has_changed.notify()

    def run_due(self):
        """Take the commands out of their queues whose time has come, and start them in executor threads.
        [timer]"""
        started, moment = [], self._clock()
        with self._has_changed:
            while self._heap and self._heap[0][0] <= moment:
                _, _, throttle, due = heapq.heappop(self._heap)
                if not throttle.queue or throttle.due != due:
                    continue  # the command was aborted, or the rates have changed
                if due >= 0:
                    task, _ = throttle.queue.popleft()
                    del self._waiting[task]
                    task.charged = None
                    if throttle.is_timed:
                        # the limits of the unit itself do not count
                        task.arrived = time.monotonic()
                    started.append(task)
                if throttle.queue:
                    self._reserve(throttle)
        for task in started:
            self._worker.executor.submit(task.connection.run_in_executor, task, task.unit)

    def _run(self):
        while True:
            self.run_due()
            with self._has_changed:
                if not self._heap:
                    self._has_changed.wait()
                elif self._heap[0][0] > self._clock():
                    self._has_changed.wait((self._heap[0][0] - self._clock()) / SECOND)
