"""A store whose disk refuses every write as soon as another server has taken the disk over (setting fence): a
refused access ends with the error FENCED, which no disk reports.

Imports base, filters. Linux reports RESERVATION CONFLICT of a disk as EBADE. The disk is written past the
page cache, so that the disk has executed, or refused, what is answered.
"""

import errno
from typing import Optional

from .base import BytesLike, Extents, Store, failure
from .filters import Filter

#: This server has no right to write to the disk any more.
FENCED = errno.EKEYREVOKED
CONFLICT = errno.EBADE


class _Refusals(object):
    """Its `with` block ends with FENCED in place of a reservation conflict."""

    __slots__ = ()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError) and error.errno == CONFLICT:
            raise failure(FENCED)


_refusals = _Refusals()


class Fenced(Filter):
    """See the module."""

    def reading(self) -> Store:
        return self.store.reading()

    def prefetch(self, offset: int, length: int) -> None:
        self.store.prefetch(offset, length)

    def read(self, offset: int, length: int) -> BytesLike:
        with _refusals:
            return self.store.read(offset, length)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        with _refusals:
            self.store.write(offset, data, durable)

    def flush(self, offset: int, length: int) -> None:
        with _refusals:
            self.store.flush(offset, length)

    def unmap(self, offset: int, length: int) -> None:
        with _refusals:
            self.store.unmap(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        with _refusals:
            self.store.write_zeroes(offset, length, may_unmap)

    def extents(self, offset: int, length: int, maximum: Optional[int] = None) -> Extents:
        with _refusals:
            return self.store.extents(offset, length, maximum)

    def copy(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        with _refusals:
            self.store.copy(self.store if source is self else source, source_offset, offset, length)
