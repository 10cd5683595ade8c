"""Which limits the sessions are told, and what is shown."""

import os
from types import SimpleNamespace

import pytest

from targetd.config import model
from targetd.master.rate_limits import (
    FIRST_INITIATOR,
    FIRST_LUN,
    FIRST_SLOWED,
    SLOWED_BURST,
    TARGET,
    RateLimits,
)
from targetd.scsi.limits import SECOND, STATE
from targetd.scsi.sam import Nexus

NAME = 'iqn.2026-11.test:disk'


def configuration(lun=(), **target):
    luns = {0: model.Lun(0)._replace(**dict(lun)), 5: model.Lun(5)}
    return model.configuration(targets=[model.Target(NAME)._replace(luns=luns, **target)])


class Worker(object):
    pid = 42


class Server(object):
    """RateLimits with sessions. orders: [(worker, order)] that were sent."""

    def __init__(self, **words):
        self.state = SimpleNamespace(configuration=configuration(**words))
        self.orders, self.alive = [], []
        sessions = SimpleNamespace(
            normal=lambda: self.alive,
            of_target=lambda name: [s for s in self.alive if s.nexus.target_name == name],
        )
        self.limits = RateLimits(self.state, sessions, self._send)

    def _send(self, worker, order, descriptors):
        (descriptor,) = descriptors
        self.place_of_memory = os.fstat(descriptor).st_ino
        self.orders.append((worker, order))

    def log_in(self, initiator, worker):
        nexus = Nexus(initiator, '80abcdef0001', NAME, 1)
        self.alive.append(
            SimpleNamespace(nexus=nexus, worker=worker, initiator_name=initiator, pid=worker)
        )
        self.limits.serve(worker, nexus)
        return self.orders[-1][1] if self.orders and self.orders[-1][0] == worker else None

    def log_out(self, worker):
        self.alive = [s for s in self.alive if s.worker != worker]
        self.limits.session_over(worker)

    def configure(self, **words):
        before = len(self.orders)
        self.state.configuration = configuration(**words)
        self.limits.apply()
        return self.orders[before:]


@pytest.fixture
def server():
    made = []

    def make(**words):
        made.append(Server(**words))
        return made[-1]

    yield make
    for each in made:
        each.limits.close()


def test_a_session_without_limits_gets_no_order(server):
    assert server().log_in('iqn.2026-11.test:one', 1) is None


def test_a_session_is_told_the_limits_of_target_initiator_and_luns(server):
    one = server(lun={'iops_limit': 7}, bandwidth_limit=1 << 20, initiator_iops_limit=9)
    assert one.log_in('iqn.2026-11.test:one', 1) == {
        'do': 'limits',
        'session': [[TARGET, 0, 1 << 20], [FIRST_INITIATOR, 9, 0]],
        'luns': {'0': [[FIRST_LUN, 7, 0]]},
        'timed': [],
    }


def test_paths_of_an_initiator_have_one_place_and_other_initiators_another(server):
    one = server(initiator_iops_limit=9)
    places = [
        one.log_in('iqn.2026-11.test:' + name, worker)['session'][0][0]
        for worker, name in enumerate(('one', 'one', 'two'))
    ]
    assert places == [FIRST_INITIATOR, FIRST_INITIATOR, FIRST_INITIATOR + 1]


def test_the_place_of_an_initiator_that_is_gone_is_used_again(server):
    one = server(initiator_iops_limit=9)
    for worker in range(100):
        row = one.log_in('iqn.2026-11.test:name-%d' % worker, worker)['session'][0]
        assert row[0] <= FIRST_INITIATOR + 1
        if worker:
            one.log_out(worker - 1)


def test_a_change_is_sent_to_the_sessions_for_which_it_is_one(server):
    one = server()
    one.log_in('iqn.2026-11.test:one', 1)
    assert one.configure() == []
    ((worker, order),) = one.configure(iops_limit=5)
    assert worker == 1 and order['session'] == [[TARGET, 5, 0]]
    assert one.configure(iops_limit=5) == []
    ((_, order),) = one.configure()
    assert order['session'] == [] and order['luns'] == {}
    assert one.configure() == []


def test_what_workers_have_counted_is_shown(server):
    one = server(lun={'iops_limit': 7}, initiator_iops_limit=9)
    one.log_in('iqn.2026-11.test:one', 1)
    shared = one.limits._shared[NAME].descriptor
    state = STATE.pack(0, 0, 4, 6 * SECOND)
    os.pwrite(shared, state, FIRST_LUN * STATE.size)
    rows = {row['what']: row for row in one.limits.rows()}
    assert sorted(rows) == ['initiator iqn.2026-11.test:one', 'lun 0']
    assert rows['lun 0']['delayed'] == 4 and rows['lun 0']['average'] == '1500.0 ms'
    assert rows['lun 0']['iops'] == 7 and rows['lun 0']['bandwidth'] is None
    assert rows['initiator iqn.2026-11.test:one']['average'] == ''


def test_a_limit_without_any_session_is_shown(server):
    assert [row['what'] for row in server(iops_limit=3).limits.rows()] == ['target']


def test_another_program_continues_with_the_memory_and_sends_nothing_twice(server):
    one = server(initiator_iops_limit=9)
    worker = Worker()
    one.log_in('iqn.2026-11.test:one', worker)
    kept = []
    words = one.limits.handed_over(lambda number: kept.append(number) or os.dup(number))
    two = server(initiator_iops_limit=9)
    two.alive = [SimpleNamespace(**vars(one.alive[0]))]
    again = Worker()
    two.alive[0].worker = again
    two.limits.take_over(words, {42: again})
    two.limits.apply()
    assert two.orders == [] and len(kept) == 1
    two.log_in('iqn.2026-11.test:two', 7)
    assert two.orders[0][1]['session'][0][0] == FIRST_INITIATOR + 1
    assert two.place_of_memory == one.place_of_memory


def test_a_session_is_told_which_of_its_luns_are_timed(server):
    one = server(lun={'latency_target': 0.02})
    order = one.log_in('iqn.2026-11.test:one', 1)
    assert order['timed'] == [0] and order['luns'] == {}
    (row,) = one.limits.rows()
    assert (row['what'], row['latency_target'], row['latency']) == ('lun 0', '20ms', '')
    one.limits.latencies = lambda: {(NAME, 'lun 0'): 0.0123}
    assert one.limits.rows()[0]['latency'] == '12.3 ms'
    ((_, order),) = one.configure(initiator_latency_target=0.02)
    assert order['timed'] == [0, 5]


def test_a_lun_that_is_slowed_down_keeps_its_own_limit(server):
    one = server(lun={'iops_limit': 700})
    one.log_in('iqn.2026-11.test:one', 1)
    before = len(one.orders)
    one.limits.slow({(NAME, 0): 300}, {(NAME, 0): ['lun 3 of it (20ms)']})
    ((worker, order),) = one.orders[before:]
    assert order['luns']['0'] == [[FIRST_LUN, 700, 0], [FIRST_SLOWED, 300, 0, SLOWED_BURST]]
    rows = {row['what']: row for row in one.limits.rows()}
    assert rows['lun 0']['iops'] == 700 and rows['lun 0']['slowed_for'] == ''
    assert rows['lun 0 slowed down']['slowed_for'] == 'lun 3 of it (20ms)'
    one.limits.slow({(NAME, 0): 300}, {(NAME, 0): ['lun 3 of it (20ms)']})
    assert len(one.orders) == before + 1, 'nothing has changed'
    one.limits.slow({}, {})
    assert one.orders[-1][1]['luns'] == {'0': [[FIRST_LUN, 700, 0]]}


def test_the_rows_of_a_session_are_those_of_its_target_and_initiator(server):
    one = server(lun={'iops_limit': 7}, initiator_iops_limit=9)
    one.log_in('iqn.2026-11.test:one', 1)
    one.log_in('iqn.2026-11.test:two', 2)
    rows = one.limits.of_session(one.alive[0].nexus)
    assert [row['what'] for row in rows] == ['lun 0', 'initiator iqn.2026-11.test:one']
    assert one.limits.of_session(one.alive[0].nexus._replace(target_name='iqn.x:gone')) == []


def test_what_was_slowed_down_before_an_upgrade_is_free_when_nobody_misses_a_target(server):
    one = server()
    worker, again = Worker(), Worker()
    one.log_in('iqn.2026-11.test:one', worker)
    one.limits.slow({(NAME, 0): 300}, {(NAME, 0): ['lun 3 of it (20ms)']})
    words = one.limits.handed_over(os.dup)
    two = server()
    two.alive = [SimpleNamespace(**dict(vars(one.alive[0]), worker=again))]
    two.limits.take_over(words, {42: again})
    assert [row['slowed_for'] for row in two.limits.rows()] == [
        'a latency-target before the upgrade'
    ]
    two.limits.slow({}, {})
    ((_, order),) = two.orders
    assert order['luns'] == {} and two.limits.rows() == []
