"""Key files of encrypted disks: reads, creates and replaces them, and decides whether a disk may be
served with a key.

May import base, config.model, store, scsi.operations, master.state. Invariants:
1. A key exists only in its file, in this process and in the workers that serve its disk, never in a
   log line, an error message or a response.
2. At every moment, even after a power failure, the file contains either the complete old or the
   complete new key.
3. A key is created automatically only for a blank disk that never had one. A missing key is never
   replaced by another.

The state directory keeps only a `check` of a disk's key: a digest of the key and of the block size,
which the cipher depends on. A wrong key file, a changed block size and a removed setting are
therefore refused before anything is read or written.
"""

import errno
import hashlib
import os
import stat
import textwrap

from targetd import log, xts
from targetd.durable import sync_directory
from targetd.errors import StoreError
from targetd.scsi import operations
from targetd.store import from_descriptor

HEAD = 'targetd-disk-key 1'
LONGEST_FILE = 4096
# a medium with more allocated data than this counts as not blank, even if the data is all zeroes
BLANK_BYTES = 64 << 20
STEP = 4 << 20

TEXT = '''\
# The key of a disk that targetd encrypts. Without this key the data on the disk is lost: keep a copy
# in a safe place, not on that disk. Anyone who has both the key and the disk can read all the data.
%s
%s
sum %s
'''


class MissingKeyFile(StoreError):
    """The key file does not exist."""


class KeyHalfReplaced(OSError):
    """The new key (digits) is in effect, but the old key may not have been overwritten. is_lasting:
    True if a power failure would not restore the old key."""

    def __init__(self, error, digits, is_lasting):
        super(KeyHalfReplaced, self).__init__(error.errno, error.strerror)
        self.digits = digits
        self.is_lasting = is_lasting


# -- the file --------------------------------------------------------------------------------------


def _sum(digits):
    return hashlib.sha256(('%s\0%s' % (HEAD, digits)).encode('ascii')).hexdigest()[:8]


def key_check(digits, block_size):
    """Returns a digest that identifies this key and block size without revealing the key."""
    return hashlib.sha256(
        ('targetd check\0%s\0%d' % (digits, block_size)).encode('ascii')
    ).hexdigest()[:16]


def _new_digits():
    while True:
        key = os.urandom(xts.KEY_BYTES)
        if key[: xts.KEY_BYTES // 2] != key[xts.KEY_BYTES // 2 :]:
            return key.hex()


def load_key(path):
    """Returns the key in this file, as hex digits. Raises MissingKeyFile, StoreError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise MissingKeyFile('the key file %s does not exist' % path)
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
            'the key file %s is not a regular file; name the file that "targetd --make-key" created'
            % path
        )
    if status.st_mode & 0o077:
        raise StoreError(
            'the key file %s is accessible to users other than its owner; run "chmod 600 %s"; anyone who '
            'has read it can read its disk' % (path, path)
        )
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError(
            'the key file %s belongs to another user; run "chown root %s"' % (path, path)
        )


def _parsed(path, text):
    words = [line.strip() for line in text.decode('ascii', 'replace').split('\n')]
    words = [line for line in words if line and not line.startswith('#')]
    if len(words) < 3 or words[0] != HEAD or words[-1][:4] != 'sum ':
        raise StoreError(
            '%s is not a key file of targetd (its first line is not "%s"); restore it from your copy'
            % (path, HEAD)
        )
    digits = ''.join(words[1:-1]).lower()
    if (
        len(digits) != 2 * xts.KEY_BYTES
        or set(digits) - set('0123456789abcdef')
        or _sum(digits) != words[-1][4:]
    ):
        raise StoreError(
            'the key file %s is damaged: its checksum is wrong; restore it from your copy' % path
        )
    return digits


def _write(path, digits):
    """Creates a key file and syncs its content, but not its directory. Raises OSError."""
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


def make_key(path):
    """Creates a key file and returns its key. Raises StoreError, also if the file exists: it is
    never overwritten."""
    digits = _new_digits()
    try:
        _write(path, digits)
        sync_directory(os.path.dirname(path) or '.')
    except FileExistsError:
        raise StoreError(
            '%s exists; a key is never overwritten: choose another name, or rename the file' % path
        )
    except OSError as e:
        raise StoreError('the key file %s cannot be created: %s' % (path, e.strerror))
    return digits


def replace_key(path):
    """Replaces the key by a new one and overwrites the old one in place, for the CRYPTOGRAPHIC ERASE
    service action of SANITIZE (SBC-3). Returns the new key.

    Raises OSError if the old key is still in effect, KeyHalfReplaced if the new key is in effect but
    a later step failed. After an interruption at any point, another call completes what is left.

        FILE.being-made is written -> FILE.being-erased links to the old key -> FILE is the new key
        -> FILE.being-erased is overwritten -> FILE.being-erased is removed
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
    """Completes replace_key() after the rename; the descriptor refers to the old key file."""
    is_lasting = False
    try:
        sync_directory(directory)
        is_lasting = True
        _overwrite(descriptor)
        _remove(old)
        sync_directory(directory)
    except OSError as e:
        raise KeyHalfReplaced(e, digits, is_lasting)


def _link(path, old):
    try:
        os.link(path, old)
    except OSError as e:
        # On a file system without hard links the old key is overwritten through its descriptor,
        # unless the machine crashes before that.
        if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise


def _overwrite_left(path, old):
    """Removes the FILE.being-erased of an interrupted replace_key(): it is the old key, which is
    overwritten, or still the same file as FILE."""
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
    """Overwrites the whole file and syncs it. This erases the old bytes only if the file system and
    the medium write in place."""
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


# -- the key of a disk -----------------------------------------------------------------------------


def set_store_key(lun, store, saved, state_file):
    """Sets the key of an opened store to the one that its LUN names. Returns the check to be saved,
    '' for a disk that is not encrypted.

    lun: config.model.Lun; store: OpenedStore; saved: the unit's saved state; state_file: its path.
    Raises StoreError."""
    known, path = saved.get('key_check') or '', lun.encryption_key_file
    if not path:
        if known and not is_blank(store):
            raise StoreError(
                '%s is encrypted, and no encryption-key-file is configured for it; add that setting '
                'again; or, to abandon the data on the disk, remove %s' % (store.path, state_file)
            )
        return ''
    if xts.why_not():
        raise StoreError('%s cannot be encrypted: %s' % (store.path, xts.why_not()))
    digits = _loaded_or_made(path, store, known)
    check = key_check(digits, store.block_size)
    if known and check != known and not _is_erased(saved) and not is_blank(store):
        raise StoreError(
            '%s is not the key of %s, or the block size differs from the one it was encrypted with; restore '
            'the right file from your copy; or, to abandon the data on the disk, remove %s'
            % (path, store.path, state_file)
        )
    if not known and not is_blank(store):
        log.warning(
            '%s contains data and is used with the key %s for the first time: data that was written without '
            'this key cannot be read',
            store.path,
            path,
        )
    store.set_cipher_key(digits)
    return check


def _loaded_or_made(path, store, known):
    try:
        return load_key(path)
    except MissingKeyFile:
        if known or store.read_only or not is_blank(store):
            raise StoreError(
                'the key of %s is missing: %s does not exist; without it nothing on the disk can be read; '
                'restore the file from your copy; or, to abandon the data on the disk, run "targetd '
                '--make-key %s" to create a new key' % (store.path, path, path)
            )
    digits = make_key(path)
    log.warning(
        '%s is blank: its key was created in %s. Keep a copy of that file: without it nothing on the disk '
        'can be read',
        store.path,
        path,
    )
    return digits


def _is_erased(saved):
    """True if a CRYPTOGRAPHIC ERASE was started: the file then contains the old or a new key."""
    operation = saved.get('operation')
    return isinstance(operation, dict) and operation.get('method') == operations.NEW_KEY


def is_blank(opened):
    """Returns True if the medium contains only zeroes; False also if more than BLANK_BYTES would
    have to be read to find out. Raises StoreError."""
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
