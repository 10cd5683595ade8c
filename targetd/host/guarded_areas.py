"""Which bytes of a medium are kept before an initiator writes to it (the setting guard): the partition
tables and the heads of the file systems.

May import base and host. Reads a few blocks through a function and changes nothing.
"""

import struct

from targetd.host import signatures
from targetd.host.signatures import KIB, MIB

#: Bytes at the start and the end of the medium and of each partition. They hold the GPT and its backup;
#: superblocks, and the metadata of LVM, md, LUKS, BitLocker, Storage Spaces and dynamic disks.
EDGE = MIB
MFT_BYTES = MIB  # of the master file table of an NTFS
MFT_MIRROR_BYTES = 64 * KIB
MOST_BYTES = 64 * MIB


def _ntfs_tables(stretch):
    """(offset in the stretch, bytes) of the master file table of an NTFS and of its mirror."""
    boot = signatures.read_at(stretch, 0, 64)
    if len(boot) < 64 or boot[3:11] != b'NTFS    ':
        return []
    sector, per_cluster = struct.unpack_from('<HB', boot, 11)
    if per_cluster > 128:
        per_cluster = 1 << min(256 - per_cluster, 20)
    table, mirror = struct.unpack_from('<QQ', boot, 48)
    cluster = sector * per_cluster
    return [(table * cluster, MFT_BYTES), (mirror * cluster, MFT_MIRROR_BYTES)]


def _of_stretch(stretch):
    edge = min(EDGE, stretch.size)
    wanted = [(0, edge), (stretch.size - edge, edge)] + _ntfs_tables(stretch)
    for offset, length in wanted:
        length = min(length, stretch.size - offset)
        if offset >= 0 and length > 0:
            yield stretch.start + offset, length


def merged(areas):
    """[(offset, length)] in ascending order; those that touch are one."""
    result = []
    for offset, length in sorted(areas):
        if result and offset <= sum(result[-1]):
            start = result[-1][0]
            result[-1] = (start, max(sum(result[-1]), offset + length) - start)
        else:
            result.append((offset, length))
    return result


def find_areas(read, size, sector=signatures.SECTOR, most=MOST_BYTES):
    """Returns (the areas to keep as [(offset, length)] in ascending order, at most `most` bytes; the
    Signatures that were found). The medium as a whole has precedence over its partitions.

    read(offset, length) -> bytes, raises OSError; size: bytes; sector: as for find_signatures().
    """
    found, stretches = signatures.examine(read, size, sector)
    areas, total = [], 0
    for stretch in stretches:
        for area in _of_stretch(stretch):
            if total + area[1] <= most:
                areas.append(area)
                total += area[1]
    return merged(areas), found
