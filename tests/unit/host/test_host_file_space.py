"""Which file systems have less space than their files may still use."""

import os

from targetd.host.file_space import FileSystem, grouped, mount_point, of_paths

MIB = 1 << 20


def test_files_of_one_file_system_are_added():
    found = grouped(
        [
            (1, 10, '/srv', 100 * MIB, 40 * MIB, 70 * MIB),
            (1, 11, '/srv', 50 * MIB, 50 * MIB, 70 * MIB),
            (2, 10, '/data', 10 * MIB, 0, 500 * MIB),
        ]
    )
    assert found[1] == FileSystem('/srv', 2, 150 * MIB, 60 * MIB, 70 * MIB)
    assert found[1].missing == found[2].missing == 0


def test_a_file_of_two_luns_counts_once():
    row = (1, 10, '/srv', 100 * MIB, 40 * MIB, 50 * MIB)
    found = grouped([row, row])[1]
    assert (found.count, found.growth, found.missing) == (2, 60 * MIB, 10 * MIB)
    assert str(found) == (
        'the LUNs in /srv (2) have 100 MiB together and may still use 60 MiB, of which the file system has '
        '50 MiB'
    )


def test_a_file_may_occupy_more_than_its_size():
    assert grouped([(1, 10, '/srv', MIB, 2 * MIB, 0)])[1].missing == 0


def test_files_that_do_not_exist_yet_count_with_their_size(tmp_path):
    path = str(tmp_path / 'a.img')
    with open(path, 'wb') as file:
        file.truncate(5 * MIB)
    found = of_paths([(path, None), (str(tmp_path / 'new.img'), 1 << 60)])
    (system,) = found.values()
    assert system.count == 2 and system.size == (1 << 60) + 5 * MIB
    assert system.missing > 1 << 50
    assert system.mount == mount_point(path) and os.path.ismount(system.mount)


def test_what_is_no_file_is_left_out(tmp_path):
    assert of_paths([('/dev/null', None), (str(tmp_path), 5), (str(tmp_path / 'x' / 'y'), 5)]) == {}
    assert of_paths([(str(tmp_path / 'missing.img'), None)]) == {}
