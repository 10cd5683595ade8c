"""A tape on a store: blocks and filemarks at a position. The file format is in tape_format.

Imports base, filters, tape_format. A Tape belongs to one process at a time: the master gives a tape to one
session. Its verbs for objects are called inside loaded(), which one thread at a time enters; they may
wait for the disk, and raise OSError: EBADMSG for a damaged object, ENOSPC at the end of the tape. The verbs
of every store remain, except that nothing can be written past the objects.
"""

import contextlib
import errno
import queue
import zlib
from typing import Any, Callable, Iterator, List, Optional, Tuple

from . import tape_format
from .base import BytesLike, Store, failure
from .filters import Filter
from .tape_format import BEGINNING, BLOCK, FILEMARK, HEADER_SIZE, Checkpoint, Header, Position

#: At the end of a tape there is always room for some filemarks.
FILEMARK_ROOM = 64 << 10
#: So much is written at most without a flush: it bounds what a crash can cost, and the search for the end
#: of the objects afterwards.
UNFLUSHED_LIMIT = 256 << 20
#: Bytes that are read at a time while the end is searched for.
_PIECE = 1 << 20
#: A block that may have so many bytes is read together with its header.
_SHORT = 64 << 10
#: locate() reads so many headers forward before it uses the hops.
_NEAR = 64
#: What read() and space() find: a kind of object, or the end of the data or the beginning of the tape.
END, START = 'end of data', 'beginning'


class Tape(Filter):
    """A store with a position. position: where the next object is read or written; end: of the objects;
    flushed: number of the objects that are durable; read_bytes, written_bytes: of blocks, since the tape
    was loaded here; unflushed_bytes: at the end of the tape, that may not be durable."""

    tape = True
    block_overhead = HEADER_SIZE
    unflushed_limit = UNFLUSHED_LIMIT

    def __init__(self, store: Store) -> None:
        super(Tape, self).__init__(store)
        self._turn: Any = getattr(queue, 'SimpleQueue', queue.Queue)()
        self._turn.put(None)
        self._loading: Optional[Tuple[int, int]] = None
        self._forget()

    def _forget(self):
        self._checkpoint = tape_format.NO_CHECKPOINT
        self._may_append = False  # nothing but objects of the epoch was written at the end
        self._last: Optional[Header] = None  # header of the object before the end
        self._saved: Any = None
        self.position = self.end = BEGINNING
        self.flushed = 0
        self.unflushed_bytes = self.read_bytes = self.written_bytes = 0

    @contextlib.contextmanager
    def loaded(self, loading: Tuple[int, int]) -> Iterator['Tape']:
        """Context manager that one thread at a time enters: the tape after load(loading). All verbs for
        objects are called inside."""
        self._turn.get()
        try:
            self.load(loading)
            yield self
        finally:
            self._turn.put(None)

    # -- loading -----------------------------------------------------------------------------------

    def load(self, loading: Tuple[int, int]) -> None:
        """Find the end of the objects, and the position. loading: numbers that are others after each
        loading of the tape into the drive, which begins at the beginning. Does nothing if this loading
        is known."""
        if loading == self._loading:
            return
        self._forget()
        try:
            self._checkpoint = tape_format.read_checkpoint(self.store.read, self.size)
        except tape_format.NotATape:
            raise failure(errno.EUCLEAN, self.path)
        self.end = self._checkpoint.end
        self._last = self._previous_header(self.end)
        self._find_end()
        self.flushed = self._checkpoint.end.number
        self._loading = loading
        saved = tape_format.parse_position(
            self.store.read(tape_format.SAVED_POSITION, 128), *loading
        )
        if saved is not None and self._is_possible(saved):
            self.position = self._saved = saved

    def _find_end(self):
        """Go behind the objects that were written after the checkpoint."""
        while True:
            header = self._header_at(self.end.offset)
            if (
                header is None
                or header.epoch != self._checkpoint.epoch
                or (header.number, header.files, header.previous) != self.end[1:]
                or self.end.offset + header.size > self.size
                or self._crc(self.end.offset + HEADER_SIZE, header.length) != header.data_crc
            ):
                return
            self.end, self._last = tape_format.after(self.end, header), header

    def _crc(self, offset, length):
        crc = 0
        for start in range(0, length, _PIECE):
            crc = zlib.crc32(self.store.read(offset + start, min(_PIECE, length - start)), crc)
        return crc

    def _is_possible(self, position):
        if position.number == self.end.number:
            return position == self.end
        if position.offset >= self.end.offset:
            return False
        header = self._header_at(position.offset)
        return header is not None and position == _place(position.offset, header)

    # -- headers -----------------------------------------------------------------------------------

    def _header_at(self, offset):
        """The Header at an offset, None if there is none."""
        if offset < tape_format.FIRST or offset + HEADER_SIZE > self.size:
            return None
        return tape_format.parse_header(self.store.read(offset, HEADER_SIZE))

    def _existing_header(self, offset):
        """The same for an object of the tape: raises EBADMSG if it is damaged."""
        header = self._header_at(offset)
        if header is None or offset + header.size > self.end.offset:
            raise failure(errno.EBADMSG, self.path)
        return header

    def _previous_header(self, position):
        return self._existing_header(position.previous) if position.number else None

    # -- reading -----------------------------------------------------------------------------------

    def read_object(self, maximum: int) -> Tuple[Any, int, BytesLike]:
        """Go behind the next object. Returns (BLOCK, FILEMARK or END, length of the block, its data up to
        `maximum` bytes). A damaged block is passed too, a damaged header is not."""
        at = self.position
        if at.number == self.end.number:
            return END, 0, b''
        if maximum <= _SHORT:  # with one call
            count = min(HEADER_SIZE + maximum, self.end.offset - at.offset)
            found = memoryview(self.store.read(at.offset, count))
            header = tape_format.parse_header(found[:HEADER_SIZE])
            if header is None or at.offset + header.size > self.end.offset:
                raise failure(errno.EBADMSG, self.path)
            data: BytesLike = found[HEADER_SIZE : header.size]
        else:
            header = self._existing_header(at.offset)
            data = self.store.read(at.offset + HEADER_SIZE, min(maximum, header.length))
        crc = zlib.crc32(data)
        for start in range(len(data), header.length, _PIECE):
            piece = min(_PIECE, header.length - start)
            crc = zlib.crc32(self.store.read(at.offset + HEADER_SIZE + start, piece), crc)
        self._move(tape_format.after(at, header))
        if crc != header.data_crc:
            raise failure(errno.EBADMSG, self.path)
        self.read_bytes += len(data)
        return header.kind, header.length, data

    # -- moving ------------------------------------------------------------------------------------

    def _move(self, position):
        self.position = position

    def save_position(self) -> None:
        """Keep the position in the file, for the next session. It is not flushed, and it is a help only:
        an error is ignored."""
        if self.read_only or self._saved == self.position or self._loading is None:
            return
        self._saved = self.position
        try:
            self.store.write(
                tape_format.SAVED_POSITION,
                tape_format.pack_position(*self._loading, self.position),
                False,
            )
        except OSError:
            pass

    def rewind(self) -> None:
        """Go to the beginning."""
        self._move(BEGINNING)

    def to_end(self) -> None:
        """Go to the end of the data."""
        self._move(self.end)

    def locate(self, number: int) -> bool:
        """Go before the object with this number; False if there is none: the position is at the end."""
        if number >= self.end.number:
            self._move(self.end)
            return number == self.end.number
        if number == 0:
            self._move(BEGINNING)
            return True
        at = self.position
        if at.number <= number <= at.number + _NEAR:
            found = self._forward(at, number)
            if found is not None:
                self._move(found)
                return True
        start = at if at.number > number else self.end
        offset, header = start.previous, self._previous_header(start)
        while header.number > number:
            offset = header.previous
            for multiple, hop in (
                (tape_format.LARGE_HOP, header.large_hop),
                (tape_format.SMALL_HOP, header.small_hop),
            ):
                if (header.number - 1) // multiple * multiple >= number:
                    offset = hop
                    break
            header = self._step_back(offset, header)
        self._move(_place(offset, header))
        return True

    def _forward(self, at, number):
        """The Position before the object with this number, None if a header on the way is damaged."""
        while at.number < number:
            header = self._header_at(at.offset)
            if header is None or header.number != at.number:
                return None
            at = tape_format.after(at, header)
        return at

    def _step_back(self, offset, header):
        """The header of an object before this one."""
        found = self._existing_header(offset)
        if found.number >= header.number:
            raise failure(errno.EBADMSG, self.path)
        return found

    def _marks_before(self, position):
        """Yields (offset, header) of the filemarks before a position, the last one first."""
        header, offset = self._previous_header(position), position.previous
        if header is not None and header.kind != FILEMARK:
            offset = header.mark
            header = self._step_back(offset, header) if offset else None
        while header is not None:
            yield offset, header
            offset = header.mark
            header = self._step_back(offset, header) if offset else None

    def _mark(self, files, start):
        """(offset, header) of the filemark that has so many filemarks before it. start: a position
        behind it."""
        for offset, header in self._marks_before(start):
            if header.files == files:
                return offset, header
        raise failure(errno.EBADMSG, self.path)

    def locate_file(self, files: int) -> bool:
        """Go behind so many filemarks, counted from the beginning; False if there are less: the position
        is at the end."""
        if files > self.end.files:
            self._move(self.end)
            return False
        if files == 0:
            self._move(BEGINNING)
        else:
            offset, header = self._mark(files - 1, self.end)
            self._move(tape_format.after(_place(offset, header), header))
        return True

    def space_blocks(self, count: int) -> Tuple[int, Any]:
        """Pass `count` blocks, backwards if it is negative. Returns (how many were passed, None or what is
        in the way: FILEMARK, which is passed too; END; START)."""
        at = self.position
        if count < 0:
            mark = next(self._marks_before(at), None)
            limit = mark[1].number + 1 if mark else 0
            wanted = at.number + count
            if wanted >= limit:
                self.locate(wanted)
                return -count, None
            self._move(_place(*mark) if mark else BEGINNING)
            return at.number - limit, FILEMARK if mark else START
        found, limit = None, self.end.number
        if self.end.files > at.files:
            found = self._mark(at.files, self.end)
            limit = found[1].number
        if at.number + count <= limit:
            self.locate(at.number + count)
            return count, None
        self._move(self.end if found is None else tape_format.after(_place(*found), found[1]))
        return limit - at.number, END if found is None else FILEMARK

    def space_filemarks(self, count: int) -> Tuple[int, Any]:
        """The same for filemarks: END or START may be in the way. Backwards, the position is before the
        last one that was passed."""
        at = self.position
        wanted = at.files + count
        if count < 0:
            if wanted < 0:
                self._move(BEGINNING)
                return at.files, START
            self._move(_place(*self._mark(wanted, at)))
            return -count, None
        if self.locate_file(wanted):
            return count, None
        return self.end.files - at.files, END

    # -- writing -----------------------------------------------------------------------------------

    def room(self) -> int:
        """The bytes between the position and the end of the tape, for blocks with their headers."""
        return max(0, self.size - FILEMARK_ROOM - self.position.offset)

    def write_blocks(self, blocks: List[BytesLike]) -> None:
        """Write these blocks at the position, which ends the tape. Raises OSError; ENOSPC if they do not
        fit."""
        if sum(len(block) + HEADER_SIZE for block in blocks) > self.room():
            raise failure(errno.ENOSPC, self.path)
        self._write([(BLOCK, block) for block in blocks])
        self.written_bytes += sum(len(block) for block in blocks)

    def write_filemarks(self, count: int) -> None:
        """Write `count` filemarks at the position. Raises OSError; ENOSPC if they do not fit."""
        if count * HEADER_SIZE > self.size - self.position.offset:
            raise failure(errno.ENOSPC, self.path)
        self._write([(FILEMARK, b'')] * count)

    def _write(self, objects):
        if not objects:
            return
        self._begin_here()
        at, last, parts = self.end, self._last, []
        for kind, data in objects:
            header = tape_format.header_after(at, last, kind, data, self._checkpoint.epoch)
            parts += [header.pack(), data]
            at, last = tape_format.after(at, header), header
        self._may_append = False  # after an error, what was written in part is of a former epoch
        self.store.write(self.end.offset, b''.join(parts), False)
        self._may_append = True
        self.unflushed_bytes += at.offset - self.end.offset
        self.end, self._last = at, last
        self._move(at)

    def _begin_here(self):
        """The next objects are written at the position: what follows ends to be part of the tape, for
        every crash from now on."""
        at = self.position
        if self._may_append and at == self.end:
            return
        last, former, self._may_append = self._previous_header(at), self.end, False
        self.store.flush(0, self.size)  # what is before the position
        self.store.write(0, tape_format.LABEL, False)
        self._write_checkpoint(self._checkpoint.epoch + 1, at)
        self.store.flush(0, self.size)
        self.end, self._last, self._may_append = at, last, True
        self.flushed, self.unflushed_bytes = at.number, 0
        if former.offset > at.offset and self.capabilities.unmap:
            self.store.unmap(at.offset, former.offset - at.offset)

    def _write_checkpoint(self, epoch, end):
        checkpoint = Checkpoint(self._checkpoint.sequence + 1, epoch, end)
        self.store.write(checkpoint.place, checkpoint.pack(), False)
        self._checkpoint = checkpoint

    def erase(self) -> None:
        """The tape ends at the position."""
        if self.position != self.end:
            self._may_append = False
            self._begin_here()

    def flush(self, offset: int, length: int) -> None:
        """Make all objects durable. A checkpoint says so; it need not be durable, the objects are found
        without it."""
        end = self.end
        self.store.flush(offset, length)
        if self._may_append and end.number > self._checkpoint.end.number:
            self._write_checkpoint(self._checkpoint.epoch, end)
        self.flushed, self.unflushed_bytes = end.number, 0

    # -- verbs that would change the objects -------------------------------------------------------

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        """Raises EOPNOTSUPP: a tape has no blocks at offsets."""
        raise failure(errno.EOPNOTSUPP, self.path)

    def unmap(self, offset: int, length: int) -> None:
        """Raises EOPNOTSUPP."""
        raise failure(errno.EOPNOTSUPP, self.path)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """Raises EOPNOTSUPP."""
        raise failure(errno.EOPNOTSUPP, self.path)

    def copy(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        """Raises EOPNOTSUPP."""
        raise failure(errno.EOPNOTSUPP, self.path)


def _place(offset: int, header: Header) -> Position:
    """The Position before the object with this header, which is at `offset`."""
    return Position(offset, header.number, header.files, header.previous)


#: Of a file whose first bytes are no tape's, so many must be zero.
_BLANK_BYTES = 1 << 20


def why_not_a_tape(read: Callable[[int, int], Any], size: int) -> str:
    """Why a file is neither a tape nor blank; '' if it is. read: as of a store."""
    try:
        checkpoint = tape_format.read_checkpoint(read, size)
    except tape_format.NotATape as e:
        return str(e)
    if checkpoint == tape_format.NO_CHECKPOINT:
        head = bytes(read(0, min(size, _BLANK_BYTES)))
        if any(head[tape_format.FIRST :]):
            return 'it has other content than a tape'
    return ''
