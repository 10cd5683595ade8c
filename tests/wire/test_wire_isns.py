"""Tests of the iSNS client with Debian's Open-iSNS server on loopback, and with servers that do not
respond."""

import os
import re
import shutil
import socket
import subprocess
import time

import pytest
from daemon import TARGET, eventually, free_port
from initiator import connect

from targetd.isns import isnsp

pytestmark = pytest.mark.wire

OTHER = 'iqn.2026-11.test.targetd:other'
OFFLINE = 'iqn.2026-11.test.targetd:offline'
NOBODY = 'iqn.2026-11.test.targetd:nobody'
INITIATOR = 'iqn.2026-11.test:initiator'
ISNSD = shutil.which('isnsd', path=os.environ.get('PATH', '') + ':/usr/sbin')


class Server(object):
    """An isnsd started by the test: its port and the content of its database."""

    def __init__(self, directory, period):
        self.directory, self.port, self.process, self.period = (
            str(directory),
            free_port(),
            None,
            period,
        )
        self.config = os.path.join(self.directory, 'isnsd.conf')
        self.log_file = os.path.join(self.directory, 'isnsd.log')
        self.settings = [
            'SourceName = iqn.2026-11.test:isns',
            'Database = %s/db' % self.directory,
            'BindAddress = 127.0.0.1:%d' % self.port,
            'RegistrationPeriod = %ds' % period,
            'DefaultDiscoveryDomain = 1',
            'SLPRegister = 0',
            'Security = 0',
            'PIDFile = %s/pid' % self.directory,
            'ControlSocket = %s/control' % self.directory,
            'ESIMinInterval = 1s',
            'ESIMaxInterval = 60s',
            'ESIRetries = 3',
            'SCNTimeout = 2',
        ]

    def start(self):
        os.makedirs(os.path.join(self.directory, 'db'), exist_ok=True)
        with open(self.config, 'w') as file:
            file.write('\n'.join(self.settings) + '\n')
        with open(self.log_file, 'ab') as output:
            self.process = subprocess.Popen(
                [ISNSD, '--foreground', '--config', self.config, '--debug', 'esi,scn,state'],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

        def is_up():
            assert self.process.poll() is None, self.log
            try:
                socket.create_connection(('127.0.0.1', self.port), 1).close()
            except OSError:
                return False
            return True

        eventually(is_up, 10, 'isnsd listening')
        return self

    def stop(self, forget=False):
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None
        if forget:
            shutil.rmtree(os.path.join(self.directory, 'db'))

    @property
    def log(self):
        with open(self.log_file, errors='replace') as file:
            return file.read()

    def objects(self, kind):
        """Returns [{name: value}, …] of the registered objects of this kind."""
        done = subprocess.run(
            [ISNSD, '--config', self.config, '--dump-db'],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
        )
        found = []
        for part in done.stdout.decode('utf-8', 'replace').split('--------------')[1:]:
            if re.search(r'type=<%s> state=mature' % kind, part):
                found.append(
                    dict(
                        (name.strip(), value.strip().strip('"'))
                        for name, value in re.findall(
                            r'^ +[0-9a-f]{4} +\w+ *: ([^=\n]+)=([^\n]*)$', part, re.M
                        )
                    )
                )
        return found

    def names(self):
        return sorted(each['iSCSI name'] for each in self.objects('iSCSI Storage Node'))

    def entities(self):
        return [each['Entity identifier'] for each in self.objects('Network Entity')]

    def portals(self):
        return sorted(
            '%s:%s' % (each['Portal IP address'], each['Portal TCP/UDP port'])
            for each in self.objects('Portal')
        )

    def ask(self, *messages):
        """Sends a request as another client."""
        with socket.create_connection(('127.0.0.1', self.port), 5) as sock:
            assembler = isnsp.Assembler()
            for message in messages:
                sock.sendall(isnsp.encode(message))
                answers = []
                while not answers:
                    answers = assembler.receive(sock.recv(65536))
                assert answers[0].status == isnsp.SUCCESS
        return answers[0]


@pytest.fixture
def isnsd(tmp_path_factory):
    if not ISNSD:
        pytest.skip('isnsd is not installed (Debian: open-isns-server)')
    made = []

    def make(period=600):
        made.append(Server(tmp_path_factory.mktemp('isnsd'), period))
        return made[-1].start()

    yield make
    for server in made:
        server.stop()


def begin(daemon, server, **more):
    daemon.target()
    daemon.text.server.update(
        {'isns-server': '127.0.0.1:%d' % server.port, 'isns-entity': 'storage1'}
    )
    daemon.text.server.update((key.replace('_', '-'), value) for key, value in more.items())
    daemon.start()
    return daemon


def test_targets_and_portals_are_registered(daemon, isnsd):
    server = isnsd()
    second = free_port()
    daemon.text.portal('127.0.0.1:%d' % second, group=7)
    daemon.target(OTHER, ['initiator-address = ALL', 'alias = The other'], group='1, 7')
    daemon.target(OFFLINE, ['initiator-address = ALL', 'state = offline'])
    daemon.target(NOBODY, [])
    begin(daemon, server)
    daemon.logged('registered as storage1 with 2 targets and 2 portals')
    assert server.entities() == ['storage1']
    assert server.names() == [TARGET, OTHER]
    assert server.portals() == sorted('127.0.0.1:%d/tcp' % port for port in (daemon.port, second))
    assert [node.get('iSCSI alias') for node in server.objects('iSCSI Storage Node')] == [
        'The other',
        None,
    ]
    groups = sorted(
        (g['Portal group name'], g['Portal group port'], g['Portal group tag'])
        for g in server.objects('iSCSI Portal Group')
    )
    assert groups == sorted(
        [
            (TARGET, '%d/tcp' % daemon.port, '1'),
            (TARGET, '%d/tcp' % second, '0'),
            (OTHER, '%d/tcp' % daemon.port, '1'),
            (OTHER, '%d/tcp' % second, '7'),
        ]
    )


def test_a_normal_stop_deregisters(daemon, isnsd):
    server = isnsd()
    begin(daemon, server)
    daemon.logged('registered as storage1')
    assert daemon.stop() == 0
    assert server.entities() == [] and server.names() == []
    assert 'deregistered storage1' in daemon.log


def test_a_reload_updates_the_registration(daemon, isnsd):
    server = isnsd()
    begin(daemon, server)
    daemon.logged('registered as storage1')
    daemon.target(OTHER)
    daemon.reload('reload: add target')
    eventually(lambda: server.names() == [TARGET, OTHER], 10)
    del daemon.text.targets[TARGET]
    daemon.reload('reload: remove target')
    eventually(lambda: server.names() == [OTHER], 10)
    daemon.text.server['isns-entity'] = 'storage2'
    daemon.reload('reload: change isns-entity')
    eventually(lambda: server.entities() == ['storage2'] and server.names() == [OTHER], 10)
    del daemon.text.server['isns-server']
    daemon.reload('reload: change isns-server')
    eventually(lambda: server.entities() == [], 10)


def is_kept(daemon, server, renewals=4):
    """Watch the registration through so many renewals: True if it was never gone. On a machine that
    is too busy it can be: a renewal is due every third of the period."""
    daemon.logged('registered as storage1 .* for a period of %d seconds' % server.period)
    stamps, gone = set(), []

    def renewed():
        entities = server.objects('Network Entity')
        stamps.update(entity['Timestamp'] for entity in entities)
        gone.extend([True] * (not entities))
        return gone or len(stamps) > renewals

    eventually(renewed, 10 + renewals * server.period)
    return not gone and daemon.log.count('registered as') == 1


def test_a_registration_is_renewed_and_ends_with_the_daemon(daemon, isnsd):
    """A period of three seconds if the machine keeps up with that; what is never renewed is not
    kept in longer ones either."""
    for period in (3, 9, 27):
        server = isnsd(period)
        begin(daemon, server)
        if is_kept(daemon, server):
            break
        assert period < 27 and daemon.stop() == 0
        os.unlink(daemon.log_file)
    daemon.workers()
    daemon.kill()  # a crash: no deregistration is sent
    eventually(lambda: server.entities() == [], 10 + 3 * server.period)


def test_a_registration_lost_by_the_server_is_registered_again(daemon, isnsd):
    server = isnsd(period=3)
    begin(daemon, server)
    daemon.logged('registered as storage1')
    server.stop(forget=True)
    server.start()
    eventually(lambda: server.names() == [TARGET], 20)
    assert re.search('iSNS server .*(no longer has our registration|refused)', daemon.log)


def test_inquiries_are_answered(daemon, isnsd):
    """The server removes a portal after three unanswered Entity Status Inquiries (ESI)."""
    server = isnsd()
    begin(daemon, server, isns_esi_interval='1s')
    daemon.logged('registered as storage1')
    eventually(lambda: server.log.count('Good ESI response') >= 3, 15, lambda: server.log[-3000:])
    assert server.portals() == ['127.0.0.1:%d/tcp' % daemon.port]
    daemon.workers()
    daemon.kill()
    eventually(lambda: server.entities() == [], 20, lambda: server.log[-3000:])


def test_notifications_are_logged_and_answered(daemon, isnsd):
    server = isnsd()
    begin(daemon, server)
    daemon.logged('registered as storage1')
    name, identifier = (
        isnsp.text_attribute(isnsp.ISCSI_NAME, INITIATOR),
        isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'host1'),
    )
    register = isnsp.request_message(
        isnsp.REGISTER,
        name,
        identifier,
        isnsp.empty_attribute(isnsp.DELIMITER),
        identifier,
        isnsp.number_attribute(isnsp.ENTITY_PROTOCOL, 2),
        name,
        isnsp.number_attribute(isnsp.ISCSI_NODE_TYPE, 2),
    )
    server.ask(register)
    daemon.logged('%s is added' % re.escape(INITIATOR))
    eventually(lambda: 'acknowledged notification' in server.log, 10, lambda: server.log[-3000:])
    server.ask(
        isnsp.request_message(
            isnsp.DEREGISTER, name, isnsp.empty_attribute(isnsp.DELIMITER), identifier
        )
    )
    daemon.logged('%s is removed' % re.escape(INITIATOR))


def test_connections_from_other_addresses_are_refused(daemon, isnsd):
    server = isnsd()
    port = free_port('127.0.0.2')
    begin(daemon, server, isns_port=str(port))
    daemon.logged('registered as storage1')
    with socket.socket() as stranger:
        stranger.bind(('127.0.0.2', 0))
        stranger.settimeout(5)
        stranger.connect(('127.0.0.1', port))
        assert stranger.recv(1) == b''
    daemon.logged('127.0.0.2.* to isns-port refused')


# -- servers that are none -------------------------------------------------------------------------


def test_an_unreachable_server_does_not_affect_sessions(daemon):
    daemon.target()
    daemon.text.server['isns-server'] = '127.0.0.1:%d' % free_port()
    begun = time.monotonic()
    daemon.start()
    with connect(daemon.address, TARGET) as session:
        session.clear_attentions()
        assert session.capacity() == (131072, 512)
    assert time.monotonic() - begun < 8
    daemon.logged('iSNS server 127.0.0.1.*refused; retrying')


def test_a_server_that_never_answers_delays_the_stop_by_no_more_than_two_seconds(daemon):
    with socket.socket() as mute:
        mute.bind(('127.0.0.1', 0))
        mute.listen(8)
        daemon.target()
        daemon.text.server['isns-server'] = '127.0.0.1:%d' % mute.getsockname()[1]
        daemon.start()
        with connect(daemon.address, TARGET) as session:
            session.clear_attentions()
            session.logout()
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 6


@pytest.mark.parametrize(
    'answer',
    [b'HTTP/1.0 400 Bad Request\r\n\r\n', bytes(64), b'\x00\x01\x80\x01\xff\xff' + bytes(100)],
)
def test_malformed_responses_of_a_server(daemon, answer):
    with socket.socket() as mad:
        mad.bind(('127.0.0.1', 0))
        mad.listen(8)
        mad.settimeout(10)
        daemon.target()
        daemon.text.server['isns-server'] = '127.0.0.1:%d' % mad.getsockname()[1]
        daemon.start()
        connection, _ = mad.accept()
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()
        daemon.logged('warning: iSNS server 127.0.0.1')
        connect(daemon.address, TARGET).close()


def test_status_reports_the_registration(daemon, isnsd):
    server = isnsd()
    begin(daemon, server)
    daemon.logged('registered as storage1')
    command = [
        daemon.python,
        '-m',
        'targetd.admin.cli',
        '-s',
        os.path.join(daemon.directory, 'targetd.sock'),
        'status',
    ]
    done = subprocess.run(
        command,
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
    )
    assert re.search(
        'iSNS server 127.0.0.1:%d +registered as storage1' % server.port, done.stdout.decode()
    ), done.stdout
