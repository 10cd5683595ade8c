"""Watch and Fences: an abort waits for a medium only so long, and its unit is fenced before it is
answered."""

import threading
from types import SimpleNamespace

import pytest
from daemon import eventually

from targetd.scsi import sam
from targetd.worker import hang_watch
from targetd.worker.hang_watch import HANGING_SECONDS, QUIET_SECONDS, Watch
from targetd.worker.tasks import Tasks

NOW = 1e9  # a monotonic time after every abort of the test


class Unit(object):
    """A unit in which WRITE(10) may still write."""

    block_size = 512

    def __init__(self, name):
        self.services = SimpleNamespace(unit_id=name)

    def may_still_write(self, task):
        return task.cdb[0] == 0x2A


class Connection(object):
    ended = None

    def __init__(self):
        self.outbox = SimpleNamespace(put_pdus=lambda pdus, numbered: None)
        self.replies = []

    def reply(self, task, outcome):
        self.replies.append(task.itt)

    def drain_in_executor(self):
        pass


class Worker(object):
    """Records the questions and reports; the test answers the questions."""

    def __init__(self):
        self.asked, self.reports, self.connections = [], [], []
        self.copied = set()
        self.working = threading.Lock()
        self.replica = SimpleNamespace(
            guests=SimpleNamespace(give_up=lambda before: [], units_of_copies=lambda: self.copied)
        )
        self.executor = SimpleNamespace(submit=lambda work, argument: work(argument))
        self.session = SimpleNamespace(tasks={}, discard_data_out=lambda itt: None)
        self.watch = Watch(self)
        self.tasks = Tasks(self.session, on_return=self.watch.fences.take_down)
        self.connection = Connection()

    def ask_master(self, what, answered, **words):
        self.asked.append((what, words['unit'], answered))

    def report(self, what, **words):
        self.reports.append((what, words['unit'], words.get('commands')))

    def run(self, itt, unit, opcode, started=1.0):
        task = sam.Task()
        task.itt, task.cmd_sn, task.connection, task.unit = itt, itt, self.connection, unit
        task.cdb, task.started, task.offset = bytes((opcode,)) + bytes(15), started, 512 * itt
        self.session.tasks[itt] = task
        return task


@pytest.fixture
def worker():
    return Worker()


def test_an_abort_of_a_hanging_write_is_answered_when_its_unit_is_fenced(worker):
    unit, quiet = Unit('a'), []
    task = worker.run(1, unit, 0x2A)
    worker.tasks.abort(lambda task: True, lambda: quiet.append(True))
    worker.watch.look(0)
    assert not worker.asked  # QUIET_SECONDS are not over
    worker.watch.look(NOW)
    assert [ask[:2] for ask in worker.asked] == [('fence', 'a')] and not quiet
    assert not worker.session.tasks and worker.tasks.hung == {task}
    worker.asked[0][2]({})
    assert quiet == [True] and ('fence-over', 'a', None) not in worker.reports
    assert not worker.tasks.finished(task)
    assert worker.reports[-1] == ('fence-over', 'a', None) and not worker.tasks.hung


def test_an_abort_of_a_hanging_read_needs_no_fence(worker):
    quiet = []
    task = worker.run(1, Unit('a'), 0x28)
    worker.tasks.abort(lambda task: True, lambda: quiet.append(True))
    worker.watch.look(NOW)
    assert quiet and not worker.asked
    assert not worker.tasks.finished(task) and not worker.connection.replies


def test_a_command_that_no_thread_has_started_needs_no_fence(worker):
    quiet = []
    worker.run(1, Unit('a'), 0x2A, started=None)
    worker.tasks.abort(lambda task: True, lambda: quiet.append(True))
    worker.watch.look(NOW)
    assert quiet and not worker.asked and not worker.tasks.hung


def test_a_command_that_returns_before_the_fence_is_in_force_ends_it(worker):
    quiet = []
    task = worker.run(1, Unit('a'), 0x2A)
    worker.tasks.abort(lambda task: True, lambda: quiet.append(True))
    worker.watch.look(NOW)
    worker.tasks.finished(task)
    assert ('fence-over', 'a', None) not in worker.reports  # it is not in force yet
    worker.asked[0][2]({})
    assert quiet and worker.reports[-1] == ('fence-over', 'a', None)


def test_a_second_abort_in_a_fenced_unit_is_answered_at_once(worker):
    unit, quiet = Unit('a'), []
    for itt in (1, 2):
        worker.run(itt, unit, 0x2A)
        worker.tasks.abort(lambda task: True, lambda: quiet.append(True))
        worker.watch.look(NOW)
        if itt == 1:
            worker.asked[0][2]({})
    assert len(worker.asked) == 1 and len(quiet) == 2


def test_a_copy_fences_the_other_units_that_it_writes(worker):
    other = Unit('b')
    worker.copied = {other}
    unit = Unit('a')
    unit.may_still_write = lambda task: True
    worker.run(1, unit, 0x83)
    worker.tasks.abort(lambda task: True, lambda: None)
    worker.watch.look(NOW)
    assert sorted(ask[1] for ask in worker.asked) == ['a', 'b']


def test_the_oldest_command_of_a_unit_that_hangs_is_reported_once(worker):
    unit = Unit('a')
    task = worker.run(1, unit, 0x28, started=10.0)
    worker.run(2, unit, 0x28, started=11.0)
    worker.watch.look(10.0 + HANGING_SECONDS - QUIET_SECONDS)
    assert not worker.reports
    for _ in range(3):
        worker.watch.look(11.0 + HANGING_SECONDS)
    assert worker.reports == [('hanging', 'a', 2)]
    worker.tasks.finished(task)
    worker.tasks.finished(worker.session.tasks[2])
    worker.watch.look(12.0 + HANGING_SECONDS)
    assert worker.reports[-1] == ('hanging', 'a', 0)
    assert not worker.watch.look(13.0 + HANGING_SECONDS)  # there is nothing more to look at


def test_the_store_of_a_removed_unit_is_closed_when_its_last_command_has_returned(worker):
    """The descriptor's number could be in use again while the command continues."""
    unit, closed = Unit('a'), []
    unit.store = SimpleNamespace(close=lambda: closed.append(True))
    task = worker.run(1, unit, 0x28)
    worker.tasks.abort(lambda task: True, lambda: worker.watch.close_store(unit))
    worker.watch.look(NOW)
    assert not worker.session.tasks and not closed
    worker.tasks.finished(task)
    worker.watch.look(NOW)
    assert closed == [True]


def test_a_command_that_can_take_long_is_not_reported(worker):
    worker.run(1, Unit('a'), 0x93)
    worker.watch.look(NOW)
    assert not worker.reports


def test_an_abort_that_another_thread_delays_without_a_call_of_the_medium_waits_for_it(worker):
    """The thread that holds `working` may wait for its initiator: no unit is fenced."""
    worker.working.acquire()
    release = threading.Timer(0.1, worker.working.release)
    release.start()
    quiet = worker.watch.take_working(worker.working, [Unit('a')], 'on_quiet')
    assert quiet == 'on_quiet' and not worker.asked and worker.working.locked()
    release.join()


def test_an_abort_that_a_blocking_write_delays_is_answered_when_its_units_are_fenced(
    worker, monkeypatch
):
    unit, done = Unit('a'), []
    monkeypatch.setattr(hang_watch, 'task_of_holder', lambda: worker.run(1, unit, 0x2A))
    worker.working.acquire()
    results = []
    taker = threading.Thread(
        target=lambda: results.append(
            worker.watch.take_working(worker.working, [unit], lambda: done.append(True))
        )
    )
    taker.start()
    eventually(lambda: worker.asked)
    ((what, name, answered),) = worker.asked
    assert (what, name) == ('fence', 'a') and not done
    answered(None)
    assert done and taker.is_alive()
    worker.watch.look(NOW)
    assert ('fence-over', 'a', None) not in worker.reports
    monkeypatch.setattr(hang_watch, 'task_of_holder', lambda: None)
    worker.session.tasks.clear()
    worker.working.release()
    taker.join(10)
    results[0]()
    assert ('fence-over', 'a', None) in worker.reports
