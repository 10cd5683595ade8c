"""Which media share a job, and what happens when a job does not answer."""

from collections import namedtuple
from types import SimpleNamespace

import pytest

from targetd.errors import StoreError
from targetd.master.exports import open_batch, rbd_export
from targetd.master.exports.open_batch import (
    FILES_PER_JOB,
    MEMORY_DISKS_PER_JOB,
    OpenBatch,
    grouped_by_directory,
)
from targetd.master.processes.jobs import JobResult

Target = namedtuple('Target', 'name')
Lun = namedtuple('Lun', 'number backing_store type')
DISK = Target('iqn.2026-11.test:disk')


def wanted(*paths):
    return [(DISK, Lun(number, path, 'auto')) for number, path in enumerate(paths)]


def paths(groups):
    return [[lun.backing_store for _, lun in group] for group in groups]


def test_files_of_one_directory_share_a_job():
    groups = grouped_by_directory(wanted('/a/1', '/b/1', '/a/2', '/a/3', '/b/2'))
    assert paths(groups) == [['/a/1', '/a/2', '/a/3'], ['/b/1', '/b/2']]


@pytest.mark.parametrize('path', ['/dev/sdb', '/dev/disk/by-id/x', 'serial:1', 'wwn:0x5000'])
def test_a_disk_has_a_job_of_its_own(path):
    assert len(grouped_by_directory(wanted(path, path, '/a/1', '/a/2'))) == 3


def test_the_files_of_a_job_are_bounded():
    groups = grouped_by_directory(wanted(*('/a/%d' % n for n in range(2 * FILES_PER_JOB + 1))))
    assert [len(group) for group in groups] == [FILES_PER_JOB, FILES_PER_JOB, 1]


class FakeJobs(object):
    """Keeps the jobs; the test answers them."""

    def __init__(self):
        self.submitted = []  # (name, done)
        self.is_idle = True

    def submit_job(self, name, work, done, kept=(), seconds=None):
        self.submitted.append((name, done, seconds))

    def is_stuck(self, name):
        return False


class FakeExports(object):
    server, process = 'server', 1

    def __init__(self, served=()):
        self.jobs = FakeJobs()
        self.units = SimpleNamespace(
            by_id={unit.id: unit for unit in served}, replication=SimpleNamespace(state=None)
        )
        self.known = {}
        self.served, self.pending, self.journals = frozenset(), {}, frozenset()
        self.made = []

    def open_stores(self):
        return []

    def make_unit(self, target, lun, words, descriptors, others):
        self.made.append((lun.number, descriptors, [each.lun.number for each in others]))
        store = SimpleNamespace(key=tuple(words['medium']))
        return SimpleNamespace(lun=lun, store=store, facts={})


@pytest.fixture
def exports(monkeypatch):
    made = FakeExports()
    monkeypatch.setattr(made, 'known', SimpleNamespace(get=lambda *key: None))
    return made


def opened(medium, descriptors):
    return {'medium': [medium], 'descriptors': descriptors}


def test_each_lun_of_a_job_gets_its_descriptors_and_the_units_of_its_medium(exports):
    outcomes = []
    OpenBatch(exports, wanted('/a/1', '/a/2', '/a/1'), outcomes.append).open_all()
    ((name, done, seconds),) = exports.jobs.submitted
    assert seconds > open_batch.jobs.SECONDS
    media = [opened('x', 1), opened('y', 2), opened('x', 1)]
    done(JobResult({'media': media}, [10, 20, 21, 30], '', False))
    assert exports.made == [(0, [10], []), (1, [20, 21], []), (2, [30], [0])]
    assert len(outcomes) == 1 and len(outcomes[0]) == 3


@pytest.mark.parametrize(
    'answer',
    [
        JobResult({}, [], 'there was no answer within 10 seconds', True),
        JobResult({}, [], 'the process that was to do it died', False),
        JobResult({'failed': 'an unexpected failure'}, [], 'an unexpected failure', False),
    ],
)
def test_a_job_without_an_answer_is_repeated_for_each_file_alone(exports, answer):
    """One file on a file system that hangs does not take its neighbours along."""
    outcomes = []
    OpenBatch(exports, wanted('/a/1', '/a/2'), outcomes.append).open_all()
    exports.jobs.submitted.pop()[1](answer)
    (first, first_done, _), (second, second_done, _) = exports.jobs.submitted
    assert (first, second) == ((DISK.name, 0), (DISK.name, 1))
    first_done(JobResult({}, [], 'there was no answer within 10 seconds', True))
    second_done(JobResult({'medium': ['y']}, [5], '', False))
    assert isinstance(outcomes[0][DISK.name, 0], StoreError)
    assert outcomes[0][DISK.name, 1].lun.number == 1


def test_memory_disks_are_opened_together():
    """A server may have thousands of them, and each job is a process."""
    groups = grouped_by_directory(wanted('/a/1', *[''] * (MEMORY_DISKS_PER_JOB + 1)))
    assert sorted(map(len, groups)) == [1, 1, MEMORY_DISKS_PER_JOB]


@pytest.mark.parametrize(
    'path, ordered, seconds',
    [
        ('rbd:disks/one', {(DISK.name, 0)}, rbd_export.JOB_SECONDS),
        ('rbd:disks/one', set(), None),
        ('/a/1', {(DISK.name, 0)}, None),
    ],
)
def test_a_takeover_of_a_ceph_image_has_time_for_all_its_steps(exports, path, ordered, seconds):
    exports.units.replication.state = SimpleNamespace(ordered=ordered)
    OpenBatch(exports, wanted(path), lambda outcomes: None).open_all()
    assert [each[2] for each in exports.jobs.submitted] == [seconds]
