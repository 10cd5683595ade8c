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


@pytest.mark.parametrize('text, rotational', [('0', False), ('1', True), ('', None)])
def test_rotational(sysfs, text, rotational):
    assert sysfs({'queue/rotational': text}).rotational() is rotational


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
    assert (queue.number('discard_granularity'), queue.discard_alignment(), queue.rotational()) == (
        4096,
        3584,
        False,
    )


def test_a_device_without_attributes_in_sysfs(tmp_path):
    queue = linux.DeviceQueue(os.makedev(8, 0), str(tmp_path))
    assert (queue.number('discard_max_bytes'), queue.discard_alignment(), queue.rotational()) == (
        0,
        0,
        None,
    )
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
