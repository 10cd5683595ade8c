"""CDB layouts of the block commands, by group code (SPC-4). Pure.

The first three bits of an operation code (GROUP CODE) determine the length of the CDB and, for the
commands that address blocks, the position of LBA and length. Commands with other layouts read their
fields with u16() and u32().
"""

import struct
from typing import Tuple

# From byte 1 on.
BLOCKS_6 = struct.Struct('>BHBB')  # flags and LBA 20..16, LBA 15..0, blocks (0: 256), control
BLOCKS_10 = struct.Struct('>BIBHB')  # flags, LBA, group, blocks, control
BLOCKS_12 = struct.Struct('>BIIBB')  # flags, LBA, blocks, group, control
BLOCKS_16 = struct.Struct('>BQIBB')  # flags, LBA, blocks, group, control
U16 = struct.Struct('>H')
U32 = struct.Struct('>I')

FUA = 0x08  # byte 1 of READ and WRITE (10 and longer)
DPO = 0x10

# bytes; 0: vendor specific, or variable length (7Fh)
LENGTH_OF_GROUP = (6, 10, 10, 0, 16, 12, 0, 0)
BLOCKS_AT = {6: 4, 10: 7, 12: 6, 16: 10}  # offset of the number of blocks, for field pointers
LBA_AT = {6: 1, 10: 2, 12: 2, 16: 2}


def length(opcode: int) -> int:
    """Length in bytes of a CDB with this operation code; 0 if the code does not determine it."""
    return LENGTH_OF_GROUP[opcode >> 5]


def extent(cdb: bytes) -> Tuple[int, int, int]:
    """(byte 1: the flags, LBA, number of blocks) of a block command. In READ(6) and WRITE(6), 0
    blocks means 256, and the flags are 0."""
    size = LENGTH_OF_GROUP[cdb[0] >> 5]
    if size == 10:
        flags, lba, _, blocks, _ = BLOCKS_10.unpack_from(cdb, 1)
    elif size == 16:
        flags, lba, blocks, _, _ = BLOCKS_16.unpack_from(cdb, 1)
    elif size == 12:
        flags, lba, blocks, _, _ = BLOCKS_12.unpack_from(cdb, 1)
    else:
        high, low, blocks, _ = BLOCKS_6.unpack_from(cdb, 1)
        flags, lba, blocks = 0, (high & 0x1F) << 16 | low, blocks or 256
    return flags, lba, blocks


def u16(cdb: bytes, offset: int) -> int:
    """The 16-bit field at `offset`."""
    return U16.unpack_from(cdb, offset)[0]


def u32(cdb: bytes, offset: int) -> int:
    """The 32-bit field at `offset`."""
    return U32.unpack_from(cdb, offset)[0]
