"""A store on an export of an NBD server.

Imports base, failure_flags, nbd_connection, nbd_line, nbd_log, nbd_pipeline, nbd. Every verb may wait for the
server, so try_read never answers, and no write is done inline; who need not wait for the outcome of a
READ or WRITE uses begin_read() and begin_write() (nbd_pipeline).

     connected --the server closes, dies, violates the protocol--> lost --another one--> repeating
         ^                                                                                  |
         +---- the unflushed changes are repeated, then what was in flight is sent again ---+

While there is no connection every verb waits, as for a disk that hangs. What was acknowledged and not flushed
is repeated, unless another session has written meanwhile (it could be older than what that session
wrote): then data is lost, and every flush fails from then on (invariant 4 of base). An export
without CAN_MULTI_CONN promises nothing about flushes of another connection, so every write to it is
durable.
"""

import errno
import os
import socket
import threading
import time
from typing import Any, Dict, List, Optional

from targetd.nbd import numbers
from targetd.nbd.handshake import Export

from .. import log
from . import failure_flags, nbd_line
from .base import CHUNK, BytesLike, Extents, beyond, failure, pieces
from .nbd_connection import Lost
from .nbd_log import UnflushedChanges
from .nbd_pipeline import BUSY, PipelinedConnection, PipelinedStore

#: Commands without data about more bytes than this are split.
LONGEST_RANGE = 1 << 30
#: The most bytes of one READ or WRITE, whatever the server takes.
LONGEST_DATA = 4 << 20
#: Every server takes a READ of this size (proto.md, "Block size constraints": the maximum is 4096 or more).
LONGEST_SINGLE = 4096
#: If the server has not accepted a second connection, it is asked again after this time.
SECOND_SECONDS = 60.0


class _Clean(Exception):
    """Everything that was acknowledged is durable: a flush needs no connection."""


class NbdStore(PipelinedStore):
    """description: also has `multi`, whether the server offers CAN_MULTI_CONN, and `acknowledges_durable`,
    whether every write is durable when it is acknowledged; with `only_flushes`, a store for a flush of all
    sessions, which needs no connection while everything is durable, and waits `patience` seconds for the
    server (None: for ever); descriptor: a line to the keeper; claim: a memory file on which the processes
    lock ranges, and in which each has a byte."""

    def __init__(self, description: Dict[str, Any], descriptor: int) -> None:
        super(NbdStore, self).__init__(description, descriptor)
        self._flag = description.get('flag') or failure_flags.NO_FLAG
        self._is_multi = bool(description['multi'])
        # durable writes need no log: what was acknowledged is not lost with the server
        self._has_cache = not description.get('acknowledges_durable')
        self._writes_durable = not self._is_multi or not self._has_cache
        self._only_flushes = bool(description.get('only_flushes'))
        patience = description.get('patience')
        self._end = None if patience is None else time.monotonic() + patience
        self._line = socket.socket(fileno=descriptor)
        self._is_closed = self._has_left = False
        self._speaking = threading.Lock()  # held by who sends messages on the line
        self._connecting = threading.Lock()  # held by who makes connections
        self._connections: List[Optional[PipelinedConnection]] = [None, None]
        self._second_after = 0.0  # when a second connection may be tried, by the monotonic clock
        self._changes = UnflushedChanges(self._set_dirty)
        self._has_company = (
            False  # another session may have written since the former connection was made
        )
        self._is_durable = False  # the keeper has flushed before it gave the connection
        self._place = 0  # byte of the memory file that is 1 while there are unflushed changes

    # -- reading -----------------------------------------------------------------------------------

    def try_read(self, offset: int, length: int) -> None:
        """Always None: the server has to be asked."""
        return None

    def read(self, offset: int, length: int) -> BytesLike:
        self._check_range(offset, length)
        data = bytearray(length)
        view, done = memoryview(data), 0
        if length <= LONGEST_SINGLE and not (offset | length) % self._connection().export.minimum:
            self._call(numbers.CMD_READ, 0, offset, length, into=view)
            return data
        while done < length:
            start, part = self._aligned(offset + done, min(length - done, LONGEST_DATA))
            if start == offset + done and part <= length - done:
                self._call(numbers.CMD_READ, 0, start, part, into=view[done : done + part])
                done += part
                continue
            whole = bytearray(part)
            self._call(numbers.CMD_READ, 0, start, part, into=memoryview(whole))
            skip = offset + done - start
            count = min(part - skip, length - done)
            view[done : done + count] = whole[skip : skip + count]
            done += count
        return data

    def prefetch(self, offset: int, length: int) -> None:
        """Without the data on the connection, if the server offers that."""
        self._check_range(offset, length)
        export = self._connection().export
        if not export.flags & numbers.SEND_CACHE:
            self.read(offset, length)
            return
        end = offset + length
        while offset < end:
            start, part = self._aligned(offset, min(end - offset, LONGEST_DATA))
            self._call(numbers.CMD_CACHE, 0, start, part)
            offset = start + part

    def _aligned(self, offset, length):
        """Returns (offset, length) of a request that the server takes and that covers the start of
        this range."""
        export = self._connection().export
        start = offset - offset % export.minimum
        end = min(offset + length, start + export.maximum)
        return start, -(-end // export.minimum) * export.minimum - start

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        self._check_range(offset, length)
        if not self.capabilities.extents:
            return super(NbdStore, self).extents(offset, length)
        found: Extents = []
        end, block = offset + length, self._connection().export.minimum
        while offset < end and (maximum is None or len(found) < maximum):
            start = offset - offset % block
            wanted = -(-(min(end, start + LONGEST_RANGE)) // block) * block - start
            before = offset
            for size, is_hole in self._call(numbers.CMD_BLOCK_STATUS, 0, start, wanted).extents:
                start += size
                part = min(start, end) - offset
                if part > 0:
                    found.append((offset, part, not is_hole))
                    offset += part
            if offset == before:
                raise OSError(errno.EIO, 'the NBD server reports extents within a block', self.path)
        return found if maximum is None else found[:maximum]

    # -- writing -----------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        length = len(data)
        if offset < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
        block = self._connection().export.minimum
        if (offset | length) % block:
            self._write_in_part(offset, data, durable, block)
            return
        view = memoryview(data)
        for start, count in pieces(offset, length, self._longest()):
            part = view[start - offset : start - offset + count]
            self._change(numbers.CMD_WRITE, 0, start, count, part, durable)

    def _longest(self):
        return min(LONGEST_DATA, self._connection().export.maximum)

    def _write_in_part(self, offset, data, durable, block):
        """Write data that begins or ends within a block of the server, which only copies do."""
        start, end = offset - offset % block, -(-(offset + len(data)) // block) * block
        with self.exclusive_range(start, end - start):
            whole = bytearray(self.read(start, end - start))
            whole[offset - start : offset - start + len(data)] = data
            self.write(start, whole, durable)

    def unmap(self, offset: int, length: int) -> None:
        """Free whole blocks of the range. Zeroing frees more than TRIM does (of a raw image of
        qemu-nbd, which ignores TRIM by default), where the server says that it is fast."""
        self._check_range(offset, length)
        export = self._connection().export
        end = (offset + length) // export.minimum * export.minimum
        offset += -offset % export.minimum
        zeroes = numbers.CMD_WRITE_ZEROES, numbers.FLAG_FAST_ZERO
        is_fast = bool(export.flags & numbers.SEND_FAST_ZERO)
        for start, count in pieces(offset, end - offset, LONGEST_RANGE):
            try:
                if is_fast:
                    self._change(zeroes[0], zeroes[1], start, count, None, False)
            except OSError as e:
                if e.errno != errno.EOPNOTSUPP:
                    raise
                is_fast = False
            if not is_fast and export.flags & numbers.SEND_TRIM:
                self._change(numbers.CMD_TRIM, 0, start, count, None, False)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._check_range(offset, length)
        export = self._connection().export
        if not export.flags & numbers.SEND_WRITE_ZEROES or (offset | length) % export.minimum:
            self._put_zeroes(offset, length)
            return
        flags = 0 if may_unmap else numbers.FLAG_NO_HOLE
        for start, count in pieces(offset, length, LONGEST_RANGE):
            self._change(numbers.CMD_WRITE_ZEROES, flags, start, count, None, False)

    def _put_zeroes(self, offset, length):
        for start, count in pieces(offset, length, CHUNK):
            self.write(start, bytes(count), False)

    def _change(self, command, flags, offset, length, data, durable):
        """Do a change; remember it until it is durable."""
        if durable and self.lost:
            raise failure(self.lost, self.path)
        durable = durable or self._writes_durable
        has_fua = bool(self._connection().export.flags & numbers.SEND_FUA)
        if durable and has_fua:
            flags |= numbers.FLAG_FUA
        # A durable change is remembered, too, while there are earlier ones: they may be of the same blocks,
        # and would be repeated after it.
        if durable and has_fua and not self._changes.is_dirty:
            self._call(command, flags, offset, length, data)
            self._require_not_lost()
            return
        while True:
            generation = self._changes.generation
            self._call(command, flags, offset, length, data)
            if self._changes.add(generation, command, flags, offset, length, data):
                break
        if durable and has_fua:
            self._require_not_lost()
        if durable and not has_fua:
            self.flush(offset, length)
        elif self._changes.is_half_full:
            self.make_room(is_ahead=True)

    # -- flushing ----------------------------------------------------------------------------------

    def flush(self, offset: int, length: int) -> None:
        if not self.read_only and self._has_cache:
            super(NbdStore, self).flush(offset, length)

    def _flush_medium(self):
        is_covered = False
        while not is_covered:
            mark = self._changes.mark()
            try:
                self._call(numbers.CMD_FLUSH, 0, 0, 0)
            except _Clean:
                pass
            except OSError as e:
                if not self._is_closed:
                    self._flush_failed(e.errno)
                raise
            self._require_not_lost()
            is_covered = self._changes.forget(mark)

    def _flush_failed(self, error):
        failure_flags.set_flag(self._flag)
        self.lost = error

    def _set_dirty(self, is_dirty):
        if self.claim is not None:
            os.pwrite(self.claim, b'\1' if is_dirty else b'\0', self._place)

    def _require_not_lost(self):
        """Raises OSError if acknowledged data of the export was lost, in this or another session."""
        if self.lost is None and failure_flags.is_set(self._flag):
            self.lost = errno.EIO
        if self.lost is not None:
            raise failure(self.lost, self.path)

    # -- connections -------------------------------------------------------------------------------

    def _call(self, command, flags, offset, length, data=None, into=None):
        """Send a request, on the next connection again if this one is lost. Returns the Request."""
        while True:
            connection = self._connection()
            if command == numbers.CMD_READ and connection.export.flags & numbers.SEND_DF:
                flags |= numbers.FLAG_DF
            try:
                return connection.call(command, flags, offset, length, data, into)
            except Lost:
                pass

    def _connection(self):
        """Returns a connection that is not lost. Waits until there is one. Raises OSError."""
        first, second = self._connections
        if self._has_left:
            raise failure(errno.EBADF, self.path)
        if first is None or first.is_lost or second is not None and second.is_lost:
            first, second = self._reconnected()
        if not self._is_multi or first.in_flight < BUSY:
            return first
        if second is None:
            second = self._second()
        return second if second is not None and second.in_flight < first.in_flight else first

    def _reconnected(self):
        """Replace the lost connections, and repeat the unflushed changes. Returns both."""
        with self._connecting:
            first, second = self._connections
            while first is None or first.is_lost or second is not None and second.is_lost:
                self._note_loss(first, second)
                self._replace(first, second)
                first, second = self._connections
            return first, second

    def _note_loss(self, first, second):
        for connection in (first, second):
            if connection is not None and connection.is_lost:
                log.warning(
                    '%s: the connection to the NBD server is lost (%s); the commands wait until '
                    'the server is there '
                    'again',
                    self.path,
                    connection.why,
                )
                return

    def _replace(self, first, second):
        """Called with `_connecting` held: no other thread sends a request on the new connection
        before the changes are repeated. The keeper makes it only when the server has closed the
        earlier ones, so nothing that was sent on them is done later. Their descriptors are closed
        when the last thread has left them."""
        for connection in (first, second):
            if connection is not None:
                connection.fail('the other connection of the session was lost')
        fresh = self._connected(0)
        changes = self._changes.begin_generation()
        if self._is_durable:
            self._changes.forget(self._changes.mark())
            changes = []
        if changes and self._has_company:
            log.error(
                '%s: the server was lost with writes that no flush had made durable, and they '
                'cannot be repeated, '
                'because several sessions have written',
                self.path,
            )
            self._data_is_lost()
            changes = []
        try:
            for _, command, flags, offset, length, data in changes:
                fresh.call(command, flags, offset, length, data)
        except Lost:
            pass  # the next round begins again
        except OSError as e:
            log.error(
                '%s: an acknowledged write cannot be repeated (%s): data is lost',
                self.path,
                e.strerror,
            )
            self._data_is_lost()
        if first is not None and not fresh.is_lost:
            log.warning(
                '%s: connected to the NBD server again; %d changes that were not flushed were repeated',
                self.path,
                len(changes),
            )
        self._connections = [fresh, None]

    def _data_is_lost(self):
        failure_flags.set_flag(self._flag)
        self._changes.forget(self._changes.mark())

    def _second(self):
        """Returns a second connection, or None if another thread makes one, or the first one was lost."""
        if not self._connecting.acquire(False):
            return None
        try:
            first, second = self._connections
            is_time = time.monotonic() >= self._second_after
            if second is None and first is not None and not first.is_lost and is_time:
                second = self._connected(1)
                self._connections = [first, second]
                self._second_after = time.monotonic() + SECOND_SECONDS
            return second
        finally:
            self._connecting.release()

    def _connected(self, slot):
        """Have the keeper make a connection, however long that takes; returns None if the server
        does not accept a second one. Raises OSError."""
        words: Dict[str, Any] = {'connect': slot}
        if self._only_flushes:
            words['unless_clean'] = True
        try:
            with self._speaking:  # not among the changes that leave() sends
                if self._has_left:
                    raise failure(errno.EBADF, self.path)
                nbd_line.send(self._line, words)
            while True:
                if self._end is not None:
                    self._line.settimeout(max(0.01, self._end - time.monotonic()))
                answer = nbd_line.receive(self._line)
                if answer is not None and self._has_left:
                    for descriptor in answer[1]:
                        os.close(descriptor)
                if answer is None or self._is_closed or self._has_left:
                    raise failure(
                        errno.EBADF if self._is_closed or self._has_left else errno.ENXIO, self.path
                    )
                words, descriptors = answer
                if words.get('clean'):
                    raise _Clean
                if descriptors:
                    break
                if words.get('final'):
                    raise failure(errno.ENOLINK, self.path)
                if slot:
                    return None
                log.warning('%s cannot be used: it %s; it is tried again', self.path, words['why'])
        except socket.timeout:
            raise OSError(
                errno.ETIMEDOUT, 'its NBD server is away, with unflushed writes', self.path
            )
        except OSError as e:
            if e.errno == errno.EPIPE:
                raise failure(errno.ENXIO, self.path)
            raise
        self._place = words['place']
        self._has_company = words['company']
        self._is_durable = words['durable']
        return PipelinedConnection(socket.socket(fileno=descriptors[0]), Export(*words['export']))

    # -- the rest ----------------------------------------------------------------------------------

    def lock_file(self) -> int:
        """The memory file, which all processes of the unit have."""
        return -1 if self.claim is None else self.claim

    def leave(self) -> None:
        """If the server is away, the keeper gets the unflushed changes, and repeats them when it is
        back. (While it is there, the keeper flushes when the line is closed.)"""
        self._settle_flush()
        if self._has_left or not self._changes.is_dirty:
            return
        connections = [each for each in self._connections if each is not None]
        for connection in connections:
            if not connection.is_lost:
                connection.notice_end()
        if connections and not any(connection.is_lost for connection in connections):
            return
        try:
            with self._speaking:
                self._has_left = True
                nbd_line.leave(self._line, self._changes.all())
        except OSError as e:
            log.error('%s: the keeper does not take the unflushed changes: %s', self.path, e)
            failure_flags.set_flag(self._flag)

    def close(self) -> None:
        if self._is_closed:
            return
        self.leave()
        self._is_closed = True
        self.descriptor = -1
        try:
            self._line.shutdown(socket.SHUT_RDWR)  # a thread may wait for a connection
        except OSError:  # the keeper has ended
            pass
        for connection in self._connections:
            if connection is not None:
                connection.close()
        self._line.close()
        super(NbdStore, self).close()

    def _check_range(self, offset, length):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
