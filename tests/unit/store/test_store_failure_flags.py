"""Flushes: shared by the threads of a process, and failures that other processes must notice."""

import errno
import mmap
import os
import queue
import threading
import time

import pytest

from targetd import compat, store
from targetd.store import failure_flags

MIB = 1 << 20


@pytest.fixture
def medium_of(tmp_path):
    """medium_of(**description) -> a Store on one file of 1 MiB."""
    opened = store.open_store({'path': str(tmp_path / 'disk.img'), 'size': MIB})
    made = [opened]

    def make(**more):
        description = dict(opened.description(), **more)
        made.append(store.from_descriptor(description, os.dup(opened.descriptor)))
        return made[-1]

    yield make
    for each in made:
        each.close()


class SlowSync(object):
    """Replaces os.fdatasync: each call reports that it began and waits for its outcome, an errno or
    None."""

    def __init__(self):
        self.began = queue.Queue()
        self.outcomes = queue.Queue()
        self.count = 0

    def __call__(self, descriptor):
        self.count += 1
        self.began.put(descriptor)
        number = self.outcomes.get(timeout=10)
        if number is not None:
            raise OSError(number, os.strerror(number))


@pytest.fixture
def sync(monkeypatch):
    made = SlowSync()
    monkeypatch.setattr(os, 'fdatasync', made)
    return made


class Caller(threading.Thread):
    """Calls medium.flush() in a thread; outcome(): None, or the errno that it failed with."""

    def __init__(self, medium):
        super(Caller, self).__init__(daemon=True)
        self.medium = medium
        self.number = None
        self.start()

    def run(self):
        try:
            self.medium.flush(0, MIB)
        except OSError as e:
            self.number = e.errno

    def outcome(self):
        self.join(10)
        assert not self.is_alive()
        return self.number


def waiting(medium, count):
    """Starts callers that wait for the flush in progress. A caller has read its number when it waits
    for the turn, which cannot be seen from outside: it starts before the flush in progress ends, and
    a caller that comes late needs a flush more, which the test would notice."""
    return [Caller(medium) for _ in range(count)]


def test_a_flush_that_had_begun_does_not_count(medium_of, sync):
    medium = medium_of()
    first = Caller(medium)
    sync.began.get(timeout=10)
    second = Caller(medium)
    sync.outcomes.put(None)
    assert first.outcome() is None
    sync.began.get(timeout=10)  # another one begins for the second caller
    sync.outcomes.put(None)
    assert second.outcome() is None and sync.count == 2


def test_one_flush_serves_all_that_wait_for_it(medium_of, sync):
    medium = medium_of()
    first = Caller(medium)
    sync.began.get(timeout=10)
    others = waiting(medium, 8)
    for _ in range(1 + len(others)):
        sync.outcomes.put(None)
    assert [each.outcome() for each in [first] + others] == [None] * 9
    assert sync.count <= 3  # 2, or one more for callers that came after the second had begun


def test_a_failed_flush_fails_every_caller_that_waits(medium_of, sync):
    medium = medium_of()
    first = Caller(medium)
    sync.began.get(timeout=10)
    others = waiting(medium, 8)
    sync.outcomes.put(errno.EIO)
    assert [each.outcome() for each in [first] + others] == [errno.EIO] * 9
    assert sync.count == 1 and medium.lost == errno.EIO


def test_a_failure_in_one_store_fails_the_flushes_of_others_with_the_same_flag(
    medium_of, monkeypatch
):
    flag = failure_flags.new_flag()
    mine, other, without = medium_of(flag=flag), medium_of(flag=flag), medium_of()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fdatasync', fail)
    with pytest.raises(OSError):
        mine.flush(0, MIB)
    with pytest.raises(OSError):
        without.flush(0, MIB)
    monkeypatch.undo()
    with pytest.raises(OSError) as caught:
        other.flush(0, MIB)
    assert caught.value.errno == errno.EIO and other.lost == errno.EIO
    medium_of().flush(0, MIB)  # a store without a flag concerns no other
    medium_of(flag=failure_flags.new_flag()).flush(0, MIB)


def test_a_failure_in_another_process_is_noticed(medium_of):
    flag = failure_flags.new_flag()
    medium = medium_of(flag=flag)
    medium.flush(0, MIB)
    child = os.fork()
    if not child:
        failure_flags.set_flag(flag)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError) as caught:
        medium.flush(0, MIB)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize('is_old_kernel, is_shared', [(True, False), (False, True)])
def test_processes_that_share_a_description_take_turns(
    medium_of, monkeypatch, is_old_kernel, is_shared
):
    """The child holds the turn, fails and sets the flag; the parent's flush, which succeeds, comes
    after it and must fail."""
    monkeypatch.setattr(compat, 'HAS_ERROR_PER_DESCRIPTION', not is_old_kernel)
    flag = failure_flags.new_flag()
    medium = medium_of(flag=flag, is_shared=is_shared)
    inside, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:

            def fail(descriptor):
                os.write(inside[1], b'x')
                os.read(go_on[0], 1)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            os.fdatasync = fail
            try:
                medium.flush(0, MIB)
            except OSError:
                code = 0
        finally:
            os._exit(code)
    os.read(inside[0], 1)  # the child's flush is in progress
    caller = Caller(medium)
    caller.join(0.2)
    assert caller.is_alive()  # it waits for its turn
    os.write(go_on[1], b'x')
    assert caller.outcome() == errno.EIO
    assert os.waitpid(child, 0)[1] == 0
    for each in inside + go_on:
        os.close(each)


@pytest.mark.parametrize(
    'release, version',
    [
        ('5.10.0-28-amd64', (5, 10)),
        ('4.9.0', (4, 9)),
        ('3.10.0-1160.el7', (3, 10)),
        ('odd', (0, 0)),
    ],
)
def test_kernel_versions(release, version):
    assert compat.kernel_version(release) == version


def test_processes_that_take_turns_on_two_media_do_not_deadlock(tmp_path, monkeypatch):
    """A POSIX lock belongs to a process, so the kernel sees a deadlock (EDEADLK) if one thread of each of
    two processes has the turn at one medium, and another thread waits for the turn at the other."""
    opened = [
        store.open_store({'path': str(tmp_path / name), 'size': MIB}) for name in ('one', 'two')
    ]
    media = [
        store.from_descriptor(
            dict(each.description(), flag=failure_flags.new_flag(), is_shared=True),
            os.dup(each.descriptor),
        )
        for each in opened
    ]
    monkeypatch.setattr(os, 'fdatasync', lambda descriptor: time.sleep(0.002))
    errors = mmap.mmap(-1, 1)

    def flush(medium):
        try:
            for _ in range(100):
                medium.flush(0, MIB)
        except OSError as e:
            errors[0] = e.errno

    def flush_both():
        threads = [threading.Thread(target=flush, args=(medium,)) for medium in media]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    child = os.fork()
    if not child:
        flush_both()
        os._exit(0)
    flush_both()
    os.waitpid(child, 0)
    for each in media + opened:
        each.close()
    assert errors[0] == 0, os.strerror(errors[0])
