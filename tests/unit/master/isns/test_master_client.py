"""Tests of the iSNS client: what it sends and when, how it handles failures, which connections it
accepts, and the entity of a configuration."""

import socket
import struct

import pytest
from master_fakes import StillLoop

from targetd.config import model
from targetd.isns import entity as isns_entity
from targetd.isns import isnsp
from targetd.master.isns import client, connections

SERVER = ('10.0.0.9', 3205)
P1 = isns_entity.Portal('10.0.0.1', 3260)


def entity(*names, **more):
    values = dict(
        identifier='storage1',
        period=300,
        esi_interval=0,
        port=0,
        portals=(P1,),
        nodes=tuple(isns_entity.Node('iqn.t:' + name, '', ((1, (P1,)),)) for name in names),
    )
    values.update(more)
    return isns_entity.Entity(**values)


class FakeConnection(object):
    """Replaces connections.ClientConnection: the test determines the responses."""

    opened = []

    def __init__(self, loop, server, conversation, done, failed):
        self.conversation, self.done, self.failed = conversation, done, failed
        self.words = []
        self.closed = False
        FakeConnection.opened.append(self)

    def close(self):
        self.closed = True

    def run_conversation(self, knows=True, status=0, period=300):
        """Answers all requests in this way; returns [function name, …] of the requests."""
        answer = None
        try:
            while True:
                message = self.conversation.send(answer)
                self.words.append(isnsp.FUNCTION_NAMES[message.function])
                attributes = [isnsp.empty_attribute(isnsp.DELIMITER)]
                if knows or message.function != isnsp.QUERY:
                    attributes.append(isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, period))
                answer = isnsp.Message(
                    message.function | isnsp.RESPONSE,
                    isnsp.FROM_SERVER,
                    0,
                    status,
                    tuple(attributes),
                )
        except StopIteration as stop:
            self.done(stop.value)
        except isns_entity.Refused as e:
            self.failed(str(e))
        return self.words


class ClientBench(object):
    def __init__(self):
        self.loop = StillLoop()
        self.gone = []
        self.client = client.Client(self.loop, SERVER, lambda: self.gone.append(True))

    def registered(self, entity, **more):
        self.client.set_entity(entity)
        self.connection().run_conversation(**more)
        return self.client

    def connection(self):
        """Returns the one connection that was opened."""
        (connection,) = FakeConnection.opened
        del FakeConnection.opened[:]
        return connection

    def is_idle(self):
        return not FakeConnection.opened


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(client, 'ClientConnection', FakeConnection)
    del FakeConnection.opened[:]
    bench = ClientBench()
    yield bench
    bench.client.close()
    bench.loop.close()


def test_a_registration_is_renewed_three_times_in_a_period(bench):
    bench.client.set_entity(entity('a'))
    assert bench.connection().run_conversation(period=90) == ['DevAttrReg', 'DevAttrQry']
    for _ in range(3):
        bench.loop.pass_time(29)
        assert bench.is_idle()
        bench.loop.pass_time(1.5)
        assert bench.connection().run_conversation(period=90) == ['DevAttrQry']
    assert bench.client.state == 'registered as storage1'


def test_an_unchanged_entity_is_not_registered_again(bench):
    bench.registered(entity('a'))
    bench.client.set_entity(entity('a'))
    assert bench.is_idle()


def test_a_change_during_a_conversation_is_registered_afterwards(bench):
    bench.client.set_entity(entity('a'))
    connection = bench.connection()
    bench.client.set_entity(entity('a', 'b'))
    assert bench.is_idle()  # one conversation at a time
    connection.run_conversation()
    assert bench.connection().run_conversation() == ['DevAttrReg', 'DevAttrQry']
    assert bench.client.known == entity('a', 'b')


@pytest.mark.parametrize('new', [entity('a', identifier='storage2'), entity('b')])
def test_the_old_entity_is_deregistered_before_a_renamed_one_is_registered(bench, new):
    bench.registered(entity('a'))
    bench.client.set_entity(new)
    assert bench.connection().run_conversation() == ['DevDereg']
    assert bench.connection().run_conversation() == ['DevAttrReg', 'DevAttrQry']


def test_without_targets_nothing_is_registered(bench):
    bench.client.set_entity(None)
    assert bench.is_idle() and bench.client.state == 'nothing to register'
    bench.registered(entity('a'))
    bench.client.set_entity(None)
    assert bench.connection().run_conversation() == ['DevDereg']
    bench.loop.pass_time(1000)
    assert bench.is_idle()


def test_failures_are_retried_at_growing_intervals_and_logged_once(bench, capfd):
    bench.client.set_entity(entity('a'))
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        bench.connection().failed('Connection refused')
        bench.loop.pass_time(pause - 1)
        assert bench.is_idle()
        bench.loop.pass_time(1)
    assert bench.client.state == 'failed: Connection refused'
    assert capfd.readouterr().err.count('Connection refused') == 1
    bench.connection().run_conversation()
    bench.loop.pass_time(100)
    bench.connection().failed('no answer')
    bench.loop.pass_time(5)  # begins anew with a short pause
    assert bench.connection().run_conversation() == [
        'DevAttrQry'
    ]  # and asks whether it is still known
    assert bench.client.state == 'registered as storage1'


def test_a_lost_registration_is_registered_again(bench, capfd):
    bench.registered(entity('a'))
    bench.loop.pass_time(100)
    assert bench.connection().run_conversation(knows=False) == ['DevAttrQry']
    assert bench.connection().run_conversation() == ['DevAttrReg', 'DevAttrQry']
    assert 'no longer has our registration' in capfd.readouterr().err


def test_a_server_that_shows_no_registration_gets_a_new_one_every_hour(bench):
    bench.registered(entity('a'), knows=False)
    words = []
    for _ in range(36):
        bench.loop.pass_time(100)
        words += bench.connection().run_conversation(knows=False)
    assert words.count('DevAttrReg') == 1 and words.count('DevAttrQry') == 36


def test_a_refused_deregistration_does_not_prevent_the_registration(bench):
    bench.registered(entity('a'))
    bench.client.set_entity(entity('a', identifier='storage2'))
    bench.connection().run_conversation(status=8)
    bench.loop.pass_time(5)
    assert bench.connection().run_conversation() == ['DevAttrReg', 'DevAttrQry']


@pytest.mark.parametrize('is_there', [True, False])
def test_a_notification_of_our_removal_is_verified(bench, is_there):
    bench.registered(entity('a', 'b'))
    bench.client.handle_notification(isnsp.OBJECT_REMOVED, 'iqn.t:b')
    bench.client.handle_notification(isnsp.OBJECT_REMOVED, 'iqn.t:b')
    bench.loop.pass_time(0.5)
    assert bench.is_idle()
    bench.loop.pass_time(0.5)
    assert bench.connection().run_conversation(knows=is_there) == ['DevAttrQry']
    if not is_there:
        assert bench.connection().run_conversation() == ['DevAttrReg', 'DevAttrQry']
    assert bench.is_idle()


def test_notifications_about_other_nodes_are_only_logged(bench, capfd):
    bench.registered(entity('a'))
    bench.client.handle_notification(isnsp.OBJECT_ADDED, 'iqn.t:initiator')
    bench.loop.pass_time(2)
    assert bench.is_idle() and 'iqn.t:initiator is added' in capfd.readouterr().err


def test_gone_is_called_after_a_deregistration_succeeds_or_fails(bench):
    bench.registered(entity('a'))
    bench.client.deregister()
    assert bench.gone == []
    assert bench.connection().run_conversation() == ['DevDereg']
    assert bench.gone == [True] and bench.client.is_gone


def test_a_deregistration_during_a_registration(bench):
    bench.client.set_entity(entity('a'))
    connection = bench.connection()
    bench.client.deregister()
    connection.run_conversation()
    bench.connection().failed('Connection refused')
    assert bench.gone == [True]
    bench.loop.pass_time(1000)
    assert bench.is_idle()


def test_a_deregistration_without_a_registration_finishes_at_once(bench):
    bench.client.deregister()
    assert bench.gone == [True]


# -- from the configuration ------------------------------------------------------------------------


def target(name, **more):
    return model.Target('iqn.t:' + name, **dict(dict(initiator_addresses=('ALL',)), **more))


def addresses(family):
    return {
        socket.AF_INET: ['127.0.0.1', '10.0.0.1', '169.254.0.7', '10.1.0.1'],
        socket.AF_INET6: ['::1', 'fe80::1%eth0'],
    }[family]


def made(targets, portals, **server):
    configuration = model.configuration(model.Server(**server), (), targets)
    return client.entity_of(configuration, portals, 4000, addresses, 'myhost')


def test_an_entity_contains_the_targets_that_accept_logins():
    found = made(
        [
            target('a', alias='A', portal_groups=(1, 2)),
            target('offline', state='offline'),
            target('nobody', initiator_addresses=()),
            target('elsewhere', portal_groups=(9,)),
            target('b', portal_groups=(2,), initiator_addresses=(), initiator_names=('iqn.x:*',)),
        ],
        [(1, '10.0.0.1', 3260), (2, '10.0.0.2', 3261)],
        isns_period=60,
        isns_esi_interval=30,
    )
    p1, p2 = isns_entity.Portal('10.0.0.1', 3260), isns_entity.Portal('10.0.0.2', 3261)
    assert found == isns_entity.Entity(
        'myhost',
        60,
        30,
        4000,
        (p1, p2),
        (
            isns_entity.Node('iqn.t:a', 'A', ((1, (p1,)), (2, (p2,)))),
            isns_entity.Node('iqn.t:b', '', ((2, (p2,)),)),
        ),
    )


def test_a_wildcard_is_replaced_by_all_reachable_addresses():
    found = made([target('a')], [(1, '0.0.0.0', 3260)], isns_entity='named')
    assert [portal.address for portal in found.portals] == [
        '10.0.0.1',
        '10.1.0.1',
    ] and found.identifier == 'named'
    assert client.reachable_addresses('::', addresses) == ['::1', 'fe80::1']  # there are no others
    assert client.reachable_addresses('fe80::1%eth0', addresses) == ['fe80::1']


def test_there_is_no_entity_without_targets_or_portals():
    assert made([], [(1, '10.0.0.1', 3260)]) is None
    assert made([target('a')], []) is None


# -- sockets ---------------------------------------------------------------------------------------


class ServerBench(object):
    """IsnsClients with one server, 127.0.0.1, on a port on which the test listens."""

    def __init__(self):
        self.loop = StillLoop()
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(5)
        self.listener.settimeout(5)
        self.isns = client.IsnsClients(self.loop, {(1, '127.0.0.1', 3260): None})
        self.opened = [self.listener]

    def configure(self, *targets, **server):
        server.setdefault('isns_server', (self.listener.getsockname(),))
        self.isns.apply_configuration(
            model.configuration(model.Server(isns_entity='storage1', **server), (), targets)
        )
        self.loop.settle()

    def accept(self):
        """Returns (socket, [Message, …] that were received)."""
        sock, _ = self.listener.accept()
        sock.settimeout(5)
        self.opened.append(sock)
        self.loop.settle()
        return sock, isnsp.Assembler().receive(sock.recv(65536))

    def call(self, source='127.0.0.1'):
        sock = socket.socket()
        self.opened.append(sock)
        sock.bind((source, 0))
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(('127.0.0.1', self.isns._listener.port))
        self.loop.settle()
        return sock

    def response_to(self, sock, message):
        sock.sendall(isnsp.encode(message))
        self.loop.settle()
        (answer,) = isnsp.Assembler().receive(sock.recv(65536))
        return answer

    def close(self):
        self.isns.close()
        for sock in self.opened:
            sock.close()
        self.loop.close()


@pytest.fixture
def server_bench():
    server_bench = ServerBench()
    yield server_bench
    server_bench.close()


def reply(message, *attributes):
    return isnsp.encode(
        isnsp.Message(
            message.function | isnsp.RESPONSE, isnsp.FROM_SERVER, message.transaction, 0, attributes
        )
    )


def inquiry(identifier='storage1'):
    return isnsp.Message(
        isnsp.ENTITY_STATUS_INQUIRY,
        isnsp.FROM_SERVER,
        5,
        None,
        (isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, identifier),),
    )


def test_a_conversation_over_a_socket_with_a_slow_response(server_bench):
    server_bench.configure(target('a'))
    sock, (message,) = server_bench.accept()
    assert message.function == isnsp.REGISTER
    data = reply(
        message,
        isnsp.empty_attribute(isnsp.DELIMITER),
        isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, 77),
    )
    for at in range(len(data)):
        sock.sendall(data[at : at + 1])
        server_bench.loop.settle(3)
    server_bench.loop.settle()
    assert isnsp.Assembler().receive(sock.recv(65536))[0].function == isnsp.REGISTER_SCN


def test_a_response_to_an_earlier_transaction_is_ignored(server_bench):
    server_bench.configure(target('a'))
    sock, (message,) = server_bench.accept()
    sock.sendall(reply(message._replace(transaction=message.transaction + 1)))
    server_bench.loop.settle()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_silence_and_a_closed_connection_are_failures(server_bench, capfd):
    server_bench.configure(target('a'))
    server_bench.accept()
    server_bench.loop.pass_time(connections.ANSWER_SECONDS)
    assert 'no response within 10 seconds' in dict(server_bench.isns.facts()).popitem()[1]
    server_bench.loop.pass_time(5)
    sock, _ = server_bench.accept()
    sock.close()
    server_bench.loop.settle()
    assert 'closed the connection' in capfd.readouterr().err


def test_inquiries_are_answered_only_for_our_entity(server_bench):
    server_bench.configure(target('a'))
    sock = server_bench.call()
    assert server_bench.response_to(sock, inquiry()).attributes == (
        isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'storage1'),
    )
    sock.sendall(isnsp.encode(inquiry('storage0')))
    server_bench.loop.settle()
    # the other one got no answer
    assert (
        server_bench.response_to(sock, inquiry()).function
        == isnsp.ENTITY_STATUS_INQUIRY | isnsp.RESPONSE
    )


def test_unknown_excess_and_idle_connections_are_closed(server_bench, capfd):
    server_bench.configure(target('a'))
    assert server_bench.call('127.0.0.2').recv(1) == b''
    callers = [server_bench.call() for _ in range(connections.MAXIMUM_CONNECTIONS + 1)]
    assert callers[-1].recv(1) == b''
    server_bench.loop.pass_time(connections.IDLE_SECONDS)
    assert callers[0].recv(1) == b''
    mad = server_bench.call()
    mad.sendall(struct.pack('>HHHHHH', 9, 9, 9, 9, 9, 9))
    server_bench.loop.settle()
    assert mad.recv(1) == b''
    assert capfd.readouterr().err.count('to isns-port refused') == 2


def test_without_a_server_no_port_is_open(server_bench):
    server_bench.configure(target('a'))
    port = server_bench.isns._listener.port
    assert port
    server_bench.configure(target('a'), isns_server=())
    with pytest.raises(OSError):
        socket.create_connection(('127.0.0.1', port), 1)


def test_deregistration_has_a_time_limit(server_bench):
    over = []
    server_bench.configure(target('a'))
    server_bench.accept()
    server_bench.isns.deregister_all()
    assert server_bench.isns.is_deregistering(lambda: over.append(True))
    server_bench.loop.pass_time(client.DEREGISTER_SECONDS - 0.5)
    assert over == []
    server_bench.loop.pass_time(0.5)
    assert over == [True] and not server_bench.isns.is_deregistering(None)


def test_without_a_server_there_is_nothing_to_deregister(server_bench):
    server_bench.configure(isns_server=())
    server_bench.isns.deregister_all()
    assert not server_bench.isns.is_deregistering(lambda: None)


def test_a_server_that_is_configured_again_is_not_deregistered(server_bench):
    server_bench.configure(target('a'))
    server_bench.accept()
    server_bench.configure(target('a'), isns_server=())
    server_bench.configure(target('a'))
    _, (message,) = server_bench.accept()
    assert message.function == isnsp.REGISTER
    assert len(server_bench.isns._active_clients()) == 1
