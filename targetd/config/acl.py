"""Rules of admission: initiator-address, initiator-name and lun-map of a target, and discovery-address.

May import the pure iscsi.names. Fails closed: a target without the first two admits no initiator; if
both are written, both must match; if it has maps of LUNs, one of them must match. Every refusal names
the rule, for the log and `targetdctl why`.

A rule dns:NAME or mac:ADDRESS needs knowledge about the peer that only the master has
(master.logins.origins). It is passed as `evidence`: {rule: '' if the peer satisfies it, else why not}. A
rule without evidence matches nothing.
"""

from targetd.config import lun_maps
from targetd.config.network_kinds import ALL, DNS, MAC, network_has
from targetd.iscsi import names

NO_EVIDENCE = {}
NOT_KNOWN = 'it is not known whether the address satisfies it'


def needs_evidence(rule):
    """True if the address alone does not show whether the rule matches."""
    return rule.startswith((DNS, MAC))


def rules_that_need_evidence(configuration):
    """[rule, …] of all targets and of discovery-address, each once, in order."""
    found = list(configuration.server.discovery_address)
    for target in configuration.targets.values():
        found += target.initiator_addresses
    return [
        rule
        for number, rule in enumerate(found)
        if needs_evidence(rule) and rule not in found[:number]
    ]


def satisfied_rules(evidence, former=()):
    """The rules that this evidence satisfies, and the former ones, in order, as a list."""
    return sorted({rule for rule, why_not in evidence.items() if why_not == ''} | set(former))


def described_rules(rules, evidence):
    """The rules of a refusal in words; those that need evidence with the reason."""
    return ', '.join(
        '%s (%s)' % (rule, evidence.get(rule) or NOT_KNOWN) if needs_evidence(rule) else rule
        for rule in rules
    )


def address_matches(rules, address, evidence=NO_EVIDENCE):
    """True if one of the networks (or ALL) in `rules` contains this peer address, or its evidence
    satisfies one of the others."""
    if ALL in rules or any(evidence.get(rule) == '' for rule in rules):
        return True
    return any(network_has(rule, address) for rule in rules if not needs_evidence(rule))


def name_matches(rules, initiator_name):
    """True if one of the patterns (or ALL) in `rules` matches this initiator name, case folded."""
    return names.matches_any(rules, initiator_name)


def refusal(target, initiator_name, address, evidence=NO_EVIDENCE):
    """None if this initiator at this address may log in to the target, else a sentence that names
    the rule that refuses it."""
    addresses, patterns = target.initiator_addresses, target.initiator_names
    if not addresses and not patterns:
        return (
            'target %s admits no initiator: neither initiator-address nor initiator-name is '
            'written; write initiator-address = ALL to admit every initiator' % target.name
        )
    if addresses and not address_matches(addresses, address, evidence):
        return 'address %s matches none of initiator-address = %s of target %s' % (
            address,
            described_rules(addresses, evidence),
            target.name,
        )
    if patterns and not name_matches(patterns, initiator_name):
        return 'name %s matches none of initiator-name = %s of target %s' % (
            initiator_name,
            ', '.join(patterns),
            target.name,
        )
    return lun_maps.refusal(target, initiator_name, address)


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


def is_stranger(targets, initiator_name, address, evidence=NO_EVIDENCE):
    """True if none of these targets admits this initiator at this address. A stranger is not told
    which target names exist."""
    return all(refusal(target, initiator_name, address, evidence) for target in targets)


def discovery_refusal(server, address, evidence=NO_EVIDENCE):
    """None if this address may request the list of targets, else a sentence that names the rule."""
    if address_matches(server.discovery_address, address, evidence):
        return None
    return 'address %s matches none of discovery-address = %s' % (
        address,
        described_rules(server.discovery_address, evidence) or '(nothing)',
    )
