"""Recognises the formats (file systems, partition tables, RAID members, …) that are already on a
disk. This protects data of this host, or of another user of the disk, before the disk is exported.

May import base and host. Reads a few blocks at known offsets through a descriptor and changes
nothing. Each format has an owner: 'host' for formats that Linux itself would mount or assemble
(exporting the disk writable risks two writers), 'client' for formats that Windows or another
initiator writes and that are expected on an exported disk, 'either' for all others.
"""

import os
import struct
import uuid
from collections import namedtuple

from targetd.host.roots import ROOTS, partitions, udev_properties

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
MAXIMUM_PARTITIONS = 128

#: Types of GPT partitions whose content has no mark that is documented -> what they are.
GPT_TYPES = {
    uuid.UUID('e75caf8f-f680-4cee-afa3-b001e56efc2d'): 'Storage Spaces',
    uuid.UUID('5808c8aa-7e8f-42e0-85d2-e1e90434cfb3'): 'Windows dynamic disk',
}
SECTOR_SIZES = (512, 4096)

#: A recognised format. what: 'ext4', 'NTFS', …; owner: 'host', 'client' or 'either'; offset: of its
#: magic number, in bytes; partition: number, or 0 for the whole disk; details: label or UUID, '' if
#: there is none.
Signature = namedtuple('Signature', 'what owner offset partition details')

#: A range of a disk: the whole disk or a partition. read(offset, length): the bytes of the disk, raises
#: OSError; start, size: bytes.
Stretch = namedtuple('Stretch', 'read start size partition')

# what, owner, offset in bytes, magic number: formats with a magic number at a fixed offset
# fmt: off
MARKS = (
    ('XFS', 'host', 0, b'XFSB'),
    ('btrfs', 'host', 64 * KIB + 64, b'_BHRfS_M'),
    ('JFS', 'host', 32 * KIB, b'JFS1'),
    ('ReiserFS', 'host', 64 * KIB + 52, b'ReIsEr'),
    ('F2FS', 'host', KIB, b'\x10\x20\xf5\xf2'),
    ('SquashFS', 'host', 0, b'hsqs'),
    ('LUKS', 'host', 0, b'LUKS\xba\xbe'),
    ('bcache', 'host', 4 * KIB + 24, bytes(bytearray.fromhex('c68573f64e1a45ca8265f57f48ba6d81'))),
    ('Ceph BlueStore', 'host', 0, b'bluestore block device\n'),
    ('NTFS', 'client', 3, b'NTFS    '),
    ('ReFS', 'client', 3, b'ReFS\0\0\0\0'),
    ('exFAT', 'client', 3, b'EXFAT   '),
    ('BitLocker', 'client', 3, b'-FVE-FS-'),
    ('HFS+', 'client', KIB, b'H+\0\4'),
    ('HFSX', 'client', KIB, b'HX\0\5'),
    ('APFS', 'client', 32, b'NXSB'),
    ('VMFS volume', 'client', MIB, b'\x0d\xd0\x01\xc0'),
    ('VMFS', 'client', 2 * MIB, b'\x5e\xf1\xab\x2f'),
    ('Windows dynamic disk', 'client', 6 * SECTOR, b'PRIVHEAD'),
    ('Storage Spaces', 'client', 0, b'SPACEDB '),
    ('ISO 9660', 'either', 32 * KIB + 1, b'CD001'),
)
# fmt: on


#: Prefixes of `what`, and udev's values of ID_FS_TYPE, of formats that a host assembles or uses
#: automatically as soon as it sees them.
AUTO_ASSEMBLED = (
    'LVM',
    'member of a Linux RAID',
    'ZFS',
    'bcache',
    'Ceph',
    'swap',
    'image of a suspended host',
)
UDEV_AUTO_ASSEMBLED = (
    'LVM2_member',
    'linux_raid_member',
    'zfs_member',
    'bcache',
    'ceph_bluestore',
    'swap',
    'swsuspend',
)


def read_at(stretch, offset, length):
    """Returns at most `length` bytes of a Stretch, b'' outside it or if it cannot be read. Negative
    offsets count from its end."""
    if offset < 0:
        offset += stretch.size
    length = min(length, stretch.size - offset)
    if offset < 0 or length <= 0:
        return b''
    try:
        return bytes(stretch.read(stretch.start + offset, length))
    except OSError:
        return b''


def _uuid(data):
    return str(uuid.UUID(bytes=bytes(data))) if len(data) == 16 and any(data) else ''


def _label(data):
    return data.split(b'\0')[0].decode('utf-8', 'replace').strip()


# -- one finder for each format --------------------------------------------------------------------


def _find_marks(stretch):
    for what, owner, offset, mark in MARKS:
        if read_at(stretch, offset, len(mark)) == mark:
            yield Signature(what, owner, offset, stretch.partition, '')


def _find_ext(stretch):
    block = read_at(stretch, KIB, KIB)
    if len(block) < KIB or block[56:58] != b'\x53\xef':
        return
    compatible, incompatible, read_only_compatible = struct.unpack_from('<III', block, 92)
    if incompatible & 0x8:
        what = 'external journal of ext3 or ext4'
    elif incompatible & ~0x16 or read_only_compatible & ~0x7:
        # features that ext3 does not have: extents, 64bit, flex_bg, …
        what = 'ext4'
    else:
        what = 'ext3' if compatible & 0x4 else 'ext2'
    yield Signature(
        what, 'host', KIB + 56, stretch.partition, _label(block[120:136]) or _uuid(block[104:120])
    )


def _find_lvm(stretch):
    for sector in range(4):
        block = read_at(stretch, sector * SECTOR, SECTOR)
        if block[:8] == b'LABELONE' and block[24:32] == b'LVM2 001':
            yield Signature(
                'LVM physical volume',
                'host',
                sector * SECTOR,
                stretch.partition,
                _label(block[32:64]),
            )


def _md_places(size):
    """(offset, version) of each possible superblock of a Linux RAID member."""
    sectors = size // SECTOR
    at_the_end = ((sectors - 16) & ~7) * SECTOR
    return (
        (4 * KIB, '1.2'),
        (0, '1.1'),
        (at_the_end, '1.0'),
        ((size & ~(64 * KIB - 1)) - 64 * KIB, '0.90'),
    )


def _find_md(stretch):
    for offset, version in _md_places(stretch.size):
        block = read_at(stretch, offset, 64) if offset >= 0 else b''
        if len(block) < 64 or block[:4] not in (b'\xfc\x4e\x2b\xa9', b'\xa9\x2b\x4e\xfc'):
            continue
        order = '<' if block[:1] == b'\xfc' else '>'
        if struct.unpack_from(order + 'I', block, 4)[0] == (0 if version == '0.90' else 1):
            name = '' if version == '0.90' else _label(block[32:64])
            yield Signature(
                'member of a Linux RAID (%s)' % version, 'host', offset, stretch.partition, name
            )
            return


def _find_zfs(stretch):
    """ZFS has two labels at the start and two at the end; the second half (128 KiB) of each label
    holds the uberblocks."""
    aligned = stretch.size & ~(256 * KIB - 1)
    for label in (0, 256 * KIB, aligned - 512 * KIB, aligned - 256 * KIB):
        ring = read_at(stretch, label + 128 * KIB, 128 * KIB) if label >= 0 else b''
        if any(
            ring[i : i + 8] in (b'\x0c\xb1\xba\0\0\0\0\0', b'\0\0\0\0\0\xba\xb1\x0c')
            for i in range(0, len(ring), KIB)
        ):
            yield Signature('ZFS', 'host', label, stretch.partition, '')
            return


def _find_swap(stretch):
    for page in (4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB):
        mark = read_at(stretch, page - 10, 10)
        if mark in (b'SWAPSPACE2', b'SWAP-SPACE'):
            yield Signature(
                'swap space',
                'host',
                page - 10,
                stretch.partition,
                _label(read_at(stretch, KIB + 28, 16)),
            )
        elif mark[:9] in (b'S1SUSPEND', b'S2SUSPEND', b'ULSUSPEND', b'LINHIB000'):
            yield Signature('image of a suspended host', 'host', page - 10, stretch.partition, '')


def _find_fat(stretch):
    block = read_at(stretch, 0, SECTOR)
    if len(block) < SECTOR or block[510:512] != b'\x55\xaa':
        return
    for offset, mark in ((54, b'FAT12   '), (54, b'FAT16   '), (82, b'FAT32   ')):
        if block[offset : offset + 8] == mark:
            label = _label(block[offset - 11 : offset])
            yield Signature(
                mark.decode('ascii').strip(),
                'either',
                offset,
                stretch.partition,
                '' if label == 'NO NAME' else label,
            )


def _mbr_rows(block):
    """The partition table of a master boot record as [(type, first sector, sectors)], or None if
    the block is not a master boot record."""
    if len(block) < SECTOR or block[510:512] != b'\x55\xaa':
        return None
    rows = [struct.unpack_from('<B3xB3xII', block, 446 + 16 * i) for i in range(4)]
    if any(active not in (0, 0x80) for active, _, _, _ in rows) or not any(
        kind for _, kind, _, _ in rows
    ):
        return None
    return [(kind, first, sectors) for _, kind, first, sectors in rows if kind and sectors]


def _find_mbr(stretch):
    rows = _mbr_rows(read_at(stretch, 0, SECTOR))
    if rows and all(kind != 0xEE for kind, _, _ in rows) and not stretch.partition:
        yield Signature('MBR partition table', 'either', 510, stretch.partition, '')


def _gpt_header(stretch):
    """(offset, header of 92 bytes, sector size) of the partition table, or of the backup at the end
    if the first one is missing; None if there is neither."""
    for sector in SECTOR_SIZES:
        for offset in (sector, stretch.size - sector):
            header = read_at(stretch, offset, 92) if offset > 0 else b''
            if len(header) == 92 and header[:8] == b'EFI PART':
                return offset, header, sector
    return None


def _find_gpt(stretch):
    found = _gpt_header(stretch)
    if found is not None:
        offset, header, sector = found
        what = (
            'GPT partition table'
            if offset == sector
            else 'backup of a GPT partition table (the primary table is missing)'
        )
        yield Signature(
            what, 'either', offset, stretch.partition, str(uuid.UUID(bytes_le=header[56:72]))
        )
        for number, row in _gpt_rows(stretch):
            kind = GPT_TYPES.get(uuid.UUID(bytes_le=row[:16]))
            if kind:
                start = struct.unpack_from('<Q', row, 32)[0] * sector
                yield Signature(kind, 'client', start, number, '')


#: every format, in the order of the result
FINDERS = (
    _find_gpt,
    _find_mbr,
    _find_ext,
    _find_lvm,
    _find_md,
    _find_zfs,
    _find_swap,
    _find_fat,
    _find_marks,
)


# -- partitions ------------------------------------------------------------------------------------


def _gpt_rows(stretch):
    """(number, 128 bytes) of each partition of the GPT."""
    _, header, sector = _gpt_header(stretch)
    first, count, length = struct.unpack_from('<QII', header, 72)
    if not 128 <= length <= 4 * KIB:
        return
    rows = read_at(stretch, first * sector, min(count, MAXIMUM_PARTITIONS) * length)
    for i in range(len(rows) // length):
        row = rows[i * length : i * length + 128]
        if any(row[:16]):
            yield i + 1, row


def _gpt_partitions(stretch):
    sector = _gpt_header(stretch)[2]
    for number, row in _gpt_rows(stretch):
        begin, end = struct.unpack_from('<QQ', row, 32)
        if begin <= end:
            yield number, begin * sector, (end - begin + 1) * sector


def _mbr_partitions(stretch, sector):
    for i, (kind, first, sectors) in enumerate(_mbr_rows(read_at(stretch, 0, SECTOR)) or ()):
        # extended partitions only contain others; 0xEE is the protective entry of a GPT
        if kind not in (0x05, 0x0F, 0x85, 0xEE):
            yield i + 1, first * sector, sectors * sector


def _partitions(stretch, sector):
    table = _gpt_partitions(stretch) if _gpt_header(stretch) else _mbr_partitions(stretch, sector)
    for number, start, size in table:
        size = min(size, stretch.size - start)
        if start > 0 and size > 0:
            yield Stretch(stretch.read, start, size, number)


# -- public functions ------------------------------------------------------------------------------


def find_signatures(descriptor, size, sector=SECTOR):
    """Returns a list of every Signature on a disk and in its partitions.

    descriptor: open for reading; size: bytes; sector: bytes in a logical sector, for partition
    tables of 4096-byte disks. Blocks that cannot be read are skipped.
    """
    return examine(lambda offset, length: os.pread(descriptor, length, offset), size, sector)[0]


def examine(read, size, sector=SECTOR):
    """Returns (every Signature, [Stretch of the whole disk, Stretch of each partition]). read: as in a
    Stretch; the other arguments as for find_signatures()."""
    whole = Stretch(read, 0, size, 0)
    stretches = [whole]
    found = [signature for finder in FINDERS for signature in finder(whole)]
    if any('partition table' in signature.what for signature in found):
        for stretch in _partitions(whole, sector):
            stretches.append(stretch)
            found += [
                signature._replace(offset=signature.offset + stretch.start)
                for finder in FINDERS
                if finder not in (_find_gpt, _find_mbr)
                for signature in finder(stretch)
            ]
    return found, stretches


def one_line(signature):
    """Returns the text that names a Signature in messages: 'ext4 "data" in partition 1'."""
    text = signature.what
    if signature.details:
        text += ' "%s"' % ''.join(c if c.isprintable() else '?' for c in signature.details)
    return text + (' in partition %d' % signature.partition if signature.partition else '')


def auto_assembled(signatures):
    """Returns those signatures whose format a host uses automatically, without a mount command."""
    return [signature for signature in signatures if signature.what.startswith(AUTO_ASSEMBLED)]


def auto_assembled_by_udev(name, roots=ROOTS):
    """Returns the same for a block device and its partitions from the udev database, without
    reading the disk: ['/dev/sdb1: LVM2_member']."""
    found = []
    for each in [name] + partitions(name, roots):
        kind = udev_properties(each, roots).get('ID_FS_TYPE', '')
        if kind in UDEV_AUTO_ASSEMBLED:
            found.append('%s: %s' % (roots.node(each), kind))
    return found


def device_signatures(path, sector=SECTOR):
    """Returns find_signatures() of the block device at a path. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return find_signatures(descriptor, os.lseek(descriptor, 0, os.SEEK_END), sector)
    finally:
        os.close(descriptor)
