"""State that outlasts a restart: small JSON files under state-dir, one per logical unit.

Invariant: a file holds a whole old or a whole new state at every moment, power failures included:
the new one is written beside it, synced, renamed over it, and the directory synced, before `save`
returns. A file that cannot be read is never silently replaced by an empty state: reservations that
guard a cluster's disk would be gone.
"""

import errno
import hashlib
import json
import os

from targetd.errors import StoreError

VERSION = 1
BOOT_ID = '/proc/sys/kernel/random/boot_id'


class StateDirectory(object):
    """`path`: state-dir. Makes the directory on first use (mode 0700). boot_id: another one after each boot of the machine."""

    def __init__(self, path):
        self.path = path
        self.boot_id = boot_id()

    def file_of(self, key):
        """The file of the unit with this key (text that belongs to its data, not to its place)."""
        digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()
        return os.path.join(self.path, 'units', digest[:32] + '.json')

    def load(self, key):
        """The dict that was saved for this key; {} if there is none. Raises StoreError if it is
        there and cannot be read."""
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
        """Put this dict on stable storage; an empty one removes the file. Raises OSError, and then
        the old state stands."""
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
    """Replace a file, whole or not at all; its directory is made. Raises OSError."""
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
    """The kernel's name for this boot; '' if it has none."""
    try:
        with open(BOOT_ID) as f:
            return f.read().strip()
    except OSError:
        return ''


def sync_directory(path):
    """Make what was renamed or removed in there lasting. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
