"""The commands of a real SCSI device that is served (type = passthrough), one row each: those that are
forwarded to it, and those of opcodes.py that are the target's own, because they are about nexuses and
LUNs that the device does not know. Pure.

The table is the command filter: which commands are harmless for a device of this type. It has the commands
that the filter of Linux (drivers/scsi/scsi_ioctl.c) lets unprivileged users of disks and optical drives send
for reading and for writing, and those of tape drives (SSC-3) and changers (SMC-3), which that filter does not
know. It has no commands that change firmware (WRITE BUFFER), send anything to the medium's electronics
(SEND DIAGNOSTIC, ATA PASS-THROUGH), copy between devices (EXTENDED COPY), or are vendor-specific. Without the
filter every operation code is forwarded, and counts as a write.
"""

import functools
from collections import namedtuple
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

from targetd.scsi import cdb, opcodes
from targetd.scsi.opcodes import Row, row_of
from targetd.scsi.reservation_classes import ALWAYS, PREVENT, READ, START_STOP, STATUS, WRITE

# Peripheral device types, SPC-4 6.6.2
DISK, TAPE, OPTICAL, OPTICAL_MEMORY, CHANGER = 0x00, 0x01, 0x05, 0x07, 0x08
SIMPLIFIED_DISK, ZONED = 0x0E, 0x14
DISKS = frozenset((DISK, OPTICAL_MEMORY, SIMPLIFIED_DISK, ZONED))

#: Seconds that a command may take: usually; if it moves a tape or a medium; if it processes a whole medium.
NORMAL, MOVING, LONG = 60, 900, 86400

#: How a command transfers data. direction: 'in', 'out', 'none', or 'any': as the initiator says. offset,
#: size: of the field of the CDB with the length, size 0: the length is not in the CDB; unit: 'bytes'
#: or 'blocks'; fixed: the length if it is always the same. seconds: NORMAL, MOVING or LONG.
Transfer = namedtuple('Transfer', 'direction offset size unit fixed seconds')

UNKNOWN = Transfer('any', 0, 0, 'bytes', 0, LONG)

_ALL, _D, _T, _O, _C, _Z = 'dtocz?', 'dz', 't', 'o', 'c', 'z'
_LETTERS = dict.fromkeys(DISKS, 'd')
_LETTERS.update({TAPE: 't', OPTICAL: 'o', CHANGER: 'c', ZONED: 'z'})

# (operation code, types of devices, name, reservation class, transfer, 'w' if it changes the medium,
# seconds). Transfers: 'in 7.2' has its length in bytes in the 2 bytes from byte 7 on; 'blocks in 7.2' in
# blocks; 'in =8' is always 8 bytes; 'in' has it nowhere.
# fmt: off
_FORWARDED = (
    (0x00, _ALL, 'TEST UNIT READY', STATUS, 'none', '', NORMAL),
    (0x15, _ALL, 'MODE SELECT(6)', WRITE, 'out 4.1', '', NORMAL),
    (0x1A, _ALL, 'MODE SENSE(6)', READ, 'in 4.1', '', NORMAL),
    (0x1C, _ALL, 'RECEIVE DIAGNOSTIC RESULTS', READ, 'in 3.2', '', NORMAL),
    (0x3C, _ALL, 'READ BUFFER', READ, 'in 6.3', '', NORMAL),
    (0x4C, _ALL, 'LOG SELECT', WRITE, 'out 7.2', '', NORMAL),
    (0x4D, _ALL, 'LOG SENSE', ALWAYS, 'in 7.2', '', NORMAL),
    (0x55, _ALL, 'MODE SELECT(10)', WRITE, 'out 7.2', '', NORMAL),
    (0x5A, _ALL, 'MODE SENSE(10)', READ, 'in 7.2', '', NORMAL),

    # disks (SBC-3), and what optical drives have in common with them
    (0x04, 'do', 'FORMAT UNIT', WRITE, 'any', 'w', LONG),
    (0x08, 'd', 'READ(6)', READ, 'blocks in 4.1', '', NORMAL),
    (0x0A, 'd', 'WRITE(6)', WRITE, 'blocks out 4.1', 'w', NORMAL),
    (0x1B, 'dzo', 'START STOP UNIT', START_STOP, 'none', '', MOVING),
    (0x25, 'dzo', 'READ CAPACITY(10)', ALWAYS, 'in =8', '', NORMAL),
    (0x28, 'dzo', 'READ(10)', READ, 'blocks in 7.2', '', NORMAL),
    (0x2A, 'dzo', 'WRITE(10)', WRITE, 'blocks out 7.2', 'w', NORMAL),
    (0x2E, 'dzo', 'WRITE AND VERIFY(10)', WRITE, 'blocks out 7.2', 'w', NORMAL),
    (0x2F, 'dzo', 'VERIFY(10)', READ, 'any', '', MOVING),
    (0x34, _D, 'PRE-FETCH(10)', READ, 'none', '', NORMAL),
    (0x35, 'dzo', 'SYNCHRONIZE CACHE(10)', WRITE, 'none', '', MOVING),
    (0x37, _D, 'READ DEFECT DATA(10)', READ, 'in 7.2', '', MOVING),
    (0x3E, _D, 'READ LONG(10)', READ, 'in 7.2', '', NORMAL),
    (0x3F, _D, 'WRITE LONG(10)', WRITE, 'any', 'w', NORMAL),
    (0x41, _D, 'WRITE SAME(10)', WRITE, 'any', 'w', MOVING),
    (0x42, _D, 'UNMAP', WRITE, 'out 7.2', 'w', MOVING),
    (0x88, _D, 'READ(16)', READ, 'blocks in 10.4', '', NORMAL),
    (0x89, _D, 'COMPARE AND WRITE', WRITE, 'out', 'w', NORMAL),
    (0x8A, _D, 'WRITE(16)', WRITE, 'blocks out 10.4', 'w', NORMAL),
    (0x8E, _D, 'WRITE AND VERIFY(16)', WRITE, 'blocks out 10.4', 'w', NORMAL),
    (0x8F, _D, 'VERIFY(16)', READ, 'any', '', MOVING),
    (0x90, _D, 'PRE-FETCH(16)', READ, 'none', '', NORMAL),
    (0x91, _D, 'SYNCHRONIZE CACHE(16)', WRITE, 'none', '', MOVING),
    (0x93, _D, 'WRITE SAME(16)', WRITE, 'any', 'w', MOVING),
    (0x94, _Z, 'ZBC OUT', WRITE, 'none', 'w', MOVING),
    (0x95, _Z, 'ZBC IN', READ, 'in 10.4', '', NORMAL),
    (0x9C, _D, 'WRITE ATOMIC(16)', WRITE, 'blocks out 12.2', 'w', NORMAL),
    (0xA8, 'dzo', 'READ(12)', READ, 'blocks in 6.4', '', NORMAL),
    (0xAA, 'dzo', 'WRITE(12)', WRITE, 'blocks out 6.4', 'w', NORMAL),
    (0xAE, 'dzo', 'WRITE AND VERIFY(12)', WRITE, 'blocks out 6.4', 'w', NORMAL),
    (0xAF, 'dzo', 'VERIFY(12)', READ, 'any', '', MOVING),
    (0xB7, _D, 'READ DEFECT DATA(12)', READ, 'in 6.4', '', MOVING),

    # tape drives (SSC-3). Commands that move the tape are refused like writes by a reservation
    (0x01, _T, 'REWIND', WRITE, 'none', '', MOVING),
    (0x04, _T, 'FORMAT MEDIUM', WRITE, 'out 3.2', 'w', LONG),
    (0x05, _T, 'READ BLOCK LIMITS', ALWAYS, 'in', '', NORMAL),
    (0x08, _T, 'READ(6)', READ, 'in', '', MOVING),
    (0x0A, _T, 'WRITE(6)', WRITE, 'out', 'w', MOVING),
    (0x0B, _T, 'SET CAPACITY', WRITE, 'none', 'w', LONG),
    (0x0F, _T, 'READ REVERSE(6)', READ, 'in', '', MOVING),
    (0x10, _T, 'WRITE FILEMARKS(6)', WRITE, 'none', 'w', MOVING),
    (0x11, _T, 'SPACE(6)', WRITE, 'none', '', LONG),
    (0x13, _T, 'VERIFY(6)', READ, 'any', '', LONG),
    (0x19, _T, 'ERASE(6)', WRITE, 'none', 'w', LONG),
    (0x1B, _T, 'LOAD UNLOAD', WRITE, 'none', '', LONG),
    (0x2B, _T, 'LOCATE(10)', WRITE, 'none', '', LONG),
    (0x34, _T, 'READ POSITION', READ, 'in', '', NORMAL),
    (0x44, _T, 'REPORT DENSITY SUPPORT', ALWAYS, 'in 7.2', '', NORMAL),
    (0x80, _T, 'WRITE FILEMARKS(16)', WRITE, 'none', 'w', MOVING),
    (0x81, _T, 'READ REVERSE(16)', READ, 'in', '', MOVING),
    (0x82, _T, 'ALLOW OVERWRITE', WRITE, 'none', '', NORMAL),
    (0x88, _T, 'READ(16)', READ, 'in', '', MOVING),
    (0x8A, _T, 'WRITE(16)', WRITE, 'out', 'w', MOVING),
    (0x8C, 'tc', 'READ ATTRIBUTE', READ, 'in 10.4', '', MOVING),
    (0x8D, 'tc', 'WRITE ATTRIBUTE', WRITE, 'out 10.4', 'w', MOVING),
    (0x8F, _T, 'VERIFY(16)', READ, 'any', '', LONG),
    (0x91, _T, 'SPACE(16)', WRITE, 'none', '', LONG),
    (0x92, _T, 'LOCATE(16)', WRITE, 'none', '', LONG),
    (0x93, _T, 'ERASE(16)', WRITE, 'none', 'w', LONG),
    # the encryption of a tape drive is set by the backup program
    (0xA2, _T, 'SECURITY PROTOCOL IN', READ, 'in', '', NORMAL),
    (0xB5, _T, 'SECURITY PROTOCOL OUT', WRITE, 'out', '', NORMAL),

    # medium changers (SMC-3)
    (0x07, _C, 'INITIALIZE ELEMENT STATUS', WRITE, 'none', '', LONG),
    (0x1B, _C, 'OPEN/CLOSE IMPORT/EXPORT ELEMENT', WRITE, 'none', 'w', MOVING),
    (0x2B, _C, 'POSITION TO ELEMENT', WRITE, 'none', '', MOVING),
    (0x37, _C, 'INITIALIZE ELEMENT STATUS WITH RANGE', WRITE, 'none', '', LONG),
    (0xA5, _C, 'MOVE MEDIUM', WRITE, 'none', 'w', MOVING),
    (0xA6, _C, 'EXCHANGE MEDIUM', WRITE, 'none', 'w', MOVING),
    (0xB5, _C, 'REQUEST VOLUME ELEMENT ADDRESS', READ, 'in 7.3', '', MOVING),
    (0xB6, _C, 'SEND VOLUME TAG', WRITE, 'out 8.2', 'w', MOVING),
    (0xB8, _C, 'READ ELEMENT STATUS', READ, 'in 7.3', '', MOVING),

    # optical drives (MMC-6)
    (0x23, _O, 'READ FORMAT CAPACITIES', ALWAYS, 'in 7.2', '', NORMAL),
    (0x2B, _O, 'SEEK(10)', READ, 'none', '', NORMAL),
    (0x42, _O, 'READ SUB-CHANNEL', READ, 'in 7.2', '', NORMAL),
    (0x43, _O, 'READ TOC/PMA/ATIP', READ, 'in 7.2', '', NORMAL),
    (0x44, _O, 'READ HEADER', READ, 'in 7.2', '', NORMAL),
    (0x45, _O, 'PLAY AUDIO(10)', READ, 'none', '', NORMAL),
    (0x46, _O, 'GET CONFIGURATION', ALWAYS, 'in 7.2', '', NORMAL),
    (0x47, _O, 'PLAY AUDIO MSF', READ, 'none', '', NORMAL),
    (0x48, _O, 'PLAY AUDIO TRACK INDEX', READ, 'none', '', NORMAL),
    (0x4A, _O, 'GET EVENT STATUS NOTIFICATION', ALWAYS, 'in 7.2', '', NORMAL),
    (0x4B, _O, 'PAUSE/RESUME', READ, 'none', '', NORMAL),
    (0x4E, _O, 'STOP PLAY/SCAN', READ, 'none', '', NORMAL),
    (0x51, _O, 'READ DISC INFORMATION', READ, 'in 7.2', '', NORMAL),
    (0x52, _O, 'READ TRACK INFORMATION', READ, 'in 7.2', '', NORMAL),
    (0x53, _O, 'RESERVE TRACK', WRITE, 'none', 'w', MOVING),
    (0x54, _O, 'SEND OPC INFORMATION', WRITE, 'any', 'w', MOVING),
    (0x58, _O, 'REPAIR TRACK', WRITE, 'none', 'w', MOVING),
    (0x5B, _O, 'CLOSE TRACK/SESSION', WRITE, 'none', 'w', LONG),
    (0x5C, _O, 'READ BUFFER CAPACITY', READ, 'in 7.2', '', NORMAL),
    (0x5D, _O, 'SEND CUE SHEET', WRITE, 'out 6.3', 'w', MOVING),
    (0xA1, _O, 'BLANK', WRITE, 'none', 'w', LONG),
    (0xA2, _O, 'SEND EVENT', WRITE, 'out 8.2', '', NORMAL),
    (0xA4, _O, 'REPORT KEY', READ, 'in', '', NORMAL),
    (0xA6, _O, 'LOAD/UNLOAD MEDIUM', WRITE, 'none', '', MOVING),
    (0xA7, _O, 'SET READ AHEAD', READ, 'none', '', NORMAL),
    (0xAC, _O, 'GET PERFORMANCE', READ, 'in', '', NORMAL),
    (0xAD, _O, 'READ DISC STRUCTURE', READ, 'in 8.2', '', NORMAL),
    (0xB6, _O, 'SET STREAMING', WRITE, 'out 9.2', '', NORMAL),
    (0xB9, _O, 'READ CD MSF', READ, 'in', '', NORMAL),
    (0xBA, _O, 'SCAN', READ, 'none', '', NORMAL),
    (0xBB, _O, 'SET CD SPEED', WRITE, 'none', '', NORMAL),
    (0xBD, _O, 'MECHANISM STATUS', READ, 'in 8.2', '', NORMAL),
    (0xBE, _O, 'READ CD', READ, 'in', '', NORMAL),
    (0xBF, _O, 'SEND DISC STRUCTURE', WRITE, 'out 8.2', 'w', MOVING),
)

#: The commands of opcodes.TABLE that the target executes itself: (operation code, service action).
TARGETS_OWN = frozenset((
    (0x16, None), (0x17, None), (0x56, None), (0x57, None),
    (0x5E, 0x00), (0x5E, 0x01), (0x5E, 0x02), (0x5E, 0x03),
    (0x5F, 0x00), (0x5F, 0x01), (0x5F, 0x02), (0x5F, 0x03), (0x5F, 0x04), (0x5F, 0x05),
    (0x5F, 0x06), (0x5F, 0x07),
    (0xA0, None), (0xA3, 0x0A), (0xA3, 0x0D), (0xA4, 0x0A),
))
#: Those that the target and the device execute together.
SHARED = (
    row_of(0x03, None, 'REQUEST SENSE', '01 0000 ff 00', ALWAYS, 'passthrough.request_sense', exempt=True),
    row_of(0x12, None, 'INQUIRY', '01 ff ffff 00', ALWAYS, 'passthrough.inquiry', exempt=True),
    row_of(0x1E, None, 'PREVENT ALLOW MEDIUM REMOVAL',
           'ff ffff 03 ff', PREVENT, 'passthrough.prevent_allow'),
    row_of(0xA3, 0x0C, 'REPORT SUPPORTED OPERATION CODES',
           '00 87 ff ffff ffffffff 00 ff', READ, 'passthrough.report_supported_operation_codes'),
)
# fmt: on

#: Operation codes of which an optical drive (MMC-6) has other commands.
_NOT_OPTICAL = frozenset((0xA3, 0xA4))
_MAINTENANCE_IN, _SERVICE_ACTION_IN_16 = 0xA3, 0x9E
#: Operation codes that are never forwarded: what the target answers itself in every form.
NEVER = frozenset((0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F, 0xA0))


def cdb_length(code: bytes) -> int:
    """The bytes of the CDB that begins with these 16 or more bytes. The vendor-specific groups have the
    lengths that Linux expects."""
    opcode = code[0]
    if opcode == 0x7F:
        return min(len(code), 8 + code[7])
    return cdb.length(opcode) or 10


def _transfer(text: str, seconds: int) -> Transfer:
    """The Transfer that a row of _FORWARDED describes."""
    unit, words = 'bytes', text.split()
    if words[0] == 'blocks':
        unit = words.pop(0)
    offset = size = fixed = 0
    if len(words) > 1 and words[1].startswith('='):
        fixed = int(words[1][1:])
    elif len(words) > 1:
        offset, size = map(int, words[1].split('.'))
    return Transfer(words[0], offset, size, unit, fixed, seconds)


#: The beginnings of the names of commands that count as reads and as writes.
_READS = ('READ(', 'READ REVERSE', 'READ CD')
_WRITES = ('WRITE(', 'WRITE AND VERIFY', 'WRITE ATOMIC')


def _row(
    opcode: int, service_action: Optional[int], name: str, reservation: Optional[str], writes: bool
) -> Row:
    what = 'read' if name.startswith(_READS) else 'write' if name.startswith(_WRITES) else 'forward'
    mask = 'ff' * (cdb_length(bytes((opcode,)) + bytes(15)) - 1)
    return row_of(
        opcode,
        service_action,
        name,
        mask,
        reservation,
        'passthrough.' + what,
        medium=True,
        writes=writes,
    )


def _with_service_actions() -> List[Tuple[str, Row, Transfer]]:
    """(types, Row, Transfer) of the forwarded commands that have service actions."""
    found = []
    own = {action for opcode, action in TARGETS_OWN if opcode == _MAINTENANCE_IN} | {0x0C}
    for action in sorted(set(range(0x1F)) - own):
        row = _row(_MAINTENANCE_IN, action, 'MAINTENANCE IN', ALWAYS, False)
        found.append(('dtcz?', row, _transfer('in 6.4', NORMAL)))
    for action, length in (
        (0x10, 'in 10.4'),
        (0x11, 'in 12.2'),
        (0x12, 'in 10.4'),
        (0x13, 'in 10.4'),
    ):
        row = _row(_SERVICE_ACTION_IN_16, action, 'SERVICE ACTION IN(16)', ALWAYS, False)
        found.append((_D, row, _transfer(length, NORMAL)))
    return found


#: [(letters of device types, Row, Transfer)] of all forwarded commands.
_ROWS = [
    (types, _row(code, None, name, reservation, changes == 'w'), _transfer(transfer, seconds))
    for code, types, name, reservation, transfer, changes, seconds in _FORWARDED
] + _with_service_actions()

_FORWARDED_UNKNOWN = [_row(code, None, 'command %02Xh' % code, None, True) for code in range(256)]
_OWN_ROWS = [
    row for row in opcodes.TABLE if (row.opcode, row.service_action) in TARGETS_OWN
] + list(SHARED)
#: Every Row, for the table of admission functions.
TABLE = tuple(row for _, row, _ in _ROWS) + tuple(_FORWARDED_UNKNOWN) + SHARED


class Commands(object):
    """The commands of a device of one type. rows: {opcode: {service action or None: Row}}; transfers:
    {(opcode, service action or None): Transfer} of those in the filter; own: operation codes that the target
    executes in every form."""

    def __init__(self, device_type: int, is_filtered: bool, needs: FrozenSet[str]) -> None:
        letter = _LETTERS.get(device_type, '?')
        self.rows: Dict[int, Dict[Optional[int], Row]] = {}
        self.transfers: Dict[Tuple[int, Optional[int]], Transfer] = {}
        for types, row, transfer in _ROWS:
            if letter in types:
                self._add(row)
                self.transfers[row.opcode, row.service_action] = transfer
        for row in _OWN_ROWS:
            is_other = device_type == OPTICAL and row.opcode in _NOT_OPTICAL
            if not is_other and (not row.needs or row.needs in needs):
                self._add(row)
        if not is_filtered:
            for row in _FORWARDED_UNKNOWN:
                if row.opcode not in NEVER:
                    self._add_unknown(row)

    def _add(self, row: Row) -> None:
        self.rows.setdefault(row.opcode, {})[row.service_action] = row

    def _add_unknown(self, row: Row) -> None:
        """Offer what else there is of this operation code."""
        known = self.rows.setdefault(row.opcode, {})
        if None in known:
            return
        if not known:
            known[None] = row
            return
        for action in set(range(0x20)) - set(known):
            known[action] = row._replace(service_action=action)

    def transfer_of(self, code: bytes) -> Transfer:
        """The Transfer of this CDB."""
        found = self.transfers.get((code[0], None))
        return found or self.transfers.get((code[0], code[1] & 0x1F), UNKNOWN)


_NEEDS = ('target_port_group_support', 'explicit_alua')


def commands_of(facts: Any) -> Commands:
    """The Commands of a unit with these facts. Units that offer the same share them."""
    needs = frozenset(need for need in _NEEDS if getattr(facts, need))
    return _commands(facts.peripheral_type, facts.command_filter, needs)


@functools.lru_cache(maxsize=None)
def _commands(device_type: int, is_filtered: bool, needs: FrozenSet[str]) -> Commands:
    return Commands(device_type, is_filtered, needs)


def wanted_length(transfer: Transfer, code: bytes, block_length: int) -> Optional[int]:
    """The bytes that this CDB transfers; None if it does not say. block_length: bytes, 0 if it is not
    known."""
    if transfer.direction == 'none':
        return 0
    if transfer.fixed:
        return transfer.fixed
    if not transfer.size or transfer.unit == 'blocks' and not block_length:
        return None
    count = int.from_bytes(code[transfer.offset : transfer.offset + transfer.size], 'big')
    if transfer.unit == 'blocks':
        return (count or (256 if code[0] in (0x08, 0x0A) else 0)) * block_length
    return count


def is_allocation(transfer: Transfer) -> bool:
    """Is the length in the CDB an allocation length (SPC-4), of which the device may send less?"""
    return transfer.direction == 'in' and transfer.unit == 'bytes' and transfer.size > 0


def with_length(transfer: Transfer, code: bytes, length: int) -> bytes:
    """The CDB with another length in it."""
    end = transfer.offset + transfer.size
    return code[: transfer.offset] + length.to_bytes(transfer.size, 'big') + code[end:]
