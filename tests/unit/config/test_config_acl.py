"""Rules of admission: address and name must match; a target without rules admits no initiator."""

import pytest

from targetd.config import acl, model

NAME = 'iqn.1991-05.com.microsoft:host'


def target(addresses=(), names=()):
    return model.Target(
        'iqn.2026-11.com.example:t',
        initiator_addresses=tuple(addresses),
        initiator_names=tuple(names),
    )


@pytest.mark.parametrize(
    'addresses, names, address',
    [
        (['ALL'], [], '10.0.0.1'),
        ([], ['ALL'], '10.0.0.1'),
        (['ALL'], ['ALL'], 'fe80::1%eth0'),
        (['10.0.5.0/24'], [], '10.0.5.9'),
        (['10.0.5.0/24'], [], '::ffff:10.0.5.9'),
        (['10.0.5.9'], [], '10.0.5.9'),
        (['10.0.6.0/24', '2001:db8::/64'], [], '2001:db8::5'),
        (['fe80::/10'], [], 'fe80::1%eth0'),
        (['::1'], [], '::1'),
        ([], ['iqn.1991-05.com.microsoft:*'], '1.2.3.4'),
        ([], ['iqn.other', 'iqn.1991-05.com.microsoft:hos?'], '1.2.3.4'),
        (['1.2.3.4'], ['iqn.1991-05.com.microsoft:host'], '1.2.3.4'),
    ],
)
def test_an_initiator_that_matches_every_rule_is_admitted(addresses, names, address):
    assert acl.refusal(target(addresses, names), NAME, address) is None
    assert acl.refusal(target(addresses, names), NAME.upper(), address) is None


@pytest.mark.parametrize(
    'addresses, names, address, rule',
    [
        ([], [], '10.0.0.1', 'neither initiator-address nor initiator-name'),
        (['10.0.5.0/24'], [], '10.0.6.1', 'initiator-address = 10.0.5.0/24'),
        (['10.0.5.0/24'], ['ALL'], '10.0.6.1', 'initiator-address'),
        (['ALL'], ['iqn.other'], '10.0.6.1', 'initiator-name = iqn.other'),
        (['2001:db8::/64'], [], '10.0.6.1', 'initiator-address'),
        (['0.0.0.0/0'], [], '2001:db8::1', 'initiator-address'),
        (['10.0.0.0/8'], [], 'no address', 'initiator-address'),
        ([], ['iqn.1991-05.com.microsoft'], '1.2.3.4', 'initiator-name'),
    ],
)
def test_a_refusal_names_the_rule(addresses, names, address, rule):
    assert rule in acl.refusal(target(addresses, names), NAME, address)


HOST, CARD = 'dns:host1.example.com', 'mac:02:00:00:00:00:01'


@pytest.mark.parametrize(
    'evidence, is_admitted',
    [
        ({HOST: '', CARD: 'its MAC address is another'}, True),
        ({HOST: 'it has 192.0.2.9', CARD: ''}, True),
        ({HOST: 'it has 192.0.2.9', CARD: 'its MAC address is another'}, False),
        ({}, False),
        ({HOST: None}, False),
        ({'dns:other': ''}, False),
    ],
)
def test_rules_that_need_evidence(evidence, is_admitted):
    served = target([HOST, '10.0.5.0/24', CARD])
    assert acl.refusal(served, NAME, '10.0.5.1', evidence) is None
    refusal = acl.refusal(served, NAME, '192.0.2.7', evidence)
    assert (refusal is None) == is_admitted
    assert acl.is_stranger([served], NAME, '192.0.2.7', evidence) != is_admitted
    server = model.Server(discovery_address=(HOST, CARD))
    assert (acl.discovery_refusal(server, '192.0.2.7', evidence) is None) == is_admitted


def test_a_refusal_has_the_reason_of_each_rule():
    why = acl.refusal(target([HOST, CARD]), NAME, '192.0.2.7', {HOST: 'it has 192.0.2.9'})
    assert 'dns:host1.example.com (it has 192.0.2.9)' in why and CARD + ' (it is not known' in why


def test_the_rules_that_need_evidence_are_found_everywhere():
    configuration = model.configuration(
        model.Server(discovery_address=('10.0.0.0/8', HOST)), targets=[target([CARD, HOST, 'ALL'])]
    )
    assert acl.rules_that_need_evidence(configuration) == [HOST, CARD]


def test_discovery_is_open_unless_written_otherwise():
    assert acl.discovery_refusal(model.Server(), '192.0.2.1') is None
    server = model.Server(discovery_address=('10.0.0.0/8',))
    assert acl.discovery_refusal(server, '10.1.1.1') is None
    assert 'discovery-address = 10.0.0.0/8' in acl.discovery_refusal(server, '192.0.2.1')


def bound(*pairs):
    return target(['ALL'])._replace(incominguser_for=pairs)


def test_an_account_without_a_rule_serves_every_name():
    assert acl.account_refusal(bound(), 'erp', NAME) is None
    assert acl.account_refusal(bound(('other', 'iqn.other')), 'erp', NAME) is None


def test_an_account_with_rules_serves_the_names_that_match_one_of_them():
    found = bound(('erp', 'iqn.other'), ('erp', 'iqn.1991-05.com.microsoft:ho*'), ('x', 'ALL'))
    assert acl.account_refusal(found, 'erp', NAME.upper()) is None
    why = acl.account_refusal(found, 'erp', 'iqn.third')
    assert 'incominguser-for = erp iqn.other, erp iqn.1991-05.com.microsoft:ho*' in why
