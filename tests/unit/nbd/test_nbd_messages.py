"""Requests and replies as bytes."""

import struct

import pytest

from targetd.nbd import messages, numbers
from targetd.nbd.messages import Header, ProtocolError


def test_requests():
    assert messages.request(numbers.CMD_READ, numbers.FLAG_DF, 5, 4096, 512) == bytes.fromhex(
        '25609513 0004 0000 0000000000000005 0000000000001000 00000200'
    )
    assert messages.request(numbers.CMD_WRITE, 1, 5, 4096, 512, extended=True) == bytes.fromhex(
        '21e41c71 0021 0001 0000000000000005 0000000000001000 0000000000000200'
    )
    assert messages.request(numbers.CMD_TRIM, 0, 5, 0, 1 << 40, extended=True)[
        -8:
    ] == bytes.fromhex('0000010000000000')


SIMPLE = bytes.fromhex('67446698 00000005 0000000000000009')
CHUNK = bytes.fromhex('668e33ef 0001 0001 0000000000000009 00000208')
EXTENDED = bytes.fromhex('6e8a278c 0000 0006 0000000000000009 0000000000000000 0000000000000018')


@pytest.mark.parametrize(
    'data, structured, extended, header',
    [
        (SIMPLE, False, False, Header(9, None, True, 5, 0)),
        (SIMPLE, True, False, Header(9, None, True, 5, 0)),
        (CHUNK, True, False, Header(9, numbers.REPLY_OFFSET_DATA, True, 0, 520)),
        (EXTENDED, True, True, Header(9, numbers.REPLY_BLOCK_STATUS_EXT, False, 0, 24)),
    ],
)
def test_headers(data, structured, extended, header):
    buffer = b'xx' + data
    for available in range(len(data)):
        assert messages.header_size(buffer, 2, available, structured, extended) == 0
    size = messages.header_size(buffer, 2, len(data), structured, extended)
    assert size == len(data)
    assert messages.parse_header(buffer[2:], 0, size) == header


@pytest.mark.parametrize(
    'data, structured, extended',
    [
        (CHUNK, False, False),
        (EXTENDED, True, False),
        (SIMPLE, True, True),
        (CHUNK, True, True),
        (b'GET / HTTP/1.1', True, False),
    ],
)
def test_a_header_that_was_not_agreed_is_an_error(data, structured, extended):
    with pytest.raises(ProtocolError):
        messages.header_size(data, 0, len(data), structured, extended)


READ, STATUS = numbers.CMD_READ, numbers.CMD_BLOCK_STATUS


@pytest.mark.parametrize(
    'kind, size, is_last, command, length, is_valid',
    [
        (numbers.REPLY_OFFSET_DATA, 520, True, READ, 512, True),
        (numbers.REPLY_OFFSET_DATA, 521, True, READ, 512, False),
        (numbers.REPLY_OFFSET_DATA, 8, True, READ, 512, False),
        (numbers.REPLY_OFFSET_DATA, 520, True, numbers.CMD_WRITE, 512, False),
        (numbers.REPLY_OFFSET_HOLE, 12, True, READ, 512, True),
        (numbers.REPLY_OFFSET_HOLE, 13, True, READ, 512, False),
        (numbers.REPLY_BLOCK_STATUS, 12, True, STATUS, 512, True),
        (numbers.REPLY_BLOCK_STATUS, 12, True, READ, 512, False),
        (numbers.REPLY_BLOCK_STATUS, messages.LONGEST_PAYLOAD + 1, True, STATUS, 512, False),
        (numbers.REPLY_NONE, 0, True, numbers.CMD_FLUSH, 0, True),
        (numbers.REPLY_NONE, 0, False, numbers.CMD_FLUSH, 0, False),
        (numbers.REPLY_NONE, 4, True, numbers.CMD_FLUSH, 0, False),
        (numbers.REPLY_ERROR, 6, True, READ, 512, True),
        (numbers.REPLY_ERROR, 5, True, READ, 512, False),
        (numbers.REPLY_ERROR_BIT | 77, 6, True, READ, 512, True),
        (numbers.REPLY_ERROR, messages.LONGEST_ERROR + 1, True, READ, 512, False),
        (99, 8, True, READ, 512, False),
    ],
)
def test_the_length_of_a_chunk_fits_its_request(kind, size, is_last, command, length, is_valid):
    header = Header(9, kind, is_last, 0, size)
    if is_valid:
        messages.check_length(header, command, length)
    else:
        with pytest.raises(ProtocolError):
            messages.check_length(header, command, length)


def test_errors():
    assert messages.parse_error(b'\0\0\0\x05\0\3badrest') == (5, 'bad')
    for payload in (b'\0\0\0\0\0\0', b'\0\0\0\5\0\4bad'):
        with pytest.raises(ProtocolError):
            messages.parse_error(payload)
    # a server sends EINVAL for every error that has no number
    assert numbers.ERRNO[22] == numbers.ERRNO[5]


def test_holes():
    assert messages.parse_hole(struct.pack('>QI', 4096, 512)) == (4096, 512)


def test_block_status():
    payload = struct.pack('>IIIIIII', 7, 512, 3, 1024, 0, 512, 1)
    kind = numbers.REPLY_BLOCK_STATUS
    expected = [(512, True), (1024, False), (512, False)]
    assert messages.parse_status(kind, payload, 7) == expected
    payload = struct.pack('>IIQQ', 7, 1, 1 << 40, 3)
    kind = numbers.REPLY_BLOCK_STATUS_EXT
    assert messages.parse_status(kind, payload, 7) == [(1 << 40, True)]


@pytest.mark.parametrize(
    'payload', ['00000008 00000200 00000000', '00000007 00000200', '00000007 00000000 00000000']
)
def test_invalid_block_status(payload):
    with pytest.raises(ProtocolError):
        messages.parse_status(numbers.REPLY_BLOCK_STATUS, bytes.fromhex(payload), 7)
