"""The commands of a tape drive (SSC-3), for a tape in a file (store.tape). Pure: all I/O is done by the
store.

Admission functions work as described in spc. A tape has one position, so its commands are executed one
after the other, in the order of their arrival: the unit is sequential (LogicalUnit.is_sequential). Each
runs in an executor thread. A write is durable after WRITE FILEMARKS without IMMED, also of 0 filemarks, or
with BUFFERED MODE 0; and a drive never has more than a limited amount that is not (store.tape).
"""

import errno
import functools
import struct
from typing import TYPE_CHECKING, Any, Callable

from targetd.scsi import errno_map, faults, medium_errors, sbc, sense, tape_modes
from targetd.scsi.cdb import u16, u32
from targetd.scsi.medium_state import EJECTED, FAILED, READABLE
from targetd.scsi.sam import Change
from targetd.scsi.sense import BLANK_CHECK, NO_SENSE, VOLUME_OVERFLOW, CheckCondition
from targetd.scsi.spc import answer

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

FILEMARK, EOM, ILI = 0x80, 0x40, 0x20  # in byte 2 of fixed format sense data, SSC-3
FILEMARK_DETECTED, END_OF_MEDIUM, BEGINNING_OF_MEDIUM, END_OF_DATA = 0x01, 0x02, 0x04, 0x05
# What store.tape reports instead of a block
BLOCK_FOUND, FILEMARK_FOUND = 1, 2
DATA_ENDS, TAPE_BEGINS = 'end of data', 'beginning'

LONGEST_BLOCK = tape_modes.LONGEST_BLOCK
FIXED, SILI = 0x01, 0x02
IMMEDIATE = 0x01
BLOCKS, FILEMARKS, _, TO_END_OF_DATA = range(4)  # CODE of SPACE
#: The early warning, if it is not configured: this part of the tape before its end.
EARLY_WARNING_PART = 50


def _u24(cdb: bytes, offset: int) -> int:
    return int.from_bytes(cdb[offset : offset + 3], 'big')


def loaded_tape(unit: 'LogicalUnit') -> Any:
    """A context manager that one thread at a time enters: the tape of the unit, with the position that it
    has had since it was loaded. Executor threads. Entering it raises OSError."""
    return unit.store.loaded((unit.services.started_at, unit.records['loads']))


def _command(is_write: bool) -> Callable[[Callable[..., Any]], Callable[['Task'], Any]]:
    """Decorator for function(tape, task): a run function for executor threads, which turns an OSError into
    sense data."""

    def decorate(function):
        @functools.wraps(function)
        def run(task):
            if task.aborted:
                return None
            unit = task.unit
            try:
                with loaded_tape(unit) as tape:
                    task.offset = tape.position.offset
                    try:
                        return function(tape, task)
                    finally:
                        tape.save_position()
            except OSError as e:
                raise _failure(unit, task, e, is_write)

        return run

    return decorate


def _failure(unit, task, error, is_write):
    task.length += unit.store.block_overhead  # of the fault; a tape has no LBA to report
    if is_write:
        return unit.write_failure(error, task)
    medium_errors.note_fault(unit, faults.READ, error, task.offset, task.length, False)
    return errno_map.read_failure(error)


def _run(task: 'Task', function: Callable[['Task'], Any]) -> None:
    task.run, task.run_blocking = sbc.would_block, function


def early_warning(unit: 'LogicalUnit') -> int:
    """The offset in the file from which the initiator is warned of the end of the tape."""
    size = unit.store.size
    return size - (unit.facts.early_warning or size // EARLY_WARNING_PART)


# -- READ and WRITE --------------------------------------------------------------------------------


def _set_transfer(unit: 'LogicalUnit', task: 'Task') -> int:
    """Set task.length, and task.private: the length of a block, 0 if they have different lengths. Returns
    the flags."""
    cdb = task.cdb
    flags, count = cdb[1], _u24(cdb, 2)
    fixed = tape_modes.block_length(unit.modes) if flags & FIXED else 0
    if flags & FIXED and not fixed:
        raise sense.invalid_field_in_cdb(1, 0)
    if count > LONGEST_BLOCK and not fixed:
        raise sense.invalid_field_in_cdb(2)
    task.length, task.private = count * (fixed or 1), fixed
    if task.length > (unit.facts.maximum_transfer_length or task.length):
        raise sense.invalid_field_in_cdb(2)
    return flags


def read(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ(6), SSC-3."""
    flags = _set_transfer(unit, task)
    if flags & FIXED and flags & SILI:
        raise sense.invalid_field_in_cdb(1, 1)
    if task.length:
        _run(task, _run_read_fixed if task.private else _run_read_variable)
    else:
        task.run, task.run_blocking = sbc.good, None


@_command(False)
def _run_read_variable(tape, task):
    kind, length, data = tape.read_object(task.length)
    if kind != BLOCK_FOUND:
        raise _no_block(tape, task, kind, task.length, None)
    too_long, block_length = length > task.length, tape_modes.block_length(task.unit.modes)
    is_silent = task.cdb[1] & SILI and not (too_long and block_length)
    if length == task.length or is_silent:
        return data
    raise CheckCondition(
        NO_SENSE, 0x00, 0x00, information=task.length - length, data=data, stream=ILI
    )


@_command(False)
def _run_read_fixed(tape, task):
    parts, wanted = [], task.length // task.private
    for done in range(wanted):
        try:
            kind, length, data = tape.read_object(task.private)
        except OSError as e:
            error = _failure(task.unit, task, e, False)
            error.information, error.data = wanted - done, b''.join(parts)
            raise error
        if kind != BLOCK_FOUND:
            raise _no_block(tape, task, kind, wanted - done, b''.join(parts))
        if length != task.private:
            raise CheckCondition(
                NO_SENSE, 0x00, 0x00, information=wanted - done, data=b''.join(parts), stream=ILI
            )
        parts.append(data)
    return b''.join(parts)


def _no_block(tape, task, kind, information, data):
    """The CheckCondition for what a READ found in place of a block."""
    if kind == FILEMARK_FOUND:
        return CheckCondition(
            NO_SENSE, 0x00, FILEMARK_DETECTED, information=information, data=data, stream=FILEMARK
        )
    return CheckCondition(BLANK_CHECK, 0x00, END_OF_DATA, information=information, data=data)


def write(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE(6), SSC-3."""
    _set_transfer(unit, task)
    sbc.expect_exactly(task, task.length)
    if task.length:
        _run(task, _run_write)
    else:
        task.run, task.run_blocking = sbc.good, None


@_command(True)
def _run_write(tape, task):
    unit, data = task.unit, sbc.data_out(task)
    size = task.private or len(data)
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    fitting = min(len(blocks), tape.room() // (size + tape.block_overhead))
    try:
        tape.write_blocks(blocks[:fitting])
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fitting = 0  # the file system is full: that is the end of the tape, too
    if tape.unflushed_bytes > tape.unflushed_limit or not tape_modes.is_buffered(unit.modes):
        unit.flush(0, tape.size)
    left = len(blocks) - fitting
    if left:
        raise CheckCondition(
            VOLUME_OVERFLOW,
            0x00,
            END_OF_MEDIUM,
            information=left if task.private else len(data),
            stream=EOM,
        )
    _warn_early(tape, unit)


def _warn_early(tape, unit):
    """Raises CheckCondition if the position is behind the early warning; everything was written."""
    if tape.position.offset >= early_warning(unit):
        raise CheckCondition(NO_SENSE, 0x00, END_OF_MEDIUM, information=0, stream=EOM)


def write_filemarks(unit: 'LogicalUnit', task: 'Task') -> None:
    """WRITE FILEMARKS(6), SSC-3. Without IMMED, and also with a count of 0, everything is durable when the
    command ends."""
    task.private, task.length = _u24(task.cdb, 2), 0
    _run(task, _run_write_filemarks)


@_command(True)
def _run_write_filemarks(tape, task):
    try:
        tape.write_filemarks(task.private)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckCondition(
            VOLUME_OVERFLOW, 0x00, END_OF_MEDIUM, information=task.private, stream=EOM
        )
    if not task.cdb[1] & IMMEDIATE:
        task.unit.flush(0, tape.size)
    if task.private:
        _warn_early(tape, task.unit)


def erase(unit: 'LogicalUnit', task: 'Task') -> None:
    """ERASE(6), SSC-3: the data ends at the position. The space of what followed is released, which makes
    it unreadable, so LONG has no further effect. IMMED is not needed, it is quick."""
    task.length = 0
    _run(task, _run_erase)


@_command(True)
def _run_erase(tape, task):
    tape.erase()


# -- the position ----------------------------------------------------------------------------------


def rewind(unit: 'LogicalUnit', task: 'Task') -> None:
    """REWIND, SSC-3: what was written is flushed first, unless IMMED is set."""
    task.length = 0
    _run(task, _run_rewind)


@_command(True)
def _run_rewind(tape, task):
    if not task.cdb[1] & IMMEDIATE:
        _flush(tape, task.unit)
    tape.rewind()


def _flush(tape, unit):
    if tape.flushed != tape.end.number and not tape.read_only:
        unit.refuse_if_failed()
        unit.flush(0, tape.size)


def space(unit: 'LogicalUnit', task: 'Task') -> None:
    """SPACE(6) and (16), SSC-3, over blocks or filemarks, or to the end of the data."""
    cdb = task.cdb
    code, task.length = cdb[1] & 0x0F, 0
    if code not in (BLOCKS, FILEMARKS, TO_END_OF_DATA):
        raise sense.invalid_field_in_cdb(1, 3)
    field = cdb[2:5] if cdb[0] < 0x20 else cdb[4:12]
    task.private = int.from_bytes(field, 'big', signed=True)
    _run(task, _run_space)


@_command(False)
def _run_space(tape, task):
    code, count = task.cdb[1] & 0x0F, task.private
    if code == TO_END_OF_DATA:
        tape.to_end()
        return
    if not count:
        return
    passed, found = (tape.space_blocks if code == BLOCKS else tape.space_filemarks)(count)
    left = abs(count) - passed
    if found == DATA_ENDS:
        raise CheckCondition(BLANK_CHECK, 0x00, END_OF_DATA, information=left)
    if found == TAPE_BEGINS:
        raise CheckCondition(NO_SENSE, 0x00, BEGINNING_OF_MEDIUM, information=left, stream=EOM)
    if found is not None:
        raise CheckCondition(NO_SENSE, 0x00, FILEMARK_DETECTED, information=left, stream=FILEMARK)


def locate_10(unit: 'LogicalUnit', task: 'Task') -> None:
    """LOCATE(10), SSC-3, of the only partition."""
    cdb = task.cdb
    if cdb[1] & 0x02 and cdb[8]:
        raise sense.invalid_field_in_cdb(8)
    task.private, task.length = (BLOCKS, u32(cdb, 3)), 0
    _run(task, _run_locate)


def locate_16(unit: 'LogicalUnit', task: 'Task') -> None:
    """LOCATE(16), SSC-3: an object, a file, or the end of the data."""
    cdb = task.cdb
    kind = cdb[1] >> 3 & 7
    if kind not in (BLOCKS, FILEMARKS, TO_END_OF_DATA):
        raise sense.invalid_field_in_cdb(1, 5)
    if cdb[1] & 0x02 and cdb[3]:
        raise sense.invalid_field_in_cdb(3)
    task.private, task.length = (kind, int.from_bytes(cdb[4:12], 'big')), 0
    _run(task, _run_locate)


@_command(False)
def _run_locate(tape, task):
    kind, wanted = task.private
    if kind == TO_END_OF_DATA:
        tape.to_end()
    elif not (tape.locate if kind == BLOCKS else tape.locate_file)(wanted):
        raise CheckCondition(BLANK_CHECK, 0x00, END_OF_DATA)


SHORT_FORM, SHORT_FORM_VENDOR, LONG_FORM, EXTENDED_FORM = 0x00, 0x01, 0x06, 0x08
_BOP, _EOP = 0x80, 0x40


def read_position(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ POSITION, SSC-3, in the short, the long or the extended form."""
    form, task.length = task.cdb[1] & 0x1F, 0
    if form not in (SHORT_FORM, SHORT_FORM_VENDOR, LONG_FORM, EXTENDED_FORM):
        raise sense.invalid_field_in_cdb(1, 4)
    if u16(task.cdb, 7) and form != EXTENDED_FORM:
        raise sense.invalid_field_in_cdb(7)
    _run(task, _run_read_position)


@_command(False)
def _run_read_position(tape, task):
    form, at = task.cdb[1] & 0x1F, tape.position
    flags = (0 if at.number else _BOP) | (_EOP if at.offset >= early_warning(task.unit) else 0)
    if form == LONG_FORM:
        return struct.pack('>B3xIQQ8x', flags, 0, at.number, at.files)
    # what is not durable is the content of the buffer; it is known at the end of the data only
    objects = max(0, at.number - tape.flushed) if at == tape.end else 0
    octets = tape.unflushed_bytes if objects else 0
    if form == EXTENDED_FORM:
        data = struct.pack(
            '>BBHIQQQ', flags, 0, 28, min(objects, 0xFFFFFF), at.number, at.number - objects, octets
        )
        return data[: u16(task.cdb, 7)]
    most = 0xFFFFFFFF
    if at.number > most:
        return struct.pack('>B19x', flags | 0x04)  # LOLU: the numbers do not fit
    return struct.pack(
        '>BB2xIIII',
        flags,
        0,
        at.number,
        at.number - objects,
        min(objects, 0xFFFFFF),
        min(octets, most),
    )


# -- the tape and the drive ------------------------------------------------------------------------


def load_unload(unit: 'LogicalUnit', task: 'Task') -> None:
    """LOAD UNLOAD, SSC-3. Loading a tape that is loaded rewinds it."""
    flags = task.cdb[4]
    task.length, is_load = 0, bool(flags & 0x01)
    if is_load and flags & 0x04:  # EOT
        raise sense.invalid_field_in_cdb(4, 2)
    task.private = Change('start-stop', {'action': 'load' if is_load else 'eject'})
    if unit.medium == EJECTED:
        task.run, task.run_blocking = (sbc.run_change if is_load else sbc.good), None
        return
    not_ready = unit.not_ready()
    if not_ready:
        raise not_ready
    _run(task, _run_load_unload)


@_command(True)
def _run_load_unload(tape, task):
    if task.unit.medium != FAILED:
        _flush(tape, task.unit)
    tape.rewind()
    return None if task.cdb[4] & 0x01 else task.private


def read_block_limits(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ BLOCK LIMITS, SSC-3: blocks of 1 byte and more; with MLOI the greatest object number."""
    if task.cdb[1] & 0x01:
        answer(task, struct.pack('>12xQ', (1 << 64) - 2), 20)
        return
    answer(task, struct.pack('>IH', LONGEST_BLOCK, 1), 6)


def report_density_support(unit: 'LogicalUnit', task: 'Task') -> None:
    """REPORT DENSITY SUPPORT, SSC-3: one density, the default one; of the drive, or of the tape in it.
    Medium types are not reported."""
    if task.cdb[1] & 0x02:
        raise sense.invalid_field_in_cdb(1, 1)
    if task.cdb[1] & 0x01 and unit.medium not in READABLE:
        raise unit.not_ready() or sense.invalid_field_in_cdb(1, 0)
    descriptor = struct.pack(
        '>BBBBIHHI8s8s20s',
        tape_modes.DEFAULT_DENSITY,
        tape_modes.DEFAULT_DENSITY,
        0xA0,  # WRTOK, DEFLT
        0,
        0,
        0,
        1,
        min(unit.store.size // 1000000, 0xFFFFFFFF),
        b'TARGETD ',
        b'FILE    ',
        b'A tape in a file    ',
    )
    answer(task, struct.pack('>Hxx', len(descriptor) + 2) + descriptor, u16(task.cdb, 7))
