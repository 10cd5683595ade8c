"""In the guest: takeovers with two disks of the kernel that are one disk of an array.

takeovers_on_disk.py DISK-OF-THE-FIRST-SERVER DISK-OF-THE-SECOND MEDIUM-OF-THE-ARRAY

Prints what happens, and at the end the figures; the exit code is 1 if something was wrong.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, '/src/tests')

import fenced_takeovers  # noqa: E402
from path_writers import Wrong  # noqa: E402

UNIT_ATTENTION = 6  # exit code of sg_persist


class OnDisk(fenced_takeovers.FencedTakeovers):
    """disks: the device of each server; medium: what the array has written."""

    writer_count = 2
    rest = 0.3  # the guest is emulated: without a rest, nothing else goes on
    late_commands = (
        fenced_takeovers.write,
        fenced_takeovers.write_plain,
        fenced_takeovers.write_same,
        fenced_takeovers.write_zeroes,
    )

    def __init__(self, directory, disks, medium):
        super(OnDisk, self).__init__(directory)
        self._disks = disks
        self.image = medium
        self._conflicts = 0  # before the server that is stopped goes on

    def attach_disk(self):
        return self._disks[len(self.devices)]

    def detach_disks(self):
        pass

    def note(self, text):
        with open('/proc/uptime') as file:
            print('[%s] %s' % (file.read().split()[0], text), flush=True)

    def registrations(self):
        keys, holder = self._persist('--read-keys'), self._persist('--read-reservation')
        self.note(' '.join((keys + holder).split()))
        found = re.search('Key=0x([0-9a-f]+)', holder)
        return (
            [int(key, 16) for key in re.findall('^ *0x([0-9a-f]+) *$', keys, re.M)],
            int(found.group(1), 16) if found else None,
        )

    def _persist(self, what):
        """The output of PERSISTENT RESERVE IN on the path of the first server."""
        command = ('sg_persist', '--in', '--readonly', what, self._disks[0])
        for _ in range(5):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            text = done.stdout.decode('utf-8', 'replace')
            if done.returncode != UNIT_ATTENTION:  # REGISTRATIONS PREEMPTED, after a takeover
                break
            self.note(' '.join(text.split()))
        if done.returncode:
            raise Wrong(text)
        return text

    def take_over(self, how):
        self.note('--- %s' % how)
        since = time.monotonic()
        super(OnDisk, self).take_over(how)
        self.note('%s: all is compared, %.0f s in all' % (how, time.monotonic() - since))

    def _require_all_refused(self, daemon):
        super(OnDisk, self)._require_all_refused(daemon)
        disk = self._disks[self.daemons.index(daemon)]
        count = conflicts(disk) - self._conflicts
        self.note('RESERVATION CONFLICT on %s: %d' % (disk, count))
        if count < len(self.late_commands):
            raise Wrong('the disk %s has refused %d commands' % (disk, count))

    def _write_later(self, daemon):
        super(OnDisk, self)._write_later(daemon)
        self._conflicts = conflicts(self._disks[self.daemons.index(daemon)])


def conflicts(disk):
    """How often the disk has answered the kernel with RESERVATION CONFLICT."""
    address = os.path.basename(os.path.realpath('/sys/block/%s/device' % os.path.basename(disk)))
    return len(
        re.findall(r'\b%s:.*reservation conflict' % re.escape(address), _output('dmesg'), re.I)
    )


def _output(*command):
    return subprocess.check_output(command).decode('utf-8', 'replace')


def main(first, second, medium):
    run = OnDisk(tempfile.mkdtemp(), [first, second], medium)
    figures, complaints = {}, ['it was not carried out to the end']
    try:
        figures, complaints = run.run(0, fenced_takeovers.HOW)
    finally:
        for daemon in run.daemons:
            print('--- %s' % daemon.log_file)
            print(daemon.log)
        for writer in run.writers:
            state = writer.count, writer.path.current, writer.complaint
            print('writer %d: %r' % (writer.number, state))
        for name, value in sorted(figures.items()):
            print('%9d %s' % (value, name))
        for complaint in complaints:
            print('WRONG: %s' % complaint)
    return bool(complaints)


sys.exit(main(*sys.argv[1:]))
