"""The settings of a portal group for networks that the administrator does not own: the interface, the
address that is reported, proxies in front of it, and how its connections use TCP."""

import os
import re
import socket
import struct
import subprocess

import namespaces
import pytest
from daemon import TARGET, eventually, free_port
from initiator import Closed, LoginFailed, Session

from targetd.master.logins.ipsec import require_ipsec

pytestmark = pytest.mark.wire

NEAR = 'iqn.2026-11.test.targetd:near'
CLIENT, STRANGER = '203.0.113.7', '127.0.0.2'
LINE = b'PROXY TCP4 203.0.113.7 10.0.0.1 51234 3260\r\n'
SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
TIMEOUT = 2
EXIT_PORTAL = 4
OTHER_ISID = bytes.fromhex('80abcdef0002')

needs_namespaces = pytest.mark.skipif(
    bool(namespaces.why_not()), reason=namespaces.why_not() or 'none'
)


def second_group(daemon, *lines, **more):
    """Adds portal group 2 on another port, which the target is reached through too; returns its
    address."""
    address = ('127.0.0.1', free_port())
    portal = more.get('portal', '%s:%d' % address)
    daemon.text.extra = '\n'.join(('[portal-group 2]', 'portal = ' + portal) + lines) + '\n'
    daemon.target(TARGET, group='1, 2')
    return address


def start(daemon, address):
    daemon.start()
    daemon.wait_listening(address)
    return daemon


def reload(daemon):
    """Reloads the configuration of the test; returns what targetdctl prints."""
    daemon.write_config()
    return daemon.targetdctl('reload')[1]


def refused_start(daemon):
    """What targetd prints when it does not start."""
    daemon.launch()
    assert daemon.process.wait(30) == EXIT_PORTAL
    daemon.process = None
    with open(daemon.output_file) as file:
        return file.read()


# -- the address that is reported ------------------------------------------------------------------


@pytest.mark.parametrize(
    'value, reported',
    [('203.0.113.7:13260', ['203.0.113.7:13260,2']), ('[2001:db8::7]', ['[2001:db8::7]:3260,2'])],
)
@pytest.mark.clause('RFC 7143 C', 'RFC 7143 13.8')
def test_the_advertised_address_is_reported(daemon, value, reported):
    second_group(daemon, 'advertise = ' + value)
    daemon.start()
    with Session(daemon.address) as session:
        session.login(None)
        ((_, addresses),) = session.send_targets()
        assert addresses == ['127.0.0.1:%d,1' % daemon.port] + reported


@pytest.mark.clause('RFC 7143 C')
def test_a_target_may_be_reported_without_an_address(daemon):
    address = second_group(daemon, 'advertise = none')
    daemon.target(NEAR, group='2')
    start(daemon, address)
    with Session(address) as session:
        session.login(None)
        assert dict(session.send_targets())[NEAR] == []
    with Session(address) as session:
        session.login(NEAR)


# -- proxies ---------------------------------------------------------------------------------------


class Proxied(Session):
    """Sends these bytes before its login."""

    def __init__(self, address, header, **more):
        self.header = header
        super(Proxied, self).__init__(address, **more)

    def make_wire(self, *arguments, **more):
        wire = super(Proxied, self).make_wire(*arguments, **more)
        wire.socket.sendall(self.header)
        return wire


def version_2(source=CLIENT, more=b''):
    body = socket.inet_aton(source) + socket.inet_aton('10.0.0.1') + struct.pack('>HH', 51234, 3260)
    return SIGNATURE + struct.pack('>BBH', 0x21, 0x11, len(body + more)) + body + more


@pytest.fixture
def behind_proxy(daemon):
    """A portal whose proxy is 127.0.0.1, and a target for the client behind it only. Returns (daemon,
    address)."""
    daemon.text.server['login-timeout'] = '%ds' % TIMEOUT
    address = second_group(daemon, 'proxy-protocol-from = 127.0.0.1')
    daemon.target(NEAR, ['initiator-address = ' + CLIENT], group='2')
    return start(daemon, address), address


@pytest.mark.parametrize('header', [LINE, version_2(), version_2(more=b'\x04\0\x03abc' * 30)])
def test_the_client_behind_a_proxy_is_the_peer(behind_proxy, header):
    daemon, address = behind_proxy
    with Proxied(address, header) as session:
        session.login(NEAR)
        session.clear_attentions()
        session.write(0, bytes(4096))
        daemon.logged('from 203.0.113.7:51234 logged in to ' + NEAR)


def test_access_rules_see_the_client(behind_proxy):
    daemon, address = behind_proxy
    with Proxied(address, version_2('198.51.100.9')) as session:
        with pytest.raises(LoginFailed):
            session.login(NEAR)
    assert '198.51.100.9' in daemon.targetdctl('why', '198.51.100.9')[1]


@pytest.mark.parametrize(
    'header, words',
    [
        (b'', 'there is no PROXY header'),
        (b'PROXY TCP4 storage.example.com 10.0.0.1 1 2\r\n', 'not numeric'),
        (version_2('127.0.0.1'), 'claims 127.0.0.1, an address of this host'),
        (SIGNATURE + b'\x31\x11\0\0' + bytes(48), 'version and command 31h'),
    ],
)
def test_a_proxy_without_a_valid_header_is_not_served(behind_proxy, header, words):
    daemon, address = behind_proxy
    with Proxied(address, header) as session:
        with pytest.raises(Closed):
            session.login(TARGET)
    daemon.logged('127.0.0.1:[0-9]+: .*%s.*portal group 2' % words)


def test_a_header_of_a_stranger_is_not_believed(behind_proxy):
    daemon, address = behind_proxy
    with Proxied(address, LINE, source=STRANGER) as session:
        with pytest.raises(Closed):
            session.login(NEAR)
    daemon.logged('127.0.0.2:[0-9]+: it sent a PROXY header, but proxy-protocol-from')
    with Session(address, source=STRANGER) as session:
        session.login(TARGET)


def test_half_a_header_lasts_until_the_login_timeout(behind_proxy):
    daemon, address = behind_proxy
    with socket.create_connection(address, 10) as sock:
        sock.sendall(LINE[:20] + b' ' * 40)
        try:
            assert sock.recv(1) == b''
        except ConnectionResetError:
            pass
    daemon.logged('no login within %d seconds' % TIMEOUT)


def test_a_proxy_may_be_named_by_a_reload(daemon):
    address = second_group(daemon)
    start(daemon, address)
    second_group(daemon, 'proxy-protocol-from = 127.0.0.1', portal='%s:%d' % address)
    assert 'proxy-protocol-from from nothing to 127.0.0.1' in reload(daemon)
    with Proxied(address, LINE) as session:
        session.login(TARGET)


# -- TCP -------------------------------------------------------------------------------------------


def connections(port):
    """What ss shows of the connections that arrived at this port."""
    command = ['ss', '-tinH', '--tos', 'sport', '=', ':%d' % port]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


def test_connections_have_the_settings_of_their_portal_group(daemon):
    address = second_group(daemon, 'congestion-control = reno', 'mss = 1000', 'dscp = AF21')
    start(daemon, address)
    with Session(address) as session:
        session.login(TARGET)
        assert session.wire.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1000
        shown = connections(address[1])
        assert ' reno ' in shown and 'tos:0x48' in shown, shown
        mss = [int(number) for number in re.findall(r'[ ]mss:([0-9]+)', shown)]
        assert mss and max(mss) <= 1000, shown


def test_a_reload_changes_them_for_new_connections_and_keeps_the_sessions(daemon, ready):
    address = second_group(daemon)
    start(daemon, address)
    with Session(address) as old:
        old.login(TARGET)
        old.clear_attentions()
        second_group(daemon, 'congestion-control = reno', portal='%s:%d' % address)
        assert 'change portal group 2: congestion-control from nothing to reno' in reload(daemon)
        with Session(address, isid=OTHER_ISID) as new:
            new.login(TARGET)
            assert ' reno ' in connections(address[1])
        old.write(0, bytes(512))


def test_a_congestion_control_that_is_not_loaded_is_refused_with_its_module(daemon):
    address = second_group(daemon, 'congestion-control = nosuch')
    text = refused_start(daemon)
    assert 'modprobe tcp_nosuch' in text and 'reno' in text
    second_group(daemon, portal='%s:%d' % address)
    start(daemon, address)
    second_group(daemon, 'congestion-control = nosuch', portal='%s:%d' % address)
    assert 'modprobe tcp_nosuch' in reload(daemon)
    with Session(address) as session:
        session.login(TARGET)


# -- the interface ---------------------------------------------------------------------------------


class TwoHosts(object):
    """A server and a client with two lines between them: `inner` 10.9.0.1, .2 and `outer` 10.8.0.1, .2.
    The client also has a route to 10.9.0.1 through the outer line."""

    def __init__(self):
        names = ['targetd-%s-%d' % (name, os.getpid()) for name in ('server', 'client')]
        self.server = namespaces.Namespace(names[0])
        self.client = namespaces.Namespace(names[1])
        self.connect('outer', '10.8.0')
        self.connect('inner', '10.9.0')
        self.client.within(*'ip route add 10.9.0.1 via 10.8.0.1 dev outer metric 999'.split())

    def connect(self, name, net):
        self.server.within(
            'ip', 'link', 'add', name, 'type', 'veth', 'peer', name, 'netns', self.client.name
        )
        for space, number in ((self.server, 1), (self.client, 2)):
            space.within('ip', 'address', 'add', '%s.%d/24' % (net, number), 'dev', name)
            space.within('ip', 'link', 'set', name, 'up')

    def reaches(self, interface, address):
        """True if a connection of the client through this interface is accepted."""
        with self.client.entered():
            with socket.socket() as sock:
                sock.settimeout(2)
                sock.setsockopt(socket.SOL_SOCKET, 25, interface.encode())  # SO_BINDTODEVICE
                return sock.connect_ex(address) == 0

    def remove(self):
        self.server.remove()
        self.client.remove()


@pytest.fixture
def hosts():
    found = TwoHosts()
    yield found
    found.remove()


@needs_namespaces
def test_a_portal_with_an_interface_is_not_reached_through_another_one(daemon, hosts):
    """A neighbour that routes the address of the tunnel to the outer address of the server."""
    address = ('10.9.0.1', 3260)
    with hosts.server.entered():
        second_group(daemon, portal='10.9.0.1')
        daemon.start()
        eventually(lambda: hosts.reaches('inner', address) and hosts.reaches('outer', address))
        second_group(daemon, 'interface = inner', portal='10.9.0.1')
        reload(daemon)
        assert hosts.reaches('inner', address) and not hosts.reaches('outer', address)
        daemon.stop()


@needs_namespaces
def test_an_interface_that_was_made_anew_is_listened_on_again(daemon, hosts):
    address = ('10.9.0.1', 3260)
    with hosts.server.entered():
        second_group(daemon, 'interface = inner', portal='0.0.0.0')
        daemon.start()
        assert hosts.reaches('inner', address)
        hosts.server.within('ip', 'link', 'delete', 'inner')
        daemon.logged('interface inner was removed')
        hosts.connect('inner', '10.9.0')
        daemon.logged('portal 0.0.0.0:3260 is open now')
        eventually(lambda: hosts.reaches('inner', address))
        daemon.stop()


def test_a_portal_waits_for_an_interface_that_does_not_exist(daemon):
    second_group(daemon, 'interface = nosuch0')
    daemon.start()
    daemon.logged('this host has no interface nosuch0 .it has .*lo')
    with Session(daemon.address) as session:
        session.login(TARGET)


def test_a_required_portal_on_an_interface_that_does_not_exist_is_refused(daemon):
    second_group(daemon, 'interface = nosuch0')
    daemon.text.server['portal-required'] = 'yes'
    assert 'no interface nosuch0' in refused_start(daemon)


def has_socket_policies():
    """True if this kernel gives a socket an IPsec policy."""
    try:
        with socket.socket() as sock:
            require_ipsec(sock)
    except OSError:
        return False
    return True


@needs_namespaces
@pytest.mark.skipif(not has_socket_policies(), reason='the kernel has no IPsec policies of sockets')
def test_a_portal_that_requires_ipsec_is_not_reached_in_plain(daemon, hosts):
    address = ('10.9.0.1', 3260)
    with hosts.server.entered():
        second_group(daemon, portal='10.9.0.1')
        daemon.start()
        eventually(lambda: hosts.reaches('inner', address))
        second_group(daemon, 'ipsec = required', portal='10.9.0.1')
        assert 'ipsec from no to required' in reload(daemon)
        assert not hosts.reaches('inner', address)
        second_group(daemon, portal='10.9.0.1')
        reload(daemon)
        assert hosts.reaches('inner', address)
        daemon.stop()


@needs_namespaces
def test_two_interfaces_may_have_the_same_port(daemon, hosts):
    with hosts.server.entered():
        daemon.text.groups = {}
        daemon.text.extra = (
            '[portal-group 1]\nportal = 0.0.0.0\ninterface = inner\n'
            '[portal-group 2]\nportal = 0.0.0.0\ninterface = outer\nadvertise = none\n'
        )
        daemon.target(TARGET, group='1, 2')
        daemon.launch()
        eventually(lambda: hosts.reaches('inner', ('10.9.0.1', 3260)))
        assert hosts.reaches('outer', ('10.8.0.1', 3260))
        daemon.stop()
