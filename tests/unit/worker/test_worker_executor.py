"""Executor: all work is done, by at most the configured number of threads."""

import threading

from targetd.worker.executor import Executor


def test_blocked_work_runs_in_parallel_up_to_the_limit():
    executor = Executor(3)
    together = threading.Barrier(3, timeout=10)
    done = threading.Semaphore(0)

    def work(_):
        together.wait()
        done.release()

    for _ in range(3):
        executor.submit(work, None)
    for _ in range(3):
        assert done.acquire(timeout=10)


def test_all_work_is_done_in_order_with_one_thread():
    executor = Executor(1)
    seen = []
    last = threading.Event()
    for number in range(500):
        executor.submit(seen.append, number)
    executor.submit(lambda _: last.set(), None)
    assert last.wait(10) and seen == list(range(500))


def test_an_idle_thread_is_used_again():
    executor = Executor(8)
    names = set()

    def note_thread(done):
        names.add(threading.current_thread().name)
        done.set()

    for _ in range(20):
        done = threading.Event()
        executor.submit(note_thread, done)
        assert done.wait(10)
    assert 1 <= len(names) <= 3  # a thread that has just finished may not be seen as idle yet


def test_work_of_one_share_leaves_threads_to_the_others():
    executor = Executor(2)
    release, ran = threading.Event(), threading.Event()
    for _ in range(8):
        executor.submit(lambda _: release.wait(10), None, 'hanging')
    executor.submit(lambda _: ran.set(), None, 'healthy')
    assert ran.wait(10) and not release.is_set()
    release.set()


def test_each_share_has_as_many_threads_as_the_limit():
    executor = Executor(2)
    together = threading.Barrier(6, timeout=10)
    done = threading.Semaphore(0)

    def work(_):
        together.wait()
        done.release()

    for number in range(6):
        executor.submit(work, None, number % 3)
    for _ in range(6):
        assert done.acquire(timeout=10)


def test_the_order_within_a_share_is_kept():
    executor = Executor(1)
    seen, last = [], threading.Event()
    for number in range(300):
        executor.submit(seen.append, number, 'a')
        executor.submit(lambda _: None, None, 'b')
    executor.submit(lambda _: last.set(), None, 'a')
    assert last.wait(10) and seen == list(range(300))


def test_work_waits_for_a_thread_if_no_more_can_be_started(monkeypatch):
    executor = Executor(4)
    started = threading.Event()
    executor.submit(lambda _: started.wait(10), None, 'a')

    def fails(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, 'start', fails)
    done = threading.Semaphore(0)
    for number in range(20):
        executor.submit(lambda _: done.release(), None, number % 3)
    started.set()
    for _ in range(20):
        assert done.acquire(timeout=10)
    monkeypatch.undo()
    for number in range(20):  # the counts are right afterwards
        executor.submit(lambda _: done.release(), None, number % 3)
    for _ in range(20):
        assert done.acquire(timeout=10)
