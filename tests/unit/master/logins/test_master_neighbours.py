"""The neighbour table: messages of rtnetlink, as the kernel sends them, and what they mean for a peer."""

import ipaddress
import socket
import struct

import pytest

from targetd.master.logins import neighbours
from targetd.master.logins.neighbours import DumpFailed, Neighbour, mac_of, parse_dump

MAC, OTHER = '02:00:5e:10:00:01', '02:00:5e:10:00:02'
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = (
    1 << shift for shift in range(8)
)


def message(kind, body=b'', flags=2):
    return struct.pack('=IHHII', 16 + len(body), kind, flags, 1, 0) + body


def entry(address, mac=MAC, state=REACHABLE, more=b''):
    packed = ipaddress.ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    body = struct.pack('=BxxxiHBB', family, 2, state, 0, 1)
    body += struct.pack('=HH', 4 + len(packed), 1) + packed
    if mac is not None:
        raw = bytes.fromhex(mac.replace(':', ''))
        body += struct.pack('=HH', 4 + len(raw), 2) + raw + bytes(-len(raw) % 4)
    return message(28, body + more)


DONE = message(3, bytes(4))


def test_a_dump_in_two_pieces():
    unknown_attribute = struct.pack('=HHI', 8, 4, 7)  # NDA_PROBES
    first = entry('192.0.2.1', more=unknown_attribute) + entry('fe80::1', OTHER, STALE)
    assert parse_dump(first) == (
        [
            Neighbour(ipaddress.ip_address('192.0.2.1'), MAC),
            Neighbour(ipaddress.ip_address('fe80::1'), OTHER),
        ],
        False,
    )
    assert parse_dump(entry('192.0.2.2') + DONE)[1] is True
    assert parse_dump(DONE) == ([], True)


@pytest.mark.parametrize('state', [REACHABLE, STALE, DELAY, PROBE, PERMANENT])
def test_states_in_which_the_kernel_uses_the_mac_address(state):
    assert len(parse_dump(entry('192.0.2.1', state=state))[0]) == 1


@pytest.mark.parametrize('state', [0, INCOMPLETE, FAILED, NOARP])
def test_states_in_which_it_does_not(state):
    assert parse_dump(entry('192.0.2.1', state=state) + DONE) == ([], True)


@pytest.mark.parametrize('mac', [None, '02:00', '02:00:5e:10:00:01:00:00'])
def test_an_entry_without_an_ethernet_address(mac):
    assert parse_dump(entry('192.0.2.1', mac))[0] == []


@pytest.mark.parametrize(
    'data',
    [
        message(2, struct.pack('=i', -1)),
        message(28, bytes(4)),
        entry('192.0.2.1')[:-2],
        struct.pack('=IHHII', 3, 28, 0, 1, 0),
        message(28, struct.pack('=BxxxiHBB', 2, 2, REACHABLE, 0, 1) + struct.pack('=HH', 1, 1)),
        message(28, bytes(12), flags=0x10),
    ],
)
def test_what_is_not_a_whole_dump(data):
    with pytest.raises(DumpFailed):
        parse_dump(data)


def table(*rows, **more):
    """A dump() that returns these (address, MAC address); failures: how often it raises before."""
    failures = [DumpFailed('the table changed meanwhile')] * more.get('failures', 0)

    def dump(family):
        if failures:
            raise failures.pop()
        version = 4 if family == socket.AF_INET else 6
        found = [Neighbour(ipaddress.ip_address(address), mac) for address, mac in rows]
        return [each for each in found if each.address.version == version]

    return dump


def test_the_mac_address_of_a_peer():
    dump = table(('192.0.2.1', OTHER), ('192.0.2.7', MAC), ('2001:db8::7', MAC))
    for address in ('192.0.2.7', '::ffff:192.0.2.7', '2001:db8::7'):
        assert mac_of(address, dump) == (MAC, '')
    mac, why = mac_of('192.0.2.8', dump)
    assert mac is None and 'no host of the local segment' in why


def test_one_address_in_two_segments_is_nobodys():
    mac, why = mac_of('192.0.2.7', table(('192.0.2.7', OTHER), ('192.0.2.7', MAC)))
    assert mac is None and MAC in why and OTHER in why


def test_a_table_that_changes_is_read_twice():
    rows = ('192.0.2.7', MAC)
    assert mac_of('192.0.2.7', table(rows, failures=1)) == (MAC, '')
    mac, why = mac_of('192.0.2.7', table(rows, failures=2))
    assert mac is None and 'cannot be read' in why
    assert mac_of('no address', table(rows))[0] is None


def test_which_addresses_a_rule_admits_now():
    dump = table(('192.0.2.7', MAC), ('2001:db8::7', MAC), ('192.0.2.9', OTHER))
    rules = ['mac:' + MAC, 'mac:02:00:00:00:00:09', 'dns:a', '10.0.0.0/8']
    assert neighbours.seen(rules, dump) == {'mac:' + MAC: '192.0.2.7, 2001:db8::7'}
    assert neighbours.seen(['dns:a'], None) == {}


def test_the_kernel_sends_a_whole_dump():
    """The real one: which entries it has is not known here, but it ends."""
    for family in (socket.AF_INET, socket.AF_INET6):
        assert isinstance(neighbours.dump(family), list)
