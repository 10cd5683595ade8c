"""Third-party copies that this nexus started at a unit, and the commands that report about them:
84h, RECEIVE COPY. Pure.

A copy is named by its LIST IDENTIFIER (8 bits with LID1; 32 bits with LID4 and tokens, SPC-4); the
two name spaces are separate. Its record exists until the identifier is used again, or until RECEIVE
COPY STATUS(LID1) has reported success; the records of a session end with it.
"""

import struct
from typing import TYPE_CHECKING, Dict, Tuple

from targetd.scsi import sense
from targetd.scsi.cdb import u32
from targetd.scsi.spc import answer

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

# Limits that VPD page 8Fh and RECEIVE COPY OPERATING PARAMETERS report. Lengths are bytes.
MAXIMUM_CSCDS = 64
MAXIMUM_SEGMENTS = 256
MAXIMUM_DESCRIPTOR_LIST = 32 * (MAXIMUM_CSCDS + MAXIMUM_SEGMENTS)
MAXIMUM_SEGMENT = 256 << 20
MAXIMUM_COPIES = 255

BLOCK_TO_BLOCK, VERIFY_CSCD, BLOCK_TO_BLOCK_OFFSET = 0x02, 0x07, 0x0A  # segment descriptors, SPC-4
IDENTIFICATION_CSCD = 0xE4  # CSCD descriptor, SPC-4
DESCRIPTOR_TYPES = (BLOCK_TO_BLOCK, VERIFY_CSCD, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION_CSCD)

# Limits for tokens. Windows asks for at most 256 MiB, and for 64 MiB by default.
MAXIMUM_RANGES = 64
MAXIMUM_TRANSFER = 256 << 20  # bytes
OPTIMAL_TRANSFER = 64 << 20  # bytes
DEFAULT_TIMEOUT, MAXIMUM_TIMEOUT = 60, 600  # seconds without use after which a token expires

# ROD types, SPC-4 table 103: point in time copies that a change of the data revokes, of the default
# kind, of any kind; zeroes.
VULNERABLE, DEFAULT_POINT_IN_TIME, ANY_POINT_IN_TIME, BLOCK_ZERO = (
    0x00800001,
    0x00800000,
    0x0080FFFF,
    0xFFFF0001,
)
# types that may be requested: the token is VULNERABLE in each case
MADE_FOR = (DEFAULT_POINT_IN_TIME, VULNERABLE, ANY_POINT_IN_TIME)

LID1 = 0x00  # service action of EXTENDED COPY(LID1)

# COPY OPERATION STATUS, SPC-4 table 248
DONE, FAILED, DONE_IN_PART, RUNNING, TERMINATED = 0x01, 0x02, 0x03, 0x11, 0x60

IN_BLOCKS = 0xF1  # TRANSFER COUNT UNITS, SPC-4 table 249
UNITS = (0, 10, 20, 30, 40)  # its other codes: powers of two, in bytes
NO_ESTIMATE = 0xFFFFFFFF
TOKEN_DESCRIPTOR_LENGTH = 514


class Copy(object):
    """One copy. service_action: of the 83h command; list_identifier: int; transferred: bytes;
    segments: number of segments done; sense: of the error that ended it, fixed format, or b'';
    token: the ROD token that it created, or None; block_size: bytes, of the unit that received the
    command; stopped: set by another thread, ends the copy at its next step."""

    __slots__ = (
        'service_action',
        'list_identifier',
        'state',
        'transferred',
        'segments',
        'steps',
        'sense',
        'token',
        'block_size',
        'stopped',
    )

    def __init__(self, service_action: int, list_identifier: int, block_size: int) -> None:
        self.service_action = service_action
        self.list_identifier = list_identifier
        self.block_size = block_size
        self.state = RUNNING
        self.transferred = self.segments = self.steps = 0
        self.sense = b''
        self.token = None
        self.stopped = False

    def add_transferred(self, count: int) -> None:
        """Count bytes that have been copied."""
        self.transferred += count
        self.steps = self.steps + 1 & 0xFFFF

    def finish(self, state: int, sense_data: bytes = b'') -> None:
        """Record the final state."""
        self.sense = sense_data
        self.state = state


class CopyWrite(object):
    """Context manager: a copy writes this range of a unit. While it does, the range is in
    unit.copy_writes, so that tokens created for it meanwhile are not valid. Entering it revokes
    existing tokens of the range. Raises CheckCondition. Executor threads."""

    __slots__ = ('_unit', '_range')

    def __init__(self, unit: 'LogicalUnit', offset: int, length: int) -> None:
        self._unit = unit
        self._range = [offset, length]

    def __enter__(self):
        # before `watched` is read: so one of two concurrent threads sees the change of the other
        self._unit.copy_writes.append(self._range)
        try:
            self._unit.before_write(*self._range)
        except BaseException:
            self._unit.copy_writes.remove(self._range)
            raise
        return self

    def __exit__(self, *failure):
        self._unit.copy_writes.remove(self._range)


class CopyOperations(object):
    """The copies of one unit and one nexus. [any]: every step is one operation on the dict."""

    def __init__(self) -> None:
        self._named: Dict[Tuple[bool, int], Copy] = {}  # (is LID1, list identifier) -> Copy

    def add_copy(self, copy: Copy) -> None:
        """Add a copy; it replaces a finished one with the same name. Raises CheckCondition if one
        with this name is running (05/00/16) or too many are running (05/55/03)."""
        key = copy.service_action == LID1, copy.list_identifier
        before = self._named.get(key)
        if before is not None and before.state == RUNNING:
            raise sense.CheckCondition(sense.ILLEGAL_REQUEST, 0x00, 0x16)
        if before is None and len(self._named) >= MAXIMUM_COPIES:
            finished = [k for k, other in list(self._named.items()) if other.state != RUNNING]
            if not finished:
                raise sense.CheckCondition(sense.ILLEGAL_REQUEST, 0x55, 0x03)
            self._named.pop(finished[0], None)
        self._named[key] = copy

    def find_copy(self, is_lid1: bool, list_identifier: int, offset: int = 2) -> Copy:
        """Returns the Copy with this name. Raises CheckCondition 05/24/00 if there is none (offset:
        position of the name in the CDB)."""
        copy = self._named.get((is_lid1, list_identifier))
        if copy is None:
            raise sense.invalid_field_in_cdb(offset)
        return copy

    def forget_copy(self, copy: Copy) -> None:
        """Delete a copy whose result has been reported."""
        key = copy.service_action == LID1, copy.list_identifier
        if self._named.get(key) is copy:
            self._named.pop(key, None)


def count_in_units(length: int) -> Tuple[int, int]:
    """Returns (TRANSFER COUNT UNITS code, count) for a number of bytes, in the smallest unit whose
    count fits into 32 bits."""
    code = next(n for n, shift in enumerate(UNITS) if length >> shift <= 0xFFFFFFFF)
    return code, length >> UNITS[code]


# -- LID1 ------------------------------------------------------------------------------------------


def receive_status_lid1(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY STATUS(LID1), SPC-4 6.25."""
    copy = unit.copies.find_copy(True, task.cdb[2])
    state = {RUNNING: 0x00, DONE: 0x01}.get(copy.state, 0x02)
    code, count = count_in_units(copy.transferred)
    if copy.state == DONE:
        unit.copies.forget_copy(copy)
    answer(task, struct.pack('>IBHBI', 8, state, copy.segments, code, count), u32(task.cdb, 10))


def receive_data_lid1(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY DATA(LID1), SPC-4 6.21: always empty, because no supported segment type holds
    data."""
    copy = unit.copies.find_copy(True, task.cdb[2])
    if copy.state == RUNNING:
        raise sense.invalid_field_in_cdb(2)
    answer(task, bytes(4), u32(task.cdb, 10))


def receive_operating_parameters(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY OPERATING PARAMETERS, SPC-4 6.23. SNLID: the list identifier is optional."""
    data = struct.pack(
        '>B3xHHIIIII2xHBBBB3xB',
        0x01,
        MAXIMUM_CSCDS,
        MAXIMUM_SEGMENTS,
        MAXIMUM_DESCRIPTOR_LIST,
        MAXIMUM_SEGMENT,
        0,
        0,
        0,
        MAXIMUM_COPIES,
        MAXIMUM_COPIES,
        9,
        0,
        0,
        len(DESCRIPTOR_TYPES),
    ) + bytes(DESCRIPTOR_TYPES)
    answer(task, struct.pack('>I', len(data)) + data, u32(task.cdb, 10))


def receive_failure_details(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY FAILURE DETAILS(LID1), SPC-4 6.22: the sense data of a failed copy, 0 bytes for
    a successful one."""
    copy = unit.copies.find_copy(True, task.cdb[2])
    if copy.state == RUNNING:
        raise sense.invalid_field_in_cdb(2)
    data = bytes(4)
    if copy.state != DONE:
        data = struct.pack('>I52xBxH', 56 + len(copy.sense), 0x02, len(copy.sense)) + copy.sense
    answer(task, data, u32(task.cdb, 10))


# -- LID4 ------------------------------------------------------------------------------------------


def _status(copy, in_blocks, following=b''):
    """Parameter data of 84/05 and 84/07, SPC-4 6.24, 6.28: 32 bytes, the sense data, `following`."""
    if in_blocks:
        units, count = IN_BLOCKS, copy.transferred // copy.block_size
    else:
        units, count = 0, copy.transferred
    length = len(copy.sense)
    head = struct.pack(
        '>BBHIBBBBQH6x',
        copy.service_action,
        copy.state,
        copy.steps,
        NO_ESTIMATE,
        0,
        length,
        length,
        units,
        count,
        copy.segments,
    )
    data = head + copy.sense + following
    return struct.pack('>I', len(data)) + data


def receive_status_lid4(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY STATUS(LID4), SPC-4 6.24."""
    copy = unit.copies.find_copy(False, u32(task.cdb, 2))
    answer(task, _status(copy, False), u32(task.cdb, 10))


def receive_data_lid4(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE COPY DATA(LID4), SPC-4 6.20: the status, and no held data."""
    copy = unit.copies.find_copy(False, u32(task.cdb, 2))
    answer(task, _status(copy, False, bytes(4)), u32(task.cdb, 10))


def receive_token_information(unit: 'LogicalUnit', task: 'Task') -> None:
    """RECEIVE ROD TOKEN INFORMATION, SPC-4 6.28, SBC-3 5.22: counts in blocks; the token after
    POPULATE TOKEN has ended."""
    copy = unit.copies.find_copy(False, u32(task.cdb, 2))
    tokens = struct.pack('>I', 0)
    if copy.token is not None:
        tokens = struct.pack('>I2x', TOKEN_DESCRIPTOR_LENGTH) + copy.token
    answer(task, _status(copy, True, tokens), u32(task.cdb, 10))


def abort(unit: 'LogicalUnit', task: 'Task') -> None:
    """COPY OPERATION ABORT, SPC-4 6.3: the copy ends at its next step, and its command ends with
    COPY ABORTED."""
    copy = unit.copies.find_copy(False, u32(task.cdb, 2))
    copy.stopped = True
    task.run = done


def done(task: 'Task') -> None:
    """run() of a command that has no work left."""
    return None
