"""The state of a unit beside its data (setting unit-state), so that it follows the disk to another server:
reservations, saved mode pages, identifying information, what has failed.

     nobody --take()--> held by server A --take(is_ordered)--> held by server B --release()--> released

One server holds the state, and that server alone serves the unit. The file names it, and each write first
compares that name under a lock: a server that was replaced cannot overwrite what its successor saves, and
learns of it. Nothing takes the state of another server by itself, because only the administrator, or a
cluster manager, can make certain that the other server does not write to the disk any more.

Everything here may block on the directory, so it runs in jobs (master.processes.jobs) and in savers.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections import namedtuple

from targetd.errors import Standby, StoreError
from targetd.master.state import state_directory
from targetd.trusted_path import open_trusted

LOCK_SECONDS = 10.0
POLL_SECONDS = 0.02

#: A server that can hold the state of units. id: of its state-dir; name: of its host, for messages.
Node = namedtuple('Node', 'id name')

#: The error of a write to a state that another server holds. No file system reports it.
TAKEN_OVER = errno.ESHUTDOWN


class UnitState(object):
    """The files in one directory. node: the Node of this server. (rados_state has the same with objects.)"""

    def __init__(self, path, node):
        self.path = path
        self.name = path  # for messages
        self.node = node
        self.journal_directory = path  # of the journals of atomic writes

    def file_of(self, key):
        """Returns the path of the state file of the unit with this key."""
        return os.path.join(self.path, state_directory.file_name(key))

    def document(self, key, state, medium=None):
        """(path, text) of the file that saves this dict, for store_held(). The file stays if the dict is
        empty: it says who holds it. medium: {'facts', 'size'} of the unit, which a server in standby shows
        to initiators."""
        return self.file_of(key), json.dumps({'unit': key, 'state': state, 'medium': medium})

    def load(self, key):
        """Returns the dict that was saved for this key; {} if there is none. Raises StoreError."""
        return self._read(key).get('state', {})

    def glance(self, key):
        """Returns what a server in standby shows to initiators: {'medium': of document(), 'state': as
        load(), 'holder': name of the server that holds it, or ''}; None if no server has said yet what it
        is. Raises StoreError."""
        found = self._read(key)
        if not found.get('medium'):
            return None
        holder = found.get('holder')
        return {
            'medium': found['medium'],
            'state': found['state'],
            'holder': holder['name'] if holder else '',
        }

    def require_turn(self, key, name, is_ordered, is_active, waits_for_order):
        """Raises Standby if take() would, StoreError. Changes nothing."""
        self._require_directory()
        self._is_held(self._read(key), name, is_ordered, is_active, waits_for_order)

    def take(self, key, name, is_ordered, is_active, waits_for_order):
        """Returns the dict that was saved for this key, after this server holds it. name: of the target, for
        messages; is_ordered: the administrator said that no other server uses the unit; is_active: this
        server serves the unit already; waits_for_order: only a server with an order serves it. Raises
        Standby if this server must not serve it, StoreError.

        Reservations outlast a takeover also without APTPL, since the unit has not lost power: the state
        counts as that of this boot."""
        self._require_directory()
        try:
            with self._locked(key):
                return self._take(key, name, is_ordered, is_active, waits_for_order)
        except OSError as e:
            raise StoreError(
                'the state of the unit in unit-state %s cannot be used: %s; correct that, or name another '
                'place' % (self.name, e.strerror)
            )

    def _take(self, key, name, is_ordered, is_active, waits_for_order):
        found = self._read(key)
        if self._is_held(found, name, is_ordered, is_active, waits_for_order):
            return found['state']
        state = found.get('state', {})
        if state:
            state = dict(state, boot_id=state_directory.boot_id())
        self._write(dict(found, epoch=found.get('epoch', 0) + 1), key, state, self.node)
        return state

    def _is_held(self, found, name, is_ordered, is_active, waits_for_order):
        """True if this server holds the state already, False if it may take it. Raises Standby."""
        holder = found.get('holder')
        is_ours = bool(holder) and holder['id'] == self.node.id
        if is_ours and (is_active or is_ordered or not waits_for_order):
            return True
        if not is_ordered:
            self._require_free(name, found, holder, waits_for_order)
        return False

    def _require_free(self, name, found, holder, waits_for_order):
        remedy = 'to serve it here: targetdctl takeover %s' % name
        if holder and holder['id'] != self.node.id:
            raise Standby(
                'standby: the server %s holds its state in %s; make certain that that server does not '
                'write to the disk any more; %s' % (holder['name'], self.name, remedy)
            )
        if waits_for_order:
            raise Standby('standby: its target has serving = when-active; %s' % remedy)
        if found:
            raise Standby('standby: no server serves it, by order; %s' % remedy)

    def release(self, key):
        """Nobody holds the state of this key any more; does nothing if another server holds it. Raises
        OSError, StoreError."""
        with self._locked(key):
            found = self._read(key)
            holder = found.get('holder')
            if holder and holder['id'] == self.node.id:
                self._write(dict(found, epoch=found['epoch'] + 1), key, found['state'], None)

    def successor(self, key):
        """Returns the name of the other server that holds the state of this key, or ''. Raises StoreError."""
        holder = self._read(key).get('holder')
        return holder['name'] if holder and holder['id'] != self.node.id else ''

    def run_while_held(self, key, work):
        """Returns work(), during which no other server can take the state. Raises OSError with the error
        number TAKEN_OVER if this server does not hold it, StoreError, and what work() raises."""
        with self._locked(key):
            self._require_held(self._read(key))
            done = work()
            self._require_held(self._read(key))  # a pool has no locks
            return done

    def _require_held(self, found):
        holder = found.get('holder')
        if not holder or holder['id'] != self.node.id:
            name = 'the server %s' % holder['name'] if holder else 'another server'
            raise OSError(TAKEN_OVER, '%s has taken it over' % name)

    def _require_directory(self):
        if not os.path.isdir(self.path):
            raise StoreError(
                'unit-state %s does not exist; is its file system mounted? Create it below the mount point, '
                'so that it is missing while nothing is mounted' % self.path
            )

    def _read(self, key):
        """Returns the document of a file; {} if there is none. Raises StoreError."""
        return state_directory.read_document(self.file_of(key), require_holder)

    def save(self, key, state, medium=None):
        """Writes this dict, and what document() says about the medium, to stable storage. Raises
        OSError, with the error number TAKEN_OVER if this server does not hold the state."""
        with self._locked(key):
            try:
                found = self._read(key)
            except StoreError as e:
                raise OSError(errno.EIO, str(e))
            self._require_held(found)
            self._write(dict(found, medium=medium), key, state, self.node)

    def _write(self, found, key, state, node):
        """found: the document, with the epoch that is to be written."""
        document = {
            'version': state_directory.VERSION,
            'unit': key,
            'state': state,
            'holder': node and {'id': node.id, 'name': node.name},
            'medium': found.get('medium'),
            'epoch': found['epoch'],  # counts the changes of the holder
        }
        self._store(key, document)

    def _store(self, key, document):
        text = json.dumps(document, indent=1, sort_keys=True)
        state_directory.write_durably(self.file_of(key), text)

    def _locked(self, key):
        return _locked(self.file_of(key))


def require_holder(document):
    """Raises ValueError, KeyError or TypeError unless the document says who holds the state, or that nobody
    does."""
    holder = document['holder']
    is_sound = holder is None or (isinstance(holder['id'], str) and isinstance(holder['name'], str))
    if not (is_sound and isinstance(document['epoch'], int)):
        raise ValueError('its holder is unknown')


@contextlib.contextmanager
def _locked(path):
    """Holds the lock of a state file, which works between hosts on a cluster file system too. Raises
    OSError, also if it is not free within LOCK_SECONDS."""
    descriptor = open_trusted(path + '.lock', os.O_RDWR | os.O_CREAT)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                if time.monotonic() > end:
                    raise OSError(errno.ETIMEDOUT, 'another server keeps %s.lock locked' % path)
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
