"""Admission: which sessions the configuration in force admits, and which targets a copy may reach."""

from collections import namedtuple

import pytest

from targetd.config import model
from targetd.config.lun_maps import EVERY_LUN
from targetd.iscsi import const
from targetd.master.logins.admission import Admission, Refused
from targetd.master.server_state import ServerState

TARGET, NAME, PEER = 'iqn.2026-11.test:disk', 'iqn.2026-11.test:one', ['10.0.0.9', 40000]
ACCOUNT = ('erp', 'a secret of 14')
Isid = namedtuple('Isid', 'isid')
Worker = namedtuple('Worker', 'session')


class Record(object):
    """The part of a SessionRecord that Admission reads."""

    def __init__(self, isid='1', group=1, proved=(), ended_why=None):
        self.nexus, self.initiator_name, self.peers = Isid(isid), NAME, {0: PEER}
        self.group, self.proved, self.ended_why = group, list(proved), ended_why


def admission(missing='', **fields):
    fields.setdefault('initiator_addresses', ('ALL',))
    target = model.Target(name=TARGET, **fields)
    state = ServerState(None, model.configuration(targets=[target]))
    return Admission(state, lambda name, lun_map: missing)


def status(rules, target_name=TARGET, isid='1', group=1, sessions=()):
    """(class, detail) of the answer to a claim."""
    claim = {'peer': PEER, 'session': {'initiator_name': NAME, 'isid': isid, 'group': group}}
    try:
        rules.check_claim(claim, target_name, sessions)
    except Refused as e:
        assert str(e)
        return e.status
    return const.SUCCESS


def stopping(rules):
    rules.state.is_stopping = True
    return rules


def changing(rules):
    rules.state.changing[TARGET] = []
    return rules


def bound_account(pattern):
    """The account is for the initiators of this pattern only."""
    return admission(accounts=(ACCOUNT,), incominguser_for=((ACCOUNT[0], pattern),))


REDIRECT = ('192.0.2.1', 3260)


@pytest.mark.parametrize(
    'rules, expected',
    [
        (admission(), const.SUCCESS),
        (admission(initiator_addresses=('192.0.2.0/24',)), const.AUTHORIZATION_FAILURE),
        (admission(portal_groups=(2,)), const.NOT_FOUND),
        (admission(state='offline'), const.SERVICE_UNAVAILABLE),
        (admission(redirect=REDIRECT), const.SERVICE_UNAVAILABLE),
        (admission(missing='lun 0: no such file'), const.SERVICE_UNAVAILABLE),
        (changing(admission()), const.SERVICE_UNAVAILABLE),
        (stopping(admission()), const.SERVICE_UNAVAILABLE),
    ],
)
def test_a_claim_is_checked_by_every_rule(rules, expected):
    assert status(rules) == expected


def test_an_unknown_target_is_not_found():
    assert status(admission(), 'iqn.2026-11.test:nothing') == const.NOT_FOUND


def test_discovery_depends_on_no_target():
    assert status(admission(state='offline'), None) == const.SUCCESS
    assert status(stopping(admission()), None) == const.SERVICE_UNAVAILABLE


def test_max_sessions_does_not_count_the_session_that_is_replaced():
    rules = admission(max_sessions=1)
    assert status(rules, isid='2', sessions=[Record('1')]) == const.OUT_OF_RESOURCES
    assert status(rules, isid='1', sessions=[Record('1')]) == const.SUCCESS


@pytest.mark.parametrize(
    'rules, record, expected',
    [
        (admission(), Record(), True),
        (admission(), None, False),
        (admission(), Record(ended_why='stopped'), False),
        (admission(), Record(group=2), False),
        (admission(state='offline'), Record(), False),
        (admission(redirect=REDIRECT), Record(), False),
        (changing(admission()), Record(), False),
        (stopping(admission()), Record(), False),
        (admission(initiator_addresses=('192.0.2.0/24',)), Record(), False),
        (admission(accounts=(ACCOUNT,)), Record(), False),
        (admission(accounts=(ACCOUNT,)), Record(proved=[ACCOUNT]), True),
        (bound_account(NAME), Record(proved=[ACCOUNT]), True),
        (bound_account('iqn.2026-11.test:two'), Record(proved=[ACCOUNT]), False),
    ],
)
def test_a_copy_reaches_only_targets_that_admit_its_initiator(rules, record, expected):
    assert rules.map_for_copy(Worker(record), TARGET) == (EVERY_LUN if expected else None)
    assert not rules.map_for_copy(Worker(record), 'iqn.2026-11.test:nothing')
