"""The real daemon on a device that loses data when it is written back: no command is answered GOOD
whose data is not on the medium, however many sessions use the LUN."""

import struct

import pytest
from daemon import TARGET, eventually
from initiator import GOOD, pattern
from test_wire_copy import populate, token_of
from test_wire_reach import extended_copy

pytestmark = pytest.mark.wire

SIZE = 4096
BLOCKS = SIZE // 512
COUNT = 400  # commands of all sessions: more than the medium has room for
SOURCE = 16383 - BLOCKS  # LBA of the data that is copied
NAA = '60014050000000000000000000000007'
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


def copy(number, lba):
    naa = bytes.fromhex(NAA)
    cdb, body = extended_copy(naa, naa, BLOCKS, SOURCE, lba)
    body = b'\0\x18' + body[2:]  # no list identifier, since many are in progress
    return Work(cdb, body, lba, pattern(0, SIZE))


WRITE_CACHE_OFF = 'write-cache = off'

#: kind -> (function that makes the commands, lines of the LUN)
KINDS = {
    'FUA': (write(0x8A, 8), ()),
    'write-cache off': (write(0x8A), (WRITE_CACHE_OFF,)),
    'WRITE AND VERIFY': (write_and_verify, ()),
    'COMPARE AND WRITE': (compare_and_write, ()),
    'WRITE ATOMIC': (write_atomic, ('atomic-writes = yes',)),
    'WRITE SAME': (write_same, (WRITE_CACHE_OFF,)),
    'UNMAP': (unmap_or_write, (WRITE_CACHE_OFF, 'thin = yes')),
    'EXTENDED COPY': (copy, (WRITE_CACHE_OFF,)),
}


def serve(daemon, losing, *lines):
    """Serves the device; its last and first blocks have data already."""
    with open(losing.device, 'r+b') as file:
        file.write(b'u' * (32 * SIZE))
        file.seek(SOURCE * 512)
        file.write(pattern(0, SIZE))
    daemon.text.server['stop-timeout'] = '1'
    rows = ['backing-store = %s' % losing.device, 'naa = %s' % NAA]
    daemon.target(TARGET, luns={0: rows + list(lines)})
    return daemon.start()


def connect(ready, daemon, count):
    return [
        ready(daemon, name='iqn.2026-11.test:i%d' % number, isid=b'\x80\0\0\0\0' + bytes([number]))
        for number in range(count)
    ]


def run_all(sessions, make):
    """Has every session's commands outstanding at the same time; returns [Work]."""
    done = []
    for number in range(COUNT):
        session = sessions[number % len(sessions)]
        work = make(number, 64 * BLOCKS + number * BLOCKS)
        work.command = session.submit(work.cdb, out=work.out)
        done.append((session, work))
    for session, work in done:
        session.wait(work.command)
    return [work for _, work in done]


def missing(losing, works):
    """Returns the commands that were answered GOOD and whose data is not on the medium."""
    return [
        work.lba
        for work in works
        if work.command.result.status == GOOD
        and losing.read(work.lba * 512, len(work.expected)) != work.expected
    ]


def finish(daemon, sessions, works=()):
    """The unit must have failed in every session; something was lost, or the test proves nothing."""
    assert not works or any(work.command.result.status != GOOD for work in works)
    eventually(
        lambda: all(session.run(SYNCHRONIZE_CACHE).key == FAILED for session in sessions),
        10,
        'the unit failed in every session',
    )
    daemon.logged('FAILED')
    daemon.stop()


@pytest.mark.parametrize('count', [1, 3, 8])
@pytest.mark.parametrize('kind', sorted(KINDS))
def test_what_is_good_is_on_the_medium(daemon, losing, ready, kind, count):
    make, lines = KINDS[kind]
    serve(daemon, losing, *lines)
    sessions = connect(ready, daemon, count)
    works = run_all(sessions, make)
    assert missing(losing, works) == []
    finish(daemon, sessions, works)


def using_token(token):
    """Makes WRITE USING TOKEN commands."""

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


@pytest.mark.parametrize('count', [1, 3, 8])
def test_an_offloaded_copy_is_good_only_if_it_is_on_the_medium(daemon, losing, ready, count):
    serve(daemon, losing, WRITE_CACHE_OFF)
    sessions = connect(ready, daemon, count)
    populate(sessions[0], [(SOURCE, BLOCKS)]).good()
    works = run_all(sessions, using_token(token_of(sessions[0])))
    assert missing(losing, works) == []
    finish(daemon, sessions, works)


@pytest.mark.parametrize('count', [1, 3, 8])
def test_no_flush_is_good_after_data_of_any_session_was_lost(daemon, losing, ready, count):
    serve(daemon, losing)
    sessions = connect(ready, daemon, count)
    works = run_all(sessions, write(0x8A))
    assert all(work.command.result.status == GOOD for work in works)
    flushes = [
        (session, session.submit(SYNCHRONIZE_CACHE)) for session in sessions for _ in range(4)
    ]
    assert not any(session.wait(flush).status == GOOD for session, flush in flushes)
    finish(daemon, sessions)
