import struct

import pytest
from fake_store import EVERY_COMMAND, block_cdb, do, error_of, make_unit, sense_of

from targetd.scsi import alua, opcodes
from targetd.scsi.alua import (
    NON_OPTIMIZED,
    OFFLINE,
    OPTIMIZED,
    SET_BY_COMMAND,
    SET_IMPLICITLY,
    STANDBY,
    TRANSITIONING,
    UNAVAILABLE,
)
from targetd.scsi.sam import Change, Port
from targetd.scsi.sense import CheckCondition

PORTS = (Port(1, 1, 'iqn.x:y,t,0x0001'), Port(2, 7, 'iqn.x:y,t,0x0007'))
TWO = alua.initial((1, 7), {7: STANDBY}, explicit=True)
RESTRICTED = (STANDBY, UNAVAILABLE, OFFLINE, TRANSITIONING)
TEST_UNIT_READY, REPORT_GROUPS = bytes(6), bytes.fromhex('a3 0a 00000000 00001000 00 00')


def unit_in(state, **facts):
    unit = make_unit(**dict(EVERY_COMMAND, **facts))
    unit.replace_shared_state(access=alua.initial((1,), {1: state}, explicit=True))
    return unit


# -- the state -------------------------------------------------------------------------------------


def test_groups_are_optimized_unless_the_configuration_says_otherwise():
    assert alua.state_of(TWO, 1) == OPTIMIZED and alua.state_of(TWO, 7) == STANDBY
    assert alua.state_of(TWO, 99) == OPTIMIZED


def test_setting_the_current_state_changes_nothing():
    assert alua.changed(TWO, {'7': STANDBY}, SET_BY_COMMAND) is TWO
    new = alua.changed(TWO, {'1': NON_OPTIMIZED, '7': STANDBY}, SET_BY_COMMAND)
    assert new['states'] == {'1': [NON_OPTIMIZED, SET_BY_COMMAND], '7': [STANDBY, 0]}
    assert TWO['states']['1'] == [OPTIMIZED, 0]
    assert not alua.is_same(new, TWO) and alua.is_same(TWO, dict(TWO))
    with pytest.raises(KeyError):
        alua.changed(TWO, {'2': STANDBY}, SET_BY_COMMAND)


def test_a_set_state_persists_while_the_configuration_is_unchanged():
    assert alua.saved(TWO) == {}
    new = alua.changed(TWO, {'1': STANDBY, '7': OPTIMIZED}, SET_BY_COMMAND)
    kept = alua.saved(new)
    assert alua.restore(TWO, kept) == new
    other = alua.initial((1, 7), {7: UNAVAILABLE}, explicit=True)
    assert alua.restore(other, kept) == other
    assert alua.restore(alua.initial((1,)), kept) == alua.initial((1,))


@pytest.mark.parametrize(
    'kept',
    [
        [],
        7,
        {'states': {}},
        {'configured': {}, 'states': {'1': 3}},
        {'configured': {}, 'states': {'1': [9, 0]}},
        {'configured': {}, 'states': {'1': ['x', 0]}},
    ],
)
def test_a_damaged_saved_state_is_refused(kept):
    with pytest.raises(ValueError):
        alua.restore(TWO, kept or [1])


def test_a_reload_changes_only_groups_whose_configuration_changed():
    now = alua.changed(TWO, {'1': STANDBY, '7': OPTIMIZED}, SET_BY_COMMAND)
    fresh = alua.initial((1, 7, 9), {7: UNAVAILABLE}, explicit=False)
    new = alua.reconfigured(now, fresh)
    assert new['states'] == {
        '1': [STANDBY, SET_BY_COMMAND],
        '7': [UNAVAILABLE, SET_IMPLICITLY],
        '9': [OPTIMIZED, 0],
    }
    assert new['explicit'] is False


# -- on the wire -----------------------------------------------------------------------------------


def groups(data):
    """{tag: (state, supported, status, [relative port …])} of REPORT TARGET PORT GROUPS data
    without its first four bytes."""
    found = {}
    while data:
        state, supported, tag, status, count = struct.unpack_from('>BBHxBxB', data)
        ports = [struct.unpack_from('>2xH', data, 8 + 4 * n)[0] for n in range(count)]
        found[tag] = (state, supported, status, ports)
        data = data[8 + 4 * count :]
    return found


def test_the_report_has_every_group_with_its_ports_and_no_preferred_one():
    data = alua.report_data(TWO, PORTS, extended=False)
    assert struct.unpack_from('>I', data)[0] == len(data) - 4
    assert groups(data[4:]) == {1: (OPTIMIZED, 0xCF, 0, [1]), 7: (STANDBY, 0xCF, 0, [2])}
    longer = alua.report_data(TWO, PORTS, extended=True)
    assert longer[4:8] == b'\x10\0\0\0' and longer[8:] == data[4:]
    assert struct.unpack_from('>I', longer)[0] == len(longer) - 4


def listed(*pairs):
    return bytes(4) + b''.join(struct.pack('>BxH', state, tag) for state, tag in pairs)


def test_the_list_of_set_target_port_groups():
    assert alua.parse_set(TWO, listed((STANDBY, 1), (OPTIMIZED, 7))) == {
        'states': {'1': STANDBY, '7': OPTIMIZED}
    }
    assert alua.parse_set(TWO, bytes(4)) == {'states': {}}


@pytest.mark.parametrize(
    'data, asc, field',
    [
        (bytes(3), 0x1A, None),
        (listed((0, 1))[:-1], 0x1A, None),
        (listed((0, 1), (0xF, 7)), 0x26, (8, 3, False)),
        (listed((0xE, 1)), 0x26, (4, 3, False)),
        (listed((0, 3)), 0x26, (6, None, False)),
        (listed((0, 1), (1, 1)), 0x26, (10, None, False)),
    ],
)
def test_invalid_lists_are_refused(data, asc, field):
    with pytest.raises(CheckCondition) as e:
        alua.parse_set(TWO, data)
    assert (e.value.key, e.value.asc, e.value.field) == (5, asc, field)


@pytest.mark.parametrize(
    'state, arguments',
    [
        (TWO, {'states': []}),
        (TWO, {'states': {'9': 0}}),
        (TWO, {'states': {'1': 0xE}}),
        (TWO, {'states': {'1': True}}),
        (TWO, {'states': {'1': '0'}}),
        (alua.initial((1,)), {'states': {'1': 0}}),
    ],
)
def test_the_master_refuses_invalid_arguments_of_a_worker(state, arguments):
    with pytest.raises((ValueError, TypeError)):
        alua.checked_set(state, arguments)


# -- what a unit does ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'implicit, explicit, tpgs',
    [(False, False, 0), (True, False, 1), (False, True, 2), (True, True, 3)],
)
def test_inquiry_commands_and_pages_agree(implicit, explicit, tpgs):
    unit = make_unit(implicit_alua=implicit, explicit_alua=explicit)
    assert do(unit, bytes.fromhex('12 00 00 00ff 00'))[5] >> 4 & 3 == tpgs
    assert (sense_of(unit, REPORT_GROUPS) is None) == bool(tpgs)
    assert (sense_of(unit, bytes.fromhex('a4 0a 00000000 00000000 00 00')) is None) == explicit
    extension = do(unit, bytes.fromhex('5a 08 0a 01 000000 00ff 00'))[8:]
    assert extension[4] & 1 == implicit


def test_the_report_is_cut_at_the_allocation_length():
    unit = unit_in(OPTIMIZED)
    whole = do(unit, REPORT_GROUPS)
    assert groups(whole[4:]) == {1: (OPTIMIZED, 0xCF, 0, [1])}
    assert do(unit, bytes.fromhex('a3 0a 00000000 00000006 00 00')) == whole[:6]
    assert do(unit, bytes.fromhex('a3 2a 00000000 00001000 00 00'))[4] == 0x10
    error = error_of(unit, bytes.fromhex('a3 4a 00000000 00001000 00 00'))
    assert (error.asc, error.field) == (0x24, (1, 7, True))


def test_referrals_have_one_segment_with_every_group():
    data = alua.referrals_data(TWO, 4095)
    assert data == bytes.fromhex(
        '0000 001c 00000002 0000000000000000 0000000000000fff 00000001 02000007'
    )
    unit = unit_in(NON_OPTIMIZED)
    cdb = struct.pack('>BBQIBB', 0x9E, 0x13, 5, 4096, 1, 0)
    assert do(unit, cdb) == bytes.fromhex(
        '0000 0018 00000001 0000000000000000 0000000000000fff 01000001'
    )
    assert do(unit, struct.pack('>BBQIBB', 0x9E, 0x13, 0, 8, 0, 0)) == do(unit, cdb)[:8]
    assert error_of(unit, struct.pack('>BBQIBB', 0x9E, 0x13, 4096, 64, 0, 0)).asc == 0x21
    assert sense_of(make_unit(), cdb) == (5, 0x24, 0)


def test_set_target_port_groups_is_executed_by_the_master():
    data = listed((STANDBY, 1))
    cdb = struct.pack('>BB4xIxx', 0xA4, 0x0A, len(data))
    assert do(unit_in(OPTIMIZED), cdb, data) == Change(
        'set-target-port-groups', {'states': {'1': STANDBY}}
    )
    assert sense_of(unit_in(OPTIMIZED), cdb, listed((0, 9))) == (5, 0x26, 0)


@pytest.mark.parametrize('state', [OPTIMIZED, NON_OPTIMIZED])
def test_active_paths_keep_the_hot_functions(state):
    assert unit_in(state).dispatch[0x28] is not unit_in(state)._admit
    assert len(do(unit_in(state), block_cdb(0x28, 0, 1))) == 512
    plain = make_unit(**EVERY_COMMAND)
    assert [f.__name__ for f in unit_in(state).dispatch] == [f.__name__ for f in plain.dispatch]


@pytest.mark.parametrize(
    'row', opcodes.TABLE, ids=lambda row: '%02X-%s' % (row.opcode, row.service_action)
)
@pytest.mark.parametrize('state', RESTRICTED)
def test_commands_that_each_state_allows(state, row):
    unit = unit_in(state)
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    refused = (2, 0x04, alua.QUALIFIERS[state])
    passes = (row.opcode, row.service_action) in alua.ALLOWED[state]
    assert (sense_of(unit, bytes(cdb), b'') == refused) != passes


def test_an_unsupported_command_is_refused_as_such_on_every_path():
    assert sense_of(unit_in(STANDBY), b'\xff' + bytes(9)) == (5, 0x20, 0)


@pytest.mark.parametrize('state', RESTRICTED)
def test_request_sense_reports_the_access_state(state):
    assert do(unit_in(state), bytes.fromhex('03 00 0000 ff 00'))[12:14] == bytes(
        [0x04, alua.QUALIFIERS[state]]
    )


def test_a_pending_attention_comes_before_the_access_state():
    unit = unit_in(STANDBY)
    unit.raise_attention(0x2A, 0x06)
    assert sense_of(unit, TEST_UNIT_READY) == (6, 0x2A, 0x06)
    assert sense_of(unit, TEST_UNIT_READY) == (2, 0x04, 0x0B)
    unit.replace_shared_state(access=alua.initial((1,)))
    assert sense_of(unit, TEST_UNIT_READY) is None


def test_the_state_is_that_of_the_group_of_the_nexus():
    unit = make_unit(**EVERY_COMMAND)
    unit.replace_shared_state(access=alua.initial((1, 7), {7: OFFLINE}))
    assert sense_of(unit, TEST_UNIT_READY) is None


def test_every_allowed_command_exists_in_the_table():
    """A wrong opcode in ALLOWED would allow nothing, and no other test would find it."""
    known = {(row.opcode, row.service_action) for row in opcodes.TABLE}
    later = {(0x3B, None), (0x3C, None), (0x4C, None), (0x4D, None)}
    for allowed in alua.ALLOWED.values():
        assert allowed - known <= later


def test_no_path_of_a_unit_that_another_server_serves_is_ever_active():
    for state in (alua.OPTIMIZED, alua.NON_OPTIMIZED):
        access = dict(alua.initial((1,), {1: state}), elsewhere=True)
        assert alua.state_of(access, 1) == STANDBY
        unit = make_unit(**EVERY_COMMAND)
        unit.replace_shared_state(access=access)
        assert sense_of(unit, TEST_UNIT_READY) == (2, 0x04, 0x0B)
