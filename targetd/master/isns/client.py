"""The iSNS client: what is served is told to the configured iSNS servers, renewed, and taken back
at the end (RFC 4171).

What is said stands in the pure room isns, the sockets in isns_wire; here is the decision what to
say next, and when. A server that is dead, slow or mad costs a descriptor and a line in the log, and
never makes anybody wait: every step is the loop's, and every wait is bounded.

             follow(entity)                registered                    third of the period is over
     (knows nothing) ----> [registration] ------------> resting ------------------------------> [renewal]
            ^                    | failed                  | entity changed, or notified               | shows nothing
            +---- pause <--------+                         +-----> [registration] <--------------------+
                                           leave(): [deregistration], then gone

Invariant: a Client has at most one conversation under way; what comes next is decided in one place,
_next(), from what is wanted and what the server is known to have.
"""

import socket

from targetd import log
from targetd.isns import entity as said
from targetd.isns import messages
from targetd.master.isns.connections import Callers, Talk
from targetd.master.logins.portals import family_of, is_wildcard, own_addresses, plain, shown

FIRST_PAUSE_SECONDS = 5.0  # after a failure; doubled with each further one
LONGEST_PAUSE_SECONDS = 300.0
LEAVE_SECONDS = 2.0  # what all servers together may take to let us go
SETTLE_SECONDS = 1.0  # after a notification that we were removed: perhaps it is our own doing
# where renewals show nothing, everything is registered anew so often
REGISTER_BLIND_SECONDS = 3600.0
LOOK_SECONDS = 60.0  # how often the addresses of this host are looked at


def entity_of(configuration, portals, port, addresses=own_addresses, host=None):
    """The Entity of a configuration, or None where there is nothing to register.

    portals: {(tag, address, port)} that are open; port: where we listen for the servers; addresses:
    callable (family) -> those of this host.
    """
    server = configuration.server
    groups = {}  # tag -> [Portal], each portal in the first group that has it
    seen = set()
    for tag, address, number in sorted(portals):
        for each in usable(address, addresses):
            portal = said.Portal(each, number)
            if portal not in seen:
                seen.add(portal)
                groups.setdefault(tag, []).append(portal)
    nodes = []
    for target in configuration.targets.values():
        reached = tuple((tag, tuple(groups[tag])) for tag in target.portal_groups if tag in groups)
        if (
            reached
            and target.state == 'ready'
            and (target.initiator_addresses or target.initiator_names)
        ):
            nodes.append(said.Node(target.name, target.alias, reached))
    if not nodes:
        return None
    return said.Entity(
        server.isns_entity or host or socket.gethostname(),
        int(server.isns_period),
        int(server.isns_esi_interval),
        port,
        tuple(portal for tag in sorted(groups) for portal in groups[tag]),
        tuple(nodes),
    )


def usable(address, addresses=own_addresses):
    """The addresses that others reach a portal by: of a wildcard all of this host, but loopback and
    link-local ones only where there are no others."""
    if not is_wildcard(address):
        return [plain(address)]
    found = [plain(each) for each in addresses(family_of(address))]
    return [
        each
        for each in found
        if not each.startswith(('127.', '169.254.', 'fe80:')) and each != '::1'
    ] or found


class Client(object):
    """What one server is told. `server`: (address, port); `state`: for people; `gone()` is called
    after leave()."""

    def __init__(self, loop, server, gone):
        self.loop = loop
        self.server = server
        self.state = 'nothing to register'
        self.known = None  # the Entity that the server has, as far as we know
        self.is_gone = False
        self._gone = gone
        self._wanted = None
        self._talk = None
        self._timer = None
        self._pause = FIRST_PAUSE_SECONDS
        self._registered = None  # what the last registration gave
        self._registered_at = None
        self._leaving = False
        self._complaint = None  # the last one that was logged
        self._doubts = []  # names of ours that a notification says are removed

    # -- doors -------------------------------------------------------------------------------------

    def follow(self, entity):
        """From now on the server is to have this Entity, or None of ours."""
        if entity != self._wanted:
            self._wanted = entity
            self._pause = FIRST_PAUSE_SECONDS
            if self._talk is None:
                self._next()

    def notice(self, bitmap, name):
        """The server notified us."""
        names = [node.name for node in self.known.nodes] if self.known else []
        if name not in names:
            log.info('iSNS server %s: %s is %s', shown(*self.server), name, said.event(bitmap))
        elif bitmap & messages.OBJECT_REMOVED and name not in self._doubts:
            self._doubts.append(name)
            if self._talk is None:
                self._rest(SETTLE_SECONDS)

    def is_called(self, identifier):
        """True if this is the entity that the server has of us, or is about to have."""
        return any(
            entity is not None and entity.identifier.lower() == identifier.lower()
            for entity in (self.known, self._wanted)
        )

    def leave(self):
        """Take everything back; gone() is called when that is done or has failed."""
        self._leaving = True
        self._wanted = None
        if self._talk is None:
            self._next()

    def close(self):
        """Stop where it is."""
        if self._talk is not None:
            self._talk.close()
        if self._timer is not None:
            self._timer.cancel()
        self.is_gone = True

    # -- the one decision --------------------------------------------------------------------------

    def _next(self):
        """Nothing is under way: begin what the server lacks, or rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        known, wanted = self.known, self._wanted
        if self.is_gone:
            return
        if known is not None and (
            wanted is None
            or wanted.identifier != known.identifier
            or wanted.source not in [node.name for node in known.nodes]
        ):
            self._begin(said.deregistration(known), self._deregistered)
        elif wanted is None:
            self.state = 'nothing to register'
            if self._leaving:
                self._be_gone()
        elif known != wanted or self._is_blind_for_long():
            self._begin(
                said.registration(wanted), lambda outcome: self._register_done(wanted, outcome)
            )
        elif self._doubts:
            self._begin(said.presence(self._doubts.pop()), self._presence_known)
        else:
            self._rest(max(1.0, self._registered.period / 3.0))

    def _is_blind_for_long(self):
        return (
            not self._registered.is_visible
            and self.loop.clock() - self._registered_at >= REGISTER_BLIND_SECONDS
        )

    def _rest(self, seconds):
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._wake)

    def _wake(self):
        self._timer = None
        if (
            self.known is None
            or self.known != self._wanted
            or self._doubts
            or self._is_blind_for_long()
        ):
            self._next()
        else:
            self._begin(said.renewal(self.known), self._renewed)

    def _begin(self, conversation, done):
        def finished(outcome):
            self._talk = None
            self._pause = FIRST_PAUSE_SECONDS
            done(outcome)
            self._next()

        try:
            self._talk = Talk(self.loop, self.server, conversation, finished, self._failed)
        except OSError as e:  # no descriptor, no such family
            self._failed(e.strerror or str(e))

    def _failed(self, why):
        """A server that was only away for a while is asked again; else all is registered anew,
        which replaces what is there."""
        self._talk = None
        self.state = 'failed: %s' % why
        if why != self._complaint and not self._leaving:
            log.warning('iSNS server %s: %s; trying again', shown(*self.server), why)
        self._complaint = why
        if self.known != self._wanted:
            self.known = None
        if self._leaving:
            self._be_gone()
            return
        self._rest(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    # -- outcomes ----------------------------------------------------------------------------------

    def _register_done(self, entity, registered):
        self.known, self._registered, self._registered_at = entity, registered, self.loop.clock()
        self._complaint, self._doubts = None, []
        self.state = 'registered as %s' % entity.identifier
        log.info(
            'iSNS server %s: registered as %s with %d targets and %d portals, for %d seconds at a time%s',
            shown(*self.server),
            entity.identifier,
            len(entity.nodes),
            len(entity.portals),
            registered.period,
            ''.join('; ' + note for note in registered.notes),
        )

    def _renewed(self, period):
        self._complaint, self.state = None, 'registered as %s' % self.known.identifier
        if period is not None:
            self._registered = self._registered._replace(period=period)
        elif self._registered.is_visible:
            log.warning('iSNS server %s has forgotten us; registering again', shown(*self.server))
            self.known = None

    def _presence_known(self, is_there):
        if not is_there and self._registered.is_visible:
            log.warning(
                'iSNS server %s has removed a target of ours; registering again',
                shown(*self.server),
            )
            self.known = None

    def _deregistered(self, _outcome):
        log.info('iSNS server %s: deregistered %s', shown(*self.server), self.known.identifier)
        self.known = None

    def _be_gone(self):
        if not self.is_gone:
            self.is_gone = True
            self._gone()


class Isns(object):
    """All of it, for one Master. `portals`: its open ones, {(tag, address, port): …}."""

    def __init__(self, loop, portals):
        self.loop = loop
        self.portals = portals
        self.clients = {}  # (address, port) -> Client
        self._parting = []  # Clients of servers that the configuration no longer has
        self._callers = Callers(loop, self._is_server, self._heard)
        self._timer = None
        self._configuration = None
        self._on_gone = None

    # -- doors -------------------------------------------------------------------------------------

    def follow(self, configuration):
        """Let the servers know what this configuration, now in force, serves."""
        self._configuration = configuration
        servers = configuration.server.isns_server
        for server in [each for each in self.clients if each not in servers]:
            self._parting.append(self.clients.pop(server))
            self._parting[-1].leave()
        for server in servers:
            for parting in [each for each in self._parting if each.server == server]:
                parting.close()  # it is wanted again before it was left
            if server not in self.clients:
                self.clients[server] = Client(self.loop, server, self._check)
        self._update()

    def leave(self):
        """Take everything back: targetd stops. Bounded by LEAVE_SECONDS."""
        self._configuration = None
        for client in list(self.clients.values()):
            client.leave()
        self.loop.call_later(LEAVE_SECONDS, self.close)

    def is_leaving(self, on_gone):
        """True while servers are still being told, after leave(); then on_gone() is called when
        that is over."""
        self._on_gone = on_gone if self._under_way() else None
        return self._on_gone is not None

    def close(self):
        """Let go of everything."""
        for client in list(self.clients.values()) + self._parting:
            client.close()
        if self._timer is not None:
            self._timer.cancel()
        self._callers.close()
        self._check()

    def facts(self):
        """[(what, state)] for `targetdctl status`."""
        return [
            ('iSNS server %s' % shown(*server), client.state)
            for server, client in sorted(self.clients.items())
        ]

    # -- what there is to tell ---------------------------------------------------------------------

    def _update(self):
        """Also from time to time, because the addresses behind a wildcard come and go."""
        if self._timer is not None:
            self._timer.cancel()
        if self._configuration is None or not self.clients:
            self._callers.close()
            return
        self._callers.listen(self._configuration.server.isns_port)
        entity = entity_of(self._configuration, self.portals, self._callers.port)
        for client in self.clients.values():
            client.follow(entity)
        self._timer = self.loop.call_later(LOOK_SECONDS, self._update)

    def _under_way(self):
        return [
            client for client in list(self.clients.values()) + self._parting if not client.is_gone
        ]

    def _check(self):
        self._parting = [client for client in self._parting if not client.is_gone]
        if self._on_gone is not None and not self._under_way():
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    # -- what servers say --------------------------------------------------------------------------

    def _of(self, address):
        return [client for server, client in self.clients.items() if plain(server[0]) == address]

    def _is_server(self, address):
        return bool(self._of(address))

    def _heard(self, address, message):
        clients = self._of(address)
        if message.function == messages.INQUIRY:
            asked = [
                messages.text_of(value)
                for tag, value in message.attributes
                if tag == messages.ENTITY_IDENTIFIER
            ]
            if not any(client.is_called(name) for client in clients for name in asked):
                return None  # an earlier name of ours: let it be forgotten
        for bitmap, name in said.notices(message):
            for client in clients:
                client.notice(bitmap, name)
        return said.answered(message)
