"""What the load writes and the replay recognizes: each sector names its block, itself and its version."""

import struct
import zlib

BLOCK = 4096
SECTOR = 512
SECTORS = BLOCK // SECTOR
_HEADER = struct.Struct('>4sIIQ')
_MAGIC = b'cuts'


def block_of_version(number, version):
    """The 4096 bytes of this version of a block; version 0 is the untouched medium."""
    return b''.join(_sector(number, index, version) for index in range(SECTORS))


def _sector(number, index, version):
    header = _HEADER.pack(_MAGIC, number, index, version)
    body = header + bytes([version % 251]) * (SECTOR - len(header) - 4)
    return body + struct.pack('>I', zlib.crc32(body))


def version_of(sector_number, data):
    """The version that a sector holds; 0 where it is zeroes. Raises ValueError for anything else."""
    if not any(data):
        return 0
    magic, number, index, version = _HEADER.unpack_from(data)
    intact = struct.pack('>I', zlib.crc32(data[:-4])) == data[-4:]
    if magic != _MAGIC or not intact or number * SECTORS + index != sector_number:
        raise ValueError('sector %d holds something that was never written there' % sector_number)
    return version
