"""The addresses of the host names in dns: rules: resolved by jobs, because a resolver may wait, and cached.

     a login, FRESH_SECONDS after the last answer --> a job asks the resolver --> addresses, or
                                                      the name does not exist: it has no address now
                                                      no answer: the last one counts for KEPT_SECONDS,
                                                                 asked again after RETRY_SECONDS

Runs in the master's thread; resolve() runs in a job. Logins wait for an answer in logins.origins, never here.
Both families are asked for, and nothing is looked up in reverse: whoever owns an address decides on the name
that it has, not the owner of the name. A flood of logins makes no more questions than one login.
"""

import socket
from collections import namedtuple

from targetd import log
from targetd.config.network_kinds import parsed_address

FRESH_SECONDS = (
    60.0  # an answer that is older is not used for a login before the resolver was asked
)
KEPT_SECONDS = 3600.0  # the last answer counts so long if the resolver does not answer
RETRY_SECONDS = 15.0  # after a failure
RESOLVE_SECONDS = 5.0  # of a job
RUNNING = 4  # jobs at the same time
LISTED = 8  # addresses that a message contains

#: The errors by which getaddrinfo reports that there is no such name, or that it has no address. Every
#: other error means that this is not known.
ABSENT = tuple(
    getattr(socket, name) for name in ('EAI_NONAME', 'EAI_NODATA') if hasattr(socket, name)
)

#: The answer of resolve(). addresses: canonical texts, sorted; is_known: False if the resolver has not
#: answered; why: there are no addresses, or ''.
Resolved = namedtuple('Resolved', 'addresses is_known why')


def resolve(name):
    """The Resolved of a host name; may wait, so it runs in a job."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    except socket.gaierror as e:
        if e.errno in ABSENT:
            return Resolved([], True, 'the name does not exist, or has no address')
        return Resolved([], False, 'the resolver does not answer (%s)' % e.strerror)
    except (OSError, UnicodeError) as e:
        return Resolved([], False, 'the resolver does not answer (%s)' % e)
    return Resolved(
        sorted({str(parsed_address(address[0])) for _, _, _, _, address in found}), True, ''
    )


def described(addresses):
    """Addresses as a message lists them."""
    text = ', '.join(addresses[:LISTED])
    return text if len(addresses) <= LISTED else text + ' and %d more' % (len(addresses) - LISTED)


class _Name(object):
    """addresses: of the last answer; answered, asked: times of the loop, None: never; why: of the last
    failure, ''; said: what the log has said about it."""

    def __init__(self, addresses=(), answered=None):
        self.addresses = list(addresses)
        self.answered = answered
        self.asked = None
        self.why = ''
        self.said = None


class HostNames(object):
    """The names of the configuration in force. on_answer() is called after each answer."""

    def __init__(self, loop, jobs):
        self.loop = loop
        self.jobs = jobs
        self.on_answer = lambda: None
        self._names = {}
        self._asking = set()
        self._queue = []
        self._timer = None

    def apply(self, names):
        """These names count from now on. What is known of the others is forgotten."""
        self._names = {name: self._names.get(name) or _Name() for name in names}
        self._queue = [name for name in self._queue if name in self._names]
        if not names and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ask_all(self):
        """Ask for every name: the administrator may have corrected DNS before a reload."""
        for known in self._names.values():
            known.asked, known.why = None, ''
        self.ask_stale()

    def ask_stale(self):
        """Ask for the names whose answer is older than FRESH_SECONDS. Returns those of them for which a
        login should wait: a name that has failed is asked for in the background."""
        now, awaited = self.loop.clock(), set()
        for name, known in self._names.items():
            if not (name in self._asking or name in self._queue):
                if known.asked is not None and now - known.asked < FRESH_SECONDS:
                    continue
                self._queue.append(name)
            if not known.why:
                awaited.add(name)
        self._start_queued()
        return awaited

    def is_asking(self, names):
        """True while one of these names is asked for."""
        return any(name in self._asking or name in self._queue for name in names)

    def why_not(self, name, address):
        """'' if the last answer for the name has this address and still counts, else the reason."""
        known = self._names.get(name)
        if known is None or (known.asked is None and known.answered is None):
            return 'it was not resolved yet'
        if not self._counts(known):
            return 'it has no address now: %s' % (known.why or 'the last answer is too old')
        if _canonical(address) in known.addresses:
            return ''
        return 'it has %s' % described(known.addresses)

    def described(self, name):
        """What the name admits now, in words."""
        known = self._names[name]
        if self._counts(known):
            return described(known.addresses) + (', although %s' % known.why if known.why else '')
        return 'no address, because %s' % (known.why or 'it was not resolved yet')

    def _counts(self, known):
        return bool(
            known.addresses
            and known.answered is not None
            and self.loop.clock() - known.answered <= KEPT_SECONDS
        )

    # -- asking ------------------------------------------------------------------------------------

    def _start_queued(self):
        while self._queue and len(self._asking) < RUNNING:
            self._ask(self._queue.pop(0))

    def _ask(self, name):
        self._asking.add(name)
        self.jobs.submit_job(
            ('resolve', name),
            lambda: (dict(resolve(name)._asdict()), ()),
            lambda result: self._answered(name, result),
            seconds=RESOLVE_SECONDS,
        )

    def _answered(self, name, result):
        self._asking.discard(name)
        known = self._names.get(name)
        if known is not None:
            answer = result.values
            known.asked = self.loop.clock()
            if answer.get('is_known'):
                known.answered = known.asked
                known.addresses, known.why = list(answer['addresses']), answer['why']
            else:
                known.why = answer.get('why') or 'the resolver: %s' % result.why
            self._say(name, known)
            if known.why:
                self._retry_later()
        self._start_queued()
        self.on_answer()

    def _retry_later(self):
        if self._timer is None:
            self._timer = self.loop.call_later(RETRY_SECONDS, self._retry)

    def _retry(self):
        self._timer = None
        for name, known in self._names.items():
            if known.why and name not in self._asking and name not in self._queue:
                self._queue.append(name)
        self._start_queued()

    def close(self):
        """Cancels the timer."""
        self.apply(())

    # -- the log -----------------------------------------------------------------------------------

    def _say(self, name, known):
        """One line for each change."""
        counts = self._counts(known)
        said = (known.why, counts, list(known.addresses))
        if said == known.said:
            return
        before, known.said = known.said, said
        if not known.why:
            line = log.info if before is None or not before[0] else log.warning
            line('%s%s has the addresses %s', 'dns:', name, described(known.addresses))
        elif counts:
            log.warning(
                'dns:%s cannot be resolved: %s; its last addresses %s are admitted for %d more minutes; '
                'check the name servers of this host',
                name,
                known.why,
                described(known.addresses),
                (known.answered + KEPT_SECONDS - self.loop.clock()) / 60,
            )
        else:
            log.warning(
                'dns:%s cannot be resolved: %s; it admits no initiator; check the name and the name servers '
                'of this host',
                name,
                known.why,
            )

    # -- upgrade without a logout ------------------------------------------------------------------

    def handed_over(self):
        """[(name, addresses, age in seconds of the answer)] for the program that replaces this one."""
        now = self.loop.clock()
        return [
            (name, known.addresses, now - known.answered)
            for name, known in self._names.items()
            if known.answered is not None
        ]

    def take_over(self, rows):
        """What handed_over() of the former program has returned."""
        now = self.loop.clock()
        for name, addresses, age in rows:
            if name in self._names:
                self._names[name] = _Name(addresses, now - age)


def _canonical(address):
    try:
        return str(parsed_address(address))
    except ValueError:
        return None


__all__ = ('HostNames', 'Resolved', 'described', 'resolve')
