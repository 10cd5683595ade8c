"""The tests that change a disk, only when the user asks for them: copy and format traffic on an area that
the user names, and the reservations of the cluster validation.

May import base, scsi, rehearsal.windows_session and rehearsal.walk. A test returns [(what, why it failed)].
"""

import os
import struct

from targetd.rehearsal.walk import BLOCKS_AT_ONCE, Asker, outcome
from targetd.scsi import sam

KEY, OTHER_KEY = 0x7461726765746431, 0x7461726765746432
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, REGISTER_AND_IGNORE = 0, 1, 2, 3, 4, 6
REGISTRANTS_ONLY = 5  # Write Exclusive - Registrants Only


def write_area(session, disk, first, count):
    """Copy, format and trim traffic on these blocks, whose contents are lost."""
    asker, failed = Asker(session, disk), []

    def expect(what, cdb, read=0, out=b'', wanted=None):
        reply = asker.ask(what, cdb, read, out)
        if reply.status != sam.GOOD:
            failed.append((what, outcome(reply)))
        elif wanted is not None and reply.data != wanted:
            failed.append((what, 'the data is not what was written'))

    size = disk.block_size
    for start in range(first, first + count, BLOCKS_AT_ONCE):
        blocks = min(BLOCKS_AT_ONCE, first + count - start)
        data = os.urandom(4096) * (blocks * size // 4096 + 1)
        data = data[: blocks * size]
        place = struct.pack('>IxHx', start, blocks)
        expect('WRITE(10)', bytes((0x2A, 0)) + place, out=data)
        expect('VERIFY(10)', bytes((0x2F, 0)) + place)
        expect('READ(10)', bytes((0x28, 0)) + place, len(data), wanted=data)
        expect('WRITE(10) with FUA', bytes((0x2A, 8)) + place, out=data)
        if len(disk.pages.get(0xB2, b'')) > 5 and disk.pages[0xB2][5] & 0x80:
            ranges = struct.pack('>HH4xQI4x', 22, 16, start, blocks)
            expect('UNMAP', struct.pack('>B6xHx', 0x42, len(ranges)), out=ranges)
            expect('READ(10) after UNMAP', bytes((0x28, 0)) + place, len(data))
    expect('SYNCHRONIZE CACHE(10)', bytes((0x35,)) + bytes(9))
    return failed


def _reserve_out(action, key=0, other=0):
    kind = REGISTRANTS_ONLY if action in (RESERVE, RELEASE, PREEMPT) else 0
    return struct.pack('>BBBxxIx', 0x5F, action, kind, 24), struct.pack('>QQ8x', key, other)


def validate_reservations(one, two, disk):
    """The reservation tests of the cluster validation, with two sessions (nodes). The disk must have no
    registrations: a running cluster has some, and would be disturbed."""
    if disk.keys is None or disk.keys[8:]:
        return [('cluster validation', 'not tested: initiators have registered reservation keys')]
    nodes, failed = (Asker(one, disk), Asker(two, disk)), []

    def expect(what, node, action, status, key=0, other=0):
        cdb, out = _reserve_out(action, key, other)
        reply = nodes[node].ask(what, cdb, out=out)
        if reply.status != status:
            failed.append((what, outcome(reply) or 'it succeeds, and should not'))

    def read_back(what, node, wanted):
        reply = nodes[node].ask(what, struct.pack('>BB5xHx', 0x5E, 1, 24), 24)
        if reply.status != sam.GOOD or bool(reply.data[8:]) != wanted:
            failed.append((what, outcome(reply) or 'the reservation is not reported as it is'))

    conflict = sam.RESERVATION_CONFLICT
    try:
        expect('register node 1', 0, REGISTER_AND_IGNORE, sam.GOOD, 0, KEY)
        expect('register node 2', 1, REGISTER_AND_IGNORE, sam.GOOD, 0, OTHER_KEY)
        read_back('is a reservation present', 1, False)
        expect('reserve by node 1', 0, RESERVE, sam.GOOD, KEY)
        read_back('read the reservation from its owner', 0, True)
        read_back('read the reservation from the other node', 1, True)
        expect('reserve by node 2', 1, RESERVE, conflict, OTHER_KEY)
        expect('unregister node 2', 1, REGISTER_AND_IGNORE, sam.GOOD, 0, 0)
        nothing = nodes[1].ask('write by node 2', struct.pack('>B9x', 0x2A))
        if nothing.status != conflict:
            failed.append(('write by node 2', 'it does not end with RESERVATION CONFLICT'))
        expect('register node 2 again', 1, REGISTER_AND_IGNORE, sam.GOOD, 0, OTHER_KEY)
        expect('preempt by node 2', 1, PREEMPT, sam.GOOD, OTHER_KEY, KEY)
        expect('reserve by node 1 after it', 0, RESERVE, conflict, KEY)
        expect('release by node 2', 1, RELEASE, sam.GOOD, OTHER_KEY)
        read_back('is a reservation present after it', 0, False)
    finally:
        expect('clear', 1, CLEAR, sam.GOOD, OTHER_KEY)
    return failed
