"""Executor: work is done by at most so many threads at once, and all of it."""

import threading

from targetd.worker.executor import Executor


def test_blocked_work_runs_side_by_side_up_to_the_limit():
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


def test_everything_is_done_with_one_thread():
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
    for _ in range(20):
        done = threading.Event()
        executor.submit(lambda _: (names.add(threading.current_thread().name), done.set()), None)
        assert done.wait(10)
    assert 1 <= len(names) <= 3  # a thread that has just finished may not be seen as idle yet
