"""Finds a SCSI device of this host by any of its nodes (/dev/sgN, /dev/sdX, /dev/srN, /dev/nstN, a link in
/dev/disk/by-id or /dev/tape/by-id, …), and describes it, for type = passthrough.

May import base and host. Only /sys is read, which the kernel has filled from the device; nothing is opened.
"""

import os
import re
from collections import namedtuple

from targetd.errors import StoreError
from targetd.host import disks
from targetd.host.roots import (
    ROOTS,
    kernel_name,
    listing,
    read_bytes,
    read_number,
    read_text,
    whole_disk,
)

#: Peripheral device types (SPC-4) and their names.
TYPES = {0x00: 'disk', 0x01: 'tape drive', 0x05: 'optical drive', 0x07: 'optical disk',
         0x08: 'medium changer', 0x0D: 'enclosure', 0x0E: 'disk', 0x14: 'zoned disk'}  # fmt: skip


#: name: of the sg node ('sg3'); node: its path; number: (major, minor); device_type: peripheral device type;
#: vendor, model, revision, serial, wwn ('naa.…'): '' if unknown; block: path of its block device, '' if it
#: has none; tape: path of its tape device that does not rewind, or ''; size: bytes, 0 if it has no block
#: device; shown: for messages.
class ScsiDevice(
    namedtuple(
        'ScsiDevice',
        'name node number device_type vendor model revision serial wwn block tape size shown',
    )
):
    """A SCSI device of this host, as described above."""

    __slots__ = ()

    @property
    def is_disk(self):
        """True for a disk, which may have partitions and file systems of this host."""
        return self.device_type in (0x00, 0x07, 0x0E, 0x14)


def find_device(path, roots=ROOTS):
    """Returns the ScsiDevice with this node. Raises StoreError."""
    directory = _directory(path, roots)
    generic = listing(directory, 'scsi_generic')
    if not generic:
        raise StoreError(
            '%s has no node of the sg driver, which passes SCSI commands to devices; run "modprobe sg" (and '
            'write sg to /etc/modules-load.d), or serve it with another type' % path
        )
    return describe_device(generic[0], roots)


def resolve_device(text, roots=ROOTS):
    """Returns the ScsiDevice that a backing-store value names: as disks.resolve_backing_store, and
    serial:NUMBER or wwn:NUMBER of a device that is no disk. Raises StoreError."""
    word, _, value = text.partition(':')
    if word not in ('serial', 'wwn') or '+' in value:
        return find_device(disks.resolve_backing_store(text, roots), roots)
    wanted = disks.bare_wwn(value) if word == 'wwn' else value
    found = [
        device
        for device in _all_devices(roots)
        if wanted == (disks.bare_wwn(device.wwn) if word == 'wwn' else device.serial)
    ]
    if len(found) != 1:
        raise StoreError(
            '%s names %s; "targetdctl disks" and "lsscsi -g" list them'
            % (text, 'no SCSI device of this host' if not found else
               '%d SCSI devices: %s' % (len(found), ', '.join(each.node for each in found)))
        )  # fmt: skip
    return found[0]


def _directory(path, roots):
    """The directory in /sys of the SCSI device at a path. Raises StoreError."""
    name = kernel_name(path, roots)
    if name is not None:
        if whole_disk(name, roots) != name:
            raise StoreError(
                '%s is a partition, but type = passthrough serves a whole device; name its disk, or '
                'remove type' % path
            )
        directory = roots.block(name, 'device')
        if not os.path.exists(os.path.join(directory, 'scsi_level')):
            raise StoreError(
                '%s is no SCSI device, so it has no SCSI commands; remove type = passthrough' % path
            )
        return directory
    if not os.path.exists(path):
        raise StoreError(
            '%s does not exist; check that the device is attached: "targetdctl disks" and "lsscsi -g" list '
            'the SCSI devices' % path
        )
    directory = os.path.join(
        roots.sys, 'dev', 'char', roots.character_number(path) or '-', 'device'
    )
    if not os.path.exists(os.path.join(directory, 'scsi_level')):
        raise StoreError(
            '%s is no SCSI device; name a node like /dev/sg3, or remove type = passthrough' % path
        )
    return directory


def describe_device(name, roots=ROOTS):
    """Returns the ScsiDevice with this sg node ('sg3'). Raises StoreError if it is gone."""
    directory = os.path.join(roots.sys, 'class', 'scsi_generic', name)
    number = (read_text(directory, 'dev') or '').split(':')
    if len(number) != 2:
        raise StoreError('%s is not attached any more' % roots.node(name))
    device = os.path.join(directory, 'device')
    kind = read_number(device, 'type')
    blocks, tapes = listing(device, 'block'), listing(device, 'scsi_tape')
    plain = [each for each in tapes if re.match('nst[0-9]+$', each)]
    inquiry = read_bytes(device, 'inquiry') or b''
    vendor, model = _printable(inquiry[8:16]), _printable(inquiry[16:32])
    found = ScsiDevice(
        name=name,
        node=roots.node(name),
        number=(int(number[0]), int(number[1])),
        device_type=0x1F if kind is None else kind,
        vendor=vendor or read_text(device, 'vendor') or '',
        model=model or read_text(device, 'model') or '',
        revision=_printable(inquiry[32:36]) or read_text(device, 'rev') or '',
        serial=disks.serial_of(directory, {}),
        wwn=disks.wwn_of(directory, {}),
        block=roots.node(blocks[0]) if blocks else '',
        tape=roots.node(plain[0]) if plain else '',
        size=(read_number(roots.block(blocks[0], 'size')) or 0) * disks.SECTOR if blocks else 0,
        shown='',
    )
    return found._replace(shown=one_line(found))


def _printable(data):
    return ' '.join(re.sub(r'[^\x21-\x7e]', ' ', data.decode('latin-1')).split())


def one_line(device):
    """Returns the device in words: '/dev/sg3, tape drive, HP Ultrium 6-SCSI, serial HU1'."""
    words = [
        device.node,
        TYPES.get(device.device_type, 'device of type %02Xh' % device.device_type),
    ]
    words.append(('%s %s' % (device.vendor, device.model)).strip())
    words += ['serial ' + device.serial] if device.serial else []
    words += [disks.human_size(device.size)] if device.size else []
    words += [device.wwn] if device.wwn else []
    return ', '.join(word for word in words if word)


def persistent_name(device):
    """Returns what to write as backing-store: a name that does not change, else the sg node."""
    if device.wwn.startswith('naa.'):
        return 'wwn:0x' + device.wwn[4:]
    return 'serial:' + device.serial if device.serial else device.node


def stable_key(device):
    """Returns the key of a ScsiDevice for its state and for records: its WWN or its serial number, else its
    place on the bus, which can change."""
    if device.wwn:
        return device.wwn
    if device.serial:
        return 'serial:%s:%s' % (device.model, device.serial)
    return 'device:%s %s %s' % (device.vendor, device.model, device.name)


def is_attached(number, roots=ROOTS):
    """True if the sg device with this (major, minor) is attached. The number of a device that is gone is not
    used again as long as it is open."""
    return os.path.exists(os.path.join(roots.sys, 'dev', 'char', '%d:%d' % tuple(number)))


def list_devices(roots=ROOTS):
    """Returns [ScsiDevice] of the SCSI devices of this host that are no disks."""
    return [device for device in _all_devices(roots) if device.device_type != 0x00]


def _all_devices(roots):
    found = []
    for name in listing(roots.sys, 'class', 'scsi_generic'):
        try:
            found.append(describe_device(name, roots))
        except StoreError:
            continue  # it was removed meanwhile
    return found
