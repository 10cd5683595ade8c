import struct

import pytest

from targetd.scsi import cdb


@pytest.mark.parametrize(
    'data, expected',
    [
        (bytes.fromhex('08 1fabcd 10 00'), (0, 0x1FABCD, 16)),
        (bytes.fromhex('0a 000000 00 00'), (0, 0, 256)),
        (bytes.fromhex('28 18 01020304 00 0506 00'), (0x18, 0x01020304, 0x0506)),
        (bytes.fromhex('a8 08 01020304 05060708 00 00'), (0x08, 0x01020304, 0x05060708)),
        (
            bytes.fromhex('88 00 0102030405060708 090a0b0c 00 00'),
            (0, 0x0102030405060708, 0x090A0B0C),
        ),
    ],
)
def test_flags_lba_and_blocks_are_found_in_each_length(data, expected):
    assert cdb.extent(data) == expected
    assert cdb.extent(data.ljust(16, b'\0')) == expected


def test_six_byte_commands_have_no_flags_in_the_old_lun_bits():
    assert cdb.extent(bytes.fromhex('08 e00001 01 00')) == (0, 1, 1)


@pytest.mark.parametrize(
    'opcode, length',
    [(0x12, 6), (0x28, 10), (0x5A, 10), (0x88, 16), (0xA0, 12), (0x7F, 0), (0xC1, 0)],
)
def test_the_group_code_determines_the_length(opcode, length):
    assert cdb.length(opcode) == length


def test_field_pointers_point_at_the_fields():
    packed = struct.pack('>BBIBHB', 0x28, 0, 0xFFFFFFFF, 0, 0, 0)
    at = cdb.LBA_AT[10]
    assert packed[at : at + 4] == b'\xff' * 4
    packed = struct.pack('>BBQIBB', 0x88, 0, 0, 0xFFFFFFFF, 0, 0)
    assert packed[cdb.BLOCKS_AT[16] :][:4] == b'\xff' * 4
    packed = struct.pack('>BBIIBB', 0xA8, 0, 0, 0xFFFFFFFF, 0, 0)
    assert packed[cdb.BLOCKS_AT[12] :][:4] == b'\xff' * 4


def test_16_and_32_bit_fields():
    data = bytes(range(12))
    assert cdb.u16(data, 3) == 0x0304
    assert cdb.u32(data, 5) == 0x05060708
