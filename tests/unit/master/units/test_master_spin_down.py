"""Disks that sleep: who is told what in which order, and what an access or an initiator's order does."""

from types import SimpleNamespace

import pytest
from master_fakes import StillLoop

from targetd.host.spin import Accesses
from targetd.master.processes.jobs import JobResult
from targetd.master.units import spin_down
from targetd.master.units.spin_down import SpinDown
from targetd.master.units.transitions import Malformed
from targetd.scsi.medium_state import ANSWERS, HANGS
from targetd.store.sleeping import FALLING, ROTATES, STOPPED

LIMIT, ONE, TWO = 600, 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'


class FakeUnit(SimpleNamespace):
    """Equal to itself only, as a Unit."""

    __eq__, __hash__ = object.__eq__, object.__hash__


class Server(object):
    """Implements Units, its Replication and HangingUnits, and Jobs. `told`: the words of the changes whose
    acknowledgement waits in `unacknowledged`; `jobs`: (name, done)."""

    def __init__(self, limit=LIMIT, asleep=ROTATES):
        self.loop = StillLoop()
        self.told, self.unacknowledged, self.jobs, self.failed = [], [], [], []
        self.counts = 5
        self.unit = FakeUnit(
            id='t/0',
            lun=SimpleNamespace(spin_down=limit),
            store=SimpleNamespace(path='/dev/sdz', descriptor=9, flag=0, read_only=False),
            shared=SimpleNamespace(operation=None),
            guests={}, is_busy=False, is_restoring=False, is_resizing=False, hanging=ANSWERS,
            sleep=asleep, asleep_since=0, spin_downs=0, spin_ups=0, initiators=[ONE],
        )  # fmt: skip
        self.unit.replica_holders = lambda: [
            (name, SimpleNamespace(initiator_name=name)) for name in self.unit.initiators
        ]
        self.by_id = {'t/0': self.unit}
        self.replication = self.hanging = self
        self.spin_down = SpinDown(self.loop, self, self, lambda name: Accesses((self.counts,), 0))
        self.spin_down.reconsider()

    # -- what SpinDown uses --

    def state_of(self, unit):
        return HANGS if unit.sleep else ANSWERS

    def send_change(self, unit, words, done):
        self.told.append(words)
        self.unacknowledged.append(done)

    def fail_medium(self, unit, why):
        self.failed.append(why)

    def submit_job(self, name, work, done, kept=(), seconds=None):
        self.jobs.append((name, done))

    # -- what the test does --

    def examined(self, why=''):
        self.loop.pass_time(spin_down.FIRST_SECONDS)
        self.end_job({'found': {'t/0': ['' if why else 'sdz', why]}})
        return self

    def end_job(self, values=None, why='', is_late=False):
        name, done = self.jobs.pop(0)
        done(JobResult(values or {}, [], why, is_late))
        return name

    def acknowledge(self):
        self.unacknowledged.pop(0)()

    def pass_idle_time(self):
        for _ in range(LIMIT // 30 + 3):
            self.loop.pass_time(30)

    def fall_asleep(self):
        self.pass_idle_time()
        self.acknowledge()
        self.end_job({'accesses': [[self.counts], 0]})
        self.acknowledge()
        assert self.unit.sleep == STOPPED
        del self.told[:]
        return self

    def ask(self, what='wake', by=ONE, **words):
        """Returns the list that gets the answer."""
        answers = []
        worker = SimpleNamespace(session=SimpleNamespace(nexus=SimpleNamespace(initiator_name=by)))
        message = dict(words, ask=what)
        self.spin_down.on_ask(self.unit, worker, message, answers.append)
        return answers

    def power(self):
        return self.spin_down.described(self.unit)


@pytest.fixture
def make():
    made = []

    def server(*arguments, **more):
        made.append(Server(*arguments, **more))
        return made[-1]

    yield server
    for each in made:
        each.spin_down.close()
        each.loop.close()


def test_an_idle_disk_is_stopped_after_every_session_knows_it(make):
    server = make().examined()
    assert server.power() == 'awake'
    server.pass_idle_time()
    assert server.told == [{'sleep': FALLING, 'hanging': HANGS}] and not server.jobs
    assert server.power() == 'spinning down'
    server.acknowledge()
    assert server.end_job({'accesses': [[5], 0]}) == ('spin-down', 't/0')
    assert server.told[1]['sleep'] == STOPPED and server.unit.spin_downs == 1
    assert server.power().startswith('asleep since ') and 'idle for 600 s' in server.power()


def test_a_disk_that_is_used_is_not_stopped(make):
    server = make().examined()
    for _ in range(100):
        server.counts += 1
        server.loop.pass_time(30)
    assert not server.told


@pytest.mark.parametrize(
    'attribute', ['is_busy', 'is_restoring', 'is_resizing', 'hanging', 'guests']
)
def test_a_unit_that_is_busy_is_not_stopped(make, attribute):
    server = make().examined()
    setattr(server.unit, attribute, {'worker': 1})
    server.pass_idle_time()
    assert not server.told
    setattr(server.unit, attribute, {} if attribute == 'guests' else False)
    server.loop.pass_time(60)
    assert server.told


def test_an_access_wakes_the_disk_and_is_answered_when_every_session_knows(make):
    server = make().examined().fall_asleep()
    first, second = server.ask(), server.ask()
    assert server.power() == 'spinning up' and len(server.jobs) == 1
    server.end_job({'seconds': 7})
    assert server.told == [{'sleep': ROTATES, 'hanging': ANSWERS}] and not first
    server.acknowledge()
    assert len(first) == len(second) == 1 and first[0].status == 0
    assert server.unit.spin_ups == 1 and server.power() == 'awake'
    assert len(server.ask()) == 1 and not server.jobs


def test_an_access_while_it_stops_waits_and_wakes_it(make):
    server = make().examined()
    server.pass_idle_time()
    waiting = server.ask()
    server.acknowledge()
    server.end_job({'accesses': [[5], 0]})
    assert not waiting and len(server.jobs) == 1
    server.acknowledge()
    server.end_job({'seconds': 7})
    server.acknowledge()
    assert len(waiting) == 1 and server.unit.sleep == ROTATES


@pytest.mark.parametrize('words', [{'why': 'died'}, {'why': 'no answer', 'is_late': True}])
def test_a_disk_that_does_not_stop_is_awake_for_everyone(make, words):
    server = make().examined()
    server.pass_idle_time()
    waiting = server.ask()
    server.acknowledge()
    server.end_job(**words)
    assert server.told[-1]['sleep'] == ROTATES and server.unit.spin_downs == 0
    server.acknowledge()
    assert len(waiting) == 1 and not server.failed


def test_a_flush_that_fails_before_the_stop_fails_the_unit(make, monkeypatch):
    server = make().examined()
    server.pass_idle_time()
    server.acknowledge()
    monkeypatch.setattr(spin_down.failure_flags, 'is_set', lambda flag: True)
    server.end_job(why='EIO')
    assert server.failed == ['a flush failed'] and server.unit.sleep == ROTATES


def test_a_disk_that_does_not_start_gets_the_accesses_all_the_same(make):
    server = make().examined().fall_asleep()
    waiting = server.ask()
    server.end_job(why='it is not ready 45 seconds after its start')
    server.acknowledge()
    assert len(waiting) == 1 and server.unit.sleep == ROTATES


@pytest.mark.parametrize('limit', [LIMIT, -1])
def test_the_only_initiator_stops_the_disk(make, limit):
    server = make(limit).examined()
    server.unit.initiators = [ONE, ONE]  # two paths of one host
    assert len(server.ask('spin', action='down')) == 1
    assert server.told == [{'sleep': FALLING, 'hanging': HANGS}]
    server.acknowledge()
    server.end_job({'accesses': [[5], 0]})
    assert 'ordered by ' + ONE in server.power()


def test_one_of_two_initiators_does_not_stop_it(make):
    server = make().examined()
    server.unit.initiators = [ONE, TWO]
    assert len(server.ask('spin', action='down')) == 1 and not server.told


def test_start_wakes_it_and_waits_unless_it_is_immediate(make):
    server = make().examined().fall_asleep()
    assert len(server.ask('spin', action='up', immediate=True)) == 1
    waiting = server.ask('spin', action='up', immediate=False)
    assert not waiting and len(server.jobs) == 1
    server.end_job({'seconds': 1})
    server.acknowledge()
    assert len(waiting) == 1


def test_an_immediate_start_while_it_stops_is_not_forgotten(make):
    server = make().examined()
    server.pass_idle_time()
    assert len(server.ask('spin', action='up', immediate=True)) == 1
    server.acknowledge()
    server.end_job({'accesses': [[5], 0]})
    assert len(server.jobs) == 1


def test_a_disk_that_cannot_sleep_says_why_and_never_does(make):
    server = make().examined('sdz2 of the same disk is mounted on /srv')
    server.pass_idle_time()
    assert len(server.ask('spin', action='down')) == 1 and len(server.ask()) == 1
    assert not server.told and server.power().startswith('never sleeps: sdz2 of the same disk')


def test_a_disk_that_becomes_shared_while_it_sleeps_is_woken(make):
    server = make().examined().fall_asleep()
    server.spin_down.reconsider()
    server.examined('sdz, which sdz is a part of, also has unit x/1')
    assert server.end_job({'seconds': 1}) == ('spin-down', 't/0')
    assert server.unit.sleep == ROTATES


def test_the_access_of_another_program_is_noticed(make):
    server = make().examined().fall_asleep()
    server.counts += 1
    server.loop.pass_time(60)
    assert server.told == [{'sleep': ROTATES, 'hanging': ANSWERS}] and server.power() == 'awake'


def test_after_an_upgrade_the_disk_still_sleeps(make):
    server = make(asleep=STOPPED).examined()
    assert server.power().startswith('asleep since') and not server.told
    waiting = server.ask()
    server.end_job({'seconds': 1})
    server.acknowledge()
    assert len(waiting) == 1 and server.unit.sleep == ROTATES


def test_an_access_before_the_disk_was_examined_after_an_upgrade(make):
    server = make(asleep=STOPPED)
    waiting = server.ask()
    assert server.end_job({'seconds': 1}) == ('spin-down', 't/0')
    server.acknowledge()
    assert len(waiting) == 1


def test_a_unit_that_is_gone_keeps_nobody_waiting(make):
    server = make().examined().fall_asleep()
    waiting = server.ask()
    server.by_id.clear()
    server.spin_down.reconsider()
    server.loop.pass_time(spin_down.FIRST_SECONDS)
    assert len(waiting) == 1
    server.end_job({'seconds': 1})


def test_wake_then_is_for_work_of_the_master(make):
    server, done = make().examined(), []
    server.spin_down.wake_then(server.unit, lambda: done.append(1))
    assert done == [1]
    server.fall_asleep()
    server.spin_down.wake_then(server.unit, lambda: done.append(2))
    assert done == [1]
    server.end_job({'seconds': 1})
    server.acknowledge()
    assert done == [1, 2]


def test_a_malformed_order(make):
    server = make().examined()
    with pytest.raises(Malformed):
        server.ask('spin', action='sideways')


def test_the_job_of_a_disk_that_is_no_scsi_disk(tmp_path):
    path = str(tmp_path / 'f')
    with open(path, 'wb') as file:
        file.write(b'x')
    with open(path, 'rb') as file:
        assert 'no SCSI commands' in spin_down.stop_disk(file.fileno(), 0, True, 'sdz')[0]['failed']
        assert spin_down.start_disk(file.fileno())[0]['failed']
    found = spin_down.examine([('a/0', path), ('b/0', '/absent')], [('a/0', path)])[0]['found']
    assert 'not a block device' in found['a/0'][1] and found['b/0'][1]


def test_the_disk_of_another_lun_is_named(monkeypatch):
    seen = []
    monkeypatch.setattr(
        spin_down.spin, 'why_not', lambda path, others, tables: seen.append(others) or ('sdz', '')
    )
    units = [('a/0', '/dev/a'), ('b/1', '/dev/b'), ('ram', '')]
    spin_down.examine(units[:1], units)
    luns = [(('iqn.a', 0), '/dev/a'), (('iqn.b', 1), '/dev/b')]
    spin_down.examine(luns[:1], luns)
    assert seen == [[('unit b/1', '/dev/b')], [('lun 1 of iqn.b', '/dev/b')]]
