"""Transfer: how the data of a write arrives, what is solicited, and what is refused (RFC 7143
4.2.5.2, 11.7, 11.8)."""

import itertools

import pytest

from targetd.iscsi.errors import PduRejected
from targetd.iscsi.transfer import NO_TAG, Limits, Transfer

PATTERN = bytes(range(251)) * 100


def limits(
    initial_r2t=True, immediate_data=True, first_burst=4096, max_burst=8192, max_outstanding_r2t=1
):
    return Limits(initial_r2t, immediate_data, first_burst, max_burst, max_outstanding_r2t)


def answer(transfer, r2t, segment=3000):
    """Send the data that an R2T requests, in Data-Out PDUs of `segment` bytes."""
    ttt, _, offset, length = r2t
    for data_sn, start in enumerate(range(offset, offset + length, segment)):
        end = min(start + segment, offset + length)
        transfer.receive_data_out(ttt, start, data_sn, PATTERN[start:end], end == offset + length)


def finish(transfer):
    """Answer every R2T and return them."""
    asked = []
    ttts = itertools.count(1)
    while not transfer.is_complete:
        r2ts = transfer.next_r2ts(lambda: next(ttts))
        assert r2ts
        asked += r2ts
        for r2t in r2ts:
            answer(transfer, r2t)
    return asked


@pytest.mark.clause('RFC 7143 11.7', 'RFC 7143 11.8')
@pytest.mark.parametrize('initial_r2t', [True, False])
@pytest.mark.parametrize('immediate', [0, 1000, 4096])
@pytest.mark.parametrize('max_outstanding', [1, 3])
def test_every_negotiated_combination_fills_the_same_buffer(
    initial_r2t, immediate, max_outstanding
):
    transfer = Transfer(1, 20000, 20000, limits(initial_r2t, max_outstanding_r2t=max_outstanding))
    unsolicited = not initial_r2t and immediate < 4096
    transfer.receive_immediate(PATTERN[:immediate] or None, not unsolicited)
    if unsolicited:
        assert transfer.next_r2ts(lambda: 1) == []
        transfer.receive_data_out(NO_TAG, immediate, 0, PATTERN[immediate:4096], True)
    asked = finish(transfer)
    assert bytes(transfer.buffer) == PATTERN[:20000]
    assert all(length <= 8192 for _, _, _, length in asked)
    assert [r2t_sn for _, r2t_sn, _, _ in asked] == list(range(len(asked)))


@pytest.mark.clause('RFC 7143 13.17')
def test_no_more_r2ts_than_negotiated_are_outstanding():
    transfer = Transfer(1, 65536, 65536, limits(max_outstanding_r2t=2))
    transfer.receive_immediate(None, True)
    ttts = itertools.count(1)
    first = transfer.next_r2ts(lambda: next(ttts))
    assert len(first) == 2 and transfer.next_r2ts(lambda: next(ttts)) == []


def test_data_beyond_the_length_of_the_command_is_not_kept():
    transfer = Transfer(1, 512, 4096, limits())
    transfer.receive_immediate(PATTERN[:1024], True)
    assert transfer.is_complete and bytes(transfer.buffer) == PATTERN[:512]


def test_data_in_its_final_place_is_not_copied_again():
    transfer = Transfer(1, 8192, 8192, limits())
    transfer.receive_immediate(None, True)
    ((ttt, _, offset, length),) = transfer.next_r2ts(lambda: 5)
    view = transfer.place_data_out(ttt, offset, 0, length)
    view[:] = PATTERN[:8192]
    transfer.receive_data_out(ttt, offset, 0, view, True)
    assert transfer.is_complete and bytes(transfer.buffer) == PATTERN[:8192]


@pytest.mark.clause('RFC 7143 7.9')
@pytest.mark.parametrize(
    'ttt, offset, data_sn, length',
    [
        (6, 0, 0, 100),  # a tag that is not outstanding
        (NO_TAG, 0, 0, 100),  # unsolicited after its end
        (5, 0, 1, 100),  # DataSN out of order
        (5, 100, 0, 100),  # offset out of order
        (5, 0, 0, 8193),  # more than was asked for
    ],
)
def test_unexpected_data_is_refused(ttt, offset, data_sn, length):
    transfer = Transfer(1, 20000, 20000, limits())
    transfer.receive_immediate(None, True)
    transfer.next_r2ts(lambda: 5)
    with pytest.raises(PduRejected):
        transfer.receive_data_out(ttt, offset, data_sn, PATTERN[:length], False)


@pytest.mark.clause('RFC 7143 13.14')
def test_immediate_data_beyond_first_burst_is_refused():
    with pytest.raises(PduRejected):
        Transfer(1, 20000, 20000, limits()).receive_immediate(PATTERN[:4097], True)
    with pytest.raises(PduRejected):
        Transfer(1, 20000, 20000, limits(immediate_data=False)).receive_immediate(PATTERN[:4], True)


@pytest.mark.clause('RFC 7143 13.10')
def test_unsolicited_data_although_initial_r2t_is_refused():
    with pytest.raises(PduRejected):
        Transfer(1, 20000, 20000, limits(initial_r2t=True)).receive_immediate(None, False)


def test_missing_data_of_an_r2t_is_requested_again_a_limited_number_of_times():
    transfer = Transfer(1, 8192, 8192, limits())
    transfer.receive_immediate(None, True)
    transfer.next_r2ts(lambda: 5)
    transfer.receive_data_out(5, 0, 0, PATTERN[:100], True)
    ((_, r2t_sn, offset, length),) = transfer.next_r2ts(lambda: 6)
    assert (r2t_sn, offset, length) == (1, 100, 8092)
    with pytest.raises(PduRejected):
        transfer.receive_data_out(6, 100, 0, None, True)
