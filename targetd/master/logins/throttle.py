"""Login throttling: one origin cannot lock out the others, and guessing secrets is slow.

Two rules, both by origin (an IPv4 address, or the /64 network of an IPv6 address):

* An origin has at most LOGINS_PER_ORIGIN logins in progress at once; further ones wait
  (logins.routing).
* After `allowed` failed authentications in a row the logins of the origin are processed one at a
  time, 1, 2, 4 … LONGEST_SECONDS seconds apart. A success reduces the count to one below `allowed`,
  so that an initiator that knows one secret cannot guess another one faster.

The module does not use sockets; its clock is the loop's. It is bounded: it remembers ORIGINS origins,
each until QUIET_SECONDS after its last failure.
"""

import ipaddress
from collections import OrderedDict

LOGINS_PER_ORIGIN = 8
LONGEST_SECONDS = 30.0
QUIET_SECONDS = 600.0
LONGEST_QUEUE_SECONDS = 60.0  # a login that would wait longer is refused
ORIGINS = 1024


def origin_of(address):
    """The origin of an address: the key that limits are applied to."""
    if ':' not in address:
        return address
    try:
        return str(ipaddress.ip_network(address.partition('%')[0] + '/64', strict=False))
    except ValueError:
        return address


class _Record(object):
    """The failures of an origin. last: time of the last one; free: time of its next login."""

    __slots__ = ('failures', 'last', 'free')

    def __init__(self):
        self.failures, self.last, self.free = 0, 0.0, 0.0


class LoginThrottle(object):
    """Delays by origin. clock(): monotonic seconds; allowed: failures before the first delay, 0: no
    delays at all."""

    def __init__(self, clock, allowed=5):
        self.allowed = allowed
        self._clock = clock
        self._records = OrderedDict()  # origin -> _Record, the one that failed last at the end

    def _record(self, origin):
        record = self._records.get(origin)
        if record is not None and self._clock() - record.last >= QUIET_SECONDS:
            del self._records[origin]
            record = None
        return record

    def _step(self, record):
        """Seconds between two logins of the origin."""
        beyond = record.failures - self.allowed
        if not self.allowed or beyond < 0:
            return 0.0
        return min(2.0 ** min(beyond, 10), LONGEST_SECONDS)

    def note_failure(self, address):
        """An authentication failed. Returns (failures in a row, seconds that the next login of the
        origin is delayed)."""
        origin, now = origin_of(address), self._clock()
        record = self._record(origin) or _Record()
        self._records[origin] = record
        self._records.move_to_end(origin)
        while len(self._records) > ORIGINS:
            self._records.popitem(last=False)
        record.failures += 1
        record.last = now
        step = self._step(record)
        record.free = max(record.free, now + step) if step else 0.0
        return record.failures, step

    def note_success(self, address):
        """An authentication succeeded."""
        origin = origin_of(address)
        record = self._record(origin)
        if record is not None:
            record.failures = min(record.failures, self.allowed - 1)
            record.free = 0.0
            if record.failures <= 0:
                del self._records[origin]

    def reserve_delay(self, address):
        """Seconds that a login that arrives now must wait, or None if it must be refused. Reserves
        that time for it."""
        record, now = self._record(origin_of(address)), self._clock()
        step = self._step(record) if record is not None else 0.0
        if not step:
            return 0.0
        turn = max(now, record.free)
        if turn - now > LONGEST_QUEUE_SECONDS:
            return None
        record.free = turn + step
        return turn - now
