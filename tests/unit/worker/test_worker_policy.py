"""Policies: the configuration's rules for logins, and the portals that SendTargets reports."""

import pytest

from targetd.config import model
from targetd.worker.policy import Policies, reachable


@pytest.mark.parametrize(
    'portal, local, expected',
    [
        (('10.0.0.1', 3260), '10.0.0.1', '10.0.0.1'),
        (('10.0.0.1', 3260), 'fd00::1', '10.0.0.1'),
        (('0.0.0.0', 3260), '10.0.0.7', '10.0.0.7'),
        (('0.0.0.0', 3260), '::ffff:10.0.0.7', '10.0.0.7'),
        (('::', 3260), 'fd00::1', 'fd00::1'),
        (('::', 3260), 'fe80::1%eth0', 'fe80::1'),
        (('0.0.0.0', 860), '::ffff:10.0.0.1', '10.0.0.1'),
        (('fe80::1%eth0', 3260), 'fe80::1%eth0', 'fe80::1'),
        (('10.0.0.2', 3260), '10.0.0.1', '10.0.0.2'),
        (('::', 3260), '10.0.0.7', None),
        (('0.0.0.0', 3260), 'fd00::1', None),
    ],
)
def test_a_wildcard_portal_has_the_address_of_arrival(portal, local, expected):
    assert reachable(portal, local) == expected


def policies():
    targets = [
        model.Target(
            'iqn.2026-11.t:open', initiator_addresses=('ALL',), portal_groups=(1, 2), alias='Open'
        ),
        model.Target('iqn.2026-11.t:net', initiator_addresses=('10.0.0.0/24',), portal_groups=(2,)),
        model.Target(
            'iqn.2026-11.t:chap',
            initiator_addresses=('ALL',),
            accounts=(('u', 'sécret'),),
            outgoing=('o', 's'),
        ),
    ]
    groups = [
        model.PortalGroup(1, (('0.0.0.0', 3260),)),
        model.PortalGroup(2, (('::', 3261), ('10.0.0.1', 3262))),
    ]
    return Policies(model.configuration(model.Server(), groups, targets))


def test_discovery_reports_only_targets_that_admit_the_initiator():
    seen = dict(policies().visible('iqn.i', '192.168.1.1', '10.0.0.9'))
    assert sorted(seen) == ['iqn.2026-11.t:chap', 'iqn.2026-11.t:open']
    assert [str(portal) for portal in seen['iqn.2026-11.t:open']] == [
        '10.0.0.9:3260,1',
        '10.0.0.1:3262,2',
    ]
    assert 'iqn.2026-11.t:net' in dict(policies().visible('iqn.i', '10.0.0.5', '10.0.0.9'))


def test_a_target_is_only_reached_through_its_own_groups():
    policy = policies().login('10.0.0.5', 1, str)
    assert policy.target('iqn.2026-11.t:open').portal_group_tag == 1
    assert policy.target('iqn.2026-11.t:net').portal_group_tag is None
    assert policy.target('iqn.2026-11.t:none') is None


def test_the_access_rule_checks_the_address_and_there_are_no_secrets():
    policy = policies().login('192.168.1.1', 2, str)
    assert 'initiator-address' in policy.target('iqn.2026-11.t:net').refuse('iqn.i')
    assert policy.target('iqn.2026-11.t:open').refuse('iqn.i') is None
    chap = policy.target('iqn.2026-11.t:chap')
    assert chap.accounts == [('u', b'')] and chap.outgoing is None
    assert chap.new_chap(None) == 'iqn.2026-11.t:chap'


def test_a_host_name_admits_with_the_evidence_of_the_master():
    rule = 'dns:host1'
    target = model.Target('iqn.2026-11.t:dns', initiator_addresses=(rule,))
    made = Policies(model.configuration(model.Server(), (), [target]))
    for evidence, is_admitted in (({}, False), ({rule: 'it has ::1'}, False), ({rule: ''}, True)):
        policy = made.login('10.0.0.5', 1, str, evidence)
        assert (policy.target(target.name).refuse('iqn.i') is None) == is_admitted
        assert policy.is_stranger('iqn.i') != is_admitted
        seen = made.visible('iqn.i', '10.0.0.5', '10.0.0.9', evidence)
        assert bool(seen) == is_admitted


def test_a_redirect_has_no_tag():
    """RFC 7143 13.8: a TargetAddress in a redirecting login response names no portal group."""
    targets = [
        model.Target(
            'iqn.2026-11.t:%s' % host, initiator_addresses=('ALL',), redirect=(True, host, 3261)
        )
        for host in ('10.0.0.2', '2001:db8::1', 'storage2.example.com')
    ]
    policy = Policies(model.configuration(model.Server(), (), targets)).login('10.0.0.5', 1, str)
    assert [policy.target(target.name).redirect for target in targets] == [
        (True, '10.0.0.2:3261'),
        (True, '[2001:db8::1]:3261'),
        (True, 'storage2.example.com:3261'),
    ]
    assert policies().login('10.0.0.5', 1, str).target('iqn.2026-11.t:open').redirect is None
