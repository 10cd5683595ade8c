"""FORMAT UNIT and SANITIZE as seen by an initiator: what is sent to the master, what is refused,
and the sense data while they run."""

import struct

import pytest
from fake_store import EVERY_COMMAND, cdb_10, do, error_of, make_unit, sense_of

from targetd.scsi import opcodes
from targetd.scsi.sam import Change

FIELD_IN_CDB = (5, 0x24, 0x00)
FIELD_IN_LIST = (5, 0x26, 0x00)


def overwrite(length, flags=0):
    return struct.pack('>BB5xHB', 0x48, 0x01 | flags, length, 0)


def overwrite_list(pattern=b'\xaa\x55', count=1, invert=False, length=None):
    return (
        struct.pack(
            '>BxH', count | (0x80 if invert else 0), len(pattern) if length is None else length
        )
        + pattern
    )


# -- SANITIZE --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'flags, immediate, ause',
    [(0, False, False), (0x80, True, False), (0x20, False, True), (0xA0, True, True)],
)
def test_overwrite_sends_the_parameters_to_the_master(flags, immediate, ause):
    data = overwrite_list(b'\x12\x34\x56', 3, True)
    change = do(make_unit(), overwrite(len(data), flags), data)
    assert isinstance(change, Change) and change.kind == 'operate'
    assert change.arguments == {
        'kind': 'sanitize',
        'method': 'pattern',
        'pattern': '123456',
        'passes': 3,
        'invert': True,
        'immediate': immediate,
        'ause': ause,
    }


@pytest.mark.parametrize('length', [0, 1, 4, 512 + 5, 65535])
def test_the_list_of_an_overwrite_has_a_header_and_at_most_a_block(length):
    assert sense_of(make_unit(), overwrite(length), bytes(length)) == FIELD_IN_CDB


def test_a_pattern_may_be_as_long_as_a_block():
    data = overwrite_list(bytes(range(256)) * 2)
    assert (
        do(make_unit(), overwrite(len(data)), data).arguments['pattern']
        == (bytes(range(256)) * 2).hex()
    )


@pytest.mark.parametrize(
    'data',
    [
        overwrite_list(count=0),
        overwrite_list(length=0),
        overwrite_list(length=3),
        overwrite_list(length=513),
        b'\x21\0\0\2\xaa\x55',
        b'\1\1\0\2\xaa\x55',
    ],
)
def test_an_invalid_overwrite_parameter_list_is_05_24(data):
    assert sense_of(make_unit(), overwrite(len(data)), data) == FIELD_IN_CDB


def test_an_overwrite_without_its_data_is_not_started():
    assert sense_of(make_unit(), overwrite(516), bytes(16)) == (5, 0x1A, 0)


def test_block_erase_requires_that_unmapped_blocks_read_as_zeroes():
    erase = bytes.fromhex('48 82 0000000000 0000 00')
    change = do(make_unit(unmap=True, zeroes_after_unmap=True), erase)
    assert change.arguments == {
        'kind': 'sanitize',
        'method': 'erase',
        'pattern': '',
        'passes': 1,
        'immediate': True,
        'ause': False,
    }
    assert sense_of(make_unit(unmap=True), erase) == FIELD_IN_CDB
    assert sense_of(make_unit(), erase) == FIELD_IN_CDB


@pytest.mark.parametrize(
    'facts, wabereq',
    [({'unmap': True, 'zeroes_after_unmap': True}, 1), ({'unmap': True}, 0), ({}, 0)],
)
def test_vpd_page_b1_has_the_wabereq_field(facts, wabereq):
    page = do(make_unit(**facts), bytes.fromhex('12 01 b1 0040 00'))
    assert page[7] >> 6 == wabereq and page[7] >> 4 & 3 == 0


@pytest.mark.parametrize('action', [n for n in range(32) if n not in (0x01, 0x02, 0x03, 0x1F)])
def test_other_service_actions_are_refused(action):
    assert (
        sense_of(make_unit(**EVERY_COMMAND), struct.pack('>BB7xB', 0x48, action, 0)) == FIELD_IN_CDB
    )


@pytest.mark.parametrize('flags, immediate, ause', [(0, False, False), (0xA0, True, True)])
def test_cryptographic_erase_requires_an_encrypted_store(flags, immediate, ause):
    erase = struct.pack('>BB7xB', 0x48, 0x03 | flags, 0)
    change = do(make_unit(encrypted=True), erase)
    assert isinstance(change, Change) and change.kind == 'operate'
    assert change.arguments == {
        'kind': 'sanitize',
        'method': 'key',
        'pattern': '',
        'passes': 1,
        'immediate': immediate,
        'ause': ause,
    }
    assert sense_of(make_unit(unmap=True, zeroes_after_unmap=True), erase) == FIELD_IN_CDB
    assert do(make_unit(encrypted=True), bytes.fromhex('12 01 b1 0040 00'))[7] >> 4 == 1


def test_a_parameter_list_is_refused_where_none_is_allowed():
    unit = make_unit(**EVERY_COMMAND)
    for action in (0x02, 0x03, 0x1F):
        assert sense_of(unit, struct.pack('>BB5xHB', 0x48, action, 8, 0), bytes(8)) == FIELD_IN_CDB


def test_exit_failure_mode_is_executed_by_the_master():
    assert do(make_unit(), bytes.fromhex('48 1f 0000000000 0000 00')) == Change(
        'exit-failure-mode', {}
    )


# -- FORMAT UNIT -----------------------------------------------------------------------------------


def format_unit(flags=0):
    return struct.pack('>BB4x', 0x04, flags)


def test_a_format_without_a_list_zeroes_the_medium():
    change = do(make_unit(), format_unit())
    assert change == Change(
        'operate',
        {'kind': 'format', 'method': 'zeroes', 'pattern': '', 'passes': 1, 'immediate': False},
    )


@pytest.mark.parametrize(
    'flags, data',
    [
        (0x10, '00 02 0000'),
        (0x18, '00 82 0000'),
        (0x30, '00 02 00 00 00000000'),
        (0x10, '00 f2 0000'),
        (0x10, '00 8a 0000 00 00 0000'),
        (0x10, '00 8a 0000 00 01 0003 000000'),
    ],
)
def test_a_format_may_be_immediate(flags, data):
    change = do(make_unit(), format_unit(flags), bytes.fromhex(data))
    assert change.arguments['immediate'] is True and change.arguments['method'] == 'zeroes'


def test_a_format_writes_the_initialization_pattern():
    change = do(make_unit(), format_unit(0x10), bytes.fromhex('00 88 0000 00 01 0002 abcd'))
    assert (change.arguments['method'], change.arguments['pattern']) == ('pattern', 'abcd')


@pytest.mark.parametrize(
    'flags, data, sense',
    [
        (0x10, '', (5, 0x1A, 0)),
        (0x10, '0000', (5, 0x1A, 0)),
        (0x30, '00000000', (5, 0x1A, 0)),
        (0x10, '01 00 0000', FIELD_IN_LIST),
        (0x30, '00 00 00 10 00000000', FIELD_IN_LIST),
        (0x10, '00 40 0000', FIELD_IN_LIST),
        (0x10, '00 08 0000', FIELD_IN_LIST),
        (0x10, '00 00 0004 00000001', FIELD_IN_LIST),
        (0x30, '00 00 00 00 00000004 00000001', FIELD_IN_LIST),
        (0x10, '00 88 0000', (5, 0x1A, 0)),
        (0x10, '00 88 0000 20 01 0001 00', FIELD_IN_LIST),
        (0x10, '00 88 0000 00 02 0001 00', FIELD_IN_LIST),
        (0x10, '00 88 0000 00 00 0001 00', FIELD_IN_LIST),
        (0x10, '00 88 0000 00 01 0000', FIELD_IN_LIST),
        (0x10, '00 88 0000 00 01 0201' + '11' * 513, FIELD_IN_LIST),
        (0x10, '00 88 0000 00 01 0008 11', (5, 0x1A, 0)),
    ],
)
def test_unsupported_format_options_are_refused(flags, data, sense):
    assert sense_of(make_unit(), format_unit(flags), bytes.fromhex(data)) == sense


def test_longlist_without_a_list_and_protection_are_refused():
    assert sense_of(make_unit(), format_unit(0x20)) == FIELD_IN_CDB
    assert sense_of(make_unit(), format_unit(0x80)) == FIELD_IN_CDB


def test_a_defect_list_is_refused_with_a_field_pointer():
    assert error_of(make_unit(), format_unit(0x10), bytes.fromhex('00 00 0004 00000001')).field == (
        2,
        None,
        False,
    )


# -- meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'medium, sense', [('sanitizing', (2, 0x04, 0x1B)), ('formatting', (2, 0x04, 0x04))]
)
@pytest.mark.parametrize('row', opcodes.TABLE, ids=lambda row: row.name)
def test_only_commands_about_the_unit_run_during_an_operation(medium, sense, row):
    unit = make_unit(**EVERY_COMMAND)
    unit.replace_shared_state(medium=medium)
    unit.progress = 0x1234
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    error = error_of(unit, bytes(cdb))
    found = (error.key, error.asc, error.ascq) if error else None
    if row.during_operation:
        assert found != sense
    else:
        assert found == sense and error.progress == 0x1234
    assert unit.store.calls == []


def test_request_sense_reports_the_progress():
    unit = make_unit(medium='sanitizing')
    unit.progress = 0x8000
    data = do(unit, bytes.fromhex('03 00 0000 fc 00'))
    assert (data[2] & 0xF, data[12], data[13]) == (2, 0x04, 0x1B)
    assert data[15] & 0x80 and data[16:18] == b'\x80\x00'
    descriptor = do(unit, bytes.fromhex('03 01 0000 fc 00'))
    assert (
        descriptor[0] == 0x72
        and descriptor[8:10] == b'\x02\x06'
        and descriptor[12:15] == b'\x80\x80\x00'
    )


def test_an_invalid_start_stop_unit_reports_the_running_sanitize():
    assert sense_of(make_unit(medium='sanitizing'), bytes.fromhex('1b 01 00 00 02 00')) == (
        2,
        0x04,
        0x1B,
    )


@pytest.mark.parametrize(
    'medium, sense, cure',
    [
        ('sanitize-failed', (3, 0x31, 0x03), ('48 1f 0000000000 0000 00',)),
        ('format-failed', (3, 0x31, 0x00), ('04 00 00 0000 00', '48 1f 0000000000 0000 00')),
    ],
)
def test_after_a_failure_only_commands_that_end_it_are_allowed(medium, sense, cure):
    unit = make_unit(medium=medium)
    assert sense_of(unit, cdb_10(0x28, 0, 1)) == sense
    assert sense_of(unit, bytes(6)) == sense
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == sense
    for cdb in cure:
        assert isinstance(do(unit, bytes.fromhex(cdb)), Change)
    assert sense_of(unit, bytes.fromhex('12 00 00 0024 00')) is None
    assert do(unit, bytes.fromhex('03 00 0000 fc 00'))[2] == 3
    if medium == 'sanitize-failed':
        assert sense_of(unit, bytes.fromhex('04 00 00 0000 00')) == sense


def test_all_commands_work_after_the_operation_has_ended():
    unit = make_unit(medium='sanitizing')
    assert sense_of(unit, cdb_10(0x28, 0, 1)) == (2, 0x04, 0x1B)
    unit.replace_shared_state(medium='ready')
    assert len(do(unit, cdb_10(0x28, 0, 1))) == 512
