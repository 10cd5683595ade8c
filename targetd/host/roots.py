"""Where this machine is seen: /sys, /dev, /proc, /run and /etc, and how a path becomes a block
device's kernel name.

May import base. Every function of host/ takes `roots`, so that a test can show it another machine;
nothing is cached, since disks come and go. A kernel name is what stands in /sys/class/block ('sdb',
'sdb1', 'md0', 'dm-3', 'cciss!c0d0').
"""

import errno
import os
import stat


class Roots(object):
    """The five directories, and the two questions that only a device node answers."""

    def __init__(self, sys='/sys', dev='/dev', proc='/proc', run='/run', etc='/etc'):
        self.sys = sys
        self.dev = dev
        self.proc = proc
        self.run = run
        self.etc = etc

    def device_number(self, path):
        """'major:minor' of the block device at `path`, or None if there is none or it is something
        else."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        return '%d:%d' % (os.major(status.st_rdev), os.minor(status.st_rdev))

    def is_busy(self, path):
        """True if somebody holds the block device exclusively: mounted, a member of an array, swap,
        another target."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            return e.errno == errno.EBUSY
        os.close(descriptor)
        return False

    def block(self, *parts):
        """A path in /sys/class/block, the directory that has disks and partitions side by side."""
        return os.path.join(self.sys, 'class', 'block', *parts)

    def node(self, name):
        """The device node of a kernel name; a '!' in it stands for a '/' ('cciss!c0d0' is
        /dev/cciss/c0d0)."""
        return os.path.join(self.dev, name.replace('!', '/'))


ROOTS = Roots()


def read_text(*parts):
    """The stripped text of a small file, or None if it cannot be read (many of /sys exist for some
    devices only)."""
    try:
        with open(os.path.join(*parts), 'rb') as f:
            return f.read(1 << 16).decode('utf-8', 'replace').strip(' \t\r\n\0')
    except OSError:
        return None


def read_bytes(*parts):
    """The first 64 KiB of a file, or None if it cannot be read."""
    try:
        with open(os.path.join(*parts), 'rb') as f:
            return f.read(1 << 16)
    except OSError:
        return None


def read_number(*parts):
    """The decimal number that a file holds, or None."""
    text = read_text(*parts)
    try:
        return int(text)
    except (TypeError, ValueError):
        return None


def listing(*parts):
    """The sorted names in a directory; [] if there is no such directory."""
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []


def kernel_name(path, roots=ROOTS):
    """The kernel name of the block device at `path`, or None if it is no block device."""
    number = roots.device_number(path)
    if number is None:
        return None
    link = os.path.join(roots.sys, 'dev', 'block', number)
    if os.path.exists(link):
        return os.path.basename(os.path.realpath(link))
    for name in listing(roots.block()):
        if read_text(roots.block(name, 'dev')) == number:
            return name
    return None


def whole_disk(name, roots=ROOTS):
    """The kernel name of the disk that a partition lies on; the name itself if it is no partition."""
    if not os.path.exists(roots.block(name, 'partition')):
        return name
    return os.path.basename(os.path.dirname(os.path.realpath(roots.block(name))))


def partitions(name, roots=ROOTS):
    """The kernel names of a disk's partitions, in numeric order; [] for a partition."""
    directory = os.path.realpath(roots.block(name))
    found = [
        entry
        for entry in listing(directory)
        if os.path.exists(os.path.join(directory, entry, 'partition'))
    ]
    return sorted(found, key=lambda entry: read_number(directory, entry, 'partition') or 0)


def udev_properties(name, roots=ROOTS):
    """What udev noted about a block device ('ID_SERIAL_SHORT', 'ID_WWN', …) as a dict; {} without
    udev."""
    number = read_text(roots.block(name, 'dev'))
    if not number:
        return {}
    properties = {}
    for line in (read_text(roots.run, 'udev', 'data', 'b' + number) or '').splitlines():
        if line.startswith('E:') and '=' in line:
            key, value = line[2:].split('=', 1)
            properties[key] = value
    return properties
