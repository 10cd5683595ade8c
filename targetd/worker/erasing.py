"""Formatting and sanitizing a medium: what a worker process does that was ordered to `operate`
instead of to serve.

May import base, scsi.operations, store. The work is done in steps, through the unit's own store
with its filters; whatever is told to be done is on the medium, so that it can go on from there
after a restart or a loss of power. Runs in one thread.
"""

import errno
import time

from targetd.scsi import operations

STEP = 1 << 20  # bytes written at a time
ERASE_STEP = 64 << 20  # bytes unmapped or zeroed at a time, by the medium itself
TELL_SECONDS = 0.5  # how often progress is told at most
KEEP_SECONDS = 10.0  # how often it is made lasting at most


def operate(store, operation, tell, clock=time.monotonic):
    """Do what is left of the operation. tell(position, lasting): bytes done so far; lasting: they
    would survive a loss of power. Raises OSError."""
    if store.read_only:
        raise OSError(errno.EROFS, 'the medium cannot be written')
    size, position = operation['size'], operation['position']
    do = (
        _pattern_writer(store, operation)
        if operation['method'] == 'pattern'
        else _zeroer(store, operation)
    )
    told = kept = clock()
    while position < operation['passes'] * size:
        number, offset = divmod(position, size)
        position += do(number, offset, size - offset)
        now = clock()
        # each pass reaches the medium before the next begins
        if not position % size or now - kept >= KEEP_SECONDS:
            store.flush(0, size)
            kept = told = clock()
            tell(position, True)
        elif now - told >= TELL_SECONDS:
            told = now
            tell(position, False)


def _pattern_writer(store, operation):
    block_size = store.block_size
    chunks = {}  # number of the pass, even or odd -> bytes

    def write(number, offset, left):
        parity = number % 2
        if parity not in chunks:
            chunks.clear()
            chunks[parity] = memoryview(
                operations.block_content(operation, block_size, number) * max(1, STEP // block_size)
            )
        count = min(left, len(chunks[parity]))
        store.write(offset, chunks[parity][:count], False)
        return count

    return write


def _zeroer(store, operation):
    may_unmap = operation['method'] == 'erase' or store.thin

    def zero(number, offset, left):
        count = min(left, ERASE_STEP)
        store.write_zeroes(offset, count, may_unmap)
        return count

    return zero
