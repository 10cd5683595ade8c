"""Directories whose entries survive a power failure: which descriptors are synced, in which order."""

import os

import pytest

from targetd import durable, store
from targetd.master.state.state_directory import write_durably


@pytest.fixture
def synced(monkeypatch):
    """The paths that were synced, in order."""
    paths, real = [], os.fsync

    def record(descriptor):
        paths.append(os.readlink('/proc/self/fd/%d' % descriptor))
        real(descriptor)

    monkeypatch.setattr(os, 'fsync', record)
    return paths


def test_every_new_directory_is_durable(tmp_path, synced):
    wanted = str(tmp_path / 'a' / 'b')
    durable.make_directory(wanted, 0o700)
    assert synced == [str(tmp_path), str(tmp_path / 'a')]
    assert os.stat(wanted).st_mode & 0o777 == 0o700
    durable.make_directory(wanted, 0o700)
    assert len(synced) == 2


def test_a_new_image_file_is_durable_with_its_name(tmp_path, synced):
    path = str(tmp_path / 'disk.img')
    store.open_store({'path': path, 'size': 1 << 20}).close()
    assert synced == [path, str(tmp_path)]


def test_a_state_file_is_durable_with_its_name_and_its_new_directory(tmp_path, synced):
    path = str(tmp_path / 'units' / 'one.json')
    write_durably(path, '{}')
    assert synced == [str(tmp_path), path + '.new', str(tmp_path / 'units')]
