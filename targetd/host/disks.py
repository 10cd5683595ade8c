"""Finds the disks of this host by persistent names (serial number, WWN, …) and describes them by
their own identification data.

May import base and host. The data is read from /sys first (the kernel read it from the device) and
from the udev database second (old kernels show no VPD pages in /sys). No device is opened, so no
disk spins up and no permission is needed.
"""

import difflib
import os
import re
import stat
import struct
from collections import namedtuple

from targetd.errors import StoreError
from targetd.host.roots import (
    ROOTS,
    kernel_name,
    listing,
    partitions,
    read_bytes,
    read_number,
    read_text,
    udev_properties,
    whole_disk,
)
from targetd.nbd import uri

# the unit of /sys/class/block/*/size, for every logical block size of the disk
SECTOR = 512

#: Description of a disk. name: kernel name, None for a file; path: device node; kind: 'disk',
#: 'partition' or 'file'; size: bytes; serial, wwn ('naa.…', 'eui.…' as the kernel writes it),
#: model, vendor, revision: '' if unknown; rotational: bool or None if unknown; transport: 'sata',
#: 'usb', 'nvme', …, '' if unknown; logical_sector, physical_sector: bytes.
Disk = namedtuple(
    'Disk',
    'name path kind size model vendor revision serial wwn rotational transport removable read_only '
    'logical_sector physical_sector',
)

#: Keywords that may precede a ':' in a backing-store; several terms are joined by '+'.
KEYS = (
    'serial',
    'wwn',
    'model',
    'size',
    'part',
    'by-id',
    'by-path',
    'by-uuid',
    'by-label',
    'by-partuuid',
    'by-partlabel',
)

# (part of the sysfs path, transport); the first match wins, so the layers nearest to the disk are
# listed first
TRANSPORTS = (
    (re.compile(r'/session\d+/'), 'iscsi'),
    (re.compile(r'/usb\d+/'), 'usb'),
    (re.compile(r'/ata\d+/'), 'sata'),
    (re.compile(r'/rport-'), 'fc'),
    (re.compile(r'/end_device-'), 'sas'),
    (re.compile(r'/nvme'), 'nvme'),
    (re.compile(r'/virtio\d+/'), 'virtio'),
    (re.compile(r'/vbd-'), 'xen'),
    (re.compile(r'/mmc_host/'), 'mmc'),
    (re.compile(r'/virtual/block/loop'), 'loop'),
    (re.compile(r'/virtual/block/dm-'), 'dm'),
    (re.compile(r'/virtual/block/md'), 'md'),
    (re.compile(r'/virtual/block/(zram|ram)'), 'ram'),
    (re.compile(r'/host\d+/'), 'scsi'),
)

_SELECTOR = re.compile(r'^([a-z][a-z-]*):(?!//)(.*)$', re.S)
_JOINT = re.compile(r'\+(?=(?:%s):)' % '|'.join(KEYS))
_UNITS = {'': 1, 'k': 1, 'm': 2, 'g': 3, 't': 4, 'p': 5}


# -- identification data of a disk -----------------------------------------------------------------


def _printable(text):
    return ' '.join((text or '').replace('\0', ' ').split())


def _page_80(directory):
    """The unit serial number of VPD page 80h (SPC-4), or ''."""
    page = read_bytes(directory, 'device', 'vpd_pg80')
    if not page or len(page) < 4:
        return ''
    return _printable(page[4 : 4 + struct.unpack_from('>H', page, 2)[0]].decode('ascii', 'replace'))


def _page_83(directory):
    """The preferred designator of the logical unit in VPD page 83h (SPC-4), as 'naa.…' or 'eui.…',
    or ''."""
    page = read_bytes(directory, 'device', 'vpd_pg83') or b''
    found = {}
    offset = 4
    while offset + 4 <= len(page):
        length = page[offset + 3]
        association, kind = page[offset + 1] >> 4 & 3, page[offset + 1] & 15
        if association == 0 and kind in (2, 3) and page[offset] & 15 == 1:
            found.setdefault(kind, page[offset + 4 : offset + 4 + length].hex())
        offset += 4 + length
    return 'naa.' + found[3] if 3 in found else 'eui.' + found[2] if 2 in found else ''


def _ata_model(directory):
    """The full model of an ATA disk from VPD page 89h (SAT-3), or ''. INQUIRY data holds only 16 of
    its 40 characters."""
    page = read_bytes(directory, 'device', 'vpd_pg89')
    if not page or len(page) < 60 + 94:
        return ''
    swapped = page[60 + 54 : 60 + 94]
    return _printable(
        b''.join(swapped[i + 1 : i + 2] + swapped[i : i + 1] for i in range(0, 40, 2)).decode(
            'ascii', 'replace'
        )
    )


def _usb_serial(directory):
    """The serial number of the USB device that a disk is connected through, or ''."""
    place = os.path.realpath(os.path.join(directory, 'device'))
    while len(place) > 1:
        if os.path.exists(os.path.join(place, 'idVendor')):
            return read_text(place, 'serial') or ''
        place = os.path.dirname(place)
    return ''


def serial_of(directory, udev):
    """The serial number of the device of a directory in /sys/class, or ''. udev: its udev properties."""
    return (
        _page_80(directory)
        or _printable(read_text(directory, 'serial'))
        or _printable(read_text(directory, 'device', 'serial'))
        or udev.get('ID_SERIAL_SHORT', '')
        or udev.get('ID_SCSI_SERIAL', '')
        or _usb_serial(directory)
    )


def wwn_of(directory, udev):
    """Its WWN, as the kernel writes it ('naa.…'), or ''."""
    for candidate in (
        read_text(directory, 'device', 'wwid'),
        read_text(directory, 'wwid'),
        _page_83(directory),
    ):
        if candidate and candidate.startswith(('naa.', 'eui.', 'uuid.', 'nvme.')):
            return candidate
    noted = udev.get('ID_WWN_WITH_EXTENSION') or udev.get('ID_WWN') or ''
    return 'naa.' + noted[2:] if noted.startswith('0x') else noted


def _model(directory, udev):
    encoded = re.sub(
        r'\\x([0-9a-fA-F]{2})', lambda m: chr(int(m.group(1), 16)), udev.get('ID_MODEL_ENC', '')
    )
    return (
        _ata_model(directory)
        or _printable(encoded)
        or _printable(read_text(directory, 'device', 'model'))
        or _printable(read_text(directory, 'device', 'name'))
    )


def _vendor(directory):
    vendor = _printable(read_text(directory, 'device', 'vendor'))
    return '' if vendor.startswith('0x') else vendor  # PCI and virtio devices have a number here


def _transport(directory):
    place = os.path.realpath(directory) + '/'
    for pattern, word in TRANSPORTS:
        if pattern.search(place):
            return word
    return ''


def _flag(*parts):
    number = read_number(*parts)
    return None if number is None else bool(number)


def describe_name(name, roots=ROOTS):
    """Returns the Disk with this kernel name. A partition has its own size and name; all other
    fields (model, serial, …) are those of its disk."""
    parent = whole_disk(name, roots)
    directory = roots.block(parent)
    udev = udev_properties(parent, roots)
    return Disk(
        name=name,
        path=roots.node(name),
        kind='disk' if parent == name else 'partition',
        size=(read_number(roots.block(name, 'size')) or 0) * SECTOR,
        model=_model(directory, udev),
        vendor=_vendor(directory),
        revision=_printable(
            read_text(directory, 'device', 'rev') or read_text(directory, 'device', 'firmware_rev')
        ),
        serial=serial_of(directory, udev),
        wwn=wwn_of(directory, udev),
        rotational=_flag(directory, 'queue', 'rotational'),
        transport=_transport(directory),
        removable=bool(_flag(directory, 'removable')),
        read_only=bool(_flag(roots.block(name, 'ro'))),
        logical_sector=read_number(directory, 'queue', 'logical_block_size') or SECTOR,
        physical_sector=read_number(directory, 'queue', 'physical_block_size') or SECTOR,
    )


def describe_disk(path, roots=ROOTS):
    """Returns the Disk at a path: a block device, a partition or a file. Raises StoreError if the
    path does not exist or is something else."""
    name = kernel_name(path, roots)
    if name is not None:
        return describe_name(name, roots)
    try:
        status = os.stat(path)
    except OSError as e:
        raise StoreError('%s: %s' % (path, e.strerror))
    if not stat.S_ISREG(status.st_mode):
        raise StoreError('%s is neither a block device nor a file' % path)
    read_only = not status.st_mode & 0o222
    return Disk(
        name=None,
        path=path,
        kind='file',
        size=status.st_size,
        model='',
        vendor='',
        revision='',
        serial='',
        wwn='',
        rotational=None,
        transport='file',
        removable=False,
        read_only=read_only,
        logical_sector=SECTOR,
        physical_sector=SECTOR,
    )


def list_disks(roots=ROOTS):
    """Returns the Disk of every disk of this host that has a medium, sorted by name, without
    partitions."""
    found = []
    for name in listing(roots.block()):
        if not os.path.exists(roots.block(name, 'partition')) and read_number(
            roots.block(name, 'size')
        ):
            found.append(describe_name(name, roots))
    return found


def persistent_name(disk):
    """Returns the backing-store value that finds this disk at whatever port it is connected to:
    'serial:…', 'wwn:…', or its path if it has neither."""
    if disk.serial:
        return 'serial:' + disk.serial
    return 'wwn:' + disk.wwn if disk.wwn else disk.path


# -- search by persistent name ---------------------------------------------------------------------


def _folded(text):
    """The text for comparisons that ignore case, and the difference between spaces and underscores:
    udev writes '_' where the disk has ' '."""
    return re.sub(r'[\s_]+', ' ', text).strip().lower()


def bare_wwn(text):
    return (
        re.sub(r'^(naa\.|eui\.|wwn-|nvme\.|uuid\.)?(0x)?', '', text.strip().lower())
        .replace('-', '')
        .replace(':', '')
    )


def _has_serial(disk, wanted, links):
    if disk.serial:
        return disk.serial.lower() == wanted.strip().lower()
    return any(link.lower().endswith('_' + wanted.strip().lower()) for link in links)


def _has_size(disk, wanted):
    """A plain number must match exactly. A number with a unit matches within 1 %, with decimal
    (1000) or binary (1024) units."""
    match = re.match(r'^([0-9.]+)\s*([kmgtp]?)i?b?$', wanted.strip().lower())
    try:
        figure = float(match.group(1))
    except (AttributeError, ValueError):
        raise StoreError(
            'size:%s is not a valid size; write a number of bytes, or a number with the unit K, M, G, '
            'T or P, such as 4T' % wanted
        )
    if not match.group(2):
        return disk.size == int(figure)
    return any(
        abs(disk.size - figure * base ** _UNITS[match.group(2)]) <= disk.size / 100.0
        for base in (1000, 1024)
    )


def _links(name, roots):
    """The names in /dev/disk/by-id of the device with this kernel name."""
    directory = os.path.join(roots.dev, 'disk', 'by-id')
    node = os.path.realpath(roots.node(name))
    return [
        entry
        for entry in listing(directory)
        if os.path.realpath(os.path.join(directory, entry)) == node
    ]


def _matches(disk, key, value, roots):
    if key == 'serial':
        return _has_serial(disk, value, () if disk.serial else _links(disk.name, roots))
    if key == 'wwn':
        return bool(disk.wwn) and bare_wwn(disk.wwn) == bare_wwn(value)
    if key == 'model':
        return bool(disk.model) and (
            _folded(disk.model).startswith(_folded(value))
            or _folded(disk.vendor + ' ' + disk.model).startswith(_folded(value))
        )
    if key == 'size':
        return _has_size(disk, value)
    return os.path.realpath(os.path.join(roots.dev, 'disk', key, value)) == os.path.realpath(
        disk.path
    )


def _parse(text):
    """'model:X+size:4T' -> [('model', 'X'), ('size', '4T')]; None for a plain path. Raises
    StoreError for an unknown keyword."""
    if text.startswith('/') or not _SELECTOR.match(text):
        return None
    pieces = []
    for piece in _JOINT.split(text):
        key, value = _SELECTOR.match(piece).groups()
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            known = 'write a path or one of %s' % ', '.join(k + ':' for k in KEYS)
            raise StoreError(
                '%s: %s: is not a way to name a disk; %s'
                % (text, key, 'did you mean %s:?' % near[0] if near else known)
            )
        if not value.strip():
            raise StoreError('%s: the value after %s: is missing' % (text, key))
        pieces.append((key, value.strip()))
    return pieces


def _common_multipath(candidates, roots):
    """The multipath device of all candidates if they are paths to the same disk, else None."""
    above = [
        set(
            h
            for h in listing(roots.block(disk.name, 'holders'))
            if (read_text(roots.block(h, 'dm', 'uuid')) or '').startswith('mpath-')
        )
        for disk in candidates
    ]
    common = set.intersection(*above) if above else set()
    return common.pop() if len(common) == 1 else None


def one_line(disk):
    """Returns the text that names a disk in messages: '/dev/sdb (4.0 TB, WDC WD40EFRX, serial WD-1)'."""
    facts = [human_size(disk.size)] + [
        f for f in (' '.join((disk.vendor, disk.model)).strip(),) if f
    ]
    if disk.serial:
        facts.append('serial %s' % disk.serial)
    return '%s (%s)' % (disk.path, ', '.join(facts))


def human_size(size):
    """Returns a number of bytes with a decimal unit, as disk vendors write it: '4.0 TB'."""
    figure = float(size)
    for unit in ('bytes', 'kB', 'MB', 'GB', 'TB'):
        if figure < 1000:
            return '%d bytes' % size if unit == 'bytes' else '%.1f %s' % (figure, unit)
        figure /= 1000
    return '%.1f PB' % figure


def _only_candidate(text, candidates, roots):
    if len(candidates) > 1:
        joint = _common_multipath(candidates, roots)
        if joint is not None:
            return joint
        raise StoreError(
            '%s matches %d disks: %s; name one of them, for example by its serial: or wwn:'
            % (text, len(candidates), ', '.join(one_line(d) for d in candidates))
        )
    if not candidates:
        known = [one_line(d) for d in list_disks(roots) if d.transport not in ('loop', 'ram')]
        raise StoreError(
            '%s matches no disk of this host; its disks are: %s'
            % (text, ', '.join(known) or 'none')
        )
    return candidates[0].name


def _partition(text, name, number, roots):
    for part in partitions(name, roots):
        if str(read_number(roots.block(part, 'partition'))) == number:
            return part
    raise StoreError('%s: %s has no partition %s' % (text, roots.node(name), number))


def _by_link(text, key, value, roots):
    """The device node of a name in /dev/disk. It may be a partition; list_disks() has none."""
    link = os.path.join(roots.dev, 'disk', key, value)
    if value in ('.', '..') or '/' in value or not os.path.exists(link):
        near = difflib.get_close_matches(value, listing(roots.dev, 'disk', key), 3)
        raise StoreError(
            '%s: there is no %s%s'
            % (text, link, '; similar names are %s' % ', '.join(near) if near else '')
        )
    return os.path.realpath(link)


def _resolve_path(text, roots):
    if not text.startswith('/'):
        raise StoreError(
            '%r is neither an absolute path nor a name such as serial:WD-1, wwn:0x5000…, by-id:…, '
            'model:…+size:…' % text
        )
    path = os.path.realpath(text)
    if not os.path.exists(path) and (text + '/').startswith(roots.dev.rstrip('/') + '/'):
        near = difflib.get_close_matches(os.path.basename(text), listing(os.path.dirname(text)), 3)
        raise StoreError(
            '%s does not exist%s'
            % (text, '; similar names are %s' % ', '.join(near) if near else '')
        )
    return path


def resolve_backing_store(text, roots=ROOTS):
    """Returns the path that a backing-store value refers to, with symbolic links resolved.

    text: the URI of an NBD export, which is returned as it is; a path, or `serial:WD-1`,
    `wwn:0x5000…`, `by-id:…` (and the other directories of /dev/disk), `model:…`, `size:…`, joined
    by '+' where one term is ambiguous; an additional `part:2` selects a partition. A path outside
    /dev need not exist (the file may be created later). Raises StoreError, naming the candidates,
    unless exactly one disk matches.
    """
    if uri.is_uri(text):
        return text
    pieces = _parse(text)
    if pieces is None:
        return _resolve_path(text, roots)
    wanted = [(key, value) for key, value in pieces if key != 'part']
    parts = [value for key, value in pieces if key == 'part']
    if not wanted or len(parts) > 1:
        raise StoreError('%s does not name one disk; write for example serial:WD-1+part:2' % text)
    if len(pieces) == 1 and wanted[0][0].startswith('by-'):
        return _by_link(text, wanted[0][0], wanted[0][1], roots)
    for key, value in wanted:
        if key.startswith('by-'):
            _by_link(text, key, value, roots)
    candidates = [
        disk
        for disk in list_disks(roots)
        if all(_matches(disk, key, value, roots) for key, value in wanted)
    ]
    name = _only_candidate(text, candidates, roots)
    return roots.node(_partition(text, name, parts[0], roots) if parts else name)
