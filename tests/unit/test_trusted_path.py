"""Files that are opened through no symbolic link of another user."""

import errno
import os

import pytest

from targetd.trusted_path import open_trusted, open_trusted_directory, others_can_write


def content(path):
    descriptor = open_trusted(str(path), os.O_RDONLY)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / 'precious'
    path.write_bytes(b'precious')
    return path


def test_files_and_links_of_this_user(tmp_path, precious):
    (tmp_path / 'folder').mkdir()
    os.symlink('../precious', str(tmp_path / 'folder' / 'relative'))
    os.symlink(str(precious), str(tmp_path / 'absolute'))
    os.symlink('folder', str(tmp_path / 'way'))
    for path in ('precious', 'absolute', 'folder/relative', 'way/relative', 'way/../precious'):
        assert content(tmp_path / path) == b'precious'
    descriptor = open_trusted(str(tmp_path / 'way' / 'new'), os.O_WRONLY | os.O_CREAT, 0o640)
    os.close(descriptor)
    assert (tmp_path / 'folder' / 'new').stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize('mode', [0o777, 0o1777, 0o775])
def test_a_link_in_a_directory_that_others_can_write(tmp_path, precious, mode):
    folder = tmp_path / 'folder'
    (folder / 'below').mkdir(parents=True)
    os.symlink(str(precious), str(folder / 'link'))
    os.symlink('below', str(folder / 'way'))
    folder.chmod(mode)
    for path in ('link', 'way/file'):
        with pytest.raises(OSError) as refused:
            open_trusted(str(folder / path), os.O_WRONLY | os.O_CREAT)
        assert refused.value.errno == errno.ELOOP
    assert content(folder / '..' / 'precious') == b'precious'  # no link is followed


def test_a_loop(tmp_path):
    os.symlink('b', str(tmp_path / 'a'))
    os.symlink('a', str(tmp_path / 'b'))
    with pytest.raises(OSError) as refused:
        open_trusted(str(tmp_path / 'a'), os.O_RDONLY)
    assert refused.value.errno == errno.ELOOP


def test_directories(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    descriptor = open_trusted_directory(str(tmp_path))
    assert os.listdir(descriptor) == ['file']
    os.close(descriptor)
    os.close(open_trusted_directory('/'))
    for path, number in (('none', errno.ENOENT), ('file', errno.ENOTDIR)):
        with pytest.raises(OSError) as refused:
            open_trusted_directory(str(tmp_path / path))
        assert refused.value.errno == number


def test_who_can_write(tmp_path):
    for mode, expected in ((0o755, False), (0o775, True), (0o757, True)):
        tmp_path.chmod(mode)
        assert others_can_write(os.stat(str(tmp_path))) is expected
