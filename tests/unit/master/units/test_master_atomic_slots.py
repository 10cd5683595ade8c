"""Journals of atomic writes in the master: granted, retired, put right by a spare, found again
after a death of the server."""

import errno
import os

import pytest
from master_fakes import TARGET, FakeWorker, StillLoop, make_units, nexus

from targetd import compat
from targetd.config import model
from targetd.errors import StoreError
from targetd.master.exports.exports import Exports
from targetd.master.processes.jobs import Jobs
from targetd.master.units import atomic_slots
from targetd.scsi.medium_state import FAILED, READY
from targetd.store import journal, ranges

MIB = 1 << 20
OTHER = 'iqn.2026-11.test:other'
OLD, HALF = b'o' * 8192, b'n' * 4096 + b'o' * 4096


class House(object):
    """A server's exports, without workers."""

    def __init__(self, path):
        self.path = str(path)
        self.loop = StillLoop()
        self.jobs = Jobs(self.loop)
        self.repaired = []
        self.units = make_units(
            self.loop,
            self.path,
            self.send,
            jobs=self.jobs,
            on_repaired=lambda: self.repaired.append(None),
        )
        self.exports = Exports(self.loop, self.units, self.jobs)
        self.exports.server = 'server'

    def send(self, worker, message, descriptors):
        worker.sent.append(message)
        if message.get('id'):
            self.loop.call_later(
                0, lambda: self.units.replication.on_acknowledge(worker, {'id': message['id']})
            )

    def image(self, name='disk.img'):
        path = os.path.join(self.path, name)
        if not os.path.exists(path):
            with open(path, 'wb') as f:
                f.truncate(MIB)
        return path

    def export(self, number=0, target=TARGET, **settings):
        unit = self.opened(number, target, **settings)
        self.units.add_unit(unit)
        return unit

    def opened(self, number=0, target=TARGET, **settings):
        """A Unit that is not added. Raises StoreError."""
        lun = model.Lun(
            number, **dict({'backing_store': self.image(), 'atomic_writes': True}, **settings)
        )
        outcomes = {}
        self.exports.open_media([(model.Target(target), lun)], outcomes.update)
        self.jobs.wait()
        if isinstance(outcomes[target, number], StoreError):
            raise outcomes[target, number]
        return outcomes[target, number]

    def close(self, unit):
        self.units.remove_unit(unit)
        self.exports.close_unit(unit)

    def serve(self, name='one'):
        """(worker, its unit dict, its descriptors)."""
        worker = FakeWorker(name)
        (message,), descriptors = self.units.serve_session(worker, nexus(name))
        return worker, message, descriptors

    def journals(self):
        return os.listdir(os.path.join(self.path, 'atomic'))

    def content(self):
        with open(self.image(), 'rb') as f:
            return f.read(8192)

    def die_amid_a_write(self, worker, message, descriptors):
        """The worker locked, kept the old bytes, wrote half of the new ones, and is gone."""
        with open(self.image(), 'r+b') as f:
            f.write(HALF)
        locked = message['atomic']
        descriptor = descriptors[locked['descriptor']]
        assert compat.try_lock(descriptor, True, 0, 8192)
        slot = journal.opened(os.dup(descriptor), locked['slot'])
        slot.put(journal.Record(0, OLD, journal.sums_of(b'n' * 8192)))
        slot.close()
        self.units.end_session(worker)

    def repair(self):
        self.jobs.wait()
        self.loop.settle()

    def end(self):
        self.units.close_all()
        self.jobs.close()
        self.loop.close()

    def is_locked(self, unit):
        descriptor = ranges.another(unit.atomic.descriptor)
        try:
            return compat.is_locked(descriptor, 4096, 512)
        finally:
            os.close(descriptor)


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.end()


@pytest.fixture
def failing(monkeypatch):
    """Repairs that fail, until undo() is called."""
    monkeypatch.setattr(
        atomic_slots.Repair, 'write_back', lambda self: ({'failed': 'Input/output error'}, ())
    )
    return monkeypatch


# -- granted and retired ---------------------------------------------------------------------------


def test_each_session_has_a_slot_and_the_next_one_takes_what_is_free(house):
    unit = house.export()
    assert unit.facts['maximum_atomic_length'] == journal.LONGEST
    one, two = house.serve('one'), house.serve('two')
    assert [found[1]['atomic']['slot'] for found in (one, two)] == [0, 1]
    assert len(one[2]) == 2 and one[1]['descriptor'] == 0 and one[1]['atomic']['descriptor'] == 1
    house.units.end_session(one[0])
    assert house.serve('three')[1]['atomic']['slot'] == 0
    assert house.jobs.is_idle


def test_without_the_setting_nothing_is_granted_made_or_said(house):
    unit = house.export(atomic_writes=False)
    assert unit.atomic is None and 'maximum_atomic_length' not in unit.facts
    _, message, descriptors = house.serve()
    assert 'atomic' not in message and len(descriptors) == 1
    assert not os.path.exists(os.path.join(house.path, 'atomic'))


def test_the_journal_goes_with_the_last_unit_of_its_medium(house):
    one, two = house.export(0), house.export(1, target=OTHER)
    assert one.atomic is two.atomic and len(house.journals()) == 1
    for unit in (one, two):
        house.close(unit)
    assert house.journals() == []


def test_memory_has_its_journal_in_memory(house):
    unit = house.export(backing_store='', type='ram', size=MIB)
    assert unit.atomic.path is None and house.serve()[1]['atomic']['path'] is None
    assert not os.path.exists(os.path.join(house.path, 'atomic'))


def test_a_replaced_store_has_a_slot_of_its_own(house):
    unit = house.export()
    worker, _, _ = house.serve()
    worker.session = type('S', (), {'nexus': nexus('one')})
    house.units.replication.order_units([worker], replace=[unit])
    assert worker.of('units')[0]['replace'][0]['atomic']['slot'] == 1 and set(
        unit.atomic.slots
    ) == {0, 1}
    house.loop.settle()
    assert set(unit.atomic.slots) == {1}


def test_a_unit_that_is_closed_before_its_store_was_replaced_leaves_no_slot(house):
    unit = house.export()
    worker, _, _ = house.serve()
    worker.session = type('S', (), {'nexus': nexus('one')})
    house.units.replication.order_units([worker], replace=[unit])
    house.close(unit)
    house.loop.settle()
    assert house.journals() == []


# -- put right -------------------------------------------------------------------------------------


def test_a_write_that_a_dead_worker_left_half_done_is_taken_back_by_a_job(house):
    unit = house.export()
    house.die_amid_a_write(*house.serve())
    assert (
        house.is_locked(unit)
        and house.units.replication.atomic_writes.is_repairing(unit)
        and not house.repaired
    )
    house.repair()
    assert (
        house.content() == OLD
        and not house.is_locked(unit)
        and not house.units.replication.atomic_writes.is_repairing(unit)
    )
    assert house.repaired and unit.atomic.slots == {} and unit.shared.medium == READY


def test_what_cannot_be_taken_back_fails_the_unit_and_is_tried_again_when_the_administrator_says(
    house, failing
):
    unit = house.export()
    house.die_amid_a_write(*house.serve())
    house.repair()
    assert unit.shared.medium == FAILED and 'Input/output error' in unit.failure
    assert (
        house.is_locked(unit)
        and house.units.replication.atomic_writes.is_repairing(unit)
        and house.content() == HALF
    )
    failing.undo()
    assert house.exports.recover_unit(unit)
    house.repair()
    assert house.content() == OLD and not house.is_locked(unit) and unit.shared.medium == READY


def test_it_is_not_tried_again_while_the_first_try_still_waits_for_the_disk(house, monkeypatch):
    """It might write the old bytes later than those that others have written since."""
    unit = house.export()
    monkeypatch.setattr(house.jobs, 'is_stuck', lambda name: True)
    monkeypatch.setattr(atomic_slots.Repair, 'write_back', lambda self: os._exit(1))
    house.die_amid_a_write(*house.serve())
    house.repair()
    monkeypatch.setattr(atomic_slots.Repair, 'write_back', None)
    assert unit.shared.medium == FAILED and house.exports.recover_unit(unit)
    house.repair()
    assert (
        unit.shared.medium == FAILED and 'still waiting' in unit.failure and house.is_locked(unit)
    )


def test_a_unit_that_is_closed_meanwhile_is_repaired_all_the_same(house):
    unit = house.export()
    house.die_amid_a_write(*house.serve())
    house.close(unit)
    house.repair()
    assert house.content() == OLD and house.journals() == []


def test_a_medium_on_which_something_stays_half_done_is_not_opened_by_anybody(house, failing):
    unit = house.export()
    house.die_amid_a_write(*house.serve())
    house.close(unit)
    house.repair()
    for settings in ({}, {'atomic_writes': False}):
        with pytest.raises(StoreError):
            house.opened(**settings)
    assert house.content() == HALF


# -- after the server's death ----------------------------------------------------------------------


@pytest.mark.parametrize('settings', [{}, {'atomic_writes': False}])
def test_a_later_server_takes_it_back_before_it_serves(house, tmp_path, capfd, settings):
    house.export()
    house.units.replication.atomic_writes.is_stopping = True
    house.die_amid_a_write(*house.serve())
    house.units.close_all()
    assert house.content() == HALF and len(house.journals()) == 1
    later = House(tmp_path)
    unit = later.export(**settings)
    assert later.content() == OLD and len(later.journals()) == (1 if unit.atomic else 0)
    assert (
        '1 atomic writes that were in progress when targetd died were rolled back'
        in capfd.readouterr().err
    )
    later.end()


@pytest.mark.parametrize('settings', [{'filter': ('error write',)}, {'readonly': True}])
def test_what_cannot_be_taken_back_is_not_served(house, tmp_path, settings):
    house.export()
    house.units.replication.atomic_writes.is_stopping = True
    house.die_amid_a_write(*house.serve())
    house.units.close_all()
    later = House(tmp_path)
    with pytest.raises(StoreError) as caught:
        later.export(**settings)
    (name,) = later.journals()
    assert 'was incomplete' in str(caught.value) and os.path.join(
        later.path, 'atomic', name
    ) in str(caught.value)
    later.export()
    assert later.content() == OLD
    later.end()


# -- refusals --------------------------------------------------------------------------------------


def test_a_host_without_these_locks_is_refused_with_reason_and_remedy(house, monkeypatch):
    def old(*words):
        raise OSError(errno.EINVAL, 'Invalid argument')

    monkeypatch.setattr(compat, 'try_lock', old)
    with pytest.raises(StoreError) as caught:
        house.export()
    assert '3.15' in str(caught.value) and 'atomic-writes = no' in str(caught.value)
    assert house.journals() == []
    monkeypatch.undo()
    house.export()


def test_a_journal_that_cannot_be_made_is_refused(house):
    with open(os.path.join(house.path, 'atomic'), 'w'):
        pass
    with pytest.raises(StoreError) as caught:
        house.export()
    assert 'journal' in str(caught.value) and 'atomic-writes = no' in str(caught.value)


def test_everybody_locks_a_medium_or_nobody(house):
    house.export(0)
    with pytest.raises(StoreError) as caught:
        house.export(1, target=OTHER, atomic_writes=False)
    assert TARGET in str(caught.value) and 'atomic-writes' in str(caught.value)
    changed = house.opened(0, atomic_writes=False)  # a reload that changes it
    house.exports.close_unit(changed)
