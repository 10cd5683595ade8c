"""LUNs that are read-only at certain times: by a clock that the test moves."""

import time
from types import SimpleNamespace

import pytest
from test_master_health_watch import Loop

from targetd.config import model
from targetd.config.schedule_kinds import WeekTimes
from targetd.config.words import split
from targetd.master import fault_report
from targetd.master.exports.read_only_times import ReadOnlyTimes
from targetd.master.units import shared_state
from targetd.scsi import faults

THURSDAY = 0.0  # 1 January 1970
HOUR = 3600


class Units(object):
    def __init__(self):
        self.by_id, self.decisions = {}, []

    def apply_and_flush(self, unit, decision):
        unit.shared = decision.shared
        self.decisions.append(decision)

    def add(self, name, times='', **fields):
        lun = model.Lun(0, read_only_schedule=WeekTimes().read(split(times)), **fields)
        shared = shared_state.initial_state({'block_size': 512}, {}, 'boot')
        unit = SimpleNamespace(id=name, lun=lun, shared=shared, failure='', shrinkage='')
        self.by_id[name] = unit
        return unit


@pytest.fixture
def desk(monkeypatch):
    monkeypatch.setenv('TZ', 'UTC')
    time.tzset()
    desk = SimpleNamespace(loop=Loop(), units=Units())
    desk.times = ReadOnlyTimes(desk.loop, desk.units, desk.loop.clock)
    yield desk
    monkeypatch.undo()
    time.tzset()


def test_a_lun_is_read_only_in_its_times(desk):
    unit = desk.units.add('a/0', 'thu 08:00-18:00')
    assert desk.times.ordered(unit.lun) == faults.NONE
    desk.times.look()
    assert desk.units.decisions == []
    desk.loop.pass_time(8 * HOUR + 1)
    assert unit.shared.in_force == faults.READ_ONLY == desk.times.ordered(unit.lun)
    assert desk.units.decisions[0].attentions  # the WP bit has changed
    assert desk.times.described(unit) == 'is read-only until thu 18:00 (read-only-schedule)'
    assert 'read-only (read-only-schedule)' in fault_report.state_of(unit)
    desk.loop.pass_time(10 * HOUR)
    assert unit.shared.in_force == faults.NONE and desk.times.described(unit) == ''
    assert len(desk.units.decisions) == 2


def test_a_minute_later_is_soon_enough(desk):
    unit = desk.units.add('a/0', 'thu 00:01-00:02')
    desk.times.look()
    states = []
    for _ in range(4):
        states.append(unit.shared.in_force)
        desk.loop.pass_time(60.1)
    assert states == [faults.NONE, faults.READ_ONLY, faults.NONE, faults.NONE]


def test_without_a_schedule_there_is_no_timer(desk):
    unit = desk.units.add('a/0')
    desk.times.look()
    assert desk.loop.timers == [] and desk.times.decision(unit) is None
    unit.lun = desk.units.add('b/0', 'daily').lun
    desk.times.look()
    desk.times.look()
    assert len(desk.loop.timers) == 1
    assert desk.times.described(unit) == 'is read-only always'
    desk.times.close()
    assert desk.loop.timers == []


@pytest.mark.parametrize(
    'state, force', [('offline', faults.OFFLINE), ('read-only', faults.READ_ONLY)]
)
def test_what_the_administrator_orders_counts_at_any_time(desk, state, force):
    unit = desk.units.add('a/0', 'thu 08:00-18:00', state=state)
    desk.times.look()
    desk.loop.pass_time(9 * HOUR)
    desk.times.look()
    assert unit.shared.in_force == force and desk.times.described(unit) == ''
    unit.lun = unit.lun._replace(state='ready')
    desk.times.look()
    assert unit.shared.in_force == faults.READ_ONLY
