"""Tests that a disk in use on this host is found, whatever uses it and however many stacked devices
are between the disk and its user."""

import os

import pytest
from fake_host import FakeHost

from targetd.errors import StoreError
from targetd.host import in_use, open_files


@pytest.fixture
def host(tmp_path):
    fake = FakeHost(tmp_path)
    fake.disk('sda')
    fake.partition('sda', 1)
    fake.partition('sda', 2)
    fake.disk('sdb', 'devices/pci0000:00/ata2/host1/block')
    return fake


def users(host, name, **more):
    """Returns the sentences about a device, with the fake's directory removed, so that they read as
    on a real host."""
    return [
        sentence.replace(host.top, '')
        for sentence in in_use.find_users(host.node(name), host, **more)
    ]


def test_an_unused_disk_is_reported_as_free(host):
    assert users(host, 'sdb') == []
    in_use.require_free(host.node('sdb'), host)


def test_a_mounted_partition_is_reported_with_its_mount_point(host):
    host.mount('sda1', '/dev/sda1', '/data')
    assert users(host, 'sda') == [
        '/dev/sda1 is mounted on /data (ext4); free it with: umount /data'
    ]


def test_a_partition_is_free_while_another_partition_is_mounted(host):
    host.mount('sda1', '/dev/sda1', '/data')
    assert users(host, 'sda2') == []
    assert len(users(host, 'sda1')) == 1


def test_a_mount_in_another_namespace_is_reported_with_a_process(host):
    host.mount('sdb', '/dev/sdb', '/var lib', process='77', namespace='mnt:[2]')
    assert users(host, 'sdb') == [
        '/dev/sdb is mounted on /var lib (ext4) for process 77 and its container; '
        "free it with: umount '/var lib'"
    ]


def test_each_namespace_is_read_once(host, monkeypatch):
    host.mount('sda1', '/dev/sda1', '/data')
    for pid in range(100, 150):
        host.mount('sda1', '/dev/sda1', '/data', process=str(pid))
    read = []
    monkeypatch.setattr(in_use, 'read_text', lambda *parts: read.append(parts[-1]))
    in_use.mounts(host)
    assert read == ['mountinfo']


def test_only_the_first_mounts_are_named_and_the_rest_are_counted(host):
    for i in range(9):
        host.mount('sdb', '/dev/sdb', '/pod/%d' % i)
    found = users(host, 'sdb')
    assert len(found) == 5 and found[-1] == '/dev/sdb has 5 more mounts'


def test_swap_space_is_reported(host):
    host.write(
        'proc/swaps',
        'Filename Type Size Used Priority\n%s partition 100 0 -2\n' % host.node('sda2'),
    )
    assert users(host, 'sda') == ['/dev/sda2 is swap space; free it with: swapoff /dev/sda2']


def test_a_raid_member_is_reported_with_its_array(host):
    host.disk('md0', 'devices/virtual/block', md__level='raid1\n')
    host.holds('md0', 'sda1')
    assert users(host, 'sda') == [
        '/dev/sda1 is in the raid1 array /dev/md0; free it with: mdadm --stop /dev/md0'
    ]


def test_the_whole_chain_of_stacked_devices_is_reported(host):
    host.disk('md0', 'devices/virtual/block', md__level='raid1\n')
    host.holds('md0', 'sda1')
    host.mapped('dm-3', 'vg--data-erp', 'LVM-xyz', 'md0')
    host.mount('dm-3', '/dev/mapper/vg--data-erp', '/erp', 'xfs')
    assert users(host, 'sda') == [
        '/dev/sda1 is in the raid1 array /dev/md0, which is in the logical volume vg-data/erp, '
        'which is mounted on /erp (xfs); free it with: umount /erp'
    ]


def test_a_mounted_partition_of_an_array_is_reported(host):
    host.disk('md0', 'devices/virtual/block', md__level='raid5\n')
    host.holds('md0', 'sda1')
    host.partition('md0', 1)
    host.mount('md0p1', '/dev/md0p1', '/x')
    assert '/dev/md0, whose partition /dev/md0p1 is mounted on /x' in users(host, 'sda1')[0]


@pytest.mark.parametrize(
    'name, uuid, words, remedy',
    [
        ('vg-lv', 'LVM-1', 'the logical volume vg/lv', 'vgchange -an vg'),
        ('secret', 'CRYPT-LUKS1-1', 'the encrypted device secret', 'cryptsetup close secret'),
        (
            'mpatha',
            'mpath-3600',
            'the multipath device mpatha',
            'export /dev/mapper/mpatha instead',
        ),
        ('mpatha1', 'part1-mpath-3600', 'the mapped partition mpatha1', 'dmsetup remove mpatha1'),
        ('odd', '', 'the mapped device odd', 'dmsetup remove odd'),
    ],
)
def test_an_unmounted_mapping_is_reported_with_the_command_that_ends_it(
    host, name, uuid, words, remedy
):
    host.mapped('dm-0', name, uuid, 'sdb')
    assert users(host, 'sdb') == ['/dev/sdb is in %s; free it with: %s' % (words, remedy)]


@pytest.mark.parametrize(
    'holder, words',
    [('bcache0', 'the cache device'), ('drbd1', 'the replicated device'), ('odd0', 'the device')],
)
def test_bcache_drbd_and_unknown_holders_are_reported(host, holder, words):
    host.disk(holder, 'devices/virtual/block')
    host.holds(holder, 'sdb')
    assert words + ' /dev/' + holder in users(host, 'sdb')[0]


def test_a_partition_is_in_use_when_its_whole_disk_is(host):
    host.mapped('dm-0', 'mpatha', 'mpath-3600', 'sda')
    assert 'is in the multipath device mpatha' in users(host, 'sda1')[0]


def test_a_cycle_of_holders_terminates(host):
    host.mapped('dm-0', 'a', '', 'sdb')
    host.mapped('dm-1', 'b', '', 'dm-0')
    host.holds('dm-0', 'dm-1')
    assert len(users(host, 'sdb')) == 1


def test_every_member_of_a_mounted_btrfs_is_in_use(host):
    """mountinfo shows one member, with a device number that no member has."""
    host.mount('0:42', host.node('sda1'), '/pool', 'btrfs')
    for name in ('sda1', 'sdb'):
        host.write('sys/fs/btrfs/5b0e/devices/' + name, '')
    host.write('sys/fs/btrfs/5b0e/label', 'pool\n')
    assert users(host, 'sdb') == [
        '/dev/sdb is a member of the btrfs mounted on /pool; free it with: umount /pool'
    ]
    assert users(host, 'sda1') == [
        '/dev/sda1 is mounted on /pool (btrfs); free it with: umount /pool'
    ]


def test_an_export_by_a_kernel_target_is_reported(host):
    host.write('sys/kernel/config/target/core/iblock_0/erp/udev_path', host.node('sdb') + '\n')
    host.write('sys/kernel/config/target/core/iblock_0/erp/enable', '1\n')
    assert users(host, 'sdb') == [
        '/dev/sdb is exported by LIO as erp; free it with: targetcli /backstores/iblock delete erp'
    ]


# -- files -----------------------------------------------------------------------------------------


def test_an_image_behind_a_loop_device_is_in_use(host):
    image = host.write('srv/erp.img', b'x')
    assert in_use.find_users(image, host) == []
    host.disk('loop3', 'devices/virtual/block', loop__backing_file=image + '\n')
    assert in_use.find_users(image, host) == [
        '%s is in the loop device %s; free it with: losetup -d %s'
        % (image, host.node('loop3'), host.node('loop3'))
    ]
    host.partition('loop3', 1)
    host.mount('loop3p1', '/dev/loop3p1', '/mnt')
    assert (
        'whose partition %s is mounted on /mnt' % host.node('loop3p1')
        in in_use.find_users(image, host)[0]
    )


def test_a_swap_file_and_an_exported_file_are_in_use(host):
    image = host.write('srv/swap', b'x')
    host.write('proc/swaps', 'Filename Type Size Used Priority\n%s file 100 0 -2\n' % image)
    host.write('sys/kernel/scst_tgt/devices/d1/filename', image + '\n[key]\n')
    found = in_use.find_users(image, host)
    assert 'is swap space' in found[0] and 'is exported by SCST as d1' in found[1]


def test_a_missing_file_is_free(host):
    assert in_use.find_users(os.path.join(host.top, 'srv', 'new.img'), host) == []


# -- open by a process -----------------------------------------------------------------------------


def test_open_files_are_not_searched_for_a_list_of_disks(host, monkeypatch):
    host.process(4711, 'dd', host.node('sdb'))
    monkeypatch.setattr(in_use, 'openers', lambda *arguments: pytest.fail('searched'))
    assert users(host, 'sdb') == []


def test_the_process_that_has_a_busy_disk_open_is_named(host):
    host.process(4711, 'dd', host.node('sdb'))
    host.process(12, 'sshd', '/dev/null', 'socket:[1]')
    host.busy.add(host.node('sdb'))
    assert users(host, 'sdb') == ['/dev/sdb is open by process 4711 (dd); free it with: kill 4711']


def test_another_target_daemon_is_named(host):
    host.process(99, 'tgtd', host.node('sda2'))
    host.busy.add(host.node('sda'))
    assert users(host, 'sda') == [
        '/dev/sda is exported by another target: tgtd (process 99); stop that target to free it'
    ]


@pytest.mark.parametrize('program', ['targetd-job', 'targetd-worker'])
def test_a_process_that_a_stopped_server_has_left_is_named_as_such(host, program):
    host.process(99, program, host.node('sda'))
    host.busy.add(host.node('sda'))
    (found,) = users(host, 'sda')
    assert program in found and 'ends when the disk answers it' in found


def test_open_files_are_searched_on_request(host):
    image = host.write('srv/erp.img', b'x')
    host.process(7, 'qemu', image)
    assert in_use.find_users(image, host) == []
    assert 'open for writing by process 7 (qemu)' in in_use.find_users(image, host, search=True)[0]


def test_a_hard_link_and_another_device_node_do_not_hide_a_user(host):
    image = host.write('srv/erp.img', b'x')
    os.link(image, image + '.link')
    alias = host.write('dev/alias', host.number('sdb'))
    host.process(7, 'qemu', image + '.link')
    host.process(8, 'dd', alias)
    assert 'process 7 (qemu)' in in_use.find_users(image, host, search=True)[0]
    assert 'process 8 (dd)' in in_use.find_users(host.node('sdb'), host, search=True)[0]


def test_a_reader_is_no_user_unless_the_device_is_busy(host):
    host.process(7, 'blkid', host.node('sdb'))
    host.write('proc/7/fdinfo/0', 'pos:\t0\nflags:\t0100000\nmnt_id:\t5\n')
    assert users(host, 'sdb', search=True) == []
    host.busy.add(host.node('sdb'))
    assert 'is open by process 7 (blkid)' in users(host, 'sdb', search=True)[0]


def test_files_of_a_network_file_system_are_not_examined(host):
    image = host.write('srv/erp.img', b'x')
    far = host.write('far/erp.img', b'x')
    host.mount('0:44', 'server:/export', os.path.dirname(far), 'nfs4')
    os.unlink(far)
    os.link(image, far)
    host.process(7, 'qemu', far)
    assert in_use.find_users(image, host, search=True) == []
    assert 'process 7' in in_use.find_users(far, host, search=True)[0]


def test_many_users_are_counted(host):
    for pid in range(10):
        host.process(1000 + pid, 'dd', host.node('sdb'))
    found = users(host, 'sdb', search=True)
    assert len(found) == 5 and found[-1] == '6 more processes have it open'


def test_a_descriptor_of_this_process_is_not_a_use(host):
    host.process(os.getpid(), 'targetd', host.node('sdb'))
    host.process(4712, 'targetd', host.node('sdb'))
    host.write('proc/4712/stat', '4712 (target) d) S %d 1 1' % os.getpid())
    assert users(host, 'sdb', search=True) == []
    host.busy.add(host.node('sdb'))
    assert users(host, 'sdb') == [
        '/dev/sdb is already exported by this targetd; remove it from the other target to free it'
    ]


def test_a_busy_device_without_a_visible_user_is_reported(host):
    host.busy.add(host.node('sdb'))
    assert 'not visible' in users(host, 'sdb')[0] and 'fuser -v /dev/sdb' in users(host, 'sdb')[0]


def test_the_search_stops_at_its_time_limit(host, monkeypatch):
    for pid in range(50):
        host.process(1000 + pid, 'dd', host.node('sdb'))
    clock = iter(range(10000))
    monkeypatch.setattr(open_files.time, 'monotonic', lambda: next(clock))
    assert len(in_use.openers(host.node('sdb'), host, seconds=10)) == 11


def test_the_refusal_names_every_use_and_the_setting_that_allows_it(host):
    host.mount('sda1', '/dev/sda1', '/data')
    host.mapped('dm-0', 'vg-lv', 'LVM-1', 'sda2')
    with pytest.raises(StoreError) as caught:
        in_use.require_free(host.node('sda'), host)
    for words in (
        'mounted on /data',
        'umount /data',
        'vg/lv',
        'vgchange -an vg',
        'allow-in-use = yes',
    ):
        assert words in str(caught.value)


def test_the_root_file_system_of_this_machine_is_in_use():
    """The device of the root file system, if it has a device node, is in use on this machine."""
    root = [
        m
        for m in in_use.mounts()
        if m.point == '/' and m.pid == 'self' and m.source.startswith('/dev/')
    ]
    if not root or in_use.kernel_name(root[0].source) is None:
        pytest.skip('the root file system is on no block device that can be seen here')
    assert any('is mounted on' in sentence for sentence in in_use.find_users(root[0].source))
