"""The order of a trim: no block is freed before every worker has acknowledged that it asks before it writes,
and a write that asks meanwhile goes on after it."""

from types import SimpleNamespace

import pytest
from master_fakes import StillLoop

from targetd.errors import TargetdError
from targetd.master.processes.jobs import JobResult
from targetd.master.units.trimming import TRIES, Trims
from targetd.scsi.medium_state import READY
from targetd.store.zeroes import WINDOW

KEY = ('file', 1, 2)
FIRST, SECOND = (0, WINDOW), (2 * WINDOW, WINDOW)


class Unit(SimpleNamespace):
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def make_unit(unit_id='a-0', key=KEY, **words):
    store = SimpleNamespace(
        key=key,
        size=4 * WINDOW,
        descriptor=5,
        kind='file',
        read_only=False,
        capabilities=SimpleNamespace(unmap=True, zeroes_after_unmap=True),
        description=dict,
    )
    unit = Unit(
        id=unit_id,
        store=store,
        shared=SimpleNamespace(operation=None, medium=READY),
        lun=SimpleNamespace(state='ready'),
        failure='',
        hanging=0,
        is_restoring=False,
        atomic=None,
        trim_window=None,
    )
    vars(unit).update(words)
    return unit


class Table(dict):
    def same_medium(self, unit):
        return [u for u in self.values() if u is not unit and u.store.key == unit.store.key]


class Master(object):
    """Trims with everything else under the control of the test. sent: [(unit, window, done)] of
    send_ranges; jobs: [(done, late)]."""

    def __init__(self, *units):
        self.units = Table((unit.id, unit) for unit in units)
        self.loop = StillLoop()
        self.sent, self.jobs = [], []
        tokens = SimpleNamespace(
            send_ranges=lambda unit, done=None: self.sent.append((unit, unit.trim_window, done))
        )
        self.state = SimpleNamespace(is_stopping=False)
        self.trims = Trims(self.loop, self, self.units, tokens, self.state)
        self.before_write = tokens.before_write
        self.gone_on = []

    def submit_job(self, name, work, done, kept=(), seconds=None, late=None):
        self.jobs.append((done, late))

    def settle(self, seconds=0.0):
        self.loop.pass_time(seconds)
        self.loop.settle()

    def answer(self, values=(), why='', is_late=False, late=False):
        done, after = self.jobs[0] if is_late else self.jobs.pop(0)
        (after if late else done)(JobResult(dict(values), [], why, is_late))
        self.settle(2.0)

    def found(self, *windows):
        """The search has found these windows, up to the end."""
        self.answer({'position': 4 * WINDOW, 'windows': [list(w) for w in windows]})

    def acknowledge(self):
        for _, _window, done in self.sent[:]:
            if done is not None:
                done()
        del self.sent[:]
        self.settle()

    def write(self, unit, offset, length=4096):
        self.before_write(unit, offset, length, lambda: self.gone_on.append(offset))


@pytest.fixture
def unit():
    return make_unit()


@pytest.fixture
def master(unit):
    found = Master(unit)
    found.trims.start(unit)
    found.settle()
    return found


def test_blocks_are_freed_after_the_acknowledgements(master, unit):
    master.found(FIRST)
    assert unit.trim_window == FIRST and not master.jobs
    master.acknowledge()
    assert master.trims.is_freeing(unit) and len(master.jobs) == 1
    master.answer({'freed': 5000})
    assert not master.trims.is_freeing(unit) and unit.trim_window is None
    assert master.trims.described(unit) == 'done: 5000 bytes freed'


def test_a_write_during_the_job_waits_for_it_and_others_do_not(master, unit):
    master.found(FIRST)
    master.acknowledge()
    master.write(unit, 4096)
    master.write(unit, 3 * WINDOW)
    assert master.gone_on == [3 * WINDOW]
    master.answer({'freed': 0})
    assert master.gone_on == [3 * WINDOW, 4096]


def test_a_window_that_is_written_while_it_is_announced_is_tried_again(master, unit):
    master.found(FIRST, SECOND)
    master.write(unit, 100)
    assert master.gone_on == [100], 'nothing is freed yet'
    master.acknowledge()
    assert unit.trim_window == SECOND and not master.jobs
    master.acknowledge()
    master.answer({'freed': 7})
    assert unit.trim_window is None, 'not watched during the pause'
    master.settle(2.0)
    assert unit.trim_window == FIRST
    master.acknowledge()
    master.answer({'freed': 8})
    assert master.trims.described(unit) == 'done: 15 bytes freed'


def test_a_window_that_is_always_written_is_left(master, unit):
    master.found(FIRST)
    for _ in range(TRIES + 1):
        assert unit.trim_window == FIRST
        master.write(unit, 100)
        master.acknowledge()
        master.settle(2.0)
    assert master.trims.described(unit) == 'done: 0 bytes freed, 1 part in use'


def test_a_medium_that_hangs_keeps_the_writes_waiting_until_the_job_has_ended(master, unit):
    master.found(FIRST)
    master.acknowledge()
    master.write(unit, 0)
    master.answer(why='there was no answer', is_late=True)
    master.settle(60.0)
    assert master.gone_on == [] and master.trims.is_freeing(unit)
    master.answer({'freed': 3}, late=True)
    assert master.gone_on == [0] and not master.trims.is_freeing(unit)


def test_a_job_that_fails_ends_the_trim_and_lets_writes_go_on(master, unit):
    master.found(FIRST)
    master.acknowledge()
    master.write(unit, 0)
    master.answer(why='Input/output error')
    assert master.gone_on == [0]
    assert master.trims.described(unit) == 'ended, Input/output error: 0 bytes freed'


def test_every_unit_of_the_medium_is_watched():
    one, two, other = make_unit(), make_unit('b-0'), make_unit('c-0', ('file', 1, 3))
    master = Master(one, two, other)
    master.trims.start(one)
    master.settle()
    master.found(FIRST)
    assert two.trim_window == FIRST and other.trim_window is None
    (_, _, done), _ = master.sent
    done()
    assert not master.jobs, 'only one of the two has acknowledged'
    master.sent[1][2]()
    master.write(two, 10)
    assert master.gone_on == [] and master.trims.is_freeing(two)
    with pytest.raises(TargetdError, match='already'):
        master.trims.start(two)


def test_a_unit_of_the_medium_that_appears_meanwhile_is_watched_first(master, unit):
    master.found(FIRST)
    new = make_unit('b-0')
    master.units['b-0'] = new
    master.acknowledge()
    assert not master.jobs
    master.settle(2.0)
    assert new.trim_window == FIRST
    master.acknowledge()
    assert len(master.jobs) == 1


def offline(unit):
    unit.lun.state = 'offline'


def sanitized(unit):
    unit.shared.operation = {'failed': ''}


def hanging(unit):
    unit.hanging = 2


@pytest.mark.parametrize('change', [offline, sanitized, hanging])
def test_a_unit_that_changes_before_the_job_is_left_alone(master, unit, change):
    master.found(FIRST)
    change(unit)
    with pytest.raises(TargetdError, match='already'):
        master.trims.start(unit)
    master.acknowledge()
    assert not master.jobs and unit.trim_window is None
    assert master.trims.described(unit).startswith('ended, ')
    with pytest.raises(TargetdError, match='cannot be trimmed'):
        master.trims.start(unit)


def test_a_unit_that_is_removed_ends_its_trim(master, unit):
    master.found(FIRST)
    del master.units[unit.id]
    master.acknowledge()
    assert not master.jobs and unit.trim_window is None


def test_stop_and_upgrade_end_it(master, unit):
    assert master.trims.stop(unit, 'the administrator has ended it')
    master.found(FIRST)
    assert master.trims.described(unit) == 'ended, the administrator has ended it: 0 bytes freed'
    assert not master.trims.stop(unit, 'again')
    master.trims.start(unit)
    master.settle()
    master.trims.stop_all('targetd is upgraded')
    master.found()
    assert master.trims.described(unit).startswith('ended, targetd is upgraded')
