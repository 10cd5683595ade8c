"""The commands of targetdctl that work on image files: create, snapshot, restore.

A snapshot shares the blocks of the file (reflink) if the file system can: the kernel clones the file at one
instant, and every write is before it or after it. Otherwise the data is copied, which is possible only
while nothing writes. May import base and the standard library.
"""

import ctypes
import errno
import fcntl
import os
import sys
import time

from targetd.durable import sync_directory
from targetd.errors import TargetdError

FICLONE = 0x40049409
PUNCH_HOLE_KEEP_SIZE = 3  # fallocate(2)
#: FICLONE of a file system, or between file systems, that cannot do it.
CANNOT_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)
PIECE = 4 << 20
ALLOCATION_PIECE = 64 << 20
INFIX = '.snapshot-'


class Progress(object):
    """A bar on a terminal, which is redrawn a few times per second. out: a text file."""

    WIDTH = 40

    def __init__(self, label, total, out=None):
        self.label = label
        self.total = max(1, total)
        self.out = out if out is not None else sys.stderr
        self.is_shown = self.out.isatty()
        self._next = 0.0

    def show(self, done):
        """So many bytes of the total are done."""
        now = time.monotonic()
        if self.is_shown and (now >= self._next or done >= self.total):
            self._next = now + 0.2
            part = min(1.0, done / self.total)
            bar = '#' * int(part * self.WIDTH)
            self.out.write('\r%s [%s] %3d %%' % (self.label, bar.ljust(self.WIDTH), part * 100))
            if done >= self.total:
                self.out.write('\n')
            self.out.flush()


def create(path, size, is_full):
    """Create a file of this size; is_full: with all its blocks allocated. Raises TargetdError; then there is
    no file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise TargetdError('%s exists already; write another name, or remove the file first' % path)
    except OSError as e:
        raise TargetdError('%s cannot be created: %s' % (path, e.strerror))
    try:
        if is_full:
            _allocate(descriptor, size)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        sync_directory(os.path.dirname(path))
    except BaseException as e:  # Ctrl-C too
        os.unlink(path)
        if isinstance(e, OSError):
            raise TargetdError('%s cannot be created: %s' % (path, e.strerror))
        raise
    finally:
        os.close(descriptor)


def _allocate(descriptor, size):
    progress = Progress('allocating', size)
    for start in range(0, size, ALLOCATION_PIECE):
        os.posix_fallocate(descriptor, start, min(ALLOCATION_PIECE, size - start))
        progress.show(min(size, start + ALLOCATION_PIECE))


def snapshot_path(path, name):
    """The file of a snapshot of an image file: beside it. Raises TargetdError."""
    if '/' in name or name.startswith('.') or not name.isprintable():
        raise TargetdError('"%s" is not a name of a snapshot; write letters, digits and -' % name)
    return path + INFIX + name


def take_snapshot(path, target, may_copy):
    """Copy the file to `target`, a new file. may_copy: '' if nothing writes the file now, else why it
    cannot be copied. Returns True if the blocks are shared. Raises TargetdError; then there is no new
    file."""
    unfinished = target + '.unfinished'
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise TargetdError('%s cannot be read: %s' % (path, e.strerror))
    try:
        if os.path.lexists(target):
            raise TargetdError('the snapshot %s exists already; write another name' % target)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        new = os.open(unfinished, flags, 0o600)
        try:
            is_shared = _clone(source, new)
            if not is_shared and may_copy:
                raise TargetdError(may_copy)
            if not is_shared:
                _copy_unchanged(source, new, path)
            os.fsync(new)
            os.link(unfinished, target)
        finally:
            os.close(new)
            os.unlink(unfinished)
        sync_directory(os.path.dirname(target))
        return is_shared
    except OSError as e:
        raise TargetdError('the snapshot %s cannot be written: %s' % (target, e.strerror))
    finally:
        os.close(source)


def _clone(source, new):
    try:
        fcntl.ioctl(new, FICLONE, source)
        return True
    except OSError as e:
        if e.errno in CANNOT_CLONE:
            return False
        raise


def _copy_unchanged(source, new, path):
    before = os.fstat(source)
    os.ftruncate(new, before.st_size)
    copy_sparse(source, new, before.st_size, 'copying')
    after = os.fstat(source)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise TargetdError('%s was written during the copy; there is no snapshot' % path)


def copy_sparse(source, new, size, label):
    """Copy the data of a file; holes stay holes."""
    progress, position = Progress(label, size), 0
    while position < size:
        start, end = _next_data(source, position, size)
        for offset in range(start, end, PIECE):
            data = os.pread(source, min(PIECE, end - offset), offset)
            written = 0
            while written < len(data):
                written += os.pwrite(new, data[written:], offset + written)
            progress.show(offset)
        position = end
    progress.show(size)


def _next_data(descriptor, position, size):
    """(start, end) of the next range with data from this position on."""
    try:
        start = os.lseek(descriptor, position, os.SEEK_DATA)
        return start, min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
    except OSError as e:
        if e.errno == errno.ENXIO:  # only a hole is left
            return size, size
        if e.errno == errno.EINVAL:  # the file system has no holes
            return position, size
        raise


def restore(snapshot, path, begin):
    """Give the file the content of the snapshot; its size stays, what is beyond the snapshot is zero.
    begin(): called before anything is written. Returns True if the blocks are shared. Raises TargetdError."""
    try:
        source = os.open(snapshot, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise TargetdError('the snapshot %s cannot be read: %s' % (snapshot, e.strerror))
    try:
        target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        os.close(source)
        raise TargetdError('%s cannot be written: %s' % (path, e.strerror))
    try:
        size, wanted = os.fstat(target).st_size, os.fstat(source).st_size
        if wanted > size:
            raise TargetdError(
                'the snapshot has %d bytes, and %s only %d; first make it larger: targetdctl lun resize'
                % (wanted, path, size)
            )
        begin()
        is_shared = _clone(source, target)
        if not is_shared:
            _zero(target, 0, wanted)  # its data must not show where the snapshot has a hole
            copy_sparse(source, target, wanted, 'restoring')
        _zero(target, wanted, size)
        os.fsync(target)
        return is_shared
    except OSError as e:
        raise TargetdError(
            '%s is restored in part only: %s; restore it again before you use it'
            % (path, e.strerror)
        )
    finally:
        os.close(source)
        os.close(target)


def _zero(descriptor, start, end):
    """Make a range a hole; zeroes are written where the file system has none. The size stays: the server
    watches it."""
    if start >= end:
        return
    try:
        library = ctypes.CDLL(None, use_errno=True)
        call = getattr(library, 'fallocate64', library.fallocate)
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if call(descriptor, PUNCH_HOLE_KEEP_SIZE, start, end - start) == 0:
            return
    except (OSError, AttributeError):
        pass
    zeroes = bytes(PIECE)
    for offset in range(start, end, PIECE):
        os.pwrite(descriptor, zeroes[: min(PIECE, end - offset)], offset)
