"""Whose login is next: so that nobody can keep others out, and guessing secrets is slow.

Two rules, both by origin (an IPv4 address, or the /64 of an IPv6 one, which is one host's or one
network's):

* An origin has at most LOGINS_PER_ORIGIN logins under way at once; further ones wait until one of them is over.
* After `allowed` failed authentications in a row the origin's logins come one at a time, 1, 2, 4 … LONGEST_SECONDS apart. A
  success forgives all but the last step, so that whoever knows one secret cannot guess another one any faster.

Knows nothing of sockets; the clock is the loop's. Bounded: ORIGINS origins are remembered, each
until QUIET_SECONDS after its last failure.
"""

import ipaddress
from collections import OrderedDict

LOGINS_PER_ORIGIN = 8
LONGEST_SECONDS = 30.0
QUIET_SECONDS = 600.0
LONGEST_QUEUE_SECONDS = 60.0  # who would have to wait longer is sent away
ORIGINS = 1024


def origin_of(address):
    """The key by which an address is judged."""
    if ':' not in address:
        return address
    try:
        return str(ipaddress.ip_network(address.partition('%')[0] + '/64', strict=False))
    except ValueError:
        return address


class _Record(object):
    """What is remembered of an origin. free: when its next login may go on."""

    __slots__ = ('failures', 'last', 'free')

    def __init__(self):
        self.failures, self.last, self.free = 0, 0.0, 0.0


class LoginThrottle(object):
    """`allowed`: failures before the first delay; 0: nobody is ever delayed. `clock`: monotonic seconds."""

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
        """Seconds between two logins of it."""
        beyond = record.failures - self.allowed
        if not self.allowed or beyond < 0:
            return 0.0
        return min(2.0 ** min(beyond, 10), LONGEST_SECONDS)

    def note_failure(self, address):
        """An authentication failed. Gives (how many in a row, seconds that the next login of the
        origin waits)."""
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
        """Seconds that a login which arrives now has to wait, or None: it is sent away. Takes the
        turn."""
        record, now = self._record(origin_of(address)), self._clock()
        step = self._step(record) if record is not None else 0.0
        if not step:
            return 0.0
        turn = max(now, record.free)
        if turn - now > LONGEST_QUEUE_SECONDS:
            return None
        record.free = turn + step
        return turn - now
