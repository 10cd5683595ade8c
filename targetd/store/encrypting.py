"""Encryption of data at rest: a store on top of another, whose medium holds AES-256-XTS of what is
read and written here.

Imports base, filters, xts. A data unit of XTS is a logical block, its tweak the LBA. So every block
stands for itself, any can be read or written alone, and equal blocks at different places differ on
the medium. Whoever has the medium alone sees which blocks changed between two looks at it, and can
put old ones back: XTS hides, it does not prove.

A block that is all zeroes on the medium reads as zeroes: what was never written, unmapped or
zeroed. So holes stay holes, and thin provisioning works as without encryption (the holes can be
seen, too). No key that anybody will ever make encrypts a block to all zeroes: for 512 bytes that is
one chance in 2 to the 4096th.

What the verbs do: read and try_read decrypt; write encrypts whole blocks, and a write of less than
that reads the blocks at its edges first, inside exclusive(); copy, from another store or within
this one, decrypts and encrypts, because the tweak is another; unmap, write_zeroes, extents and
flush are the lower store's.
"""

import errno

from ..xts import Xts
from .base import beyond, failure
from .filters import Filter

#: Blocks up to which the connection's own thread decrypts and encrypts.
INLINE_BLOCKS = 64


class Encrypting(Filter):
    """Directly on the store of a medium, below the filters of the configuration, which meet what
    initiators mean.

    key: as Xts wants it. It is in no text of this object."""

    def __init__(self, store, key):
        super(Encrypting, self).__init__(store)
        self.rekey(key)

    def rekey(self, key):
        """One assignment: each verb has the old key to its end, or the new one."""
        self._xts = Xts(key)

    @property
    def inline_write_limit(self):
        return min(self.store.inline_write_limit, INLINE_BLOCKS * self.block_size)

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def read(self, offset, length):
        size = self.block_size
        before, after = offset % size, -(offset + length) % size
        data = self.store.read(offset - before, before + length + after)
        data = self._xts.decrypted((offset - before) // size, data, size)
        return data[before : before + length] if before or after else data

    def try_read(self, offset, length):
        size = self.block_size
        if length > INLINE_BLOCKS * size or (offset | length) % size:
            return None
        data = self.store.try_read(offset, length)
        return None if data is None else self._xts.decrypted(offset // size, data, size)

    def write(self, offset, data, durable):
        if (offset | len(data)) % self.block_size:
            self._write_in_part(offset, data, durable)
        else:
            self.store.write(
                offset,
                self._xts.encrypted(offset // self.block_size, data, self.block_size),
                durable,
            )

    def _write_in_part(self, offset, data, durable):
        """Only copies that begin or end within a block come here."""
        length, size = len(data), self.block_size
        if offset < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
        before, after = offset % size, -(offset + length) % size
        start = offset - before
        with self.exclusive(start, before + length + after):
            whole = bytearray(self.read(start, before + length + after))
            whole[before : before + length] = data
            self.store.write(start, self._xts.encrypted(start // size, whole, size), durable)

    def unmap(self, offset, length):
        self._require_whole(offset, length)
        self.store.unmap(offset, length)

    def write_zeroes(self, offset, length, may_unmap):
        self._require_whole(offset, length)
        self.store.write_zeroes(offset, length, may_unmap)

    def _require_whole(self, offset, length):
        """Half a block of zeroes beside half a block of what was encrypted would read as nothing
        anybody wrote."""
        if (offset | length) % self.block_size:
            raise failure(errno.EINVAL, self.path)
