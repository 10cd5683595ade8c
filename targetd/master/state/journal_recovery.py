"""The journals of atomic writes: their paths, their creation, and the recovery of one left by a server
that died. May import store.

`roll_back_writes` and `create_journal` run in a child process (processes.jobs), because they wait for
disks: that of the medium, and that of state-dir. A journal is locked while a server uses it.
"""

import errno
import fcntl
import hashlib
import os

from targetd import compat
from targetd.durable import make_directory, sync_directory
from targetd.errors import StoreError
from targetd.store import journal, range_locks
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


def create_journal(path):
    """Returns the descriptor of a new journal, or of an empty one that exists, locked; path: None for
    one in memory. It has room for journal.READY_SLOTS slots, which take no space before they are used.
    Its directory is closed to other users, the file itself is not: workers open it through their
    descriptor. Raises StoreError."""
    try:
        if path is None:
            descriptor = compat.memory_file('targetd-atomic', 0)
        else:
            directory = os.path.dirname(path)
            make_directory(directory, 0o700)
            os.chmod(directory, 0o700)
            descriptor = open_trusted(path, os.O_RDWR | os.O_CREAT)
    except OSError as e:
        raise StoreError(
            'atomic writes need a journal, and %s cannot be written: %s; make it writable, or write '
            'atomic-writes = no' % (path or 'memory', e.strerror)
        )
    try:
        if path is not None:
            lock_journal(descriptor, path)
            _require_named(descriptor, path)
            os.ftruncate(descriptor, journal.READY_SLOTS * journal.SLOT)
            sync_directory(os.path.dirname(path))
        os.fchmod(descriptor, 0o666)
        why_not = range_locks.unsupported_reason(descriptor)
        if why_not:
            if path is not None:
                os.unlink(path)
            raise StoreError(
                'atomic writes need locks on %s: %s; write atomic-writes = no'
                % (path or 'memory', why_not)
            )
    except OSError as e:
        os.close(descriptor)
        raise StoreError('the journal %s cannot be prepared: %s' % (path or 'memory', e.strerror))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_named(descriptor, path):
    """Raises StoreError if another process removed the journal before this one had locked it: after a
    crash, nothing would find what is written to it."""
    try:
        is_named = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        is_named = False
    if not is_named:
        raise StoreError('the journal %s was removed while it was opened; try again' % path)
