"""Units of other targets for copies: which worker is granted one, which messages a guest receives, and
that its copies end before the medium is released."""

import collections
import os

import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, StillLoop, change_medium, make_units, nexus

from targetd.config import model
from targetd.config.lun_maps import EVERY_LUN
from targetd.master.units import shared_state
from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS
from targetd.master.units.unit import Unit

OTHER = 'iqn.2026-11.test:other'
NAA = '6001405' + '0' * 24 + '%d'
BINARY, TYPE_NAA = 1, 3

Session = collections.namedtuple('Session', 'nexus lun_map')


class Harness(object):
    """Unit `mine` of TARGET, which worker `one` serves; unit `theirs` of OTHER, which `far` serves."""

    def __init__(self, path, **parts):
        self.path = path
        self.loop = StillLoop()
        self.descriptors = []
        self.units = make_units(self.loop, path, self.send, self.kill, **parts)
        self.mine, self.theirs = self.export(TARGET, 1), self.export(OTHER, 2)
        self.one, self.far = FakeWorker('one'), FakeWorker('far')
        for worker, target in ((self.one, TARGET), (self.far, OTHER)):
            worker.session = Session(nexus(worker.name, target=target), EVERY_LUN)
            self.units.serve_session(worker, worker.session.nexus)

    def export(self, target, lun, **facts):
        file = str(self.path.join('%s-%d' % (target[-5:], lun)))
        facts = dict({'block_size': 512, 'naa': NAA % lun}, **facts)
        unit = Unit(
            '%s/%d' % (target, lun),
            file,
            target,
            model.Lun(lun, sharing='cluster'),
            FakeStore(file),
            facts,
            shared_state.initial_state({'block_size': 512}, {}, 'boot'),
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
def harness(tmpdir):
    return Harness(tmpdir, map_of=lambda worker, target_name: EVERY_LUN)


def test_a_unit_is_granted_with_its_descriptor_and_its_target(harness):
    given = harness.reach()
    assert (
        given['unit'] == harness.theirs.id
        and given['target_name'] == OTHER
        and given['descriptor'] == 0
    )
    own, claim = harness.descriptors
    assert given['claim'] == 1 and claim == harness.theirs.store.descriptor
    assert os.path.samestat(os.fstat(own), os.fstat(claim))
    assert harness.theirs.guests[harness.one][0] == nexus('one', target=OTHER)


def test_no_unit_is_granted_if_the_login_check_refuses(tmpdir):
    harness = Harness(tmpdir)
    assert harness.reach() is None and not harness.descriptors and not harness.theirs.guests


def test_the_login_check_is_for_the_target_of_the_named_unit(tmpdir):
    asked = []
    harness = Harness(
        tmpdir, map_of=lambda worker, target_name: asked.append((worker, target_name))
    )
    assert harness.reach() is None and asked == [(harness.one, OTHER)] and not harness.descriptors


@pytest.mark.parametrize('naa', [NAA % 1, NAA % 3])
def test_only_units_of_other_targets_are_granted(harness, naa):
    assert harness.reach(naa) is None and not harness.descriptors


def test_a_unit_without_third_party_copy_is_not_granted(harness):
    harness.export(OTHER, 4, third_party_copy=False)
    assert harness.reach(NAA % 4) is None and not harness.descriptors


@pytest.mark.parametrize(
    'wrong', [{'designator': 'no hex'}, {'designator': None}, {'kind': 'naa'}, {'code_set': None}]
)
def test_a_worker_that_sends_a_malformed_request_is_killed(harness, wrong):
    harness.reach(**wrong)
    assert harness.one.killed and not harness.descriptors


def test_a_guest_receives_changes_and_must_acknowledge_them(harness):
    harness.reach()
    harness.far.sent, done = [], []
    harness.units.replication.send_change(
        harness.theirs, {'watched': [[0, 512]]}, lambda: done.append(True)
    )
    assert [worker.sent[-1]['watched'] for worker in (harness.one, harness.far)] == [[[0, 512]]] * 2
    harness.acknowledge(harness.far)
    assert not done
    harness.acknowledge(harness.one)
    assert done
    change_medium(harness.units, harness.theirs, 'stopped')
    assert (
        harness.one.sent[-1]['medium'] == 'stopped'
        and harness.one.sent[-1]['unit'] == harness.theirs.id
    )


def test_a_guest_that_does_not_acknowledge_is_killed(harness):
    harness.reach()
    harness.units.replication.send_change(harness.theirs, {'watched': []})
    harness.acknowledge(harness.far)
    harness.loop.pass_time(ACKNOWLEDGE_SECONDS)
    assert harness.one.killed and not harness.far.killed


def test_a_worker_is_a_guest_until_its_last_copy_has_ended(harness):
    harness.reach()
    harness.reach()
    for is_guest in (True, False, False):
        harness.units.copy_guests.on_copy_left(harness.one, {'unit': harness.theirs.id})
        assert (harness.one in harness.theirs.guests) is is_guest
    harness.one.sent = []
    change_medium(harness.units, harness.theirs, 'stopped')
    assert not harness.one.sent


def test_a_guest_may_revoke_tokens_and_nothing_else(harness):
    harness.reach()
    for ask, words in (
        ('token-populate', {'ranges': [[0, 512]], 'seconds': 9}),
        ('start-stop', {'action': 'stop'}),
        ('reserve', {}),
        ('reset', {'function': 'logical-unit-reset'}),
    ):
        harness.units.on_request(harness.one, dict(words, ask=ask, id=ask, unit=harness.theirs.id))
        assert harness.one.sent[-1]['id'] == ask and harness.one.sent[-1]['status'] != 0
    harness.units.on_request(
        harness.one,
        {'ask': 'token-revoke', 'id': 'r', 'unit': harness.theirs.id, 'offset': 0, 'length': 512},
    )
    assert harness.one.sent[-1] == {
        'do': 'answer',
        'id': 'r',
        'status': 0,
        'sense': None,
        'data': None,
    }


def test_a_guest_that_reports_lost_data_fails_the_unit(harness):
    harness.units.replication.on_failed(
        harness.one, {'unit': harness.theirs.id, 'text': 'flush failed'}
    )
    assert harness.theirs.shared.medium == 'ready'
    harness.reach()
    harness.units.replication.on_failed(
        harness.one, {'unit': harness.theirs.id, 'text': 'flush failed'}
    )
    assert harness.theirs.shared.medium == 'failed'


def test_end_copies_waits_for_the_acknowledgement_of_every_guest(harness):
    done = []
    harness.units.copy_guests.end_copies(harness.theirs, lambda: done.append('without guests'))
    assert done == ['without guests']
    harness.reach()
    harness.units.copy_guests.end_copies(harness.theirs, lambda: done.append('one'))
    order = harness.one.sent[-1]
    assert order['unit'] == harness.theirs.id and order['medium'] == 'ejected' and order['abort']
    assert done == ['without guests'] and not harness.theirs.guests
    harness.acknowledge(harness.one)
    assert done == ['without guests', 'one']


def test_a_dead_worker_is_not_a_guest_any_more(harness):
    harness.reach()
    done = []
    harness.units.copy_guests.end_copies(harness.theirs, lambda: done.append(True))
    harness.units.end_session(harness.one)
    assert done and not harness.theirs.guests
