"""Opens a medium in the master and claims it as long as it is exported.

Imports base, linux, opened_store, store_request. Every refusal is a StoreError that names path,
cause and remedy.

Invariants:

  1. A block device is opened with O_EXCL, a file is locked with flock: while any process holds
     the descriptor, the device cannot be mounted and no other server can serve the device or the
     file. A claim outlives the master as long as an orphaned worker process may still write.
  2. Type and size are read from the descriptor, not from the path, so they belong to the medium
     that is served.
  3. Opening does not change the medium. It creates a missing file, and deletes it again if the
     file cannot get its size.
"""

import errno
import fcntl
import os
import stat
import tempfile
from typing import Any, Dict, Iterable

from .. import compat, log
from ..durable import sync_directory
from ..errors import StoreError
from . import linux
from .base import NO_CAPABILITIES
from .opened_store import OpenedStore
from .store_request import StoreRequest


def open_store(description: Dict[str, Any], held: Iterable[OpenedStore] = ()) -> OpenedStore:
    """Open and claim the medium that a description asks for. Raises StoreError.

    description: dict with kind ('file' 'block' 'ram' 'null'; if absent, determined from the path),
    path, size (bytes; None: the current size), read_only, direct, thin, block_size (bytes; None:
    that of the medium, or 512), filters (the setting, or the result of parse_filters), allow_in_use
    (a block device is opened without a claim, as the administrator asked), cipher_key (hex digits),
    plan_only (nothing is created, and a block device is not opened for writing: udev would examine it
    again afterwards), is_served (the running server has claimed the medium, and this process only
    examines it), grows_to (bytes to which the caller extends a file that is shorter), tape (the file
    is a tape).
    held: OpenedStores of this process; a medium among them does not count as in use, and its claim
    is shared.
    """
    wanted = StoreRequest(description)
    kind = wanted.kind or _kind_of(wanted)
    return {'file': _open_file, 'block': _open_block, 'ram': _open_ram, 'null': _open_null}[kind](
        wanted, tuple(held)
    )


def _kind_of(wanted):
    """Returns 'file' or 'block' according to the path. A missing path outside /dev is a file to
    create."""
    try:
        mode = os.stat(wanted.path).st_mode
    except FileNotFoundError:
        real = os.path.realpath(wanted.path)
        if real.startswith('/dev/') and not real.startswith('/dev/shm/'):
            raise StoreError(
                '%s does not exist; check that the disk is attached: '
                '"lsblk -o NAME,SIZE,SERIAL,WWN" lists the disks' % wanted.path
            )
        return 'file'
    except OSError as e:
        raise _open_error(wanted, e)
    if stat.S_ISBLK(mode):
        return 'block'
    if stat.S_ISREG(mode):
        return 'file'
    what = 'a directory' if stat.S_ISDIR(mode) else 'neither a file nor a block device'
    raise StoreError('%s is %s; name a file or a block device' % (wanted.path, what))


def _open_error(wanted, error):
    """Returns the StoreError for an OSError from stat() or open()."""
    path, number = wanted.path, error.errno
    if number == errno.EBUSY:
        return StoreError(
            '%s is in use: mounted, or part of a RAID, an LVM group or a multipath map, or served by another '
            'program; "lsblk %s" shows by which; free it, or name another disk' % (path, path)
        )
    is_drbd = os.path.basename(os.path.realpath(path)).startswith('drbd')
    if number == errno.EMEDIUMTYPE or (number == errno.EROFS and is_drbd and not wanted.read_only):
        return StoreError(
            '%s is secondary on this host; make the DRBD resource secondary on the other one, then primary '
            'here ("drbdadm primary")' % path
        )
    if number == errno.EROFS or (
        number in (errno.EACCES, errno.EPERM) and not wanted.read_only and os.access(path, os.R_OK)
    ):
        return StoreError(
            '%s cannot be written: %s; make it writable, or write readonly = yes'
            % (path, error.strerror)
        )
    if number in (errno.EACCES, errno.EPERM):
        return StoreError(
            '%s cannot be opened: %s; run targetd as root, or give its user access'
            % (path, error.strerror)
        )
    if number == errno.EINVAL and wanted.direct:
        return StoreError(
            '%s cannot be opened for direct I/O: its file system does not support it; write direct-io = no'
            % path
        )
    if number == errno.ENOMEDIUM:
        return StoreError('%s has no medium; insert one' % path)
    if number == errno.ENOTDIR or number == errno.ENOENT:
        return _directory_error(path)
    return StoreError(
        '%s cannot be opened: %s; correct that, or name another path' % (path, error.strerror)
    )


def _directory_error(path):
    directory = os.path.dirname(path)
    return StoreError(
        '%s cannot be created: its directory %s %s; create the directory, or correct the path'
        % (path, directory, 'is a file' if os.path.exists(directory) else 'does not exist')
    )


# -- claims ----------------------------------------------------------------------------------------


def _claim_holder(key, held):
    for opened in held:
        if opened.key == key and opened.descriptor is not None:
            return opened
    return None


def _shared(wanted, flags, holder):
    """Returns (descriptor, claims) for a medium that this process has already claimed. It is an open
    file description of its own, so an error of writing back is reported to both."""
    return os.open(wanted.path, flags & ~os.O_EXCL), [os.dup(holder.claim)]


def claim_file(wanted: StoreRequest, descriptor: int) -> None:
    """Lock the open file description with flock. A file system without flock is served without a
    claim."""
    if wanted.is_served:
        return
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_SH if wanted.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB
        )
    except BlockingIOError:
        if not linux.is_locked_by_strangers(descriptor):
            raise StoreError(
                '%s is in use: another server has claimed it; "fuser -v %s" shows which; '
                'stop it, or name another file' % (wanted.path, wanted.path)
            )
        log.warning(
            '%s is locked by a process of another user, who cannot write the file; it is served all '
            'the same, but not locked: other users should not be able to read it; run "chmod o-r %s"',
            wanted.path,
            wanted.path,
        )
    except OSError:
        pass


# -- the kinds -------------------------------------------------------------------------------------


def _open_file(wanted, held):
    descriptor, claims = _file_descriptor(wanted, held)
    try:
        status = os.fstat(descriptor)
        if status.st_mode & 0o002:
            log.warning(
                '%s can be written by every user of this host; run "chmod o-w %s"',
                wanted.path,
                wanted.path,
            )
        if wanted.size is not None and wanted.size != status.st_size:
            raise StoreError(
                '%s has %d bytes, but the setting size is %d; write size = %d, or leave size out, or change '
                'the file with "truncate -s %d %s" (which %s)'
                % (
                    wanted.path,
                    status.st_size,
                    wanted.size,
                    status.st_size,
                    wanted.size,
                    wanted.path,
                    'adds zeroes' if wanted.size > status.st_size else 'CUTS OFF its end',
                )
            )
        queue = linux.DeviceQueue(status.st_dev)
        block_size, alignment = wanted.block_size or 512, queue.number('logical_block_size') or 4096
        if wanted.direct and block_size < alignment:
            raise StoreError(
                '%s: direct I/O needs multiples of %d bytes, more than the block size %d; '
                'write block-size = %d, or direct-io = no'
                % (wanted.path, alignment, block_size, alignment)
            )
        capabilities = _file_capabilities(wanted, descriptor, status, queue, block_size)
        facts = wanted.facts(
            'file', status.st_size, block_size, capabilities, direct_alignment=alignment
        )
        return OpenedStore(facts, descriptor, ('file', status.st_dev, status.st_ino), claims)
    except BaseException:
        _close(descriptor, claims)
        raise


def _close(descriptor, claims):
    for owned in [descriptor] + list(claims):
        os.close(owned)


def _file_descriptor(wanted, held):
    """Returns (descriptor, claims) of an existing or new file."""
    try:
        status = os.stat(wanted.path)
        holder = _claim_holder(('file', status.st_dev, status.st_ino), held)
        if holder:
            return _shared(wanted, wanted.flags(), holder)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(
                '%s is not a regular file; leave type out, or name a file' % wanted.path
            )
        descriptor = os.open(wanted.path, wanted.flags())
    except FileNotFoundError:
        return _create(wanted), []
    except OSError as e:
        raise _open_error(wanted, e)
    try:
        claim_file(wanted, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, []


def _create(wanted):
    """Returns the descriptor of a new sparse file."""
    if wanted.read_only:
        raise StoreError(
            '%s does not exist, so it cannot be served readonly; correct the path' % wanted.path
        )
    if wanted.size is None:
        raise StoreError(
            '%s does not exist; correct the path, or write for example size = 10G to create it'
            % wanted.path
        )
    if wanted.plan_only:
        return _create_unlinked(wanted)
    try:
        descriptor = os.open(wanted.path, wanted.flags() | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as e:
        raise _open_error(wanted, e)
    try:
        claim_file(wanted, descriptor)
        os.ftruncate(descriptor, wanted.size)
        os.fsync(descriptor)
        sync_directory(os.path.dirname(wanted.path))
    except BaseException as e:
        os.close(descriptor)
        os.unlink(wanted.path)
        if isinstance(e, OSError):
            raise StoreError(
                '%s cannot be created with %d bytes: %s; choose a smaller size, or another file system'
                % (wanted.path, wanted.size, e.strerror)
            )
        raise
    return descriptor


def _create_unlinked(wanted):
    """Returns the descriptor of a file without a name, in the place of the one to create."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(wanted.path)) as file:
            os.ftruncate(file.fileno(), wanted.size)
            return os.dup(file.fileno())
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise _directory_error(wanted.path)
        raise StoreError(
            '%s cannot be created with %d bytes: %s; choose a smaller size, or another file system'
            % (wanted.path, wanted.size, e.strerror)
        )


def _file_capabilities(wanted, descriptor, status, queue, block_size):
    """Returns the Capabilities of the file system, tested where the test changes nothing (a hole
    beyond the end). A read-only medium cannot be tested, and is not unmapped either."""
    granularity = max(status.st_blksize, block_size)
    physical = 4096 if granularity % 4096 == 0 else block_size
    return NO_CAPABILITIES._replace(
        unmap=wanted.read_only or _can_punch(descriptor, status.st_size),
        zeroes_after_unmap=True,
        unmap_granularity=min(granularity, 1 << 20),
        physical_block_size=max(physical, block_size),
        minimum_io_size=max(physical, block_size),
        rotation_rate=queue.rotation_rate(),
        extents=_knows_holes(descriptor),
    )


def _can_punch(descriptor, size):
    beyond_the_end = (size + 4095) // 4096 * 4096
    try:
        linux.fallocate(descriptor, linux.PUNCH_HOLE | linux.KEEP_SIZE, beyond_the_end, 4096)
    except OSError:
        return False
    return True


def _knows_holes(descriptor):
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as e:
        return e.errno == errno.ENXIO  # the file is one hole
    return True


def _open_block(wanted, held):
    flags = wanted.flags() | (0 if wanted.allow_in_use or wanted.is_served else os.O_EXCL)
    if wanted.plan_only:
        flags &= ~os.O_ACCMODE
    try:
        status = os.stat(wanted.path)
        if not stat.S_ISBLK(status.st_mode):
            raise StoreError(
                '%s is not a block device; leave type out, or name a disk' % wanted.path
            )
        holder = _claim_holder(('block', status.st_rdev), held)
        descriptor, claims = (
            _shared(wanted, flags, holder) if holder else (os.open(wanted.path, flags), [])
        )
    except OSError as e:
        raise _open_error(wanted, e)
    try:
        return _describe_block(wanted, descriptor, claims)
    except OSError as e:
        _close(descriptor, claims)
        raise _open_error(wanted, e)
    except BaseException:
        _close(descriptor, claims)
        raise


def _describe_block(wanted, descriptor, claims):
    size = linux.device_size(descriptor)
    logical, physical, offset, minimum, optimal = linux.device_geometry(descriptor)
    block_size = wanted.block_size or logical
    if wanted.size is not None and wanted.size != size:
        raise StoreError(
            '%s has %d bytes, but the setting size is %d; leave size out, or correct the path'
            % (wanted.path, size, wanted.size)
        )
    if not wanted.read_only and linux.device_is_read_only(descriptor):
        raise StoreError('%s is a read-only device; write readonly = yes' % wanted.path)
    if wanted.direct and block_size < logical:
        raise StoreError(
            '%s has sectors of %d bytes, more than the block size %d; write block-size = %d, or '
            'direct-io = no' % (wanted.path, logical, block_size, logical)
        )
    device = os.fstat(descriptor).st_rdev
    queue = linux.DeviceQueue(device)
    discards = queue.number('discard_max_bytes') > 0
    capabilities = NO_CAPABILITIES._replace(
        unmap=discards,
        zeroes_after_unmap=discards and queue.zeroes_by_unmapping(),
        unmap_granularity=max(queue.number('discard_granularity'), logical) if discards else 0,
        unmap_alignment=queue.discard_alignment() if discards else 0,
        maximum_unmap_length=queue.number('discard_max_bytes'),
        physical_block_size=max(physical, block_size),
        alignment_offset=offset,
        minimum_io_size=minimum,
        optimal_io_size=optimal,
        rotation_rate=queue.rotation_rate(),
    )
    facts = wanted.facts(
        'block', size, block_size, capabilities, sector=logical, direct_alignment=logical
    )
    return OpenedStore(facts, descriptor, ('block', device), claims)


def _open_ram(wanted, held):
    if wanted.size is None:
        raise StoreError('%s: type ram needs a size; write for example size = 1G' % wanted.name)
    try:
        descriptor = compat.memory_file('targetd', wanted.size)
    except OSError as e:
        raise StoreError(
            '%s: %d bytes of memory cannot be allocated: %s; choose a smaller size'
            % (wanted.name, wanted.size, e.strerror)
        )
    block_size = wanted.block_size or 512
    wanted.direct = False
    capabilities = NO_CAPABILITIES._replace(
        unmap=True,
        zeroes_after_unmap=True,
        unmap_granularity=max(4096, block_size),
        physical_block_size=max(4096, block_size),
        rotation_rate=1,
        extents=_knows_holes(descriptor),
    )
    status = os.fstat(descriptor)
    return OpenedStore(
        wanted.facts('ram', wanted.size, block_size, capabilities),
        descriptor,
        ('ram', status.st_dev, status.st_ino),
    )


def _open_null(wanted, held):
    if wanted.size is None:
        raise StoreError('%s: type null needs a size; write for example size = 1G' % wanted.name)
    block_size = wanted.block_size or 512
    wanted.direct = False
    capabilities = NO_CAPABILITIES._replace(
        unmap=True,
        zeroes_after_unmap=True,
        unmap_granularity=block_size,
        physical_block_size=block_size,
        rotation_rate=1,
        extents=True,
    )
    return OpenedStore(
        wanted.facts('null', wanted.size, block_size, capabilities), None, ('null', id(wanted))
    )
