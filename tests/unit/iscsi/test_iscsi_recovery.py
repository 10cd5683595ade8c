"""RecoveringTransfer and SentReply: which data is requested again, and which PDUs can be sent again
(RFC 7143 7.9, 11.16)."""

import itertools

import pytest

from targetd.iscsi import pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.recovery import RecoveringTransfer, SentReply
from targetd.iscsi.transfer import NO_TAG, Limits


def transfer(wanted=16, initial_r2t=True, first_burst=8, max_burst=8, outstanding=1):
    one = RecoveringTransfer(
        1, wanted, wanted, Limits(initial_r2t, False, first_burst, max_burst, outstanding)
    )
    one.receive_immediate(None, initial_r2t)
    return one, itertools.count(100).__next__


DATA = bytes(range(1, 17))


def test_without_a_loss_it_behaves_as_a_transfer():
    one, tags = transfer()
    for offset in (0, 8):
        ((ttt, r2t_sn, at, length),) = one.next_r2ts(tags)
        assert (r2t_sn, at, length) == (offset // 8, offset, 8)
        one.receive_data_out(ttt, at, 0, DATA[at : at + 8], True)
    assert one.is_complete and bytes(one.buffer) == DATA


@pytest.mark.clause('RFC 7143 7.8', 'RFC 7143 11.8')
@pytest.mark.parametrize('lost', [(0,), (1,), (3,), (0, 3), (0, 1, 2, 3)])
def test_the_rest_of_a_sequence_is_requested_again_from_the_first_loss(lost):
    one, tags = transfer(wanted=8)
    ((ttt, _, _, _),) = one.next_r2ts(tags)
    for number in range(4):
        if number in lost:
            one.data_out_lost(ttt, number == 3)
        else:
            one.receive_data_out(
                ttt, number * 2, number, DATA[number * 2 : number * 2 + 2], number == 3
            )
    assert not one.is_complete
    ((again, r2t_sn, at, length),) = one.next_r2ts(tags)
    assert again != ttt and (r2t_sn, at, length) == (1, lost[0] * 2, 8 - lost[0] * 2)
    one.receive_data_out(again, at, 0, DATA[at:8], True)
    assert one.is_complete and bytes(one.buffer) == DATA[:8]


@pytest.mark.clause('RFC 7143 7.9')
def test_a_gap_in_data_sn_is_a_loss():
    one, tags = transfer(wanted=8)
    ((ttt, _, _, _),) = one.next_r2ts(tags)
    one.receive_data_out(ttt, 4, 1, DATA[4:8], True)
    assert one.next_r2ts(tags)[0][2:] == (0, 8)


@pytest.mark.clause('RFC 7143 7.8')
def test_lost_unsolicited_data_is_solicited():
    one, tags = transfer(initial_r2t=False)
    one.receive_data_out(NO_TAG, 0, 0, DATA[:4], False)
    one.data_out_lost(NO_TAG, True)
    assert [r2t[2:] for r2t in one.next_r2ts(tags)] == [(4, 8)]


def test_a_tag_that_is_not_outstanding_is_refused():
    one, _ = transfer()
    with pytest.raises(PduRejected):
        one.data_out_lost(5, True)
    with pytest.raises(PduRejected):
        one.receive_data_out(5, 0, 0, DATA[:8], True)


@pytest.mark.clause('RFC 7143 11.16')
def test_an_r2t_can_be_sent_again_until_it_is_answered():
    one, tags = transfer(outstanding=2)
    first, second = one.next_r2ts(tags)
    assert one.outstanding(0, 0) == [first, second] and one.outstanding(1, 1) == [second]
    one.receive_data_out(first[0], 0, 0, DATA[:8], True)
    assert one.outstanding(0, 0) == [second] and one.outstanding(0, 1) == []


@pytest.mark.clause('RFC 7143 7.2.2')
def test_outstanding_data_is_requested_on_the_new_connection_with_the_old_r2t_sn():
    one, tags = transfer(outstanding=2)
    one.next_r2ts(tags)
    one.receive_data_out(100, 0, 0, DATA[:4], False)
    one.reassign()
    assert [r2t[1:] for r2t in one.next_r2ts(tags)] == [(0, 4, 4), (1, 8, 8)]
    with pytest.raises(PduRejected):
        one.receive_data_out(101, 8, 0, DATA[8:], True)  # the old tag


def reply(count=4, size=8):
    pdus = []
    for number in range(count):
        one = pdu.DataIn(
            itt=7,
            data_sn=number,
            buffer_offset=number * size,
            data=DATA[:size],
            has_status=number == count - 1,
        )
        one.stat_sn = 50
        pdus.append((one.encode(), one.data))
    return SentReply(7, 50, pdus)


def sent(pdus):
    return [pdu.DataIn.decode(header).data_sn for header, _ in pdus]


@pytest.mark.clause('RFC 7143 11.16')
def test_data_in_is_selected_by_data_sn():
    one = reply()
    assert one.is_scsi_reply and one.size == 32
    assert sent(one.data_in_pdus(1, 2)) == [1, 2] and sent(one.data_in_pdus(2, 0)) == [2, 3]
    assert one.data_in_pdus(3, 2) == [] and one.data_in_pdus(4, 1) == []


@pytest.mark.clause('RFC 7143 11.16')
def test_acknowledged_data_is_released():
    one = reply()
    one.acknowledge_data(2)
    assert (
        one.size == 16
        and one.data_in_pdus(1, 1) == []
        and one.data_in_pdus(0, 0) == []
        and sent(one.data_in_pdus(2, 2)) == [2, 3]
    )


@pytest.mark.clause('RFC 7143 11.16')
@pytest.mark.parametrize('segment', [3, 8, 100])
def test_resegmented_data_is_the_same_and_the_status_is_sent_separately(segment):
    one = reply()
    pdus = one.resegmented(1, segment, 16, 0x55)
    data, status = pdus[:-1], pdus[-1]
    assert b''.join(bytes(each.data) for each in data) == DATA[:8] * 3
    assert data[0].buffer_offset == 8 and [each.data_sn for each in data] == list(
        range(1, 1 + len(data))
    )
    assert not any(each.has_status for each in data) and data[-1].final
    assert (status.opcode, status.snack_tag, status.exp_data_sn, status.itt) == (
        0x21,
        0x55,
        1 + len(data),
        7,
    )


def test_sense_data_is_kept():
    response = pdu.ScsiResponse(itt=7, status=2, residual_count=9, underflow=True)
    response.sense, response.stat_sn = b'sense', 1
    (again,) = SentReply(7, 1, [(response.encode(), response.data)]).resegmented(0, 8, 8, 0)
    assert (again.status, again.sense, again.underflow, again.residual_count) == (
        2,
        b'sense',
        True,
        9,
    )
