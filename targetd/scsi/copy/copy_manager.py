"""Third-party copies that this nexus started at a unit, and what is told of them: 84h, the RECEIVE
COPY commands. Pure.

A copy has a name, its LIST IDENTIFIER (8 bits with LID1, 32 with LID4 and tokens, SPC-4), which are
two spaces. Its record lasts until the name is used again, or until RECEIVE COPY STATUS(LID1) has
told that all went well; a session that ends takes its records with it.
"""

import struct

from targetd.scsi import sense
from targetd.scsi.cdb import u32
from targetd.scsi.spc import answer

# The limits that VPD page 8Fh and RECEIVE COPY OPERATING PARAMETERS report, and that are obeyed.
# Lengths are bytes.
MAXIMUM_CSCDS = 64
MAXIMUM_SEGMENTS = 256
MAXIMUM_DESCRIPTOR_LIST = 32 * (MAXIMUM_CSCDS + MAXIMUM_SEGMENTS)
MAXIMUM_SEGMENT = 256 << 20
MAXIMUM_COPIES = 255

BLOCK_TO_BLOCK, VERIFY_CSCD, BLOCK_TO_BLOCK_OFFSET = 0x02, 0x07, 0x0A  # segment descriptors, SPC-4
IDENTIFICATION_CSCD = 0xE4  # CSCD descriptor, SPC-4
DESCRIPTOR_TYPES = (BLOCK_TO_BLOCK, VERIFY_CSCD, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION_CSCD)

# The same of tokens. 256 MiB is the most that Windows asks for, 64 MiB what it asks for by itself.
MAXIMUM_RANGES = 64
MAXIMUM_TRANSFER = 256 << 20  # bytes
OPTIMAL_TRANSFER = 64 << 20  # bytes
DEFAULT_TIMEOUT, MAXIMUM_TIMEOUT = 60, 600  # seconds without use, after which a token is forgotten

# ROD types, SPC-4 table 103: point in time copies, that a change of the data revokes; by default;
# of whatever kind; zeroes.
VULNERABLE, DEFAULT_POINT_IN_TIME, ANY_POINT_IN_TIME, BLOCK_ZERO = (
    0x00800001,
    0x00800000,
    0x0080FFFF,
    0xFFFF0001,
)
# that may be asked for: a VULNERABLE one is made
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
    segments: how many are done; sense: what ended it, fixed format, or b''; token: the ROD token
    that it made, or None; block_size: bytes, of the unit that was asked; stopped: set from another
    thread, the copy ends at its next step."""

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

    def __init__(self, service_action, list_identifier, block_size):
        self.service_action = service_action
        self.list_identifier = list_identifier
        self.block_size = block_size
        self.state = RUNNING
        self.transferred = self.segments = self.steps = 0
        self.sense = b''
        self.token = None
        self.stopped = False

    def moved(self, count):
        """So many bytes more have been copied."""
        self.transferred += count
        self.steps = self.steps + 1 & 0xFFFF

    def end(self, state, sense_data=b''):
        """It is over."""
        self.sense = sense_data
        self.state = state


class Writing(object):
    """A context manager: a copy writes these bytes of a unit. They stand in its `under_way`, so
    that tokens that are made for them meanwhile are not good; those that are there are revoked.
    Raises CheckCondition. Executor threads."""

    __slots__ = ('_unit', '_range')

    def __init__(self, unit, offset, length):
        self._unit = unit
        self._range = [offset, length]

    def __enter__(self):
        # before `watched` is looked at: one of two threads sees the other's change
        self._unit.copy_writes.append(self._range)
        try:
            self._unit.before_write(*self._range)
        except BaseException:
            self._unit.copy_writes.remove(self._range)
            raise
        return self

    def __exit__(self, *failure):
        self._unit.copy_writes.remove(self._range)


class Copies(object):
    """Of one unit and one nexus. Any thread: every step is one operation on the dict."""

    def __init__(self):
        self._named = {}  # (is LID1, list identifier) -> Copy

    def begin(self, copy):
        """Take the copy in; a finished one of that name goes. Raises CheckCondition while one of
        that name runs (05/00/16) and when too many run (05/55/03)."""
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

    def find(self, is_lid1, list_identifier, offset=2):
        """The Copy of that name. Raises CheckCondition 05/24/00 (offset: where the name stands in
        the CDB) if there is none."""
        copy = self._named.get((is_lid1, list_identifier))
        if copy is None:
            raise sense.invalid_field_in_cdb(offset)
        return copy

    def forget(self, copy):
        """Its initiator knows all about it."""
        key = copy.service_action == LID1, copy.list_identifier
        if self._named.get(key) is copy:
            self._named.pop(key, None)


def count_in_units(length):
    """(TRANSFER COUNT UNITS code, count) of so many bytes, in the smallest unit whose count fits 32
    bits."""
    for code, shift in enumerate(UNITS):
        if length >> shift <= 0xFFFFFFFF:
            break
    return code, length >> shift


# -- LID1 ------------------------------------------------------------------------------------------


def receive_status_lid1(unit, task):
    """RECEIVE COPY STATUS(LID1), SPC-4 6.25."""
    copy = unit.copies.find(True, task.cdb[2])
    state = {RUNNING: 0x00, DONE: 0x01}.get(copy.state, 0x02)
    code, count = count_in_units(copy.transferred)
    if copy.state == DONE:
        unit.copies.forget(copy)
    answer(task, struct.pack('>IBHBI', 8, state, copy.segments, code, count), u32(task.cdb, 10))


def receive_data_lid1(unit, task):
    """RECEIVE COPY DATA(LID1), SPC-4 6.21: no segment that is offered here holds data, so there are
    none."""
    copy = unit.copies.find(True, task.cdb[2])
    if copy.state == RUNNING:
        raise sense.invalid_field_in_cdb(2)
    answer(task, bytes(4), u32(task.cdb, 10))


def receive_operating_parameters(unit, task):
    """RECEIVE COPY OPERATING PARAMETERS, SPC-4 6.23. SNLID: a copy may do without a list
    identifier."""
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


def receive_failure_details(unit, task):
    """RECEIVE COPY FAILURE DETAILS(LID1), SPC-4 6.22: the sense data of a copy that failed; 0 bytes
    of one that did not."""
    copy = unit.copies.find(True, task.cdb[2])
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


def receive_status_lid4(unit, task):
    """RECEIVE COPY STATUS(LID4), SPC-4 6.24."""
    copy = unit.copies.find(False, u32(task.cdb, 2))
    answer(task, _status(copy, False), u32(task.cdb, 10))


def receive_data_lid4(unit, task):
    """RECEIVE COPY DATA(LID4), SPC-4 6.20: the status, and held data, which there are none of."""
    copy = unit.copies.find(False, u32(task.cdb, 2))
    answer(task, _status(copy, False, bytes(4)), u32(task.cdb, 10))


def receive_token_information(unit, task):
    """RECEIVE ROD TOKEN INFORMATION, SPC-4 6.28, SBC-3 5.22: counts in blocks; the token once
    POPULATE TOKEN is done."""
    copy = unit.copies.find(False, u32(task.cdb, 2))
    tokens = struct.pack('>I', 0)
    if copy.token is not None:
        tokens = struct.pack('>I2x', TOKEN_DESCRIPTOR_LENGTH) + copy.token
    answer(task, _status(copy, True, tokens), u32(task.cdb, 10))


def abort(unit, task):
    """COPY OPERATION ABORT, SPC-4 6.3: the copy ends at its next step, its own command with COPY
    ABORTED."""
    copy = unit.copies.find(False, u32(task.cdb, 2))
    copy.stopped = True
    task.run = done


def done(task):
    """run() of a command that has nothing left to do."""
    return None
