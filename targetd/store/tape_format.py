"""The format of a tape file: what is where, and its bytes. Pure.

    offset    bytes
    0         4096     label: LABEL, a line of text
    4096      4096     checkpoint A
    8192      4096     checkpoint B: the one with the higher sequence number counts
    12288     4096     where the tape was when it was last used (SavedPosition)
    16384              the objects, one after the other, without gaps
    size               end of the tape

An object is a header and, for a block, its data. Numbers are big-endian:

    header (72 bytes): magic, kind (1 block, 2 filemark), version, 0, length of the data, epoch, number of
    the object, number of filemarks before it; offsets of the previous object, of the last filemark before
    it, and of the last objects before it whose number is a multiple of 256 and of 65536 (each 0 if there
    is none); CRC-32 of the data, CRC-32 of the header before this field

A file of zeroes is a blank tape. A checkpoint says where the objects end that were durable when it was
written, and the epoch of what was written after it. An object at or beyond the end of the checkpoint
belongs to the tape if its header continues the chain, has the epoch of the checkpoint, and its data has
the CRC. Every overwriting of older objects begins with a durable checkpoint of a new epoch, which ends the
tape there, so that older objects, or remains of a power failure, are never taken for newer ones. Hence a
crash at any moment costs only objects that were not flushed.
"""

import struct
import zlib
from collections import namedtuple
from typing import Any, Callable, Optional

LABEL = b'targetd tape, format 1\n'
PAGE = 4096
CHECKPOINTS = (PAGE, 2 * PAGE)
SAVED_POSITION = 3 * PAGE
FIRST = 4 * PAGE  # offset of the first object

BLOCK, FILEMARK = 1, 2
VERSION = 1
_MAGIC = b'TREC'
_CHECKPOINT_MAGIC, _POSITION_MAGIC = b'TCHECKPT', b'TPOSITIO'
SMALL_HOP, LARGE_HOP = 256, 65536

_HEADER = struct.Struct('>4sBBHIIQQQQQQI')
_CRC = struct.Struct('>I')
HEADER_SIZE = _HEADER.size + _CRC.size
_CHECKPOINT = struct.Struct('>8sQIQQQQ')
_POSITION = struct.Struct('>8sQQQQQQ')


class Header(
    namedtuple(
        'Header', 'kind length epoch number files previous mark small_hop large_hop data_crc'
    )
):
    """The header of an object. files: the number of filemarks before it; the others as above."""

    __slots__ = ()

    def pack(self) -> bytes:
        """Its HEADER_SIZE bytes."""
        data = _HEADER.pack(_MAGIC, self.kind, VERSION, 0, *self[1:])
        return data + _CRC.pack(zlib.crc32(data))

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return HEADER_SIZE + self.length


def parse_header(data: Any) -> Optional[Header]:
    """The Header in these bytes, or None."""
    if len(data) < HEADER_SIZE or bytes(data[:4]) != _MAGIC:
        return None
    fields = _HEADER.unpack_from(data)
    if zlib.crc32(data[: _HEADER.size]) != _CRC.unpack_from(data, _HEADER.size)[0]:
        return None
    _, kind, version, _, length = fields[:5]
    if version != VERSION or kind not in (BLOCK, FILEMARK) or (kind == FILEMARK and length):
        return None
    return Header(kind, length, *fields[5:])


class Position(namedtuple('Position', 'offset number files previous')):
    """A place between two objects. offset: of the object after it; number: of that object, which is
    also the number of objects before; files: the number of filemarks before; previous: offset of the
    object before, 0 if there is none."""

    __slots__ = ()


BEGINNING = Position(FIRST, 0, 0, 0)


def header_after(
    before: Position, previous: Optional[Header], kind: int, data: Any, epoch: int
) -> Header:
    """The header of a new object at a position. previous: the header of the object before it."""
    mark = small = large = 0
    if previous is not None:
        at = before.previous
        mark = at if previous.kind == FILEMARK else previous.mark
        small = at if previous.number % SMALL_HOP == 0 else previous.small_hop
        large = at if previous.number % LARGE_HOP == 0 else previous.large_hop
    return Header(
        kind,
        len(data),
        epoch,
        before.number,
        before.files,
        before.previous,
        mark,
        small,
        large,
        zlib.crc32(data),
    )


def after(position: Position, header: Header) -> Position:
    """The Position behind the object with this header, which is at `position`."""
    return Position(
        position.offset + header.size,
        position.number + 1,
        position.files + (header.kind == FILEMARK),
        position.offset,
    )


# -- checkpoints -----------------------------------------------------------------------------------


class Checkpoint(namedtuple('Checkpoint', 'sequence epoch end')):
    """end: Position of the end of the durable objects; epoch: of the objects after it."""

    __slots__ = ()

    def pack(self) -> bytes:
        """Its bytes."""
        return _sealed(_CHECKPOINT.pack(_CHECKPOINT_MAGIC, self.sequence, self.epoch, *self.end))

    @property
    def place(self) -> int:
        """The offset at which it is written."""
        return CHECKPOINTS[self.sequence % 2]


#: Of a blank tape.
NO_CHECKPOINT = Checkpoint(0, 0, BEGINNING)


def _sealed(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _unsealed(layout: struct.Struct, magic: bytes, data: bytes) -> Any:
    """The fields after the magic, or None if the bytes are not valid."""
    if (
        data[:8] != magic
        or zlib.crc32(data[: layout.size]) != _CRC.unpack_from(data, layout.size)[0]
    ):
        return None
    return layout.unpack_from(data)[1:]


class NotATape(ValueError):
    """The file is neither blank nor a tape; the text says why."""


def read_checkpoint(read: Callable[[int, int], Any], size: int) -> Checkpoint:
    """The newest Checkpoint, NO_CHECKPOINT for a blank tape. read(offset, length) returns bytes; size: of
    the file. Raises NotATape."""
    if size < FIRST + HEADER_SIZE:
        raise NotATape('it is shorter than the shortest tape')
    head = bytes(read(0, FIRST))
    found = [
        Checkpoint(fields[0], fields[1], Position(*fields[2:]))
        for fields in (
            _unsealed(_CHECKPOINT, _CHECKPOINT_MAGIC, head[at : at + PAGE]) for at in CHECKPOINTS
        )
        if fields is not None
    ]
    has_label = head.startswith(LABEL)
    if found and (has_label or not any(head[:PAGE])):
        newest = max(found)
        if not FIRST <= newest.end.offset <= size:
            raise NotATape('it is shorter than when it was written; restore the whole file')
        return newest
    if any(head[PAGE:]) or (any(head[:PAGE]) and not has_label):
        raise NotATape(
            'its checkpoints are damaged' if has_label else 'it has other content than a tape'
        )
    return NO_CHECKPOINT


# -- the saved position ----------------------------------------------------------------------------


def pack_position(load: int, count: int, position: Position) -> bytes:
    """The bytes at SAVED_POSITION. load, count: two numbers that say which loading of the tape this is; a
    position of another loading does not count."""
    return _sealed(_POSITION.pack(_POSITION_MAGIC, load, count, *position))


def parse_position(data: Any, load: int, count: int) -> Optional[Position]:
    """The saved Position of this loading, or None."""
    fields = _unsealed(_POSITION, _POSITION_MAGIC, bytes(data))
    if fields is None or fields[:2] != (load, count):
        return None
    return Position(*fields[2:])
