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
