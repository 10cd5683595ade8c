"""The journal of all-or-nothing writes: it keeps the old data of a range until the new data is on
the medium.

Imports base, file. A journal is a store; each session that writes to a medium has one slot in it:

     empty --put_record (old data)--> full --the new data is written--> clear_record --> empty

Each step is durable before the next one begins.

A process, the server or the power may fail at any point. A slot that is empty or contains an
incomplete record means that the write has not begun or has finished. A full slot means that the old
data must be restored (restore(), which may be repeated). The range must stay locked while its slot
is full, so that a record never overwrites what another session wrote later.

A record that is left from an earlier start of the server may meet a different disk with the same
name, or a backup that was restored. So it also contains checksums of the new data, and is restored
only if each sector contains its old or its new data. (This is why cached data is made durable
before a write.)
"""

import errno
import os
import struct
import zlib
from collections import namedtuple
from typing import List, Optional, Tuple

from .base import BytesLike, Store
from .file import FileStore

HEAD = 4096  # bytes of a slot before its data
LONGEST = 1 << 20  # bytes of one atomic write
SECTOR = 512
SLOT = HEAD + LONGEST + 4 * (LONGEST // SECTOR)
READY_SLOTS = 256  # for which a new journal has room

# magic, offset, length of the bytes, checksum of bytes and sums together
_FIELDS = struct.Struct('>8sQII')
_CHECKSUM = struct.Struct('>I')  # of the fields
MAGIC = b'targetd1'

Record = namedtuple('Record', 'offset data sums')


def sums_of(data: BytesLike) -> bytes:
    """Returns a checksum (CRC-32, four bytes) of each sector of `data`."""
    found = [
        zlib.crc32(data[start : start + SECTOR]) & 0xFFFFFFFF
        for start in range(0, len(data), SECTOR)
    ]
    return struct.pack('>%dI' % len(found), *found)


def pack_record(record: Record) -> Tuple[bytes, bytes]:
    """Returns (head, body) of a Record: the old bytes of `offset`, and the checksums of the new
    ones."""
    body = record.data + record.sums
    fields = _FIELDS.pack(MAGIC, record.offset, len(record.data), zlib.crc32(body) & 0xFFFFFFFF)
    return fields + _CHECKSUM.pack(zlib.crc32(fields) & 0xFFFFFFFF), body


def unpack_head(head: BytesLike) -> Optional[Tuple[int, int, int]]:
    """Returns (offset, length, checksum of the body), or None if this is not a complete head. Raises
    OSError for a head of another version."""
    fields = bytes(head[: _FIELDS.size])
    magic, offset, length, checksum = _FIELDS.unpack(fields)
    whole = _CHECKSUM.unpack_from(head, _FIELDS.size)[0] == zlib.crc32(fields) & 0xFFFFFFFF
    if whole and magic[:7] == MAGIC[:7] and magic != MAGIC:
        raise OSError(
            errno.EPROTONOSUPPORT,
            'the journal has the format %s of a newer version of targetd, and this one reads %s; '
            'start the newer version' % (magic[7:].decode('latin-1'), MAGIC[7:].decode('latin-1')),
        )
    return (offset, length, checksum) if whole and magic == MAGIC and length <= LONGEST else None


def open_slot(descriptor: int, number: int, path: Optional[str] = None) -> 'Slot':
    """Returns the Slot with this number in the journal of this descriptor, which it takes over.
    path: for messages."""
    return Slot(
        FileStore({'kind': 'file', 'path': path, 'size': (number + 1) * SLOT}, descriptor), number
    )


class Slot(object):
    """One journal slot. store: that of the journal, owned by this object; number: that of the slot."""

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._at = number * SLOT
        self.number = number

    def put_record(self, record: Record) -> None:
        """Store a Record durably. Raises RecordPending if the slot may contain it, or another
        OSError if the slot is empty."""
        head, body = pack_record(record)
        self._store.write(self._at + HEAD, body, False)
        # within one block, so it is written all or nothing
        self._store.write(self._at, head, False)
        try:
            self._store.flush(self._at, HEAD + len(body))
        except OSError as e:
            raise RecordPending(e.errno, e.strerror)

    def clear_record(self) -> None:
        """Delete the record durably. Raises OSError; the record may then still exist."""
        self._store.write(self._at, bytes(_FIELDS.size + _CHECKSUM.size), False)
        self._store.flush(self._at, HEAD)

    def is_empty(self) -> bool:
        """Returns True if there is no record, without reading its data. Raises OSError."""
        return unpack_head(self._store.read(self._at, _FIELDS.size + _CHECKSUM.size)) is None

    def record(self) -> Optional[Record]:
        """Returns the Record, or None if there is no complete one. Raises OSError."""
        found = unpack_head(self._store.read(self._at, _FIELDS.size + _CHECKSUM.size))
        if found is None:
            return None
        offset, length, checksum = found
        body = bytes(self._store.read(self._at + HEAD, length + 4 * -(-length // SECTOR)))
        return (
            Record(offset, body[:length], body[length:])
            if zlib.crc32(body) & 0xFFFFFFFF == checksum
            else None
        )

    @property
    def descriptor(self) -> int:
        """The descriptor of the journal."""
        return self._store.descriptor

    @property
    def path(self) -> Optional[str]:
        """The path of the journal, or None."""
        return self._store.path

    def close(self) -> None:
        """Close the journal."""
        self._store.close()

    def recover(self, medium: Store, only_writer: bool = True) -> bool:
        """Restore the data of the record, if there is one, and delete the record. Returns True if
        there was one.

        only_writer: True if no other session can have written to the range. Raises OSError; the
        record then remains.
        """
        found = self.record()
        if found is not None:
            if not only_writer and not matches_record(medium, found):
                raise OSError(
                    errno.ESTALE,
                    'bytes %d..%d contain neither the old nor the new data of the write: it is another '
                    'medium, or it was written to since'
                    % (found.offset, found.offset + len(found.data)),
                )
            restore(medium, found.offset, found.data)
        self.clear_record()
        return found is not None


class RecordPending(OSError):
    """A slot contains, or may contain, a record: its range must stay locked until Slot.recover()."""


def sectors(medium: Store, offset: int, length: int) -> List[Tuple[int, Optional[bytes]]]:
    """Returns [(start, bytes, or None if unreadable)] for each piece of the range; a piece is a
    block or a sector, the longer of both."""
    step = max(SECTOR, medium.block_size)
    try:
        found = bytes(medium.read(offset, length))
        return [(start, found[start : start + step]) for start in range(0, length, step)]
    except OSError:
        pass
    pieces: List[Tuple[int, Optional[bytes]]] = []
    for start in range(0, length, step):
        try:
            pieces.append((start, bytes(medium.read(offset + start, min(step, length - start)))))
        except OSError:
            # the interrupted write may have damaged it; a write repairs it
            pieces.append((start, None))
    return pieces


def matches_record(medium: Store, record: Record) -> bool:
    """Returns True if each sector contains its old or its new data, or is unreadable. Raises
    OSError."""
    if record.offset + len(record.data) > medium.size:
        return False
    for start, found in sectors(medium, record.offset, len(record.data)):
        if found is None:
            continue
        for at in range(0, len(found), SECTOR):
            piece, place = found[at : at + SECTOR], start + at
            sum_at = place // SECTOR * 4
            if (
                piece != record.data[place : place + SECTOR]
                and sums_of(piece) != record.sums[sum_at : sum_at + 4]
            ):
                return False
    return True


def restore(medium: Store, offset: int, data: bytes) -> None:
    """Write the old data back, durable on return. Writes only pieces that differ, for which space
    is allocated. Raises OSError."""
    for start, found in sectors(medium, offset, len(data)):
        piece = data[start : start + max(SECTOR, medium.block_size)]
        if found != piece:
            medium.write(offset + start, piece, False)
    medium.flush(offset, len(data))


def write(medium: Store, slot: Slot, offset: int, data: BytesLike) -> None:
    """Write `data` (at most LONGEST bytes) all or nothing, durable on return. The caller has locked
    the range.

    Raises RecordPending if the outcome is decided only by Slot.recover(); raises another OSError if
    nothing was changed.
    """
    if len(data) > LONGEST:
        raise OSError(errno.EINVAL, 'an atomic write is limited to %d bytes' % LONGEST)
    before = bytes(medium.read(offset, len(data)))
    medium.flush(offset, len(data))
    try:
        slot.put_record(Record(offset, before, sums_of(data)))
    except RecordPending:
        raise
    except OSError as e:
        raise OSError(errno.EREMOTEIO, 'the journal cannot be written: %s' % e.strerror)
    try:
        try:
            medium.write(offset, data, True)
        except OSError as e:
            restore(medium, offset, before)
            slot.clear_record()
            raise WriteUndone(e)
        slot.clear_record()
    except OSError as e:
        raise RecordPending(e.errno, e.strerror)
    except WriteUndone as e:
        raise e.why


class WriteUndone(Exception):
    """A write failed, and the old data of the medium has been restored."""

    def __init__(self, why: OSError) -> None:
        super(WriteUndone, self).__init__(str(why))
        self.why = why


def recover_all_slots(descriptor: int, medium: Store, path: Optional[str] = None) -> int:
    """Recover every slot of a journal that no session uses. Returns the number of slots with a
    record. Takes over the descriptor. Raises OSError."""
    try:
        count = -(-os.fstat(descriptor).st_size // SLOT)
        os.ftruncate(descriptor, count * SLOT)
    except BaseException:
        os.close(descriptor)
        raise
    with FileStore({'kind': 'file', 'path': path, 'size': count * SLOT}, descriptor) as store:
        slots = [Slot(store, number) for number in range(count)]
        return sum(slot.recover(medium, False) for slot in slots if not slot.is_empty())
