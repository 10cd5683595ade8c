"""Serial number arithmetic of 32 bits (RFC 1982, as RFC 7143 4.2.2.1 asks for CmdSN, StatSN, DataSN
and their like).

Pure. Two numbers exactly 2**31 apart have no order: `lt` is False both ways, so `le` is too, and a check written as
`if not le(a, b)` refuses them.
"""

MODULUS = 1 << 32
MASK = MODULUS - 1
HALF = 1 << 31


def add(number, increment):
    """number + increment, wrapped. `increment` may be negative, which RFC 1982 3.1 has no name for."""
    return (number + increment) & MASK


def distance(first, second):
    """How many steps forward from `first` to `second`: 0..2**32-1."""
    return (second - first) & MASK


def lt(first, second):
    """True when `first` comes before `second` (RFC 1982 3.2)."""
    return 0 < (second - first) & MASK < HALF


def le(first, second):
    """True when `first` is `second` or comes before it."""
    return (second - first) & MASK < HALF
