"""Spinning disks down and up: the commands, their sense data, and what keeps a disk from sleeping (fake
machines)."""

import os

import pytest
from fake_host import FakeHost

from targetd import sg_io
from targetd.host import spin
from targetd.host.in_use import Mount

STOP, START, READY = bytes((0x1B, 0, 0, 0, 0, 0)), bytes((0x1B, 0, 0, 0, 1, 0)), bytes(6)
GOOD = (0, b'')
NOT_READY = (2, bytes((0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0)))
STOPPED = (2, bytes((0x72, 2, 4, 2, 0, 0, 0, 0)))
ATTENTION = (2, bytes((0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0)))
ILLEGAL = (2, bytes((0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0)))
BUSY = (8, b'')


class Disk(object):
    """Answers commands with what the test has prepared."""

    def __init__(self, *answers):
        self.answers, self.commands = list(answers), []
        self.now = 0.0

    def send(self, descriptor, cdb):
        self.commands.append(cdb)
        return self.answers.pop(0) if self.answers else GOOD

    def pause(self, seconds):
        self.now += seconds

    def start(self):
        spin.start(0, self.send, lambda: self.now, self.pause)


def test_a_stop_is_one_command():
    disk = Disk()
    spin.stop(0, disk.send)
    assert disk.commands == [STOP]


def test_a_start_waits_until_the_disk_is_ready():
    disk = Disk(GOOD, NOT_READY, STOPPED, ATTENTION)
    disk.start()
    assert disk.commands == [START] + [READY] * 4 and disk.now == 2 * spin.LOOK_SECONDS


def test_a_disk_that_does_not_become_ready():
    disk = Disk(GOOD, *[NOT_READY] * 1000)
    with pytest.raises(spin.Refused) as refused:
        disk.start()
    assert 'not ready 45 seconds' in str(refused.value)


def test_a_unit_attention_repeats_the_command_and_only_so_often():
    disk = Disk(ATTENTION, ATTENTION)
    spin.stop(0, disk.send)
    assert disk.commands == [STOP] * 3
    disk = Disk(*[ATTENTION] * 100)
    with pytest.raises(spin.Refused):
        spin.stop(0, disk.send)
    assert len(disk.commands) == spin.ATTENTIONS


@pytest.mark.parametrize(
    'answer, text', [(ILLEGAL, 'sense 5/20/00'), (BUSY, 'status 08'), (STOPPED, 'sense 2/04/02')]
)
def test_a_command_that_is_refused(answer, text):
    with pytest.raises(spin.Refused) as refused:
        spin.stop(0, Disk(answer).send)
    assert text in str(refused.value)


@pytest.mark.parametrize('sense', [b'', b'\x70', bytes(3), b'\x72\x02'])
def test_short_sense_data(sense):
    assert sg_io.parse_sense(sense)[1:] == (0, 0)


def test_a_file_takes_no_scsi_commands(tmp_path):
    (tmp_path / 'f').write_bytes(b'x')
    with open(str(tmp_path / 'f'), 'rb') as file:
        assert not sg_io.has_scsi_commands(file.fileno())
        with pytest.raises(OSError):
            spin.stop(file.fileno())


# -- /sys ------------------------------------------------------------------------------------------

STAT = ' 10 1 80 5  20 2 160 6  0 7 11  0 0 0 0  3 4\n'
SCSI = 'scsi_disk/0:0:0:0/allow_restart'


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def disk(host, name='sda', stat=STAT, restart='0\n', vendor='SEAGATE\n'):
    """A disk with a device folder of its own."""
    place = 'devices/pci0000:00/host0/target0:0:0/0:0:0:%s/block' % name
    found = host.disk(name, place)
    directory = os.path.realpath(host.block(name))
    host.write(os.path.join(directory, 'stat'), stat)
    device = os.path.join(directory, 'device')
    if os.path.islink(device):
        device = os.path.realpath(device)
    host.write(os.path.join(device, 'vendor'), vendor)
    if restart is not None:
        host.write(os.path.join(device, SCSI), restart)
    return found


class Tables(object):
    def __init__(self, mounts=(), swaps=()):
        self.mounts, self.swaps = list(mounts), list(swaps)


def why_not(host, path, others=(), tables=None):
    return spin.why_not(path, list(others), host, tables or Tables())


def test_the_counters_of_a_disk(host):
    disk(host)
    found = spin.accesses('sda', host)
    assert found.in_flight == 0 and found.completed == (10, 80, 20, 160, 0, 0, 3)
    assert spin.accesses('sdb', host) is None
    disk(host, 'sdc', ' 1 1 1 1  1 1 1 1  2 1 1\n')  # an old kernel
    assert spin.accesses('sdc', host) == ((1, 1, 1, 1), 2)
    disk(host, 'sdd', 'nonsense\n')
    assert spin.accesses('sdd', host) is None


def test_a_disk_that_may_sleep(host):
    path = disk(host)
    assert why_not(host, path) == ('sda', '')
    assert why_not(host, host.partition('sda', 1)) == ('sda', '')


def test_the_kernel_is_told_to_restart_it(host, tmp_path):
    disk(host)
    spin.let_kernel_restart('sda', host)
    path = spin._restart_file('sda', host)
    with open(path) as f:
        assert f.read() == '1\n'
    spin.let_kernel_restart('sda', host)


def test_a_kernel_that_cannot_be_told(host, monkeypatch):
    for name, vendor in (('sda', 'SEAGATE\n'), ('sdb', 'ATA     \n')):
        disk(host, name, vendor=vendor)
    missing = os.path.join(host.top, 'no', 'folder')
    monkeypatch.setattr(spin, '_restart_file', lambda name, roots: missing)
    with pytest.raises(spin.Refused) as refused:
        spin.let_kernel_restart('sda', host)
    assert 'allow_restart' in str(refused.value) and 'udev' in str(refused.value)
    spin.let_kernel_restart('sdb', host)  # SATA


def test_what_is_no_disk(host):
    assert 'not a block device' in why_not(host, host.write('image', 'x'))[1]
    nvme = disk(host, 'nvme0n1', restart=None)
    assert 'no disk that takes SCSI commands' in why_not(host, nvme)[1]
    volume = host.disk('dm-0', 'devices/virtual/block')
    assert 'LVM' in why_not(host, volume)[1]


def test_a_disk_whose_accesses_are_not_counted(host):
    path = disk(host)
    host.write(os.path.join(os.path.realpath(host.block('sda')), 'queue/iostats'), '0\n')
    assert 'iostats' in why_not(host, path)[1]


def test_a_disk_with_another_lun(host):
    path, other = disk(host), disk(host, 'sdb')
    partition = host.partition('sda', 2)
    assert why_not(host, path, [('unit b/0', other)])[1] == ''
    name, why = why_not(host, path, [('unit b/0', other), ('unit c/1', partition)])
    assert name is None and 'unit c/1' in why
    assert why_not(host, path, [('unit d/0', '/absent')])[1] == ''


def test_a_disk_that_this_host_uses_otherwise(host):
    disk(host)
    mine, other = host.partition('sda', 1), host.partition('sda', 2)
    number = host.device_number(other)
    mounted = Tables([Mount(number, other, '/srv', 'ext4', 'self')])
    assert 'mounted on /srv' in why_not(host, mine, tables=mounted)[1]
    assert why_not(host, other, tables=mounted)[1] == ''  # it would be refused as in use
    assert 'swap' in why_not(host, mine, tables=Tables(swaps=[other]))[1]
    holders = os.path.join(os.path.realpath(host.block('sda2')), 'holders', 'dm-0')
    host.write(holders, '')
    assert 'is in dm-0' in why_not(host, mine)[1]
