"""SendTargets, and answers that take more than one PDU."""

import pytest

from targetd.iscsi import const, text
from targetd.iscsi.discovery import Portal, TextAnswer, send_targets
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.pdu import TextRequest

A = 'iqn.2026-11.com.example:a'
B = 'iqn.2026-11.com.example:b'
TARGETS = [(A, [Portal('10.0.0.1', 3260, 1), Portal('2001:db8::1', 3260, 2)]), (B, [])]


@pytest.mark.clause('RFC 7143 C', 'RFC 7143 13.8')
def test_send_targets_all_has_addresses_with_portal_group_tags():
    """Without the portal group tag the Windows service reports invalid SendTargets text."""
    assert text.render_text(send_targets('All', TARGETS)) == (
        b'TargetName=iqn.2026-11.com.example:a\0'
        b'TargetAddress=10.0.0.1:3260,1\0'
        b'TargetAddress=[2001:db8::1]:3260,2\0'
        b'TargetName=iqn.2026-11.com.example:b\0'
    )
    assert send_targets('All', []) == []


@pytest.mark.clause('RFC 7143 C')
def test_send_targets_with_a_name_or_an_empty_value():
    assert send_targets(B, TARGETS) == [('TargetName', B)]
    assert send_targets(B.upper(), TARGETS) == [('TargetName', B)]
    assert send_targets('iqn.2026-11.com.example:hidden', TARGETS) == []
    assert send_targets('', TARGETS, own_name=A)[0] == ('TargetName', A)
    assert len(send_targets('', TARGETS, own_name=A)) == 3
    assert send_targets(B, TARGETS, own_name=B) == [('TargetName', B)]
    assert send_targets(A, TARGETS, own_name=B) == []


@pytest.mark.clause('RFC 7143 C')
@pytest.mark.parametrize('value, own_name', [('All', A), ('', None)])
def test_each_form_is_allowed_only_in_its_session_type(value, own_name):
    with pytest.raises(PduRejected) as refusal:
        send_targets(value, TARGETS, own_name)
    assert refusal.value.reason == const.REJECT_PROTOCOL_ERROR


def test_a_short_answer_is_one_pdu():
    answer = TextAnswer(b'A=1\0', 8192, 5)
    response = answer.next_response(TextRequest(itt=9, lun=3, final=True))
    assert (response.itt, response.lun, response.ttt, response.data) == (
        9,
        3,
        const.RESERVED_TAG,
        b'A=1\0',
    )
    assert response.final and not response.continues and answer.is_finished


@pytest.mark.clause('RFC 7143 11.11')
def test_a_long_answer_continues_with_each_empty_request():
    data = text.render_text(send_targets('All', TARGETS * 20))
    answer = TextAnswer(data, 512, 0x77)
    response = answer.next_response(TextRequest(itt=9, final=True))
    got = response.data
    while not response.final:
        assert (
            response.continues
            and response.ttt == 0x77
            and len(response.data) == 512
            and not answer.is_finished
        )
        response = answer.continue_answer(TextRequest(itt=9, final=True, ttt=response.ttt))
        got += response.data
    assert response.ttt == const.RESERVED_TAG and not response.continues
    assert got == data


@pytest.mark.clause('RFC 7143 11.10')
@pytest.mark.parametrize(
    'request_pdu',
    [TextRequest(itt=9, ttt=0x78), TextRequest(itt=9, ttt=0x77, data=b'SendTargets=All\0')],
)
def test_only_an_empty_request_with_the_tag_continues_the_answer(request_pdu):
    answer = TextAnswer(b'x' * 600, 512, 0x77)
    answer.next_response(TextRequest(itt=9))
    with pytest.raises(PduRejected):
        answer.continue_answer(request_pdu)


def test_a_completed_answer_cannot_be_continued():
    answer = TextAnswer(b'', 512, 0x77)
    assert answer.next_response(TextRequest(itt=9)).data == b''
    with pytest.raises(PduRejected):
        answer.continue_answer(TextRequest(itt=9, ttt=0x77))
