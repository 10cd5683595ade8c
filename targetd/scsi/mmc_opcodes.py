"""The SCSI commands of an optical drive (MMC-6), one row each: those of SPC-4 and SBC-3 that such a drive
has too, as they are in opcodes.py, and its own. Pure.

READ(12) has a row of its own: byte 10 has STREAMING there, and no group number (MMC-6). REPORT TARGET PORT
GROUPS and SET TARGET PORT GROUPS (SPC-4) are there when INQUIRY data promise them (TPGS): a path to a drive
has the state of its portal group like one to a disk.
"""

from targetd.scsi import opcodes, ssc_opcodes
from targetd.scsi.opcodes import row_of
from targetd.scsi.reservation_classes import ALWAYS, READ

#: Operation codes of the rows of opcodes.TABLE that an optical drive has.
# fmt: off
SHARED = frozenset((
    0x00, 0x03, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x25, 0x28, 0x2F, 0x35, 0x3B, 0x3C,
    0x4C, 0x4D, 0x55, 0x56, 0x57, 0x5A, 0x5E, 0x5F, 0xA0, 0xA3,
))

_OWN = (
    row_of(0x23, None, 'READ FORMAT CAPACITIES', '00 0000000000 ffff 00', READ, 'mmc.read_format_capacities'),
    row_of(0x2B, None, 'SEEK(10)', '00 ffffffff 000000 00', READ, 'mmc.seek', medium=True),
    row_of(0x42, None, 'READ SUB-CHANNEL',
           '02 40 ff 0000 ff ffff 00', READ, 'mmc.read_sub_channel', medium=True),
    row_of(0x43, None, 'READ TOC/PMA/ATIP',
           '02 0f 000000 ff ffff c0', READ, 'mmc.read_toc', medium=True),
    row_of(0x46, None, 'GET CONFIGURATION',
           '03 ffff 000000 ffff 00', ALWAYS, 'mmc.get_configuration', exempt=True),
    row_of(0x4A, None, 'GET EVENT STATUS NOTIFICATION',
           '01 0000 ff 0000 ffff 00', ALWAYS, 'mmc.get_event_status', exempt=True),
    row_of(0x51, None, 'READ DISC INFORMATION',
           '07 0000000000 ffff 00', READ, 'mmc.read_disc_information', medium=True),
    row_of(0x52, None, 'READ TRACK INFORMATION',
           '07 ffffffff 00 ffff 00', READ, 'mmc.read_track_information', medium=True),
    row_of(0xA8, None, 'READ(12)', '1e ffffffff ffffffff 80 00', READ, 'sbc.read', medium=True),
    row_of(0xAD, None, 'READ DISC STRUCTURE',
           '0f ffffffff ff ff ffff c0 00', READ, 'mmc.read_disc_structure', medium=True),
    row_of(0xB9, None, 'READ CD MSF',
           '1e 00 ffffff ffffff fe 07 00', READ, 'mmc.read_cd_msf', medium=True),
    row_of(0xBB, None, 'SET CD SPEED', '03 ffff ffff 0000000000 00', READ, 'mmc.set_cd_speed'),
    row_of(0xBD, None, 'MECHANISM STATUS', '00 000000000000 ffff 00 00', ALWAYS, 'mmc.mechanism_status'),
    row_of(0xBE, None, 'READ CD', '1e ffffffff ffffff fe 07 00', READ, 'mmc.read_cd', medium=True),
)
# fmt: on

TABLE = tuple(
    sorted(
        [row for row in opcodes.TABLE if row.opcode in SHARED or row.needs == 'explicit_alua']
        + list(_OWN),
        key=lambda row: (row.opcode, row.service_action or 0),
    )
)

by_opcode = opcodes.Commands(TABLE).by_opcode  # of an optical drive


def name_of(opcode: int) -> str:
    """The name of the commands with this operation code: of a disk, or of an optical or tape drive if disks
    have no such command."""
    disks = {row.opcode for row in opcodes.TABLE}
    for row in _OWN + ssc_opcodes.OWN:
        if row.opcode == opcode and (opcode not in disks or row.function.startswith('mmc.')):
            return row.name
    return opcodes.name_of(opcode)
