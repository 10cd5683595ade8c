"""Tests of ErrorRecoveryLevel 1 and 2 (RFC 7143 7): SNACK, recovery R2T, command retry,
reassignment of tasks."""

import time

import pytest
from daemon import TARGET, watched
from initiator import Rejected, Session, pattern
from pdus import (
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGOUT,
    LOGOUT_RESPONSE,
    NO_TAG,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    TEXT,
    TEXT_RESPONSE,
    Closed,
    pack_bhs,
    pack_text,
    read_10,
    write_10,
)

pytestmark = pytest.mark.wire

SLOW = 'iqn.2026-11.test.targetd:slow'
ISID = bytes.fromhex('80abcdef0099')
SNACK = 0x10
DATA_OR_R2T, STATUS, DATA_ACK, R_DATA = range(4)
TASK_REASSIGN = 8
TASK_STILL_ALLEGIANT = 3
SESSION_KEYS = (
    'InitialR2T',
    'ImmediateData',
    'MaxBurstLength',
    'FirstBurstLength',
    'MaxConnections',
    'MaxOutstandingR2T',
    'DataPDUInOrder',
    'DataSequenceInOrder',
    'DefaultTime2Wait',
    'DefaultTime2Retain',
    'ErrorRecoveryLevel',
)


@pytest.fixture(scope='module')
def recovering(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('recovery')) as daemon:
        lines = [
            'initiator-address = ALL',
            'ErrorRecoveryLevel = 2',
            'MaxConnections = 2',
            'MaxOutstandingR2T = 4',
        ]
        daemon.target(lines=lines)
        rows = ['backing-store = %s' % daemon.image('slow.img'), 'filter = delay read=400ms']
        daemon.target(SLOW, lines, {0: rows})
        yield daemon.start()


@pytest.fixture
def login(recovering):
    """login(level, target=TARGET, tsih=0, like=None, **keys) -> Session; like: the one whose
    session it joins."""
    opened = []

    def connect(level=1, target=TARGET, like=None, cid=1, **keys):
        session = Session(recovering.address, isid=ISID, cid=cid)
        opened.append(session)
        if like is not None:
            session.keys.update((key, like.keys[key]) for key in SESSION_KEYS if key in like.keys)
            session.cmd_sn = like.cmd_sn
            session.itt = 1000
            return session.login(
                target, keys=dict.fromkeys(SESSION_KEYS), tsih=like.tsih, security=False
            )
        offer = {
            'ErrorRecoveryLevel': str(level),
            'MaxConnections': '2',
            'DefaultTime2Retain': '20',
        }
        session.login(target, keys=dict(offer, **keys))
        assert session.value('ErrorRecoveryLevel') == str(level)
        session.clear_attentions()
        return session

    yield connect
    for session in opened:
        session.close()


def snack(session, kind, itt=NO_TAG, first=0, count=0, tag=NO_TAG, exp_stat_sn=None, lun=0):
    acknowledged = session.exp_stat_sn if exp_stat_sn is None else exp_stat_sn
    session.wire.send(
        pack_bhs(SNACK, FINAL | kind, lun, itt, tag, 0, acknowledged, 0, 0, first, count)
    )


def run_and_keep(session, *arguments, **more):
    """Returns (Command, all PDUs of its response)."""
    command = session.submit(*arguments, **more)
    pdus = []
    while command.result is None:
        pdu = session.step()
        if pdu.itt == command.itt:
            pdus.append(pdu)
    return command, pdus


def same(pdu, other):
    """True if both PDUs are equal except for ExpCmdSN and MaxCmdSN."""
    return pdu.bhs[:28] + pdu.bhs[36:] == other.bhs[:28] + other.bhs[36:] and pdu.data == other.data


def rejected(session, reason):
    pdu = session.receive()
    assert (pdu.opcode, pdu.bhs[2]) == (REJECT, reason)


# -- SNACK -----------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.16')
def test_a_status_snack_repeats_the_response(login):
    session = login()
    _, pdus = run_and_keep(session, write_10(0, 1), out=bytes(512))
    snack(session, STATUS, first=pdus[-1].stat_sn, count=1, exp_stat_sn=pdus[-1].stat_sn)
    assert same(session.wire.receive(), pdus[-1])


@pytest.mark.clause('RFC 7143 11.16')
def test_a_status_snack_repeats_all_unacknowledged_responses(login):
    session = login()
    session.ping()
    before = session.exp_stat_sn
    commands = [session.submit(bytes(6)) for _ in range(3)]
    pdus = [session.step() for _ in commands]
    snack(session, STATUS, exp_stat_sn=before)
    assert all(same(session.wire.receive(), pdu) for pdu in pdus)


@pytest.mark.clause('RFC 7143 4.2.2.2', 'RFC 7143 11.16')
def test_acknowledged_responses_are_not_sent_again(login):
    session = login()
    _, pdus = run_and_keep(session, bytes(6))
    session.ping()
    snack(session, STATUS, first=pdus[-1].stat_sn, count=1)
    rejected(session, 4)


@pytest.mark.clause('RFC 7143 11.16')
def test_a_data_snack_repeats_the_data(login):
    session = login(MaxRecvDataSegmentLength='4096')
    session.write(0, pattern(1, 65536))
    _, pdus = run_and_keep(session, read_10(0, 128), read=65536)
    before = pdus[-1].stat_sn
    snack(session, DATA_OR_R2T, pdus[0].itt, 3, 2, exp_stat_sn=before)
    assert [same(session.wire.receive(), pdu) for pdu in pdus[3:5]] == [True, True]
    snack(session, DATA_OR_R2T, pdus[0].itt, 14, 0, exp_stat_sn=before)
    assert [same(session.wire.receive(), pdu) for pdu in pdus[14:]] == [True, True]


@pytest.mark.clause('RFC 7143 11.16', 'RFC 7143 11.17')
def test_data_that_was_never_sent_is_refused(login):
    session = login()
    _, pdus = run_and_keep(session, read_10(0, 8), read=4096)
    snack(session, DATA_OR_R2T, pdus[0].itt, 1, 1, exp_stat_sn=pdus[0].stat_sn)
    rejected(session, 4)


@pytest.mark.clause('RFC 7143 11.16')
def test_an_r2t_is_sent_again(login):
    session = login(
        ImmediateData='No', MaxOutstandingR2T='2', MaxBurstLength='4096', FirstBurstLength='4096'
    )
    session.hold_r2t = True
    data = pattern(2, 16384)
    command = session.submit(write_10(0, 32), out=data)
    r2ts = [session.step(), session.step()]
    snack(session, DATA_OR_R2T, command.itt, 1, 1)
    assert same(session.wire.receive(), r2ts[1])
    session.hold_r2t = False
    while command.r2ts:
        session.answer_r2t(command)
    session.wait(command).good()
    assert session.read(0, 32) == data


@pytest.mark.clause('RFC 7143 11.7', 'RFC 7143 11.16')
def test_data_acknowledgement_is_requested_at_the_end_of_a_burst(login):
    session = login(MaxBurstLength='8192', MaxRecvDataSegmentLength='4096')
    command = session.submit(read_10(0, 64), read=32768)
    pdus = [session.step() for _ in range(8)]
    assert command.result is not None
    asked = [pdu for pdu in pdus if pdu.flags & 0x40]
    assert [pdu.word36 for pdu in asked] == [1, 3, 5] and NO_TAG not in [pdu.ttt for pdu in asked]
    before = pdus[-1].stat_sn
    snack(session, DATA_ACK, first=4, tag=asked[1].ttt, exp_stat_sn=before)
    snack(session, DATA_OR_R2T, command.itt, 4, 1, exp_stat_sn=before)
    assert same(session.wire.receive(), pdus[4])
    snack(session, DATA_OR_R2T, command.itt, 3, 1, exp_stat_sn=before)
    rejected(session, 4)


@pytest.mark.clause('RFC 7143 11.16')
def test_a_data_ack_of_a_response_that_was_acknowledged_a_moment_ago_is_tolerated(login):
    session = login(MaxBurstLength='8192', MaxRecvDataSegmentLength='4096')
    command = session.submit(read_10(0, 64), read=32768)
    asked = [pdu for pdu in (session.step() for _ in range(8)) if pdu.flags & 0x40]
    assert command.result is not None
    session.ping()  # acknowledges all of it with ExpStatSN
    snack(session, DATA_ACK, first=4, tag=asked[1].ttt)
    assert session.ping(b'after the SNACK') == b'after the SNACK'  # and no Reject before


@pytest.mark.clause('RFC 7143 11.16')
def test_an_unrequested_data_ack_is_rejected(login):
    session = login()
    snack(session, DATA_ACK, first=1, tag=77)
    rejected(session, 8)


@pytest.mark.clause('RFC 7143 11.16', 'RFC 7143 13.12')
def test_r_data_snack_repeats_data_with_new_segment_lengths(login):
    """R-Data SNACK, RFC 7143 11.16.4: the status is sent in a response that contains the SNACK
    tag."""
    session = login(MaxRecvDataSegmentLength='8192')
    data = pattern(3, 32768)
    session.write(0, data)
    command, pdus = run_and_keep(session, read_10(0, 64), read=32768)
    before = pdus[-1].stat_sn
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(TEXT | IMMEDIATE, FINAL, 0, itt, NO_TAG, session.cmd_sn, before),
        pack_text([('MaxRecvDataSegmentLength', '2048')]),
    )
    session.until(TEXT_RESPONSE, itt)
    snack(session, DATA_OR_R2T, command.itt, 0, 1, exp_stat_sn=before)
    rejected(session, 3)
    snack(session, R_DATA, command.itt, 0, 0, tag=0x1234, exp_stat_sn=before)
    again = [session.wire.receive() for _ in range(17)]
    assert b''.join(pdu.data for pdu in again[:16]) == data
    assert [pdu.word36 for pdu in again[:16]] == list(range(16)) and {
        len(pdu.data) for pdu in again[:16]
    } == {2048}
    last = again[16]
    assert (last.opcode, last.stat_sn, last.ttt, last.word36) == (SCSI_RESPONSE, before, 0x1234, 16)


@pytest.mark.clause('RFC 7143 11.16', 'RFC 7143 13.20')
def test_snack_is_rejected_at_level_0(login):
    session = login(0)
    snack(session, STATUS)
    rejected(session, 5)


# -- digests ---------------------------------------------------------------------------------------


def spoilt_data_out(session, command, r2t, spoilt):
    """Sends the data of an R2T in four PDUs, of which those in `spoilt` have a wrong digest."""
    offset, length = r2t.word40, r2t.word44 // 4
    for number in range(4):
        at = offset + number * length
        session.wire.send(
            pack_bhs(
                DATA_OUT,
                FINAL if number == 3 else 0,
                0,
                command.itt,
                r2t.ttt,
                0,
                session.exp_stat_sn,
                0,
                number,
                at,
            ),
            command.out[at : at + length],
            spoil_data=number in spoilt,
        )


@pytest.mark.parametrize('spoilt', [(0,), (1,), (3,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.clause('RFC 7143 7.8')
def test_data_out_with_a_wrong_digest_is_requested_again(login, spoilt):
    """RFC 7143 7.9: the target sends Reject, then a recovery R2T for the missing data."""
    session = login(
        DataDigest='CRC32C', ImmediateData='No', MaxBurstLength='16384', FirstBurstLength='16384'
    )
    session.hold_r2t = True
    command = session.submit(write_10(0, 64), out=pattern(4, 32768))
    spoilt_data_out(session, command, session.until(R2T), spoilt)
    for _ in spoilt:
        rejected(session, 2)
    again = session.receive()
    assert (again.opcode, again.word36) == (R2T, 1)
    assert (again.word40, again.word40 + again.word44) == (spoilt[0] * 4096, 16384)
    spoilt_data_out(session, command, again, ())
    rest = session.receive()
    assert (rest.opcode, rest.word36, rest.word40, rest.word44) == (R2T, 2, 16384, 16384)
    spoilt_data_out(session, command, rest, ())
    session.wait(command).good()
    assert session.read(0, 64) == pattern(4, 32768)


@pytest.mark.clause('RFC 7143 7.2.1', 'RFC 7143 7.8')
def test_a_command_with_a_wrong_digest_may_be_sent_again(login):
    """RFC 7143 7.9, 7.1.3: the command counts as not received, and its CmdSN is still expected."""
    session = login(DataDigest='CRC32C')
    data = pattern(5, 4096)
    sn, itt = session.cmd_sn, session.next_tag()
    bhs = (
        pack_bhs(SCSI_COMMAND, FINAL | 0x21, 0, itt, 4096, sn, session.exp_stat_sn)[:32]
        + write_10(0, 8)
        + bytes(6)
    )
    session.wire.send(bhs, data, spoil_data=True)
    rejected(session, 2)
    session.wire.send(bhs, data)
    pdu = session.receive()
    assert (pdu.opcode, pdu.itt, pdu.bhs[3]) == (SCSI_RESPONSE, itt, 0)
    session.cmd_sn = sn + 1
    assert session.read(0, 8) == data


# -- reassignment ----------------------------------------------------------------------------------


def reassign(session, command, exp_data_sn=0):
    """Returns the response; the PDUs of the task follow it."""
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(
            TASK_MANAGEMENT | IMMEDIATE,
            FINAL | TASK_REASSIGN,
            0,
            itt,
            command.itt,
            session.cmd_sn,
            session.exp_stat_sn,
            0,
            exp_data_sn,
        )
    )
    session.commands[command.itt] = command
    return session.until(TASK_MANAGEMENT_RESPONSE, itt).bhs[2]


@pytest.mark.clause('RFC 7143 7.2.2')
def test_a_running_read_continues_on_a_new_connection(login):
    old = login(2, SLOW)
    command = old.submit(read_10(0, 8), read=4096)
    old.ping(immediate=True)
    old.close()
    new = login(2, SLOW, like=old)
    assert reassign(new, command) == 0
    assert new.wait(command).good().data == bytes(4096)


@pytest.mark.clause('RFC 7143 7.2.2')
def test_unreceived_reads_continue_on_a_new_connection(login):
    """The reads are larger than the data kept for a lost connection; the rest is read again when it
    is requested."""
    old = login(2, MaxBurstLength='1048576', DefaultTime2Retain='60')
    data = pattern(12, 4 << 20)
    old.write(0, data)
    new = login(2, like=old, cid=2)
    commands = [old.submit(read_10(0, 8192), read=4 << 20) for _ in range(40)]
    new.cmd_sn = old.cmd_sn
    new.ping()  # they have arrived, for this was not their turn before
    old.close()
    for command in commands:
        # the target may notice only after the first TASK REASSIGN that the connection is closed
        end = time.monotonic() + 30
        response = reassign(new, command)
        while response == TASK_STILL_ALLEGIANT and time.monotonic() < end:
            response = reassign(new, command)
        assert response == 0
        assert new.wait(command).good().data == data


@pytest.mark.clause('RFC 7143 11.6.1')
def test_reads_of_a_connection_that_is_not_closed_stay_there(login):
    """Some are being sent, others wait in the queue, are being read, or wait for the budget."""
    old = login(2, MaxBurstLength='1048576')
    data = pattern(12, 4 << 20)
    old.write(0, data)
    new = login(2, like=old, cid=2)
    commands = [old.submit(read_10(0, 8192), read=4 << 20) for _ in range(16)]
    new.cmd_sn = old.cmd_sn
    new.ping()  # they have arrived
    for _ in range(3):
        assert {reassign(new, command) for command in commands} == {TASK_STILL_ALLEGIANT}
    for command in commands:
        assert old.wait(command).good().data == data


@pytest.mark.clause('RFC 7143 7.2.2')
def test_a_lost_read_response_is_sent_again(login):
    old = login(2, MaxRecvDataSegmentLength='4096')
    data = pattern(6, 16384)
    old.write(0, data)
    command = old.submit(read_10(0, 32), read=16384)
    old.wire.receive()  # it was carried out; what is sent is lost
    old.close()
    new = login(2, like=old)
    assert reassign(new, command) == 0
    assert new.wait(command).good().data == data


@pytest.mark.clause('RFC 7143 7.2.2')
def test_acknowledged_data_is_not_sent_on_the_new_connection(login):
    old = login(2, MaxRecvDataSegmentLength='4096')
    data = pattern(7, 16384)
    old.write(0, data)
    command = old.submit(read_10(0, 32), read=16384)
    for _ in range(2):
        old.step()
    old.close()
    new = login(2, like=old)
    assert reassign(new, command, exp_data_sn=2) == 0
    assert new.wait(command).good().data == data


@pytest.mark.clause('RFC 7143 7.2.2')
def test_a_write_continues_on_a_new_connection(login):
    old = login(2, ImmediateData='No', MaxBurstLength='8192', FirstBurstLength='8192')
    data = pattern(8, 32768)
    old.hold_r2t = True
    command = old.submit(write_10(0, 64), out=data)
    old.until(R2T)
    old.answer_r2t(command)
    old.until(R2T)  # the first burst arrived; the second is asked for, and the connection breaks
    old.close()
    new = login(2, like=old)
    command.r2ts, command.r2t_sn, command.solicited = [], 1, 8192
    assert reassign(new, command) == 0
    new.wait(command).good()
    assert new.read(0, 64) == data


@pytest.mark.clause('RFC 7143 7.2.2')
def test_a_completed_write_is_not_executed_twice(login):
    old = login(2)
    command = old.submit(write_10(0, 1), out=pattern(9, 512))
    old.wire.receive()
    old.close()
    new = login(2, like=old)
    new.write(0, pattern(10, 512))
    assert reassign(new, command) == 0
    new.wait(command).good()
    assert new.read(0, 1) == pattern(10, 512)


@pytest.mark.clause('RFC 7143 7.2.2', 'RFC 7143 11.6')
def test_only_lost_tasks_are_reassigned(login):
    old = login(2, SLOW)
    other = login(2, SLOW, like=old, cid=2)
    command = old.submit(read_10(0, 8), read=4096)
    old.ping(immediate=True)
    assert reassign(other, command) == TASK_STILL_ALLEGIANT
    old.wait(command).good()
    old.ping()
    command.itt = 0xABCD
    assert reassign(other, command) == 1  # no such task


@pytest.mark.clause('RFC 7143 7.2.2', 'RFC 7143 11.14')
def test_tasks_are_reassigned_after_a_logout_for_recovery(login):
    old = login(2, SLOW)
    other = login(2, SLOW, like=old, cid=2)
    command = old.submit(read_10(0, 8), read=4096)
    old.ping(immediate=True)
    itt = other.next_tag()
    other.wire.send(
        pack_bhs(LOGOUT | IMMEDIATE, FINAL | 2, 0, itt, 1 << 16, other.cmd_sn, other.exp_stat_sn)
    )
    assert other.until(LOGOUT_RESPONSE, itt).bhs[2] == 0
    with pytest.raises(Closed):
        while True:
            old.step()
    assert reassign(other, command) == 0
    other.wait(command).good()


@pytest.mark.clause('RFC 7143 7.2.2', 'RFC 7143 13.20')
def test_level_1_reassigns_nothing(login):
    session = login(1)
    command, _ = run_and_keep(session, bytes(6))
    assert reassign(session, command) == 4


@pytest.mark.clause('RFC 7143 7.5', 'RFC 7143 13.16')
def test_tasks_are_kept_no_longer_than_negotiated(recovering, login):
    old = login(2, SLOW, DefaultTime2Wait='0', DefaultTime2Retain='0')
    tsih = old.tsih
    old.submit(read_10(0, 8), read=4096)
    old.close()
    recovering.logged('session %d .* is over' % tsih)


@pytest.mark.clause('RFC 7143 11.16', 'RFC 7143 11.17')
def test_the_session_continues_after_a_rejected_snack(login):
    session = login(2)
    snack(session, 9)
    with pytest.raises(Rejected):
        session.ping()
    session.ping()


@pytest.mark.clause('RFC 7143 7.2.2')
def test_a_stop_does_not_wait_for_a_session_without_connections(daemon):
    """The only connection is lost and its tasks wait for a reassignment, so a logout cannot be
    requested."""
    daemon.text.server['stop-timeout'] = '60'
    daemon.target(lines=['initiator-address = ALL', 'ErrorRecoveryLevel = 2'])
    daemon.start()
    session = Session(daemon.address, isid=ISID)
    session.login(TARGET, keys={'ErrorRecoveryLevel': '2', 'DefaultTime2Retain': '60'})
    assert session.value('ErrorRecoveryLevel') == '2'
    session.wire.close()
    assert daemon.stop() == 0
