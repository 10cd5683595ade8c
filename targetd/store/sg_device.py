"""A real SCSI device (type = passthrough): its store executes SCSI commands by SG_IO instead of reading and
writing blocks.

Imports base. The descriptor is that of the sg node. The sg driver takes 16 commands at a time from one open
file description, which all sessions of the unit share; beyond that the call fails with EDOM.
"""

import signal
from typing import Any

from .. import sg_io
from .base import BytesLike, Store

_EVERY_SIGNAL = frozenset(number for number in range(1, 65) if number not in (32, 33))


class SgDevice(Store):
    """A store without blocks. kind 'passthrough'; size: of the medium when it was opened, 0 if
    it had none."""

    def execute(self, cdb: bytes, data: BytesLike, length: int, seconds: int) -> Any:
        """The sg_io.Outcome of a command. data: what it writes; length: bytes that it may read; seconds: its
        time limit. Raises OSError. Executor threads.

        The kernel repeats a call that a signal interrupts, and the command would be executed twice: other
        threads take the signals of the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
        return sg_io.execute(self.descriptor, cdb, data, length, seconds)

    def flush(self, offset: int, length: int) -> None:
        """Does nothing: the initiators flush the device's cache with commands of theirs."""
