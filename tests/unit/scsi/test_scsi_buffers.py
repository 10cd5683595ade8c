"""READ BUFFER and WRITE BUFFER as seen by an initiator."""

import struct

import pytest
from fake_store import do, make_unit, sense_of

from targetd.scsi import buffers

FIELD_IN_CDB = (5, 0x24, 0x00)
DATA, DESCRIPTOR, ECHO, ECHO_DESCRIPTOR = 0x02, 0x03, 0x0A, 0x0B


def cdb(opcode, mode, length, offset=0, number=0):
    return struct.pack(
        '>BBB3s3sB', opcode, mode, number, offset.to_bytes(3, 'big'), length.to_bytes(3, 'big'), 0
    )


def read(unit, mode, length, offset=0, number=0):
    return do(unit, cdb(0x3C, mode, length, offset, number))


def write(unit, mode, data, offset=0):
    return do(unit, cdb(0x3B, mode, len(data), offset), data)


def test_the_data_buffer_is_read_back_at_every_offset():
    unit = make_unit()
    assert write(unit, DATA, b'hello') is None
    write(unit, DATA, b'LL', 2)
    assert read(unit, DATA, 8) == b'heLLo\0\0\0'
    assert read(unit, DATA, 2, 2) == b'LL'


def test_the_capacity_of_the_buffer_is_that_of_its_descriptor():
    unit = make_unit()
    descriptor = read(unit, DESCRIPTOR, 4)
    capacity = int.from_bytes(descriptor[1:], 'big')
    assert descriptor[0] == 0 and capacity == buffers.CAPACITY
    data = bytes(range(256)) * (capacity // 256)
    write(unit, DATA, data)
    assert read(unit, DATA, capacity + 512) == data
    assert read(unit, DATA, 8, capacity) == b''
    assert sense_of(unit, cdb(0x3B, DATA, 1, capacity), b'x') == FIELD_IN_CDB
    assert sense_of(unit, cdb(0x3B, DATA, capacity + 1), bytes(capacity + 1)) == FIELD_IN_CDB
    assert sense_of(unit, cdb(0x3C, DATA, 1, capacity + 1)) == FIELD_IN_CDB
    assert read(unit, DATA, capacity) == data


def test_a_missing_buffer_has_capacity_0():
    assert read(make_unit(), DESCRIPTOR, 4, number=1) == bytes(4)


def test_header_and_data():
    unit = make_unit()
    write(unit, 0x00, bytes(4) + b'data')
    assert read(unit, 0x00, 8) == b'\0' + buffers.CAPACITY.to_bytes(3, 'big') + b'data'
    assert read(unit, DATA, 4) == b'data'


def test_the_echo_buffer_is_read_back_exactly():
    unit = make_unit()
    assert read(unit, ECHO_DESCRIPTOR, 4) == struct.pack('>HH', 0, 4096)
    assert sense_of(unit, cdb(0x3C, ECHO, 8)) == (5, 0x2C, 0)
    write(unit, ECHO, b'abc')
    assert read(unit, ECHO, 512) == b'abc' and read(unit, ECHO, 2) == b'ab'
    write(unit, ECHO, b'x')
    assert read(unit, ECHO, 512) == b'x'
    assert sense_of(unit, cdb(0x3B, ECHO, 4097), bytes(4097)) == FIELD_IN_CDB


def test_units_do_not_share_buffers():
    one, other = make_unit(), make_unit()
    write(one, DATA, b'mine')
    assert read(other, DATA, 4) == bytes(4)


@pytest.mark.parametrize(
    'opcode, mode, offset, number',
    [
        (0x3B, 0x05, 0, 0),
        (0x3B, 0x03, 0, 0),
        (0x3C, 0x1C, 0, 0),
        (0x3C, 0x01, 0, 0),
        (0x3C, DATA, 0, 1),
        (0x3B, DATA, 0, 1),
        (0x3B, ECHO, 4, 0),
        (0x3C, ECHO, 4, 0),
        (0x3C, 0x00, 4, 0),
    ],
)
def test_unsupported_modes_offsets_and_buffers_are_refused(opcode, mode, offset, number):
    data = bytes(4) if opcode == 0x3B else None
    assert sense_of(make_unit(), cdb(opcode, mode, 4, offset, number), data) == FIELD_IN_CDB


def test_missing_data_out_writes_nothing():
    unit = make_unit()
    assert sense_of(unit, cdb(0x3B, DATA, 8), b'abc') == (5, 0x1A, 0)
    assert read(unit, DATA, 3) == bytes(3)


def test_a_write_of_0_bytes_changes_nothing():
    unit = make_unit()
    write(unit, DATA, b'keep')
    assert do(unit, cdb(0x3B, DATA, 0)) is None
    assert read(unit, DATA, 4) == b'keep'
