"""The state of a unit in a pool: two servers, with objects that the test keeps in memory in place of the
helper process."""

import errno
import json

import pytest

from targetd.errors import Standby, StoreError
from targetd.master.state import rados_state, state_places, unit_state
from targetd.master.state.state_places import store_held
from targetd.master.state.unit_state import Node

KEY = 'iqn.2026-11.test:disk\0nbd:rbd:disks/one'
RESERVED = {'reservations': {'registrations': []}, 'boot_id': 'of-another-boot'}
PLACE = rados_state.place_text('rados:states/erp', '/etc/ceph/ceph.conf', 'targetd')


class Pool(object):
    """Like the helper process. objects: {name: (version, text)}; before_write(): called once; failure: the
    answer to everything."""

    def __init__(self):
        self.objects = {}
        self.before_write = lambda: None
        self.failure = None
        self.wanted = None
        self.ended = 0

    def __call__(self, wanted):
        self.wanted = wanted
        return self

    def ask(self, request):
        if self.failure:
            return self.failure
        name = request['object']
        if request['do'] == 'read':
            version, text = self.objects.get(name, (0, ''))
            return {'version': version, 'text': text}
        call, self.before_write = self.before_write, lambda: None
        call()
        version = self.objects.get(name, (0, ''))[0]
        if version != request['version']:
            return {'changed': True}
        self.objects[name] = version + 1, request['text']
        return {}

    def end(self):
        self.ended += 1


@pytest.fixture
def pool(monkeypatch):
    made = Pool()
    monkeypatch.setattr(rados_state, 'Helper', made)
    monkeypatch.setattr(rados_state, '_helpers', {})
    return made


@pytest.fixture
def places(pool):
    return tuple(rados_state.RadosState(PLACE, Node(name, name)) for name in ('one', 'two'))


def take(place, is_ordered=False):
    return place.take(KEY, 'iqn.2026-11.test:disk', is_ordered, False, False)


def save(place, state):
    path, text = place.document(KEY, state)
    store_held(path, text, place.node)


def test_the_place_is_found_again_in_the_path_of_a_document(places, pool):
    one, _ = places
    assert take(one) == {}
    save(one, RESERVED)
    assert one.load(KEY) == RESERVED
    assert pool.wanted == {
        'user': 'targetd',
        'conf': '/etc/ceph/ceph.conf',
        'pool': 'states',
        'namespace': 'erp',
    }
    (name,) = pool.objects
    assert name.startswith('targetd.') and json.loads(pool.objects[name][1])['unit'] == KEY


def test_an_order_moves_the_state_and_its_former_holder_cannot_save_any_more(places):
    one, two = places
    take(one)
    save(one, RESERVED)
    with pytest.raises(Standby) as refusal:
        take(two)
    assert 'the server one holds its state in rados:states/erp' in str(refusal.value)
    assert take(two, is_ordered=True)['reservations'] == RESERVED['reservations']
    with pytest.raises(OSError) as failure:
        save(one, {})
    assert failure.value.errno == unit_state.TAKEN_OVER and 'two' in failure.value.strerror
    assert (one.successor(KEY), two.successor(KEY)) == ('two', '')
    two.release(KEY)
    assert take(one, is_ordered=True)['reservations'] == RESERVED['reservations']


def test_a_takeover_between_reading_and_writing_is_noticed(places, pool):
    """A server that was suspended in the middle of a save."""
    one, two = places
    take(one)
    pool.before_write = lambda: take(two, is_ordered=True)
    with pytest.raises(OSError) as failure:
        save(one, RESERVED)
    assert failure.value.errno == unit_state.TAKEN_OVER
    assert two.load(KEY) == {}


def test_a_write_that_arrives_late_is_not_done(places, pool):
    """Two saves of the same server: the process of the first was killed, and its write comes last."""
    one, _ = places
    take(one)
    (name,) = pool.objects
    late = {'do': 'write', 'object': name, 'version': pool.objects[name][0], 'text': 'old'}
    save(one, RESERVED)
    assert pool.ask(late) == {'changed': True}
    assert one.load(KEY) == RESERVED


def test_a_cluster_that_cannot_be_used_says_why(places, pool):
    one, _ = places
    pool.failure = {'failed': 'there is no pool states', 'errno': errno.EIO}
    with pytest.raises(StoreError) as failure:
        take(one)
    assert 'there is no pool states' in str(failure.value) and pool.ended == 1
    pool.failure = None
    assert take(one) == {}  # with another helper process


def test_a_damaged_object_is_not_used(places, pool):
    one, _ = places
    take(one)
    (name,) = pool.objects
    pool.objects[name] = 3, '{"version": 1, "state": {}}'
    with pytest.raises(StoreError) as failure:
        one.load(KEY)
    assert 'is damaged' in str(failure.value)


def test_a_helper_that_has_ended_is_an_error(monkeypatch):
    monkeypatch.setattr(rados_state.outside, 'words', lambda module, argument: ['true'])
    place = rados_state.RadosState(PLACE, Node('one', 'one'))
    with pytest.raises(StoreError) as failure:
        place.load(KEY)
    assert 'the process that uses the Ceph cluster has ended' in str(failure.value)


def test_which_values_mean_a_pool():
    assert state_places.is_pool('rados:states') and not state_places.is_pool('/srv/rados:states')
