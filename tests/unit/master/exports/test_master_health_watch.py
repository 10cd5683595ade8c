"""When disks are asked about their health, and what is said about it; tests/wire/test_wire_health.py has
what initiators see."""

from types import SimpleNamespace

import pytest

from targetd import events, log
from targetd.host import smart
from targetd.master.exports import health_watch
from targetd.master.units import shared_state
from targetd.scsi import modes, reservations
from targetd.scsi.facts import UnitFacts

FACTS = UnitFacts.from_message({'health': True})
WELL = {'state': smart.HEALTHY, 'why': '', 'model': 'M', 'serial': 'S', 'temperature': 30}
SICK = dict(WELL, state=smart.FAILING, why='it predicts its failure', failure=[0x5D, 0x10])
HOT = dict(WELL, state=smart.HOT, why='its temperature is 70 °C', temperature=70)
ASLEEP = {'state': smart.ASLEEP, 'why': 'the disk sleeps', 'model': '', 'serial': ''}


class Loop(object):
    """A clock that a test moves, and the timers."""

    def __init__(self):
        self.now, self.timers = 0.0, []

    def clock(self):
        return self.now

    def call_later(self, seconds, function):
        timer = SimpleNamespace(at=self.now + seconds, function=function)
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer

    def pass_time(self, seconds):
        end = self.now + seconds
        while self.timers and min(t.at for t in self.timers) <= end:
            timer = min(self.timers, key=lambda t: t.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.function()
        self.now = end


class Jobs(object):
    """Keeps the jobs; a test answers them."""

    def __init__(self):
        self.waiting, self.stuck = [], set()

    def submit_job(self, name, work, done, seconds):
        self.waiting.append((name, done))

    def is_stuck(self, name):
        return name in self.stuck

    def answer(self, found, why=''):
        name, done = self.waiting.pop(0)
        done(SimpleNamespace(values={'found': found} if found is not None else {}, why=why))
        return name


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ('info', 'warning', 'error'):
        monkeypatch.setattr(log, level, lambda text, *a, at=level: lines.append((at, text % a)))
    events.listen(lambda kind, words: lines.append(('event', dict(words, kind=kind))))
    yield lines
    events.listen(None)


class Server(object):
    def __init__(self, *names, interval=60):
        self.loop, self.jobs, self.by_id = Loop(), Jobs(), {}
        for name in names:
            self.by_id[name] = SimpleNamespace(
                id=name,
                lun=SimpleNamespace(
                    health_interval=interval, health_device=(), backing_store='/' + name
                ),
                store=SimpleNamespace(kind='block', path='/dev/' + name, key=('block', name)),
                sleep=0,
                shared=shared_state.Shared(reservations.initial(), modes.initial(FACTS)),
            )
        self.decisions = []
        units = SimpleNamespace(by_id=self.by_id, replication=self)
        self.watch = health_watch.HealthWatch(self.loop, units, self.jobs)
        self.watch.reconsider()

    def apply_decision(self, unit, decision):
        self.decisions.append(decision)
        unit.shared = decision.shared

    def ask(self, **answers):
        """Lets the time of an interval pass and answers the jobs."""
        self.loop.pass_time(61)
        found = {name: [dict(answer, node='/dev/x')] for name, answer in answers.items()}
        while self.jobs.waiting:
            self.jobs.answer(found)


def test_each_disk_is_asked_after_its_interval():
    server = Server('a', 'b', interval=600)
    server.loop.pass_time(3)
    assert len(server.jobs.waiting) == 2
    server.ask(a=WELL, b=WELL)
    assert server.by_id['a'].shared.records['health']['temperature'] == 30
    server.loop.pass_time(400)
    assert server.jobs.waiting == []
    server.loop.pass_time(200)
    assert len(server.jobs.waiting) == 2


def test_no_timer_runs_while_no_lun_has_the_setting():
    server = Server('a', interval=0)
    server.loop.pass_time(10)
    assert server.loop.timers == [] and server.jobs.waiting == []


def test_a_disk_whose_job_runs_or_is_stuck_is_not_asked_again():
    server = Server('a', interval=1)
    server.loop.pass_time(30)
    assert len(server.jobs.waiting) == 1
    server.jobs.stuck.add(server.jobs.answer(None, 'there was no answer within 90 seconds'))
    server.loop.pass_time(30)
    assert server.jobs.waiting == []
    ((answer,),) = server.watch.answers.values()
    assert answer['state'] == smart.UNKNOWN and 'no answer' in answer['why']


def test_few_jobs_run_at_the_same_time():
    server = Server(*'abcdefgh')
    server.loop.pass_time(20)
    assert len(server.jobs.waiting) == health_watch.RUNNING
    server.jobs.answer({})
    server.loop.pass_time(2)
    assert len(server.jobs.waiting) == health_watch.RUNNING


def test_a_change_is_said_once_with_an_event(said):
    server = Server('a')
    server.ask(a=WELL)
    assert said == []
    for _ in range(3):
        server.ask(a=SICK)
    (event, line) = said
    assert event[1]['kind'] == 'health' and event[1]['state'] == 'failing'
    assert line[0] == 'error' and 'FAILING' in line[1] and '/dev/x' in line[1]
    assert server.watch.described(server.by_id['a']).startswith('failing: /dev/x')
    del said[:]
    server.ask(a=WELL)
    assert [each[0] for each in said] == ['event', 'info']
    assert server.watch.described(server.by_id['a']) == ''
    server.ask(a=HOT)
    assert said[-1][0] == 'warning'


def test_a_disk_that_fell_asleep_keeps_what_it_said(said):
    server = Server('a')
    server.ask(a=SICK)
    del said[:]
    server.ask(a=ASLEEP)
    assert said == []
    (row,) = server.watch.rows(server.by_id['a'])
    assert (row['state'], row['temperature'], row['model']) == ('asleep', 30, 'M')
    assert server.by_id['a'].shared.records['health']['failure'] == [0x5D, 0x10]


def test_a_disk_that_always_sleeps_changes_nothing(said):
    server = Server('a')
    server.ask(a=ASLEEP)
    assert server.decisions == [] and said[0][0] == 'info'


def test_a_unit_that_is_gone_is_forgotten():
    server = Server('a', 'b')
    server.ask(a=WELL, b=WELL)
    server.loop.pass_time(61)
    del server.by_id['a']
    server.ask(a=WELL, b=WELL)
    server.loop.pass_time(61)
    assert sorted(server.watch.answers) == ['b']


# -- in the job ------------------------------------------------------------------------------------


def test_a_disk_of_several_units_is_asked_once():
    calls = []

    def ask(node, kind, environment, prepare):
        calls.append((node, kind))
        return dict(WELL)

    wanted = [('a', '/x', [('sat', '/dev/sdx')]), ('b', '/y', [('sat', '/dev/sdx')])]
    values, _ = health_watch.ask_disks(wanted, ask)
    assert calls == [('/dev/sdx', 'sat')]
    assert values['found']['a'] == values['found']['b'] == [dict(WELL, node='sat@/dev/sdx')]


def test_no_disk_is_asked_after_the_time():
    times = iter([0.0, 1.0, 100.0])
    values, _ = health_watch.ask_disks(
        [('a', '/x', [('', '/dev/sdx'), ('', '/dev/sdy')])],
        lambda *words: dict(WELL),
        lambda: next(times),
    )
    assert [each['state'] for each in values['found']['a']] == [smart.HEALTHY, smart.UNKNOWN]


def test_a_path_that_is_gone_is_said():
    values, _ = health_watch.ask_disks([('a', '/nonexistent/disk.img', ())])
    assert values['found']['a'][0]['state'] == smart.UNKNOWN
