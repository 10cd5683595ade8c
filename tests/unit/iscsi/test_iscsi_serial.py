"""Serial number arithmetic wraps around at 2**32."""

import pytest

from targetd.iscsi import serial


@pytest.mark.parametrize(
    'first, second, before',
    [
        (0, 1, True),
        (1, 0, False),
        (5, 5, False),
        (0xFFFFFFFF, 0, True),
        (0, 0xFFFFFFFF, False),
        (0xFFFFFFF0, 0x10, True),
        (0, 0x7FFFFFFF, True),
        (0x7FFFFFFF, 0, False),
    ],
)
def test_order(first, second, before):
    assert serial.lt(first, second) is before
    assert serial.le(first, second) is (before or first == second)


def test_opposite_numbers_have_no_order():
    assert not serial.lt(0, 1 << 31) and not serial.lt(1 << 31, 0)
    assert not serial.le(0, 1 << 31) and not serial.le(1 << 31, 0)


def test_add_and_distance_wrap_around():
    assert serial.add(0xFFFFFFFF, 1) == 0
    assert serial.add(0, -1) == 0xFFFFFFFF
    assert serial.distance(0xFFFFFFFE, 3) == 5
    assert serial.distance(3, 3) == 0
