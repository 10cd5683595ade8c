"""The block commands (SBC-3): capacity, read, write, verify, flush, start and stop. Pure: the store
does the work.

Admission functions as in spc. READ and WRITE stand here in full, with every check and every
exception; the everyday case of them is answered by hot.py, which comes here whenever anything is
out of the ordinary. FUA on a READ changes nothing: there is one cache, and what it holds is what
the medium will hold.
"""

import functools
import struct

from targetd.scsi import alua, sense
from targetd.scsi.cdb import BLOCKS_AT, FUA, LBA_AT, extent, length, u16, u32
from targetd.scsi.medium_state import READY, STOPPED
from targetd.scsi.sam import WOULD_BLOCK, Change
from targetd.scsi.spc import answer

CHUNK = 1 << 20  # bytes that VERIFY, WRITE SAME and their like hold at a time
PRE_FETCH_MAXIMUM = 64 << 20  # bytes; a PRE-FETCH of more is GOOD with that much read


def would_block(task):
    """run() of a command that always waits for the store."""
    return WOULD_BLOCK


def good(task):
    """run() of a command that has nothing left to do."""
    return None


def reading(function):
    """A run function whose OSErrors are read errors within task.offset, task.length."""

    @functools.wraps(function)
    def run(task):
        try:
            return function(task)
        except OSError as e:
            raise task.unit.read_failure(e, task)

    return run


def writing(function):
    """A run function whose OSErrors are write errors."""

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


def place(unit, task, lba, blocks, maximum=None):
    """Set task.offset and task.length (bytes). Raises CheckCondition if blocks are not there, or
    more than `maximum`."""
    size = length(task.cdb[0])
    if lba + blocks > unit.blocks:
        raise sense.lba_out_of_range(LBA_AT[size])
    if maximum is not None and blocks > maximum:
        raise sense.invalid_field_in_cdb(BLOCKS_AT[size])
    task.offset = lba * unit.block_size
    task.length = blocks * unit.block_size


#: Function of commands that write blocks -> where their number stands in the CDB; None: where its
#: length says (cdb.extent).
BLOCKS_WRITTEN_AT = {
    'sbc.write': None,
    'sbc.write_and_verify': None,
    'atomic_commands.orwrite': None,
    'provisioning.write_same': None,
    'atomic_commands.compare_and_write': slice(13, 14),
    'atomic_commands.write_atomic': slice(12, 14),
}


def writes_nothing(unit, row, cdb):
    """May a write-protected unit let this command pass, though its row writes? It names no blocks
    at all, which is no error (SBC-3 5.33), or blocks that are not there, which is wrong on any
    unit, and its admission function says so. Whatever else might be wrong with a command, the
    protection is told first: no order is prescribed (SBC-3 4.12). UNMAP looks itself, for the
    blocks in its list."""
    if row.function not in BLOCKS_WRITTEN_AT:
        return row.function == 'provisioning.unmap'
    _, lba, blocks = extent(cdb)
    field = BLOCKS_WRITTEN_AT[row.function]
    if field:
        blocks = int.from_bytes(cdb[field], 'big')
    return lba + blocks > unit.blocks or not blocks and row.function != 'provisioning.write_same'


def expect_blocks(unit, task):
    """Ask for task.length bytes of Data-Out. If the initiator's EDTL is less, only the whole blocks
    of it are done and the rest is residual (SAM-5); part of a block is refused before any data
    moves."""
    task.data_out_length = task.length
    available = task.edtl if task.expects_write else 0
    if available < task.length:
        if available % unit.block_size:
            raise sense.invalid_field_in_information_unit()
        task.length = available


def expect_exactly(task, count):
    """Ask for `count` bytes of Data-Out of a command that cannot be done in part."""
    task.data_out_length = count
    if (task.edtl if task.expects_write else 0) != count:
        raise sense.invalid_field_in_information_unit()


def data_out(task):
    """The Data-Out that task.length says, as a memoryview of bytes. Raises CheckCondition if the
    initiator sent less."""
    data = memoryview(task.data_out if task.data_out is not None else b'')
    if len(data) < task.length:
        raise sense.invalid_field_in_information_unit()
    return data[: task.length]


# -- READ and WRITE --------------------------------------------------------------------------------


def read(unit, task):
    """READ(6) of SBC-2, READ(10), (12), (16) of SBC-3 5.11 to 5.13, every case."""
    _, lba, blocks = extent(task.cdb)
    place(unit, task, lba, blocks, unit.maximum_blocks)
    if not blocks:
        task.run = good
        return
    task.run, task.run_blocking = run_read, run_read_blocking


def run_read(task):
    """Connection thread: the data if the store need not wait. A failure is met again, and looked
    into, by an executor."""
    try:
        data = task.unit.store.try_read(task.offset, task.length)
    except OSError:
        return WOULD_BLOCK
    return WOULD_BLOCK if data is None else data


@reading
def run_read_blocking(task):
    """Executor thread."""
    return None if task.aborted else task.unit.store.read(task.offset, task.length)


def write(unit, task):
    """WRITE(6) of SBC-2, WRITE(10), (12), (16) of SBC-3 5.33 to 5.35, every case."""
    flags, lba, blocks = extent(task.cdb)
    place(unit, task, lba, blocks, unit.maximum_blocks)
    task.data_out_length = task.length
    task.length = min(task.length, task.edtl if task.expects_write else 0)
    store = unit.store
    task.durable = bool(flags & FUA) or unit.write_through
    if not task.length:
        task.run = good
    elif task.length % unit.block_size:
        task.run, task.run_blocking = would_block, run_write_in_part
    elif (task.durable and not store.durable_is_free) or task.length > store.inline_write_limit:
        task.run, task.run_blocking = would_block, run_write
    else:
        task.run = run_write


@writing
def run_write(task):
    """Either thread."""
    data = task.data_out
    if data is None or len(data) != task.length:
        data = data_out(task)
    task.unit.store.write(task.offset, data, task.durable)
    return None


@writing
def run_write_in_part(task):
    """Executor thread: the EDTL ends within a block, of which the rest stays as it is. Data beyond
    the EDTL is not transferred, everything else is as in any write (SAM-5); libiscsi's reservation
    tests write 512 bytes to 4096-byte blocks so."""
    unit, data = task.unit, bytes(data_out(task))
    kept = len(data) % unit.block_size
    with unit.store.locked_range(task.offset, len(data) - kept + unit.block_size, True) as medium:
        block = medium.read(task.offset + len(data) - kept, unit.block_size)
        medium.write(task.offset, data + bytes(block[kept:]), task.durable)
    return None


# -- VERIFY, WRITE AND VERIFY ----------------------------------------------------------------------

NO_COMPARE, COMPARE, _, COMPARE_ONE_BLOCK = range(4)  # BYTCHK, SBC-3 table 113


def verify(unit, task):
    """VERIFY(10), (12), (16), SBC-3 5.29 to 5.31: read, and compare if BYTCHK says so. Windows
    formats disks with BYTCHK 0."""
    flags, lba, blocks = extent(task.cdb)
    check = flags >> 1 & 3
    if check == 2:
        raise sense.invalid_field_in_cdb(1, 2)
    place(unit, task, lba, blocks, unit.maximum_blocks if check == COMPARE else None)
    task.private = check
    if check == COMPARE:
        expect_blocks(unit, task)
    elif check == COMPARE_ONE_BLOCK and blocks:
        expect_exactly(task, unit.block_size)
    task.run, task.run_blocking = (would_block, run_verify) if task.length else (good, None)


@reading
def run_verify(task):
    """Executor thread."""
    unit, check = task.unit, task.private
    if check == COMPARE_ONE_BLOCK:
        block = bytes(task.data_out or b'')[: unit.block_size]
        if len(block) < unit.block_size:
            raise sense.invalid_field_in_information_unit()
        pattern = block * (CHUNK // unit.block_size)
        compare_medium(task, unit.store, lambda start, count: pattern[:count])
    elif check == COMPARE:
        data = data_out(task)
        with unit.store.locked_range(task.offset, task.length, False) as medium:
            compare_medium(task, medium, lambda start, count: data[start : start + count])
    else:
        compare_medium(task, unit.store, None)
    return None


def compare_medium(task, medium, expected):
    """Read the task's range of the store in chunks; `expected(start, count)`: what should be there,
    or None to read only.

    Raises CheckCondition MISCOMPARE with the LBA of the first block that differs.
    """
    unit = task.unit
    for start in range(0, task.length, CHUNK):
        if task.aborted:
            return
        count = min(CHUNK, task.length - start)
        found = medium.read(task.offset + start, count)
        if expected is not None:
            difference = first_difference(expected(start, count), found)
            if difference is not None:
                raise sense.miscompare((task.offset + start + difference) // unit.block_size)


def first_difference(one, other):
    """Index of the first byte in which two equally long bytes-likes differ, or None."""
    # memoryviews would be compared byte by byte, a hundred times slower
    one, other = bytes(one), bytes(other)
    if one == other:
        return None
    start, end = 0, len(one)  # the first difference lies in start..end
    while end - start > 1:
        middle = (start + end) // 2
        if one[start:middle] != other[start:middle]:
            end = middle
        else:
            start = middle
    return start


def write_and_verify(unit, task):
    """WRITE AND VERIFY(10), (12), (16), SBC-3 5.37 to 5.39: durable, then read back."""
    flags, lba, blocks = extent(task.cdb)
    task.private = flags >> 1 & 3
    if task.private > COMPARE:
        raise sense.invalid_field_in_cdb(1, 2)
    place(unit, task, lba, blocks, unit.maximum_blocks)
    expect_blocks(unit, task)
    task.durable = True
    task.run, task.run_blocking = (
        (would_block, run_write_and_verify) if task.length else (good, None)
    )


def run_write_and_verify(task):
    """Executor thread."""
    run_write(task)
    return run_verify(task)


# -- caches ----------------------------------------------------------------------------------------


def synchronize_cache(unit, task):
    """SYNCHRONIZE CACHE(10), (16), SBC-3 5.26, 5.27. With IMMED too it is answered when the data is
    safe, which is what every initiator that sends it hopes for."""
    _, lba, blocks = extent(task.cdb)
    place(unit, task, lba, blocks or max(0, unit.blocks - lba))
    unit.refuse_if_failed()
    if unit.store.durable_is_free:
        task.run = good
    else:
        task.run, task.run_blocking = would_block, run_flush


@writing
def run_flush(task):
    """Executor thread."""
    task.unit.flush(task.offset, task.length)
    return None


def pre_fetch(unit, task):
    """PRE-FETCH(10), (16), SBC-3 5.8, 5.9: into the page cache. GOOD and not CONDITION MET, because
    nobody promises that it stays there."""
    _, lba, blocks = extent(task.cdb)
    place(unit, task, lba, blocks or max(0, unit.blocks - lba))
    task.length = min(task.length, PRE_FETCH_MAXIMUM)
    task.private = NO_COMPARE
    task.run, task.run_blocking = would_block, run_verify


# -- capacity and defects --------------------------------------------------------------------------


def read_capacity_10(unit, task):
    """READ CAPACITY(10), SBC-3 5.15: FFFFFFFFh where the last LBA does not fit."""
    cdb = task.cdb
    if u32(cdb, 2) and not cdb[8] & 1:
        raise sense.invalid_field_in_cdb(2)
    answer(task, struct.pack('>II', min(max(0, unit.blocks - 1), 0xFFFFFFFF), unit.block_size), 8)


def read_capacity_16(unit, task):
    """READ CAPACITY(16), SBC-3 5.16: 32 bytes, of which Windows 2003 wants 12 and takes no more."""
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


def report_referrals(unit, task):
    """REPORT REFERRALS, SBC-3 5.23. There is one user data segment, so ONE_SEG changes nothing."""
    lba = int.from_bytes(task.cdb[2:10], 'big')
    if lba >= unit.blocks:
        raise sense.lba_out_of_range()
    answer(task, alua.referrals_data(unit.access, unit.blocks - 1), u32(task.cdb, 10))


def read_defect_data_10(unit, task):
    """READ DEFECT DATA(10), SBC-3 5.17: both lists are there and empty, in whatever format was
    asked for."""
    asked = task.cdb[2] & 0x1F
    answer(task, struct.pack('>xBH', asked, 0), u16(task.cdb, 7))


def read_defect_data_12(unit, task):
    """READ DEFECT DATA(12), SBC-3 5.18."""
    asked = task.cdb[1] & 0x1F
    answer(task, struct.pack('>xBHI', asked, 0, 0), u32(task.cdb, 6))


# -- start, stop, eject ----------------------------------------------------------------------------

#: POWER CONDITION -> (ASC, ASCQ) that REQUEST SENSE then has: START_VALID, ACTIVE and LU_CONTROL
#: none; IDLE, STANDBY and their FORCE_ variants 'activated by command'. The other values change
#: nothing, and are no error: libiscsi's tests send them.
POWER_CONDITIONS = {
    0x0: None,
    0x1: None,
    0x7: None,
    0x2: (0x5E, 0x03),
    0xA: (0x5E, 0x03),
    0x3: (0x5E, 0x04),
    0xB: (0x5E, 0x04),
}


def start_stop_unit(unit, task):
    """START STOP UNIT, SBC-3 5.25.

    Without LOEJ a stop only flushes: Windows stops its disks at shutdown, and a stopped unit would
    stop for the other initiators as well. Power conditions change nothing a virtual disk has, but
    REQUEST SENSE says what this nexus asked for until it asks for another or uses the medium. START
    ends a stop that the administrator ordered.
    """
    flags = task.cdb[4]
    if flags >> 4 in POWER_CONDITIONS:
        unit.set_power(POWER_CONDITIONS[flags >> 4])
    load_eject, start = bool(flags & 0x02), bool(flags & 0x01)
    task.private = None
    if flags >> 4 == 0:  # else POWER CONDITION rules, and LOEJ and START are ignored
        if load_eject and not unit.facts.removable:
            raise sense.invalid_field_in_cdb(4, 1)
        if load_eject:
            task.private = Change('start-stop', {'action': 'load' if start else 'eject'})
        elif start and unit.medium == STOPPED:
            task.private = Change('start-stop', {'action': 'start'})
    flushes = not flags & 0x04 and not start and unit.medium == READY and not unit.read_only
    task.offset, task.length = 0, unit.blocks * unit.block_size
    task.run, task.run_blocking = (would_block, run_stop) if flushes else (run_change, None)


def run_stop(task):
    """Executor thread: what is in the cache must not depend on what comes next."""
    run_flush(task)
    return task.private


def run_change(task):
    """What the master must do, or None."""
    return task.private


def prevent_allow(unit, task):
    """PREVENT ALLOW MEDIUM REMOVAL, SBC-3 5.10; per nexus, so the master keeps count."""
    task.private = Change('prevent', {'prevent': bool(task.cdb[4] & 3)})
    task.run = run_change
