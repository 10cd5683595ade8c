"""The configuration's rules for logins, as the login negotiation's LoginPolicy, and the targets that
discovery may report.

May import iscsi, config. A Policies object is created once in the worker; its connections' threads
read it.
"""

from targetd.config import acl
from targetd.config.network_kinds import Advertised
from targetd.iscsi import discovery
from targetd.iscsi.login_policy import LoginPolicy, TargetPolicy
from targetd.iscsi.session import WINDOW

WILDCARDS = {'0.0.0.0': 4, '::': 6}


def reachable(portal, local_address):
    """Return the address at which an initiator that connected to `local_address` reaches this
    portal, or None. A wildcard portal has the address `local_address` if the family is the same."""
    address, _ = portal
    if address not in WILDCARDS:
        return address.partition('%')[0]  # the scope names an interface of this host
    is_mapped = local_address.startswith('::ffff:') and '.' in local_address
    arrival = local_address[7:] if is_mapped else local_address
    family = 6 if ':' in arrival else 4
    return arrival.partition('%')[0] if WILDCARDS[address] == family else None


def redirection(target):
    """Return (permanent, 'address:port') of a target that another server provides, or None. The
    address has no portal group tag (RFC 7143 13.8)."""
    if target.redirect is None:
        return None
    permanent, host, port = target.redirect
    return permanent, ('[%s]:%d' if ':' in host else '%s:%d') % (host, port)


class Policies(object):
    """The login and discovery rules of one configuration."""

    def __init__(self, configuration):
        self._configuration = configuration

    def login(self, peer_address, tag, make_chap, evidence=acl.NO_EVIDENCE):
        """Return the LoginPolicy for a connection from this address to a portal of this group.
        make_chap(target name): the target's side of CHAP, because workers have no secrets; evidence:
        see config.acl."""
        server = self._configuration.server
        discovery_policy = TargetPolicy(
            refuse=lambda name: acl.discovery_refusal(server, peer_address, evidence),
            accounts=[(user, b'') for user, _label in server.incomingdiscoveryuser],
            make_chap=make_chap,
        )
        targets = self._configuration.targets.values()
        return LoginPolicy(
            lambda name: self._target(name, peer_address, tag, make_chap, evidence),
            discovery_policy,
            WINDOW,
            is_stranger=lambda name: acl.is_stranger(targets, name, peer_address, evidence),
        )

    def _target(self, name, peer_address, tag, make_chap, evidence):
        target = self._configuration.targets.get(name)
        if target is None:
            return None
        return TargetPolicy(
            name=target.name,
            alias=target.alias or '',
            portal_group_tag=tag if tag in target.portal_groups else None,
            refuse=lambda initiator: acl.refusal(target, initiator, peer_address, evidence),
            accounts=[(user, b'') for user, _label in target.accounts],
            make_chap=make_chap,
            keys=target.keys,
            redirect=redirection(target),
            not_ready='target %s has state = offline' % target.name
            if target.state == 'offline'
            else None,
        )

    def visible(self, initiator_name, peer_address, local_address, evidence=acl.NO_EVIDENCE):
        """Return [(target name, [discovery.Portal, …]), …]: the targets that this initiator may log
        in to, with their portals."""
        found = []
        for target in self._configuration.targets.values():
            if acl.refusal(target, initiator_name, peer_address, evidence) is None:
                found.append((target.name, self._portals(target, local_address)))
        return found

    def _portals(self, target, local_address):
        portals = []
        for tag in target.portal_groups:
            group = self._configuration.portal_groups[tag]
            if group.advertise is not None:
                if group.advertise != Advertised.NONE:
                    portals.append(discovery.Portal(group.advertise[0], group.advertise[1], tag))
                continue
            for portal in group.portals:
                address = reachable(portal, local_address)
                if address is not None:
                    portals.append(discovery.Portal(address, portal[1], tag))
        return portals
