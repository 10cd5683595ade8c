"""A real Worker in a thread, with the test as its master: orders that cross the end of a session."""

import socket
import threading

import pytest
from daemon import TARGET, Text, eventually
from initiator import DISCOVERY, LoginFailed, Session

from targetd.channel import ChannelClosed, pair
from targetd.config import loader
from targetd.iscsi.pdu import LoginResponse
from targetd.worker.main import Worker


class Orders(object):
    """The master's end: sends sockets, grants every claim, and keeps the reports except `refused`."""

    def __init__(self, configuration):
        self.channel, theirs = pair()
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(5)
        self.reported, self.tsih = [], 6
        self.worker = Worker(theirs, configuration)
        self.threads = [
            threading.Thread(target=self.worker.run),
            threading.Thread(target=self._hear),
        ]
        for thread in self.threads:
            thread.daemon = True
            thread.start()

    def _hear(self):
        self.channel.socket.setblocking(True)
        try:
            while True:
                message, _ = self.channel.read()
                if message.get('ask') == 'claim':
                    self.tsih += 1
                    self.channel.send(
                        {
                            'do': 'answer',
                            'id': message['id'],
                            'status_class': 0,
                            'status_detail': 0,
                            'why': '',
                            'tsih': self.tsih,
                            'units': [],
                        }
                    )
                elif message['report'] != 'refused':
                    self.reported.append(message['report'])
        except (ChannelClosed, OSError):
            pass

    def order(self, do, tsih=0):
        """A Session whose connection was sent to the worker. tsih: of the session that it joins."""
        session = Session(self.listener.getsockname(), timeout=10)
        response = LoginResponse(transit=True, csg=1, nsg=3, isid=session.isid, tsih=tsih)
        sock, peer = self.listener.accept()
        with sock:
            self.channel.send(
                {
                    'do': do,
                    'connection': {
                        'peer': list(peer),
                        'local': list(sock.getsockname()),
                        'group': 1,
                    },
                    'tsih': tsih,
                    'cid': 1,
                    'keys': {},
                    'login': {'response': response.encode().hex(), 'answer': '', 'declared': 8192},
                },
                [sock.fileno()],
            )
        return session

    def close(self):
        self.listener.close()
        for end in (self.channel.socket, self.worker.channel.socket):
            end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def orders(tmp_path):
    text = Text(str(tmp_path))
    text.portal('127.0.0.1:3260')
    text.target(TARGET)
    path = tmp_path / 'targetd.conf'
    path.write_text(text.render())
    path.chmod(0o600)
    made = Orders(loader.load(str(path)))
    yield made
    made.close()


def is_refused(late):
    """The session that the connection was to join is over."""
    with pytest.raises(LoginFailed) as refused:
        late.login_response()
    assert refused.value.status == 0x20A
    late.wait_closed()


@pytest.mark.clause('RFC 7143 6.3.1')
def test_a_login_into_a_session_that_has_ended_is_refused_beside_the_next(orders):
    """The order to join crossed the report that the session is over: the worker is a spare, and then
    serves another session."""
    fresh = orders.order('serve')
    fresh.login_pdu(
        [('InitiatorName', fresh.name), ('SessionType', 'Discovery'), ('AuthMethod', 'None')], 0, 1
    )
    fresh.login_response()  # in the middle of its login
    is_refused(orders.order('join', 5))
    fresh.exchange(DISCOVERY, 1, 3)
    assert orders.reported == ['ready']  # it is not a spare, and its session is not over
    assert fresh.ping(b'here') == b'here'
    assert fresh.logout() == 0
    eventually(lambda: orders.reported == ['ready', 'idle'], 10, lambda: orders.reported)


def test_a_login_into_a_session_that_has_ended_does_not_reach_the_next_one(orders):
    for number in range(1, 3):
        fresh = orders.order('serve').login()
        assert fresh.logout() == 0
        eventually(
            lambda number=number: orders.reported == ['ready'] + ['idle'] * number,
            10,
            lambda: orders.reported,
        )
    is_refused(orders.order('join', 7))  # the TSIH of the first session
    last = orders.order('serve').login()
    is_refused(orders.order('join', 7))
    assert orders.reported.count('idle') == 2 and 'closed' not in orders.reported
    assert last.ping(b'here') == b'here' and last.logout() == 0
