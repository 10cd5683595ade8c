"""The identity that a logical unit shows to initiators: names that do not change when disks, files
and settings are moved.

May import base and host. An identity never depends on a position (target number, LUN). It is
derived from this server's UUID and a key that belongs to the data, so two servers never show the
same name, and reordering the configuration renames no disk.
"""

import errno
import hashlib
import os
import re
import uuid
from collections import namedtuple

from targetd import log
from targetd.durable import make_directory, sync_directory
from targetd.errors import TargetdError
from targetd.host.disks import describe_disk, describe_name
from targetd.host.roots import ROOTS, kernel_name, read_number, read_text, whole_disk
from targetd.nbd import uri
from targetd.trusted_path import open_trusted

#: The IEEE company id that Linux's software targets use; the remaining digits are a digest.
COMPANY_ID = '001405'

#: The identity in INQUIRY data and VPD pages. vendor, product, revision: at most 8, 16 and 4
#: characters; serial: text; naa: 16 or 32 hex digits, '' if the disk has no NAA name.
DiskIdentity = namedtuple('DiskIdentity', 'vendor product revision serial naa')


def _ascii(text, length):
    return re.sub(r'[^\x20-\x7e]', '?', text)[:length].strip()


def disk_identity(path, roots=ROOTS):
    """Returns the DiskIdentity of the physical disk at a path, for direct-store. Raises StoreError
    if the path does not exist.

    A partition differs from its disk: '-part2' is appended to its serial number, and it has no NAA
    name.
    """
    name = kernel_name(path, roots)
    disk = (
        describe_disk(path, roots)
        if name is None
        else describe_name(whole_disk(name, roots), roots)
    )
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
    """Returns the key that a disk's identity is derived from, for naa6(), serial() and eui64(): the
    disk's own name (WWN, UUID, serial number) if it has one, else its path, or the URI of an NBD export."""
    if uri.is_uri(path):
        return 'nbd:' + path
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
    """Returns an NAA IEEE Registered Extended designator (SPC-4) for this server's `key`: 32 hex
    digits.

    It is of type 6, not of the locally assigned type 3: Windows MPIO and clusters accept both, but
    Linux multipath and older array tools know only type 6.
    """
    return '6' + COMPANY_ID + _digest(server, key)[:25]


def eui64(server, key):
    """Returns an EUI-64 designator (SPC-4) for this server's `key`: 16 hex digits."""
    return COMPANY_ID + _digest(server, 'eui:' + key)[:10]


def serial(server, key):
    """Returns a unit serial number (SPC-4) for this server's `key`: 16 upper-case hex digits."""
    return _digest(server, 'serial:' + key)[:16].upper()


# -- the server's UUID -----------------------------------------------------------------------------


def _read_server_id(path):
    text = read_text(path)
    if text is None:
        raise TargetdError(
            '%s cannot be read; without it the disks would change their identity; check its permissions'
            % path
        )
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise TargetdError(
            '%s does not contain a UUID but %r; restore the file from a backup, or remove it, and '
            'every disk gets a new identity' % (path, text[:40])
        )


def _write_durably(path, text):
    descriptor = open_trusted(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, text.encode('ascii'))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def known_server_id(state_dir):
    """Returns this server's UUID, or None if state_dir has none yet or it cannot be read."""
    try:
        return _read_server_id(os.path.join(state_dir, 'server-id'))
    except TargetdError:
        return None


def require_sound_server_id(state_dir):
    """Raises TargetdError if the server id exists and cannot be used."""
    path = os.path.join(state_dir, 'server-id')
    if os.path.lexists(path):
        _read_server_id(path)


def server_id(state_dir):
    """Returns this server's UUID, from which the identities of its disks are derived. It is created on
    first use and written durably to `state_dir`/server-id before it is returned.

    Raises TargetdError, naming the file, if it can be neither read nor created.
    """
    return _lasting_id(
        state_dir,
        'server-id',
        'every disk without naa and scsi-sn gets an identity that initiators have not seen before. If this '
        'server has served disks already, stop it, and restore state-dir from a backup or write its former '
        'server-id',
    )


def node_id(state_dir):
    """Returns the UUID of this state_dir, which no other server has, also if both have one server-id. Like
    server_id() otherwise."""
    return _lasting_id(state_dir, 'node-id')


def _lasting_id(state_dir, name, consequence=''):
    path = os.path.join(state_dir, name)
    if os.path.lexists(path):
        return _read_server_id(path)
    fresh = '%s.%d' % (path, os.getpid())
    try:
        make_directory(state_dir, 0o755)
        _write_durably(fresh, '%s\n' % uuid.uuid4())
        try:
            # link() fails if another process created the file meanwhile; rename() would replace it
            os.link(fresh, path)
        except OSError as e:
            if e.errno == errno.EEXIST:
                return _read_server_id(path)
            os.rename(fresh, path)  # the file system has no hard links
        sync_directory(state_dir)
        if consequence:
            log.warning('%s is new: %s', path, consequence)
    except OSError as e:
        raise TargetdError(
            'the id of this server cannot be saved in %s: %s; without it the disks would change their '
            'identity at each start' % (path, e.strerror)
        )
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)
    return _read_server_id(path)
