"""Commands that read, decide and write as one operation: COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.
Pure.

They are atomic with respect to each other in all sessions, because they run inside
store.exclusive_range(), a lock between all threads and processes. Plain writes do not take this
lock; an initiator that mixes both on the same blocks must synchronize them itself. With a store
that supports all-or-nothing writes (the setting atomic-writes) every command locks the range that
it reads or writes.
"""

from typing import TYPE_CHECKING

from targetd.scsi import sense
from targetd.scsi.cdb import FUA, extent
from targetd.scsi.sbc import (
    data_out,
    expect_blocks,
    expect_exactly,
    first_difference,
    good,
    set_range,
    would_block,
    write_errors,
)

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task


def compare_and_write(unit: 'LogicalUnit', task: 'Task') -> None:
    """COMPARE AND WRITE, SBC-3 5.2: Data-Out is the data to compare, followed by the data to write."""
    cdb = task.cdb
    lba, blocks = int.from_bytes(cdb[2:10], 'big'), cdb[13]
    if lba + blocks > unit.blocks:
        raise sense.lba_out_of_range()
    if blocks > unit.facts.maximum_compare_and_write_length // unit.block_size:
        raise sense.invalid_field_in_cdb(13)
    task.offset, task.length = lba * unit.block_size, 2 * blocks * unit.block_size
    task.data_out_length = task.length
    # 256 blocks or more appear as 0 with a larger EDTL
    if (task.edtl if task.expects_write else 0) != task.length:
        raise sense.invalid_field_in_cdb(13)
    task.durable = unit.write_through or bool(cdb[1] & FUA)
    task.run, task.run_blocking = (would_block, run_compare_and_write) if blocks else (good, None)


@write_errors
def run_compare_and_write(task: 'Task') -> None:
    """Executor thread. INFORMATION of a miscompare is the offset of the first byte that differs
    (SBC-3 5.2)."""
    store, data, half = task.unit.store, data_out(task), task.length // 2
    with store.exclusive_range(task.offset, half) as medium:
        if task.aborted:
            return None
        try:
            found = medium.read(task.offset, half)
        except OSError as e:
            task.length = half  # where the bad block is looked for
            raise task.unit.read_failure(e, task)
        difference = first_difference(data[:half], found)
        if difference is not None:
            raise sense.miscompare(difference)
        medium.write(task.offset, data[half:], task.durable)
    return None


def orwrite(unit: 'LogicalUnit', task: 'Task') -> None:
    """ORWRITE(16), SBC-3 5.5. EXPECTED ORWGENERATION is not supported, so the operation is always a
    logical OR."""
    flags, lba, blocks = extent(task.cdb)
    set_range(unit, task, lba, blocks, unit.maximum_blocks)
    expect_blocks(unit, task)
    task.durable = unit.write_through or bool(flags & FUA)
    task.run, task.run_blocking = (would_block, run_orwrite) if task.length else (good, None)


@write_errors
def run_orwrite(task: 'Task') -> None:
    """Executor thread."""
    store, data = task.unit.store, data_out(task)
    with store.exclusive_range(task.offset, task.length) as medium:
        if task.aborted:
            return None
        try:
            found = medium.read(task.offset, task.length)
        except OSError as e:
            raise task.unit.read_failure(e, task)
        both = int.from_bytes(found, 'little') | int.from_bytes(data, 'little')
        medium.write(task.offset, both.to_bytes(task.length, 'little'), task.durable)
    return None


def write_atomic(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE ATOMIC(16), SBC-4. It is supported only with a store that can write all or nothing
    (maximum_atomic_length). The data is durable when the command ends, so FUA and the write cache
    have no effect."""
    cdb = task.cdb
    lba, blocks = int.from_bytes(cdb[2:10], 'big'), int.from_bytes(cdb[12:14], 'big')
    if lba + blocks > unit.blocks:
        raise sense.lba_out_of_range()
    if blocks > unit.facts.maximum_atomic_length // unit.block_size:
        raise sense.invalid_field_in_cdb(12)
    task.offset, task.length = lba * unit.block_size, blocks * unit.block_size
    expect_exactly(task, task.length)
    task.run, task.run_blocking = (would_block, run_write_atomic) if blocks else (good, None)


@write_errors
def run_write_atomic(task: 'Task') -> None:
    """Executor thread."""
    data = data_out(task)
    with task.unit.store.atomic_write(task.offset, task.length) as medium:
        if not task.aborted:
            medium.write(task.offset, data)
    return None
