"""The iSNS client: registers the served targets and portals with the configured iSNS servers, renews
the registrations and deregisters at shutdown (RFC 4171).

The messages are in the pure folder isns, the sockets in isns.connections; this module decides what
to send next, and when. A server that is down, slow or faulty costs a descriptor and a line in the
log and never blocks the master: every step runs in the loop, and every wait has a time limit.

       set_entity(entity)             registered           a third of the period has passed
    (unregistered) ---> [registration] ----------> idle ------------------------------> [renewal]
          ^                  | failed               | entity changed, or SCN received       | no longer
          +---- pause <------+                      +-----> [registration] <----------------+ registered
                                  deregister(): [deregistration], then gone

Invariant: a Client has at most one conversation in progress. _next() alone decides what comes next,
from the wanted entity and the entity that the server is known to have.
"""

import socket

from targetd import log
from targetd.config.network_kinds import Advertised
from targetd.config.words import counted
from targetd.isns import entity as isns_entity
from targetd.isns import isnsp
from targetd.master.isns.connections import ClientConnection, NotificationListener
from targetd.master.logins.portals import family_of, is_wildcard, own_addresses, plain, shown

FIRST_PAUSE_SECONDS = 5.0  # after a failure; doubled with each further one
LONGEST_PAUSE_SECONDS = 300.0
DEREGISTER_SECONDS = 2.0  # time limit of the deregistration from all servers together
SETTLE_SECONDS = 1.0  # wait after a notification of our removal: our own message may be its cause
# interval of new registrations with a server that does not show our registration in a renewal
REGISTER_BLIND_SECONDS = 3600.0
ADDRESS_CHECK_SECONDS = 60.0  # interval at which the addresses of this host are checked


def entity_of(configuration, portals, port, addresses=own_addresses, host=None):
    """Returns the Entity of a configuration, or None if there is nothing to register.

    portals: {(tag, address, port)}, the open portals; port: the port of our NotificationListener;
    addresses: callable (family) -> addresses of this host.
    """
    server = configuration.server
    groups = {}  # tag -> [Portal], each portal in the first group that has it
    seen = set()
    for tag, address, number in sorted(portals):
        group = configuration.portal_groups.get(tag)
        for portal in _reported(group, address, number, addresses):
            if portal not in seen:
                seen.add(portal)
                groups.setdefault(tag, []).append(portal)
    nodes = []
    for target in configuration.targets.values():
        reached = tuple((tag, tuple(groups[tag])) for tag in target.portal_groups if tag in groups)
        has_initiators = target.initiator_addresses or target.initiator_names
        if reached and target.state == 'ready' and has_initiators:
            nodes.append(isns_entity.Node(target.name, target.alias, reached))
    if not nodes:
        return None
    return isns_entity.Entity(
        server.isns_entity or host or socket.gethostname(),
        int(server.isns_period),
        int(server.isns_esi_interval),
        port,
        tuple(portal for tag in sorted(groups) for portal in groups[tag]),
        tuple(nodes),
    )


def _reported(group, address, port, addresses):
    """The isns.entity.Portals under which initiators reach a portal of a config.model.PortalGroup."""
    advertised = group.advertise if group is not None else None
    if advertised == Advertised.NONE:
        return []
    if advertised is not None:
        return [isns_entity.Portal(*advertised)]
    return [isns_entity.Portal(each, port) for each in reachable_addresses(address, addresses)]


def reachable_addresses(address, addresses=own_addresses):
    """Returns the addresses at which others reach a portal. For a wildcard these are the addresses
    of this host; loopback and link-local ones only if there are no others."""
    if not is_wildcard(address):
        return [plain(address)]
    found = [plain(each) for each in addresses(family_of(address))]
    return [
        each
        for each in found
        if not each.startswith(('127.', '169.254.', 'fe80:')) and each != '::1'
    ] or found


class Client(object):
    """The registration with one server. `server`: (address, port); `state`: for status reports;
    `gone()` is called when deregister() has finished."""

    def __init__(self, loop, server, gone):
        self.loop = loop
        self.server = server
        self.state = 'nothing to register'
        self.known = None  # the Entity that the server has, as far as is known
        self.is_gone = False
        self._gone = gone
        self._wanted = None
        self._connection = None
        self._timer = None
        self._pause = FIRST_PAUSE_SECONDS
        self._registered = None  # outcome of the last registration
        self._registered_at = None
        self._is_deregistering = False
        self._logged_failure = None  # the last failure that was logged
        self._to_verify = []  # names of our targets whose removal was notified

    # -- public methods ----------------------------------------------------------------------------

    def set_entity(self, entity):
        """Registers this Entity with the server from now on; None: registers nothing."""
        if entity != self._wanted:
            self._wanted = entity
            self._pause = FIRST_PAUSE_SECONDS
            if self._connection is None:
                self._next()

    def handle_notification(self, bitmap, name):
        """Handles a State Change Notification of the server about an iSCSI name."""
        names = [node.name for node in self.known.nodes] if self.known else []
        if name not in names:
            log.info(
                'iSNS server %s: %s is %s',
                shown(*self.server),
                name,
                isns_entity.event_text(bitmap),
            )
        elif bitmap & isnsp.OBJECT_REMOVED and name not in self._to_verify:
            self._to_verify.append(name)
            if self._connection is None:
                self._wait(SETTLE_SECONDS)

    def has_entity(self, identifier):
        """True if the entity with this identifier is registered, or is about to be registered."""
        return any(
            entity is not None and entity.identifier.lower() == identifier.lower()
            for entity in (self.known, self._wanted)
        )

    def deregister(self):
        """Deregisters the entity; gone() is called when that is done or has failed."""
        self._is_deregistering = True
        self._wanted = None
        if self._connection is None:
            self._next()

    def close(self):
        """Stops immediately, without a deregistration."""
        if self._connection is not None:
            self._connection.close()
        if self._timer is not None:
            self._timer.cancel()
        self.is_gone = True

    # -- state machine -----------------------------------------------------------------------------

    def _next(self):
        """Called when no conversation is in progress: starts the next one, or waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        known, wanted = self.known, self._wanted
        if self.is_gone:
            return
        if known is not None and not self._can_update(known, wanted):
            self._start(isns_entity.deregistration_conversation(known), self._deregistered)
        elif wanted is None:
            self.state = 'nothing to register'
            if self._is_deregistering:
                self._finish()
        elif known != wanted or self._is_blind_renewal_due():
            self._start(
                isns_entity.registration_conversation(wanted),
                lambda outcome: self._register_done(wanted, outcome),
            )
        elif self._to_verify:
            self._start(isns_entity.presence_conversation(self._to_verify.pop()), self._verified)
        else:
            self._wait(max(1.0, self._registered.period / 3.0))

    @staticmethod
    def _can_update(known, wanted):
        """True if a registration of `wanted` updates `known`; if not, `known` is deregistered first."""
        return (
            wanted is not None
            and wanted.identifier == known.identifier
            and wanted.source in [node.name for node in known.nodes]
        )

    def _is_blind_renewal_due(self):
        """True if the server does not show our registration, and the last one is old."""
        return (
            not self._registered.is_visible
            and self.loop.clock() - self._registered_at >= REGISTER_BLIND_SECONDS
        )

    def _wait(self, seconds):
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._wake)

    def _wake(self):
        self._timer = None
        is_current = self.known is not None and self.known == self._wanted
        if not is_current or self._to_verify or self._is_blind_renewal_due():
            self._next()
        else:
            self._start(isns_entity.renewal_conversation(self.known), self._renewed)

    def _start(self, conversation, done):
        def finished(outcome):
            self._connection = None
            self._pause = FIRST_PAUSE_SECONDS
            done(outcome)
            self._next()

        try:
            self._connection = ClientConnection(
                self.loop, self.server, conversation, finished, self._failed
            )
        except OSError as e:  # no free descriptor, or an address family that the host lacks
            self._failed(e.strerror or str(e))

    def _failed(self, why):
        """Retries later. If the wanted entity has not changed, a renewal finds out whether the server
        still has it; else a new registration replaces whatever the server has."""
        self._connection = None
        self.state = 'failed: %s' % why
        if why != self._logged_failure and not self._is_deregistering:
            log.warning('iSNS server %s: %s; retrying', shown(*self.server), why)
        self._logged_failure = why
        if self.known != self._wanted:
            self.known = None
        if self._is_deregistering:
            self._finish()
            return
        self._wait(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    # -- outcomes ----------------------------------------------------------------------------------

    def _register_done(self, entity, registered):
        self.known, self._registered, self._registered_at = entity, registered, self.loop.clock()
        self._logged_failure, self._to_verify = None, []
        self.state = 'registered as %s' % entity.identifier
        log.info(
            'iSNS server %s: registered as %s with %s and %s, for a period of %d seconds%s',
            shown(*self.server),
            entity.identifier,
            counted(len(entity.nodes), 'target'),
            counted(len(entity.portals), 'portal'),
            registered.period,
            ''.join('; ' + note for note in registered.notes),
        )

    def _renewed(self, period):
        self._logged_failure, self.state = None, 'registered as %s' % self.known.identifier
        if period is not None:
            self._registered = self._registered._replace(period=period)
        elif self._registered.is_visible:
            log.warning(
                'iSNS server %s no longer has our registration; registering again',
                shown(*self.server),
            )
            self.known = None

    def _verified(self, is_there):
        if not is_there and self._registered.is_visible:
            log.warning(
                'iSNS server %s has removed one of our targets; registering again',
                shown(*self.server),
            )
            self.known = None

    def _deregistered(self, _outcome):
        log.info('iSNS server %s: deregistered %s', shown(*self.server), self.known.identifier)
        self.known = None

    def _finish(self):
        if not self.is_gone:
            self.is_gone = True
            self._gone()


class IsnsClients(object):
    """The iSNS clients of a Master, one for each configured server, and the listener for the servers'
    notifications. `portals`: the open portals, {(tag, address, port): …}."""

    def __init__(self, loop, portals):
        self.loop = loop
        self.portals = portals
        self.clients = {}  # (address, port) -> Client
        self._leaving_clients = []  # Clients of servers that are no longer configured
        self._listener = NotificationListener(loop, self._is_server, self._answer)
        self._timer = None
        self._configuration = None
        self._on_gone = None

    # -- public methods ----------------------------------------------------------------------------

    def apply_configuration(self, configuration):
        """Registers what this configuration, which is now in effect, serves."""
        self._configuration = configuration
        servers = configuration.server.isns_server
        for server in [each for each in self.clients if each not in servers]:
            self._leaving_clients.append(self.clients.pop(server))
            self._leaving_clients[-1].deregister()
        for server in servers:
            for client in [each for each in self._leaving_clients if each.server == server]:
                client.close()  # the server is configured again before it was deregistered
            if server not in self.clients:
                self.clients[server] = Client(self.loop, server, self._on_client_gone)
        self._update()

    def deregister_all(self):
        """Deregisters from all servers at shutdown, within DEREGISTER_SECONDS."""
        self._configuration = None
        for client in list(self.clients.values()):
            client.deregister()
        self.loop.call_later(DEREGISTER_SECONDS, self.close)

    def is_deregistering(self, on_gone):
        """Returns True if deregistrations are still in progress; on_gone() is called when they
        have finished."""
        self._on_gone = on_gone if self._active_clients() else None
        return self._on_gone is not None

    def close(self):
        """Closes all connections and cancels all timers."""
        for client in list(self.clients.values()) + self._leaving_clients:
            client.close()
        if self._timer is not None:
            self._timer.cancel()
        self._listener.close()
        self._on_client_gone()

    def facts(self):
        """Returns [(label, state)] for `targetdctl status`."""
        return [
            ('iSNS server %s' % shown(*server), client.state)
            for server, client in sorted(self.clients.items())
        ]

    # -- the registered entity ---------------------------------------------------------------------

    def _update(self):
        """Passes the entity to all clients. A timer repeats this, because the addresses that belong
        to a wildcard can change."""
        if self._timer is not None:
            self._timer.cancel()
        if self._configuration is None or not self.clients:
            self._listener.close()
            return
        self._listener.listen(self._configuration.server.isns_port)
        entity = entity_of(self._configuration, self.portals, self._listener.port)
        for client in self.clients.values():
            client.set_entity(entity)
        self._timer = self.loop.call_later(ADDRESS_CHECK_SECONDS, self._update)

    def _active_clients(self):
        return [
            client
            for client in list(self.clients.values()) + self._leaving_clients
            if not client.is_gone
        ]

    def _on_client_gone(self):
        self._leaving_clients = [client for client in self._leaving_clients if not client.is_gone]
        if self._on_gone is not None and not self._active_clients():
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    # -- messages of servers -----------------------------------------------------------------------

    def _of(self, address):
        return [client for server, client in self.clients.items() if plain(server[0]) == address]

    def _is_server(self, address):
        return bool(self._of(address))

    def _answer(self, address, message):
        clients = self._of(address)
        if message.function == isnsp.ENTITY_STATUS_INQUIRY:
            names = [
                isnsp.attribute_text(value)
                for tag, value in message.attributes
                if tag == isnsp.ENTITY_IDENTIFIER
            ]
            if not any(client.has_entity(name) for client in clients for name in names):
                return None  # without an answer the server removes an earlier entity of ours
        for bitmap, name in isns_entity.notified_events(message):
            for client in clients:
                client.handle_notification(bitmap, name)
        return isns_entity.response_to(message)
