"""What a Windows host asks a disk when it arrives, in its order, and what the disk answers.

May import base, scsi and rehearsal.windows_session. Nothing is written; the tests that write are in scratch.
"""

import struct
from collections import OrderedDict

from targetd.rehearsal.windows_session import Lost
from targetd.scsi import sam, sense

UNIT_ATTENTION = 6
RETRIES = 8
LONGEST_VPD = 255
WALKED_LUNS = 256  # Windows has no more of a target
#: VPD pages that the class driver asks for if page 00h lists them.
PAGES = (0x83, 0x80, 0xB2, 0xB0, 0xB1)
BLOCKS_AT_ONCE = 512  # of a copy: 256 KiB


class Disk(object):
    """The answers of one LUN. lun: its number; field: the 8 bytes of the PDU as a number; pages: {VPD page:
    bytes}; modes: {page: (current, changeable)}; sectors: the first blocks; keys, holder: of persistent
    reservations, None if the command failed; groups: data of REPORT TARGET PORT GROUPS, or None; ready: ''
    or the sense of TEST UNIT READY in words; failures: [(command, why)]; slowest: (seconds, command)."""

    def __init__(self, lun, field):
        self.lun = lun
        self.field = field
        self.inquiry = b''
        self.pages = OrderedDict()
        self.capacity_10 = self.capacity_16 = b''
        self.modes = {}
        self.header = b''
        self.sectors = []
        self.keys = self.holder = self.groups = None
        self.ready = ''
        self.failures = []
        self.slowest = 0.0, ''

    @property
    def block_size(self):
        """Bytes of a logical block; 0 if unknown."""
        data = self.capacity_16[8:12] or self.capacity_10[4:8]
        return int.from_bytes(data, 'big')

    @property
    def blocks(self):
        """The number of logical blocks; 0 if unknown."""
        data = self.capacity_16[:8] or self.capacity_10[:4]
        return int.from_bytes(data, 'big') + 1 if data else 0


def lun_number(field):
    """The number of a LUN with this field of 8 bytes, or None if it has several levels."""
    first, rest = field >> 48, field & ((1 << 48) - 1)
    if rest or first >> 14 > 1:
        return None
    return first & (0x3FFF if first >> 14 else 0xFF)


class Asker(object):
    """Sends commands to one LUN, and repeats those that end with a unit attention, as Windows does."""

    def __init__(self, session, disk):
        self.session = session
        self.disk = disk

    def ask(self, what, cdb, read=0, out=b''):
        """The Reply; what: the command in words."""
        for _ in range(RETRIES):
            reply = self.session.run(cdb, self.disk.field, read, out)
            self.disk.slowest = max(self.disk.slowest, (reply.seconds, what))
            if not (reply.status == sam.CHECK_CONDITION and key_of(reply) == UNIT_ATTENTION):
                break
        return reply

    def data(self, what, cdb, read):
        """The data of a command that has to succeed, b'' if it does not."""
        reply = self.ask(what, cdb, read)
        if reply.status != sam.GOOD:
            self.disk.failures.append((what, outcome(reply)))
            return b''
        return reply.data


def key_of(reply):
    """The sense key of a Reply, 0 without sense data."""
    if len(reply.sense) < 3:
        return 0
    return reply.sense[1 if reply.sense[0] & 0x7F >= 0x72 else 2] & 0xF


def outcome(reply):
    """The status and sense of a Reply in words; '' for GOOD."""
    if reply.status == sam.GOOD:
        return ''
    if reply.status != sam.CHECK_CONDITION or len(reply.sense) < 4:
        names = {sam.BUSY: 'BUSY', sam.RESERVATION_CONFLICT: 'RESERVATION CONFLICT'}
        return names.get(reply.status, 'status %02Xh' % reply.status)
    if reply.sense[0] & 0x7F >= 0x72:
        code = reply.sense[1] & 0xF, reply.sense[2], reply.sense[3]
    else:
        code = (reply.sense[2] & 0xF,) + tuple(reply.sense[12:14])
    return sense.describe(*code)


def inquiry(page, length):
    """The CDB of INQUIRY. page: a VPD page, or None."""
    return struct.pack('>BBBHB', 0x12, 0 if page is None else 1, page or 0, length, 0)


def mode_sense(page, control=0):
    """The CDB of MODE SENSE(6). control: 1 for the changeable values."""
    return bytes((0x1A, 0, control << 6 | page, 0, 192, 0))


def list_luns(session):
    """[field of each LUN]. Raises Lost if REPORT LUNS fails."""
    found = []
    for length in (16, 8 + 8 * WALKED_LUNS):
        for _ in range(RETRIES):
            reply = session.run(struct.pack('>B5xIxx', 0xA0, length), 0, length)
            if reply.status == sam.GOOD or key_of(reply) != UNIT_ATTENTION:
                break
        if reply.status != sam.GOOD:
            raise Lost('REPORT LUNS fails: %s' % outcome(reply))
        count = (len(reply.data) - 8) // 8
        found = list(struct.unpack_from('>%dQ' % count, reply.data, 8))
    return found


def walk_disk(session, field):
    """The Disk of one LUN, asked in the order of Windows."""
    number = lun_number(field)
    disk = Disk(-1 if number is None else number, field)
    asker = Asker(session, disk)
    disk.inquiry = asker.data('INQUIRY', inquiry(None, 36), 36)
    if not disk.inquiry or disk.inquiry[0] != 0:
        return disk
    disk.inquiry = asker.data('INQUIRY', inquiry(None, 5 + disk.inquiry[4]), 5 + disk.inquiry[4])
    reply = asker.ask('INQUIRY, page 00h', inquiry(0, LONGEST_VPD), LONGEST_VPD)
    disk.pages[0] = reply.data if reply.status == sam.GOOD else b''
    for page in PAGES:
        if page in disk.pages[0][4:]:
            what = 'INQUIRY, page %02Xh' % page
            disk.pages[page] = asker.data(what, inquiry(page, LONGEST_VPD), LONGEST_VPD)
    reply = asker.ask('TEST UNIT READY', bytes(6))
    disk.ready = outcome(reply)
    if disk.ready:
        return disk
    _ask_medium(asker)
    _ask_reservations(asker)
    if disk.inquiry[5] & 0x30:
        cdb = struct.pack('>BB4xIxx', 0xA3, 0x0A, 4356)
        disk.groups = asker.data('REPORT TARGET PORT GROUPS', cdb, 4356)
    return disk


def _ask_medium(asker):
    disk = asker.disk
    disk.capacity_10 = asker.data('READ CAPACITY(10)', bytes((0x25,)) + bytes(9), 8)
    cdb = struct.pack('>BB8xIxx', 0x9E, 0x10, 32)
    disk.capacity_16 = asker.data('READ CAPACITY(16)', cdb, 32)
    for page in (0x1C, 0x08, 0x3F, 0x0A):
        what = 'MODE SENSE(6), page %02Xh' % page
        reply = asker.ask(what, mode_sense(page), 192)
        if reply.status != sam.GOOD or len(reply.data) < 4:
            if page in (0x08, 0x3F):
                disk.failures.append((what, outcome(reply) or 'too short'))
            continue
        disk.header = reply.data[:4]
        reply_2 = asker.ask(what + ', changeable', mode_sense(page, 1), 192)
        disk.modes[page] = _page_of(reply.data), _page_of(reply_2.data)
    asker.ask('SYNCHRONIZE CACHE(10)', bytes((0x35,)) + bytes(9))
    for block in range(2):
        if block < disk.blocks and disk.block_size:
            cdb = struct.pack('>BBIxHx', 0x28, 0, block, 1)
            disk.sectors.append(asker.data('READ(10)', cdb, disk.block_size))


def _page_of(data):
    """The mode page in the data of MODE SENSE(6)."""
    return data[4 + data[3] :] if len(data) > 4 else b''


def _ask_reservations(asker):
    disk = asker.disk
    for action, attribute in ((0, 'keys'), (1, 'holder')):
        reply = asker.ask('PERSISTENT RESERVE IN', struct.pack('>BB5xHx', 0x5E, action, 8192), 8192)
        setattr(disk, attribute, reply.data if reply.status == sam.GOOD else None)
        if reply.status != sam.GOOD:
            disk.failures.append(('PERSISTENT RESERVE IN', outcome(reply)))
