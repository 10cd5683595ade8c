"""Times of the week: read, shown, and which minutes they have."""

import pytest

from targetd.config.schedule_kinds import WeekTimes, end_of, is_within
from targetd.config.words import Unusable, split

KIND = WeekTimes()
MON, FRI, SAT, SUN = 0, 4, 5, 6


def times(text):
    return KIND.read(split(text))


@pytest.mark.parametrize(
    'text, shown',
    [
        ('Mon-Fri 8:00-18:00, sat', 'mon-fri 08:00-18:00, sat'),
        ('daily 22:00-06:00', 'daily 22:00-06:00'),
        ('mon-sun', 'daily'),
        ('saturday-monday 00:00-24:00', 'sat-mon'),
        ('sun 23:59-00:01', 'sun 23:59-00:01'),
    ],
)
def test_times_are_read_and_shown(text, shown):
    assert KIND.show(times(text)) == shown and times(shown) == times(text)


@pytest.mark.parametrize(
    'text, words',
    [
        ('mon fri 08:00-18:00', 'not a time of the week'),
        ('mo 08:00-18:00', 'not a day'),
        ('mon-foo', 'not a day'),
        ('mon 8-18', 'not a time like'),
        ('mon 08:00-24:01', 'no day has'),
        ('mon 24:00-08:00', 'no day has'),
        ('mon 08:60-09:00', 'no day has'),
        ('mon 08:00-08:00', 'begins when it ends'),
    ],
)
def test_what_is_no_time_of_the_week_is_refused(text, words):
    with pytest.raises(Unusable) as e:
        times(text)
    assert words in str(e.value)


@pytest.mark.parametrize(
    'text, day, clock, expected',
    [
        ('mon-fri 08:00-18:00', MON, '08:00', True),
        ('mon-fri 08:00-18:00', MON, '07:59', False),
        ('mon-fri 08:00-18:00', FRI, '17:59', True),
        ('mon-fri 08:00-18:00', FRI, '18:00', False),
        ('mon-fri 08:00-18:00', SAT, '12:00', False),
        ('fri 22:00-06:00', SAT, '05:59', True),
        ('fri 22:00-06:00', SAT, '06:00', False),
        ('fri 22:00-06:00', FRI, '05:00', False),
        ('sun 22:00-06:00', MON, '00:00', True),
        ('sat-mon', SUN, '00:00', True),
        ('sat-mon', FRI, '23:59', False),
        ('mon, sun 10:00-11:00', SUN, '10:30', True),
    ],
)
def test_a_minute_is_within_times_or_not(text, day, clock, expected):
    hours, minutes = clock.split(':')
    assert is_within(times(text), day, int(hours) * 60 + int(minutes)) is expected


def test_the_end_of_the_times():
    assert end_of(times('mon-fri 08:00-18:00'), FRI, 600) == 'fri 18:00'
    assert end_of(times('sat-sun, mon 00:00-09:00'), SAT, 600) == 'mon 09:00'
    assert end_of(times('daily'), SAT, 600) is None
