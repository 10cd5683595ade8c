"""Tests of the sizes that a reload asks for."""

import errno
import os
from types import SimpleNamespace

import pytest

from targetd.errors import StoreError
from targetd.master.exports import resizing
from targetd.store import open_store


@pytest.fixture
def store(tmp_path):
    with open_store({'path': str(tmp_path / 'disk.img'), 'size': 4096}) as opened:
        yield opened


def test_a_file_is_extended_and_shortened_again(store):
    assert resizing.extend_medium(store, 8192, False) == ({'size': 4096}, ())
    assert os.path.getsize(store.path) == 8192 == store.size
    served = SimpleNamespace(replicated_size=4096, sizes_changed=0)
    resizing.shorten(store, 4096, [served])
    assert os.path.getsize(store.path) == 4096 and served.sizes_changed == 1


def test_a_file_keeps_a_size_that_initiators_have_seen(store):
    resizing.extend_medium(store, 8192, False)
    resizing.shorten(store, 4096, [SimpleNamespace(replicated_size=8192, sizes_changed=0)])
    assert os.path.getsize(store.path) == 8192


def test_a_plan_extends_a_file_without_a_name(store, tmp_path):
    assert resizing.extend_medium(store, 8192, True) == ({'size': 4096}, ())
    assert os.path.getsize(store.path) == 4096 and os.listdir(str(tmp_path)) == ['disk.img']


@pytest.mark.parametrize('plan_only', [False, True])
def test_a_size_that_cannot_be_had_is_refused(store, plan_only, monkeypatch):
    values, _ = resizing.extend_medium(store, 512, plan_only)
    assert 'is never made shorter: write size = 4096' in values['failed']

    def too_large(descriptor, size):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(resizing.os, 'ftruncate', too_large)
    values, _ = resizing.extend_medium(store, 8192, plan_only)
    assert 'cannot be extended to 8192 bytes: File too large' in values['failed']
    assert os.path.getsize(store.path) == 4096 == store.size


@pytest.mark.parametrize('kind', ['ram', 'null'])
def test_a_memory_disk_and_a_null_disk_grow_and_do_not_shrink(kind):
    with open_store({'kind': kind, 'size': 4096}) as opened:
        resizing.grow(opened, 8192)
        assert opened.size == 8192 == opened.resize_check()
        with pytest.raises(StoreError):
            resizing.grow(opened, 4096)
        resizing.grow(opened, 1 << 20, plan_only=True)
        assert opened.size == 8192
