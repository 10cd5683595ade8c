"""32-bit serial number arithmetic (RFC 1982), which RFC 7143 4.2.2.1 requires for CmdSN, StatSN, DataSN
and the other sequence numbers.

Pure. Two numbers exactly 2**31 apart have no order: `lt` and `le` are False in both directions, so a
check written as `if not le(a, b)` refuses them.
"""

MODULUS = 1 << 32
MASK = MODULUS - 1
HALF = 1 << 31


def add(number: int, increment: int) -> int:
    """Return number + increment modulo 2**32. `increment` may be negative, which RFC 1982 3.1 does
    not define."""
    return (number + increment) & MASK


def distance(first: int, second: int) -> int:
    """Return the number of steps forward from `first` to `second`: 0..2**32-1."""
    return (second - first) & MASK


def lt(first: int, second: int) -> bool:
    """Return True if `first` comes before `second` (RFC 1982 3.2)."""
    return 0 < (second - first) & MASK < HALF


def le(first: int, second: int) -> bool:
    """Return True if `first` equals `second` or comes before it."""
    return (second - first) & MASK < HALF
