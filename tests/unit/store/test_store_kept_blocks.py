"""Files that keep old blocks: written, cut at any byte, damaged, and put back."""

import os

import pytest

from targetd.store import from_descriptor, kept_blocks


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(str(tmp_path / 'kept'), os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


AREAS = [(0, b'a' * 4096), (1 << 20, os.urandom(3 << 20)), (9 << 20, bytes(512))]


def test_what_was_written_is_read(file):
    length = kept_blocks.write_file(file, {'lun': 3, 'by': 'größe'}, AREAS)
    assert length == os.fstat(file).st_size
    kept = kept_blocks.read_file(file)
    assert kept.description == {'lun': 3, 'by': 'größe'} == kept_blocks.read_description(file)
    assert b''.join(data for _, data in kept.areas) == b''.join(data for _, data in AREAS)
    assert kept.areas[1][0] == 1 << 20 and kept.areas[2][0] == 2 << 20


def test_a_file_that_was_cut_is_not_complete(file):
    length = kept_blocks.write_file(file, {}, [(0, b'abc')])
    for cut in range(length - 1, -1, -1):
        os.ftruncate(file, cut)
        with pytest.raises(kept_blocks.DamagedFile):
            kept_blocks.read_file(file)


def test_each_changed_byte_is_noticed(file):
    length = kept_blocks.write_file(file, {}, [(0, b'abc')])
    for at in range(length):
        old = os.pread(file, 1, at)
        os.pwrite(file, bytes([old[0] ^ 0x41]), at)
        with pytest.raises(kept_blocks.DamagedFile):
            kept_blocks.read_file(file)
        os.pwrite(file, old, at)
    kept_blocks.read_file(file)


def medium(tmp_path, size):
    path = str(tmp_path / 'medium')
    with open(path, 'wb') as image:
        image.truncate(size)
    return from_descriptor({'kind': 'file', 'path': path, 'size': size}, os.open(path, os.O_RDWR))


def test_blocks_are_put_back_where_they_were(tmp_path):
    with medium(tmp_path, 16 << 20) as store:
        kept = kept_blocks.Kept({}, AREAS)
        assert kept_blocks.put_back(store, kept) == 4096 + (3 << 20)
        assert bytes(store.read(1 << 20, 3 << 20)) == AREAS[1][1]
        assert kept_blocks.put_back(store, kept) == 0


def test_nothing_is_put_on_a_medium_that_is_too_short(tmp_path):
    with medium(tmp_path, 1 << 20) as store:
        with pytest.raises(OSError, match='the kept blocks end at'):
            kept_blocks.put_back(store, kept_blocks.Kept({}, AREAS))
        assert bytes(store.read(0, 4096)) == bytes(4096)
