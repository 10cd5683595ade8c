"""Identifying information and the timestamp, as seen by an initiator."""

import struct

import pytest
from fake_store import do, make_unit, sense_of

from targetd.scsi.sam import Change

FIELD_IN_CDB = (5, 0x24, 0x00)


def report(kind, length=0xFFFF):
    return struct.pack('>BB4xIBB', 0xA3, 0x05, length, kind << 1, 0)


def set_information(kind, length):
    return struct.pack('>BB4xIBB', 0xA4, 0x06, length, kind << 1, 0)


# -- identifying information -----------------------------------------------------------------------


def test_identifying_information_is_empty_at_first():
    assert do(make_unit(), report(0)) == bytes(4)
    assert do(make_unit(), report(2)) == bytes(4)


def test_information_that_was_set_is_reported():
    unit = make_unit()
    unit.replace_shared_state(records=dict(unit.records, identifying={'0': '0102', '2': 'c3a400'}))
    assert do(unit, report(0)) == b'\0\0\0\2\1\2'
    assert do(unit, report(2)) == b'\0\0\0\3\xc3\xa4\0'
    assert do(unit, report(2, 5)) == b'\0\0\0\3\xc3'


def test_the_types_are_reported_with_their_maximum_lengths():
    assert do(make_unit(), report(0x7F)) == struct.pack('>xxHBxHBxH', 8, 0, 64, 4, 256)


@pytest.mark.parametrize(
    'kind, data, kept',
    [
        (0, b'\0\1\xff', '0001ff'),
        (0, b'x' * 64, '78' * 64),
        (0, b'', ''),
        (2, b'', ''),
        (2, b'erp\0', '65727000'),
        (2, b'erp\0rest\0', '65727000'),
    ],
)
def test_information_is_set_by_the_master(kind, data, kept):
    change = do(make_unit(), set_information(kind, len(data)), data)
    assert change == Change('set-identifying-information', {'type': str(kind), 'data': kept})


@pytest.mark.parametrize('kind, length', [(0, 65), (2, 257), (1, 4), (0x7F, 4)])
def test_invalid_information_is_refused(kind, length):
    assert sense_of(make_unit(), set_information(kind, length), b'\0' * length) == FIELD_IN_CDB


@pytest.mark.parametrize('data', [b'no null', b'\xff\xfe\0'])
def test_text_is_utf_8_ended_by_a_null(data):
    assert sense_of(make_unit(), set_information(2, len(data)), data) == (5, 0x26, 0)


def test_other_types_cannot_be_reported():
    assert sense_of(make_unit(), report(1)) == FIELD_IN_CDB


# -- timestamp -------------------------------------------------------------------------------------

REPORT = bytes.fromhex('a3 0f 00000000 00000100 00 00')


def clocked(now=1700000000123):
    unit = make_unit()
    unit.services.milliseconds = lambda: now
    return unit


def test_the_timestamp_is_the_clock_of_the_host_until_it_is_set():
    assert (
        do(clocked(), REPORT)
        == struct.pack('>HBx', 10, 3) + (1700000000123).to_bytes(6, 'big') + b'\0\0'
    )


def test_a_timestamp_that_was_set_continues_to_count():
    unit = clocked(5000)
    data = bytes(4) + (1000).to_bytes(6, 'big') + bytes(2)
    change = do(unit, bytes.fromhex('a4 0f 00000000 0000000c 00 00'), data)
    assert change == Change('set-timestamp', {'offset': -4000})
    unit.replace_shared_state(records=dict(unit.records, timestamp_offset=-4000))
    unit.services.milliseconds = lambda: 5500
    answer = do(unit, REPORT)
    assert answer[2] == 2 and int.from_bytes(answer[4:10], 'big') == 1500
    unit.services.milliseconds = lambda: 0  # the host's clock was set back
    assert int.from_bytes(do(unit, REPORT)[4:10], 'big') == 0


def test_lists_of_a_wrong_length_are_refused():
    assert do(clocked(), bytes.fromhex('a4 0f 00000000 00000000 00 00')) is None
    assert sense_of(clocked(), bytes.fromhex('a4 0f 00000000 0000000b 00 00'), bytes(11)) == (
        5,
        0x1A,
        0,
    )
    assert sense_of(clocked(), bytes.fromhex('a4 0f 00000000 0000000c 00 00'), bytes(11)) == (
        5,
        0x1A,
        0,
    )
