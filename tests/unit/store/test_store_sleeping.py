"""The store whose disk may sleep: what wakes it, what does not, and when a write counts as in progress."""

import errno
import os
import threading

import pytest

from targetd.store import from_descriptor
from targetd.store.base import failure
from targetd.store.sleeping import FALLING, ROTATES, STOPPED, Sleep

SIZE = 1 << 20


class Waker(object):
    """Wakes the disk at once, or does what the test says."""

    def __init__(self):
        self.count = 0
        self.sleep = Sleep(ROTATES, self.wake)
        self.meanwhile = lambda: None

    def wake(self):
        self.count += 1
        self.meanwhile()
        self.sleep.state = ROTATES


@pytest.fixture
def waker():
    return Waker()


@pytest.fixture
def store(tmp_path, waker):
    path = str(tmp_path / 'medium')
    with open(path, 'wb') as image:
        image.write(b'x' * 4096)
        image.truncate(SIZE)
    description = {'kind': 'file', 'path': path, 'size': SIZE}
    found = from_descriptor(description, os.open(path, os.O_RDWR), sleep=waker.sleep)
    yield found
    found.close()


VERBS = {
    'read': lambda store: store.read(0, 512),
    'write': lambda store: store.write(0, b'x' * 512, False),
    'durable write': lambda store: store.write(0, b'x' * 512, True),
    'unmap': lambda store: store.unmap(65536, 4096),
    'zeroes': lambda store: store.write_zeroes(65536, 4096, False),
    'extents': lambda store: store.extents(0, SIZE),
    'copy': lambda store: store.copy(store, 0, 65536, 4096),
}


@pytest.mark.parametrize('state', [FALLING, STOPPED])
@pytest.mark.parametrize('verb', sorted(VERBS))
def test_every_access_wakes_the_disk_once(store, waker, verb, state):
    waker.sleep.state = state
    VERBS[verb](store)
    VERBS[verb](store)
    assert waker.count == 1 and not waker.sleep.has_writes()


@pytest.mark.parametrize('verb', sorted(VERBS))
def test_a_disk_that_is_not_woken_is_not_accessed(store, waker, verb):
    waker.sleep.state = STOPPED

    def fail():
        raise failure(errno.EIO)

    waker.meanwhile = fail
    with pytest.raises(OSError):
        VERBS[verb](store)
    assert not waker.sleep.has_writes()


def test_what_the_page_cache_has_is_not_answered_from_it(store, waker):
    assert bytes(store.try_read(0, 512) or b'x' * 512) == b'x' * 512
    waker.sleep.state = FALLING
    assert store.try_read(0, 512) is None and waker.count == 0


def test_a_flush_wakes_no_disk_and_is_done_until_it_is_stopped(store, waker):
    flushed = []
    store.store.flush = lambda *range: flushed.append(range)
    for state in (ROTATES, FALLING, STOPPED):
        waker.sleep.state = state
        store.flush(0, SIZE)
    assert len(flushed) == 2 and waker.count == 0


def test_a_write_in_progress_is_seen(store, waker):
    """The control thread sets FALLING while a write is in the kernel."""
    began, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        began.set()
        assert go_on.wait(20)

    store.store.write = slow
    thread = threading.Thread(target=lambda: store.write(0, b'x', False))
    thread.start()
    assert began.wait(20)
    waker.sleep.state = FALLING
    assert waker.sleep.has_writes()
    go_on.set()
    thread.join(20)
    assert not waker.sleep.has_writes() and waker.count == 0


def test_a_write_that_meets_the_order_to_sleep_waits(store, waker):
    """FALLING is set between the look at the state and the entry: the write must not slip through."""
    states = iter([ROTATES, FALLING, FALLING, ROTATES])

    class Racing(Sleep):
        __slots__ = ()
        state = property(lambda self: next(states))

    racing = Racing.__new__(Racing)
    racing.wake, racing.writes = waker.wake, []
    store._sleep = racing
    store.write(0, b'y', False)
    assert waker.count == 1 and not racing.writes and next(states, 'none left') == 'none left'
