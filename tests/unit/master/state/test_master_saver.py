"""The child process that saves files of state-dir."""

import errno
import os
import signal

import pytest

from targetd.master.processes.loop import Loop
from targetd.master.state import saver as module
from targetd.master.state.saver import OutcomeUnknown, Saver


@pytest.fixture
def loop():
    each = Loop()
    yield each
    each.close()


@pytest.fixture
def saver(loop):
    each = Saver(loop)
    yield each
    each.close()


def until(loop, question):
    for _ in range(500):
        if question():
            return
        loop.run_once(0.02)
    raise AssertionError('the condition did not become true')


def test_files_are_written_in_order_and_none_at_once(loop, saver, tmp_path):
    done, path = [], str(tmp_path / 'units' / 'a.json')
    saver.write(path, 'one', lambda error: done.append(('one', error)))
    saver.write(path, 'two', lambda error: done.append(('two', error)))
    saver.write(str(tmp_path / 'units' / 'b'), 'three', lambda error: done.append(('three', error)))
    saver.when_idle(lambda: done.append('idle'))
    assert done == []
    until(loop, lambda: len(done) == 4)
    assert done == [('one', None), ('two', None), ('three', None), 'idle']
    assert open(path).read() == 'two' and sorted(os.listdir(os.path.dirname(path))) == [
        'a.json',
        'b',
    ]
    saver.write(path, None, lambda error: done.append(error))
    until(loop, lambda: len(done) == 5)
    assert not os.path.exists(path)


def test_an_error_is_that_of_the_child(loop, saver, tmp_path):
    done = []
    (tmp_path / 'units').write_text('')
    saver.write(str(tmp_path / 'units' / 'a'), 'x', done.append)
    saver.write(str(tmp_path / 'b'), 'x', done.append)
    until(loop, lambda: len(done) == 2)
    assert done[0].errno == errno.ENOTDIR and done[1] is None


def test_a_child_that_dies_or_does_not_answer(loop, saver, tmp_path, monkeypatch):
    """What waits fails with an unknown outcome, and the next file is written by another child."""
    done = []
    saver.write(str(tmp_path / 'a'), 'x', done.append)
    until(loop, lambda: done == [None])
    os.kill(saver._pid, signal.SIGSTOP)
    for name in ('b', 'c'):
        saver.write(str(tmp_path / name), 'x', done.append)
    os.kill(saver._pid, signal.SIGKILL)
    until(loop, lambda: len(done) == 3)
    assert all(isinstance(error, OutcomeUnknown) for error in done[1:])
    until(loop, lambda: saver.reap() or not saver._unreaped)
    monkeypatch.setattr(module, 'SECONDS', 0.3)
    saver.write(str(tmp_path / 'd'), 'x', done.append)
    until(loop, lambda: len(done) == 4)
    assert done[3] is None
    os.kill(saver._pid, signal.SIGSTOP)
    saver.write(
        str(tmp_path / 'e'),
        'x',
        lambda error: (done.append(error), saver.write('/', 'x', done.append)),
    )
    until(loop, lambda: len(done) == 6)
    assert done[4].errno == errno.ETIMEDOUT


def test_close_waits_for_what_is_left(loop, saver, tmp_path):
    saver.write(str(tmp_path / 'a'), 'x', lambda error: None)
    saver.close()
    assert (tmp_path / 'a').read_text() == 'x'
