"""No medium at all: reads zeroes, forgets writes. For measuring everything but the disk.

Imports base.
"""

from .base import CHUNK, Store, beyond

_ZEROES = bytes(CHUNK)


class NullStore(Store):
    """A store without a descriptor."""

    inline_write_limit = 1 << 30
    durable_is_free = True

    def read(self, offset, length):
        self._check_range(offset, length)
        return _ZEROES[:length] if length <= CHUNK else bytes(length)

    try_read = read

    def write(self, offset, data, durable):
        self._check_range(offset, len(data))

    def flush(self, offset, length):
        """Nothing to do."""

    def unmap(self, offset, length):
        self._check_range(offset, length)

    def write_zeroes(self, offset, length, may_unmap):
        self._check_range(offset, length)

    def extents(self, offset, length, maximum=None):
        self._check_range(offset, length)
        return [(offset, length, False)] if length else []

    def copy(self, source, source_offset, offset, length):
        self._check_range(offset, length)

    def allocated(self):
        return 0

    def _check_range(self, offset, length):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise beyond(self, offset, length)
