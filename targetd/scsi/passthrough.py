"""A real SCSI device as a logical unit (type = passthrough): which commands are forwarded to it, with which
direction and length, and what becomes of its answers. Pure: store.sg_device sends the commands.

The device knows one nexus, that of this host, and its initiators share it:

    forwarded as it is      what passthrough_opcodes lists; status, sense data, data and residual come back
    the target's own        REPORT LUNS, reservations, target port groups, task management functions
    both                    INQUIRY (pages of the device, ports of the target), REQUEST SENSE, REPORT
                            SUPPORTED OPERATION CODES, PREVENT ALLOW MEDIUM REMOVAL (one prevention
                            for all nexuses)

A unit attention that the device reports once is one of every nexus; so is what a command of one nexus changes
for the others. Admission functions work as described in dispatch. Every forwarded command runs in an executor
thread, since the call returns only when the device has answered.
"""

import errno
import struct
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from targetd.scsi import attention, errno_map, passthrough_opcodes, sam, sbc, sense, spc, vpd
from targetd.scsi.cdb import u16, u32
from targetd.scsi.passthrough_opcodes import DISKS, TAPE, Transfer
from targetd.scsi.sam import Change
from targetd.scsi.sense import (
    ABORTED_COMMAND,
    HARDWARE_ERROR,
    UNIT_ATTENTION,
    CheckCondition,
    StatusReturned,
)

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

# Statuses of the SCSI layer of Linux (include/scsi/scsi_status.h) and of its drivers. With DRIVER_SENSE,
# there is sense data.
DID_NO_CONNECT, DID_BUS_BUSY, DID_TIME_OUT, DID_BAD_TARGET = 0x01, 0x02, 0x03, 0x04
DID_IMM_RETRY, DID_REQUEUE = 0x0C, 0x0D
DRIVER_TIMEOUT, DRIVER_SENSE = 0x06, 0x08
#: The command has not reached the device, and may be sent again.
NOT_SENT = frozenset((DID_BUS_BUSY, DID_IMM_RETRY, DID_REQUEUE))

#: Errors of the ioctl after which the device is gone.
GONE = frozenset((errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EBADF))

NACA, LINK = 0x04, 0x01  # in the CONTROL byte: not supported by the target
#: The bytes that REPORT SUPPORTED OPERATION CODES asks the device for. Some refuse to be asked for more (the
#: scsi_debug driver of Linux).
OPCODES_LENGTH = 0xFFFC


class DeviceSense(CheckCondition):
    """CHECK CONDITION of the device: its sense data goes to the initiator as it is.

    raw: the sense data; data: Data-In that arrived, or None."""

    def __init__(self, raw: bytes, data: Any = None) -> None:
        padded = bytes(raw) + bytes(14)
        if padded[0] & 0x7F in (0x72, 0x73):
            found = padded[1] & 15, padded[2], padded[3]
        else:
            found = padded[2] & 15, padded[12], padded[13]
        super(DeviceSense, self).__init__(*found, data=data)
        self.raw = bytes(raw)

    def sense(self, descriptor: bool = False) -> bytes:
        return self.raw


# -- forwarding ------------------------------------------------------------------------------------


def forward(unit: 'LogicalUnit', task: 'Task') -> None:
    """Any command that the device executes as it is."""
    transfer = passthrough_opcodes.commands_of(unit.facts).transfer_of(task.cdb)
    _prepare(unit, task, transfer)
    task.run, task.run_blocking = sbc.would_block, _run


def read(unit: 'LogicalUnit', task: 'Task') -> None:
    """A command that reads; it counts as one."""
    forward(unit, task)


def write(unit: 'LogicalUnit', task: 'Task') -> None:
    """A command that writes; it counts as one."""
    forward(unit, task)


def _prepare(unit: 'LogicalUnit', task: 'Task', transfer: Transfer) -> None:
    """Check what the CDB and the transport say about the data, and set task.length, task.data_out_length, and
    task.private: (bytes of Data-In, seconds)."""
    _check_control(task.cdb)
    given_in = task.edtl if task.expects_read else 0
    given_out = task.edtl if task.expects_write else 0
    if task.expects_read and task.expects_write:
        raise sense.invalid_field_in_information_unit()
    direction = transfer.direction
    if direction == 'any':
        direction = 'out' if given_out else 'in'
    length = passthrough_opcodes.wanted_length(transfer, task.cdb, unit.facts.transfer_block)
    if length is None:
        length = given_out if direction == 'out' else given_in
    limit = unit.facts.maximum_transfer_length or length
    if length > limit and given_in <= limit and passthrough_opcodes.is_allocation(transfer):
        # the initiator takes less than that, and the device may send less
        task.cdb, length = passthrough_opcodes.with_length(transfer, task.cdb, limit), limit
    if length > limit:
        raise sense.invalid_field_in_cdb(transfer.offset or 2)
    # less than the device expects would be completed with anything; what it does not expect gets lost
    if given_out < length if direction == 'out' else given_out:
        raise sense.invalid_field_in_information_unit()
    task.offset, task.length = 0, length
    task.data_out_length = length if direction == 'out' else 0
    task.private = (0 if direction == 'out' else length, transfer.seconds)


def _check_control(cdb: bytes) -> None:
    """Refuse an ACA condition and linked commands, which the target does not have."""
    group = cdb[0] >> 5
    if group > 5:  # vendor-specific
        return
    at = 1 if cdb[0] == 0x7F else passthrough_opcodes.cdb_length(cdb) - 1
    for flag, bit in ((NACA, 2), (LINK, 0)):
        if cdb[at] & flag:
            raise sense.invalid_field_in_cdb(at, bit)


def is_patient(task: 'Task') -> bool:
    """Is this a command of a real device that may take longer than usual? [any]"""
    facts, private = getattr(task.unit, 'facts', None), getattr(task, 'private', None)
    return bool(
        facts
        and facts.passthrough
        and isinstance(private, tuple)
        and private[1] > passthrough_opcodes.NORMAL
    )


def _run(task: 'Task') -> Any:
    """Executor threads: send the command of a task."""
    if task.aborted:
        return None
    length, seconds = task.private
    data = memoryview(task.data_out or b'')[: task.data_out_length]
    if len(data) < task.data_out_length:
        raise sense.invalid_field_in_information_unit()
    code = task.cdb[: passthrough_opcodes.cdb_length(task.cdb)]
    outcome = execute(task.unit, code, data, length, seconds)
    task.data_out_length = max(0, task.data_out_length - outcome.residual)
    return _answer(task.unit, task, outcome, outcome.data if length else None)


def execute(unit: 'LogicalUnit', code: bytes, data: Any, length: int, seconds: int) -> Any:
    """The Outcome (sg_io) of a command that the device has answered. Raises CheckCondition or StatusReturned
    if it has not. Executor threads."""
    try:
        outcome = unit.store.execute(code, data, length, seconds)
    except OSError as e:
        raise _not_executed(unit, e)
    if outcome.status == sam.GOOD:
        _check_transport(unit, outcome)
    return outcome


def _answer(unit: 'LogicalUnit', task: 'Task', outcome: Any, data: Any) -> Any:
    """What the command returns; raises the errors of the device."""
    if outcome.status == sam.GOOD:
        return _after_good(unit, task, data)
    if outcome.status == sam.CHECK_CONDITION:
        raise _check_condition(unit, outcome, data)
    raise StatusReturned(outcome.status)


def _check_condition(unit: 'LogicalUnit', outcome: Any, data: Any) -> CheckCondition:
    if not outcome.sense:
        return CheckCondition(*errno_map.INTERNAL, data=data)
    found = DeviceSense(outcome.sense, data or None)
    _share(unit, found)
    return found


def _share(unit: 'LogicalUnit', found: DeviceSense) -> None:
    """The device reports a unit attention condition to this host once: the other nexuses have it too."""
    if found.key == UNIT_ATTENTION:
        unit.services.share_attention(found.asc, found.ascq)


# -- a device that does not answer -----------------------------------------------------------------


def gone(unit: 'LogicalUnit') -> CheckCondition:
    """The CheckCondition of a command while the device is not there: as if the medium had been removed. Linux
    never uses a fixed disk again that has reported MEDIUM NOT PRESENT."""
    return CheckCondition(
        *(errno_map.NO_MEDIUM if unit.facts.removable else errno_map.UNIT_FAILURE)
    )


def _key(unit: 'LogicalUnit') -> int:
    """The sense key of a command of which it is not known how far it came: initiators repeat what has ended
    with ABORTED COMMAND, which would write to a tape twice."""
    return HARDWARE_ERROR if unit.is_sequential else ABORTED_COMMAND


def _not_executed(unit: 'LogicalUnit', error: OSError) -> Exception:
    """The refusal of a command for which the ioctl failed."""
    if error.errno in GONE:
        return gone(unit)
    if error.errno in (errno.EDOM, errno.EAGAIN, errno.EBUSY):  # too many at the same time
        return StatusReturned(sam.TASK_SET_FULL)
    if error.errno in (errno.EINVAL, errno.EMSGSIZE):  # the CDB is too long, or so is the transfer
        return sense.invalid_field_in_cdb(0)
    return errno_map.write_failure(error)


def _check_transport(unit: 'LogicalUnit', outcome: Any) -> None:
    """Raise what the kernel's SCSI layer reports in place of a status of the device."""
    if not outcome.host and outcome.driver in (0, DRIVER_SENSE):
        return
    if outcome.host in (DID_NO_CONNECT, DID_BAD_TARGET):
        raise gone(unit)
    if outcome.host in NOT_SENT:
        raise StatusReturned(sam.BUSY)
    if outcome.host == DID_TIME_OUT or outcome.driver == DRIVER_TIMEOUT:
        raise CheckCondition(_key(unit), 0x3E, 0x02)
    raise CheckCondition(_key(unit), 0x08, 0x00)


# -- what a command changes, and what is changed in its data ---------------------------------------

LOAD = 0x01  # START STOP UNIT, LOAD UNLOAD: byte 4
LOEJ = 0x02
#: {operation code: unit attention condition that its success establishes for the other nexuses}
CHANGES_FOR_OTHERS: Dict[int, Tuple[int, int]] = {
    0x04: attention.MEDIUM_MAY_HAVE_CHANGED,
    0x15: attention.MODE_PARAMETERS_CHANGED,
    0x4C: attention.LOG_PARAMETERS_CHANGED,
    0x55: attention.MODE_PARAMETERS_CHANGED,
}


def _after_good(unit: 'LogicalUnit', task: 'Task', data: Any) -> Any:
    cdb = task.cdb
    change = CHANGES_FOR_OTHERS.get(cdb[0])
    is_loaded = cdb[0] == 0x1B and cdb[4] & LOAD
    if is_loaded and (unit.facts.peripheral_type == TAPE or cdb[4] & LOEJ):
        change = attention.MEDIUM_MAY_HAVE_CHANGED
    if change:
        unit.services.share_attention(*change)
    edit = _EDITS.get(cdb[0])
    return data if edit is None or not data else edit(unit, cdb, data)


def _with_write_protection(unit, cdb, data):
    """MODE SENSE: the WP bit of a unit that may not be written."""
    at = 2 if cdb[0] == 0x1A else 3
    if unit.read_only and unit.facts.peripheral_type in DISKS | {TAPE} and len(data) > at:
        data[at] |= 0x80
    return data


def _within_limit(unit, cdb, data):
    """READ BLOCK LIMITS of a tape drive: not more than this host can transfer."""
    limit = unit.facts.maximum_transfer_length
    if limit and len(data) >= 4 and not cdb[1] & 1:
        longest = int.from_bytes(data[1:4], 'big')
        data[1:4] = min(longest or limit, limit, 0xFFFFFF).to_bytes(3, 'big')
    return data


_EDITS: Dict[int, Callable[..., Any]] = {
    0x05: _within_limit,
    0x1A: _with_write_protection,
    0x5A: _with_write_protection,
}


# -- INQUIRY ---------------------------------------------------------------------------------------

#: Pages that are about ports and nexuses of the device, or about what the target does not forward: they are
#: left out (SCSI ports are those of the target).
_LEFT_OUT = frozenset((0x00, 0x88, 0x8F, 0x90, 0x91))
BLOCK_LIMITS = 0xB0


def inquiry(unit: 'LogicalUnit', task: 'Task') -> None:
    """INQUIRY, SPC-4 6.6, from what the device said when it was opened: it is answered without the device,
    also while that executes another command or is gone."""
    cdb = task.cdb
    if cdb[1] & 1:
        data = vpd_page(unit, cdb[2])
    elif cdb[2]:
        raise sense.invalid_field_in_cdb(2)
    else:
        data = inquiry_data(unit)
    spc.answer(task, data, u16(cdb, 3))


def inquiry_data(unit: 'LogicalUnit') -> bytes:
    """The standard INQUIRY data of the device, without what the target does not have: ACA, access controls,
    third-party copies, protection information; with its target port groups, and with HISUP (as in spc)."""
    data = bytearray(bytes.fromhex(unit.facts.inquiry).ljust(36, b'\0'))
    data[0] = unit.facts.peripheral_type
    data[3] = data[3] & ~0x20 & 0xFF | 0x10
    data[5] = data[5] & ~0x79 & 0xFF | unit.facts.target_port_group_support << 4
    data[6] = data[6] & ~0x10 & 0xFF | (0x10 if len(unit.device.ports) > 1 else 0)
    return bytes(data)


def pages_of(facts: Any) -> Dict[int, bytes]:
    """{code: page} of the VPD pages of the device that initiators see."""
    found = {}
    for text in facts.vital_pages.split():
        code, _, digits = text.partition(':')
        if int(code, 16) not in _LEFT_OUT:
            found[int(code, 16)] = bytes.fromhex(digits)
    return found


def vpd_page(unit: 'LogicalUnit', code: int) -> bytes:
    """A VPD page: that of the device, with the limits and the ports of the target. The designators of the
    unit are the device's own, so that it is the same disk or tape wherever it is seen; those of its ports are
    replaced by those of the target. Raises CheckCondition 05/24/00 if there is none."""
    facts, pages = unit.facts, pages_of(unit.facts)
    codes = sorted(set(pages) | {0x00, 0x83, 0x88})
    if code not in codes:
        raise sense.invalid_field_in_cdb(2)
    if code == 0x00:
        body = bytes(codes)
    elif code == 0x88:
        body = vpd.scsi_ports(facts, unit.nexus, unit.device.ports)
    elif code == 0x83:
        body = own_designators(pages.get(code, b'')) or vpd.designators_of_units(facts)
        body += vpd.port_designators(facts, unit.nexus, unit.device.ports)
    else:
        body = _edited_page(facts, code, pages[code][4:])
    return vpd.HEADER.pack(facts.peripheral_type, code, len(body)) + body


def own_designators(page: bytes) -> bytes:
    """The designators of the logical unit in a page 83h (SPC-4 7.7.3)."""
    found, at = b'', 4
    while at + 4 <= len(page):
        end = at + 4 + page[at + 3]
        if not page[at + 1] & 0x30 and end <= len(page):
            found += page[at:end]
        at = end
    return found


def _edited_page(facts: Any, code: int, body: bytes) -> bytes:
    data = bytearray(body)
    if code == 0x86 and len(data) > 4:
        data[0] &= 0xC0  # SPT, GRD_CHK, APP_CHK, REF_CHK: no protection information is transferred
    if code == BLOCK_LIMITS and facts.peripheral_type in DISKS and len(data) >= 8:
        limit = facts.maximum_transfer_length // (facts.transfer_block or 512)
        reported = int.from_bytes(data[4:8], 'big')
        longest = min(reported or limit, limit) if limit else reported
        data[4:8] = struct.pack('>I', longest)
        if longest:
            optimal = int.from_bytes(data[8:12], 'big')
            data[8:12] = struct.pack('>I', min(optimal, longest))
    return bytes(data)


# -- the other commands that both execute ----------------------------------------------------------


def request_sense(unit: 'LogicalUnit', task: 'Task') -> None:
    """REQUEST SENSE, SPC-4 6.39: a condition of the nexus, else the answer of the device."""
    found = unit.take_sense()
    if found is not None:
        spc.answer(task, found.sense(bool(task.cdb[1] & 1)), task.cdb[4])
        return
    _prepare(unit, task, Transfer('in', 4, 1, 'bytes', 0, passthrough_opcodes.NORMAL))
    task.run, task.run_blocking = sbc.would_block, _run_request_sense


def _run_request_sense(task):
    data = _run(task)
    if data:
        _share(task.unit, DeviceSense(bytes(data)))
    return data


def prevent_allow(unit: 'LogicalUnit', task: 'Task') -> None:
    """PREVENT ALLOW MEDIUM REMOVAL, SBC-3 5.10. The device knows one nexus. It is told to prevent the removal
    before the master notes that this nexus wants so; and the master tells it to allow the removal when no
    nexus prevents it any more, also after the end of a session."""
    task.length = 0
    if task.cdb[4] & 3:
        _prepare(unit, task, Transfer('none', 0, 0, 'bytes', 0, passthrough_opcodes.NORMAL))
        task.run, task.run_blocking = sbc.would_block, _run_prevent
    else:
        task.private = Change('prevent', {'prevent': False})
        task.run = sbc.run_change


def _run_prevent(task):
    _run(task)
    return None if task.aborted else Change('prevent', {'prevent': True})


# -- REPORT SUPPORTED OPERATION CODES --------------------------------------------------------------


def report_supported_operation_codes(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT SUPPORTED OPERATION CODES, SPC-4 6.35: of the device, without what the filter refuses, and with
    the commands of the target."""
    cdb = task.cdb
    rows = unit.commands.get(cdb[3])
    if cdb[2] & 7 and (rows is None or _is_own(rows, u16(cdb, 4))):
        spc.report_supported_operation_codes(unit, task)
        return
    _prepare(unit, task, Transfer('in', 6, 4, 'bytes', 0, passthrough_opcodes.NORMAL))
    task.run, task.run_blocking = sbc.would_block, _run_report_opcodes


def _is_own(rows, service_action):
    row = rows[None] if None in rows else rows.get(service_action)
    return row is None or row.function.startswith('spc.') or row in passthrough_opcodes.SHARED


def _run_report_opcodes(task):
    if task.aborted:
        return None
    unit, cdb = task.unit, task.cdb
    limit = unit.facts.maximum_transfer_length or OPCODES_LENGTH
    length = min(OPCODES_LENGTH, limit)
    code = cdb[:6] + struct.pack('>I', length) + cdb[10:12]
    outcome = execute(unit, code, b'', length, task.private[1])
    data = _answer(unit, task, outcome, outcome.data)
    if not cdb[2] & 7:
        data = _all_opcodes(unit, bytes(data), bool(cdb[2] & 0x80))
    return data[: u32(cdb, 6)]


def _all_opcodes(unit, data, timeouts):
    """The list of all commands: those of the device that are forwarded, and those of the target."""
    found, at = [], 4
    end = min(len(data), 4 + u32(data, 0)) if len(data) >= 4 else 0
    while at + 8 <= end:
        size = 20 if data[at + 5] & 2 else 8
        rows = unit.commands.get(data[at], {})
        if rows and not _is_own(rows, u16(data, at + 2)):
            found.append(data[at : at + size])
        at += size
    for rows in unit.commands.values():
        for service_action, row in rows.items():
            if _is_own(rows, service_action):
                found.append(spc.command_descriptor(row, timeouts))
    listed = b''.join(sorted(found))
    return struct.pack('>I', len(listed)) + listed
