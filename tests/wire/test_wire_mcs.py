"""Tests of several connections in one session (RFC 7143 4.2.2, 6.3.4, 11.14): adding, ordering,
allegiance, logout and loss."""

import struct

import pytest
from daemon import TARGET, watched
from initiator import ABORT_TASK, ABORT_TASK_SET, LoginFailed, Rejected, pattern
from members import SESSION_KEYS, Member, Numbering
from pdus import (
    ASYNC,
    DATA_IN,
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGOUT,
    LOGOUT_RESPONSE,
    Closed,
    pack_bhs,
    read_10,
    write_10,
)

pytestmark = pytest.mark.wire

SLOW = 'iqn.2026-11.test.targetd:slow'
ISID = bytes.fromhex('80abcdef0077')


@pytest.fixture(scope='module')
def several(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('mcs')) as daemon:
        lines = [
            'initiator-address = ALL',
            'MaxConnections = 4',
            'InitialR2T = Yes',
            'HeaderDigest = None, CRC32C',
            'DataDigest = None, CRC32C',
        ]
        daemon.target(lines=lines)
        path = daemon.image('slow.img')
        daemon.target(SLOW, lines, {0: ['backing-store = %s' % path, 'filter = delay read=700ms']})
        yield daemon.start()


@pytest.fixture
def members(several):
    """open(count, target=TARGET) -> the connections of a new session; open.more(first, cid) -> an
    additional connection."""
    opened = []

    def more(first, cid, target=TARGET, **keys):
        connection = Member(several.address, cid, first.numbering, isid=ISID)
        opened.append(connection)
        return connection.join(first, target, **keys)

    def open_them(count, target=TARGET):
        first = Member(several.address, 1, Numbering(), isid=ISID)
        opened.append(first)
        first.login(target, keys={'MaxConnections': '4', 'InitialR2T': 'Yes'})
        first.clear_attentions()
        return [first] + [more(first, cid, target) for cid in range(2, count + 1)]

    open_them.more = more
    yield open_them
    for connection in opened:
        connection.close()


def logout(connection, reason, cid):
    itt = connection.next_tag()
    connection.wire.send(
        pack_bhs(
            LOGOUT | IMMEDIATE,
            FINAL | reason,
            0,
            itt,
            cid << 16,
            connection.cmd_sn,
            connection.exp_stat_sn,
        )
    )
    return connection.until(LOGOUT_RESPONSE, itt).bhs[2]


def test_a_login_that_joins_is_parsed_outside_the_worker_of_its_session(several, members):
    """A stranger that knows the TSIH does not reach the process that serves the session."""
    (first,) = members(1)
    worker = several.worker_of(first)
    stranger = Member(several.address, 9, Numbering(), isid=ISID)
    stranger.login_pdu(
        [
            ('InitiatorName', stranger.name),
            ('SessionType', 'Normal'),
            ('TargetName', TARGET),
            ('AuthMethod', 'None'),
        ],
        0,
        1,
        tsih=first.tsih,
    )
    stranger.login_response()  # in the middle of its login
    assert several.worker_of(stranger) != worker
    joined = members.more(first, 2)
    assert several.worker_of(joined) == worker  # its login is over
    joined.write(0, pattern(30, 4096))
    assert first.read(0, 8) == pattern(30, 4096)
    stranger.close()


def test_the_tsih_of_a_session_does_not_tell_those_of_others(several):
    """RFC 7143 leaves the choice to the target; consecutive numbers could be guessed."""
    numbers = []
    for number in range(6):
        session = Member(several.address, 1, Numbering(), isid=b'\x80\x11\0\0\0' + bytes([number]))
        numbers.append(session.login(TARGET).tsih)
        session.close()
    steps = {second - first for first, second in zip(numbers, numbers[1:])}
    assert len(steps) > 1 and len(set(numbers)) == 6


@pytest.mark.clause('RFC 7143 4.2.2', 'RFC 7143 13.2')
def test_data_written_on_one_connection_is_read_on_the_others(members):
    connections = members(4)
    for number, connection in enumerate(connections):
        connection.write(number * 8, pattern(number, 4096))
    for number in range(4):
        for connection in connections:
            assert connection.read(number * 8, 8) == pattern(number, 4096)
    assert len({connection.tsih for connection in connections}) == 1


@pytest.mark.clause('RFC 7143 13.1', 'RFC 7143 13.12')
def test_digests_and_segment_lengths_are_per_connection(members):
    (one,) = members(1)
    two = members.more(
        one, 2, HeaderDigest='CRC32C', DataDigest='CRC32C', MaxRecvDataSegmentLength='512'
    )
    three = members.more(one, 3, HeaderDigest='CRC32C')
    two.write(0, pattern(20, 8192))
    for connection, segments in ((one, 1), (two, 16), (three, 1)):
        command = connection.submit(read_10(0, 16), read=8192)
        assert connection.wait(command).good().data == pattern(20, 8192)
        assert len(command.data_in) == segments


@pytest.mark.clause('RFC 7143 13')
def test_keys_of_the_session_are_not_negotiated_again(members):
    (one,) = members(1)
    offered = dict(
        MaxBurstLength='16776192', InitialR2T='No', ErrorRecoveryLevel='2', MaxConnections='8'
    )
    two = members.more(one, 2, **offered)
    assert {key: two.keys[key] for key in offered} == {key: one.keys[key] for key in offered}
    three = members.more(one, 3)
    three.write(0, pattern(21, 65536))
    assert one.read(0, 128) == pattern(21, 65536)


@pytest.mark.clause('RFC 7143 4.2.2.2')
def test_stat_sn_is_per_connection(members):
    one, two = members(2)
    before = two.exp_stat_sn
    for _ in range(10):
        one.ping()
    two.ping()
    assert two.exp_stat_sn == before + 1 and two.exp_cmd_sn == one.exp_cmd_sn + 1


@pytest.mark.clause('RFC 7143 13.2')
def test_no_more_connections_than_negotiated(members):
    connections = members(4)
    with pytest.raises(LoginFailed) as refused:
        members.more(connections[0], 9)
    assert refused.value.status == 0x206
    connections[3].ping()  # the others are not affected


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_commands_are_carried_out_in_the_order_of_their_numbers(members):
    """RFC 7143 4.2.2.1: the second write is sent first, on the other connection; the blocks must
    contain its data, not that of the first write."""
    one, two = members(2)
    early, late = pattern(1, 4096), pattern(2, 4096)
    sn = one.cmd_sn
    two.cmd_sn = sn + 1
    second = two.submit(write_10(0, 8), out=late)  # takes CmdSN sn + 1 and waits for its turn
    two.ping(immediate=True)  # it is there
    assert second.result is None
    one.numbering.cmd_sn = sn
    first = one.submit(write_10(0, 8), out=early)
    one.numbering.cmd_sn = sn + 2
    one.wait(first).good()
    two.wait(second).good()
    assert one.read(0, 8) == late


@pytest.mark.clause('RFC 7143 4.2.5.1')
def test_data_for_a_command_of_another_connection_is_refused(members):
    """RFC 7143 4.2.5.1: connection allegiance."""
    one, two = members(2)
    one.hold_r2t = True
    command = one.submit(write_10(0, 256), out=pattern(3, 131072), immediate_limit=0)
    while not command.r2ts:
        one.step()
    r2t = command.r2ts[0]
    two.wire.send(
        pack_bhs(DATA_OUT, FINAL, 0, command.itt, r2t.ttt, 0, two.exp_stat_sn, 0, 0, 0), bytes(4096)
    )
    with pytest.raises(Rejected):
        two.ping(immediate=True)
    one.hold_r2t = False
    one.answer_r2t(command)
    one.wait(command).good()


@pytest.mark.clause('RFC 7143 11.5')
def test_a_task_may_be_aborted_through_another_connection(members):
    one, two = members(2, SLOW)
    command = one.submit(read_10(0, 8), read=4096)
    one.ping(immediate=True)
    assert two.manage(ABORT_TASK, task=command) == 0
    one.ping(immediate=True)
    assert command.result is None


@pytest.mark.clause('RFC 7143 11.14')
def test_logout_of_another_connection_closes_that_one_only(members):
    one, two = members(2)
    assert logout(one, 1, 2) == 0
    two.wait_closed()
    one.write(0, pattern(4, 512))
    assert one.read(0, 1) == pattern(4, 512)
    assert logout(one, 1, 2) == 1  # there is no CID 2 any more


@pytest.mark.clause('RFC 7143 11.14')
def test_a_connection_logout_does_not_affect_the_other_connections(members):
    one, two = members(2)
    assert logout(one, 1, 1) == 0
    one.wait_closed()
    two.write(0, pattern(5, 512))
    assert two.read(0, 1) == pattern(5, 512)
    third = members.more(two, 3)
    assert third.read(0, 1) == pattern(5, 512)


@pytest.mark.clause('RFC 7143 11.14', 'RFC 7143 7.6')
def test_logout_of_a_connection_waits_for_its_tasks(members):
    """RFC 7143 11.15.1: the response is sent when no task of the connection is active."""
    one, two = members(2, SLOW)
    two.submit(read_10(0, 8), read=4096)
    two.ping(immediate=True)
    assert logout(one, 1, 2) == 0
    with pytest.raises(Closed):
        while True:
            assert two.step().opcode != DATA_IN


@pytest.mark.clause('RFC 7143 11.14', 'RFC 7143 11.15')
def test_removal_for_recovery_is_not_offered_at_level_0(members):
    one, two = members(2)
    assert logout(one, 2, 2) == 2
    two.ping()


@pytest.mark.clause('RFC 7143 11.14')
def test_logout_of_the_session_closes_every_connection(several, members):
    connections = members(3)
    assert connections[1].logout(0) == 0
    for connection in (connections[0], connections[2]):
        connection.wait_closed()
    several.logged('session %d .* is over' % connections[0].tsih)


@pytest.mark.clause('RFC 7143 7.14', 'RFC 7143 11.9')
def test_the_loss_of_a_connection_is_announced_and_the_session_goes_on(members):
    """RFC 7143 11.9.1, event 2: parameter 1 is the CID."""
    one, two = members(2)
    two.close()
    event = one.until(ASYNC)
    assert (event.bhs[36], struct.unpack_from('>H', event.bhs, 38)[0]) == (2, 2)
    one.write(0, pattern(6, 512))
    assert one.read(0, 1) == pattern(6, 512)


@pytest.mark.clause('RFC 7143 7.14')
def test_the_first_connection_may_be_lost_too(members):
    one, two = members(2)
    one.close()
    two.until(ASYNC)
    assert len(two.read(0, 1)) == 512


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_the_window_is_not_narrower_after_tasks_were_lost(members):
    one, two = members(2, SLOW)
    one.ping()
    before = one.max_cmd_sn - one.cmd_sn
    for _ in range(5):
        two.submit(read_10(0, 8), read=4096)
    two.ping(immediate=True)
    two.close()
    one.until(ASYNC)
    one.ping()
    assert one.max_cmd_sn - one.cmd_sn == before


@pytest.mark.clause('RFC 7143 4.2.2.1', 'RFC 7143 7.2.1')
def test_a_command_that_was_held_on_a_lost_connection_may_be_sent_again(members):
    one, two = members(2)
    sn = one.cmd_sn
    two.cmd_sn = sn + 1
    two.submit(write_10(0, 8), out=pattern(7, 4096))
    two.ping(immediate=True)
    two.close()
    one.until(ASYNC)
    one.numbering.cmd_sn = sn
    first = one.submit(write_10(0, 8), out=pattern(8, 4096))
    second = one.submit(write_10(8, 8), out=pattern(9, 4096))
    one.wait(first).good()
    one.wait(second).good()
    assert one.read(0, 8) == pattern(8, 4096)


@pytest.mark.clause('RFC 7143 6.3.4')
def test_a_connection_is_replaced_by_one_with_its_cid(members):
    """RFC 7143 6.3.4: connection reinstatement."""
    one, two = members(2)
    again = members.more(one, 2)
    two.wait_closed()
    again.write(0, pattern(10, 512))
    assert one.read(0, 1) == pattern(10, 512)


@pytest.mark.clause('RFC 7143 6.3.4')
def test_the_only_connection_is_replaced_and_the_session_goes_on(members):
    (one,) = members(1)
    tsih = one.tsih
    again = members.more(one, 1)
    one.wait_closed()
    assert again.tsih == tsih
    assert len(again.read(0, 1)) == 512  # no unit attention: the nexus was never lost


@pytest.mark.clause('RFC 7143 6.3.4', 'RFC 7143 7.6')
def test_tasks_of_a_replaced_connection_end_without_a_response(members):
    (one,) = members(1, SLOW)
    one.submit(read_10(0, 8), read=4096)
    one.ping(immediate=True)
    again = members.more(one, 1, SLOW)
    again.ping()
    assert not again.commands


@pytest.mark.clause('RFC 7143 6.3.1')
def test_another_initiator_cannot_join(several, members):
    one, _ = members(2)
    stranger = Member(
        several.address, 3, one.numbering, isid=ISID, name='iqn.2026-11.test.targetd:stranger'
    )
    with pytest.raises(LoginFailed) as refused:
        stranger.login(TARGET, tsih=one.tsih, security=False, keys=dict.fromkeys(SESSION_KEYS))
    assert refused.value.status in (0x208, 0x20A)
    one.ping()
    stranger.close()


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_load_on_all_connections_at_once(members):
    connections = members(4)
    for turn in range(50):
        commands = [
            (c, c.submit(write_10((turn * 4 + n) * 8, 8), out=pattern(turn * 4 + n, 4096)))
            for n, c in enumerate(connections)
        ]
        for connection, command in commands:
            connection.wait(command).good()
    for number in range(200):
        assert connections[number % 3].read(number * 8, 8) == pattern(number, 4096)


@pytest.mark.clause('RFC 7143 6.3.5')
def test_a_session_is_reinstated_at_once(several, members):
    """RFC 7143 6.3.5: the worker of the old session ends without being killed."""
    old = members(3)
    again = members(1)[0]
    for connection in old:
        connection.wait_closed()
    assert again.tsih != old[0].tsih
    assert len(again.read(0, 1)) == 512
    assert 'did not end within' not in several.log


@pytest.mark.clause('RFC 7143 4.2.2')
@pytest.mark.parametrize('target', [TARGET, SLOW])
def test_a_connection_whose_initiator_does_not_read_does_not_block_others(several, members, target):
    """One connection requests far more data than its socket buffers; with responses from its own
    thread and from executor threads."""
    one, two = members(2, target)
    big = [one.submit(read_10(0, 8192), read=4 << 20) for _ in range(40)]
    for number in range(8):
        data = pattern(number, 4096)
        two.write(number * 8, data)
        assert two.read(number * 8, 8) == data
    two.ping()
    assert not any(command.result for command in big)
    for command in big:
        one.wait(command).good()


@pytest.mark.clause('RFC 7143 11.5')
@pytest.mark.parametrize('target', [TARGET, SLOW])
def test_unreceived_reads_are_aborted_immediately(several, members, target):
    one, two = members(2, target)
    for _ in range(40):
        one.submit(read_10(0, 8192), read=4 << 20)
    two.ping()
    assert two.manage(ABORT_TASK_SET) == 0
    two.write(0, pattern(11, 512))
    assert two.read(0, 1) == pattern(11, 512)
