"""The state of a unit in a directory that two servers can reach: one of them holds it."""

import errno
import json
import multiprocessing

import pytest

from targetd.errors import Standby, StoreError
from targetd.master.state import unit_state
from targetd.master.state.state_places import store_held
from targetd.master.state.unit_state import Node, UnitState

KEY = 'iqn.2026-11.test:disk\0file:/srv/disk.img'
RESERVED = {'reservations': {'registrations': []}, 'boot_id': 'of-another-boot'}


@pytest.fixture
def places(tmp_path):
    return tuple(UnitState(str(tmp_path), Node(name, name)) for name in ('one', 'two'))


def take(place, is_ordered=False, is_active=False, waits_for_order=False):
    return place.take(KEY, 'iqn.2026-11.test:disk', is_ordered, is_active, waits_for_order)


def save(place, state):
    path, text = place.document(KEY, state)
    store_held(path, text, place.node)


def test_a_new_state_is_empty_and_belongs_to_the_first_server(places):
    one, two = places
    assert one.load(KEY) == {} and take(one) == {}
    save(one, RESERVED)
    assert one.load(KEY) == RESERVED
    with pytest.raises(Standby) as refusal:
        take(two)
    assert 'the server one holds its state' in str(refusal.value)
    assert 'targetdctl takeover iqn.2026-11.test:disk' in str(refusal.value)


def test_an_order_moves_the_state_and_its_former_holder_cannot_save_any_more(places):
    one, two = places
    take(one)
    save(one, RESERVED)
    state = take(two, is_ordered=True)
    # the unit did not lose power, so that reservations without APTPL outlast this
    assert (
        state['reservations'] == RESERVED['reservations'] and state['boot_id'] != 'of-another-boot'
    )
    with pytest.raises(OSError) as failure:
        save(one, {})
    assert failure.value.errno == unit_state.TAKEN_OVER and 'server two' in failure.value.strerror
    assert two.load(KEY) == state
    assert (one.successor(KEY), two.successor(KEY)) == ('two', '')
    with pytest.raises(Standby):
        take(one)


def test_an_empty_state_still_says_who_holds_it(places):
    one, two = places
    take(one)
    save(one, {})
    with pytest.raises(Standby):
        take(two)


def test_a_restarted_server_goes_on_unless_it_waits_for_orders(places):
    one, _ = places
    take(one)
    assert take(one) == {}
    with pytest.raises(Standby):
        take(one, waits_for_order=True)
    assert take(one, is_active=True, waits_for_order=True) == {}
    assert take(one, is_ordered=True, waits_for_order=True) == {}


def test_a_released_state_is_taken_by_order_only(places):
    one, two = places
    take(one)
    two.release(KEY)  # not its holder: nothing happens
    assert two.successor(KEY) == 'one'
    one.release(KEY)
    for place in places:
        with pytest.raises(Standby) as refusal:
            take(place)
        assert 'no server serves it, by order' in str(refusal.value)
    with pytest.raises(OSError) as failure:
        save(one, {})
    assert failure.value.errno == unit_state.TAKEN_OVER
    assert take(two, is_ordered=True) == {}


@pytest.mark.parametrize(
    'damage',
    [
        'no JSON',
        '{}',
        '{"version": 1, "state": {}, "holder": 7, "epoch": 1}',
        '{"version": 1, "state": [], "holder": null, "epoch": 1}',
        '{"version": 9, "state": {}, "holder": null, "epoch": 1}',
    ],
)
def test_a_damaged_state_is_not_taken_and_not_overwritten(places, damage):
    one, _ = places
    take(one)
    with open(one.file_of(KEY), 'w') as f:
        f.write(damage)
    with pytest.raises(StoreError):
        take(one, is_ordered=True)
    with pytest.raises(OSError) as failure:
        save(one, {})
    assert failure.value.errno == errno.EIO
    with open(one.file_of(KEY)) as f:
        assert f.read() == damage


def test_a_directory_that_is_missing_is_not_created(tmp_path):
    place = UnitState(str(tmp_path / 'unmounted'), Node('one', 'one'))
    with pytest.raises(StoreError) as refusal:
        take(place)
    assert 'is its file system mounted?' in str(refusal.value)
    assert not (tmp_path / 'unmounted').exists()


def _take_many(path, name, results):
    place, taken = UnitState(path, Node(name, name)), 0
    for _ in range(100):
        place.take(KEY, 'target', True, False, False)
        try:
            save(place, {'records': name})
            taken += 1
        except OSError as e:
            assert e.errno == unit_state.TAKEN_OVER
    results.put(taken)


def test_two_servers_never_write_at_the_same_time(tmp_path):
    results = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=_take_many, args=(str(tmp_path), name, results))
        for name in ('one', 'two')
    ]
    for process in processes:
        process.start()
    taken = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(taken) > 0
    with open(UnitState(str(tmp_path), None).file_of(KEY)) as f:
        document = json.load(f)
    assert document['epoch'] <= 200 and document['holder']['id'] in ('one', 'two')


def test_a_lock_that_another_server_keeps_is_an_error_after_a_while(places, monkeypatch):
    one, _ = places
    take(one)
    monkeypatch.setattr(unit_state, 'LOCK_SECONDS', 0.05)
    process = multiprocessing.Process(target=_keep_locked, args=(one.file_of(KEY),))
    _LOCKED.clear()
    process.start()
    try:
        assert _LOCKED.wait(60)
        with pytest.raises(OSError) as failure:
            save(one, {})
        assert failure.value.errno == errno.ETIMEDOUT
    finally:
        process.terminate()
        process.join(60)


_LOCKED = multiprocessing.Event()


def _keep_locked(path):
    with unit_state._locked(path):
        _LOCKED.set()
        multiprocessing.Event().wait(60)


def test_a_server_in_standby_sees_the_medium_and_takes_nothing(places):
    one, two = places
    take(one)
    assert two.glance(KEY) is None  # nobody has said what it is
    path, text = one.document(KEY, RESERVED, {'facts': {'serial': 'x'}, 'size': 4096})
    store_held(path, text, one.node)
    seen = {'medium': {'facts': {'serial': 'x'}, 'size': 4096}, 'state': RESERVED, 'holder': 'one'}
    assert two.glance(KEY) == seen
    with pytest.raises(Standby):
        two.require_turn(KEY, 'iqn.2026-11.test:disk', False, False, False)
    two.require_turn(KEY, 'iqn.2026-11.test:disk', True, False, False)
    assert two.glance(KEY) == seen
    one.release(KEY)
    assert two.glance(KEY) == dict(seen, holder='')
