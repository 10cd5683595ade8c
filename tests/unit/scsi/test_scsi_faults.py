"""Faults of a medium: ranges of bad blocks, kinds of errors, restrictions."""

import errno
import random

import pytest

from targetd.scsi import faults


def blocks_of(ranges):
    return {block for offset, length in ranges for block in range(offset, offset + length)}


def test_ranges_are_the_same_as_sets_of_blocks():
    generator = random.Random(1)
    ranges, wanted = [], set()
    for _ in range(500):
        offset, length = generator.randrange(200), generator.randrange(1, 20)
        if generator.random() < 0.6:
            ranges, wanted = (
                faults.with_range(ranges, offset, length),
                wanted | set(range(offset, offset + length)),
            )
        else:
            ranges, wanted = (
                faults.without_range(ranges, offset, length),
                wanted - set(range(offset, offset + length)),
            )
        assert blocks_of(ranges) == wanted
        faults.check_ranges(ranges)
        # ranges that touch are one range
        assert all(one[0] + one[1] < two[0] for one, two in zip(ranges, ranges[1:]))
        probe = generator.randrange(220)
        assert faults.overlaps(ranges, probe, 3) == bool(wanted & {probe, probe + 1, probe + 2})


def test_the_list_is_bounded():
    full = []
    for n in range(faults.MAXIMUM_RANGES):
        full = faults.with_range(full, 4 * n, 2)
    assert len(full) == faults.MAXIMUM_RANGES
    assert faults.with_range(full, 10000, 1) == full
    assert faults.with_range(full, 2, 2)[0] == [0, 6]  # it joins two ranges
    wide = faults.with_range(faults.without_range(full, 0, 2), 8, 4)
    assert len(wide) < len(full)
    assert faults.without_range([[0, 3]] + full[1:], 1, 1) == [[0, 3]] + full[1:]


@pytest.mark.parametrize(
    'number, acts',
    [
        (errno.EIO, True),
        (errno.ENODEV, True),
        (errno.ENOMEDIUM, True),
        (errno.ETIMEDOUT, True),
        (errno.EBADMSG, True),
        (4711, True),
        (errno.ENOSPC, False),
        (errno.EDQUOT, False),
        (errno.EROFS, False),
        (errno.ENOMEM, False),
    ],
)
def test_on_error_acts_on_errors_of_the_medium(number, acts):
    assert faults.is_of_the_medium(number) == acts


def test_an_unknown_errno_has_a_name():
    assert faults.name_of(errno.EIO) == 'EIO' and faults.name_of(4711) == 'errno 4711'


def test_the_stricter_restriction_wins():
    assert faults.stricter('offline', 'read-only') == 'offline'
    assert faults.stricter('', 'read-only') == 'read-only'
