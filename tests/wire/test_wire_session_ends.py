"""The end of a session: nothing of it is executed after its answer, and the next session of the same
initiator port finds nothing of it."""

import contextlib
import socket
import struct
import threading
import time

import pytest
from daemon import TARGET, free_port
from initiator import ISID, TARGET_COLD_RESET
from members import Member, Numbering, join
from pdus import (
    FINAL,
    IMMEDIATE,
    LOGOUT,
    LOGOUT_RESPONSE,
    NO_TAG,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    Closed,
    pack_bhs,
    write_10,
)

pytestmark = pytest.mark.wire

TWO = 'iqn.2026-11.test:two'
MARK = b'\xee' * 512


def request(session, opcode, function, ttt=None):
    """Sends an immediate Logout Request or Task Management Request; returns its tag."""
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(
            opcode | IMMEDIATE,
            FINAL | function,
            0,
            itt,
            session.cid << 16 if ttt is None else ttt,
            session.cmd_sn,
            session.exp_stat_sn,
        )
    )
    return itt


def write_too_late(connection, lba):
    """Sends a WRITE of MARK with immediate data, and waits until the connection is closed."""
    try:
        connection.submit(write_10(lba), out=MARK)
        connection.wait_closed()
    except (Closed, OSError):
        pass


def written(observer, count):
    """The blocks before `count` that a WRITE has changed."""
    return [lba for lba in range(count) if observer.read(lba, 1) != bytes(512)]


@pytest.mark.clause('RFC 7143 11.14')
def test_a_write_after_the_logout_response_is_not_executed(served, ready):
    observer = ready(served, name=TWO)
    for lba in range(60):
        session = ready(served)
        session.until(LOGOUT_RESPONSE, request(session, LOGOUT, 0))
        write_too_late(session, lba)
    assert written(observer, 60) == []


@pytest.mark.clause('RFC 7143 11.14')
def test_a_write_directly_behind_the_logout_request_is_not_executed(served, ready):
    observer = ready(served, name=TWO)
    for lba in range(20):
        session = ready(served)
        request(session, LOGOUT, 0)
        write_too_late(session, lba)
    assert written(observer, 20) == []


@pytest.mark.clause('RFC 7143 11.14', 'RFC 7143 4.2.2')
@pytest.mark.parametrize('reason', [0, 1], ids=['session', 'connection'])
def test_a_write_on_another_connection_after_the_logout_response_is_not_executed(
    daemon, ready, reason
):
    daemon.target(lines=['initiator-address = ALL', 'MaxConnections = 4'])
    daemon.start()
    observer = ready(daemon, name=TWO)
    for lba in range(40):
        first = Member(daemon.address, 1, Numbering())
        first.login(TARGET, keys={'MaxConnections': '4'})
        first.clear_attentions()
        second = join(first, 2, TARGET)
        itt = request(first, LOGOUT, reason, 2 << 16)
        first.until(LOGOUT_RESPONSE, itt)
        write_too_late(second, lba)
        first.close()
    assert written(observer, 40) == []


@pytest.mark.clause('RFC 7143 11.6')
def test_a_write_after_the_response_to_a_cold_reset_is_not_executed(served, ready):
    for lba in range(20):
        session = ready(served)
        itt = request(session, TASK_MANAGEMENT, TARGET_COLD_RESET, NO_TAG)
        session.until(TASK_MANAGEMENT_RESPONSE, itt)
        write_too_late(session, lba)
    assert written(ready(served, name=TWO), 20) == []


def logout(session):
    session.until(LOGOUT_RESPONSE, request(session, LOGOUT, 0))


def cold_reset(session):
    request(session, TASK_MANAGEMENT, TARGET_COLD_RESET, NO_TAG)


def answered_cold_reset(session):
    session.until(
        TASK_MANAGEMENT_RESPONSE, request(session, TASK_MANAGEMENT, TARGET_COLD_RESET, NO_TAG)
    )


def reset_connection(session):
    """Ends the TCP connection with RST."""
    session.wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    session.close()


def lose_connection_with_a_write_outstanding(session):
    """Closes the connection while a WRITE waits for its data."""
    session.hold_r2t = True
    session.submit(write_10(0, 8), out=bytes(4096), immediate_limit=0)
    session.close()


def malformed_pdu(session):
    """Sends a Data-Out of 16 MiB, which is longer than any that the target accepts."""
    session.wire.socket.sendall(b'\x05\x80\0\0\0\xff\xff\xff' + bytes(40))
    session.wait_closed()


RESERVE, PREVENT = bytes((0x16, 0, 0, 0, 0, 0)), bytes((0x1E, 0, 0, 0, 1, 0))
EJECT = bytes((0x1B, 0, 0, 0, 2, 0))


@pytest.mark.parametrize(
    'end',
    [logout, cold_reset, lambda session: session.close(), lambda session: None],
    ids=['logout', 'cold reset', 'lost connection', 'login again'],
)
def test_the_next_session_of_the_initiator_port_finds_nothing_of_the_old_one(daemon, ready, end):
    """RESERVE(6) and PREVENT ALLOW MEDIUM REMOVAL end with the I_T nexus, before the next login of
    the same initiator port is served."""
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'removable = yes']})
    daemon.start()
    for _ in range(10):
        session = ready(daemon)
        session.run(RESERVE).good()
        session.run(PREVENT).good()
        end(session)
        with_same_port = ready(daemon, isid=ISID)
        observer = ready(daemon, name=TWO)
        assert observer.run(bytes(6)).status == 0
        assert observer.run(EJECT).status == 0
        assert observer.run(bytes((0x1B, 0, 0, 0, 3, 0))).status == 0
        observer.close()
        with_same_port.logout()


OTHER_ENDS = [
    logout,
    answered_cold_reset,
    lambda session: session.close(),
    reset_connection,
    lose_connection_with_a_write_outstanding,
    malformed_pdu,
]
OTHER_NAMES = [
    'logout',
    'cold reset',
    'lost connection',
    'RST',
    'lost connection with a WRITE',
    'malformed PDU',
]


@pytest.fixture
def two_groups(daemon):
    """A Daemon with a removable LUN that two portal groups serve; `other`: address of group 2."""
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other, group=2)
    luns = {0: ['backing-store = %s' % daemon.image(), 'removable = yes']}
    daemon.target(luns=luns, group='1, 2')
    daemon.start()
    daemon.other = ('127.0.0.1', other)
    return daemon


def holding(daemon, ready):
    """Returns a session in group 1 that holds a reservation and prevents removal, and its worker."""
    session = ready(daemon)
    session.run(RESERVE).good()
    session.run(PREVENT).good()
    return session, daemon.worker_of(session)


def nothing_is_left_in_the_other_group(daemon, sessions, isid=ISID):
    """Logs in with one request through group 2, and asserts that no reservation and no prevention of
    removal is in force after the unit attention of the new session."""
    other = sessions(daemon, address=daemon.other, security=False, isid=isid)
    assert other.run(bytes(6)).key == (6, 0x29, 0)
    assert other.run(bytes(6)).status == 0
    assert other.run(EJECT).status == 0
    assert other.run(bytes((0x1B, 0, 0, 0, 3, 0))).status == 0
    other.logout()


@pytest.mark.parametrize('end', OTHER_ENDS, ids=OTHER_NAMES)
def test_the_next_session_of_the_port_in_another_group_finds_nothing_of_the_old_one(
    two_groups, ready, sessions, end
):
    for _ in range(10):
        end(holding(two_groups, ready)[0])
        nothing_is_left_in_the_other_group(two_groups, sessions)


@contextlib.contextmanager
def suspended_for_a_while(worker):
    """The worker gets no processor time for the first 0.5 seconds of the body."""
    worker.suspend()
    timer = threading.Timer(0.5, worker.resume)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize('end', OTHER_ENDS[2:5], ids=OTHER_NAMES[2:5])
def test_a_login_through_another_group_waits_until_the_lost_connection_was_noticed(
    two_groups, ready, sessions, end
):
    """The worker of the lost connection gets no processor time until the login has begun."""
    session, worker = holding(two_groups, ready)
    with suspended_for_a_while(worker):
        end(session)
        nothing_is_left_in_the_other_group(two_groups, sessions)


def test_a_killed_worker_is_gone_before_its_port_logs_in_to_another_group(
    two_groups, ready, sessions
):
    for _ in range(5):
        session, worker = holding(two_groups, ready)
        worker.kill()
        session.wait_closed()
        nothing_is_left_in_the_other_group(two_groups, sessions)


def test_a_session_that_the_administrator_ends_is_gone_before_its_port_logs_in_to_another_group(
    two_groups, ready, sessions
):
    for _ in range(3):
        session, worker = holding(two_groups, ready)
        two_groups.control('end', str(session.tsih))
        session.wait_closed()
        nothing_is_left_in_the_other_group(two_groups, sessions)


def test_a_session_that_goes_on_does_not_delay_its_port_in_another_group(
    two_groups, ready, sessions
):
    """An initiator may log in to each portal group of a target with the same ISID (RFC 7143 4.4.3)."""
    first = ready(two_groups)
    first.run(RESERVE).good()
    began = time.monotonic()
    other = sessions(two_groups, address=two_groups.other)
    # a login that waited for the end of the first session would wait for 5 seconds
    assert time.monotonic() - began < 4
    assert other.run(bytes(6)).key == (6, 0x29, 0)
    assert other.run(bytes(6)).status == 0x18
    first.run(bytes(6)).good()


def test_a_session_whose_worker_is_busy_delays_its_port_in_another_group_by_seconds_only(
    two_groups, ready, sessions
):
    first = ready(two_groups)
    worker = two_groups.worker_of(first)
    worker.suspend()
    try:
        ready(two_groups, address=two_groups.other).logout()
    finally:
        worker.resume()
    first.run(bytes(6)).good()


@pytest.mark.clause('RFC 7143 6.3.5')
@pytest.mark.parametrize('end', OTHER_ENDS[2:5], ids=OTHER_NAMES[2:5])
def test_a_login_with_another_isid_waits_until_the_lost_connection_was_noticed(
    two_groups, ready, sessions, end
):
    """iPXE and libiscsi use a new ISID for each session (libiscsi's test PreventAllow.ITNexusLoss)."""
    session, worker = holding(two_groups, ready)
    two_groups.other = two_groups.address
    with suspended_for_a_while(worker):
        end(session)
        nothing_is_left_in_the_other_group(two_groups, sessions, bytes.fromhex('80abcdef0002'))


@pytest.mark.clause('SBC-3 5.10')
def test_a_medium_can_be_loaded_while_its_removal_is_prevented(two_groups, ready):
    session = ready(two_groups)
    session.run(EJECT).good()
    session.run(PREVENT).good()
    assert session.run(bytes(6)).key == (2, 0x3A, 0)
    session.run(bytes((0x1B, 0, 0, 0, 3, 0))).good()
    session.run(bytes(6)).good()
    assert session.run(EJECT).key == (5, 0x53, 2)
