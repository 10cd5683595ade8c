"""Logical block provisioning (SBC-3): UNMAP, WRITE SAME, GET LBA STATUS. Pure."""

import errno
import struct
from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

from targetd.scsi import sense, vpd
from targetd.scsi.cdb import BLOCKS_AT, extent, length, u16
from targetd.scsi.sbc import (
    CHUNK,
    expect_exactly,
    read_errors,
    set_range,
    would_block,
    write_errors,
)
from targetd.scsi.spc import answer

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

DESCRIPTOR = struct.Struct('>QI4x')
#: Descriptors of one GET LBA STATUS. The initiator asks again from where they end.
STATUS_DESCRIPTORS = 256
MAPPED, DEALLOCATED = 0, 1  # PROVISIONING STATUS, SBC-3 table 47


# -- UNMAP -----------------------------------------------------------------------------------------


def unmap(unit: 'LogicalUnit', task: 'Task') -> None:
    """UNMAP, SBC-3 5.28."""
    task.length = task.data_out_length = u16(task.cdb, 7)
    task.offset = 0
    task.run, task.run_blocking = (
        (would_block, run_unmap) if task.length else (lambda task: None, None)
    )


@write_errors
def run_unmap(task: 'Task') -> None:
    """Executor thread. The whole list is checked before the first block is unmapped."""
    unit = task.unit
    ranges = unmap_ranges(unit, bytes(task.data_out or b''), task.length)
    if ranges and unit.read_only:
        raise unit.write_protect_error()
    for lba, blocks in ranges:
        if task.aborted:
            return None
        try:
            unit.store.unmap(lba * unit.block_size, blocks * unit.block_size)
        except OSError as e:
            # UNMAP is a hint: a medium that does not support it keeps the data, which is allowed
            if e.errno != errno.EOPNOTSUPP:
                task.offset, task.length = lba * unit.block_size, blocks * unit.block_size
                raise
    if ranges and unit.write_through:
        unit.flush(0, unit.blocks * unit.block_size)
    return None


def unmap_ranges(unit: 'LogicalUnit', data: bytes, announced: int) -> List[Tuple[int, int]]:
    """Returns [(lba, blocks)] of an UNMAP parameter list without empty ranges, whose LBAs are not
    checked. announced: PARAMETER LIST LENGTH.

    Raises CheckCondition 05/1A/00, 05/26/00 (more than the block limits allow), 05/21/00.
    """
    if len(data) < announced or announced < 8:
        raise sense.parameter_list_length_error()
    count = min(u16(data, 2), announced - 8) // DESCRIPTOR.size
    facts = unit.facts
    if count > max(facts.maximum_unmap_descriptors, 1):
        raise sense.invalid_field_in_parameter_list(2)
    ranges, total = [], 0
    for n in range(count):
        lba, blocks = DESCRIPTOR.unpack_from(data, 8 + n * DESCRIPTOR.size)
        if blocks:
            if lba + blocks > unit.blocks:
                raise sense.lba_out_of_range(8)
            total += blocks
            ranges.append((lba, blocks))
    if total > max(min(facts.maximum_unmap_length // unit.block_size, vpd.MAXIMUM_UNMAP_BLOCKS), 1):
        raise sense.invalid_field_in_parameter_list(8)
    return ranges


# -- WRITE SAME ------------------------------------------------------------------------------------


def write_same(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE SAME(10), (16), SBC-3 5.43, 5.44. A length of 0 means up to the end of the medium,
    unless WSNZ forbids it."""
    flags, lba, blocks = extent(task.cdb)
    facts, size = unit.facts, length(task.cdb[0])
    no_data, unmaps = size == 16 and bool(flags & 0x01), bool(flags & 0x08)
    if unmaps and not facts.unmap:
        raise sense.invalid_field_in_cdb(1, 3)
    if not blocks and facts.write_same_zero_refused:
        raise sense.invalid_field_in_cdb(BLOCKS_AT[size])
    maximum = facts.maximum_write_same_length // unit.block_size or None
    set_range(unit, task, lba, blocks or max(0, unit.blocks - lba), maximum)
    task.durable = unit.write_through
    task.private = unmaps
    if not no_data:
        expect_exactly(task, unit.block_size)
    task.run, task.run_blocking = would_block, run_write_same


@write_errors
def run_write_same(task: 'Task') -> None:
    """Executor thread. Later reads return the block that was received, whatever is done here
    (SBC-3 5.43): blocks are unmapped only if the block is zeroes, which is what the store then
    reads. The test WriteSame10.UnmapUntilEnd of libiscsi expects otherwise; it is wrong."""
    unit = task.unit
    block = bytes(task.data_out or b'') if task.data_out_length else b'\0'
    if task.data_out_length and len(block) < unit.block_size:
        raise sense.invalid_field_in_information_unit()
    with unit.store.locked_range(task.offset, task.length, True) as medium:
        if not block.strip(b'\0'):
            for start in range(0, task.length, 64 * CHUNK):
                if task.aborted:
                    return None
                medium.write_zeroes(
                    task.offset + start, min(64 * CHUNK, task.length - start), task.private
                )
        else:
            pattern = memoryview(
                block[: unit.block_size] * (min(CHUNK, task.length) // unit.block_size or 1)
            )
            for start in range(0, task.length, len(pattern)):
                if task.aborted:
                    return None
                medium.write(task.offset + start, pattern[: task.length - start], False)
    if task.durable and task.length:
        unit.flush(task.offset, task.length)
    return None


# -- GET LBA STATUS --------------------------------------------------------------------------------


def get_lba_status(unit: 'LogicalUnit', task: 'Task') -> None:
    """GET LBA STATUS, SBC-3 5.4, from the extents of the store."""
    _, lba, allocation_length = extent(task.cdb)
    if lba >= unit.blocks:
        raise sense.lba_out_of_range()
    task.private = allocation_length
    set_range(unit, task, lba, unit.blocks - lba)
    task.run, task.run_blocking = would_block, run_get_lba_status


@read_errors
def run_get_lba_status(task: 'Task') -> Any:
    """Executor thread: returns the descriptors from the requested LBA on. Their number, and with it
    PARAMETER DATA LENGTH, does not depend on the allocation length (SPC-4). A fully provisioned unit
    reports each LBA as mapped (SBC-3 5.4), also where its file has a hole."""
    unit, allocation_length = task.unit, task.private
    if unit.facts.thin:
        extents = unit.store.extents(task.offset, task.length, 2 * STATUS_DESCRIPTORS + 1)
    else:
        extents = [(task.offset, task.length, True)]
    descriptors = b''.join(
        struct.pack('>QIB3x', lba, blocks, MAPPED if mapped else DEALLOCATED)
        for lba, blocks, mapped in block_extents(extents, unit.block_size)[:STATUS_DESCRIPTORS]
    )
    answer(task, struct.pack('>I4x', 4 + len(descriptors)) + descriptors, allocation_length)
    return task.private


def block_extents(
    extents: Sequence[Tuple[int, int, bool]], block_size: int
) -> List[Tuple[int, int, bool]]:
    """Returns [(lba, blocks, mapped)] for adjoining byte extents. A block is mapped if any of its
    bytes is mapped."""
    found: List[Tuple[int, int, bool]] = []
    for offset, count, mapped in extents:
        if not count:
            continue
        if mapped:
            first, end = offset // block_size, -(-(offset + count) // block_size)
        else:
            first, end = -(-offset // block_size), (offset + count) // block_size
        if found:
            first = max(first, found[-1][0] + found[-1][1])
        while end > first:
            blocks = min(end - first, 0xFFFFFFFF)
            if found and found[-1][2] == mapped and found[-1][1] + blocks <= 0xFFFFFFFF:
                found[-1] = (found[-1][0], found[-1][1] + blocks, mapped)
            else:
                found.append((first, blocks, mapped))
            first += blocks
    return found
