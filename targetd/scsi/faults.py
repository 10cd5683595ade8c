"""The faults of a medium, as a part of the records of its unit: what failed, how often, and the
blocks that cannot be read. Pure.

A fault is an OSError of the store that ended a command. The records (scsi.records) contain

  faults      {'read EIO': {count, offset, by, at}}: the kind of access and the errno -> how often, and
              of the latest: the byte offset where it failed, the initiator's name, and when, in
              milliseconds since 1970. It is {} after `targetdctl acknowledge`: the unit is healthy
  bad_blocks  [[offset, length] …] in bytes, ascending and disjoint: blocks that could not be read and
              have not been rewritten since. At most MAXIMUM_RANGES; more are not recorded
"""

import errno
from typing import Any, Dict, List, Optional, Sequence

from targetd.scsi import errno_map

READ, WRITE, VERIFY, FLUSH = KINDS = ('read', 'write', 'verify', 'flush')

MAXIMUM_RANGES = 256
LONGEST_NAME = 223  # of an initiator, in bytes (RFC 7143 4.2.7.1)

#: What `on-error` has done to a unit after a fault, in order of strictness. NONE: nothing; READ_ONLY:
#: writes are refused; OFFLINE: all commands that need the medium are refused.
RESTRICTIONS = NONE, READ_ONLY, OFFLINE = ('', 'read-only', 'offline')

#: Errnos after which `on-error` does nothing, because the medium itself is not at fault: no space, no
#: memory, no permission to write, or another server has the disk.
_HARMLESS = frozenset(
    (errno_map.NO_RESOURCES, errno_map.SPACE, errno_map.PROTECTED, errno_map.TRANSITION)
)


class RefusedBeforeWrite(OSError):
    """A write that was refused before it reached the medium, for a reason that is not the medium's: old
    blocks could not be kept first (the setting guard). It is not a fault of the medium."""


def name_of(number: int) -> str:
    """'EIO' for errno.EIO; 'errno N' if it has no name."""
    return errno.errorcode.get(number, 'errno %d' % number)


def is_counted(error: OSError) -> bool:
    """False if the error only means that the store was closed during the command, or that the write did
    not reach the medium."""
    return error.errno != errno.EBADF and not isinstance(error, RefusedBeforeWrite)


def is_loss(error: OSError) -> bool:
    """False if a failed flush lost nothing, because another server has the disk, which is written past the
    page cache."""
    return error.errno != errno_map.FENCED


def is_of_the_medium(number: int) -> bool:
    """True if a fault with this errno casts doubt on the medium, so that `on-error` acts on it."""
    return errno_map.ROWS.get(number, (None, None))[1] not in _HARMLESS


def stricter(restriction: str, other: str) -> str:
    """The stricter one of two restrictions."""
    return max(restriction, other, key=RESTRICTIONS.index)


def with_fault(
    faults: Dict[str, Any], kind: str, number: int, offset: int, by: str, at: int, more: int = 1
) -> Dict[str, Any]:
    """`faults` with `more` faults of one kind, the latest with these values."""
    key = '%s %s' % (kind, name_of(number))
    total = min(faults.get(key, {'count': 0})['count'] + more, (1 << 64) - 1)
    return dict(faults, **{key: {'count': total, 'offset': offset, 'by': by, 'at': at}})


def count(faults: Dict[str, Any]) -> int:
    """The number of faults."""
    return sum(fault['count'] for fault in faults.values())


def latest(faults: Dict[str, Any]) -> Optional[str]:
    """The key of the latest fault, or None."""
    return max(faults, key=lambda key: faults[key]['at']) if faults else None


# -- ranges of bad blocks --------------------------------------------------------------------------


def overlaps(ranges: Sequence[Sequence[int]], offset: int, length: int) -> bool:
    """True if one of the ranges has a byte in offset..offset + length."""
    return any(start < offset + length and offset < start + size for start, size in ranges)


def with_range(ranges: Sequence[Sequence[int]], offset: int, length: int) -> List[List[int]]:
    """The ranges and this one, merged where they touch; unchanged if there would be more than
    MAXIMUM_RANGES."""
    end, kept = offset + length, []
    for start, size in ranges:
        if start <= end and offset <= start + size:
            offset, end = min(offset, start), max(end, start + size)
        else:
            kept.append([start, size])
    merged = sorted(kept + [[offset, end - offset]])
    return merged if len(merged) <= MAXIMUM_RANGES else [list(each) for each in ranges]


def without_range(ranges: Sequence[Sequence[int]], offset: int, length: int) -> List[List[int]]:
    """The ranges without the bytes offset..offset + length. If a range would be divided and the list
    is full, the range stays whole."""
    end, left = offset + length, []
    for start, size in ranges:
        pieces = [[start, min(start + size, offset) - start], [max(start, end), 0]]
        pieces[1][1] = start + size - pieces[1][0]
        left += [piece for piece in pieces if piece[1] > 0]
    return left if len(left) <= MAXIMUM_RANGES else [list(each) for each in ranges]


# -- checks: everything comes from a worker or from a file -----------------------------------------


def check_faults(value: Any) -> None:
    """Raises ValueError, KeyError or TypeError if `value` is not valid faults."""
    for key, fault in value.items():
        kind, _, name = key.partition(' ')
        if kind not in KINDS or not name or len(name) > 20:
            raise ValueError('fault %r' % (key,))
        if not isinstance(fault['by'], str) or len(fault['by']) > LONGEST_NAME:
            raise ValueError('the initiator of a fault is not valid')
        for number in (fault['count'], fault['offset'], fault['at']):
            check_number(number)


def check_ranges(value: Any) -> None:
    """Raises ValueError or TypeError if `value` is not a valid list of ranges."""
    end = 0
    for offset, length in value:
        check_number(offset)
        check_number(length)
        if offset < end or not length:
            raise ValueError('bad blocks %r' % (value,))
        end = offset + length
    if len(value) > MAXIMUM_RANGES:
        raise ValueError('%d ranges of bad blocks' % len(value))


def check_number(value: Any) -> int:
    """`value`, if it is an integer from 0 to 2^64 - 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError('not a number: %r' % (value,))
    return value
