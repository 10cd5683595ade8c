import errno
import struct

import pytest
from fake_store import (
    BLOCKS,
    MemoryStore,
    block_cdb,
    cdb_10,
    cdb_16,
    do,
    error_of,
    finish,
    make_task,
    make_unit,
    pattern,
    sense_of,
    status_of,
)

from targetd.scsi import sbc
from targetd.scsi.sam import UNFLUSHED, WOULD_BLOCK, Change

READS = (0x08, 0x28, 0x88, 0xA8)
WRITES = (0x0A, 0x2A, 0x8A, 0xAA)


def filled(**facts):
    unit = make_unit(**facts)
    unit.store.data[:] = pattern(unit.blocks, unit.block_size)
    return unit


# -- READ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('opcode', READS)
@pytest.mark.parametrize('lba, blocks', [(0, 1), (7, 8), (BLOCKS - 1, 1), (BLOCKS - 200, 200)])
@pytest.mark.clause('SBC-3 5.11')
def test_read_returns_the_blocks(opcode, lba, blocks):
    unit = filled()
    assert (
        do(unit, block_cdb(opcode, lba, blocks))
        == pattern(BLOCKS)[lba * 512 : (lba + blocks) * 512]
    )


@pytest.mark.parametrize('opcode', READS)
def test_a_read_that_would_block_runs_in_an_executor(opcode):
    unit = filled()
    unit.store.cached = False
    task = make_task(unit, block_cdb(opcode, 3, 2))
    unit.admit(task)
    assert task.run(task) is WOULD_BLOCK
    assert unit.store.calls == []
    assert task.run_blocking(task) == pattern(BLOCKS)[3 * 512 : 5 * 512]


@pytest.mark.parametrize('opcode', READS + WRITES)
@pytest.mark.parametrize('lba, blocks', [(BLOCKS - 1, 2), (BLOCKS, 1), (0x1FFFFF, 1)])
@pytest.mark.clause('SBC-3 5.11')
def test_beyond_the_end_is_out_of_range(opcode, lba, blocks):
    unit = filled()
    data = bytes(blocks * 512) if opcode in WRITES else None
    assert sense_of(unit, block_cdb(opcode, lba, blocks), data) == (5, 0x21, 0)
    assert unit.store.calls == []


@pytest.mark.parametrize('opcode', (0x28, 0x88, 0xA8, 0x2A, 0x8A, 0xAA))
def test_no_blocks_is_good_without_touching_the_medium(opcode):
    unit = filled()
    assert do(unit, block_cdb(opcode, BLOCKS, 0), None if opcode in READS else b'') is None
    assert unit.store.calls == []
    assert sense_of(unit, block_cdb(opcode, BLOCKS + 1, 0)) == (5, 0x21, 0)


@pytest.mark.parametrize('opcode', (0x08, 0x0A))
def test_a_length_of_0_in_six_byte_commands_means_256_blocks(opcode):
    unit = filled()
    if opcode == 0x08:
        assert len(do(unit, block_cdb(opcode, 0, 0))) == 256 * 512
    else:
        do(unit, block_cdb(opcode, 0, 0), b'w' * 256 * 512)
        assert (
            unit.store.data[: 256 * 512 + 1]
            == b'w' * 256 * 512 + pattern(BLOCKS)[256 * 512 : 256 * 512 + 1]
        )


@pytest.mark.parametrize('opcode', (0x28, 0x88, 0xA8, 0x2A, 0x8A, 0xAA))
def test_more_than_the_maximum_transfer_length_is_refused_at_that_field(opcode):
    unit = make_unit(maximum_transfer_length=8 * 512)
    data = bytes(9 * 512) if opcode in WRITES else None
    error = error_of(unit, block_cdb(opcode, 0, 9), data)
    assert (error.key, error.asc) == (5, 0x24)
    assert error.field[0] == {0x20: 7, 0x80: 10, 0xA0: 6}[opcode & 0xE0]
    assert status_of(unit, block_cdb(opcode, 0, 8), data and data[: 8 * 512]) == 0


@pytest.mark.parametrize('opcode', (0x28, 0x88, 0xA8, 0x2A, 0x8A, 0xAA))
@pytest.mark.parametrize('flags', [0x10, 0x08, 0x18, 0x02])
def test_dpo_fua_and_the_obsolete_fua_nv_are_accepted(opcode, flags):
    unit = filled()
    assert (
        status_of(unit, block_cdb(opcode, 0, 1, flags), bytes(512) if opcode in WRITES else None)
        == 0
    )


@pytest.mark.parametrize('opcode', (0x28, 0x88, 0xA8, 0x2A, 0x8A, 0xAA))
@pytest.mark.parametrize('protect', range(1, 8))
def test_protection_is_refused_without_protection_information(opcode, protect):
    error = error_of(
        filled(), block_cdb(opcode, 0, 1, protect << 5), bytes(512) if opcode in WRITES else None
    )
    assert (error.asc, error.field) == (0x24, (1, 7, True))


@pytest.mark.parametrize('opcode', (0x28, 0x88, 0xA8, 0x2A, 0x8A, 0xAA))
def test_naca_is_refused(opcode):
    cdb = bytearray(block_cdb(opcode, 0, 1))
    cdb[-1] = 0x04
    assert sense_of(filled(), bytes(cdb), bytes(512) if opcode in WRITES else None) == (5, 0x24, 0)


@pytest.mark.clause('SBC-3 5.11')
def test_the_lba_of_an_unreadable_block_is_reported():
    unit = filled()
    unit.store.bad = (777 * 512 + 5,)
    error = error_of(unit, cdb_10(0x28, 700, 200))
    assert (error.key, error.asc, error.ascq, error.information) == (3, 0x11, 0x00, 777)


def test_a_read_that_fails_only_once_reports_no_lba():
    unit = filled()
    unit.store.cached = False
    task = make_task(unit, cdb_10(0x28, 0, 4))
    unit.admit(task)
    unit.store.fail = {'read': errno.EIO}
    original = unit.store.read

    def once(offset, length):
        try:
            return original(offset, length)
        finally:
            unit.store.fail = {}

    unit.store.read = once
    with pytest.raises(sbc.sense.CheckCondition) as caught:
        task.run_blocking(task)
    assert caught.value.information is None


def test_an_aborted_read_does_not_touch_the_medium():
    unit = filled()
    task = make_task(unit, cdb_10(0x28, 0, 4))
    unit.admit(task)
    task.aborted = True
    task.run_blocking(task)
    assert unit.store.calls == []


# -- WRITE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('opcode', WRITES)
@pytest.mark.parametrize('lba, blocks', [(0, 1), (7, 8), (BLOCKS - 1, 1), (100, 200)])
@pytest.mark.clause('SBC-3 5.33')
def test_write_changes_only_its_blocks(opcode, lba, blocks):
    unit = filled()
    data = pattern(blocks, seed=91)
    assert do(unit, block_cdb(opcode, lba, blocks), data) is None
    whole = pattern(BLOCKS)
    assert bytes(unit.store.data) == whole[: lba * 512] + data + whole[(lba + blocks) * 512 :]


@pytest.mark.parametrize('opcode', WRITES)
@pytest.mark.parametrize(
    'write_cache, flags, blocks, first, durable',
    [
        (True, 0x00, 8, None, False),
        (True, 0x08, 8, UNFLUSHED, False),
        (False, 0x00, 8, UNFLUSHED, False),
        (True, 0x00, 129, WOULD_BLOCK, False),  # more than the store takes without waiting
        (False, 0x00, 129, WOULD_BLOCK, True),
    ],
)
@pytest.mark.clause('SBC-3 5.33')
def test_a_write_waits_for_the_disk_only_if_it_must_be_durable(
    opcode, write_cache, flags, blocks, first, durable
):
    if opcode == 0x0A and flags:  # WRITE(6) has no FUA
        return
    unit = make_unit(write_cache=write_cache)
    task = make_task(unit, block_cdb(opcode, 0, blocks, flags), bytes(blocks * 512))
    unit.admit(task)
    assert task.data_out_length == blocks * 512
    task.data_out = memoryview(bytes(blocks * 512))
    result = task.run(task)
    assert result is first
    if result is WOULD_BLOCK:
        assert unit.store.calls == []
        assert task.run_blocking(task) is None
    assert unit.store.calls == [('write', 0, blocks * 512, durable)]


def test_a_batch_that_has_enough_data_takes_no_more_writes():
    unit = make_unit(write_cache=False)
    unit.unflushed = sbc.UNFLUSHED_BYTES + 1
    task = make_task(unit, block_cdb(0x2A, 0, 8), bytes(8 * 512))
    unit.admit(task)
    task.data_out = bytes(8 * 512)
    assert task.run(task) is WOULD_BLOCK and unit.store.calls == []
    assert task.run_blocking(task) is None
    assert unit.store.calls == [('write', 0, 8 * 512, True)]


@pytest.mark.parametrize('opcode', WRITES)
def test_durable_writes_of_a_memory_store_are_inline(opcode):
    store = MemoryStore(BLOCKS * 512)
    store.durable_is_free = True
    unit = make_unit(store, write_cache=False)
    task = make_task(unit, block_cdb(opcode, 0, 1), bytes(512))
    unit.admit(task)
    task.data_out = bytes(512)
    assert task.run(task) is None and store.calls == [('write', 0, 512, True)]


@pytest.mark.parametrize('opcode', WRITES)
@pytest.mark.parametrize(
    'blocks, edtl, written',
    [(1, 0, 0), (2, 512, 512), (1, 1024, 512), (1, 10000, 512), (1, 200, 200), (3, 1100, 1100)],
)
def test_a_write_with_a_different_edtl_writes_the_shorter_length(opcode, blocks, edtl, written):
    """libiscsi's residual tests: the connection reports the residual count; the rest of a block
    is unchanged."""
    unit = filled(write_cache=True)
    task = make_task(unit, block_cdb(opcode, 0, blocks), b'b' * edtl)
    unit.admit(task)
    assert task.data_out_length == blocks * 512
    assert finish(task, b'b' * edtl) is None
    assert bytes(unit.store.data) == b'b' * written + pattern(BLOCKS)[written:]


@pytest.mark.parametrize('cdb', [cdb_10(0x2F, 0, 1, 0x02), cdb_10(0x2E, 0, 1), cdb_16(0x8B, 0, 1)])
def test_an_incomplete_block_to_compare_is_refused_before_any_data(cdb):
    unit = filled()
    task = make_task(unit, cdb, b'b' * 200)
    with pytest.raises(sbc.sense.CheckCondition) as caught:
        unit.admit(task)
    assert (caught.value.key, caught.value.asc, caught.value.ascq) == (5, 0x0E, 0x03)
    assert task.data_out_length == 512  # so that the residual count can be reported
    assert unit.store.calls == []


def test_a_partial_write_that_cannot_read_the_rest_of_its_block_writes_nothing():
    unit = filled()
    unit.store.bad = (300,)
    assert sense_of(unit, cdb_10(0x2A, 0, 1), b'b' * 200) == (3, 0x0C, 0)
    assert 'write' not in unit.store.verbs()


@pytest.mark.parametrize('opcode', WRITES)
def test_a_write_without_its_data_writes_nothing(opcode):
    unit = filled(write_cache=True)
    task = make_task(unit, block_cdb(opcode, 0, 2), bytes(1024))
    unit.admit(task)
    task.data_out = bytes(512)
    with pytest.raises(sbc.sense.CheckCondition):
        task.run(task)
    assert 'write' not in unit.store.verbs()


@pytest.mark.parametrize('opcode', WRITES)
def test_a_write_without_the_w_bit_transfers_nothing(opcode):
    unit = filled(write_cache=True)
    task = make_task(unit, block_cdb(opcode, 0, 2), None, edtl=1024)
    unit.admit(task)
    assert task.run(task) is None
    assert unit.store.calls == []


@pytest.mark.clause('SBC-3 5.33')
def test_a_full_disk_is_reported_as_space_allocation_failed():
    unit = make_unit(write_cache=True)
    unit.store.fail = {'write': errno.ENOSPC}
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == (7, 0x27, 0x07)


def test_an_aborted_write_does_not_touch_the_medium():
    unit = make_unit()
    task = make_task(unit, cdb_10(0x2A, 0, 1), bytes(512))
    unit.admit(task)
    task.data_out = bytes(512)
    task.aborted = True
    task.run_blocking(task)
    assert unit.store.calls == []


# -- VERIFY ----------------------------------------------------------------------------------------

VERIFIES = (0x2F, 0x8F, 0xAF)


@pytest.mark.parametrize('opcode', VERIFIES)
@pytest.mark.clause('SBC-3 5.29')
def test_verify_reads_without_data(opcode):
    unit = filled()
    assert do(unit, block_cdb(opcode, 10, 256)) is None
    assert unit.store.calls == [('read', 5120, 256 * 512)]
    unit.store.bad = (20 * 512,)
    error = error_of(unit, block_cdb(opcode, 10, 256))
    assert (error.key, error.information) == (3, 20)


@pytest.mark.parametrize('opcode', VERIFIES)
@pytest.mark.clause('SBC-3 5.29')
def test_verify_compares(opcode):
    unit = filled()
    data = bytearray(pattern(BLOCKS)[10 * 512 : 20 * 512])
    assert do(unit, block_cdb(opcode, 10, 10, 0x02), bytes(data)) is None
    data[5 * 512 + 17] ^= 1
    error = error_of(unit, block_cdb(opcode, 10, 10, 0x02), bytes(data))
    assert (error.key, error.asc, error.ascq, error.information) == (0xE, 0x1D, 0, 15)


@pytest.mark.parametrize('opcode', VERIFIES)
@pytest.mark.clause('SBC-3 5.29')
def test_verify_compares_one_block_with_each(opcode):
    unit = make_unit()
    unit.store.data[:] = b'\x5a' * unit.store.size
    assert do(unit, block_cdb(opcode, 0, 100, 0x06), b'\x5a' * 512) is None
    unit.store.data[99 * 512] = 0
    assert error_of(unit, block_cdb(opcode, 0, 100, 0x06), b'\x5a' * 512).information == 99


@pytest.mark.parametrize('opcode', VERIFIES)
@pytest.mark.parametrize('flags', [0x04, 0x20, 0x08, 0x01])
@pytest.mark.clause('SBC-3 5.29')
def test_verify_refuses_unsupported_fields(opcode, flags):
    assert sense_of(filled(), block_cdb(opcode, 0, 1, flags), bytes(512)) == (5, 0x24, 0)


@pytest.mark.parametrize('opcode', VERIFIES)
@pytest.mark.parametrize('flags', [0x00, 0x02, 0x06, 0x10])
def test_verify_of_no_blocks(opcode, flags):
    assert do(filled(), block_cdb(opcode, 0, 0, flags)) is None
    assert sense_of(filled(), block_cdb(opcode, BLOCKS + 1, 0, flags)) == (5, 0x21, 0)


def test_a_long_verify_is_done_in_pieces_and_stops_when_aborted():
    unit = make_unit(blocks=8192)
    task = make_task(unit, cdb_16(0x8F, 0, 8192))
    unit.admit(task)
    original = unit.store.read

    def abort_after_first(offset, length):
        task.aborted = True
        return original(offset, length)

    unit.store.read = abort_after_first
    task.run_blocking(task)
    assert unit.store.calls == [('read', 0, sbc.CHUNK)]


@pytest.mark.parametrize('opcode', (0x2E, 0x8E, 0xAE))
@pytest.mark.parametrize('flags', [0x00, 0x02])
@pytest.mark.clause('SBC-3 5.37')
def test_write_and_verify_is_durable_and_reads_the_data_back(opcode, flags):
    unit = filled(write_cache=True)
    do(unit, block_cdb(opcode, 4, 2, flags), b'v' * 1024)
    assert unit.store.calls == [('write', 2048, 1024, True), ('read', 2048, 1024)]
    assert unit.store.data[2048:3072] == b'v' * 1024
    unit.store.write = lambda offset, data, durable: None  # a disk that lies
    assert sense_of(unit, block_cdb(opcode, 4, 2, flags), b'x' * 1024) == (
        (0xE, 0x1D, 0) if flags else None
    )


@pytest.mark.parametrize('opcode', (0x2E, 0x8E, 0xAE))
def test_write_and_verify_with_a_short_edtl(opcode):
    unit = filled()
    do(unit, block_cdb(opcode, 0, 2, 0x02), b'v' * 512)
    assert unit.store.data[:1024] == b'v' * 512 + pattern(2)[512:]
    assert sense_of(unit, block_cdb(opcode, 0, 2, 0x02), b'v' * 200) == (5, 0x0E, 0x03)
    assert sense_of(unit, block_cdb(opcode, 0, 1, 0x04), b'v' * 512) == (5, 0x24, 0)


def test_first_difference_is_found_at_every_position():
    one = bytes(1000)
    assert sbc.first_difference(one, one) is None
    for n in (0, 1, 499, 500, 998, 999):
        other = bytearray(one)
        other[n] = 1
        assert sbc.first_difference(one, other) == n
        other[999] = 2
        assert sbc.first_difference(one, other) == n


# -- caches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('opcode', (0x35, 0x91))
@pytest.mark.parametrize('flags', [0x00, 0x02, 0x06])
@pytest.mark.clause('SBC-3 5.26')
def test_synchronize_cache_flushes_before_its_status(opcode, flags):
    unit = make_unit(write_cache=True)
    assert do(unit, block_cdb(opcode, 8, 16, flags)) is None
    assert unit.store.calls == [('flush', 4096, 8192)]


@pytest.mark.parametrize('opcode', (0x35, 0x91))
@pytest.mark.clause('SBC-3 5.26')
def test_synchronize_cache_of_0_blocks_flushes_the_whole_medium(opcode):
    unit = make_unit()
    do(unit, block_cdb(opcode, 0, 0))
    assert unit.store.calls == [('flush', 0, unit.store.size)]
    assert sense_of(unit, block_cdb(opcode, BLOCKS, 1)) == (5, 0x21, 0)


def test_synchronize_cache_of_a_memory_store_ends_at_once():
    unit = make_unit()
    unit.store.durable_is_free = True
    task = make_task(unit, cdb_10(0x35))
    unit.admit(task)
    assert task.run(task) is None


@pytest.mark.parametrize('opcode', (0x34, 0x90))
def test_pre_fetch_reads_and_returns_no_data(opcode):
    unit = make_unit()
    assert do(unit, block_cdb(opcode, 4, 4)) is None
    assert unit.store.calls == [('read', 2048, 2048)]
    assert do(unit, block_cdb(opcode, 0, 0, 0x02)) is None
    assert sense_of(unit, block_cdb(opcode, BLOCKS + 1, 0)) == (5, 0x21, 0)


def test_pre_fetch_10_accepts_a_group_number():
    assert status_of(make_unit(), cdb_10(0x34, 0, 1, 0, group=3)) == 0


# -- capacity --------------------------------------------------------------------------------------


@pytest.mark.clause('SBC-3 5.15')
def test_read_capacity_10():
    assert do(make_unit(block_size=4096), cdb_10(0x25)) == struct.pack('>II', BLOCKS - 1, 4096)


@pytest.mark.parametrize(
    'blocks, expected',
    [(0xFFFFFFFF, 0xFFFFFFFE), (0x100000000, 0xFFFFFFFF), (0x100000001, 0xFFFFFFFF)],
)
@pytest.mark.clause('SBC-3 5.15')
def test_read_capacity_10_around_2_tib(blocks, expected):
    unit = make_unit()
    unit.resized(blocks * 512)
    assert do(unit, cdb_10(0x25)) == struct.pack('>II', expected, 512)
    assert do(unit, cdb_16(0x9E, 0, 32, 0x10))[:12] == struct.pack('>QI', blocks - 1, 512)


@pytest.mark.clause('SBC-3 5.15')
def test_an_lba_without_pmi_is_refused():
    error = error_of(make_unit(), bytes.fromhex('25 00 00000001 0000 00 00'))
    assert (error.asc, error.field) == (0x24, (2, None, True))
    assert do(make_unit(), bytes.fromhex('25 00 00000001 0000 01 00'))
    assert sense_of(make_unit(), cdb_16(0x9E, 1, 32, 0x10)) == (5, 0x24, 0)


@pytest.mark.clause('SBC-3 5.16')
def test_read_capacity_16_reports_geometry_and_provisioning():
    unit = make_unit(
        physical_block_size=4096,
        lowest_aligned_block=7,
        unmap=True,
        thin=True,
        zeroes_after_unmap=True,
    )
    data = do(unit, cdb_16(0x9E, 0, 32, 0x10))
    assert len(data) == 32
    assert data[12] == 0 and data[13] == 3
    assert struct.unpack('>H', data[14:16])[0] == 0x8000 | 0x4000 | 7
    assert do(make_unit(), cdb_16(0x9E, 0, 32, 0x10))[13:16] == bytes(3)


@pytest.mark.parametrize('allocation', [0, 8, 12, 15, 32, 255])
@pytest.mark.clause('SBC-3 5.16')
def test_read_capacity_16_is_cut_at_the_allocation_length(allocation):
    assert len(do(make_unit(), cdb_16(0x9E, 0, allocation, 0x10))) == min(allocation, 32)


@pytest.mark.clause('SBC-3 5.18')
def test_defect_lists_are_empty_in_the_requested_format():
    assert do(make_unit(), bytes.fromhex('37 00 1d 00000000 0020 00')) == bytes([0, 0x1D, 0, 0])
    assert do(make_unit(), bytes.fromhex('b7 18 00000000 00000020 00 00')) == bytes(
        [0, 0x18]
    ) + bytes(6)


# -- START STOP UNIT, PREVENT ALLOW ----------------------------------------------------------------


def start_stop(unit, flags, condition=0):
    return do(unit, bytes([0x1B, 1, 0, 0, condition << 4 | flags, 0]))


@pytest.mark.clause('SBC-3 5.25')
def test_a_stop_flushes_and_does_not_affect_other_initiators():
    """Windows stops its disks when it shuts down; other initiators continue to use them."""
    unit = make_unit(write_cache=True)
    assert start_stop(unit, 0x00) is None
    assert unit.store.verbs() == ['flush']
    assert status_of(unit, bytes(6)) == 0
    assert start_stop(unit, 0x04) is None and unit.store.verbs() == ['flush']


@pytest.mark.clause('SBC-3 5.25')
def test_a_unit_that_was_write_protected_after_a_write_is_flushed_when_it_stops():
    unit = make_unit(write_cache=True)
    unit.replace_shared_state(restriction='read-only')
    assert start_stop(unit, 0x00) is None
    assert unit.store.verbs() == ['flush']


@pytest.mark.clause('SBC-3 5.25')
def test_a_failed_unit_refuses_to_stop_unless_without_a_flush():
    unit = make_unit(removable=True)
    unit.replace_shared_state(medium='failed')
    for flags in (0x00, 0x02):
        error = error_of(unit, bytes([0x1B, 0, 0, 0, flags, 0]))
        assert (error.key, error.asc) == (4, 0x44)
    assert unit.store.verbs() == []
    assert start_stop(unit, 0x04) is None


@pytest.mark.clause('SBC-3 5.25')
def test_eject_flushes_first_and_asks_the_master():
    unit = make_unit(removable=True)
    assert start_stop(unit, 0x02) == Change('start-stop', {'action': 'eject'})
    assert unit.store.verbs() == ['flush']
    unit.replace_shared_state(medium='ejected')
    assert start_stop(unit, 0x03) == Change('start-stop', {'action': 'load'})


@pytest.mark.clause('SBC-3 5.25')
@pytest.mark.parametrize(
    'flags, condition, action',
    [
        (0x00, 0x0, 'down'),
        (0x01, 0x0, 'up'),
        (0x00, 0x1, 'up'),
        (0x01, 0x3, 'down'),  # START is ignored
        (0x00, 0xB, 'down'),
        (0x00, 0x2, None),
        (0x00, 0x7, None),
        (0x00, 0xA, None),
    ],
)
def test_the_master_stops_a_disk_that_spins_down(flags, condition, action):
    unit = make_unit(write_cache=True, spins_down=True)
    wanted = Change('spin', {'action': action, 'immediate': True}) if action else None
    assert start_stop(unit, flags, condition) == wanted
    if flags == 0:
        assert unit.store.verbs() == ['flush']
    assert status_of(unit, bytes(6)) == 0  # TEST UNIT READY
    assert start_stop(make_unit(), flags, condition) is None


@pytest.mark.clause('SBC-3 5.25')
def test_a_start_that_is_not_immediate_waits_for_the_disk():
    unit = make_unit(spins_down=True)
    assert do(unit, bytes([0x1B, 0, 0, 0, 1, 0])) == Change(
        'spin', {'action': 'up', 'immediate': False}
    )


def test_an_order_to_stop_and_eject_ejects():
    unit = make_unit(removable=True, spins_down=True)
    assert start_stop(unit, 0x02) == Change('start-stop', {'action': 'eject'})


def test_a_fixed_disk_cannot_be_ejected():
    error = error_of(make_unit(), bytes.fromhex('1b 00 00 00 02 00'))
    assert (error.asc, error.field) == (0x24, (4, 1, True))


def test_start_ends_a_stop():
    assert start_stop(make_unit(medium='stopped'), 0x01) == Change(
        'start-stop', {'action': 'start'}
    )
    assert start_stop(make_unit(), 0x01) is None


@pytest.mark.parametrize('condition', (0x1, 0x2, 0x3, 0x7, 0xA, 0xB))
def test_power_conditions_change_nothing(condition):
    unit = make_unit(removable=True)
    assert start_stop(unit, 0x02, condition) is None
    assert status_of(unit, bytes(6)) == 0


@pytest.mark.clause('SBC-3 5.25')
@pytest.mark.parametrize('condition', (0x4, 0x5, 0x6, 0x8, 0x9, 0xC, 0xD, 0xE, 0xF))
def test_reserved_power_conditions_are_an_error(condition):
    unit = make_unit(removable=True)
    error = error_of(unit, bytes((0x1B, 0, 0, 0, condition << 4 | 0x02, 0)))
    assert (error.asc, error.field) == (0x24, (4, 7, True))
    assert status_of(unit, bytes(6)) == 0


@pytest.mark.clause('SBC-3 5.25')
def test_a_stop_that_cannot_flush_fails_and_does_not_eject():
    unit = make_unit(removable=True)
    unit.store.fail = {'flush': errno.EIO}
    assert sense_of(unit, bytes.fromhex('1b 00 00 00 02 00')) == (3, 0x0C, 0)


@pytest.mark.parametrize('value, prevent', [(0, False), (1, True), (2, True), (3, True)])
def test_prevent_is_counted_by_the_master_even_without_a_medium(value, prevent):
    cdb = bytes([0x1E, 0, 0, 0, value, 0])
    assert do(make_unit(removable=True, medium='ejected'), cdb) == Change(
        'prevent', {'prevent': prevent}
    )
