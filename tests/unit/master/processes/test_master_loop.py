"""The event loop: timers, descriptors, signals, and failing callbacks."""

import os
import signal
import threading

import pytest

from targetd.master.processes.loop import READ, WRITE, Loop


@pytest.fixture
def ends():
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            pass


def test_timers_run_in_their_order_and_not_before_their_time(loop):
    ran = []
    loop.call_later(2, lambda: ran.append('second'))
    loop.call_later(1, lambda: ran.append('first'))
    loop.call_later(2, lambda: ran.append('third'))
    loop.settle()
    assert ran == []
    loop.pass_time(1)
    assert ran == ['first']
    loop.pass_time(1)
    assert ran == ['first', 'second', 'third']


def test_a_cancelled_timer_does_not_run(loop):
    ran = []
    timer = loop.call_later(1, lambda: ran.append(1))
    timer.cancel()
    timer.cancel()
    loop.pass_time(2)
    assert ran == []


def test_a_readable_descriptor_is_called_back_until_it_is_forgotten(loop, ends):
    seen = []
    loop.watch(ends[0], READ, seen.append)
    loop.settle()
    assert seen == []
    os.write(ends[1], b'x')
    loop.run_once(0)
    assert seen == [READ]
    loop.forget(ends[0])
    loop.forget(ends[0])
    loop.run_once(0)
    assert seen == [READ]


def test_a_second_watch_replaces_the_first(loop, ends):
    seen = []
    loop.watch(ends[1], WRITE, lambda events: seen.append('old'))
    loop.watch(ends[1], WRITE, lambda events: seen.append('new'))
    loop.run_once(0)
    assert seen == ['new']


def test_a_descriptor_forgotten_during_a_pass_is_not_called_in_it(loop):
    pairs = [os.pipe(), os.pipe()]
    seen = []

    def called(mine, other):
        seen.append(mine)
        loop.forget(other)

    loop.watch(pairs[0][0], READ, lambda events: called(0, pairs[1][0]))
    loop.watch(pairs[1][0], READ, lambda events: called(1, pairs[0][0]))
    for _, writing in pairs:
        os.write(writing, b'x')
    loop.run_once(0)
    assert len(seen) == 1
    for pair in pairs:
        for end in pair:
            os.close(end)


def test_a_failing_callback_is_logged_and_the_next_runs(loop, capfd):
    ran = []
    loop.call_later(1, lambda: 1 // 0)
    loop.call_later(1, lambda: ran.append(1))
    loop.pass_time(1)
    assert ran == [1]
    assert 'ZeroDivisionError' in capfd.readouterr().err


def test_signals_are_called_back_and_close_restores_their_handlers():
    before = signal.getsignal(signal.SIGUSR1)
    loop, seen = Loop(), []
    loop.on_signal(signal.SIGUSR1, lambda: seen.append('usr1'))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == []
    loop.run_once(5)
    assert seen == ['usr1']
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_no_signal_arrives_between_two_handlers(monkeypatch):
    """The interpreter would write a traceback: 'Signal 17 ignored due to race condition'."""
    loop = Loop()
    loop.on_signal(signal.SIGCHLD, lambda: None)
    change, pending = signal.signal, []

    def changed(number, handler):
        # others may run beside the tests
        signal.pthread_kill(threading.get_ident(), signal.SIGCHLD)
        pending.append(signal.SIGCHLD in signal.sigpending())
        return change(number, handler)

    monkeypatch.setattr(signal, 'signal', changed)
    loop.close()
    assert pending == [True]
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_run_ends_after_stop(loop):
    loop.call_later(0, loop.stop)
    loop.run()
