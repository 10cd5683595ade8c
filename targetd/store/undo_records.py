"""The records of the undo journal (guard = undo-journal): what a write has overwritten, and when.

Imports base, kept_blocks. A segment of the journal is a file of fixed length that one process fills from
its beginning; what follows its last record is zeroes, or a record that is not complete, whose write was
not done:

     description --> old blocks | zeroes | gap, …

An *old blocks* record has the bytes that a range had; a *zeroes* record says that it had only zeroes and
took no space; a *gap* says that a command overwrote more than the journal holds, so that nothing before
it can be restored.

Each record has a stamp: the monotonic clock, which orders the records of all processes of one boot; the
time of day; and how much of the segment was durable when it was written. So a damaged record is told from
one that was not completed: behind it, no record says that it was durable.
"""

import os
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from typing import Iterator, List, NamedTuple, Optional, Tuple

from . import kept_blocks
from .base import BytesLike
from .kept_blocks import HEADER_LENGTH, DamagedFile

OLD, ZEROES, GAP = 4, 5, 6
#: Bytes of old blocks in one record.
PIECE = 512 << 10

_STAMP = struct.Struct('>QQQ')
_LENGTH = struct.Struct('>Q')

#: When a record was made. monotonic, wall: nanoseconds; durable: bytes of the segment that were durable.
Stamp = NamedTuple('Stamp', [('monotonic', int), ('wall', int), ('durable', int)])

#: A record without its blocks. length: bytes of the medium; end: its position in the segment.
Entry = NamedTuple(
    'Entry', [('kind', int), ('offset', int), ('length', int), ('stamp', Stamp), ('end', int)]
)


def pack_old(offset: int, data: BytesLike, stamp: Stamp) -> bytes:
    return kept_blocks.packed(OLD, offset, len(data), _STAMP.pack(*stamp) + zlib.compress(data, 1))


def pack_zeroes(offset: int, length: int, stamp: Stamp) -> bytes:
    return kept_blocks.packed(ZEROES, offset, 0, _STAMP.pack(*stamp) + _LENGTH.pack(length))


def pack_gap(stamp: Stamp) -> bytes:
    return kept_blocks.packed(GAP, 0, 0, _STAMP.pack(*stamp))


#: More than any record of PIECE bytes needs.
LONGEST = HEADER_LENGTH + _STAMP.size + PIECE + PIECE // 100 + 64


def _entry(head, stored, position):
    if head.kind not in (OLD, ZEROES, GAP) or len(stored) < _STAMP.size:
        raise DamagedFile('it is damaged at byte %d' % position)
    length = head.length
    if head.kind == ZEROES:
        (length,) = _LENGTH.unpack_from(stored, _STAMP.size)
    end = position + HEADER_LENGTH + head.stored_length
    return Entry(head.kind, head.offset, length, Stamp(*_STAMP.unpack_from(stored)), end)


def read_blocks(descriptor: int, position: int) -> Tuple[Entry, bytes]:
    """The record at this position, and the blocks of an old-blocks record. Raises DamagedFile, OSError."""
    head, stored = kept_blocks.read_stored(descriptor, position)
    entry = _entry(head, stored, position)
    return entry, zlib.decompress(stored[_STAMP.size :]) if head.kind == OLD else b''


def first_position(descriptor: int) -> int:
    """Where the records begin, after the description. Raises DamagedFile, OSError."""
    return HEADER_LENGTH + kept_blocks.read_head(descriptor, 0).stored_length


def entries(descriptor: int, size: int) -> Iterator[Tuple[int, Entry]]:
    """(position, Entry) of each complete record of a segment of this size. Raises DamagedFile if a record
    that was durable is damaged, OSError."""
    position = first_position(descriptor)
    while position < size:
        try:
            head, stored = kept_blocks.read_stored(descriptor, position)
            entry = _entry(head, stored, position)
        except DamagedFile:
            if _durable_behind(descriptor, position, size) > position:
                raise
            return
        yield position, entry
        position = entry.end


def _durable_behind(descriptor, position, size):
    """The largest number of durable bytes that a record behind this position names; 0 if there is none.
    Reads the rest of the segment."""
    found, offset = 0, position + 1
    while offset < size:
        window = os.pread(descriptor, min(kept_blocks.PIECE, size - offset), offset)
        at = window.find(kept_blocks.MAGIC)
        while at >= 0:
            try:
                entry = _entry(*kept_blocks.read_stored(descriptor, offset + at), offset + at)
                found = max(found, entry.stamp.durable)
            except (DamagedFile, struct.error):
                pass
            at = window.find(kept_blocks.MAGIC, at + 1)
        offset += max(1, len(window) - len(kept_blocks.MAGIC) + 1)
    return found


def last_stamp(descriptor: int, size: int) -> Optional[Stamp]:
    """The Stamp of the last complete record, or None. Raises DamagedFile, OSError."""
    last = None
    for _, entry in entries(descriptor, size):
        last = entry.stamp
    return last


class Positions(object):
    """The records of a segment from a certain one on, in 32 bytes each, then 16: iterating returns
    (monotonic, position), ascending. After drop_before: end: of the medium's bytes in them; gap: the time
    of the latest gap, 0 if there is none."""

    def __init__(self) -> None:
        self._clocks, self._positions = array('Q'), array('Q')
        self._ends, self._gaps = array('Q'), array('Q')
        self.end = self.gap = 0

    def add(self, entry: Entry, position: int) -> None:
        self._clocks.append(entry.stamp.monotonic)
        self._positions.append(position)
        self._ends.append(entry.offset + entry.length)
        self._gaps.append(entry.stamp.wall if entry.kind == GAP else 0)

    def drop_before(self, clock: int, all_of_them: bool) -> None:
        """Drop the records whose monotonic clock is less, or all."""
        start = len(self) if all_of_them else bisect_left(self._clocks, clock)
        del self._clocks[:start], self._positions[:start]
        self.end = max(self._ends[start:], default=0)
        self.gap = max(self._gaps[start:], default=0)
        self._ends = self._gaps = array('Q')

    def __len__(self) -> int:
        return len(self._clocks)

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        return iter(zip(self._clocks, self._positions))


class Covered(object):
    """Ranges of a medium, disjoint and ascending: which blocks have been put back."""

    def __init__(self) -> None:
        self._starts: List[int] = []
        self._ends: List[int] = []

    def add(self, offset: int, length: int) -> List[Tuple[int, int]]:
        """Add a range; returns [(offset, length)] of those parts that were not covered."""
        end, fresh, at = offset + length, [], offset
        first = bisect_left(self._ends, offset)
        last = bisect_right(self._starts, end)
        for n in range(first, last):
            if self._starts[n] > at:
                fresh.append((at, self._starts[n] - at))
            at = max(at, self._ends[n])
        if at < end:
            fresh.append((at, end - at))
        if first < last:
            offset, end = min(offset, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [offset]
        self._ends[first:last] = [end]
        return fresh
