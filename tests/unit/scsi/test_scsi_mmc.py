"""The commands of an optical drive: what hosts read from it, and what it refuses."""

import struct

import pytest
from fake_store import MemoryStore, do, error_of, make_unit, sense_of, status_of

from targetd.scsi import mmc, mmc_opcodes, modes, opcodes
from targetd.scsi.dispatch import FUNCTIONS

BLOCKS = 1000
EVENT = '4a 01 0000 %02x 0000 0040 00'


def drive(blocks=BLOCKS, medium='ready', **more):
    facts = {
        'block_size': 2048, 'optical': True, 'removable': True, 'read_only': True, 'third_party_copy': False,
    }  # fmt: skip
    store = MemoryStore(0, 2048)
    store.size = blocks * 2048
    if blocks == BLOCKS:
        store.data = bytearray(b''.join(bytes([n % 251]) * 2048 for n in range(blocks)))
    return make_unit(store, medium=medium, **dict(facts, **more))


def data_of(unit, digits):
    data = do(unit, bytes.fromhex(digits))
    assert isinstance(data, (bytes, bytearray, memoryview)), data
    return bytes(data)


def test_inquiry_says_that_it_is_a_drive_with_a_removable_medium():
    data = data_of(drive(), '12 00 00 0060 00')
    assert data[0] == 0x05 and data[1] == 0x80
    assert struct.unpack_from('>8H', data, 58) == (0xA0, 0x960, 0x460, 0, 0, 0, 0, 0)
    assert data_of(drive(), '12 01 00 00ff 00') == bytes.fromhex('05 00 0006 00 80 83 86 87 88')


def test_a_disk_has_no_command_of_a_drive_and_a_drive_none_that_writes():
    own = {row.opcode for row in mmc_opcodes.TABLE} - {row.opcode for row in opcodes.TABLE}
    assert {0x43, 0x46, 0x4A, 0xBE} <= own
    for opcode in sorted(own):
        assert sense_of(make_unit(), bytes([opcode])) == (5, 0x20, 0)
    for opcode in (0x04, 0x0A, 0x2A, 0x2E, 0x41, 0x48, 0x8A, 0x93, 0x9E, 0xA4, 0xAA, 0x83):
        assert sense_of(drive(), bytes([opcode])) == (5, 0x20, 0)
    assert not any(row.writes for row in mmc_opcodes.TABLE)


def test_a_drive_on_several_portal_groups_reports_them_and_others_do_not_promise_it():
    assert data_of(drive(), '12 00 00 0060 00')[5] >> 4 & 3 == 0
    assert sense_of(drive(), bytes.fromhex('a3 0a 00000000 00001000 00 00')) == (5, 0x24, 0)
    implicit = drive(implicit_alua=True)
    assert data_of(implicit, '12 00 00 0060 00')[5] >> 4 & 3 == 1
    assert data_of(implicit, 'a3 0a 00000000 00001000 00 00')
    assert sense_of(implicit, bytes.fromhex('a4 0a 00000000 00000000 00 00')) == (5, 0x20, 0)
    explicit = drive(explicit_alua=True)
    assert data_of(explicit, '12 00 00 0060 00')[5] >> 4 & 3 == 2
    assert data_of(explicit, 'a3 0a 00000000 00001000 00 00')
    assert sense_of(explicit, bytes.fromhex('a4 06 00000000 00000000 00 00')) == (5, 0x24, 0)


@pytest.mark.parametrize('row', mmc_opcodes.TABLE, ids=lambda row: row.name)
def test_a_row_has_a_function_and_a_mask_of_the_length_of_its_cdb(row):
    assert callable(FUNCTIONS[row.function])
    assert len(row.mask) == (6, 10, 10, 0, 16, 12)[row.opcode >> 5]


def test_read_capacity_and_the_blocks():
    unit = drive()
    assert data_of(unit, '25 00 00000000 0000 00 00') == struct.pack('>II', BLOCKS - 1, 2048)
    expected = bytes([7]) * 2048 + bytes([8]) * 2048
    assert data_of(unit, '28 00 00000007 00 0002 00') == expected
    assert data_of(unit, 'a8 00 00000007 00000002 80 00') == expected  # STREAMING
    assert data_of(unit, 'be 08 00000007 000002 10 00 00') == expected
    assert data_of(unit, 'b9 00 00 000207 000209 10 00 00') == expected  # 00:02:07 is block 7
    assert sense_of(unit, bytes.fromhex('28 00 000003e8 00 0001 00')) == (5, 0x21, 0)
    assert sense_of(unit, bytes.fromhex('be 00 000003e7 000002 10 00 00')) == (5, 0x21, 0)


def test_read_cd_refuses_what_an_image_does_not_contain():
    unit = drive()
    assert sense_of(unit, bytes.fromhex('be 04 00000000 000001 10 00 00')) == (5, 0x64, 0)  # audio
    for digits in ('f8 00', '12 00', '10 01'):  # raw sectors, C2 errors, sub-channels
        assert sense_of(unit, bytes.fromhex('be 00 00000000 000001 %s 00' % digits)) == (5, 0x24, 0)
    assert sense_of(unit, bytes.fromhex('b9 00 00 000100 000209 10 00 00')) == (5, 0x24, 0)
    assert status_of(unit, bytes.fromhex('be 00 00000000 000001 00 00 00')) == 0  # no data wanted


def test_the_table_of_contents():
    unit = drive()
    assert data_of(unit, '43 00 00 000000 00 0040 00') == bytes.fromhex(
        '0012 01 01 0014 01 00 00000000 0014 aa 00 000003e8'
    )
    assert data_of(unit, '43 02 00 000000 aa 0040 00') == bytes.fromhex(
        '000a 01 01 0014 aa 00 00 00 0f 19'  # 1,150 frames: 00:15:25
    )
    assert data_of(unit, '43 00 01 000000 00 0040 00') == bytes.fromhex(
        '000a 01 01 0014 01 00 00000000'
    )
    assert data_of(unit, '43 00 00 000000 00 0040 40') == data_of(
        unit, '43 00 01 000000 00 0040 00'
    )
    full = data_of(unit, '43 02 02 000000 00 0040 00')
    assert [full[n + 3] for n in range(4, len(full), 11)] == [0xA0, 0xA1, 0xA2, 1]
    assert full[4 + 22 + 8 : 4 + 22 + 11] == bytes((0, 15, 25))
    assert data_of(unit, '43 00 00 000000 00 0004 00') == bytes.fromhex('0012 0101')
    for digits in ('43 00 05 000000 00 0040 00', '43 00 00 000000 02 0040 00'):
        assert error_of(unit, bytes.fromhex(digits)).asc == 0x24


@pytest.mark.parametrize('blocks, profile', [(mmc.LONGEST_CD, 8), (mmc.LONGEST_CD + 1, 0x10)])
def test_a_long_image_is_a_dvd(blocks, profile):
    unit = drive(blocks)
    data = data_of(unit, '46 00 0000 000000 0200 00')
    assert struct.unpack_from('>IxxH', data) == (len(data) - 4, profile)
    features, at = {}, 8
    while at < len(data):
        number, flags, length = struct.unpack_from('>HBB', data, at)
        features[number] = flags, data[at + 4 : at + 4 + length]
        at += 4 + length
    assert list(features) == sorted(features) and at == len(data)
    assert [bool(features[number][0] & 1) for number in (0x1E, 0x1F)] == [
        profile == 8,
        profile != 8,
    ]
    assert features[0][1] == struct.pack('>HBxHBx', 0x10, profile == 0x10, 8, profile == 8)
    one = data_of(unit, '46 02 0010 000000 0200 00')
    assert len(one) == 20 and one[8:10] == b'\0\x10'
    current = data_of(unit, '46 01 001e 000000 0200 00')
    assert current[8:10] == (b'\0\x1e' if profile == 8 else b'\0\x1f')
    assert data_of(unit, '43 02 00 000000 aa 0040 00')[-3:] == bytes((99, 59, 74))


def test_without_a_medium_the_drive_has_no_profile_and_no_data():
    unit = drive(medium='ejected')
    assert sense_of(unit, bytes(6)) == (2, 0x3A, 0)
    assert sense_of(unit, bytes.fromhex('43 00 00 000000 00 0040 00')) == (2, 0x3A, 0)
    assert data_of(unit, '46 00 0000 000000 0008 00')[6:] == b'\0\0'
    assert data_of(unit, 'bd 00 000000000000 0008 00 00')[1] == 0x10
    assert data_of(unit, '23 00 0000000000 000c 00')[8] == 3


def test_events_of_the_medium_are_reported_once():
    unit = drive()
    event = EVENT % 0x10
    assert data_of(unit, event) == bytes.fromhex('0006 04 56 02 02 0000')  # new medium
    assert data_of(unit, event) == bytes.fromhex('0006 04 56 00 02 0000')
    unit.replace_shared_state(medium='ejected')
    # removed, the tray is open
    assert data_of(unit, event) == bytes.fromhex('0006 04 56 03 01 0000')
    assert data_of(unit, event) == bytes.fromhex('0006 04 56 00 01 0000')
    unit.replace_shared_state(medium='ready')
    assert data_of(unit, EVENT % 0x5E) == bytes.fromhex('0006 04 56 02 02 0000')
    assert data_of(unit, EVENT % 0x5E) == bytes.fromhex('0006 01 56 00 00 0000')
    assert data_of(unit, EVENT % 0x04) == bytes.fromhex('0006 02 56 00 01 0000')
    assert data_of(unit, EVENT % 0x01) == bytes.fromhex('0002 80 56')
    assert sense_of(unit, bytes.fromhex('4a 00 0000 10 0000 0008 00')) == (5, 0x24, 0)


def test_the_button_of_the_drive_is_an_event_or_a_unit_attention():
    unit = drive()
    event = EVENT % 0x10
    data_of(unit, event)
    unit.raise_attention(0x5A, 1)
    assert data_of(unit, event)[4] == 1  # eject request
    assert data_of(unit, event)[4] == 0 and status_of(unit, bytes(6)) == 0
    unit.raise_attention(0x5A, 1)
    assert sense_of(unit, bytes(6)) == (6, 0x5A, 1)
    assert data_of(unit, event)[4] == 0


def test_an_event_needs_no_command_that_takes_the_unit_attention():
    unit = drive()
    unit.raise_attention(0x28, 0)
    assert data_of(unit, EVENT % 0x10)[4] == 2
    assert data_of(unit, '46 00 0000 000000 0008 00')[6:] == b'\0\x08'
    assert sense_of(unit, bytes.fromhex('43 00 00 000000 00 0040 00')) == (6, 0x28, 0)


def test_what_is_on_the_disc():
    unit = drive()
    disc = data_of(unit, '51 00 0000000000 0040 00')
    assert len(disc) == 34 and disc[:8] == bytes.fromhex('0020 0e 01 01 01 01 20')
    track = data_of(unit, '52 01 00000001 00 0040 00')
    assert len(track) == 48 and track[2:7] == bytes((1, 1, 0, 4, 1))
    assert struct.unpack_from('>I', track, 24) == (BLOCKS,)
    assert data_of(unit, '52 00 000003e7 00 0040 00') == track
    assert sense_of(unit, bytes.fromhex('52 00 000003e8 00 0040 00')) == (5, 0x21, 0)
    assert sense_of(unit, bytes.fromhex('52 01 00000002 00 0040 00')) == (5, 0x24, 0)
    assert data_of(unit, '23 00 0000000000 000c 00') == struct.pack(
        '>IIHH', 8, BLOCKS, 0x0200, 2048
    )
    assert data_of(unit, '42 02 40 01 0000 00 0040 00')[:6] == bytes.fromhex('0015 000c 01 14')
    assert status_of(unit, bytes.fromhex('bb 00 ffff ffff 0000000000 00')) == 0
    assert status_of(unit, bytes.fromhex('2b 00 000003e7 000000 00')) == 0
    assert sense_of(unit, bytes.fromhex('ad 00 00000000 00 00 0814 00 00')) == (5, 0x30, 2)


def test_the_structure_of_a_dvd():
    unit = drive(500000)
    data = data_of(unit, 'ad 00 00000000 00 00 0814 00 00')
    assert len(data) == 2052 and data[:2] == b'\x08\x02'
    assert struct.unpack_from('>III', data, 8) == (0x30000, 0x30000 + 499999, 0)
    assert data_of(unit, 'ad 00 00000000 00 01 0814 00 00') == bytes.fromhex('0006 0000 00000000')
    assert sense_of(unit, bytes.fromhex('ad 00 00000000 00 04 0814 00 00')) == (5, 0x24, 0)


def test_mode_pages_of_a_drive():
    unit = drive()
    data = data_of(unit, '5a 00 3f 00 000000 0200 00')
    assert data[3] == 0 and struct.unpack_from('>H', data, 6) == (0,)  # no block descriptor
    codes, at = [], 8
    while at < len(data):
        codes.append(data[at] & 0x3F)
        at += data[at + 1] + 2
    assert codes == [0x01, 0x08, 0x0A, 0x1A, 0x1C, 0x1D, 0x2A]
    capabilities = data_of(unit, '5a 00 2a 00 000000 0200 00')[8:]
    assert len(capabilities) == 22 and capabilities[6] == 0x29  # tray, EJECT, LOCK
    assert sense_of(make_unit(), bytes.fromhex('5a 00 2a 00 000000 0200 00')) == (5, 0x24, 0)
    assert not set(modes.initial(unit.facts)['current']) & modes.OF_DISKS
