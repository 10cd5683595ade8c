"""What the graphs of the status page show: rates and latencies of the last hour, kept in the page's process.

Pure: functions of the samples of `show counters` (admin.rates).
"""

from collections import deque, namedtuple

from targetd.admin.rates import BY, statistics

INTERVAL = 5.0  # seconds between two samples
KEPT = 720  # points of a series: an hour
MOST_SERIES = 600  # of sessions, LUNs and others that are kept

#: One point. when: seconds since the epoch; read, write: bytes per second; iops: commands per second; p50,
#: p99: microseconds, or None if no command was measured.
Point = namedtuple('Point', 'when read write iops p50 p99')

EMPTY = Point(0, 0, 0, 0, None, None)
ALL = ('all', '')


class History(object):
    """The series of points, by (kind, name): kind is one of rates.BY with the name of a row of its
    statistics, or ALL for the sum of all sessions."""

    def __init__(self):
        self._latest = None
        self._series = {}

    def add(self, sample, when):
        """Add a rates.Sample. when: seconds since the epoch."""
        before, self._latest = self._latest, sample
        if before is None:
            return
        read = write = iops = 0
        for kind in BY:
            for row in statistics(before, sample, kind):
                if kind == 'session':
                    read, write = read + row['read_rate'], write + row['write_rate']
                    iops += row['iops']
                self._put((kind, row['name']), _point(row, when))
        self._put(ALL, Point(when, read, write, round(iops, 1), None, None))
        self._forget(when)

    def failed(self):
        """A sample could not be taken: the next one begins anew, since the counters may be others."""
        self._latest = None

    def _put(self, key, point):
        if key not in self._series:
            if len(self._series) >= MOST_SERIES:
                return
            self._series[key] = deque(maxlen=KEPT)
        self._series[key].append(point)

    def _forget(self, now):
        """Series without a point in the last hour are of sessions that ended long ago."""
        oldest = now - KEPT * INTERVAL
        for key in [k for k, series in self._series.items() if series[-1].when < oldest]:
            del self._series[key]

    def points(self, kind, name):
        """The Points of a series, the oldest first; [] if it is not known."""
        return list(self._series.get((kind, name), ()))

    def latest(self, kind, name, now):
        """The newest Point, or EMPTY if there is none of the last samples."""
        series = self._series.get((kind, name))
        return series[-1] if series and now - series[-1].when < 3 * INTERVAL else EMPTY


def _point(row, when):
    few = row['iops'] == 0  # the latencies of the statistics are then those since the login
    return Point(
        when,
        row['read_rate'],
        row['write_rate'],
        row['iops'],
        None if few else row['p50'],
        None if few else row['p99'],
    )
