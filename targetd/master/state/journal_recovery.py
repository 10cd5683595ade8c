"""The paths of the journals of atomic writes, and the recovery of a journal left by a server that
died. May import store.

`roll_back_writes` runs in a child process (processes.jobs), because it reads and writes the medium. A
journal is locked while a server uses it.
"""

import errno
import fcntl
import hashlib
import os

from targetd.errors import StoreError
from targetd.store import journal
from targetd.trusted_path import open_trusted


def journal_path(state_path, key):
    """Returns the path of the journal of the medium with this key (identity.stable_key); None for a
    volatile medium (key '')."""
    if not key:
        return None
    digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()
    return os.path.join(state_path, 'atomic', digest[:32])


def roll_back_writes(path, store):
    """Rolls back the incomplete atomic writes on this opened store, removes the journal and returns
    the number of writes. Raises StoreError."""
    try:
        descriptor = open_trusted(path, os.O_RDWR) if path else None
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
        lock_journal(descriptor, path)
        with store.store() as medium:
            count = journal.recover_all_slots(os.dup(descriptor), medium, path)
        os.unlink(path)
        return count
    except OSError as e:
        raise StoreError(
            '%s: an atomic write that was incomplete when targetd died cannot be rolled back: %s; repair '
            'the disk, or remove %s to serve it with the incomplete write'
            % (store.path, e.strerror or e, path)
        )
    finally:
        os.close(descriptor)


def lock_journal(descriptor, path):
    """Locks a journal until its descriptor is closed. Raises StoreError if another process has
    locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StoreError(
            'the journal %s is in use: its disk is served by another targetd, or by this one under '
            'another name' % path
        )
