"""Finds blocks of a medium that are all zero, and frees them.

Imports base. A block is freed with unmap(), of which the medium promises that it reads as zeroes
afterwards (capabilities.zeroes_after_unmap), so nothing changes for a reader. Who calls free_zeroes()
must exclude writes to the range; find_zeroes() only looks, so its outcome may be old.
"""

import time
from typing import Iterator, List, Tuple

from .base import CHUNK, Store

#: Bytes of a range that free_zeroes() is called for, and its alignment.
WINDOW = 16 << 20
#: A block that is all zero is freed if it has this size at least, and this alignment.
LEAST = 4096


def why_not(store: Store) -> str:
    """Returns why blocks of this medium cannot be freed, or ''. store: or an OpenedStore."""
    if store.descriptor is None:
        return 'it has no medium'
    if store.read_only:
        return 'it is read-only'
    if getattr(store, 'tape', False):
        return 'it is a tape, which occupies no more than it contains'
    if store.kind == 'passthrough':
        return 'it is a real SCSI device, whose blocks only its initiators know'
    if not store.capabilities.unmap or not store.capabilities.zeroes_after_unmap:
        if store.kind == 'block':
            return 'the disk cannot discard blocks so that they read as zeroes afterwards'
        return 'the file system cannot free a part of a file'
    return ''


def _granule(store):
    """(size, alignment) of the blocks that unmap() frees."""
    size = LEAST
    while size < max(store.capabilities.unmap_granularity, store.block_size):
        size *= 2
    return size, store.capabilities.unmap_alignment % size


def zero_ranges(store: Store, offset: int, length: int) -> Iterator[Tuple[int, int]]:
    """Yields (offset, length) of the whole granules in this range that occupy space and are all zero.
    Raises OSError."""
    size, alignment = _granule(store)
    zeroes = bytes(max(CHUNK, size))
    for start, count, is_mapped in store.extents(offset, length):
        first = start + (alignment - start) % size
        end = start + count - (start + count - alignment) % size
        while is_mapped and first < end:
            taken = min(len(zeroes), end - first)
            data = bytes(store.read(first, taken))
            if data == zeroes[:taken]:
                yield first, taken
            else:
                yield from _zero_parts(data, zeroes[:size], first)
            first += taken


def _zero_parts(data, zeroes, offset):
    size, began = len(zeroes), None
    for at in range(0, len(data), size):
        is_zero = data[at : at + size] == zeroes
        if is_zero and began is None:
            began = at
        elif not is_zero and began is not None:
            yield offset + began, at - began
            began = None
    if began is not None:
        yield offset + began, len(data) - began


def find_zeroes(
    store: Store, position: int, most: int, seconds: float
) -> Tuple[int, List[Tuple[int, int]]]:
    """Look for blocks to free from this position on. Returns (the position up to which was looked,
    windows (offset, length) that had such blocks), after `most` windows or so many seconds. Raises
    OSError."""
    found: List[Tuple[int, int]] = []
    end = time.monotonic() + seconds
    while position < store.size and len(found) < most and time.monotonic() < end:
        length = min(WINDOW - position % WINDOW, store.size - position)
        if not any(is_mapped for _, _, is_mapped in store.extents(position, length, 2)):
            # at most two extents: a hole of any length is passed in one step
            (_, length, is_mapped) = store.extents(position, store.size - position, 1)[0]
            if not is_mapped:
                position += length
                continue
        if next(zero_ranges(store, position, length), None) is not None:
            found.append((position, length))
        position += length
    return position, found


def free_zeroes(store: Store, offset: int, length: int) -> int:
    """Free the blocks of this range that are all zero; returns their bytes. Raises OSError."""
    freed = 0
    with store.locked_range(offset, length, True) as medium:
        for start, count in list(zero_ranges(medium, offset, length)):
            medium.unmap(start, count)
            freed += count
    return freed
