"""Which processes have which files and block devices open, read from /proc once.

May import base and host. Files are compared by device and inode, block devices by their number, so
that a hard link, a bind mount or another device node does not hide a user. The search is bounded in
time, and skips file systems that may not respond (network, FUSE), except the one of the wanted path.
"""

import os
import stat
import time

from targetd.host.roots import ROOTS, kernel_name, listing, partitions, read_text, whole_disk

SEARCH_SECONDS = 2.0  # time limit of the search through the open files of all processes
NETWORK_KINDS = ('nfs', 'nfs4', 'cifs', 'smb3', 'ceph', '9p', 'afs', 'lustre', 'glusterfs')


class OpenFiles(object):
    """The open files of all processes that can be seen; only root sees those of other users.

    path: a path that will be asked for; mounts: [in_use.Mount]; seconds: time limit."""

    def __init__(self, path, roots=ROOTS, mounts=(), seconds=SEARCH_SECONDS):
        self.roots = roots
        self._holders = {}  # key of a file or device -> [(process id, True if open for writing)]
        self._skipped = tuple(
            mount.point + '/'
            for mount in mounts
            if _may_hang(mount.kind) and not (path + '/').startswith(mount.point + '/')
        )
        deadline = time.monotonic() + seconds
        for pid in sorted((entry for entry in listing(roots.proc) if entry.isdigit()), key=int):
            self._read_process(pid)
            if time.monotonic() > deadline:
                break

    def _read_process(self, pid):
        for descriptor in listing(self.roots.proc, pid, 'fd'):
            link = os.path.join(self.roots.proc, pid, 'fd', descriptor)
            try:
                target = os.readlink(link)
                if not target.startswith('/') or target.startswith(self._skipped):
                    continue  # a socket or a pipe, or a file that may not respond
                key = key_of(link, self.roots)
            except OSError:  # it was closed meanwhile
                continue
            if key is not None:
                entry = (int(pid), self._is_writable(pid, descriptor))
                self._holders.setdefault(key, []).append(entry)

    def _is_writable(self, pid, descriptor):
        for line in (read_text(self.roots.proc, pid, 'fdinfo', descriptor) or '').splitlines():
            if line.startswith('flags:'):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
        return True

    def holders(self, keys, writers_only=False):
        """Returns the sorted ids of the processes that have one of these open."""
        return sorted(
            {
                pid
                for key in keys
                for pid, is_writer in self._holders.get(key, ())
                if is_writer or not writers_only
            }
        )


def _may_hang(kind):
    return kind in NETWORK_KINDS or kind.startswith('fuse')


def key_of(path, roots=ROOTS):
    """Returns what identifies the file or block device at a path, whatever its name: 'major:minor', or
    (device, inode); None for anything else. Raises OSError."""
    number = roots.device_number(path)
    if number is not None:
        return number
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def keys_of(path, roots=ROOTS):
    """Returns the keys by which a user of a disk, its partitions, the disk of a partition, or a file
    is recognised."""
    name = kernel_name(path, roots)
    if name is not None:
        names = [name, whole_disk(name, roots)] + partitions(name, roots)
        return {read_text(roots.block(each, 'dev')) for each in names}
    try:
        return {key_of(path, roots)} - {None}
    except OSError:  # the file does not exist yet
        return set()
