"""What stands where in a CDB: the layouts of the block commands, by group (SPC-4). Pure.

The first three bits of an operation code say how long the CDB is and, for the commands that name
blocks, where LBA and length stand. Commands with a layout of their own read it themselves.
"""

import struct

# From byte 1 on.
BLOCKS_6 = struct.Struct('>BHBB')  # flags and LBA 20..16, LBA 15..0, blocks (0: 256), control
BLOCKS_10 = struct.Struct('>BIBHB')  # flags, LBA, group, blocks, control
BLOCKS_12 = struct.Struct('>BIIBB')  # flags, LBA, blocks, group, control
BLOCKS_16 = struct.Struct('>BQIBB')  # flags, LBA, blocks, group, control
U16 = struct.Struct('>H')
U32 = struct.Struct('>I')

FUA = 0x08  # byte 1 of READ and WRITE (10 and longer)
DPO = 0x10

# 0: vendor specific, or 7Fh with a length of its own
LENGTH_OF_GROUP = (6, 10, 10, 0, 16, 12, 0, 0)
BLOCKS_AT = {6: 4, 10: 7, 12: 6, 16: 10}  # where the number of blocks stands, for field pointers
LBA_AT = {6: 1, 10: 2, 12: 2, 16: 2}


def length(opcode):
    """Bytes of a CDB with this operation code; 0 if the code does not tell."""
    return LENGTH_OF_GROUP[opcode >> 5]


def extent(cdb):
    """(flags byte 1, lba, blocks) of a block command; a READ(6) or WRITE(6) of 0 blocks means 256
    and has no flags."""
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


def u16(cdb, offset):
    """The 16-bit field at `offset`."""
    return U16.unpack_from(cdb, offset)[0]


def u32(cdb, offset):
    """The 32-bit field at `offset`."""
    return U32.unpack_from(cdb, offset)[0]
