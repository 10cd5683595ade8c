"""ROD tokens in the master: given out when everybody heeds them, good for everybody, gone at the
first write."""

import os

import pytest
from master_fakes import TARGET, FakeStore, FakeWorker, StillLoop, make_units, nexus

from targetd.config import model
from targetd.master.units import rod_tokens, transitions
from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS
from targetd.master.units.unit import Unit

OTHER_TARGET = 'iqn.2026-11.test:other'


class House(object):
    """Two units of TARGET, which `one` and `two` see, and one of OTHER_TARGET, which only `far`
    sees."""

    def __init__(self, path):
        self.path = path
        self.loop = StillLoop()
        self.given = []  # (may be written?, bytes) of each descriptor that was sent
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
            model.Lun(lun),
            FakeStore(file),
            facts,
            transitions.initial({'block_size': 512}, {}, 'boot'),
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
        """The answer, or None if there is none yet; changes are not acknowledged."""
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
def house(tmpdir):
    house = House(tmpdir)
    yield house
    house.units.close_all()
    house.loop.close()


def code(answer):
    """(asc, ascq) of a refusal, None of GOOD."""
    if answer['status'] == 0:
        return None
    sense = bytes.fromhex(answer['sense'])
    assert sense[2] == 5
    return sense[12], sense[13]


def test_a_token_is_given_out_when_every_worker_heeds_it(house):
    assert (
        house.ask(house.one, 'token-populate', ranges=[[0, 4096], [8192, 512]], seconds=60) is None
    )
    assert (
        house.one.of('change')[-1]['watched']
        == house.two.of('change')[-1]['watched']
        == [[0, 4096], [8192, 8704]]
    )
    assert not house.far.of('change')
    house.acknowledge(house.one)
    assert not house.one.of('answer')
    house.acknowledge(house.two)
    answer = house.one.of('answer')[-1]
    assert answer['status'] == 0 and len(answer['data']) == 1024


def test_a_worker_that_does_not_heed_it_is_killed_and_then_it_is_given_out(house):
    house.ask(house.one, 'token-populate', ranges=[[0, 512]], seconds=60)
    house.acknowledge(house.one)
    house.loop.pass_time(ACKNOWLEDGE_SECONDS + 1)
    assert house.two.killed and not house.one.of('answer')
    house.units.end_session(house.two)
    assert house.one.of('answer')[-1]['status'] == 0


def test_a_new_session_learns_what_is_watched(house):
    house.populate(ranges=[(512, 512)])
    units, _ = house.units.serve_session(FakeWorker('late'), nexus('late'))
    assert [unit['watched'] for unit in units] == [[[512, 1024]], []]


def test_a_worker_that_serves_the_source_gets_no_descriptor(house):
    token = house.populate(ranges=[(512, 512)])
    answer = house.use(house.two, token, house.second)
    assert (
        answer['status'] == 0
        and answer['source'] == house.unit.id
        and answer['ranges'] == [(512, 512)]
    )
    assert not house.given


def test_another_gets_one_that_cannot_write(house):
    token = house.populate()
    before = len(os.listdir('/proc/self/fd'))
    answer = house.use(house.far, token, house.other)
    assert answer['store'] == house.unit.store.description()
    assert house.given == [(False, house.unit.key)]
    assert len(os.listdir('/proc/self/fd')) == before


def test_what_nobody_made_is_unknown(house):
    token = house.populate()
    forged = token[:-2] + ('00' if token[-2:] != '00' else '01')
    assert code(house.use(house.one, forged)) == (0x23, 0x04)
    assert code(house.use(house.one, token)) is None


def test_tokens_for_the_same_bytes_differ(house):
    assert house.populate() != house.populate()


@pytest.mark.parametrize(
    'offset, length, revoked',
    [(0, 1, True), (4095, 1, True), (4096, 512, False), (0, 1 << 20, True)],
)
def test_a_write_revokes_what_it_touches_and_nothing_else(house, offset, length, revoked):
    token, other = (
        house.populate(ranges=[(0, 4096)]),
        house.populate(unit=house.second, ranges=[(0, 4096)]),
    )
    assert house.ask(house.two, 'token-revoke', offset=offset, length=length)['status'] == 0
    assert code(house.use(house.one, token)) == ((0x23, 0x06) if revoked else None)
    assert code(house.use(house.one, other)) is None
    assert house.unit.watched == ([] if revoked else [[0, 4096]])
    assert not revoked or house.two.of('change')[-1]['watched'] == []


def test_a_revocation_during_the_use_is_met_at_its_end(house):
    token = house.populate()
    assert code(house.use(house.far, token, house.other)) is None
    house.ask(house.two, 'token-revoke', offset=0, length=512)
    assert code(house.ask(house.far, 'token-used', house.other, token=token)) == (0x23, 0x06)


def test_the_last_use(house):
    token = house.populate()
    house.use(house.one, token, last=True)
    assert code(house.ask(house.one, 'token-used', token=token)) is None
    assert code(house.use(house.one, token)) == (0x23, 0x09)
    assert house.unit.watched == []


def test_a_token_that_is_not_used_expires(house):
    token = house.populate(seconds=5)
    house.loop.pass_time(4)
    house.use(house.one, token)
    house.ask(house.one, 'token-used', token=token)
    house.loop.pass_time(4)
    assert code(house.use(house.one, token)) is None
    house.ask(house.one, 'token-used', token=token)
    house.loop.pass_time(6)
    assert code(house.use(house.one, token)) == (0x23, 0x07)
    assert house.unit.watched == []


def test_a_token_in_use_does_not_expire_unless_its_user_is_gone(house):
    token = house.populate(seconds=5)
    house.use(house.two, token)
    house.loop.pass_time(6)
    house.loop.pass_time(6)
    assert house.unit.watched
    house.units.end_session(house.two)
    house.loop.pass_time(6)
    assert code(house.use(house.one, token)) == (0x23, 0x07)


def test_a_unit_that_is_exported_no_more_takes_its_tokens_along(house):
    token = house.populate(house.far, house.other)
    house.units.remove_unit(house.other)
    assert code(house.use(house.one, token)) == (0x23, 0x06)


def test_a_unit_with_another_medium_has_no_tokens(house):
    token = house.populate()
    house.unit.store = FakeStore(str(house.path.join('new')))
    assert code(house.use(house.one, token)) == (0x23, 0x06)


def test_an_ejected_source_is_not_read(house):
    token = house.populate()
    house.units.replication.set_medium(house.unit, 'ejected')
    assert code(house.use(house.one, token)) == (0x23, 0x00)


def test_tokens_are_bounded(house, monkeypatch):
    monkeypatch.setattr(rod_tokens, 'MAXIMUM_TOKENS', 2)
    first, second = house.populate(), house.populate()
    house.use(house.one, first)
    third = house.populate()
    assert [code(house.use(house.one, token)) for token in (first, second, third)] == [
        None,
        (0x23, 0x04),
        None,
    ]


def test_the_list_is_of_the_units_own_and_without_secrets(house):
    token = house.populate()
    house.populate(unit=house.second)
    assert house.ask(house.two, 'token-list')['tokens'] == [token[:192]]


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
def test_a_worker_that_asks_for_what_cannot_be_is_ended(house, what, words):
    assert house.ask(house.one, what, **words) is None
    assert house.one.killed and not house.one.of('answer')


def test_a_worker_cannot_ask_for_a_unit_that_it_does_not_serve(house):
    assert code(
        house.ask(house.far, 'token-populate', house.unit, ranges=[[0, 512]], seconds=1)
    ) == (0x25, 0x00)
    assert house.unit.watched == []
