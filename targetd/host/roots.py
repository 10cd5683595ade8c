"""Access to the directories that describe this machine (/sys, /dev, /proc, /run and /etc), and the
conversion of a path to a block device's kernel name.

May import base. Every function of host/ takes `roots`, so that a test can substitute another
machine. Nothing is cached, because disks can be added and removed at any time. A kernel name is a
name in /sys/class/block ('sdb', 'sdb1', 'md0', 'dm-3', 'cciss!c0d0').
"""

import errno
import os
import stat


class Roots(object):
    """The five directories, and the queries that need a device node."""

    def __init__(self, sys='/sys', dev='/dev', proc='/proc', run='/run', etc='/etc'):
        self.sys = sys
        self.dev = dev
        self.proc = proc
        self.run = run
        self.etc = etc

    def device_number(self, path):
        """Returns 'major:minor' of the block device at `path`, or None if `path` is not one."""
        return _number(path, stat.S_ISBLK)

    def character_number(self, path):
        """Returns 'major:minor' of the character device at `path`, or None if `path` is not one."""
        return _number(path, stat.S_ISCHR)

    def is_busy(self, path):
        """True if the kernel or a process holds the block device exclusively: it is mounted, a
        member of an array, swap space or exported by another target."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            return e.errno == errno.EBUSY
        os.close(descriptor)
        return False

    def block(self, *parts):
        """Returns a path in /sys/class/block, which contains both disks and partitions."""
        return os.path.join(self.sys, 'class', 'block', *parts)

    def node(self, name):
        """Returns the device node of a kernel name; '!' replaces '/' in kernel names ('cciss!c0d0'
        is /dev/cciss/c0d0)."""
        return os.path.join(self.dev, name.replace('!', '/'))


def _number(path, is_wanted):
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not is_wanted(status.st_mode):
        return None
    return '%d:%d' % (os.major(status.st_rdev), os.minor(status.st_rdev))


ROOTS = Roots()


def read_text(*parts):
    """Returns the stripped text of a small file, or None if it cannot be read (many files of /sys
    exist only for some devices)."""
    try:
        with open(os.path.join(*parts), 'rb') as f:
            return f.read(1 << 16).decode('utf-8', 'replace').strip(' \t\r\n\0')
    except OSError:
        return None


def read_bytes(*parts):
    """Returns the first 64 KiB of a file, or None if it cannot be read."""
    try:
        with open(os.path.join(*parts), 'rb') as f:
            return f.read(1 << 16)
    except OSError:
        return None


def read_number(*parts):
    """Returns the decimal number in a file, or None."""
    text = read_text(*parts)
    try:
        return int(text)
    except (TypeError, ValueError):
        return None


def listing(*parts):
    """Returns the sorted names in a directory; [] if the directory does not exist."""
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []


def kernel_name(path, roots=ROOTS):
    """Returns the kernel name of the block device at `path`, or None if it is not a block device."""
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
    """Returns the kernel name of the disk of a partition; the name itself if it is not a partition."""
    if not os.path.exists(roots.block(name, 'partition')):
        return name
    return os.path.basename(os.path.dirname(os.path.realpath(roots.block(name))))


def partitions(name, roots=ROOTS):
    """Returns the kernel names of a disk's partitions, in numeric order; [] for a partition."""
    directory = os.path.realpath(roots.block(name))
    found = [
        entry
        for entry in listing(directory)
        if os.path.exists(os.path.join(directory, entry, 'partition'))
    ]
    return sorted(found, key=lambda entry: read_number(directory, entry, 'partition') or 0)


def udev_properties(name, roots=ROOTS):
    """Returns the udev properties of a block device ('ID_SERIAL_SHORT', 'ID_WWN', …) as a dict; {}
    without udev."""
    number = read_text(roots.block(name, 'dev'))
    if not number:
        return {}
    properties = {}
    for line in (read_text(roots.run, 'udev', 'data', 'b' + number) or '').splitlines():
        if line.startswith('E:') and '=' in line:
            key, value = line[2:].split('=', 1)
            properties[key] = value
    return properties
