"""The block commands (SBC-3): capacity, read, write, verify, flush, start and stop. Pure: all I/O
is done by the store.

Admission functions work as described in spc. The functions for READ and WRITE contain every check
and every exception; hot.py has a shorter path for the common case and calls these functions for all
other cases. FUA on a READ changes nothing: there is only one cache, and its content is what will be
written to the medium.
"""

import functools
import struct
from typing import TYPE_CHECKING, Any, Callable, Optional

from targetd.scsi import alua, medium_errors, sense
from targetd.scsi.cdb import BLOCKS_AT, FUA, LBA_AT, extent, length, u16, u32
from targetd.scsi.medium_state import READABLE, STOPPED
from targetd.scsi.sam import UNFLUSHED, WOULD_BLOCK, Change
from targetd.scsi.spc import answer

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

CHUNK = 1 << 20  # bytes in memory at a time during VERIFY, WRITE SAME and similar commands
UNFLUSHED_BYTES = 8 << 20  # written data that may wait for the next flush of a unit
PRE_FETCH_MAXIMUM = 64 << 20  # bytes; a PRE-FETCH of more is GOOD with that much read


def would_block(task: 'Task') -> Any:
    """run() of a command that always waits for the store."""
    return WOULD_BLOCK


def good(task: 'Task') -> None:
    """run() of a command that has no work left."""
    return None


def read_errors(function: Callable[['Task'], Any]) -> Callable[['Task'], Any]:
    """Decorator for a run function: reports its OSErrors as read errors within task.offset,
    task.length."""

    @functools.wraps(function)
    def run(task):
        try:
            return function(task)
        except OSError as e:
            raise task.unit.read_failure(e, task)

    return run


def write_errors(function: Callable[['Task'], Any]) -> Callable[['Task'], Any]:
    """Decorator for a run function: reports its OSErrors as write errors; does nothing for an
    aborted task."""

    @functools.wraps(function)
    def run(task):
        if task.aborted:
            return None
        try:
            return function(task)
        except OSError as e:
            raise task.unit.write_failure(e, task)

    return run


# -- ranges and Data-Out ---------------------------------------------------------------------------


def set_range(
    unit: 'LogicalUnit', task: 'Task', lba: int, blocks: int, maximum: Optional[int] = None
) -> None:
    """Set task.offset and task.length (bytes). Raises CheckCondition if the blocks are beyond the
    end of the medium, or more than `maximum`."""
    size = length(task.cdb[0])
    if lba + blocks > unit.blocks:
        raise sense.lba_out_of_range(LBA_AT[size])
    if maximum is not None and blocks > maximum:
        raise sense.invalid_field_in_cdb(BLOCKS_AT[size])
    task.offset = lba * unit.block_size
    task.length = blocks * unit.block_size


#: Function of commands that write blocks -> position of the number of blocks in the CDB; None: the
#: usual position for the length of the CDB (cdb.extent).
BLOCKS_WRITTEN_AT = {
    'sbc.write': None,
    'sbc.write_and_verify': None,
    'atomic_commands.orwrite': None,
    'provisioning.write_same': None,
    'atomic_commands.compare_and_write': slice(13, 14),
    'atomic_commands.write_atomic': slice(12, 14),
}


def may_pass_write_protection(unit: 'LogicalUnit', row: Any, cdb: bytes) -> bool:
    """Returns True if a write-protected unit admits this command although its row writes.

    Such a command addresses no blocks, which is not an error (SBC-3 5.33), or blocks beyond the
    end, which its admission function reports. For other errors the write protection has precedence;
    the standard prescribes no order (SBC-3 4.12). UNMAP checks the protection itself when it has
    the list of blocks.
    """
    if row.function not in BLOCKS_WRITTEN_AT:
        return row.function == 'provisioning.unmap'
    _, lba, blocks = extent(cdb)
    field = BLOCKS_WRITTEN_AT[row.function]
    if field:
        blocks = int.from_bytes(cdb[field], 'big')
    return lba + blocks > unit.blocks or not blocks and row.function != 'provisioning.write_same'


def expect_blocks(unit: 'LogicalUnit', task: 'Task') -> None:
    """Ask for task.length bytes of Data-Out. If the EDTL is smaller, only the whole blocks within
    it are processed and the rest is residual (SAM-5). An EDTL that ends within a block is rejected
    before any data transfer."""
    task.data_out_length = task.length
    available = task.edtl if task.expects_write else 0
    if available < task.length:
        if available % unit.block_size:
            raise sense.invalid_field_in_information_unit()
        task.length = available


def expect_exactly(task: 'Task', count: int) -> None:
    """Ask for `count` bytes of Data-Out of a command that cannot be done in part."""
    task.data_out_length = count
    if (task.edtl if task.expects_write else 0) != count:
        raise sense.invalid_field_in_information_unit()


def data_out(task: 'Task') -> memoryview:
    """Returns task.length bytes of Data-Out. Raises CheckCondition if the initiator sent fewer."""
    data = memoryview(task.data_out if task.data_out is not None else b'')
    if len(data) < task.length:
        raise sense.invalid_field_in_information_unit()
    return data[: task.length]


# -- READ and WRITE --------------------------------------------------------------------------------


def read(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ(6) of SBC-2, READ(10), (12), (16) of SBC-3 5.11 to 5.13, all cases."""
    _, lba, blocks = extent(task.cdb)
    set_range(unit, task, lba, blocks, unit.maximum_blocks)
    if not blocks:
        task.run = good
        return
    task.run, task.run_blocking = run_read, run_read_blocking


def run_read(task: 'Task') -> Any:
    """Connection thread: returns the data if the store need not wait. An error is left to the
    executor, which repeats the read and examines the error."""
    try:
        data = task.unit.store.try_read(task.offset, task.length)
    except OSError:
        return WOULD_BLOCK
    return WOULD_BLOCK if data is None else data


def run_read_blocking(task: 'Task') -> Any:
    """Executor thread."""
    if task.aborted:
        return None
    try:
        return task.unit.store.read(task.offset, task.length)
    except OSError as e:
        raise medium_errors.read_again(task, e)


def write(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE(6) of SBC-2, WRITE(10), (12), (16) of SBC-3 5.33 to 5.35, all cases."""
    flags, lba, blocks = extent(task.cdb)
    set_range(unit, task, lba, blocks, unit.maximum_blocks)
    task.data_out_length = task.length
    task.length = min(task.length, task.edtl if task.expects_write else 0)
    store = unit.store
    task.durable = bool(flags & FUA) or unit.write_through
    if not task.length:
        task.run = good
    elif task.length % unit.block_size:
        task.run, task.run_blocking = would_block, run_write_in_part
    elif task.length > store.inline_write_limit or unit.hanging:
        task.run, task.run_blocking = would_block, run_write
    elif task.durable:
        task.run, task.run_blocking = inline_durable_write(unit), run_write
    else:
        task.run = run_write


@write_errors
def run_write(task: 'Task') -> None:
    """Connection or executor thread."""
    data = task.data_out
    if data is None or len(data) != task.length:
        data = data_out(task)
    task.unit.store.write(task.offset, data, task.durable)
    return None


def inline_durable_write(unit: 'LogicalUnit') -> Callable[['Task'], Any]:
    """run() of a durable write that is short enough for the connection's thread."""
    return run_write if unit.store.durable_is_free else run_write_unflushed


@write_errors
def run_write_unflushed(task: 'Task') -> Any:
    """Connection thread: a durable write into the cache of the store; the worker flushes it together
    with others. A batch that has enough data takes no more of it."""
    unit = task.unit
    if unit.unflushed > UNFLUSHED_BYTES:
        return WOULD_BLOCK
    data = task.data_out
    if data is None or len(data) != task.length:
        data = data_out(task)
    unit.store.write(task.offset, data, False)
    return UNFLUSHED


def run_join_flush(task: 'Task') -> Any:
    """Connection thread: SYNCHRONIZE CACHE ends with the next flush of the unit that begins."""
    return UNFLUSHED


@write_errors
def run_write_in_part(task: 'Task') -> None:
    """Executor thread: the EDTL ends within a block; the rest of this block keeps its data. Data
    beyond the EDTL is not transferred, everything else is as in any write (SAM-5). The reservation
    tests of libiscsi write 512 bytes to blocks of 4096 bytes this way."""
    unit, data = task.unit, bytes(data_out(task))
    kept = len(data) % unit.block_size
    with unit.store.locked_range(task.offset, len(data) - kept + unit.block_size, True) as medium:
        block = medium.read(task.offset + len(data) - kept, unit.block_size)
        medium.write(task.offset, data + bytes(block[kept:]), task.durable)
    return None


# -- VERIFY, WRITE AND VERIFY ----------------------------------------------------------------------

NO_COMPARE, COMPARE, _, COMPARE_ONE_BLOCK = range(4)  # BYTCHK, SBC-3 table 113


def verify(unit: 'LogicalUnit', task: 'Task') -> None:
    """VERIFY(10), (12), (16), SBC-3 5.29 to 5.31: read, and compare if BYTCHK requests it. Windows
    formats disks with BYTCHK 0."""
    flags, lba, blocks = extent(task.cdb)
    check = flags >> 1 & 3
    if check == 2:
        raise sense.invalid_field_in_cdb(1, 2)
    set_range(unit, task, lba, blocks, unit.maximum_blocks if check == COMPARE else None)
    task.private = check
    if check == COMPARE:
        expect_blocks(unit, task)
    elif check == COMPARE_ONE_BLOCK and blocks:
        expect_exactly(task, unit.block_size)
    task.run, task.run_blocking = (would_block, run_verify) if task.length else (good, None)


@read_errors
def run_verify(task: 'Task') -> None:
    """Executor thread."""
    unit, check = task.unit, task.private
    if check == COMPARE_ONE_BLOCK:
        block = bytes(task.data_out or b'')[: unit.block_size]
        if len(block) < unit.block_size:
            raise sense.invalid_field_in_information_unit()
        pattern = block * (CHUNK // unit.block_size)
        compare_medium(task, unit.store.read, lambda start, count: pattern[:count])
    elif check == COMPARE:
        data = data_out(task)
        with unit.store.locked_range(task.offset, task.length, False) as medium:
            compare_medium(task, medium.read, lambda start, count: data[start : start + count])
    else:
        compare_medium(task, unit.store.read, None)
    return None


def compare_medium(
    task: 'Task', read: Callable[[int, int], Any], expected: Optional[Callable[[int, int], Any]]
) -> None:
    """Read the range of the task in chunks and compare it with expected(start, count), or only read
    it if `expected` is None.

    Raises CheckCondition MISCOMPARE with the LBA of the first block that differs.
    """
    unit = task.unit
    for start in range(0, task.length, CHUNK):
        if task.aborted:
            return
        count = min(CHUNK, task.length - start)
        try:
            found = read(task.offset + start, count)
        except OSError:
            # where the bad block is looked for
            task.offset, task.length = task.offset + start, count
            raise
        if expected is not None:
            difference = first_difference(expected(start, count), found)
            if difference is not None:
                raise sense.miscompare((task.offset + start + difference) // unit.block_size)


def first_difference(one: Any, other: Any) -> Optional[int]:
    """Returns the index of the first byte in which two bytes-like objects of equal length differ,
    or None."""
    # Comparing memoryviews is a hundred times slower, because it compares byte by byte.
    one, other = bytes(one), bytes(other)
    if one == other:
        return None
    start, end = 0, len(one)  # the first difference is in start..end
    while end - start > 1:
        middle = (start + end) // 2
        if one[start:middle] != other[start:middle]:
            end = middle
        else:
            start = middle
    return start


def write_and_verify(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE AND VERIFY(10), (12), (16), SBC-3 5.37 to 5.39: a durable write, then a read."""
    flags, lba, blocks = extent(task.cdb)
    task.private = flags >> 1 & 3
    if task.private > COMPARE:
        raise sense.invalid_field_in_cdb(1, 2)
    set_range(unit, task, lba, blocks, unit.maximum_blocks)
    expect_blocks(unit, task)
    task.durable = True
    task.run, task.run_blocking = (
        (would_block, run_write_and_verify) if task.length else (good, None)
    )


def run_write_and_verify(task: 'Task') -> Any:
    """Executor thread."""
    run_write(task)
    return run_verify(task)


# -- caches ----------------------------------------------------------------------------------------


def synchronize_cache(unit: 'LogicalUnit', task: 'Task') -> None:
    """SYNCHRONIZE CACHE(10), (16), SBC-3 5.26, 5.27. The status is sent when the data is durable,
    also with IMMED, because that is what initiators rely on."""
    _, lba, blocks = extent(task.cdb)
    set_range(unit, task, lba, blocks or max(0, unit.blocks - lba))
    unit.refuse_if_failed()
    if unit.store.durable_is_free:
        task.run = good
    else:
        task.run, task.run_blocking = run_join_flush, run_flush


@write_errors
def run_flush(task: 'Task') -> None:
    """Executor thread."""
    task.unit.flush(task.offset, task.length)
    return None


def pre_fetch(unit: 'LogicalUnit', task: 'Task') -> None:
    """PRE-FETCH(10), (16), SBC-3 5.8, 5.9: read into the page cache. The status is GOOD, not
    CONDITION MET, because the data is not guaranteed to stay in the cache."""
    _, lba, blocks = extent(task.cdb)
    set_range(unit, task, lba, blocks or max(0, unit.blocks - lba))
    task.length = min(task.length, PRE_FETCH_MAXIMUM)
    task.run, task.run_blocking = would_block, run_pre_fetch


@read_errors
def run_pre_fetch(task: 'Task') -> None:
    """Executor thread."""
    compare_medium(task, task.unit.store.prefetch, None)
    return None


# -- capacity and defects --------------------------------------------------------------------------


def read_capacity_10(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ CAPACITY(10), SBC-3 5.15: FFFFFFFFh if the last LBA does not fit."""
    cdb = task.cdb
    if u32(cdb, 2) and not cdb[8] & 1:
        raise sense.invalid_field_in_cdb(2)
    answer(task, struct.pack('>II', min(max(0, unit.blocks - 1), 0xFFFFFFFF), unit.block_size), 8)


def read_capacity_16(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ CAPACITY(16), SBC-3 5.16: 32 bytes. Windows 2003 requests 12."""
    cdb, facts = task.cdb, unit.facts
    if any(cdb[2:10]) and not cdb[14] & 1:
        raise sense.invalid_field_in_cdb(2)
    provisioning = 0
    if facts.thin or facts.unmap:
        provisioning = 0x8000 | (0x4000 if facts.unmap and facts.zeroes_after_unmap else 0)
    data = struct.pack(
        '>QIBBH16x',
        max(0, unit.blocks - 1),
        unit.block_size,
        0,
        facts.physical_exponent & 0x0F,
        provisioning | facts.lowest_aligned_block & 0x3FFF,
    )
    answer(task, data, u32(cdb, 10))


def report_referrals(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT REFERRALS, SBC-3 5.23. There is one user data segment, so ONE_SEG changes nothing."""
    lba = int.from_bytes(task.cdb[2:10], 'big')
    if lba >= unit.blocks:
        raise sense.lba_out_of_range()
    answer(task, alua.referrals_data(unit.access, unit.blocks - 1), u32(task.cdb, 10))


def read_defect_data_10(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ DEFECT DATA(10), SBC-3 5.17: both lists exist and are empty, in the requested format."""
    asked = task.cdb[2] & 0x1F
    answer(task, struct.pack('>xBH', asked, 0), u16(task.cdb, 7))


def read_defect_data_12(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ DEFECT DATA(12), SBC-3 5.18."""
    asked = task.cdb[1] & 0x1F
    answer(task, struct.pack('>xBHI', asked, 0, 0), u32(task.cdb, 6))


# -- start, stop, eject ----------------------------------------------------------------------------

#: POWER CONDITION -> (ASC, ASCQ) that REQUEST SENSE then returns: none for START_VALID, ACTIVE and
#: LU_CONTROL; 'activated by command' for IDLE, STANDBY and their FORCE_ variants. The other values
#: are reserved or obsolete (SBC-3 5.25), so they are an error.
POWER_CONDITIONS = {
    0x0: None,
    0x1: None,
    0x7: None,
    0x2: (0x5E, 0x03),
    0xA: (0x5E, 0x03),
    0x3: (0x5E, 0x04),
    0xB: (0x5E, 0x04),
}


#: What POWER CONDITION does to a disk that spins down: ACTIVE, STANDBY and FORCE_STANDBY_0; the START bit
#: does it if POWER CONDITION is START_VALID.
SPINS = {0x1: 'up', 0x3: 'down', 0xB: 'down'}
SPINS_BY_START = {True: 'up', False: 'down'}


def start_stop_unit(unit: 'LogicalUnit', task: 'Task') -> None:
    """START STOP UNIT, SBC-3 5.25.

    A stop flushes first, also if the unit is write-protected since the last write; a unit that has
    failed refuses it. A stop without LOEJ only flushes: Windows stops its disks at shutdown, and a
    stopped unit would be stopped for all other initiators too. Power conditions have no effect on a
    virtual disk, but REQUEST SENSE reports the one that this nexus requested until it requests
    another one or accesses the medium. START ends a stop that the administrator ordered.

    With the fact spins_down the master also stops the disk if no other initiator uses it, for a stop and
    for STANDBY. The unit stays ready: the next access starts the disk, as it does after STANDBY, so that
    no initiator has to send START.
    """
    flags = task.cdb[4]
    if flags >> 4 not in POWER_CONDITIONS:
        raise sense.invalid_field_in_cdb(4, 7)
    unit.set_power(POWER_CONDITIONS[flags >> 4])
    load_eject, start = bool(flags & 0x02), bool(flags & 0x01)
    task.private = None
    if flags >> 4 == 0:  # for other values of POWER CONDITION, LOEJ and START are ignored
        if load_eject and not unit.facts.removable:
            raise sense.invalid_field_in_cdb(4, 1)
        if load_eject:
            task.private = Change('start-stop', {'action': 'load' if start else 'eject'})
        elif start and unit.medium == STOPPED:
            task.private = Change('start-stop', {'action': 'start'})
    if unit.facts.spins_down and task.private is None:
        action = SPINS.get(flags >> 4, SPINS_BY_START[start] if flags >> 4 == 0 else None)
        if action:
            immediate = bool(task.cdb[1] & 0x01)
            task.private = Change('spin', {'action': action, 'immediate': immediate})
    flushes = not flags & 0x04 and not start and unit.medium in READABLE
    if flushes:
        unit.refuse_if_failed()
    task.offset, task.length = 0, unit.blocks * unit.block_size
    task.run, task.run_blocking = (would_block, run_stop) if flushes else (run_change, None)


def run_stop(task: 'Task') -> Any:
    """Executor thread: flush, then return the change for the master, if there is one."""
    run_flush(task)
    return task.private


def run_change(task: 'Task') -> Any:
    """Returns the change for the master, or None."""
    return task.private


def prevent_allow(unit: 'LogicalUnit', task: 'Task') -> None:
    """PREVENT ALLOW MEDIUM REMOVAL, SBC-3 5.10. The state is per nexus, so the master keeps it."""
    task.private = Change('prevent', {'prevent': bool(task.cdb[4] & 3)})
    task.run = run_change
