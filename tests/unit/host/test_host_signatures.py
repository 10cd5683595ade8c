"""Tests that formats on a disk are recognised, and which of them a host would use automatically."""

import os
import struct
import subprocess
from shutil import which

import pytest
from fake_host import FakeHost

from targetd.host import signatures

SIZE = 8 << 20


@pytest.fixture
def image(tmp_path):
    """image(offset, bytes, …) writes bytes to an empty disk and returns its signatures."""
    path = str(tmp_path / 'disk')

    def write(*pairs, **more):
        size = more.get('size', SIZE)
        with open(path, 'wb') as f:
            f.truncate(size)
            for offset, data in zip(pairs[::2], pairs[1::2]):
                f.seek(offset if offset >= 0 else size + offset)
                f.write(data)
        with open(path, 'rb') as f:
            return signatures.find_signatures(f.fileno(), size, more.get('sector', 512))

    return write


def whats(found):
    return [signature.what for signature in found]


def ext(compatible=0, incompatible=0, read_only_compatible=0, label=b'data'):
    block = bytearray(1024)
    block[56:58] = b'\x53\xef'
    struct.pack_into('<III', block, 92, compatible, incompatible, read_only_compatible)
    block[120 : 120 + len(label)] = label
    return bytes(block)


def test_an_empty_disk_has_no_signatures(image):
    assert image() == [] and image(size=512) == [] and image(size=0) == []


@pytest.mark.parametrize(
    'features, what',
    [
        ((0, 0x2, 0x1), 'ext2'),
        ((0x4, 0x2, 0x3), 'ext3'),
        ((0x4, 0x42, 0x1), 'ext4'),
        ((0x4, 0x2, 0x8), 'ext4'),
        ((0, 0x8, 0), 'external journal of ext3 or ext4'),
    ],
)
def test_ext2_ext3_and_ext4_are_distinguished(image, features, what):
    (found,) = image(1024, ext(*features))
    assert (found.what, found.owner, found.details) == (what, 'host', 'data')


@pytest.mark.parametrize('what, owner, offset, mark', signatures.MARKS)
def test_every_magic_number_is_found(image, what, owner, offset, mark):
    (found,) = image(offset, mark)
    assert (found.what, found.owner, found.offset) == (what, owner, offset)


@pytest.mark.parametrize('what, owner, offset, mark', signatures.MARKS)
def test_a_shifted_or_truncated_magic_number_is_not_found(image, what, owner, offset, mark):
    assert image(offset + 1, mark) == []
    assert image(offset, mark[:-1], size=offset + len(mark) - 1) == []


@pytest.mark.parametrize('sector', range(4))
def test_an_lvm_label_is_found_in_each_of_the_first_four_sectors(image, sector):
    (found,) = image(sector * 512, b'LABELONE' + bytes(16) + b'LVM2 001' + b'abc')
    assert found.what == 'LVM physical volume' and found.details == 'abc'


@pytest.mark.parametrize(
    'offset, version', [(4096, '1.2'), (0, '1.1'), (SIZE - 8192, '1.0'), (SIZE - 65536, '0.90')]
)
def test_a_raid_member_of_each_superblock_version_is_found(image, offset, version):
    block = (
        b'\xfc\x4e\x2b\xa9'
        + struct.pack('<I', 0 if version == '0.90' else 1)
        + bytes(24)
        + b'nas:0'
        + bytes(60)
    )
    (found,) = image(offset, block)
    assert found.what == 'member of a Linux RAID (%s)' % version
    assert found.details == ('' if version == '0.90' else 'nas:0')


@pytest.mark.parametrize('label', [0, 256 << 10, SIZE - (512 << 10), SIZE - (256 << 10)])
@pytest.mark.parametrize('order', ['<', '>'])
def test_zfs_is_found_by_each_of_its_labels(image, label, order):
    (found,) = image(label + (128 << 10) + 5 * 1024, struct.pack(order + 'Q', 0x00BAB10C))
    assert found.what == 'ZFS' and found.owner == 'host'


@pytest.mark.parametrize('page', [4096, 8192, 16384, 65536])
def test_swap_space_of_each_page_size_is_found(image, page):
    assert whats(image(page - 10, b'SWAPSPACE2')) == ['swap space']
    assert whats(image(page - 10, b'S1SUSPEND\0')) == ['image of a suspended host']


def fat(offset, mark, label=b'NO NAME    '):
    block = bytearray(512)
    block[offset - 11 : offset + 8] = label + mark
    block[510:512] = b'\x55\xaa'
    return bytes(block)


def test_fat_is_found_with_its_label(image):
    assert whats(image(0, fat(54, b'FAT16   '))) == ['FAT16']
    (found,) = image(0, fat(82, b'FAT32   ', b'STICK      '))
    assert (found.what, found.details, found.owner) == ('FAT32', 'STICK', 'either')


def mbr(*rows):
    block = bytearray(512)
    for i, (kind, first, sectors) in enumerate(rows):
        struct.pack_into('<B3xB3xII', block, 446 + 16 * i, 0, kind, first, sectors)
    block[510:512] = b'\x55\xaa'
    return bytes(block)


def test_a_signature_in_a_partition_has_the_partition_number(image):
    found = image(
        0,
        mbr((0x83, 2048, 4096), (0x07, 8192, 4096)),
        2048 * 512 + 1024,
        ext(label=b'root'),
        8192 * 512 + 3,
        b'NTFS    ',
    )
    lines = [signatures.one_line(s) for s in found]
    assert lines == ['MBR partition table', 'ext2 "root" in partition 1', 'NTFS in partition 2']
    assert found[1].offset == 2048 * 512 + 1024 + 56


def test_partition_tables_of_disks_with_4096_byte_sectors(image):
    found = image(0, mbr((0x83, 256, 512)), 256 * 4096 + 1024, ext(), sector=4096)
    assert whats(found) == ['MBR partition table', 'ext2']


def gpt(sector, *partitions):
    header = bytearray(sector)
    header[:8] = b'EFI PART'
    header[56:72] = bytes(range(16))
    struct.pack_into('<QII', header, 72, 2, 128, 128)
    rows = bytearray(128 * 128)
    for i, (begin, end) in enumerate(partitions):
        rows[128 * i : 128 * i + 16] = b'\xa2' * 16
        struct.pack_into('<QQ', rows, 128 * i + 32, begin, end)
    return bytes(header) + bytes(rows)


@pytest.mark.parametrize('sector', [512, 4096])
def test_a_gpt_of_both_sector_sizes_is_read(image, sector):
    table = gpt(sector, (64, 127), (256, 511))
    found = image(
        0, mbr((0xEE, 1, 0xFFFFFFFF)), sector, table, 256 * sector, b'XFSB', sector=sector
    )
    assert [(s.what, s.partition) for s in found] == [('GPT partition table', 0), ('XFS', 2)]
    assert found[0].details == '03020100-0504-0706-0809-0a0b0c0d0e0f'


def test_the_backup_gpt_is_found_when_the_primary_is_wiped(image):
    assert whats(image(-512, gpt(512)[:512])) == [
        'backup of a GPT partition table (the primary table is missing)'
    ]


@pytest.mark.parametrize(
    'rows', [((0x83, 0, 100),), ((0x83, 1 << 31, 100),), ((0x83, 2048, 0xFFFFFFFF),)]
)
def test_partitions_outside_the_disk_are_skipped(image, rows):
    assert whats(image(0, mbr(*rows))) == ['MBR partition table']


def test_a_malicious_gpt_is_skipped(image):
    for first, count, length in (
        (1 << 63, 128, 128),
        (2, 0xFFFFFFFF, 128),
        (2, 128, 0),
        (2, 128, 0xFFFFFFFF),
    ):
        header = bytearray(gpt(512)[:512])
        struct.pack_into('<QII', header, 72, first, count, length)
        assert whats(image(512, bytes(header))) == ['GPT partition table']


def test_a_boot_sector_is_not_taken_for_a_partition_table(image):
    assert image(510, b'\x55\xaa') == []
    assert image(446, b'\x12', 450, b'\x83', 510, b'\x55\xaa') == []


def test_an_unreadable_disk_has_no_signatures(tmp_path):
    descriptor = os.open(str(tmp_path), os.O_RDONLY)
    try:
        assert signatures.find_signatures(descriptor, SIZE) == []
    finally:
        os.close(descriptor)


def test_only_swap_is_auto_assembled_among_these_signatures(image):
    assert (
        signatures.auto_assembled(image(3, b'NTFS    ')) == []
        and signatures.auto_assembled(image(1024, ext())) == []
    )
    (found,) = signatures.auto_assembled(image(1024, ext(), 4086, b'SWAPSPACE2'))
    assert signatures.one_line(found) == 'swap space'


def test_line_breaks_in_a_label_are_replaced(image):
    (found,) = image(1024, ext(label=b'a\nb'))
    assert signatures.one_line(found) == 'ext2 "a?b"'


def test_auto_assembled_formats_are_read_from_the_udev_database(tmp_path):
    host = FakeHost(tmp_path)
    host.disk('sdb')
    host.partition('sdb', 1)
    host.write('run/udev/data/b' + host.number('sdb1'), 'E:ID_FS_TYPE=LVM2_member\n')
    assert signatures.auto_assembled_by_udev('sdb', host) == [host.node('sdb1') + ': LVM2_member']
    host.write('run/udev/data/b' + host.number('sdb1'), 'E:ID_FS_TYPE=ntfs\n')
    assert signatures.auto_assembled_by_udev('sdb', host) == []


@pytest.mark.parametrize(
    'program, what',
    [
        (['mkfs.ext4', '-q', '-F'], 'ext4'),
        (['mkfs.ext2', '-q', '-F'], 'ext2'),
        (['mkswap'], 'swap space'),
        (['mkntfs', '-q', '-F'], 'NTFS'),
        (['mkfs.xfs', '-q'], 'XFS'),
        (['mkfs.vfat', '-F', '16'], 'FAT16'),
        (['mkfs.btrfs', '-q'], 'btrfs'),
    ],
)
def test_images_made_by_real_programs_are_recognised(tmp_path, program, what):
    if which(program[0]) is None:
        pytest.skip('%s is not installed' % program[0])
    path = str(tmp_path / 'disk')
    with open(path, 'wb') as f:
        f.truncate(512 << 20)
    subprocess.check_call(program + [path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(path, 'rb') as f:
        assert whats(signatures.find_signatures(f.fileno(), 512 << 20)) == [what]
