"""Tests of what conformance suites check and no other test covers: numbering and tags of the login,
several sessions of one initiator, new challenges, reserved fields, restarted text exchanges."""

import struct

import pytest
from daemon import TARGET, watched
from initiator import Chap, LoginFailed, Session, pattern
from pdus import (
    FINAL,
    IMMEDIATE,
    LOGOUT,
    NO_TAG,
    NOP_IN,
    NOP_OUT,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    TEXT,
    TEXT_RESPONSE,
    decode_binary,
    pack_bhs,
    pack_text,
    read_10,
    unpack_text,
    write_10,
)

pytestmark = pytest.mark.wire

SECRET = 'iqn.2026-11.test.targetd:secret'
OTHER = 'iqn.2026-11.test.targetd:other'
NAMES = [('InitiatorName', 'iqn.2026-11.test:i'), ('SessionType', 'Normal'), ('TargetName', TARGET)]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('conformance')) as daemon:
        daemon.text.server['failures-before-delay'] = '0'
        daemon.target()
        daemon.target(OTHER)
        daemon.target(SECRET, ['initiator-address = ALL', 'incominguser = erp secret-of-12-to-16'])
        yield daemon.start()


# -- login -----------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 4.2.2.2', 'RFC 7143 11.13')
def test_numbers_tags_and_tsih_of_a_login(world):
    """The task tag is returned, StatSN counts the responses, CmdSN does not change, and TSIH is 0
    until the last response."""
    with Session(world.address) as session:
        session.cmd_sn = 4711
        first = session.exchange(NAMES + [('AuthMethod', 'None')], 0, 1, itt=0x77)[2]
        second = session.exchange([('InitialR2T', 'Yes')], 1, itt=0x77)[2]
        last = session.exchange([], 1, 3, itt=0x77)[2]
        assert [pdu.itt for pdu in (first, second, last)] == [0x77] * 3
        assert [pdu.stat_sn - first.stat_sn for pdu in (first, second, last)] == [0, 1, 2]
        assert {pdu.exp_cmd_sn for pdu in (first, second, last)} == {4711}
        tsihs = [struct.unpack_from('>H', pdu.bhs, 14)[0] for pdu in (first, second, last)]
        assert tsihs[:2] == [0, 0] and tsihs[2]
        assert session.ping(b'4711 is the first number') == b'4711 is the first number'


@pytest.mark.clause('RFC 7143 11.12.10')
@pytest.mark.parametrize('flags', [0x04, 0x87])
def test_a_login_without_any_text_lacks_its_parameters(world, flags):
    with Session(world.address) as session:
        session.login_pdu(b'', 1, raw_flags=flags)
        with pytest.raises(LoginFailed) as refused:
            session.login_response()
        assert refused.value.status == 0x0207


@pytest.mark.clause('RFC 7143 6.3.3', 'RFC 7143 13.1')
def test_a_digest_that_is_not_offered_is_rejected_and_the_login_goes_on(world):
    with Session(world.address) as session:
        answer, went, _ = session.exchange(
            NAMES + [('HeaderDigest', 'MD5'), ('DataDigest', 'SHA-1,None')], 1, 3
        )
        assert answer['HeaderDigest'] == 'Reject' and answer['DataDigest'] == 'None'
        assert went


@pytest.mark.clause('RFC 7143 4.4.3', 'RFC 7143 6.3.5')
def test_simultaneous_sessions_and_session_reinstatement(world):
    """Another ISID, initiator or target creates another session; the same nexus reinstates its
    session."""
    isid = bytes.fromhex('80abcdef0042')
    sessions = [
        Session(world.address, isid=isid).login(TARGET),
        Session(world.address, isid=bytes.fromhex('80abcdef0043')).login(TARGET),
        Session(world.address, isid=isid).login(OTHER),
        Session(world.address, 'iqn.2026-11.test.targetd:another', isid).login(TARGET),
    ]
    assert len({session.tsih for session in sessions}) == 4
    again = Session(world.address, isid=isid).login(TARGET)
    sessions[0].wait_closed()
    for session in sessions[1:] + [again]:
        session.clear_attentions()
        session.logout()


# -- CHAP ------------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 9.2.1', 'RFC 7143 12.1.3')
def test_every_login_has_a_different_challenge(world):
    challenges = set()
    for _ in range(5):
        with Session(world.address) as session:
            session.exchange(
                [('InitiatorName', session.name), ('TargetName', SECRET), ('AuthMethod', 'CHAP')], 0
            )
            answer, _, _ = session.exchange([('CHAP_A', '5')], 0)
            challenges.add(decode_binary(answer['CHAP_C']))
    assert len(challenges) == 5


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize(
    'answer',
    [
        [('CHAP_N', 'erp')],
        [('CHAP_R', '0x' + '00' * 16)],
        [('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 15)],
        [('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 17)],
        [('CHAP_N', 'erp'), ('CHAP_R', '0x')],
        [('CHAP_N', 'erp'), ('CHAP_R', 'none')],
        [('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 16), ('CHAP_I', '1')],
        [('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 16), ('CHAP_C', '0x' + '11' * 16)],
        [('CHAP_A', '5')],
    ],
    ids=[
        'no-response',
        'no-name',
        'short',
        'long',
        'empty',
        'no-number',
        'identifier-alone',
        'challenge-alone',
        'again',
    ],
)
def test_an_invalid_chap_response_ends_the_login(world, answer):
    with Session(world.address) as session:
        session.exchange(
            [('InitiatorName', session.name), ('TargetName', SECRET), ('AuthMethod', 'CHAP')], 0
        )
        session.exchange([('CHAP_A', '5')], 0)
        with pytest.raises(LoginFailed) as refused:
            session.exchange(answer, 0, 1)
        assert refused.value.status in (0x0200, 0x0201, 0x0207)


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize(
    'first',
    [
        [('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 16)],
        [('CHAP_A', '')],
        [('CHAP_A', 'five')],
        [('CHAP_A', '5'), ('CHAP_N', 'erp'), ('CHAP_R', '0x' + '00' * 16)],
    ],
)
def test_chap_begins_with_its_algorithm_and_nothing_else(world, first):
    with Session(world.address) as session:
        session.exchange(
            [('InitiatorName', session.name), ('TargetName', SECRET), ('AuthMethod', 'CHAP')], 0
        )
        with pytest.raises(LoginFailed):
            session.exchange(first, 0)


@pytest.mark.clause('RFC 7143 6.3.2')
def test_from_chap_straight_to_full_feature_phase(world):
    """The operational stage may also be omitted after the security stage."""
    with Session(world.address) as session:
        chap = Chap('erp', 'secret-of-12-to-16')
        session.exchange(
            [('InitiatorName', session.name), ('TargetName', SECRET), ('AuthMethod', 'CHAP')], 0
        )
        answer, _, _ = session.exchange([('CHAP_A', chap.algorithms)], 0)
        _, went, _ = session.exchange(chap.answer(answer), 0, 3)
        assert went and session.ping() == b''


# -- full feature phase ----------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.1')
def test_reserved_fields_are_ignored(world, ready):
    """Reserved bits of a request are ignored: the session continues as if they were 0."""
    session = ready(world)
    noise = b'\xff\xff'
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(
            NOP_OUT | IMMEDIATE,
            0xFF,
            0,
            itt,
            NO_TAG,
            session.cmd_sn,
            session.exp_stat_sn,
            1,
            2,
            3,
            4,
            noise,
        ),
        b'ping',
    )
    assert session.until(NOP_IN, itt).data == b'ping'
    itt = session.next_tag()
    bhs = pack_bhs(
        SCSI_COMMAND,
        0x81 | 0x18,
        0,
        itt,
        0,
        session.next_cmd_sn(),
        session.exp_stat_sn,
        second=noise,
    )
    session.wire.send(bhs[:32] + bytes(16))
    while True:
        pdu = session.receive()
        if pdu.itt == itt:
            break
    assert (pdu.opcode, pdu.bhs[3]) == (SCSI_RESPONSE, 0)
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(
            TASK_MANAGEMENT | IMMEDIATE,
            FINAL | 2,
            0,
            itt,
            NO_TAG,
            session.cmd_sn,
            session.exp_stat_sn,
            0,
            0,
            7,
            7,
            noise,
        )
    )
    assert session.until(TASK_MANAGEMENT_RESPONSE, itt).bhs[2] == 0
    assert session.rejects == []


@pytest.mark.clause('RFC 7143 11.7', 'RFC 7143 13.12')
def test_data_in_at_level_0_asks_for_no_acknowledgement(world, ready):
    session = ready(world, keys={'MaxRecvDataSegmentLength': '4096', 'MaxBurstLength': '8192'})
    command = session.submit(read_10(0, 64), read=32768)
    session.wait(command).good()
    assert len(command.data_in) == 8 and not any(flags & 0x40 for flags, _ in command.data_in)
    assert [bool(flags & FINAL) for flags, _ in command.data_in] == [False, True] * 4


@pytest.mark.clause('RFC 7143 13.12', 'RFC 7143 6.4')
def test_a_segment_length_declared_again_takes_effect(world, ready):
    session = ready(world)
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(TEXT, FINAL, 0, itt, NO_TAG, session.next_cmd_sn(), session.exp_stat_sn),
        pack_text([('MaxRecvDataSegmentLength', '1024')]),
    )
    assert (
        unpack_text(session.until(TEXT_RESPONSE, itt).data)
        .get('MaxRecvDataSegmentLength', '1')
        .isdigit()
    )
    session.receive_limit = 1024
    session.write(0, pattern(1, 16384))
    assert session.read(0, 32) == pattern(1, 16384)


@pytest.mark.clause('RFC 7143 11.10', 'RFC 7143 6.2')
def test_the_reserved_tag_starts_a_new_text_exchange(world, ready):
    """The keys of an abandoned exchange are discarded (RFC 7143 11.10.4)."""
    session = ready(world)
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(TEXT | IMMEDIATE, 0x40, 0, itt, NO_TAG, session.cmd_sn, session.exp_stat_sn),
        b'SendTargets=no',
    )
    first = session.until(TEXT_RESPONSE, itt)
    assert first.ttt != NO_TAG and not first.flags & FINAL
    assert [name for name, _ in session.send_targets('')] == [TARGET]
    assert session.text([('X-com.example.colour', 'blue')]) == [
        ('X-com.example.colour', 'NotUnderstood')
    ]


@pytest.mark.clause('RFC 7143 11.14', 'RFC 7143 11.17')
def test_a_logout_with_an_unknown_reason_code_is_rejected(world, ready):
    session = ready(world)
    session.wire.send(
        pack_bhs(
            LOGOUT | IMMEDIATE,
            FINAL | 0x33,
            0,
            session.next_tag(),
            0,
            session.cmd_sn,
            session.exp_stat_sn,
        )
    )
    while True:
        pdu = session.receive()
        if pdu.opcode == REJECT:
            break
    assert pdu.bhs[2] == 0x09 and pdu.data[0] & 0x3F == LOGOUT
    session.clear_attentions()


@pytest.mark.clause('RFC 7143 11.5', 'RFC 7143 11.6')
@pytest.mark.parametrize(
    'function, response',
    [(0, 5), (3, 5), (8, 4), (13, 5), (0x7F, 5)],
    ids=['none', 'clear-aca', 'reassign', 'unknown', 'last'],
)
def test_unsupported_task_management_functions(world, ready, function, response):
    """CLEAR ACA without an ACA condition, TASK REASSIGN at level 0, and undefined function
    codes."""
    session = ready(world)
    assert session.manage(function) == response
    session.clear_attentions()


@pytest.mark.clause('RFC 7143 11.8', 'RFC 7143 11.7')
def test_r2ts_of_a_write_are_numbered_and_data_begins_at_0_for_each(world, ready):
    session = ready(
        world, keys={'ImmediateData': 'No', 'MaxBurstLength': '8192', 'FirstBurstLength': '8192'}
    )
    data = pattern(2, 32768)
    session.hold_r2t = True
    command = session.submit(write_10(0, 64), out=data)
    for number in range(4):
        r2t = session.until(R2T, command.itt)
        assert (r2t.word36, r2t.word40, r2t.word44) == (number, number * 8192, 8192)
        session.answer_r2t(command)
    session.wait(command).good()
    assert session.read(0, 64) == data


@pytest.mark.clause('RFC 7143 4.3', 'RFC 7143 11.14')
def test_a_discovery_session_supports_text_nop_and_logout(world):
    session = Session(world.address).login()
    assert session.ping(b'there?') == b'there?'
    assert {name for name, _ in session.send_targets()} == {TARGET, OTHER, SECRET}
    session.wire.send(
        pack_bhs(
            LOGOUT | IMMEDIATE,
            FINAL | 1,
            0,
            session.next_tag(),
            session.cid << 16,
            session.cmd_sn,
            session.exp_stat_sn,
        )
    )
    session.wait_closed()


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_the_window_never_shrinks_and_moves_with_every_answer(world, ready):
    session = ready(world)
    session.ping()
    last, seen = session.max_cmd_sn, 0
    commands = [session.submit(bytes(6)) for _ in range(20)]
    while not all(command.result for command in commands):
        pdu = session.receive()
        assert 0 <= pdu.max_cmd_sn - last <= 20 and pdu.exp_cmd_sn <= session.cmd_sn
        last = pdu.max_cmd_sn
        seen += 1
        session._response(pdu)
    assert seen == 20
