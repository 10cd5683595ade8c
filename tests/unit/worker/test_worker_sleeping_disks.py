"""A worker's part of a disk that sleeps: the order to sleep is acknowledged when no write is in progress."""

import threading
from types import SimpleNamespace

import pytest

from targetd.store.sleeping import FALLING, ROTATES, STOPPED, Sleep
from targetd.worker import sleeping_disks


class Worker(object):
    """Answers the question at once."""

    def __init__(self, status=0):
        self.asked, self.status = [], status

    def ask_master(self, what, answered, **words):
        self.asked.append((what, words))
        answered({'status': self.status, 'sense': None, 'descriptors': []})


def unit(sleep):
    return SimpleNamespace(services=SimpleNamespace(sleep=sleep))


def test_a_unit_without_the_setting_has_no_sleep():
    assert sleeping_disks.sleep_of(Worker(), {'unit': 'a/0', 'sleep': None}) is None
    assert sleeping_disks.sleep_of(Worker(), {'unit': 'a/0'}) is None
    done = []
    sleeping_disks.apply(unit(None), FALLING, lambda: done.append(1))
    sleeping_disks.apply(None, FALLING, lambda: done.append(2))
    assert done == [1, 2]


def test_the_master_is_asked_to_wake():
    worker = Worker()
    sleep = sleeping_disks.sleep_of(worker, {'unit': 'a/0', 'sleep': STOPPED})
    assert sleep.state == STOPPED
    sleep.wake()
    assert worker.asked == [('wake', {'unit': 'a/0'})]


def test_a_master_that_refuses_is_an_error_of_the_medium():
    sleep = sleeping_disks.sleep_of(Worker(status=8), {'unit': 'a/0', 'sleep': STOPPED})
    with pytest.raises(OSError):
        sleep.wake()


@pytest.mark.parametrize('state', [ROTATES, FALLING, STOPPED])
def test_without_writes_every_state_is_acknowledged_at_once(state):
    sleep, done = Sleep(ROTATES, None), []
    sleeping_disks.apply(unit(sleep), state, lambda: done.append(sleep.state))
    assert done == [state]


def test_sleep_is_acknowledged_after_the_last_write():
    sleep, done = Sleep(ROTATES, None), threading.Event()
    sleep.writes += ['one', 'two']
    sleeping_disks.apply(unit(sleep), FALLING, done.set)
    assert sleep.state == FALLING
    sleep.writes.remove('one')
    assert not done.wait(5 * sleeping_disks.LOOK_SECONDS)
    sleep.writes.remove('two')
    assert done.wait(20)
