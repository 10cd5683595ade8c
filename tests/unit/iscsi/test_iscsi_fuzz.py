"""Property tests with hypothesis: for any bytes the pure packages raise only their documented
exceptions, and the answers stay within their bounds."""

import zlib
from types import SimpleNamespace

import pytest

hypothesis = pytest.importorskip('hypothesis')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from targetd.iscsi import const, keys, names, pdu, text  # noqa: E402
from targetd.iscsi.errors import LoginFailure, PduRejected  # noqa: E402
from targetd.iscsi.framing import DIGEST_ERROR, Framer  # noqa: E402
from targetd.iscsi.login import LoginNegotiation  # noqa: E402
from targetd.iscsi.login_policy import LoginPolicy, TargetPolicy, refuse_no_initiator  # noqa: E402
from targetd.iscsi.login_result import SessionClaim  # noqa: E402
from targetd.iscsi.recovery import RecoveringTransfer  # noqa: E402
from targetd.iscsi.session import Session  # noqa: E402
from targetd.iscsi.transfer import Limits, Transfer  # noqa: E402

DISK = 'iqn.2026-11.com.example:disk'

VALUES = st.one_of(
    st.sampled_from(
        [
            'Yes',
            'No',
            'None',
            'CRC32C,None',
            '512',
            '0x1000',
            'Reject',
            'Irrelevant',
            'CHAP',
            'CHAP,None',
            '5',
            'iqn.2026-11.com.example:i',
            DISK,
            'Normal',
            'Discovery',
            '0x00',
            '',
        ]
    ),
    st.text(alphabet='abcXYZ019,.=~\xfc', max_size=12),
)
PAIRS = st.lists(st.tuples(st.sampled_from(list(keys.KEYS) + ['X-a', 'X-b']), VALUES), max_size=8)


@settings(max_examples=80)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_a_text_error(data):
    try:
        pairs = text.parse_text(data)
    except text.TextError:
        return
    assert text.parse_text(text.render_text(pairs)) == pairs


@settings(max_examples=80)
@given(st.binary(max_size=64))
def test_any_ahs_is_parsed_or_rejected(data):
    try:
        parsed = pdu.decode_ahs(data)
    except PduRejected:
        return
    assert pdu.decode_ahs(pdu.encode_ahs(*parsed)) == parsed


@settings(max_examples=80)
@given(st.text(max_size=40))
def test_folding_a_folded_name_changes_nothing(name):
    assert names.fold(names.fold(name)) == names.fold(name)
    if names.name_error(name) is None:
        assert (
            names.name_error(name, lenient=True) is None
            and names.name_error(names.fold(name)) is None
        )


@settings(max_examples=100)
@given(PAIRS, st.sampled_from('SOF'), st.sampled_from(['Normal', 'Discovery']), st.booleans())
def test_every_answer_is_to_an_offer_and_within_its_range(offers, stage, session_type, leading):
    offers = [
        pair
        for pair in offers
        if pair[0] not in keys.KEYS or keys.KEYS[pair[0]].result != keys.AUTHENTICATION
    ]
    try:
        in_force = None if leading else keys.DEFAULTS
        negotiated = keys.negotiate_keys(offers, None, stage, session_type, in_force)
    except keys.KeyMisused:
        return
    offered = [name for name, _ in offers]
    answered = [name for name, _ in negotiated.answers]
    assert answered == [name for name in offered if name in answered]
    for name, value in negotiated.values.items():
        if keys.KEYS[name].kind == keys.NUMBER:
            assert keys.KEYS[name].minimum <= value <= keys.KEYS[name].maximum


REQUESTS = st.lists(
    st.tuples(PAIRS, st.sampled_from([0x00, 0x40, 0x81, 0x83, 0x04, 0x44, 0x87])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100)
@given(REQUESTS, st.booleans(), st.booleans())
def test_no_sequence_of_requests_claims_a_session_without_authentication(
    requests, polite, accounts
):
    target = TargetPolicy(
        DISK, 'x', 1, refuse_no_initiator, [('erp', b'a-secret-nobody-guesses')] if accounts else []
    )
    negotiation = LoginNegotiation(
        LoginPolicy({DISK: target}, target), None, lambda count: b'\x01' * count
    )
    for number, (pairs, flags) in enumerate(requests):
        if polite and not number:
            pairs = [('InitiatorName', 'iqn.2026-11.com.example:i'), ('TargetName', DISK)] + [
                pair
                for pair in pairs
                if pair[0] not in ('InitiatorName', 'TargetName', 'SessionType')
            ]
        request = pdu.LoginRequest(flags=flags, data=text.render_text(pairs))
        try:
            step = negotiation.receive_request(request)
        except LoginFailure as refusal:
            assert (refusal.status_class, refusal.status_detail) in const.LOGIN_STATUS_NAMES
            assert len(negotiation.failure_response(refusal).encode()) == 48
            return
        if isinstance(step, SessionClaim):
            assert not accounts
            return
        assert all(len(response.data) <= 8192 and not response.tsih for response in step.pdus)


# -- framing and full feature ----------------------------------------------------------------------


def crc(data, value):
    return zlib.crc32(data, value)


@settings(max_examples=100)
@given(
    st.binary(max_size=400),
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 64, 8192]),
)
def test_any_bytes_are_pdus_or_a_refusal_however_they_are_divided(
    stream, cuts, header_digest, data_digest, declared
):
    """The same PDUs, or the same refusal after the same PDUs, in one piece and in many; none is
    longer than declared."""
    ends = []
    for pieces in ([len(stream) or 1], cuts):
        framer = Framer(declared, crc, header_digest, data_digest, batch_bytes=1024)
        found, position, number = [], 0, 0
        try:
            while position < len(stream):
                room = framer.receive_buffer()
                piece = stream[position : position + min(pieces[number % len(pieces)], len(room))]
                room[: len(piece)] = piece
                position, number = position + len(piece), number + 1
                for fields, ahs, data in framer.parse_received(len(piece)):
                    found.append(
                        (fields, ahs, data if data is None or data is DIGEST_ERROR else bytes(data))
                    )
                assert framer.partial is None  # nothing here is long enough to land
        except PduRejected as refusal:
            assert refusal.fatal
            found += [
                (fields, ahs, data if data is None or data is DIGEST_ERROR else bytes(data))
                for fields, ahs, data in refusal.before
            ] + [refusal.why]
        ends.append(found)
        assert all(
            each[2] in (None, DIGEST_ERROR) or len(each[2]) <= declared
            for each in found
            if isinstance(each, tuple)
        )
    assert ends[0] == ends[1]


@settings(max_examples=100)
@given(st.binary(min_size=48, max_size=48), st.binary(max_size=40))
def test_any_header_is_a_pdu_that_encodes_to_itself_or_a_refusal(head, data):
    head = head[:4] + len(data).to_bytes(4, 'big') + head[8:]
    try:
        request = pdu.decode(head, b'', data)
    except PduRejected:
        assert head[0] & const.OPCODE_MASK not in pdu.FROM_INITIATOR
        return
    again = pdu.decode(request.encode(), b'', data)
    assert (again.flags, again.immediate, again.data) == (request.flags, request.immediate, data)
    assert again.encode() == request.encode() and repr(request)


LIMITS = st.builds(
    Limits,
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([4, 16, 64]),
    st.integers(1, 3),
)
WRONG = st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, 50])
OUTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        WRONG,
        WRONG,
        st.sampled_from([0, 1, 4, 4, 8, 16, 40]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)


def carry_out(transfer, immediate, final, outs, most):
    """Feed a transfer with Data-Out, mostly as the R2Ts request it. most: bytes that one R2T may
    request."""
    due = {0xFFFFFFFF: [immediate, 0]}  # TTT -> offset and DataSN that come next

    def next_r2ts():
        for ttt, _, offset, length in transfer.next_r2ts(lambda: len(due)):
            assert 0 <= offset < offset + length <= most
            due[ttt] = [offset, 0]

    transfer.receive_immediate(b'i' * immediate or None, final)
    if not transfer.awaits_unsolicited:
        del due[0xFFFFFFFF]
        due[0] = [0, 0]  # a tag that was never given
    next_r2ts()
    for tag, wrong_offset, wrong_number, length, ends, is_lost in outs:
        ttt = sorted(due)[-1 - tag % len(due)]
        offset, data_sn = due[ttt]
        if is_lost and isinstance(transfer, RecoveringTransfer):
            transfer.data_out_lost(ttt, ends)
        else:
            transfer.receive_data_out(
                ttt,
                max(0, offset + wrong_offset),
                max(0, data_sn + wrong_number),
                b'o' * length or None,
                ends,
            )
        due[ttt] = [offset + length, data_sn + 1]
        next_r2ts()


@settings(max_examples=100)
@given(
    st.sampled_from([Transfer, RecoveringTransfer]),
    LIMITS,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 12),
    st.booleans(),
    OUTS,
)
def test_any_data_out_is_accepted_within_its_range_or_refused(
    kind, limits, wanted, edtl, immediate, final, outs
):
    """Nothing is written behind the buffer, R2Ts stay within the transfer, and what counts as
    complete has every byte."""
    wanted = min(wanted, edtl)
    store = bytearray(b'.' * (wanted + 8))
    transfer = kind(1, wanted, edtl, limits, memoryview(store)[:wanted])
    try:
        carry_out(transfer, immediate, final, outs, max(wanted, min(limits.first_burst, edtl)))
    except PduRejected:
        pass
    else:
        assert not transfer.is_complete or b'.' not in store[:wanted]
    assert store[wanted:] == b'.' * 8


@settings(max_examples=100)
@given(st.sampled_from([1, 10, 0xFFFFFFF0]), st.lists(st.integers(-12, 20), max_size=60))
def test_commands_are_accepted_once_and_in_order_for_any_arrival(start, arrivals):
    values = {
        'InitialR2T': True,
        'ImmediateData': True,
        'FirstBurstLength': 1,
        'MaxBurstLength': 1,
        'MaxOutstandingR2T': 1,
    }
    session = Session(
        SimpleNamespace(
            initiator_name='iqn.i',
            initiator_alias='',
            isid='0' * 12,
            tsih=1,
            target_name='iqn.t',
            portal_group_tag=1,
            account=None,
            session_type='Normal',
            values=values,
            cmd_sn=start,
        ),
        8,
    )
    taken = []
    for each in arrivals:
        number = start + each & 0xFFFFFFFF
        while number is not None:
            number = (
                (taken.append(number) or session.next_held())
                if session.accept_command_number(number, number)
                else None
            )
        assert len(session.held) < 8
    assert taken == [start + at & 0xFFFFFFFF for at in range(len(taken))]
    reachable = {each for each in arrivals if 0 <= each < 8}
    assert len(taken) == next(at for at in range(9) if at not in reachable)


@settings(max_examples=80)
@given(st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=8))
def test_text_over_many_requests_is_bounded_and_parsed_or_refused(parts):
    collector = text.TextCollector(limit=128)
    for data, continues in parts:
        try:
            whole = collector.add_piece(data, continues)
            assert (whole is None) == continues and (whole is None or len(whole) <= 128)
            assert whole is None or isinstance(text.parse_text(whole), list)
        except text.TextError:
            return
