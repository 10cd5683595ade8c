"""targetd.host.disk_reservations: the nodes of a disk, and its reservations as several hosts see them
(fake_shared_disk.py)."""

import errno
import os

import fake_shared_disk
import pytest

from targetd import sg_io
from targetd.host.disk_reservations import (
    WRITE_EXCLUSIVE_REGISTRANTS,
    Conflict,
    DiskReservations,
    Holder,
    NotOffered,
    find_nodes,
)
from targetd.host.roots import Roots

A, B = 0x7464000000000001, 0x7464000000000002


# -- nodes -----------------------------------------------------------------------------------------


class FakeRoots(Roots):
    def device_number(self, path):
        return {'/dev/sda': '8:0', '/dev/sda1': '8:1', '/dev/sdb': '8:16', '/dev/dm-0': '254:0',
                '/dev/nvme0n1': '259:0', '/dev/dm-1': '254:1'}.get(path)  # fmt: skip


@pytest.fixture
def roots(tmp_path):
    """/sys with two paths of one disk, their multipath map, a partition, an NVMe disk and an LVM volume."""

    def make(name, number, **files):
        for at, text in dict(files, dev=number).items():
            path = tmp_path / 'class' / 'block' / name / at.replace('__', '/')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    make('sda', '8:0', device__scsi_level='7', device__scsi_generic__sg3='')
    make('sdb', '8:16', device__scsi_level='7')
    make('sda1', '8:1', partition='1')
    make('nvme0n1', '259:0', device__model='x')
    make('dm-0', '254:0', dm__uuid='mpath-3600', slaves__sda='', slaves__sdb='')
    make('dm-1', '254:1', dm__uuid='LVM-x', slaves__sda='')
    return FakeRoots(sys=str(tmp_path))


def test_commands_go_to_the_sg_node_of_each_path(roots):
    assert find_nodes('/dev/sda', roots) == ['/dev/sg3']
    assert find_nodes('/dev/sdb', roots) == ['/dev/sdb']  # the sg driver is not loaded
    assert find_nodes('/dev/dm-0', roots) == ['/dev/sg3', '/dev/sdb']


@pytest.mark.parametrize(
    'path, why',
    [
        ('/srv/disk.img', 'is not a disk'),
        ('/dev/sda1', 'is a partition'),
        ('/dev/nvme0n1', 'is not a SCSI disk'),
        ('/dev/dm-1', 'is not a SCSI disk'),
    ],
)
def test_what_has_no_reservations_of_its_own(roots, path, why):
    with pytest.raises(NotOffered) as caught:
        find_nodes(path, roots)
    assert why in str(caught.value)


# -- reservations ----------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    return fake_shared_disk.Disk(str(tmp_path / 'disk'), 4096)


@pytest.fixture
def as_host(disk, monkeypatch):
    """use(host) -> the DiskReservations of this host; the one before it is not used any more."""

    def use(host):
        monkeypatch.setattr(sg_io, 'execute', fake_shared_disk.executor(host))
        return DiskReservations([disk.path])

    return use


def test_one_host_registers_and_reserves_and_another_one_takes_it(as_host, disk):
    with as_host('first') as first:
        assert first.keeps_through_power_loss()
        assert first.keys() == [] and first.holder() is None
        first.register(A, True)
        first.reserve(A)
        first.reserve(A)  # it may be said again
        assert first.keys() == [A]
        assert first.holder() == Holder(A, WRITE_EXCLUSIVE_REGISTRANTS)
    with as_host('second') as second:
        second.register(B, True)
        with pytest.raises(Conflict):
            second.reserve(B)
        second.preempt(B, A)
        assert second.keys() == [B] and second.holder().key == B
    with as_host('first') as first:  # the unit attention that its key is gone ends no command
        with pytest.raises(Conflict):
            first.reserve(A)
    with as_host('second') as second:
        second.register(0, True)
        assert second.keys() == [] and second.holder() is None


def test_a_disk_that_does_not_have_the_commands(as_host, disk):
    disk.change(refused=[[0x5E, 2]])
    with as_host('first') as first, pytest.raises(NotOffered) as caught:
        first.keeps_through_power_loss()
    assert 'REPORT CAPABILITIES' in str(caught.value)


@pytest.mark.parametrize(
    'data, why',
    [(bytes((0, 8, 1, 0x80, 0x02, 0, 0, 0)), 'Registrants Only'), (b'\0\x08', '8 bytes')],
)
def test_capabilities_that_do_not_suffice(disk, monkeypatch, data, why):
    monkeypatch.setattr(
        sg_io, 'execute', lambda *arguments: sg_io.Outcome(0, 0, 0, b'', 0, memoryview(data))
    )
    with DiskReservations([disk.path]) as found, pytest.raises(NotOffered) as caught:
        found.keeps_through_power_loss()
    assert why in str(caught.value)


def test_more_registrations_than_fit_are_not_read_in_part(disk, monkeypatch):
    data = memoryview(b'\0\0\0\1\0\1\0\0' + bytes(64))
    monkeypatch.setattr(sg_io, 'execute', lambda *arguments: sg_io.Outcome(0, 0, 0, b'', 0, data))
    with DiskReservations([disk.path]) as found, pytest.raises(OSError):
        found.keys()


def test_a_path_that_does_not_answer_is_left_out(disk, monkeypatch):
    """The other one is used; without any, there is an error."""
    plain, seen = fake_shared_disk.executor('first'), []

    def execute(descriptor, *arguments):
        seen.append(descriptor)
        if os.fstat(descriptor).st_ino == broken.st_ino:
            return sg_io.Outcome(0, 1, 0, b'', 0, memoryview(b''))
        return plain(descriptor, *arguments)

    broken_path = disk.path + '.broken'
    open(broken_path, 'wb').close()
    broken = os.stat(broken_path)
    monkeypatch.setattr(sg_io, 'execute', execute)
    with DiskReservations([broken_path, disk.path, disk.path + '.gone']) as found:
        found.register(A, True)
        found.reserve(A)
        assert found.keys() == [A]
    with DiskReservations([broken_path]) as found, pytest.raises(OSError) as caught:
        found.register(A, True)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError):
        DiskReservations([disk.path + '.gone']).__enter__()


def test_a_busy_disk_is_asked_again(disk, monkeypatch):
    answers = [sg_io.Outcome(0x08, 0, 0, b'', 0, memoryview(b''))] * 2
    plain = fake_shared_disk.executor('first')
    monkeypatch.setattr('targetd.host.disk_reservations.BUSY_SECONDS', 0)
    monkeypatch.setattr(
        sg_io, 'execute', lambda *arguments: answers.pop() if answers else plain(*arguments)
    )
    with DiskReservations([disk.path]) as found:
        found.register(A, False)
        assert found.keys() == [A] and not answers
