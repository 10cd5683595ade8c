"""What makes a write all or nothing: what the bytes were before it is kept in a journal until all
of it is on the medium.

Imports base, file. A journal is a store of its own; each session that writes to a medium has a slot
in it:

     empty --put (what the bytes were), durable--> full --the medium is written, durable--> cleared, durable: empty

A process, the server or the power may end anywhere: an empty slot, and one whose record is not
whole, say that the medium was not begun or is done; a full one that the old bytes have to be put
back (restore, which may be done twice). The range must stay locked while its slot is full: a record
must not be put back over what others wrote since.

A record that outlived its server may meet another disk of the same name, or a backup that was
played back meanwhile. So it has sums of what was being written, too, and is put back only if each
sector is what it was, or what it was to be. (That is why what is in the cache is made durable
before a write.)
"""

import errno
import os
import struct
import zlib
from collections import namedtuple

from .file import FileStore

HEAD = 4096  # bytes of a slot before its data
LONGEST = 1 << 20  # bytes of one atomic write
SECTOR = 512
SLOT = HEAD + LONGEST + 4 * (LONGEST // SECTOR)

# magic, offset, length of the bytes, checksum of bytes and sums together
_FIELDS = struct.Struct('>8sQII')
_CHECKSUM = struct.Struct('>I')  # of the fields
MAGIC = b'targetd1'

Record = namedtuple('Record', 'offset data sums')


def sums_of(data):
    """A checksum of each sector of `data`, four bytes each."""
    found = [
        zlib.crc32(data[start : start + SECTOR]) & 0xFFFFFFFF
        for start in range(0, len(data), SECTOR)
    ]
    return struct.pack('>%dI' % len(found), *found)


def packed(record):
    """(head, body) of a Record: the bytes that were at `offset`, and the sums of those that are to
    be there."""
    body = record.data + record.sums
    fields = _FIELDS.pack(MAGIC, record.offset, len(record.data), zlib.crc32(body) & 0xFFFFFFFF)
    return fields + _CHECKSUM.pack(zlib.crc32(fields) & 0xFFFFFFFF), body


def unpacked(head):
    """(offset, length, checksum of the body), or None if this is no whole head."""
    fields = bytes(head[: _FIELDS.size])
    magic, offset, length, checksum = _FIELDS.unpack(fields)
    whole = _CHECKSUM.unpack_from(head, _FIELDS.size)[0] == zlib.crc32(fields) & 0xFFFFFFFF
    return (offset, length, checksum) if whole and magic == MAGIC and length <= LONGEST else None


def opened(descriptor, number, path=None):
    """The Slot of this number, in the journal that this descriptor is of; it takes the descriptor
    over. path: for people."""
    return Slot(
        FileStore({'kind': 'file', 'path': path, 'size': (number + 1) * SLOT}, descriptor), number
    )


class Slot(object):
    """One slot. store: the journal's, which this owns; number: which."""

    def __init__(self, store, number):
        self._store = store
        self._at = number * SLOT
        self.number = number

    def put(self, record):
        """Keep a Record, durable when this returns. Raises Full, then the slot may hold it; else
        OSError, then it is empty."""
        head, body = packed(record)
        self._store.write(self._at + HEAD, body, False)
        self._store.write(self._at, head, False)  # within one block: all of it or nothing
        try:
            self._store.flush(self._at, HEAD + len(body))
        except OSError as e:
            raise Full(e.errno, e.strerror)

    def clear(self):
        """Forget the record, durable when this returns. Raises OSError: then it may be there still."""
        self._store.write(self._at, bytes(_FIELDS.size + _CHECKSUM.size), False)
        self._store.flush(self._at, HEAD)

    def is_empty(self):
        """True if there is no record, without looking at the data. Raises OSError."""
        return unpacked(self._store.read(self._at, _FIELDS.size + _CHECKSUM.size)) is None

    def record(self):
        """The Record, or None if there is no whole one. Raises OSError."""
        found = unpacked(self._store.read(self._at, _FIELDS.size + _CHECKSUM.size))
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
    def descriptor(self):
        """Of the journal."""
        return self._store.descriptor

    @property
    def path(self):
        """Of the journal, or None."""
        return self._store.path

    def close(self):
        """Close the journal."""
        self._store.close()

    def put_right(self, medium, is_known=True):
        """Put back what a record says, and forget it. True if there was one. is_known: nobody but
        the writer can have written there. Raises OSError: then it is there still."""
        found = self.record()
        if found is not None:
            if not is_known and not is_amid(medium, found):
                raise OSError(
                    errno.ESTALE,
                    'bytes %d..%d are neither what they were nor what they were to be: it is another '
                    'medium, or others have written to it since'
                    % (found.offset, found.offset + len(found.data)),
                )
            restore(medium, found.offset, found.data)
        self.clear()
        return found is not None


class Full(OSError):
    """A slot holds, or may hold, a record: its range must stay locked until that was put right."""


def sectors(medium, offset, length):
    """[(start, bytes, or None where they cannot be read)] of the pieces of a range, as long as a
    block or a sector."""
    step = max(SECTOR, medium.block_size)
    try:
        found = bytes(medium.read(offset, length))
        return [(start, found[start : start + step]) for start in range(0, length, step)]
    except OSError:
        pass
    pieces = []
    for start in range(0, length, step):
        try:
            pieces.append((start, bytes(medium.read(offset + start, min(step, length - start)))))
        except OSError:
            pieces.append((start, None))  # it was half written: writing it may heal it
    return pieces


def is_amid(medium, record):
    """True if every sector is what it was, or what it was to be, or cannot be read. Raises OSError."""
    if record.offset + len(record.data) > medium.size:
        return False
    for start, found in sectors(medium, record.offset, len(record.data)):
        for at in range(0, len(found or b''), SECTOR):
            piece, place = found[at : at + SECTOR], start + at
            sum_at = place // SECTOR * 4
            if (
                piece != record.data[place : place + SECTOR]
                and sums_of(piece) != record.sums[sum_at : sum_at + 4]
            ):
                return False
    return True


def restore(medium, offset, data):
    """Give the medium these bytes back, durable when this returns: those that differ, for which
    there is space. Raises OSError."""
    for start, found in sectors(medium, offset, len(data)):
        piece = data[start : start + max(SECTOR, medium.block_size)]
        if found != piece:
            medium.write(offset + start, piece, False)
    medium.flush(offset, len(data))


def write(medium, slot, offset, data):
    """Write all of `data` (bytes-like, LONGEST at most) or nothing; durable when this returns. The
    caller has locked the range.

    Raises Full: all or nothing it will be when somebody has put the slot right. Raises OSError:
    nothing was done."""
    if len(data) > LONGEST:
        raise OSError(errno.EINVAL, 'no more than %d bytes are written at once' % LONGEST)
    before = bytes(medium.read(offset, len(data)))
    medium.flush(offset, len(data))
    try:
        slot.put(Record(offset, before, sums_of(data)))
    except Full:
        raise
    except OSError as e:
        raise OSError(errno.EREMOTEIO, 'the journal cannot be written: %s' % e.strerror)
    try:
        try:
            medium.write(offset, data, True)
        except OSError as e:
            restore(medium, offset, before)
            slot.clear()
            raise Undone(e)
        slot.clear()
    except OSError as e:
        raise Full(e.errno, e.strerror)
    except Undone as e:
        raise e.why


class Undone(Exception):
    """A write failed, and the medium is as before."""

    def __init__(self, why):
        super(Undone, self).__init__(str(why))
        self.why = why


def put_all_right(descriptor, medium, path=None):
    """Put every slot of a journal right that nobody uses: how many held a record. Takes the
    descriptor over. Raises OSError."""
    try:
        count = -(-os.fstat(descriptor).st_size // SLOT)
        os.ftruncate(descriptor, count * SLOT)
    except BaseException:
        os.close(descriptor)
        raise
    with FileStore({'kind': 'file', 'path': path, 'size': count * SLOT}, descriptor) as store:
        return sum(Slot(store, number).put_right(medium, False) for number in range(count))
