"""Finds out whether this host relies on a disk that it does not use at the moment: the host's
configuration names the disk, or a volume manager of the host has a record of it. Exporting that
disk writable would destroy the host's data just as exporting a mounted disk would.

May import base and host. A disk that only *looks* like a host's disk (an LVM volume, a RAID member)
is not claimed: in most cases an initiator wrote that format. Evidence is a record of this host:
fstab and crypttab, LVM's backup files, mdadm.conf or the array's home host, the ZFS pool cache or
the pool's host name. Every sentence names the record and the command or edit that ends the claim.
"""

import os
import re
import struct

from targetd.host.roots import ROOTS, kernel_name, listing, partitions, read_bytes, read_text
from targetd.host.signatures import KIB

ACTIVE = bytes(8)  # the state of a pool that was not exported
LINKS = {
    'UUID': 'by-uuid',
    'LABEL': 'by-label',
    'PARTUUID': 'by-partuuid',
    'PARTLABEL': 'by-partlabel',
}


# -- fstab and crypttab ----------------------------------------------------------------------------


def _lines(*parts):
    for line in (read_text(*parts) or '').splitlines():
        words = line.split()
        if words and not words[0].startswith('#'):
            yield words


def _named(word, roots):
    """The device node that the first field of an fstab line refers to, or None."""
    match = re.match(r'^(UUID|LABEL|PARTUUID|PARTLABEL)="?([^"]*)"?$', word)
    path = os.path.join(roots.dev, 'disk', LINKS[match.group(1)], match.group(2)) if match else word
    return os.path.realpath(path) if path.startswith('/') else None


def _tables(names, roots):
    nodes = {os.path.realpath(roots.node(name)): roots.node(name) for name in names}
    for words in _lines(roots.etc, 'fstab'):
        node = nodes.get(_named(words[0], roots))
        if node and len(words) > 2 and 'noauto' not in (words + [''])[3].split(','):
            what = 'as swap space' if words[2] == 'swap' else 'to be mounted on %s' % words[1]
            yield (
                '%s is listed in /etc/fstab %s; remove that line, or add the option noauto to it'
                % (node, what)
            )
    for words in _lines(roots.etc, 'crypttab'):
        node = nodes.get(_named(words[1], roots)) if len(words) > 1 else None
        if node and 'noauto' not in (words + ['', ''])[3].split(','):
            yield (
                '%s is listed in /etc/crypttab as %s; remove that line, or add the option noauto'
                % (node, words[0])
            )


# -- volume managers -------------------------------------------------------------------------------


def _lvm(signature, descriptor, roots):
    """LVM writes the UUIDs of all physical volumes of a volume group to /etc/lvm/backup when this
    host changes or activates the group."""
    raw = signature.details
    name = '-'.join(
        (raw[:6], raw[6:10], raw[10:14], raw[14:18], raw[18:22], raw[22:26], raw[26:32])
    )
    for group in listing(roots.etc, 'lvm', 'backup'):
        if len(raw) == 32 and 'id = "%s"' % name in (
            read_text(roots.etc, 'lvm', 'backup', group) or ''
        ):
            yield (
                'is a physical volume of the volume group %s of this host (/etc/lvm/backup/%s); remove '
                'it from the group with vgreduce, or export the group with: vgexport %s && '
                'rm /etc/lvm/backup/%s' % (group, group, group, group)
            )


def _arrays(roots):
    """The array UUIDs in mdadm.conf, each as 32 hex digits."""
    found = set()
    for place in (('mdadm', 'mdadm.conf'), ('mdadm.conf',)):
        for words in _lines(roots.etc, *place):
            found.update(
                word[5:].replace(':', '').lower()
                for word in words
                if words[0].upper() == 'ARRAY' and word.upper().startswith('UUID=')
            )
    return found


def _md(signature, descriptor, roots):
    block = os.pread(descriptor, 64, signature.offset)
    home, _, name = signature.details.partition(':')
    remedy = 'if the array is no longer needed, run mdadm --zero-superblock'
    if len(block) == 64 and signature.what.endswith(('1.0)', '1.1)', '1.2)')):
        if block[16:32].hex() in _arrays(roots):
            yield (
                'is a member of an array of this host (mdadm.conf has its UUID); remove the array from '
                'mdadm.conf, and %s' % remedy
            )
        elif name and home in (os.uname().nodename, os.uname().nodename.split('.')[0]):
            yield 'is a member of the array %s, which this host created; %s' % (name, remedy)


def _pair(label, name, length):
    """The first `length` bytes of the value of a name in the label's nvlist (XDR), or b''."""
    at = label.find(struct.pack('>I', len(name)) + name)
    start = at + 4 + (len(name) + 3 & ~3) + 8  # the value's type and count follow the name
    return label[start : start + length] if at >= 0 else b''


def _zfs(signature, descriptor, roots):
    label = os.pread(descriptor, 112 * KIB, signature.offset + 16 * KIB)
    guid, host, state = (
        _pair(label, b'pool_guid', 8),
        _pair(label, b'hostname', 68),
        _pair(label, b'state', 8),
    )
    cache = read_bytes(roots.etc, 'zfs', 'zpool.cache') or b''
    count = struct.unpack('>I', host[:4])[0] if len(host) >= 4 else 0
    pool = _pair(label, b'name', 260)
    pool = (
        pool[4 : 4 + struct.unpack('>I', pool[:4])[0]].decode('utf-8', 'replace')
        if len(pool) >= 4
        else ''
    )
    was_here = (
        count
        and host[4 : 4 + count].decode('utf-8', 'replace') == os.uname().nodename
        and state == ACTIVE
    )
    if was_here or (len(guid) == 8 and guid in cache):
        yield (
            'belongs to the ZFS pool "%s" of this host; release it with: zpool export %s, or zpool '
            'destroy' % (pool, pool)
        )


MANAGERS = (('LVM physical volume', _lvm), ('member of a Linux RAID', _md), ('ZFS', _zfs))


# -- public functions ------------------------------------------------------------------------------


def find_claims(path, signatures, descriptor, roots=ROOTS):
    """Returns a list of sentences: why this host relies on the block device at `path`; [] if no
    evidence is found.

    signatures: the result of signatures.find_signatures(); descriptor: open for reading. Raises
    nothing: a record that cannot be read is not evidence.
    """
    name = kernel_name(path, roots)
    if name is None:
        return []
    found = list(_tables([name] + partitions(name, roots), roots))
    for signature in signatures:
        for what, reason in MANAGERS:
            if signature.what.startswith(what):
                where = ', partition %d,' % signature.partition if signature.partition else ''
                found += [
                    '%s%s %s' % (path, where, sentence)
                    for sentence in _records(reason, signature, descriptor, roots)
                ]
    return found


def _records(reason, signature, descriptor, roots):
    try:
        return list(reason(signature, descriptor, roots))
    except OSError:  # a record that cannot be read is not evidence
        return []
