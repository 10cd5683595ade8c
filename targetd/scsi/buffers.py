"""READ BUFFER and WRITE BUFFER (SPC-4 6.18, 6.49): memory of the unit for testing the data path.
Pure.

Each nexus has a separate data buffer and echo buffer at each unit, so the tests of two initiators
do not interfere. Microcode download and error history are not supported.
"""

import struct
from typing import TYPE_CHECKING

from targetd.scsi import sense
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition
from targetd.scsi.spc import answer, parameter_list

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

HEADER_AND_DATA, DATA, DESCRIPTOR, ECHO, ECHO_DESCRIPTOR = 0x00, 0x02, 0x03, 0x0A, 0x0B  # MODE
CAPACITY = 64 << 10  # bytes of the data buffer
_BLANK = bytes(CAPACITY)  # shared by all nexuses that have not written
ECHO_CAPACITY = 4096  # bytes of the echo buffer; the field has 13 bits


class Buffers(object):
    """The buffers of one nexus at one unit. data: the whole data buffer; echo: the last data
    written to the echo buffer, or None."""

    __slots__ = ('data', 'echo')

    def __init__(self) -> None:
        self.data = _BLANK
        self.echo = None


def _three_bytes(cdb, offset):
    return int.from_bytes(cdb[offset : offset + 3], 'big')


def read_buffer(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ BUFFER, SPC-4 6.18."""
    cdb = task.cdb
    mode, offset, length = cdb[1] & 0x1F, _three_bytes(cdb, 3), _three_bytes(cdb, 6)
    if mode not in READS:
        raise sense.invalid_field_in_cdb(1, 4)
    if cdb[2] and mode != DESCRIPTOR:
        raise sense.invalid_field_in_cdb(2)
    if offset > (CAPACITY if mode == DATA else 0):
        raise sense.invalid_field_in_cdb(3)
    answer(task, READS[mode](unit, cdb[2], offset, length), length)


def _read_header_and_data(unit, number, offset, length):
    return (
        struct.pack('>x3s', CAPACITY.to_bytes(3, 'big')) + unit.buffers.data[: max(0, length - 4)]
    )


def _read_data(unit, number, offset, length):
    return unit.buffers.data[offset : offset + length]


def _read_descriptor(unit, number, offset, length):
    """OFFSET BOUNDARY 0 allows any byte. A buffer that does not exist has capacity 0."""
    return struct.pack('>B3s', 0, (0 if number else CAPACITY).to_bytes(3, 'big'))


def _read_echo(unit, number, offset, length):
    if unit.buffers.echo is None:
        raise CheckCondition(ILLEGAL_REQUEST, 0x2C, 0x00)  # COMMAND SEQUENCE ERROR
    return unit.buffers.echo


def _read_echo_descriptor(unit, number, offset, length):
    return struct.pack('>BBH', 0, 0, ECHO_CAPACITY)


READS = {
    HEADER_AND_DATA: _read_header_and_data,
    DATA: _read_data,
    DESCRIPTOR: _read_descriptor,
    ECHO: _read_echo,
    ECHO_DESCRIPTOR: _read_echo_descriptor,
}


def write_buffer(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE BUFFER, SPC-4 6.49."""
    cdb = task.cdb
    mode, offset, length = cdb[1] & 0x1F, _three_bytes(cdb, 3), _three_bytes(cdb, 6)
    if mode not in WRITES:
        raise sense.invalid_field_in_cdb(1, 4)
    if cdb[2]:
        raise sense.invalid_field_in_cdb(2)
    if offset and mode != DATA or offset > CAPACITY:
        raise sense.invalid_field_in_cdb(3)
    room = {HEADER_AND_DATA: CAPACITY + 4, DATA: CAPACITY - offset, ECHO: ECHO_CAPACITY}[mode]
    if length > room:
        raise sense.invalid_field_in_cdb(6)
    task.length = task.data_out_length = length
    task.private = (WRITES[mode], offset)
    task.run = _write


def _write(task):
    write, offset = task.private
    write(task.unit.buffers, offset, parameter_list(task, task.length))
    return None


def _write_header_and_data(buffers, offset, data):
    _write_data(buffers, 0, data[4:])


def _write_data(buffers, offset, data):
    if data:
        buffers.data = buffers.data[:offset] + data + buffers.data[offset + len(data) :]


def _write_echo(buffers, offset, data):
    buffers.echo = data


WRITES = {HEADER_AND_DATA: _write_header_and_data, DATA: _write_data, ECHO: _write_echo}
