"""Accounts that only certain initiators may use (incominguser-for)."""

import pytest
from daemon import TARGET
from initiator import Chap, LoginFailed, connect

pytestmark = pytest.mark.wire

ERP, OTHER = 'iqn.2026-11.test:erp1', 'iqn.2026-11.test:other'
SECRETS = {'erp': '12-to-16-chars', 'free': 'another-secret'}
RULE = 'incominguser-for = erp iqn.2026-11.test:erp*'


@pytest.fixture
def used(daemon):
    accounts = ['incominguser = %s %s' % account for account in sorted(SECRETS.items())]
    daemon.target(TARGET, ['initiator-address = ALL', 'sharing = cluster', RULE] + accounts)
    return daemon.start()


def status(daemon, name, user, secret=None):
    """0, or the login status."""
    try:
        chap = Chap(user, secret or SECRETS[user])
        connect(daemon.address, TARGET, name=name, chap=chap).close()
    except LoginFailed as e:
        return e.status
    return 0


def test_the_account_serves_only_its_initiators_and_others_are_told_why(used):
    assert status(used, ERP, 'erp') == 0
    assert status(used, OTHER, 'erp') == 0x0202
    assert 'may not use the account erp' in used.log
    assert 'incominguser-for = erp iqn.2026-11.test:erp*' in used.control('why', OTHER)


def test_an_account_that_is_not_named_serves_every_initiator(used):
    assert status(used, ERP, 'free') == status(used, OTHER, 'free') == 0


def test_without_the_secret_the_rule_is_not_told(used):
    assert status(used, OTHER, 'erp', 'not-the-secret!!') == 0x0201
    assert 'incominguser-for' not in used.log


def test_a_reload_changes_who_may_use_the_account(used):
    settings = used.text.targets[TARGET][0]
    settings[settings.index(RULE)] = 'incominguser-for = erp %s' % OTHER
    used.reload()
    assert status(used, OTHER, 'erp') == 0
    assert status(used, ERP, 'erp') == 0x0202


def test_an_account_is_removed_with_its_rule_by_targetdctl(used):
    used.control('account', 'remove', TARGET, 'erp')
    assert 'incominguser-for' not in used.control('show', 'config')
    assert status(used, OTHER, 'free') == 0


def test_a_rule_of_an_account_that_does_not_exist_is_refused(used):
    settings = used.text.targets[TARGET][0]
    settings.append('incominguser-for = epr %s' % OTHER)
    used.write_config()
    code, output = used.targetdctl('reload')
    assert code and 'names an account that the target does not have' in output
    assert status(used, OTHER, 'free') == 0


def test_the_exported_configuration_has_the_rule(used):
    assert RULE in used.control('show', 'config')
