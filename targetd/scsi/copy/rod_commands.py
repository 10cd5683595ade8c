"""Copying by token (ODX of Windows): POPULATE TOKEN, WRITE USING TOKEN. Pure.

The master owns the tokens, so a token from one session is valid in all others.
unit.services.rod_tokens asks the master and waits, so it is used in executor threads only. While a
unit has tokens, unit.watched contains their ranges, and revoke_tokens_before() wraps every command
that writes: a write that overlaps a watched range revokes the tokens first. WRITE USING TOKEN
checks at its end whether the token was valid throughout; if not, it fails, even if it has already
written data. IMMED is accepted, and the status is sent when the copy has ended.
"""

import struct
from typing import TYPE_CHECKING, Any, Optional, Tuple

from targetd.scsi.cdb import u32
from targetd.scsi.copy import copy_manager, rod_tokens
from targetd.scsi.copy.extended_copy import copy_bytes, run_copy
from targetd.scsi.sam import WOULD_BLOCK
from targetd.scsi.sense import (
    COPY_ABORTED,
    CheckCondition,
    CopyFailure,
    invalid_field_in_parameter_list,
    parameter_list_length_error,
)

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

#: Bytes; longer than the longest valid list, so that too many ranges are reported as such (05/26/08).
LONGEST_LIST = 536 + 4 * copy_manager.MAXIMUM_RANGES * rod_tokens.RANGE.size
ZERO_STEP = 64 << 20  # bytes zeroed by one call of the store

#: Commands whose admission sets task.offset and task.length to the range that they will write.
EXACT_RANGE = frozenset(
    (
        'sbc.write',
        'sbc.write_and_verify',
        'provisioning.write_same',
        'atomic_commands.compare_and_write',
        'atomic_commands.orwrite',
        'atomic_commands.write_atomic',
    )
)


def would_block(task: 'Task') -> Any:
    """run() of a command that always waits."""
    return WOULD_BLOCK


def written_range(unit: 'LogicalUnit', row: Any, task: 'Task') -> Optional[Tuple[int, int]]:
    """Returns (offset, length) of the bytes that an admitted command of this row may write; None if
    it writes nothing or revokes tokens itself."""
    if not row.writes or row.function == 'rod_commands.write_using_token':
        return None
    if row.function in EXACT_RANGE:
        return task.offset, task.length
    return 0, unit.blocks * unit.block_size


def revoke_tokens_before(unit: 'LogicalUnit', row: Any, task: 'Task') -> None:
    """Make an admitted command of this row revoke the tokens whose data it will change before it
    runs."""
    offset, length = written_range(unit, row, task) or (0, 0)
    if not rod_tokens.overlaps(unit.watched, offset, length):
        return
    run, run_blocking = task.run, task.run_blocking

    def run_guarded(task):
        unit.before_write(offset, length)
        result = run(task)
        return run_blocking(task) if result is WOULD_BLOCK else result

    task.run, task.run_blocking = would_block, run_guarded


def _parameter_list(task):
    data = bytes(task.data_out or b'')[: task.length]
    if len(data) < task.length:
        raise parameter_list_length_error()
    return data


def _expect_list(task, shortest):
    task.length = task.data_out_length = u32(task.cdb, 10)
    if task.length and not shortest <= task.length <= LONGEST_LIST:
        raise parameter_list_length_error()


def _start_copy(task):
    unit = task.unit
    copy = copy_manager.Copy(task.cdb[1] & 0x1F, u32(task.cdb, 6), unit.block_size)
    unit.copies.add_copy(copy)
    return copy


def populate_token(unit: 'LogicalUnit', task: 'Task') -> None:
    """POPULATE TOKEN, SBC-3 5.7. A list of 0 bytes is not an error and creates no token."""
    _expect_list(task, 16)
    task.run, task.run_blocking = (
        (_begin_populate, _run_populate) if task.length else (copy_manager.done, None)
    )


def _begin_populate(task):
    """Connection thread."""
    ranges, seconds = rod_tokens.parse_populate(_parameter_list(task), task.unit)
    task.private = ranges, seconds, _start_copy(task)
    return WOULD_BLOCK


def _run_populate(task):
    """Executor thread."""
    ranges, seconds, copy = task.private

    def work():
        copy.token = task.unit.services.rod_tokens.populate(ranges, seconds)
        copy.add_transferred(rod_tokens.total_length(ranges))

    return run_copy(task, copy, work)


def write_using_token(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE USING TOKEN, SBC-3 5.46."""
    _expect_list(task, 536)
    task.run, task.run_blocking = (
        (_begin_write, _run_write) if task.length else (copy_manager.done, None)
    )


def _begin_write(task):
    """Connection thread."""
    token, skip, ranges, delete_token = rod_tokens.parse_write(_parameter_list(task), task.unit)
    is_zero = rod_tokens.is_zero_token(token)
    task.private = token, skip, ranges, delete_token, is_zero, _start_copy(task)
    return WOULD_BLOCK


def _run_write(task):
    """Executor thread."""
    token, skip, ranges, delete_token, is_zero, copy = task.private
    if is_zero:
        return run_copy(task, copy, lambda: _write_zeroes(task, copy, ranges))
    return run_copy(task, copy, lambda: _write_from(task, copy, token, skip, ranges, delete_token))


def _write_zeroes(task, copy, ranges):
    unit = task.unit
    for start, length in ranges:
        for offset in range(start, start + length, ZERO_STEP):
            count = min(ZERO_STEP, start + length - offset)
            if _is_ended(task, copy):
                return
            try:
                with copy_manager.CopyWrite(unit, offset, count):
                    unit.store.write_zeroes(offset, count, unit.facts.unmap)
            except OSError as e:
                task.offset, task.length = offset, count
                raise unit.write_failure(e, task)
            copy.add_transferred(count)
    _make_durable(task, ranges)


def _write_from(task, copy, token, skip, ranges, delete_token):
    unit = task.unit
    with unit.services.rod_tokens.use(token, delete_token) as rod:
        if skip > rod_tokens.total_length(rod.ranges):
            raise invalid_field_in_parameter_list(8)
        found = rod_tokens.match_ranges(rod.ranges, skip, ranges)
        if sum(length for _, _, length in found) % unit.block_size:
            raise CheckCondition(COPY_ABORTED, 0x26, 0x0A, copy=CopyFailure(0))
        for source_offset, offset, length in found:
            copy_bytes(task, copy, rod.store, source_offset, unit, offset, length, 0)
            if _is_ended(task, copy):
                return
        _make_durable(task, ranges)
        rod.check()
    if copy.transferred < rod_tokens.total_length(ranges):
        copy.finish(copy_manager.DONE_IN_PART)


def _is_ended(task, copy):
    """Returns True if the task was aborted. Raises CheckCondition if the copy was aborted."""
    if copy.stopped:
        raise CheckCondition(COPY_ABORTED, 0x00, 0x00, copy=CopyFailure(0))
    return task.aborted


def _make_durable(task, ranges):
    unit = task.unit
    if unit.write_through and ranges:
        task.offset, task.length = ranges[0]
        try:
            unit.flush(0, unit.blocks * unit.block_size)
        except OSError as e:
            raise unit.write_failure(e, task)


def report_all_tokens(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT ALL ROD TOKENS, SPC-4 6.31: the management part of the tokens for data of this unit,
    without the secret."""
    task.run, task.run_blocking = would_block, _run_report
    task.length = 0


def _run_report(task):
    """Executor thread."""
    heads = b''.join(
        head[: rod_tokens.MANAGED_LENGTH] for head in task.unit.services.rod_tokens.tokens()
    )
    return (struct.pack('>I4x', 4 + len(heads)) + heads)[: u32(task.cdb, 10)]
