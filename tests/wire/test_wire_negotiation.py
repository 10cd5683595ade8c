"""Tests of negotiated keys: writes and reads with every combination of the keys that affect a
transfer."""

import itertools

import pytest
from daemon import watched
from initiator import OPERATIONAL, LoginFailed, Session, pattern
from pdus import FINAL, NO_TAG, NOP_IN, R2T, Pdu, Violation, pack_bhs, pack_text

pytestmark = pytest.mark.wire

WIDE = 'iqn.2026-11.test.targetd:wide'  # a target that accepts every value
NARROW = 'iqn.2026-11.test.targetd:narrow'  # one that takes small segments only
OWN = {
    WIDE: {
        'InitialR2T': 'No',
        'ImmediateData': 'Yes',
        'MaxOutstandingR2T': '16',
        'MaxBurstLength': '1048576',
        'FirstBurstLength': '262144',
        'MaxRecvDataSegmentLength': '262144',
    },
    NARROW: {
        'InitialR2T': 'No',
        'ImmediateData': 'Yes',
        'MaxOutstandingR2T': '8',
        'MaxBurstLength': '65536',
        'FirstBurstLength': '16384',
        'MaxRecvDataSegmentLength': '2048',
    },
}


@pytest.fixture(scope='module')
def two_targets(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('negotiation')) as daemon:
        for name, keys in OWN.items():
            daemon.target(
                name,
                ['initiator-address = ALL'] + ['%s = %s' % item for item in sorted(keys.items())],
            )
        yield daemon.start()


def agreed(own, offer):
    """The result functions of RFC 7143 13."""
    lower = {
        key: str(min(int(own[key]), int(offer[key])))
        for key in ('MaxOutstandingR2T', 'MaxBurstLength', 'FirstBurstLength')
    }
    lower['InitialR2T'] = 'Yes' if 'Yes' in (own['InitialR2T'], offer['InitialR2T']) else 'No'
    lower['ImmediateData'] = (
        'No' if 'No' in (own['ImmediateData'], offer['ImmediateData']) else 'Yes'
    )
    return lower


def round_trip(session, seed, sizes):
    """Writes consecutive patterns of these sizes, then reads each of them back."""
    at = seed % 97
    places = []
    for size in sizes:
        data = pattern(seed + size, size)
        session.write(at, data)
        places.append((at, size, data))
        at += size // 512
    for at, size, data in places:
        assert session.read(at, size // 512) == data
    return places


BURSTS = [
    ('512', '512'),
    ('512', '65536'),
    ('8192', '8192'),
    ('65536', '65536'),
    ('65536', '1048576'),
    ('262144', '262144'),
]


@pytest.mark.parametrize('target', [WIDE, NARROW], ids=['wide', 'narrow'])
@pytest.mark.parametrize('immediate', ['Yes', 'No'])
@pytest.mark.parametrize('initial_r2t', ['Yes', 'No'])
@pytest.mark.parametrize('outstanding', ['1', '8'])
@pytest.mark.clause('RFC 7143 13.10', 'RFC 7143 13.11', 'RFC 7143 13.14', 'RFC 7143 13.17')
def test_every_combination_writes_and_reads_back(
    two_targets, sessions, target, immediate, initial_r2t, outstanding
):
    combinations = itertools.product(BURSTS, ('512', '8192', '262144'))
    for number, ((first, most), segment) in enumerate(combinations):
        offer = {
            'ImmediateData': immediate,
            'InitialR2T': initial_r2t,
            'MaxOutstandingR2T': outstanding,
            'FirstBurstLength': first,
            'MaxBurstLength': most,
            'MaxRecvDataSegmentLength': segment,
        }
        session = sessions(two_targets, target, keys=offer)
        expected = agreed(OWN[target], offer)
        assert {key: session.value(key) for key in expected} == expected
        assert session.value('MaxRecvDataSegmentLength') == OWN[target]['MaxRecvDataSegmentLength']
        session.clear_attentions()
        burst = int(expected['FirstBurstLength'])
        sizes = sorted(
            {512, burst, burst + 512, 4096, 3 * min(int(expected['MaxBurstLength']), 32768) + 512}
        )
        round_trip(session, number, sizes)
        assert session.logout() == 0


@pytest.mark.parametrize('header, data', [('None', 'None'), ('CRC32C', 'CRC32C')])
@pytest.mark.clause('RFC 7143 11.2.4')
def test_odd_lengths_are_padded(two_targets, ready, header, data):
    """Any segment length may be declared; each segment is padded to four bytes (RFC 7143 11.2.1.6)."""
    session = ready(
        two_targets,
        WIDE,
        keys={
            'MaxRecvDataSegmentLength': '1001',
            'MaxBurstLength': '4099',
            'FirstBurstLength': '1003',
            'InitialR2T': 'No',
            'HeaderDigest': header,
            'DataDigest': data,
        },
    )
    session.send_limit = 997
    round_trip(session, 5, [512, 1024, 8192, 65536])


@pytest.mark.clause('RFC 7143 11.8', 'RFC 7143 13.17')
def test_outstanding_r2ts_reach_but_do_not_exceed_the_negotiated_limit(two_targets, ready):
    session = ready(
        two_targets,
        WIDE,
        keys={
            'MaxOutstandingR2T': '4',
            'MaxBurstLength': '4096',
            'ImmediateData': 'No',
            'FirstBurstLength': '4096',
        },
    )
    data = pattern(1, 10 * 4096)
    session.hold_r2t = True
    command = session.submit(b'\x8a' + bytes(9) + (80).to_bytes(4, 'big') + bytes(2), out=data)
    for _ in range(4):
        session.until(R2T)
    session.ping(immediate=True)  # whatever was sent before its answer has arrived with it
    assert len(command.r2ts) == 4
    session.hold_r2t = False
    while command.r2ts:
        session.answer_r2t(command)
    session.wait(command).good()
    assert session.read(0, 80) == data


@pytest.mark.clause('RFC 7143 11.8')
def test_data_for_r2ts_sent_out_of_order_is_written_at_the_right_offsets(two_targets, ready):
    session = ready(
        two_targets,
        WIDE,
        keys={
            'MaxOutstandingR2T': '4',
            'MaxBurstLength': '4096',
            'ImmediateData': 'No',
            'InitialR2T': 'Yes',
            'DataSequenceInOrder': 'Yes',
        },
    )
    first, second = pattern(2, 4096), pattern(3, 4096)
    session.hold_r2t = True
    one = session.submit(
        b'\x8a' + bytes(8) + b'\x00' + (8).to_bytes(4, 'big') + bytes(2), out=first
    )
    two = session.submit(
        b'\x8a' + bytes(7) + b'\x00\x40' + (8).to_bytes(4, 'big') + bytes(2), out=second
    )
    session.until(R2T)
    session.until(R2T)
    session.answer_r2t(two)  # tasks are answered in any order (RFC 7143 11.8)
    session.wait(two).good()
    assert one.result is None
    session.answer_r2t(one)
    session.wait(one).good()
    assert session.read(0, 8) == first and session.read(0x40, 8) == second


@pytest.mark.parametrize('header', ['None', 'CRC32C', 'CRC32C,None', 'None,CRC32C'])
@pytest.mark.parametrize('data', ['None', 'CRC32C', 'CRC32C,None'])
@pytest.mark.clause('RFC 7143 13.1')
def test_digests(two_targets, sessions, header, data):
    session = sessions(
        two_targets, WIDE, keys={'HeaderDigest': header, 'DataDigest': data, 'InitialR2T': 'No'}
    )
    assert session.value('HeaderDigest') == header.split(',')[0]
    assert session.value('DataDigest') == data.split(',')[0]
    session.clear_attentions()
    round_trip(session, 11, [512, 1024, 131072, 300 * 1024])
    assert session.ping(b'odd') == b'odd'
    assert session.logout() == 0


@pytest.mark.clause('RFC 7143 6.2')
def test_text_keys_over_many_pdus(two_targets, sessions):
    """The C bit: a request is divided into small PDUs, also within a key (RFC 7143 6.2)."""
    session = Session(two_targets.address)
    text = pack_text(
        [
            ('InitiatorName', session.name),
            ('SessionType', 'Normal'),
            ('TargetName', WIDE),
            ('AuthMethod', 'None'),
        ]
    )
    for at in range(0, len(text), 7):
        last = at + 7 >= len(text)
        session.login_pdu(text[at : at + 7], 0, 1 if last else None, more=not last)
        pdu = session.login_response()
        if not last:
            assert pdu.flags & 0x80 == 0 and pdu.data == b''
    assert pdu.flags & 0x83 == 0x81
    session.offered = OPERATIONAL
    keys, went, _ = session.exchange(OPERATIONAL, 1, 3)
    assert went and keys['ImmediateData'] == 'Yes'
    session.close()


@pytest.mark.parametrize(
    'key, value, answer',
    [
        ('X-org.example.unknown', '1', 'NotUnderstood'),
        ('NoSuchKey', 'Yes', 'NotUnderstood'),
        ('HeaderDigest', 'CRC64', 'Reject'),
        ('MaxBurstLength', '100', 'Reject'),
        ('MaxBurstLength', '16777216', 'Reject'),
        ('ImmediateData', 'Maybe', 'Reject'),
        ('ErrorRecoveryLevel', '7', 'Reject'),
        ('IFMarker', 'No', 'No'),
        ('OFMarker', 'No', 'No'),
        ('ErrorRecoveryLevel', '2', '0'),
        ('MaxConnections', '32', '1'),
        ('DefaultTime2Wait', '0', '2'),
        ('DefaultTime2Retain', '60', '20'),
        ('DataPDUInOrder', 'Yes', 'Yes'),
        ('FirstBurstLength', '0x2000', '8192'),
    ],
)
@pytest.mark.clause('RFC 7143 6.2.1', 'RFC 7143 6.2.2')
def test_answer_to_one_key(two_targets, key, value, answer):
    """RFC 7143 6.2.2, 13: each offered key is answered once, by its result function."""
    with Session(two_targets.address) as session:
        session.exchange(
            [
                ('InitiatorName', session.name),
                ('SessionType', 'Normal'),
                ('TargetName', WIDE),
                ('AuthMethod', 'None'),
            ],
            0,
            1,
        )
        keys, _, _ = session.exchange([(key, value)], 1)
        if key in ('IFMarker', 'OFMarker'):  # obsolete in RFC 7143 13.27; either answer is right
            assert keys[key] in ('No', 'Reject', 'NotUnderstood', 'Irrelevant')
        else:
            assert keys[key] == answer


@pytest.mark.clause('RFC 7143 6.2')
def test_keys_that_were_not_offered_are_not_answered(two_targets):
    """An answer to a key that was not offered makes some initiators negotiate again; only three
    keys may be sent unasked."""
    with Session(two_targets.address) as session:
        first, _, _ = session.exchange(
            [
                ('InitiatorName', session.name),
                ('SessionType', 'Normal'),
                ('TargetName', WIDE),
                ('AuthMethod', 'None'),
            ],
            0,
            1,
        )
        # Windows stalls unless it is in the first answer
        assert first['TargetPortalGroupTag'] == '1'
        assert set(first) <= {'AuthMethod', 'TargetPortalGroupTag', 'TargetAlias'}
        second, _, _ = session.exchange([('HeaderDigest', 'None'), ('ImmediateData', 'Yes')], 1, 3)
        assert set(second) <= {
            'HeaderDigest',
            'ImmediateData',
            'MaxRecvDataSegmentLength',
            'TargetAlias',
        }


@pytest.mark.clause('RFC 7143 6.2', 'RFC 7143 7.12')
def test_a_key_negotiated_twice_ends_the_login(two_targets):
    """RFC 7143 6.2: a key is negotiated once in a stage."""
    with Session(two_targets.address) as session:
        session.exchange(
            [
                ('InitiatorName', session.name),
                ('SessionType', 'Normal'),
                ('TargetName', WIDE),
                ('AuthMethod', 'None'),
            ],
            0,
            1,
        )
        session.exchange([('ImmediateData', 'Yes')], 1)
        with pytest.raises(LoginFailed) as failure:
            session.exchange([('ImmediateData', 'No')], 1)
        assert failure.value.status == 0x0200


@pytest.mark.clause('RFC 7143 11.18', 'RFC 7143 13.12')
def test_nop_out_is_echoed_up_to_the_negotiated_length(two_targets, ready):
    session = ready(two_targets, WIDE, keys={'MaxRecvDataSegmentLength': '1024'})
    long = pattern(5, 4096)
    answer = session.ping(long)
    assert answer == long[: len(answer)] and len(answer) == 1024


def test_the_test_initiator_detects_violations():
    """The test initiator detects a StatSN that is out of order."""
    session = Session.__new__(Session)
    session.exp_stat_sn, session.full_feature = 7, False
    with pytest.raises(Violation):
        session._check_stat_sn(Pdu(pack_bhs(NOP_IN, FINAL, 0, 1, NO_TAG, 9), b'', b''))
