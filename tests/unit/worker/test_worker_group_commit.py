"""Batches of durable writes: who is answered by which flush, and what a failed one does."""

import errno
import queue
import threading
from types import SimpleNamespace

import pytest

from targetd.scsi.sense import CheckCondition
from targetd.worker.group_commit import GroupCommit


class Unit(object):
    """Its flush reports that it began and waits for its outcome, None or an OSError."""

    blocks, block_size, unflushed = 8, 512, 0

    def __init__(self):
        self.began, self.outcomes = queue.Queue(), queue.Queue()

    def flush(self, offset, length):
        self.began.put(length)
        outcome = self.outcomes.get(timeout=10)
        if outcome is not None:
            raise outcome

    def write_failure(self, error, task):
        return CheckCondition(3, 0x0C, 0)


class Connection(object):
    def __init__(self):
        self.done = queue.Queue()
        self.drained = queue.Queue()

    def finish(self, task, outcome):
        self.done.put((task.itt, outcome))
        return True

    def drain_or_stop(self):
        self.drained.put(True)


class Worker(object):
    """Runs each submitted work in a new thread."""

    def __init__(self):
        self.executor = self
        self.allegiance = threading.RLock()
        self.watch = SimpleNamespace(is_running=True)

    def submit(self, work, argument, share=None):
        threading.Thread(target=work, args=(argument,), daemon=True).start()


@pytest.fixture
def harness():
    connection, unit = Connection(), Unit()
    commit = GroupCommit(Worker())

    def add(itt, length=512):
        commit.add(SimpleNamespace(itt=itt, unit=unit, length=length, connection=connection))

    return SimpleNamespace(unit=unit, connection=connection, add=add, commit=commit)


def answers(harness, count):
    return [harness.connection.done.get(timeout=10) for _ in range(count)]


def test_a_write_is_answered_only_by_a_flush_that_began_after_it(harness):
    harness.add(1)
    harness.unit.began.get(timeout=10)
    harness.add(2)
    harness.add(3)
    assert harness.unit.unflushed == 1024
    harness.unit.outcomes.put(None)
    assert answers(harness, 1) == [(1, None)]
    harness.unit.began.get(timeout=10)
    assert harness.connection.done.empty() and harness.unit.unflushed == 0
    harness.unit.outcomes.put(None)
    assert answers(harness, 2) == [(2, None), (3, None)]
    assert [harness.connection.drained.get(timeout=10) for _ in range(2)] == [True, True]
    assert harness.connection.drained.empty()  # one send for each batch


@pytest.mark.parametrize('error', [OSError(errno.EIO, 'lost'), ValueError('a defect')])
def test_a_failed_flush_fails_every_write_of_its_batch(harness, error):
    harness.add(1)
    harness.unit.began.get(timeout=10)
    for itt in (2, 3, 4):
        harness.add(itt)
    harness.unit.outcomes.put(None)
    assert answers(harness, 1) == [(1, None)]
    harness.unit.began.get(timeout=10)
    harness.unit.outcomes.put(error)
    assert all(isinstance(outcome, CheckCondition) for _, outcome in answers(harness, 3))
    harness.add(5)  # the thread of the unit goes on
    harness.unit.outcomes.put(None)
    assert answers(harness, 1) == [(5, None)]
