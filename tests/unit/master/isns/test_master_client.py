"""The iSNS client's decisions: what it says when, after what failure; who is heard; what it makes
of a configuration."""

import socket
import struct

import pytest
from master_fakes import StillLoop

from targetd.config import model
from targetd.isns import entity as said
from targetd.isns import messages as m
from targetd.master.isns import client, connections

SERVER = ('10.0.0.9', 3205)
P1 = said.Portal('10.0.0.1', 3260)


def entity(*names, **more):
    values = dict(
        identifier='storage1',
        period=300,
        esi_interval=0,
        port=0,
        portals=(P1,),
        nodes=tuple(said.Node('iqn.t:' + name, '', ((1, (P1,)),)) for name in names),
    )
    values.update(more)
    return said.Entity(**values)


class Talk(object):
    """Stands for isns_wire.Talk: the test says what the server answers."""

    begun = []

    def __init__(self, loop, server, conversation, done, failed):
        self.conversation, self.done, self.failed = conversation, done, failed
        self.words = []
        self.closed = False
        Talk.begun.append(self)

    def close(self):
        self.closed = True

    def goes_on(self, knows=True, status=0, period=300):
        """The server answers everything so; gives [function name, …] that it heard."""
        answer = None
        try:
            while True:
                message = self.conversation.send(answer)
                self.words.append(m.FUNCTION_NAMES[message.function])
                attributes = [m.nothing(m.DELIMITER)]
                if knows or message.function != m.QUERY:
                    attributes.append(m.number(m.REGISTRATION_PERIOD, period))
                answer = m.Message(
                    message.function | m.RESPONSE, m.FROM_SERVER, 0, status, tuple(attributes)
                )
        except StopIteration as stop:
            self.done(stop.value)
        except said.Refused as e:
            self.failed(str(e))
        return self.words


class Desk(object):
    def __init__(self):
        self.loop = StillLoop()
        self.gone = []
        self.client = client.Client(self.loop, SERVER, lambda: self.gone.append(True))

    def registered(self, entity, **more):
        self.client.follow(entity)
        self.talk().goes_on(**more)
        return self.client

    def talk(self):
        """The conversation that was begun, once."""
        (talk,) = Talk.begun
        del Talk.begun[:]
        return talk

    def rests(self):
        return not Talk.begun


@pytest.fixture
def desk(monkeypatch):
    monkeypatch.setattr(client, 'Talk', Talk)
    del Talk.begun[:]
    desk = Desk()
    yield desk
    desk.client.close()
    desk.loop.close()


def test_registered_then_renewed_three_times_in_a_period(desk):
    desk.client.follow(entity('a'))
    assert desk.talk().goes_on(period=90) == ['DevAttrReg', 'DevAttrQry']
    for _ in range(3):
        desk.loop.pass_time(29)
        assert desk.rests()
        desk.loop.pass_time(1.5)
        assert desk.talk().goes_on(period=90) == ['DevAttrQry']
    assert desk.client.state == 'registered as storage1'


def test_the_same_again_is_no_news(desk):
    desk.registered(entity('a'))
    desk.client.follow(entity('a'))
    assert desk.rests()


def test_what_changes_while_we_talk_is_said_afterwards(desk):
    desk.client.follow(entity('a'))
    talk = desk.talk()
    desk.client.follow(entity('a', 'b'))
    assert desk.rests()  # one conversation at a time
    talk.goes_on()
    assert desk.talk().goes_on() == ['DevAttrReg', 'DevAttrQry']
    assert desk.client.known == entity('a', 'b')


@pytest.mark.parametrize('new', [entity('a', identifier='storage2'), entity('b')])
def test_another_name_of_ours_is_first_taken_back(desk, new):
    desk.registered(entity('a'))
    desk.client.follow(new)
    assert desk.talk().goes_on() == ['DevDereg']
    assert desk.talk().goes_on() == ['DevAttrReg', 'DevAttrQry']


def test_no_target_is_nothing_to_register(desk):
    desk.client.follow(None)
    assert desk.rests() and desk.client.state == 'nothing to register'
    desk.registered(entity('a'))
    desk.client.follow(None)
    assert desk.talk().goes_on() == ['DevDereg']
    desk.loop.pass_time(1000)
    assert desk.rests()


def test_failures_are_repeated_ever_more_slowly_and_logged_once(desk, capfd):
    desk.client.follow(entity('a'))
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        desk.talk().failed('Connection refused')
        desk.loop.pass_time(pause - 1)
        assert desk.rests()
        desk.loop.pass_time(1)
    assert desk.client.state == 'failed: Connection refused'
    assert capfd.readouterr().err.count('Connection refused') == 1
    desk.talk().goes_on()
    desk.loop.pass_time(100)
    desk.talk().failed('no answer')
    desk.loop.pass_time(5)  # begins anew with a short pause
    assert desk.talk().goes_on() == ['DevAttrQry']  # and asks whether it is still known
    assert desk.client.state == 'registered as storage1'


def test_forgotten_is_registered_again(desk, capfd):
    desk.registered(entity('a'))
    desk.loop.pass_time(100)
    assert desk.talk().goes_on(knows=False) == ['DevAttrQry']
    assert desk.talk().goes_on() == ['DevAttrReg', 'DevAttrQry']
    assert 'has forgotten us' in capfd.readouterr().err


def test_a_server_that_shows_nothing_is_told_anew_once_an_hour(desk):
    desk.registered(entity('a'), knows=False)
    words = []
    for _ in range(36):
        desk.loop.pass_time(100)
        words += desk.talk().goes_on(knows=False)
    assert words.count('DevAttrReg') == 1 and words.count('DevAttrQry') == 36


def test_a_refused_deregistration_keeps_nobody_from_registering(desk):
    desk.registered(entity('a'))
    desk.client.follow(entity('a', identifier='storage2'))
    desk.talk().goes_on(status=8)
    desk.loop.pass_time(5)
    assert desk.talk().goes_on() == ['DevAttrReg', 'DevAttrQry']


@pytest.mark.parametrize('is_there', [True, False])
def test_a_notice_that_we_were_removed_is_looked_into(desk, is_there):
    desk.registered(entity('a', 'b'))
    desk.client.notice(m.OBJECT_REMOVED, 'iqn.t:b')
    desk.client.notice(m.OBJECT_REMOVED, 'iqn.t:b')
    desk.loop.pass_time(0.5)
    assert desk.rests()
    desk.loop.pass_time(0.5)
    assert desk.talk().goes_on(knows=is_there) == ['DevAttrQry']
    if not is_there:
        assert desk.talk().goes_on() == ['DevAttrReg', 'DevAttrQry']
    assert desk.rests()


def test_others_come_and_go_in_the_log_only(desk, capfd):
    desk.registered(entity('a'))
    desk.client.notice(m.OBJECT_ADDED, 'iqn.t:initiator')
    desk.loop.pass_time(2)
    assert desk.rests() and 'iqn.t:initiator is added' in capfd.readouterr().err


def test_leaving_is_told_when_it_is_done_or_has_failed(desk):
    desk.registered(entity('a'))
    desk.client.leave()
    assert desk.gone == []
    assert desk.talk().goes_on() == ['DevDereg']
    assert desk.gone == [True] and desk.client.is_gone


def test_leaving_in_the_middle_of_a_registration(desk):
    desk.client.follow(entity('a'))
    talk = desk.talk()
    desk.client.leave()
    talk.goes_on()
    desk.talk().failed('Connection refused')
    assert desk.gone == [True]
    desk.loop.pass_time(1000)
    assert desk.rests()


def test_leaving_with_nothing_known_is_at_once(desk):
    desk.client.leave()
    assert desk.gone == [True]


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


def test_an_entity_is_what_can_be_logged_in_to():
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
    p1, p2 = said.Portal('10.0.0.1', 3260), said.Portal('10.0.0.2', 3261)
    assert found == said.Entity(
        'myhost',
        60,
        30,
        4000,
        (p1, p2),
        (
            said.Node('iqn.t:a', 'A', ((1, (p1,)), (2, (p2,)))),
            said.Node('iqn.t:b', '', ((2, (p2,)),)),
        ),
    )


def test_a_wildcard_is_every_address_that_others_can_use():
    found = made([target('a')], [(1, '0.0.0.0', 3260)], isns_entity='named')
    assert [portal.address for portal in found.portals] == [
        '10.0.0.1',
        '10.1.0.1',
    ] and found.identifier == 'named'
    assert client.usable('::', addresses) == ['::1', 'fe80::1']  # there are no others
    assert client.usable('fe80::1%eth0', addresses) == ['fe80::1']


def test_nothing_to_serve_is_nothing_to_register():
    assert made([], [(1, '10.0.0.1', 3260)]) is None
    assert made([target('a')], []) is None


# -- sockets ---------------------------------------------------------------------------------------


class House(object):
    """An Isns whose only server is 127.0.0.1 at a port where the test listens."""

    def __init__(self):
        self.loop = StillLoop()
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(5)
        self.listener.settimeout(5)
        self.isns = client.Isns(self.loop, {(1, '127.0.0.1', 3260): None})
        self.opened = [self.listener]

    def follow(self, *targets, **server):
        server.setdefault('isns_server', (self.listener.getsockname(),))
        self.isns.follow(
            model.configuration(model.Server(isns_entity='storage1', **server), (), targets)
        )
        self.loop.settle()

    def accept(self):
        """(socket, [Message, …] that came)."""
        sock, _ = self.listener.accept()
        sock.settimeout(5)
        self.opened.append(sock)
        self.loop.settle()
        return sock, m.Assembler().receive(sock.recv(65536))

    def call(self, source='127.0.0.1'):
        sock = socket.socket()
        self.opened.append(sock)
        sock.bind((source, 0))
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(('127.0.0.1', self.isns._callers.port))
        self.loop.settle()
        return sock

    def hears(self, sock, message):
        sock.sendall(m.encode(message))
        self.loop.settle()
        (answer,) = m.Assembler().receive(sock.recv(65536))
        return answer

    def close(self):
        self.isns.close()
        for sock in self.opened:
            sock.close()
        self.loop.close()


@pytest.fixture
def house():
    house = House()
    yield house
    house.close()


def reply(message, *attributes):
    return m.encode(
        m.Message(message.function | m.RESPONSE, m.FROM_SERVER, message.transaction, 0, attributes)
    )


def inquiry(identifier='storage1'):
    return m.Message(m.INQUIRY, m.FROM_SERVER, 5, None, (m.text(m.ENTITY_IDENTIFIER, identifier),))


def test_a_conversation_over_a_socket_however_slowly_the_answer_comes(house):
    house.follow(target('a'))
    sock, (message,) = house.accept()
    assert message.function == m.REGISTER
    data = reply(message, m.nothing(m.DELIMITER), m.number(m.REGISTRATION_PERIOD, 77))
    for at in range(len(data)):
        sock.sendall(data[at : at + 1])
        house.loop.settle(3)
    house.loop.settle()
    assert m.Assembler().receive(sock.recv(65536))[0].function == m.REGISTER_NOTIFICATION


def test_an_answer_to_an_older_question_is_no_answer(house):
    house.follow(target('a'))
    sock, (message,) = house.accept()
    sock.sendall(reply(message._replace(transaction=message.transaction + 1)))
    house.loop.settle()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_silence_and_a_closed_connection_are_failures(house, capfd):
    house.follow(target('a'))
    house.accept()
    house.loop.pass_time(connections.ANSWER_SECONDS)
    assert 'no answer within 10 seconds' in dict(house.isns.facts()).popitem()[1]
    house.loop.pass_time(5)
    sock, _ = house.accept()
    sock.close()
    house.loop.settle()
    assert 'closed the connection' in capfd.readouterr().err


def test_inquiries_are_answered_for_our_entity_only(house):
    house.follow(target('a'))
    sock = house.call()
    assert house.hears(sock, inquiry()).attributes == (m.text(m.ENTITY_IDENTIFIER, 'storage1'),)
    sock.sendall(m.encode(inquiry('storage0')))
    house.loop.settle()
    # the other one got no answer
    assert house.hears(sock, inquiry()).function == m.INQUIRY | m.RESPONSE


def test_strangers_and_too_many_callers_and_silent_ones_are_hung_up_on(house, capfd):
    house.follow(target('a'))
    assert house.call('127.0.0.2').recv(1) == b''
    callers = [house.call() for _ in range(connections.CALLERS + 1)]
    assert callers[-1].recv(1) == b''
    house.loop.pass_time(connections.CALL_SECONDS)
    assert callers[0].recv(1) == b''
    mad = house.call()
    mad.sendall(struct.pack('>HHHHHH', 9, 9, 9, 9, 9, 9))
    house.loop.settle()
    assert mad.recv(1) == b''
    assert capfd.readouterr().err.count('was not heard') == 2


def test_without_a_server_nobody_listens(house):
    house.follow(target('a'))
    port = house.isns._callers.port
    assert port
    house.follow(target('a'), isns_server=())
    with pytest.raises(OSError):
        socket.create_connection(('127.0.0.1', port), 1)


def test_leaving_is_bounded(house):
    over = []
    house.follow(target('a'))
    house.accept()
    house.isns.leave()
    assert house.isns.is_leaving(lambda: over.append(True))
    house.loop.pass_time(client.LEAVE_SECONDS - 0.5)
    assert over == []
    house.loop.pass_time(0.5)
    assert over == [True] and not house.isns.is_leaving(None)


def test_leaving_with_no_server_is_done_already(house):
    house.follow(isns_server=())
    house.isns.leave()
    assert not house.isns.is_leaving(lambda: None)


def test_a_server_that_is_wanted_again_is_not_left(house):
    house.follow(target('a'))
    house.accept()
    house.follow(target('a'), isns_server=())
    house.follow(target('a'))
    _, (message,) = house.accept()
    assert message.function == m.REGISTER
    assert len(house.isns._under_way()) == 1
