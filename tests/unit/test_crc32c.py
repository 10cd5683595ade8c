"""CRC32C: the examples of RFC 3720 B.4, and the fast algorithm for long messages agrees with the
definition."""

import errno
import os
import sys
import types

import pytest

from targetd import crc32c, kernel_crc32c

READ_10 = bytes.fromhex(
    '01c00000000000000000000000000000140000000000040000000014000000182800000000000000'
    '0200000000000000'
)

EXAMPLES = [
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (READ_10, 0xD9963A56),
    (b'', 0),
    (b'123456789', 0xE3069283),
]


def refuse():
    raise OSError(errno.EAFNOSUPPORT, 'no such family')


def bit_by_bit(data, register=0xFFFFFFFF):
    """The definition, RFC 7143 13.1."""
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize('data, expected', EXAMPLES)
@pytest.mark.parametrize(
    'function', [crc32c.crc32c, crc32c._python_crc32c], ids=[crc32c.NAME, 'fallback']
)
def test_examples_of_the_standard(function, data, expected):
    assert function(data) == expected


@pytest.mark.parametrize(
    'length',
    [
        1,
        47,
        48,
        383,
        384,
        385,
        386,
        387,
        511,
        512,
        513,
        515,
        516,
        520,
        1023,
        1025,
        4096,
        4100,
        8191,
    ],
)
def test_long_messages_agree_with_the_definition(length):
    data = bytes((i * 7 + i // 256 * 13) & 0xFF for i in range(length))
    assert crc32c._python_crc32c(data) == bit_by_bit(data)
    assert crc32c.crc32c(data) == bit_by_bit(data)


@pytest.mark.parametrize('cut', [0, 1, 3, 48, 700, 2999, 3000])
def test_a_digest_continues_from_an_earlier_value(cut):
    data = os.urandom(3000)
    whole = bit_by_bit(data)
    for function in (crc32c.crc32c, crc32c._python_crc32c):
        assert function(data[cut:], function(data[:cut])) == whole


@pytest.mark.parametrize(
    'kind', [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))]
)
def test_any_buffer_is_accepted_and_not_changed(kind):
    data = bytes(range(256)) * 4
    buffer = kind(data)
    assert crc32c.crc32c(buffer) == crc32c._python_crc32c(buffer) == bit_by_bit(data)
    assert bytes(buffer) == data


def test_a_single_flipped_bit_is_detected():
    data = bytearray(os.urandom(2048))
    before = crc32c._python_crc32c(data)
    data[1234] ^= 0x10
    assert crc32c._python_crc32c(data) != before


def test_the_extension_is_preferred(monkeypatch):
    monkeypatch.setitem(
        sys.modules, 'crc32c', types.SimpleNamespace(crc32c=lambda data, value=0: 42)
    )
    function, name, is_fast = crc32c._choose()
    assert (function(b''), name, is_fast) == (42, 'crc32c', True)


def test_google_crc32c_is_used_if_it_has_the_c_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', None)
    google = types.SimpleNamespace(implementation='c', extend=lambda value, data: (value, data))
    monkeypatch.setitem(sys.modules, 'google_crc32c', google)
    function, name, is_fast = crc32c._choose()
    assert (function(memoryview(b'x'), 7), name, is_fast) == ((7, b'x'), 'google-crc32c', True)
    google.implementation = 'python'
    monkeypatch.setattr(kernel_crc32c, 'open_request', refuse)
    assert crc32c._choose() == (crc32c._python_crc32c, 'python', False)


def test_without_extension_and_kernel_the_digest_is_reported_as_slow(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', None)
    monkeypatch.setitem(sys.modules, 'google_crc32c', None)
    monkeypatch.setattr(kernel_crc32c, 'open_request', refuse)
    assert crc32c._choose() == (crc32c._python_crc32c, 'python', False)


def test_the_kernel_is_used_without_an_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, 'crc32c', None)
    monkeypatch.setitem(sys.modules, 'google_crc32c', None)
    monkeypatch.setattr(kernel_crc32c, 'open_request', FakeRequest)
    function, name, is_fast = crc32c._choose()
    assert (name, is_fast) == ('kernel', True)
    assert function(READ_10) == 0xD9963A56


class FakeRequest(object):
    """A fake of the kernel's socket, which uses the tables. The class attributes select a
    failure."""

    opened = []
    wrong = 0  # XORed onto every answer
    refusal = None  # raised by send
    taken = None  # bytes that send says it took

    def __init__(self):
        self.is_open = True
        self.message = None
        type(self).opened.append(self)

    def sendmsg(self, parts):
        assert self.is_open
        if self.refusal is not None:
            raise self.refusal
        self.message = b''.join(bytes(part) for part in parts)
        return len(self.message) if self.taken is None else self.taken

    def send(self, data):
        return self.sendmsg([data])

    def recv(self, count):
        return (crc32c._python_crc32c(self.message) ^ self.wrong).to_bytes(4, 'little')[:count]

    def close(self):
        self.is_open = False

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()


@pytest.fixture
def kernel(monkeypatch):
    """The class of the fake sockets that KernelDigest opens."""
    fake = type('Fake', (FakeRequest,), {'opened': []})
    monkeypatch.setattr(kernel_crc32c, 'open_request', fake)
    return fake


@pytest.mark.parametrize('length', [0, 1, 4, 31, 32, 48, 1000, 70000])
@pytest.mark.parametrize('value', [0, 1, 0xFFFFFFFF, 0x12345678])
@pytest.mark.parametrize('kind', [bytes, lambda data: memoryview(bytearray(data))])
def test_the_kernel_and_the_tables_compute_the_same(kernel, length, value, kind):
    data = os.urandom(length)
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    assert digest.crc32c(kind(data), value) == crc32c._python_crc32c(data, value)
    assert len(kernel.opened) == (length >= kernel_crc32c.SHORT)


def test_one_socket_serves_one_request_after_the_other(kernel):
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    for length in (48, 8192, 48):
        digest.crc32c(bytes(length))
    assert len(kernel.opened) == 1 and kernel.opened[0].is_open


def test_concurrent_threads_use_different_sockets(kernel):
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    inner = []

    def recv(self, count):
        if not inner:
            inner.append(None)
            # another thread, while this one waits for its answer
            inner.append(digest.crc32c(b'x' * 48))
        return FakeRequest.recv(self, count)

    kernel.recv = recv
    assert digest.crc32c(b'y' * 48) == bit_by_bit(b'y' * 48) and inner[1] == bit_by_bit(b'x' * 48)
    assert len(kernel.opened) == 2


def test_a_child_does_not_use_its_parents_socket(kernel, monkeypatch):
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    digest.crc32c(bytes(48))
    monkeypatch.setattr(os, 'getpid', lambda: 4711)
    digest.crc32c(bytes(48))
    assert len(kernel.opened) == 2 and kernel.opened[0].is_open


@pytest.mark.parametrize(
    'failure', [{'refusal': OSError(errno.ENOMEM, 'no memory')}, {'taken': 17}]
)
def test_a_failed_request_falls_back_to_the_tables_and_is_logged_once(kernel, monkeypatch, failure):
    said = []
    monkeypatch.setattr(
        kernel_crc32c.log, 'warning', lambda text, *values: said.append(text % values)
    )
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    for name, value in failure.items():
        setattr(kernel, name, value)
    for _ in range(3):
        assert digest.crc32c(b'data' * 20, 7) == crc32c._python_crc32c(b'data' * 20, 7)
    assert len(said) == 1 and 'it was computed in Python' in said[0]
    assert not any(request.is_open for request in kernel.opened)
    kernel.refusal = kernel.taken = None
    assert digest.crc32c(b'data' * 20) == bit_by_bit(b'data' * 20)
    assert kernel.opened[-1].is_open  # it is tried again, and kept


def test_without_free_descriptors_the_tables_are_used(kernel, monkeypatch):
    monkeypatch.setattr(kernel_crc32c.log, 'warning', lambda text, *values: None)
    monkeypatch.setattr(kernel_crc32c, 'open_request', refuse)
    assert kernel_crc32c.KernelDigest(crc32c._python_crc32c).crc32c(READ_10) == 0xD9963A56


def test_a_kernel_with_wrong_results_is_not_used(kernel):
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    assert digest.is_right()
    kernel.wrong = 1
    assert not digest.is_right()
    assert not any(request.is_open for request in kernel.opened)


def test_a_python_without_af_alg_is_not_an_error(monkeypatch):
    monkeypatch.delattr(kernel_crc32c.socket, 'AF_ALG', raising=False)
    assert not kernel_crc32c.KernelDigest(crc32c._python_crc32c).is_right()


def test_the_kernel_of_this_machine_if_it_has_crc32c():
    digest = kernel_crc32c.KernelDigest(crc32c._python_crc32c)
    if not digest.is_right():
        pytest.skip('this kernel has no CRC32C for programs')
    for length in (32, 4096, 1 << 20):
        data = os.urandom(length)
        assert digest.crc32c(data, 99) == crc32c._python_crc32c(data, 99)
