import errno

import pytest
from fake_store import (
    BLOCKS,
    cdb_16,
    do,
    error_of,
    make_task,
    make_unit,
    pattern,
    sense_of,
    status_of,
)

from targetd.scsi.sam import WOULD_BLOCK


def caw(lba, blocks, flags=0):
    return cdb_16(0x89, lba, blocks & 0xFF, flags)


def test_compare_and_write_writes_if_the_data_is_equal():
    unit = make_unit(write_cache=True)
    unit.store.data[:] = pattern(BLOCKS)
    old, new = pattern(BLOCKS)[5 * 512 : 7 * 512], b'n' * 1024
    assert do(unit, caw(5, 2), old + new) is None
    assert unit.store.data[5 * 512 : 7 * 512] == new
    assert unit.store.verbs() == ['exclusive_range', 'read', 'write', 'shared']
    assert unit.store.calls[2] == ('write', 2560, 1024, False)


def test_compare_and_write_reports_the_first_difference_and_writes_nothing():
    unit = make_unit()
    wanted = bytearray(1024)
    wanted[700] = 1
    error = error_of(unit, caw(5, 2), bytes(wanted) + b'n' * 1024)
    assert (error.key, error.asc, error.ascq, error.information) == (0xE, 0x1D, 0, 700)
    assert 'write' not in unit.store.verbs()


@pytest.mark.parametrize(
    'write_cache, flags, durable', [(True, 0, False), (True, 0x08, True), (False, 0, True)]
)
def test_fua_of_compare_and_write(write_cache, flags, durable):
    unit = make_unit(write_cache=write_cache)
    do(unit, caw(0, 1, flags), bytes(1024))
    assert unit.store.calls[2][3] == durable


def test_compare_and_write_is_limited_to_its_maximum():
    unit = make_unit(maximum_compare_and_write_length=4 * 512)
    assert status_of(unit, caw(0, 4), bytes(8 * 512)) == 0
    assert error_of(unit, caw(0, 5), bytes(10 * 512)).field == (13, None, True)
    assert sense_of(unit, caw(BLOCKS - 1, 2), bytes(2048)) == (5, 0x21, 0)
    assert do(unit, caw(0, 0), b'') is None
    assert sense_of(make_unit(maximum_compare_and_write_length=0), caw(0, 1), bytes(1024)) == (
        5,
        0x20,
        0,
    )


@pytest.mark.parametrize('size', [0, 512, 1023, 2048])
def test_compare_and_write_requires_twice_the_data_of_its_blocks(size):
    unit = make_unit()
    error = error_of(unit, caw(0, 1), bytes(size))
    assert (error.key, error.asc, error.field) == (5, 0x24, (13, None, True))
    assert unit.store.calls == []


def test_compare_and_write_of_256_blocks_is_refused():
    assert sense_of(make_unit(), caw(0, 256), bytes(512 * 512)) == (5, 0x24, 0)


def test_a_failed_read_is_a_read_error_and_a_failed_write_a_write_error():
    unit = make_unit()
    unit.store.bad = (0,)
    assert sense_of(unit, caw(0, 1), bytes(1024)) == (3, 0x11, 0)
    assert sense_of(unit, cdb_16(0x8B, 0, 1), bytes(512)) == (3, 0x11, 0)
    unit.store.bad = ()
    unit.store.fail = {'write': errno.ENOSPC}
    assert sense_of(unit, caw(0, 1), bytes(1024)) == (7, 0x27, 7)


def test_orwrite_writes_the_bitwise_or():
    unit = make_unit()
    unit.store.data[:] = b'\x5a' * unit.store.size
    do(unit, cdb_16(0x8B, 3, 2), b'\xa5' * 512 + b'\x01' * 512)
    assert unit.store.data[1536:2560] == b'\xff' * 512 + b'\x5b' * 512
    assert unit.store.data[:1536] == b'\x5a' * 1536
    assert do(unit, cdb_16(0x8B, 0, 0)) is None
    assert sense_of(unit, cdb_16(0x8B, BLOCKS, 1), bytes(512)) == (5, 0x21, 0)


def test_write_atomic_is_one_write_within_its_limit():
    unit = make_unit(maximum_atomic_length=8 * 512)
    do(unit, cdb_16(0x9C, 2, 8), b'a' * 4096)
    assert unit.store.calls == [
        ('atomic_write', 1024, 4096),
        ('write', 1024, 4096, True),
        ('over', 1024, 4096),
    ]
    assert error_of(unit, cdb_16(0x9C, 0, 9), bytes(9 * 512)).field == (12, None, True)
    assert sense_of(unit, cdb_16(0x9C, BLOCKS, 1), bytes(512)) == (5, 0x21, 0)
    assert do(unit, cdb_16(0x9C, 0, 0)) is None
    assert sense_of(unit, cdb_16(0x9C, 0, 2), bytes(512)) == (5, 0x0E, 3)
    assert sense_of(make_unit(), cdb_16(0x9C, 0, 1), bytes(512)) == (5, 0x20, 0)


@pytest.mark.parametrize(
    'cdb, size, verb, verbs',
    [
        (caw(0, 1), 1024, 'exclusive_range', ['exclusive_range', 'shared']),
        (cdb_16(0x8B, 0, 1), 512, 'exclusive_range', ['exclusive_range', 'shared']),
        (cdb_16(0x9C, 0, 1), 512, 'atomic_write', ['atomic_write', 'over']),
    ],
)
def test_a_task_that_is_aborted_while_it_waits_for_the_lock_writes_nothing(cdb, size, verb, verbs):
    unit = make_unit(maximum_atomic_length=4096)
    task = make_task(unit, cdb, bytes(size))
    unit.admit(task)
    task.data_out = bytes(size)
    assert task.run(task) is WOULD_BLOCK
    original = getattr(unit.store, verb)

    def wait(offset, length):
        task.aborted = True
        return original(offset, length)

    setattr(unit.store, verb, wait)
    task.run_blocking(task)
    assert unit.store.verbs() == verbs
