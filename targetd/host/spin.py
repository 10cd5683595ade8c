"""Spins a physical disk down and up with START STOP UNIT (SBC-3 5.25), which the kernel translates for SATA
disks (SAT), and tells what keeps a disk from being spun down.

May import base and host. start(), stop() and is_ready() send SCSI commands through SG_IO: they may block, so
that only jobs call them. The rest reads /sys and /proc, which wakes no disk.

Before a disk is stopped, `allow_restart` of its driver is set: then Linux itself starts the disk for an
access of which targetd does not know, instead of reporting an error. SATA disks do that by themselves.
"""

import errno
import os
import time
from collections import namedtuple

from targetd import sg_io
from targetd.errors import StoreError
from targetd.host.beneath import disks_beneath
from targetd.host.in_use import HostTables
from targetd.host.roots import ROOTS, kernel_name, listing, partitions, read_text, whole_disk

CHECK_CONDITION = 2
NOT_READY, UNIT_ATTENTION, ABORTED_COMMAND = 2, 6, 11
COMMAND_SECONDS = 40
READY_SECONDS = 45  # after START STOP UNIT; a disk needs 5 to 20 seconds
LOOK_SECONDS = 0.25
ATTENTIONS = 4  # so many times a command is sent again that ended with a unit attention

#: The state of the block layer's counters: completed: numbers of requests and sectors, which change with
#: every access; in_flight: requests that are not complete.
Accesses = namedtuple('Accesses', 'completed in_flight')


class Refused(Exception):
    """The disk has not executed a command; the text is the reason."""

    def __init__(self, text, key=None):
        super(Refused, self).__init__(text)
        self.key = key


# -- SCSI commands ---------------------------------------------------------------------------------


def stop(descriptor, send=None):
    """Spin the disk down. Raises Refused, OSError. It must be flushed before."""
    _run(descriptor, bytes((0x1B, 0, 0, 0, 0, 0)), send)


def start(descriptor, send=None, clock=time.monotonic, pause=time.sleep):
    """Spin the disk up, and return when it is ready. Raises Refused, OSError."""
    _run(descriptor, bytes((0x1B, 0, 0, 0, 1, 0)), send)
    end = clock() + READY_SECONDS
    while not is_ready(descriptor, send):
        if clock() >= end:
            raise Refused('it is not ready %d seconds after its start' % READY_SECONDS)
        pause(LOOK_SECONDS)


def is_ready(descriptor, send=None):
    """False if TEST UNIT READY says that the disk is not ready. Raises Refused, OSError."""
    try:
        _run(descriptor, bytes(6), send)
    except Refused as e:
        if e.key != NOT_READY:
            raise
        return False
    return True


def _run(descriptor, cdb, send):
    for _ in range(ATTENTIONS):
        status, sense = (send or _send)(descriptor, cdb)
        if status == 0:
            return
        key, asc, ascq = sg_io.parse_sense(sense)
        if status != CHECK_CONDITION or key not in (UNIT_ATTENTION, ABORTED_COMMAND):
            break
    if status != CHECK_CONDITION:
        raise Refused('command %02Xh ended with status %02Xh' % (cdb[0], status))
    text = 'command %02Xh ended with sense %X/%02X/%02X' % (cdb[0], key, asc, ascq)
    raise Refused(text, key)


def _send(descriptor, cdb):
    """(status, sense data) of a command without data. Raises OSError."""
    found = sg_io.execute(descriptor, cdb, seconds=COMMAND_SECONDS)
    if found.status == 0 and (found.host or found.driver):
        raise OSError(errno.EIO, 'the host adapter reports error %02Xh' % found.host)
    return found.status, found.sense


# -- /sys ------------------------------------------------------------------------------------------


def accesses(name, roots=ROOTS):
    """The Accesses of the disk with this kernel name, or None if they are not known. SG_IO does not
    count (Documentation/block/stat of the kernel)."""
    fields = (read_text(roots.block(name, 'stat')) or '').split()
    if len(fields) < 11 or not all(field.isdigit() for field in fields):
        return None
    numbers = [int(field) for field in fields]
    # times (fields 3, 7, 9, 10, 14, 16) go on while a request is in flight, and mean no access
    counted = [numbers[n] for n in (0, 2, 4, 6, 11, 13, 15) if n < len(numbers)]
    return Accesses(tuple(counted), numbers[8])


def let_kernel_restart(name, roots=ROOTS):
    """Have the kernel start the disk itself if an access finds it stopped. Raises Refused."""
    path = _restart_file(name, roots)
    if read_text(path) == '1':
        return
    try:
        with open(path, 'w') as f:
            f.write('1\n')
    except OSError as e:
        if read_text(roots.block(name, 'device', 'vendor')) == 'ATA':
            return  # a SATA disk starts for every access
        raise Refused(
            'the kernel cannot be told to restart it (%s: %s); have udev do that: ACTION=="add|change", '
            'SUBSYSTEM=="scsi_disk", ATTR{allow_restart}="1"' % (path, e.strerror)
        )


def _restart_file(name, roots):
    """The path of `allow_restart`; '' if the driver of the disk has none."""
    folder = roots.block(name, 'device', 'scsi_disk')
    for each in listing(folder):
        path = os.path.join(folder, each, 'allow_restart')
        if os.path.exists(path):
            return path
    return ''


def why_not(path, others, roots=ROOTS, tables=None):
    """(kernel name of the disk, '') if the disk at this path may sleep, else (None, the reason). others:
    [(name of a LUN, its path)] of the other LUNs; tables: HostTables."""
    name = kernel_name(path, roots)
    if name is None:
        return None, 'it is not a block device'
    disk = whole_disk(name, roots)
    reason = (
        _why_no_disk(disk, roots)
        or _why_shared(disk, name, others, roots)
        or _why_used(disk, name, tables or HostTables(roots), roots)
    )
    return (None, reason) if reason else (disk, '')


def _why_no_disk(disk, roots):
    if listing(roots.block(disk, 'slaves')) or disk.startswith(('dm-', 'md', 'bcache')):
        return (
            '%s is made of other disks (LVM, RAID, dm), which other volumes use too; let the disks spin down '
            'by themselves (hdparm -S)' % disk
        )
    if not _restart_file(disk, roots):
        return '%s is no disk that takes SCSI commands' % disk
    if read_text(roots.block(disk, 'queue', 'iostats')) == '0':
        return (
            'the kernel does not count the accesses of %s; write 1 to /sys/block/%s/queue/iostats'
            % (disk, disk)
        )
    if accesses(disk, roots) is None:
        return 'the kernel does not count the accesses of %s' % disk
    return ''


def _why_shared(disk, name, others, roots):
    """Another LUN is on the disk."""
    for lun, path in others:
        try:
            is_shared = disk in disks_beneath(path, roots)
        except StoreError:
            continue  # it is absent
        if is_shared:
            return '%s, which %s is a part of, also has %s' % (disk, name, lun)
    return ''


def _why_used(disk, name, tables, roots):
    """This host uses the disk, or another partition of it."""
    for each in [disk] + partitions(disk, roots):
        if each == name:
            continue
        holders = listing(roots.block(each, 'holders'))
        if holders:
            return '%s of the same disk is in %s' % (each, ', '.join(holders))
        number = read_text(roots.block(each, 'dev'))
        for mount in tables.mounts:
            if mount.number == number:
                return '%s of the same disk is mounted on %s' % (each, mount.point)
        if any(kernel_name(swap, roots) == each for swap in tables.swaps):
            return '%s of the same disk is a swap area' % each
    return ''
