"""Tests that a key file is replaced exactly as long as it is wanted, whatever becomes of the jobs."""

import errno
import os

import pytest
from master_fakes import StillLoop

from targetd.master.processes.jobs import JobResult
from targetd.master.state import key_files
from targetd.master.units.key_replacement import RETRY_SECONDS, KeyReplacements


class HeldJobs(object):
    """Implements what KeyReplacements uses of Jobs: a test says how each job ends."""

    def __init__(self):
        self.started = []  # (work, done)
        self.stuck = False

    def is_stuck(self, name):
        return self.stuck

    def submit_job(self, name, work, done, seconds):
        self.started.append((work, done))

    def finish(self):
        work, done = self.started.pop()
        values, descriptors = work()
        done(JobResult(values, list(descriptors), '', False))

    def fail(self, is_late):
        self.started.pop()[1](JobResult({}, [], 'no answer', is_late))


class Stage(object):
    def __init__(self, directory):
        self.loop, self.jobs = StillLoop(), HeldJobs()
        self.keys = KeyReplacements(self.jobs, self.loop)
        self.path = os.path.join(str(directory), 'disk.key')
        self.old = key_files.make_key(self.path)
        self.is_wanted, self.results = True, []

    def replace(self):
        self.keys.replace(
            self.path, lambda: self.is_wanted, lambda *result: self.results.append(result)
        )
        self.loop.settle()


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.loop.close()


def test_the_new_key_is_reported(stage):
    stage.replace()
    stage.jobs.finish()
    assert stage.results == [(key_files.load_key(stage.path), None)]
    assert stage.results[0][0] != stage.old


@pytest.mark.parametrize('is_late', [False, True])
def test_a_job_without_an_answer_is_followed_by_another_one(stage, is_late, capfd):
    stage.replace()
    stage.jobs.stuck = is_late
    stage.jobs.fail(is_late)
    assert stage.results == [] and 'is not replaced yet: no answer' in capfd.readouterr().err
    if is_late:  # the process still exists and may replace the key at any time
        stage.loop.pass_time(RETRY_SECONDS * 3)
        assert stage.jobs.started == []
        stage.jobs.stuck = False
    stage.loop.pass_time(RETRY_SECONDS)
    stage.jobs.finish()
    assert stage.results == [(key_files.load_key(stage.path), None)]


def test_a_key_is_not_replaced_by_two_jobs_at_once(stage):
    stage.replace()
    stage.replace()
    stage.loop.pass_time(RETRY_SECONDS)
    assert len(stage.jobs.started) == 1
    stage.jobs.finish()
    stage.loop.pass_time(RETRY_SECONDS)
    stage.jobs.finish()
    (first, _), (second, _) = stage.results
    assert first != second == key_files.load_key(stage.path)


def test_a_unit_that_is_not_exported_any_more_is_not_told(stage):
    stage.replace()
    stage.is_wanted = False
    stage.jobs.finish()
    stage.replace()
    assert stage.results == [] and stage.jobs.started == []


def test_failures_pass_the_process_boundary(stage, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, 'No space left on device')

    def half(path):
        raise key_files.KeyHalfReplaced(OSError(errno.EIO, 'I/O error'), 'ab' * 64, False)

    for replace, digits, kind in (
        (fail, '', OSError),
        (half, 'ab' * 64, key_files.KeyHalfReplaced),
    ):
        monkeypatch.setattr(key_files, 'replace_key', replace)
        stage.replace()
        stage.jobs.finish()
        found, error = stage.results.pop()
        assert found == digits and type(error) is kind and error.strerror
    assert error.is_lasting is False and error.errno == errno.EIO
