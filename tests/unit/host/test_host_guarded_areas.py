"""Which bytes are kept before a medium is written."""

import struct
import uuid

from targetd.host import guarded_areas, signatures
from targetd.host.signatures import KIB, MIB

SIZE = 512 * MIB


def reader(pieces):
    """read() of a medium that is zero but for {offset: bytes}."""

    def read(offset, length):
        data = bytearray(length)
        for start, piece in pieces.items():
            first, last = max(start, offset), min(start + len(piece), offset + length)
            if first < last:
                data[first - offset : last - offset] = piece[first - start : last - start]
        return bytes(data)

    return read


def ntfs(cluster, table, mirror):
    boot = bytearray(512)
    boot[3:11] = b'NTFS    '
    struct.pack_into('<HB', boot, 11, 512, cluster // 512)
    struct.pack_into('<QQ', boot, 48, table, mirror)
    return bytes(boot)


def gpt(*partitions):
    """{offset: bytes} of a GPT; partitions: (type, first sector, last sector)."""
    rows = b''.join(
        uuid.UUID(kind).bytes_le
        + uuid.uuid4().bytes_le
        + struct.pack('<QQ', first, last)
        + bytes(80)
        for kind, first, last in partitions
    )
    header = b'EFI PART' + bytes(48) + uuid.uuid4().bytes_le + struct.pack('<QII', 2, 4, 128)
    return {512: header.ljust(92, b'\0'), 1024: rows.ljust(512, b'\0')}


def has(areas, offset, length):
    return any(start <= offset and offset + length <= start + count for start, count in areas)


BASIC = 'ebd0a0a2-b9e5-4433-87c0-68b6b72699c7'


def test_an_empty_medium_is_kept_at_both_ends():
    areas, found = guarded_areas.find_areas(reader({}), SIZE)
    assert areas == [(0, MIB), (SIZE - MIB, MIB)] and found == []


def test_a_medium_that_is_shorter_than_its_edges_is_kept_whole():
    assert guarded_areas.find_areas(reader({}), 3 * MIB // 2)[0] == [(0, 3 * MIB // 2)]


def test_the_edges_of_each_partition_and_the_tables_of_ntfs_are_kept():
    start, end = 100 * MIB, 300 * MIB
    pieces = gpt((BASIC, start // 512, end // 512 - 1))
    pieces[start] = ntfs(4096, 10000, 2)
    areas, found = guarded_areas.find_areas(reader(pieces), SIZE)
    assert 'NTFS in partition 1' in [signatures.one_line(each) for each in found]
    for offset, length in (
        (0, MIB),
        (SIZE - MIB, MIB),
        (start, MIB),
        (end - MIB, MIB),
        (start + 10000 * 4096, MIB),
        (start + 2 * 4096, 64 * KIB),
    ):
        assert has(areas, offset, length), offset
    assert areas == sorted(areas)


def test_a_boot_sector_with_senseless_numbers_adds_nothing_outside_its_partition():
    pieces = {0: ntfs(128 * 512, 1 << 62, SIZE)}
    areas, _ = guarded_areas.find_areas(reader(pieces), SIZE)
    assert areas == [(0, MIB), (SIZE - MIB, MIB)]


def test_the_total_is_bounded_and_the_whole_disk_goes_first():
    areas, _ = guarded_areas.find_areas(
        reader(gpt((BASIC, 204800, 409599), (BASIC, 409600, 614399))), SIZE, most=4 * MIB
    )
    assert sum(length for _, length in areas) <= 4 * MIB
    assert has(areas, 0, MIB) and has(areas, SIZE - MIB, MIB)


def test_storage_spaces_and_dynamic_disks_are_named_by_the_type_of_their_partition():
    pieces = gpt(
        ('e75caf8f-f680-4cee-afa3-b001e56efc2d', 2048, 4095),
        ('5808c8aa-7e8f-42e0-85d2-e1e90434cfb3', 4096, 8191),
    )
    found = guarded_areas.find_areas(reader(pieces), SIZE)[1]
    assert [(each.what, each.partition, each.owner) for each in found[1:]] == [
        ('Storage Spaces', 1, 'client'),
        ('Windows dynamic disk', 2, 'client'),
    ]


def test_areas_that_touch_are_one():
    assert guarded_areas.merged([(10, 5), (0, 10), (30, 1), (12, 2)]) == [(0, 15), (30, 1)]
