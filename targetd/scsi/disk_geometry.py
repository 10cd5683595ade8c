"""The geometry in the mode pages 03h and 04h of a disk (SCSI-2), which old initiators read. Pure."""

import struct

from targetd.scsi.facts import UnitFacts

HEADS, SECTORS = 255, 63  # of the geometry that is reported


def format_device(data: bytes, facts: UnitFacts) -> bytes:
    """SECTORS PER TRACK, DATA BYTES PER PHYSICAL SECTOR, INTERLEAVE 1; HSEC."""
    return (
        data[:10]
        + struct.pack('>HHH', SECTORS, min(facts.block_size, 0xFFFF), 1)
        + data[16:20]
        + b'\x40'
        + data[21:]
    )


def rigid_disk(data: bytes, facts: UnitFacts, blocks: int) -> bytes:
    """NUMBER OF CYLINDERS, NUMBER OF HEADS; MEDIUM ROTATION RATE."""
    cylinders = min(max(blocks // (HEADS * SECTORS), 1), 0xFFFFFF)
    rate = facts.rotation_rate if facts.rotation_rate > 1 else 0
    return (
        data[:2]
        + cylinders.to_bytes(3, 'big')
        + bytes([HEADS])
        + data[6:20]
        + struct.pack('>H', rate)
        + data[22:]
    )
