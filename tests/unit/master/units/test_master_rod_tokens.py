"""ROD tokens in the master: returned after every worker has acknowledged their ranges, valid in every
session, revoked by the first write."""

import os

import descriptors
import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, StillLoop, change_medium, make_units, nexus

from targetd.config import model
from targetd.master.units import rod_tokens, shared_state
from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS
from targetd.master.units.unit import Unit

OTHER_TARGET = 'iqn.2026-11.test:other'


class Harness(object):
    """Two units of TARGET, which workers `one` and `two` serve, and one of OTHER_TARGET, which only
    `far` serves."""

    def __init__(self, path):
        self.path = path
        self.loop = StillLoop()
        self.given = []  # (is writable, bytes) of each descriptor that was sent
        self.units = make_units(self.loop, path, self.send, self.kill)
        self.unit, self.second = self.export(TARGET, 0), self.export(TARGET, 1)
        self.other = self.export(OTHER_TARGET, 0)
        self.one, self.two, self.far = FakeWorker('one'), FakeWorker('two'), FakeWorker('far')
        for worker, target in ((self.one, TARGET), (self.two, TARGET), (self.far, OTHER_TARGET)):
            self.units.serve_session(worker, nexus(worker.name, target=target))

    def export(self, target, lun):
        file = str(self.path.join('%s-%d' % (target[-5:], lun)))
        with open(file, 'w') as opened:
            opened.write(file)
        facts = {'block_size': 512, 'naa': '6' * 32}
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
        for descriptor in descriptors:
            try:
                os.pwrite(descriptor, b'x', 1 << 19)
                writable = True
            except OSError:
                writable = False
            self.given.append((writable, os.pread(descriptor, 200, 0).decode()))

    @staticmethod
    def kill(worker, why):
        worker.killed = why

    def ask(self, worker, what, unit=None, **words):
        """The answer, or None if it is still pending; changes are not acknowledged."""
        message = dict(words, ask=what, id='q%d' % len(worker.sent), unit=(unit or self.unit).id)
        self.units.on_request(worker, message)
        self.loop.settle()
        return next((sent for sent in worker.of('answer') if sent['id'] == message['id']), None)

    def acknowledge(self, *workers):
        for worker in workers or (self.one, self.two, self.far):
            for message in worker.of('change'):
                self.units.replication.on_acknowledge(worker, message)
        self.loop.settle()

    def populate(self, worker=None, unit=None, ranges=((0, 4096),), seconds=60):
        worker = worker or self.one
        self.ask(worker, 'token-populate', unit, ranges=[list(r) for r in ranges], seconds=seconds)
        self.acknowledge()
        return worker.of('answer')[-1]['data']

    def use(self, worker, token, unit=None, last=False):
        return self.ask(worker, 'token-use', unit, token=token, last=last)


@pytest.fixture
def harness(tmpdir):
    harness = Harness(tmpdir)
    yield harness
    harness.units.close_all()
    harness.loop.close()


def code(answer):
    """(asc, ascq) of a refusal, or None for GOOD status."""
    if answer['status'] == 0:
        return None
    sense = bytes.fromhex(answer['sense'])
    assert sense[2] == 5
    return sense[12], sense[13]


def test_a_token_is_returned_after_every_worker_has_acknowledged_its_ranges(harness):
    assert (
        harness.ask(harness.one, 'token-populate', ranges=[[0, 4096], [8192, 512]], seconds=60)
        is None
    )
    assert (
        harness.one.of('change')[-1]['watched']
        == harness.two.of('change')[-1]['watched']
        == [[0, 4096], [8192, 8704]]
    )
    assert not harness.far.of('change')
    harness.acknowledge(harness.one)
    assert not harness.one.of('answer')
    harness.acknowledge(harness.two)
    answer = harness.one.of('answer')[-1]
    assert answer['status'] == 0 and len(answer['data']) == 1024


def test_a_worker_that_does_not_acknowledge_the_ranges_is_killed(harness):
    harness.ask(harness.one, 'token-populate', ranges=[[0, 512]], seconds=60)
    harness.acknowledge(harness.one)
    harness.loop.pass_time(ACKNOWLEDGE_SECONDS + 1)
    assert harness.two.killed and not harness.one.of('answer')
    harness.units.end_session(harness.two)
    assert harness.one.of('answer')[-1]['status'] == 0


def test_a_new_session_receives_the_token_ranges(harness):
    harness.populate(ranges=[(512, 512)])
    units, _, _ = harness.units.serve_session(FakeWorker('late'), nexus('late'))
    assert [unit['watched'] for unit in units] == [[[512, 1024]], []]


def test_a_worker_that_serves_the_source_gets_no_descriptor(harness):
    token = harness.populate(ranges=[(512, 512)])
    answer = harness.use(harness.two, token, harness.second)
    assert (
        answer['status'] == 0
        and answer['source'] == harness.unit.id
        and answer['ranges'] == [(512, 512)]
    )
    assert not harness.given


def test_another_worker_gets_a_read_only_descriptor(harness):
    token = harness.populate()
    before = descriptors.count_open()
    answer = harness.use(harness.far, token, harness.other)
    assert answer['store'] == harness.unit.store.description()
    assert harness.given == [(False, harness.unit.key)]
    assert descriptors.count_open() == before


def test_a_forged_token_is_unknown(harness):
    token = harness.populate()
    forged = token[:-2] + ('00' if token[-2:] != '00' else '01')
    assert code(harness.use(harness.one, forged)) == (0x23, 0x04)
    assert code(harness.use(harness.one, token)) is None


def test_tokens_for_the_same_bytes_differ(harness):
    assert harness.populate() != harness.populate()


@pytest.mark.parametrize(
    'offset, length, revoked',
    [(0, 1, True), (4095, 1, True), (4096, 512, False), (0, 1 << 20, True)],
)
def test_a_write_revokes_only_the_tokens_whose_ranges_it_touches(harness, offset, length, revoked):
    token, other = (
        harness.populate(ranges=[(0, 4096)]),
        harness.populate(unit=harness.second, ranges=[(0, 4096)]),
    )
    assert harness.ask(harness.two, 'token-revoke', offset=offset, length=length)['status'] == 0
    assert code(harness.use(harness.one, token)) == ((0x23, 0x06) if revoked else None)
    assert code(harness.use(harness.one, other)) is None
    assert harness.unit.watched == ([] if revoked else [[0, 4096]])
    assert not revoked or harness.two.of('change')[-1]['watched'] == []


def test_a_token_that_was_revoked_during_its_use_is_reported_at_the_end(harness):
    token = harness.populate()
    assert code(harness.use(harness.far, token, harness.other)) is None
    harness.ask(harness.two, 'token-revoke', offset=0, length=512)
    assert code(harness.ask(harness.far, 'token-used', harness.other, token=token)) == (0x23, 0x06)


def test_a_token_is_deleted_after_its_last_use(harness):
    token = harness.populate()
    harness.use(harness.one, token, last=True)
    assert code(harness.ask(harness.one, 'token-used', token=token)) is None
    assert code(harness.use(harness.one, token)) == (0x23, 0x09)
    assert harness.unit.watched == []


def test_a_token_that_is_not_used_expires(harness):
    token = harness.populate(seconds=5)
    harness.loop.pass_time(4)
    harness.use(harness.one, token)
    harness.ask(harness.one, 'token-used', token=token)
    harness.loop.pass_time(4)
    assert code(harness.use(harness.one, token)) is None
    harness.ask(harness.one, 'token-used', token=token)
    harness.loop.pass_time(6)
    assert code(harness.use(harness.one, token)) == (0x23, 0x07)
    assert harness.unit.watched == []


def test_a_token_in_use_does_not_expire_until_its_worker_is_gone(harness):
    token = harness.populate(seconds=5)
    harness.use(harness.two, token)
    harness.loop.pass_time(6)
    harness.loop.pass_time(6)
    assert harness.unit.watched
    harness.units.end_session(harness.two)
    harness.loop.pass_time(6)
    assert code(harness.use(harness.one, token)) == (0x23, 0x07)


def test_removing_a_unit_revokes_its_tokens(harness):
    token = harness.populate(harness.far, harness.other)
    harness.units.remove_unit(harness.other)
    assert code(harness.use(harness.one, token)) == (0x23, 0x06)


def test_replacing_the_medium_revokes_its_tokens(harness):
    token = harness.populate()
    harness.unit.store = FakeStore(str(harness.path.join('new')))
    assert code(harness.use(harness.one, token)) == (0x23, 0x06)


def test_a_token_of_an_ejected_medium_cannot_be_used(harness):
    token = harness.populate()
    change_medium(harness.units, harness.unit, 'ejected')
    assert code(harness.use(harness.one, token)) == (0x23, 0x00)


def test_the_number_of_tokens_is_bounded(harness, monkeypatch):
    monkeypatch.setattr(rod_tokens, 'MAXIMUM_TOKENS', 2)
    first, second = harness.populate(), harness.populate()
    harness.use(harness.one, first)
    third = harness.populate()
    assert [code(harness.use(harness.one, token)) for token in (first, second, third)] == [
        None,
        (0x23, 0x04),
        None,
    ]


def test_the_token_list_has_only_the_units_tokens_without_secrets(harness):
    token = harness.populate()
    harness.populate(unit=harness.second)
    assert harness.ask(harness.two, 'token-list')['tokens'] == [token[:192]]


@pytest.mark.parametrize(
    'what, words',
    [
        ('token-populate', {'ranges': [[0, 1 << 30]], 'seconds': 1}),
        ('token-populate', {'ranges': [[1 << 20, 1]], 'seconds': 1}),
        ('token-populate', {'ranges': [], 'seconds': 1}),
        ('token-populate', {'ranges': [[0, True]], 'seconds': 1}),
        ('token-populate', {'ranges': [[0, 512]], 'seconds': 10**9}),
        ('token-populate', {'ranges': 5, 'seconds': 1}),
        ('token-use', {'token': 'xyz'}),
        ('token-use', {}),
        ('token-used', {'token': 5}),
        ('token-revoke', {'offset': -1, 'length': 1}),
    ],
)
def test_a_worker_that_sends_a_malformed_token_request_is_killed(harness, what, words):
    assert harness.ask(harness.one, what, **words) is None
    assert harness.one.killed and not harness.one.of('answer')


def test_a_token_request_for_a_unit_that_the_worker_does_not_serve_is_refused(harness):
    assert code(
        harness.ask(harness.far, 'token-populate', harness.unit, ranges=[[0, 512]], seconds=1)
    ) == (0x25, 0x00)
    assert harness.unit.watched == []
