"""Who is protected, who shares a disk with whom, and what is said about it: counters that are given."""

from types import SimpleNamespace

import pytest

from targetd import events, log
from targetd.config import model
from targetd.master.latency_targets import LatencyTargets
from targetd.scsi.counters import bucket_of

NAME, OTHER = 'iqn.2026-11.test:disk', 'iqn.2026-11.test:other'
ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'


class Loop(object):
    def __init__(self):
        self.now, self.timers = 100.0, []

    def clock(self):
        return self.now

    def call_later(self, seconds, function):
        timer = SimpleNamespace(cancel=lambda: self.timers.remove(entry))
        entry = (self.now + seconds, function)
        self.timers.append(entry)
        return timer


class Server(object):
    """Two targets: LUNs 0 and 1 of NAME, LUN 0 of OTHER. disks: {unit id: disk}. slowed: what is in force."""

    def __init__(self, zero=0, one=0, other=0, initiators=0, **disks):
        targets = [
            model.Target(NAME)._replace(
                luns={0: lun(0, zero), 1: lun(1, one)}, initiator_latency_target=initiators
            ),
            model.Target(OTHER)._replace(luns={0: lun(0, other)}),
        ]
        self.state = SimpleNamespace(configuration=model.configuration(targets=targets))
        self.worker = {NAME: 'worker 1', OTHER: 'worker 2'}
        self.by_id = {
            '%s/%d' % (target.name, number): SimpleNamespace(
                id='%s/%d' % (target.name, number),
                target_name=target.name,
                lun=each,
                workers={self.worker[target.name]: None},
            )
            for target in targets
            for number, each in target.luns.items()
        }
        self.disk_of = dict({'disk0': 'sda', 'disk1': 'sda', 'other0': 'sda'}, **disks)
        self.loop, self.asked, self.slowed, self.causes = Loop(), [], {}, {}
        counting = SimpleNamespace(collect=lambda done, only: self.asked.append((done, only)))
        rate_limits = SimpleNamespace(slow=self._slow)
        units = SimpleNamespace(by_id=self.by_id)
        self.targets = LatencyTargets(self.loop, None, self.state, units, counting, rate_limits)
        self.targets._disks = SimpleNamespace(look=lambda units: None, beneath=self._beneath)
        self.measured = rate_limits.latencies
        self.totals = {}
        self.targets.apply()

    def _slow(self, slowed, causes):
        self.slowed, self.causes = slowed, causes

    def _beneath(self, unit):
        key = 'disk%d' % unit.lun.number if unit.target_name == NAME else 'other0'
        return frozenset([self.disk_of[key]])

    def second(self, *loads):
        """loads: (initiator, target, lun, commands, milliseconds that each took, microseconds of the oldest
        unfinished one)."""
        self.loop.now += 1.0
        timers, self.loop.timers = self.loop.timers, []
        for _, function in timers:
            function()
        rows = []
        for initiator, target, number, commands, milliseconds, oldest in loads:
            key = initiator, target, number
            total = self.totals.setdefault(key, [0, {}])
            total[0] += commands
            if milliseconds is not None:
                bucket = bucket_of(int(milliseconds * 1000))
                total[1][bucket] = total[1].get(bucket, 0) + commands
            session = SimpleNamespace(tsih=hash(key), initiator_name=initiator)
            row = {'unit': '%s/%d' % (target, number), 'reads': total[0], 'writes': 0, 'others': 0}
            histogram = [list(pair) for pair in total[1].items()]
            rows.append(
                (session, dict(row, read_latencies=histogram, other_latencies=[], oldest=oldest))
            )
        while self.asked:
            done, self.only = self.asked.pop()
            done(rows, [])


def lun(number, seconds):
    return model.Lun(number)._replace(latency_target=seconds, backing_store='/srv/%d' % number)


def protected(milliseconds, commands=50):
    return ONE, NAME, 0, commands, milliseconds, 0


NEIGHBOUR = TWO, NAME, 1, 1000, None, 0
FAR = TWO, OTHER, 0, 400, None, 0


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(log, 'info', lambda text, *words: found.append(text % words))
    yield found
    events.listen(None)


def test_without_a_target_nothing_runs():
    server = Server()
    assert server.loop.timers == []


def test_all_that_share_the_disk_are_slowed_down_and_told_for_whom(said):
    emitted = []
    events.listen(lambda kind, words: emitted.append((kind, words['unit'], words['state'])))
    server = Server(zero=0.02)
    server.second(protected(45), NEIGHBOUR, FAR)
    assert server.slowed == {}, 'the first numbers are from before the second'
    server.second(protected(45), NEIGHBOUR, FAR)
    assert server.slowed == {(NAME, 1): 750, (OTHER, 0): 300}
    assert server.causes[OTHER, 0] == ['lun 0 of %s (20ms)' % NAME]
    (latency,) = server.measured().values()
    assert 0.036 < latency < 0.055
    assert set(said[0].split()) > {NAME + '/1', 'slowed', 'latency-target', '20ms:'}
    assert len(said) == 2 and emitted[0] == ('slowed', NAME + '/1', 'slowed')
    for _ in range(5):
        server.second(protected(45), NEIGHBOUR, FAR)
    assert len(said) == 2


def test_who_has_another_disk_or_a_stricter_target_is_not_slowed_down(said):
    server = Server(zero=0.02, one=0.01, other0='sdb')
    for _ in range(3):
        server.second(protected(45), NEIGHBOUR, FAR)
    assert server.slowed == {} and said == []
    assert server.only == {'worker 1'}, 'only sessions on the disk are asked'


def test_who_has_a_longer_target_is_slowed_down():
    server = Server(zero=0.02, one=0.5)
    for _ in range(2):
        server.second(protected(45), NEIGHBOUR, FAR)
    assert server.slowed == {(NAME, 1): 750, (OTHER, 0): 300}


def test_they_are_free_again_when_the_target_is_met(said):
    server = Server(zero=0.02)
    for _ in range(2):
        server.second(protected(45), NEIGHBOUR)
    for _ in range(8):
        server.second(protected(5), NEIGHBOUR)
    assert server.slowed == {}
    assert said[-1] == 'unit %s/1 is not slowed down any more' % NAME


def test_a_command_that_is_not_answered_at_all_is_late():
    server = Server(zero=0.02)
    server.second(protected(5), NEIGHBOUR)
    server.second((ONE, NAME, 0, 0, None, 900000), NEIGHBOUR)
    assert server.slowed == {(NAME, 1): 750}
    assert list(server.measured().values()) == [0.9]


def test_an_idle_lun_slows_nobody_down():
    server = Server(zero=0.02)
    for _ in range(3):
        server.second(protected(45, 0), NEIGHBOUR)
    assert server.slowed == {} and list(server.measured().values()) == [None]


def test_each_initiator_of_a_target_is_protected():
    server = Server(initiators=0.02)
    busy = TWO, NAME, 1, 1000, 3, 0
    for _ in range(2):
        server.second(protected(45), busy, FAR)
    assert server.slowed == {(OTHER, 0): 300}, 'LUNs of the target have the same latency-target'
    assert server.causes[OTHER, 0] == ['initiator %s of %s (20ms)' % (ONE, NAME)]
    assert set(server.measured()) == {(NAME, 'initiator ' + ONE), (NAME, 'initiator ' + TWO)}


def test_a_setting_that_is_removed_frees_all():
    server = Server(zero=0.02)
    for _ in range(2):
        server.second(protected(45), NEIGHBOUR)
    targets = [model.Target(NAME)._replace(luns={0: lun(0, 0), 1: lun(1, 0)})]
    server.state.configuration = model.configuration(targets=targets)
    server.second()
    assert server.slowed == {} and server.loop.timers == [] and server.measured() == {}


def test_a_unit_that_is_removed_is_forgotten():
    server = Server(zero=0.02)
    for _ in range(2):
        server.second(protected(45), NEIGHBOUR)
    del server.by_id[NAME + '/1']
    server.second(protected(45))
    assert server.slowed == {}


def test_a_unit_with_another_store_counts_anew():
    server = Server(zero=0.02)
    for _ in range(2):
        server.second(protected(45), NEIGHBOUR)
    server.totals.clear()
    server.second(protected(5, 1), (TWO, NAME, 1, 5, None, 0))
    assert server.slowed == {(NAME, 1): 750}
    server.targets.close()
    assert server.loop.timers == []
