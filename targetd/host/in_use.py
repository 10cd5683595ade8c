"""Who on this host uses a disk or an image, asked before it is exported: two writers on one disk
destroy its content.

May import base and host. Invariants: nothing is opened for writing and nothing is changed; the
answer names the user from the disk up ('sdb1 is in md0, which is in dm-2 …') and the line that
frees it; the search through open files of all processes is made only when the kernel says that
somebody holds the device and nobody else has owned up, and is bounded in time.
"""

import os
import re
import time
from collections import namedtuple
from shlex import quote

import psutil

from targetd.errors import StoreError
from targetd.host.roots import ROOTS, kernel_name, listing, partitions, read_text, whole_disk

SEARCH_SECONDS = 2.0  # the longest that the search through open files may take
MAXIMUM_NAMESPACES = 256  # mount namespaces that are read; a host of containers has fewer
MAXIMUM_MOUNTS = 4  # mounts of one device that are named; the rest are counted
MAXIMUM_DEPTH = 16  # devices on devices; the kernel itself stops sooner

#: A mount, as any namespace shows it. number: 'major:minor'; source: what was mounted; pid: a
#: process that sees it.
Mount = namedtuple('Mount', 'number source point kind pid')


# -- what the kernel says ----------------------------------------------------------------------------------------------------


def _unescaped(text):
    r"""mountinfo and swaps write a space as \040."""
    return re.sub(r'\\([0-7]{3})', lambda m: chr(int(m.group(1), 8)), text)


def _parse_mountinfo(text, pid):
    for line in (text or '').splitlines():
        fields = line.split(' ')
        if '-' not in fields or len(fields) < 10:
            continue
        tail = fields[fields.index('-', 6) + 1 :]
        yield Mount(fields[2], _unescaped(tail[1]), _unescaped(fields[4]), tail[0], pid)


def _namespaces(roots):
    """One process id of every mount namespace that may be looked into, our own first."""
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
    """Every Mount of every mount namespace that can be read; each (device, point) once."""
    found = {}
    for pid in _namespaces(roots):
        for mount in _parse_mountinfo(read_text(roots.proc, pid, 'mountinfo'), pid):
            found.setdefault((mount.number, mount.source, mount.point), mount)
    return list(found.values())


def _swaps(roots):
    lines = (read_text(roots.proc, 'swaps') or '').splitlines()[1:]
    return [_unescaped(line.split()[0]) for line in lines if line.split()]


def _btrfs_members(roots):
    """{kernel name: the names of all members of the mounted btrfs that it belongs to}; mountinfo
    shows one member only."""
    members = {}
    for fsid in listing(roots.sys, 'fs', 'btrfs'):
        names = listing(roots.sys, 'fs', 'btrfs', fsid, 'devices')
        members.update((name, names) for name in names)
    return members


def _loops(roots):
    """[(kernel name of a loop device, the file or device behind it)]."""
    names = [name for name in listing(roots.block()) if name.startswith('loop')]
    pairs = [(name, read_text(roots.block(name, 'loop', 'backing_file'))) for name in names]
    return [(name, behind) for name, behind in pairs if behind]


def _kernel_targets(roots):
    """[(what it is, path)] of what the kernel's own SCSI targets export."""
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


class _View(object):
    """What one question needs to know of the host, read once."""

    def __init__(self, roots, ours=None):
        self.roots = roots
        self.ours = ours or os.getpid()
        self.mounts = mounts(roots)
        self.swaps = _swaps(roots)
        self.btrfs = _btrfs_members(roots)
        self.loops = _loops(roots)
        self.targets = _kernel_targets(roots)
        self.sentences = []

    def say(self, sentence):
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def same(self, path, other):
        """True if both paths are the same file or device."""
        return os.path.realpath(path) == os.path.realpath(other)


# -- who sits on a device ----------------------------------------------------------------------------------------------------


def _lvm_names(name):
    """A device-mapper name of LVM as (volume group, logical volume): '-' parts them, '--' stands
    for '-'."""
    match = re.match(r'^((?:[^-]|--)+)-((?:[^-]|--)+)', name)
    return tuple(part.replace('--', '-') for part in match.groups()) if match else (name, '')


def _mapped(holder, roots):
    """(what a device-mapper device is, how it is taken down)."""
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
    """(what a device that sits on another is, how it is taken down)."""
    if holder.startswith('md'):
        level = read_text(roots.block(holder, 'md', 'level')) or 'array'
        return 'the %s array %s' % (level, roots.node(holder)), 'mdadm --stop %s' % roots.node(
            holder
        )
    if holder.startswith('dm-'):
        return _mapped(holder, roots)
    if holder.startswith('bcache'):
        return 'the cache device %s' % roots.node(
            holder
        ), 'echo 1 > /sys/block/%s/bcache/stop' % holder
    if holder.startswith('drbd'):
        return 'the replicated device %s' % roots.node(
            holder
        ), 'drbdadm down the resource of %s' % roots.node(holder)
    if holder.startswith('loop'):
        return 'the loop device %s' % roots.node(holder), 'losetup -d %s' % roots.node(holder)
    return 'the device %s' % roots.node(holder), 'take %s down' % roots.node(holder)


def _device_mounts(name, view):
    """The mounts of one device: by number, or by name where a file system has numbers of its own
    (btrfs)."""
    number = read_text(view.roots.block(name, 'dev'))
    node = view.roots.node(name)
    return [
        m
        for m in view.mounts
        if m.number == number
        or (m.number.startswith('0:') and m.source.startswith('/') and view.same(m.source, node))
    ]


def _direct_uses(name, chain, view):
    """Say how the device itself is used. chain: as in _climb."""
    node, mounted = view.roots.node(name), _device_mounts(name, view)
    for mount in mounted[:MAXIMUM_MOUNTS]:
        where = '' if mount.pid == 'self' else ' for process %s and its container' % mount.pid
        view.say(
            '%s is mounted on %s (%s)%s; free it with: umount %s'
            % (chain, mount.point, mount.kind, where, quote(mount.point))
        )
    for swap in view.swaps:
        if view.same(swap, node):
            view.say('%s is swap space; free it with: swapoff %s' % (chain, node))
    if len(mounted) > MAXIMUM_MOUNTS:
        view.say('%s is mounted in %d more places' % (chain, len(mounted) - MAXIMUM_MOUNTS))
    if name in view.btrfs and not mounted:
        points = [m.point for member in view.btrfs[name] for m in _device_mounts(member, view)]
        view.say(
            '%s is a member of the btrfs mounted on %s; free it with: umount %s'
            % (
                chain,
                ', '.join(points) or 'a place that cannot be seen',
                ' '.join(quote(point) for point in points),
            )
        )
    for program, remedy, path in view.targets:
        if view.same(path, node):
            view.say('%s is exported by %s; free it with: %s' % (chain, program, remedy))


def _above(name, view):
    """The devices that sit on this one, with what and how each is."""
    held = listing(view.roots.block(name, 'holders'))
    looped = [loop for loop, behind in view.loops if view.same(behind, view.roots.node(name))]
    return held + [loop for loop in looped if loop not in held]


def _climb(name, chain, view, depth=0):
    """Say every use of a device and of all that sits on it.

    chain: the sentence so far, '/dev/sda1' or '/dev/sda1 is in the logical volume vg/data, which'.
    """
    _direct_uses(name, chain, view)
    for holder in _above(name, view)[:64] if depth < MAXIMUM_DEPTH else ():
        what, remedy = _holder(holder, view.roots)
        _climb_holder(holder, '%s is in %s' % (chain, what), remedy, view, depth + 1)


def _climb_holder(holder, chain, remedy, view, depth):
    """Say every use of a holder and its partitions; if there is none, that it holds the device is
    the use."""
    before = len(view.sentences)
    _climb(holder, chain + ', which', view, depth)
    for part in partitions(holder, view.roots):
        _climb(part, '%s, whose partition %s' % (chain, view.roots.node(part)), view, depth)
    if len(view.sentences) == before:
        view.say('%s; free it with: %s' % (chain, remedy))


def _device_uses(name, view):
    node = view.roots.node(name)
    _climb(name, node, view)
    for part in partitions(name, view.roots):
        _climb(part, view.roots.node(part), view)
    parent = whole_disk(name, view.roots)
    if parent != name:
        _climb(parent, view.roots.node(parent), view)


def _file_uses(path, view):
    for loop, behind in view.loops:
        if view.same(behind, path):
            what, remedy = _holder(loop, view.roots)
            _climb_holder(loop, '%s is in %s' % (path, what), remedy, view, 1)
    for swap in view.swaps:
        if view.same(swap, path):
            view.say('%s is swap space; free it with: swapoff %s' % (path, quote(path)))
    for program, remedy, exported in view.targets:
        if view.same(exported, path):
            view.say('%s is exported by %s; free it with: %s' % (path, program, remedy))


# -- who has it open ---------------------------------------------------------------------------------------------------------


def _program(pid, roots):
    try:
        if roots.proc == ROOTS.proc:
            return psutil.Process(int(pid)).name()
    except psutil.Error:
        pass
    return read_text(roots.proc, pid, 'comm') or 'unknown program'


def _holds(pid, wanted, roots):
    """True if a process has one of the wanted paths or block devices open."""
    for descriptor in listing(roots.proc, pid, 'fd'):
        link = os.path.join(roots.proc, pid, 'fd', descriptor)
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target in wanted or (
            target.startswith(roots.dev + '/') and roots.device_number(link) in wanted
        ):
            return True
    return False


def _wanted(path, roots):
    """What an open descriptor of a device, one of its partitions or a file looks like: real path
    and device numbers."""
    wanted = {os.path.realpath(path)}
    name = kernel_name(path, roots)
    if name is not None:
        wanted.update(
            read_text(roots.block(each, 'dev')) for each in [name] + partitions(name, roots)
        )
    return wanted


def _is_ours(pid, ours, roots):
    """True for the master, this process and the master's children."""
    status = (read_text(roots.proc, pid, 'stat') or '').rpartition(')')[2].split()
    return pid in (str(ours), str(os.getpid())) or status[1:2] == [str(ours)]


def openers(path, roots=ROOTS, seconds=SEARCH_SECONDS, ours=None):
    """[(process id, program)] of the processes that have a device, one of its partitions or a file
    open.

    This process, or process `ours`, and its children are left out. Stops after `seconds` with what
    was found. Only root sees other users' files.
    """
    wanted, ours = _wanted(path, roots), ours or os.getpid()
    found, deadline = [], time.monotonic() + seconds
    for pid in sorted((entry for entry in listing(roots.proc) if entry.isdigit()), key=int):
        if _holds(pid, wanted, roots) and not _is_ours(pid, ours, roots):
            found.append((int(pid), _program(pid, roots)))
        if time.monotonic() > deadline:
            break
    return found


def _say_openers(path, view):
    for pid, program in openers(path, view.roots, ours=view.ours):
        if program.startswith(
            ('tgtd', 'istgt', 'targetd', 'iscsi-scstd', 'ietd', 'nvmf_tgt', 'spdk')
        ):
            view.say(
                '%s is exported by another target: %s (process %d); free it with: stop that target'
                % (path, program, pid)
            )
        else:
            view.say(
                '%s is open by process %d (%s); free it with: kill %d' % (path, pid, program, pid)
            )


# -- the doors ---------------------------------------------------------------------------------------------------------------


def users(path, roots=ROOTS, search=False, ours=None):
    """Who uses a block device or file: a list of plain sentences, each with the line that frees it;
    [] if nobody does.

    search: also look through the open files of all processes, as is done anyway for a device that
    the kernel calls busy and whose user is not found otherwise. ours: the process that serves, if
    it is not this one.
    """
    view = _View(roots, ours)
    name = kernel_name(path, roots)
    if name is None:
        _file_uses(os.path.realpath(path), view)
    else:
        _device_uses(name, view)
    busy = name is not None and not view.sentences and roots.is_busy(path)
    if busy or search:
        _say_openers(path, view)
    if busy and not view.sentences and _holds(str(view.ours), _wanted(path, roots), roots):
        view.say(
            '%s is exported by this targetd already; free it with: take it out of the other target'
            % path
        )
    if busy and not view.sentences:
        view.say(
            '%s is held by the kernel or a process that cannot be seen (ZFS pool? another container?); look with: '
            'lsblk %s, zpool status, fuser -v %s' % (path, path, path)
        )
    return view.sentences


def require_free(path, roots=ROOTS, ours=None):
    """Raise StoreError naming every user of the device or file, and what to do; return if nobody
    uses it."""
    sentences = users(path, roots, ours=ours)
    if sentences:
        raise StoreError(
            '%s is in use on this host: %s. Exporting it as well would destroy its content; if it is '
            'certain that it does not, write allow-in-use = yes' % (path, '. '.join(sentences))
        )
