"""What a logical unit does with an OSError of its store: it counts the fault, finds the first block
that cannot be read, and makes the sense data. Pure.

Nothing here runs while the medium is healthy. A failed read is repeated in smaller pieces in the
executor thread. A disk may take seconds for each bad sector, so no piece is started once
RETRY_SECONDS have passed since the error; the sense data then names no block. At most one piece of
each size of PIECES and one block fail, so the number of slow reads is bounded too.
"""

from typing import TYPE_CHECKING, Any, List, Optional, Tuple

from targetd.scsi import errno_map, faults, opcodes, sense
from targetd.scsi.sam import UNFLUSHED, WOULD_BLOCK

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

#: Bytes that are read at a time while the first bad block is located; then single blocks.
PIECES = (1 << 16, 1 << 12)
RETRY_SECONDS = 5.0
#: Bytes; in a longer range no bad block is looked for. Longer than what one command reads at a time.
LONGEST_SEARCH = 64 << 20

#: Functions of commands that replace all blocks of their range without reading them.
REWRITES = frozenset(('sbc.write', 'sbc.write_and_verify', 'provisioning.write_same'))
WRITE_SAME_UNMAP = 0x08  # in byte 1 of the CDB


class FlushFailed(OSError):
    """An OSError of a flush; LogicalUnit.flush has counted it."""


class _BadBlock(Exception):
    """The block at this byte offset cannot be read."""

    def __init__(self, offset: int) -> None:
        super(_BadBlock, self).__init__(offset)
        self.offset = offset


class _GivenUp(Exception):
    """The task was aborted, or the time for retries is over."""


# -- reads -----------------------------------------------------------------------------------------


def read_again(task: 'Task', error: OSError) -> sense.CheckCondition:
    """The CheckCondition of a READ that failed with this error. If the first bad block is found, its
    LBA is in the INFORMATION field, and the data before it goes to the initiator (SBC-3 4.18, SPC-4
    4.5.2.4.2: VALID 1); the residual count covers the rest. Executor threads."""
    unit = task.unit
    error, bad, before = _locate(unit, task, error)
    failure = _read_failure(unit, task, error, bad)
    failure.data = b''.join(before) if bad is not None and before else None
    return failure


def read_failure(unit: 'LogicalUnit', error: OSError, task: 'Task') -> sense.CheckCondition:
    """The CheckCondition for an OSError of a read that returns no data, with the first block that
    cannot be read if it can be found. Executor threads."""
    error, bad, _ = _locate(unit, task, error)
    return _read_failure(unit, task, error, bad)


def _read_failure(unit, task, error, bad):
    kind = faults.VERIFY if task.cdb[0] in opcodes.VERIFIES else faults.READ
    if bad is None:
        note_fault(unit, kind, error, task.offset, task.length, False)
        return errno_map.read_failure(error)
    note_fault(unit, kind, error, bad, unit.block_size, True)
    return errno_map.read_failure(error, bad // unit.block_size)


def _locate(
    unit: 'LogicalUnit', task: 'Task', error: OSError
) -> Tuple[OSError, Optional[int], List[Any]]:
    """(the error to report, offset of the first bad block or None, the data before it in parts)."""
    before: List[Any] = []
    if error.errno not in errno_map.LOCALIZED or not 0 < task.length <= LONGEST_SEARCH:
        return error, None, before
    end = unit.services.monotonic_seconds() + RETRY_SECONDS

    def read_one(offset, length):
        if task.aborted or unit.services.monotonic_seconds() > end:
            raise _GivenUp()
        before.append(unit.store.read(offset, length))

    def read_pieces(offset, length):
        """Read a range that could not be read as a whole."""
        if length <= unit.block_size:
            raise _BadBlock(offset)
        size = next((size for size in PIECES if unit.block_size < size < length), unit.block_size)
        last = offset + length
        while offset < last:
            count = min(size - offset % size, last - offset)
            try:
                read_one(offset, count)
            except OSError as e:
                if e.errno not in errno_map.LOCALIZED:
                    raise
                read_pieces(offset, count)
            offset += count

    try:
        read_pieces(task.offset, task.length)
    except _BadBlock as bad:
        return error, bad.offset, before
    except OSError as e:  # the disk has failed in another way since
        return e, None, before
    except _GivenUp:
        pass
    return error, None, before  # every block can be read now, or the time is over


# -- writes ----------------------------------------------------------------------------------------


def write_failure(unit: 'LogicalUnit', error: OSError, task: 'Task') -> sense.CheckCondition:
    """The CheckCondition for an OSError of a write, an unmap or LogicalUnit.flush; names the block of a
    write of one block."""
    is_one_block = task.length == unit.block_size and not isinstance(error, FlushFailed)
    if not isinstance(error, FlushFailed):
        is_exact = is_one_block and error.errno in errno_map.LOCALIZED
        note_fault(unit, faults.WRITE, error, task.offset, task.length, is_exact)
    return errno_map.write_failure(error, task.offset // unit.block_size if is_one_block else None)


def note_rewrite(unit: 'LogicalUnit', row: opcodes.Row, task: 'Task') -> None:
    """Make an admitted command of this row that overwrites bad blocks flush what it wrote: if that
    succeeds the blocks are good again, and the unit's list no longer contains them."""
    is_unmap = row.function == 'provisioning.write_same' and task.cdb[1] & WRITE_SAME_UNMAP
    if row.function not in REWRITES or is_unmap or not task.length:
        return
    if not faults.overlaps(unit.records['bad_blocks'], task.offset, task.length):
        return
    run, run_blocking, offset = task.run, task.run_blocking, task.offset

    def run_and_flush(task):
        result = run(task)
        if result is WOULD_BLOCK:
            result = run_blocking(task)
        if not task.aborted:
            length = task.length - task.length % unit.block_size
            _make_durable(unit, task, offset, length)
            unit.note('rewritten', {'offset': offset, 'length': length})
        return None if result is UNFLUSHED else result  # the flush above covers the write

    task.run, task.run_blocking = _would_block, run_and_flush


def _would_block(task):
    return WOULD_BLOCK


def _make_durable(unit, task, offset, length):
    try:
        unit.flush(offset, length)
    except OSError as e:
        raise unit.write_failure(e, task)


# -- counting --------------------------------------------------------------------------------------


def note_fault(
    unit: 'LogicalUnit', kind: str, error: OSError, offset: int, length: int, is_exact: bool
) -> None:
    """Count a fault and distribute it. kind: one of faults.KINDS; is_exact: the bytes are the bad
    block. Any thread."""
    if not faults.is_counted(error):
        return
    unit.note(
        'error',
        {
            'kind': kind,
            'errno': error.errno or 0,
            'offset': offset,
            'length': length,
            'is_exact': is_exact,
            'by': unit.nexus.initiator_name,
            'at': unit.services.milliseconds(),
        },
    )
