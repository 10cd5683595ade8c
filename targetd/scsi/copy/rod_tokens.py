"""ROD tokens: 512 bytes that represent blocks of a unit, and the parameter lists of the commands
that use them (ODX of Windows). Pure.

A token of this target is a point in time copy that is vulnerable to change (SPC-4 table 103, ROD
type 0080 0001h): while it is valid, it represents the data at the time of its creation, and the
first write to any of that data revokes it. Creating it copies nothing. The block zero token
represents any number of zeroes and is not created by a command. Only the last 64 bytes of a token,
which are random, authorize its user.
"""

import struct
from typing import TYPE_CHECKING, Any, Iterable, List, Sequence, Tuple

from targetd.scsi import designators, vpd
from targetd.scsi.copy.copy_manager import (
    BLOCK_ZERO,
    DEFAULT_TIMEOUT,
    MADE_FOR,
    MAXIMUM_RANGES,
    MAXIMUM_TIMEOUT,
    MAXIMUM_TRANSFER,
    VULNERABLE,
)
from targetd.scsi.sense import (
    ILLEGAL_REQUEST,
    CheckCondition,
    invalid_field_in_parameter_list,
    lba_out_of_range,
    parameter_list_length_error,
)

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit

TOKEN_LENGTH = 512
SECRET_LENGTH = 64
MANAGED_LENGTH = 96  # of a token in REPORT ALL ROD TOKENS

HEADER = struct.Struct('>I2xH')  # ROD TYPE, ROD TOKEN LENGTH
RANGE = struct.Struct('>QI4x')


# -- the token -------------------------------------------------------------------------------------


def make_token(facts: Any, identifier: int, length: int, target_name: str, secret: bytes) -> bytes:
    """Returns a token (SPC-4, SBC-3) for `length` bytes of a unit with these facts. identifier: 64
    bits, unique; secret: SECRET_LENGTH random bytes."""
    code_set, kind, name = next(
        (d for d in designators.unit_designators(facts) if len(d[2]) <= 20),
        (designators.BINARY, designators.NAA, b''),
    )
    creator = struct.pack(
        '>BB2xBBxB20sI', 0xE4, 0x00, code_set, kind, len(name), name, facts.block_size
    )
    device = struct.pack(
        '>IBBH24x',
        facts.block_size,
        0,
        facts.physical_exponent & 0x0F,
        facts.lowest_aligned_block & 0x3FFF,
    )
    target = vpd.target_designator(target_name)[: TOKEN_LENGTH - SECRET_LENGTH - 128]
    head = (
        HEADER.pack(VULNERABLE, TOKEN_LENGTH - 8)
        + struct.pack('>Q', identifier)
        + creator
        + struct.pack('>QQ', 0, length)
    ).ljust(96, b'\0')
    return (head + device + target).ljust(TOKEN_LENGTH - SECRET_LENGTH, b'\0') + secret


def is_zero_token(token: bytes) -> bool:
    """Returns True for the block zero token (SBC-3). Raises CheckCondition 05/23 if this is not a
    token of 512 bytes."""
    kind, length = HEADER.unpack_from(token)
    if length != TOKEN_LENGTH - 8:
        raise CheckCondition(ILLEGAL_REQUEST, 0x23, 0x0A)
    if kind not in (VULNERABLE, BLOCK_ZERO):
        raise CheckCondition(ILLEGAL_REQUEST, 0x23, 0x01)
    return kind == BLOCK_ZERO


# -- parameter lists -------------------------------------------------------------------------------


def parse_populate(data: bytes, unit: 'LogicalUnit') -> Tuple[List[Tuple[int, int]], int]:
    """Returns (byte ranges, timeout in seconds) of a POPULATE TOKEN list (SBC-3 5.7). Raises
    CheckCondition."""
    _check_length(data, 16)
    timeout, kind = struct.unpack_from('>II', data, 4)
    if timeout > MAXIMUM_TIMEOUT:
        raise invalid_field_in_parameter_list(4)
    if data[2] & 0x02 and kind not in MADE_FOR:
        raise invalid_field_in_parameter_list(8)
    ranges = _ranges(data, 14, unit)
    if not ranges:
        raise invalid_field_in_parameter_list(14)
    return ranges, timeout or DEFAULT_TIMEOUT


def parse_write(data: bytes, unit: 'LogicalUnit') -> Tuple[bytes, int, List[Tuple[int, int]], bool]:
    """Returns (token, offset into the ROD in bytes, byte ranges, whether to delete the token) of a
    WRITE USING TOKEN list (SBC-3 5.46). Raises CheckCondition."""
    _check_length(data, 536)
    (offset,) = struct.unpack_from('>Q', data, 8)
    return data[16:528], offset * unit.block_size, _ranges(data, 534, unit), bool(data[2] & 0x02)


def _check_length(data, head):
    if len(data) < head:
        raise parameter_list_length_error()
    if int.from_bytes(data[:2], 'big') + 2 < head:
        raise invalid_field_in_parameter_list(0)


def _ranges(data, at, unit):
    """Returns [(offset, length)] in bytes, in the order of the list, without empty ranges. `at`:
    position of the length of the list."""
    length = int.from_bytes(data[at : at + 2], 'big')
    if length % RANGE.size or int.from_bytes(data[:2], 'big') < at + length:
        raise invalid_field_in_parameter_list(at)
    if len(data) < at + 2 + length:
        raise parameter_list_length_error()
    if length > MAXIMUM_RANGES * RANGE.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x26, 0x08, field=(at, None, False))
    found = []
    for start in range(at + 2, at + 2 + length, RANGE.size):
        lba, blocks = RANGE.unpack_from(data, start)
        if lba + blocks > unit.blocks:
            raise lba_out_of_range_in_list(start)
        if blocks:
            found.append((lba * unit.block_size, blocks * unit.block_size))
    if sum(length for _, length in found) > MAXIMUM_TRANSFER:
        raise invalid_field_in_parameter_list(at)
    for (first, length), (other, _) in zip(sorted(found), sorted(found)[1:]):
        if first + length > other:
            raise invalid_field_in_parameter_list(at + 2)
    return found


def lba_out_of_range_in_list(offset: int) -> CheckCondition:
    """Returns 05/21/00 with a field pointer into the parameter list."""
    error = lba_out_of_range()
    error.field = (offset, None, False)
    return error


# -- ranges ----------------------------------------------------------------------------------------


def total_length(ranges: Iterable[Sequence[int]]) -> int:
    """Returns the total of the lengths in bytes."""
    return sum(length for _, length in ranges)


def match_ranges(
    source: Iterable[Sequence[int]], skip: int, destination: Iterable[Sequence[int]]
) -> List[Tuple[int, int, int]]:
    """Returns [(source offset, destination offset, length)]: the bytes of the source ranges after
    the first `skip`, in order, matched with those of the destination ranges, as many as exist on
    both sides."""
    found, left = [], []
    for offset, length in source:
        drop = min(skip, length)
        skip -= drop
        if length > drop:
            left.append([offset + drop, length - drop])
    left.reverse()
    for offset, length in destination:
        while length and left:
            start, there = left[-1]
            count = min(there, length)
            found.append((start, offset, count))
            offset, length = offset + count, length - count
            if count == there:
                left.pop()
            else:
                left[-1] = [start + count, there - count]
    return found


def merge_ranges(ranges: Iterable[Any]) -> List[List[int]]:
    """Returns the ranges merged and ascending: [[offset, end], …]."""
    merged: List[List[int]] = []
    for offset, length in sorted(ranges):
        if merged and offset <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], offset + length)
        else:
            merged.append([offset, offset + length])
    return merged


def overlaps(watched: Iterable[Sequence[int]], offset: int, length: int) -> bool:
    """Returns True if the range overlaps one of the ranges from merge_ranges()."""
    return any(start < offset + length and offset < end for start, end in watched)
