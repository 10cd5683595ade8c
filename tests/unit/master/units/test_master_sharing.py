"""Which session may use a unit, by the setting `sharing` and the initiators that hold it."""

from types import SimpleNamespace

import pytest

from targetd.config import model
from targetd.master.processes.sandbox import Rules
from targetd.master.units import sharing
from targetd.master.units.unit import Unit
from targetd.scsi.sam import Nexus

TARGET = 'iqn.2026-11.test:disk'
ONE, TWO, THREE = ('iqn.2026-11.test:' + word for word in ('one', 'two', 'three'))


def nexus(name, isid='1'):
    return Nexus(name, isid, TARGET, 1)


def unit(**settings):
    store = SimpleNamespace(size=1 << 20, kind='file', key='key')
    return Unit(TARGET + '/0', 'key', TARGET, model.Lun(0, **settings), store, {}, None)


def test_the_first_initiator_may_write_whatever_the_manner_is():
    for manner in (None, 'exclusive', 'readers', 'cluster'):
        assert unit(sharing=manner).give_to('a', nexus(ONE))


@pytest.mark.parametrize('settings', [{}, {'sharing': 'exclusive'}])
def test_a_writable_unit_is_for_one_initiator_at_a_time(settings):
    found = unit(**settings)
    assert found.give_to('a', nexus(ONE))
    assert not found.give_to('b', nexus(TWO))
    assert found.left_out == {'b': ONE} and set(found.workers) == {'a'}


def test_the_paths_of_one_initiator_count_as_one():
    found = unit()
    assert found.give_to('a', nexus(ONE)) and found.give_to('b', nexus(ONE, '2'))
    assert not found.readers


def test_a_session_that_was_left_out_gets_the_unit_by_a_new_login_only():
    found = unit()
    found.give_to('a', nexus(ONE))
    found.give_to('b', nexus(TWO))
    found.forget_session('a')
    assert 'b' not in found.workers and found.left_out == {'b': ONE}
    found.forget_session('b')
    assert found.give_to('c', nexus(TWO)) and not found.left_out


def test_with_readers_the_first_writes_and_the_others_read():
    found = unit(sharing='readers')
    for worker, name in (('a', ONE), ('b', TWO), ('c', THREE)):
        assert found.give_to(worker, nexus(name))
    assert found.readers == {'b', 'c'}
    found.forget_session('a')
    assert found.give_to('d', nexus(THREE)) and 'd' not in found.readers


def test_a_readonly_unit_and_a_cluster_are_for_all():
    for settings in ({'readonly': True}, {'sharing': 'cluster'}):
        found = unit(**settings)
        assert found.give_to('a', nexus(ONE)) and found.give_to('b', nexus(TWO))
        assert not found.readers and not found.left_out


def test_a_copy_of_another_initiator_holds_the_unit():
    found = unit()
    found.guests['a'] = nexus(ONE), 1
    assert sharing.access(found, [], TWO) == (sharing.NOTHING, ONE)
    assert sharing.access(found, [], ONE) == (sharing.WRITE, '')


@pytest.mark.parametrize(
    'first, second, expected',
    [
        ('exclusive', 'exclusive', sharing.NOTHING),
        ('exclusive', 'cluster', sharing.NOTHING),
        ('cluster', 'exclusive', sharing.NOTHING),
        ('cluster', 'cluster', sharing.WRITE),
        ('exclusive', 'readers', sharing.READ),
    ],
)
def test_two_luns_of_one_medium_share_it_only_if_both_are_for_a_cluster(first, second, expected):
    held, wanted = unit(sharing=first), unit(sharing=second)
    held.give_to('a', nexus(ONE))
    assert sharing.access(wanted, [held], TWO)[0] == expected
    assert sharing.access(wanted, [held], ONE)[0] == sharing.WRITE


def test_a_readonly_lun_of_a_medium_takes_nothing_away():
    held, wanted = unit(), unit(readonly=True)
    held.give_to('a', nexus(ONE))
    assert sharing.access(wanted, [held], TWO)[0] == sharing.WRITE
    wanted.give_to('b', nexus(TWO), [held])
    assert sharing.access(held, [wanted], ONE)[0] == sharing.WRITE


@pytest.mark.parametrize('manner', [None, 'readers', 'cluster'])
def test_a_tape_is_for_one_session_even_of_one_initiator(manner):
    found = unit(type='tape', sharing=manner)
    found.facts['tape'] = True
    assert found.give_to('a', nexus(ONE))
    assert found.give_to('a', nexus(ONE))  # the same session again
    assert not found.give_to('b', nexus(ONE, '2')) and not found.give_to('c', nexus(TWO))
    assert 'one session at a time' in sharing.why_left_out(found, found.left_out['b'])
    assert sharing.access(found, [], ONE) == (sharing.NOTHING, ONE)  # a copy
    found.forget_session('a')
    assert sharing.access(found, [], TWO)[0] == sharing.NOTHING
    found.leaving['a'] = ''  # its commands have not ended
    assert not found.give_to('c', nexus(TWO))
    found.leaving.clear()
    assert found.give_to('c', nexus(TWO))


# -- real SCSI devices -----------------------------------------------------------------------------


def real(device_type):
    found = unit(sharing='cluster')
    found.facts = {'passthrough': True, 'peripheral_type': device_type}
    return found


def test_a_real_tape_drive_is_for_one_session():
    found = real(0x01)
    assert found.give_to('a', nexus(ONE)) and not found.give_to('b', nexus(ONE, '2'))
    found = real(0x00)
    assert found.give_to('a', nexus(ONE)) and found.give_to('b', nexus(TWO))


def test_a_worker_that_cannot_send_scsi_commands_does_not_get_a_real_device():
    old, new, free = Worker(Rules(True, False)), Worker(Rules(True, False, True)), Worker(None)
    for worker, gets_it in ((old, False), (new, True), (free, True)):
        found = real(0x00)
        assert found.give_to(worker, nexus(ONE)) is gets_it
    assert 'log in again' in sharing.why_left_out(found, sharing.CONFINED)
    assert unit().give_to(old, nexus(ONE))


class Worker(object):
    def __init__(self, rules):
        self.rules = rules
