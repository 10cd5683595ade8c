"""Which units have a disk in common: jobs that answer late or not at all, and what counts until then."""

import os
from types import SimpleNamespace

import pytest

from targetd.errors import StoreError
from targetd.master import common_disks
from targetd.master.common_disks import AGAIN_SECONDS, CommonDisks, find_storage


class Jobs(object):
    def __init__(self):
        self.submitted, self.stuck = [], ()

    def submit_job(self, name, work, done, seconds):
        self.submitted.append((name, work, done))

    def is_stuck(self, name):
        return name in self.stuck

    def answer(self, found):
        _, _, done = self.submitted.pop(0)
        done(SimpleNamespace(values={'found': found} if found is not None else {}, why='too late'))


def unit(name, key, backing_store='', kind='file'):
    store = SimpleNamespace(kind=kind, key=key, path='/srv/' + name)
    return SimpleNamespace(
        id=name, store=store, lun=SimpleNamespace(backing_store=backing_store or store.path)
    )


NUMBER, OTHER = os.makedev(8, 1), os.makedev(0, 44)
ONE = unit('one', ('file', NUMBER, 5))
TWO = unit('two', ('file', NUMBER, 6))
FAR = unit('far', ('file', OTHER, 6))
DISK = unit('disk', ('block', NUMBER), kind='block')
MEMORY = unit('memory', ('ram', 1), kind='ram')


@pytest.fixture
def disks():
    loop = SimpleNamespace(now=100.0)
    loop.clock = lambda: loop.now
    found = CommonDisks(loop, Jobs())
    found.loop, found.jobs = loop, found._jobs
    return found


def test_until_a_job_has_answered_the_file_system_counts(disks):
    assert disks.beneath(ONE) == disks.beneath(TWO) == {'file system 8:1'}
    assert disks.beneath(FAR) == {'file system 0:44'} and disks.beneath(DISK) == {'device 8:1'}
    assert disks.beneath(MEMORY) == frozenset()


def test_a_job_per_file_system_looks_for_the_disks(disks):
    disks.look([ONE, TWO, FAR, DISK, MEMORY])
    assert len(disks.jobs.submitted) == 3
    disks.jobs.answer({'one': ['disk sda'], 'two': ['disk sda', 'disk sdb']})
    assert disks.beneath(ONE) & disks.beneath(TWO) == {'disk sda'}
    disks.look([ONE, TWO, FAR, DISK, MEMORY])
    assert len(disks.jobs.submitted) == 2, 'they are asked again later only'
    disks.loop.now += AGAIN_SECONDS
    disks.look([ONE, TWO])
    assert len(disks.jobs.submitted) == 3


def test_a_job_that_hangs_is_not_started_twice(disks):
    disks.look([FAR])
    disks.loop.now += 2 * AGAIN_SECONDS
    disks.look([FAR])
    disks.jobs.answer(None)
    assert not disks.jobs.submitted and disks.beneath(FAR) == {'file system 0:44'}
    disks.jobs.stuck = [('disks beneath', 'file', OTHER)]
    disks.look([FAR])
    assert not disks.jobs.submitted


def test_an_answer_about_a_unit_that_is_gone_is_dropped(disks):
    disks.look([ONE])
    disks.look([TWO])
    disks.jobs.answer({'one': ['disk sda']})
    assert disks.beneath(ONE) == {'file system 8:1'}


@pytest.mark.parametrize(
    'one, other, is_common',
    [
        ('nbd://far.test/a', 'nbd://far.test/b', True),
        ('nbd://far.test/a', 'nbd://far.test:10810/a', False),
        ('nbd+unix:///a?socket=/run/x', 'nbd+unix:///b?socket=/run/x', True),
        ('nbd+unix:///a?socket=/run/x', 'nbd+unix:///a?socket=/run/y', False),
    ],
)
def test_exports_of_one_nbd_server_have_it_in_common(disks, one, other, is_common):
    units = [unit('a', ('nbd', one), one, 'nbd'), unit('b', ('nbd', other), other, 'nbd')]
    assert bool(disks.beneath(units[0]) & disks.beneath(units[1])) is is_common
    disks.look(units)
    assert not disks.jobs.submitted


def test_the_job_leaves_out_what_was_removed(monkeypatch):
    def storage(path):
        if path == '/gone':
            raise StoreError('/gone does not exist')
        return ['disk sda']

    monkeypatch.setattr(common_disks, 'storage_beneath', storage)
    assert find_storage([('a', '/gone'), ('b', '/here')]) == ({'found': {'b': ['disk sda']}}, ())
