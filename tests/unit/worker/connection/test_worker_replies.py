"""Replies: residuals, sense data, segments and bursts (RFC 7143 11.4.5, 11.7)."""

from types import SimpleNamespace

import pytest

from targetd.scsi import sam
from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.connection.replies import MasterAnswer, reply_pdus

VALUES = {'MaxRecvDataSegmentLength': 1024, 'MaxBurstLength': 2048}


def task(edtl=0, read=False, write=False, takes=0, descriptor=False):
    one = sam.Task()
    one.itt, one.edtl, one.expects_read, one.expects_write, one.data_out_length = (
        1,
        edtl,
        read,
        write,
        takes,
    )
    one.unit = SimpleNamespace(sense=lambda error: error.sense(descriptor))
    return one


@pytest.mark.parametrize(
    'edtl, returned, sent, overflow, underflow',
    [(512, 512, 512, 0, 0), (512, 100, 100, 0, 412), (100, 512, 100, 412, 0), (512, 0, 0, 0, 512)],
)
def test_residuals_of_reads(edtl, returned, sent, overflow, underflow):
    out = reply_pdus(task(edtl, read=True), b'x' * returned, VALUES)
    last = out[-1]
    assert sum(len(one.data) for one in out) == sent
    assert (last.overflow, last.underflow) == (bool(overflow), bool(underflow))
    assert last.residual_count == overflow + underflow and last.status == 0


@pytest.mark.parametrize(
    'edtl, takes, overflow, underflow', [(512, 512, 0, 0), (1024, 512, 0, 512), (512, 1024, 512, 0)]
)
def test_residuals_of_writes(edtl, takes, overflow, underflow):
    (response,) = reply_pdus(task(edtl, write=True, takes=takes), None, VALUES)
    assert (response.overflow, response.underflow) == (bool(overflow), bool(underflow))
    assert response.residual_count == overflow + underflow


def test_data_without_the_read_bit_is_all_overflow():
    (response,) = reply_pdus(task(), b'x' * 36, VALUES)
    assert response.overflow and response.residual_count == 36 and not response.data


def test_segments_and_bursts():
    out = reply_pdus(task(5000, read=True), b'x' * 4999, VALUES)
    assert [len(one.data) for one in out] == [1024, 1024, 1024, 1024, 903]
    assert [one.final for one in out] == [False, True, False, True, True]
    assert [one.has_status for one in out] == [False] * 4 + [True]


@pytest.mark.parametrize('descriptor, first', [(False, 0x70), (True, 0x72)])
def test_check_condition_has_its_sense_data(descriptor, first):
    (response,) = reply_pdus(task(descriptor=descriptor), CheckCondition(5, 0x24, 0), VALUES)
    assert response.status == 2 and response.sense[0] == first


def test_check_condition_with_data_sends_the_data_first():
    out = reply_pdus(task(512, read=True), CheckCondition(1, 0x17, 0, data=b'y' * 512), VALUES)
    assert bytes(out[0].data) == b'y' * 512 and not out[0].has_status
    assert out[1].status == 2 and out[1].exp_data_sn == 1 and not out[1].underflow


def test_status_without_sense_and_the_masters_answer():
    (response,) = reply_pdus(task(), StatusReturned(0x18), VALUES)
    assert response.status == 0x18 and response.sense == b''
    (response,) = reply_pdus(task(), MasterAnswer(2, b'\x70abc', None), VALUES)
    assert response.status == 2 and response.sense == b'\x70abc'
