"""Other maps for sessions that go on: nothing is given to one session before it was taken from another."""

from types import SimpleNamespace

import pytest
from master_fakes import TARGET, FakeWorker, nexus
from test_master_logical_units import Harness

from targetd.config import model
from targetd.config.map_kinds import LunMaps
from targetd.master.units import logical_units
from targetd.master.units.map_changes import MapChanges
from targetd.scsi.medium_state import ANSWERS, FENCED

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'


def lun_map(text):
    return LunMaps().item(['ALL'] + text.split())


class Desk(Harness):
    """Two LUNs, and the sessions of two initiators with maps; it is its own Sessions and Admission."""

    def __init__(self, path, sharing='exclusive'):
        self.maps, self.all, self.done = {}, [], []
        super(Desk, self).__init__(path)
        self.second = self.export(1)
        for unit in (self.unit, self.second):
            unit.forget_sessions()
            unit.lun = model.Lun(unit.lun.number, sharing=sharing)
            unit.store.kind = 'ram'
        self.admission = self
        self.map_changes = MapChanges(self.units, self)

    def log_in(self, worker, text):
        worker.session = SimpleNamespace(
            worker=worker,
            nexus=nexus(worker.name),
            initiator_name=nexus(worker.name).initiator_name,
            lun_map=lun_map(text),
            ended_why=None,
        )
        self.all.append(worker.session)
        dicts, _, _ = self.serve(worker)
        return [each['lun'] for each in dicts]

    def of_target(self, target_name):
        assert target_name == TARGET
        return list(self.all)

    def map_of(self, session):
        return self.maps.get(session.worker, session.lun_map)

    def change(self, **maps):
        self.maps = {
            getattr(self, name): lun_map(text) if text is not None else None
            for name, text in maps.items()
        }
        for worker in (self.one, self.two):
            del worker.sent[:]
        self.map_changes.change(TARGET, lambda: self.done.append(True))

    def orders(self, worker):
        """[(LUNs removed, LUNs added, LUNs replaced)] of the `units` orders to this worker."""
        return [
            (m['remove'], [u['lun'] for u in m['add']], [u['lun'] for u in m['replace']])
            for m in worker.of('units')
        ]

    def confirm(self, worker):
        """The worker acknowledges everything that it was sent."""
        for message in list(worker.sent):
            if message['do'] in ('units', 'change'):
                self.units.replication.on_acknowledge(worker, message)


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    desk.units.close_all()
    desk.loop.close()


def test_a_login_gets_the_luns_of_its_map_under_its_numbers(desk):
    assert desk.log_in(desk.one, '5=1') == [5]
    assert desk.log_in(desk.two, '0') == [0]
    assert desk.unit.workers == {desk.two: nexus('two')}
    assert desk.second.view_of(desk.one).number == 5


def test_a_lun_is_given_only_after_it_was_taken(desk):
    desk.log_in(desk.one, '0')
    desk.log_in(desk.two, '1')
    desk.change(one='none', two='3=0 1')
    assert desk.orders(desk.one) == [([0], [], [])] and desk.orders(desk.two) == []
    late = FakeWorker('late')  # logs in meanwhile: the first one may still write
    assert desk.log_in(late, '0') == [] and late in desk.unit.left_out
    desk.all.remove(late.session)
    desk.units.end_session(late)
    desk.confirm(desk.one)
    assert desk.orders(desk.two) == [([], [3], [])] and not desk.done
    desk.confirm(desk.two)
    assert desk.done and not desk.unit.leaving and desk.unit.view_of(desk.two).number == 3


def test_a_worker_that_dies_before_it_has_confirmed_delays_nobody(desk):
    desk.log_in(desk.one, '0')
    desk.log_in(desk.two, '1')
    desk.change(one='none', two='0 1')
    desk.one.session.ended_why = 'killed'
    desk.units.end_session(desk.one)
    desk.one.session = None
    desk.confirm(desk.two)
    assert desk.orders(desk.two) == [([], [0], [])] and desk.done


def test_the_right_to_write_is_taken_first_and_given_afterwards(desk):
    desk.log_in(desk.one, '0')
    desk.log_in(desk.two, '0:read-only 1')
    assert desk.unit.left_out == {desk.two: ONE}
    desk.units.end_session(desk.two)
    desk.all.pop()
    desk.change(one='0:read-only')
    assert desk.orders(desk.one) == [([], [], [0])] and desk.one in desk.unit.readers
    assert desk.one.of('units')[0]['replace'][0]['facts']['read_only']
    desk.confirm(desk.one)
    desk.confirm(desk.one)
    assert desk.done
    assert desk.log_in(desk.two, '0') == [0]
    desk.change(one='0')  # the second one holds it now
    assert desk.done == [True, True] and desk.one in desk.unit.readers
    desk.units.end_session(desk.two)
    desk.change(one='0')
    assert desk.orders(desk.one) == [([], [], [0])] and desk.one not in desk.unit.readers


def test_another_number_is_a_removal_and_an_addition(desk):
    desk.log_in(desk.one, '0 1')
    desk.change(one='1=0 0=1')
    assert desk.orders(desk.one) == [([0, 1], [], [])]
    desk.confirm(desk.one)
    assert desk.orders(desk.one)[1] == ([], [1, 0], [])


def test_requests_about_a_lun_that_is_taken_are_answered(desk):
    desk.log_in(desk.one, '0 1')
    desk.unit.is_busy = True
    number = desk.register(desk.one)
    desk.change(one='1')
    (answer,) = [m for m in desk.one.of('answer') if m['id'] == number]
    assert answer['sense'][4:6] == '05' and not desk.unit.queue


def test_a_session_without_a_map_loses_everything(desk):
    desk.log_in(desk.one, '0 1')
    desk.change(one=None)
    assert desk.orders(desk.one) == [([0, 1], [], [])]
    desk.confirm(desk.one)
    assert desk.done and len(desk.one.of('units')) == 1


def test_a_target_reset_reaches_only_the_luns_of_the_session(desk):
    desk.log_in(desk.one, '0')
    desk.log_in(desk.two, '1')
    del desk.two.sent[:]
    number = desk.ask(desk.one, 'reset', function='target-warm-reset')
    for _ in range(3):
        desk.confirm(desk.one)
    assert [m['id'] for m in desk.one.of('answer')][-1:] == [number]
    assert desk.two.sent == []


def test_a_hanging_command_of_a_lun_that_was_taken_is_forgotten(desk):
    desk.log_in(desk.one, '0')
    message = {'unit': desk.unit.id, 'commands': 1, 'command': 'READ(10)'}
    desk.units.hanging.on_hanging(desk.one, message)
    assert 'hanging' in desk.units.hanging.described(desk.unit)
    desk.change(one='none')
    desk.units.hanging.on_hanging(desk.one, message)  # it may still wait
    assert 'hanging' in desk.units.hanging.described(desk.unit)
    desk.confirm(desk.one)
    assert desk.units.hanging.described(desk.unit) == '' and desk.units.hanging.is_quiet


def test_a_fence_is_put_up_before_a_lun_that_was_taken_is_given(desk):
    desk.log_in(desk.one, '0')
    desk.log_in(desk.two, '1')
    desk.change(one='none', two='0 1')
    desk.units.hanging.on_fence(desk.one, {'id': 5, 'unit': desk.unit.id})
    desk.confirm(desk.one)
    (given,) = [m for m in desk.two.of('units') if m['add']]
    assert given['add'][0]['hanging'] == FENCED
    desk.units.hanging.on_fence_over(desk.one, {'unit': desk.unit.id})
    assert desk.two.of('change')[-1]['hanging'] == ANSWERS


def test_many_luns_are_given_in_several_orders(desk):
    desk.log_in(desk.one, 'none')
    for number in range(2, logical_units.UNITS_PER_MESSAGE + 10):
        desk.export(number).store.kind = 'ram'
    desk.change(one='all')
    assert len(desk.orders(desk.one)) == 1
    desk.confirm(desk.one)
    first, second = [added for _, added, _ in desk.orders(desk.one)]
    assert sorted(first + second) == list(range(logical_units.UNITS_PER_MESSAGE + 10))
    desk.confirm(desk.one)
    assert desk.done


def test_without_a_change_nothing_is_sent(desk):
    desk.log_in(desk.one, '0')
    desk.change(one='0')
    assert desk.done and desk.one.sent == []
