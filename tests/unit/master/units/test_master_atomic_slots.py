"""Journals of atomic writes in the master: slots are granted and retired, incomplete writes are rolled
back, also by the next server."""

import errno
import os

import pytest
from master_fakes import TARGET, FakeWorker, StillLoop, make_units, nexus

from targetd import compat
from targetd.config import model
from targetd.config.lun_maps import EVERY_LUN
from targetd.errors import StoreError
from targetd.master.exports.exports import Exports
from targetd.master.processes.jobs import Jobs
from targetd.master.state import journal_recovery
from targetd.master.units import atomic_slots
from targetd.scsi.medium_state import FAILED, READY
from targetd.store import journal, linux

MIB = 1 << 20
OTHER = 'iqn.2026-11.test:other'
OLD, HALF = b'o' * 8192, b'n' * 4096 + b'o' * 4096


class Harness(object):
    """The exports and units of a server, without worker processes."""

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
        """A Unit that is opened but not exported. Raises StoreError."""
        defaults = {
            'backing_store': self.image(),
            'atomic_writes': True,
            'allow_in_use': True,
            'sharing': 'cluster',
        }
        lun = model.Lun(number, **dict(defaults, **settings))
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
        (message,), descriptors, _ = self.units.serve_session(worker, nexus(name))
        return worker, message, descriptors

    def journals(self):
        return os.listdir(os.path.join(self.path, 'atomic'))

    def content(self):
        with open(self.image(), 'rb') as f:
            return f.read(8192)

    def die_amid_a_write(self, worker, message, descriptors):
        """The worker locked the range, saved the old bytes in its journal, wrote half of the new ones,
        and died."""
        with open(self.image(), 'r+b') as f:
            f.write(HALF)
        locked = message['atomic']
        descriptor = descriptors[locked['descriptor']]
        assert compat.try_lock(descriptor, True, 0, 8192)
        slot = journal.open_slot(os.dup(descriptor), locked['slot'])
        slot.put_record(journal.Record(0, OLD, journal.sums_of(b'n' * 8192)))
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
        descriptor = linux.reopen(unit.atomic.descriptor)
        try:
            return compat.is_locked(descriptor, 4096, 512)
        finally:
            os.close(descriptor)


@pytest.fixture
def harness(tmp_path):
    harness = Harness(tmp_path)
    yield harness
    harness.end()


@pytest.fixture
def failing(monkeypatch):
    """Repairs fail until undo() is called."""
    monkeypatch.setattr(
        atomic_slots.Repair, 'write_back', lambda self: ({'failed': 'Input/output error'}, ())
    )
    return monkeypatch


# -- granting and retiring slots ---------------------------------------------------------------------------


def test_each_session_gets_a_slot_and_a_freed_slot_is_granted_again(harness):
    unit = harness.export()
    assert unit.facts['maximum_atomic_length'] == journal.LONGEST
    one, two = harness.serve('one'), harness.serve('two')
    assert [found[1]['atomic']['slot'] for found in (one, two)] == [0, 1]
    places = one[1]['descriptor'], one[1]['claim'], one[1]['atomic']['descriptor']
    assert len(one[2]) == 3 and places == (0, 1, 2)
    harness.units.end_session(one[0])
    assert harness.serve('three')[1]['atomic']['slot'] == 0
    assert harness.jobs.is_idle


def test_without_the_setting_there_is_no_journal_and_no_slot(harness):
    unit = harness.export(atomic_writes=False)
    assert unit.atomic is None and 'maximum_atomic_length' not in unit.facts
    _, message, descriptors = harness.serve()
    assert 'atomic' not in message and len(descriptors) == 2
    assert not os.path.exists(os.path.join(harness.path, 'atomic'))


def test_the_journal_is_removed_with_the_last_unit_of_its_medium(harness):
    one, two = harness.export(0), harness.export(1, target=OTHER)
    assert one.atomic is two.atomic and len(harness.journals()) == 1
    for unit in (one, two):
        harness.close(unit)
    assert harness.journals() == []


def test_a_ram_disk_has_its_journal_in_memory(harness):
    unit = harness.export(backing_store='', type='ram', size=MIB)
    assert unit.atomic.path is None and harness.serve()[1]['atomic']['path'] is None
    assert not os.path.exists(os.path.join(harness.path, 'atomic'))


def test_a_replaced_store_gets_another_slot(harness):
    unit = harness.export()
    worker, _, _ = harness.serve()
    worker.session = type('S', (), {'nexus': nexus('one'), 'lun_map': EVERY_LUN})
    harness.units.replication.order_units([worker], replace=[unit])
    assert worker.of('units')[0]['replace'][0]['atomic']['slot'] == 1 and set(
        unit.atomic.slots
    ) == {0, 1}
    harness.loop.settle()
    assert set(unit.atomic.slots) == {1}


def test_closing_a_unit_during_the_replacement_of_its_store_retires_both_slots(harness):
    unit = harness.export()
    worker, _, _ = harness.serve()
    worker.session = type('S', (), {'nexus': nexus('one'), 'lun_map': EVERY_LUN})
    harness.units.replication.order_units([worker], replace=[unit])
    harness.close(unit)
    harness.loop.settle()
    assert harness.journals() == []


# -- the room of a journal in state-dir ------------------------------------------------------------


def room_of(unit):
    return os.fstat(unit.atomic.descriptor).st_size // journal.SLOT


def test_the_job_that_opens_a_medium_creates_its_journal(harness, monkeypatch):
    master, creators = os.getpid(), os.path.join(harness.path, 'creators')
    create = journal_recovery.create_journal

    def noted(path):
        with open(creators, 'a') as file:
            print(os.getpid(), file=file)
        return create(path)

    monkeypatch.setattr(journal_recovery, 'create_journal', noted)
    unit = harness.export()
    with open(creators) as file:
        (creator,) = file.read().split()
    assert int(creator) != master
    assert room_of(unit) == journal.READY_SLOTS
    assert os.fstat(unit.atomic.descriptor).st_blocks == 0


def test_a_job_extends_the_journal_before_its_room_is_used_up(harness, monkeypatch):
    monkeypatch.setattr(journal, 'READY_SLOTS', 4)
    unit = harness.export()
    master, truncate = os.getpid(), os.ftruncate

    def not_in_master(*arguments):
        assert os.getpid() != master
        truncate(*arguments)

    monkeypatch.setattr(os, 'ftruncate', not_in_master)
    for name in ('one', 'two'):
        harness.serve(name)
    assert harness.jobs.is_idle and room_of(unit) == 4
    harness.serve('three')
    harness.jobs.wait()
    assert room_of(unit) == 8 and not unit.atomic.is_extending


def test_a_session_is_refused_if_the_room_is_used_up_and_the_job_has_not_ended(
    harness, monkeypatch
):
    unit = harness.export()
    unit.atomic.is_extending = True
    os.truncate(unit.atomic.path, journal.SLOT)
    assert harness.serve('one')[1]['atomic']['slot'] == 0
    with pytest.raises(OSError) as caught:
        unit.atomic.grant_slot()
    assert caught.value.errno == errno.EAGAIN and set(unit.atomic.slots) == {0}
    unit.atomic.is_extending = False
    harness.serve('two')
    harness.jobs.wait()
    assert set(unit.atomic.slots) == {0, 1} and room_of(unit) == 2 + journal.READY_SLOTS


def test_a_journal_that_was_removed_while_it_was_opened_is_not_used(tmp_path, monkeypatch):
    """After a crash, nothing would find what was written to it."""
    path = str(tmp_path / 'journal')
    monkeypatch.setattr(journal_recovery, 'lock_journal', lambda descriptor, path: os.unlink(path))
    with pytest.raises(StoreError) as caught:
        journal_recovery.create_journal(path)
    assert 'was removed' in str(caught.value)


# -- rollback -------------------------------------------------------------------------------------


def test_an_incomplete_write_of_a_dead_worker_is_rolled_back_by_a_job(harness):
    unit = harness.export()
    harness.die_amid_a_write(*harness.serve())
    assert (
        harness.is_locked(unit)
        and harness.units.replication.atomic_writes.is_repairing(unit)
        and not harness.repaired
    )
    harness.repair()
    assert (
        harness.content() == OLD
        and not harness.is_locked(unit)
        and not harness.units.replication.atomic_writes.is_repairing(unit)
    )
    assert harness.repaired and unit.atomic.slots == {} and unit.shared.medium == READY


def test_a_failed_rollback_fails_the_unit_and_is_retried_after_acknowledge(harness, failing):
    unit = harness.export()
    harness.die_amid_a_write(*harness.serve())
    harness.repair()
    assert unit.shared.medium == FAILED and 'Input/output error' in unit.failure
    assert (
        harness.is_locked(unit)
        and harness.units.replication.atomic_writes.is_repairing(unit)
        and harness.content() == HALF
    )
    failing.undo()
    assert harness.exports.recovery.recover_unit(unit, lambda error: None)
    harness.repair()
    assert harness.content() == OLD and not harness.is_locked(unit) and unit.shared.medium == READY


def test_a_rollback_is_not_retried_while_the_first_one_waits_for_the_disk(harness, monkeypatch):
    """Its old bytes could overwrite newer ones."""
    unit = harness.export()
    monkeypatch.setattr(harness.jobs, 'is_stuck', lambda name: True)
    monkeypatch.setattr(atomic_slots.Repair, 'write_back', lambda self: os._exit(1))
    harness.die_amid_a_write(*harness.serve())
    harness.repair()
    monkeypatch.setattr(atomic_slots.Repair, 'write_back', None)
    assert unit.shared.medium == FAILED and harness.exports.recovery.recover_unit(
        unit, lambda error: None
    )
    harness.repair()
    assert (
        unit.shared.medium == FAILED and 'still waiting' in unit.failure and harness.is_locked(unit)
    )


def test_a_rollback_is_completed_after_its_unit_was_closed(harness):
    unit = harness.export()
    harness.die_amid_a_write(*harness.serve())
    harness.close(unit)
    harness.repair()
    assert harness.content() == OLD and harness.journals() == []


def test_a_medium_with_an_incomplete_write_cannot_be_opened(harness, failing):
    unit = harness.export()
    harness.die_amid_a_write(*harness.serve())
    harness.close(unit)
    harness.repair()
    for settings in ({}, {'atomic_writes': False}):
        with pytest.raises(StoreError):
            harness.opened(**settings)
    assert harness.content() == HALF


# -- after the death of the server ----------------------------------------------------------------------


@pytest.mark.parametrize('settings', [{}, {'atomic_writes': False}])
def test_the_next_server_rolls_an_incomplete_write_back_before_it_serves(
    harness, tmp_path, capfd, settings
):
    harness.export()
    harness.units.replication.atomic_writes.is_stopping = True
    harness.die_amid_a_write(*harness.serve())
    harness.units.close_all()
    assert harness.content() == HALF and len(harness.journals()) == 1
    later = Harness(tmp_path)
    unit = later.export(**settings)
    assert later.content() == OLD and len(later.journals()) == (1 if unit.atomic else 0)
    assert (
        '1 atomic writes that were in progress when targetd died were rolled back'
        in capfd.readouterr().err
    )
    later.end()


@pytest.mark.parametrize('settings', [{'filter': ('error write',)}, {'readonly': True}])
def test_a_medium_whose_rollback_fails_at_the_start_is_not_served(harness, tmp_path, settings):
    harness.export()
    harness.units.replication.atomic_writes.is_stopping = True
    harness.die_amid_a_write(*harness.serve())
    harness.units.close_all()
    later = Harness(tmp_path)
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


def test_a_kernel_without_these_locks_is_refused_with_reason_and_remedy(harness, monkeypatch):
    def old(*words):
        raise OSError(errno.EINVAL, 'Invalid argument')

    monkeypatch.setattr(compat, 'try_lock', old)
    with pytest.raises(StoreError) as caught:
        harness.export()
    assert '3.15' in str(caught.value) and 'atomic-writes = no' in str(caught.value)
    assert harness.journals() == []
    monkeypatch.undo()
    harness.export()


def test_a_journal_that_cannot_be_created_is_refused(harness):
    with open(os.path.join(harness.path, 'atomic'), 'w'):
        pass
    with pytest.raises(StoreError) as caught:
        harness.export()
    assert 'journal' in str(caught.value) and 'atomic-writes = no' in str(caught.value)


def test_all_luns_of_a_medium_must_have_the_same_atomic_writes(harness):
    harness.export(0)
    with pytest.raises(StoreError) as caught:
        harness.export(1, target=OTHER, atomic_writes=False)
    assert TARGET in str(caught.value) and 'atomic-writes' in str(caught.value)
    changed = harness.opened(0, atomic_writes=False)  # as a reload that changes the setting does
    harness.exports.close_unit(changed)
