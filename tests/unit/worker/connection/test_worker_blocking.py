"""A connection's thread in a call that takes long: which thread goes on with the connection."""

import queue
import threading
from time import monotonic

import pytest

from targetd.worker.connection.blocking import Blocking, TakenOver


class Thread(object):
    """A connection's thread. It does calls; each ends when the test ends it. results: what became of
    them, and whether the thread is in charge afterwards."""

    def __init__(self, blocking):
        self._blocking = blocking
        self._calls, self._ends = queue.Queue(), queue.Queue()
        self.began, self.results = queue.Queue(), queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        blocking = self._blocking
        blocking.begin()
        while True:
            try:
                self._calls.get(timeout=10)
            except queue.Empty:  # the test has ended
                return
            try:
                blocking.call(self._call, None)
                self.results.put(('returned', blocking.is_in_charge()))
            except TakenOver:
                self.results.put(('taken over', blocking.is_in_charge()))

    def _call(self, argument):
        self.began.put(True)
        self._ends.get(timeout=10)

    def call(self):
        self._calls.put(True)
        self.began.get(timeout=10)

    def end(self):
        self._ends.put(True)
        return self.results.get(timeout=10)


@pytest.fixture
def blocking():
    made = Blocking()
    made.started = []
    made.start = lambda: made.started.append(True)
    return made


def test_a_call_that_returns_in_time_changes_nothing(blocking):
    thread = Thread(blocking)
    for _ in range(2):
        thread.call()
        blocking.take_over(monotonic() - 60)
        assert thread.end() == ('returned', True)
    blocking.take_over(monotonic())
    assert not blocking.started


def test_another_thread_goes_on_while_a_call_takes_long(blocking):
    first = Thread(blocking)
    first.call()
    blocking.take_over(monotonic())
    blocking.take_over(monotonic())
    assert blocking.started == [True]
    assert first.end() == ('taken over', False)


def test_each_thread_notices_that_it_was_replaced_whatever_the_others_do(blocking):
    first = Thread(blocking)
    first.call()
    blocking.take_over(monotonic())
    second = Thread(blocking)
    second.call()
    blocking.take_over(monotonic())
    third = Thread(blocking)
    third.call()
    assert len(blocking.started) == 2
    assert first.end() == ('taken over', False)
    assert third.end() == ('returned', True)
    assert second.end() == ('taken over', False)
    third.call()
    assert third.end() == ('returned', True)
