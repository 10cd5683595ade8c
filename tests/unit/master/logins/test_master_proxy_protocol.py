"""The headers of the PROXY protocol, versions 1 and 2."""

import ipaddress
import struct

import pytest

from targetd.master.logins import proxy_protocol
from targetd.master.logins.proxy_protocol import NotProxied, is_header, parse

LINE = b'PROXY TCP4 203.0.113.7 10.0.0.1 51234 3260\r\n'
LOGIN = b'\x43\x87' + bytes(46)


def binary(command=0x21, family=0x11, addresses=('203.0.113.7', '10.0.0.1'), more=b'', length=None):
    body = b''.join(ipaddress.ip_address(each).packed for each in addresses)
    body += struct.pack('>HH', 51234, 3260) + more
    size = len(body) if length is None else length
    return proxy_protocol.SIGNATURE + struct.pack('>BBH', command, family, size) + body


@pytest.mark.parametrize(
    'header, client',
    [
        (LINE, ('203.0.113.7', 51234)),
        (b'PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n', ('2001:db8::7', 1)),
        (b'PROXY UNKNOWN\r\n', None),
        (b'PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n', None),
        (binary(), ('203.0.113.7', 51234)),
        (binary(family=0x21, addresses=('2001:db8::7', '::1')), ('2001:db8::7', 51234)),
        (binary(more=b'\x04\x00\x03abc'), ('203.0.113.7', 51234)),
        (binary(command=0x20), None),
        (proxy_protocol.SIGNATURE + b'\x20\x00\x00\x00', None),
    ],
)
def test_the_client_is_the_one_that_the_header_names(header, client):
    assert parse(header + LOGIN) == (len(header), client)
    assert is_header(header)


@pytest.mark.parametrize('header', [LINE, binary(more=bytes(40))])
def test_half_a_header_needs_more_bytes(header):
    assert all(parse(header[:length]) is None for length in range(1, len(header)))


@pytest.mark.parametrize(
    'data, word',
    [
        (LOGIN, 'no PROXY header'),
        (b'PROXY TCP4 203.0.113.7 10.0.0.1 51234\r\n', 'form'),
        (b'PROXY UDP4 203.0.113.7 10.0.0.1 51234 3260\r\n', 'form'),
        (b'PROXY TCP4 storage.example.com 10.0.0.1 51234 3260\r\n', 'numeric'),
        (b'PROXY TCP4 2001:db8::7 10.0.0.1 51234 3260\r\n', 'family'),
        (b'PROXY TCP4 203.0.113.7 10.0.0.1 51234 99999\r\n', 'port'),
        (b'PROXY TCP4 203.0.113.7 10.0.0.1 -1 3260\r\n', 'port'),
        (b'PROXY TCP4 203.0.113.7 \xff 1 3260\r\n', 'numeric'),
        (b'PROXY TCP4 ' + bytes(200), 'no end'),
        (binary(command=0x11), 'version'),
        (binary(family=0x12), 'family 12h'),
        (binary(length=8), 'too short'),
        (binary(length=5000), 'bytes'),
    ],
)
def test_what_is_not_a_header_is_named(data, word):
    with pytest.raises(NotProxied) as caught:
        parse(data)
    assert word in str(caught.value)


def test_a_login_is_not_a_header():
    assert not is_header(LOGIN)
