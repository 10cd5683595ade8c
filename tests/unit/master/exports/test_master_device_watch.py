"""Real SCSI devices that go and return, and what their sessions learn from each other."""

from types import SimpleNamespace

import pytest

from targetd.config.model import Lun, Target
from targetd.errors import StoreError
from targetd.master.exports.device_watch import DeviceWatch
from targetd.master.units import shared_state
from targetd.master.units.transitions import Decision
from targetd.master.units.unit import Unit
from targetd.scsi import alua
from targetd.scsi.facts import DEFAULTS
from targetd.scsi.sam import Nexus

NAME = 'iqn.2026-11.test:real'
LUN = Lun(0, type='passthrough', backing_store='serial:HU1')
NEXUS = Nexus('iqn.2026-11.test:host', '00023d000001', NAME, 1)
OTHER = Nexus('iqn.2026-11.test:other', '00023d000002', NAME, 1)


class Loop(object):
    def __init__(self):
        self.timers = []

    def call_later(self, seconds, function):
        self.timers.append(function)
        return SimpleNamespace(cancel=lambda: self.timers.remove(function))

    def tick(self):
        timers, self.timers = self.timers, []
        for function in timers:
            function()


class Exports(object):
    """What DeviceWatch uses of Exports. outcome: of the next attempts to open the device."""

    def __init__(self):
        self.decisions, self.opened, self.loaded, self.closed = [], [], [], []
        self.units = SimpleNamespace(by_id={}, replication=SimpleNamespace())
        self.units.replication.apply_decision = lambda unit, decision: self.decisions.append(
            decision
        )
        self.outcome = StoreError('serial:HU1 names no SCSI device of this host')

    def open_media(self, wanted, done):
        self.opened.append(done)

    def answer(self):
        self.opened.pop(0)({(NAME, 0): self.outcome})

    def load_medium(self, unit, fresh, done):
        self.loaded.append(fresh)
        unit.store = fresh.store
        unit.path_problem = ''
        done()

    def close_unit(self, unit):
        self.closed.append(unit)


def unit(minor=3, kind='passthrough', name=NAME + '/0'):
    store = SimpleNamespace(
        kind=kind,
        key=(kind, 21, minor),
        descriptor=7,
        size=0,
        shown='/dev/sg%d, tape drive' % minor,
        path='x',
    )
    shared = shared_state.initial_state(DEFAULTS, {}, '', alua.initial([1]))
    return Unit(name, 'key', NAME, LUN, store, {'passthrough': True}, shared)


@pytest.fixture
def served():
    """(DeviceWatch, Exports, Loop, the Unit, set of minor numbers that are attached)."""
    loop, exports, attached, jobs = Loop(), Exports(), {3}, []
    watch = DeviceWatch(
        loop,
        exports,
        SimpleNamespace(submit_job=lambda *a: jobs.append(a)),
        lambda n: n[1] in attached,
    )
    watch.targets = lambda: {NAME: Target(NAME, luns={0: LUN})}
    found = unit()
    exports.units.by_id[found.id] = found
    watch.reconsider()
    return watch, exports, loop, found, attached, jobs


def test_nothing_is_opened_while_the_device_is_attached(served):
    watch, exports, loop, found, _, _ = served
    for _ in range(3):
        loop.tick()
    assert exports.opened == [] and found.path_problem == ''
    assert len(loop.timers) == 1
    watch.close()
    assert loop.timers == []


def test_without_such_units_there_is_no_timer(served):
    watch, exports, loop, found, _, _ = served
    exports.units.by_id.clear()
    loop.tick()
    assert loop.timers == []
    other = exports.units.by_id['x'] = unit(kind='block')
    watch.reconsider()
    assert loop.timers == [] and other.path_problem == ''


def test_a_device_that_is_gone_is_opened_when_it_is_back(served, caplog):
    watch, exports, loop, found, attached, _ = served
    attached.clear()
    loop.tick()
    assert 'not attached' in found.path_problem
    loop.tick()
    assert len(exports.opened) == 1  # one attempt at a time
    exports.answer()
    loop.tick()
    exports.outcome = unit(5)
    exports.outcome.facts = {'passthrough': True, 'peripheral_type': 1}
    attached.add(5)
    exports.answer()
    assert exports.loaded == [exports.outcome] and found.facts['peripheral_type'] == 1
    loop.tick()
    assert exports.opened == [] and found.path_problem == ''


def test_a_unit_that_was_removed_meanwhile_does_not_get_the_device(served):
    watch, exports, loop, found, attached, _ = served
    attached.clear()
    loop.tick()
    exports.units.by_id.clear()
    exports.outcome = unit(5)
    exports.answer()
    assert exports.closed == [exports.outcome] and exports.loaded == []


def test_a_lun_that_is_about_to_change_is_left_alone(served):
    watch, exports, loop, found, attached, _ = served
    watch.targets = lambda: {NAME: Target(NAME, luns={0: LUN._replace(backing_store='/dev/sg9')})}
    attached.clear()
    loop.tick()
    assert exports.opened == [] and found.path_problem


def test_a_unit_attention_is_for_the_other_sessions(served):
    watch, exports, _, found, _, _ = served
    found.workers = {'a': NEXUS, 'b': OTHER}
    watch.on_attention('a', {'unit': found.id, 'asc': 0x28, 'ascq': 0})
    (decision,) = exports.decisions
    assert isinstance(decision, Decision) and decision.shared is found.shared
    assert decision.attentions_of(NEXUS) == [] and decision.attentions_of(OTHER) == [[0x28, 0]]


@pytest.mark.parametrize(
    'worker, message',
    [
        ('stranger', {'unit': NAME + '/0', 'asc': 0x28, 'ascq': 0}),
        ('a', {'unit': 'another', 'asc': 0x28, 'ascq': 0}),
        ('a', {'unit': NAME + '/0', 'asc': 0x128, 'ascq': 0}),
        ('a', {'unit': NAME + '/0', 'asc': 0x28, 'ascq': -1}),
    ],
)
def test_a_report_that_no_session_sends_is_ignored(served, worker, message):
    watch, exports, _, found, _, _ = served
    found.workers = {'a': NEXUS}
    watch.on_attention(worker, message)
    found.store.kind = 'block'
    watch.on_attention('a', {'unit': found.id, 'asc': 0x28, 'ascq': 0})
    assert exports.decisions == []


def test_the_device_is_told_by_a_job_that_the_removal_is_allowed(served):
    watch, exports, _, found, _, jobs = served
    done = []
    exports.units.replication.allow_removal(found, lambda: done.append(1))
    ((name, work, answered, kept),) = jobs
    assert name == ('allow removal', found.id) and kept == [7] and done == []
    answered(None)
    assert done == [1]
    found.store.descriptor = None
    watch.allow_removal(found, lambda: done.append(2))
    assert done == [1, 2] and len(jobs) == 1


def test_a_reset_resets_the_device_if_the_administrator_wants_that(served):
    watch, exports, _, found, _, jobs = served
    answers = []
    assert exports.units.reset_device == watch.after_reset
    watch.after_reset(found, {'function': 'i-t-nexus-reset'}, answers.append)('outcome')
    watch.after_reset(found, {'function': 'clear-task-set'}, answers.append)('outcome')
    assert answers == ['outcome'] * 2 and jobs == []
    for why in ('', 'Device or resource busy'):
        watch.after_reset(found, {'function': 'logical-unit-reset'}, answers.append)('reset')
        name, _, answered, kept, _ = jobs.pop()
        assert name == ('reset', found.id) and kept == [7] and 'reset' not in answers
        answered(SimpleNamespace(why=why))
        assert answers.pop() == 'reset'
