"""The limits of sessions: the memory that they share, and commands that wait, with a given clock."""

import os
from types import SimpleNamespace

import descriptors
import pytest

from targetd import compat
from targetd.scsi import sam
from targetd.scsi.limits import SECOND, STATE, Limit
from targetd.store import linux
from targetd.worker.throttling import AHEAD, PATIENCE, RETRY, Limits, SharedState

ONE = {'session': [[0, 10, 0]], 'luns': {}, 'timed': []}
LUN_1 = {'session': [], 'luns': {'1': [[2, 10, 0]]}, 'timed': []}


class Clock(object):
    def __init__(self):
        self.now = 1000 * SECOND

    def __call__(self):
        return self.now


class Unit(object):
    """Of a LogicalUnit what Limits uses."""

    def __init__(self, lun=0):
        self.lun = lun
        self.throttle = None

    def limit(self, throttle):
        self.throttle = throttle


class Session(object):
    """The Limits of one worker. started: the tasks that were given to executor threads."""

    def __init__(self, memory, clock, units):
        self.memory, self.clock, self.units = memory, clock, units
        self.started = []
        device = SimpleNamespace(luns={unit.lun: unit for unit in units})
        executor = SimpleNamespace(submit=lambda work, task, unit: self.started.append(task))
        self.noted = []
        latency = SimpleNamespace(note_store=lambda task, seconds: self.noted.append(task))
        worker = SimpleNamespace(device=device, executor=executor, latency=latency)
        self.limits = Limits(worker, clock, start_thread=False)
        for unit in units:
            self.limits.apply(unit, unit.lun)

    def order(self, message):
        self.limits.order(message, [linux.reopen(self.memory)])

    def task(self, unit=None, attribute=sam.SIMPLE, charged=512):
        task = sam.Task()
        task.unit, task.attribute, task.charged = unit or self.units[0], attribute, charged
        task.connection = SimpleNamespace(run_in_executor=None)
        return task

    def send(self, count, unit=None):
        """Sends commands; returns those that have to wait."""
        waiting = []
        for _ in range(count):
            task = self.task(unit)
            if not task.unit.throttle.admits(task):
                self.limits.add(task)
                waiting.append(task)
        return waiting

    def after(self, seconds):
        """Lets the time pass in steps; returns the number of the tasks that have started since."""
        before, end = len(self.started), self.clock.now + int(seconds * SECOND)
        while self.clock.now < end:
            self.clock.now += SECOND // 100
            self.limits.run_due()
        return len(self.started) - before


@pytest.fixture
def memory():
    descriptor = compat.memory_file('test-limits', 16 * STATE.size)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def session(memory, clock):
    found = Session(memory, clock, [Unit(0), Unit(1)])
    yield found
    found.limits.close()


@pytest.fixture
def other(memory, clock):
    found = Session(memory, clock, [Unit(0)])
    yield found
    found.limits.close()


def counts(memory, place):
    return STATE.unpack(os.pread(memory, STATE.size, place * STATE.size))[2:]


def test_a_burst_runs_and_the_rest_waits_in_order(session, memory):
    session.order(ONE)
    waiting = session.send(25)
    assert len(waiting) == 15 and session.limits.waiting() == 15
    assert session.after(0.35) == 3
    assert session.after(10) == 12 and session.started == waiting
    assert all(task.charged is None for task in waiting)
    delayed, delay = counts(memory, 0)
    assert delayed == 15 and delay == sum(range(1, 16)) * SECOND // 10


def test_sessions_share_a_limit_and_take_turns(session, other):
    session.order(ONE)
    other.order(ONE)
    assert len(session.send(100)) == 90
    assert len(other.send(5)) == 5
    done = [0, 0]
    for _ in range(100):
        done[0] += session.after(0.01)
        done[1] += other.after(0)
        other.limits.run_due()
    mine, theirs = len(session.started), len(other.started)
    assert mine + theirs <= 11 and theirs == 5, 'a short queue is not behind a long one'


def test_a_limit_of_one_lun_does_not_delay_the_others(session):
    session.order(LUN_1)
    assert session.units[0].throttle is None
    assert len(session.send(20, session.units[1])) == 10


def test_an_aborted_command_never_starts_and_the_next_one_does(session):
    session.order(ONE)
    waiting = session.send(14)
    assert session.limits.cancel(waiting[0]) and session.limits.cancel(waiting[2])
    assert not session.limits.cancel(waiting[0])
    session.after(2)
    assert session.started == [waiting[1], waiting[3]]
    assert not session.limits.cancel(waiting[1])


def test_a_new_limit_holds_for_commands_that_wait(session):
    session.order({'session': [[0, 1, 0]], 'luns': {}, 'timed': []})
    assert len(session.send(101)) == 100
    session.order({'session': [[0, 100, 0]], 'luns': {}, 'timed': []})
    assert 90 <= session.after(2.1) <= 100
    assert session.after(2) + len(session.started) >= 100


def test_without_limits_everything_that_waits_starts_at_once(session):
    session.order({'session': [[0, 1, 0]], 'luns': {}, 'timed': []})
    waiting = session.send(50)
    throttle = session.units[0].throttle
    session.order({'session': [], 'luns': {}, 'timed': []})
    assert session.units[0].throttle is None
    late = session.task()  # a command that was refused just before
    assert throttle.admits(late) is True
    session.limits.add(late)
    session.after(0.01)
    assert set(session.started) == set(waiting) | {late}


def test_a_head_of_queue_command_is_counted_but_does_not_wait(session):
    session.order(ONE)
    session.send(12)
    assert session.units[0].throttle.admits(session.task(attribute=sam.HEAD_OF_QUEUE))
    assert session.after(0.15) == 1
    assert session.after(0.1) == 0, 'it has taken the place of one'


def test_a_unit_that_is_added_later_has_the_limits(session):
    session.order(ONE)
    late = Unit(7)
    session.limits.apply(late, 7)
    assert late.throttle.rates == session.units[0].throttle.rates


def test_a_limit_is_of_the_number_in_the_configuration_and_not_of_the_lun_that_is_shown(session):
    session.order(LUN_1)
    shown_as_1, is_1 = Unit(1), Unit(0)
    session.limits.apply(shown_as_1, 5)
    session.limits.apply(is_1, 1)
    assert shown_as_1.throttle is None and is_1.throttle is not None


def test_nothing_waits_for_the_lock_of_a_process_that_hangs(session, memory, clock):
    session.order(ONE)
    with open(linux.reopen(memory), 'rb+') as hung:
        assert compat.try_lock(hung.fileno(), True, 0, 1)
        waiting = session.send(3)
        assert len(waiting) == 3 and session.after(0.5) == 0
        assert session.after((PATIENCE + 4 * RETRY) / SECOND) == 3
    assert session.send(5) == []


def test_the_lock_is_free_after_each_command(session, memory):
    session.order(ONE)
    session.send(12)
    with open(linux.reopen(memory), 'rb+') as file:
        assert compat.try_lock(file.fileno(), True, 0, 1)


def test_a_state_is_changed_by_one_session_at_a_time(memory, clock):
    states = [SharedState(linux.reopen(memory), clock) for _ in range(2)]
    assert states[0].take([Limit(3, 10, 0)], 512) == clock.now
    assert states[1].take([Limit(3, 10, 0)], 512) == clock.now
    assert STATE.unpack(os.pread(memory, STATE.size, 3 * STATE.size))[0] == clock.now + SECOND // 5
    for state in states:
        state.close()


def test_the_descriptor_is_closed_with_the_session_and_by_the_next_order(session):
    before = descriptors.count_open()
    session.order(ONE)
    session.order(LUN_1)
    assert descriptors.count_open() == before + 1
    session.limits.close()
    assert descriptors.count_open() == before


TIMED = {'session': [], 'luns': {}, 'timed': [1]}


def test_a_unit_with_a_latency_target_is_timed_and_not_delayed(session):
    session.order(TIMED)
    assert session.units[0].throttle is None
    assert session.send(50, session.units[1]) == []
    task = session.task(session.units[1])
    task.unlimited_run = lambda task: b'data'
    assert session.units[1].throttle.timed_run(task) == b'data'
    assert session.noted == [task] and task.arrived is None
    session.order(dict(TIMED, timed=[]))
    assert session.units[1].throttle is None


def test_a_command_that_a_thread_has_to_run_is_timed_until_it_ends(session):
    session.order(TIMED)
    task = session.task(session.units[1])
    task.unlimited_run = lambda task: sam.WOULD_BLOCK
    assert session.units[1].throttle.timed_run(task) is sam.WOULD_BLOCK
    assert session.noted == [] and task.arrived is not None


def test_the_delay_by_the_limits_of_a_timed_unit_does_not_count(session):
    session.order({'session': [], 'luns': {'1': [[2, 10, 0]]}, 'timed': [1]})
    (waiting,) = session.send(11, session.units[1])
    assert session.limits.is_waiting(waiting)
    session.after(0.2)
    assert session.started == [waiting] and not session.limits.is_waiting(waiting)
    assert waiting.arrived is not None


FAST = {'session': [[0, 6400, 0]], 'luns': {}, 'timed': []}


def takes(session):
    """Counts the locked accesses to the memory from now on, in a list."""
    found, take = [], session.limits._state.take
    session.limits._state.take = lambda *words: found.append(words) or take(*words)
    return found


def test_a_limit_that_is_far_away_costs_a_lock_for_many_commands(session):
    session.order(FAST)
    counted = takes(session)
    assert session.send(2000) == []
    assert len(counted) < 2000 / 20


def test_sessions_that_count_ahead_do_not_exceed_the_limit_together(session, other, clock):
    session.order(FAST)
    other.order(FAST)
    admitted = 0
    for _ in range(300):  # three seconds
        for each in (session, other):
            while each.units[0].throttle.admits(each.task()):
                admitted += 1
        clock.now += SECOND // 100
    assert 3.9 * 6400 <= admitted <= 4 * 6400 + 1


def test_what_is_not_used_at_once_is_lost(session, clock):
    session.order(FAST)
    counted = takes(session)
    session.send(100)
    before = len(counted)
    clock.now += AHEAD
    session.send(1)
    assert len(counted) == before + 1


def test_a_limit_of_bytes_counts_ahead_and_a_long_command_is_counted_for_itself(session):
    session.order({'session': [[0, 0, 1 << 30]], 'luns': {}, 'timed': []})
    counted = takes(session)
    assert session.send(1000) == []
    before = len(counted)
    assert session.units[0].throttle.admits(session.task(charged=1 << 20))
    assert before < 50 and len(counted) == before + 1


def test_a_new_limit_holds_at_once_although_commands_were_counted_ahead(session):
    session.order(FAST)
    session.send(100)
    session.order(ONE)
    assert len(session.send(20)) >= 10
