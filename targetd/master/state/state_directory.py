"""Persistent state: small JSON files under state-dir, one for each logical unit.

Invariant: at every moment, even after a power failure, a file contains either the complete old or
the complete new state. Before `save` returns, the new state has been written to a temporary file,
synced, renamed to the final name, and the directory has been synced. A file that cannot be read is
never silently replaced by an empty state, because that would drop the reservations that protect a
cluster's disk.
"""

import errno
import hashlib
import json
import os

from targetd.errors import StoreError

VERSION = 1
BOOT_ID = '/proc/sys/kernel/random/boot_id'


class StateDirectory(object):
    """Loads and saves the state of units. `path`: state-dir, created on first use (mode 0700);
    `boot_id`: differs after each boot of the machine."""

    def __init__(self, path):
        self.path = path
        self.boot_id = boot_id()

    def file_of(self, key):
        """Returns the path of the state file of the unit with this key, which is derived from the
        target's name and from the data, not from the LUN."""
        digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()
        return os.path.join(self.path, 'units', digest[:32] + '.json')

    def load(self, key):
        """Returns the dict that was saved for this key; {} if there is none. Raises StoreError if
        the file exists but is unreadable or damaged."""
        path = self.file_of(key)
        try:
            with open(path, encoding='utf-8') as f:
                document = json.load(f)
            if document['version'] != VERSION or not isinstance(document['state'], dict):
                raise ValueError('unknown version %r' % document['version'])
            return document['state']
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

    def save(self, key, state):
        """Writes this dict to stable storage; an empty dict removes the file. Raises OSError, in
        which case the old state is kept."""
        path = self.file_of(key)
        if not state:
            self._remove(path)
            return
        write_durably(
            path,
            json.dumps({'version': VERSION, 'unit': key, 'state': state}, indent=1, sort_keys=True),
        )

    def _remove(self, path):
        try:
            os.unlink(path)
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise
            return
        sync_directory(os.path.dirname(path))


def write_durably(path, text):
    """Replaces a file atomically and syncs it; creates its directory. Raises OSError."""
    directory, fresh = os.path.dirname(path), path + '.new'
    os.makedirs(directory, 0o700, exist_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, 'w', encoding='utf-8') as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
    sync_directory(directory)


def boot_id():
    """Returns the kernel's id of this boot; '' if it has none."""
    try:
        with open(BOOT_ID) as f:
            return f.read().strip()
    except OSError:
        return ''


def sync_directory(path):
    """Makes renames and removals in this directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
