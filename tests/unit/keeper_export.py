"""An export of a scripted NBD server with its keeper in a thread, and the stores of its sessions."""

import os
import threading

from nbd_peer import Peer

from targetd import compat
from targetd.master.exports.nbd_keeper import Keeper
from targetd.nbd import numbers, uri
from targetd.store import failure_flags, nbd_line
from targetd.store.base import NO_CAPABILITIES
from targetd.store.opened_store import from_descriptor

SIZE = 1 << 20
MULTI = numbers.CAN_MULTI_CONN


class Export(object):
    """A Peer, its keeper, and the stores of its sessions."""

    def __init__(self, path, **more):
        self.peer = Peer(path, **more)
        self.flag = failure_flags.new_flag()
        self.claim = compat.memory_file('test', 4096)
        ours, theirs = nbd_line.pair()
        self.control = ours
        self.before = (self.peer.size, self.peer.flags, 1)
        self.keeper = Keeper(theirs, uri.parse_uri(self.peer.uri), self.before, False, self.claim)
        self.thread = threading.Thread(target=self.keeper.run, daemon=True)
        self.thread.start()
        self.stores = []

    def session(self, filters=(), **more):
        """Another NbdStore, as a worker has it; more: further words of the description."""
        words = {
            'kind': 'nbd',
            'path': self.peer.uri,
            'size': self.peer.size,
            'multi': bool(self.peer.flags & MULTI),
            'flag': self.flag,
            'filters': filters,
            'capabilities': NO_CAPABILITIES._replace(unmap=True)._asdict(),
        }
        words.update(more)
        line = nbd_line.open_line(self.control.fileno(), self.flag)
        self.stores.append(from_descriptor(words, line, os.dup(self.claim)))
        return self.stores[-1]

    def restart(self, memory=None):
        """The server dies, and is back with this memory (that which it had)."""
        old = self.peer
        old.close()
        os.unlink(old.path)
        self.peer = Peer(old.path, old.size, old.flags, old.answer)
        if memory is None:
            self.peer.memory[:] = old.memory
        return old

    def close(self):
        for store in self.stores:
            store.close()
        self.control.close()
        self.peer.close()
        self.thread.join(20)
        assert not self.thread.is_alive(), 'the keeper has not ended'
        os.close(self.claim)


def commands(peer):
    return [request[0] for request in peer.requests]


def exports(tmp_path):
    """A fixture: make(flags=…, answer=…) -> an Export, closed at the end."""
    made = []

    def make(**more):
        made.append(Export(str(tmp_path / ('%d.sock' % len(made))), **more))
        return made[-1]

    yield make
    for each in made:
        each.close()
