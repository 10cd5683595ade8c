"""Reports of workers that change the records of a unit: collected, saved and sent to every replica."""

import errno

import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, make_units, nexus

from targetd.config import model
from targetd.master.units import shared_state
from targetd.master.units.replication import RECORDS_SECONDS, SAVE_SECONDS
from targetd.master.units.transitions import nexus_ports
from targetd.master.units.unit import Unit

FACTS = {'block_size': 512}
ONE, TWO = nexus('one'), nexus('two')


class Harness(object):
    """One unit and two workers; `sent` of each worker has the messages to it."""

    def __init__(self, loop, path):
        self.loop = loop
        self.units = make_units(loop, path)
        shared = shared_state.initial_state(FACTS, {}, 'boot')
        store = FakeStore(str(path / 'disk.img'))
        self.unit = Unit(
            TARGET + '/0',
            'key',
            TARGET,
            model.Lun(0, sharing='cluster'),
            store,
            dict(FACTS),
            shared,
        )
        self.units.add_unit(self.unit)
        self.one, self.two = FakeWorker('one'), FakeWorker('two')
        for worker in (self.one, self.two):
            self.units.serve_session(worker, nexus(worker.name))


@pytest.fixture
def harness(loop, tmp_path):
    harness = Harness(loop, tmp_path)
    yield harness
    harness.units.close_all()


ERROR = {'kind': 'read', 'errno': 5, 'offset': 512, 'length': 512, 'is_exact': False}


def note(harness, kind, message):
    harness.units.replication.on_note(
        harness.one, {'report': 'note', 'unit': harness.unit.id, 'kind': kind, 'note': message}
    )


def test_error_counts_are_collected_before_they_are_sent(harness):
    for _ in range(5):
        note(harness, 'error', ERROR)
    harness.loop.settle()
    # the first one changes the state of the unit, and is sent and saved at once
    assert [change['records']['errors']['read'] for change in harness.two.of('change')] == [1]
    harness.loop.pass_time(RECORDS_SECONDS + 0.1)
    assert [change['records']['errors']['read'] for change in harness.two.of('change')] == [1, 5]


def self_test(result, by=ONE):
    return {
        'code': 1,
        'result': result,
        'number': 0,
        'hours': 0,
        'address': None,
        'key': 0,
        'asc': 0,
        'ascq': 0,
        'by': list(nexus_ports(by)),
    }


def test_self_test_results_are_saved_and_sent_at_once(harness):
    note(harness, 'self-test', self_test(0))
    assert harness.two.of('change')[0]['records']['self_tests'][0]['result'] == 0
    assert harness.units.replication.state.load('key')['records']['self_tests'][0]['code'] == 1


def test_a_self_test_is_aborted_with_its_session(harness):
    note(harness, 'self-test', self_test(15))
    harness.units.end_session(harness.one)
    assert harness.unit.shared.records['self_tests'][0]['result'] == 2


@pytest.mark.parametrize(
    'kind, message',
    [
        ('set-timestamp', {'offset': 1}),
        ('error', {'kind': 'melt'}),
        ('self-test', None),
        ('self-test', self_test(0, TWO)),
    ],
)
def test_a_worker_that_sends_a_malformed_note_is_killed(harness, kind, message):
    note(harness, kind, message)
    assert harness.one.killed and harness.unit.shared.records['self_tests'] == []


def test_a_failure_that_cannot_be_saved_is_in_force_and_saved_as_soon_as_possible(
    harness, monkeypatch, capfd
):
    replication, save = harness.units.replication, harness.units.replication.state.save

    def fail(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(replication.state, 'save', fail)
    replication.fail_unit(harness.unit, 'flush failed')
    harness.loop.settle()
    assert harness.two.of('change')[0]['medium'] == 'failed'
    assert replication.state.load('key') == {} and replication.unsaved_units() == [harness.unit]
    harness.loop.pass_time(SAVE_SECONDS + 1)
    assert replication.unsaved_units() == [harness.unit]
    monkeypatch.setattr(replication.state, 'save', save)
    harness.loop.pass_time(SAVE_SECONDS + 1)
    assert replication.state.load('key')['failure'] == 'flush failed'
    assert replication.unsaved_units() == []
    assert 'its state is saved now' in capfd.readouterr().err


def test_the_state_that_this_server_saved_counts_more_than_what_a_job_read(harness):
    """A LUN is removed, and exported again while its last change is on the way to the disk."""
    replication, found = harness.units.replication, {'failure': 'read by a job'}
    assert replication.newest_saved('key', found) == found
    failed = harness.unit.shared._replace(failure='newer')
    replication.save_state(harness.unit, failed, lambda error: None)
    assert replication.newest_saved('key', found)['failure'] == 'newer'
    replication.save_state(harness.unit, harness.unit.shared, lambda error: None)
    assert replication.newest_saved('key', found) == {}


def test_a_state_that_could_not_be_saved_does_not_count(harness, monkeypatch):
    replication, found = harness.units.replication, {'failure': 'read by a job'}

    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(replication.state, 'save', full)
    failed = harness.unit.shared._replace(failure='newer')
    replication.save_state(harness.unit, failed, lambda error: None)
    assert replication.newest_saved('key', found) == found
