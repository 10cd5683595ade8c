import errno
import struct

import pytest
from fake_store import (
    BLOCKS,
    block_cdb,
    cdb_16,
    do,
    error_of,
    make_task,
    make_unit,
    pattern,
    sense_of,
    status_of,
)

from targetd.scsi.provisioning import block_extents


def thin(**facts):
    unit = make_unit(unmap=True, thin=True, zeroes_after_unmap=True, write_cache=True, **facts)
    unit.store.data[:] = b'\xff' * unit.store.size
    return unit


def unmap(*ranges):
    """(cdb, data) of an UNMAP."""
    data = struct.pack('>HH4x', 6 + 16 * len(ranges), 16 * len(ranges))
    data += b''.join(struct.pack('>QI4x', lba, blocks) for lba, blocks in ranges)
    return struct.pack('>BBIBHB', 0x42, 0, 0, 0, len(data), 0), data


# -- UNMAP -----------------------------------------------------------------------------------------


@pytest.mark.clause('SBC-3 5.28')
def test_unmap_unmaps_each_range():
    unit = thin()
    assert do(unit, *unmap((0, 8), (100, 1))) is None
    assert unit.store.calls == [('unmap', 0, 4096), ('unmap', 51200, 512)]


def test_unmap_is_durable_without_a_write_cache():
    unit = make_unit(unmap=True)
    do(unit, *unmap((0, 8)))
    assert unit.store.verbs() == ['unmap', 'flush']


def test_a_thick_unit_does_not_support_unmap():
    assert sense_of(make_unit(), *unmap((0, 8))) == (5, 0x20, 0)


@pytest.mark.parametrize('ranges', [[], [(5, 0)], [(BLOCKS, 0)], [(BLOCKS + 1000, 0)]])
def test_unmapping_0_blocks_is_good_at_any_lba(ranges):
    unit = thin()
    assert status_of(unit, *unmap(*ranges)) == 0
    assert 'unmap' not in unit.store.verbs()


@pytest.mark.clause('SBC-3 5.28')
def test_one_invalid_range_refuses_the_command():
    unit = thin()
    assert sense_of(unit, *unmap((0, 8), (BLOCKS - 1, 2))) == (5, 0x21, 0)
    assert unit.store.calls == []


@pytest.mark.clause('SBC-3 5.28')
def test_the_block_limits_are_enforced():
    unit = thin(maximum_unmap_descriptors=2, maximum_unmap_length=16 * 512)
    assert status_of(unit, *unmap((0, 8), (8, 8))) == 0
    assert sense_of(unit, *unmap((0, 1), (1, 1), (2, 1))) == (5, 0x26, 0)
    assert sense_of(unit, *unmap((0, 8), (8, 9))) == (5, 0x26, 0)


@pytest.mark.parametrize('length', range(1, 8))
def test_a_list_with_an_incomplete_header_is_a_length_error(length):
    cdb = struct.pack('>BBIBHB', 0x42, 0, 0, 0, length, 0)
    assert sense_of(thin(), cdb, bytes(length)) == (5, 0x1A, 0)


def test_an_empty_list_is_good():
    assert status_of(thin(), struct.pack('>BBIBHB', 0x42, 0, 0, 0, 0, 0)) == 0


@pytest.mark.clause('SBC-3 5.28')
def test_an_incomplete_list_unmaps_nothing():
    unit = thin()
    cdb, data = unmap((0, 8), (100, 1))
    assert sense_of(unit, cdb, data[:30]) == (5, 0x1A, 0)
    assert unit.store.calls == []


def test_an_incomplete_last_descriptor_is_ignored():
    unit = thin()
    cdb, data = unmap((0, 8), (100, 1))
    cdb = cdb[:7] + struct.pack('>HB', 30, 0)
    assert status_of(unit, cdb, data[:30]) == 0
    assert unit.store.calls == [('unmap', 0, 4096)]


def test_a_medium_that_cannot_unmap_keeps_its_data():
    unit = thin()
    unit.store.fail = {'unmap': errno.EOPNOTSUPP}
    assert status_of(unit, *unmap((0, 8))) == 0
    unit.store.fail = {'unmap': errno.EIO}
    assert sense_of(unit, *unmap((0, 8))) == (3, 0x0C, 0)


def test_anchor_is_refused():
    cdb, data = unmap((0, 8))
    assert sense_of(thin(), b'\x42\x01' + cdb[2:], data) == (5, 0x24, 0)


def test_an_aborted_unmap_stops():
    unit = thin()
    cdb, data = unmap((0, 8), (100, 1))
    task = make_task(unit, cdb, data)
    unit.admit(task)
    task.data_out = data
    original = unit.store.unmap

    def abort(offset, length):
        task.aborted = True
        original(offset, length)

    unit.store.unmap = abort
    task.run_blocking(task)
    assert unit.store.calls == [('unmap', 0, 4096)]


# -- WRITE SAME ------------------------------------------------------------------------------------


@pytest.mark.parametrize('opcode', (0x41, 0x93))
@pytest.mark.clause('SBC-3 5.43')
def test_write_same_repeats_the_block(opcode):
    unit = thin(maximum_write_same_length=1 << 30)
    block = pattern(2)[256:768]
    do(unit, block_cdb(opcode, 10, 3000), block)
    assert bytes(unit.store.data) == b'\xff' * 5120 + block * 3000 + b'\xff' * (
        (BLOCKS - 3010) * 512
    )


@pytest.mark.parametrize('opcode', (0x41, 0x93))
@pytest.mark.parametrize('flags, may_unmap', [(0x00, False), (0x08, True)])
def test_zeroes_are_written_by_the_store(opcode, flags, may_unmap):
    unit = thin()
    do(unit, block_cdb(opcode, 8, 8, flags), bytes(512))
    assert unit.store.calls == [('write_zeroes', 4096, 4096, may_unmap)]


@pytest.mark.clause('SBC-3 5.43')
@pytest.mark.parametrize('opcode', (0x41, 0x93))
@pytest.mark.parametrize('zeroes_after_unmap', [True, False])
def test_write_same_with_unmap_and_a_block_that_is_not_zeroes_reads_back_as_that_block(
    opcode, zeroes_after_unmap
):
    unit = make_unit(unmap=True, thin=True, zeroes_after_unmap=zeroes_after_unmap)
    block = bytes(511) + b'\1'
    do(unit, block_cdb(opcode, 0, 4, 0x08), block)
    assert unit.store.data[:2049] == block * 4 + b'\0'
    assert not {'unmap', 'write_zeroes'} & set(unit.store.verbs())


@pytest.mark.clause('SBC-3 5.44')
def test_write_same_16_without_data_writes_zeroes():
    unit = thin()
    assert do(unit, cdb_16(0x93, 0, 8, 0x01)) is None
    assert unit.store.data[:4097] == bytes(4096) + b'\xff'
    assert sense_of(unit, block_cdb(0x41, 0, 8, 0x01), bytes(512)) == (5, 0x24, 0)


@pytest.mark.parametrize('opcode', (0x41, 0x93))
def test_0_blocks_means_up_to_the_end_of_the_medium(opcode):
    unit = thin()
    do(unit, block_cdb(opcode, BLOCKS - 5, 0), b'\1' * 512)
    assert unit.store.data[-6 * 512 :] == b'\xff' * 512 + b'\1' * 5 * 512
    assert sense_of(unit, block_cdb(opcode, BLOCKS + 1, 0), b'\1' * 512) == (5, 0x21, 0)


@pytest.mark.parametrize('opcode', (0x41, 0x93))
def test_0_blocks_is_refused_if_wsnz_is_set(opcode):
    unit = thin(write_same_zero_refused=True)
    assert error_of(unit, block_cdb(opcode, 0, 0), bytes(512)).field[0] == (
        7 if opcode == 0x41 else 10
    )


@pytest.mark.parametrize('opcode', (0x41, 0x93))
def test_the_maximum_write_same_length_also_applies_to_0_blocks(opcode):
    unit = thin(maximum_write_same_length=100 * 512)
    assert sense_of(unit, block_cdb(opcode, 0, 0), bytes(512)) == (5, 0x24, 0)
    assert sense_of(unit, block_cdb(opcode, 0, 101), bytes(512)) == (5, 0x24, 0)
    assert status_of(unit, block_cdb(opcode, BLOCKS - 100, 0), bytes(512)) == 0
    assert status_of(unit, block_cdb(opcode, 0, 100), bytes(512)) == 0


@pytest.mark.parametrize('opcode', (0x41, 0x93))
@pytest.mark.parametrize('size', [0, 256, 1024])
@pytest.mark.clause('SBC-3 5.43')
def test_write_same_needs_exactly_one_block(opcode, size):
    unit = thin()
    assert sense_of(unit, block_cdb(opcode, 0, 1, 0x08), bytes(size)) == (5, 0x0E, 0x03)
    assert unit.store.calls == []


@pytest.mark.parametrize('opcode', (0x41, 0x93))
@pytest.mark.parametrize('flags', [0x10, 0x18, 0x20, 0x80])
def test_anchor_and_protection_are_refused(opcode, flags):
    assert sense_of(thin(), block_cdb(opcode, 0, 1, flags), bytes(512)) == (5, 0x24, 0)


def test_write_same_with_unmap_requires_a_thin_unit():
    error = error_of(make_unit(), cdb_16(0x93, 0, 1, 0x08), bytes(512))
    assert error.field == (1, 3, True)
    assert status_of(make_unit(), cdb_16(0x93, 0, 1), bytes(512)) == 0


@pytest.mark.parametrize('data', [bytes(512), b'\1' * 512])
def test_write_same_is_durable_without_a_write_cache(data):
    unit = make_unit()
    do(unit, cdb_16(0x93, 0, 4), data)
    assert unit.store.calls[-1] == ('flush', 0, 2048)


@pytest.mark.parametrize('data', [bytes(512), b'\1' * 512])
def test_an_aborted_write_same_stops(data):
    unit = make_unit(blocks=300000, maximum_write_same_length=1 << 30)
    task = make_task(unit, cdb_16(0x93, 0, 300000), data)
    unit.admit(task)
    task.data_out = data

    def abort(*arguments):
        task.aborted = True
        unit.store.calls.append(arguments)

    unit.store.write = unit.store.write_zeroes = abort
    task.run_blocking(task)
    assert len(unit.store.calls) == 1


# -- GET LBA STATUS --------------------------------------------------------------------------------


def status(unit, lba, allocation=1024):
    data = do(unit, cdb_16(0x9E, lba, allocation, 0x12))
    length = struct.unpack('>I', data[:4])[0] if len(data) >= 4 else None
    return length, [struct.unpack('>QIB', data[n : n + 13]) for n in range(8, len(data) - 15, 16)]


def test_the_first_descriptor_starts_at_the_requested_lba():
    unit = thin()
    unit.store.mapped = [
        (0, 8192, True),
        (8192, 4096, False),
        (12288, unit.store.size - 12288, True),
    ]
    assert status(unit, 4) == (4 + 3 * 16, [(4, 12, 0), (16, 8, 1), (24, BLOCKS - 24, 0)])
    assert status(unit, 20) == (4 + 2 * 16, [(20, 4, 1), (24, BLOCKS - 24, 0)])


@pytest.mark.clause('SBC-3 5.4')
@pytest.mark.parametrize('allocation', [8, 24, 40, 1 << 20])
def test_the_length_of_the_lba_status_does_not_depend_on_the_allocation_length(allocation):
    unit = thin()
    unit.store.mapped = [(n << 9, 512, bool(n & 1)) for n in range(1000)]
    length, descriptors = status(unit, 0, allocation)
    assert length == 4 + 256 * 16
    assert descriptors == [(n, 1, 1 - n % 2) for n in range(min(256, (allocation - 8) // 16))]


@pytest.mark.parametrize('allocation', [0, 4, 8, 23])
def test_a_short_allocation_length_is_not_an_error(allocation):
    data = do(thin(), cdb_16(0x9E, 0, allocation, 0x12))
    assert len(data) == allocation


@pytest.mark.parametrize('lba', [BLOCKS, BLOCKS + 1, 1 << 63, (1 << 64) - 1])
def test_lba_status_beyond_the_end_is_refused(lba):
    assert sense_of(thin(), cdb_16(0x9E, lba, 24, 0x12)) == (5, 0x21, 0)


@pytest.mark.clause('SBC-3 5.4')
def test_a_fully_provisioned_unit_reports_each_lba_as_mapped():
    """Its file may be sparse all the same."""
    unit = make_unit()
    unit.store.mapped = [(0, unit.store.size, False)]
    assert status(unit, 4) == (4 + 16, [(4, BLOCKS - 4, 0)])


def test_a_partially_mapped_block_is_mapped():
    extents = [(0, 4096, False), (4096, 4096, True), (8192, 4096, False)]
    assert block_extents(extents, 4096) == [(0, 1, False), (1, 1, True), (2, 1, False)]
    shifted = [(0, 6000, False), (6000, 1000, True), (7000, 9384, False)]
    assert block_extents(shifted, 4096) == [(0, 1, False), (1, 1, True), (2, 2, False)]


def test_adjacent_extents_of_one_state_are_merged():
    assert block_extents([(0, 512, True), (512, 0, False), (512, 512, True)], 512) == [(0, 2, True)]


def test_an_extent_too_long_for_one_descriptor_is_divided():
    size = (1 << 32) + 5
    assert block_extents([(0, size * 512, False)], 512) == [
        (0, 0xFFFFFFFF, False),
        (0xFFFFFFFF, 6, False),
    ]
