"""Changes of shared state: persisted, sent, acknowledged, answered, in this order; and a death at
each step of one."""

import errno
import json
import os

import pytest
from master_fakes import TARGET, FakeWorker, StillLoop, make_units, nexus

from targetd.config import model
from targetd.errors import StoreError
from targetd.master.processes.jobs import Jobs
from targetd.master.state.state_directory import StateDirectory
from targetd.master.units import transitions
from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS
from targetd.master.units.unit import Unit
from targetd.scsi import sam
from targetd.scsi.medium_state import FAILED, READY

KEY = '00000000000000aa'
FACTS = {'block_size': 512}


def broken():
    raise OSError(errno.EIO, 'Input/output error')


class FakeStore(object):
    kind, path, size, block_size, read_only = 'file', '/disk.img', 1 << 20, 512, False

    def __init__(self):
        self.descriptor = os.open(os.devnull, os.O_RDWR)
        self.is_open = True

    def description(self):
        return {'kind': self.kind, 'path': self.path, 'size': self.size}

    def close(self):
        if self.is_open:
            os.close(self.descriptor)
        self.is_open = False


class House(object):
    """Units with one unit and the workers of two nexuses; `events` is the order of what happened."""

    def __init__(self, path):
        self.loop = StillLoop()
        self.events = []
        self.units = make_units(self.loop, path, self.send, self.kill)
        self.state = self.units.replication.state
        save = self.state.save
        self.state.save = lambda key, state: (save(key, state), self.events.append('saved'))
        self.unit = self.export(0)
        self.one, self.two = FakeWorker('one'), FakeWorker('two')
        self.serve(self.one)
        self.serve(self.two)

    def export(self, lun):
        shared = transitions.initial(FACTS, {}, 'boot')
        unit = Unit(
            '%s/%d' % (TARGET, lun),
            'key%d' % lun,
            TARGET,
            model.Lun(lun),
            FakeStore(),
            dict(FACTS),
            shared,
        )
        self.units.add_unit(unit)
        return unit

    def serve(self, worker):
        return self.units.serve_session(worker, nexus(worker.name))

    def send(self, worker, message, descriptors):
        worker.sent.append(message)
        self.events.append((worker.name, message['do']))

    def kill(self, worker, why):
        worker.killed = why
        self.events.append((worker.name, 'killed'))

    def ask(self, worker, what, **more):
        message = dict(
            more, ask=what, id=len(worker.sent) + 100, unit=more.get('unit', self.unit.id)
        )
        self.units.on_request(worker, message)
        return message['id']

    def register(self, worker, key=KEY, action=6, old='0' * 16, kind=0):
        return self.ask(
            worker,
            'persistent-reserve-out',
            service_action=action,
            scope=0,
            type=kind,
            key=old,
            service_action_key=key,
            aptpl=False,
            all_tg_pt=False,
            unregister=False,
            transport_ids=None,
            target_ports=[],
        )

    def acknowledge(self, worker, index=-1):
        self.units.replication.on_acknowledge(
            worker, {'report': 'acknowledge', 'id': worker.of('change')[index]['id']}
        )


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.units.close_all()
    house.loop.close()


def test_a_claim_gets_units_with_descriptors_and_states(house):
    house.export(7)
    dicts, descriptors = house.serve(FakeWorker('three'))
    assert [(d['lun'], d['unit'], d['descriptor']) for d in dicts] == [
        (0, TARGET + '/0', 0),
        (7, TARGET + '/7', 1),
    ]
    assert len(descriptors) == 2
    assert dicts[0]['medium'] == READY and dicts[0]['reservations']['registrations'] == []
    json.dumps(dicts)


def test_a_change_is_saved_then_sent_to_all_then_answered(house):
    number = house.register(house.one)
    assert house.events == ['saved', ('one', 'change'), ('two', 'change')]
    house.acknowledge(house.one)
    assert house.one.of('answer') == []
    house.acknowledge(house.two)
    (answer,) = house.one.of('answer')
    assert answer == {'do': 'answer', 'id': number, 'status': sam.GOOD, 'sense': None, 'data': None}
    assert house.two.of('change')[0]['reservations']['registrations'][0]['key'] == KEY


def test_a_refusal_is_answered_at_once_and_nobody_else_hears_of_it(house):
    house.register(house.one, old=KEY, action=0)
    (answer,) = house.one.of('answer')
    assert answer['status'] == sam.RESERVATION_CONFLICT
    assert house.two.sent == [] and house.events == [('one', 'answer')]


def test_changes_of_a_unit_are_decided_one_after_the_other(house):
    house.register(house.one)
    house.register(house.two, key='00000000000000bb')
    assert len(house.two.of('change')) == 1
    for worker in (house.one, house.two):
        house.acknowledge(worker)
    assert len(house.two.of('change')) == 2 and len(house.one.of('answer')) == 1
    for worker in (house.one, house.two):
        house.acknowledge(worker)
    assert len(house.two.of('answer')) == 1
    assert len(house.unit.shared.reservations['registrations']) == 2


def test_units_do_not_wait_for_each_other(house):
    other = house.export(1)
    for worker in (house.one, house.two):
        other.workers[worker] = nexus(worker.name)
    house.register(house.one)
    house.ask(house.two, 'reserve', unit=other.id)
    assert other.shared.reservations['reserved_by'] is not None


def test_what_cannot_be_saved_is_refused_and_not_in_force(house):
    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    house.state.save = full
    house.register(house.one)
    (answer,) = house.one.of('answer')
    assert answer['status'] == sam.CHECK_CONDITION and bytes.fromhex(answer['sense'])[2] == 4
    assert house.two.sent == [] and house.unit.shared.reservations['registrations'] == []


def test_who_does_not_acknowledge_is_killed_and_its_death_counts(house):
    house.register(house.one)
    house.acknowledge(house.one)
    house.loop.pass_time(ACKNOWLEDGE_SECONDS - 0.1)
    assert house.two.killed is None
    house.loop.pass_time(0.1)
    assert 'acknowledge' in house.two.killed and house.one.killed is None
    assert house.one.of('answer') == []  # not before it is dead: until then it may still write
    house.units.end_session(house.two)
    assert house.one.of('answer')[0]['status'] == sam.GOOD


def test_the_other_dies_before_it_acknowledges(house):
    house.register(house.one)
    house.acknowledge(house.one)
    house.units.end_session(house.two)
    assert house.one.of('answer')[0]['status'] == sam.GOOD


def test_the_asker_dies_while_its_change_is_under_way(house):
    house.register(house.one)
    house.units.end_session(house.one)
    house.acknowledge(house.two)
    assert house.unit.shared.reservations['registrations'] and not house.unit.is_busy
    house.register(house.two, key='00000000000000bb')
    house.acknowledge(house.two)
    assert house.two.of('answer')[0]['status'] == sam.GOOD


def test_the_asker_dies_while_its_ask_waits(house):
    house.register(house.one)
    house.register(house.two, key='00000000000000bb')
    house.units.end_session(house.two)
    house.acknowledge(house.one)
    assert len(house.unit.shared.reservations['registrations']) == 1
    assert len(house.one.of('answer')) == 1


def test_a_lost_session_frees_its_reservation_and_the_others_are_told_without_delay(house):
    house.ask(house.one, 'reserve')
    house.acknowledge(house.one)
    house.acknowledge(house.two)
    house.units.end_session(house.one)
    assert house.two.of('change')[-1]['reservations']['reserved_by'] is None
    house.ask(house.two, 'reserve')
    assert house.unit.shared.reservations['reserved_by'] is not None


def test_a_session_that_is_lost_while_a_change_is_under_way(house):
    """Replicas get whole states in order: the last one they get is the one in force."""
    house.ask(house.one, 'reserve')
    house.units.end_session(house.one)
    assert house.unit.shared.reservations['reserved_by'] is None
    assert house.two.of('change')[-1]['reservations'] == house.unit.shared.reservations
    assert not house.unit.is_busy or house.two.of('answer') == []


def test_preempt_and_abort_answers_when_the_victim_is_quiet(house):
    house.register(house.one)
    house.acknowledge(house.one)
    house.acknowledge(house.two)
    house.register(house.two, key='00000000000000bb')
    house.acknowledge(house.one)
    house.acknowledge(house.two)
    house.register(house.two, key=KEY, action=5, old='00000000000000bb', kind=1)
    change = house.one.of('change')[-1]
    assert 'abort' in change and change['attentions'] == [[0x2A, 0x05]]
    assert 'abort' not in house.two.of('change')[-1]
    house.acknowledge(house.two)
    assert len(house.two.of('answer')) == 1
    house.acknowledge(house.one)
    assert len(house.two.of('answer')) == 2


def test_a_target_reset_is_answered_when_every_unit_is_reset(house):
    other = house.export(1)
    for worker in (house.one, house.two):
        other.workers[worker] = nexus(worker.name)
    house.ask(house.one, 'reset', function='target-warm-reset')
    assert {c['unit'] for c in house.two.of('change')} == {house.unit.id, other.id}
    for worker in (house.one, house.two):
        for index in (0, 1):
            assert house.one.of('answer') == []
            house.acknowledge(worker, index)
    assert house.one.of('answer')[0]['status'] == sam.GOOD
    assert house.two.of('change')[0]['attentions'] == [[0x29, 0x02]]


def test_asks_for_units_that_are_not_the_askers_are_refused(house):
    stranger = FakeWorker('stranger')
    house.units.on_request(stranger, {'ask': 'reserve', 'id': 1, 'unit': house.unit.id})
    assert stranger.of('answer')[0]['status'] == sam.CHECK_CONDITION
    house.units.on_request(house.one, {'ask': 'reserve', 'id': 2, 'unit': 'nothing'})
    assert bytes.fromhex(house.one.of('answer')[0]['sense'])[12] == 0x25
    assert house.unit.shared.reservations['reserved_by'] is None


def test_nonsense_costs_the_worker_its_life_and_nothing_else(house):
    house.ask(house.one, 'reset', function='format')
    assert house.one.killed
    house.ask(house.two, 'reserve')
    assert house.unit.shared.reservations['reserved_by'] is not None


def test_foreign_or_repeated_acknowledgements_are_nothing(house):
    house.register(house.one)
    house.units.replication.on_acknowledge(house.two, {'id': 'x'})
    house.acknowledge(house.one)
    house.acknowledge(house.one)
    assert house.one.of('answer') == []


def test_a_failed_unit_is_fenced_for_everybody_and_said_aloud(house, capfd):
    house.units.replication.on_failed(
        house.one,
        {'report': 'failed', 'unit': house.unit.id, 'text': 'fdatasync: Input/output error'},
    )
    assert [w.of('change')[-1]['medium'] for w in (house.one, house.two)] == [FAILED, FAILED]
    text = capfd.readouterr().err
    assert 'FAILED' in text and 'Input/output error' in text and 'targetdctl acknowledge' in text
    house.units.replication.on_failed(
        house.two, {'report': 'failed', 'unit': house.unit.id, 'text': 'again'}
    )
    assert house.unit.failure == 'fdatasync: Input/output error'


def test_only_who_serves_a_unit_can_fail_it(house):
    house.units.replication.on_failed(
        FakeWorker('stranger'), {'report': 'failed', 'unit': house.unit.id, 'text': 'x'}
    )
    assert house.unit.shared.medium == READY


def test_a_resize_tells_the_size_with_the_attention(house):
    house.units.replication.apply_decision(
        house.unit, transitions.resized(house.unit.shared, 2 << 20)
    )
    change = house.two.of('change')[-1]
    assert change['size'] == 2 << 20 and change['attentions'] == [[0x2A, 0x09]]


def test_a_unit_that_goes_answers_what_still_waits(house):
    house.register(house.one)
    house.register(house.two, key='00000000000000bb')
    house.units.remove_unit(house.unit)
    assert bytes.fromhex(house.two.of('answer')[0]['sense'])[12] == 0x25


def test_orders_of_units_are_done_when_everybody_acknowledged(house):
    done = []
    new = house.export(3)
    house.one.session = house.two.session = type('S', (), {'nexus': nexus('x')})
    house.units.replication.order_units(
        [house.one, house.two], add=[new], attentions=[(0x3F, 0x0E)], done=lambda: done.append(1)
    )
    order = house.two.of('units')[0]
    assert order['add'][0]['lun'] == 3 and order['attentions'] == [[0x3F, 0x0E]]
    house.units.replication.on_acknowledge(house.one, {'id': order['id']})
    assert not done
    house.units.end_session(house.two)
    assert done == [1]
    assert new.workers and house.two not in new.workers


def test_more_units_than_fit_one_message_follow(house):
    for lun in range(1, 450):
        house.export(lun)
    worker = FakeWorker('many')
    worker.session = type('S', (), {'nexus': nexus('many')})
    dicts, descriptors = house.serve(worker)
    house.loop.settle()
    assert len(dicts) == len(descriptors) == 120
    assert [len(m['add']) for m in worker.of('units')] == [120, 120, 90]
    assert all(m['add'][0]['descriptor'] == 0 for m in worker.of('units'))


@pytest.mark.parametrize(
    'fail, why',
    [(lambda descriptor: None, ''), (lambda descriptor: broken(), 'Input/output error')],
)
def test_flush_all_says_what_could_not_be_flushed(house, monkeypatch, fail, why):
    monkeypatch.setattr('targetd.master.units.logical_units.os.fdatasync', fail)
    jobs, results = Jobs(house.loop), []
    house.units.flush_all(jobs, results.extend)
    jobs.wait()
    assert results == [(house.unit, why)]


def test_find_by_id_and_by_target_and_number(house):
    assert house.units.find(house.unit.id) is house.unit
    assert house.units.find(TARGET + '/0') is house.unit
    assert house.units.find(TARGET + '/9') is None and house.units.find('x') is None


def test_state_files_are_whole_old_or_whole_new(tmp_path, monkeypatch):
    state = StateDirectory(str(tmp_path / 'state'))
    assert state.load('a') == {}
    state.save('a', {'x': 1})
    state.save('b', {'x': 2})
    assert state.load('a') == {'x': 1} and state.load('b') == {'x': 2}

    def fail(descriptor):
        raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
        patch.setattr('targetd.master.state.state_directory.os.fsync', fail)
        with pytest.raises(OSError):
            state.save('a', {'x': 3})
    assert state.load('a') == {'x': 1}
    assert [n for n in os.listdir(str(tmp_path / 'state' / 'units')) if n.endswith('.new')] == []
    state.save('a', {})
    state.save('a', {})
    assert state.load('a') == {}


def test_a_state_is_synced_before_and_its_directory_after_the_rename(tmp_path, monkeypatch):
    happened = []
    for name in ('fsync', 'rename'):
        real = getattr(os, name)
        monkeypatch.setattr(
            'targetd.master.state.state_directory.os.' + name,
            lambda *a, real=real, name=name: (happened.append(name), real(*a)),
        )
    StateDirectory(str(tmp_path)).save('a', {'x': 1})
    assert happened == ['fsync', 'rename', 'fsync']


@pytest.mark.parametrize(
    'content',
    ['', '{', '[]', '{"version": 1}', '{"version": 2, "state": {}}', '{"version": 1, "state": 3}'],
)
def test_a_damaged_state_is_never_taken_for_an_empty_one(tmp_path, content):
    state = StateDirectory(str(tmp_path))
    state.save('a', {'x': 1})
    with open(state.file_of('a'), 'w') as f:
        f.write(content)
    with pytest.raises(StoreError) as caught:
        state.load('a')
    assert state.file_of('a') in str(caught.value)
