"""Evidence for rules dns: and mac:, and logins that wait for a resolver."""

import pytest
from master_fakes import StillLoop
from test_master_host_names import Resolver

from targetd.config import acl, model
from targetd.master.logins.origins import WAIT_SECONDS, Origins
from targetd.master.server_state import ServerState

NAME, DISCOVERY, MAC = 'dns:host1.example.com', 'dns:finder', 'mac:02:00:5e:10:00:01'
PEER = '192.0.2.7'


class Session(object):
    def __init__(self, *satisfied):
        self.satisfied, self.is_proxied = satisfied, False


class Place(object):
    """Origins of a configuration with these rules."""

    def __init__(self, *rules, **server):
        self.macs = {}
        self.looks = 0
        target = model.Target(name='iqn.2026-11.test:t', initiator_addresses=rules)
        configuration = model.configuration(model.Server(**server), targets=[target])
        self.loop, self.resolver = StillLoop(), Resolver()
        self.state = ServerState(None, configuration)
        self.origins = Origins(self.loop, self.state, self.resolver, self.mac_of)
        self.origins.apply()
        self.went_on = 0

    def mac_of(self, address):
        self.looks += 1
        return self.macs.get(address, (None, 'it is no neighbour'))

    def login(self):
        self.origins.when_known(self.go_on)

    def go_on(self):
        self.went_on += 1


@pytest.fixture
def place():
    made = []

    def make(*rules, **server):
        made.append(Place(*rules, **server))
        return made[-1]

    yield make
    for each in made:
        each.origins.close()
        each.loop.close()


def test_without_such_rules_nothing_is_asked(place):
    here = place('192.0.2.0/24', 'ALL')
    here.login()
    assert here.went_on == 1 and not here.resolver.asked
    assert here.origins.evidence(PEER) == {} and here.looks == 0


def test_a_login_waits_until_every_name_is_resolved(place):
    here = place(NAME, discovery_address=(DISCOVERY,))
    here.login()
    here.login()
    assert len(here.resolver.asked) == 2 and not here.went_on
    here.resolver.answer(['192.0.2.1'])
    assert not here.went_on
    here.resolver.answer([PEER])
    assert here.went_on == 2
    evidence = here.origins.evidence(PEER)
    assert evidence[NAME] == '' and '192.0.2.1' in evidence[DISCOVERY]
    here.login()
    assert here.went_on == 3 and not here.resolver.asked


def test_a_login_does_not_wait_longer_than_the_limit(place):
    here = place(NAME)
    here.login()
    here.loop.pass_time(WAIT_SECONDS)
    assert here.went_on == 1
    here.resolver.answer([PEER])
    assert here.went_on == 1
    assert here.origins.evidence(PEER) == {NAME: ''}


def test_a_name_that_leaves_the_configuration_keeps_no_login_waiting(place):
    here = place(NAME)
    here.login()
    here.state.configuration = model.configuration()
    here.origins.apply()
    here.resolver.answer([PEER])
    assert here.went_on == 1 and here.origins.evidence(PEER) == {}


def test_a_mac_address_is_looked_up_once_for_all_rules(place):
    here = place(MAC, 'mac:02:00:5e:10:00:02')
    here.macs[PEER] = (MAC[4:], '')
    evidence = here.origins.evidence(PEER)
    assert evidence[MAC] == '' and MAC[4:] in evidence['mac:02:00:5e:10:00:02'] and here.looks == 1
    assert here.origins.evidence('192.0.2.9')[MAC] == 'it is no neighbour'


def test_the_client_of_a_proxy_has_no_mac_address(place):
    here = place(MAC)
    here.macs[PEER] = (MAC[4:], '')
    assert 'proxy' in here.origins.evidence(PEER, is_proxied=True)[MAC] and here.looks == 0


def test_a_session_keeps_what_it_satisfied_when_it_logged_in(place):
    here = place(MAC, NAME)
    target = here.state.configuration.targets['iqn.2026-11.test:t']
    for satisfied in ((MAC,), (NAME,)):
        evidence = here.origins.of_session(Session(*satisfied), PEER)
        assert acl.refusal(target, 'iqn.a', PEER, evidence) is None
    assert acl.refusal(target, 'iqn.a', PEER, here.origins.of_session(Session(), PEER))


def test_what_the_rules_admit_now_in_words(place):
    here = place(NAME)
    assert 'not resolved yet' in here.origins.now()[NAME]
    here.login()
    here.resolver.answer([PEER, '2001:db8::7'])
    assert here.origins.now() == {NAME: '192.0.2.7, 2001:db8::7'}
