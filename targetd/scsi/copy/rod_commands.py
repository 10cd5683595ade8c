"""Copying by token, which Windows calls offloaded data transfer: POPULATE TOKEN, WRITE USING TOKEN.
Pure.

The tokens are the master's (unit.services.rod_tokens asks it, and waits: executor threads only), so that one that
was made in one session is good in every other. While a unit has tokens it has `watched` ranges, and
guard() stands before every command that writes: a write that touches a range revokes the tokens
first, and then is done. A WRITE USING TOKEN asks at its end whether the token was good all the
time; if not, it fails, whatever it has written. IMMED is taken, and the status comes when the copy
is done.
"""

import struct

from targetd.scsi.cdb import u32
from targetd.scsi.copy import copy_manager, rod_tokens
from targetd.scsi.copy.extended_copy import carry_out, move
from targetd.scsi.sam import WOULD_BLOCK
from targetd.scsi.sense import (
    COPY_ABORTED,
    CheckCondition,
    CopyFailure,
    invalid_field_in_parameter_list,
    parameter_list_length_error,
)

#: Bytes; more than is taken, so that a list of too many ranges is told so (05/26/08).
LONGEST_LIST = 536 + 4 * copy_manager.MAXIMUM_RANGES * rod_tokens.RANGE.size
ZERO_STEP = 64 << 20  # bytes zeroed by one call of the store

#: Commands whose admission says exactly, in task.offset and task.length, what they will write at
#: most.
EXACT = frozenset(
    (
        'sbc.write',
        'sbc.write_and_verify',
        'provisioning.write_same',
        'atomic_commands.compare_and_write',
        'atomic_commands.orwrite',
        'atomic_commands.write_atomic',
    )
)


def would_block(task):
    """run() of a command that always waits."""
    return WOULD_BLOCK


def written(unit, row, task):
    """(offset, length) of what an admitted command of this row may write; None: nothing, or it
    heeds tokens by itself."""
    if not row.writes or row.function == 'rod_commands.write_using_token':
        return None
    if row.function in EXACT:
        return task.offset, task.length
    return 0, unit.blocks * unit.block_size


def guard(unit, row, task):
    """Let an admitted command of this row revoke the tokens first whose data it will change."""
    offset, length = written(unit, row, task) or (0, 0)
    if not rod_tokens.touches(unit.watched, offset, length):
        return
    run, run_blocking = task.run, task.run_blocking

    def run_guarded(task):
        unit.before_write(offset, length)
        result = run(task)
        return run_blocking(task) if result is WOULD_BLOCK else result

    task.run, task.run_blocking = would_block, run_guarded


def _take_list(task):
    data = bytes(task.data_out or b'')[: task.length]
    if len(data) < task.length:
        raise parameter_list_length_error()
    return data


def _expect_list(task, shortest):
    task.length = task.data_out_length = u32(task.cdb, 10)
    if task.length and not shortest <= task.length <= LONGEST_LIST:
        raise parameter_list_length_error()


def _begin(task):
    unit = task.unit
    copy = copy_manager.Copy(task.cdb[1] & 0x1F, u32(task.cdb, 6), unit.block_size)
    unit.copies.begin(copy)
    return copy


def populate_token(unit, task):
    """POPULATE TOKEN, SBC-3 5.7. A list of no bytes is no error and makes no token."""
    _expect_list(task, 16)
    task.run, task.run_blocking = (
        (_begin_populate, _run_populate) if task.length else (copy_manager.done, None)
    )


def _begin_populate(task):
    """Connection thread."""
    ranges, seconds = rod_tokens.parse_populate(_take_list(task), task.unit)
    task.private = ranges, seconds, _begin(task)
    return WOULD_BLOCK


def _run_populate(task):
    """Executor thread."""
    ranges, seconds, copy = task.private

    def work():
        copy.token = task.unit.services.rod_tokens.populate(ranges, seconds)
        copy.moved(rod_tokens.total(ranges))

    return carry_out(task, copy, work)


def write_using_token(unit, task):
    """WRITE USING TOKEN, SBC-3 5.46."""
    _expect_list(task, 536)
    task.run, task.run_blocking = (
        (_begin_write, _run_write) if task.length else (copy_manager.done, None)
    )


def _begin_write(task):
    """Connection thread."""
    token, skip, ranges, is_last = rod_tokens.parse_write(_take_list(task), task.unit)
    is_zero = rod_tokens.is_zero(token)
    task.private = token, skip, ranges, is_last, is_zero, _begin(task)
    return WOULD_BLOCK


def _run_write(task):
    """Executor thread."""
    token, skip, ranges, is_last, is_zero, copy = task.private
    if is_zero:
        return carry_out(task, copy, lambda: _write_zeroes(task, copy, ranges))
    return carry_out(task, copy, lambda: _write_from(task, copy, token, skip, ranges, is_last))


def _write_zeroes(task, copy, ranges):
    unit = task.unit
    for start, length in ranges:
        for offset in range(start, start + length, ZERO_STEP):
            count = min(ZERO_STEP, start + length - offset)
            if _is_over(task, copy):
                return
            try:
                with copy_manager.Writing(unit, offset, count):
                    unit.store.write_zeroes(offset, count, unit.facts.unmap)
            except OSError as e:
                task.offset, task.length = offset, count
                raise unit.write_failure(e, task)
            copy.moved(count)
    _make_durable(task, ranges)


def _write_from(task, copy, token, skip, ranges, is_last):
    unit = task.unit
    with unit.services.rod_tokens.use(token, is_last) as rod:
        if skip > rod_tokens.total(rod.ranges):
            raise invalid_field_in_parameter_list(8)
        found = rod_tokens.pieces(rod.ranges, skip, ranges)
        if sum(length for _, _, length in found) % unit.block_size:
            raise CheckCondition(COPY_ABORTED, 0x26, 0x0A, copy=CopyFailure(0))
        for source_offset, offset, length in found:
            move(task, copy, rod.store, source_offset, unit, offset, length, 0)
            if _is_over(task, copy):
                return
        _make_durable(task, ranges)
        rod.check()
    if copy.transferred < rod_tokens.total(ranges):
        copy.end(copy_manager.DONE_IN_PART)


def _is_over(task, copy):
    """True if the task was aborted. Raises CheckCondition if the copy was."""
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


def report_all_tokens(unit, task):
    """REPORT ALL ROD TOKENS, SPC-4 6.31: the management part of the tokens that stand for data of
    this unit; not the secret."""
    task.run, task.run_blocking = would_block, _run_report
    task.length = 0


def _run_report(task):
    """Executor thread."""
    heads = b''.join(
        head[: rod_tokens.MANAGED_LENGTH] for head in task.unit.services.rod_tokens.tokens()
    )
    return (struct.pack('>I4x', 4 + len(heads)) + heads)[: u32(task.cdb, 10)]
