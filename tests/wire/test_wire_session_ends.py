"""The end of a session: nothing of it is executed after its answer, and the next session of the same
initiator port finds nothing of it."""

import pytest
from daemon import TARGET
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
