"""FORMAT UNIT and SANITIZE in the master, and what a unit remembers: begun, told, kept, failed,
resumed."""

import errno
import os

import pytest
from master_fakes import TARGET, FakeWorker, FakeWorkers, StillLoop, make_units, nexus

from targetd.config import model
from targetd.master.exports import exports
from targetd.master.state import key_files
from targetd.master.units import transitions
from targetd.master.units.replication import RECORDS_SECONDS
from targetd.master.units.transitions import Malformed, Refusal, decide, nexus_ports
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
    return transitions.initial(FACTS, {}, 'boot')


def failed(message, ause=False, shared=None):
    begun = decide(
        shared or transitions.initial(FACTS, {}, 'boot'), ONE, dict(message, ause=ause), []
    ).shared
    return transitions.operation_over(begun, 'the disk said no').shared


def test_a_sanitize_takes_the_medium_from_everybody(shared):
    decision = decide(shared, ONE, OVERWRITE, [])
    assert (
        decision.changed(shared) == {'medium': 'sanitizing'}
        and decision.persist
        and decision.operation_start == 'awaited'
    )
    assert decision.abort_of(ONE, True)['tas'] and decision.abort_of(TWO, False)['tas']
    assert decide(shared, ONE, dict(OVERWRITE, immediate=True), []).is_immediate


@pytest.mark.parametrize('message, sense', [(OVERWRITE, (2, 4, 0x1B)), (FORMAT, (2, 4, 0x1B))])
def test_one_at_a_time(shared, message, sense):
    assert sense_of(decide(decide(shared, ONE, OVERWRITE, []).shared, TWO, message, [])) == sense


def test_not_without_a_medium_and_not_where_data_were_lost(shared):
    assert sense_of(decide(shared._replace(medium='ejected'), ONE, OVERWRITE, [])) == (2, 0x3A, 0)
    assert sense_of(decide(shared._replace(medium='failed'), ONE, FORMAT, [])) == (4, 0x44, 0)


@pytest.mark.parametrize('message, told', [(OVERWRITE, []), (FORMAT, [[0x28, 0]])])
def test_the_end_of_a_format_is_told_to_those_who_did_not_ask(shared, message, told):
    begun = decide(shared, ONE, message, []).shared
    over = transitions.operation_over(begun, '')
    assert over.shared.medium == 'ready' and over.shared.operation is None and over.persist
    assert over.attentions_of(TWO) == told and over.attentions_of(ONE) == []
    lost = transitions.operation_over(begun._replace(medium='failed'), '')
    assert lost.shared.medium == 'failed'


def test_a_medium_that_failed_meanwhile_is_not_ready_before_the_operation_is_over(shared):
    begun = decide(shared, ONE, OVERWRITE, []).shared
    found = transitions.medium_changed(begun._replace(medium='failed'), 'ready')
    assert found.shared.medium == 'sanitizing' and found.attentions == ()


def test_a_failure_stays_until_it_is_cured():
    state = failed(OVERWRITE)
    assert state.medium == 'sanitize-failed'
    assert sense_of(decide(state, ONE, {'ask': 'exit-failure-mode'}, [])) == (5, 0x24, 0)
    assert sense_of(decide(state, ONE, dict(OVERWRITE, ause=True), [])) == (5, 0x24, 0)
    assert decide(state, ONE, OVERWRITE, []).shared.medium == 'sanitizing'


def test_a_failed_sanitize_with_ause_can_be_left():
    state = failed(OVERWRITE, ause=True)
    decision = decide(state, TWO, {'ask': 'exit-failure-mode'}, [])
    assert (
        decision.shared.medium == 'ready' and decision.shared.operation is None and decision.persist
    )


def test_leaving_no_failure_is_good(shared):
    assert decide(shared, ONE, {'ask': 'exit-failure-mode'}, []) == Refusal(sam.GOOD)


def test_a_failed_format_is_cured_by_another():
    state = failed(FORMAT)
    assert state.medium == 'format-failed'
    assert decide(state, ONE, FORMAT, []).shared.medium == 'formatting'
    assert sense_of(transitions.operation_result(state, state.operation, 'x')) == (3, 0x31, 1)


def test_it_comes_back_with_the_unit(shared):
    state = decide(shared, ONE, OVERWRITE, []).shared
    again = transitions.initial(FACTS, transitions.saved_state(state, 'boot'), 'another boot')
    assert again.medium == 'sanitizing' and again.operation == state.operation
    kept = transitions.saved_state(failed(FORMAT), 'boot')
    assert transitions.initial(FACTS, kept, 'boot').medium == 'format-failed'


@pytest.mark.parametrize('change', [{'passes': 99}, {'method': 'melt'}, {'pattern': None}])
def test_what_no_command_asks_is_malformed(shared, change):
    with pytest.raises(Malformed):
        decide(shared, ONE, dict(OVERWRITE, **change), [])


@pytest.mark.parametrize('action', ['eject', 'load'])
@pytest.mark.parametrize('medium', ['ready', 'ejected'])
def test_a_medium_whose_removal_is_prevented_is_neither_ejected_nor_loaded(shared, action, medium):
    """libiscsi's PreventAllow tests want both."""
    prevented = decide(
        shared._replace(medium=medium), ONE, {'ask': 'prevent', 'prevent': True}, []
    ).shared
    assert sense_of(decide(prevented, TWO, {'ask': 'start-stop', 'action': action}, [])) == (
        5,
        0x53,
        2,
    )


def test_starts_and_loads_are_counted_and_kept(shared):
    state = shared
    for action in ('stop', 'start', 'eject', 'load'):
        state = decide(state, ONE, {'ask': 'start-stop', 'action': action}, []).shared
    assert (state.records['cycles'], state.records['loads']) == (1, 1)
    again = transitions.initial(FACTS, transitions.saved_state(state, 'boot'), 'boot')
    assert again.records == state.records


def test_names_and_clocks_are_kept_and_told_to_the_others(shared):
    decision = decide(
        shared, ONE, {'ask': 'set-identifying-information', 'type': '0', 'data': 'aa'}, []
    )
    assert (
        decision.persist
        and decision.attentions_of(TWO) == [[0x3F, 5]]
        and decision.attentions_of(ONE) == []
    )
    assert list(decision.changed(shared)) == ['records']
    again = transitions.initial(FACTS, transitions.saved_state(decision.shared, 'boot'), 'boot')
    assert again.records['identifying'] == {'0': 'aa'}
    same = decide(
        decision.shared, ONE, {'ask': 'set-identifying-information', 'type': '0', 'data': 'aa'}, []
    )
    assert same == Refusal(sam.GOOD)


# -- the master ------------------------------------------------------------------------------------


class FakeStore(object):
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


class House(object):
    """One unit, two nexuses, one spare named eraser."""

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
        shared = transitions.initial(FACTS, state.load('key'), state.boot_id)
        unit = Unit(TARGET + '/0', 'key', TARGET, model.Lun(0), FakeStore(), dict(FACTS), shared)
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

    def tell(self, **words):
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
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.loop.close()


def test_the_work_begins_when_nobody_can_touch_the_medium_any_more(house):
    house.units.on_request(house.one, dict(OVERWRITE, id=7, unit=house.unit.id))
    assert (
        house.one.of('change')[0]['medium'] == house.two.of('change')[0]['medium'] == 'sanitizing'
    )
    assert house.eraser.of('operate') == []
    house.loop.settle()
    (order,) = house.eraser.of('operate')
    assert order['operation']['pattern'] == 'aa' and order['store'] == {
        'kind': 'null',
        'size': SIZE,
    }
    assert house.one.of('answer') == []


def test_the_asker_waits_for_the_end_unless_it_said_immed(house):
    house.ask(OVERWRITE)
    house.tell(report='operated', failed='')
    assert house.answer() == (sam.GOOD, None)
    assert house.two.of('change')[-1]['medium'] == 'ready'
    assert not house.two.of('change')[-1].get('attentions')
    assert house.units.replication.state.load('key') == {}


def test_the_asker_waits_until_every_nexus_finds_the_medium_ready(house):
    """Who is told GOOD tells the next one to go on."""
    house.ask(OVERWRITE)
    house.units.format_sanitize.on_operated(house.eraser, {'failed': ''})
    assert house.two.of('change')[-1]['medium'] == 'ready'
    assert house.one.of('answer') == []
    house.loop.settle()
    assert house.answer() == (sam.GOOD, None)


def test_immed_is_answered_at_once(house):
    house.ask(dict(FORMAT, immediate=True))
    assert house.answer() == (sam.GOOD, None)
    house.tell(report='operated', failed='')
    assert len(house.one.of('answer')) == 1


def test_progress_reaches_every_nexus_and_what_is_lasting_is_kept(house):
    house.ask(OVERWRITE)
    house.tell(report='progress', position=SIZE // 2, lasting=False)
    assert (
        house.one.of('change')[-1]['progress'] == house.two.of('change')[-1]['progress'] == 0x8000
    )
    assert house.units.replication.state.load('key')['operation']['position'] == 0
    house.tell(report='progress', position=SIZE // 4, lasting=True)
    assert house.units.replication.state.load('key')['operation']['position'] == SIZE // 4
    dicts, _ = house.units.serve_session(FakeWorker('late'), nexus('late'))
    assert (dicts[0]['medium'], dicts[0]['progress']) == ('sanitizing', 0x4000)


@pytest.mark.parametrize('message, sense', [(OVERWRITE, (3, 0x31, 3)), (FORMAT, (3, 0x31, 1))])
def test_a_failure_is_answered_kept_and_told(house, message, sense):
    house.ask(message)
    house.tell(report='operated', failed='Input/output error')
    status, found = house.answer()
    assert status == sam.CHECK_CONDITION and found == sense
    assert house.two.of('change')[-1]['medium'] == message['kind'] + '-failed'
    assert house.units.replication.state.load('key')['operation']['failed'] == 'Input/output error'


def test_the_death_of_its_process_is_a_failure(house):
    house.ask(OVERWRITE)
    house.units.format_sanitize.on_worker_death(house.eraser)
    house.loop.settle()
    assert house.unit.shared.medium == 'sanitize-failed'
    assert house.answer()[0] == sam.CHECK_CONDITION


def test_the_end_of_targetd_is_none_and_it_goes_on_after_the_next_start(house):
    house.ask(OVERWRITE)
    house.tell(report='progress', position=4096, lasting=True)
    house.workers.stopping = True
    house.units.format_sanitize.on_worker_death(house.eraser)
    later = House(house.path)
    (order,) = later.eraser.of('operate')
    assert order['operation']['position'] == 4096 and order['operation']['failed'] == ''
    assert later.unit.shared.medium == 'sanitizing'
    later.tell(report='operated', failed='')
    assert later.unit.shared.medium == 'ready' and later.units.replication.state.load('key') == {}
    later.loop.close()


def test_what_failed_does_not_go_on_by_itself(house):
    house.ask(OVERWRITE)
    house.tell(report='operated', failed='no')
    later = House(house.path)
    assert later.eraser.sent == [] and later.unit.shared.medium == 'sanitize-failed'
    later.loop.close()


def test_it_waits_until_nothing_on_the_medium_is_half_done(house, monkeypatch):
    """What an atomic write left half done would else be put back upon what was sanitized."""
    left = [house.unit]
    monkeypatch.setattr(
        house.units.replication.atomic_writes, 'is_repairing', lambda unit: unit in left
    )
    house.ask(OVERWRITE)
    assert house.eraser.of('operate') == [] and house.units.format_sanitize.spares_wanted == 1
    left.clear()
    house.units.format_sanitize.assign_workers()
    assert len(house.eraser.of('operate')) == 1


def test_it_waits_for_a_spare(house):
    house.workers.spares.clear()
    house.ask(OVERWRITE)
    assert house.units.format_sanitize.spares_wanted == 1
    house.workers.spares.append(house.eraser)
    house.units.format_sanitize.assign_workers()
    assert house.units.format_sanitize.spares_wanted == 0 and len(house.eraser.of('operate')) == 1


def test_a_unit_that_is_exported_no_more_waits_no_more(house):
    house.workers.spares.clear()
    house.ask(OVERWRITE)
    house.units.remove_unit(house.unit)
    assert house.units.format_sanitize.spares_wanted == 0


def test_a_full_state_directory_does_not_stop_the_work(house):
    house.ask(OVERWRITE)

    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    house.units.replication.state.save = full
    house.tell(report='progress', position=SIZE // 2, lasting=True)
    assert house.one.of('change')[-1]['progress'] == 0x8000 and house.eraser.killed is None


@pytest.mark.parametrize('message', [OVERWRITE, FORMAT])
def test_an_end_that_cannot_be_kept_is_a_failure(house, message):
    """The next start would go on with what state-dir says is under way, over what was written
    since."""
    house.ask(message)
    save = house.units.replication.state.save

    def full(key, state):
        raise OSError(errno.ENOSPC, 'No space left on device')

    house.units.replication.state.save = full
    house.tell(report='operated', failed='')
    assert (
        house.unit.shared.medium == message['kind'] + '-failed'
        and house.answer()[0] == sam.CHECK_CONDITION
    )
    house.units.replication.state.save = save
    house.one.sent.clear()
    house.workers.spares.append(house.eraser)
    house.ask(message)  # there is room again: the initiator has it done once more
    house.tell(report='operated', failed='')
    assert house.unit.shared.medium == 'ready' and house.answer() == (sam.GOOD, None)


def test_a_unit_that_is_exported_no_more_takes_its_process_along(house):
    house.ask(OVERWRITE)
    house.units.remove_unit(house.unit)
    assert house.eraser.killed
    house.units.format_sanitize.on_worker_death(house.eraser)
    assert house.units.replication.state.load('key')['operation']['failed'] == ''


def test_news_of_a_worker_that_does_no_such_work_are_ignored(house):
    house.units.format_sanitize.on_progress(house.one, {'position': 5, 'lasting': True})
    house.units.format_sanitize.on_operated(house.one, {'failed': 'x'})
    assert house.unit.shared.medium == 'ready'


def test_the_asker_may_be_gone(house):
    house.ask(OVERWRITE)
    house.units.end_session(house.one)
    house.tell(report='operated', failed='')
    assert house.unit.shared.medium == 'ready'


# -- notes and logouts -----------------------------------------------------------------------------


def note(house, kind, message):
    house.units.replication.on_note(
        house.one, {'report': 'note', 'unit': house.unit.id, 'kind': kind, 'note': message}
    )


def test_errors_are_collected_before_they_are_told(house):
    for _ in range(5):
        note(house, 'error', {'kind': 'read'})
    house.loop.settle()
    assert house.two.of('change') == []
    house.loop.pass_time(RECORDS_SECONDS + 0.1)
    assert [change['records']['errors']['read'] for change in house.two.of('change')] == [5]


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


def test_results_of_self_tests_are_kept_and_told_at_once(house):
    note(house, 'self-test', self_test(0))
    assert house.two.of('change')[0]['records']['self_tests'][0]['result'] == 0
    assert house.units.replication.state.load('key')['records']['self_tests'][0]['code'] == 1


def test_a_self_test_ends_with_its_session(house):
    note(house, 'self-test', self_test(15))
    house.units.end_session(house.one)
    assert house.unit.shared.records['self_tests'][0]['result'] == 2


@pytest.mark.parametrize(
    'kind, message',
    [
        ('set-timestamp', {'offset': 1}),
        ('error', {'kind': 'melt'}),
        ('self-test', None),
        ('self-test', self_test(0, TWO)),
    ],
)
def test_a_worker_that_tells_what_cannot_be_is_killed(house, kind, message):
    note(house, kind, message)
    assert house.one.killed and house.unit.shared.records['self_tests'] == []


def test_a_logout_is_answered_when_what_the_nexus_held_is_free_everywhere(house):
    house.ask({'ask': 'reserve', 'third_party': None})
    house.one.sent.clear()
    house.units.log_out_session(house.one, {'ask': 'leave', 'id': 9})
    assert (
        house.one.of('answer') == []
        and house.two.of('change')[-1]['reservations']['reserved_by'] is None
    )
    house.loop.settle()
    assert [answer['id'] for answer in house.one.of('answer')] == [9]


def test_a_logout_of_a_nexus_that_holds_nothing_is_answered_at_once(house):
    house.units.log_out_session(house.one, {'ask': 'leave', 'id': 9})
    assert [answer['id'] for answer in house.one.of('answer')] == [9]


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

    def encrypt(self, digits):
        self.cipher_key = digits


class EncryptedHouse(House):
    """Its unit has a key in a file."""

    def export(self):
        state, path = self.units.replication.state, self.path + '/disk.key'
        if not state.load('key'):
            key_files.make_key(path)
        medium = EncryptedStore(path)
        shared = transitions.initial(FACTS, state.load('key'), state.boot_id)
        unit = Unit(
            TARGET + '/0',
            'key',
            TARGET,
            model.Lun(0, encryption_key_file=path),
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
    house = EncryptedHouse(tmp_path)
    yield house
    house.loop.close()


def key_changes(worker):
    return [message['key'] for message in worker.of('change') if 'key' in message]


def test_a_new_key_is_everywhere_before_anybody_is_let_in_again(encrypted):
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


def test_until_every_worker_has_it_the_medium_is_nobodys(encrypted):
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


def test_a_key_that_cannot_be_replaced_is_a_failed_sanitize(encrypted, monkeypatch):
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
def test_if_it_failed_after_the_file_was_replaced_the_new_key_is_used(
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


def test_a_key_file_that_is_not_there_now_leaves_the_old_key_in_force(encrypted):
    """It is on a stick, say, that was taken away."""
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


def test_without_a_place_to_note_it_the_sanitize_has_failed(encrypted):
    """After a restart it would be done again, and destroy what was written meanwhile."""
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


def test_nothing_is_erased_that_is_not_encrypted(house):
    """What its worker says is not believed."""
    house.ask(ERASE)
    assert house.unit.shared.medium == 'sanitize-failed'


@pytest.mark.parametrize('stopped_after', ['nothing', 'replaced', 'noted'])
def test_an_erase_goes_on_after_a_kill(tmp_path, stopped_after, monkeypatch):
    first = EncryptedHouse(tmp_path)
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
    later = EncryptedHouse(tmp_path)
    assert later.unit.shared.medium == 'ready' and later.in_file != old
    assert later.unit.store.cipher_key == later.in_file
    assert (later.in_file == between) == (stopped_after == 'noted')
    assert later.units.replication.state.load('key')['key_check'] == key_files.key_check(
        later.in_file, 512
    )
    for house in (first, later):
        house.loop.close()


def test_a_unit_that_takes_anothers_place_takes_over_its_key_and_its_operation(encrypted):
    """It was opened before the key was replaced."""
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
    new.store.encrypt(stale)
    exports.carry_over_state(old, new)
    assert new.store.cipher_key == encrypted.in_file != stale
    assert new.shared.operation is None and new.shared.medium == 'ready' and new.is_unsaved
    assert new.shared.key_check == key_files.key_check(encrypted.in_file, 512)
