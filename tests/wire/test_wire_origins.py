"""Access rules by host name and by MAC address, with the real daemon: names in a hosts file of the test, and
the neighbour table of a network namespace with pairs of virtual Ethernet cards."""

import os
import subprocess

import namespaces
import pytest
from daemon import TARGET, Daemon, eventually, watched
from initiator import LoginFailed, Session

OTHER = 'iqn.2026-11.test.targetd:other'
HOST, GONE = 'host1.example.com', 'gone.example.com'
ONE, TWO = '127.0.0.1', '127.0.0.2'
REFUSED = 0x0202

BIND = (
    'set -e; mount --bind "$0/hosts" /etc/hosts; mount --bind "$0/resolv.conf" /etc/resolv.conf; '
    'mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf; exec "$@"'
)


class Resolving(Daemon):
    """A Daemon whose resolver reads files of the test. dns(): what it asks besides the hosts file; nobody
    answers at the name server that it has."""

    def __init__(self, directory):
        super(Resolving, self).__init__(directory)
        self.hosts()
        self.dns(False)
        self.put('resolv.conf', 'nameserver 127.0.0.77\noptions timeout:1 attempts:1\n')

    def put(self, name, text):
        """In its place: a mount shows the file, not its name."""
        with open(os.path.join(self.directory, name), 'w') as file:
            file.write(text)

    def hosts(self, **addresses):
        lines = ['127.0.0.1 localhost']
        for name, found in addresses.items():
            lines += ['%s %s' % (address, name.replace('_', '.')) for address in found]
        self.put('hosts', '\n'.join(lines) + '\n')

    def dns(self, is_asked):
        self.put('nsswitch.conf', 'hosts: files%s\n' % (' dns' if is_asked else ''))

    def command(self, *arguments):
        plain = super(Resolving, self).command(*arguments)
        return self.prefix() + plain

    def prefix(self):
        return ['unshare', '-m', '--propagation', 'private', 'sh', '-c', BIND, self.directory]


def why_no_mounts(directory):
    """Why the files cannot be mounted here, or ''."""
    found = Resolving(directory)
    done = subprocess.run(
        found.prefix() + ['true'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20
    )
    return done.stdout.decode() if done.returncode else ''


@pytest.fixture
def resolving(tmp_path):
    for name in ('try', 'daemon'):
        (tmp_path / name).mkdir()
    why = why_no_mounts(str(tmp_path / 'try'))
    if why:
        pytest.skip('no mount namespace here: %s' % why)
    with watched_as(Resolving, tmp_path / 'daemon') as daemon:
        yield daemon


def watched_as(kind, directory):
    """daemon.watched() of a kind of Daemon."""
    import daemon as module

    class Swapped(object):
        def __enter__(self):
            self.before, module.Daemon = module.Daemon, kind
            try:
                self.inner = watched(str(directory))
                return self.inner.__enter__()
            finally:
                module.Daemon = self.before

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    return Swapped()


def status(address, target=TARGET, source=None):
    """The status of a login, 0 if it succeeds."""
    with Session(address, 'iqn.2026-11.test:prober', source=source) as session:
        try:
            session.login(target)
        except LoginFailed as e:
            return e.status
        return 0


def targets(address, source):
    """The names of the targets that discovery reports."""
    with Session(address, 'iqn.2026-11.test:prober', source=source) as session:
        return [name for name, _ in session.login().send_targets()]


# -- host names ------------------------------------------------------------------------------------


def serve_by_name(daemon, *rules):
    daemon.target(TARGET, ['initiator-address = %s' % ', '.join(rules or ('dns:' + HOST,))])
    daemon.target(OTHER, ['initiator-address = dns:%s' % GONE])
    return daemon.start()


def test_a_host_name_admits_its_addresses_in_login_and_discovery(resolving):
    resolving.hosts(host1_example_com=['2001:db8::7', TWO])
    serve_by_name(resolving)
    assert status(resolving.address, source=TWO) == 0
    assert status(resolving.address, source=ONE) == REFUSED
    assert status(resolving.address, OTHER, source=TWO) == REFUSED
    assert targets(resolving.address, TWO) == [TARGET] and targets(resolving.address, ONE) == []
    code, text = resolving.targetdctl('why', ONE)
    assert 'dns:%s (it has 127.0.0.2, 2001:db8::7)' % HOST in text, text
    resolving.logged('dns:%s has the addresses 127.0.0.2, 2001:db8::7' % HOST)
    resolving.logged('dns:%s cannot be resolved: .*; it admits no initiator' % GONE)
    text = resolving.control('why', TARGET)
    assert 'at dns:%s (now: 127.0.0.2, 2001:db8::7)' % HOST in text, text


def test_the_last_answer_counts_while_dns_fails_and_not_when_the_name_is_gone(resolving):
    resolving.hosts(host1_example_com=[TWO])
    serve_by_name(resolving)
    assert status(resolving.address, source=TWO) == 0
    resolving.dns(True)  # its name server does not answer
    resolving.hosts()
    resolving.reload()
    resolving.logged(
        'dns:%s cannot be resolved: the resolver does not answer.*its last addresses' % HOST
    )
    assert status(resolving.address, source=TWO) == 0
    assert status(resolving.address, source=ONE) == REFUSED
    resolving.dns(False)  # there is no such name
    resolving.reload()
    resolving.logged('dns:%s cannot be resolved: the name does not exist' % HOST)
    assert status(resolving.address, source=TWO) == REFUSED
    resolving.hosts(host1_example_com=[ONE])
    resolving.reload()
    eventually(lambda: status(resolving.address, source=ONE) == 0)
    assert status(resolving.address, source=TWO) == REFUSED


def test_a_session_goes_on_when_its_name_moves_and_ends_with_the_rule(resolving):
    resolving.hosts(host1_example_com=[TWO])
    serve_by_name(resolving)
    with Session(resolving.address, 'iqn.2026-11.test:one', source=TWO) as session:
        session.login(TARGET)
        session.clear_attentions()
        resolving.hosts(host1_example_com=[ONE])
        resolving.reload()
        eventually(lambda: status(resolving.address, source=ONE) == 0)
        assert session.capacity()
        # a rule that the session has not satisfied, but its address does
        resolving.hosts(host1_example_com=[ONE], gone_example_com=[TWO])
        resolving.text.targets[TARGET][0][1] = 'initiator-address = dns:%s' % GONE
        resolving.reload()
        assert session.capacity()
        resolving.text.targets[TARGET][0][1] = 'initiator-address = dns:absent'
        resolving.reload()
        resolving.logged('session .* is ended: address 127.0.0.2 matches none of .*dns:absent')


def test_an_upgrade_keeps_the_last_answer(resolving):
    resolving.hosts(host1_example_com=[TWO])
    serve_by_name(resolving)
    with Session(resolving.address, 'iqn.2026-11.test:one', source=TWO) as session:
        session.login(TARGET)
        session.clear_attentions()
        resolving.dns(True)
        resolving.hosts()
        resolving.control('upgrade')
        assert status(resolving.address, source=TWO) == 0
        resolving.reload()
        assert session.capacity()
        assert status(resolving.address, source=ONE) == REFUSED


def test_the_check_resolves_the_names(resolving):
    resolving.hosts(host1_example_com=[TWO])
    resolving.target(TARGET, ['initiator-address = dns:%s' % HOST])
    resolving.target(OTHER, ['initiator-address = dns:%s' % GONE])
    code, text = resolving.check()
    assert code == 0 and 'at dns:%s (now: 127.0.0.2)' % HOST in text, text
    assert 'dns:%s admits no initiator now: the name does not exist' % GONE in text


def test_acl_add_and_remove_take_names(resolving):
    resolving.hosts(host1_example_com=[TWO])
    resolving.target(TARGET, ['initiator-address = 192.0.2.1'])
    resolving.start()
    resolving.control('acl', 'add', TARGET, 'dns:' + HOST.upper())
    assert status(resolving.address, source=TWO) == 0
    resolving.control('acl', 'remove', TARGET, 'dns:' + HOST)
    assert status(resolving.address, source=TWO) == REFUSED


# -- MAC addresses ---------------------------------------------------------------------------------

NEAR_MAC, FAR_MAC = '02:00:5e:10:00:02', '02:00:5e:10:00:12'


class Segments(object):
    """A server (.1) and a client (.2) with two segments, 10.9.0.0/24 and 10.8.0.0/24, each with a card of
    the client; the second has IPv6 too."""

    def __init__(self):
        self.server = namespaces.Namespace('targetd-server-%d' % os.getpid())
        self.client = namespaces.Namespace('targetd-client-%d' % os.getpid())
        self.connect('near', '10.9.0', NEAR_MAC)
        self.connect('far', '10.8.0', FAR_MAC)
        for space, number in ((self.server, 1), (self.client, 2)):
            space.within('ip', 'address', 'add', 'fd00:8::%d/64' % number, 'dev', 'far', 'nodad')

    def connect(self, name, net, mac):
        self.server.within(
            'ip', 'link', 'add', name, 'type', 'veth', 'peer', name, 'netns', self.client.name
        )
        self.client.within('ip', 'link', 'set', name, 'address', mac)
        for space, number in ((self.server, 1), (self.client, 2)):
            space.within('ip', 'address', 'add', '%s.%d/24' % (net, number), 'dev', name)
            space.within('ip', 'link', 'set', name, 'up')

    def status(self, address, target=TARGET):
        with self.client.entered():
            return status((address, 3260), target)

    def remove(self):
        self.server.remove()
        self.client.remove()


@pytest.fixture
def segments():
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    found = Segments()
    yield found
    found.remove()


def serve_by_mac(daemon, rule):
    daemon.text.groups = {1: ['0.0.0.0:3260', '[::]:3260']}
    daemon.port = 3260
    daemon.target(TARGET, ['initiator-address = %s' % rule])
    daemon.start()
    daemon.wait_listening(('::1', 3260))  # the portals are opened one after the other
    return daemon


def test_a_mac_address_admits_its_host_in_its_segment(daemon, segments):
    with segments.server.entered():
        serve_by_mac(daemon, 'mac:' + NEAR_MAC.upper().replace(':', '-'))
        assert segments.status('10.9.0.1') == 0
        assert segments.status('10.8.0.1') == REFUSED
        assert status(('127.0.0.1', 3260)) == REFUSED
        text = daemon.control('why')
        assert 'mac:%s (its MAC address is %s)' % (NEAR_MAC, FAR_MAC) in text, text
        assert 'no host of the local segment' in text
        text = daemon.control('why', TARGET)
        code, text = daemon.check()
        assert 'mac:%s (now: 10.9.0.2' % NEAR_MAC in text, text
        daemon.stop()


def test_a_mac_address_of_an_ipv6_neighbour(daemon, segments):
    with segments.server.entered():
        serve_by_mac(daemon, 'mac:' + FAR_MAC)
        assert segments.status('fd00:8::1') == 0
        assert segments.status('10.8.0.1') == 0
        assert segments.status('10.9.0.1') == REFUSED
        daemon.stop()


def test_another_card_with_the_same_address_is_refused(daemon, segments):
    with segments.server.entered():
        serve_by_mac(daemon, 'mac:' + NEAR_MAC)
        assert segments.status('10.9.0.1') == 0
        segments.client.within('ip', 'link', 'set', 'near', 'address', '02:00:5e:10:00:99')
        segments.server.within('ip', 'neigh', 'flush', 'dev', 'near')
        assert segments.status('10.9.0.1') == REFUSED
        daemon.stop()


def test_a_session_outlives_its_entry_in_the_neighbour_table(daemon, segments):
    with segments.server.entered():
        serve_by_mac(daemon, 'mac:' + NEAR_MAC)
        with segments.client.entered():
            session = Session(('10.9.0.1', 3260), 'iqn.2026-11.test:one').login(TARGET)
        with session:
            session.clear_attentions()
            segments.server.within('ip', 'neigh', 'flush', 'dev', 'near')
            daemon.reload()
            assert session.capacity()
        daemon.stop()
