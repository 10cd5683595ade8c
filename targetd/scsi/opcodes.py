"""The SCSI commands, one row each. Pure; reservation_classes.py has the reservation classes, and
mmc_opcodes.py the commands of an optical drive.

Admission, REPORT SUPPORTED OPERATION CODES, the reservation checks and the tests are all derived
from TABLE. A bit of a CDB that is not in the mask of its row is refused; a row without a
reservation class (None) conflicts with every reservation.
"""

from collections import namedtuple
from typing import Any, Dict, FrozenSet, Optional, Sequence, Tuple

from targetd.scsi.facts import UnitFacts
from targetd.scsi.reservation_classes import (
    ALWAYS,
    PR_IN,
    PR_OUT,
    PREVENT,
    READ,
    RESERVE,
    START_STOP,
    STATUS,
    WRITE,
)

TEST_UNIT_READY = 0x00
FORMAT_UNIT = 0x04
SANITIZE = 0x48
EXTENDED_COPY = 0x83
# A read error of these is counted as an error of a verification (LOG SENSE).
VERIFIES = frozenset((0x2E, 0x2F, 0x8E, 0x8F, 0xAE, 0xAF))
#: Commands in whose CDB a standard gives bits 7 to 5 of byte 1 a meaning, whether it is supported here
#: or not: RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT, FMTPINFO, SELF-TEST CODE, MODE SPECIFIC, and the
#: options of SANITIZE and of REPORT TARGET PORT GROUPS and the others of its operation code.
# fmt: off
HIGH_BITS_HAVE_A_MEANING = frozenset((
    0x04, 0x1D, 0x28, 0x2A, 0x2E, 0x2F, 0x3B, 0x3C, 0x41, 0x48, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F,
    0x93, 0x9C, 0xA3, 0xA4, 0xA8, 0xAA, 0xAE, 0xAF,
))
# fmt: on
MODE_SELECT_10 = 0x55
MODE_SENSE_10 = 0x5A


class Row(
    namedtuple(
        'Row',
        'opcode service_action name mask reservation function medium writes exempt needs'
        ' during_operation',
    )
):
    """One command.

    opcode:            operation code, an int
    service_action:    an int, or None for an operation code without service actions
    name:              the name of the command in the standard
    mask:              bytes, as long as the CDB: the bits that may be set; the SERVICE ACTION field
                       is all ones
    reservation:       a class of reservation_classes.py, or None
    function:          'module.name' of the admission function
    medium:            bool, the command needs a ready medium
    writes:            bool, the command changes the medium
    exempt:            bool, the command runs although a unit attention is pending (SAM-5)
    needs:             name of the fact without which the unit does not offer the command, or ''
    during_operation:  bool, the command runs as usual while the medium is being formatted or
                       sanitized: it reports about the unit and not about its data (SBC-3). All
                       other commands are refused with the progress of the operation
    """

    __slots__ = ()

    @property
    def usage(self) -> bytes:
        """CDB USAGE DATA, SPC-4 6.35: the mask, with the values of the operation code and of the service
        action in their places."""
        data = bytearray(self.mask)
        data[0] = self.opcode
        if self.service_action is not None:
            data[1] = (self.mask[1] & 0xE0) | self.service_action
        return bytes(data)

    def ignored(self, offset: int) -> int:
        """The bits of this byte of the CDB that have no meaning and are not checked.

        In SCSI-1 and SCSI-2, bits 7 to 5 of byte 1 had the LUN. NetBSD and old class drivers of Windows
        still set them.
        """
        return 0xE0 if offset == 1 and self.opcode not in HIGH_BITS_HAVE_A_MEANING else 0

    def first_refused_bit(self, cdb: bytes) -> Optional[Tuple[int, int]]:
        """(byte, bit) of the first field of `cdb` that has a bit outside the mask, or None. The bit
        is the most significant one of the field, as far as the mask separates fields; in CONTROL,
        the last byte, each bit is a field."""
        for offset, allowed in enumerate(self.mask):
            if offset and cdb[offset] & ~(allowed | self.ignored(offset)) & 0xFF:
                bit = (cdb[offset] & ~allowed & 0xFF).bit_length() - 1
                while bit < 7 and offset < len(self.mask) - 1 and not allowed >> (bit + 1) & 1:
                    bit += 1
                return offset, bit
        return None


def row_of(
    opcode: int,
    service_action: Optional[int],
    name: str,
    mask: str,
    reservation: Optional[str] = None,
    function: str = '',
    medium: bool = False,
    writes: bool = False,
    exempt: bool = False,
    needs: str = '',
    during_operation: bool = False,
) -> Row:
    """mask: hex digits of the bytes from byte 1 on."""
    used = bytearray(bytes((0xFF,)) + bytes.fromhex(mask))
    if service_action is not None:
        used[1] |= 0x1F
    return Row(
        opcode,
        service_action,
        name,
        bytes(used),
        reservation,
        function,
        medium,
        writes,
        exempt,
        needs,
        during_operation,
    )


def _medium(
    opcode: int, name: str, mask: str, reservation: str, function: str, needs: str = ''
) -> Row:
    """A command without service actions that reads or writes the medium."""
    return row_of(
        opcode,
        None,
        name,
        mask,
        reservation,
        function,
        medium=True,
        writes=reservation == WRITE,
        needs=needs,
    )


def _copy(
    opcode: int,
    service_action: int,
    name: str,
    mask: str,
    reservation: str,
    function: str,
    **more: Any,
) -> Row:
    """A command of third-party copies."""
    return row_of(
        opcode, service_action, name, mask, reservation, function, needs='third_party_copy', **more
    )


# The masks start at byte 1. FUA_NV (bit 1 of READ and WRITE) and SYNC_NV are obsolete but accepted,
# because initiators set them. GROUP NUMBER (1f) is accepted and ignored: no grouping function is
# offered, and it would only collect statistics. There is no row for 7Fh: READ(32), VERIFY(32),
# WRITE(32), WRITE AND VERIFY(32) and WRITE SAME(32) are for a medium with type 2 protection
# information only (SBC-3 5.14; SBC-5 5.19, 5.39, 5.43, 5.47, 5.54), which is not offered (PROTECT 0,
# PROT_EN 0). RARC (bit 2 of READ) is accepted: without rebuild assist mode it changes nothing
# (SBC-3 5.11).
# fmt: off
TABLE = (
    row_of(0x00, None, 'TEST UNIT READY', '00 0000 00 00', STATUS, 'spc.test_unit_ready', medium=True),
    row_of(0x03, None, 'REQUEST SENSE',
         '01 0000 ff 00', ALWAYS, 'spc.request_sense', exempt=True, during_operation=True),
    _medium(0x04, 'FORMAT UNIT', '3f 00 0001 00', WRITE, 'sanitize.format_unit'),
    _medium(0x08, 'READ(6)', '1fffff ff 00', READ, 'sbc.read'),
    _medium(0x0A, 'WRITE(6)', '1fffff ff 00', WRITE, 'sbc.write'),
    row_of(0x12, None, 'INQUIRY', '01 ff ffff 00', ALWAYS, 'spc.inquiry', exempt=True, during_operation=True),
    row_of(0x15, None, 'MODE SELECT(6)', '13 0000 ff 00', WRITE, 'spc.mode_select'),
    row_of(0x16, None, 'RESERVE(6)', '00 00 0000 00', RESERVE, 'spc.reserve'),
    row_of(0x17, None, 'RELEASE(6)', '00 00 0000 00', ALWAYS, 'spc.release'),
    row_of(0x1A, None, 'MODE SENSE(6)', '08 ff ff ff 00', READ, 'spc.mode_sense', during_operation=True),
    row_of(0x1B, None, 'START STOP UNIT', '01 00 0f f7 00', START_STOP, 'sbc.start_stop_unit'),
    row_of(0x1C, None, 'RECEIVE DIAGNOSTIC RESULTS',
         '01 ff ffff 00', READ, 'diagnostics.receive_diagnostic_results', during_operation=True),
    row_of(0x1D, None, 'SEND DIAGNOSTIC', 'f7 00 ffff 00', WRITE, 'diagnostics.send_diagnostic'),
    row_of(0x1E, None, 'PREVENT ALLOW MEDIUM REMOVAL', '00 0000 03 00', PREVENT, 'sbc.prevent_allow'),
    row_of(0x25, None, 'READ CAPACITY(10)',
         '00 ffffffff 0000 01 00', ALWAYS, 'sbc.read_capacity_10', medium=True),
    _medium(0x28, 'READ(10)', '1e ffffffff 1f ffff 00', READ, 'sbc.read'),
    _medium(0x2A, 'WRITE(10)', '1a ffffffff 1f ffff 00', WRITE, 'sbc.write'),
    _medium(0x2E, 'WRITE AND VERIFY(10)', '16 ffffffff 1f ffff 00', WRITE, 'sbc.write_and_verify'),
    _medium(0x2F, 'VERIFY(10)', '16 ffffffff 1f ffff 00', READ, 'sbc.verify'),
    _medium(0x34, 'PRE-FETCH(10)', '02 ffffffff 1f ffff 00', READ, 'sbc.pre_fetch'),
    row_of(0x35, None, 'SYNCHRONIZE CACHE(10)',
         '06 ffffffff 1f ffff 00', WRITE, 'sbc.synchronize_cache', medium=True),
    _medium(0x37, 'READ DEFECT DATA(10)', '00 1f 00000000 ffff 00', READ, 'sbc.read_defect_data_10'),
    row_of(0x3B, None, 'WRITE BUFFER', '1f ff ffffff ffffff 00', WRITE, 'buffers.write_buffer'),
    row_of(0x3C, None, 'READ BUFFER', '1f ff ffffff ffffff 00', READ, 'buffers.read_buffer'),
    _medium(0x41, 'WRITE SAME(10)', '08 ffffffff 1f ffff 00', WRITE, 'provisioning.write_same'),
    _medium(0x42, 'UNMAP', '00 00000000 1f ffff 00', WRITE, 'provisioning.unmap', needs='unmap'),
    row_of(0x48, 0x01, 'SANITIZE, OVERWRITE',
         'a0 0000000000 ffff 00', WRITE, 'sanitize.overwrite', medium=True, writes=True),
    row_of(0x48, 0x02, 'SANITIZE, BLOCK ERASE',
         'a0 0000000000 0000 00', WRITE, 'sanitize.block_erase',
         medium=True, writes=True, needs='block_erase'),
    row_of(0x48, 0x03, 'SANITIZE, CRYPTOGRAPHIC ERASE',
         'a0 0000000000 0000 00', WRITE, 'sanitize.cryptographic_erase',
         medium=True, writes=True, needs='encrypted'),
    row_of(0x48, 0x1F, 'SANITIZE, EXIT FAILURE MODE',
         '80 0000000000 0000 00', WRITE, 'sanitize.exit_failure_mode', medium=True, writes=True),
    row_of(0x4C, None, 'LOG SELECT', '02 ff ff 000000 ffff 00', WRITE, 'logs.log_select'),
    row_of(0x4D, None, 'LOG SENSE',
         '00 ff ff 00 ffff ffff 00', ALWAYS, 'logs.log_sense', during_operation=True),
    row_of(0x55, None, 'MODE SELECT(10)', '13 0000000000 ffff 00', WRITE, 'spc.mode_select'),
    row_of(0x56, None, 'RESERVE(10)', '00 00 00 000000 0000 00', RESERVE, 'spc.reserve'),
    row_of(0x57, None, 'RELEASE(10)', '00 00 00 000000 0000 00', ALWAYS, 'spc.release'),
    row_of(0x5A, None, 'MODE SENSE(10)',
         '18 ff ff 000000 ffff 00', READ, 'spc.mode_sense', during_operation=True),
    row_of(0x5E, 0x00, 'PERSISTENT RESERVE IN, READ KEYS',
         '00 0000000000 ffff 00', PR_IN, 'spc.persistent_reserve_in', during_operation=True),
    row_of(0x5E, 0x01, 'PERSISTENT RESERVE IN, READ RESERVATION',
         '00 0000000000 ffff 00', PR_IN, 'spc.persistent_reserve_in', during_operation=True),
    row_of(0x5E, 0x02, 'PERSISTENT RESERVE IN, REPORT CAPABILITIES',
         '00 0000000000 ffff 00', PR_IN, 'spc.persistent_reserve_in', during_operation=True),
    row_of(0x5E, 0x03, 'PERSISTENT RESERVE IN, READ FULL STATUS',
         '00 0000000000 ffff 00', PR_IN, 'spc.persistent_reserve_in', during_operation=True),
    row_of(0x5F, 0x00, 'PERSISTENT RESERVE OUT, REGISTER',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x01, 'PERSISTENT RESERVE OUT, RESERVE',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x02, 'PERSISTENT RESERVE OUT, RELEASE',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x03, 'PERSISTENT RESERVE OUT, CLEAR',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x04, 'PERSISTENT RESERVE OUT, PREEMPT',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x05, 'PERSISTENT RESERVE OUT, PREEMPT AND ABORT',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x06, 'PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    row_of(0x5F, 0x07, 'PERSISTENT RESERVE OUT, REGISTER AND MOVE',
         '00 ff 0000 ffffffff 00', PR_OUT, 'spc.persistent_reserve_out'),
    _copy(0x83, 0x00, 'EXTENDED COPY(LID1)',
          '00 0000000000000000 ffffffff 00 00', WRITE, 'extended_copy.extended_copy'),
    _copy(0x83, 0x01, 'EXTENDED COPY(LID4)',
          '00 0000000000000000 ffffffff 00 00', WRITE, 'extended_copy.extended_copy'),
    _copy(0x83, 0x10, 'POPULATE TOKEN',
          '00 00000000 ffffffff ffffffff 1f 00', READ, 'rod_commands.populate_token', medium=True),
    _copy(0x83, 0x11, 'WRITE USING TOKEN',
          '00 00000000 ffffffff ffffffff 1f 00', WRITE, 'rod_commands.write_using_token',
          medium=True, writes=True),
    _copy(0x83, 0x1C, 'COPY OPERATION ABORT',
          '00 ffffffff 000000000000000000 00', WRITE, 'copy_manager.abort'),
    _copy(0x84, 0x00, 'RECEIVE COPY STATUS(LID1)',
          '00 ff 00000000000000 ffffffff 00 00', READ, 'copy_manager.receive_status_lid1'),
    _copy(0x84, 0x01, 'RECEIVE COPY DATA(LID1)',
          '00 ff 00000000000000 ffffffff 00 00', READ, 'copy_manager.receive_data_lid1'),
    _copy(0x84, 0x03, 'RECEIVE COPY OPERATING PARAMETERS',
          '00 00 00000000000000 ffffffff 00 00', READ, 'copy_manager.receive_operating_parameters'),
    _copy(0x84, 0x04, 'RECEIVE COPY FAILURE DETAILS(LID1)',
          '00 ff 00000000000000 ffffffff 00 00', READ, 'copy_manager.receive_failure_details'),
    _copy(0x84, 0x05, 'RECEIVE COPY STATUS(LID4)',
          '00 ffffffff 00000000 ffffffff 00 00', READ, 'copy_manager.receive_status_lid4'),
    _copy(0x84, 0x06, 'RECEIVE COPY DATA(LID4)',
          '00 ffffffff 00000000 ffffffff 00 00', READ, 'copy_manager.receive_data_lid4'),
    _copy(0x84, 0x07, 'RECEIVE ROD TOKEN INFORMATION',
          '00 ffffffff 00000000 ffffffff 00 00', READ, 'copy_manager.receive_token_information'),
    _copy(0x84, 0x08, 'REPORT ALL ROD TOKENS',
          '00 0000000000000000 ffffffff 00 00', READ, 'rod_commands.report_all_tokens'),
    _medium(0x88, 'READ(16)', '1e ffffffffffffffff ffffffff 1f 00', READ, 'sbc.read'),
    _medium(0x89, 'COMPARE AND WRITE',
            '1a ffffffffffffffff 000000 ff 1f 00', WRITE, 'atomic_commands.compare_and_write',
            needs='maximum_compare_and_write_length'),
    _medium(0x8A, 'WRITE(16)', '1a ffffffffffffffff ffffffff 1f 00', WRITE, 'sbc.write'),
    _medium(0x8B, 'ORWRITE(16)', '1a ffffffffffffffff ffffffff 1f 00', WRITE, 'atomic_commands.orwrite'),
    _medium(0x8E, 'WRITE AND VERIFY(16)',
            '16 ffffffffffffffff ffffffff 1f 00', WRITE, 'sbc.write_and_verify'),
    _medium(0x8F, 'VERIFY(16)', '16 ffffffffffffffff ffffffff 1f 00', READ, 'sbc.verify'),
    _medium(0x90, 'PRE-FETCH(16)', '02 ffffffffffffffff ffffffff 1f 00', READ, 'sbc.pre_fetch'),
    row_of(0x91, None, 'SYNCHRONIZE CACHE(16)',
         '06 ffffffffffffffff ffffffff 1f 00', WRITE, 'sbc.synchronize_cache', medium=True),
    _medium(0x93, 'WRITE SAME(16)', '09 ffffffffffffffff ffffffff 1f 00', WRITE, 'provisioning.write_same'),
    _medium(0x9C, 'WRITE ATOMIC(16)',
            '18 ffffffffffffffff 0000 ffff 1f 00', WRITE, 'atomic_commands.write_atomic',
            needs='maximum_atomic_length'),
    row_of(0x9E, 0x10, 'READ CAPACITY(16)',
         '00 ffffffffffffffff ffffffff 01 00', ALWAYS, 'sbc.read_capacity_16', medium=True),
    row_of(0x9E, 0x12, 'GET LBA STATUS',
         '00 ffffffffffffffff ffffffff 00 00', READ, 'provisioning.get_lba_status', medium=True),
    row_of(0x9E, 0x13, 'REPORT REFERRALS',
         '00 ffffffffffffffff ffffffff 01 00', ALWAYS, 'sbc.report_referrals',
         needs='target_port_group_support'),
    row_of(0xA0, None, 'REPORT LUNS',
         '00 ff 000000 ffffffff 00 00', ALWAYS, 'spc.report_luns', exempt=True, during_operation=True),
    row_of(0xA3, 0x05, 'REPORT IDENTIFYING INFORMATION',
         '00 0000 0000 ffffffff fe 00', READ, 'identifying.report_identifying_information',
         during_operation=True),
    row_of(0xA3, 0x0A, 'REPORT TARGET PORT GROUPS',
         'e0 00000000 ffffffff 00 00', ALWAYS, 'spc.report_target_port_groups',
         needs='target_port_group_support', during_operation=True),
    row_of(0xA3, 0x0C, 'REPORT SUPPORTED OPERATION CODES',
         '00 87 ff ffff ffffffff 00 00', READ, 'spc.report_supported_operation_codes', during_operation=True),
    row_of(0xA3, 0x0D, 'REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS',
         '00 80 000000 ffffffff 00 00', READ, 'spc.report_supported_task_management_functions',
         during_operation=True),
    row_of(0xA3, 0x0F, 'REPORT TIMESTAMP',
         '00 00000000 ffffffff 00 00', STATUS, 'identifying.report_timestamp', during_operation=True),
    row_of(0xA4, 0x06, 'SET IDENTIFYING INFORMATION',
         '00 0000 0000 ffffffff fe 00', WRITE, 'identifying.set_identifying_information'),
    row_of(0xA4, 0x0A, 'SET TARGET PORT GROUPS',
         '00 00000000 ffffffff 00 00', WRITE, 'spc.set_target_port_groups', needs='explicit_alua'),
    row_of(0xA4, 0x0F, 'SET TIMESTAMP', '00 00000000 ffffffff 00 00', WRITE, 'identifying.set_timestamp'),
    _medium(0xA8, 'READ(12)', '1e ffffffff ffffffff 1f 00', READ, 'sbc.read'),
    _medium(0xAA, 'WRITE(12)', '1a ffffffff ffffffff 1f 00', WRITE, 'sbc.write'),
    _medium(0xAE, 'WRITE AND VERIFY(12)', '16 ffffffff ffffffff 1f 00', WRITE, 'sbc.write_and_verify'),
    _medium(0xAF, 'VERIFY(12)', '16 ffffffff ffffffff 1f 00', READ, 'sbc.verify'),
    _medium(0xB7, 'READ DEFECT DATA(12)', '1f ffffffff ffffffff 00 00', READ, 'sbc.read_defect_data_12'),
)
# fmt: on


class Commands(object):
    """The rows of a type of device, and which of them a unit offers."""

    def __init__(self, table: Sequence[Row]) -> None:
        self.table = table
        self._needs = sorted({row.needs for row in table if row.needs})
        self._offered: Dict[FrozenSet[str], Dict[int, Dict[Optional[int], Row]]] = {}

    def by_opcode(self, facts: UnitFacts) -> Dict[int, Dict[Optional[int], Row]]:
        """{opcode: {service action or None: Row}} of the commands that a unit with these facts offers.
        Units that offer the same commands share it."""
        available = frozenset(need for need in self._needs if getattr(facts, need))
        found = self._offered.get(available)
        if found is None:
            found = self._offered[available] = {}
            for row in self.table:
                if not row.needs or row.needs in available:
                    found.setdefault(row.opcode, {})[row.service_action] = row
        return found


by_opcode = Commands(TABLE).by_opcode  # of a disk


def name_of(opcode: int) -> str:
    """The name of the commands with this operation code, without the service action."""
    names = [row.name for row in TABLE if row.opcode == opcode]
    return names[0].split(',')[0] if names else 'command %02Xh' % opcode


#: {state of the medium: operation codes of the commands that can end it} after a FORMAT UNIT or a
#: SANITIZE has failed (SBC-3)
AFTER_FAILURE = {
    'format-failed': frozenset((FORMAT_UNIT, SANITIZE)),
    'sanitize-failed': frozenset((SANITIZE,)),
}


# Task management functions (SPC-4 6.36): name, byte and bit that report it, does this target perform
# it?
# fmt: off
TASK_MANAGEMENT = (
    ('ABORT TASK', 0, 0x80, True),
    ('ABORT TASK SET', 0, 0x40, True),
    ('CLEAR ACA', 0, 0x20, False),  # NACA is refused, so no ACA condition can exist
    ('CLEAR TASK SET', 0, 0x10, True),
    ('LOGICAL UNIT RESET', 0, 0x08, True),
    ('QUERY TASK', 0, 0x04, False),
    ('TARGET RESET', 0, 0x02, True),
    ('QUERY ASYNCHRONOUS EVENT', 1, 0x04, False),
    ('QUERY TASK SET', 1, 0x02, False),
    ('I_T NEXUS RESET', 1, 0x01, False),
)
# fmt: on
