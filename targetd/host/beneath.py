"""Finds the physical disks beneath a device or a file: through partitions, md, LVM, dm, bcache and loop
devices, and, for a file, the device of its file system.

May import base and host. Only /sys, /proc and the file's status are read: no disk is opened.
"""

import os
import stat

from targetd.errors import StoreError
from targetd.host.in_use import mounts
from targetd.host.roots import ROOTS, kernel_name, listing, read_text, whole_disk

MOST_DISKS = 64
MOST_LAYERS = 16  # the kernel's own limit of stacked devices is lower

#: The start of the kernel names of devices that are no disks, and have none beneath.
_NOT_PHYSICAL = ('ram', 'zram', 'dm-', 'md', 'loop', 'nbd', 'rbd', 'drbd', 'bcache', 'zd')


def disks_beneath(path, roots=ROOTS):
    """Returns the sorted kernel names of the physical disks; [] if they cannot be told, as for a file on
    a network file system or in a container. Raises StoreError if the path cannot be examined."""
    if not os.path.exists(path):
        raise StoreError('%s does not exist' % path)
    found, seen = set(), set()
    for each in _names_of(path, roots):
        _collect(each, roots, found, seen, 0)
    return sorted(found)[:MOST_DISKS]


def storage_beneath(path, roots=ROOTS):
    """Returns sorted texts that name what the data of a device or file is on: its physical disks ('disk
    sda'), or, if they cannot be told, its device or file system. Raises StoreError if the path cannot be
    examined."""
    disks = disks_beneath(path, roots)
    if disks:
        return ['disk ' + name for name in disks]
    try:
        status = os.stat(path)
    except OSError as e:
        raise StoreError('%s: %s' % (path, e.strerror))
    if stat.S_ISBLK(status.st_mode):
        return [unknown_storage('block', status.st_rdev)]
    return [unknown_storage('file', status.st_dev)]


def unknown_storage(kind, number):
    """The text for a device (kind 'block') or a file system ('file') with this device number."""
    name = 'device' if kind == 'block' else 'file system'
    return '%s %d:%d' % (name, os.major(number), os.minor(number))


def _names_of(path, roots):
    """The kernel names of the device at a path, or of those of a file."""
    name = kernel_name(path, roots)
    return [name] if name is not None else _devices_of_file(path, roots)


def _collect(name, roots, found, seen, depth):
    if name in seen or depth > MOST_LAYERS:
        return
    seen.add(name)
    disk = whole_disk(name, roots)
    below = listing(roots.block(name, 'slaves')) or listing(roots.block(disk, 'slaves'))
    behind = read_text(roots.block(disk, 'loop', 'backing_file'))
    if below:
        for each in below:
            _collect(each, roots, found, seen, depth + 1)
    elif behind:
        for each in _names_of(behind, roots):
            _collect(each, roots, found, seen, depth + 1)
    elif not disk.startswith(_NOT_PHYSICAL):
        found.add(disk)


def _devices_of_file(path, roots):
    """The kernel names of the devices of the file system that has the file; [] if it was deleted."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return []
    link = os.path.join(roots.sys, 'dev', 'block', '%d:%d' % (os.major(number), os.minor(number)))
    if os.path.exists(link):
        return [os.path.basename(os.path.realpath(link))]
    return _devices_of_mount(path, roots)


def _devices_of_mount(path, roots):
    """For a file system that has a device number of its own (btrfs): the members of the file system
    that is mounted where the file is."""
    real = os.path.realpath(path)
    best = None
    for mount in mounts(roots):
        point = mount.point.rstrip('/') + '/'
        if (
            mount.pid == 'self'
            and real.startswith(point)
            and (best is None or len(point) >= best[0])
        ):
            best = len(point), mount
    if best is None or not best[1].source.startswith('/'):
        return []
    name = kernel_name(best[1].source, roots)
    if name is None:
        return []
    for fsid in listing(roots.sys, 'fs', 'btrfs'):
        members = listing(roots.sys, 'fs', 'btrfs', fsid, 'devices')
        if name in members:
            return members
    return [name]
