"""Where the journals of atomic writes are, and what becomes of one that a server left that died.
May import store.

`put_right` runs in a child (jobs): it reads and writes the medium. A journal is locked as long as a server uses it.
"""

import errno
import fcntl
import hashlib
import os

from targetd.errors import StoreError
from targetd.store import journal


def path_of(state_path, key):
    """The journal of the medium with this key (text that belongs to the data); None for data that
    does not outlast us ('')."""
    if not key:
        return None
    digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()
    return os.path.join(state_path, 'atomic', digest[:32])


def put_right(path, store):
    """Take back what was left half done on this opened store: how many writes; the journal is
    removed. Raises StoreError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC) if path else None
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise StoreError(
                '%s: the journal of its atomic writes, %s, cannot be read: %s'
                % (store.path, path, e.strerror)
            )
        descriptor = None
    if descriptor is None:
        return 0
    try:
        claim(descriptor, path)
        with store.store() as medium:
            count = journal.put_all_right(os.dup(descriptor), medium, path)
        os.unlink(path)
        return count
    except OSError as e:
        raise StoreError(
            '%s: an atomic write that was left half done when targetd died cannot be taken back: %s; see to the '
            'disk, or remove %s to have it served as it is, half written'
            % (store.path, e.strerror or e, path)
        )
    finally:
        os.close(descriptor)


def claim(descriptor, path):
    """Keep others away from a journal while its descriptor is open. Raises StoreError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StoreError(
            'the journal %s is in use: another targetd, or this one under another name, serves its disk'
            % path
        )
