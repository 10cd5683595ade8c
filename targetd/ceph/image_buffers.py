"""Memory of one connection of the store process that librbd reads and writes by its address: what was
received (Input), and what is sent as the reply to a READ (ReplyBuffers).

Used by one thread. A buffer is given back when the operation and the reply that used it are over; until then
it is not used for anything else.
"""

import ctypes

#: Bytes of a usual chunk of Input, and the bytes that must be free in it to receive more.
CHUNK, LEAST = 512 << 10, 16 << 10
#: Bytes of the smallest reply buffer.
SMALLEST = 4096
#: Bytes of the memory that is kept for later: chunks, and reply buffers.
MOST_KEPT = 8 << 20
#: Room before the data of a reply for its header.
HEAD = 32


class _Memory(object):
    """content: a bytearray that keeps its size; view: of it; address: of its first byte."""

    __slots__ = ('content', 'view', 'address', 'users', '_export')

    def __init__(self, size):
        self.content = bytearray(size)
        self.view = memoryview(self.content)
        self._export = (ctypes.c_char * size).from_buffer(self.content)
        self.address = ctypes.addressof(self._export)
        self.users = 0


class Input(object):
    """Bytes in the order of their arrival. They lie in the chunk, from start to end, and are parsed and
    written to the image from there; a chunk is used again when its users (writes) are gone."""

    def __init__(self):
        self.chunk = _Memory(CHUNK)
        self.start = self.end = 0
        self._kept = []

    def space(self, needed=0):
        """Returns a memoryview for what is received next. needed: the bytes from `start` on that must fit in
        one piece."""
        size = len(self.chunk.view)
        if self.start == self.end and not self.chunk.users and size == CHUNK:
            self.start = self.end = 0
        needed = max(needed, self.end - self.start + LEAST)
        if self.start + needed > size:
            self._replace(needed)
        return self.chunk.view[self.end :]

    def _replace(self, needed):
        """Move what is not used yet to the beginning of another chunk."""
        old, rest = self.chunk, self.end - self.start
        if needed > CHUNK:
            self.chunk = _Memory(needed + LEAST)
        else:
            self.chunk = self._kept.pop() if self._kept else _Memory(CHUNK)
        self.chunk.view[:rest] = old.view[self.start : self.end]
        self.start, self.end = 0, rest
        self._keep(old)

    def _keep(self, chunk):
        is_usual = len(chunk.view) == CHUNK
        if is_usual and not chunk.users and len(self._kept) < MOST_KEPT // CHUNK:
            self._kept.append(chunk)

    def release(self, chunk):
        """A user of this chunk is gone."""
        chunk.users -= 1
        if chunk is not self.chunk:
            self._keep(chunk)


class ReplyBuffers(object):
    """Buffers of HEAD bytes and the data of a READ."""

    def __init__(self):
        self._kept = {}  # size -> [_Memory]
        self._bytes = 0  # of these

    def take(self, length):
        """Returns a buffer for so many bytes of data; they belong to address + HEAD."""
        size = SMALLEST
        while size < length:
            size *= 2
        kept = self._kept.get(size)
        if kept:
            self._bytes -= size
            return kept.pop()
        return _Memory(HEAD + size)

    def give_back(self, buffer):
        """The buffer is not used any more."""
        size = len(buffer.view) - HEAD
        if self._bytes + size <= MOST_KEPT:
            self._bytes += size
            self._kept.setdefault(size, []).append(buffer)
