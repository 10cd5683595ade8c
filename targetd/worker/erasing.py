"""Formatting and sanitizing a medium, in a worker process that received the order `operate`.

May import base, scsi.operations, store. The work is done in steps, through the unit's store with
its filters. Progress that is reported as lasting is on the medium, so that the operation can
continue from there after a restart or a power failure. Runs in one thread.
"""

import errno
import time

from targetd.scsi import operations

STEP = 1 << 20  # bytes per write
ERASE_STEP = 64 << 20  # bytes per unmap or write_zeroes, which the medium itself performs
REPORT_SECONDS = 0.5  # shortest time between two progress reports
FLUSH_SECONDS = 10.0  # shortest time between two flushes within a pass


def run_operation(store, operation, report_progress, clock=time.monotonic):
    """Perform the rest of the operation. Calls report_progress(position, lasting): position: bytes
    done so far; lasting: True if they would survive a power failure. Raises OSError."""
    if store.read_only:
        raise OSError(errno.EROFS, 'the medium cannot be written')
    size, position = operation['size'], operation['position']
    make_step = _pattern_writer if operation['method'] == 'pattern' else _zeroer
    do_step = make_step(store, operation)
    reported = flushed = clock()
    while position < operation['passes'] * size:
        number, offset = divmod(position, size)
        position += do_step(number, offset, size - offset)
        now = clock()
        # each pass must be on the medium before the next begins
        if not position % size or now - flushed >= FLUSH_SECONDS:
            store.flush(0, size)
            flushed = reported = clock()
            report_progress(position, True)
        elif now - reported >= REPORT_SECONDS:
            reported = now
            report_progress(position, False)


def _pattern_writer(store, operation):
    block_size = store.block_size
    chunks = {}  # parity of the pass number -> bytes

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
