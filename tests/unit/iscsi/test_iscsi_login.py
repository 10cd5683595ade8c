"""Login negotiation: the answers to initiators of every kind, and the status of each failure."""

import hashlib

import pytest

from targetd.iscsi import const, keys, text
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.login import LoginNegotiation
from targetd.iscsi.login_policy import LoginPolicy, TargetPolicy, refuse_no_initiator
from targetd.iscsi.login_result import LoginReply, Redirected, SessionClaim, joined_session_values
from targetd.iscsi.login_states import STATES, TRANSITIONS
from targetd.iscsi.pdu import LoginRequest, NopOut

DISK = 'iqn.2026-11.com.example:disk'
INITIATOR = 'iqn.1991-05.com.microsoft:host'
ISID = bytes.fromhex('400001370001')
SECRET = b'secret-of-12-to-16'

FIRST = [('InitiatorName', INITIATOR), ('SessionType', 'Normal'), ('TargetName', DISK)]
NONE = FIRST + [('AuthMethod', 'None')]
CHAP = FIRST + [('AuthMethod', 'CHAP')]


def policy(discovery=None, window=128, more=(), **target):
    """One target, open to everyone unless the test says otherwise."""
    for name, value in dict(
        name=DISK, alias='ERP', portal_group_tag=3, refuse=refuse_no_initiator
    ).items():
        target.setdefault(name, value)
    return LoginPolicy(
        {DISK: TargetPolicy(**target)},
        discovery or TargetPolicy(refuse=refuse_no_initiator),
        window,
        *more,
    )


class Initiator(object):
    """Sends requests to a negotiation and keeps the responses."""

    def __init__(self, rules=None, tsih=0, session_values=None, **fields):
        self.negotiation = LoginNegotiation(
            rules or policy(), None, lambda count: b'\x07' * count, session_values
        )
        self.fields = dict(
            dict(immediate=True, isid=ISID, tsih=tsih, itt=1, cid=1, cmd_sn=5, exp_stat_sn=100),
            **fields,
        )
        self.failure = None

    def send(self, pairs=(), csg=0, nsg=None, **fields):
        """The step. pairs: text pairs or bytes; nsg: sets T."""
        data = pairs if isinstance(pairs, bytes) else text.render_text(pairs)
        request = LoginRequest(
            csg=csg, nsg=nsg or 0, transit=nsg is not None, data=data, **dict(self.fields, **fields)
        )
        step = self.negotiation.receive_request(request)
        self.fields['exp_stat_sn'] = self.fields['exp_stat_sn'] + 1 & 0xFFFFFFFF
        return step

    def ask(self, *arguments, **more):
        """(pairs of the one response, the response)."""
        step = self.send(*arguments, **more)
        assert isinstance(step, LoginReply) and len(step.pdus) == 1
        return text.parse_text(step.pdus[0].data), step.pdus[0]

    def fails(self, *arguments, **more):
        """(class, detail) of the failure, which the response carries too."""
        with pytest.raises(LoginFailure) as error:
            self.send(*arguments, **more)
        self.failure = error.value
        response = self.negotiation.failure_response(self.failure)
        assert response.status == (self.failure.status_class, self.failure.status_detail)
        assert (
            not response.transit
            and self.negotiation.result is None
            and self.negotiation.state == 'failed'
        )
        return response.status

    def authenticate(self, secret=SECRET):
        """The pairs that answer the challenge."""
        self.ask(CHAP)
        sent, _ = self.ask([('CHAP_A', '5')])
        sent = dict(sent)
        proof = hashlib.md5(
            bytes([int(sent['CHAP_I'])]) + secret + bytes.fromhex(sent['CHAP_C'][2:])
        ).hexdigest()
        return [('CHAP_N', 'erp'), ('CHAP_R', '0x' + proof)]


def logged_in(initiator, pairs=(), first=NONE, tsih=0x99):
    """The result of a plain login."""
    initiator.ask(first, 0, 1)
    step = initiator.send(pairs, 1, 3)
    assert isinstance(step, SessionClaim)
    initiator.negotiation.claim_granted(tsih)
    return initiator.negotiation.result


# -- the good ways ---------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 6.3')
def test_two_stages_as_windows_does():
    initiator = Initiator()
    pairs, response = initiator.ask(NONE, 0, 1)
    assert pairs == [('TargetPortalGroupTag', '3'), ('TargetAlias', 'ERP'), ('AuthMethod', 'None')]
    assert (
        response.flags == 0x81
        and response.tsih == 0
        and response.isid == ISID
        and response.itt == 1
    )
    assert (response.stat_sn, response.exp_cmd_sn, response.max_cmd_sn) == (100, 5, 132)
    assert (initiator.negotiation.initiator_name, initiator.negotiation.target_name) == (
        INITIATOR,
        DISK,
    )
    step = initiator.send(
        [
            ('MaxRecvDataSegmentLength', '65536'),
            ('HeaderDigest', 'None,CRC32C'),
            ('ErrorRecoveryLevel', '2'),
        ],
        1,
        3,
    )
    claim = step.claim
    assert (claim.initiator_name, claim.target_name, claim.isid, claim.tsih, claim.cid) == (
        INITIATOR,
        DISK,
        '400001370001',
        0,
        1,
    )
    assert (
        claim.portal_group_tag == 3
        and claim.values['MaxRecvDataSegmentLength'] == 65536
        and claim.stat_sn is None
    )
    assert initiator.negotiation.result is None
    reply = initiator.negotiation.claim_granted(0x1234)
    final = reply.pdus[0]
    assert (
        final.flags == 0x87
        and final.tsih == 0x1234
        and final.stat_sn == 101
        and final.status == const.SUCCESS
    )
    assert text.parse_text(final.data) == [
        ('HeaderDigest', 'None'),
        ('ErrorRecoveryLevel', '0'),
        ('MaxRecvDataSegmentLength', '262144'),
    ]
    result = initiator.negotiation.result
    assert (result.tsih, result.stat_sn, result.cmd_sn, result.session_type, result.account) == (
        0x1234,
        102,
        5,
        'Normal',
        None,
    )
    assert result.declared_data_segment == 262144
    assert result.values['FirstBurstLength'] == 65536 and result.values['HeaderDigest'] == 'None'


@pytest.mark.clause('RFC 7143 6.3.1')
def test_one_pdu_from_stage_1_as_linux_does():
    initiator = Initiator()
    step = initiator.send(
        FIRST
        + [
            ('InitiatorAlias', 'host'),
            ('IFMarker', 'No'),
            ('OFMarker', 'No'),
            ('MaxOutstandingR2T', '1'),
        ],
        1,
        3,
    )
    assert step.claim.initiator_alias == 'host'
    final = initiator.negotiation.claim_granted(1).pdus[0]
    assert text.parse_text(final.data) == [
        ('TargetPortalGroupTag', '3'),
        ('TargetAlias', 'ERP'),
        ('IFMarker', 'No'),
        ('OFMarker', 'No'),
        ('MaxOutstandingR2T', '1'),
        ('MaxRecvDataSegmentLength', '262144'),
    ]


@pytest.mark.clause('RFC 7143 6.3.2')
def test_from_security_straight_to_full_feature():
    """Nothing is negotiated then, so the target declares no values either."""
    initiator = Initiator()
    assert isinstance(initiator.send(NONE, 0, 3), SessionClaim)
    final = initiator.negotiation.claim_granted(1).pdus[0]
    assert final.flags == 0x83 and ('AuthMethod', 'None') in text.parse_text(final.data)
    assert initiator.negotiation.result.declared_data_segment == 8192
    assert initiator.negotiation.result.values == keys.effective_values({})


@pytest.mark.clause('RFC 7143 6.3.2', 'RFC 7143 12.1')
def test_a_security_stage_without_authmethod():
    pairs, response = Initiator().ask(FIRST, 0, 1)
    assert response.transit and [name for name, _ in pairs] == [
        'TargetPortalGroupTag',
        'TargetAlias',
    ]


@pytest.mark.clause('RFC 7143 6.3')
def test_exchanges_without_the_t_bit():
    initiator = Initiator()
    pairs, response = initiator.ask(FIRST, 0)
    assert not response.transit and ('TargetPortalGroupTag', '3') in pairs
    assert initiator.ask([('AuthMethod', 'None')], 0)[0] == [('AuthMethod', 'None')]
    assert initiator.ask([], 0)[0] == []
    pairs, response = initiator.ask([('InitiatorAlias', 'x')], 0, 1)
    assert pairs == [] and response.flags == 0x81
    assert initiator.ask([('ImmediateData', 'Yes')], 1)[0] == [
        ('ImmediateData', 'Yes'),
        ('MaxRecvDataSegmentLength', '262144'),
    ]
    assert initiator.ask([('InitialR2T', 'No')], 1)[0] == [('InitialR2T', 'No')]
    step = initiator.send([], 1, 3)
    assert step.claim.values['ImmediateData'] is True and step.claim.initiator_alias == 'x'
    final = initiator.negotiation.claim_granted(1).pdus[0]
    assert final.data == b'' and final.stat_sn == 106


def test_discovery():
    initiator = Initiator()
    first = [('InitiatorName', INITIATOR), ('SessionType', 'Discovery'), ('AuthMethod', 'None')]
    assert initiator.ask(first, 0, 1)[0] == [('AuthMethod', 'None')]
    offers = [
        ('HeaderDigest', 'None,CRC32C'),
        ('MaxRecvDataSegmentLength', '65536'),
        ('DefaultTime2Wait', '0'),
        ('MaxBurstLength', '512'),
    ]
    claim = initiator.send(offers, 1, 3).claim
    assert (claim.session_type, claim.target_name, claim.portal_group_tag) == (
        'Discovery',
        None,
        None,
    )
    assert (
        dict(text.parse_text(initiator.negotiation.claim_granted(1).pdus[0].data))['MaxBurstLength']
        == '512'
    )


def test_names_are_folded_and_the_spelling_of_the_configuration_is_kept():
    result = logged_in(
        Initiator(), first=[('InitiatorName', INITIATOR.upper()), ('TargetName', DISK.upper())]
    )
    assert (result.initiator_name, result.target_name, result.session_type) == (
        INITIATOR,
        DISK,
        'Normal',
    )


def test_targets_may_be_a_function():
    rules = LoginPolicy(lambda name: TargetPolicy(name, '', 1, refuse_no_initiator), None)
    assert logged_in(Initiator(rules)).target_name == DISK


def test_numbers_of_the_first_request_are_accepted_unchanged():
    """The command window is open across the wrap of the numbers (Windows' event 3)."""
    initiator = Initiator(policy(window=16), cmd_sn=0xFFFFFFFE, exp_stat_sn=0xFFFFFFFF)
    _, response = initiator.ask(NONE, 0, 1)
    assert (response.stat_sn, response.exp_cmd_sn, response.max_cmd_sn) == (
        0xFFFFFFFF,
        0xFFFFFFFE,
        13,
    )
    _, response = initiator.ask([], 1)
    assert response.stat_sn == 0


def test_the_configured_values_are_answered():
    rules = policy(
        alias='',
        keys={
            'ImmediateData': False,
            'MaxRecvDataSegmentLength': 65536,
            'HeaderDigest': ('CRC32C',),
        },
    )
    initiator = Initiator(rules)
    assert initiator.ask(NONE, 0, 1)[0] == [('TargetPortalGroupTag', '3'), ('AuthMethod', 'None')]
    initiator.send([('ImmediateData', 'Yes'), ('HeaderDigest', 'None,CRC32C')], 1, 3)
    final = initiator.negotiation.claim_granted(1).pdus[0]
    assert text.parse_text(final.data) == [
        ('ImmediateData', 'No'),
        ('HeaderDigest', 'CRC32C'),
        ('MaxRecvDataSegmentLength', '65536'),
    ]
    assert initiator.negotiation.result.values['ImmediateData'] is False


# -- CHAP ------------------------------------------------------------------------------------------


def test_chap():
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    pairs, response = initiator.ask(FIRST + [('AuthMethod', 'None,CHAP')], 0, 1)
    assert ('AuthMethod', 'CHAP') in pairs and not response.transit
    sent = dict(initiator.ask([('CHAP_A', '5')], 0, 1)[0])
    assert sent['CHAP_A'] == '5' and not response.transit
    proof = hashlib.md5(
        bytes([int(sent['CHAP_I'])]) + SECRET + bytes.fromhex(sent['CHAP_C'][2:])
    ).hexdigest()
    pairs, response = initiator.ask([('CHAP_N', 'erp'), ('CHAP_R', '0x' + proof)], 0, 1)
    assert pairs == [] and response.flags == 0x81
    assert initiator.send([], 1, 3).claim.account == 'erp'


def test_mutual_chap():
    initiator = Initiator(policy(accounts=[('erp', SECRET)], outgoing=('back', b'another-secret')))
    pairs = initiator.authenticate() + [('CHAP_I', '9'), ('CHAP_C', '0x01')]
    answer, response = initiator.ask(pairs, 0, 1)
    assert response.transit
    assert answer == [
        ('CHAP_N', 'back'),
        ('CHAP_R', '0x' + hashlib.md5(b'\x09another-secret\x01').hexdigest()),
    ]


def test_chap_without_the_t_bit_continues_later():
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    _, response = initiator.ask(initiator.authenticate())
    assert not response.transit
    assert initiator.ask([], 0, 1)[1].transit


@pytest.mark.clause('RFC 7143 12.1')
@pytest.mark.parametrize('methods', ['None', 'KRB5,None', 'SRP', 'chap'])
def test_authentication_is_not_optional(methods):
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    assert initiator.fails(FIRST + [('AuthMethod', methods)], 0, 1) == const.AUTHENTICATION_FAILURE


@pytest.mark.clause('RFC 7143 6.3.2')
def test_authentication_cannot_be_skipped():
    assert (
        Initiator(policy(accounts=[('erp', SECRET)])).fails(FIRST, 0, 1)
        == const.AUTHENTICATION_FAILURE
    )
    assert (
        Initiator(policy(accounts=[('erp', SECRET)])).fails(FIRST, 1, 3)
        == const.AUTHENTICATION_FAILURE
    )
    discovering = policy(TargetPolicy(refuse=refuse_no_initiator, accounts=[('finder', SECRET)]))
    assert (
        Initiator(discovering).fails(
            [('InitiatorName', INITIATOR), ('SessionType', 'Discovery')], 1, 3
        )
        == const.AUTHENTICATION_FAILURE
    )


@pytest.mark.clause('RFC 7143 6.3.2')
def test_a_silent_initiator_never_gets_past_security():
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    initiator.ask(FIRST, 0)
    initiator.ask([], 0)
    assert initiator.fails([], 0, 3) == const.AUTHENTICATION_FAILURE


def test_chap_is_refused_without_accounts():
    """Windows' event 38."""
    assert Initiator().fails(CHAP, 0) == const.AUTHENTICATION_FAILURE


@pytest.mark.clause('RFC 7143 12.1.3', 'RFC 7143 11.13.5')
def test_a_wrong_secret():
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    assert initiator.fails(initiator.authenticate(b'wrong'), 0, 1) == const.AUTHENTICATION_FAILURE
    assert initiator.failure.why and 'erp' in initiator.failure.why


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize(
    'pairs, status',
    [
        ([], const.MISSING_PARAMETER),
        ([('CHAP_A', '42')], const.AUTHENTICATION_FAILURE),
        ([('CHAP_N', 'erp'), ('CHAP_R', '0x00')], const.INITIATOR_ERROR),
        ([('AuthMethod', 'None')], const.INITIATOR_ERROR),
        ([('CHAP_A', '5'), ('CHAP_A', '5')], const.INITIATOR_ERROR),
        ([('CHAP_A', 'Reject')], const.INITIATOR_ERROR),
        ([('CHAP_A', '5'), ('MaxBurstLength', '512')], const.INITIATOR_ERROR),
    ],
)
def test_chap_steps_must_be_in_order(pairs, status):
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    initiator.ask(CHAP)
    assert initiator.fails(pairs, 0, 1) == status


@pytest.mark.parametrize(
    'change, status',
    [
        (lambda pairs: pairs[:1], const.MISSING_PARAMETER),
        (lambda pairs: pairs[1:], const.MISSING_PARAMETER),
        (lambda pairs: pairs + [('CHAP_I', '1')], const.MISSING_PARAMETER),
        (lambda pairs: pairs + [('CHAP_C', '0x01')], const.MISSING_PARAMETER),
        (lambda pairs: pairs[:1] + [('CHAP_R', 'garbage')], const.INITIATOR_ERROR),
        # no outgoing account
        (lambda pairs: pairs + [('CHAP_I', '1'), ('CHAP_C', '0x01')], const.AUTHENTICATION_FAILURE),
    ],
)
def test_answers_to_the_challenge(change, status):
    initiator = Initiator(policy(accounts=[('erp', SECRET)]))
    assert initiator.fails(change(initiator.authenticate()), 0, 1) == status


@pytest.mark.clause('RFC 7143 6.3.2')
def test_a_second_authentication_is_refused():
    initiator = Initiator()
    initiator.ask(NONE)
    assert initiator.fails([('AuthMethod', 'None')]) == const.INITIATOR_ERROR


# -- who may, and to what --------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 6.3.1', 'RFC 7143 11.12.10')
@pytest.mark.parametrize(
    'pairs, status',
    [
        ([], const.MISSING_PARAMETER),
        (FIRST[1:], const.MISSING_PARAMETER),
        (FIRST[:2], const.MISSING_PARAMETER),
        ([('InitiatorName', 'host')] + FIRST[1:], const.INITIATOR_ERROR),
        (
            [('InitiatorName', INITIATOR), ('SessionType', 'Sometimes'), ('TargetName', DISK)],
            const.SESSION_TYPE_NOT_SUPPORTED,
        ),
        (FIRST[:2] + [('TargetName', DISK + 'x')], const.NOT_FOUND),
        (b'InitiatorName', const.INITIATOR_ERROR),
        (FIRST + FIRST[:1], const.INITIATOR_ERROR),
        (FIRST + [('SendTargets', 'All')], const.INITIATOR_ERROR),
        (FIRST + [('TargetAlias', 'x')], const.INITIATOR_ERROR),
    ],
)
@pytest.mark.parametrize('csg', [0, 1])
def test_first_requests_with_invalid_text_fail(pairs, status, csg):
    assert Initiator().fails(pairs, csg) == status


@pytest.mark.parametrize(
    'target, status',
    [
        (dict(portal_group_tag=None), const.NOT_FOUND),
        (dict(refuse=lambda name: 'no rule admits ' + name), const.AUTHORIZATION_FAILURE),
        (dict(not_ready='its disk is missing'), const.SERVICE_UNAVAILABLE),
        (dict(redirect=(False, '10.0.0.2:3260')), const.MOVED_TEMPORARILY),
        (dict(redirect=(True, '[2001:db8::2]:3260')), const.MOVED_PERMANENTLY),
        (
            dict(refuse=lambda name: 'no', redirect=(True, '10.0.0.2:3260')),
            const.AUTHORIZATION_FAILURE,
        ),
    ],
)
def test_unknown_and_unavailable_targets(target, status):
    assert Initiator(policy(**target)).fails(NONE, 0, 1) == status


def test_the_reason_of_a_refusal_names_the_rule():
    initiator = Initiator(
        policy(refuse=lambda name: 'initiator-name of the target does not admit ' + name)
    )
    initiator.fails(NONE, 0, 1)
    assert initiator.failure.why == 'initiator-name of the target does not admit ' + INITIATOR


def test_a_policy_without_a_rule_admits_no_initiator():
    rules = LoginPolicy({DISK: TargetPolicy(DISK, '', 1)}, TargetPolicy())
    assert Initiator(rules).fails(NONE, 0, 1) == const.AUTHORIZATION_FAILURE
    assert (
        Initiator(rules).fails([('InitiatorName', INITIATOR), ('SessionType', 'Discovery')], 0, 1)
        == const.AUTHORIZATION_FAILURE
    )


@pytest.mark.clause('RFC 7143 11.13.5')
def test_a_redirect_has_the_target_address():
    initiator = Initiator(policy(redirect=(False, '10.0.0.2:3260')))
    initiator.fails(NONE, 0, 1)
    response = initiator.negotiation.failure_response(initiator.failure)
    assert text.parse_text(response.data) == [('TargetAddress', '10.0.0.2:3260')]


def test_discovery_is_refused_if_it_is_disabled():
    rules = LoginPolicy({}, None)
    assert (
        Initiator(rules).fails([('InitiatorName', INITIATOR), ('SessionType', 'Discovery')], 0, 1)
        == const.SESSION_TYPE_NOT_SUPPORTED
    )


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.12')
@pytest.mark.parametrize(
    'fields, status',
    [
        (dict(version_min=1), const.UNSUPPORTED_VERSION),
        (dict(flags=0xC1), const.INITIATOR_ERROR),
        (dict(flags=0x08), const.INITIATOR_ERROR),
        (dict(flags=0x0C), const.INITIATOR_ERROR),
        (dict(flags=0x80), const.INITIATOR_ERROR),
        (dict(flags=0x82), const.INITIATOR_ERROR),
        (dict(flags=0x84), const.INITIATOR_ERROR),
        (dict(flags=0x85), const.INITIATOR_ERROR),
        (dict(flags=0x86), const.INITIATOR_ERROR),
    ],
)
def test_first_requests_with_invalid_headers_fail(fields, status):
    assert Initiator().fails(NONE, **fields) == status


@pytest.mark.clause('RFC 7143 11.12.4')
def test_a_version_range_that_includes_ours_is_accepted():
    _, response = Initiator().ask(NONE, 0, 1, version_max=5)
    assert response.version_max == response.version_active == 0


@pytest.mark.clause('RFC 7143 11.12')
@pytest.mark.parametrize('field, value', [('isid', bytes(6)), ('cid', 2), ('itt', 2), ('tsih', 1)])
def test_fields_that_must_not_change_during_login(field, value):
    initiator = Initiator()
    initiator.ask(NONE, 0, 1)
    assert initiator.fails([], 1, 3, **{field: value}) == const.INITIATOR_ERROR


@pytest.mark.clause('RFC 7143 6.3')
@pytest.mark.parametrize('csg', [0, 3])
def test_a_finished_stage_cannot_be_entered_again(csg):
    initiator = Initiator()
    initiator.ask(NONE, 0, 1)
    assert initiator.fails([], csg) == const.INITIATOR_ERROR


@pytest.mark.clause('RFC 7143 6.2')
def test_the_stage_does_not_change_before_the_first_text_is_complete():
    initiator = Initiator()
    initiator.ask(b'InitiatorName=', 0, continues=True)
    assert initiator.fails(b'x\0', 1) == const.INITIATOR_ERROR


@pytest.mark.clause('RFC 7143 6.3')
def test_only_login_requests_are_accepted_during_login():
    negotiation = LoginNegotiation(policy(), None, None)
    with pytest.raises(LoginFailure) as refusal:
        negotiation.receive_request(NopOut())
    assert (refusal.value.status_class, refusal.value.status_detail) == const.INVALID_DURING_LOGIN
    response = negotiation.failure_response(refusal.value)
    assert response.status == const.INVALID_DURING_LOGIN and response.stat_sn == 0


def test_requests_are_refused_during_the_claim_and_after_the_end():
    initiator = Initiator()
    initiator.send(FIRST, 1, 3)
    assert initiator.fails([], 1, 3) == const.INVALID_DURING_LOGIN
    assert initiator.fails([], 1, 3) == const.INVALID_DURING_LOGIN
    other = Initiator()
    logged_in(other)
    with pytest.raises(LoginFailure):
        other.send([], 1, 3)


def test_a_refusal_of_the_master_ends_the_login():
    initiator = Initiator()
    initiator.send(FIRST, 1, 3)
    response = initiator.negotiation.claim_refused(
        LoginFailure(3, 2, 'the target has its 4 sessions')
    ).pdus[0]
    assert response.status == const.OUT_OF_RESOURCES and not response.transit
    assert response.data == b'' and response.stat_sn == 100
    assert initiator.negotiation.result is None and initiator.negotiation.state == 'failed'


# -- long texts ------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 6.2')
def test_a_text_may_be_divided_over_several_requests():
    initiator = Initiator()
    data = text.render_text(NONE)
    for start in range(0, len(data), 10):
        last = start + 10 >= len(data)
        pairs, response = initiator.ask(
            data[start : start + 10], 0, 1 if last else None, continues=not last
        )
        if not last:
            assert pairs == [] and not response.flags & 0xC0
    assert pairs[0] == ('TargetPortalGroupTag', '3') and response.transit


def long_answer(initiator, count=500):
    """Keys whose NotUnderstood takes more than two login PDUs of 8192 bytes; the pieces and the
    last response."""
    pairs = [('X-%s-%04d' % ('k' * 20, number), '1') for number in range(count)]
    data = text.render_text(pairs)
    initiator.ask(NONE, 0, 1)
    for start in range(0, len(data) - 4096, 4096):
        initiator.ask(data[start : start + 4096], 1, continues=True)
    return pairs, data[start + 4096 :]


@pytest.mark.clause('RFC 7143 6.2')
def test_a_long_answer_is_divided_over_several_responses():
    initiator = Initiator()
    offers, rest = long_answer(initiator)
    got = b''
    step = initiator.send(rest, 1, 3)
    while isinstance(step, LoginReply):
        response = step.pdus[0]
        assert response.continues and not response.transit and len(response.data) == 8192
        got += response.data
        step = initiator.send(b'', 1, 3)
    final = initiator.negotiation.claim_granted(1).pdus[0]
    assert final.transit and not final.continues
    answers = text.parse_text(got + final.data)
    assert answers == [(name, 'NotUnderstood') for name, _ in offers] + [
        ('MaxRecvDataSegmentLength', '262144')
    ]


@pytest.mark.clause('RFC 7143 6.2', 'RFC 7143 6.3')
def test_the_last_part_of_an_answer_waits_for_the_t_bit():
    initiator = Initiator()
    _, rest = long_answer(initiator)
    step = initiator.send(rest, 1, 3)
    while step.pdus[0].continues:
        step = initiator.send(b'', 1)
    assert not step.pdus[0].transit
    assert isinstance(initiator.send(b'', 1, 3), SessionClaim)


@pytest.mark.clause('RFC 7143 6.2')
@pytest.mark.parametrize('pairs, continues', [([('ImmediateData', 'Yes')], False), ([], True)])
def test_new_text_is_refused_before_the_answer_is_complete(pairs, continues):
    initiator = Initiator()
    _, rest = long_answer(initiator)
    initiator.send(rest, 1, 3)
    assert initiator.fails(pairs, 1, continues=continues) == const.INITIATOR_ERROR


@pytest.mark.clause('RFC 7143 6.2')
def test_limits_of_text_and_of_requests():
    initiator = Initiator(policy(more=(64, 1000)))
    initiator.ask(b'X-a=' + b'1' * 200, 0, continues=True)
    assert initiator.fails(b'1' * 800, 0, continues=True) == const.INITIATOR_ERROR
    initiator = Initiator(policy(more=(3,)))
    initiator.ask(FIRST, 0)
    initiator.ask([], 0)
    initiator.ask([], 0)
    assert initiator.fails([], 0, 1) == const.INITIATOR_ERROR


def test_the_request_s_buffer_may_be_used_again():
    """The data of a Framer is a view of a buffer that is used again for other bytes."""
    initiator = Initiator()
    buffer = bytearray(text.render_text(FIRST))
    initiator.negotiation.receive_request(
        LoginRequest(data=memoryview(buffer)[:20], continues=True, **initiator.fields)
    )
    rest = bytes(buffer[20:])
    buffer[:] = bytes(len(buffer))
    buffer.extend(b'x' * 100)  # raises BufferError while a view of it is kept
    pairs, _ = initiator.ask(rest, 0, 1)
    assert pairs[0] == ('TargetPortalGroupTag', '3')


# -- digests that are demanded ---------------------------------------------------------------------


@pytest.mark.parametrize('pairs', [[], [('HeaderDigest', 'None')], [('DataDigest', 'CRC32C')]])
def test_a_required_digest_must_be_negotiated(pairs):
    initiator = Initiator(policy(keys={'HeaderDigest': ('CRC32C',)}))
    initiator.ask(NONE, 0, 1)
    assert initiator.fails(pairs, 1, 3) == const.INITIATOR_ERROR
    assert 'HeaderDigest' in initiator.failure.why


# -- further connections ---------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 13')
def test_a_further_connection_changes_no_keys_of_the_session():
    initiator = Initiator(session_values={'MaxBurstLength': 4096}, tsih=0x55, cid=2, cmd_sn=200)
    pairs, response = initiator.ask(NONE, 0, 1)
    assert pairs == [('AuthMethod', 'None')]
    assert (response.tsih, response.exp_cmd_sn, response.max_cmd_sn) == (0x55, 72, 199)
    claim = initiator.send([('MaxBurstLength', '8192'), ('DataDigest', 'CRC32C')], 1, 3).claim
    assert (claim.tsih, claim.cid) == (0x55, 2)
    final = initiator.negotiation.last_response(0x55)
    assert text.parse_text(final.data)[:2] == [('MaxBurstLength', '4096'), ('DataDigest', 'CRC32C')]


@pytest.mark.clause('RFC 7143 4.3')
def test_discovery_has_one_connection():
    pairs = [('InitiatorName', INITIATOR), ('SessionType', 'Discovery')]
    assert Initiator(tsih=1).fails(pairs, 0, 1) == const.CANNOT_INCLUDE_IN_SESSION


@pytest.mark.clause('RFC 7143 11.13.5')
def test_joining_a_session_that_does_not_exist_fails():
    assert Initiator(tsih=0x7777).fails(NONE, 0, 1) == const.SESSION_DOES_NOT_EXIST
    assert Initiator(tsih=0x7777).fails(FIRST, 1, 3) == const.SESSION_DOES_NOT_EXIST


@pytest.mark.clause('RFC 7143 6.3.4')
def test_joining_keeps_the_values_of_the_session():
    leading = logged_in(
        Initiator(policy(keys={'MaxConnections': 4})),
        [('MaxConnections', '2'), ('MaxBurstLength', '4096')],
    )
    claim = logged_in(
        Initiator(tsih=0x99, cid=2, session_values={}),
        [('MaxRecvDataSegmentLength', '4096'), ('DataDigest', 'CRC32C')],
    )
    hostile = {'MaxRecvDataSegmentLength': 'x', 'MaxConnections': 9, 'X-unknown': 1}
    assert joined_session_values(hostile, leading, 1) == leading.values
    values = joined_session_values(claim.values, leading, 1)
    assert (values['MaxBurstLength'], values['MaxRecvDataSegmentLength'], values['DataDigest']) == (
        4096,
        4096,
        'CRC32C',
    )
    assert leading.values['DataDigest'] == 'None'
    with pytest.raises(LoginFailure) as refusal:
        joined_session_values(claim.values, leading, 2)
    assert (refusal.value.status_class, refusal.value.status_detail) == const.TOO_MANY_CONNECTIONS


# -- the machine -----------------------------------------------------------------------------------


def test_every_state_is_reached_and_can_fail():
    reached = {'start'}
    for _ in STATES:
        reached |= {after for (before, event), after in TRANSITIONS.items() if before in reached}
    assert reached == set(STATES)
    assert all(TRANSITIONS[state, 'failure'] == 'failed' for state in STATES)


@pytest.mark.clause('RFC 7143 9.2.1')
def test_no_path_bypasses_authentication():
    """Without the step that checks the proof, nothing leads from CHAP to the claim."""
    reached = {'chap-algorithm'}
    for _ in STATES:
        reached |= {
            after
            for (before, event), after in TRANSITIONS.items()
            if before in reached and event != 'proof'
        }
    assert 'claiming' not in reached and 'operational' not in reached


def test_redirected_is_a_login_failure():
    assert isinstance(Redirected(True, 'x'), LoginFailure)
