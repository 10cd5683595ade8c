"""Errors of the store: which block is named, which data is delivered, how long is tried, and what
overwriting a bad block does."""

import errno

import pytest
from fake_store import cdb_10, cdb_16, do, error_of, make_task, make_unit, sense_of

from targetd.scsi import faults, medium_errors
from targetd.scsi.sense import CheckCondition

READ, WRITE, VERIFY, FLUSH = 0x28, 0x2A, 0x2F, 0x35
COMPARE_AND_WRITE = 0x89


@pytest.fixture
def unit():
    unit = make_unit(write_cache=True)
    blocks = range(unit.store.size // 512)
    unit.store.data[:] = b''.join(bytes([block % 251]) * 512 for block in blocks)
    unit.store.cached = False
    unit.told = []
    unit.services.note = lambda kind, message: unit.told.append((kind, message))
    return unit


@pytest.mark.parametrize('lba, blocks', [(0, 4096), (3, 300), (770, 8), (777, 1), (776, 2)])
def test_the_first_bad_block_is_exact_and_the_data_before_it_is_delivered(unit, lba, blocks):
    unit.store.bad = (777 * 512, 779 * 512 + 511, 900 * 512)
    first = 777 if lba <= 777 < lba + blocks else None
    error = error_of(unit, cdb_10(READ, lba, blocks))
    if first is None:
        return
    assert (error.key, error.asc, error.information) == (3, 0x11, first)
    assert (error.data or b'') == bytes(unit.store.data[lba * 512 : first * 512])
    note = unit.told[0][1]
    assert (note['offset'], note['length'], note['is_exact']) == (first * 512, 512, True)


def test_few_reads_fail_while_the_block_is_located(unit):
    """A disk may take seconds for each failing read."""
    unit.store.bad = (777 * 512,)
    failed = []
    original = unit.store.read

    def read(offset, length):
        try:
            return original(offset, length)
        except OSError:
            failed.append(length)
            raise

    unit.store.read = read
    assert error_of(unit, cdb_10(READ, 0, 2048)).information == 777
    assert failed == [2048 * 512, 65536, 4096, 512]
    del failed[:]
    assert error_of(unit, cdb_10(READ, 777, 1)).information == 777
    assert failed == [512]


def test_the_time_for_retries_is_bounded(unit):
    unit.store.bad = (777 * 512,)
    now = [0.0]
    original = unit.store.read

    def slow(offset, length):
        if offset <= 777 * 512 < offset + length:
            now[0] += 3.0
        return original(offset, length)

    unit.store.read = slow
    unit.services.monotonic_seconds = lambda: now[0]
    error = error_of(unit, cdb_10(READ, 0, 2048))
    assert (error.key, error.information, error.data) == (3, None, None)
    assert now[0] <= 3.0 + medium_errors.RETRY_SECONDS + 3.0
    assert not unit.told[0][1]['is_exact']


def test_an_aborted_task_is_not_tried_again(unit):
    task = make_task(unit, cdb_10(READ, 0, 16))
    unit.admit(task)
    unit.store.bad = (512,)
    original = unit.store.read

    def read(offset, length):
        task.aborted = True
        return original(offset, length)

    unit.store.read = read
    with pytest.raises(CheckCondition):
        task.run_blocking(task)
    assert unit.store.verbs().count('read') == 1


def test_an_error_that_names_no_block_is_not_located(unit):
    unit.store.fail['read'] = errno.ETIMEDOUT
    assert sense_of(unit, cdb_10(READ, 0, 2048)) == (0xB, 0x3E, 2)
    assert unit.store.verbs().count('read') == 1
    note = unit.told[0][1]
    assert (note['offset'], note['length'], note['is_exact']) == (0, 2048 * 512, False)


def test_the_disk_that_fails_otherwise_meanwhile_is_reported_as_it_is_now(unit):
    numbers = [errno.EIO, errno.ENODEV]

    def read(offset, length):
        raise OSError(numbers.pop(0), 'fails')

    unit.store.read = read
    assert sense_of(unit, cdb_10(READ, 0, 16)) == (4, 0x3E, 1)
    assert [note['errno'] for _, note in unit.told] == [errno.ENODEV]


def test_verify_and_compare_and_write_name_the_block(unit):
    unit.store.bad = (777 * 512,)
    error = error_of(unit, cdb_10(VERIFY, 0, 4096))
    assert (error.information, error.data) == (777, None)
    # the block after the compared one is not looked at
    cdb = bytearray(cdb_16(COMPARE_AND_WRITE, 776, 0))
    cdb[13] = 1
    unit.store.fail['read'] = errno.EIO
    error = error_of(unit, bytes(cdb), bytes(1024))
    assert (error.key, error.information) == (3, 776)


def test_a_closed_store_is_not_a_fault(unit):
    unit.store.fail['read'] = errno.EBADF
    assert sense_of(unit, cdb_10(READ, 0, 1)) == (4, 0x3E, 1)
    assert unit.told == []


def test_a_write_that_was_refused_before_the_medium_is_not_a_fault(unit):
    def write(offset, data, durable):
        raise faults.RefusedBeforeWrite(errno.EROFS, 'the old blocks cannot be kept')

    unit.store.write = write
    assert sense_of(unit, cdb_10(WRITE, 0, 8), bytes(4096)) == (7, 0x27, 0)
    assert unit.told == []


def test_a_failed_flush_is_counted_once_as_a_flush(unit):
    unit.store.fail['flush'] = errno.EIO
    lost = []
    unit.services.data_lost = lost.append
    assert sense_of(unit, cdb_10(FLUSH)) == (3, 0x0C, 0)
    assert [(note['kind'], note['errno']) for _, note in unit.told] == [('flush', errno.EIO)]
    assert len(lost) == 1


# -- rewriting -------------------------------------------------------------------------------------


def with_bad_blocks(unit, *ranges):
    unit.replace_shared_state(records=dict(unit.records, bad_blocks=[list(r) for r in ranges]))


def test_a_write_over_a_bad_block_is_flushed_and_ends_its_entry(unit):
    with_bad_blocks(unit, (1024, 512))
    do(unit, cdb_10(WRITE, 0, 8), bytes(4096))
    assert unit.store.verbs() == ['write', 'flush']
    assert unit.told == [('rewritten', {'offset': 0, 'length': 4096})]
    assert unit.records['bad_blocks'] == []


def test_a_durable_write_over_a_bad_block_is_flushed_once():
    unit = make_unit(write_cache=False)
    unit.told = []
    unit.services.note = lambda kind, message: unit.told.append(kind)
    with_bad_blocks(unit, (1024, 512))
    do(unit, cdb_10(WRITE, 0, 8), bytes(4096))
    assert unit.store.verbs() == ['write', 'flush'] and unit.told == ['rewritten']


def test_a_write_elsewhere_is_not_flushed(unit):
    with_bad_blocks(unit, (1024, 512))
    do(unit, cdb_10(WRITE, 4, 8), bytes(4096))
    assert unit.store.verbs() == ['write'] and unit.told == []


@pytest.mark.parametrize('verb', ['write', 'flush'])
def test_a_write_that_fails_leaves_the_entry(unit, verb):
    with_bad_blocks(unit, (1024, 512))
    unit.store.fail[verb] = errno.EIO
    assert sense_of(unit, cdb_10(WRITE, 0, 8), bytes(4096)) == (3, 0x0C, 0)
    assert unit.records['bad_blocks'] == [[1024, 512]]


def test_unmapping_a_bad_block_is_not_rewriting_it():
    unit = make_unit(unmap=True, zeroes_after_unmap=True)
    with_bad_blocks(unit, (1024, 512))
    do(unit, cdb_10(0x41, 0, 8, flags=0x08), bytes(512))
    assert unit.records['bad_blocks'] == [[1024, 512]]
    do(unit, cdb_10(0x41, 0, 8), bytes(512))
    assert unit.records['bad_blocks'] == []


# -- on-error --------------------------------------------------------------------------------------


def test_read_only_refuses_writes_only(unit):
    unit.replace_shared_state(restriction='read-only')
    assert sense_of(unit, cdb_10(WRITE, 0, 1), bytes(512)) == (7, 0x27, 0)
    assert do(unit, cdb_10(READ, 0, 1)) == bytes(unit.store.data[:512])
    assert do(unit, b'\x1a\x08\x3f\x00\xff\x00')[2] & 0x80
    unit.replace_shared_state(restriction='')
    do(unit, cdb_10(WRITE, 0, 1), bytes(512))


def test_offline_refuses_every_access(unit):
    unit.replace_shared_state(restriction='offline')
    for cdb, data in (
        (cdb_10(WRITE, 0, 1), bytes(512)),
        (cdb_10(READ, 0, 1), None),
        (cdb_10(FLUSH), None),
        (bytes(6), None),
    ):
        assert sense_of(unit, cdb, data) == (2, 4, 3)
    assert unit.take_sense().asc == 4
    assert do(unit, b'\x12\x00\x00\x00\x24\x00')
