"""Flushes by the master, in child processes: those that are late or whose process dies, and media in doubt.
More: test_master_logical_units.py."""

import errno
import mmap
import os
import signal
import time

import pytest

from targetd import store
from targetd.master.processes.jobs import Jobs
from targetd.master.units import flushing
from targetd.store import failure_flags

MIB = 1 << 20


class Medium(object):
    """A unit on a file whose fdatasync, in any process, waits for a word: 'good', 'bad' or 'die'."""

    id = 'unit'
    has_flush_timed_out = False

    def __init__(self, path):
        self.store = store.open_store({'path': path, 'size': MIB})
        self.store.renew_flag(failure_flags.new_flag())
        self._shared = mmap.mmap(-1, 16)  # of all processes: how many flushes began, the words

    def fdatasync(self, descriptor):
        self._shared[0] += 1
        number = self._shared[0]
        end = time.monotonic() + 30
        while not self._shared[number]:
            assert time.monotonic() < end
            time.sleep(0.005)
        word = self._shared[number : number + 1]
        if word == b'd':
            os.kill(os.getpid(), signal.SIGKILL)
        if word == b'b':
            raise OSError(errno.EIO, 'Input/output error')

    def answer(self, number, word):
        """Ends this flush, counted from 1."""
        self._shared[number : number + 1] = word[:1].encode()

    def begun(self):
        return self._shared[0]

    def close(self):
        self.store.close()
        self._shared.close()


class Server(object):
    """The Flushes of one medium. failed: why the unit failed."""

    def __init__(self, loop, path):
        self.loop, self.medium = loop, Medium(path)
        self.jobs = Jobs(loop)
        self.failed, self.outcomes = [], []
        self.flushes = flushing.Flushes(self.jobs, lambda unit, why: self.failed.append(why))

    def flush(self):
        self.flushes.flush_unit(self.medium, self.outcomes.append)

    def until(self, question):
        end = time.monotonic() + 10
        while not question():
            assert time.monotonic() < end, 'the condition did not become true'
            self.loop.settle()
            time.sleep(0.005)

    def is_in_doubt(self):
        return failure_flags.is_in_doubt(self.medium.store.flag)

    def make_late(self):
        """A flush whose time is over, and which still runs."""
        self.flush()
        self.until(lambda: self.medium.begun())
        self.loop.pass_time(flushing.FLUSH_SECONDS)
        (error,) = self.outcomes
        assert error.errno == errno.ETIMEDOUT


@pytest.fixture
def server(loop, tmp_path, monkeypatch):
    made = Server(loop, str(tmp_path / 'disk.img'))
    monkeypatch.setattr('targetd.store.failure_flags.os.fdatasync', made.medium.fdatasync)
    yield made
    made.jobs.close()
    made.medium.close()


@pytest.mark.parametrize('word, is_lost', [('good', False), ('bad', True)])
def test_the_outcome_of_a_late_flush_counts(server, word, is_lost):
    server.make_late()
    assert server.is_in_doubt() and server.failed == [] and server.medium.has_flush_timed_out
    server.medium.answer(1, word)
    server.until(lambda: not server.is_in_doubt())
    assert failure_flags.is_set(server.medium.store.flag) == is_lost == bool(server.failed)
    assert not server.medium.has_flush_timed_out


def test_a_late_flush_that_is_killed_has_failed(server):
    server.make_late()
    server.medium.answer(1, 'die')
    server.medium.answer(2, 'good')  # it is repeated
    server.until(lambda: not server.is_in_doubt())
    assert server.failed == ['flush failed: Input/output error']


def test_a_flush_fails_at_once_while_an_earlier_one_is_late(server):
    server.make_late()
    server.flush()
    assert server.outcomes[1].errno == errno.ETIMEDOUT
    server.medium.answer(1, 'good')
    server.until(lambda: not server.is_in_doubt())
    server.flush()
    server.medium.answer(2, 'good')
    server.until(lambda: len(server.outcomes) == 3)
    assert server.outcomes[2] is None


def test_a_flush_whose_process_is_killed_has_failed(server):
    server.flush()
    server.medium.answer(1, 'die')
    server.medium.answer(2, 'good')
    server.until(lambda: server.outcomes)
    assert server.outcomes[0].errno == errno.EIO
    assert server.failed == ['flush failed: Input/output error']


@pytest.mark.parametrize('word, is_lost', [('good', False), ('bad', True)])
def test_no_flush_ends_while_its_medium_is_in_doubt(server, word, is_lost):
    """The flush of another process, which has a description of its own, waits for that of the master."""
    server.flushes.flush_in_doubt([server.medium])
    server.until(lambda: server.medium.begun() == 1)
    description, outcome = server.medium.store.description(), []
    synced = mmap.mmap(-1, 1)

    def work():
        os.fdatasync = lambda descriptor: synced.write(b'.')
        return flushing.flush_medium(description, descriptor)

    descriptor = os.dup(server.medium.store.descriptor)
    server.jobs.submit_job('other', work, outcome.append, [descriptor])
    server.until(lambda: synced[0])
    server.loop.settle()
    assert outcome == []
    server.medium.answer(1, word)
    server.until(lambda: outcome and not server.is_in_doubt())
    assert bool(outcome[0].why) == is_lost == bool(server.failed)
    os.close(descriptor)


def test_the_unit_has_failed_if_no_process_can_be_forked_for_a_flush_in_doubt(server):
    def fork():
        raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')

    server.jobs.fork = fork
    server.flushes.flush_in_doubt([server.medium])
    assert len(server.failed) == 1 and not server.is_in_doubt()
