"""The commands FORMAT UNIT and SANITIZE (SBC-3 5.3, 5.24). Pure. The master starts the operation,
see operations.py.

CRYPTOGRAPHIC ERASE is supported if the store encrypts, BLOCK ERASE if unmapped blocks are
guaranteed to read as zeroes.
"""

from typing import TYPE_CHECKING

from targetd.scsi import operations, sense
from targetd.scsi.cdb import u16, u32
from targetd.scsi.sam import Change
from targetd.scsi.spc import parameter_list

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

OVERWRITE, BLOCK_ERASE, CRYPTOGRAPHIC_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x03, 0x1F

IMMEDIATE = 0x80  # SANITIZE byte 1
AUSE = 0x20
HEADER = 4  # bytes before the initialization pattern of an OVERWRITE

LONG_LIST, FORMAT_DATA = 0x20, 0x10  # FORMAT UNIT byte 1
# parameter list header byte 1
FOV, STPF_TO_DPRY, PATTERN, FORMAT_IMMEDIATE = 0x80, 0x70, 0x08, 0x02


def _operation_change(task):
    return Change('operate', task.private)


# -- SANITIZE --------------------------------------------------------------------------------------


def _sanitize_operation(task, **words):
    flags = task.cdb[1]
    return dict(words, kind='sanitize', immediate=bool(flags & IMMEDIATE), ause=bool(flags & AUSE))


def overwrite(unit: 'LogicalUnit', task: 'Task') -> None:
    """SANITIZE, OVERWRITE, SBC-3 5.24."""
    task.length = task.data_out_length = u16(task.cdb, 7)
    if not HEADER < task.length <= HEADER + unit.block_size:
        task.data_out_length = 0
        raise sense.invalid_field_in_cdb(7)
    task.run = _run_overwrite


def _run_overwrite(task):
    """The standard requires 05/24/00 for errors in the parameter list too."""
    data = parameter_list(task, task.length)
    passes, length = data[0] & 0x1F, u16(data, 2)
    if not passes or data[0] & 0x60 or data[1]:
        raise sense.invalid_field_in_cdb(7)
    if not length or length > task.unit.block_size or length != len(data) - HEADER:
        raise sense.invalid_field_in_cdb(7)
    return Change(
        'operate',
        _sanitize_operation(
            task,
            method='pattern',
            pattern=data[HEADER:].hex(),
            passes=passes,
            invert=bool(data[0] & 0x80),
        ),
    )


def block_erase(unit: 'LogicalUnit', task: 'Task') -> None:
    """SANITIZE, BLOCK ERASE, SBC-3 5.24."""
    task.private = _sanitize_operation(task, method='erase', pattern='', passes=1)
    task.run = _operation_change


def cryptographic_erase(unit: 'LogicalUnit', task: 'Task') -> None:
    """SANITIZE, CRYPTOGRAPHIC ERASE, SBC-3 5.24. Blocks that were written read as random data
    afterwards, other blocks as zeroes."""
    task.private = _sanitize_operation(task, method=operations.NEW_KEY, pattern='', passes=1)
    task.run = _operation_change


def exit_failure_mode(unit: 'LogicalUnit', task: 'Task') -> None:
    """SANITIZE, EXIT FAILURE MODE, SBC-3 5.24: the master decides whether the failure mode may be
    left."""
    task.run = _exit_failure_mode


def _exit_failure_mode(task):
    return Change('exit-failure-mode', {})


# -- FORMAT UNIT -----------------------------------------------------------------------------------


def format_unit(unit: 'LogicalUnit', task: 'Task') -> None:
    """FORMAT UNIT, SBC-3 5.3. The CDB does not contain the length of the list, so the EDTL is used,
    up to the longest list without defects."""
    if task.cdb[1] & FORMAT_DATA:
        room = task.edtl if task.expects_write else 0
        task.length = task.data_out_length = min(room, 8 + 4 + unit.block_size)
        task.run = _run_format
    else:
        if task.cdb[1] & LONG_LIST:
            raise sense.invalid_field_in_cdb(1, 5)
        task.private = {
            'kind': 'format',
            'method': 'zeroes',
            'pattern': '',
            'passes': 1,
            'immediate': False,
        }
        task.run = _operation_change


def _run_format(task):
    long_list = bool(task.cdb[1] & LONG_LIST)
    data = parameter_list(task, task.length)
    size = 8 if long_list else 4
    if len(data) < size:
        raise sense.parameter_list_length_error()
    flags = data[1]
    if data[0] & 0x07 or long_list and data[3]:  # no protection information is kept
        raise sense.invalid_field_in_parameter_list(0 if data[0] & 0x07 else 3)
    if not flags & FOV and flags & (STPF_TO_DPRY | PATTERN):
        raise sense.invalid_field_in_parameter_list(
            1, (flags & (STPF_TO_DPRY | PATTERN)).bit_length() - 1
        )
    # A defect list is not accepted: the medium has no defects to manage.
    if u32(data, 4) if long_list else u16(data, 2):
        raise sense.invalid_field_in_parameter_list(4 if long_list else 2)
    pattern = _initialization_pattern(data, size, task.unit.block_size) if flags & PATTERN else b''
    if not pattern.strip(b'\0'):
        pattern = b''
    return Change(
        'operate',
        {
            'kind': 'format',
            'method': 'pattern' if pattern else 'zeroes',
            'pattern': pattern.hex(),
            'passes': 1,
            'immediate': bool(flags & FORMAT_IMMEDIATE),
        },
    )


def _initialization_pattern(data, start, block_size):
    """Returns the pattern of an initialization pattern descriptor, SBC-3 5.3; b'' if the target may
    choose."""
    if len(data) < start + 4:
        raise sense.parameter_list_length_error()
    kind, length = data[start + 1], u16(data, start + 2)
    if data[start]:  # IP MODIFIER is obsolete; SI asks for more than is done
        raise sense.invalid_field_in_parameter_list(start)
    if kind == 0x00:
        if length:
            raise sense.invalid_field_in_parameter_list(start + 2)
        return b''
    if kind != 0x01:
        raise sense.invalid_field_in_parameter_list(start + 1)
    if not 0 < length <= block_size:
        raise sense.invalid_field_in_parameter_list(start + 2)
    if len(data) < start + 4 + length:
        raise sense.parameter_list_length_error()
    return data[start + 4 : start + 4 + length]
