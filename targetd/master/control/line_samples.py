"""Samples of what a session and its lines do, for `targetdctl why slow`.

     measure --order `line`--> report --PAUSE--> order … until the time is over --> done(samples, '')
                 +--no report within SILENCE, or the session is over--> done([], why)

There is one unanswered order at most for a measurement, and the time is bounded (LONGEST).
"""

from collections import namedtuple

from targetd import tcp_info
from targetd.master.processes.worker_messages import BadMessage
from targetd.message_fields import is_number

PAUSE = 0.2  # between a report and the next order
SILENCE = 2.0
DEFAULT, LONGEST = 3, 30  # seconds of a measurement
MOST_CONNECTIONS = 64
COUNTED = ('reads', 'bytes_read', 'writes', 'bytes_written', 'others')
WAITING = ('line', 'data', 'limit', 'master', 'disk')

#: One report. at: clock of the worker, microseconds; lines: {CID: Line}; counted: {name of COUNTED:
#: number since the login}; waiting: {name of WAITING: number of unfinished commands}.
Sample = namedtuple('Sample', 'at lines counted waiting')
#: A connection. tcp: as tcp_info.parse; congestion: the name of the congestion control; queued: bytes
#: that the worker has not handed to the kernel.
Line = namedtuple('Line', 'tcp congestion queued')


class _Measurement(object):
    def __init__(self, worker, end, done):
        self.worker = worker
        self.end = end  # time of the loop
        self.done = done
        self.samples = []
        self.number = self.timer = None


class LineSampling(object):
    """loop: Loop; send(worker, message): of Workers."""

    def __init__(self, loop, send):
        self._loop = loop
        self._send = send
        self._number = 0
        self._measurements = []

    @property
    def is_idle(self):
        """True if no measurement runs."""
        return not self._measurements

    def measure(self, worker, seconds, done):
        """Call done([Sample, …], '') after so many seconds, or done([], why) if that is impossible."""
        measurement = _Measurement(worker, self._loop.clock() + seconds, done)
        self._measurements.append(measurement)
        self._order(measurement)

    def _order(self, measurement):
        self._number += 1
        measurement.number = self._number
        measurement.timer = self._loop.call_later(
            SILENCE,
            lambda: self._finish(
                measurement, 'its worker process did not answer within %d seconds' % SILENCE
            ),
        )
        self._send(measurement.worker, {'do': 'line', 'id': self._number})

    def on_line(self, worker, message):
        """`report line`."""
        sample = _checked(message)
        for measurement in self._measurements:
            if measurement.worker is worker and measurement.number == message['id']:
                self._take(measurement, sample)
                return

    def _take(self, measurement, sample):
        measurement.timer.cancel()
        measurement.number = None
        measurement.samples.append(sample)
        if self._loop.clock() >= measurement.end and len(measurement.samples) > 1:
            self._finish(measurement, '')
        else:
            measurement.timer = self._loop.call_later(PAUSE, lambda: self._order(measurement))

    def session_over(self, worker):
        """The session of the worker is over."""
        for measurement in [m for m in self._measurements if m.worker is worker]:
            self._finish(measurement, 'it ended during the measurement')

    def _finish(self, measurement, why):
        self._measurements.remove(measurement)
        measurement.timer.cancel()
        measurement.done([] if why else measurement.samples, why)


def _checked(message):
    """The Sample of a report. Raises BadMessage."""
    rows, counted, waiting = message['connections'], message['counted'], message['waiting']
    if len(rows) > MOST_CONNECTIONS or not all(map(_is_row, rows)):
        raise BadMessage('line with malformed connections')
    if len(counted) != len(COUNTED) or not all(map(_is_count, counted)):
        raise BadMessage('line with malformed counters')
    if set(waiting) != set(WAITING) or not all(map(_is_count, waiting.values())):
        raise BadMessage('line with malformed commands')
    if not _is_count(message['at']):
        raise BadMessage('line without a time')
    lines = {cid: Line(_parsed(data), name, queued) for cid, data, name, queued in rows}
    return Sample(message['at'], lines, dict(zip(COUNTED, counted)), waiting)


def _is_row(row):
    return (
        isinstance(row, list)
        and len(row) == 4
        and is_number(row[0])
        and isinstance(row[1], str)
        and len(row[1]) <= 2 * tcp_info.SIZE
        and isinstance(row[2], str)
        and len(row[2]) <= 16
        and _is_count(row[3])
    )


def _is_count(value):
    return is_number(value) and 0 <= value < 1 << 64


def _parsed(digits):
    try:
        return tcp_info.parse(bytes.fromhex(digits))
    except ValueError:
        raise BadMessage('line with malformed TCP_INFO')
