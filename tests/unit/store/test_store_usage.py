"""The space that files occupy."""

import errno
import os

import pytest

from targetd.store import linux
from targetd.store.usage import usage

MIB = 1 << 20


@pytest.fixture
def file(tmp_path):
    """A file of 8 MiB, of which one MiB is written."""
    path = str(tmp_path / 'a.img')
    with open(path, 'wb+') as opened:
        opened.truncate(8 * MIB)
        opened.seek(2 * MIB)
        opened.write(b'x' * MIB)
        opened.flush()
        os.fsync(opened.fileno())
        yield opened.fileno()


def of_extents(monkeypatch, extents, size=8 * MIB):
    """Lets FIEMAP report these extents, two in each call."""

    def file_extents(descriptor, offset, length):
        return [e for e in extents if e[0] + e[1] > offset][:2]

    monkeypatch.setattr(linux, 'file_extents', file_extents)


def test_a_sparse_file_occupies_what_was_written(file):
    found = usage(file, 5.0)
    assert found['size'] == 8 * MIB and MIB <= found['allocated'] < 2 * MIB
    space = os.fstatvfs(file)
    assert abs(found['available'] - space.f_bavail * space.f_frsize) < 1 << 30
    assert found['mapped'] in (None, MIB)


def test_extents_are_added_by_kind(file, monkeypatch):
    of_extents(
        monkeypatch,
        [
            (0, MIB, 0),
            (MIB, MIB, linux.EXTENT_UNWRITTEN),
            (4 * MIB, MIB, linux.EXTENT_SHARED),
            (5 * MIB, MIB // 2, 0),
            (7 * MIB, 2 * MIB, linux.EXTENT_LAST),
        ],
    )
    found = usage(file, 5.0)
    assert found['mapped'] == 3 * MIB + MIB // 2, 'not beyond the end of the file'
    assert found['reserved'] == MIB and found['shared'] == MIB


def test_too_many_extents_are_not_counted(file, monkeypatch):
    of_extents(monkeypatch, [(n * MIB, MIB, 0) for n in range(8)])
    assert usage(file, -1.0)['mapped'] is None


def test_a_file_system_without_fiemap_is_no_error(file, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EOPNOTSUPP, 'not supported')

    monkeypatch.setattr(linux, 'file_extents', unsupported)
    found = usage(file, 5.0)
    assert found['mapped'] is None and found['shared'] is None and found['size'] == 8 * MIB


def test_extents_that_do_not_advance_are_an_error(file, monkeypatch):
    monkeypatch.setattr(linux, 'file_extents', lambda *arguments: [(0, 0, 0)])
    with pytest.raises(OSError):
        usage(file, 5.0)
