"""The health of the disk behind a unit, as an initiator sees it in log pages and informational exceptions."""

import struct

import pytest
from fake_store import cdb_10, do, make_unit, sense_of

from targetd.master.units import fault_transitions, shared_state
from targetd.scsi import health, modes, records, reservations
from targetd.scsi.facts import UnitFacts

REQUEST_SENSE = bytes([0x03, 0, 0, 0, 252, 0])
TEST_UNIT_READY = bytes(6)
PREDICTED = [0x5D, 0x10]
FACTS = UnitFacts.from_message({'health': True})
TEST = {
    'code': 1, 'result': 7, 'number': 0, 'hours': 900, 'address': 4711, 'key': 3, 'asc': 0x11, 'ascq': 0,
}  # fmt: skip
SICK = {
    'at': 1,
    'failure': PREDICTED,
    'temperature': 61,
    'limit': 60,
    'cycles': 12,
    'most_cycles': 50000,
    'loads': 34,
    'most_loads': 600000,
    'read': {'corrected': 5, 'uncorrected': 2, 'bytes': 1 << 40},
    'self_tests': [TEST],
}


def unit_with(found, method=None, **facts):
    unit = make_unit(health=True, **facts)
    unit.records = dict(unit.records, health=found)
    if method is not None:
        unit.modes = with_method(unit.modes, method)
    return unit


def with_method(state, method, exceptions=True):
    page = bytearray(bytes.fromhex(state['current']['1c-00']))
    page[2:4] = bytes([0 if exceptions else health.DEXCPT, method])
    return modes.apply_mode_select(state, {'pages': {'1c-00': page.hex()}})


def page(unit, code):
    """{parameter code: value} of a log page."""
    data = do(unit, struct.pack('>BBBBxHHB', 0x4D, 0, 0x40 | code, 0, 0, 0xFFFF, 0))
    found, offset = {}, 4
    while offset < len(data):
        number, _, length = struct.unpack_from('>HBB', data, offset)
        found[number] = data[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return found


# -- log pages -------------------------------------------------------------------------------------


def test_the_temperature_is_reported_with_its_limit():
    assert page(unit_with(SICK), 0x0D) == {0: b'\0\x3d', 1: b'\0\x3c'}
    assert page(unit_with({}), 0x0D) == {0: b'\0\xff', 1: b'\0\xff'}


def test_the_cycles_are_those_of_the_disk():
    found = page(unit_with(SICK), 0x0E)
    assert [int.from_bytes(found[code], 'big') for code in (3, 4, 5, 6)] == [50000, 12, 600000, 34]
    assert sorted(page(unit_with({}), 0x0E)) == [1, 2, 4, 6]


def test_the_errors_are_those_of_the_disk():
    found = page(unit_with(SICK), 0x03)
    assert {code: int.from_bytes(value, 'big') for code, value in found.items()} == {
        3: 5, 5: 1 << 40, 6: 2,
    }  # fmt: skip
    assert page(unit_with(SICK), 0x02) == {6: bytes(8)}


def test_errors_that_the_server_met_are_not_hidden_by_fewer_of_the_disk():
    unit = unit_with(SICK)
    unit.records = dict(unit.records, errors={'read': 9, 'write': 0, 'verify': 0})
    assert int.from_bytes(page(unit, 0x03)[6], 'big') == 9


def test_the_self_tests_of_the_disk_follow_those_of_the_unit():
    unit = unit_with(SICK)
    own = dict(TEST, number=1, result=0, address=None, key=0, asc=0, by=['i', 't'])
    unit.records = dict(unit.records, self_tests=[own])
    found = page(unit, 0x10)
    assert len(found) == 20
    assert found[1][:2] == b'\x20\x01'
    assert found[2] == struct.pack('>BBHQBBBx', 0x27, 0, 900, 4711, 3, 0x11, 0)
    assert found[3] == bytes(16)


def test_a_predicted_failure_is_in_the_page_of_informational_exceptions():
    assert page(unit_with(SICK), 0x2F) == {0: b'\x5d\x10\x3d\x3c'}
    assert page(unit_with({'at': 1}), 0x2F) == {0: b'\0\0\xff\xff'}


# -- informational exceptions ----------------------------------------------------------------------


def test_a_new_session_hears_of_a_predicted_failure_once():
    unit = unit_with(SICK)
    again = type(unit)(
        unit.facts, unit.store, unit.nexus, unit.device, modes=unit.modes, records=unit.records
    )
    assert sense_of(again, TEST_UNIT_READY) == (6, 0x29, 0)
    assert sense_of(again, TEST_UNIT_READY) == (6, 0x5D, 0x10)
    do(again, TEST_UNIT_READY)


def test_request_sense_reports_it_if_the_initiator_selects_that():
    unit = unit_with(SICK, health.ON_REQUEST)
    for _ in range(2):
        data = do(unit, REQUEST_SENSE)
        assert (data[2] & 0x0F, data[12], data[13]) == (0, 0x5D, 0x10)
    do(unit, cdb_10(0x28, 0, 1))
    assert do(unit_with(SICK, health.UNIT_ATTENTION), REQUEST_SENSE)[12] == 0
    assert do(unit_with({}, health.ON_REQUEST), REQUEST_SENSE)[12] == 0


def test_a_unit_without_health_reports_no_exceptions_by_default():
    assert health.method(modes.initial(UnitFacts.from_message({}))) == health.NOT_REPORTED
    assert health.method(modes.initial(FACTS)) == health.UNIT_ATTENTION


@pytest.mark.parametrize('method', [1, 3, 4, 5, 7, 15])
@pytest.mark.clause('SPC-4 6.11')
def test_a_method_that_the_unit_does_not_have_is_refused(method):
    unit = unit_with({})
    parameters = bytes([0, 0, 0, 0, 0x1C, 10, 0, method]) + bytes(8)
    cdb = bytes([0x15, 0x10, 0, 0, len(parameters), 0])
    assert sense_of(unit, cdb, parameters) == (5, 0x26, 0)
    with pytest.raises(ValueError):
        with_method(unit.modes, method)


# -- changes of the health -------------------------------------------------------------------------


def shared(method=None):
    state = modes.initial(FACTS)
    if method is not None:
        state = with_method(state, method)
    return shared_state.Shared(reservations.initial(), state)


def test_every_nexus_gets_one_unit_attention():
    decision = fault_transitions.health_found(shared(), SICK)
    assert [each[1:] for each in decision.attentions] == [(0x5D, 0x10)]
    assert decision.persist
    again = fault_transitions.health_found(decision.shared, dict(SICK, at=2))
    assert again.attentions == () and not again.persist
    other = fault_transitions.health_found(decision.shared, dict(SICK, failure=[0x5D, 0x73]))
    assert [each[1:] for each in other.attentions] == [(0x5D, 0x73)]
    well = fault_transitions.health_found(decision.shared, {'at': 3})
    assert well.attentions == () and well.persist


@pytest.mark.parametrize('method', [health.NOT_REPORTED, health.ON_REQUEST])
def test_other_methods_establish_no_unit_attention(method):
    assert fault_transitions.health_found(shared(method), SICK).attentions == ()


# -- stable storage --------------------------------------------------------------------------------


def test_the_health_outlasts_a_restart():
    kept = records.records_for_storage(dict(records.initial(), health=SICK))
    assert health.of(records.records_from_storage(kept)) == SICK


@pytest.mark.parametrize(
    'damaged',
    [
        {'temperature': 5},
        {'at': 1, 'temperature': 300},
        {'at': 1, 'failure': [0x5D]},
        {'at': 1, 'failure': [0x5D, 256]},
        {'at': 1, 'read': {'bytes': -1}},
        {'at': 1, 'self_tests': [TEST] * 21},
        {'at': 1, 'self_tests': [dict(TEST, result=16)]},
        {'at': 'now'},
        ['at'],
    ],
)
def test_damaged_health_is_refused(damaged):
    with pytest.raises((ValueError, TypeError)):
        records.records_from_storage({'health': damaged})


def test_records_of_an_earlier_release_have_no_health():
    assert health.of({}) == {}
    assert health.failure({}) is None
