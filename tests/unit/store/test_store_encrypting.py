"""Encryption: the example of the standard, what is on the medium and what must not be there, holes,
partial blocks, and other keys."""

import errno
import os

import pytest

from targetd import store, xts

SIZE = 8 << 20
KEY = bytes(range(64))
OTHER = bytes(range(64, 128))

#: IEEE 1619-2007 annex B, vector 10: XTS-AES-256, data unit number ffh, plaintext 00 01 … ff 00 01
#: … ff.
VECTOR_KEY = bytes.fromhex(
    '2718281828459045235360287471352662497757247093699959574966967627'
    '3141592653589793238462643383279502884197169399375105820974944592'
)
VECTOR_TEXT = bytes(range(256)) * 2
VECTOR_CIPHER = bytes.fromhex(
    '1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b'
    '5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd'
    '5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0'
    'c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca'
    '2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0'
    'b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f'
    '93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec'
    '583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a'
    '84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1'
    '505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae'
    '9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29'
    'a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac'
    '6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f'
    '645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385'
    '1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa'
    '773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151'
)

pytestmark = pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there')


@pytest.fixture
def make(tmp_path, opened):
    """make(key, block_size=512, filters='') -> (encrypting Store, the Store of what is on the
    medium), 8 MiB of nothing."""
    made = []

    def make_(key=KEY, block_size=512, **words):
        path = str(tmp_path / 'disk.img')
        plain = opened({'path': path, 'size': SIZE, 'block_size': block_size})
        encrypted = opened(
            dict(words, path=path, size=SIZE, block_size=block_size, cipher_key=key.hex()), [plain]
        )
        made.extend([encrypted.store(), plain.store()])
        return made[-2:]

    yield make_
    for each in made:
        each.close()


def test_the_medium_contains_the_example_of_the_standard(make):
    medium, raw = make(VECTOR_KEY)
    medium.write(255 * 512, VECTOR_TEXT, False)
    assert raw.read(255 * 512, 512) == VECTOR_CIPHER
    assert medium.read(255 * 512, 512) == VECTOR_TEXT


def test_a_long_block_number_is_the_tweak():
    cipher = xts.Xts(VECTOR_KEY)
    far = cipher.encrypted(0xFFFFFFFFFF, VECTOR_TEXT, 512)  # number of vector 14
    assert far[:16] == bytes.fromhex('64497e5a831e4a932c09be3e5393376d')
    assert cipher.decrypted(0xFFFFFFFFFF, far, 512) == VECTOR_TEXT


@pytest.mark.parametrize('block_size', [512, 4096])
@pytest.mark.parametrize('durable', [False, True])
def test_no_block_is_plain_text_and_equal_blocks_differ(make, block_size, durable):
    medium, raw = make(block_size=block_size)
    text = (b'payroll of November ' * block_size)[:block_size] * 100
    medium.write(block_size, text, durable)
    on_the_medium = bytes(raw.read(0, SIZE))
    assert b'payroll' not in on_the_medium
    blocks = {
        on_the_medium[at : at + block_size]
        for at in range(block_size, 101 * block_size, block_size)
    }
    assert len(blocks) == 100
    assert medium.read(block_size, len(text)) == text


@pytest.mark.parametrize('block_size', [512, 4096])
def test_each_block_can_be_read_and_written_independently(make, block_size):
    medium, _ = make(block_size=block_size)
    whole = os.urandom(64 * block_size)
    medium.write(0, whole, False)
    for number in (0, 1, 33, 63):
        piece = slice(number * block_size, (number + 1) * block_size)
        assert medium.read(number * block_size, block_size) == whole[piece]
        assert (
            bytes(medium.try_read(number * block_size, block_size) or whole[piece]) == whole[piece]
        )


def test_holes_read_as_zeroes_and_stay_holes(make):
    medium, raw = make()
    assert medium.extents(0, SIZE) == [(0, SIZE, False)] and not any(medium.read(0, SIZE))
    medium.write(1 << 20, b'x' * (1 << 20), True)
    medium.unmap((1 << 20) + 4096, 4096)
    medium.write_zeroes((1 << 20) + 16384, 1024, False)
    assert (
        medium.read(1 << 20, 32768)
        == b'x' * 4096 + bytes(4096) + b'x' * 8192 + bytes(1024) + b'x' * 15360
    )
    assert not any(raw.read((1 << 20) + 16384, 1024))
    assert medium.extents(0, SIZE)[0] == (0, 1 << 20, False)
    assert medium.allocated() <= 1 << 20


def test_zeroes_that_are_written_are_encrypted(make):
    medium, raw = make()
    medium.write(0, bytes(4096), False)
    assert 0 < raw.read(0, 4096).count(0) < 200
    assert medium.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize(
    'offset, length', [(100, 50), (500, 24), (0, 513), (511, 2), (1000, 5000), (SIZE - 10, 10)]
)
def test_a_partial_block_write_keeps_the_other_bytes(make, offset, length):
    medium, _ = make()
    expected = bytearray(os.urandom(SIZE))
    medium.write(0, expected, False)
    expected[offset : offset + length] = os.urandom(length)
    medium.write(offset, memoryview(expected)[offset : offset + length], False)
    assert medium.read(0, SIZE) == expected
    assert medium.read(offset, length) == expected[offset : offset + length]


def test_part_of_a_block_cannot_be_unmapped_or_zeroed_or_written_beyond_the_end(make):
    medium, _ = make()
    medium.write(0, b'x' * 512, False)
    for change in (
        lambda: medium.unmap(0, 256),
        lambda: medium.write_zeroes(256, 256, True),
        lambda: medium.write(SIZE - 10, b'x' * 20, False),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EINVAL
    assert medium.read(0, 512) == b'x' * 512


def test_a_different_key_reads_random_data_and_holes(make):
    medium, _ = make()
    medium.write(4096, b'x' * 4096, False)
    medium.rekey(OTHER)
    assert b'xx' not in medium.read(4096, 4096) and medium.read(0, 4096) == bytes(4096)
    medium.write(0, b'y' * 512, False)
    assert medium.read(0, 512) == b'y' * 512
    medium.rekey(KEY)
    assert medium.read(4096, 4096) == b'x' * 4096


def test_filters_are_above_encryption_and_forward_a_new_key(make):
    medium, _ = make(filters='error read errno=EIO after=1, delay 0ms, trace')
    medium.write(0, b'x' * 512, False)
    medium.rekey(OTHER)
    assert medium.read(0, 512) != b'x' * 512
    with pytest.raises(OSError):
        medium.read(0, 512)


def test_copies_are_encrypted_again(make, tmp_path, opened):
    medium, raw = make()
    text = os.urandom(1 << 20)
    medium.write(0, text, False)
    medium.copy(medium, 0, 1 << 20, 1 << 20)
    assert medium.read(1 << 20, 1 << 20) == text and raw.read(0, 1 << 20) != raw.read(
        1 << 20, 1 << 20
    )
    with opened({'path': str(tmp_path / 'plain.img'), 'size': SIZE}).store() as plain:
        plain.copy(medium, 0, 4096, 1 << 20)
        assert plain.read(4096, 1 << 20) == text
        medium.copy(plain, 4096, 512, 1 << 20)
        assert medium.read(512, 1 << 20) == text


def test_short_transfers_are_done_inline(make):
    medium, raw = make(block_size=4096)
    medium.write(0, b'x' * (1 << 20), True)
    assert 0 < medium.inline_write_limit < raw.inline_write_limit
    assert medium.try_read(0, 1 << 20) is None and medium.try_read(1, 4096) is None


def test_a_store_that_does_not_encrypt_has_no_key(make):
    _, raw = make()
    with pytest.raises(OSError):
        raw.rekey(KEY)


@pytest.mark.parametrize('key', ['00' * 64, '01' * 32, 'zz' * 64])
def test_an_invalid_key_is_refused(opened, tmp_path, key):
    with pytest.raises(ValueError):
        opened({'path': str(tmp_path / 'disk.img'), 'size': SIZE, 'cipher_key': key}).store()


def test_the_key_is_in_no_text(make, opened, tmp_path):
    medium, _ = make(filters='trace')
    master = opened({'path': str(tmp_path / 'other.img'), 'size': SIZE, 'cipher_key': KEY.hex()})
    shown = repr(medium) + repr(master) + repr(medium.store) + str(medium.__dict__.get('store'))
    assert KEY.hex() not in shown and repr(KEY)[2:20] not in shown


def test_without_the_package_the_remedy_is_named(monkeypatch):
    def missing():
        raise ImportError('No module named cryptography')

    monkeypatch.setattr(xts, '_loaded', missing)
    assert 'pip install cryptography' in xts.why_not()
    monkeypatch.setattr(xts, '_loaded', lambda: 1 // 0)
    assert 'install a newer one' in xts.why_not()


def test_a_store_without_a_key_needs_no_package(monkeypatch, tmp_path):
    monkeypatch.setattr(xts, '_loaded', lambda: 1 // 0)
    with store.open_store(
        {'path': str(tmp_path / 'disk.img'), 'size': SIZE}
    ) as opened_, opened_.store() as medium:
        assert type(medium).__name__ == 'FileStore'
