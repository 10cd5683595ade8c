"""Requests for changes of shared state: saved, sent, acknowledged and answered, in this order; and a
worker's death at each of these steps."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
from master_fakes import TARGET, FakeWorker, StillLoop, make_units, nexus

from targetd import store
from targetd.config import model
from targetd.config.lun_maps import EVERY_LUN
from targetd.master.processes.jobs import Jobs
from targetd.master.units import logical_units, shared_state, transitions
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
    flag = 0
    key = None

    cipher_key = ''

    def __init__(self):
        self.claim = self.descriptor = os.open(os.devnull, os.O_RDWR)
        self.is_open = True

    def description(self):
        return {'kind': self.kind, 'path': self.path, 'size': self.size}

    def close(self):
        if self.is_open:
            os.close(self.descriptor)
        self.is_open = False


class Harness(object):
    """One unit and the workers of two nexuses; `events` has what happened, in order."""

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
        shared = shared_state.initial_state(FACTS, {}, 'boot')
        unit = Unit(
            '%s/%d' % (TARGET, lun),
            'key%d' % lun,
            TARGET,
            model.Lun(lun, sharing='cluster'),
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
def harness(tmp_path):
    harness = Harness(tmp_path)
    yield harness
    harness.units.close_all()
    harness.loop.close()


def test_a_claim_gets_units_with_descriptors_and_states(harness):
    harness.export(7)
    dicts, descriptors, more = harness.serve(FakeWorker('three'))
    assert not more
    assert [(d['lun'], d['unit'], d['descriptor']) for d in dicts] == [
        (0, TARGET + '/0', 0),
        (7, TARGET + '/7', 2),
    ]
    assert len(descriptors) == 4 and dicts[0]['claim'] == 1
    assert dicts[0]['medium'] == READY and dicts[0]['reservations']['registrations'] == []
    json.dumps(dicts)


def logging_in():
    worker = FakeWorker('three')
    worker.session = SimpleNamespace(nexus=nexus('three'), lun_map=EVERY_LUN)
    return worker


def numbers(worker):
    """[(LUNs that a `units` order added, is it the last of a login?)]"""
    return [([d['lun'] for d in order['add']], order['last']) for order in worker.of('units')]


def test_the_units_of_a_login_that_do_not_fit_in_one_message_follow_one_after_the_other(
    harness, monkeypatch
):
    monkeypatch.setattr(logical_units, 'UNITS_PER_MESSAGE', 2)
    units = [harness.export(lun) for lun in range(1, 7)]
    worker = logging_in()
    dicts, _, more = harness.serve(worker)
    assert [d['lun'] for d in dicts] == [0, 1] and more
    assert worker.of('units') == []
    harness.units._serve_more(worker, harness.units._incomplete[worker], units[1:])
    assert numbers(worker) == [([2, 3], False)]
    assert worker in units[2].workers and worker not in units[3].workers
    harness.units.remove_unit(units[3])  # LUN 4, before it was sent
    harness.register(harness.one)
    replication = harness.units.replication
    replication.on_acknowledge(worker, {'id': worker.of('units')[0]['id']})
    assert numbers(worker) == [([2, 3], False), ([5, 6], True)]
    replication.on_acknowledge(worker, {'id': worker.of('units')[1]['id']})
    assert len(worker.of('units')) == 2 and worker not in harness.units._incomplete


def test_no_more_units_are_sent_to_a_login_that_ended(harness, monkeypatch):
    monkeypatch.setattr(logical_units, 'UNITS_PER_MESSAGE', 1)
    units = [harness.export(lun) for lun in range(1, 4)]
    worker = logging_in()
    harness.serve(worker)
    harness.units._serve_more(worker, harness.units._incomplete[worker], units)
    assert numbers(worker) == [([1], False)]
    harness.units.end_session(worker)
    assert numbers(worker) == [([1], False)]
    assert not any(worker in unit.workers for unit in units)


def test_a_change_is_saved_then_sent_to_all_then_answered(harness):
    number = harness.register(harness.one)
    assert harness.events == ['saved', ('one', 'change'), ('two', 'change')]
    harness.acknowledge(harness.one)
    assert harness.one.of('answer') == []
    harness.acknowledge(harness.two)
    (answer,) = harness.one.of('answer')
    assert answer == {'do': 'answer', 'id': number, 'status': sam.GOOD, 'sense': None, 'data': None}
    assert harness.two.of('change')[0]['reservations']['registrations'][0]['key'] == KEY


def test_a_refusal_is_answered_at_once_and_sent_to_no_other_worker(harness):
    harness.register(harness.one, old=KEY, action=0)
    (answer,) = harness.one.of('answer')
    assert answer['status'] == sam.RESERVATION_CONFLICT
    assert harness.two.sent == [] and harness.events == [('one', 'answer')]


def test_changes_of_a_unit_are_decided_one_after_the_other(harness):
    harness.register(harness.one)
    harness.register(harness.two, key='00000000000000bb')
    assert len(harness.two.of('change')) == 1
    for worker in (harness.one, harness.two):
        harness.acknowledge(worker)
    assert len(harness.two.of('change')) == 2 and len(harness.one.of('answer')) == 1
    for worker in (harness.one, harness.two):
        harness.acknowledge(worker)
    assert len(harness.two.of('answer')) == 1
    assert len(harness.unit.shared.reservations['registrations']) == 2


def test_a_pending_change_of_one_unit_does_not_delay_another(harness):
    other = harness.export(1)
    for worker in (harness.one, harness.two):
        other.workers[worker] = nexus(worker.name)
    harness.register(harness.one)
    harness.ask(harness.two, 'reserve', unit=other.id)
    assert other.shared.reservations['reserved_by'] is not None


def test_a_change_that_cannot_be_saved_is_refused_and_not_in_force(harness):
    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    harness.state.save = full
    harness.register(harness.one)
    (answer,) = harness.one.of('answer')
    sense = bytes.fromhex(answer['sense'])
    assert answer['status'] == sam.CHECK_CONDITION
    assert (sense[2], sense[12], sense[13]) == (5, 0x55, 0x04)  # no space for the registration
    assert harness.two.sent == [] and harness.unit.shared.reservations['registrations'] == []


def test_a_worker_that_does_not_acknowledge_is_killed_and_its_death_counts(harness):
    harness.register(harness.one)
    harness.acknowledge(harness.one)
    harness.loop.pass_time(ACKNOWLEDGE_SECONDS - 0.1)
    assert harness.two.killed is None
    harness.loop.pass_time(0.1)
    assert 'acknowledge' in harness.two.killed and harness.one.killed is None
    assert harness.one.of('answer') == []  # not before it is dead, because it may write until then
    harness.units.end_session(harness.two)
    assert harness.one.of('answer')[0]['status'] == sam.GOOD


def test_another_worker_dies_before_it_acknowledges(harness):
    harness.register(harness.one)
    harness.acknowledge(harness.one)
    harness.units.end_session(harness.two)
    assert harness.one.of('answer')[0]['status'] == sam.GOOD


def test_the_requesting_worker_dies_while_its_change_is_pending(harness):
    harness.register(harness.one)
    harness.units.end_session(harness.one)
    harness.acknowledge(harness.two)
    assert harness.unit.shared.reservations['registrations'] and not harness.unit.is_busy
    harness.register(harness.two, key='00000000000000bb')
    harness.acknowledge(harness.two)
    assert harness.two.of('answer')[0]['status'] == sam.GOOD


def test_the_requesting_worker_dies_while_its_request_is_queued(harness):
    harness.register(harness.one)
    harness.register(harness.two, key='00000000000000bb')
    harness.units.end_session(harness.two)
    harness.acknowledge(harness.one)
    assert len(harness.unit.shared.reservations['registrations']) == 1
    assert len(harness.one.of('answer')) == 1


def test_a_lost_session_releases_its_reservation_at_once(harness):
    harness.ask(harness.one, 'reserve')
    harness.acknowledge(harness.one)
    harness.acknowledge(harness.two)
    harness.units.end_session(harness.one)
    assert harness.two.of('change')[-1]['reservations']['reserved_by'] is None
    harness.ask(harness.two, 'reserve')
    assert harness.unit.shared.reservations['reserved_by'] is not None


def test_a_session_that_is_lost_while_a_change_is_pending(harness):
    """Replicas receive whole states in order, so the last one is in force."""
    harness.ask(harness.one, 'reserve')
    harness.units.end_session(harness.one)
    assert harness.unit.shared.reservations['reserved_by'] is None
    assert harness.two.of('change')[-1]['reservations'] == harness.unit.shared.reservations
    assert not harness.unit.is_busy or harness.two.of('answer') == []


def log_out(harness):
    harness.units.log_out_session(harness.one, {'ask': 'leave', 'id': 9})
    return [answer['id'] for answer in harness.one.of('answer')]


def test_a_logout_is_answered_after_every_replica_has_released_the_reservation(harness):
    harness.ask(harness.one, 'reserve')
    for worker in (harness.one, harness.two):
        harness.acknowledge(worker)
    harness.one.sent.remove(harness.one.of('answer')[0])
    assert log_out(harness) == []
    assert harness.two.of('change')[-1]['reservations']['reserved_by'] is None
    for worker in (harness.one, harness.two):
        assert harness.one.of('answer') == []
        harness.acknowledge(worker)
    assert [answer['id'] for answer in harness.one.of('answer')] == [9]


def test_a_logout_without_a_reservation_is_answered_at_once(harness):
    assert log_out(harness) == [9]


def test_preempt_and_abort_is_answered_after_the_preempted_worker_acknowledges(harness):
    harness.register(harness.one)
    harness.acknowledge(harness.one)
    harness.acknowledge(harness.two)
    harness.register(harness.two, key='00000000000000bb')
    harness.acknowledge(harness.one)
    harness.acknowledge(harness.two)
    harness.register(harness.two, key=KEY, action=5, old='00000000000000bb', kind=1)
    change = harness.one.of('change')[-1]
    assert 'abort' in change and change['attentions'] == [[0x2A, 0x05]]
    assert 'abort' not in harness.two.of('change')[-1]
    harness.acknowledge(harness.two)
    assert len(harness.two.of('answer')) == 1
    harness.acknowledge(harness.one)
    assert len(harness.two.of('answer')) == 2


def test_a_target_reset_is_answered_when_every_unit_is_reset(harness):
    other = harness.export(1)
    for worker in (harness.one, harness.two):
        other.workers[worker] = nexus(worker.name)
    harness.ask(harness.one, 'reset', function='target-warm-reset')
    assert {c['unit'] for c in harness.two.of('change')} == {harness.unit.id, other.id}
    for worker in (harness.one, harness.two):
        for index in (0, 1):
            assert harness.one.of('answer') == []
            harness.acknowledge(worker, index)
    assert harness.one.of('answer')[0]['status'] == sam.GOOD
    assert harness.two.of('change')[0]['attentions'] == [[0x29, 0x02]]


def test_requests_for_units_that_the_worker_does_not_serve_are_refused(harness):
    stranger = FakeWorker('stranger')
    harness.units.on_request(stranger, {'ask': 'reserve', 'id': 1, 'unit': harness.unit.id})
    assert stranger.of('answer')[0]['status'] == sam.CHECK_CONDITION
    harness.units.on_request(harness.one, {'ask': 'reserve', 'id': 2, 'unit': 'nothing'})
    assert bytes.fromhex(harness.one.of('answer')[0]['sense'])[12] == 0x25
    assert harness.unit.shared.reservations['reserved_by'] is None


def test_a_malformed_request_kills_only_its_worker(harness):
    harness.ask(harness.one, 'reset', function='format')
    assert harness.one.killed
    harness.ask(harness.two, 'reserve')
    assert harness.unit.shared.reservations['reserved_by'] is not None


def test_unknown_and_repeated_acknowledgements_are_ignored(harness):
    harness.register(harness.one)
    harness.units.replication.on_acknowledge(harness.two, {'id': 'x'})
    harness.acknowledge(harness.one)
    harness.acknowledge(harness.one)
    assert harness.one.of('answer') == []


def test_a_failed_unit_is_fenced_for_all_nexuses_and_logged(harness, capfd):
    harness.units.replication.on_failed(
        harness.one,
        {'report': 'failed', 'unit': harness.unit.id, 'text': 'fdatasync: Input/output error'},
    )
    assert [w.of('change')[-1]['medium'] for w in (harness.one, harness.two)] == [FAILED, FAILED]
    text = capfd.readouterr().err
    assert 'FAILED' in text and 'Input/output error' in text and 'targetdctl acknowledge' in text
    harness.units.replication.on_failed(
        harness.two, {'report': 'failed', 'unit': harness.unit.id, 'text': 'again'}
    )
    assert harness.unit.failure == 'fdatasync: Input/output error'


def test_only_a_worker_with_a_replica_can_fail_a_unit(harness):
    harness.units.replication.on_failed(
        FakeWorker('stranger'), {'report': 'failed', 'unit': harness.unit.id, 'text': 'x'}
    )
    assert harness.unit.shared.medium == READY


def test_a_resize_sends_the_size_with_the_unit_attention(harness):
    harness.units.replication.apply_decision(
        harness.unit, transitions.resized(harness.unit.shared, 2 << 20)
    )
    change = harness.two.of('change')[-1]
    assert change['size'] == 2 << 20 and change['attentions'] == [[0x2A, 0x09]]


def test_removing_a_unit_refuses_its_queued_requests(harness):
    harness.register(harness.one)
    harness.register(harness.two, key='00000000000000bb')
    harness.units.remove_unit(harness.unit)
    assert bytes.fromhex(harness.two.of('answer')[0]['sense'])[12] == 0x25


def test_an_order_of_units_is_done_after_every_acknowledgement(harness):
    done = []
    new = harness.export(3)
    harness.one.session = harness.two.session = type(
        'S', (), {'nexus': nexus('x'), 'lun_map': EVERY_LUN}
    )
    harness.units.replication.order_units(
        [harness.one, harness.two],
        add=[new],
        attentions=[(0x3F, 0x0E)],
        done=lambda: done.append(1),
    )
    order = harness.two.of('units')[0]
    assert order['add'][0]['lun'] == 3 and order['attentions'] == [[0x3F, 0x0E]]
    harness.units.replication.on_acknowledge(harness.one, {'id': order['id']})
    assert not done
    harness.units.end_session(harness.two)
    assert done == [1]
    assert new.workers and harness.two not in new.workers


def test_units_that_do_not_fit_in_one_message_follow(harness):
    for lun in range(1, 450):
        harness.export(lun)
    worker = FakeWorker('many')
    worker.session = type('S', (), {'nexus': nexus('many'), 'lun_map': EVERY_LUN})
    dicts, descriptors, more = harness.serve(worker)
    assert (len(dicts), len(descriptors)) == (80, 160) and more
    for number in range(5):
        harness.loop.settle()
        assert len(worker.of('units')) == number + 1, 'one after the other'
        order = worker.of('units')[-1]
        harness.units.replication.on_acknowledge(worker, {'id': order['id']})
    assert [len(m['add']) for m in worker.of('units')] == [80, 80, 80, 80, 50]
    assert all(m['add'][0]['descriptor'] == 0 for m in worker.of('units'))


@pytest.mark.parametrize(
    'fail, why',
    [(lambda descriptor: None, ''), (lambda descriptor: broken(), 'Input/output error')],
)
def test_flush_all_reports_what_could_not_be_flushed(harness, tmp_path, monkeypatch, fail, why):
    monkeypatch.setattr('targetd.store.posix.os.fdatasync', fail)
    harness.unit.store.close()
    harness.unit.store = store.open_store({'path': str(tmp_path / 'disk.img'), 'size': 1 << 20})
    jobs, results = Jobs(harness.loop), []
    harness.units.flushes.jobs = jobs
    harness.units.flush_all(results.extend)
    jobs.wait()
    assert [(unit, error and error.strerror or "") for unit, error in results] == [
        (harness.unit, why)
    ]
    assert harness.unit.shared.medium == (FAILED if why else READY)


def test_find_by_id_and_by_target_and_number(harness):
    assert harness.units.find(harness.unit.id) is harness.unit
    assert harness.units.find(TARGET + '/0') is harness.unit
    assert harness.units.find(TARGET + '/9') is None and harness.units.find('x') is None


def test_a_thousand_files_are_flushed_by_few_processes_and_each_failure_is_its_own(
    harness, tmp_path, monkeypatch
):
    def flush(descriptor):
        if os.readlink('/proc/self/fd/%d' % descriptor).endswith('150.img'):
            broken()

    monkeypatch.setattr('targetd.store.posix.os.fdatasync', flush)
    forks = []

    def fork():
        forks.append(1)
        return os.fork()

    units = [harness.export(number) for number in range(1, 200)]
    for unit in units:
        unit.store.close()
        path = str(tmp_path / ('%d.img' % unit.lun.number))
        unit.store = store.open_store({'path': path, 'size': 1 << 20})
        unit.store.renew_flag(store.failure_flags.new_flag())
    jobs, results = Jobs(harness.loop, fork), []
    harness.units.flushes.jobs = jobs
    harness.units.flushes.flush_units(units, results.extend)
    jobs.wait()
    failed = [unit.lun.number for unit, error in results if error is not None]
    assert (len(results), failed) == (199, [150])
    assert len(forks) == 5  # 64, 64, 64, 7, and the failed one alone
    for unit in units:
        unit.store.close()
