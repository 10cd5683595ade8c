"""What hypothesis finds: no bytes make the pure rooms raise anything but their own refusals, and answers stay within bounds."""

import pytest

hypothesis = pytest.importorskip('hypothesis')

from hypothesis import given, settings, strategies as st          # noqa: E402

from targetd.iscsi import const, keys, names, pdu, text            # noqa: E402
from targetd.iscsi.errors import LoginFailure, PduRejected          # noqa: E402
from targetd.iscsi.login import Claim, LoginNegotiation, LoginPolicy, TargetPolicy, admit_everyone     # noqa: E402

DISK = 'iqn.2026-11.com.example:disk'

VALUES = st.one_of(st.sampled_from(['Yes', 'No', 'None', 'CRC32C,None', '512', '0x1000', 'Reject', 'Irrelevant', 'CHAP',
                                    'CHAP,None', '5',
                                    'iqn.2026-11.com.example:i', DISK, 'Normal', 'Discovery', '0x00', '']),
                   st.text(alphabet='abcXYZ019,.=~\xfc', max_size=12))
PAIRS = st.lists(st.tuples(st.sampled_from(list(keys.KEYS) + ['X-a', 'X-b']), VALUES), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_a_text_error(data):
    try:
        pairs = text.parse(data)
    except text.TextError:
        return
    assert text.parse(text.render(pairs)) == pairs


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=64))
def test_any_ahs_is_parsed_or_rejected(data):
    try:
        parsed = pdu.decode_ahs(data)
    except PduRejected:
        return
    assert pdu.decode_ahs(pdu.encode_ahs(*parsed)) == parsed


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40))
def test_folding_is_stable(name):
    assert names.fold(names.fold(name)) == names.fold(name)
    if names.flaw(name) is None:
        assert names.flaw(name, lenient=True) is None and names.flaw(names.fold(name)) is None


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.sampled_from('SOF'), st.sampled_from(['Normal', 'Discovery']), st.booleans())
def test_every_answer_is_to_an_offer_and_within_its_range(offers, stage, session_type, leading):
    offers = [pair for pair in offers if pair[0] not in keys.KEYS or keys.KEYS[pair[0]].result != keys.AUTHENTICATION]
    try:
        negotiated = keys.negotiate(offers, None, stage, session_type, leading)
    except keys.KeyMisused:
        return
    offered = [name for name, _ in offers]
    answered = [name for name, _ in negotiated.answers]
    assert answered == [name for name in offered if name in answered]
    for name, value in negotiated.values.items():
        if keys.KEYS[name].kind == keys.NUMBER:
            assert keys.KEYS[name].minimum <= value <= keys.KEYS[name].maximum


REQUESTS = st.lists(st.tuples(PAIRS, st.sampled_from([0x00, 0x40, 0x81, 0x83, 0x04, 0x44, 0x87])), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.booleans(), st.booleans())
def test_no_sequence_of_requests_claims_without_a_proof_where_accounts_are_set(requests, polite, accounts):
    target = TargetPolicy(DISK, 'x', 1, admit_everyone, [('erp', b'a-secret-nobody-guesses')] if accounts else [])
    negotiation = LoginNegotiation(LoginPolicy({DISK: target}, target), None, lambda count: b'\x01' * count)
    for number, (pairs, flags) in enumerate(requests):
        if polite and not number:
            pairs = [('InitiatorName', 'iqn.2026-11.com.example:i'), ('TargetName', DISK)] + [
                pair for pair in pairs if pair[0] not in ('InitiatorName', 'TargetName', 'SessionType')]
        request = pdu.LoginRequest(flags=flags, data=text.render(pairs))
        try:
            step = negotiation.receive(request)
        except LoginFailure as refusal:
            assert (refusal.status_class, refusal.status_detail) in const.LOGIN_STATUS_NAMES
            assert len(negotiation.failure_response(refusal).encode()) == 48
            return
        if isinstance(step, Claim):
            assert not accounts
            return
        assert all(len(response.data) <= 8192 and not response.tsih for response in step.pdus)
