"""Identifying information that initiators store in a unit (SPC-4 6.32, 6.43), and the timestamp of
the unit (SPC-4 6.38, 6.46). Pure.

The timestamp is the clock of the host plus the offset that SET TIMESTAMP established;
unit.services.milliseconds() returns milliseconds since 1970.
"""

import struct
from typing import TYPE_CHECKING

from targetd.scsi import records, sense
from targetd.scsi.cdb import u32
from targetd.scsi.sam import Change
from targetd.scsi.spc import answer, parameter_list

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

SUPPORTED = 0x7F  # INFORMATION TYPE: list the supported types
TEXT = '2'  # UTF-8, ended by a null
BY_SET_TIMESTAMP, BY_OTHER_MEANS = 0b010, 0b011  # TIMESTAMP ORIGIN, SPC-4 table 55


def report_identifying_information(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT IDENTIFYING INFORMATION, SPC-4 6.32."""
    kind = task.cdb[10] >> 1
    if kind == SUPPORTED:
        data = b''.join(
            struct.pack('>BxH', int(k) << 1, most)
            for k, most in sorted(records.MAXIMUM_LENGTH.items())
        )
    elif str(kind) in records.MAXIMUM_LENGTH:
        data = bytes.fromhex(unit.records['identifying'].get(str(kind), ''))
    else:
        raise sense.invalid_field_in_cdb(10, 7)
    answer(task, struct.pack('>xxH', len(data)) + data, u32(task.cdb, 6))


def set_identifying_information(unit: 'LogicalUnit', task: 'Task') -> None:
    """SET IDENTIFYING INFORMATION, SPC-4 6.43. An empty list deletes the information."""
    kind = str(task.cdb[10] >> 1)
    if kind not in records.MAXIMUM_LENGTH:
        raise sense.invalid_field_in_cdb(10, 7)
    if u32(task.cdb, 6) > records.MAXIMUM_LENGTH[kind]:
        raise sense.invalid_field_in_cdb(6)
    task.length = task.data_out_length = u32(task.cdb, 6)
    task.private = kind
    task.run = _set_identifying


def _set_identifying(task):
    data = parameter_list(task, task.length)
    if task.private == TEXT and data:
        if data[-1]:
            raise sense.invalid_field_in_parameter_list(len(data) - 1)
        data = data[: data.index(b'\0') + 1]
        try:
            data.decode('utf-8')
        except UnicodeDecodeError as e:
            raise sense.invalid_field_in_parameter_list(e.start)
    return Change('set-identifying-information', {'type': task.private, 'data': data.hex()})


def report_timestamp(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT TIMESTAMP, SPC-4 6.38."""
    offset = unit.records['timestamp_offset']
    origin = BY_OTHER_MEANS if offset is None else BY_SET_TIMESTAMP
    now = min(max(0, unit.services.milliseconds() + (offset or 0)), records.MAXIMUM_TIMESTAMP)
    answer(task, struct.pack('>HBx6s2x', 10, origin, now.to_bytes(6, 'big')), u32(task.cdb, 6))


def set_timestamp(unit: 'LogicalUnit', task: 'Task') -> None:
    """SET TIMESTAMP, SPC-4 6.46."""
    task.length = task.data_out_length = u32(task.cdb, 6)
    if task.length not in (0, 12):
        task.data_out_length = 0
        raise sense.parameter_list_length_error()
    task.run = _set_timestamp


def _set_timestamp(task):
    if not task.length:
        return None
    data = parameter_list(task, task.length)
    return Change(
        'set-timestamp',
        {'offset': int.from_bytes(data[4:10], 'big') - task.unit.services.milliseconds()},
    )
