"""The argument of `guard restore`: a number or a time."""

import time

import pytest

from targetd.errors import TargetdError
from targetd.master.control.control_guards import read_point

NOW = int(time.mktime((2026, 11, 28, 18, 0, 0, 0, 0, -1)))


@pytest.mark.parametrize(
    'text, wanted',
    [
        ('7', (7, None)),
        ('2026-11-28 17:20:11', (None, NOW - 2389)),
        ('2026-11-28T17:20:11', (None, NOW - 2389)),
        ('2026-11-28 17:20', (None, NOW - 2400)),
        ('2026-11-28', (None, NOW - 18 * 3600)),
        ('17:20', (None, NOW - 2400)),
        ('17:20:11', (None, NOW - 2389)),
    ],
)
def test_a_number_or_a_time_is_read(text, wanted):
    assert read_point(text, NOW) == wanted


@pytest.mark.parametrize('text', ['yesterday', '', '-1', '25:00', '2026-13-01', '1.5'])
def test_another_text_is_refused_with_an_example(text):
    with pytest.raises(TargetdError) as caught:
        read_point(text, NOW)
    assert 'guard list' in str(caught.value)


def test_a_time_to_come_is_refused():
    with pytest.raises(TargetdError) as caught:
        read_point('18:01', NOW)
    assert 'in the future' in str(caught.value)
