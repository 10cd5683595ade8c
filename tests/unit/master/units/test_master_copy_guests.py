"""Units of other targets for copies: who gets one, what a guest hears, and that it is gone before
the medium is let go."""

import collections

import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, StillLoop, make_units, nexus

from targetd.config import model
from targetd.master.units import transitions
from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS
from targetd.master.units.unit import Unit

OTHER = 'iqn.2026-11.test:other'
NAA = '6001405' + '0' * 24 + '%d'
BINARY, TYPE_NAA = 1, 3

Session = collections.namedtuple('Session', 'nexus')


class House(object):
    """`mine` of TARGET, which `one` serves, and `theirs` of OTHER, which `far` serves."""

    def __init__(self, path, **parts):
        self.path = path
        self.loop = StillLoop()
        self.descriptors = []
        self.units = make_units(self.loop, path, self.send, self.kill, **parts)
        self.mine, self.theirs = self.export(TARGET, 1), self.export(OTHER, 2)
        self.one, self.far = FakeWorker('one'), FakeWorker('far')
        for worker, target in ((self.one, TARGET), (self.far, OTHER)):
            worker.session = Session(nexus(worker.name, target=target))
            self.units.serve_session(worker, worker.session.nexus)

    def export(self, target, lun, **facts):
        file = str(self.path.join('%s-%d' % (target[-5:], lun)))
        facts = dict({'block_size': 512, 'naa': NAA % lun}, **facts)
        unit = Unit(
            '%s/%d' % (target, lun),
            file,
            target,
            model.Lun(lun),
            FakeStore(file),
            facts,
            transitions.initial({'block_size': 512}, {}, 'boot'),
        )
        self.units.add_unit(unit)
        return unit

    def send(self, worker, message, descriptors):
        worker.sent.append(message)
        self.descriptors.extend(descriptors)

    @staticmethod
    def kill(worker, why):
        worker.killed = why

    def reach(self, naa=NAA % 2, worker=None, **words):
        worker = worker or self.one
        message = dict(
            {
                'ask': 'copy-reach',
                'id': len(worker.sent),
                'unit': self.mine.id,
                'code_set': BINARY,
                'kind': TYPE_NAA,
                'designator': naa,
            },
            **words,
        )
        self.units.on_request(worker, message)
        answers = [sent for sent in worker.of('answer') if sent['id'] == message['id']]
        return answers[0]['reached'] if answers and answers[0]['status'] == 0 else answers

    def acknowledge(self, worker):
        self.units.replication.on_acknowledge(worker, worker.sent[-1])


@pytest.fixture
def house(tmpdir):
    return House(tmpdir, may_log_in=lambda worker, target_name: True)


def test_a_unit_is_given_with_its_descriptor_and_its_target(house):
    given = house.reach()
    assert (
        given['unit'] == house.theirs.id
        and given['target_name'] == OTHER
        and given['descriptor'] == 0
    )
    assert house.descriptors == [house.theirs.store.descriptor]
    assert house.theirs.guests[house.one][0] == nexus('one', target=OTHER)


def test_nobody_is_admitted_before_the_master_says_who(tmpdir):
    house = House(tmpdir)
    assert house.reach() is None and not house.descriptors and not house.theirs.guests


def test_the_login_check_is_for_the_target_of_the_named_unit(tmpdir):
    asked = []
    house = House(
        tmpdir, may_log_in=lambda worker, target_name: asked.append((worker, target_name))
    )
    assert house.reach() is None and asked == [(house.one, OTHER)] and not house.descriptors


@pytest.mark.parametrize('naa', [NAA % 1, NAA % 3])
def test_only_units_of_other_targets_are_reached_so(house, naa):
    assert house.reach(naa) is None and not house.descriptors


def test_a_unit_without_third_party_copies_is_not_given(house):
    house.export(OTHER, 4, third_party_copy=False)
    assert house.reach(NAA % 4) is None and not house.descriptors


@pytest.mark.parametrize(
    'wrong', [{'designator': 'no hex'}, {'designator': None}, {'kind': 'naa'}, {'code_set': None}]
)
def test_a_worker_that_asks_nonsense_is_killed(house, wrong):
    house.reach(**wrong)
    assert house.one.killed and not house.descriptors


def test_a_guest_hears_of_changes_and_is_waited_for(house):
    house.reach()
    house.far.sent, done = [], []
    house.units.replication.send_change(
        house.theirs, {'watched': [[0, 512]]}, lambda: done.append(True)
    )
    assert [worker.sent[-1]['watched'] for worker in (house.one, house.far)] == [[[0, 512]]] * 2
    house.acknowledge(house.far)
    assert not done
    house.acknowledge(house.one)
    assert done
    house.units.replication.set_medium(house.theirs, 'stopped')
    assert (
        house.one.sent[-1]['medium'] == 'stopped' and house.one.sent[-1]['unit'] == house.theirs.id
    )


def test_a_guest_that_does_not_acknowledge_is_killed(house):
    house.reach()
    house.units.replication.send_change(house.theirs, {'watched': []})
    house.acknowledge(house.far)
    house.loop.pass_time(ACKNOWLEDGE_SECONDS)
    assert house.one.killed and not house.far.killed


def test_a_guest_has_left_when_it_said_so_as_often_as_it_came(house):
    house.reach()
    house.reach()
    for is_guest in (True, False, False):
        house.units.copy_guests.on_copy_left(house.one, {'unit': house.theirs.id})
        assert (house.one in house.theirs.guests) is is_guest
    house.one.sent = []
    house.units.replication.set_medium(house.theirs, 'stopped')
    assert not house.one.sent


def test_a_guest_may_revoke_tokens_and_nothing_else(house):
    house.reach()
    for ask, words in (
        ('token-populate', {'ranges': [[0, 512]], 'seconds': 9}),
        ('start-stop', {'action': 'stop'}),
        ('reserve', {}),
        ('reset', {'function': 'logical-unit-reset'}),
    ):
        house.units.on_request(house.one, dict(words, ask=ask, id=ask, unit=house.theirs.id))
        assert house.one.sent[-1]['id'] == ask and house.one.sent[-1]['status'] != 0
    house.units.on_request(
        house.one,
        {'ask': 'token-revoke', 'id': 'r', 'unit': house.theirs.id, 'offset': 0, 'length': 512},
    )
    assert house.one.sent[-1] == {
        'do': 'answer',
        'id': 'r',
        'status': 0,
        'sense': None,
        'data': None,
    }


def test_lost_data_that_a_guest_tells_of_fails_the_unit(house):
    house.units.replication.on_failed(house.one, {'unit': house.theirs.id, 'text': 'flush failed'})
    assert house.theirs.shared.medium == 'ready'
    house.reach()
    house.units.replication.on_failed(house.one, {'unit': house.theirs.id, 'text': 'flush failed'})
    assert house.theirs.shared.medium == 'failed'


def test_the_end_of_visits_is_told_and_waited_for(house):
    done = []
    house.units.copy_guests.end_copies(house.theirs, lambda: done.append('nobody'))
    assert done == ['nobody']
    house.reach()
    house.units.copy_guests.end_copies(house.theirs, lambda: done.append('one'))
    order = house.one.sent[-1]
    assert order['unit'] == house.theirs.id and order['medium'] == 'ejected' and order['abort']
    assert done == ['nobody'] and not house.theirs.guests
    house.acknowledge(house.one)
    assert done == ['nobody', 'one']


def test_a_dead_worker_is_no_guest(house):
    house.reach()
    done = []
    house.units.copy_guests.end_copies(house.theirs, lambda: done.append(True))
    house.units.end_session(house.one)
    assert done and not house.theirs.guests
