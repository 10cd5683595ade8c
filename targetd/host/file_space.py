"""The file systems that files are in, and whether they have the space that the files may still use.

May import base. Nothing is read from a file; the status of a file may block on a network file system.
"""

import os
import stat
from collections import namedtuple


class FileSystem(namedtuple('FileSystem', 'mount count size growth available')):
    """A file system with `count` LUNs. size: of their files together; growth: bytes that these can still
    occupy without becoming larger; available: bytes that the file system has left."""

    __slots__ = ()

    @property
    def missing(self):
        """The bytes that it lacks if all of its files are written completely."""
        return max(0, self.growth - self.available)

    def __str__(self):
        return (
            'the LUNs in %s (%d) have %d MiB together and may still use %d MiB, of which the file system '
            'has %d MiB'
            % (self.mount, self.count, self.size >> 20, self.growth >> 20, self.available >> 20)
        )


def grouped(files):
    """{device: FileSystem} of files [(device, inode, mount, size, allocated, available)]. A file that
    several LUNs serve counts once."""
    found, known = {}, set()
    for device, inode, mount, size, allocated, available in files:
        system = found.get(device) or FileSystem(mount, 0, 0, 0, 0)
        is_new = (device, inode) not in known
        known.add((device, inode))
        found[device] = FileSystem(
            system.mount,
            system.count + 1,
            system.size + is_new * size,
            system.growth + is_new * max(0, size - allocated),
            available,
        )
    return found


def mount_point(path):
    """The directory at which the file system of this file is mounted."""
    path = os.path.dirname(os.path.realpath(path))
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def of_paths(files):
    """As grouped(), for [(path, size)]. size: which a file will have if it does not exist or is shorter,
    or None. What is no file, or has no directory, is left out."""
    return grouped(row for row in (_row(path, size) for path, size in files) if row is not None)


def _row(path, size):
    try:
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return None
            size, allocated = max(status.st_size, size or 0), status.st_blocks * 512
        except FileNotFoundError:
            if size is None:
                return None
            status, allocated = os.stat(os.path.dirname(path)), 0
        space = os.statvfs(os.path.dirname(path))
    except OSError:
        return None
    inode = status.st_ino if allocated or stat.S_ISREG(status.st_mode) else path
    available = space.f_bavail * space.f_frsize
    return status.st_dev, inode, mount_point(path), size, allocated, available
