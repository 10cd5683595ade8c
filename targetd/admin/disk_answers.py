"""The answer to `disks`: the disks of this host, and disk images of other programs (VHDX, VHD, VMDK, …).

May import base, host (disks, image_formats, image_info, in_use, sg_nodes, signatures) and admin.
"""

import os
import stat

from targetd.admin.protocol import default_socket, send_request
from targetd.errors import StoreError, TargetdError
from targetd.host import disks, image_formats, image_info, in_use, sg_nodes, signatures


def answer_disks(parsed):
    """The reply of `disks`: the files that are named; else every disk with a medium, and the images that the
    server serves. With persistent names for a backing-store, contents and users on this host."""
    if parsed.files:
        return {'ok': True, 'rows': [file_row(os.path.abspath(path)) for path in parsed.files]}
    return reply_about_host(parsed.socket or default_socket())


def reply_about_host(socket):
    """The reply of `disks` without files. socket: path of the control socket of the server."""
    rows = []
    for disk in disks.list_disks():
        if disk.transport == 'ram':
            continue
        row = dict(disk._asdict())
        row['model'] = ' '.join(part for part in (disk.vendor, disk.model) if part)
        row['used_by'] = in_use.find_users(disk.path)
        row['contents'] = contents(disk.path)
        row['backing_store'] = disks.persistent_name(disk)
        rows.append(row)
    return {'ok': True, 'rows': rows + _other_devices() + _images_of(socket)}


def _other_devices():
    """Rows like those of disks for tape drives, changers, …, which type = passthrough can serve."""
    rows = []
    for device in sg_nodes.list_devices():
        what = sg_nodes.TYPES.get(device.device_type, 'type %02Xh' % device.device_type)
        rows.append(
            {
                'path': device.node,
                'size': device.size,
                'model': ('%s %s' % (device.vendor, device.model)).strip(),
                'serial': device.serial,
                'wwn': device.wwn,
                'transport': what,
                'backing_store': sg_nodes.persistent_name(device),
                'contents': [],
                'used_by': [],
            }
        )
    return rows


def _images_of(socket):
    """Rows of the images that the running server serves; [] without one."""
    try:
        units = send_request(socket, {'command': 'show-units'})['rows']
    except (TargetdError, OSError):
        return []
    rows = []
    for path in sorted({unit['path'] for unit in units if unit.get('path')}):
        try:
            if stat.S_ISREG(os.stat(path).st_mode) and _format_of(path) is not None:
                rows.append(file_row(path))
        except (StoreError, OSError):
            pass  # it is not there any more, or this user may not read it
    return rows


def contents(path):
    """Descriptions of the signatures on a disk; [] if there is none or this user may not read it."""
    try:
        return [signatures.one_line(signature) for signature in signatures.device_signatures(path)]
    except OSError:
        return []


def _format_of(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return image_formats.find_image_format(descriptor)
    finally:
        os.close(descriptor)


def file_row(path):
    """The row of a file: an image, or a raw disk. size: bytes of the disk in it, None if the image must be
    repaired first. Raises TargetdError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise TargetdError('%s is not a regular file' % path)
        found = _format_of(path)
    except OSError as e:
        raise TargetdError('%s cannot be read: %s' % (path, e.strerror))
    row = {
        'path': path,
        'size': status.st_size,
        'allocated': status.st_blocks * 512,
        'format': 'raw',
        'is_dirty': False,
        'transport': 'file',
        'backing_store': path,
    }
    if found is not None:
        info = image_info.inspect(path, found.qemu, become=lambda: image_info.become_owner(path))
        row.update(
            format=found.what.lower(),
            size=info.virtual_size,
            allocated=info.allocated,
            is_dirty=info.is_dirty,
        )
    row['model'] = '%s image' % row['format'] if found else 'raw file'
    row['contents'] = ['%s allocated' % disks.human_size(row['allocated'])]
    row['contents'] += [image_info.NOT_CLOSED] if row['is_dirty'] else []
    row['used_by'] = in_use.find_users(path)
    return row
