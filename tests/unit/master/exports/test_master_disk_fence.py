"""targetd.master.exports.disk_fence: which server has a disk (fake_shared_disk.py), and what is refused."""

import errno

import fake_shared_disk
import pytest

from targetd import sg_io
from targetd.config.model import Lun
from targetd.errors import Standby, StoreError
from targetd.host import disk_reservations
from targetd.master.exports import disk_fence
from targetd.master.exports.disk_fence import INCOMPLETE, LOST, OURS, Fence
from targetd.master.state.unit_state import Node, UnitState

OURS_ID, THEIRS_ID = '11111111-1111-1111-1111-111111111111', '22222222-2222-2222-2222-222222222222'
KEY, OTHER = disk_fence.key_of(OURS_ID), disk_fence.key_of(THEIRS_ID)
STRANGER = 0x0000DEADBEEF0001
NAME = 'iqn.2026-11.test:disk'


@pytest.fixture
def disk(tmp_path):
    return fake_shared_disk.Disk(str(tmp_path / 'disk'), 4096)


@pytest.fixture
def fence(disk, monkeypatch):
    """The Fence of this host, whose nexus is 'first'."""
    monkeypatch.setattr(sg_io, 'execute', fake_shared_disk.executor('first'))
    monkeypatch.setattr(disk_reservations, 'find_nodes', lambda path: [disk.path])
    return Fence(disk.path, [disk.path], True)


def taken_by_other(disk):
    disk.change(keys={'second': OTHER}, holder=['second', OTHER, 5])


def test_keys_are_stable_and_their_own_for_each_server():
    assert KEY == disk_fence.key_of(OURS_ID) != OTHER
    assert KEY >> 48 == OTHER >> 48 == 0x7464 and KEY < 1 << 64


def test_a_free_disk_is_taken_without_an_order(fence, disk):
    for _ in range(2):
        disk_fence.take(fence, KEY, NAME, False)
        assert disk.keys() == {'first': KEY} and disk.table()['holder'] == ['first', KEY, 5]
        assert disk_fence.look(fence, KEY) == (OURS, None)


def test_only_an_order_takes_it_from_another_server(fence, disk):
    taken_by_other(disk)
    before = disk.table()
    with pytest.raises(Standby) as caught:
        disk_fence.take(fence, KEY, NAME, False)
    assert 'targetdctl takeover ' + NAME in str(caught.value)
    assert (disk.keys(), disk.table()['holder']) == (before['keys'], before['holder'])
    assert disk_fence.look(fence, KEY) == (LOST, OTHER)
    disk_fence.take(fence, KEY, NAME, True)
    assert disk.keys() == {'first': KEY} and disk.table()['holder'] == ['first', KEY, 5]


def test_every_registration_of_another_server_goes(fence, disk):
    """Who is registered could write: a server that had begun a takeover, and another path of it."""
    disk.change(keys={'second': OTHER, 'third': OTHER, 'fourth': OTHER + 1}, holder=None)
    with pytest.raises(Standby):
        disk_fence.take(fence, KEY, NAME, False)
    disk_fence.take(fence, KEY, NAME, True)
    assert disk.keys() == {'first': KEY} and disk.table()['holder'] == ['first', KEY, 5]


def test_a_path_of_before_a_restart_keeps_the_reservation(fence, disk):
    """The host has logged in to the disk anew: the old nexus has the reservation, with the same key."""
    disk.change(keys={'before': KEY}, holder=['before', KEY, 5])
    disk_fence.take(fence, KEY, NAME, False)
    assert disk.keys() == {'before': KEY, 'first': KEY}
    assert disk_fence.look(fence, KEY) == (OURS, None)


@pytest.mark.parametrize('is_ordered', [False, True])
@pytest.mark.parametrize('holder', [None, ['cluster', STRANGER, 7]])
def test_another_program_is_never_removed(fence, disk, is_ordered, holder):
    disk.change(keys={'cluster': STRANGER}, holder=holder)
    with pytest.raises(StoreError) as caught:
        disk_fence.take(fence, KEY, NAME, is_ordered)
    assert not isinstance(caught.value, Standby) and '0x0000deadbeef0001' in str(caught.value)
    assert disk.keys() == {'cluster': STRANGER} and disk.table()['holder'] == holder


def test_of_two_servers_at_a_time_the_slower_one_withdraws(fence, disk, monkeypatch):
    """The other one reserves the disk after this one has looked."""
    plain = fake_shared_disk.executor('first')

    def execute(descriptor, cdb, *arguments):
        if cdb[0] == 0x5F and not disk.keys():
            taken_by_other(disk)
        return plain(descriptor, cdb, *arguments)

    monkeypatch.setattr(sg_io, 'execute', execute)
    with pytest.raises(Standby):
        disk_fence.take(fence, KEY, NAME, False)
    assert disk.keys() == {'second': OTHER}


def test_what_a_disk_has_forgotten(fence, disk):
    disk_fence.take(fence, KEY, NAME, False)
    disk.change(holder=None)
    assert disk_fence.look(fence, KEY) == (INCOMPLETE, None)
    disk.lose_power()
    assert disk_fence.look(fence, KEY) == (INCOMPLETE, None)
    disk.change(keys={'second': OTHER})
    assert disk_fence.look(fence, KEY) == (LOST, OTHER)


def test_a_reservation_that_the_disk_does_not_keep_is_no_fence(fence, disk, monkeypatch):
    plain = fake_shared_disk.executor('first')

    def execute(descriptor, cdb, *arguments):
        if cdb[:2] == b'\x5f\1':
            return sg_io.Outcome(0, 0, 0, b'', 0, memoryview(b''))
        return plain(descriptor, cdb, *arguments)

    monkeypatch.setattr(sg_io, 'execute', execute)
    with pytest.raises(StoreError) as caught:
        disk_fence.take(fence, KEY, NAME, True)
    assert 'does not keep the reservation' in str(caught.value) and disk.keys() == {}


# -- with the state --------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    """(UnitState of this server, of the other one)."""
    directory = tmp_path / 'state'
    directory.mkdir()
    return [UnitState(str(directory), Node(each, each[:4])) for each in (OURS_ID, THEIRS_ID)]


def test_the_disk_is_taken_only_while_the_state_is_held(fence, disk, places):
    ours, theirs = places
    ours.take('k', NAME, False, False, False)
    disk_fence.take_held(fence, ours, 'k', NAME, False)
    assert disk.keys() == {'first': KEY}
    disk.lose_power()
    theirs.take('k', NAME, True, False, False)
    with pytest.raises(Standby) as caught:
        disk_fence.take_held(fence, ours, 'k', NAME, False)
    assert 'the server 2222 has taken it over' in str(caught.value) and disk.keys() == {}


def test_an_error_of_the_disk_is_not_one_of_the_state(fence, places, monkeypatch):
    places[0].take('k', NAME, False, False, False)
    monkeypatch.setattr(
        sg_io, 'execute', lambda *more: (_ for _ in ()).throw(OSError(errno.EIO, 'gone'))
    )
    with pytest.raises(StoreError) as caught:
        disk_fence.take_held(fence, places[0], 'k', NAME, False)
    assert 'the reservations of' in str(caught.value)


# -- which LUNs have one ---------------------------------------------------------------------------


def lun(**values):
    return Lun(0)._replace(**dict(dict(unit_state='/s', fence='auto', type='auto'), **values))


def test_which_luns_have_a_fence(fence, disk):
    assert disk_fence.find_fence(lun(), disk.path) == fence
    for other in (dict(fence='none'), dict(unit_state=''), dict(readonly=True), dict(type='file')):
        assert disk_fence.find_fence(lun(**other), disk.path) is None
    disk.change(refused=[[0x5E, 2]])
    assert disk_fence.find_fence(lun(), disk.path) is None
    with pytest.raises(StoreError) as caught:
        disk_fence.find_fence(lun(fence='reservations'), disk.path)
    assert 'write fence = auto' in str(caught.value)


@pytest.mark.parametrize('number', [errno.EPERM, errno.EIO])
def test_a_disk_that_does_not_answer_has_an_unknown_fence(fence, disk, monkeypatch, number):
    monkeypatch.setattr(
        sg_io, 'execute', lambda *more: (_ for _ in ()).throw(OSError(number, 'broken'))
    )
    with pytest.raises(StoreError):
        disk_fence.find_fence(lun(), disk.path)
    disk_fence.release(lun(), disk.path)  # logged


def test_release_gives_the_disk_back(fence, disk):
    disk_fence.take(fence, KEY, NAME, False)
    disk_fence.release(lun(), disk.path)
    assert disk.keys() == {} and disk.table()['holder'] is None
