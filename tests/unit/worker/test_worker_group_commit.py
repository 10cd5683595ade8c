"""Batches of durable writes: who is answered by which flush, and what a failed one does."""

import errno
import queue
import threading
from types import SimpleNamespace

import pytest
from daemon import eventually

from targetd.scsi.sense import CheckCondition
from targetd.worker import group_commit
from targetd.worker.group_commit import ALONE_SECONDS, SHORT_SECONDS, GroupCommit


class Unit(object):
    """Its flush reports that it began and waits for its outcome, None or an OSError."""

    blocks, block_size, unflushed = 8, 512, 0
    flush_seconds = float('inf')
    is_flushing_ahead = False

    def __init__(self):
        self.store = self
        self.began, self.outcomes = queue.Queue(), queue.Queue()

    def flush(self, offset, length):
        self.began.put(length)
        outcome = self.outcomes.get(timeout=10)
        if outcome is not None:
            raise outcome

    def write_failure(self, error, task):
        return CheckCondition(3, 0x0C, 0)


class Connection(object):
    """blocked: how often its thread has flushed."""

    is_busy = False

    def __init__(self):
        self.blocked = 0
        self.socket = self
        self.blocking = SimpleNamespace(call=self._flush)
        self.session = SimpleNamespace(tasks={})
        self.done = queue.Queue()
        self.drained = queue.Queue()

    def finish(self, task, outcome):
        self.done.put((task.itt, outcome))
        return True

    def drain_or_stop(self):
        self.drained.put(True)

    def _flush(self, function, argument):
        self.blocked += 1
        function(argument)

    def recv(self, count, flags):
        if not self.is_busy:
            raise BlockingIOError
        return b'x'


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

    def add(*itts):
        """A batch of PDUs with so many durable writes."""
        for itt in itts:
            task = SimpleNamespace(itt=itt, unit=unit, length=512, connection=connection)
            connection.session.tasks[itt] = task
            commit.add(task)
        commit.begin(connection)

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
    harness.add(2, 3)
    harness.add(4)
    harness.unit.outcomes.put(None)
    assert answers(harness, 1) == [(1, None)]
    harness.unit.began.get(timeout=10)
    harness.unit.outcomes.put(error)
    assert all(isinstance(outcome, CheckCondition) for _, outcome in answers(harness, 3))
    harness.unit.outcomes.put(None)
    harness.add(5)
    assert answers(harness, 1) == [(5, None)]


def test_a_flush_that_the_thread_itself_would_have_to_end_is_not_waited_for_there(harness):
    harness.unit.flush_seconds, harness.unit.is_flushing_ahead = 0.0, True
    harness.unit.outcomes.put(None)
    harness.add(1)
    assert answers(harness, 1) == [(1, None)] and not harness.connection.blocked


def flushed_here(harness, seconds, *itts):
    """True if the connection's thread flushes for these writes after a flush that took so long."""
    before = harness.connection.blocked
    harness.unit.flush_seconds = seconds
    harness.unit.outcomes.put(None)
    harness.add(*itts)
    answers(harness, len(itts))
    for itt in itts:
        del harness.connection.session.tasks[itt]
    eventually(lambda: not harness.commit._waiting, 10, 'the end of the flush')
    return harness.connection.blocked > before


def test_the_connection_flushes_while_flushes_are_short(harness):
    assert not flushed_here(harness, float('inf'), 1)
    assert flushed_here(harness, SHORT_SECONDS / 2, 1)
    assert flushed_here(harness, SHORT_SECONDS / 2, 1, 2)
    assert not flushed_here(harness, ALONE_SECONDS * 2, 1)


def test_longer_flushes_are_passed_on_if_the_session_has_other_commands(harness):
    assert flushed_here(harness, ALONE_SECONDS / 2, 1)
    harness.connection.session.tasks['read'] = None
    assert not flushed_here(harness, ALONE_SECONDS / 2, 1)
    assert flushed_here(harness, SHORT_SECONDS / 2, 1)


def test_longer_flushes_are_passed_on_after_something_had_to_wait_for_one(harness, monkeypatch):
    monkeypatch.setattr(group_commit, 'SHORT_SECONDS', 0)  # every flush is a longer one
    harness.connection.is_busy = True
    assert flushed_here(harness, ALONE_SECONDS / 2, 1)
    harness.connection.is_busy = False
    passed_on = [flushed_here(harness, ALONE_SECONDS / 2, 1) for _ in range(65)]
    assert passed_on == 64 * [False] + [True]


def test_two_units_are_flushed_by_two_threads(harness):
    other = Unit()
    harness.unit.flush_seconds = other.flush_seconds = 0.0
    task = SimpleNamespace(itt=1, unit=other, length=512, connection=harness.connection)
    harness.commit.add(task)
    harness.add(2)
    for unit in (harness.unit, other):
        unit.began.get(timeout=10)
    for unit in (harness.unit, other):
        unit.outcomes.put(None)
    assert sorted(answers(harness, 2)) == [(1, None), (2, None)]
    assert not harness.connection.blocked
