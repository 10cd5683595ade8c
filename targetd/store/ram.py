"""Memory as a medium: a memory file whose descriptor the master and all workers share. The data is
lost when the last of them closes it.

Imports base, compat, file, posix.
"""

import os

from .base import BytesLike
from .file import FileStore


class RamStore(FileStore):
    """A store in memory. A durable write costs no more than another one and nothing waits, so every
    verb may run in the connection's thread."""

    durable_is_free = True

    def _make_try_read(self):
        descriptor, pread = self.descriptor, os.pread

        def try_read(offset, length):
            data = pread(descriptor, length, offset)
            return data if len(data) == length else None

        def forget():
            nonlocal descriptor
            descriptor = -1

        return try_read, forget

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        super(RamStore, self).write(offset, data, False)

    def flush(self, offset: int, length: int) -> None:
        """Does nothing."""
