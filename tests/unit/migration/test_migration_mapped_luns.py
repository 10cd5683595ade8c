"""Lists of LUNs of several initiators become one list of LUNs and maps."""

from targetd.migration.imported import LEFT_OUT, Imported, Place, Target
from targetd.migration.mapped_luns import Seen, write_maps

PLACE = Place('file', 1)


def written(**maps):
    """(numbers and protection by store, the lines lun-map, the Imported) of {who: {number: store, with '!'
    behind it if it may only be read}}."""
    imported, target = Imported('test'), Target('iqn.t', PLACE)
    seen = {
        who: {n: Seen(store.rstrip('!'), store.endswith('!')) for n, store in luns.items()}
        for who, luns in maps.items()
    }
    found = write_maps(imported, target, seen)
    return dict(found), target.get('lun-map'), imported


def test_one_list_for_all_needs_no_map():
    assert written(a={3: 'x', 0: 'y!'}, b={0: 'y!', 3: 'x'})[:2] == (
        {'x': (3, False), 'y': (0, True)},
        [],
    )


def test_a_number_that_is_taken_is_replaced_by_a_free_one():
    found, lines, _ = written(a={0: 'x'}, b={0: 'y', 1: 'x'}, c={1: 'z'})
    assert found == {'x': (0, False), 'z': (1, False), 'y': (2, False)}
    assert lines == ['a 0', 'b 0=2 1=0', 'c 1']


def test_rights_and_empty_lists():
    found, lines, _ = written(a={0: 'x!', 1: 'y!'}, b={0: 'x'}, c={})
    assert found == {'x': (0, False), 'y': (1, True)}
    assert lines == ['a 0:read-only 1', 'b 0', 'c none']


def test_a_store_under_two_numbers_is_shown_once():
    found, lines, imported = written(a={0: 'x', 7: 'x'})
    assert found == {'x': (0, False)} and lines == []
    assert [note.level for note in imported.notes] == [LEFT_OUT]
    assert 'shows LUN 0 to a as LUN 7 too' in imported.notes[0].text


def test_nobody_sees_nothing():
    assert written()[:2] == ({}, [])
