"""The SCSI commands of a tape drive (SSC-3), one row each: those of SPC-4 that such a drive has too, as
they are in opcodes.py, and its own. Pure.

Commands that move the tape have the reservation class of a write: another host would lose its position.
"""

from targetd.scsi import opcodes
from targetd.scsi.opcodes import row_of
from targetd.scsi.reservation_classes import ALWAYS, READ, WRITE

#: Operation codes of the rows of opcodes.TABLE that a tape drive has.
# fmt: off
SHARED = frozenset((
    0x00, 0x03, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1C, 0x1D, 0x1E, 0x3B, 0x3C, 0x4C, 0x4D, 0x55, 0x56, 0x57,
    0x5A, 0x5E, 0x5F, 0xA0, 0xA3, 0xA4,
))

OWN = (
    row_of(0x01, None, 'REWIND', '01 000000 00', WRITE, 'ssc.rewind', medium=True),
    row_of(0x05, None, 'READ BLOCK LIMITS', '01 000000 00', ALWAYS, 'ssc.read_block_limits'),
    row_of(0x08, None, 'READ(6)', '03 ffffff 00', READ, 'ssc.read', medium=True),
    row_of(0x0A, None, 'WRITE(6)', '01 ffffff 00', WRITE, 'ssc.write', medium=True, writes=True),
    row_of(0x10, None, 'WRITE FILEMARKS(6)',
           '01 ffffff 00', WRITE, 'ssc.write_filemarks', medium=True, writes=True),
    row_of(0x11, None, 'SPACE(6)', '0f ffffff 00', WRITE, 'ssc.space', medium=True),
    row_of(0x19, None, 'ERASE(6)', '03 000000 00', WRITE, 'ssc.erase', medium=True, writes=True),
    row_of(0x1B, None, 'LOAD UNLOAD', '01 0000 0f 00', WRITE, 'ssc.load_unload'),
    row_of(0x2B, None, 'LOCATE(10)', '07 00 ffffffff 00 ff 00', WRITE, 'ssc.locate_10', medium=True),
    row_of(0x34, None, 'READ POSITION', '1f 0000000000 ffff 00', READ, 'ssc.read_position', medium=True),
    row_of(0x44, None, 'REPORT DENSITY SUPPORT',
           '03 0000000000 ffff 00', ALWAYS, 'ssc.report_density_support'),
    row_of(0x91, None, 'SPACE(16)',
           '0f 0000 ffffffffffffffff 0000 00 00', WRITE, 'ssc.space', medium=True),
    row_of(0x92, None, 'LOCATE(16)',
           '3b 00 ff ffffffffffffffff 000000 00', WRITE, 'ssc.locate_16', medium=True),
)
# fmt: on

TABLE = tuple(
    sorted(
        [row for row in opcodes.TABLE if row.opcode in SHARED] + list(OWN),
        key=lambda row: (row.opcode, row.service_action or 0),
    )
)

by_opcode = opcodes.Commands(TABLE).by_opcode  # of a tape drive
