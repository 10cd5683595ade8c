"""targetd.store.fenced: accesses that the disk refuses because another server has taken it over."""

import errno
import os

import pytest

from targetd.scsi import errno_map
from targetd.store import failure_flags, fenced, open_store
from targetd.store.base import failure

SIZE = 1 << 20


@pytest.fixture
def opened(tmp_path):
    with open(str(tmp_path / 'disk'), 'wb') as file:
        file.truncate(SIZE)
    found = open_store({'path': str(tmp_path / 'disk')})
    found.flag = failure_flags.new_flag()
    found.set_fence('7464000000000001')
    yield found
    found.close()


def refuse(*arguments, **more):
    raise OSError(errno.EBADE, 'Invalid exchange')


VERBS = [
    ('read', (0, 512)),
    ('write', (0, bytes(512), False)),
    ('write', (0, bytes(512), True)),
    ('flush', (0, SIZE)),
    ('unmap', (0, 4096)),
    ('write_zeroes', (0, 4096, False)),
    ('extents', (0, 4096)),
]


@pytest.mark.parametrize('verb, arguments', VERBS)
def test_a_reservation_conflict_means_that_the_disk_is_lost(opened, monkeypatch, verb, arguments):
    with opened.store() as store:
        monkeypatch.setattr(store.store, verb, refuse)
        with pytest.raises(OSError) as caught:
            getattr(store, verb)(*arguments)
    assert caught.value.errno == fenced.FENCED == errno_map.FENCED


def test_other_errors_and_successes_pass(opened, monkeypatch):
    with opened.store() as store:
        store.write(512, b'x' * 512, True)
        assert store.read(512, 512) == b'x' * 512
        store.copy(store, 512, 2048, 512)
        assert store.read(2048, 512) == b'x' * 512
        monkeypatch.setattr(
            store.store, 'write', lambda *more: (_ for _ in ()).throw(failure(errno.EIO))
        )
        with pytest.raises(OSError) as caught:
            store.write(0, bytes(512), False)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize('is_fenced', [True, False])
def test_a_refused_flush_is_a_loss_only_if_data_was_in_the_page_cache(
    opened, monkeypatch, is_fenced
):
    """A fenced disk is written past it, so nothing is lost, and the next server must not see a failure."""
    if not is_fenced:
        opened.set_fence('')
    with opened.store() as store:
        store.write(0, bytes(512), False)
        monkeypatch.setattr(os, 'fdatasync', refuse)
        with pytest.raises(OSError):
            store.flush(0, SIZE)
        assert failure_flags.is_set(opened.flag) is not is_fenced
        assert (store.lost is None) is is_fenced


def test_what_an_initiator_is_told():
    sense = errno_map.write_failure(OSError(fenced.FENCED, ''))
    assert (sense.key, sense.asc, sense.ascq) == (2, 0x04, 0x0A)  # it tries again, or another path
