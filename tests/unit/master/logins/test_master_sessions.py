"""The registry of sessions: claims granted and refused, and reinstatement, which waits for the end of
the old session."""

import errno

import pytest
from master_fakes import TARGET, FakeWorker, StillLoop, kill, send

from targetd.config.lun_maps import EVERY_LUN
from targetd.master.logins import joins
from targetd.master.logins import sessions as registry
from targetd.master.logins.admission import Refused
from targetd.master.logins.claim_fields import check_claim_fields
from targetd.master.logins.sessions import END_SECONDS, Sessions
from targetd.master.processes.worker_messages import BadMessage

ISID = '00023d000001'
PEER = ['10.0.0.9', 40000]


class Connection(object):
    """The connection of a claim, as the master has handed it to the worker."""

    description = {'peer': PEER, 'local': ['10.0.0.1', 3260], 'group': 1}
    socket = type('Socket', (), {'fileno': lambda self: 0})()


class Desk(object):
    """A Sessions whose workers only record what they are sent; it is its own Admission."""

    def __init__(self):
        self.loop = StillLoop()
        self.refused = None
        self.ended = []
        self.sessions_go_on = True  # the workers of other sessions answer at once
        self.sessions = Sessions(
            self.loop,
            self,
            lambda worker, nexus: ([{'lun': 0}], (), False),
            self.send,
            kill,
            clock=lambda: 1000.0,
        )

    def check_claim(self, claim, target_name, sessions):
        if self.refused:
            raise self.refused
        return EVERY_LUN

    def proved_accounts(self, session):
        return []

    def send(self, worker, message, descriptors=()):
        if message['do'] == 'end':
            self.ended.append((worker, message['reason']))
        else:
            send(worker, message, descriptors)

    def claim(
        self,
        worker,
        name='iqn.2026-11.test:one',
        target=TARGET,
        isid=ISID,
        group=1,
        tsih=0,
        cid=0,
        peer=PEER,
    ):
        message = {
            'ask': 'claim',
            'id': 7,
            'peer': peer,
            'session': {
                'initiator_name': name,
                'initiator_alias': 'host',
                'isid': isid,
                'target_name': target,
                'group': group,
                'tsih': tsih,
                'cid': cid,
                'account': 'erp',
                'keys': {'MaxBurstLength': 262144, 'MaxConnections': 2},
            },
        }
        if tsih:
            message['connection'] = Connection()
            message['login'] = {'response': '00' * 48, 'answer': '', 'declared': 512}
        self.sessions.process_claim(worker, message)
        while self.sessions_go_on and any(w.checks for w in self.sessions.waiting_claims):
            waiting = next(w for w in self.sessions.waiting_claims if w.checks)
            number, asked = next(iter(waiting.checks.items()))
            self.sessions.on_continues(self.sessions.owner(asked), {'id': number})
        return worker.of('answer')[-1] if worker.of('answer') else None

    def die(self, worker):
        self.sessions.remove_session_of(worker)
        self.sessions.retry_waiting_claims()


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.loop.close()


def status(answer):
    return (answer['status_class'], answer['status_detail'])


def test_a_session_is_granted_with_tsih_units_and_a_line_in_the_log(desk, capfd):
    worker = FakeWorker()
    answer = desk.claim(worker)
    assert (
        status(answer) == (0, 0)
        and answer['id'] == 7
        and answer['tsih'] > 0
        and answer['units'] == [{'lun': 0}]
    )
    assert desk.sessions.owner(answer['tsih']) is worker
    assert (
        'iqn.2026-11.test:one as erp from 10.0.0.9:40000 logged in to %s' % TARGET
        in capfd.readouterr().err
    )
    (row,) = [s.described() for s in desk.sessions.all()]
    assert (
        row['initiator_name'] == 'iqn.2026-11.test:one'
        and row['connections'] == 1
        and row['since'] == 1000.0
    )
    assert row['address'] == '10.0.0.9:40000' and row['pid'] == worker.pid


def test_every_session_has_its_own_tsih(desk):
    answers = [desk.claim(FakeWorker(str(n)), isid='0002%08x' % n) for n in range(20)]
    assert len({a['tsih'] for a in answers}) == 20


def test_a_tsih_is_not_allocated_twice_after_all_were_used(desk, monkeypatch):
    monkeypatch.setattr(registry, 'MAXIMUM_TSIH', 3)
    workers = [FakeWorker(str(n)) for n in range(4)]
    given = [desk.claim(w, isid='0002%08x' % n)['tsih'] for n, w in enumerate(workers[:3])]
    assert sorted(given) == [1, 2, 3]
    assert status(desk.claim(workers[3], isid='ffffffffffff')) == (3, 2)
    desk.die(workers[1])
    assert desk.claim(FakeWorker('5'), isid='ffffffffffff')['tsih'] == given[1]


def test_a_refusal_has_status_and_rule_and_is_kept(desk, capfd):
    desk.refused = Refused((2, 2), 'address 10.0.0.9 matches none of initiator-address')
    answer = desk.claim(FakeWorker())
    assert status(answer) == (2, 2) and 'initiator-address' in answer['why']
    assert 'refused with status 0202: address 10.0.0.9 matches none' in capfd.readouterr().err
    (entry,) = desk.sessions.refusals
    assert (
        entry['status'] == '0202'
        and entry['address'] == '10.0.0.9'
        and 'initiator-address' in entry['why']
    )
    assert desk.sessions.all() == []


def test_only_the_newest_refusals_are_kept(desk):
    for number in range(150):
        desk.sessions.note_refusal('n%d' % number, None, PEER, 'why')
    assert (
        len(desk.sessions.refusals) == 100
        and desk.sessions.refusals[-1]['initiator_name'] == 'n149'
    )


def test_a_claim_that_cannot_be_answered_ends_with_its_worker(desk, capfd):
    """What was granted already ends with the worker; the initiator logs in again."""

    def none_left(worker, nexus):
        raise OSError(errno.EMFILE, 'Too many open files')

    serve, desk.sessions.serve_units = desk.sessions.serve_units, none_left
    worker = FakeWorker()
    assert desk.claim(worker) is None and worker.killed
    assert (
        'iqn.2026-11.test:one from 10.0.0.9:40000 cannot be answered: Too many open files'
        in capfd.readouterr().err
    )
    desk.die(worker)
    assert desk.sessions.all() == []
    desk.sessions.serve_units = serve
    assert status(desk.claim(FakeWorker('next'))) == (0, 0)


def test_max_sessions_of_the_server(desk):
    desk.sessions.limit = 1
    first = FakeWorker('a')
    desk.claim(first)
    assert status(desk.claim(FakeWorker('b'), isid='000000000002')) == (3, 2)
    # asking for targets is always possible
    assert status(desk.claim(FakeWorker('c'), target=None)) == (0, 0)
    again = FakeWorker('d')
    desk.claim(again)  # the same nexus replaces itself
    desk.die(first)
    assert status(again.of('answer')[0]) == (0, 0)


def test_reinstatement_answers_only_after_the_old_worker_is_gone(desk):
    old, new = FakeWorker('old'), FakeWorker('new')
    first = desk.claim(old)
    assert desk.claim(new) is None
    assert desk.ended == [(old, 'reinstated')]
    desk.loop.pass_time(END_SECONDS - 0.1)
    assert old.killed is None
    desk.die(old)
    answer = new.of('answer')[0]
    assert status(answer) == (0, 0) and answer['tsih'] != first['tsih']
    desk.loop.pass_time(1)
    assert old.killed is None and new.killed is None


def test_a_claim_through_another_group_waits_until_the_session_goes_on_or_is_gone(desk):
    desk.sessions_go_on = False
    one, two, three = FakeWorker('one'), FakeWorker('two'), FakeWorker('three')
    desk.claim(one, group=1)
    assert desk.claim(two, group=2) is None
    (check,) = one.of('check-connections')
    desk.sessions.on_continues(two, {'id': check['id']})  # not the worker that was asked
    desk.sessions.on_continues(one, {'id': check['id'] + 7})
    assert not two.of('answer')
    desk.sessions.on_continues(one, {'id': check['id']})
    assert status(two.of('answer')[0]) == (0, 0)
    # a third group waits for both; the death of one and the answer of the other are enough
    assert desk.claim(three, group=3) is None
    desk.die(one)
    assert not three.of('answer') and len(two.of('check-connections')) == 1
    desk.sessions.on_continues(two, two.of('check-connections')[0])
    assert status(three.of('answer')[0]) == (0, 0)


def test_a_claim_with_another_isid_waits_too_unless_there_are_very_many_sessions(desk):
    workers = [FakeWorker(str(n)) for n in range(registry.MOST_CHECKED + 1)]
    for number, worker in enumerate(workers[:-1]):
        desk.claim(worker, isid='0002%08x' % number)
    desk.sessions_go_on = False
    assert desk.claim(workers[-1], isid='00023d000009') is None
    for worker in workers[:-1]:
        desk.sessions.on_continues(worker, worker.of('check-connections')[-1])
    assert status(workers[-1].of('answer')[0]) == (0, 0)
    # with one session more, only those of the same initiator port are asked
    assert status(desk.claim(FakeWorker('last'), isid='00023d00000a')) == (0, 0)
    assert desk.claim(FakeWorker('group'), isid='00023d000009', group=2) is None


def test_a_claim_through_another_group_does_not_wait_for_ever(desk):
    desk.sessions_go_on = False
    one, two = FakeWorker('one'), FakeWorker('two')
    desk.claim(one, group=1)
    assert desk.claim(two, group=2) is None
    desk.loop.pass_time(END_SECONDS)
    assert status(two.of('answer')[0]) == (0, 0)
    assert one.killed is None and desk.ended == []
    desk.loop.pass_time(END_SECONDS)
    assert len(two.of('answer')) == 1


def test_an_old_worker_that_does_not_end_is_killed(desk):
    old, new = FakeWorker('old'), FakeWorker('new')
    desk.claim(old)
    desk.claim(new)
    desk.loop.pass_time(END_SECONDS)
    assert 'reinstated' in old.killed and new.of('answer') == []
    desk.die(old)
    assert status(new.of('answer')[0]) == (0, 0)


def test_two_claims_for_one_nexus_at_once_end_with_the_last_of_them(desk):
    old, second, third = FakeWorker('old'), FakeWorker('second'), FakeWorker('third')
    desk.claim(old)
    desk.claim(second)
    desk.claim(third)
    desk.die(old)
    assert status(second.of('answer')[0]) == (0, 0) and third.of('answer') == []
    assert desk.ended == [(old, 'reinstated'), (second, 'reinstated')]
    desk.die(second)
    assert status(third.of('answer')[0]) == (0, 0)
    assert [s.worker for s in desk.sessions.all()] == [third]


def test_the_waiting_claim_of_a_dead_worker_is_dropped(desk):
    old, new = FakeWorker('old'), FakeWorker('new')
    desk.claim(old)
    desk.claim(new)
    desk.die(new)
    desk.die(old)
    assert new.sent == [] and desk.sessions.all() == []


@pytest.mark.parametrize(
    'other',
    [
        dict(isid='00023d000002'),
        dict(name='iqn.2026-11.test:two'),
        dict(target='iqn.2026-11.test:other'),
    ],
)
def test_another_nexus_is_another_session(desk, other):
    desk.claim(FakeWorker('a'))
    assert status(desk.claim(FakeWorker('b'), **other)) == (0, 0)
    assert len(desk.sessions.all()) == 2 and desk.ended == []


def test_a_further_connection_of_the_session(desk):
    """A spare has done its login; the worker of the session receives the connection."""
    worker, spare = FakeWorker(), FakeWorker('spare')
    tsih = desk.claim(worker)['tsih']
    answer = desk.claim(spare, tsih=tsih, cid=1, peer=['10.0.1.9', 5])
    assert status(answer) == (0, 0) and answer['tsih'] == tsih and answer['units'] == []
    (order,) = worker.of('join')
    assert (order['tsih'], order['cid'], order['login']['declared']) == (tsih, 1, 512)
    assert spare.session is None and worker.peers == ['10.0.1.9']
    assert desk.sessions.all()[0].described()['connections'] == 2
    assert status(desk.claim(spare, tsih=tsih, cid=2)) == (2, 6)  # MaxConnections=2 was agreed on
    assert status(desk.claim(spare, tsih=tsih, cid=1)) == (0, 0)  # the connection is reinstated


@pytest.mark.parametrize(
    'wrong',
    [
        dict(name='iqn.2026-11.test:two'),
        dict(isid='00023d000002'),
        dict(tsih=999),
        dict(target='iqn.2026-11.test:other'),
    ],
)
def test_a_connection_that_is_not_of_the_session(desk, wrong):
    worker = FakeWorker()
    tsih = desk.claim(worker)['tsih']
    values = dict(tsih=tsih, cid=1)
    values.update(wrong)
    assert status(desk.claim(FakeWorker('spare'), **values)) == (2, 10)


def test_a_connection_through_another_portal_group(desk):
    worker = FakeWorker()
    tsih = desk.claim(worker)['tsih']
    assert status(desk.claim(FakeWorker('spare'), tsih=tsih, cid=1, group=2)) == (2, 8)


@pytest.mark.parametrize(
    'login',
    [
        None,
        {'response': '00' * 48, 'answer': ''},
        {'response': '00' * 47, 'answer': '', 'declared': 512},
        {'response': '00' * 48, 'answer': 'x', 'declared': 512},
        {'response': 5, 'answer': '', 'declared': 512},
        {'response': '00' * 48, 'answer': '', 'declared': 0},
        {'response': '00' * 48, 'answer': '', 'declared': True},
    ],
)
def test_a_malformed_end_of_a_login_is_a_bad_message(desk, login):
    worker = FakeWorker()
    tsih = desk.claim(worker)['tsih']
    record = desk.sessions.by_tsih[tsih]
    claim = {'login': login, 'session': {'cid': 1}}
    with pytest.raises(BadMessage):
        joins.order(record, claim, {})


def test_a_tsih_of_no_session(desk):
    assert status(desk.claim(FakeWorker(), tsih=4711)) == (2, 10)


def test_discovery_sessions_have_a_tsih_and_no_nexus(desk):
    one, two = FakeWorker('a'), FakeWorker('b')
    assert desk.claim(one, target=None)['units'] == []
    desk.claim(two, target=None)
    assert desk.ended == [] and len({s.tsih for s in desk.sessions.all()}) == 2
    assert desk.sessions.remove_session_of(one) is not None and one.session is None


@pytest.mark.parametrize(
    'spoil',
    [
        lambda m: m['session'].update(isid='XYZ'),
        lambda m: m['session'].update(isid='0' * 12 + '\n'),
        lambda m: m['session'].update(initiator_name='x' * 256),
        lambda m: m['session'].update(initiator_alias=[]),
        lambda m: m['session'].update(group=True),
        lambda m: m['session'].update(account={}),
        lambda m: m['session'].update(keys={'MaxBurstLength': {'a': 1}}),
        lambda m: m['session'].update(initiator_name=''),
        lambda m: m['session'].update(cid='0'),
        lambda m: m['session'].update(target_name=5),
        lambda m: m['session'].update(tsih='x'),
        lambda m: m['session'].update(keys=[1]),
    ],
)
def test_a_malformed_claim_is_a_bad_message(spoil):
    message = {
        'ask': 'claim',
        'id': 7,
        'peer': list(PEER),
        'session': {
            'initiator_name': 'iqn.x',
            'isid': ISID,
            'target_name': TARGET,
            'group': 1,
            'tsih': 0,
            'cid': 0,
        },
    }
    spoil(message)
    with pytest.raises(BadMessage):
        check_claim_fields(message)


def test_sessions_of_a_target(desk):
    desk.claim(FakeWorker('a'))
    desk.claim(FakeWorker('b'), target='iqn.2026-11.test:other')
    assert len(desk.sessions.of_target(TARGET)) == 1
