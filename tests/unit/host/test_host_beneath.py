"""Which physical disks are beneath a device or a file: fake machines."""

import os

import pytest
from fake_host import FakeHost

from targetd.errors import StoreError
from targetd.host import beneath


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def stack(host, name, *below):
    """Makes a virtual device on others, which /sys lists as its slaves."""
    host.disk(name, 'devices/virtual/block')
    for each in below:
        host.link(
            os.path.join(os.path.realpath(host.block(name)), 'slaves', each),
            os.path.realpath(host.block(each)),
        )
    return host.node(name)


def test_a_disk_and_its_partition(host):
    host.disk('sda')
    assert beneath.disks_beneath(host.node('sda'), host) == ['sda']
    assert beneath.disks_beneath(host.partition('sda', 1), host) == ['sda']


def test_through_volumes_on_an_array_of_partitions(host):
    host.disk('sda')
    host.disk('sdb')
    host.partition('sda', 1)
    host.partition('sdb', 1)
    stack(host, 'md0', 'sda1', 'sdb1')
    assert beneath.disks_beneath(stack(host, 'dm-0', 'md0'), host) == ['sda', 'sdb']
    host.partition('md0', 1)
    assert beneath.disks_beneath(host.node('md0p1'), host) == ['sda', 'sdb']


def test_a_ring_of_devices_ends(host):
    node = stack(host, 'dm-0')
    stack(host, 'dm-1', 'dm-0')
    host.link(
        os.path.join(os.path.realpath(host.block('dm-0')), 'slaves', 'dm-1'),
        os.path.realpath(host.block('dm-1')),
    )
    assert beneath.disks_beneath(node, host) == []


def test_a_virtual_device_without_disks_has_none(host):
    assert beneath.disks_beneath(host.disk('ram0', 'devices/virtual/block'), host) == []


def file_on(host, tmp_path, number):
    """A file whose file system has this device number."""
    path = tmp_path / 'image'
    path.write_bytes(b'x')
    device = os.stat(str(path)).st_dev
    link = 'sys/dev/block/%d:%d' % (os.major(device), os.minor(device))
    if number:
        host.link(link, os.path.realpath(host.block(number)))
    return str(path)


def test_a_file_is_on_the_disk_of_its_file_system(host, tmp_path):
    host.disk('nvme0n1')
    host.partition('nvme0n1', 2)
    assert beneath.disks_beneath(file_on(host, tmp_path, 'nvme0n1p2'), host) == ['nvme0n1']


def test_a_loop_device_leads_to_the_disk_of_its_file(host, tmp_path):
    host.disk('sda')
    path = file_on(host, tmp_path, 'sda')
    host.disk('loop0', 'devices/virtual/block', loop__backing_file=path + '\n')
    assert beneath.disks_beneath(host.node('loop0'), host) == ['sda']


def test_all_members_of_a_btrfs(host, tmp_path):
    host.disk('sda')
    host.disk('sdb')
    path = file_on(host, tmp_path, None)
    host.mount('0:33', host.node('sda'), os.path.dirname(os.path.realpath(path)), 'btrfs')
    for name in ('sda', 'sdb'):
        host.write('sys/fs/btrfs/1234/devices/%s' % name, '')
    assert beneath.disks_beneath(path, host) == ['sda', 'sdb']


def test_a_file_of_a_network_file_system_is_on_no_disk(host, tmp_path):
    path = file_on(host, tmp_path, None)
    host.mount('0:44', 'server:/export', os.path.dirname(os.path.realpath(path)), 'nfs4')
    assert beneath.disks_beneath(path, host) == []


def test_a_path_that_does_not_exist_is_said(host):
    with pytest.raises(StoreError):
        beneath.disks_beneath('/nonexistent/image', host)


def test_what_has_no_disk_that_can_be_told_is_named_by_its_numbers(host, tmp_path):
    path = file_on(host, tmp_path, None)
    device = os.stat(path).st_dev
    name = 'file system %d:%d' % (os.major(device), os.minor(device))
    assert (
        beneath.storage_beneath(path, host) == [name] == [beneath.unknown_storage('file', device)]
    )
    host.disk('sda')
    assert beneath.storage_beneath(host.node('sda'), host) == ['disk sda']
    assert beneath.unknown_storage('block', os.makedev(7, 3)) == 'device 7:3'
    with pytest.raises(StoreError):
        beneath.storage_beneath('/nonexistent/image', host)
