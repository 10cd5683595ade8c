"""Login throttling: guessing secrets is slow, and who guesses does not delay anybody else.

Only the answer to a failed authentication is delayed. A login that needs no authentication, or that
proves its account, is never delayed. Failures are counted for an offender:

* the login: address, initiator name and target, so that a mistyped secret of one volume does not
  disturb other volumes of the same host;
* the address, after logins of MANY different names or targets of it have failed;
* the /64 network, after MANY addresses of it have become offenders.

After `allowed` failures in a row the answers to the offender's failures are delayed 1, 2, 4 …
LONGEST_SECONDS seconds. A success of a login reduces its count to one below `allowed`, so that an
initiator that knows one secret cannot guess another one faster. While ANSWERS_AT_ONCE answers of an
offender are delayed, its further challenges are refused, except those of logins that have succeeded
before: it cannot guess faster with many connections.

The module does not use sockets; its clock is the loop's. It is bounded: it remembers OFFENDERS
offenders of each kind, each until QUIET_SECONDS after its last failure.
"""

import ipaddress
from collections import OrderedDict

LONGEST_SECONDS = (
    10.0  # shorter than the login timeout of open-iscsi (15 s), which retries after it
)
QUIET_SECONDS = 600.0
MANY = 16
ANSWERS_AT_ONCE = 8
OFFENDERS = 1024
PROVED = 4096  # logins that have succeeded, which are remembered


def origin_of(address):
    """The origin of an address: the address, or the /64 network of an IPv6 address."""
    if ':' not in address:
        return address
    try:
        return str(ipaddress.ip_network(address.partition('%')[0] + '/64', strict=False))
    except ValueError:
        return address


class _Offender(object):
    """Failures in a row. last: time of the last one; members: the offenders of the narrower kind that it
    has, at most MANY; answers: times at which the delayed answers are sent."""

    __slots__ = ('failures', 'last', 'members', 'answers')

    def __init__(self):
        self.failures, self.last, self.members, self.answers = 0, 0.0, set(), []


class LoginThrottle(object):
    """Counts of failed authentications. clock(): monotonic seconds; allowed: failures before the
    first delay, 0: no delays at all."""

    def __init__(self, clock, allowed=5):
        self.allowed = allowed
        self._clock = clock
        self._offenders = OrderedDict()  # key -> _Offender, the one that failed last at the end
        self._proved = OrderedDict()  # logins that have succeeded, the last one at the end

    def _known(self, key):
        offender = self._offenders.get(key)
        if offender is not None and self._clock() - offender.last >= QUIET_SECONDS:
            del self._offenders[key]
            offender = None
        return offender

    def _note(self, key, member=None):
        offender = self._known(key) or _Offender()
        self._offenders[key] = offender
        self._offenders.move_to_end(key)
        while len(self._offenders) > 3 * OFFENDERS:
            self._offenders.popitem(last=False)
        offender.failures += 1
        offender.last = self._clock()
        if member is not None and len(offender.members) < MANY:
            offender.members.add(member)
        return offender

    def _widest(self, login):
        """The offender that counts for this login, or None."""
        network, address = self._known((origin_of(login[0]), '/')), self._known(login[:1])
        if network is not None and len(network.members) >= MANY:
            return network
        if address is not None and len(address.members) >= MANY:
            return address
        return self._known(login)

    def note_failure(self, address, initiator_name, target_name, is_guess=True):
        """An authentication failed. Returns (failures in a row, seconds to delay the answer).
        is_guess: False if the initiator has not answered a challenge; that answer is not delayed."""
        login = (address, initiator_name, target_name)
        self._note(login)
        if len(self._note((address,), login).members) >= MANY:
            self._note((origin_of(address), '/'), address)
        offender, now = self._widest(login), self._clock()
        beyond = offender.failures - self.allowed
        if not is_guess or not self.allowed or beyond < 0:
            return offender.failures, 0.0
        seconds = min(2.0 ** min(beyond, 10), LONGEST_SECONDS)
        offender.answers = [time for time in offender.answers if time > now] + [now + seconds]
        return offender.failures, seconds

    def note_success(self, address, initiator_name, target_name):
        """An authentication succeeded."""
        login = (address, initiator_name, target_name)
        self._proved[login] = None
        self._proved.move_to_end(login)
        while len(self._proved) > PROVED:
            self._proved.popitem(last=False)
        offender = self._known(login)
        if offender is not None:
            offender.failures = min(offender.failures, max(self.allowed - 1, 0))
            if not offender.failures:
                del self._offenders[login]

    def may_try(self, address, initiator_name, target_name):
        """False if too many answers to failures of the offender are being delayed."""
        login = (address, initiator_name, target_name)
        if login in self._proved:
            return True
        offender, now = self._widest(login), self._clock()
        return offender is None or sum(time > now for time in offender.answers) < ANSWERS_AT_ONCE

    def handed_over(self):
        """The counts as plain values, for the program that takes over (ARCHITECTURE D24)."""
        offenders = [
            (key, (each.failures, each.last, sorted(each.members, key=str), each.answers))
            for key, each in self._offenders.items()
        ]
        return {'offenders': offenders, 'proved': list(self._proved)}

    def take_over(self, counts):
        """Continue with the counts of another program on this host: the clock is the same."""
        for key, (failures, last, members, answers) in counts['offenders']:
            offender = self._offenders[key] = _Offender()
            offender.failures, offender.last = failures, last
            offender.members, offender.answers = set(members), list(answers)
        self._proved.update((login, None) for login in counts['proved'])
