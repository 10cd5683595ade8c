"""Finds out what uses a disk or an image file on this host, before it is exported: two writers on
one disk destroy its content.

May import base and host. Invariants: nothing is opened for writing and nothing is changed; each
sentence names the chain of devices from the disk up to the user ('sdb1 is in md0, which is in dm-2
…') and the command that frees the disk; the search through the open files of all processes is bounded
in time (host.open_files).
"""

import os
import re
from collections import namedtuple
from shlex import quote

from targetd.errors import StoreError
from targetd.host.network import program_of
from targetd.host.open_files import SEARCH_SECONDS, OpenFiles, keys_of
from targetd.host.roots import ROOTS, kernel_name, listing, partitions, read_text, whole_disk

MAXIMUM_NAMESPACES = 256  # mount namespaces that are read; a host of containers has fewer
MAXIMUM_MOUNTS = 4  # mounts of one device that are named; the others are only counted
MAXIMUM_OPENERS = 4  # processes that are named; the others are only counted
MAXIMUM_DEPTH = 16  # stacked devices; the kernel's own limit is lower

#: A mount in any mount namespace. number: 'major:minor'; source: the mounted device; pid: a process
#: in that namespace.
Mount = namedtuple('Mount', 'number source point kind pid')


# -- mounts, swap, loop devices and kernel targets -------------------------------------------------


def _unescaped(text):
    r"""Resolves the octal escapes of mountinfo and swaps: a space is written as \040."""
    return re.sub(r'\\([0-7]{3})', lambda m: chr(int(m.group(1), 8)), text)


def _parse_mountinfo(text, pid):
    for line in (text or '').splitlines():
        fields = line.split(' ')
        if '-' not in fields or len(fields) < 10:
            continue
        tail = fields[fields.index('-', 6) + 1 :]
        yield Mount(fields[2], _unescaped(tail[1]), _unescaped(fields[4]), tail[0], pid)


def _namespaces(roots):
    """Yields one process id of every mount namespace that can be read, this process first."""
    seen = set()
    for pid in ['self'] + [entry for entry in listing(roots.proc) if entry.isdigit()]:
        try:
            namespace = os.readlink(os.path.join(roots.proc, pid, 'ns', 'mnt'))
        except OSError:
            if pid != 'self':
                continue
            namespace = None
        if namespace not in seen:
            seen.add(namespace)
            yield pid
        if len(seen) >= MAXIMUM_NAMESPACES:
            return


def mounts(roots=ROOTS):
    """Returns a list of every Mount of every readable mount namespace; each (device, mount point)
    is listed once."""
    found = {}
    for pid in _namespaces(roots):
        for mount in _parse_mountinfo(read_text(roots.proc, pid, 'mountinfo'), pid):
            found.setdefault((mount.number, mount.source, mount.point), mount)
    return list(found.values())


def _swaps(roots):
    lines = (read_text(roots.proc, 'swaps') or '').splitlines()[1:]
    return [_unescaped(line.split()[0]) for line in lines if line.split()]


def _btrfs_members(roots):
    """{kernel name: the names of all members of the mounted btrfs that it belongs to}. mountinfo
    shows only one member."""
    members = {}
    for fsid in listing(roots.sys, 'fs', 'btrfs'):
        names = listing(roots.sys, 'fs', 'btrfs', fsid, 'devices')
        members.update((name, names) for name in names)
    return members


def _loops(roots):
    """[(kernel name of a loop device, its backing file or device)]."""
    names = [name for name in listing(roots.block()) if name.startswith('loop')]
    pairs = [(name, read_text(roots.block(name, 'loop', 'backing_file'))) for name in names]
    return [(name, behind) for name, behind in pairs if behind]


def _kernel_targets(roots):
    """[(description, command that ends the export, path)] of everything that the kernel's SCSI
    targets export."""
    found = []
    core = os.path.join(roots.sys, 'kernel', 'config', 'target', 'core')
    for plugin in listing(core):
        for name in listing(core, plugin):
            path = read_text(core, plugin, name, 'udev_path')
            if path and read_text(core, plugin, name, 'enable') != '0':
                found.append(
                    (
                        'LIO as %s' % name,
                        'targetcli /backstores/%s delete %s' % (plugin.split('_')[0], name),
                        path,
                    )
                )
    devices = os.path.join(roots.sys, 'kernel', 'scst_tgt', 'devices')
    for name in listing(devices):
        path = (read_text(devices, name, 'filename') or '').split('\n')[0]
        if path:
            found.append(
                ('SCST as %s' % name, 'scstadmin -close_dev %s -handler vdisk_blockio' % name, path)
            )
    return found


class HostTables(object):
    """What the host uses at this moment: mounts, swap areas, loop devices, exports of the kernel.
    Reading it takes milliseconds, so that a process that examines many files reads it once."""

    def __init__(self, roots=ROOTS):
        self.mounts = mounts(roots)
        self.swaps = _swaps(roots)
        self.btrfs = _btrfs_members(roots)
        self.loops = _loops(roots)
        self.targets = _kernel_targets(roots)
        self.open_files = None  # OpenFiles, read when they are needed


class _Users(object):
    """State of one search for users: the host's tables, and the sentences found."""

    def __init__(self, roots, ours=None, tables=None):
        tables = tables or HostTables(roots)
        self.roots = roots
        self.ours = ours or os.getpid()
        self.mounts = tables.mounts
        self.swaps = tables.swaps
        self.btrfs = tables.btrfs
        self.loops = tables.loops
        self.targets = tables.targets
        self.tables = tables
        self.sentences = []

    @property
    def open_files(self):
        return self.tables.open_files

    def read_open_files(self, path):
        """Reads the open files of all processes, unless the tables have them."""
        if self.tables.open_files is None:
            self.tables.open_files = OpenFiles(path, self.roots, self.mounts)

    def add(self, sentence):
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def same(self, path, other):
        """True if both paths are the same file or device."""
        if os.path.realpath(path) == os.path.realpath(other):
            return True
        try:
            return os.path.samefile(path, other)  # a hard link or a bind mount
        except OSError:
            return False


# -- devices stacked on a device -------------------------------------------------------------------


def _lvm_names(name):
    """Splits a device-mapper name of LVM into (volume group, logical volume). The separator is '-';
    a '-' within a name is written as '--'."""
    match = re.match(r'^((?:[^-]|--)+)-((?:[^-]|--)+)', name)
    return tuple(part.replace('--', '-') for part in match.groups()) if match else (name, '')


def _mapped(holder, roots):
    """(description of a device-mapper device, command that stops it)."""
    name = read_text(roots.block(holder, 'dm', 'name')) or holder
    kind = (read_text(roots.block(holder, 'dm', 'uuid')) or '').split('-')[0]
    if kind == 'LVM':
        group, volume = _lvm_names(name)
        return 'the logical volume %s/%s' % (group, volume), 'vgchange -an %s' % group
    if kind == 'CRYPT':
        return 'the encrypted device %s' % name, 'cryptsetup close %s' % name
    if kind == 'mpath':
        return 'the multipath device %s' % name, 'export /dev/mapper/%s instead' % name
    if kind.startswith('part'):
        return 'the mapped partition %s' % name, 'dmsetup remove %s' % name
    return 'the mapped device %s' % name, 'dmsetup remove %s' % name


def _holder(holder, roots):
    """(description of a device that is stacked on another, command that stops it)."""
    node = roots.node(holder)
    if holder.startswith('md'):
        level = read_text(roots.block(holder, 'md', 'level')) or 'array'
        return 'the %s array %s' % (level, node), 'mdadm --stop %s' % node
    if holder.startswith('dm-'):
        return _mapped(holder, roots)
    if holder.startswith('bcache'):
        return 'the cache device %s' % node, 'echo 1 > /sys/block/%s/bcache/stop' % holder
    if holder.startswith('drbd'):
        return 'the replicated device %s' % node, 'drbdadm down the resource of %s' % node
    if holder.startswith('loop'):
        return 'the loop device %s' % node, 'losetup -d %s' % node
    return 'the device %s' % node, 'stop %s' % node


def _device_mounts(name, users):
    """The mounts of one device: by device number, or by name for a file system that shows other
    device numbers (btrfs)."""
    number = read_text(users.roots.block(name, 'dev'))
    node = users.roots.node(name)
    return [
        m
        for m in users.mounts
        if m.number == number
        or (m.number.startswith('0:') and m.source.startswith('/') and users.same(m.source, node))
    ]


def _add_direct_uses(name, chain, users):
    """Adds a sentence for each use of the device itself. chain: as in _add_all_uses()."""
    node, mounted = users.roots.node(name), _device_mounts(name, users)
    for mount in mounted[:MAXIMUM_MOUNTS]:
        where = '' if mount.pid == 'self' else ' for process %s and its container' % mount.pid
        users.add(
            '%s is mounted on %s (%s)%s; free it with: umount %s'
            % (chain, mount.point, mount.kind, where, quote(mount.point))
        )
    for swap in users.swaps:
        if users.same(swap, node):
            users.add('%s is swap space; free it with: swapoff %s' % (chain, node))
    if len(mounted) > MAXIMUM_MOUNTS:
        users.add('%s has %d more mounts' % (chain, len(mounted) - MAXIMUM_MOUNTS))
    if name in users.btrfs and not mounted:
        points = [m.point for member in users.btrfs[name] for m in _device_mounts(member, users)]
        users.add(
            '%s is a member of the btrfs mounted on %s; free it with: umount %s'
            % (
                chain,
                ', '.join(points) or 'a mount point that is not visible',
                ' '.join(quote(point) for point in points),
            )
        )
    for program, remedy, path in users.targets:
        if users.same(path, node):
            users.add('%s is exported by %s; free it with: %s' % (chain, program, remedy))


def _stacked_on(name, users):
    """The kernel names of the devices that are stacked on this one."""
    held = listing(users.roots.block(name, 'holders'))
    looped = [loop for loop, behind in users.loops if users.same(behind, users.roots.node(name))]
    return held + [loop for loop in looped if loop not in held]


def _add_all_uses(name, chain, users, depth=0):
    """Adds a sentence for each use of a device and of all devices stacked on it.

    chain: the start of the sentence, '/dev/sda1' or '/dev/sda1 is in the logical volume vg/data,
    which'.
    """
    _add_direct_uses(name, chain, users)
    for holder in _stacked_on(name, users)[:64] if depth < MAXIMUM_DEPTH else ():
        what, remedy = _holder(holder, users.roots)
        _add_holder_uses(holder, '%s is in %s' % (chain, what), remedy, users, depth + 1)


def _add_holder_uses(holder, chain, remedy, users, depth):
    """Adds a sentence for each use of a holder and its partitions. If there are none, the holder
    itself is the use."""
    before = len(users.sentences)
    _add_all_uses(holder, chain + ', which', users, depth)
    for part in partitions(holder, users.roots):
        _add_all_uses(
            part, '%s, whose partition %s' % (chain, users.roots.node(part)), users, depth
        )
    if len(users.sentences) == before:
        users.add('%s; free it with: %s' % (chain, remedy))


def _add_device_uses(name, users):
    node = users.roots.node(name)
    _add_all_uses(name, node, users)
    for part in partitions(name, users.roots):
        _add_all_uses(part, users.roots.node(part), users)
    parent = whole_disk(name, users.roots)
    if parent != name:
        _add_all_uses(parent, users.roots.node(parent), users)


def _add_file_uses(path, users):
    for loop, behind in users.loops:
        if users.same(behind, path):
            what, remedy = _holder(loop, users.roots)
            _add_holder_uses(loop, '%s is in %s' % (path, what), remedy, users, 1)
    for swap in users.swaps:
        if users.same(swap, path):
            users.add('%s is swap space; free it with: swapoff %s' % (path, quote(path)))
    for program, remedy, exported in users.targets:
        if users.same(exported, path):
            users.add('%s is exported by %s; free it with: %s' % (path, program, remedy))


# -- processes that have the device open -----------------------------------------------------------


def _is_ours(pid, ours, roots):
    """True for the master, this process and the master's children."""
    status = (read_text(roots.proc, pid, 'stat') or '').rpartition(')')[2].split()
    return pid in (str(ours), str(os.getpid())) or status[1:2] == [str(ours)]


def openers(
    path, roots=ROOTS, seconds=SEARCH_SECONDS, ours=None, writers_only=False, open_files=None
):
    """Returns [(process id, program)] of the processes that have a device, one of its partitions or
    a file open.

    This process, or the process `ours`, and its children are not listed. The search stops after
    `seconds` and returns what it has found. open_files: an OpenFiles, if it has been read already.
    """
    ours, keys = ours or os.getpid(), keys_of(path, roots)
    if not keys:
        return []
    open_files = open_files or OpenFiles(path, roots, seconds=seconds)
    return [
        (pid, program_of(pid, roots))
        for pid in open_files.holders(keys, writers_only)
        if not _is_ours(str(pid), ours, roots)
    ]


#: Processes of targetd that outlive their master as long as a call of the kernel does not return.
WAITING_FOR_DISK = ('targetd-job', 'targetd-worker')


def _add_openers(path, users, writers_only):
    found = openers(
        path, users.roots, ours=users.ours, writers_only=writers_only, open_files=users.open_files
    )
    how = 'open for writing' if writers_only else 'open'
    for pid, program in found[:MAXIMUM_OPENERS]:
        if program in WAITING_FOR_DISK:
            users.add(
                '%s is held by a process of another targetd: %s (process %d); stop that targetd; if it has '
                'stopped already, the process ends when the disk answers it' % (path, program, pid)
            )
        elif program.startswith(
            ('tgtd', 'istgt', 'targetd', 'iscsi-scstd', 'ietd', 'nvmf_tgt', 'spdk')
        ):
            users.add(
                '%s is exported by another target: %s (process %d); stop that target to free it'
                % (path, program, pid)
            )
        else:
            users.add(
                '%s is %s by process %d (%s); free it with: kill %d'
                % (path, how, pid, program, pid)
            )
    if len(found) > MAXIMUM_OPENERS:
        users.add('%d more processes have it open' % (len(found) - MAXIMUM_OPENERS))


# -- public functions ------------------------------------------------------------------------------


def find_users(path, roots=ROOTS, search=False, ours=None, tables=None):
    """Returns a list of sentences, one for each use of a block device or file, each with the command
    that frees it; [] if it is not in use.

    search: also search the files that processes have open for writing. For a device that the kernel
    reports as busy, and whose user was not found otherwise, readers are searched too. ours: process
    id of the master, if it is not this process. tables: HostTables, if they have been read already.
    """
    users = _Users(roots, ours, tables)
    name = kernel_name(path, roots)
    if name is None:
        _add_file_uses(os.path.realpath(path), users)
    else:
        _add_device_uses(name, users)
    busy = name is not None and not users.sentences and roots.is_busy(path)
    if search or busy:
        users.read_open_files(path)
        _add_openers(path, users, not busy)
    if (
        busy
        and not users.sentences
        and users.ours in users.open_files.holders(keys_of(path, roots))
    ):
        users.add(
            '%s is already exported by this targetd; remove it from the other target to free it'
            % path
        )
    if busy and not users.sentences:
        users.add(
            '%s is in use by the kernel or by a process that is not visible (a ZFS pool or another '
            'container?); find it with: lsblk %s, zpool status, fuser -v %s' % (path, path, path)
        )
    return users.sentences


def require_free(path, roots=ROOTS, ours=None, tables=None):
    """Raises StoreError if the device or file is in use; the error names each user and the command
    that frees the device. tables: HostTables, if they have been read already."""
    sentences = find_users(path, roots, True, ours, tables)
    if sentences:
        raise StoreError(
            '%s is in use on this host: %s. Exporting it as well would destroy its content; if you are '
            'certain that it does not, write allow-in-use = yes' % (path, '. '.join(sentences))
        )
