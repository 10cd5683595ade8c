"""The table of exported units and its indexes by target and by medium."""

from types import SimpleNamespace

import pytest

from targetd.master.units.unit import UnitTable


def unit(target_name, number, key=None, kind='file'):
    return SimpleNamespace(
        target_name=target_name,
        lun=SimpleNamespace(number=number),
        store=SimpleNamespace(key=key or (target_name, number), kind=kind),
    )


@pytest.fixture
def table():
    made = UnitTable()
    made['a/0'], made['a/1'], made['b/0'] = unit('a', 0), unit('a', 1), unit('b', 0)
    return made


def test_a_target_has_its_own_units(table):
    assert table.of_target('a') == {0: table['a/0'], 1: table['a/1']}
    assert table.of_target('b') == {0: table['b/0']}
    assert table.of_target('c') == {}


def test_a_removed_unit_is_in_no_target(table):
    removed = table['a/0']
    assert table.pop('a/0') is removed
    assert table.of_target('a') == {1: table['a/1']}
    assert table.pop('a/0', None) is None
    del table['a/1']
    assert table.of_target('a') == {}
    with pytest.raises(KeyError):
        table.pop('a/1')


def test_a_replaced_unit_moves_to_its_new_target(table):
    table['a/0'] = unit('b', 7)
    assert set(table.of_target('a')) == {1} and set(table.of_target('b')) == {0, 7}
    table.clear()
    assert table.of_target('b') == {} and not table


def test_the_other_units_of_a_medium_are_found(table):
    table['a/2'] = unit('a', 2, key=('b', 0))
    assert table.same_medium(table['a/2']) == [table['b/0']]
    assert table.same_medium(table['b/0']) == [table['a/2']]
    assert table.same_medium(table['a/0']) == []
    table.pop('b/0')
    assert table.same_medium(table['a/2']) == []


@pytest.mark.parametrize('kind', ['ram', 'null'])
def test_two_units_in_memory_do_not_have_the_same_medium(table, kind):
    table['a/2'], table['a/3'] = unit('a', 2, 'none', kind), unit('a', 3, 'none', kind)
    assert table.same_medium(table['a/2']) == []
