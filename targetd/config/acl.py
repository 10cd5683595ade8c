"""Rules of admission: initiator-address and initiator-name of a target, and discovery-address.

May import the pure iscsi.names. Fails closed: a target without both rules admits no initiator; if
both are written, both must match. Every refusal names the rule, for the log and `targetdctl why`.
"""

import ipaddress

from targetd.config.network_kinds import ALL, SCOPE
from targetd.iscsi import names


def parsed_address(address):
    """The ipaddress object of a peer's address, without scope; an IPv4-mapped IPv6 address becomes
    an IPv4 address.

    Raises ValueError if the text is not an address.
    """
    parsed = ipaddress.ip_address(address.partition(SCOPE)[0])
    return getattr(parsed, 'ipv4_mapped', None) or parsed


def address_matches(rules, address):
    """True if one of the networks (or ALL) in `rules` contains this peer address."""
    if ALL in rules:
        return True
    try:
        peer = parsed_address(address)
    except ValueError:
        return False
    for rule in rules:
        network = ipaddress.ip_network(rule)
        if network.version == peer.version and peer in network:
            return True
    return False


def name_matches(rules, initiator_name):
    """True if one of the patterns (or ALL) in `rules` matches this initiator name, case folded."""
    return names.matches_any(rules, initiator_name)


def refusal(target, initiator_name, address):
    """None if this initiator at this address may log in to the target, else a sentence that names
    the rule that refuses it."""
    addresses, patterns = target.initiator_addresses, target.initiator_names
    if not addresses and not patterns:
        return (
            'target %s admits no initiator: neither initiator-address nor initiator-name is '
            'written; write initiator-address = ALL to admit every initiator' % target.name
        )
    if addresses and not address_matches(addresses, address):
        return 'address %s matches none of initiator-address = %s of target %s' % (
            address,
            ', '.join(addresses),
            target.name,
        )
    if patterns and not name_matches(patterns, initiator_name):
        return 'name %s matches none of initiator-name = %s of target %s' % (
            initiator_name,
            ', '.join(patterns),
            target.name,
        )
    return None


def account_refusal(target, user, initiator_name):
    """None if this initiator may use this CHAP account of the target (incominguser-for), else a sentence
    that names the rule that refuses it."""
    patterns = [pattern for account, pattern in target.incominguser_for if account == user]
    if not patterns or name_matches(patterns, initiator_name):
        return None
    return (
        'name %s may not use the account %s: it matches none of incominguser-for = %s of target %s'
        % (
            initiator_name,
            user,
            ', '.join('%s %s' % (user, pattern) for pattern in patterns),
            target.name,
        )
    )


def is_stranger(targets, initiator_name, address):
    """True if none of these targets admits this initiator at this address. A stranger is not told
    which target names exist."""
    return all(refusal(target, initiator_name, address) for target in targets)


def discovery_refusal(server, address):
    """None if this address may request the list of targets, else a sentence that names the rule."""
    if address_matches(server.discovery_address, address):
        return None
    return 'address %s matches none of discovery-address = %s' % (
        address,
        ', '.join(server.discovery_address) or '(nothing)',
    )
