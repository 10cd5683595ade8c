"""Pending connections: routed after a peek, refused with a status, and never delaying each other."""

import socket
import struct

import pytest
from master_fakes import StillLoop

from targetd.master.logins import pending as module
from targetd.master.logins import refusals
from targetd.master.logins.pending import Limits, PendingConnections, parse_login, refusal
from targetd.master.logins.portals import open_portal

ISID = bytes.fromhex('00023d000001')


def login_header(opcode=0x43, tsih=0, itt=7, cmd_sn=5):
    return struct.pack('>BBBBI6sHIH2xII16x', opcode, 0x87, 0, 0, 0, ISID, tsih, itt, 1, cmd_sn, 0)


class Door(object):
    """A PendingConnections with a real portal on loopback; `routed`: the connections whose login
    arrived."""

    def __init__(self, **limits):
        self.loop = StillLoop()
        self.routed = []
        values = dict(login_timeout=15, pending=8, per_address=4)
        values.update(limits)
        self.pending_connections = PendingConnections(
            self.loop, self.routed.append, Limits(**values)
        )
        self.portal = open_portal('127.0.0.1', 0)
        self.pending_connections.listen(self.portal, 3)
        self.clients = []

    def connect(self, data=b''):
        client = socket.create_connection(self.portal.getsockname(), 5)
        self.clients.append(client)
        if data:
            client.sendall(data)
        self.loop.settle()
        return client

    def close(self):
        for client in self.clients:
            client.close()
        self.pending_connections.close_all()
        for pending in self.routed:
            if pending.socket is not None:
                pending.socket.close()
        self.loop.close()


@pytest.fixture
def door(request):
    doors = []

    def make(**limits):
        doors.append(Door(**limits))
        return doors[-1]

    yield make
    for one in doors:
        one.close()


def is_closed(client):
    client.settimeout(5)
    try:
        return client.recv(1) == b''
    except ConnectionResetError:
        return True


def test_a_login_is_routed_with_what_was_peeked_and_nothing_is_read(door):
    here = door()
    client = here.connect(login_header(tsih=9) + b'InitiatorName=x')
    (pending,) = here.routed
    assert (
        pending.header.tsih == 9 and pending.header.isid == ISID.hex() and pending.header.itt == 7
    )
    assert pending.description() == {
        'peer': list(client.getsockname()),
        'local': list(client.getpeername()),
        'group': 3,
    }
    taken = here.pending_connections.hand_over(pending)
    assert taken.recv(100) == login_header(tsih=9) + b'InitiatorName=x'
    assert not here.pending_connections.by_age
    taken.close()


def test_a_byte_at_a_time_is_routed_once_and_does_not_keep_the_loop_busy(door):
    here = door()
    peeks = []
    original = here.pending_connections._readable
    here.pending_connections._readable = lambda pending: (peeks.append(1), original(pending))
    client = here.connect()
    for byte in login_header()[:-1]:
        client.sendall(bytes([byte]))
        here.loop.settle(3)
    # without SO_RCVLOWAT and the timer: three for each byte
    assert here.routed == [] and len(peeks) < 20
    client.sendall(login_header()[-1:])
    here.loop.run_once(5)  # TCP holds small segments back for a moment
    here.loop.pass_time(0.1)
    here.loop.run_once(0 if here.routed else 5)
    assert len(here.routed) == 1


def test_where_the_kernel_wakes_too_early_a_timer_polls(door, monkeypatch):
    here = door()
    client = here.connect()
    (pending,) = here.pending_connections.by_age
    pending.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    client.sendall(login_header()[:20])
    here.loop.settle()
    assert pending.again is not None and not here.routed
    client.sendall(login_header()[20:])
    here.loop.settle()
    assert not here.routed
    here.loop.pass_time(module.SHORT_PEEK_SECONDS)
    assert here.routed == [pending]


def test_connections_inherit_the_options_of_the_portal(door):
    here = door()
    here.connect()
    (pending,) = here.pending_connections.by_age
    for level, option in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    ):
        assert pending.socket.getsockopt(level, option)
    assert pending.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert pending.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 48


def test_a_silent_connection_is_closed_after_the_login_timeout(door, capfd):
    here = door(login_timeout=15)
    client = here.connect(b'\x43')
    here.loop.pass_time(14)
    assert len(here.pending_connections.by_age) == 1
    here.loop.pass_time(1)
    assert is_closed(client) and not here.pending_connections.by_age
    assert 'no login within 15 seconds' in capfd.readouterr().err


@pytest.mark.parametrize(
    'first',
    [
        b'GET / HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n',
        bytes(48),
        login_header(opcode=0x01),
    ],
)
def test_a_connection_that_does_not_start_with_a_login_is_closed_and_logged(door, first, capfd):
    here = door()
    assert is_closed(here.connect(first))
    assert here.routed == []
    assert 'not an iSCSI login' in capfd.readouterr().err


def test_a_connection_that_ends_early_is_forgotten(door):
    here = door()
    client = here.connect(login_header()[:30])
    client.shutdown(socket.SHUT_WR)
    here.loop.pass_time(1)
    assert not here.pending_connections.by_age and here.routed == []


def test_a_login_without_the_immediate_bit_is_routed_too(door):
    here = door()
    here.connect(login_header(opcode=0x03))
    assert len(here.routed) == 1


def test_a_refusal_repeats_the_numbers_of_the_login(door):
    here = door()
    client = here.connect(login_header(itt=0x1234, cmd_sn=77))
    here.pending_connections.refuse(here.routed[0], (3, 2), 'a reason')
    client.settimeout(5)
    reply = client.recv(100)
    assert len(reply) == 48 and reply[0] == 0x23
    assert reply[36:38] == b'\x03\x02'  # out of resources
    assert reply[8:14] == ISID and reply[16:20] == b'\0\0\x12\x34'
    exp_cmd_sn, max_cmd_sn = struct.unpack('>II', reply[28:36])
    assert max_cmd_sn >= exp_cmd_sn
    assert is_closed(client)


def test_a_refused_login_with_data_behind_it_still_reads_its_answer(door):
    """Closing over unread bytes would send a reset, and the initiator would see no status."""
    here = door()
    client = here.connect(login_header() + bytes(60000))
    here.pending_connections.refuse(here.routed[0], (3, 2), 'a reason')
    client.settimeout(5)
    reply = b''
    while len(reply) < 48:
        reply += client.recv(48)
    assert reply[36:38] == b'\x03\x02'
    client.close()
    here.loop.pass_time(refusals.LINGER_SECONDS)
    assert len(here.loop._selector.get_map()) == 1  # the portal


def test_a_flood_closes_its_own_oldest_connections_and_later_logins_pass(door):
    here = door(pending=3, per_address=100)
    silent = [here.connect() for _ in range(4)]
    assert is_closed(silent[0])
    assert len(here.pending_connections.by_age) == 3
    here.connect(login_header())
    assert len(here.routed) == 1


def test_the_silent_connections_of_one_origin_are_limited(door, monkeypatch):
    monkeypatch.setattr(module, 'FEWEST_PER_ORIGIN', 3)
    here = door(pending=100, per_address=1)
    silent = [here.connect() for _ in range(5)]
    assert [is_closed(client) for client in silent[:2]] == [True, True] and len(
        here.pending_connections.by_age
    ) == 3
    for client in silent[2:]:
        client.close()
    here.loop.settle()
    assert not here.pending_connections.by_age and not here.pending_connections._by_origin


def test_silent_connections_are_closed_before_waiting_ones(door, monkeypatch):
    monkeypatch.setattr(module, 'FEWEST_PER_ORIGIN', 2)
    here = door(pending=100, per_address=1)
    first = here.connect(login_header())
    (waiting,) = here.routed
    silent = here.connect()
    here.connect()
    assert is_closed(silent) and waiting in here.pending_connections.by_age
    first.close()


def test_a_login_that_no_worker_took_in_time_is_refused(door):
    here = door(login_timeout=15)
    client = here.connect(login_header())
    here.loop.pass_time(15)
    client.settimeout(5)
    assert client.recv(100)[36:38] == b'\x03\x02' and not here.pending_connections.by_age


def test_no_descriptors_left_is_not_a_busy_loop(door, monkeypatch, capfd):
    here = door()
    calls = []

    class Listener(object):
        def accept(self):
            calls.append(1)
            raise OSError(24, 'Too many open files')

        def fileno(self):
            return here.portal.fileno()

    listener = Listener()
    here.pending_connections._listeners.append(listener)
    here.pending_connections._accept(listener, 1)
    here.loop.settle()
    assert len(calls) == 1
    assert 'Too many open files' in capfd.readouterr().err
    here.pending_connections._listeners.remove(listener)


def test_close_all_leaves_nothing(door):
    here = door()
    client = here.connect(b'\x43')
    here.pending_connections.close_all()
    assert is_closed(client)
    with pytest.raises(OSError):
        here.portal.getsockname()


def test_the_refusal_answers_the_parsed_login():
    header = parse_login(login_header(tsih=3, itt=8))
    assert (header.tsih, header.itt, header.cid) == (3, 8, 1)
    reply = refusal(header, (2, 10))
    assert reply[14:16] == b'\0\3' and reply[36:38] == b'\x02\x0a' and len(reply) == 48
    assert reply[1] & 0x83 == 0  # no transit, no next stage


def test_connections_that_are_closed_make_room_before_a_new_one_is_closed(door, monkeypatch):
    """An honest connection whose login has not arrived is not closed because of others of its address
    that were closed in the same moment."""
    monkeypatch.setattr(module, 'FEWEST_PER_ORIGIN', 4)
    here = door(pending=100, per_address=1)
    here.loop.settle()
    honest = socket.create_connection(here.portal.getsockname(), 5)
    here.clients.append(honest)
    for _ in range(10):  # all are accepted before any end is seen
        socket.create_connection(here.portal.getsockname(), 5).close()
    here.loop.settle()
    honest.sendall(login_header())
    here.loop.settle()
    assert len(here.routed) == 1
