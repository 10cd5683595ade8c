"""The store that has old blocks kept before the first write."""

import errno
import os
import threading

import pytest

from targetd.store import from_descriptor, guarding
from targetd.store.base import failure

SIZE = 256 << 20


class Keeper(object):
    """Keeps nothing: notes each reason, and what the first bytes of the medium were then."""

    def __init__(self):
        self.reasons = []
        self.error = None
        self.now = 0.0

    def keep(self, reason):
        if self.error:
            raise self.error
        self.reasons.append(reason)


@pytest.fixture
def keeper():
    return Keeper()


@pytest.fixture
def store(tmp_path, keeper):
    path = str(tmp_path / 'medium')
    with open(path, 'wb') as image:
        image.truncate(SIZE)
    description = {'kind': 'file', 'path': path, 'size': SIZE}
    lower = from_descriptor(description, os.open(path, os.O_RDWR))
    with guarding.Guarded(lower, keeper.keep, lambda: keeper.now) as guarded:
        yield guarded


VERBS = {
    'write': lambda store: store.write(100 << 20, b'x' * 512, False),
    'unmap': lambda store: store.unmap(100 << 20, 4096),
    'zeroes': lambda store: store.write_zeroes(100 << 20, 4096, False),
    'copy': lambda store: store.copy(store, 0, 100 << 20, 4096),
}


@pytest.mark.parametrize('verb', sorted(VERBS))
def test_the_first_write_of_any_kind_waits_until_blocks_are_kept(store, keeper, verb):
    keeper.error = failure(errno.EROFS)
    with pytest.raises(OSError):
        VERBS[verb](store)
    keeper.error = None
    VERBS[verb](store)
    VERBS[verb](store)
    assert keeper.reasons == ['first']


def test_nothing_is_written_if_the_blocks_cannot_be_kept(store, keeper):
    keeper.error = failure(errno.EROFS)
    with pytest.raises(OSError):
        store.write(0, b'x' * 512, True)
    assert bytes(store.read(0, 512)) == bytes(512)


def test_reads_and_flushes_keep_nothing(store, keeper):
    store.read(0, 4096)
    store.try_read(0, 4096)
    store.flush(0, SIZE)
    store.extents(0, SIZE)
    assert keeper.reasons == []


@pytest.mark.parametrize(
    'act, reason',
    [
        (lambda s: s.write(0, b'x' * 512, False), 'table'),
        (lambda s: s.write(SIZE - 512, b'x' * 512, False), 'table'),
        (lambda s: s.unmap(1 << 20, 16 << 20), 'large'),
        (lambda s: s.write_zeroes(1 << 20, 16 << 20, True), 'large'),
        (lambda s: s.write(1 << 20, bytes(1 << 20), False), None),
        (lambda s: s.unmap(1 << 20, 1 << 20), None),
    ],
)
def test_later_only_what_can_erase_much_keeps_again_and_not_too_often(store, keeper, act, reason):
    store.write(1 << 20, b'x', False)
    act(store)
    assert keeper.reasons == ['first']
    keeper.now += guarding.KEEP_AGAIN_SECONDS
    act(store)
    act(store)
    assert keeper.reasons == ['first'] + [reason] * bool(reason)


def test_threads_that_write_first_at_the_same_time_keep_once(store, keeper):
    entered, go_on = threading.Event(), threading.Event()

    def slow(reason):
        entered.set()
        assert go_on.wait(30)
        keeper.reasons.append(reason)

    store._keep = slow
    threads = [
        threading.Thread(target=store.write, args=(n * 4096 + (1 << 20), b'x' * 512, False))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    assert bytes(store.read(1 << 20, 512)) == bytes(512)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert keeper.reasons == ['first']
    assert bytes(store.read(1 << 20, 1)) == b'x'
