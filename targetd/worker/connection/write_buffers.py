"""The memory that large Data-Out is received into, used again for later writes.

New memory for each large write would cost more than its copy: the kernel clears every page of it. May
import base only. A session has one pool; it is used with `working` held. Buffers that are lent are not
counted: a buffer is free when nothing but the pool refers to it, so views that a task, the framer or a
thread in a system call still has keep it.
"""

import sys

from targetd.compat import raw_buffer

#: Size of every buffer of the pool. A smaller write uses the first pages of one; a larger one gets new
#: memory.
BUFFER_BYTES = 1 << 20
#: A pool keeps at most so many buffers: 16 MiB.
BUFFERS = 16


def _references(buffers):
    """The reference count of buffers[0], counted as WriteBuffers.take counts it."""
    for buffer in buffers:
        return sys.getrefcount(buffer)


#: The count of a buffer that only a list refers to.
_FREE = _references([bytearray(1)])


class WriteBuffers(object):
    """The pool of one session. It keeps its buffers until the session is silent or does other things."""

    def __init__(self):
        self._buffers = []
        self._was_used = False  # since the last release_unused()

    def take(self, length):
        """Return a writable memoryview of at least `length` bytes. Its contents are undefined: the
        caller fills all of it before it uses any. [connection, with `working` held]"""
        self._was_used = True
        if length > BUFFER_BYTES:
            return memoryview(raw_buffer(length))
        # the first free one: its pages are the most likely to be cached
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _FREE:
                return memoryview(buffer)
        if len(self._buffers) >= BUFFERS:
            return memoryview(raw_buffer(length))
        self._buffers.append(raw_buffer(BUFFER_BYTES))
        return memoryview(self._buffers[-1])

    def release_unused(self):
        """Forget the buffers if none was taken since the last call. Called when the session seems to be
        idle. [connection, with `working` held]"""
        if not self._was_used:
            self.clear()
        self._was_used = False

    def clear(self):
        """Forget the buffers: the memory of the free ones is released now, that of the others with
        their last view. [any]"""
        self._buffers = []
