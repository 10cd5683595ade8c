"""Who a disk is to its initiators: names that stay when disks, files and settings change places.

May import base and host. An identity never comes from a position (target number, LUN): it is made
of this server's UUID and a key that belongs to the data, so two servers never show the same name
and a re-ordered file renames nothing.
"""

import errno
import hashlib
import os
import re
import uuid
from collections import namedtuple

from targetd.errors import TargetdError
from targetd.host.disks import describe, describe_name
from targetd.host.roots import ROOTS, kernel_name, read_number, read_text, whole_disk

#: The company id under which Linux's software targets name their disks; the remaining digits are
#: ours and are a digest.
COMPANY_ID = '001405'

#: As INQUIRY and VPD show it. vendor: 8, product: 16, revision: 4 characters at most; serial: text;
#: naa: 16 or 32 hex digits or '' if the disk has no NAA name.
DiskIdentity = namedtuple('DiskIdentity', 'vendor product revision serial naa')


def _ascii(text, length):
    return re.sub(r'[^\x20-\x7e]', '?', text)[:length].strip()


def disk_identity(path, roots=ROOTS):
    """The DiskIdentity of the physical disk behind a path, for direct-store. Raises StoreError if
    there is nothing there.

    A partition is not its disk: its serial has '-part2' added and it has no NAA name.
    """
    name = kernel_name(path, roots)
    disk = describe(path, roots) if name is None else describe_name(whole_disk(name, roots), roots)
    part = None if name is None else read_number(roots.block(name, 'partition'))
    inquiry_product = read_text(roots.block(disk.name, 'device', 'model')) if disk.name else ''
    serial = _ascii(disk.serial, 64)
    if part is not None:
        serial = '%s-part%d' % (serial, part) if serial else ''
    digits = disk.wwn[4:].lower() if disk.wwn.startswith('naa.') else ''
    whole = part is None and re.match(r'^(?:[2345][0-9a-f]{15}|6[0-9a-f]{31})$', digits)
    return DiskIdentity(
        _ascii(disk.vendor or disk.transport.upper(), 8),
        _ascii(inquiry_product or disk.model, 16),
        _ascii(disk.revision, 4),
        serial,
        digits if whole else '',
    )


def stable_key(path, roots=ROOTS):
    """What a disk's identity is made from: its own name if it has one, or its path. For naa6(),
    serial() and eui64()."""
    name = kernel_name(path, roots)
    if name is None:
        return 'file:' + os.path.realpath(path)
    disk = describe_name(name, roots)
    part = read_number(roots.block(name, 'partition'))
    suffix = '' if part is None else '-part%d' % part
    own = (
        disk.wwn
        or read_text(roots.block(name, 'dm', 'uuid'))
        or read_text(roots.block(name, 'md', 'uuid'))
        or (disk.serial and 'serial:%s:%s' % (disk.model, disk.serial))
    )
    if own:
        return own + suffix
    backing = read_text(roots.block(whole_disk(name, roots), 'loop', 'backing_file'))
    return ('file:%s' % backing if backing else 'device:' + disk.path) + suffix


def _digest(server, key):
    return hashlib.sha256(('%s\0%s' % (server, key)).encode('utf-8', 'surrogateescape')).hexdigest()


def naa6(server, key):
    """An NAA IEEE registered extended name (SPC-4) for this server's `key`: 32 hex digits.

    Type 6 and not the locally assigned type 3: Windows MPIO and clusters accept both, Linux
    multipath and old arrays' tools know type 6 only.
    """
    return '6' + COMPANY_ID + _digest(server, key)[:25]


def eui64(server, key):
    """An EUI-64 (SPC-4) for this server's `key`: 16 hex digits."""
    return COMPANY_ID + _digest(server, 'eui:' + key)[:10]


def serial(server, key):
    """A unit serial number (SPC-4) for this server's `key`: 16 hex digits in upper case."""
    return _digest(server, 'serial:' + key)[:16].upper()


# -- the server's own name ---------------------------------------------------------------------------------------------------


def _read_server_id(path):
    text = read_text(path)
    if text is None:
        raise TargetdError(
            '%s cannot be read, so that disks would change their identity; check its rights' % path
        )
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise TargetdError(
            '%s holds no UUID but %r; put the old file back from a backup, or remove it to give every disk a '
            'new identity' % (path, text[:40])
        )


def _write_durably(path, text):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode('ascii'))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def server_id(state_dir):
    """This server's UUID, made on first use and kept in `state_dir`/server-id; whole on the disk
    before it is used.

    Raises TargetdError naming the file if it can be neither read nor made.
    """
    path = os.path.join(state_dir, 'server-id')
    if os.path.lexists(path):
        return _read_server_id(path)
    fresh = '%s.%d' % (path, os.getpid())
    try:
        if not os.path.isdir(state_dir):
            os.makedirs(state_dir, 0o755)
        _write_durably(fresh, '%s\n' % uuid.uuid4())
        try:
            # fails if another made one meanwhile, where a rename would replace it
            os.link(fresh, path)
        except OSError as e:
            if e.errno == errno.EEXIST:
                return _read_server_id(path)
            os.rename(fresh, path)  # a file system without links
        _sync_directory(state_dir)
    except OSError as e:
        raise TargetdError(
            'the server id cannot be kept in %s: %s; without it disks would change their identity at each start'
            % (state_dir, e.strerror)
        )
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)
    return _read_server_id(path)
