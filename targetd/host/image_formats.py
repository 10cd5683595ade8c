"""Recognises files that are the disk images of other programs: what initiators must see is the disk in
the image, not the bytes of the file.

May import base and host. Reads a few blocks at both ends through a descriptor and changes nothing. A
fixed VHD is recognised by its last 512 bytes only, since its data begins at the first one.
"""

import os
from collections import namedtuple

SECTOR = 512

#: A format of disk images. what: its name in messages; qemu: its name in the programs of QEMU.
ImageFormat = namedtuple('ImageFormat', 'what qemu')

# what, name in QEMU, offset in bytes (negative: from the end), magic number
# fmt: off
MARKS = (
    ('VHDX', 'vhdx', 0, b'vhdxfile'),
    ('VHD', 'vpc', 0, b'conectix'),
    ('VHD', 'vpc', -SECTOR, b'conectix'),
    ('VMDK', 'vmdk', 0, b'KDMV'),
    ('VMDK', 'vmdk', 0, b'COWD'),
    ('VMDK', 'vmdk', 0, b'# Disk DescriptorFile'),
    ('qcow2', 'qcow2', 0, b'QFI\xfb'),
    ('VDI', 'vdi', 64, b'\x7f\x10\xda\xbe'),
    ('QED', 'qed', 0, b'QED\0'),
    ('Parallels', 'parallels', 0, b'WithoutFreeSpace'),
    ('Parallels', 'parallels', 0, b'WithouFreSpacExt'),
)
# fmt: on


def find_image_format(descriptor):
    """Returns the ImageFormat of an open file or block device, or None if it has none of these."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    for what, qemu, offset, mark in MARKS:
        start = offset if offset >= 0 else size + offset
        if start >= 0 and _read(descriptor, start, len(mark)) == mark:
            return ImageFormat(what, qemu)
    return None


def _read(descriptor, offset, length):
    try:
        return os.pread(descriptor, length, offset)
    except OSError:
        return b''
