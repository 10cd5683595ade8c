"""What /sys reports about block devices of all kinds, from copies of real devices."""

import os

import pytest

from targetd.store import linux


@pytest.fixture
def sysfs(tmp_path):
    """make(name, files, partition=None) -> Queue of a device 8:0, or of its partition 8:1."""

    def make(files, partition=False):
        disk = tmp_path / 'devices' / 'sda'
        for name, text in files.items():
            path = disk / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + '\n')
        (tmp_path / 'block').mkdir()
        os.symlink(
            str(disk / 'sda1' if partition else disk),
            str(tmp_path / 'block' / ('8:%d' % partition)),
        )
        return linux.DeviceQueue(os.makedev(8, int(partition)), str(tmp_path / 'block'))

    return make


DISCARDS = {
    'queue/discard_max_bytes': '2147450880',
    'queue/write_zeroes_max_bytes': '33553920',
    'queue/rotational': '0',
}
MODE = 'device/scsi_disk/0:0:0:0/zeroing_mode'


@pytest.mark.parametrize(
    'files, certain',
    [
        (dict(DISCARDS), True),  # NVMe, virtio, loop
        (dict(DISCARDS, **{MODE: 'writesame_16_unmap'}), True),  # SAS SSD with LBPRZ
        (
            dict(DISCARDS, **{MODE: 'writesame'}),
            False,
        ),  # SAS SSD without: zeroing would write it all
        (dict(DISCARDS, **{MODE: 'write'}), False),
        # SATA SSD: TRIM promises nothing
        (dict(DISCARDS, **{'queue/write_zeroes_max_bytes': '0'}), False),
        # a spinning SAS disk
        (dict(DISCARDS, **{'queue/discard_max_bytes': '0', MODE: 'writesame'}), False),
        ({'queue/rotational': '1'}, False),  # an old kernel
    ],
)
def test_zeroes_after_unmap_is_reported_only_if_guaranteed(sysfs, files, certain):
    assert sysfs(files).zeroes_by_unmapping() is certain


@pytest.mark.parametrize(
    'rotational, page, rate',
    [
        ('0', None, 1),
        ('0', '\0\xb1\0\x3c\x1c\x20', 1),
        ('1', None, 0),  # the kernel's value for a disk of which it knows nothing
        ('1', '\0\x31\0\x3c\x1c\x20', 7200),
        ('1', '\0\x31\0\x3c\0\0', 0),
        ('1', '\0\x31\0\x3c\x04\0', 0),  # reserved
        ('1', '\0\x31', 0),
        ('', '\0\x31\0\x3c\x1c\x20', 0),
    ],
)
def test_the_rotation_rate_is_that_of_the_disk_if_linux_knows_it(sysfs, rotational, page, rate):
    files = {'queue/rotational': rotational}
    if page is not None:
        files['device/vpd_pgb1'] = page
    assert sysfs(files).rotation_rate() == rate


def test_a_partition_uses_the_queue_of_its_disk_and_a_separate_alignment(sysfs):
    queue = sysfs(
        dict(
            DISCARDS,
            **{
                'sda1/discard_alignment': '3584',
                'sda1/partition': '1',
                'queue/discard_granularity': '4096',
            },
        ),
        partition=True,
    )
    assert (
        queue.number('discard_granularity'),
        queue.discard_alignment(),
        queue.rotation_rate(),
    ) == (4096, 3584, 1)


def test_a_device_without_attributes_in_sysfs(tmp_path):
    queue = linux.DeviceQueue(os.makedev(8, 0), str(tmp_path))
    assert (
        queue.number('discard_max_bytes'),
        queue.discard_alignment(),
        queue.rotation_rate(),
    ) == (0, 0, 0)
    assert not queue.zeroes_by_unmapping()
    assert queue.zeroing_mode() == ''


def test_system_calls_raise_their_errno(tmp_path):
    with open(str(tmp_path / 'f'), 'wb') as f:
        with pytest.raises(OSError):
            linux.fallocate(f.fileno(), linux.PUNCH_HOLE, 0, 512)  # without KEEP_SIZE
        with pytest.raises(OSError):
            linux.device_size(f.fileno())
    with pytest.raises(OSError):
        linux.copy_file_range(-1, -1, 512, 0, 0)
