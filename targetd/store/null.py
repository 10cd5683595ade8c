"""A store without a medium: reads return zeroes, writes are discarded. For measuring everything
except the disk.

Imports base.
"""

from typing import Optional

from .base import CHUNK, BytesLike, Extents, Store, beyond

_ZEROES = bytes(CHUNK)


class NullStore(Store):
    """A store without a descriptor and without data."""

    inline_write_limit = 1 << 30
    durable_is_free = True

    def read(self, offset: int, length: int) -> BytesLike:
        self._check_range(offset, length)
        return _ZEROES[:length] if length <= CHUNK else bytes(length)

    try_read = read

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        self._check_range(offset, len(data))

    def flush(self, offset: int, length: int) -> None:
        """Does nothing."""

    def unmap(self, offset: int, length: int) -> None:
        self._check_range(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._check_range(offset, length)

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        self._check_range(offset, length)
        return [(offset, length, False)] if length else []

    def copy(self, source: 'Store', source_offset: int, offset: int, length: int) -> None:
        self._check_range(offset, length)

    def allocated(self) -> int:
        return 0

    def _check_range(self, offset, length):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
