"""Evidence for access rules that an address alone does not satisfy: host names (dns:), MAC addresses (mac:).

     a Login Request has arrived --> are the names resolved? --> evidence() --> to the worker, with
                                       |        ^                               the connection; to the claim
                                       +- wait -+  at most WAIT_SECONDS

Without such rules in the configuration nothing is asked and no login waits. Runs in the master's thread.
"""

from targetd.config import acl
from targetd.config.network_kinds import DNS, MAC
from targetd.master.logins import neighbours
from targetd.master.logins.host_names import HostNames

WAIT_SECONDS = 6.0  # a login waits so long for the resolver, then what is known counts

THROUGH_PROXY = 'the connection came through a proxy, so the MAC address of its client is not known'


def note_evidence(session, claim):
    """A connection of a session (SessionRecord) has passed the access rules with the evidence of this
    claim."""
    session.satisfied = acl.satisfied_rules(claim.get('evidence') or {}, session.satisfied)
    session.is_proxied = session.is_proxied or bool(claim.get('is_proxied'))


class Origins(object):
    """state: server_state.ServerState; jobs: Jobs; mac_of: neighbours.mac_of, or a substitute."""

    def __init__(self, loop, state, jobs, mac_of=neighbours.mac_of):
        self.loop = loop
        self.state = state
        self.names = HostNames(loop, jobs)
        self.names.on_answer = self._look
        self._mac_of = mac_of
        self._rules = []
        self._waiting = []  # [names, function, timer]

    def apply(self):
        """The configuration in force has changed."""
        self._rules = acl.rules_that_need_evidence(self.state.configuration)
        self.names.apply([rule[len(DNS) :] for rule in self._rules if rule.startswith(DNS)])
        self._look()

    def resolve_now(self):
        """Ask for the names, so that the first login does not have to wait."""
        self.names.ask_all()

    def when_known(self, then):
        """Call then() as soon as the resolver has answered for the names of the rules, at the latest after
        WAIT_SECONDS; at once if nothing has to be asked."""
        names = self.names.ask_stale()
        if not names:
            then()
            return
        entry = [names, then, None]
        entry[2] = self.loop.call_later(WAIT_SECONDS, lambda: self._end_wait(entry))
        self._waiting.append(entry)

    def _look(self):
        for entry in list(self._waiting):
            if not self.names.is_asking(entry[0]):
                self._end_wait(entry)

    def _end_wait(self, entry):
        if entry in self._waiting:
            self._waiting.remove(entry)
            entry[2].cancel()
            entry[1]()

    def evidence(self, address, is_proxied=False):
        """{rule: '' or why the peer at this address does not satisfy it} of the rules of the configuration
        (config.acl). is_proxied: a PROXY header has told the address."""
        found, mac, why = {}, None, THROUGH_PROXY
        if not is_proxied and any(rule.startswith(MAC) for rule in self._rules):
            mac, why = self._mac_of(address)
        for rule in self._rules:
            if rule.startswith(DNS):
                found[rule] = self.names.why_not(rule[len(DNS) :], address)
            elif mac is not None:
                found[rule] = '' if rule == MAC + mac else 'its MAC address is %s' % mac
            else:
                found[rule] = why
        return found

    def of_session(self, session, address):
        """Evidence about an address of a session (SessionRecord): a rule that it satisfied when it logged in
        stays satisfied, whatever DNS and the neighbour table say now."""
        found = self.evidence(address, session.is_proxied) if self._rules else {}
        return dict(found, **dict.fromkeys(session.satisfied, ''))

    def now(self):
        """{rule: what it admits now, in words} of the rules of the configuration, as far as it is known."""
        found = neighbours.seen(self._rules)
        for rule in self._rules:
            if rule.startswith(DNS):
                found[rule] = self.names.described(rule[len(DNS) :])
        return found

    def close(self):
        """Cancels the timers; who waits is not called."""
        for entry in self._waiting:
            entry[2].cancel()
        del self._waiting[:]
        self.names.close()


__all__ = ('Origins', 'note_evidence')
