"""Persistent state: small JSON files under state-dir, one for each logical unit.

Invariant: at every moment, even after a power failure, a file contains either the complete old or
the complete new state. Before `save` returns, the new state has been written to a temporary file,
synced, renamed to the final name, and the directory has been synced. A file that cannot be read is
never silently replaced by an empty state, because that would drop the reservations that protect a
cluster's disk.
"""

import errno
import fcntl
import hashlib
import json
import os

from targetd import log
from targetd.durable import make_directory, sync_directory
from targetd.errors import AlreadyRunning, StoreError, TargetdError
from targetd.trusted_path import open_trusted, open_trusted_directory, others_can_write

VERSION = 1
BOOT_ID = '/proc/sys/kernel/random/boot_id'

#: Errors of a disk that is full, failing or read-only: no other server can change the files either,
#: and what does not need state-dir works without it.
UNUSABLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class StateDirectory(object):
    """Loads and saves the state of units. `path`: state-dir, created on first use (mode 0700);
    `boot_id`: differs after each boot of the machine; `ordered`: {(target name, number)} of the units with
    unit-state that the administrator ordered this server to take over; `active`: of those that it serves."""

    node = None  # no file names its holder: the lock is for the whole directory

    def __init__(self, path):
        self.path = path
        self.this_node = None  # unit_state.Node
        self.ordered = set()
        self.active = set()
        self.boot_id = boot_id()
        self.descriptor = None  # of the locked file

    def lock(self):
        """Locks the directory for this process: two servers would overwrite each other's records.
        The lock ends with the process, however it ends, and a child process does not inherit it.
        Raises AlreadyRunning, TargetdError."""
        path = os.path.join(self.path, 'lock')
        try:
            make_directory(self.path, 0o755)
            if others_can_write(os.stat(self.path)):
                log.warning(
                    'other users can write state-dir %s, and with it the reservations, identities and '
                    'journals of all LUNs; run "chown root %s" and "chmod go-w %s"',
                    self.path,
                    self.path,
                    self.path,
                )
            descriptor = open_trusted(path, os.O_RDWR | os.O_CREAT)
        except OSError as e:
            if e.errno not in UNUSABLE_DISK:
                raise TargetdError(
                    'state-dir %s cannot be locked: %s; correct its permissions, or write another '
                    'state-dir' % (self.path, e.strerror)
                )
            log.error(
                'state-dir %s cannot be locked: %s; make certain that no other server uses it',
                self.path,
                e.strerror,
            )
            return
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            holder = os.pread(descriptor, 300, 0).decode('utf-8', 'replace').strip()
            os.close(descriptor)
            if e.errno not in (errno.EACCES, errno.EAGAIN):
                raise TargetdError('state-dir %s cannot be locked: %s' % (self.path, e.strerror))
            raise AlreadyRunning(
                'state-dir %s is in use by another targetd%s; stop that server, or write another '
                'state-dir for this one' % (self.path, ' (%s)' % holder if holder else '')
            )
        self.descriptor = descriptor
        self._write_holder(descriptor)

    @staticmethod
    def _write_holder(descriptor):
        """Writes who holds the lock, for the message of a second server."""
        try:
            os.ftruncate(descriptor, 0)
            holder = 'process %d on %s\n' % (os.getpid(), os.uname().nodename)
            os.pwrite(descriptor, holder.encode('utf-8', 'surrogateescape'), 0)
        except OSError:
            pass  # the lock itself is in force

    def unlock(self):
        """Ends the lock. Does nothing without one."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    @property
    def journal_directory(self):
        """Where the journals of atomic writes are."""
        return self.path

    def file_of(self, key):
        """Returns the path of the state file of the unit with this key, which is derived from the
        target's name and from the data, not from the LUN."""
        return os.path.join(self.path, 'units', file_name(key))

    def load(self, key):
        """Returns the dict that was saved for this key; {} if there is none. Raises StoreError if
        the file exists but is unreadable or damaged."""
        return read_document(self.file_of(key)).get('state', {})

    def document(self, key, state, medium=None):
        """(path, text) of the file that saves this dict, for store_document(). The text of an empty
        dict is None: the file is removed."""
        if not state:
            return self.file_of(key), None
        document = {'version': VERSION, 'unit': key, 'state': state}
        return self.file_of(key), json.dumps(document, indent=1, sort_keys=True)

    def save(self, key, state):
        """Writes this dict to stable storage; an empty dict removes the file. Raises OSError, in
        which case the old state is kept."""
        store_document(*self.document(key, state))


def file_name(key):
    """Returns the name of the state file of the unit with this key."""
    digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()
    return digest[:32] + '.json'


def read_document(path, check=lambda document: None):
    """Returns the document of a state file, which has `state`; {} if there is no file. check(document)
    raises ValueError, KeyError or TypeError if anything else in it is damaged. Raises StoreError."""

    def read():
        with os.fdopen(open_trusted(path, os.O_RDONLY), encoding='utf-8') as f:
            return json.load(f)

    return checked_document(path, read, check)


def checked_document(path, read, check):
    """Returns what read() returns, a document of this path, which has `state`; {} if there is none. The rest
    as for read_document()."""
    try:
        document = read()
        require_known_format(path, document['version'], VERSION)
        if not isinstance(document['state'], dict):
            raise ValueError('it has no state')
        check(document)
        return document
    except OSError as e:
        if e.errno == errno.ENOENT:
            return {}
        raise StoreError(
            'the saved state %s cannot be read (%s); the unit is not served without it'
            % (path, e.strerror)
        )
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(
            'the saved state %s is damaged (%s); the unit is not served, because its reservations are '
            'unknown; remove the file to start without reservations and saved mode pages'
            % (path, e)
        )


def require_known_format(path, found, known):
    """Raises StoreError if a file has the format of a newer version of targetd, ValueError if its format is
    damaged. An older format is read by the caller."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ValueError('unknown version %r' % (found,))
    if found > known:
        raise StoreError(
            '%s was written by a newer version of targetd (format %d; this version reads formats up to %d); '
            'start the newer version' % (path, found, known)
        )


def store_document(path, text):
    """Writes the file durably, or removes it if `text` is None. Raises OSError."""
    if text is not None:
        write_durably(path, text)
        return
    try:
        os.unlink(path)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise
        return
    sync_directory(os.path.dirname(path))


def write_durably(path, text):
    """Replaces a file atomically and syncs it; creates its directory. Follows no symbolic link that
    another user may have put there. Raises OSError."""
    make_directory(os.path.dirname(path), 0o700)
    directory, name = open_trusted_directory(os.path.dirname(path)), os.path.basename(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(name + '.new', flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, 'w', encoding='utf-8') as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.rename(name + '.new', name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(name + '.new', dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def boot_id():
    """Returns the kernel's id of this boot; '' if it has none."""
    try:
        with open(BOOT_ID) as f:
            return f.read().strip()
    except OSError:
        return ''
