"""Times of the week: the kind of value of read-only-schedule, and what a time means.

May import config.kinds and config.words. Times are those of the server's clock and time zone.
"""

import re

from targetd.config.kinds import Kind, Listed
from targetd.config.words import Unusable

DAYS = ('mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun')
DAILY = 'daily'
#: Minutes of a day.
DAY = 24 * 60


class WeekTimes(Listed):
    """Times of the week: `mon-fri 08:00-18:00, sat` -> ((first day, last day, first minute, minute of the
    end), …). Days count from 0 (Monday); an end that is not after the first minute is on the next day."""

    def __init__(self):
        super(WeekTimes, self).__init__(Kind())
        self.says = (
            'days (mon to sun, a range like mon-fri, or daily), each with times like 08:00-18:00, or without '
            'for the whole day; separate several by commas, or repeat the setting'
        )

    def item(self, words):
        if not 1 <= len(words) <= 2:
            raise Unusable('%r is not a time of the week' % ' '.join(words), 'write ' + self.says)
        first, last = self._days(words[0].lower())
        start, end = self._times(words[1]) if len(words) == 2 else (0, DAY)
        return first, last, start, end

    def _days(self, word):
        if word == DAILY:
            return 0, 6
        first, dash, last = word.partition('-')
        found = [self._day(word, each) for each in ([first, last] if dash else [first, first])]
        return tuple(found)

    def _day(self, word, text):
        if text[:3] not in DAYS or not text.isalpha():
            raise Unusable('%r is not a day of the week' % word, 'write ' + self.says)
        return DAYS.index(text[:3])

    def _times(self, word):
        match = re.match(r'([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})$', word)
        if not match:
            raise Unusable('%r is not a time like 08:00-18:00' % word, 'write ' + self.says)
        numbers = [int(each) for each in match.groups()]
        start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if max(numbers[1], numbers[3]) > 59 or start >= DAY or end > DAY:
            raise Unusable('%r has a time that no day has' % word, 'write 00:00 to 24:00')
        if start == end:
            raise Unusable('%r begins when it ends' % word, 'write 00:00-24:00 for the whole day')
        return start, end

    def written(self, item):
        first, last, start, end = item
        days = DAYS[first] if first == last else '%s-%s' % (DAYS[first], DAYS[last])
        if (first, last) == (0, 6):
            days = DAILY
        return [days] + (
            [] if (start, end) == (0, DAY) else ['%s-%s' % (_clock(start), _clock(end))]
        )


def _clock(minute):
    return '%02d:%02d' % divmod(minute, 60)


def is_within(times, day, minute):
    """True if this minute (0 to 1439) of this day (0: Monday) is one of these times of the week."""
    return any(_is_in(item, day, minute) for item in times)


def _is_in(item, day, minute):
    first, last, start, end = item
    if start < end:
        return _has_day(first, last, day) and start <= minute < end
    # over midnight: it belongs to the day on which it begins
    return (_has_day(first, last, day) and minute >= start) or (
        _has_day(first, last, (day - 1) % 7) and minute < end
    )


def _has_day(first, last, day):
    return first <= day <= last if first <= last else day >= first or day <= last


def end_of(times, day, minute):
    """When the times that this minute is in end: 'fri 18:00', or None if they never do."""
    for later in range(1, 7 * DAY + 1):
        days, then = divmod(minute + later, DAY)
        if not is_within(times, (day + days) % 7, then):
            return '%s %s' % (DAYS[(day + days) % 7], _clock(then))
    return None
