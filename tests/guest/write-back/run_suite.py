"""In the guest: run_suite.py configure CONFIGURATION | tables | run

Each case (kind of device, kind of command, number of sessions) has a LUN on a device of 8 MiB, on its own
8 MiB of /dev/vdb. The devices fail in the middle of the blocks that are written.
"""

import mmap
import os
import sys
import time

sys.path.insert(0, '/src/tests')
from initiator import GOOD, LoginFailed, Session
from write_back import BLOCKS, CACHED, FIRST, KINDS, fill, flush_all, has_failed, missing, run_all

DISK = '/dev/vdb'
TARGET = 'iqn.2026-11.com.example:disks'
SECTORS = 16384  # of each device: 8 MiB
COUNT = 64  # commands of each case
GOOD_COUNT = 24  # the first commands, whose blocks do not fail
#: table lines of the part that fails: sectors, offset on DISK
DEVICES = {
    'error': '{sectors} error',
    'flakey': '{sectors} flakey %s {offset} 0 3600 1 error_writes' % DISK,
}
#: Commands that read first: they end with MEDIUM ERROR on dm-error, and no flush fails.
READ_FIRST = ('COMPARE AND WRITE', 'WRITE ATOMIC')


class Case(object):
    def __init__(self, lun, device, kind, count):
        self.lun, self.device, self.kind, self.count = lun, device, kind, count
        self.name = '%s%d' % (device, lun)
        self.offset = lun * SECTORS
        self.naa = '600140500000000000000000000001%02x' % lun

    def __str__(self):
        return '%s, %s, %d sessions' % (self.device, self.kind, self.count)

    def table(self):
        start, end = FIRST + GOOD_COUNT * BLOCKS, FIRST + COUNT * BLOCKS
        failing = DEVICES[self.device].format(sectors=end - start, offset=self.offset + start)
        yield '0 %d linear %s %d' % (start, DISK, self.offset)
        yield '%d %s' % (start, failing)
        yield '%d %d linear %s %d' % (end, SECTORS - end, DISK, self.offset + end)

    def lines(self):
        yield '[[lun %d]]' % self.lun
        yield 'backing-store = /dev/mapper/%s' % self.name
        yield 'naa = %s' % self.naa
        for line in KINDS[self.kind][1]:
            yield line

    def run(self, sessions):
        sessions = sessions[: self.count]
        commands_of = KINDS[self.kind][0]
        make = commands_of(sessions[0], self.lun, bytes.fromhex(self.naa))
        works = run_all(sessions, make, self.lun, COUNT)
        good = sum(work.command.result.status == GOOD for work in works)
        flushed = []
        if self.kind == CACHED:
            assert good == COUNT, '%s: %d writes to the cache are GOOD' % (self, good)
            flushed = flush_all(sessions, self.lun)
            assert GOOD not in flushed, '%s: a flush is GOOD' % self
        else:
            assert good < COUNT, '%s: all commands are GOOD' % self
            lost = missing(Medium(self.offset * 512, SECTORS * 512).read, works)
            assert not lost, '%s: GOOD, but not on the medium: LBA %s' % (self, lost)
        if self.device != 'error' or self.kind not in READ_FIRST:
            assert has_failed(sessions, self.lun), '%s: the unit has not failed' % self
        print('%-45s %d of %d GOOD' % (self, good, COUNT))
        sys.stdout.flush()


class Medium(object):
    """What is on DISK, past the page cache."""

    def __init__(self, offset, length):
        self.data = mmap.mmap(-1, length)
        descriptor = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
        assert os.preadv(descriptor, [self.data], offset) == length
        os.close(descriptor)

    def read(self, offset, length):
        return self.data[offset : offset + length]


def cases():
    for device in sorted(DEVICES):
        for kind in sorted(KINDS):
            for count in (1, 3, 8):
                yield device, kind, count


CASES = [Case(lun, *case) for lun, case in enumerate(cases())]


def configure(path):
    with open(path) as file:
        print(file.read())
    for case in CASES:
        print('  ' + '\n  '.join(case.lines()))


def tables():
    """Fills DISK; prints, for each device, its name and the lines of its table with \\n between."""
    with open(DISK, 'r+b') as disk:
        for case in CASES:
            fill(Part(disk, case.offset * 512))
            print(case.name, '\\n'.join(case.table()))
        disk.flush()
        os.fsync(disk.fileno())


class Part(object):
    """A file that begins at an offset of another one."""

    def __init__(self, file, offset):
        self.file, self.offset = file, offset
        self.write = file.write

    def seek(self, offset):
        self.file.seek(self.offset + offset)


def log_in(number, seconds=180):
    """A session, as soon as all LUNs are available: a slow guest may need longer to open them."""
    end = time.monotonic() + seconds
    isid = b'\x80\0\0\0\0' + bytes([number])
    while True:
        session = Session(
            ('127.0.0.1', 3260), 'iqn.2026-11.com.example:host%d' % number, isid, timeout=120
        )
        try:
            return session.login(TARGET)
        except LoginFailed:
            session.close()
            if time.monotonic() > end:
                raise
        time.sleep(1)


def run():
    sessions = [log_in(number) for number in range(8)]
    for case in CASES:
        for session in sessions[: case.count]:
            session.clear_attentions(case.lun)
        case.run(sessions)
    for session in sessions:
        session.close()


globals()[sys.argv[1]](*sys.argv[2:])
