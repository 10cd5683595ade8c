"""CRC32C: the examples of RFC 3720 B.4, and that the quick way for long messages agrees with the definition."""

import os
import sys
import types

import pytest

from targetd import crc32c

READ_10 = bytes.fromhex('01c00000000000000000000000000000140000000000040000000014000000182800000000000000'
                        '0200000000000000')

EXAMPLES = [
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (READ_10, 0xD9963A56),
    (b'', 0),
    (b'123456789', 0xE3069283),
]


def bit_by_bit(data, register=0xFFFFFFFF):
    """The definition, RFC 7143 13.1."""
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize('data, expected', EXAMPLES)
@pytest.mark.parametrize('function', [crc32c.crc32c, crc32c._python_crc32c], ids=[crc32c.NAME, 'fallback'])
def test_examples_of_the_standard(function, data, expected):
    assert function(data) == expected


@pytest.mark.parametrize('length', [1, 47, 48, 383, 384, 385, 386, 387, 511, 512, 513, 515, 516, 520, 1023, 1025, 4096, 4100,
                                    8191])
def test_long_messages_agree_with_the_definition(length):
    data = bytes((i * 7 + i // 256 * 13) & 0xFF for i in range(length))
    assert crc32c._python_crc32c(data) == bit_by_bit(data)
    assert crc32c.crc32c(data) == bit_by_bit(data)


@pytest.mark.parametrize('cut', [0, 1, 3, 48, 700, 2999, 3000])
def test_goes_on_from_an_earlier_value(cut):
    data = os.urandom(3000)
    whole = bit_by_bit(data)
    for function in (crc32c.crc32c, crc32c._python_crc32c):
        assert function(data[cut:], function(data[:cut])) == whole


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_takes_any_buffer_and_leaves_it_alone(kind):
    data = bytes(range(256)) * 4
    buffer = kind(data)
    assert crc32c.crc32c(buffer) == crc32c._python_crc32c(buffer) == bit_by_bit(data)
    assert bytes(buffer) == data


def test_a_single_flipped_bit_is_noticed():
    data = bytearray(os.urandom(2048))
    before = crc32c._python_crc32c(data)
    data[1234] ^= 0x10
    assert crc32c._python_crc32c(data) != before


def test_the_extension_is_preferred(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', types.SimpleNamespace(crc32c=lambda data, value=0: 42))
    function, name, is_fast = crc32c._choose()
    assert (function(b''), name, is_fast) == (42, 'crc32c', True)


def test_googles_extension_is_taken_if_it_is_in_c(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', None)
    google = types.SimpleNamespace(implementation='c', extend=lambda value, data: (value, data))
    monkeypatch.setitem(sys.modules, 'google_crc32c', google)
    function, name, is_fast = crc32c._choose()
    assert (function(memoryview(b'x'), 7), name, is_fast) == ((7, b'x'), 'google-crc32c', True)
    google.implementation = 'python'
    assert crc32c._choose() == (crc32c._python_crc32c, 'python', False)


def test_without_an_extension_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', None)
    monkeypatch.setitem(sys.modules, 'google_crc32c', None)
    assert crc32c._choose() == (crc32c._python_crc32c, 'python', False)
