"""The primary commands (SPC-4, SPC-2 for RESERVE and RELEASE). Pure.

dispatch.py describes admission functions. Run functions take the task, and use task.unit.
"""

import struct
from typing import Any, Dict, Optional

from targetd.scsi import alua, modes, opcodes, persistent_reserve, sense
from targetd.scsi.cdb import u16, u32
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sam import Change, Task
from targetd.scsi.sense import NO_SENSE, CheckCondition

# INQUIRY version descriptors, SPC-4 table 135: SAM-5, iSCSI, SPC-4, and by device type SBC-3 or SSC-3, no
# version claimed; an optical drive claims no command set of its own.
VERSION_DESCRIPTORS = (0x00A0, 0x0960, 0x0460)
COMMAND_SETS = {0x00: (0x04C0,), 0x01: (0x0400,)}
STANDARD_INQUIRY = struct.Struct('>BBBBBBBB8s16s4s22x8H22x')

# Peripheral qualifier and device type, INQUIRY byte 0 (SPC-4 6.6.2).
DISK = 0x00
WELL_KNOWN = 0x1E
# Peripheral qualifier 001b: the target can have a unit here, but does not. With 011b, SCSIport of
# Windows would not look for other LUNs.
ABSENT_LUN_0 = 0x3F
ABSENT = 0x7F

RECOMMENDED_TIMEOUT_SECONDS = 60


def inquiry_data(facts: UnitFacts, qualifier: int = DISK, ports: int = 1) -> bytes:
    """Standard INQUIRY data, 96 bytes (SPC-4 6.6.2). qualifier: byte 0; ports: number of ports of
    the target. HISUP is set for old Windows, which finds no LUN above 7 without it."""
    is_copy_manager = facts.third_party_copy and qualifier == DISK
    claimed = VERSION_DESCRIPTORS + COMMAND_SETS.get(facts.device_type, ())
    descriptors = claimed + (0,) * (8 - len(claimed))
    return STANDARD_INQUIRY.pack(
        qualifier,
        0x80 if facts.removable else 0,
        0x06,
        0x12,
        STANDARD_INQUIRY.size - 5,
        facts.target_port_group_support << 4 | (0x08 if is_copy_manager else 0),
        0x10 if ports > 1 else 0,
        0x02,
        ascii_field(facts.vendor, 8),
        ascii_field(facts.product, 16),
        ascii_field(facts.revision, 4),
        *descriptors,
    )


def ascii_field(value: str, length: int) -> bytes:
    """Left-aligned ASCII of exactly `length` bytes (SPC-4); characters that are not printable become
    '?'."""
    data = bytes(c if 0x20 <= c < 0x7F else 0x3F for c in value.encode('latin-1', 'replace'))
    return data[:length].ljust(length)


#: The Change that changes nothing: the master makes the replica of the reservations current.
REFRESH = 'refresh'


def answer(task: Task, data: bytes, allocation_length: int) -> None:
    """Make run() return `data`, cut at the allocation length (SPC-4)."""
    task.private = data[:allocation_length]
    task.run = _return_private


def _return_private(task: Task) -> bytes:
    return task.private


def _good(task: Task) -> None:
    return None


def parameter_list(task: Task, length: int) -> bytes:
    """The parameter list of a task whose CDB announced `length` bytes. Raises CheckCondition
    05/1A/00 if the initiator sent less."""
    data = bytes(task.data_out or b'')[:length]
    if len(data) < length:
        raise sense.parameter_list_length_error()
    return data


# -- commands that absent units support, too -----------------------------------------------------


def inquiry(unit: Any, task: Task) -> None:
    """INQUIRY, SPC-4 6.6."""
    cdb = task.cdb
    if not cdb[1] & 1:
        if cdb[2]:
            raise sense.invalid_field_in_cdb(2)
        data = inquiry_data(unit.facts, unit.qualifier, len(unit.device.ports))
    else:
        data = unit.vpd_page(cdb[2])
    answer(task, data, u16(cdb, 3))


def request_sense(unit: Any, task: Task) -> None:
    """REQUEST SENSE, SPC-4 6.39: reports and clears a pending unit attention; otherwise reports why
    the unit is not ready; otherwise NO SENSE."""
    found = unit.take_sense() or CheckCondition(NO_SENSE, 0, 0)
    answer(task, found.sense(bool(task.cdb[1] & 1)), task.cdb[4])


def report_luns(unit: Any, task: Task) -> None:
    """REPORT LUNS, SPC-4 6.33."""
    cdb = task.cdb
    if u32(cdb, 6) < 16:
        raise sense.invalid_field_in_cdb(6)
    fields = unit.device.lun_fields(cdb[2])
    if fields is None:
        raise sense.invalid_field_in_cdb(2)
    unit.luns_reported()
    answer(task, struct.pack('>I4x%dQ' % len(fields), 8 * len(fields), *fields), u32(cdb, 6))


# -- commands of a logical unit --------------------------------------------------------------------


def test_unit_ready(unit: Any, task: Task) -> None:
    """TEST UNIT READY, SPC-4 6.47: admission has already raised all errors."""
    task.run = _good


def mode_sense(unit: Any, task: Task) -> None:
    """MODE SENSE(6) and (10), SPC-4 6.13, 6.14."""
    cdb = task.cdb
    long_header = cdb[0] == opcodes.MODE_SENSE_10
    data = modes.mode_sense_data(
        unit.modes,
        unit.facts,
        cdb[2] & 0x3F,
        cdb[3],
        cdb[2] >> 6,
        bool(cdb[1] & 0x08),
        long_header,
        bool(cdb[1] & 0x10),
        unit.blocks,
        unit.read_only,
    )
    answer(task, data, u16(cdb, 7) if long_header else cdb[4])


def mode_select(unit: Any, task: Task) -> None:
    """MODE SELECT(6) and (10), SPC-4 6.11, 6.12: checked here, executed by the master."""
    cdb = task.cdb
    task.length = task.data_out_length = u16(cdb, 7) if cdb[0] == opcodes.MODE_SELECT_10 else cdb[4]
    revert = task.cdb[1] & 0x02  # RTD: back to the defaults, without a list
    task.run = _run_mode_select if task.length or revert else _good


def _run_mode_select(task: Task) -> Change:
    cdb, unit = task.cdb, task.unit
    arguments = modes.parse_select(
        unit.modes,
        unit.facts,
        parameter_list(task, task.length),
        cdb[0] == opcodes.MODE_SELECT_10,
        bool(cdb[1] & 0x10),
        bool(cdb[1] & 0x01),
        unit.blocks,
        bool(cdb[1] & 0x02),
    )
    return Change('mode-select', arguments)


def reserve(unit: Any, task: Task) -> None:
    """RESERVE(6) and (10), SPC-2 7.21, of the whole unit for this nexus; the mask of the row refuses
    third parties and extents."""
    task.run = _run_reserve


def _run_reserve(task: Task) -> Change:
    return Change('reserve', persistent_reserve.parse_reserve(task.cdb))


def release(unit: Any, task: Task) -> None:
    """RELEASE(6) and (10), SPC-2 7.18."""
    task.run = _run_release


def _run_release(task: Task) -> Change:
    return Change('release', persistent_reserve.parse_reserve(task.cdb))


def persistent_reserve_in(unit: Any, task: Task) -> None:
    """PERSISTENT RESERVE IN, SPC-4 6.15, from the replica. If another server serves the unit, the master
    looks first what is in force there."""
    if alua.is_elsewhere(unit.access):
        task.run = _run_refresh
    else:
        answer(task, reservation_data(unit, task.cdb), u16(task.cdb, 7))


def _run_refresh(task: Task) -> Change:
    return Change(REFRESH, {})


def refreshed_data(task: Task) -> bytes:
    """The data of a PERSISTENT RESERVE IN whose Change the master has answered."""
    return reservation_data(task.unit, task.cdb)[: u16(task.cdb, 7)]


def reservation_data(unit: Any, cdb: bytes) -> bytes:
    """What PERSISTENT RESERVE IN returns."""
    action, state = cdb[1] & 0x1F, unit.reservations
    if action == 0x00:
        return persistent_reserve.read_keys(state)
    if action == 0x01:
        return persistent_reserve.read_reservation(state)
    if action == 0x02:
        return persistent_reserve.report_capabilities(state)
    return persistent_reserve.read_full_status(state, unit.device.ports)


def persistent_reserve_out(unit: Any, task: Task) -> None:
    """PERSISTENT RESERVE OUT, SPC-4 6.16: parsed here, executed by the master."""
    task.length = task.data_out_length = u32(task.cdb, 5)
    if task.length > 1 << 16:  # enough for many TransportIDs; a buffer of this size is allocated
        raise sense.parameter_list_length_error()
    task.run = _run_persistent_reserve_out


def _run_persistent_reserve_out(task: Task) -> Change:
    data = parameter_list(task, task.length)
    return Change(
        'persistent-reserve-out',
        persistent_reserve.parse_out(task.cdb, data, task.unit.device.ports),
    )


# -- target port groups ----------------------------------------------------------------------------


def report_target_port_groups(unit: Any, task: Task) -> None:
    """REPORT TARGET PORT GROUPS, SPC-4 6.37, from the replica."""
    parameter_format = task.cdb[1] >> 5
    if parameter_format > 1:
        raise sense.invalid_field_in_cdb(1, 7)
    answer(
        task,
        alua.report_data(unit.access, unit.device.ports, parameter_format == 1),
        u32(task.cdb, 6),
    )


def set_target_port_groups(unit: Any, task: Task) -> None:
    """SET TARGET PORT GROUPS, SPC-4 6.45: parsed here, executed by the master."""
    task.length = task.data_out_length = u32(task.cdb, 6)
    if task.length > 1 << 16:
        raise sense.parameter_list_length_error()
    task.run = _run_set_target_port_groups if task.length else _good


def _run_set_target_port_groups(task: Task) -> Change:
    return Change(
        'set-target-port-groups',
        alua.parse_set(task.unit.access, parameter_list(task, task.length)),
    )


# -- supported commands, from the table ------------------------------------------------------------


def report_supported_operation_codes(unit: Any, task: Task) -> None:
    """REPORT SUPPORTED OPERATION CODES, SPC-4 6.35."""
    cdb = task.cdb
    timeouts, options = bool(cdb[2] & 0x80), cdb[2] & 7
    opcode, service_action = cdb[3], u16(cdb, 4)
    if options == 0:
        data = b''.join(
            command_descriptor(row, timeouts)
            for rows in unit.commands.values()
            for row in rows.values()
        )
        data = struct.pack('>I', len(data)) + data
    else:
        data = _one_command(
            _requested_row(unit.commands.get(opcode), options, service_action), timeouts
        )
    answer(task, data, u32(cdb, 6))


def _requested_row(
    rows: Optional[Dict[Optional[int], opcodes.Row]], options: int, service_action: int
) -> Optional[opcodes.Row]:
    """The requested Row, or None if the unit does not have it. Raises CheckCondition 05/24/00 if
    REPORTING OPTIONS and operation code do not fit together."""
    has_service_actions = rows is not None and None not in rows
    lacks_service_actions = rows is not None and None in rows
    does_not_fit = {1: has_service_actions, 2: lacks_service_actions, 3: False}.get(options, True)
    if does_not_fit:
        raise sense.invalid_field_in_cdb(2, 2)
    if rows is None:
        return None
    if has_service_actions:
        return rows.get(service_action)
    return rows[None] if options != 3 or service_action == 0 else None


def _timeouts(row: opcodes.Row) -> bytes:
    """The timeouts descriptor (SPC-4 6.35). None is recommended for commands that process the whole
    medium."""
    is_long = row.opcode in (opcodes.FORMAT_UNIT, opcodes.SANITIZE)
    return struct.pack('>HxBII', 10, 0, 0, 0 if is_long else RECOMMENDED_TIMEOUT_SECONDS)


def command_descriptor(row: opcodes.Row, timeouts: bool) -> bytes:
    flags = (0x02 if timeouts else 0) | (0x01 if row.service_action is not None else 0)
    descriptor = struct.pack('>BxHxBH', row.opcode, row.service_action or 0, flags, len(row.mask))
    return descriptor + _timeouts(row) if timeouts else descriptor


def _one_command(row: Optional[opcodes.Row], timeouts: bool) -> bytes:
    if row is None:
        return struct.pack('>xBH', 0x01, 0)
    head = struct.pack('>xBH', (0x80 if timeouts else 0) | 0x03, len(row.mask))
    return head + row.usage + (_timeouts(row) if timeouts else b'')


def report_supported_task_management_functions(unit: Any, task: Task) -> None:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, SPC-4 6.36."""
    data = bytearray(4)
    for _, offset, bit, supported in opcodes.TASK_MANAGEMENT:
        data[offset] |= bit if supported else 0
    # REPD: the extended format, with timeouts; no timeout is reported (TMFTMOV 0)
    if task.cdb[2] & 0x80:
        data[3] = 12
        data += bytes(12)
    answer(task, bytes(data), u32(task.cdb, 6))
