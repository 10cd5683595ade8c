"""SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-4 6.42, 6.27): self-tests, and the one
diagnostic page. Pure.

A short self-test reads the ends of the medium and its middle, an extended one all of it. The
results are in log page 10h, for every nexus. A background test continues in a thread of the unit
(unit.services.run_in_thread) after the command has ended.
"""

from typing import TYPE_CHECKING

from targetd.scsi import records, sense
from targetd.scsi.cdb import u16
from targetd.scsi.faults import VERIFY
from targetd.scsi.medium_errors import note_fault
from targetd.scsi.medium_state import READABLE
from targetd.scsi.sam import WOULD_BLOCK
from targetd.scsi.sense import HARDWARE_ERROR, MEDIUM_ERROR, CheckCondition
from targetd.scsi.spc import answer, parameter_list

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

# SELF-TEST CODE
BACKGROUND_SHORT, BACKGROUND_EXTENDED, ABORT, FOREGROUND_SHORT, FOREGROUND_EXTENDED = 1, 2, 4, 5, 6
PASSED, ABORTED, FAILED_SEGMENT = 0x0, 0x1, 0x7
CHUNK = 1 << 20
READ_SEGMENT = 1  # SELF-TEST NUMBER: what is tested is reading
HOUR = 3600 * 1000  # of unit.services.milliseconds()


class SelfTest(object):
    """A self-test that is running. `aborted` changes only from False to True."""

    __slots__ = ('code', 'aborted')

    def __init__(self, code: int) -> None:
        self.code = code
        self.aborted = False


def send_diagnostic(unit: 'LogicalUnit', task: 'Task') -> None:
    """SEND DIAGNOSTIC, SPC-4 6.42. SELFTEST 1 requests the default self-test: the short one in the
    foreground."""
    cdb = task.cdb
    code, self_test = cdb[1] >> 5, bool(cdb[1] & 0x04)
    task.length = task.data_out_length = u16(cdb, 3)
    if code and (self_test or task.length or code not in RUNS):
        task.data_out_length = 0
        raise sense.invalid_field_in_cdb(1, 7)
    if self_test and task.length:
        task.data_out_length = 0
        raise sense.invalid_field_in_cdb(3)
    task.private = code
    if self_test or code:
        RUNS[code or FOREGROUND_SHORT](unit, task)
    else:
        task.run = _run_page if task.length else _good


def _good(task):
    return None


def _would_block(task):
    return WOULD_BLOCK


# -- self-tests ------------------------------------------------------------------------------------


def _foreground(unit, task):
    task.run, task.run_blocking = _would_block, _run_foreground


def _run_foreground(task):
    """Executor thread."""
    test = SelfTest(task.private)
    if not _perform(task.unit, test, lambda: task.aborted):
        raise CheckCondition(HARDWARE_ERROR, 0x3E, 0x03)  # LOGICAL UNIT FAILED SELF-TEST
    return None


def _background(unit, task):
    if unit.self_test is not None:
        raise CheckCondition(sense.NOT_READY, 0x04, 0x09)  # SELF-TEST IN PROGRESS
    task.run = _start_background


def _start_background(task):
    unit = task.unit
    unit.self_test = SelfTest(task.private)
    _note(unit, unit.self_test.code, records.IN_PROGRESS)
    unit.services.run_in_thread(_run_background, unit)
    return None


def _run_background(unit):
    """Runs in a thread of the unit."""
    test = unit.self_test
    try:
        _perform(unit, test, lambda: test.aborted)
    finally:
        unit.self_test = None


def _abort(unit, task):
    if unit.self_test is None:
        raise sense.invalid_field_in_cdb(1, 7)
    unit.self_test.aborted = True
    task.run = _good


RUNS = {
    BACKGROUND_SHORT: _background,
    BACKGROUND_EXTENDED: _background,
    ABORT: _abort,
    FOREGROUND_SHORT: _foreground,
    FOREGROUND_EXTENDED: _foreground,
}


def _perform(unit, test, is_aborted):
    """Read the blocks that the test covers, and record the result. Returns False if the test
    failed."""
    offset = length = 0
    try:
        for offset, length in _pieces(
            unit, test.code in (BACKGROUND_EXTENDED, FOREGROUND_EXTENDED)
        ):
            if is_aborted():
                _note(unit, test.code, ABORTED)
                return True
            unit.store.read(offset, length)
    except OSError as e:
        note_fault(unit, VERIFY, e, offset, length, False)
        _note(
            unit, test.code, FAILED_SEGMENT, offset // unit.block_size, (MEDIUM_ERROR, 0x11, 0x00)
        )
        return False
    _note(unit, test.code, PASSED)
    return True


def _pieces(unit, whole):
    """Yields (offset, length) of the ranges that a self-test reads; none if the medium is not
    readable."""
    if unit.medium not in READABLE or not unit.blocks:
        return
    size = unit.blocks * unit.block_size
    if whole:
        for offset in range(0, size, CHUNK):
            yield offset, min(CHUNK, size - offset)
    else:
        for lba in (0, unit.blocks // 2, unit.blocks - 1):
            yield lba * unit.block_size, unit.block_size


def _note(unit, code, result, address=None, failure=(0, 0, 0)):
    hours = min(max(0, unit.services.milliseconds() - unit.services.started_at) // HOUR, 0xFFFF)
    number = READ_SEGMENT if result == FAILED_SEGMENT else 0
    unit.note(
        'self-test',
        {
            'code': code,
            'result': result,
            'number': number,
            'hours': hours,
            'address': address,
            'key': failure[0],
            'asc': failure[1],
            'ascq': failure[2],
            'by': [unit.nexus.initiator_port, unit.nexus.target_port],
        },
    )


# -- pages -----------------------------------------------------------------------------------------


def _run_page(task):
    """Only page 00h, supported diagnostic pages (SPC-4), is supported; it has no content."""
    data = parameter_list(task, task.length)
    if len(data) < 4:
        raise sense.parameter_list_length_error()
    if data[0]:
        raise sense.invalid_field_in_parameter_list(0)
    if u16(data, 2):
        raise sense.invalid_field_in_parameter_list(2)
    return None


def receive_diagnostic_results(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE DIAGNOSTIC RESULTS, SPC-4 6.27: the list of the one supported page."""
    if task.cdb[2]:
        raise sense.invalid_field_in_cdb(2)
    answer(task, b'\0\0\0\1\0', u16(task.cdb, 3))
