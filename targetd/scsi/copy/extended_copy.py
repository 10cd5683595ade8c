"""EXTENDED COPY (SPC-4 6.4, 6.5): copies data between units of this server without a transfer to
the initiator. Pure.

A parameter list names the units (CSCD descriptors, with the designators of VPD page 83h) and the
ranges to copy (segment descriptors). The whole list is checked before data is copied; errors in it
are 05/26. An error of a segment or of one of its units is 0A (COPY ABORTED), with the number of the
segment and, if a store or a reservation refused, with the status of that unit.

The copy manager acts for the nexus that sent the command. It reaches the units of its target and
those of other targets of the server to which the initiator may log in (`services.copy_guests`). A
reservation of another nexus stops it at both units as it would stop a READ or a WRITE. An event
that units the tasks of one of the units (a reset, a preemption with abort, a sanitize) units the copy
with COPY ABORTED. IMMED is accepted, and the status is sent when the copy has ended.
"""

import struct
from collections import namedtuple
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple

from targetd.scsi import designators, errno_map, medium_state, sense
from targetd.scsi.cdb import u16, u32
from targetd.scsi.copy import copy_manager
from targetd.scsi.reservation_classes import READ, WRITE, conflicts
from targetd.scsi.sam import CHECK_CONDITION, RESERVATION_CONFLICT, WOULD_BLOCK
from targetd.scsi.sense import (
    COPY_ABORTED,
    HARDWARE_ERROR,
    CheckCondition,
    CopyFailure,
    StatusReturned,
)

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

# bytes of one copy() call of the store; a copy can be stopped between two calls
STEP = 16 << 20
CSCD_LENGTH = 32
OWN_UNIT = 0xFFFF  # CSCD descriptor ID: the unit that received the command, SPC-4 table 128
PLAIN_CDB = bytes(16)
DISK = 0x00  # PERIPHERAL DEVICE TYPE
NAME_IS_KEPT = (0x00, 0x10)  # LIST ID USAGE 00b, 10b
NAMELESS = 0x18  # LIST ID USAGE 11b

Segment = namedtuple('Segment', 'number offset body')
ParameterList = namedtuple('ParameterList', 'list_identifier is_named cscds cscds_at segments')

SEGMENT_LENGTHS = {
    copy_manager.BLOCK_TO_BLOCK: 28,
    copy_manager.VERIFY_CSCD: 12,
    copy_manager.BLOCK_TO_BLOCK_OFFSET: 32,
}


# -- the parameter list ----------------------------------------------------------------------------


def parse(data: bytes, is_lid1: bool) -> ParameterList:
    """Returns the ParameterList of an EXTENDED COPY. Raises CheckCondition 05/1A/00 if it is
    truncated, 05/26 if it is not valid."""
    if len(data) < (16 if is_lid1 else 48):
        raise sense.parameter_list_length_error()
    if is_lid1:
        list_identifier, usage, cscd_length, segment_length, inline_length = struct.unpack_from(
            '>BBH4xII', data
        )
        at, usage_at = 16, 1
    else:
        _check_lid4_header(data)
        usage, (list_identifier, cscd_length, segment_length, inline_length) = (
            data[1],
            struct.unpack_from('>I18xHHH', data, 20),
        )
        at, usage_at = 48, 1
    if cscd_length + segment_length > copy_manager.MAXIMUM_DESCRIPTOR_LIST:
        raise sense.parameter_list_length_error()
    if inline_length:
        raise CheckCondition(
            sense.ILLEGAL_REQUEST, 0x26, 0x0B, field=(at - 4 if is_lid1 else at - 2, None, False)
        )
    if len(data) < at + cscd_length + segment_length:
        raise sense.parameter_list_length_error()
    is_named = _is_named(usage & 0x18, list_identifier, usage_at, 0 if is_lid1 else 20)
    cscds = _cscds(data, at, cscd_length, 2 if is_lid1 else 42)
    segments = _segments(data, at + cscd_length, segment_length)
    return ParameterList(list_identifier, is_named, cscds, at, segments)


def _check_lid4_header(data):
    if data[0] != 0x01:
        raise sense.invalid_field_in_parameter_list(0)
    if u16(data, 2) != 0x20:
        raise sense.invalid_field_in_parameter_list(2)
    if data[15] & 0x02:  # G_SENSE: sense data with GOOD status, which is not supported
        raise sense.invalid_field_in_parameter_list(15, 1)
    if data[16] != 0xFF:
        raise sense.invalid_field_in_parameter_list(16)


def _is_named(usage, list_identifier, usage_at, identifier_at):
    if usage == NAMELESS:
        if list_identifier:
            raise sense.invalid_field_in_parameter_list(identifier_at)
        return False
    if usage not in NAME_IS_KEPT:
        raise sense.invalid_field_in_parameter_list(usage_at, 4)
    return True


def _cscds(data, at, length, length_at):
    if length % CSCD_LENGTH:
        raise sense.invalid_field_in_parameter_list(length_at)
    if length > CSCD_LENGTH * copy_manager.MAXIMUM_CSCDS:
        raise CheckCondition(sense.ILLEGAL_REQUEST, 0x26, 0x06, field=(length_at, None, False))
    cscds = [data[n : n + CSCD_LENGTH] for n in range(at, at + length, CSCD_LENGTH)]
    for number, cscd in enumerate(cscds):
        if cscd[0] != copy_manager.IDENTIFICATION_CSCD:
            raise CheckCondition(
                sense.ILLEGAL_REQUEST, 0x26, 0x07, field=(at + number * CSCD_LENGTH, None, False)
            )
    # LU ID TYPE is ignored in an identification descriptor, and NUL is obsolete in SPC-4
    return cscds


def _segments(data, at, length):
    segments, end = [], at + length
    while at < end:
        if len(segments) == copy_manager.MAXIMUM_SEGMENTS:
            raise CheckCondition(sense.ILLEGAL_REQUEST, 0x26, 0x08, field=(at, None, False))
        if data[at] not in SEGMENT_LENGTHS:
            raise CheckCondition(sense.ILLEGAL_REQUEST, 0x26, 0x09, field=(at, None, False))
        if end - at < SEGMENT_LENGTHS[data[at]]:
            raise sense.parameter_list_length_error()
        if u16(data, at + 2) != SEGMENT_LENGTHS[data[at]] - 4:
            raise sense.invalid_field_in_parameter_list(at + 2)
        segments.append(Segment(len(segments), at, data[at : at + SEGMENT_LENGTHS[data[at]]]))
        at += SEGMENT_LENGTHS[data[at]]
    return segments


# -- the command -----------------------------------------------------------------------------------


def extended_copy(unit: 'LogicalUnit', task: 'Task') -> None:
    """EXTENDED COPY(LID1), SPC-4 6.5, and (LID4), 6.4. A list of 0 bytes is not an error and copies
    nothing."""
    length = u32(task.cdb, 10)
    if (
        length
        > 48 + copy_manager.MAXIMUM_DESCRIPTOR_LIST + CSCD_LENGTH * copy_manager.MAXIMUM_CSCDS
    ):
        raise sense.parameter_list_length_error()
    task.length = task.data_out_length = length
    task.run, task.run_blocking = (_begin, _run) if length else (copy_manager.done, None)


def _begin(task):
    """Connection thread: checks everything that needs no waiting."""
    unit, data = task.unit, bytes(task.data_out or b'')[: task.length]
    if len(data) < task.length:
        raise sense.parameter_list_length_error()
    service_action = task.cdb[1] & 0x1F
    wanted = parse(data, service_action == copy_manager.LID1)
    copy = copy_manager.Copy(service_action, wanted.list_identifier, unit.block_size)
    if wanted.is_named:
        unit.copies.add_copy(copy)
    task.private = wanted, copy
    return WOULD_BLOCK


def _run(task):
    """Executor thread."""
    wanted, copy = task.private
    with CopyUnits(task.unit, copy) as units:
        return run_copy(task, copy, lambda: _run_segments(task, wanted, copy, units))


def run_copy(task: 'Task', copy: copy_manager.Copy, work: Callable[[], Any]) -> None:
    """Run the work of a copy and record how it ended. Raises what work() raises."""
    try:
        work()
    except CheckCondition as e:
        copy.finish(copy_manager.TERMINATED if copy.stopped else copy_manager.FAILED, e.sense())
        raise
    except StatusReturned:
        copy.finish(copy_manager.FAILED)
        raise
    except Exception:  # a defect of targetd, which the caller logs
        copy.finish(copy_manager.FAILED, CheckCondition(HARDWARE_ERROR, 0x44, 0x00).sense())
        raise
    if copy.state == copy_manager.RUNNING:
        copy.finish(copy_manager.TERMINATED if task.aborted else copy_manager.DONE)


def _run_segments(task, wanted, copy, units):
    for segment in wanted.segments:
        _SEGMENTS[segment.body[0]](task, wanted, copy, segment, units)
        if task.aborted:
            return
        copy.segments += 1


# -- the units --------------------------------------------------------------------------------------


class NoCopyGuests(object):
    """The `copy_guests` of a unit without access to units of other targets; worker.copy.guests has
    the real one. Executor threads."""

    @staticmethod
    def find(code_set: int, kind: int, designator: bytes) -> Any:
        """Returns the LogicalUnit of another target that has this designator, or None. The caller
        calls leave() for it later."""
        return None

    @staticmethod
    def enter(unit: 'LogicalUnit', copy: copy_manager.Copy) -> None:
        """The copy uses this unit in addition to the one that received the command: `copy.stopped`
        is set when tasks at the unit are ended."""

    @staticmethod
    def leave(unit: 'LogicalUnit', copy: copy_manager.Copy) -> None:
        """The copy no longer uses the unit."""


class CopyUnits(object):
    """Context manager: the units that one copy uses in addition to `unit`, which received the
    command. Executor thread."""

    def __init__(self, unit: 'LogicalUnit', copy: copy_manager.Copy) -> None:
        self._unit = unit
        self._copy = copy
        self._found: Dict[Tuple[Any, ...], Any] = {}  # (code set, kind, designator) -> LogicalUnit

    def find(self, *named: Any) -> Any:
        """Returns the LogicalUnit with this name, or None. named: code set, ASSOCIATION and type,
        designator."""
        unit = self._found.get(named)
        if unit is None:
            unit = find_unit(self._unit.device, *named) or self._unit.services.copy_guests.find(
                *named
            )
            if unit is not None and unit is not self._unit:
                self._unit.services.copy_guests.enter(unit, self._copy)
                self._found[named] = unit
        return unit

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for unit in self._found.values():
            self._unit.services.copy_guests.leave(unit, self._copy)


def _failed(segment, asc, ascq, field=None):
    return CheckCondition(
        COPY_ABORTED,
        asc,
        ascq,
        field=None if field is None else (field, None, True),
        copy=CopyFailure(segment.number),
    )


def third_party_failure(number: int, is_source: bool, said: Any) -> CheckCondition:
    """Returns COPY ABORTED because of the answer of one unit: a CheckCondition or a status (SPC-4).
    number: of the segment."""
    if isinstance(said, CheckCondition):
        failure = CopyFailure(number, is_source, CHECK_CONDITION, said.sense())
    else:
        failure = CopyFailure(number, is_source, said)
    return CheckCondition(COPY_ABORTED, 0x0D, 0x01, copy=failure)


def _copy_unit(task, wanted, segment, units, field):
    """Returns (LogicalUnit, PAD) of the CSCD whose ID is at byte `field` of the segment. Raises
    CheckCondition."""
    number = u16(segment.body, field)
    if number == OWN_UNIT:
        return task.unit, False
    if number >= len(wanted.cscds):
        raise _failed(segment, 0x08, 0x04, field)
    cscd = wanted.cscds[number]
    if cscd[1] & 0x1F != DISK:
        raise _failed(segment, 0x0D, 0x03, field)
    unit = units.find(cscd[4] & 0x0F, cscd[5] & 0x3F, bytes(cscd[8 : 8 + min(cscd[7], 20)]))
    if unit is None:
        raise _failed(segment, 0x0D, 0x02, field)
    block_size = int.from_bytes(cscd[29:32], 'big')
    if block_size not in (0, unit.block_size):
        raise CheckCondition(
            COPY_ABORTED,
            0x26,
            0x00,
            copy=CopyFailure(segment.number),
            field=(wanted.cscds_at + number * CSCD_LENGTH + 29, None, False),
        )
    return unit, bool(cscd[28] & 0x04)


def has_designator(facts: Any, code_set: int, kind: int, designator: bytes) -> bool:
    """Returns True if the unit with these facts has this designator and supports third-party
    copies."""
    return facts.third_party_copy and (
        code_set,
        kind,
        bytes(designator),
    ) in designators.unit_designators(facts)


def find_unit(device: Any, code_set: int, kind: int, designator: bytes) -> Any:
    """Returns the unit of the device that has this designator in VPD page 83h and supports
    third-party copies, or None. kind: ASSOCIATION and type."""
    for unit in list(device.luns.values()):
        if has_designator(unit.facts, code_set, kind, designator):
            return unit
    return None


def require_readable(unit: 'LogicalUnit', number: int, cdb: bytes = PLAIN_CDB) -> None:
    """Raise COPY ABORTED if this nexus cannot read the unit now. number: of the segment."""
    if conflicts(unit.refused, READ, cdb):
        raise third_party_failure(number, True, RESERVATION_CONFLICT)
    refusal = unit.path_refusal() or unit.not_ready()
    if refusal:
        raise third_party_failure(number, True, refusal)


def require_writable(unit: 'LogicalUnit', number: int, cdb: bytes = PLAIN_CDB) -> None:
    """Raise COPY ABORTED if this nexus cannot write to the unit now. number: of the segment."""
    if conflicts(unit.refused, WRITE, cdb):
        raise third_party_failure(number, False, RESERVATION_CONFLICT)
    refusal = unit.path_refusal() or unit.not_ready()
    if refusal is None and unit.read_only:
        refusal = unit.write_protect_error()
    if refusal is None and unit.medium == medium_state.FAILED:
        refusal = CheckCondition(HARDWARE_ERROR, 0x44, 0x00)
    if refusal:
        raise third_party_failure(number, False, refusal)


# -- segments --------------------------------------------------------------------------------------


def _block_to_block(task, wanted, copy, segment, units):
    """02h, SPC-4: the count is in blocks of the source, with DC in blocks of the destination."""
    (source, source_pads), (unit, pads) = [
        _copy_unit(task, wanted, segment, units, field) for field in (4, 6)
    ]
    blocks, source_lba, lba = struct.unpack_from('>HQQ', segment.body, 10)
    count = blocks * (unit if segment.body[1] & 0x02 else source).block_size
    offset = lba * unit.block_size
    padding = -count % unit.block_size
    if padding and not pads:
        if not source_pads:
            raise _failed(segment, 0x26, 0x0A, 10)
        count, padding = count - count % unit.block_size, 0
    if count % source.block_size and not source_pads:
        raise _failed(segment, 0x26, 0x0A, 10)
    _copy_segment(
        task, copy, segment, source, source_lba * source.block_size, unit, offset, count, padding
    )


def _block_to_block_offset(task, wanted, copy, segment, units):
    """0Ah, SPC-4: the count is in bytes; the ranges may begin within a block."""
    (source, _), (unit, _) = [_copy_unit(task, wanted, segment, units, field) for field in (4, 6)]
    count, source_lba, lba, source_byte, byte = struct.unpack_from('>IQQHH', segment.body, 8)
    if source_byte >= source.block_size:
        raise _failed(segment, 0x26, 0x00, 28)
    if byte >= unit.block_size:
        raise _failed(segment, 0x26, 0x00, 30)
    _copy_segment(
        task,
        copy,
        segment,
        source,
        source_lba * source.block_size + source_byte,
        unit,
        lba * unit.block_size + byte,
        count,
        0,
    )


def _copy_segment(task, copy, segment, source, source_offset, unit, offset, count, padding):
    if count > copy_manager.MAXIMUM_SEGMENT:
        raise _failed(segment, 0x26, 0x00, 8)
    require_readable(source, segment.number)
    if source_offset + count > source.blocks * source.block_size:
        raise _failed(segment, 0x00, 0x00, 12)
    if offset + count + padding > unit.blocks * unit.block_size:
        raise _failed(segment, 0x00, 0x00, 20)
    require_writable(unit, segment.number)
    copy_bytes(task, copy, source.store, source_offset, unit, offset, count, segment.number, source)
    if padding and not task.aborted:
        try:
            with copy_manager.CopyWrite(unit, offset + count, padding):
                unit.store.write(offset + count, bytes(padding), False)
        except OSError as e:
            task.offset, task.length = offset + count, padding
            raise third_party_failure(segment.number, False, unit.write_failure(e, task))
    make_durable(unit, offset, count, segment.number)


def _require_both(source, unit, number):
    require_readable(source, number)
    require_writable(unit, number)


def _verify_cscd(task, wanted, copy, segment, units):
    """07h, SPC-4: checks that the unit exists; with TUR also that it is ready."""
    unit, _ = _copy_unit(task, wanted, segment, units, 4)
    if segment.body[8] & 1:
        require_readable(unit, segment.number)


_SEGMENTS = {
    copy_manager.BLOCK_TO_BLOCK: _block_to_block,
    copy_manager.VERIFY_CSCD: _verify_cscd,
    copy_manager.BLOCK_TO_BLOCK_OFFSET: _block_to_block_offset,
}


# -- moving ----------------------------------------------------------------------------------------


def copy_steps(
    source_offset: int, offset: int, count: int, overlaps: bool
) -> List[Tuple[int, int, int]]:
    """Returns [(source offset, offset, length)] of the steps of a copy; in reverse order if the
    ranges overlap so that it is necessary."""
    found = [(source_offset + n, offset + n, min(STEP, count - n)) for n in range(0, count, STEP)]
    if overlaps and source_offset < offset < source_offset + count:
        found.reverse()
    return found


def copy_bytes(
    task: 'Task',
    copy: copy_manager.Copy,
    store: Any,
    source_offset: int,
    unit: 'LogicalUnit',
    offset: int,
    count: int,
    number: int,
    source: Any = None,
) -> None:
    """Copy bytes from a store into a unit in steps, until the task or the copy is ended. source:
    the LogicalUnit of the store, or None; number: of the segment. Raises CheckCondition COPY
    ABORTED."""
    for start, at, length in copy_steps(source_offset, offset, count, store is unit.store):
        if copy.stopped:
            raise CheckCondition(COPY_ABORTED, 0x00, 0x00, copy=CopyFailure(number))
        if task.aborted:
            return
        if source is not None:  # each step is checked like a READ and a WRITE
            _require_both(source, unit, number)
        try:
            with copy_manager.CopyWrite(unit, at, length):
                unit.store.copy(store, start, at, length)
        except OSError as e:
            raise _copy_failure(task, store, start, unit, at, length, number, source, e)
        copy.add_transferred(length)


def _copy_failure(task, store, start, unit, offset, length, number, source, error):
    """Returns the CheckCondition for an OSError of copy(): it belongs to the source if the source
    cannot be read now."""
    task.offset, task.length = start, length
    try:
        for at in range(start, start + length, 1 << 20):
            store.read(at, min(1 << 20, start + length - at))
    except OSError as e:
        said = source.read_failure(e, task) if source is not None else errno_map.read_failure(e)
        return third_party_failure(number, True, said)
    task.offset, task.length = offset, length
    return third_party_failure(number, False, unit.write_failure(error, task))


def make_durable(unit: 'LogicalUnit', offset: int, count: int, number: int) -> None:
    """Flush the copied data if the write cache of the unit is disabled."""
    if unit.write_through and count:
        try:
            unit.flush(offset, count)
        except OSError as e:
            raise third_party_failure(number, False, errno_map.write_failure(e))
