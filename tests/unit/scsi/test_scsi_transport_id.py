"""iSCSI TransportIDs, SPC-4 7.6.4.6."""

import pytest

from targetd.scsi import transport_id
from targetd.scsi.sense import CheckCondition

DEVICE = 'iqn.1991-05.com.microsoft:node1'
PORT = DEVICE + ',i,0x400001370001'


def refusal(data, offset=0):
    with pytest.raises(CheckCondition) as caught:
        transport_id.decode(data, offset)
    error = caught.value
    return (error.key, error.asc, error.ascq), error.field


def framed(text, first=0x45, length=None):
    text += bytes(-len(text) % 4)
    return bytes([first, 0]) + (len(text) if length is None else length).to_bytes(2, 'big') + text


def test_a_port_is_encoded_with_its_isid_and_padded():
    assert transport_id.encode(PORT) == b'\x45\x00\x00\x34' + PORT.encode() + bytes(4)


def test_a_device_is_encoded_with_its_name_only():
    assert transport_id.encode(DEVICE) == b'\x05\x00\x00\x20' + DEVICE.encode() + b'\0'


def test_a_short_name_is_padded_to_twenty_bytes():
    assert transport_id.encode('eui.0') == b'\x05\x00\x00\x14' + b'eui.0'.ljust(20, b'\0')


@pytest.mark.parametrize('length', range(1, 40))
def test_encoded_names_can_be_decoded(length):
    for name in ('a' * length, 'a' * length + ',i,0x00023d000001'):
        data = transport_id.encode(name)
        assert len(data) % 4 == 0 and data.endswith(b'\0')
        assert transport_id.decode(b'xyz' + data + b'more', 3) == (name, 3 + len(data))


def test_names_are_decoded_in_lower_case():
    data = framed(b'IQN.A:B,I,0X00023D00000A\0')
    assert transport_id.decode(data, 0)[0] == 'iqn.a:b,i,0x00023d00000a'


def test_another_protocol_is_refused():
    assert refusal(b'\x46' + transport_id.encode(PORT)[1:]) == ((5, 0x26, 0), (0, 3, False))


@pytest.mark.parametrize('first', [0x85, 0xC5])
def test_an_unknown_format_is_refused(first):
    assert refusal(b'pad!' + bytes([first]) + transport_id.encode(PORT)[1:], 4) == (
        (5, 0x26, 0),
        (4, 7, False),
    )


@pytest.mark.parametrize('length', [0, 16, 21, 22, 23])
def test_an_invalid_length_is_refused(length):
    assert refusal(framed(b'iqn.a:b\0'.ljust(40, b'\0'), 0x05, length)) == (
        (5, 0x26, 0),
        (2, None, False),
    )


@pytest.mark.parametrize('cut', [1, 3, 4, 10, 47])
def test_a_truncated_list_is_a_length_error(cut):
    assert refusal(transport_id.encode(PORT)[:cut]) == ((5, 0x1A, 0), None)


@pytest.mark.parametrize(
    'text, first',
    [
        (b'iqn.a:without-null-at-the-end...', 0x05),
        (b'\0'.ljust(20, b'\0'), 0x05),
        (b'iqn.a:\xff\xfe\0'.ljust(20, b'\0'), 0x05),
        (b'i' * 224 + b'\0', 0x05),
        (b'iqn.a:format-01-without-isid\0', 0x45),
        (b'iqn.a:b,i,0x00023d000001\0', 0x05),
    ],
    ids=['no terminator', 'empty', 'not UTF-8', 'too long', 'no ISID', 'ISID in format 00'],
)
def test_an_invalid_name_is_refused(text, first):
    assert refusal(framed(text, first)) == ((5, 0x26, 0), (4, None, False))


@pytest.mark.parametrize('isid', [b'', b'00023d', b'00023d00000g', b'00023d0000011'])
def test_a_malformed_isid_is_refused_with_its_offset(isid):
    assert refusal(framed(b'iqn.a:b,i,0x' + isid + b'\0'.ljust(12, b'\0'))) == (
        (5, 0x26, 0),
        (16, None, False),
    )
