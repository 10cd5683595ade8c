"""The master's side: opening a medium, claiming it for the life of the export, and describing it to
a worker.

Imports base, linux, filters, encrypting and the kinds. Every refusal is a StoreError that names path, cause and remedy.
Invariants:
1. A block device is opened with O_EXCL, a file is flocked: while any process holds the descriptor nobody mounts the device, and
   no second server serves either. A claim outlives the master as long as an orphaned worker might still write.
2. What is opened is what was looked at: type and size are asked of the descriptor, not of the path.
3. Opening changes nothing on the medium; it creates a missing file, and takes it away again if it cannot be given its size.
"""

import errno
import fcntl
import os
import stat

from .. import compat
from ..errors import StoreError
from . import filters, linux
from .base import NO_CAPABILITIES, Capabilities
from .block import BlockStore
from .encrypting import Encrypting
from .file import FileStore
from .null import NullStore
from .ram import RamStore

KINDS = {'file': FileStore, 'block': BlockStore, 'ram': RamStore, 'null': NullStore}

_WORDS = (
    'kind',
    'path',
    'size',
    'read_only',
    'direct',
    'thin',
    'block_size',
    'filters',
    'cipher_key',
)


class OpenedStore(object):
    """A medium that this process has opened and claimed.

    descriptor: int, or None (null); kind, path, size, block_size, physical_block_size, read_only,
    direct, thin, capabilities (Capabilities); filters as filters.parse gives them; key: equal for
    two stores on the same medium; cipher_key: hex digits, '' where nothing is encrypted. It travels
    with the description and stands in no other text.
    """

    def __init__(self, facts, descriptor, key, claims=()):
        self._facts = facts
        self.descriptor = descriptor
        self.key = key
        self.claims = list(claims)  # further descriptors that hold the claim

    def __getattr__(self, name):
        if name.startswith('_') or name not in self._facts:
            raise AttributeError(name)
        return self._facts[name]

    @property
    def physical_block_size(self):
        return self.capabilities.physical_block_size

    def description(self):
        """The JSON-able dict that from_descriptor needs in the worker, together with the
        descriptor."""
        return dict(self._facts, capabilities=dict(self.capabilities._asdict()))

    def store(self):
        """A Store in this process, on a duplicate of the descriptor. Raises OSError."""
        return from_descriptor(
            self.description(), None if self.descriptor is None else os.dup(self.descriptor)
        )

    def resize_check(self):
        """The medium's size now, bytes. Raises OSError."""
        if self.kind == 'block':
            return linux.device_size(self.descriptor)
        return self.size if self.descriptor is None else os.fstat(self.descriptor).st_size

    def flush(self, offset, length):
        """Make durable what any process wrote through this descriptor or another. Raises OSError."""
        if self.kind in ('file', 'block') and not self.read_only:
            os.fdatasync(self.descriptor)

    def encrypt(self, cipher_key):
        """Encrypt with this key, hex digits: later descriptions and stores have it; '': they do not
        encrypt."""
        self._facts['cipher_key'] = cipher_key

    def resized(self, size):
        """Take note of a new size: later descriptions have it."""
        self._facts['size'] = size

    def owned(self):
        """Every descriptor of ours: its own and those that hold the claim."""
        return ([] if self.descriptor is None else [self.descriptor]) + self.claims

    def close(self):
        """Give up the descriptor and with it, once the workers have closed theirs, the claim.
        Closing twice is harmless."""
        owned, self.claims, self.descriptor = self.owned(), [], None
        for descriptor in owned:
            os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def __repr__(self):
        return '<OpenedStore %s %s %d bytes>' % (self.kind, self.path, self.size)


def from_descriptor(description, descriptor):
    """The Store, with its filters, that a description and a descriptor stand for. Takes the
    descriptor over, also on failure.

    Opens no path. Raises KeyError or ValueError for a description that OpenedStore.description()
    did not make.
    """
    try:
        store = KINDS[description['kind']](description, descriptor)
        if description.get('cipher_key'):
            store = Encrypting(store, bytes.fromhex(description['cipher_key']))
        if store.read_only:
            store = filters.ReadOnly(store)
        return filters.stack(store, description.get('filters') or ())
    except Exception:
        if descriptor is not None:
            os.close(descriptor)
        raise


def adopted(description, key, descriptors):
    """The OpenedStore that another process has opened and described, with its descriptors: its own,
    then those of its claim."""
    facts = dict(description, capabilities=Capabilities(**description['capabilities']))
    own = None if description['kind'] == 'null' else descriptors[0]
    return OpenedStore(facts, own, tuple(key), descriptors[1:])


def open_store(description, held=()):
    """Open and claim what a description asks for: an OpenedStore. Raises StoreError.

    description: dict with kind ('file' 'block' 'ram' 'null', or absent: found out from the path),
    path, size (bytes or None: as large as it is), read_only, direct, thin, block_size (None: the
    medium's own, or 512), filters (the setting, or parsed), allow_in_use (a block device is opened
    without claiming it: the administrator asked for that), cipher_key (hex digits). held:
    OpenedStores of this process; a medium among them is not busy, its claim is shared.
    """
    wanted = _Wanted(description)
    kind = wanted.kind or _kind_of(wanted)
    return {'file': _open_file, 'block': _open_block, 'ram': _open_ram, 'null': _open_null}[kind](
        wanted, tuple(held)
    )


class _Wanted(object):
    """A description, checked as far as it can be without looking at the medium."""

    def __init__(self, description):
        for word in description:
            if word not in _WORDS and word not in ('capabilities', 'allow_in_use'):
                raise StoreError('a store has no property "%s"' % word)
        self.kind = description.get('kind')
        self.path = description.get('path')
        self.size = description.get('size')
        self.read_only = bool(description.get('read_only'))
        self.direct = bool(description.get('direct'))
        self.thin = bool(description.get('thin'))
        self.block_size = description.get('block_size')
        self.allow_in_use = bool(description.get('allow_in_use'))
        self.cipher_key = description.get('cipher_key') or ''
        self.name = self.path or self.kind
        if self.kind not in KINDS and self.kind is not None:
            raise StoreError(
                '%s: there is no kind of store "%s"; there are: %s'
                % (self.name, self.kind, ' '.join(sorted(KINDS)))
            )
        if self.kind in (None, 'file', 'block') and not self.path:
            raise StoreError(
                'a store without a path; name a file or a block device, or choose kind ram or null'
            )
        self._check_numbers()
        self.filters = self._filters(description.get('filters') or [])

    def _check_numbers(self):
        size, block_size = self.size, self.block_size
        if block_size is not None and (
            block_size < 512 or block_size > 65536 or block_size & (block_size - 1)
        ):
            raise StoreError(
                '%s: a block size of %s cannot be used; 512 and 4096 are usual'
                % (self.name, block_size)
            )
        if size is not None and (size <= 0 or size % (block_size or 512)):
            raise StoreError(
                '%s: size = %s cannot be used; it must be a multiple of the block size, %d'
                % (self.name, size, block_size or 512)
            )

    def _filters(self, value):
        try:
            parsed = (
                filters.parse(value)
                if isinstance(value, str) or any(isinstance(f, str) for f in value)
                else value
            )
            filters.stack(NullStore({'kind': 'null', 'size': 0}, None), parsed)
        except (ValueError, TypeError) as e:
            raise StoreError('%s: %s' % (self.name, e))
        return [list(f) for f in parsed]

    def facts(self, kind, size, block_size, capabilities, **more):
        """The dict of an OpenedStore."""
        if not size or size % block_size:
            raise StoreError(
                '%s has %d bytes, no multiple of the block size %d; %s'
                % (
                    self.name,
                    size,
                    block_size,
                    'choose another block size'
                    if kind == 'block'
                    else 'make it larger with "truncate -s %%%d"' % block_size
                    if size
                    else 'give it a size',
                )
            )
        return dict(
            more,
            kind=kind,
            path=self.path,
            size=size,
            read_only=self.read_only,
            direct=self.direct,
            thin=self.thin,
            block_size=block_size,
            filters=self.filters,
            cipher_key=self.cipher_key,
            capabilities=capabilities,
        )

    def flags(self):
        """For open(2)."""
        return (
            (os.O_RDONLY if self.read_only else os.O_RDWR)
            | os.O_CLOEXEC
            | (os.O_DIRECT if self.direct else 0)
        )


def _kind_of(wanted):
    """'file' or 'block', from what is there; a missing path is a file to create, but not in /dev."""
    try:
        mode = os.stat(wanted.path).st_mode
    except FileNotFoundError:
        real = os.path.realpath(wanted.path)
        if real.startswith('/dev/') and not real.startswith('/dev/shm/'):
            raise StoreError(
                '%s does not exist; is the disk there? "lsblk -o NAME,SIZE,SERIAL,WWN" lists those that are'
                % wanted.path
            )
        return 'file'
    except OSError as e:
        raise _refusal(wanted, e)
    if stat.S_ISBLK(mode):
        return 'block'
    if stat.S_ISREG(mode):
        return 'file'
    what = 'a directory' if stat.S_ISDIR(mode) else 'neither a file nor a block device'
    raise StoreError('%s is %s; name a file or a block device' % (wanted.path, what))


def _refusal(wanted, error):
    """The StoreError that an OSError from looking or opening amounts to."""
    path, number = wanted.path, error.errno
    if number == errno.EBUSY:
        return StoreError(
            '%s is in use: mounted, or part of a RAID, an LVM group or a multipath map, or served by another '
            'program; "lsblk %s" shows by what; free it, or name another disk' % (path, path)
        )
    if number == errno.EROFS or (
        number in (errno.EACCES, errno.EPERM) and not wanted.read_only and os.access(path, os.R_OK)
    ):
        return StoreError(
            '%s cannot be written: %s; make it writable, or set read-only = yes'
            % (path, error.strerror)
        )
    if number in (errno.EACCES, errno.EPERM):
        return StoreError(
            '%s cannot be opened: %s; run targetd as root, or give its user access'
            % (path, error.strerror)
        )
    if number == errno.EINVAL and wanted.direct:
        return StoreError(
            '%s cannot be opened for direct I/O: its file system has none; set direct-io = no'
            % path
        )
    if number == errno.ENOMEDIUM:
        return StoreError('%s has no medium; insert one' % path)
    if number == errno.ENOTDIR or number == errno.ENOENT:
        return StoreError(
            '%s does not exist, and neither does its directory; create %s first, or correct the path'
            % (path, os.path.dirname(path) or path)
        )
    return StoreError(
        '%s cannot be opened: %s; correct that, or name another' % (path, error.strerror)
    )


# -- claims ------------------------------------------------------------------------------------------------------------


def _holder(key, held):
    for opened in held:
        if opened.key == key and opened.descriptor is not None:
            return opened
    return None


def _shared(wanted, flags, holder):
    """(descriptor, claims) on a medium that this process has claimed already."""
    if (holder.read_only, holder.direct) == (wanted.read_only, wanted.direct):
        descriptor = os.dup(holder.descriptor)
    else:
        descriptor = os.open(wanted.path, flags & ~os.O_EXCL)
    return descriptor, [os.dup(d) for d in holder.claims or [holder.descriptor]]


def _claim_file(wanted, descriptor):
    """flock the open file description. A file system without flock is better served unclaimed than
    refused."""
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_SH if wanted.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB
        )
    except BlockingIOError:
        raise StoreError(
            '%s is in use: another server has claimed it; "fuser -v %s" shows which; stop it, or name another file'
            % (wanted.path, wanted.path)
        )
    except OSError:
        pass


# -- the kinds ---------------------------------------------------------------------------------------------------------


def _open_file(wanted, held):
    descriptor, claims = _file_descriptor(wanted, held)
    try:
        status = os.fstat(descriptor)
        if wanted.size is not None and wanted.size != status.st_size:
            raise StoreError(
                '%s has %d bytes, and not the %d that size asks for; set size = %d, or leave size out, or change '
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
        queue = linux.Queue(status.st_dev)
        block_size, alignment = wanted.block_size or 512, queue.number('logical_block_size') or 4096
        if wanted.direct and block_size < alignment:
            raise StoreError(
                '%s: direct I/O is in units of %d bytes there, more than the block size %d; set block-size = %d, '
                'or direct-io = no' % (wanted.path, alignment, block_size, alignment)
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
    """(descriptor, claims) of a file that is there, or is now."""
    try:
        status = os.stat(wanted.path)
        holder = _holder(('file', status.st_dev, status.st_ino), held)
        if holder:
            return _shared(wanted, wanted.flags(), holder)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(
                '%s is no regular file; leave the kind out, or name a file' % wanted.path
            )
        descriptor = os.open(wanted.path, wanted.flags())
    except FileNotFoundError:
        return _create(wanted), []
    except OSError as e:
        raise _refusal(wanted, e)
    try:
        _claim_file(wanted, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, []


def _create(wanted):
    """The descriptor of a new sparse file."""
    if wanted.read_only:
        raise StoreError(
            '%s does not exist, and to serve it read-only it must; correct the path' % wanted.path
        )
    if wanted.size is None:
        raise StoreError(
            '%s does not exist; correct the path, or write size = 10G to have it created'
            % wanted.path
        )
    try:
        descriptor = os.open(wanted.path, wanted.flags() | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as e:
        raise _refusal(wanted, e)
    try:
        _claim_file(wanted, descriptor)
        os.ftruncate(descriptor, wanted.size)
        os.fsync(descriptor)
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


def _file_capabilities(wanted, descriptor, status, queue, block_size):
    """What the file system can do, found out by trying where that changes nothing (a hole beyond
    the end). What is served read-only cannot be tried, and will not be unmapped either."""
    granularity = max(status.st_blksize, block_size)
    physical = 4096 if granularity % 4096 == 0 else block_size
    return NO_CAPABILITIES._replace(
        unmap=wanted.read_only or _can_punch(descriptor, status.st_size),
        zeroes_after_unmap=True,
        unmap_granularity=min(granularity, 1 << 20),
        physical_block_size=max(physical, block_size),
        minimum_io_size=max(physical, block_size),
        rotational=queue.rotational(),
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
        return e.errno == errno.ENXIO  # nothing but a hole
    return True


def _open_block(wanted, held):
    flags = wanted.flags() | (0 if wanted.allow_in_use else os.O_EXCL)
    try:
        status = os.stat(wanted.path)
        if not stat.S_ISBLK(status.st_mode):
            raise StoreError(
                '%s is no block device; leave the kind out, or name a disk' % wanted.path
            )
        holder = _holder(('block', status.st_rdev), held)
        descriptor, claims = (
            _shared(wanted, flags, holder) if holder else (os.open(wanted.path, flags), [])
        )
    except OSError as e:
        raise _refusal(wanted, e)
    try:
        return _describe_block(wanted, descriptor, claims)
    except OSError as e:
        _close(descriptor, claims)
        raise _refusal(wanted, e)
    except BaseException:
        _close(descriptor, claims)
        raise


def _describe_block(wanted, descriptor, claims):
    size = linux.device_size(descriptor)
    logical, physical, offset, minimum, optimal = linux.device_geometry(descriptor)
    block_size = wanted.block_size or logical
    if wanted.size is not None and wanted.size != size:
        raise StoreError(
            '%s has %d bytes, and not the %d that size asks for; leave size out, or correct the path'
            % (wanted.path, size, wanted.size)
        )
    if not wanted.read_only and linux.device_is_read_only(descriptor):
        raise StoreError('%s is a read-only device; set read-only = yes' % wanted.path)
    if wanted.direct and block_size < logical:
        raise StoreError(
            '%s has sectors of %d bytes, more than the block size %d; set block-size = %d, or direct-io = no'
            % (wanted.path, logical, block_size, logical)
        )
    device = os.fstat(descriptor).st_rdev
    queue = linux.Queue(device)
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
        rotational=queue.rotational(),
    )
    facts = wanted.facts(
        'block', size, block_size, capabilities, sector=logical, direct_alignment=logical
    )
    return OpenedStore(facts, descriptor, ('block', device), claims)


def _open_ram(wanted, held):
    if wanted.size is None:
        raise StoreError('%s: memory has no size of its own; write size = 1G' % wanted.name)
    try:
        descriptor = compat.memory_file('targetd', wanted.size)
    except OSError as e:
        raise StoreError(
            '%s: %d bytes of memory cannot be had: %s; choose a smaller size'
            % (wanted.name, wanted.size, e.strerror)
        )
    block_size = wanted.block_size or 512
    wanted.direct = False
    capabilities = NO_CAPABILITIES._replace(
        unmap=True,
        zeroes_after_unmap=True,
        unmap_granularity=max(4096, block_size),
        physical_block_size=max(4096, block_size),
        rotational=False,
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
        raise StoreError('%s: nothing has no size of its own; write size = 1G' % wanted.name)
    block_size = wanted.block_size or 512
    wanted.direct = False
    capabilities = NO_CAPABILITIES._replace(
        unmap=True,
        zeroes_after_unmap=True,
        unmap_granularity=block_size,
        physical_block_size=block_size,
        rotational=False,
        extents=True,
    )
    return OpenedStore(
        wanted.facts('null', wanted.size, block_size, capabilities), None, ('null', id(wanted))
    )
