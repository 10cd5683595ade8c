"""Image files: created whole or not at all; a snapshot has the content of one instant, holes stay holes."""

import io
import os

import pytest

from targetd.admin import image_files
from targetd.errors import TargetdError

MIB = 1 << 20


@pytest.fixture
def image(tmp_path):
    """A file of 64 MiB with one MiB of data at 32 MiB, and a little at its end."""
    path = str(tmp_path / 'disk.img')
    with open(path, 'wb') as f:
        f.truncate(64 * MIB)
        f.seek(32 * MIB)
        f.write(b'data' * (MIB // 4))
        f.seek(64 * MIB - 3)
        f.write(b'end')
    return path


def content(path):
    with open(path, 'rb') as f:
        return f.read()


def test_a_file_is_created_sparse_or_full(tmp_path):
    sparse, full = str(tmp_path / 'a'), str(tmp_path / 'b')
    image_files.create(sparse, 8 * MIB, False)
    image_files.create(full, 8 * MIB, True)
    assert os.path.getsize(sparse) == os.path.getsize(full) == 8 * MIB
    assert os.stat(sparse).st_blocks == 0 and os.stat(full).st_blocks * 512 >= 8 * MIB
    assert os.stat(full).st_mode & 0o777 == 0o600
    with pytest.raises(TargetdError, match='exists already'):
        image_files.create(full, MIB, False)


def test_a_file_that_cannot_be_created_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(image_files.os, 'posix_fallocate', fail)
    with pytest.raises(TargetdError, match='No space left'):
        image_files.create(str(tmp_path / 'a'), MIB, True)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('clones', [True, False])
def test_a_snapshot_is_the_same_with_and_without_shared_blocks(image, monkeypatch, clones):
    if not clones:
        monkeypatch.setattr(image_files, '_clone', lambda source, new: False)
    target = image_files.snapshot_path(image, 'monday')
    image_files.take_snapshot(image, target, '')
    assert target == image + '.snapshot-monday' and content(target) == content(image)
    assert os.stat(target).st_blocks * 512 < 8 * MIB
    with open(image, 'r+b') as f:
        f.write(b'x' * MIB)
    with pytest.raises(TargetdError, match='exists already'):
        image_files.take_snapshot(image, target, '')
    image_files.restore(target, image, lambda: None)
    assert content(target) == content(image)
    assert sorted(os.listdir(os.path.dirname(image))) == ['disk.img', 'disk.img.snapshot-monday']


def test_a_copy_is_refused_while_the_file_is_in_use(image, monkeypatch):
    monkeypatch.setattr(image_files, '_clone', lambda source, new: False)
    with pytest.raises(TargetdError, match='first make it read-only'):
        image_files.take_snapshot(image, image + '.s', 'first make it read-only')
    assert os.listdir(os.path.dirname(image)) == ['disk.img']


def test_a_copy_during_which_the_file_was_written_is_no_snapshot(image, monkeypatch):
    monkeypatch.setattr(image_files, '_clone', lambda source, new: False)
    copy = image_files.copy_sparse

    def write_meanwhile(*arguments):
        copy(*arguments)
        os.utime(image, ns=(1, 1))

    monkeypatch.setattr(image_files, 'copy_sparse', write_meanwhile)
    with pytest.raises(TargetdError, match='was written during the copy'):
        image_files.take_snapshot(image, image + '.s', '')
    assert os.listdir(os.path.dirname(image)) == ['disk.img']


@pytest.mark.parametrize('clones', [True, False])
def test_a_file_that_has_grown_keeps_its_size_and_has_zeroes_at_its_end(image, monkeypatch, clones):
    if not clones:
        monkeypatch.setattr(image_files, '_clone', lambda source, new: False)
    image_files.take_snapshot(image, image + '.s', '')
    with open(image, 'r+b') as f:
        f.seek(64 * MIB)
        f.write(b'y' * MIB)
    calls = []
    image_files.restore(image + '.s', image, lambda: calls.append(content(image)))
    assert content(image) == content(image + '.s') + bytes(MIB) != calls[0]
    os.truncate(image, MIB)
    with pytest.raises(TargetdError, match='lun resize'):
        image_files.restore(image + '.s', image, lambda: calls.append(0))
    assert len(calls) == 1  # nothing was written


def test_nothing_is_restored_if_the_server_refuses_it(image):
    image_files.take_snapshot(image, image + '.s', '')
    with open(image, 'r+b') as f:
        f.write(b'y' * MIB)
    before = content(image)

    def refuse():
        raise TargetdError('it is in use')

    with pytest.raises(TargetdError, match='in use'):
        image_files.restore(image + '.s', image, refuse)
    assert content(image) == before


@pytest.mark.parametrize('name', ['a/b', '.hidden', 'a\nb'])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(TargetdError, match='not a name of a snapshot'):
        image_files.snapshot_path('/srv/disk.img', name)


def test_a_bar_is_drawn_on_a_terminal_only():
    class Terminal(io.StringIO):
        @staticmethod
        def isatty():
            return True

    for out, is_drawn in ((Terminal(), True), (io.StringIO(), False)):
        bar = image_files.Progress('copying', 10, out)
        for done in range(11):
            bar.show(done)
        assert ('100 %' in out.getvalue()) == is_drawn
        assert all(len(line) < 80 for line in out.getvalue().split('\r'))
