"""Finds out with which logical block size the content of a medium was written: a partition table or
file system is not found, or is read wrongly, with another one.

May import base and host. Reads a few blocks at known offsets through a descriptor and changes nothing.
Formats that work with any block size, or that do not record one, are not considered.
"""

import os
import struct

SIZES = (512, 4096)


def _read(descriptor, offset, length):
    try:
        data = os.pread(descriptor, length, offset)
    except OSError:
        return b''
    return data if len(data) == length else b''


def _gpt(descriptor):
    """The block sizes for which the header is in block 1 and says so."""
    found = []
    for size in SIZES:
        header = _read(descriptor, size, 92)
        if header[:8] == b'EFI PART' and struct.unpack_from('<Q', header, 24)[0] == 1:
            found.append(size)
    return found


def _boot_sector(descriptor, start):
    """(file system, smallest and largest block size) of NTFS, FAT or exFAT; None for others. FAT with
    larger sectors than the disk's is readable."""
    block = _read(descriptor, start, 512)
    if block[510:] != b'\x55\xaa':
        return None
    size = struct.unpack_from('<H', block, 11)[0]
    if block[3:11] == b'EXFAT   ' and 9 <= bytearray(block)[108] <= 12:
        size = 1 << bytearray(block)[108]
        return 'exFAT', size, size
    if size not in (512, 1024, 2048, 4096):
        return None
    if block[3:11] == b'NTFS    ':
        return 'NTFS', size, size
    if block[54:59] in (b'FAT12', b'FAT16') or block[82:87] == b'FAT32':
        return 'FAT', 512, size
    return None


def _unix(descriptor, start):
    """(file system, smallest and largest block size) of ext2 to ext4 and XFS, whose blocks or sectors
    cannot be smaller than the disk's; None for others."""
    block = _read(descriptor, start + 1024, 64)
    if block[56:58] == b'\x53\xef' and struct.unpack_from('<I', block, 24)[0] <= 6:
        return 'ext2/3/4', 512, 1024 << struct.unpack_from('<I', block, 24)[0]
    block = _read(descriptor, start, 104)
    if block[:4] == b'XFSB':
        return 'XFS', 512, struct.unpack_from('>H', block, 102)[0]
    return None


def _file_system(descriptor, start):
    return _boot_sector(descriptor, start) or _unix(descriptor, start)


def _mbr_misfit(descriptor, block_size):
    """The block size at which the partitions of an MBR lead to file systems, if it is only another one
    than block_size; None otherwise."""
    block = _read(descriptor, 0, 512)
    if block[510:] != b'\x55\xaa':
        return None
    rows = [struct.unpack_from('<B3xII', block, 446 + 16 * i + 4) for i in range(4)]
    starts = [first for kind, first, count in rows if kind and count and kind != 0xEE]
    fitting = [
        size for size in SIZES if any(_file_system(descriptor, at * size) for at in starts if at)
    ]
    return fitting[0] if fitting and block_size not in fitting else None


def find_misfit(descriptor, block_size):
    """Returns a sentence without a subject, 'has a GPT partition table for blocks of 4096 bytes, …', if
    the content of a medium cannot be used with this block size; else ''. Raises nothing."""
    tables = _gpt(descriptor)
    if tables and block_size not in tables:
        return _sentence('a GPT partition table', tables[0], block_size)
    found = None if tables else _file_system(descriptor, 0)
    if found is not None and not found[1] <= block_size <= found[2]:
        return _sentence('a file system (%s)' % found[0], found[2], block_size)
    size = None if tables or found else _mbr_misfit(descriptor, block_size)
    return _sentence('an MBR partition table', size, block_size) if size else ''


def _sentence(what, wanted, block_size):
    return 'has %s for blocks of %d bytes, and would be served with blocks of %d bytes' % (
        what,
        wanted,
        block_size,
    )
