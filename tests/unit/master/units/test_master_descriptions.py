"""The open file descriptions that workers get: each its own, or a shared one that is marked."""

import os

import descriptors
import pytest
from master_fakes import StillLoop

from targetd import compat, store
from targetd.master.processes.jobs import Jobs
from targetd.master.units import descriptions
from targetd.master.units.descriptions import Descriptions, open_spares
from targetd.store import linux

MIB = 1 << 20


def position(descriptor):
    return os.lseek(descriptor, 0, os.SEEK_CUR)


def is_same_description(one, other):
    """True if both use one open file description: they have one file position."""
    before = position(other)
    os.lseek(one, before + 512, os.SEEK_SET)
    same = position(other) == before + 512
    os.lseek(one, before, os.SEEK_SET)
    return same


@pytest.fixture
def medium(tmp_path):
    with store.open_store({'path': str(tmp_path / 'disk.img'), 'size': MIB}) as opened:
        yield opened


@pytest.fixture
def made():
    loop = StillLoop()
    return Descriptions(loop, Jobs(loop))


def test_every_worker_gets_a_description_of_its_own(made, medium):
    (one, one_shared), (two, two_shared) = made.lend(medium), made.lend(medium)
    assert not one_shared and not two_shared
    assert not is_same_description(one, two)
    assert not is_same_description(one, medium.descriptor)
    assert os.path.samestat(os.fstat(one), os.fstat(medium.descriptor))


def test_access_mode_is_kept(medium, tmp_path):
    import fcntl

    only_reading = os.open(medium.path, os.O_RDONLY)
    for descriptor, access in ((medium.descriptor, os.O_RDWR), (only_reading, os.O_RDONLY)):
        again = linux.reopen(descriptor)
        assert fcntl.fcntl(again, fcntl.F_GETFL) & os.O_ACCMODE == access
        assert fcntl.fcntl(again, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(again)
        os.close(descriptor) if descriptor is only_reading else None


def test_what_cannot_be_reopened_is_shared_and_said_once(made, medium, monkeypatch, caplog):
    def refuse(descriptor):
        raise OSError(2, 'No such file or directory')

    monkeypatch.setattr(linux, 'reopen', refuse)
    assert made.lend(medium) == made.lend(medium) == (medium.descriptor, True)
    assert sum('flush it in turn' in record.getMessage() for record in caplog.records) <= 1


def test_an_old_kernel_shares(made, medium, monkeypatch):
    monkeypatch.setattr(compat, 'HAS_ERROR_PER_DESCRIPTION', False)
    assert made.lend(medium) == (medium.descriptor, True)


def test_memory_is_shared_because_it_is_not_flushed(made):
    with store.open_store({'kind': 'ram', 'size': MIB}) as opened:
        assert made.lend(opened) == (opened.descriptor, False)


def test_a_block_device_uses_spare_descriptions_and_a_job_opens_more(made, medium, monkeypatch):
    medium._facts['kind'] = 'block'
    medium.spares += open_spares(medium.descriptor, 1)[1]
    (spare,) = medium.spares
    assert made.lend(medium) == (spare, False)
    # none is left, and the master must not wait
    assert made.lend(medium) == (medium.descriptor, True)
    made._jobs.wait()
    assert len(medium.spares) == descriptions.SPARES
    own, is_shared = made.lend(medium)
    assert not is_shared and not is_same_description(own, medium.descriptor)


def test_spares_that_arrive_after_the_store_was_closed_are_closed(made, tmp_path):
    medium = store.open_store({'path': str(tmp_path / 'other.img'), 'size': MIB})
    medium._facts['kind'] = 'block'
    assert made.lend(medium)[1]
    medium.close()
    before = descriptors.count_open()
    made._jobs.wait()
    assert medium.spares == [] and descriptors.count_open() <= before


def test_a_new_flag_drops_the_spares(medium):
    medium.spares += open_spares(medium.descriptor)[1]
    medium.renew_flag(7)
    assert medium.spares == [] and medium.description()['flag'] == 7
