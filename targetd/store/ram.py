"""Memory as a medium: a memory file whose descriptor all workers share. Gone when the last of them
and the master are.

Imports base, compat, file, posix.
"""

import os

from .file import FileStore


class RamStore(FileStore):
    """Every write is as durable as it will ever be, and nothing waits, so everything may run in the
    connection's thread."""

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

    def write(self, offset, data, durable):
        super(RamStore, self).write(offset, data, False)

    def flush(self, offset, length):
        """Nothing to do."""
