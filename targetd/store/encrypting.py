"""Encryption of data at rest: a store that encrypts what is written to the store below
(AES-256-XTS).

Imports base, filters, xts. A data unit of XTS is a logical block, its tweak is the LBA. So each
block can be read or written independently, and equal blocks at different addresses differ on the
medium. An attacker who has the medium can see which blocks changed between two points in time, and
can restore old blocks: XTS provides confidentiality, not integrity.

A block that is all zeroes on the medium reads as zeroes: it was never written, or was unmapped or
zeroed. So holes remain holes (and are visible), and thin provisioning works as without encryption.
A block whose ciphertext is all zeroes does not occur in practice: for 512 bytes the probability is
2 to the power of -4096.

read and try_read decrypt. write encrypts whole blocks; a shorter write first reads the blocks at
its ends, inside exclusive_range(). copy, from another store or within this one, decrypts and
encrypts again, because the tweak differs. unmap, write_zeroes, extents and flush are those of the
lower store.
"""

import errno
from typing import Optional

from ..xts import Xts
from .base import BytesLike, Store, beyond, failure
from .filters import Filter

#: Up to this number of blocks, the connection's thread itself decrypts and encrypts.
INLINE_BLOCKS = 64


class Encrypting(Filter):
    """Encrypts all data of the store below. It is directly on the store of a medium and below the
    configured filters, which therefore process plain text.

    key: see xts.Xts. It appears in no text of this object.
    """

    def __init__(self, store: 'Store', key: bytes) -> None:
        super(Encrypting, self).__init__(store)
        self.rekey(key)

    def rekey(self, key: bytes) -> None:
        """Replace the key in one assignment: each verb uses either the old or the new key
        throughout."""
        self._xts = Xts(key)

    @property
    def inline_write_limit(self) -> int:  # type: ignore[override]
        return min(self.store.inline_write_limit, INLINE_BLOCKS * self.block_size)

    # -- the verbs ---------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> BytesLike:
        size = self.block_size
        before, after = offset % size, -(offset + length) % size
        data = self.store.read(offset - before, before + length + after)
        data = self._xts.decrypted((offset - before) // size, data, size)
        return data[before : before + length] if before or after else data

    def try_read(self, offset: int, length: int) -> Optional[BytesLike]:
        size = self.block_size
        if length > INLINE_BLOCKS * size or (offset | length) % size:
            return None
        data = self.store.try_read(offset, length)
        return None if data is None else self._xts.decrypted(offset // size, data, size)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        if (offset | len(data)) % self.block_size:
            self._write_in_part(offset, data, durable)
        else:
            self.store.write(
                offset,
                self._xts.encrypted(offset // self.block_size, data, self.block_size),
                durable,
            )

    def _write_in_part(self, offset, data, durable):
        """Write data that starts or ends within a block, which only copies do."""
        length, size = len(data), self.block_size
        if offset < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
        before, after = offset % size, -(offset + length) % size
        start = offset - before
        with self.exclusive_range(start, before + length + after):
            whole = bytearray(self.read(start, before + length + after))
            whole[before : before + length] = data
            self.store.write(start, self._xts.encrypted(start // size, whole, size), durable)

    def unmap(self, offset: int, length: int) -> None:
        self._require_whole(offset, length)
        self.store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._require_whole(offset, length)
        self.store.write_zeroes(offset, length, may_unmap)

    def _require_whole(self, offset, length):
        """Zeroing half of an encrypted block would make the block decrypt to random data."""
        if (offset | length) % self.block_size:
            raise failure(errno.EINVAL, self.path)
