"""FORMAT UNIT and SANITIZE in the master: start, progress, end, failure and resumption."""

import errno
import os

import pytest
from master_fakes import TARGET, FakeWorker, FakeWorkers, StillLoop, make_units, nexus

from targetd.config import model
from targetd.master.exports import exports
from targetd.master.state import key_files
from targetd.master.units import shared_state, transitions
from targetd.master.units.transitions import Malformed, Refusal, decide
from targetd.master.units.unit import Unit
from targetd.scsi import sam

FACTS = {'block_size': 512}
ONE, TWO = nexus('one'), nexus('two')
OVERWRITE = {
    'ask': 'operate',
    'kind': 'sanitize',
    'method': 'pattern',
    'pattern': 'aa',
    'passes': 1,
    'invert': False,
    'ause': False,
    'immediate': False,
}
FORMAT = {
    'ask': 'operate',
    'kind': 'format',
    'method': 'zeroes',
    'pattern': '',
    'passes': 1,
    'immediate': False,
}
SIZE = 1 << 20


def sense_of(decision):
    return (
        None
        if not decision.sense
        else (decision.sense[2] & 0xF, decision.sense[12], decision.sense[13])
    )


# -- decisions -------------------------------------------------------------------------------------


@pytest.fixture
def shared():
    return shared_state.initial_state(FACTS, {}, 'boot')


def failed(message, ause=False, shared=None):
    begun = decide(
        shared or shared_state.initial_state(FACTS, {}, 'boot'), ONE, dict(message, ause=ause), []
    ).shared
    return transitions.operation_over(begun, 'Input/output error').shared


def test_a_sanitize_ends_all_tasks_and_blocks_the_medium(shared):
    decision = decide(shared, ONE, OVERWRITE, [])
    assert (
        decision.changed(shared) == {'medium': 'sanitizing'}
        and decision.persist
        and decision.operation_start == 'awaited'
    )
    assert decision.abort_of(ONE, True)['tas'] and decision.abort_of(TWO, False)['tas']
    assert decide(shared, ONE, dict(OVERWRITE, immediate=True), []).is_immediate


@pytest.mark.parametrize('message, sense', [(OVERWRITE, (2, 4, 0x1B)), (FORMAT, (2, 4, 0x1B))])
def test_a_second_operation_is_refused(shared, message, sense):
    assert sense_of(decide(decide(shared, ONE, OVERWRITE, []).shared, TWO, message, [])) == sense


def test_an_operation_is_refused_without_a_medium_and_on_a_failed_one(shared):
    assert sense_of(decide(shared._replace(medium='ejected'), ONE, OVERWRITE, [])) == (2, 0x3A, 0)
    assert sense_of(decide(shared._replace(medium='failed'), ONE, FORMAT, [])) == (4, 0x44, 0)


@pytest.mark.parametrize('message, attentions', [(OVERWRITE, []), (FORMAT, [[0x28, 0]])])
def test_after_a_format_the_other_nexuses_get_a_unit_attention(shared, message, attentions):
    begun = decide(shared, ONE, message, []).shared
    over = transitions.operation_over(begun, '')
    assert over.shared.medium == 'ready' and over.shared.operation is None and over.persist
    assert over.attentions_of(TWO) == attentions and over.attentions_of(ONE) == []
    lost = transitions.operation_over(begun._replace(medium='failed'), '')
    assert lost.shared.medium == 'failed'


def test_a_recovered_medium_is_not_ready_before_the_operation_has_ended(shared):
    begun = decide(shared, ONE, OVERWRITE, []).shared
    found = transitions.failure_acknowledged(transitions.medium_failed(begun, 'EIO').shared)
    assert found.shared.medium == 'sanitizing' and found.attentions == ()


def test_a_failed_sanitize_lasts_until_another_one_succeeds():
    state = failed(OVERWRITE)
    assert state.medium == 'sanitize-failed'
    assert sense_of(decide(state, ONE, {'ask': 'exit-failure-mode'}, [])) == (5, 0x24, 0)
    assert sense_of(decide(state, ONE, dict(OVERWRITE, ause=True), [])) == (5, 0x24, 0)
    assert decide(state, ONE, OVERWRITE, []).shared.medium == 'sanitizing'


def test_exit_failure_mode_ends_a_failed_sanitize_with_ause():
    state = failed(OVERWRITE, ause=True)
    decision = decide(state, TWO, {'ask': 'exit-failure-mode'}, [])
    assert (
        decision.shared.medium == 'ready' and decision.shared.operation is None and decision.persist
    )


def test_exit_failure_mode_without_a_failure_returns_good(shared):
    assert decide(shared, ONE, {'ask': 'exit-failure-mode'}, []) == Refusal(sam.GOOD)


def test_a_failed_format_can_be_repeated():
    state = failed(FORMAT)
    assert state.medium == 'format-failed'
    assert decide(state, ONE, FORMAT, []).shared.medium == 'formatting'
    assert sense_of(transitions.operation_result(state, state.operation, 'x')) == (3, 0x31, 1)


def test_an_operation_is_restored_with_the_unit(shared):
    state = decide(shared, ONE, OVERWRITE, []).shared
    again = shared_state.initial_state(
        FACTS, shared_state.saved_state(state, 'boot'), 'another boot'
    )
    assert again.medium == 'sanitizing' and again.operation == state.operation
    kept = shared_state.saved_state(failed(FORMAT), 'boot')
    assert shared_state.initial_state(FACTS, kept, 'boot').medium == 'format-failed'


@pytest.mark.parametrize('change', [{'passes': 99}, {'method': 'melt'}, {'pattern': None}])
def test_an_invalid_operate_request_is_malformed(shared, change):
    with pytest.raises(Malformed):
        decide(shared, ONE, dict(OVERWRITE, **change), [])


def test_starts_and_loads_are_counted_and_saved(shared):
    state = shared
    for action in ('stop', 'start', 'eject', 'load'):
        state = decide(state, ONE, {'ask': 'start-stop', 'action': action}, []).shared
    assert (state.records['cycles'], state.records['loads']) == (1, 1)
    again = shared_state.initial_state(FACTS, shared_state.saved_state(state, 'boot'), 'boot')
    assert again.records == state.records


def test_identifying_information_is_saved_and_other_nexuses_get_a_unit_attention(shared):
    decision = decide(
        shared, ONE, {'ask': 'set-identifying-information', 'type': '0', 'data': 'aa'}, []
    )
    assert (
        decision.persist
        and decision.attentions_of(TWO) == [[0x3F, 5]]
        and decision.attentions_of(ONE) == []
    )
    assert list(decision.changed(shared)) == ['records']
    again = shared_state.initial_state(
        FACTS, shared_state.saved_state(decision.shared, 'boot'), 'boot'
    )
    assert again.records['identifying'] == {'0': 'aa'}
    same = decide(
        decision.shared, ONE, {'ask': 'set-identifying-information', 'type': '0', 'data': 'aa'}, []
    )
    assert same == Refusal(sam.GOOD)


# -- the master ------------------------------------------------------------------------------------


class FakeStore(object):
    claim, flag, key = None, 0, None
    kind, path, size, block_size, read_only, descriptor, cipher_key = (
        'null',
        None,
        SIZE,
        512,
        False,
        None,
        '',
    )

    def description(self):
        return {'kind': self.kind, 'size': self.size}

    def close(self):
        pass


class Harness(object):
    """One unit, two nexuses, one spare worker named eraser."""

    def __init__(self, path):
        self.path = str(path)
        self.loop = StillLoop()
        self.workers = FakeWorkers(self.send)
        self.units = make_units(self.loop, self.path, self.send, workers=self.workers)
        self.eraser = FakeWorker('eraser')
        self.workers.spares.append(self.eraser)
        self.unit = self.export()
        self.one, self.two = FakeWorker('one'), FakeWorker('two')
        for worker in (self.one, self.two):
            self.units.serve_session(worker, nexus(worker.name))

    def export(self):
        state = self.units.replication.state
        shared = shared_state.initial_state(FACTS, state.load('key'), state.boot_id)
        unit = Unit(
            TARGET + '/0',
            'key',
            TARGET,
            model.Lun(0, sharing='cluster'),
            FakeStore(),
            dict(FACTS),
            shared,
        )
        self.units.add_unit(unit)
        return unit

    def send(self, worker, message, descriptors=()):
        worker.sent.append(message)
        if message['do'] == 'change' and message['id']:
            self.loop.call_later(
                0, lambda: self.units.replication.on_acknowledge(worker, {'id': message['id']})
            )

    def ask(self, message):
        self.units.on_request(self.one, dict(message, id=7, unit=self.unit.id))
        self.loop.settle()

    def worker_sends(self, **words):
        {
            'progress': self.units.format_sanitize.on_progress,
            'operated': self.units.format_sanitize.on_operated,
        }[words['report']](self.eraser, words)
        self.loop.settle()

    def answer(self):
        (answer,) = self.one.of('answer')
        return answer['status'], answer['sense'] and tuple(
            bytes.fromhex(answer['sense'])[n] for n in (2, 12, 13)
        )


@pytest.fixture
def harness(tmp_path):
    harness = Harness(tmp_path)
    yield harness
    harness.loop.close()


def test_the_operation_starts_after_every_worker_has_blocked_the_medium(harness):
    harness.units.on_request(harness.one, dict(OVERWRITE, id=7, unit=harness.unit.id))
    assert (
        harness.one.of('change')[0]['medium']
        == harness.two.of('change')[0]['medium']
        == 'sanitizing'
    )
    assert harness.eraser.of('operate') == []
    harness.loop.settle()
    (order,) = harness.eraser.of('operate')
    assert order['operation']['pattern'] == 'aa' and order['store'] == {
        'kind': 'null',
        'size': SIZE,
    }
    assert harness.one.of('answer') == []


def test_without_immed_the_command_is_answered_at_the_end(harness):
    harness.ask(OVERWRITE)
    harness.worker_sends(report='operated', failed='')
    assert harness.answer() == (sam.GOOD, None)
    assert harness.two.of('change')[-1]['medium'] == 'ready'
    assert not harness.two.of('change')[-1].get('attentions')
    assert harness.units.replication.state.load('key') == {}


def test_the_command_is_answered_after_every_replica_is_ready(harness):
    """Its initiator may have another one use the unit as soon as it has GOOD status."""
    harness.ask(OVERWRITE)
    harness.units.format_sanitize.on_operated(harness.eraser, {'failed': ''})
    assert harness.two.of('change')[-1]['medium'] == 'ready'
    assert harness.one.of('answer') == []
    harness.loop.settle()
    assert harness.answer() == (sam.GOOD, None)


def test_with_immed_the_command_is_answered_at_once(harness):
    harness.ask(dict(FORMAT, immediate=True))
    assert harness.answer() == (sam.GOOD, None)
    harness.worker_sends(report='operated', failed='')
    assert len(harness.one.of('answer')) == 1


def test_progress_is_sent_to_every_nexus_and_lasting_progress_is_saved(harness):
    harness.ask(OVERWRITE)
    harness.worker_sends(report='progress', position=SIZE // 2, lasting=False)
    assert (
        harness.one.of('change')[-1]['progress']
        == harness.two.of('change')[-1]['progress']
        == 0x8000
    )
    assert harness.units.replication.state.load('key')['operation']['position'] == 0
    harness.units.replication.save_when_possible(harness.unit, harness.unit.shared)
    assert harness.units.replication.state.load('key')['operation']['position'] == 0
    harness.worker_sends(report='progress', position=SIZE // 4, lasting=True)
    assert harness.units.replication.state.load('key')['operation']['position'] == SIZE // 4
    dicts, _, _ = harness.units.serve_session(FakeWorker('late'), nexus('late'))
    assert (dicts[0]['medium'], dicts[0]['progress']) == ('sanitizing', 0x4000)


@pytest.mark.parametrize('message, sense', [(OVERWRITE, (3, 0x31, 3)), (FORMAT, (3, 0x31, 1))])
def test_a_failed_operation_is_saved_sent_and_answered(harness, message, sense):
    harness.ask(message)
    harness.worker_sends(report='operated', failed='Input/output error')
    status, found = harness.answer()
    assert status == sam.CHECK_CONDITION and found == sense
    assert harness.two.of('change')[-1]['medium'] == message['kind'] + '-failed'
    assert (
        harness.units.replication.state.load('key')['operation']['failed'] == 'Input/output error'
    )


def test_the_death_of_the_worker_fails_the_operation(harness):
    harness.ask(OVERWRITE)
    harness.units.format_sanitize.on_worker_death(harness.eraser)
    harness.loop.settle()
    assert harness.unit.shared.medium == 'sanitize-failed'
    assert harness.answer()[0] == sam.CHECK_CONDITION


def test_an_operation_is_resumed_after_a_restart_of_targetd(harness):
    harness.ask(OVERWRITE)
    harness.worker_sends(report='progress', position=4096, lasting=True)
    harness.workers.stopping = True
    harness.units.format_sanitize.on_worker_death(harness.eraser)
    later = Harness(harness.path)
    (order,) = later.eraser.of('operate')
    assert order['operation']['position'] == 4096 and order['operation']['failed'] == ''
    assert later.unit.shared.medium == 'sanitizing'
    later.worker_sends(report='operated', failed='')
    assert later.unit.shared.medium == 'ready' and later.units.replication.state.load('key') == {}
    later.loop.close()


def test_a_failed_operation_is_not_resumed(harness):
    harness.ask(OVERWRITE)
    harness.worker_sends(report='operated', failed='no')
    later = Harness(harness.path)
    assert later.eraser.sent == [] and later.unit.shared.medium == 'sanitize-failed'
    later.loop.close()


def test_an_operation_waits_until_incomplete_writes_are_rolled_back(harness, monkeypatch):
    """Otherwise the old blocks of an atomic write would overwrite sanitized blocks."""
    left = [harness.unit]
    monkeypatch.setattr(
        harness.units.replication.atomic_writes, 'is_repairing', lambda unit: unit in left
    )
    harness.ask(OVERWRITE)
    assert harness.eraser.of('operate') == [] and harness.units.format_sanitize.spares_wanted == 1
    left.clear()
    harness.units.format_sanitize.assign_workers()
    assert len(harness.eraser.of('operate')) == 1


def test_an_operation_waits_for_a_spare_worker(harness):
    harness.workers.spares.clear()
    harness.ask(OVERWRITE)
    assert harness.units.format_sanitize.spares_wanted == 1
    harness.workers.spares.append(harness.eraser)
    harness.units.format_sanitize.assign_workers()
    assert (
        harness.units.format_sanitize.spares_wanted == 0 and len(harness.eraser.of('operate')) == 1
    )


def test_removing_a_unit_cancels_its_waiting_operation(harness):
    harness.workers.spares.clear()
    harness.ask(OVERWRITE)
    harness.units.remove_unit(harness.unit)
    assert harness.units.format_sanitize.spares_wanted == 0


def test_a_full_state_directory_does_not_stop_the_operation(harness):
    harness.ask(OVERWRITE)

    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    harness.units.replication.state.save = full
    harness.worker_sends(report='progress', position=SIZE // 2, lasting=True)
    assert harness.one.of('change')[-1]['progress'] == 0x8000 and harness.eraser.killed is None


@pytest.mark.parametrize('message', [OVERWRITE, FORMAT])
def test_an_operation_whose_end_cannot_be_saved_has_failed(harness, message):
    """Otherwise the next start would resume it and overwrite data written since."""
    harness.ask(message)
    save = harness.units.replication.state.save

    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    harness.units.replication.state.save = full
    harness.worker_sends(report='operated', failed='')
    assert (
        harness.unit.shared.medium == message['kind'] + '-failed'
        and harness.answer()[0] == sam.CHECK_CONDITION
    )
    harness.units.replication.state.save = save
    harness.one.sent.clear()
    harness.workers.spares.append(harness.eraser)
    harness.ask(message)  # there is space again: the initiator repeats the command
    harness.worker_sends(report='operated', failed='')
    assert harness.unit.shared.medium == 'ready' and harness.answer() == (sam.GOOD, None)


def test_removing_a_unit_kills_the_worker_of_its_operation(harness):
    harness.ask(OVERWRITE)
    harness.units.remove_unit(harness.unit)
    assert harness.eraser.killed
    harness.units.format_sanitize.on_worker_death(harness.eraser)
    assert harness.units.replication.state.load('key')['operation']['failed'] == ''


def test_reports_of_a_worker_without_an_operation_are_ignored(harness):
    harness.units.format_sanitize.on_progress(harness.one, {'position': 5, 'lasting': True})
    harness.units.format_sanitize.on_operated(harness.one, {'failed': 'x'})
    assert harness.unit.shared.medium == 'ready'


def test_an_operation_ends_normally_after_its_session_has_ended(harness):
    harness.ask(OVERWRITE)
    harness.units.end_session(harness.one)
    harness.worker_sends(report='operated', failed='')
    assert harness.unit.shared.medium == 'ready'


# -- CRYPTOGRAPHIC ERASE ---------------------------------------------------------------------------

ERASE = {
    'ask': 'operate',
    'kind': 'sanitize',
    'method': 'key',
    'pattern': '',
    'passes': 1,
    'invert': False,
    'ause': False,
    'immediate': False,
}


class EncryptedStore(FakeStore):
    def __init__(self, path):
        self.cipher_key = key_files.load_key(path)

    def set_cipher_key(self, digits):
        self.cipher_key = digits


class EncryptedHarness(Harness):
    """Its unit is encrypted with a key in a file."""

    def export(self):
        state, path = self.units.replication.state, self.path + '/disk.key'
        if not state.load('key'):
            key_files.make_key(path)
        medium = EncryptedStore(path)
        shared = shared_state.initial_state(FACTS, state.load('key'), state.boot_id)
        unit = Unit(
            TARGET + '/0',
            'key',
            TARGET,
            model.Lun(0, sharing='cluster', encryption_key_file=path),
            medium,
            dict(FACTS),
            shared._replace(key_check=key_files.key_check(medium.cipher_key, 512)),
        )
        unit.is_unsaved = True
        self.units.add_unit(unit)
        return unit

    @property
    def in_file(self):
        return key_files.load_key(self.path + '/disk.key')


@pytest.fixture
def encrypted(tmp_path):
    harness = EncryptedHarness(tmp_path)
    yield harness
    harness.loop.close()


def key_changes(worker):
    return [message['key'] for message in worker.of('change') if 'key' in message]


def test_every_worker_gets_the_new_key_before_the_medium_is_ready(encrypted):
    old = encrypted.in_file
    encrypted.ask(ERASE)
    assert encrypted.answer() == (sam.GOOD, None)
    new = encrypted.in_file
    assert new != old and encrypted.unit.store.cipher_key == new
    for worker in (encrypted.one, encrypted.two):
        words = [set(message) & {'medium', 'key'} for message in worker.of('change')]
        assert words == [{'medium'}, {'key'}, {'medium'}] and key_changes(worker) == [new]
        assert [m['medium'] for m in worker.of('change') if 'medium' in m] == [
            'sanitizing',
            'ready',
        ]
    assert encrypted.units.replication.state.load('key')['key_check'] == key_files.key_check(
        new, 512
    )
    assert (
        'operation' not in encrypted.units.replication.state.load('key')
        and encrypted.eraser.sent == []
    )


def test_the_medium_is_not_ready_until_every_worker_has_acknowledged_the_key(encrypted):
    held, real = [], encrypted.units.replication.on_acknowledge

    def acknowledge(worker, message):
        if worker is encrypted.two and key_changes(worker):
            held.append((worker, message))
        else:
            real(worker, message)

    encrypted.units.replication.on_acknowledge = acknowledge
    encrypted.ask(ERASE)
    assert encrypted.unit.shared.medium == 'sanitizing' and encrypted.one.of('answer') == []
    real(*held.pop())
    assert encrypted.unit.shared.medium == 'ready'


def test_a_key_that_cannot_be_replaced_fails_the_sanitize(encrypted, monkeypatch):
    old = encrypted.in_file

    def full(path):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(key_files, 'replace_key', full)
    encrypted.ask(ERASE)
    assert encrypted.answer() == (sam.CHECK_CONDITION, (3, 0x31, 3))
    assert encrypted.in_file == encrypted.unit.store.cipher_key == old
    state = encrypted.units.replication.state.load('key')
    assert state['operation']['failed'] == 'No space left on device' and state[
        'key_check'
    ] == key_files.key_check(old, 512)


@pytest.mark.parametrize('is_lasting, medium', [(True, 'sanitize-failed'), (False, 'failed')])
def test_an_error_after_the_file_was_replaced_keeps_the_new_key(
    encrypted, monkeypatch, is_lasting, medium
):
    real = key_files.replace_key

    def half(path):
        raise key_files.KeyHalfReplaced(
            OSError(errno.EIO, 'Input/output error'), real(path), is_lasting
        )

    monkeypatch.setattr(key_files, 'replace_key', half)
    old = encrypted.in_file
    encrypted.ask(ERASE)
    new = encrypted.in_file
    assert encrypted.unit.shared.medium == medium and encrypted.unit.store.cipher_key == new != old
    assert key_changes(encrypted.two) == [new] and encrypted.answer() == (
        sam.CHECK_CONDITION,
        (3, 0x31, 3),
    )
    assert encrypted.units.replication.state.load('key')['key_check'] == key_files.key_check(
        new, 512
    )


def test_a_missing_key_file_leaves_the_old_key_in_force(encrypted):
    """The file can be on a USB stick, for example, that was removed."""
    old, path = encrypted.in_file, encrypted.unit.lun.encryption_key_file
    os.rename(path, path + '.away')
    encrypted.ask(ERASE)
    assert (
        encrypted.unit.shared.medium == 'sanitize-failed' and encrypted.unit.store.cipher_key == old
    )
    os.rename(path + '.away', path)
    encrypted.one.sent.clear()
    encrypted.ask(ERASE)
    assert encrypted.answer() == (sam.GOOD, None) and encrypted.in_file != old


def test_an_erase_that_cannot_be_saved_has_failed(encrypted):
    """Otherwise it would be repeated after a restart, and destroy data written meanwhile."""
    kept = []

    def full(key, state):
        kept.append(state)
        if len(kept) > 1:
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(key, state)

    real, encrypted.units.replication.state.save = encrypted.units.replication.state.save, full
    encrypted.ask(ERASE)
    assert (
        encrypted.unit.shared.medium == 'sanitize-failed'
        and encrypted.answer()[0] == sam.CHECK_CONDITION
    )


def test_an_erase_of_an_unencrypted_unit_fails(harness):
    """The master checks this itself, because it does not trust the worker."""
    harness.ask(ERASE)
    assert harness.unit.shared.medium == 'sanitize-failed'


@pytest.mark.parametrize('stopped_after', ['nothing', 'replaced', 'noted'])
def test_an_erase_is_resumed_after_a_kill(tmp_path, stopped_after, monkeypatch):
    first = EncryptedHarness(tmp_path)
    old, real_replace = first.in_file, key_files.replace_key

    class Killed(BaseException):
        pass

    def killed(*arguments):
        if stopped_after == 'replaced':
            real_replace(*arguments)
        raise Killed()

    with monkeypatch.context() as patched:
        if stopped_after == 'noted':
            patched.setattr(first.units.replication, 'send_change', killed)
        else:
            patched.setattr(key_files, 'replace_key', killed)
        with pytest.raises(Killed):
            first.ask(ERASE)
    assert first.units.replication.state.load('key')['operation']['method'] == 'key'
    between = first.in_file
    assert (between == old) == (stopped_after == 'nothing')
    later = EncryptedHarness(tmp_path)
    assert later.unit.shared.medium == ('ready' if stopped_after == 'noted' else 'sanitizing')
    later.loop.settle()
    assert later.unit.shared.medium == 'ready' and later.in_file != old
    assert later.unit.store.cipher_key == later.in_file
    assert (later.in_file == between) == (stopped_after == 'noted')
    assert later.units.replication.state.load('key')['key_check'] == key_files.key_check(
        later.in_file, 512
    )
    for harness in (first, later):
        harness.loop.close()


def test_a_replacement_unit_takes_over_the_key_and_the_operation(encrypted):
    """The replacement was opened before the key was replaced."""
    stale, old = encrypted.in_file, encrypted.unit
    encrypted.ask(ERASE)
    new = Unit(
        TARGET + '/0#2',
        'key',
        TARGET,
        old.lun,
        EncryptedStore(old.lun.encryption_key_file),
        dict(FACTS),
        old.shared._replace(
            operation=dict(ERASE, by=['i', 't'], position=0, size=0, failed=''), medium='sanitizing'
        ),
    )
    new.store.set_cipher_key(stale)
    exports.carry_over_state(old, new)
    assert new.store.cipher_key == encrypted.in_file != stale
    assert new.shared.operation is None and new.shared.medium == 'ready' and new.is_unsaved
    assert new.shared.key_check == key_files.key_check(encrypted.in_file, 512)
