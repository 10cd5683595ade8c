"""HangingUnits: who is told that a unit is fenced, and when the fence ends."""

from types import SimpleNamespace

import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, StillLoop, make_units, nexus

from targetd.config import model
from targetd.master.units import shared_state
from targetd.master.units.unit import Unit
from targetd.scsi import sam
from targetd.scsi.medium_state import ANSWERS, FENCED, HANGS

FACTS = {'block_size': 512}


class Harness(object):
    """Units of one target and two workers that serve them."""

    def __init__(self, path):
        self.path = path
        self.loop = StillLoop()
        self.units = make_units(self.loop, path)
        self.hanging = self.units.hanging
        self.unit = self.export(0)
        self.one, self.two = FakeWorker('one'), FakeWorker('two')
        for worker in (self.one, self.two):
            self.units.serve_session(worker, nexus(worker.name))
            worker.session = SimpleNamespace(initiator_name='iqn.2026-11.test:' + worker.name)

    def export(self, lun, key='key'):
        unit = Unit(
            '%s/%d' % (TARGET, lun),
            key,
            TARGET,
            model.Lun(lun, sharing='cluster'),
            FakeStore(str(self.path / 'disk.img')),
            dict(FACTS),
            shared_state.initial_state(FACTS, {}, 'boot'),
        )
        self.units.add_unit(unit)
        return unit

    def fence(self, worker, unit=None):
        self.hanging.on_fence(worker, {'ask': 'fence', 'id': 7, 'unit': (unit or self.unit).id})

    def acknowledge(self):
        """Both workers acknowledge every change."""
        for worker in (self.one, self.two):
            for message in worker.of('change'):
                self.units.replication.on_acknowledge(worker, {'id': message['id']})

    def states(self, worker):
        return [m['hanging'] for m in worker.of('change') if 'hanging' in m]

    def answers(self, worker):
        return [message['status'] for message in worker.of('answer')]


@pytest.fixture
def harness(tmp_path):
    harness = Harness(tmp_path)
    yield harness
    harness.units.close_all()
    harness.loop.close()


def test_a_fence_is_answered_when_every_worker_has_it_in_force(harness):
    harness.fence(harness.one)
    assert harness.states(harness.one) == harness.states(harness.two) == [FENCED]
    assert not harness.answers(harness.one)
    harness.acknowledge()
    assert harness.answers(harness.one) == [sam.GOOD]


def test_a_fence_ends_when_no_worker_has_one_there(harness):
    harness.fence(harness.one)
    harness.fence(harness.two)
    harness.acknowledge()
    harness.hanging.on_fence_over(harness.one, {'unit': harness.unit.id})
    assert harness.states(harness.two) == [FENCED]
    harness.hanging.worker_gone(harness.two)
    assert harness.states(harness.two) == [FENCED, ANSWERS]


def test_a_fence_holds_for_every_unit_of_the_same_data(harness):
    harness.export(1)
    other = harness.export(2, 'other key')
    harness.fence(harness.one)
    assert harness.hanging.is_fenced(harness.units.by_id[TARGET + '/1'])
    assert not harness.hanging.is_fenced(other)


def test_a_removed_unit_is_fenced_when_it_is_added_again(harness):
    harness.units.remove_unit(harness.unit)
    harness.fence(harness.one)
    assert harness.answers(harness.one) == [sam.GOOD]  # no worker has the unit
    again = harness.export(5)
    assert again.hanging == FENCED
    harness.hanging.on_fence_over(harness.one, {'unit': harness.unit.id})
    assert again.hanging == ANSWERS


def test_a_worker_without_the_unit_cannot_fence_it(harness):
    stranger = FakeWorker('stranger')
    harness.fence(stranger)
    assert harness.answers(stranger) == [sam.GOOD] and not harness.hanging.is_fenced(harness.unit)


def test_a_format_of_a_fenced_unit_ends_with_busy(harness):
    harness.fence(harness.one)
    harness.acknowledge()
    harness.units.on_request(
        harness.two, {'ask': 'operate', 'id': 9, 'unit': harness.unit.id, 'kind': 'format'}
    )
    assert harness.answers(harness.two) == [sam.BUSY]


def test_the_oldest_command_is_described_until_the_medium_answers(harness):
    report = {'unit': harness.unit.id, 'commands': 3, 'command': 'READ(10)', 'lba': 8}
    harness.hanging.on_hanging(harness.one, dict(report, milliseconds=7000))
    harness.hanging.on_hanging(harness.two, dict(report, milliseconds=5000, lba=None))
    text = harness.hanging.described(harness.unit)
    assert 'READ(10) of LBA 8 by iqn.2026-11.test:one, 6 commands' in text and '(7 s)' in text
    assert harness.states(harness.two) == [HANGS]
    harness.hanging.on_hanging(harness.two, {'unit': harness.unit.id, 'commands': 0})
    harness.hanging.session_over(harness.one)
    assert harness.hanging.described(harness.unit) == ''
    assert harness.states(harness.two) == [HANGS, ANSWERS]


def test_a_worker_that_cannot_be_killed_fences_what_it_has_reported(harness):
    other = harness.export(1, 'other key')
    other.workers[harness.one] = nexus('one')
    harness.hanging.on_hanging(
        harness.one, {'unit': harness.unit.id, 'commands': 1, 'milliseconds': 0}
    )
    done = []
    harness.hanging.fence_unkillable(harness.one, lambda: done.append(True))
    assert harness.hanging.is_fenced(harness.unit) and not harness.hanging.is_fenced(other)
    assert not done
    harness.acknowledge()
    assert done


def test_a_worker_that_cannot_be_killed_and_has_reported_nothing_fences_all_its_units(harness):
    other = harness.export(1, 'other key')
    other.workers[harness.one] = nexus('one')
    harness.hanging.fence_unkillable(harness.one, lambda: None)
    assert harness.hanging.is_fenced(harness.unit) and harness.hanging.is_fenced(other)
