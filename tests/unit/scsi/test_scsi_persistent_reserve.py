"""PERSISTENT RESERVE OUT parameter lists, and PERSISTENT RESERVE IN data."""

import json
import struct

import pytest

from targetd.scsi import persistent_reserve, reservations, transport_id
from targetd.scsi.sam import Nexus, Port
from targetd.scsi.sense import CheckCondition

PORTS = [Port(1, 1, 'iqn.t:disk,t,0x0001'), Port(2, 2, 'iqn.t:disk,t,0x0002')]
A, B = 'iqn.a:host,i,0x00023d000001', 'iqn.b:host,i,0x400001370000'
NEXUS = Nexus('iqn.a:host', '00023d000001', 'iqn.t:disk', 1)


def cdb(action, length=24, scope_and_type=0):
    return struct.pack('>BBBxxIxxxxxxx', 0x5F, action, scope_and_type, length)


def basic(key=0, service_action_key=0, flags=0):
    return struct.pack('>QQ4xBxxx', key, service_action_key, flags)


def move(relative=2, flags=0, name=B, key=1, service_action_key=2, length=None):
    identifier = transport_id.encode(name) if name else b''
    return (
        struct.pack(
            '>QQxBHI',
            key,
            service_action_key,
            flags,
            relative,
            len(identifier) if length is None else length,
        )
        + identifier
    )


def parsed(action, data, ports=PORTS, **more):
    return persistent_reserve.parse_out(cdb(action, len(data), **more), data, ports)


def refusal(action, data, length=None):
    with pytest.raises(CheckCondition) as caught:
        persistent_reserve.parse_out(
            cdb(action, len(data) if length is None else length), data, PORTS
        )
    return (caught.value.key, caught.value.asc, caught.value.ascq), caught.value.field


LENGTH_ERROR = ((5, 0x1A, 0), None)


def state(*registrations, **more):
    result = reservations.initial()
    result.update(
        registrations=[
            {'initiator_port': i, 'target_port': t, 'key': '%016x' % key, 'all_tg_pt': all_ports}
            for i, t, key, all_ports in registrations
        ],
        **more,
    )
    return result


# -- PERSISTENT RESERVE OUT ------------------------------------------------------------------------


@pytest.mark.parametrize('action', range(7))
def test_scope_type_and_keys_are_read(action):
    arguments = parsed(action, basic(0x1122334455667788, 0xAABBCCDDEEFF0011), scope_and_type=0x25)
    assert (arguments['service_action'], arguments['scope'], arguments['type']) == (action, 2, 5)
    assert (arguments['key'], arguments['service_action_key']) == (
        '1122334455667788',
        'aabbccddeeff0011',
    )
    assert json.loads(json.dumps(arguments)) == arguments


def test_aptpl_and_all_tg_pt_apply_to_registering_actions_only():
    for action in range(7):
        arguments = parsed(action, basic(flags=0x05))
        registers = action in (0, 6)
        assert arguments['aptpl'] is arguments['all_tg_pt'] is registers
        assert arguments['target_ports'] == ([port.name for port in PORTS] if registers else [])


def test_a_memoryview_is_accepted_and_data_after_the_list_is_ignored():
    data = memoryview(basic(1, 2) + b'more')
    assert persistent_reserve.parse_out(cdb(0, 24), data)['service_action_key'] == '%016x' % 2


@pytest.mark.parametrize('action', range(8, 32))
def test_unknown_service_actions_are_refused(action):
    assert refusal(action, basic()) == ((5, 0x24, 0), (1, 4, True))


@pytest.mark.parametrize('action', range(8))
@pytest.mark.parametrize('length', [0, 1, 16, 23])
def test_a_short_list_is_a_length_error(action, length):
    assert refusal(action, basic(), length) == LENGTH_ERROR


@pytest.mark.parametrize('action', range(7))
def test_a_long_list_is_a_length_error(action):
    assert refusal(action, basic() + bytes(4)) == LENGTH_ERROR


def test_less_data_than_announced_is_a_length_error():
    assert refusal(0, basic()[:20], 24) == LENGTH_ERROR


@pytest.mark.parametrize('action', [1, 2, 3, 4, 5, 6])
def test_initiator_ports_can_be_specified_with_register_only(action):
    assert refusal(action, basic(flags=0x08) + bytes(4)) == ((5, 0x26, 0), (20, 3, False))


def test_specified_initiator_ports():
    identifiers = transport_id.encode(B) + transport_id.encode('iqn.c:host')
    data = basic(0, 7, 0x08) + struct.pack('>I', len(identifiers)) + identifiers
    assert parsed(0, data)['transport_ids'] == [B, 'iqn.c:host']
    assert parsed(0, basic(0, 7, 0x08) + bytes(4))['transport_ids'] == []
    assert parsed(0, basic(0, 7))['transport_ids'] is None


def test_a_truncated_transport_id_list_is_a_length_error():
    identifier = transport_id.encode(B)
    whole = basic(0, 7, 0x08) + struct.pack('>I', len(identifier)) + identifier
    for cut in (24, 27, 28, 40, len(whole) - 1):
        assert refusal(0, whole[:cut]) == LENGTH_ERROR
    inside = basic(0, 7, 0x08) + struct.pack('>I', len(identifier) - 4) + identifier
    assert refusal(0, inside) == LENGTH_ERROR
    assert refusal(0, basic(0, 7, 0x08) + struct.pack('>I', 30) + bytes(30)) == (
        (5, 0x26, 0),
        (24, None, False),
    )


def test_register_and_move():
    arguments = parsed(7, move(flags=0x03))
    assert (arguments['key'], arguments['service_action_key']) == ('%016x' % 1, '%016x' % 2)
    assert arguments['aptpl'] is arguments['unregister'] is True
    assert arguments['transport_ids'] == [B] and arguments['target_ports'] == [
        'iqn.t:disk,t,0x0002'
    ]
    arguments = parsed(7, move(flags=0x00))
    assert arguments['aptpl'] is arguments['unregister'] is False


def test_register_and_move_to_an_unknown_port_is_refused():
    assert refusal(7, move(relative=3)) == ((5, 0x26, 0), (18, None, False))
    assert refusal(7, move(name='iqn.b:host')) == ((5, 0x26, 0), (24, None, False))


def test_register_and_move_with_a_wrong_length_is_refused():
    assert refusal(7, move(length=20)) == LENGTH_ERROR
    assert refusal(7, move(name=None)) == LENGTH_ERROR
    identifier = transport_id.encode(B) + bytes(4)
    data = struct.pack('>QQxBHI', 1, 2, 0, 2, len(identifier)) + identifier
    assert refusal(7, data) == ((5, 0x26, 0), (20, None, False))


@pytest.mark.parametrize('opcode', [0x16, 0x17, 0x56, 0x57])
def test_reserve_for_third_parties_and_of_extents_is_refused(opcode):
    assert persistent_reserve.parse_reserve(bytes([opcode]) + bytes(9)) == {}
    for flags, bit in ((0x10, 4), (0x1E, 4), (0x01, 0)):
        with pytest.raises(CheckCondition) as caught:
            persistent_reserve.parse_reserve(bytes([opcode, flags]) + bytes(8))
        assert (caught.value.asc, caught.value.field) == (0x24, (1, bit, True))


# -- PERSISTENT RESERVE IN -------------------------------------------------------------------------


@pytest.mark.clause('SPC-4 6.15')
def test_read_keys():
    assert persistent_reserve.read_keys(state(generation=7)) == struct.pack('>II', 7, 0)
    data = persistent_reserve.read_keys(
        state((A, PORTS[0].name, 1, False), (B, PORTS[0].name, 2, False), generation=9)
    )
    assert data == struct.pack('>IIQQ', 9, 16, 1, 2)


@pytest.mark.clause('SPC-4 6.15')
def test_read_reservation():
    one = (A, PORTS[0].name, 0x11, False)
    two = (B, PORTS[0].name, 0x22, False)
    assert persistent_reserve.read_reservation(state(one, two, generation=3)) == struct.pack(
        '>II', 3, 0
    )
    held = state(one, two, generation=3, type=5, holder=[B, PORTS[0].name])
    assert persistent_reserve.read_reservation(held) == struct.pack(
        '>IIQ4xBBH', 3, 16, 0x22, 0, 5, 0
    )
    shared = state(one, two, generation=3, type=8)
    assert persistent_reserve.read_reservation(shared) == struct.pack(
        '>IIQ4xBBH', 3, 16, 0, 0, 8, 0
    )


@pytest.mark.clause('SPC-4 6.15')
def test_report_capabilities():
    assert persistent_reserve.report_capabilities(state()).hex() == '00081db0ea010000'
    assert persistent_reserve.report_capabilities(state(aptpl=True)).hex() == '00081db1ea010000'


def statuses(data):
    generation, length = struct.unpack_from('>II', data)
    assert length == len(data) - 8
    found, offset = [], 8
    while offset < len(data):
        key, flags, kind, relative, more = struct.unpack_from('>Q4xBB4xHI', data, offset)
        name, end = transport_id.decode(data, offset + 24)
        assert end == offset + 24 + more
        found.append((key, flags, kind, relative, name))
        offset = end
    return found


@pytest.mark.clause('SPC-4 6.15')
def test_full_status_reports_the_holder():
    first, second = PORTS[0].name, PORTS[1].name
    registrations = (
        (A, first, 1, False),
        (B, second, 2, False),
        (B, 'iqn.t:disk,t,0x0009', 3, False),
    )
    data = persistent_reserve.read_full_status(
        state(*registrations, type=3, holder=[B, second]), PORTS
    )
    assert statuses(data) == [(1, 0, 0, 1, A), (2, 1, 3, 2, B), (3, 0, 0, 0, B)]
    data = persistent_reserve.read_full_status(state(*registrations, type=7), PORTS)
    assert statuses(data) == [(1, 1, 7, 1, A), (2, 1, 7, 2, B), (3, 1, 7, 0, B)]
    assert persistent_reserve.read_full_status(state(generation=4)) == struct.pack('>II', 4, 0)


def test_full_status_joins_registrations_for_all_target_ports():
    first, second = PORTS[0].name, PORTS[1].name
    both = (A, first, 1, True), (A, second, 1, True)
    assert statuses(persistent_reserve.read_full_status(state(*both), PORTS)) == [(1, 2, 0, 0, A)]
    assert statuses(persistent_reserve.read_full_status(state(*both, type=8), PORTS)) == [
        (1, 3, 8, 0, A)
    ]
    held = state(*both, type=1, holder=[A, second])
    assert statuses(persistent_reserve.read_full_status(held, PORTS)) == [
        (1, 0, 0, 1, A),
        (1, 1, 1, 2, A),
    ]
    for changed in ((A, second, 5, True), (A, second, 1, False)):
        mixed = statuses(persistent_reserve.read_full_status(state(both[0], changed), PORTS))
        assert [flags for _, flags, _, _, _ in mixed] == [0, 0]
    assert statuses(persistent_reserve.read_full_status(state(both[0]), PORTS)) == [(1, 0, 0, 1, A)]
