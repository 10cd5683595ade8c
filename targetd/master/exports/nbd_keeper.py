"""The *keeper* of an NBD export: a process that makes the connections to the server, so that
neither the master nor a worker opens a socket, and the master waits for nothing.

The job that opens the export starts it; it ends by itself when the master has closed the control
socket and the last worker its line. Messages: store.nbd_line.

     a line asks --> waiting --connected--> the worker has the connection; the keeper has its descriptor, too
                        |  ^                     |
                        |  +-- back-off --+      | the worker asks again, closes its line, or is killed
                        +--not reachable--+      v
                                            draining: no more is sent, until the server has done what it had
                                            received and closes; before, nobody gets a connection

So a request of a worker that is gone is never executed after those of the next one. When a session
ends that has written without a flush, the keeper flushes. If the server is away, the worker leaves its
unflushed changes to the keeper, which repeats them when the server is back, before anything else.

Data is lost, and the failure flag of the unit is set (store.failure_flags), if the server died before and the
worker was killed; if nobody is left to wait for the server; and if the server dies with unflushed
writes of one of several sessions: they cannot be repeated, since another session may have written
the same blocks later.

May import store, nbd.
"""

import itertools
import os
import select
import socket
import time
from collections import deque

from targetd.master.exports import nbd_connecting, nbd_size_change
from targetd.master.exports.nbd_connecting import Unavailable
from targetd.master.exports.nbd_size_change import Failed, SizeChange, half_close
from targetd.master.processes import child
from targetd.nbd import numbers
from targetd.store import failure_flags, nbd_line
from targetd.store.nbd_connection import Connection, Lost

SHORTEST_BACK_OFF, LONGEST_BACK_OFF = 0.1, 5.0
#: A connection that lasted for less than this time counts as a failed attempt.
STABLE_SECONDS = 5.0
#: The flush after the end of a session.
FLUSH_SECONDS = 10.0
#: When everyone is gone, the keeper waits so long for the server.
LAST_SECONDS = 10.0
#: Interval at which a keeper looks whether the server that it starts still runs.
TEND_SECONDS = 2.0
#: Limit of the attempt to make a second connection for a session.
SECOND_SECONDS = 1.0


class _Line(object):
    """The line of a process. writes: it may write; place: its byte of the memory file, 1 while it has
    changes that are not durable; connections: {slot: socket}; has_company: another session that writes has
    had a connection at the same time; told: the last reason that it got; given: when it got its last
    connection; size: of the export, as that connection has it; is_flushed: since then everything was made
    durable, and the connections were ended."""

    def __init__(self, sock, flag, writes, place):
        self.sock = sock
        self.flag = flag
        self.writes = writes
        self.place = place
        self.connections = {}
        self.has_company = False
        self.told = ''
        self.given = None
        self.size = 0
        self.is_flushed = False
        self.left = []  # [command, flags, offset, length, data] that the process leaves behind
        self.missing = 0  # bytes of the last one that follow
        self.has_left = False  # all of them are here


class Keeper(object):
    """control: the socket on which new lines arrive; before: (size, flags, minimum block size) of
    the export when it was opened; claim: the memory file; connect(address, seconds):
    nbd_connecting.connect, image_server.ImageServer.connect or a substitute of a test; resize(size,
    may_shrink): of an ImageServer, else None; tend(): starts a server again that has to run although nobody
    asks for a connection, else None."""

    def __init__(
        self,
        control,
        address,
        before,
        read_only,
        claim,
        connect=nbd_connecting.connect,
        clock=time.monotonic,
        resize=None,
        tend=None,
    ):
        self._tend = tend
        self._tend_at = clock() + TEND_SECONDS
        self._control = control
        self._former = None
        self._address = address
        self._before = before
        self._read_only = read_only
        self._claim = claim
        self._connect = connect
        self._clock = clock
        self._resize = resize
        self._change = None  # SizeChange, while connections are being ended for it
        self._lines = {}  # descriptor -> _Line
        self._draining = {}  # descriptor -> socket
        self._waiting = deque()  # (_Line, slot)
        self._unflushed = set()  # failure flags of sessions that ended without a flush
        # (failure flag, changes) of sessions that ended while the server was away
        self._left = deque()
        self._back_off = 0.0
        self._next = 0.0  # when the next attempt may be made
        self._end = None  # when the keeper ends, if everyone is gone

    def run(self):
        """Returns when nobody needs the keeper any more."""
        while self.is_needed():
            self.step(None)

    def is_needed(self):
        """False if everyone is gone and nothing is left to do, or there was no time for it."""
        if self._control is not None or self._lines:
            return True
        if self._end is None:
            self._end = self._clock() + LAST_SECONDS
        if self._clock() < self._end:
            return bool(self._draining or self._unflushed or self._left)
        for flag, _ in self._left:
            failure_flags.set_flag(flag)
        return False

    def step(self, seconds):
        """Wait for the next event, at most so long (None: without a limit), and handle it."""
        for descriptor, _ in self._poll(seconds):
            if self._control is not None and descriptor == self._control.fileno():
                self._accept()
            elif descriptor in self._lines:
                self._listen(self._lines[descriptor])
            elif descriptor in self._draining:
                self._drain(self._draining[descriptor])
        if self._change is not None:
            self._go_on()
        if self._must_tend() and self._clock() >= self._tend_at:
            self._tend_at = self._clock() + TEND_SECONDS
            self._tend()
        if self._has_work() and self._clock() >= self._next:
            self._attempt()

    def _has_work(self):
        is_leaving = any(line.left for line in self._lines.values())  # repeated before all else
        is_held = is_leaving or self._draining or self._change is not None
        return not is_held and bool(self._waiting or self._unflushed or self._left)

    def _must_tend(self):
        return self._tend is not None and self._control is not None

    def _poll(self, seconds):
        poll = select.poll()
        for descriptor in list(self._lines) + list(self._draining):
            poll.register(descriptor, select.POLLIN)
        if self._control is not None:
            poll.register(self._control, select.POLLIN)
        limits = [] if seconds is None else [seconds]
        if self._change is not None:
            for sock in self._open_connections():
                poll.register(sock, 0)  # the end is always reported
            limits.append(self._change.end - self._clock())
        if self._has_work():
            limits.append(self._next - self._clock())
        if self._end is not None:
            limits.append(self._end - self._clock())
        if self._must_tend():
            limits.append(self._tend_at - self._clock())
        return poll.poll(max(0.0, min(limits)) * 1000 + 1 if limits else None)

    # -- lines -------------------------------------------------------------------------------------

    def _accept(self):
        message = _received(self._control)
        if message is None:
            # closed at the end: the master may wait
            self._former, self._control = self._control, None
            return
        words, descriptors = message
        if 'size' in words:
            self._begin_change(words, descriptors[0])
            return
        for descriptor in descriptors:
            writes = bool(words['writes']) and not self._read_only
            sock = socket.socket(fileno=descriptor)
            self._lines[descriptor] = _Line(sock, words['line'], writes, self._new_place())

    def _listen(self, line):
        if line.missing:
            self._take_data(line)
            return
        message = _received(line.sock)
        words = message[0] if message is not None else {}
        slot = words.get('connect')
        if words.get('unless_clean') and self._is_clean():
            self._send(line, {'clean': True})
        elif slot in (0, 1):
            self._asked(line, slot)
        elif isinstance(words.get('change'), list) and len(words['change']) == 5:
            line.left.append(words['change'][:4] + [bytearray()])
            line.missing = words['change'][4]
        elif 'left' in words:
            line.has_left = True
        else:
            self._over(line)

    def _take_data(self, line):
        """A part of the data of the last change that a line leaves."""
        try:
            part = line.sock.recv(nbd_line.PIECE, socket.MSG_DONTWAIT)
        except OSError:
            part = b''
        line.left[-1][4] += part
        line.missing -= len(part)
        if not part:
            self._over(line)

    def _asked(self, line, slot):
        """A worker asks for a connection; those of slot 0 take the place of all earlier ones."""
        if slot == 0:
            self._drain_all(line)
            line.told = ''  # what a request for a second connection was told is not in the log
        elif line.is_flushed or self._change is not None:
            self._send(line, {'why': 'the connections are replaced'})
            return
        if any(each is line for each, _ in self._waiting):
            return
        self._waiting.append((line, slot))
        if line.is_flushed or line.given is None or self._clock() - line.given >= STABLE_SECONDS:
            self._back_off = 0.0
        elif slot == 0:
            self._back_off_more()

    def _over(self, line):
        """The line is at its end: its session is over, or the worker was killed."""
        del self._lines[line.sock.fileno()]
        self._waiting = deque(each for each in self._waiting if each[0] is not line)
        is_dirty = self._is_dirty(line)
        if is_dirty and self._change is not None:
            self._unflushed.add(line.flag)  # it is flushed before the change
        elif is_dirty and line.has_left and not line.has_company:
            self._left.append((line.flag, line.left))
        elif is_dirty and (not line.connections or any(map(_is_dead, line.connections.values()))):
            failure_flags.set_flag(line.flag)
        elif is_dirty:
            self._unflushed.add(line.flag)
        self._drain_all(line)
        line.sock.close()

    def _is_dirty(self, line):
        """True if the process has changes that are not durable, or was killed with them."""
        return not line.is_flushed and os.pread(self._claim, 1, line.place) == b'\1'

    def _is_clean(self):
        """True if everything that was acknowledged to any process is durable."""
        is_dirty = any(map(self._is_dirty, self._lines.values()))
        return not (is_dirty or self._left or self._unflushed)

    def _new_place(self):
        """Returns the byte of the memory file for a new line."""
        taken = {line.place for line in self._lines.values()}
        place = next(
            number for number in itertools.count(nbd_size_change.SIZE_BYTES) if number not in taken
        )
        os.pwrite(self._claim, b'\0', place)
        return place

    def _send(self, line, words, descriptors=()):
        try:
            nbd_line.send(line.sock, words, descriptors, socket.MSG_DONTWAIT)
        except OSError:
            pass  # its end is noticed next

    # -- connections that are no longer used -------------------------------------------------------

    def _drain_all(self, line):
        for sock in line.connections.values():
            half_close(sock)
            self._draining[sock.fileno()] = sock
        line.connections = {}

    def _drain(self, sock):
        """Read what the server still sends; nobody waits for it."""
        try:
            data = sock.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if not data:
            del self._draining[sock.fileno()]
            sock.close()

    # -- new connections ---------------------------------------------------------------------------

    def _attempt(self):
        """Connect once, for a flush or for the line that has waited longest."""
        slot = self._waiting[0][1] if self._waiting else 0
        try:
            sock, export = self._connect(
                self._address, SECOND_SECONDS if slot else nbd_connecting.SECONDS
            )
        except Unavailable as e:
            self._failed(str(e), e.is_final)
            return
        try:
            nbd_connecting.require_same(self._before, export, self._read_only)
        except Unavailable as e:
            nbd_connecting.disconnect(sock)
            self._failed(str(e))
            return
        nbd_size_change.note_size(self._claim, export.size)
        if self._left or self._unflushed:
            self._repeat(sock, export)
        else:
            self._give(sock, export)

    def _failed(self, why, is_final=False):
        self._back_off_more()
        if is_final:
            for line, _ in self._waiting:
                self._send(line, {'why': why, 'final': True})
            self._waiting.clear()
        for flag in self._unflushed:  # their changes are not known any more
            failure_flags.set_flag(flag)
        self._unflushed.clear()
        for line, slot in list(self._waiting):
            if slot:
                self._waiting.remove((line, slot))
            if slot or line.told != why:
                line.told = why
                self._send(line, {'why': why})

    def _back_off_more(self):
        self._back_off = min(LONGEST_BACK_OFF, max(SHORTEST_BACK_OFF, 2 * self._back_off))
        self._next = self._clock() + self._back_off

    def _repeat(self, sock, export):
        """Do what sessions have left: repeat their changes, and flush."""
        sock.settimeout(FLUSH_SECONDS)
        connection = Connection(sock, export)
        flags = self._unflushed | {flag for flag, _ in self._left}
        try:
            for _, changes in self._left:
                for command, options, offset, length, data in changes:
                    is_write = command == numbers.CMD_WRITE
                    connection.call(command, options, offset, length, data if is_write else None)
            connection.call(numbers.CMD_FLUSH, 0, 0, 0)
        except Lost as e:
            self._failed('has lost the connection again: %s' % e)
        except OSError:
            self._lose(flags)
        else:
            self._left.clear()
            self._unflushed.clear()
        nbd_connecting.disconnect(sock)

    def _lose(self, flags):
        """Data is lost."""
        for flag in flags:
            failure_flags.set_flag(flag)
        self._left.clear()
        self._unflushed.clear()

    def _give(self, sock, export):
        line, slot = self._waiting.popleft()
        had_company = line.has_company
        others = [each for each in self._lines.values() if each is not line and each.given]
        if slot == 0:
            line.has_company = any(each.writes for each in others)
        if line.writes:
            for each in others:
                each.has_company = True
        line.connections[slot] = sock
        line.told, line.given, line.size = '', self._clock(), export.size
        words = {'export': list(export), 'company': had_company, 'place': line.place}
        words['durable'], line.is_flushed = line.is_flushed, False
        self._send(line, words, (sock.fileno(),))

    # -- a change of the size ----------------------------------------------------------------------

    def _begin_change(self, words, descriptor):
        """The master wants the export to have another size for all sessions."""
        end = self._clock() + nbd_size_change.HANG_UP_SECONDS
        change = SizeChange(words['size'], words['may_shrink'], descriptor, end)
        try:
            self._require_quiet(change)
            change.lines = [line for line, _ in self._sockets_before(change.size)]
            if change.lines:
                change.connect(self._connect, self._address)
        except Failed as e:
            change.answer({'why': str(e)})
            return
        for line, slot in [each for each in self._waiting if each[1]]:
            self._waiting.remove((line, slot))
            self._send(line, {'why': 'the connections are replaced'})
        self._change = change
        for _, sock in self._sockets_before(change.size):
            half_close(sock)

    def _require_quiet(self, change):
        """Raises Failed unless the change can begin."""
        if self._change is not None or self._draining or self._left or self._unflushed:
            raise Failed('is busy with the end of a session, or with another change; try again')
        if change.size < self._before[0] and not change.may_shrink:
            raise Failed('has %d bytes, and is not made shorter' % self._before[0])
        for line in self._lines.values():
            is_lost = not line.connections or any(map(_is_dead, line.connections.values()))
            if is_lost and self._is_dirty(line):
                raise Failed('has lost a connection, and writes are repeated first; try again')

    def _sockets_before(self, size):
        """[(_Line, socket)] of the connections that have to be ended before sessions see this size."""
        return [
            (line, sock)
            for line in self._lines.values()
            if self._resize is not None or line.size < size
            for sock in line.connections.values()
        ]

    def _open_connections(self):
        return [
            sock
            for _, sock in self._sockets_before(self._change.size)
            if not nbd_size_change.has_hung_up(sock)
        ]

    def _go_on(self):
        change = self._change
        if self._draining or self._open_connections():
            if self._clock() >= change.end:
                self._change = None
                change.answer({'why': 'does not finish what it has received; it hangs'})
            return
        try:
            self._change_size(change)
        except Failed as e:
            if e.is_lost:
                self._lose(
                    self._unflushed
                    | {each.flag for each in self._lines.values() if self._is_dirty(each)}
                )
            change.answer({'why': str(e)})
        else:
            change.answer({'size': self._before[0]})
        self._change = None

    def _change_size(self, change):
        """The server has closed the connections: flush, resize. Raises Failed."""
        for line, sock in self._sockets_before(change.size):
            line.connections = {}
            sock.close()
        if change.own is not None:
            change.flush()
            self._unflushed.clear()
            for line in change.lines:
                line.is_flushed = True
        if self._resize is not None:
            self._resize(change.size, change.may_shrink)
        before = (0 if change.may_shrink else self._before[0],) + tuple(self._before[1:])
        size = nbd_size_change.looked_at(
            self._connect, self._address, before, change.size, self._read_only
        )
        self._before = (size,) + tuple(self._before[1:])
        nbd_size_change.note_size(self._claim, size)


def _received(sock):
    """Returns (message, descriptors), or None at the end or if the message is not valid."""
    try:
        message = nbd_line.receive(sock, socket.MSG_DONTWAIT)
    except (OSError, ValueError):
        return None
    return message if message is not None and isinstance(message[0], dict) else None


def _is_dead(sock):
    """True if the server has closed the connection already."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def start_keeper(address, before, read_only, claim, make_server=None, kept=()):
    """Start a keeper; returns the descriptor of its control socket. Its parent process is the job
    that opens the export; when that has ended, the system reaps it. make_server(): returns the
    image_server.ImageServer to which the keeper connects, and which it starts and stops; kept: further
    descriptors that it keeps. Raises OSError."""
    ours, theirs = nbd_line.pair()

    def inside():
        os.setsid()
        child.close_descriptors({0, 1, 2, theirs.fileno(), claim} | set(kept))
        child.forget_standard_files()
        child.name_process('targetd-nbd')
        if make_server is None:
            Keeper(theirs, address, before, read_only, claim).run()
            os._exit(0)
        server = make_server()
        Keeper(
            theirs,
            address,
            before,
            read_only,
            claim,
            server.connect,
            resize=server.resize,
            tend=server.tend,
        ).run()
        server.stop()
        os._exit(0)

    try:
        child.fork(os.fork, inside)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours.detach()
