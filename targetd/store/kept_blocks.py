"""The format of a file that keeps old blocks of a medium (the setting guard), and reading and writing it.

Imports base. A file is a sequence of records; it is written once, in order, and synced:

     description (JSON) --> blocks, blocks, … --> end

A record has a header with a checksum of the header and the data. A file without its end record was not
completed, so the write that it was to precede was not done either. undo_records has the records of the
undo journal, which begins with a description too.
"""

import json
import os
import struct
import zlib
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Tuple

from .base import Store

VERSION = 1
DESCRIPTION, BLOCKS, END = 1, 2, 3
MAGIC = b'TGKB'
# magic, version, kind, offset, length of the data, stored length
_HEADER = struct.Struct('>4sBBxxQII')
_CHECKSUM = struct.Struct('>I')
HEADER_LENGTH = _HEADER.size + _CHECKSUM.size
LONGEST = 16 << 20  # bytes of one record; a longer one is damaged
PIECE = 1 << 20


class DamagedFile(OSError):
    """The file is not complete, or is not one of these files."""


#: What a file contains. description: of who and when, JSON-able; areas: [(offset, data)].
Kept = NamedTuple('Kept', [('description', Dict[str, Any]), ('areas', List[Tuple[int, bytes]])])


#: The header of a record. length: bytes of the data; stored_length: bytes in the file after the header.
Head = NamedTuple('Head', [('kind', int), ('offset', int), ('length', int), ('stored_length', int)])


def packed(kind: int, offset: int, length: int, stored: bytes) -> bytes:
    """A record whose data is stored in this form."""
    head = _HEADER.pack(MAGIC, VERSION, kind, offset, length, len(stored))
    checksum = zlib.crc32(stored, zlib.crc32(head)) & 0xFFFFFFFF
    return head + _CHECKSUM.pack(checksum) + stored


def record_of(kind: int, offset: int, data: bytes) -> bytes:
    """A record with compressed data."""
    return packed(kind, offset, len(data), zlib.compress(data, 1))


def description_record(description: Dict[str, Any]) -> bytes:
    """The record at the beginning of a file."""
    return record_of(DESCRIPTION, 0, json.dumps(description, sort_keys=True).encode())


def _unpack_head(head, position):
    if len(head) < HEADER_LENGTH:
        raise DamagedFile('it is not complete')
    magic, version, kind, offset, length, stored_length = _HEADER.unpack_from(head)
    if magic != MAGIC or length > LONGEST or stored_length > 2 * LONGEST:
        raise DamagedFile('it is damaged at byte %d' % position)
    if version > VERSION:
        raise DamagedFile('a newer version of targetd wrote it; use that version')
    return Head(kind, offset, length, stored_length)


def read_head(descriptor: int, position: int) -> Head:
    """The header of the record at this position, unverified. Raises DamagedFile, OSError."""
    return _unpack_head(os.pread(descriptor, HEADER_LENGTH, position), position)


def read_stored(descriptor: int, position: int) -> Tuple[Head, bytes]:
    """The record at this position: its header and its data as stored. Raises DamagedFile, OSError."""
    head = os.pread(descriptor, HEADER_LENGTH, position)
    found = _unpack_head(head, position)
    stored = os.pread(descriptor, found.stored_length, position + HEADER_LENGTH)
    checksum = zlib.crc32(stored, zlib.crc32(head[: _HEADER.size])) & 0xFFFFFFFF
    if checksum != _CHECKSUM.unpack_from(head, _HEADER.size)[0]:
        raise DamagedFile('it is damaged at byte %d' % position)
    return found, stored


def write_file(
    descriptor: int, description: Dict[str, Any], areas: Iterable[Tuple[int, bytes]]
) -> int:
    """Write a whole file, durably, to an empty one that is open for writing. Returns the number of bytes
    that it has. Raises OSError."""
    total = put(descriptor, description_record(description))
    for offset, data in areas:
        for start in range(0, len(data), PIECE):
            total += put(descriptor, record_of(BLOCKS, offset + start, data[start : start + PIECE]))
    total += put(descriptor, record_of(END, 0, b''))
    os.fsync(descriptor)
    return total


def put(descriptor: int, data: bytes) -> int:
    """Write all of the data at the position of the descriptor. Returns their number."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def _records(descriptor: int) -> Iterator[Tuple[int, int, bytes]]:
    """(kind, offset, data) of each record. Raises DamagedFile, OSError."""
    position = 0
    while True:
        head, stored = read_stored(descriptor, position)
        yield head.kind, head.offset, zlib.decompress(stored)
        if head.kind == END:
            return
        position += HEADER_LENGTH + head.stored_length


def read_description(descriptor: int) -> Dict[str, Any]:
    """Returns the description, without reading the blocks. Raises DamagedFile, OSError."""
    kind, _, data = next(_records(descriptor))
    if kind != DESCRIPTION:
        raise DamagedFile('it has no description')
    try:
        found = json.loads(data.decode('utf-8'))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DamagedFile('its description is damaged')
    return found


def read_file(descriptor: int) -> Kept:
    """Returns what a complete file contains. Raises DamagedFile, OSError."""
    description = read_description(descriptor)
    return Kept(
        description,
        [(offset, data) for kind, offset, data in _records(descriptor) if kind == BLOCKS],
    )


def put_back(medium: Store, kept: Kept) -> int:
    """Write the kept blocks to the medium, durably. Returns the number of bytes that differed. Raises
    OSError; nothing was written if the medium is too short."""
    end = max([offset + len(data) for offset, data in kept.areas] or [0])
    if end > medium.size:
        raise OSError(
            None, 'the medium has %d bytes, and the kept blocks end at %d' % (medium.size, end)
        )
    changed = 0
    for offset, data in kept.areas:
        if bytes(medium.read(offset, len(data))) != data:
            medium.write(offset, data, False)
            changed += len(data)
    medium.flush(0, medium.size)
    return changed
