"""Takeovers as in takeovers.py, with a disk that is its own fence (setting fence): the server that has been
replaced may still run, and has commands that it received before the takeover and executes after it (LATE).
The disk refuses them, they are not answered with GOOD, and the server goes into standby.
"""

import re
import struct
import time

from daemon import PATIENCE, TARGET
from initiator import connect
from path_writers import BLOCK, LOST, Wrong, registration
from takeovers import NOTHING, Takeovers

#: 'cut off' tests the paths of the initiators, which takeovers.py has.
HOW = ('killed', 'stopped', NOTHING, 'in order')

LATE_NAME = 'iqn.2026-11.test:late'
LATE_BLOCKS = 64  # of each late command
LATE_LBA = 24 << 10  # of the first one, beyond the blocks of the writers
GOOD, CHECK_CONDITION = 0x00, 0x02


def write(lba, data):
    """The CDB of a WRITE(10) with FUA, and its data."""
    return struct.pack('>BBIBHB', 0x2A, 8, lba, 0, len(data) // BLOCK, 0), data


def write_plain(lba, data):
    """The same without FUA."""
    return struct.pack('>BBIBHB', 0x2A, 0, lba, 0, len(data) // BLOCK, 0), data


def write_same(lba, data):
    """WRITE SAME(10): the first block of the data, in all of them."""
    return struct.pack('>BBIBHB', 0x41, 0, lba, 0, len(data) // BLOCK, 0), data[:BLOCK]


def write_zeroes(lba, data):
    """WRITE SAME(10) of zeroes."""
    return struct.pack('>BBIBHB', 0x41, 0, lba, 0, len(data) // BLOCK, 0), bytes(BLOCK)


def contents(letter):
    """The data of LATE_BLOCKS blocks."""
    return letter * (LATE_BLOCKS * BLOCK)


class FencedTakeovers(Takeovers):
    """A subclass has attach_disk(), detach_disks() and registrations(). late_commands: what a server that is
    stopped has received."""

    has_fence = True
    target_lines = ('serving = when-active',)
    lun_lines = ('fence = reservations',)
    late_commands = (write, write_plain)

    def __init__(self, directory):
        super(FencedTakeovers, self).__init__(directory)
        self._late = None  # a session with the server that is stopped
        self._tags = []  # [(name, Command) …] that it has received
        self._other = None  # a session with the server that has taken over
        self.is_late_tested = False

    def registrations(self):
        """([key …] of the servers, the key that holds the reservation or None) by the disk itself."""
        raise NotImplementedError

    def take_over(self, how):
        super(FencedTakeovers, self).take_over(how)
        self._require_fence()

    def _require_fence(self):
        """The disk is reserved by the server that serves it, and no other server is registered."""
        rows = [daemon.units()[0] for daemon in self.daemons]
        shown = [row['fence'] for row in rows if row['state'] == 'ready']
        if len(shown) != 1 or [row['fence'] for row in rows if row['state'] != 'ready'] != ['']:
            raise Wrong('the servers show %r' % rows)
        key = int(re.search('0x([0-9a-f]{16})', shown[0]).group(1), 16)
        keys, holder = self.registrations()
        if set(keys) != {key} or holder != key:
            raise Wrong('key %x: the disk has the keys %r and the holder %r' % (key, keys, holder))

    # -- what arrives late -------------------------------------------------------------------------

    def _break(self, how, daemon, relay):
        if how == 'stopped':
            self._late = self._log_in(daemon)
            self._write_all(self._late, b'o')
        super(FencedTakeovers, self)._break(how, daemon, relay)
        if how == 'stopped':
            self._tags = [
                (command.__name__, self._submit(command, lba))
                for command, lba in self._late_places()
            ]

    def _late_places(self):
        return [
            (command, LATE_LBA + number * LATE_BLOCKS)
            for number, command in enumerate(self.late_commands)
        ]

    def _submit(self, command, lba):
        cdb, data = command(lba, contents(b'l'))
        return self._late.submit(cdb, out=data)

    def _mend(self, how, daemon, relay):
        if how == 'stopped':
            self._write_later(daemon)
        elif how == 'killed':
            # a slow machine does not start a server beside them in time
            for writer in self.writers:
                writer.pause()
        super(FencedTakeovers, self)._mend(how, daemon, relay)
        for writer in self.writers:
            writer.may_go.set()
        if how == 'stopped':
            self._require_all_refused(daemon)

    def _write_later(self, daemon):
        """Write other data to the blocks of the late commands, by the server that has taken over from the
        Daemon."""
        self._other = self._log_in(self.daemons[1 - self.daemons.index(daemon)])
        self._write_all(self._other, b'n')

    def _require_all_refused(self, daemon):
        """The Daemon, which goes on, has executed no late command, and is in standby."""
        for name, tag in self._tags:
            self._require_refused(name, tag)
        self._late.close()
        self.wait_for(lambda: 'standby' in daemon.units()[0]['state'], 'standby')
        for _, lba in self._late_places():
            cdb = struct.pack('>BBIBHB', 0x28, 0, lba, 0, LATE_BLOCKS, 0)
            data = bytes(_run(self._other, cdb, LATE_BLOCKS * BLOCK).data)
            if data != contents(b'n'):
                raise Wrong('block %d: a late command was executed' % lba)
        self._other.close()
        self.is_late_tested = True

    def _require_refused(self, name, tag):
        try:
            result = self._late.wait(tag)
        except LOST as e:
            self.note('late %s: its session has ended (%r)' % (name, e))
        else:
            self.note('late %s: %r' % (name, result))
            if result.status == GOOD:
                raise Wrong('a late %s was answered with GOOD' % name)
        self.figures['late commands that the disk refused'] += 1

    def _log_in(self, daemon):
        session = connect(daemon.address, TARGET, name=LATE_NAME, timeout=60 * PATIENCE)
        cdb, parameters = registration()
        _run(session, cdb, out=parameters)
        return session

    def _write_all(self, session, letter):
        for _, lba in self._late_places():
            cdb, data = write(lba, contents(letter))
            _run(session, cdb, out=data)

    def read_file(self):
        super(FencedTakeovers, self).read_file()
        if self.is_late_tested:
            with open(self.image, 'rb') as file:
                for _, lba in self._late_places():
                    file.seek(lba * BLOCK)
                    if file.read(LATE_BLOCKS * BLOCK) != contents(b'n'):
                        raise Wrong('block %d of the medium: a late command was executed' % lba)


def _run(session, cdb, read=0, out=None):
    """The Result GOOD of a command. Raises Wrong."""
    end = time.monotonic() + 60 * PATIENCE
    while True:
        result = session.run(cdb, 0, read, out)
        if result.status == GOOD:
            return result
        if result.status != CHECK_CONDITION or result.key[0] != 6 or time.monotonic() > end:
            raise Wrong('%s ended with %r' % (cdb.hex(), result))
