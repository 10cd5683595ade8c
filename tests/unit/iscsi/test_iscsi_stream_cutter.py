"""PDUs are cut out of a stream whatever pieces it arrives in; secrets are masked."""

import pytest

from targetd.iscsi.stream_cutter import Cutter, LoginMask


def pdu(opcode, data=b'', ahs=b'', header_digest=b'', data_digest=b''):
    header = bytes([opcode, 0x80, 0, 0, len(ahs) // 4]) + len(data).to_bytes(3, 'big') + bytes(40)
    body = data + bytes(-len(data) % 4)
    return header + ahs + header_digest + body + (data_digest if data else b'')


def cut(stream, step, *arguments):
    cutter, found = Cutter(*arguments), []
    for at in range(0, len(stream), step):
        found += cutter.feed(stream[at : at + step])
    return found


@pytest.mark.parametrize('step', [1, 7, 48, 100, 10000])
def test_every_pdu_is_found_in_pieces_of_any_size(step):
    pdus = [
        pdu(0x01, b'x' * 9, b'ahs1', b'HDIG', b'DDIG'),
        pdu(0x00, b'', b'', b'HDIG', b'DDIG'),
        pdu(0x25, b'y' * 500, b'', b'HDIG', b'DDIG'),
        pdu(0x04, b'z' * 500, b'', b'HDIG', b'DDIG'),
    ]
    whole = cut(b''.join(pdus), step, True, True, 10000)
    assert whole == [(each, len(each)) for each in pdus]
    some = cut(b''.join(pdus), step, True, True, 16)
    assert [length for _, length in some] == [len(each) for each in pdus]
    assert some[2][0] == pdus[2][: 48 + 4 + 16]  # user data is cut
    assert some[3][0] == pdus[3]  # text is not
    assert cut(b''.join(pdus), step, True, True, 0)[0][0] == pdus[0][: 48 + 4 + 4]


def test_an_incomplete_pdu_is_not_reported():
    assert cut(pdu(0x25, b'y' * 500)[:-1], 64, False, False, 16) == []


def test_chap_values_are_masked_at_the_same_length():
    text = b'CHAP_N=erp\0CHAP_R=0xdeadbeef\0CHAP_I=7\0CHAP_C=0x00ff\0AuthMethod=CHAP\0'
    masked = LoginMask().masked(pdu(0x43, text))
    assert b'CHAP_N=erp\0CHAP_R=xxxxxxxxxx\0CHAP_I=7\0CHAP_C=xxxxxx\0AuthMethod=CHAP\0' in masked
    assert len(masked) == len(pdu(0x43, text))


@pytest.mark.parametrize('at', range(1, 29))
def test_a_value_in_two_pdus_is_masked(at):
    text, mask = b'CHAP_N=erp\0CHAP_R=0xdeadbeef\0', LoginMask()
    seen = b''.join(
        mask.masked(pdu(0x43, part))[48:][: len(part)] for part in (text[:at], text[at:])
    )
    assert seen == b'CHAP_N=erp\0CHAP_R=xxxxxxxxxx\0'


def test_other_pdus_are_not_changed():
    data = pdu(0x25, b'CHAP_R=0xdeadbeef\0')
    assert LoginMask().masked(data) is data
