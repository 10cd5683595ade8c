"""Which commands are measured, and what the report of the counters has of them."""

import time
from types import SimpleNamespace

import pytest

from targetd.scsi import limits, sam
from targetd.scsi.counters import Counters, bucket_of
from targetd.worker.latency import Latency, counted_rows, oldest_by_unit


class Unit(object):
    block_size = 512

    def __init__(self, is_timed=False):
        self.counters = Counters()
        self.counters.reads[0] = 1
        self.throttle = SimpleNamespace(is_timed=True) if is_timed else None


def task_of(unit, opcode=0x28, ago=0.0, started=None, run=limits.run_limited):
    task = sam.Task()
    now = time.monotonic()
    task.unit, task.cdb, task.expects_read, task.run = unit, bytes([opcode]), True, run
    task.arrived = now - ago
    task.started = None if started is None else now - started
    return task


def seconds_of(unit):
    """The one latency that was noted, within a quarter; None if there is none."""
    (histogram,) = [h for h in unit.counters.latencies if h] or [{}]
    (bucket,) = histogram or [None]
    return bucket


def test_a_sample_of_a_unit_without_a_target_is_noted():
    unit = Unit()
    Latency().note(unit, True, 0.5)
    assert seconds_of(unit) == bucket_of(500000)
    Latency().note(object(), True, 0.5)  # the LUN does not exist


def test_samples_of_a_timed_unit_are_those_of_its_store_only():
    unit = Unit(is_timed=True)
    Latency().note(unit, True, 5.0)  # until the reply was sent
    Latency().note_finished(task_of(unit, 0x12, ago=5, run=None))
    assert seconds_of(unit) is None
    Latency().note_store(task_of(unit), 0.02)
    assert seconds_of(unit) == bucket_of(20000)


@pytest.mark.parametrize('is_timed, seconds', [(True, 1), (False, 4)])
def test_a_command_that_a_thread_has_run_is_measured_from_there_on(is_timed, seconds):
    """A limit, the budget for reads and a thread that was busy have delayed it for three seconds."""
    unit = Unit(is_timed)
    Latency().note_finished(task_of(unit, ago=4, started=1))
    low, high = bucket_of(int(seconds * 0.9e6)), bucket_of(int(seconds * 1.5e6))
    assert low <= seconds_of(unit) <= high


@pytest.mark.parametrize('opcode', [0x42, 0x41, 0x93])
def test_unmap_and_write_same_do_not_count(opcode):
    unit = Unit(is_timed=True)
    Latency().note_finished(task_of(unit, opcode, ago=4))
    assert seconds_of(unit) is None
    assert oldest_by_unit([task_of(unit, opcode, started=9)], time.monotonic()) == {}


def test_the_age_of_the_oldest_command_of_a_timed_unit_is_reported():
    timed, plain = Unit(is_timed=True), Unit()
    running = [task_of(timed, started=2), task_of(timed, started=3), task_of(plain, started=9)]
    oldest = oldest_by_unit(running, time.monotonic())
    assert set(oldest) == {timed} and 3e6 <= oldest[timed] < 4e6
    rows = {row[0]: row for row in counted_rows({'a/0': timed, 'a/1': plain}, {}, oldest)}
    assert rows['a/0'][8] == oldest[timed] and rows['a/1'][8] == 0
    assert rows['a/0'][1] == 1
