"""LOG SENSE and LOG SELECT as seen by an initiator."""

import errno
import struct

import pytest
from fake_store import cdb_10, do, error_of, make_unit, sense_of

from targetd.scsi import logs, records
from targetd.scsi.sam import Change

FIELD_IN_CDB = (5, 0x24, 0x00)
FIELD_IN_LIST = (5, 0x26, 0x00)


def log_sense(page, subpage=0, control=1, pointer=0, length=0xFFFF):
    return struct.pack('>BBBBxHHB', 0x4D, 0, control << 6 | page, subpage, pointer, length, 0)


def log_select(length=0, flags=0, page=0, subpage=0, control=1):
    return struct.pack('>BBBB3xHB', 0x4C, flags, control << 6 | page, subpage, length, 0)


def thin_unit(**facts):
    unit = make_unit(thin=True, unmap=True, threshold_exponent=3, **facts)
    unit.store.allocated = lambda: 100 * 4096 + 1
    unit.store.available = lambda: 7 * 4096 + 4095
    return unit


def page(unit, code, **words):
    """{parameter code: (control byte, value)} of a page, whose header and lengths must be right."""
    data = do(unit, log_sense(code, **words))
    assert data[0] & 0x3F == code and struct.unpack('>H', data[2:4])[0] == len(data) - 4
    found, offset = {}, 4
    while offset < len(data):
        number, control, length = struct.unpack_from('>HBB', data, offset)
        found[number] = (control, data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    assert offset == len(data)
    return found


# -- which pages -----------------------------------------------------------------------------------


@pytest.mark.clause('SPC-4 6.8')
def test_every_listed_page_is_supported():
    unit = thin_unit()
    data = do(unit, log_sense(0))
    assert data[:2] == b'\0\0' and data[4:] == bytes(
        [0, 2, 3, 5, 0x0C, 0x0D, 0x0E, 0x10, 0x19, 0x2F]
    )
    for code in data[5:]:
        assert code == 0x19 or page(unit, code)


def test_a_unit_that_is_not_thin_has_no_provisioning_page():
    unit = make_unit()
    assert 0x0C not in do(unit, log_sense(0))
    assert sense_of(unit, log_sense(0x0C)) == FIELD_IN_CDB


def test_pages_and_subpages_are_listed_ascending():
    data = do(make_unit(), log_sense(0, 0xFF))
    assert data[:2] == b'\x40\xff' and struct.unpack('>H', data[2:4])[0] == len(data) - 4
    pairs = [tuple(data[n : n + 2]) for n in range(4, len(data), 2)]
    assert pairs == sorted(pairs) and (0, 0xFF) in pairs and (0x0D, 0) in pairs
    assert do(make_unit(), log_sense(0x0D, 0xFF))[4:] == b'\x0d\x00\x0d\xff'


@pytest.mark.parametrize('code, subpage', [(0x3E, 0), (0x3E, 0xFF), (0x0D, 1), (0, 1)])
@pytest.mark.clause('SPC-4 6.8')
def test_other_pages_are_refused(code, subpage):
    assert sense_of(make_unit(), log_sense(code, subpage)) == FIELD_IN_CDB


def test_saving_is_not_supported():
    cdb = bytearray(log_sense(0x0D))
    cdb[1] = 1
    assert sense_of(make_unit(), bytes(cdb)) == FIELD_IN_CDB


@pytest.mark.clause('SPC-4 6.8')
def test_data_is_cut_at_the_allocation_length():
    unit = make_unit()
    assert do(unit, log_sense(0x10, length=7)) == do(unit, log_sense(0x10))[:7]
    assert len(do(unit, log_sense(0x10, length=0))) == 0


@pytest.mark.clause('SPC-4 6.8')
def test_parameters_before_the_parameter_pointer_are_omitted():
    unit = make_unit()
    assert sorted(page(unit, 0x10, pointer=18)) == [18, 19, 20]
    assert sense_of(unit, log_sense(0x10, pointer=21)) == FIELD_IN_CDB
    assert sense_of(unit, log_sense(0x00, pointer=1)) == FIELD_IN_CDB


# -- what they say ---------------------------------------------------------------------------------


@pytest.mark.parametrize('control', range(4))
def test_the_provisioning_page_is_the_same_for_every_page_control(control):
    """DS 1, SPF 0, parameters of 8 bytes in format 3."""
    unit = thin_unit()
    data = do(unit, log_sense(0x0C, control=control))
    assert data[0] == 0x8C and (len(data) - 4) % 12 == 0
    found = page(unit, 0x0C, control=control)
    assert found == {1: (3, struct.pack('>IB3x', 7, 2)), 2: (3, struct.pack('>IB3x', 101, 1))}


def test_provisioning_of_a_medium_that_fails():
    unit = thin_unit()

    def broken():
        raise OSError(errno.EIO, 'broken')

    unit.store.allocated = broken
    assert sense_of(unit, log_sense(0x0C)) == (3, 0x11, 0)


def test_errors_of_the_medium_are_counted():
    unit = make_unit()
    reported = []
    unit.services.note = lambda kind, message: reported.append((kind, message))
    unit.store.bad = (512,)
    assert sense_of(unit, cdb_10(0x28, 0, 4)) == (3, 0x11, 0)
    assert sense_of(unit, cdb_10(0x2F, 0, 4)) == (3, 0x11, 0)
    unit.store.fail['write'] = errno.EIO
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == (3, 0x0C, 0)
    unit.store.fail['write'] = errno.ENOSPC
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == (7, 0x27, 7)
    for code in (2, 3, 5):
        assert page(unit, code) == {6: (2, struct.pack('>Q', 1))}
    seen = [(note['kind'], note['errno'], note['offset'], note['is_exact']) for _, note in reported]
    assert seen == [
        ('read', errno.EIO, 512, True),
        ('verify', errno.EIO, 512, True),
        ('write', errno.EIO, 0, True),
        ('write', errno.ENOSPC, 0, False),
    ]
    assert page(unit, 3, control=3) == {6: (2, bytes(8))}
    assert page(unit, 3, control=0) == {6: (2, b'\xff' * 8)}


def test_the_temperature_is_unknown():
    assert page(make_unit(), 0x0D) == {0: (3, b'\0\xff'), 1: (3, b'\0\xff')}


def test_starts_loads_and_dates():
    unit = make_unit()
    unit.replace_shared_state(
        records=dict(unit.records, cycles=3, loads=4, accounting_date='202647')
    )
    found = page(unit, 0x0E)
    assert found[2] == (1, b'202647') and found[1] == (1, b' ' * 6)
    assert found[4] == (3, struct.pack('>I', 3)) and found[6] == (3, struct.pack('>I', 4))


def test_informational_exceptions_warn_of_a_unit_that_lost_data():
    assert page(make_unit(), 0x2F)[0][1][:3] == b'\0\0\xff'
    assert page(make_unit(medium='failed'), 0x2F)[0][1][:2] == b'\x5d\0'


def test_the_master_is_asked_for_the_statistics_page():
    assert do(make_unit(), log_sense(0x19, length=100)) == Change(
        'statistics', {'control': 1, 'pointer': 0, 'length': 100}
    )
    assert sense_of(make_unit(), log_sense(0x19, pointer=4)) == FIELD_IN_CDB


def test_logs_can_be_read_while_a_sanitize_runs():
    assert page(make_unit(medium='sanitizing'), 0x0D)


# -- LOG SELECT ------------------------------------------------------------------------------------


def select(unit, data, control=1):
    return do(unit, log_select(len(data), control=control), data)


def parameter(page_code, code, value, control=0):
    body = struct.pack('>HBB', code, control, len(value)) + value
    return struct.pack('>BBH', page_code, 0, len(body)) + body


def test_the_accounting_date_can_be_set():
    assert select(make_unit(), parameter(0x0E, 2, b'202647')) == Change(
        'log-select', {'accounting_date': '202647'}
    )


def test_counters_of_several_pages_can_be_set_at_once():
    data = parameter(0x03, 6, struct.pack('>Q', 5)) + parameter(0x02, 6, bytes(8))
    assert select(make_unit(), data) == Change('log-select', {'errors': {'read': 5, 'write': 0}})
    assert select(make_unit(), data, control=0) is None


@pytest.mark.parametrize(
    'cdb, arguments',
    [
        (log_select(flags=2), {'reset': True}),
        (log_select(control=3), {'reset': True}),
        (log_select(flags=2, page=5), {'errors': {'verify': 0}}),
    ],
)
@pytest.mark.clause('SPC-4 6.7')
def test_counters_can_be_reset(cdb, arguments):
    assert do(make_unit(), cdb) == Change('log-select', arguments)


@pytest.mark.parametrize(
    'cdb', [log_select(), log_select(control=0), log_select(flags=2, page=0x0D)]
)
def test_a_log_select_that_changes_nothing(cdb):
    assert do(make_unit(), cdb) is None


@pytest.mark.parametrize(
    'cdb',
    [
        log_select(4, flags=2),
        log_select(4, page=3),
        log_select(4, subpage=1),
        log_select(page=0x3D),
        log_select(page=3, subpage=2),
        log_select(flags=1),
        log_select(page=0x0C),
    ],
)
@pytest.mark.clause('SPC-4 6.7')
def test_an_invalid_log_select_is_refused(cdb):
    assert sense_of(make_unit(), cdb, bytes(4)) == FIELD_IN_CDB


@pytest.mark.parametrize(
    'data, sense',
    [
        (b'\x0e\0\0', (5, 0x1A, 0)),
        (b'\x0e\0\0\x08\0\2\0', (5, 0x1A, 0)),
        (b'\x0e\0\0\x02\0\2', (5, 0x1A, 0)),
        (b'\x0e\0\0\x06\0\2\0\6\0\0', (5, 0x1A, 0)),
        (parameter(0x3D, 0, b'x'), FIELD_IN_LIST),
        (b'\x4e\1\0\0', FIELD_IN_LIST),
        (parameter(0x0E, 2, b'2026'), FIELD_IN_LIST),
        (parameter(0x0E, 2, b'2026xx'), FIELD_IN_LIST),
        (parameter(0x0E, 4, bytes(4)), FIELD_IN_LIST),
        (parameter(0x03, 6, bytes(4)), FIELD_IN_LIST),
        (parameter(0x0D, 0, bytes(2)), FIELD_IN_LIST),
    ],
)
@pytest.mark.clause('SPC-4 6.7')
def test_an_invalid_parameter_list_is_refused(data, sense):
    assert sense_of(make_unit(), log_select(len(data)), data) == sense


def test_the_field_pointer_is_that_of_the_invalid_parameter():
    data = parameter(0x03, 6, bytes(8)) + parameter(0x0D, 0, bytes(2))
    assert error_of(make_unit(), log_select(len(data)), data).field == (20, None, False)


def test_every_page_has_a_name_and_its_records():
    assert len({(row.code, row.subpage) for row in logs.TABLE}) == len(logs.TABLE)
    assert set(logs.COUNTED.values()) == set(records.ERRORS)
