"""In the guest: run_suite.py configure CONFIGURATION | tables | run some|all

Each disk is 8 MiB of /dev/vdb. A range of its blocks belongs to each case, a kind of durable command
and a number of sessions; the last blocks of the range fail from some moment on. A flush of the disk
fails then too, because the device mapper passes it to the failing blocks.
"""

import mmap
import os
import subprocess
import sys
import threading
import time

sys.path.insert(0, '/src/tests')
from initiator import GOOD, LoginFailed, Session
from write_back import BLOCKS, CACHED, FIRST, KINDS, fill, flush_all, has_failed, missing, run_all

BELOW = '/dev/vdb'
TARGET = 'iqn.2026-11.com.example:disks'
SECTORS = 16384  # of each disk: 8 MiB
COUNT = 64  # commands of each case
FIRST_COUNT = 24  # of them are sent while nothing fails
COUNT_IN_TIME = 8  # of them are on their way when blocks begin to fail
GOOD_COUNT = 28  # the blocks of so many commands do not fail
SESSIONS = (1, 3, 8)
#: Commands that read first: on dm-error they end with MEDIUM ERROR and write nothing.
READ_FIRST = ('COMPARE AND WRITE', 'WRITE ATOMIC')


class Case(object):
    """A kind with a number of sessions, and its range of a disk that begins at `offset` of BELOW."""

    def __init__(self, kind, sessions, number, offset):
        self.kind, self.sessions = kind, sessions
        self.first = FIRST + number * COUNT * BLOCKS
        self.bad = self.first + GOOD_COUNT * BLOCKS
        self.end = self.first + COUNT * BLOCKS
        is_error = sessions == 3 and kind not in READ_FIRST
        flakey = 'flakey %s %d 0 3600 1 error_writes' % (BELOW, offset + self.bad)
        self.failing = 'error' if is_error else flakey

    def __str__(self):
        return '%s, %d sessions, %s' % (self.kind, self.sessions, self.failing.split()[0])


class Disk(object):
    """A LUN for the kinds that have these lines of its configuration."""

    def __init__(self, lun, kinds, lines):
        self.lun = lun
        self.name = 'disk%d' % lun
        self.offset = lun * SECTORS
        self.naa = '600140500000000000000000000001%02x' % lun
        self.lines = ['backing-store = /dev/mapper/' + self.name, 'naa = ' + self.naa]
        self.lines += ['sharing = cluster'] + sorted(lines)
        chosen = [(kind, count) for kind in kinds for count in SESSIONS]
        self.cases = [
            Case(kind, count, number, self.offset) for number, (kind, count) in enumerate(chosen)
        ]

    def table(self, case=None):
        """The lines of the table in which the last blocks of a case fail."""
        start, end = (case.bad, case.end) if case else (SECTORS, SECTORS)
        yield '0 %d linear %s %d' % (start, BELOW, self.offset)
        if case:
            yield '%d %d %s' % (start, end - start, case.failing)
            yield '%d %d linear %s %d' % (end, SECTORS - end, BELOW, self.offset + end)

    def change(self, case=None):
        """Let the last blocks of a case fail from now on, or none."""
        dmsetup('load', self.name, table='\n'.join(self.table(case)))
        dmsetup('suspend', '--noflush', '--nolockfs', self.name)
        dmsetup('resume', '--noudevsync', self.name)

    def run(self, sessions, case):
        sessions = sessions[: case.sessions]
        for session in sessions:
            session.clear_attentions(self.lun)
        make = KINDS[case.kind][0](sessions[0], self.lun, bytes.fromhex(self.naa))
        works = run_all(sessions, make, self.lun, FIRST_COUNT, case.first)
        assert {work.command.result.status for work in works} == {GOOD}, '%s: too early' % case
        rest = case.first + FIRST_COUNT * BLOCKS
        change = threading.Thread(target=self.change, args=(case,))
        change.start()
        works += run_all(sessions, make, self.lun, COUNT_IN_TIME, rest)
        change.join()
        rest += COUNT_IN_TIME * BLOCKS
        works += run_all(sessions, make, self.lun, COUNT - FIRST_COUNT - COUNT_IN_TIME, rest)
        good = sum(work.command.result.status == GOOD for work in works)
        if case.kind == CACHED:
            assert good == COUNT, '%s: %d writes to the cache are GOOD' % (case, good)
            assert GOOD not in flush_all(sessions, self.lun), '%s: a flush is GOOD' % case
        else:
            assert good < COUNT, '%s: all commands are GOOD' % case
            lost = missing(Medium(self.offset * 512, SECTORS * 512).read, works)
            assert not lost, '%s: GOOD, but not on the medium: LBA %s' % (case, lost)
        wait_for(lambda: has_failed(sessions, self.lun), '%s: the unit has not failed' % case)
        self.change()
        print('%-45s %d of %d GOOD' % (case, good, COUNT))
        sys.stdout.flush()
        subprocess.check_call(
            [sys.executable, '-m', 'targetd.admin.cli', 'acknowledge', '%s/%d' % (TARGET, self.lun)]
        )


def all_disks():
    """Two disks: one with a write cache, one with all lines of the other kinds."""
    kinds = sorted(KINDS)
    cached = [kind for kind in kinds if not KINDS[kind][1]]
    others = [kind for kind in kinds if KINDS[kind][1]]
    return [
        Disk(0, cached, ()),
        Disk(1, others, {line for kind in others for line in KINDS[kind][1]}),
    ]


DISKS = all_disks()


class Medium(object):
    """What is on BELOW, past the page cache."""

    def __init__(self, offset, length):
        self.data = mmap.mmap(-1, length)
        descriptor = os.open(BELOW, os.O_RDONLY | os.O_DIRECT)
        assert os.preadv(descriptor, [self.data], offset) == length
        os.close(descriptor)

    def read(self, offset, length):
        return self.data[offset : offset + length]


class Part(object):
    """A file that begins at an offset of another one."""

    def __init__(self, file, offset):
        self.file, self.offset = file, offset
        self.write = file.write

    def seek(self, offset):
        self.file.seek(self.offset + offset)


def dmsetup(*words, table=''):
    subprocess.run(('dmsetup',) + words, input=table.encode(), check=True)


def wait_for(question, otherwise):
    end = time.monotonic() + 30
    while not question():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


def configure(path):
    with open(path) as file:
        print(file.read())
    for disk in DISKS:
        print('  [[lun %d]]\n  %s' % (disk.lun, '\n  '.join(disk.lines)))


def tables():
    """Fills BELOW; prints, for each disk, its name and the lines of its table with \\n between."""
    with open(BELOW, 'r+b') as below:
        for disk in DISKS:
            fill(Part(below, disk.offset * 512))
            print(disk.name, '\\n'.join(disk.table()))
        below.flush()
        os.fsync(below.fileno())


def log_in(number, seconds=180):
    """A session, as soon as all LUNs are available: a slow guest may need longer to open them."""
    end = time.monotonic() + seconds
    isid = b'\x80\0\0\0\0' + bytes([number])
    name = 'iqn.2026-11.com.example:host%d' % number
    while True:
        session = Session(('127.0.0.1', 3260), name, isid, timeout=120)
        try:
            if len(session.login(TARGET).report_luns()) == len(DISKS):
                return session
        except LoginFailed:
            pass
        session.close()
        assert time.monotonic() < end, 'not all LUNs are available'
        time.sleep(1)


def run(which):
    sessions = [log_in(number) for number in range(max(SESSIONS))]
    for disk in DISKS:
        for case in disk.cases:
            if which == 'all' or case.sessions == 3 or case.kind in ('FUA', CACHED):
                disk.run(sessions, case)
    for session in sessions:
        session.close()


globals()[sys.argv[1]](*sys.argv[2:])
