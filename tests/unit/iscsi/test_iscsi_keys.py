"""Text keys: the table against RFC 7143 13, and the answers that initiators get."""

import pytest

from targetd.iscsi import keys
from targetd.iscsi.keys import (
    DISCOVERY,
    FULL_FEATURE,
    KEYS,
    OPERATIONAL,
    SECURITY,
    KeyMisused,
    negotiate_keys,
)


def answer(name, value, ours=None, **more):
    """Returns (answered text or None, negotiated typed value or None)."""
    negotiated = negotiate_keys([(name, value)], ours, **more)
    return dict(negotiated.answers).get(name), negotiated.values.get(name)


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 13')
@pytest.mark.parametrize(
    'name, minimum, maximum, default',
    [
        ('MaxConnections', 1, 65535, 1),
        ('MaxRecvDataSegmentLength', 512, 16777215, 8192),
        ('MaxBurstLength', 512, 16777215, 262144),
        ('FirstBurstLength', 512, 16777215, 65536),
        ('DefaultTime2Wait', 0, 3600, 2),
        ('DefaultTime2Retain', 0, 3600, 20),
        ('MaxOutstandingR2T', 1, 65535, 1),
        ('ErrorRecoveryLevel', 0, 2, 0),
        ('iSCSIProtocolLevel', 0, 31, 1),
    ],
)
def test_ranges_and_defaults_of_numbers(name, minimum, maximum, default):
    row = KEYS[name]
    assert (row.minimum, row.maximum, row.default) == (minimum, maximum, default)
    assert row.parse(str(minimum)) == minimum and row.parse(hex(maximum)) == maximum
    for value in (minimum - 1, maximum + 1):
        with pytest.raises(ValueError):
            row.parse(str(value))


def test_every_row_is_complete():
    for row in KEYS.values():
        assert (
            set(row.senders) <= set('IT')
            and set(row.stages) <= set('SOF')
            and row.help
            and row.clause
        )
        assert (row.kind == keys.NUMBER) == (row.minimum is not None) == (row.maximum is not None)
        if row.settable:
            assert row.ours is not None
            if row.kind == keys.NUMBER:
                low, high = row.settable
                assert row.minimum <= low <= row.ours <= high <= row.maximum
        if row.name in keys.OURS and row.default is not None:
            assert row.parse(row.render(row.default)) in (row.default, (row.default,))
    assert keys.OURS['FirstBurstLength'] <= keys.OURS['MaxBurstLength']


@pytest.mark.clause('RFC 7143 6.1')
def test_values_are_written_as_in_the_rfc():
    assert KEYS['InitialR2T'].render(True) == 'Yes' and KEYS['InitialR2T'].render(False) == 'No'
    assert KEYS['HeaderDigest'].render(('CRC32C', 'None')) == 'CRC32C,None'
    assert KEYS['HeaderDigest'].render('CRC32C') == 'CRC32C'
    assert KEYS['MaxBurstLength'].render(512) == '512'


# -- result functions ------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 6.2.1', 'RFC 7143 6.2.2')
@pytest.mark.parametrize(
    'name, offered, own, answered, value',
    [
        ('MaxBurstLength', '16776192', 262144, '262144', 262144),
        ('MaxBurstLength', '65536', 262144, '65536', 65536),
        ('MaxBurstLength', '0x10000', 262144, '65536', 65536),
        ('DefaultTime2Wait', '0', 2, '2', 2),
        ('DefaultTime2Wait', '5', 2, '5', 5),
        ('DefaultTime2Retain', '60', 20, '20', 20),
        ('DefaultTime2Retain', '0', 20, '0', 0),
        ('ErrorRecoveryLevel', '2', 0, '0', 0),
        ('MaxConnections', '32', 1, '1', 1),
        ('MaxOutstandingR2T', '16', 8, '8', 8),
        ('InitialR2T', 'No', False, 'No', False),
        ('InitialR2T', 'No', True, 'Yes', True),
        ('InitialR2T', 'Yes', False, 'Yes', True),
        ('InitialR2T', 'Yes', True, 'Yes', True),
        ('ImmediateData', 'Yes', True, 'Yes', True),
        ('ImmediateData', 'Yes', False, 'No', False),
        ('ImmediateData', 'No', True, 'No', False),
        ('ImmediateData', 'No', False, 'No', False),
        ('DataPDUInOrder', 'Yes', True, 'Yes', True),
        ('DataSequenceInOrder', 'No', True, 'Yes', True),
        ('HeaderDigest', 'None,CRC32C', ('CRC32C', 'None'), 'None', 'None'),
        ('HeaderDigest', 'CRC32C,None', ('CRC32C', 'None'), 'CRC32C', 'CRC32C'),
        ('HeaderDigest', 'X-sum,CRC32C', ('CRC32C', 'None'), 'CRC32C', 'CRC32C'),
        ('DataDigest', 'None,CRC32C', ('CRC32C',), 'CRC32C', 'CRC32C'),
        ('DataDigest', 'CRC32C', ('None',), 'Reject', None),
        ('TaskReporting', 'FastAbort,RFC3720', ('RFC3720',), 'RFC3720', 'RFC3720'),
        ('iSCSIProtocolLevel', '2', 1, '1', 1),
        ('iSCSIProtocolLevel', '3', 2, '2', 2),
        ('IFMarker', 'Yes', None, 'No', None),
        ('OFMarker', 'No', None, 'No', None),
        ('IFMarkInt', '1~65535', None, 'Reject', None),
        ('OFMarkInt', '2048', None, 'Reject', None),
        ('MaxRecvDataSegmentLength', '65536', 262144, None, 65536),
        ('InitiatorAlias', 'a host', None, None, 'a host'),
    ],
)
def test_answers(name, offered, own, answered, value):
    assert answer(name, offered, {name: own} if own is not None else None) == (answered, value)


@pytest.mark.clause('RFC 7143 6.2.2')
@pytest.mark.parametrize(
    'name, offered',
    [
        ('MaxBurstLength', '511'),
        ('MaxBurstLength', '16777216'),
        ('MaxBurstLength', ''),
        ('MaxBurstLength', '-1'),
        ('MaxBurstLength', '1e6'),
        ('MaxBurstLength', '0x'),
        ('MaxBurstLength', '9' * 40),
        ('MaxConnections', '0'),
        ('MaxRecvDataSegmentLength', '0'),
        ('InitialR2T', 'yes'),
        ('ImmediateData', '1'),
        ('HeaderDigest', ''),
        ('HeaderDigest', 'CRC32C,,None'),
    ],
)
def test_values_out_of_range_are_rejected_and_change_nothing(name, offered):
    assert answer(name, offered) == ('Reject', None)


@pytest.mark.clause('RFC 7143 6.2')
@pytest.mark.parametrize(
    'name', ['X-com.example.key', 'X#key', 'NoSuchKey', 'maxburstlength', 'RDMAExtensions']
)
def test_unknown_keys_are_not_understood(name):
    assert answer(name, '1') == ('NotUnderstood', None)
    assert answer(name, 'NotUnderstood') == (None, None)  # no end to it otherwise


def test_answers_come_in_the_order_of_the_offers_and_nothing_is_added():
    offers = [
        ('FirstBurstLength', '65536'),
        ('X-a', '1'),
        ('InitiatorAlias', 'x'),
        ('MaxBurstLength', '4096'),
        ('ImmediateData', 'Yes'),
    ]
    negotiated = negotiate_keys(offers)
    assert [name for name, _ in negotiated.answers] == [
        'FirstBurstLength',
        'X-a',
        'MaxBurstLength',
        'ImmediateData',
    ]


@pytest.mark.clause('RFC 7143 13.14')
def test_first_burst_length_never_exceeds_max_burst_length():
    """Windows logs event 4 if it does."""
    for offers in (
        [('FirstBurstLength', '16776192'), ('MaxBurstLength', '4096')],
        [('MaxBurstLength', '4096'), ('FirstBurstLength', '65536')],
    ):
        assert dict(negotiate_keys(offers).answers) == {
            'FirstBurstLength': '4096',
            'MaxBurstLength': '4096',
        }
    assert answer('FirstBurstLength', '16776192', {'FirstBurstLength': 1048576}) == (
        '262144',
        # the default of the burst
        262144,
    )
    assert answer('FirstBurstLength', '65536', settled={'MaxBurstLength': 1024}) == ('1024', 1024)
    assert (
        keys.effective_values({'FirstBurstLength': 65536, 'MaxBurstLength': 1024})[
            'FirstBurstLength'
        ]
        == 1024
    )


# -- who, when, twice ------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 13')
@pytest.mark.parametrize(
    'name, offered, answered',
    [
        ('MaxConnections', '4', '1'),
        ('InitialR2T', 'No', 'No'),
        ('ImmediateData', 'Yes', 'Yes'),
        ('MaxBurstLength', '16776192', '1048576'),
        ('FirstBurstLength', '65536', '65536'),
        ('MaxOutstandingR2T', '16', '4'),
        ('DataPDUInOrder', 'Yes', 'Yes'),
        ('DataSequenceInOrder', 'No', 'Yes'),
        ('TaskReporting', 'RFC3720', 'RFC3720'),
        ('iSCSIProtocolLevel', '1', '1'),
    ],
)
def test_keys_without_a_meaning_in_discovery_are_answered_with_a_value_that_has_no_effect(
    name, offered, answered
):
    """A widely used Go initiator ends its discovery when a key is answered with Irrelevant."""
    assert answer(name, offered, session_type=DISCOVERY) == (answered, None)


@pytest.mark.clause('RFC 7143 13')
@pytest.mark.parametrize(
    'name, offered',
    [
        ('HeaderDigest', 'None'),
        ('MaxRecvDataSegmentLength', '65536'),
        ('DefaultTime2Wait', '0'),
        ('DefaultTime2Retain', '0'),
        ('ErrorRecoveryLevel', '0'),
    ],
)
def test_relevant_in_discovery(name, offered):
    """What Windows and Linux offer there."""
    assert answer(name, offered, session_type=DISCOVERY)[1] is not None


@pytest.mark.clause('RFC 7143 13')
@pytest.mark.parametrize(
    'name, offered, answered',
    [
        ('MaxBurstLength', '16776192', '65536'),
        ('MaxBurstLength', '65536', '65536'),
        ('MaxBurstLength', '512', 'Irrelevant'),  # the session goes on with 65536
        ('MaxBurstLength', 'many', 'Reject'),
        ('InitialR2T', 'No', 'No'),
        ('InitialR2T', 'Yes', 'Irrelevant'),
        ('DefaultTime2Wait', '0', '2'),
        ('TaskReporting', 'FastAbort,RFC3720', 'RFC3720'),
    ],
)
def test_on_a_further_connection_keys_of_the_session_are_answered_with_the_value_in_force(
    name, offered, answered
):
    values = {'MaxBurstLength': 65536, 'InitialR2T': False}
    assert answer(name, offered, in_force=values) == (answered, None)


@pytest.mark.clause('RFC 7143 13')
def test_keys_of_the_connection_are_negotiated_on_further_connections():
    assert answer('SessionType', 'Normal', in_force={}) == (None, None)
    assert answer('HeaderDigest', 'CRC32C', in_force={}) == ('CRC32C', 'CRC32C')
    assert answer('MaxRecvDataSegmentLength', '65536', in_force={}) == (None, 65536)


@pytest.mark.clause('RFC 7143 6.2', 'RFC 7143 13')
@pytest.mark.parametrize(
    'name, value, stage',
    [
        ('TargetAlias', 'x', OPERATIONAL),
        ('TargetPortalGroupTag', '1', SECURITY),
        ('TargetAddress', '10.0.0.1', FULL_FEATURE),
        ('MaxBurstLength', '65536', SECURITY),
        ('HeaderDigest', 'None', FULL_FEATURE),
        ('InitialR2T', 'No', FULL_FEATURE),
        ('SendTargets', 'All', OPERATIONAL),
        ('AuthMethod', 'None', OPERATIONAL),
        ('CHAP_A', '5', FULL_FEATURE),
        ('InitiatorName', 'iqn.2026-11.com.example:i', FULL_FEATURE),
        ('HeaderDigest', 'Reject', OPERATIONAL),
        ('MaxBurstLength', 'Irrelevant', OPERATIONAL),
        ('SessionType', 'Sometimes', OPERATIONAL),
        ('InitiatorAlias', 'x,' * 200, OPERATIONAL),
    ],
)
def test_keys_in_the_wrong_place_are_errors(name, value, stage):
    with pytest.raises(KeyMisused) as error:
        negotiate_keys([(name, value)], stage=stage)
    assert name in str(error.value)


@pytest.mark.parametrize(
    'name', ['TargetAlias', 'TargetPortalGroupTag', 'MaxRecvDataSegmentLength']
)
def test_an_initiator_may_answer_not_understood_to_a_declaration(name):
    assert answer(name, 'NotUnderstood') == (None, None)


@pytest.mark.clause('RFC 7143 6.2')
def test_nothing_is_negotiated_twice():
    with pytest.raises(KeyMisused):
        negotiate_keys([('ImmediateData', 'Yes'), ('ImmediateData', 'Yes')])
    with pytest.raises(KeyMisused):
        negotiate_keys([('X-a', '1'), ('X-a', '2')])
    with pytest.raises(KeyMisused):
        negotiate_keys([('ImmediateData', 'Yes')], settled={'ImmediateData': True})


def test_names_may_be_repeated_but_not_changed():
    settled = {'InitiatorName': 'iqn.2026-11.com.example:i', 'MaxRecvDataSegmentLength': 8192}
    assert (
        negotiate_keys([('InitiatorName', 'iqn.2026-11.com.example:i')], settled=settled).answers
        == []
    )
    assert negotiate_keys([('MaxRecvDataSegmentLength', '65536')], settled=settled).values == {
        'MaxRecvDataSegmentLength': 65536
    }
    with pytest.raises(KeyMisused):
        negotiate_keys([('InitiatorName', 'iqn.2026-11.com.example:other')], settled=settled)


@pytest.mark.clause('RFC 7143 6.4', 'RFC 7143 13.12')
def test_a_data_segment_length_may_be_declared_again_in_full_feature_phase():
    assert answer('MaxRecvDataSegmentLength', '4096', stage=FULL_FEATURE) == (None, 4096)
    assert answer('SendTargets', '', stage=FULL_FEATURE) == (None, '')


def test_the_result_has_every_operational_value_and_nothing_else():
    values = keys.effective_values(
        {'InitiatorName': 'x', 'MaxBurstLength': 1048576, 'HeaderDigest': 'CRC32C'}
    )
    assert values['MaxBurstLength'] == 1048576 and values['HeaderDigest'] == 'CRC32C'
    assert (
        values['FirstBurstLength'] == 65536
        and values['InitialR2T'] is True
        and values['ImmediateData'] is True
    )
    assert set(values) == set(keys.OURS)


def test_a_text_of_many_keys_is_processed_in_linear_time():
    """Quadratic work on 64 KiB of text would allow denial of service."""
    negotiated = negotiate_keys([('X%04d' % number, '') for number in range(9000)])
    assert len(negotiated.answers) == 9000
