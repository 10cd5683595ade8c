"""A change of the size of an NBD export while sessions use it, in its keeper: the image is made larger, or
the server already has it larger and shows that to new connections only.

     connect --> half-close the sessions' connections --> the server has done what it had received, and closes
        --> FLUSH on the own connection --> [stop the server, qemu-img resize] --> connect, look at the size

The own connection is made first: a FLUSH that succeeds on it shows that the server that did the writes still
lives, so they are durable, and no session repeats them on its next connection. Sessions notice only that
their commands take longer.

May import store, nbd.
"""

import os
import select
import socket

from targetd.master.exports import nbd_connecting
from targetd.master.exports.nbd_connecting import Unavailable
from targetd.nbd import numbers
from targetd.store import nbd_line
from targetd.store.nbd_connection import Connection, Lost

CONNECT_SECONDS = 4.0
#: Limit of the time in which a server does what it has received.
HANG_UP_SECONDS = 10.0
FLUSH_SECONDS = 10.0


class Failed(Exception):
    """The size cannot be changed; the message is a sentence without a subject. is_lost: acknowledged data
    may be lost."""

    def __init__(self, why, is_lost=False):
        super(Failed, self).__init__(why)
        self.is_lost = is_lost


class SizeChange(object):
    """size: wanted, in bytes; may_shrink: no initiator knows of more; reply: the descriptor of the socket
    for the outcome; end: by the clock of the keeper; lines: those whose connections are ended; own: a
    connection of this change, or None if there are no such lines."""

    def __init__(self, size, may_shrink, reply, end):
        self.size = size
        self.may_shrink = may_shrink
        self.end = end
        self.lines = []
        self.own = None
        self._reply = socket.socket(fileno=reply)

    def connect(self, connect, address):
        """Make the own connection. Raises Failed."""
        try:
            sock, export = connect(address, CONNECT_SECONDS)
        except Unavailable as e:
            raise Failed(str(e))
        sock.settimeout(FLUSH_SECONDS)
        self.own = Connection(sock, export)

    def flush(self):
        """Make durable what the sessions have written, and end the own connection. Raises Failed."""
        own, self.own = self.own, None
        try:
            if own.export.flags & numbers.SEND_FLUSH and not own.export.flags & numbers.READ_ONLY:
                own.call(numbers.CMD_FLUSH, 0, 0, 0)
        except Lost as e:
            raise Failed('has lost the connection: %s; try again' % e)
        except OSError as e:
            raise Failed('cannot make its data durable: %s' % e.strerror, is_lost=True)
        finally:
            own.fail('it is not needed any more')
            own.close()

    def answer(self, words):
        """Send the outcome, and end."""
        try:
            nbd_line.send(self._reply, words, (), socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody waits for it any more
        self._reply.close()
        if self.own is not None:
            self.own.fail('the size is not changed')
            self.own.close()
            self.own = None


def half_close(sock):
    """Send no more on a connection: the server does what it has received, and closes it."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def has_hung_up(sock):
    """True if a connection is closed at both ends; data may be left in it."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def looked_at(connect, address, before, size, read_only):
    """Returns the size of the export for new connections, in bytes. before: as in
    nbd_connecting.require_same. Raises Failed if it is less than `size`."""
    try:
        sock, export = connect(address, nbd_connecting.SECONDS)
        nbd_connecting.disconnect(sock)
        nbd_connecting.require_same(before, export, read_only)
    except Unavailable as e:
        raise Failed(str(e))
    if export.size < size:
        raise Failed('has %d bytes for new connections, not %d' % (export.size, size))
    return export.size


#: The first bytes of the memory file have the size of the export, as the latest connection has it.
SIZE_BYTES = 8


def note_size(claim, size):
    """Tell the master, which has the memory file too, the size in bytes that a new connection has."""
    os.pwrite(claim, size.to_bytes(SIZE_BYTES, 'big'), 0)


def noted_size(claim):
    """Returns what note_size() was told last; 0 before."""
    return int.from_bytes(os.pread(claim, SIZE_BYTES, 0), 'big')
