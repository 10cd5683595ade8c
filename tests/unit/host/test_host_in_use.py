"""A disk that this host uses is not handed out, whoever uses it and however many devices lie
between."""

import os

import pytest
from fake_host import FakeHost

from targetd.errors import StoreError
from targetd.host import in_use


@pytest.fixture
def host(tmp_path):
    fake = FakeHost(tmp_path)
    fake.disk('sda')
    fake.partition('sda', 1)
    fake.partition('sda', 2)
    fake.disk('sdb', 'devices/pci0000:00/ata2/host1/block')
    return fake


def users(host, name, **more):
    """The sentences about a device, with the fake's directory taken out so that they read as on a
    real host."""
    return [
        sentence.replace(host.top, '') for sentence in in_use.users(host.node(name), host, **more)
    ]


def test_a_free_disk_is_free(host):
    assert users(host, 'sdb') == []
    in_use.require_free(host.node('sdb'), host)


def test_a_mounted_partition_names_the_place(host):
    host.mount('sda1', '/dev/sda1', '/data')
    assert users(host, 'sda') == [
        '/dev/sda1 is mounted on /data (ext4); free it with: umount /data'
    ]


def test_a_neighbouring_partition_does_not_matter_to_a_partition(host):
    host.mount('sda1', '/dev/sda1', '/data')
    assert users(host, 'sda2') == []
    assert len(users(host, 'sda1')) == 1


def test_a_mount_in_another_namespace_counts_and_names_the_process(host):
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


def test_many_mounts_are_counted(host):
    for i in range(9):
        host.mount('sdb', '/dev/sdb', '/pod/%d' % i)
    found = users(host, 'sdb')
    assert len(found) == 5 and found[-1] == '/dev/sdb is mounted in 5 more places'


def test_swap(host):
    host.write(
        'proc/swaps',
        'Filename Type Size Used Priority\n%s partition 100 0 -2\n' % host.node('sda2'),
    )
    assert users(host, 'sda') == ['/dev/sda2 is swap space; free it with: swapoff /dev/sda2']


def test_a_raid_member_names_the_array(host):
    host.disk('md0', 'devices/virtual/block', md__level='raid1\n')
    host.holds('md0', 'sda1')
    assert users(host, 'sda') == [
        '/dev/sda1 is in the raid1 array /dev/md0; free it with: mdadm --stop /dev/md0'
    ]


def test_the_chain_is_followed_to_its_end(host):
    host.disk('md0', 'devices/virtual/block', md__level='raid1\n')
    host.holds('md0', 'sda1')
    host.mapped('dm-3', 'vg--data-erp', 'LVM-xyz', 'md0')
    host.mount('dm-3', '/dev/mapper/vg--data-erp', '/erp', 'xfs')
    assert users(host, 'sda') == [
        '/dev/sda1 is in the raid1 array /dev/md0, which is in the logical volume vg-data/erp, which is mounted on /erp (xfs); '
        'free it with: umount /erp'
    ]


def test_a_partition_of_an_array_is_found(host):
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
def test_an_idle_mapping_is_a_use_and_says_how_to_end_it(host, name, uuid, words, remedy):
    host.mapped('dm-0', name, uuid, 'sdb')
    assert users(host, 'sdb') == ['/dev/sdb is in %s; free it with: %s' % (words, remedy)]


@pytest.mark.parametrize(
    'holder, words',
    [('bcache0', 'the cache device'), ('drbd1', 'the replicated device'), ('odd0', 'the device')],
)
def test_other_holders(host, holder, words):
    host.disk(holder, 'devices/virtual/block')
    host.holds(holder, 'sdb')
    assert words + ' /dev/' + holder in users(host, 'sdb')[0]


def test_a_partition_of_a_disk_that_is_held_whole_is_in_use(host):
    host.mapped('dm-0', 'mpatha', 'mpath-3600', 'sda')
    assert 'is in the multipath device mpatha' in users(host, 'sda1')[0]


def test_a_ring_of_devices_ends(host):
    host.mapped('dm-0', 'a', '', 'sdb')
    host.mapped('dm-1', 'b', '', 'dm-0')
    host.holds('dm-0', 'dm-1')
    assert len(users(host, 'sdb')) == 1


def test_the_other_members_of_a_btrfs_are_in_use(host):
    """mountinfo shows one member, with a device number that belongs to none of them."""
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


def test_the_kernels_own_target(host):
    host.write('sys/kernel/config/target/core/iblock_0/erp/udev_path', host.node('sdb') + '\n')
    host.write('sys/kernel/config/target/core/iblock_0/erp/enable', '1\n')
    assert users(host, 'sdb') == [
        '/dev/sdb is exported by LIO as erp; free it with: targetcli /backstores/iblock delete erp'
    ]


# -- files -------------------------------------------------------------------------------------------------------------------


def test_an_image_on_a_loop_device(host):
    image = host.write('srv/erp.img', b'x')
    assert in_use.users(image, host) == []
    host.disk('loop3', 'devices/virtual/block', loop__backing_file=image + '\n')
    assert in_use.users(image, host) == [
        '%s is in the loop device %s; free it with: losetup -d %s'
        % (image, host.node('loop3'), host.node('loop3'))
    ]
    host.partition('loop3', 1)
    host.mount('loop3p1', '/dev/loop3p1', '/mnt')
    assert (
        'whose partition %s is mounted on /mnt' % host.node('loop3p1')
        in in_use.users(image, host)[0]
    )


def test_a_swap_file_and_an_exported_file(host):
    image = host.write('srv/swap', b'x')
    host.write('proc/swaps', 'Filename Type Size Used Priority\n%s file 100 0 -2\n' % image)
    host.write('sys/kernel/scst_tgt/devices/d1/filename', image + '\n[key]\n')
    found = in_use.users(image, host)
    assert 'is swap space' in found[0] and 'is exported by SCST as d1' in found[1]


def test_a_file_that_is_not_there_is_free(host):
    assert in_use.users(os.path.join(host.top, 'srv', 'new.img'), host) == []


# -- open by a process -------------------------------------------------------------------------------------------------------


def test_open_files_are_not_searched_while_the_kernel_calls_it_free(host, monkeypatch):
    host.process(4711, 'dd', host.node('sdb'))
    monkeypatch.setattr(in_use, 'openers', lambda *arguments: pytest.fail('searched'))
    assert users(host, 'sdb') == []


def test_who_has_a_busy_disk_open_is_named(host):
    host.process(4711, 'dd', host.node('sdb'))
    host.process(12, 'sshd', '/dev/null', 'socket:[1]')
    host.busy.add(host.node('sdb'))
    assert users(host, 'sdb') == ['/dev/sdb is open by process 4711 (dd); free it with: kill 4711']


def test_another_target_is_called_by_its_name(host):
    host.process(99, 'tgtd', host.node('sda2'))
    host.busy.add(host.node('sda'))
    assert users(host, 'sda') == [
        '/dev/sda is exported by another target: tgtd (process 99); free it with: stop that target'
    ]


def test_searching_is_done_when_asked_for(host):
    image = host.write('srv/erp.img', b'x')
    host.process(7, 'qemu', image)
    assert in_use.users(image, host) == []
    assert 'open by process 7 (qemu)' in in_use.users(image, host, search=True)[0]


def test_our_own_descriptor_is_no_foreign_use(host):
    host.process(os.getpid(), 'targetd', host.node('sdb'))
    host.process(4712, 'targetd', host.node('sdb'))
    host.write('proc/4712/stat', '4712 (target) d) S %d 1 1' % os.getpid())
    assert users(host, 'sdb', search=True) == []
    host.busy.add(host.node('sdb'))
    assert users(host, 'sdb') == [
        '/dev/sdb is exported by this targetd already; free it with: take it out of the other target'
    ]


def test_busy_and_nobody_to_be_seen(host):
    host.busy.add(host.node('sdb'))
    assert (
        'cannot be seen' in users(host, 'sdb')[0] and 'fuser -v /dev/sdb' in users(host, 'sdb')[0]
    )


def test_the_search_ends_in_time(host, monkeypatch):
    for pid in range(50):
        host.process(1000 + pid, 'dd', host.node('sdb'))
    clock = iter(range(10000))
    monkeypatch.setattr(in_use.time, 'monotonic', lambda: next(clock))
    assert len(in_use.openers(host.node('sdb'), host, seconds=10)) == 11


def test_the_refusal_says_everything_and_the_way_round(host):
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


def test_the_real_host_answers():
    """The root file system's device, if it is one that can be named, is in use on the machine that
    runs this test."""
    root = [
        m
        for m in in_use.mounts()
        if m.point == '/' and m.pid == 'self' and m.source.startswith('/dev/')
    ]
    if not root or in_use.kernel_name(root[0].source) is None:
        pytest.skip('the root file system is on no block device that can be seen here')
    assert any('is mounted on' in sentence for sentence in in_use.users(root[0].source))
