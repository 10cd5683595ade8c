"""Tests of targetd behind stunnel with the files of etc/stunnel, on two hosts (network namespaces) with a
line between, and fail2ban with the files of etc/fail2ban behind it."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading

import guest_packages
import namespaces
import pytest
from daemon import ROOT, TARGET, eventually
from initiator import Chap, Closed, LoginFailed, Session, pattern

pytestmark = [
    pytest.mark.wire,
    pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or 'none'),
    pytest.mark.skipif(
        not (shutil.which('stunnel') and shutil.which('openssl')),
        reason='stunnel or openssl is not installed (Debian: stunnel4, openssl)',
    ),
]

SERVER, CLIENT, OTHER = '192.0.2.1', '192.0.2.7', '192.0.2.66'
BEHIND = ('127.0.0.1', 3260)  # the client's stunnel
OTHERS = ('127.0.0.1', 3262)  # a stunnel on the same host, whose connections come from OTHER
STRANGERS = ('127.0.0.1', 3263)  # a stunnel with a key that the server does not know
ANY = 'iqn.2026-11.test.targetd:any'
GUARDED = 'iqn.2026-11.test.targetd:guarded'
FAIL2BAN = os.path.join(ROOT, 'etc', 'fail2ban')
UNIX = ('setuid', 'setgid', 'pid', 'syslog')  # settings of a service, which the tests are not
ALL_PROTOCOLS = 3  # ETH_P_ALL


class Capture(threading.Thread):
    """What passes an interface of the namespace that this thread is in, until close(). data: bytes."""

    def __init__(self, interface):
        super(Capture, self).__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        self.socket.bind((interface, 0))
        self.socket.settimeout(0.2)
        self.is_over = threading.Event()
        self.data = bytearray()
        self.start()

    def run(self):
        while not self.is_over.is_set():
            try:
                self.data += self.socket.recv(1 << 17)
            except socket.timeout:
                pass

    def close(self):
        self.is_over.set()
        self.join(10)
        self.socket.close()
        return bytes(self.data)


class Hosts(object):
    """The server and the client, and what was started there. Use `with`."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.running = []
        self.server = self.client = None

    def __enter__(self):
        name = 'targetd-%d' % os.getpid()
        try:
            self.server = namespaces.Namespace(name + 's')
            self.client = namespaces.Namespace(name + 'c')
            line = ('ip', 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns')
            self.server.within(*line + (self.client.name,))
            for host, address in (
                (self.server, SERVER),
                (self.client, CLIENT),
                (self.client, OTHER),
            ):
                host.within('ip', 'address', 'add', address + '/24', 'dev', 'eth0')
                host.within('ip', 'link', 'set', 'eth0', 'up')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()
        for host in (self.server, self.client):
            if host:
                host.remove()

    def key(self, name):
        """A folder with the key and the certificate of a host; returns its path."""
        place = os.path.join(self.directory, name)
        os.mkdir(place)
        subprocess.check_call(
            ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1']
            + ['-nodes', '-subj', '/CN=' + name, '-keyout', os.path.join(place, 'targetd.key')]
            + ['-out', os.path.join(place, 'targetd.crt')],
            stderr=subprocess.DEVNULL,
        )
        return place

    def stunnel(self, host, sample, place, accept=None, more=''):
        """Run stunnel on a host with a sample; its keys are in the folder `place`."""
        with open(os.path.join(ROOT, 'etc', 'stunnel', sample)) as file:
            lines = [line for line in file if line.split(' = ')[0] not in UNIX]
        text = 'foreground = yes\n' + ''.join(lines).replace('/etc/stunnel/', place + '/') + more
        if accept:
            assert 'accept = 127.0.0.1:3260\n' in text
            text = text.replace('accept = 127.0.0.1:3260\n', 'accept = %s:%d\n' % accept)
        path = os.path.join(place, 'stunnel.conf')
        with open(path, 'w') as file:
            file.write(text)
        with open(os.path.join(place, 'output'), 'w') as output, host.entered():
            self.running.append(
                subprocess.Popen(['stunnel', path], stdout=output, stderr=subprocess.STDOUT)
            )
        said = os.path.join(place, 'output')
        eventually(lambda: 'Configuration successful' in open(said).read(), 20)


@contextlib.contextmanager
def tunnel(daemon, directory):
    """A server behind stunnel, and three stunnels on the host of the clients. Gives the Hosts."""
    with Hosts(directory) as hosts:
        server, client, stranger = (hosts.key(each) for each in ('server', 'client', 'stranger'))
        shutil.copy(os.path.join(client, 'targetd.crt'), os.path.join(server, 'clients.crt'))
        for place in (client, stranger):
            shutil.copy(os.path.join(server, 'targetd.crt'), os.path.join(place, 'server.crt'))
        other = shutil.copytree(client, os.path.join(hosts.directory, 'other'))
        hosts.stunnel(hosts.server, 'server.conf', server)
        hosts.stunnel(hosts.client, 'client.conf', client)
        hosts.stunnel(hosts.client, 'client.conf', other, OTHERS, 'local = %s\n' % OTHER)
        hosts.stunnel(hosts.client, 'client.conf', stranger, STRANGERS)
        daemon.text.extra += (
            '[portal-group 2]\nportal = 127.0.0.1:3260\nproxy-protocol-from = 127.0.0.1\n'
        )
        daemon.target(TARGET, ['initiator-address = ' + CLIENT], group='2')
        daemon.target(ANY, group='2')
        chap = 'incominguser = erp 12-to-16-chars'
        daemon.target(GUARDED, ['initiator-address = ALL', chap], group='2')
        with hosts.server.entered():
            daemon.start()
        with hosts.client.entered():
            yield hosts
        with hosts.server.entered():
            daemon.stop()


def test_nothing_of_iscsi_is_outside_the_tunnel_and_the_rules_see_the_client(daemon, tmp_path):
    with tunnel(daemon, tmp_path) as hosts:
        with hosts.server.entered():
            outside, within = Capture('eth0'), Capture('lo')
        with Session(BEHIND) as session:
            session.login(TARGET)
            session.clear_attentions()
            for number in range(16):
                session.write(number * 256, pattern(number, 131072))
            for number in range(16):
                assert session.read(number * 256, 256) == pattern(number, 131072)
            session.logout()
        outside, within = outside.close(), within.close()
        assert len(outside) > 4000000 and b'iqn.' not in outside
        assert b'iqn.' in within  # the capture finds it where it is
        daemon.logged('from %s:[0-9]+ logged in to %s' % (CLIENT, TARGET))


def test_who_has_no_key_gets_no_connection_and_another_client_is_not_mistaken(daemon, tmp_path):
    with tunnel(daemon, tmp_path):
        with Session(OTHERS) as session:
            session.login(ANY)
        daemon.logged('from %s:[0-9]+ logged in to %s' % (OTHER, ANY))
        with Session(OTHERS) as session:
            with pytest.raises(LoginFailed):
                session.login(TARGET)
        daemon.logged('from %s:[0-9]+ to %s refused' % (OTHER, TARGET))
        for address in (STRANGERS, (SERVER, 3261)):  # a wrong key; no TLS
            with pytest.raises((Closed, ConnectionError)):
                with Session(address) as session:
                    session.login(ANY)
        with pytest.raises(ConnectionError):
            Session((SERVER, 3260))
        assert daemon.log.count('logged in to ' + ANY) == 1


# -- fail2ban --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """Debian's fail2ban, which is not installed: its configuration is that of the test."""
    if guest_packages.why_not() or not os.path.exists('/usr/bin/python3'):
        pytest.skip('only on Debian')
    place = tmp_path_factory.mktemp('fail2ban')
    guest_packages.download(['fail2ban'], str(place / 'debs'))
    root = str(place / 'root')
    for name in os.listdir(str(place / 'debs')):
        subprocess.check_call(['dpkg-deb', '-x', str(place / 'debs' / name), root])
    return root


def has_nftables():
    """True if nft and the kernel can make the table that fail2ban makes."""
    if not shutil.which('nft') or namespaces.why_not():
        return False
    command = [
        'unshare',
        '-n',
        'nft',
        'add table inet t; add chain inet t c; add rule inet t c reject',
    ]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def fail2ban(root, daemon, directory, is_real=False):
    """The server of fail2ban, with an `nft` that only records its arguments, or with the real one. Gives the
    path of the record and the command of its client."""
    place, record = os.path.join(directory, 'fail2ban'), os.path.join(directory, 'nft')
    shutil.copytree(os.path.join(root, 'etc', 'fail2ban'), place)
    for path in ('jail.d/defaults-debian.conf', 'filter.d/targetd.conf', 'jail.d/targetd.conf'):
        if os.path.exists(os.path.join(place, path)):
            os.unlink(os.path.join(place, path))
    shutil.copy(os.path.join(FAIL2BAN, 'filter.d/targetd.conf'), os.path.join(place, 'filter.d'))
    with open(os.path.join(FAIL2BAN, 'jail.d/targetd.conf')) as file:
        jail = file.read()
    assert '/var/log/targetd.log' in jail
    with open(os.path.join(place, 'jail.d/targetd.conf'), 'w') as file:
        file.write(jail.replace('/var/log/targetd.log', daemon.log_file))
    with open(os.path.join(place, 'fail2ban.local'), 'w') as file:
        file.write('[Definition]\ndbfile = :memory:\n')
    programs = os.path.join(directory, 'programs')
    os.mkdir(programs)
    if not is_real:
        with open(os.path.join(programs, 'nft'), 'w') as file:
            file.write('#!/bin/sh\necho "$@" >> %s\n' % record)
        os.chmod(file.name, 0o755)
    environment = dict(
        os.environ,
        PATH=programs + ':' + os.environ['PATH'],
        PYTHONPATH=os.path.join(root, 'usr/lib/python3/dist-packages'),
        PYTHONDONTWRITEBYTECODE='1',
    )
    log = os.path.join(directory, 'fail2ban.log')
    process = subprocess.Popen(
        ['/usr/bin/python3', os.path.join(root, 'usr/bin/fail2ban-server'), '-f', '-c', place]
        + ['-s', os.path.join(directory, 'f.sock'), '-p', os.path.join(directory, 'f.pid')]
        + ['--logtarget', log, 'start'],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = ['/usr/bin/env', 'PYTHONPATH=' + environment['PYTHONPATH'], '/usr/bin/python3']
    client += [os.path.join(root, 'usr/bin/fail2ban-client'), '-c', place]
    try:
        eventually(lambda: "Jail 'targetd' started" in contents(log), 60)
        yield record, client + ['-s', os.path.join(directory, 'f.sock')]
    finally:
        process.kill()
        process.wait()


def contents(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ''


def guess_ten_times():
    """Log in as often as maxretry of the jail, with wrong secrets; each initiator name has its own delays."""
    for number in range(10):
        with Session(OTHERS, 'iqn.2026-11.test:guesser%d' % number) as session:
            with pytest.raises((LoginFailed, Closed)):
                session.login(GUARDED, chap=Chap('erp', 'wrong-secret-of'))


def is_in(address):
    """True if a login with the right secret succeeds."""
    try:
        with Session(address) as session:
            session.login(GUARDED, chap=Chap('erp', '12-to-16-chars'))
            session.logout()
        return True
    except (Closed, ConnectionError, socket.timeout):  # no answer: the ban began during the login
        return False


def test_fail2ban_bans_the_client_behind_stunnel_with_its_own_address(daemon, tmp_path, unpacked):
    with tunnel(daemon, tmp_path), fail2ban(unpacked, daemon, str(tmp_path)) as (record, _):
        guess_ten_times()
        eventually(lambda: 'add element' in contents(record), 60)
        lines = contents(record).split('\n')
        assert any('tcp dport { 3260,3261 }' in line for line in lines), lines
        banned = [line.split('{')[1].strip(' }') for line in lines if 'add element' in line]
        assert banned == [OTHER], lines


@pytest.mark.skipif(not has_nftables(), reason='no nft, or the kernel has no nftables')
def test_nftables_rejects_a_banned_client_until_the_ban_ends(daemon, tmp_path, unpacked):
    with tunnel(daemon, tmp_path) as hosts, contextlib.ExitStack() as stack:
        with hosts.server.entered():
            _, client = stack.enter_context(fail2ban(unpacked, daemon, str(tmp_path), is_real=True))
        assert is_in(OTHERS) and is_in(BEHIND)
        guess_ten_times()
        eventually(lambda: not is_in(OTHERS), 60)
        assert is_in(BEHIND)
        subprocess.check_call(client + ['set', 'targetd', 'unbanip', OTHER])
        eventually(lambda: is_in(OTHERS), 60)
