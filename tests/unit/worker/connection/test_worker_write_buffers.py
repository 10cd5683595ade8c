"""WriteBuffers: memory of large writes is used again only when nothing refers to it."""

import threading

import pytest

from targetd.worker.connection.write_buffers import BUFFER_BYTES, BUFFERS, WriteBuffers


def same(one, other):
    return one.obj is other.obj


def test_a_buffer_is_used_again_when_its_last_view_is_gone():
    pool = WriteBuffers()
    first = pool.take(1000)
    memory = id(first.obj)
    first = None
    assert id(pool.take(BUFFER_BYTES).obj) == memory


@pytest.mark.parametrize(
    'keep', [lambda view: view, lambda view: view[5:7], lambda view: memoryview(view)[::2]]
)
def test_a_buffer_with_a_view_is_not_used_again(keep):
    pool = WriteBuffers()
    first = pool.take(1000)
    kept = keep(first)
    first = None
    assert not same(pool.take(1000), kept)


def test_a_buffer_that_another_thread_uses_is_not_used_again():
    pool, started, may_end = WriteBuffers(), threading.Event(), threading.Event()
    seen = []

    def write(view):
        started.set()
        assert may_end.wait(10)
        seen.append(bytes(view[:4]))

    view = pool.take(4)
    view[:4] = b'kept'
    thread = threading.Thread(target=write, args=(view,))
    thread.start()
    assert started.wait(10)
    view = None
    for _ in range(2 * BUFFERS):
        pool.take(4)[:4] = b'lost'
    may_end.set()
    thread.join()
    assert seen == [b'kept']


def test_the_pool_is_bounded_and_more_is_lent_from_new_memory():
    pool = WriteBuffers()
    lent = [pool.take(BUFFER_BYTES) for _ in range(2 * BUFFERS)]
    assert len(set(id(view.obj) for view in lent)) == 2 * BUFFERS
    assert len(pool._buffers) == BUFFERS


def test_a_buffer_larger_than_those_of_the_pool_is_new_and_not_kept():
    pool = WriteBuffers()
    assert len(pool.take(BUFFER_BYTES + 1)) >= BUFFER_BYTES + 1
    assert not pool._buffers


def test_buffers_that_are_not_used_are_released():
    pool = WriteBuffers()
    kept = pool.take(8)
    kept[:4] = b'kept'
    pool.release_unused()
    assert pool._buffers  # one was taken since the last call
    pool.release_unused()
    assert not pool._buffers
    assert not same(pool.take(8), kept) and bytes(kept[:4]) == b'kept'
