"""Key files of encrypted disks: read, made, replaced; and which disk may be served with which key.

May import base, config.model, store, scsi.operations, master.persistent. Invariants:
1. A key stands in its file, in this process and in the workers that serve its disk; in no log line, complaint or answer.
2. The file is a whole old or a whole new key at every moment, power failures included.
3. A key is made unasked only for a disk that holds nothing and never had one. A missing key is never replaced by another.

What the state directory keeps of a disk's key is its `check`: a digest of the key and of the block
size, which is a part of the cipher. So a wrong file, a changed block size and a setting that got
lost are refused before anything is read or written.
"""

import errno
import hashlib
import os
import stat
import textwrap

from targetd import log, xts
from targetd.errors import StoreError
from targetd.master.state.state_directory import sync_directory
from targetd.scsi import operations
from targetd.store import from_descriptor

HEAD = 'targetd-disk-key 1'
LONGEST_FILE = 4096
# so much of a medium is looked through before it counts as one that holds something
BLANK_BYTES = 64 << 20
STEP = 4 << 20

TEXT = '''\
# The key of a disk that targetd encrypts. Without it nothing on the disk can be read, by nobody:
# keep a copy in a safe place, away from the disk. Whoever has it and the disk can read all of it.
%s
%s
sum %s
'''


class Missing(StoreError):
    """There is no such key file."""


class HalfReplaced(OSError):
    """The new key (digits) is in force, but the old one may not be overwritten; is_lasting: and a
    loss of power would not bring the old one back."""

    def __init__(self, error, digits, is_lasting):
        super(HalfReplaced, self).__init__(error.errno, error.strerror)
        self.digits = digits
        self.is_lasting = is_lasting


# -- the file --------------------------------------------------------------------------------------


def _sum(digits):
    return hashlib.sha256(('%s\0%s' % (HEAD, digits)).encode('ascii')).hexdigest()[:8]


def check_of(digits, block_size):
    """What tells this key from others without telling anything of it."""
    return hashlib.sha256(
        ('targetd check\0%s\0%d' % (digits, block_size)).encode('ascii')
    ).hexdigest()[:16]


def _new_digits():
    while True:
        key = os.urandom(xts.KEY_BYTES)
        if key[: xts.KEY_BYTES // 2] != key[xts.KEY_BYTES // 2 :]:
            return key.hex()


def load(path):
    """The key in this file, as hex digits. Raises Missing, StoreError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Missing('the key file %s does not exist' % path)
        raise StoreError('the key file %s cannot be read: %s' % (path, e.strerror))
    try:
        _require_private(path, os.fstat(descriptor))
        text = os.read(descriptor, LONGEST_FILE)
    except OSError as e:
        raise StoreError('the key file %s cannot be read: %s' % (path, e.strerror))
    finally:
        os.close(descriptor)
    return _parsed(path, text)


def _require_private(path, status):
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(
            'the key file %s is no regular file; name the file that "targetd --make-key" made'
            % path
        )
    if status.st_mode & 0o077:
        raise StoreError(
            'the key file %s can be used by others than its owner; "chmod 600 %s"; whoever has read it can read '
            'its disk' % (path, path)
        )
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError('the key file %s belongs to another user; "chown root %s"' % (path, path))


def _parsed(path, text):
    words = [line.strip() for line in text.decode('ascii', 'replace').split('\n')]
    words = [line for line in words if line and not line.startswith('#')]
    if len(words) < 3 or words[0] != HEAD or words[-1][:4] != 'sum ':
        raise StoreError(
            '%s is no key file of this targetd (its first line would be "%s"); bring back the copy that you kept'
            % (path, HEAD)
        )
    digits = ''.join(words[1:-1]).lower()
    if (
        len(digits) != 2 * xts.KEY_BYTES
        or set(digits) - set('0123456789abcdef')
        or _sum(digits) != words[-1][4:]
    ):
        raise StoreError(
            'the key file %s is damaged: its sum is wrong; bring back the copy that you kept' % path
        )
    return digits


def _write(path, digits):
    """A new file at this path, on stable storage but for its name. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, 'w', encoding='ascii') as file:
            os.fchmod(descriptor, 0o600)
            file.write(TEXT % (HEAD, '\n'.join(textwrap.wrap(digits, 64)), _sum(digits)))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(path)
        raise


def make(path):
    """Make a key file; gives its key. Raises StoreError, also if there is a file already: that is
    never overwritten."""
    digits = _new_digits()
    try:
        _write(path, digits)
        sync_directory(os.path.dirname(path) or '.')
    except FileExistsError:
        raise StoreError(
            '%s exists; a key is never overwritten: choose another name, or move the file away'
            % path
        )
    except OSError as e:
        raise StoreError('the key file %s cannot be made: %s' % (path, e.strerror))
    return digits


def replace(path):
    """CRYPTOGRAPHIC ERASE: put a new key in the place of the old one, and overwrite the old one
    where it was; gives the new key. Raises OSError if the old one is still in force, HalfReplaced
    if the new one is but not all was done.

    Called again after an interruption at any point, it does all that was left.

        FILE.being-made written -> FILE.being-erased = the old one, too -> FILE = the new one -> FILE.being-erased overwritten
        -> it is removed
    """
    path = os.path.realpath(path)
    directory, fresh, old = os.path.dirname(path), path + '.being-made', path + '.being-erased'
    _overwrite_left(path, old)
    digits = _new_digits()
    _remove(fresh)
    _write(fresh, digits)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _link(path, old)
        sync_directory(directory)
        os.rename(fresh, path)
        _finish(descriptor, old, directory, digits)
    finally:
        os.close(descriptor)
    return digits


def _finish(descriptor, old, directory, digits):
    """The new key has taken its place; the old file is behind the descriptor."""
    is_lasting = False
    try:
        sync_directory(directory)
        is_lasting = True
        _overwrite(descriptor)
        _remove(old)
        sync_directory(directory)
    except OSError as e:
        raise HalfReplaced(e, digits, is_lasting)


def _link(path, old):
    try:
        os.link(path, old)
    except OSError as e:
        # a file system without links: the descriptor will
        if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise  # do, unless the machine dies just then


def _overwrite_left(path, old):
    """An earlier replace() was interrupted: FILE.being-erased is the old key, or still the same
    file as FILE."""
    try:
        descriptor = os.open(old, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            _overwrite(descriptor)
    finally:
        os.close(descriptor)
    _remove(old)
    sync_directory(os.path.dirname(path))


def _overwrite(descriptor):
    """Other bytes over all of this file, on the medium, as far as its file system and medium write
    in place."""
    length = os.fstat(descriptor).st_size
    for content in (os.urandom(length), bytes(length)):
        done = 0
        while done < length:
            done += os.pwrite(descriptor, content[done:], done)
        os.fsync(descriptor)


def _remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


# -- which disk, which key -------------------------------------------------------------------------


def take(lun, store, saved, state_file):
    """Give an opened store the key that its LUN names. Returns the check to be kept, '' where
    nothing is encrypted.

    lun: config.model.Lun; store: OpenedStore; saved: the unit's saved state; state_file: its path.
    Raises StoreError."""
    known, path = saved.get('key_check') or '', lun.encryption_key_file
    if not path:
        if known and not is_blank(store):
            raise StoreError(
                '%s is encrypted, and no encryption-key-file is written for it; write it again; or, if what is on '
                'the disk is given up, remove %s' % (store.path, state_file)
            )
        return ''
    if xts.why_not():
        raise StoreError('%s cannot be encrypted: %s' % (store.path, xts.why_not()))
    digits = _loaded_or_made(path, store, known)
    check = check_of(digits, store.block_size)
    if known and check != known and not _is_erased(saved) and not is_blank(store):
        raise StoreError(
            '%s is not the key of %s, or the block size is another than when it was encrypted; bring the right '
            'file from your copy; or, if what is on the disk is given up, remove %s'
            % (path, store.path, state_file)
        )
    if not known and not is_blank(store):
        log.warning(
            '%s holds something, and is used with the key %s for the first time: what was written there without this '
            'key reads as noise',
            store.path,
            path,
        )
    store.encrypt(digits)
    return check


def _loaded_or_made(path, store, known):
    try:
        return load(path)
    except Missing:
        if known or store.read_only or not is_blank(store):
            raise StoreError(
                'the key of %s is missing: %s does not exist; without it nothing on the disk can be read; bring '
                'the file back from your copy; for a disk whose content is given up, "targetd --make-key %s" '
                'makes a new one' % (store.path, path, path)
            )
    digits = make(path)
    log.warning(
        '%s holds nothing yet: its key was made, %s. Keep a copy of that file: without it nothing can be read',
        store.path,
        path,
    )
    return digits


def _is_erased(saved):
    """Was a CRYPTOGRAPHIC ERASE begun? Then the file has the old key or a new one."""
    operation = saved.get('operation')
    return isinstance(operation, dict) and operation.get('method') == operations.NEW_KEY


def is_blank(opened):
    """Does the medium hold nothing but zeroes? False too where that would take long to find out.
    Raises StoreError."""
    left = BLANK_BYTES
    try:
        with from_descriptor(
            dict(opened.description(), filters=(), cipher_key=''), os.dup(opened.descriptor)
        ) as medium:
            offset = 0
            while offset < medium.size:
                for start, length, is_mapped in medium.extents(offset, medium.size - offset, 1):
                    offset = start + length
                    for at in range(start, offset, STEP) if is_mapped else ():
                        data = medium.read(at, min(STEP, offset - at))
                        left -= len(data)
                        if left < 0 or data.count(0) != len(data):
                            return False
    except OSError as e:
        raise StoreError('%s cannot be read: %s' % (opened.path, e.strerror or e))
    return True
