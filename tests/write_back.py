"""Durable commands of several sessions to a disk that loses data when it is written back.

No command may be answered GOOD whose data is not on the medium. Plain module, so that it can also
run in the guest, which has no pytest.
"""

import struct

from copies import extended_copy, populate, token_of
from initiator import GOOD, pattern

SIZE = 4096
BLOCKS = SIZE // 512
COUNT = 400  # commands of all sessions: more than the medium of the wire tests has room for
FIRST = 64 * BLOCKS  # LBA of the first command
SOURCE = 16383 - BLOCKS  # LBA of the data that is copied
SYNCHRONIZE_CACHE = bytes([0x35]) + bytes(9)
FAILED = (4, 0x44, 0)


class Work(object):
    """One command of a session: cdb, out, and what must be on the medium if it is GOOD."""

    def __init__(self, cdb, out, lba, expected):
        self.cdb, self.out = cdb, out
        self.lba, self.expected = lba, expected
        self.command = None


def write(opcode, flags=0):
    """Makes commands with the layout of WRITE(16)."""

    def make(number, lba):
        data = pattern(number, SIZE)
        return Work(struct.pack('>BBQIBB', opcode, flags, lba, BLOCKS, 0, 0), data, lba, data)

    return make


def write_and_verify(number, lba):
    data = pattern(number, SIZE)
    return Work(struct.pack('>BBIBHB', 0x2E, 0, lba, 0, BLOCKS, 0), data, lba, data)


def compare_and_write(number, lba):
    data = pattern(number, SIZE)
    cdb = struct.pack('>BBQ3xBBB', 0x89, 8, lba, BLOCKS, 0, 0)
    return Work(cdb, bytes(SIZE) + data, lba, data)


def write_atomic(number, lba):
    data = pattern(number, SIZE)
    return Work(struct.pack('>BBQHHBB', 0x9C, 0, lba, 0, BLOCKS, 0, 0), data, lba, data)


def write_same(number, lba):
    block = pattern(number, 512)
    return Work(struct.pack('>BBQIBB', 0x93, 0, lba, BLOCKS, 0, 0), block, lba, block * BLOCKS)


def unmap_or_write(number, lba):
    """Every fourth command unmaps a block that was written before the start."""
    if number % 4:
        return write(0x8A)(number, lba)
    lba = number % 128 // 4 * BLOCKS
    data = struct.pack('>HH4xQI4x', 22, 16, lba, BLOCKS)
    return Work(struct.pack('>BB5xHB', 0x42, 0, len(data), 0), data, lba, bytes(SIZE))


def always(make):
    """For commands that do not depend on the LUN."""
    return lambda session, lun, naa: make


def copying(session, lun, naa):
    """Makes EXTENDED COPY commands from SOURCE, within the LUN with this NAA identifier."""

    def make(number, lba):
        cdb, body = extended_copy(naa, naa, BLOCKS, SOURCE, lba)
        body = b'\0\x18' + body[2:]  # no list identifier, since many are in progress
        return Work(cdb, body, lba, pattern(0, SIZE))

    return make


def using_token(session, lun, naa):
    """Makes WRITE USING TOKEN commands, of SOURCE."""
    populate(session, [(SOURCE, BLOCKS)], lun=lun).good()
    token = token_of(session, lun=lun)

    def make(number, lba):
        body = struct.pack('>QI4x', lba, BLOCKS)
        data = (
            struct.pack('>HB5xQ', 534 + len(body), 0, 0)
            + token
            + struct.pack('>6xH', len(body))
            + body
        )
        cdb = struct.pack('>BB4xIIBB', 0x83, 0x11, 100 + number, len(data), 0, 0)
        return Work(cdb, data, lba, pattern(0, SIZE))

    return make


WRITE_CACHE_OFF = 'write-cache = off'

#: kind -> (function of a session, a LUN and its NAA identifier that returns the function which makes
#: the commands; lines of the LUN). A command that is GOOD is durable, unless the kind is CACHED.
CACHED = 'SYNCHRONIZE CACHE'
KINDS = {
    'FUA': (always(write(0x8A, 8)), ()),
    'write-cache off': (always(write(0x8A)), (WRITE_CACHE_OFF,)),
    'WRITE AND VERIFY': (always(write_and_verify), ()),
    'COMPARE AND WRITE': (always(compare_and_write), ()),
    'WRITE ATOMIC': (always(write_atomic), ('atomic-writes = yes',)),
    'WRITE SAME': (always(write_same), (WRITE_CACHE_OFF,)),
    'UNMAP': (always(unmap_or_write), (WRITE_CACHE_OFF, 'thin = yes')),
    'EXTENDED COPY': (copying, (WRITE_CACHE_OFF,)),
    'WRITE USING TOKEN': (using_token, (WRITE_CACHE_OFF,)),
    CACHED: (always(write(0x8A)), ()),
}


def fill(file):
    """Writes what the commands read or unmap to the first and last blocks of a disk of 8 MiB."""
    file.seek(0)
    file.write(b'u' * (32 * SIZE))
    file.seek(SOURCE * 512)
    file.write(pattern(0, SIZE))


def run_all(sessions, make, lun=0, count=COUNT, first=FIRST):
    """Has every session's commands outstanding at the same time; returns [Work]."""
    done = []
    for number in range(count):
        session = sessions[number % len(sessions)]
        work = make(number, first + number * BLOCKS)
        work.command = session.submit(work.cdb, lun, out=work.out)
        done.append((session, work))
    for session, work in done:
        session.wait(work.command)
    return [work for _, work in done]


def flush_all(sessions, lun=0):
    """Has four flushes of every session outstanding at the same time; returns their statuses."""
    flushes = [
        (session, session.submit(SYNCHRONIZE_CACHE, lun)) for session in sessions for _ in range(4)
    ]
    return [session.wait(flush).status for session, flush in flushes]


def missing(read, works):
    """Returns the LBAs of commands that were answered GOOD and whose data is not on the medium.
    `read`(offset, length) returns what is on it."""
    return [
        work.lba
        for work in works
        if work.command.result.status == GOOD
        and read(work.lba * 512, len(work.expected)) != work.expected
    ]


def has_failed(sessions, lun=0):
    """True if the unit has failed in every session."""
    return all(session.run(SYNCHRONIZE_CACHE, lun).key == FAILED for session in sessions)
