"""The token buckets of limits, with given times, and the commands of a unit that they delay."""

import pytest
from fake_store import block_cdb, cdb_10, cdb_16, do, make_task, make_unit

from targetd.scsi import limits, sam
from targetd.scsi.limits import BURST, LONGEST_DEBT, SECOND, Limit

EMPTY = (0, 0, 0, 0)
HOUR = 3600 * SECOND


class Clocked(object):
    """A state of one Limit whose commands run as early as they may."""

    def __init__(self, limit, now=HOUR):
        self.limit, self.now, self.state = limit, now, EMPTY

    def run(self, length):
        """Executes one command as early as possible; returns when."""
        self.now = self.limit.due(self.state, self.now, length)
        self.state = self.limit.taken(self.state, self.now, length)
        return self.now - HOUR


@pytest.mark.parametrize('rate', [1, 7, 1000, 1000000])
def test_commands_run_at_the_rate_after_a_burst_of_one_second(rate):
    clocked = Clocked(Limit(0, rate, 0))
    count = 3 * rate + 1
    times = [clocked.run(4096) for _ in range(min(count, 5000))]
    assert times[: min(rate, len(times))] == [0] * min(rate, len(times))
    for number, moment in enumerate(times):
        allowed = rate * (moment + BURST) / SECOND
        assert number < allowed + 1e-6 * count + 1, 'no second has more than its rate'
    assert times[-1] <= len(times) * SECOND // rate


def test_bytes_count_by_length_and_a_pause_earns_at_most_one_second():
    clocked = Clocked(Limit(0, 0, 1 << 20))
    assert [clocked.run(1 << 18) for _ in range(6)] == [0, 0, 0, 0, SECOND // 4, SECOND // 2]
    clocked.now += 100 * SECOND
    began = clocked.now - HOUR
    assert [clocked.run(1 << 19) - began for _ in range(3)] == [0, 0, SECOND // 2]


def test_a_command_that_costs_more_than_the_bucket_holds_needs_a_full_one_and_is_paid_for():
    clocked = Clocked(Limit(0, 0, 1 << 20))
    assert clocked.run(4 << 20) == 0
    assert clocked.run(1 << 18) == 3 * SECOND + SECOND // 4
    assert clocked.run(4 << 20) == 4 * SECOND + SECOND // 4


def test_both_buckets_must_admit_a_command():
    limit = Limit(0, 10, 1 << 20)
    state = EMPTY
    for _ in range(10):
        state = limit.taken(state, HOUR, 512)
    assert limit.due(state, HOUR, 512) == HOUR + SECOND // 10
    state = limit.taken(EMPTY, HOUR, 1 << 20)
    assert limit.due(state, HOUR, 1 << 19) == HOUR + SECOND // 2


def test_nonsense_in_the_shared_memory_delays_at_most_so_long():
    limit = Limit(0, 10, 0)
    state = ((1 << 63) - 1, -(1 << 63), 5, 6)
    assert limit.due(state, HOUR, 512) <= HOUR + LONGEST_DEBT
    after = limit.taken(state, HOUR, 512, 1, 7)
    assert after[0] <= HOUR + LONGEST_DEBT + SECOND and after[2:] == (6, 13)
    assert limits.STATE.unpack(limits.STATE.pack(*after)) == after


class Decided(object):
    """A throttle that admits nothing, or everything."""

    is_timed = False

    def __init__(self, is_open):
        self.is_open = is_open
        self.charged = []

    def admits(self, task):
        self.charged.append(task.charged)
        return self.is_open


def limited(is_open, **facts):
    unit = make_unit(**facts)
    unit.limit(Decided(is_open))
    return unit


def start(unit, cdb, out=None):
    task = make_task(unit, cdb, out)
    unit.admit(task)
    task.data_out = out
    return task, task.run(task)


LIMITED = {
    'READ(6)': (block_cdb(0x08, 0, 1), None, 512),
    'READ(10)': (cdb_10(0x28, 0, 2), None, 1024),
    'READ(16)': (cdb_16(0x88, 0, 2), None, 1024),
    'WRITE(10)': (cdb_10(0x2A, 0, 2), bytes(1024), 1024),
    'WRITE(10) with FUA': (cdb_10(0x2A, 0, 2, flags=8), bytes(1024), 1024),
    'VERIFY(10)': (cdb_10(0x2F, 0, 2), None, 1024),
    'WRITE SAME(10)': (cdb_10(0x41, 0, 8), bytes(512), 512),
}


@pytest.mark.parametrize('kind', sorted(LIMITED))
def test_a_delayed_command_has_what_an_executor_thread_runs_later(kind):
    cdb, out, counted = LIMITED[kind]
    unit = limited(False)
    task, result = start(unit, cdb, out)
    assert result is sam.DELAYED and unit.throttle.charged == [counted]
    later = task.run_blocking(task)
    assert later is not sam.WOULD_BLOCK and later.__class__ is not sam.Change


@pytest.mark.parametrize('kind', sorted(LIMITED))
def test_an_admitted_command_runs_as_without_limits(kind):
    cdb, out, _ = LIMITED[kind]
    _, result = start(limited(True), cdb, out)
    _, plain = start(make_unit(), cdb, out)
    assert type(result) is type(plain)


@pytest.mark.parametrize('cdb', [bytes(6), bytes.fromhex('12 00 00 0060 00'), cdb_10(0x35, 0, 0)])
def test_other_commands_are_not_limited(cdb):
    unit = limited(False)
    do(unit, cdb)
    assert unit.throttle.charged == []


def test_without_limits_the_unit_has_its_usual_functions():
    unit = make_unit()
    do(unit, cdb_10(0x28, 0, 1))
    plain = unit.dispatch[0x28].__code__
    unit.limit(Decided(True))
    assert unit.dispatch[0x28].__code__ is not plain
    unit.limit(None)
    assert unit.dispatch[0x28].__code__ is plain


def test_a_command_that_waits_is_made_durable():
    unit = limited(False, write_cache=True)
    task, result = start(unit, cdb_10(0x2A, 0, 2), bytes(1024))
    task.transfer = object()  # its data is still to come
    assert result is sam.DELAYED and not unit.make_durable(task) and task.durable
    assert task.unlimited_run(task) is sam.WOULD_BLOCK
    assert task.run is limits.run_limited


@pytest.mark.parametrize('is_open', [True, False])
def test_the_store_of_a_unit_is_timed_for_what_its_limits_admit(is_open):
    unit, timed = limited(is_open), []
    unit.throttle.is_timed = True
    unit.throttle.timed_run = lambda task: timed.append(task) or task.unlimited_run(task)
    task, result = start(unit, cdb_10(0x28, 0, 1))
    assert timed == ([task] if is_open else []) and (result is sam.DELAYED) is not is_open


def test_a_smaller_burst_is_used_up_sooner():
    state, limit = (HOUR, 0, 0, 0), Limit(0, 100, 0, SECOND // 10)
    for _ in range(10):
        assert limit.due(state, HOUR, 512) == HOUR
        state = limit.taken(state, HOUR, 512)
    assert limit.due(state, HOUR, 512) == HOUR + SECOND // 100
