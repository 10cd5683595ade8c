"""Floods of logins and of failed authentications: their origin waits, other initiators log in."""

import pytest
from puppets import Stage

from targetd.master import master as masters
from targetd.master.logins import routing, throttle

DISK = 'iqn.2026-11.test:disk'
BODY = '''[portal-group 1]
portal = 127.0.0.1:%d
[target %s]
initiator-address = ALL
%s
[[lun 0]]
type = ram
size = 1M
'''
BAD, OTHER = '127.0.0.2', '127.0.0.3'


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)

    def start(server='', target=''):
        from daemon import free_port

        return Stage.start(stage, BODY % (free_port(), DISK, target), server)

    stage.begin = start
    yield stage
    stage.close()


def isid(number):
    return '00023d%06x' % number


def open_logins(stage, count, source):
    """Connections whose login stops after its header."""
    return [stage.connect(isid=isid(number), source=source) for number in range(count)]


def under_way(stage):
    return len(routing.logging_in(stage.master.workers))


def test_a_flood_of_logins_gets_no_more_than_the_share_of_one_origin(stage):
    stage.begin('max-sessions = 4')
    flood = open_logins(stage, 20, BAD)
    stage.until(lambda: under_way(stage) == routing.LOGINS_PER_ADDRESS)
    # though more than a server's worth of logins is waiting
    status, _ = stage.connect(source=OTHER).login(DISK)
    assert status == (0, 0)
    assert under_way(stage) == routing.LOGINS_PER_ADDRESS
    flood[0].close()
    flood[0].is_closed = True
    stage.leap(15)  # the login timeout: those that waited are refused
    stage.until(
        lambda: (
            [c.listen() for c in flood[1:]],
            sum(c.received[36:38] == b'\x03\x02' for c in flood[1:]) >= 11,
        )[1]
    )


def test_logins_of_one_address_continue_when_others_of_it_have_ended(stage):
    stage.begin()
    clients = open_logins(stage, 12, BAD)
    stage.until(lambda: under_way(stage) == routing.LOGINS_PER_ADDRESS)
    for client in clients:
        assert client.login(DISK)[0] == (0, 0)
    assert len(stage.master.sessions.all()) == 12 and under_way(stage) == 0


def test_on_a_full_server_slow_logins_are_ended_for_other_addresses(stage):
    stage.begin('max-sessions = 1')
    for number in range(3):
        open_logins(stage, 8, '127.0.0.%d' % (number + 2))
    full = 1 + masters.LOGINS_IN_PROGRESS
    stage.until(lambda: len(stage.master.workers.busy()) == full)
    honest = stage.connect(source='127.0.0.9')
    honest.claim(DISK)
    stage.settle(20)
    stage.leap(routing.PATIENCE_SECONDS)
    assert honest.wait('answer')['status_class'] == 0


SECRET = 'secret of 14 b'
ACCOUNT = 'incominguser = erp "%s"' % SECRET


def guesses(stage, source=BAD, **more):
    """A login with a wrong secret, whose worker leaves the refusal to the master if it is delayed.
    Returns (client, is the answer delayed?)."""
    client = stage.connect(source=source, **more)
    answer = client.authenticate(DISK, 'erp', 'a wrong secret 1')
    assert answer['is_authentication']
    client.say(
        report='refused',
        initiator_name='iqn.x:i',
        target_name=DISK,
        why='CHAP',
        status_class=2,
        status_detail=1,
        response='23' + '00' * 35 + '0201' + '00' * 10 if answer['is_delayed'] else None,
    )
    client.say(puppet='idle')
    return client, answer['is_delayed']


def test_only_the_answer_to_a_failed_authentication_is_delayed(stage, capfd):
    stage.begin('failures-before-delay = 2', ACCOUNT)
    assert not guesses(stage)[1]
    client, is_delayed = guesses(stage)
    assert is_delayed
    stage.until(lambda: not under_way(stage))  # no worker waits for it
    other = stage.connect(source=BAD, isid=isid(7))
    assert not other.authenticate(DISK, 'erp', SECRET)['failed']
    assert other.login(DISK, account='erp')[0] == (0, 0)
    client.listen()
    assert not client.received and not client.is_closed
    stage.leap(1)
    stage.until(lambda: (client.listen(), client.received)[1])
    assert client.received[36:38] == b'\x02\x01'
    client.wait_closed()
    errors = capfd.readouterr().err
    assert 'warning: authentication failed from 127.0.0.2 port ' in errors
    assert ', 1 in a row\n' in errors and ', 2 in a row; the answer waits 1 s' in errors


def test_guessing_with_many_connections_is_not_faster(stage):
    """The challenge is refused; a login that has succeeded before is challenged."""
    stage.begin('failures-before-delay = 1', ACCOUNT)
    for _ in range(throttle.ANSWERS_AT_ONCE):
        assert guesses(stage)[1]
    client = stage.connect(source=BAD)
    client.say(ask='challenge', id=1, target_name=DISK, offered='5')
    answer = client.wait('answer')
    assert answer['failed'] and answer['status'] == [3, 2]
    assert stage.connect(source=OTHER).authenticate(DISK, 'erp', SECRET)['account'] == 'erp'


def test_a_worker_cannot_send_a_response_that_does_not_wait(stage, capfd):
    stage.begin('failures-before-delay = 5', ACCOUNT)
    client = stage.connect(source=BAD)
    client.say(
        report='refused',
        initiator_name='',
        target_name='',
        why='x',
        status_class=2,
        status_detail=1,
        response='00' * 48,
    )
    client.wait_closed()
    assert 'a response of a refusal that does not wait' in capfd.readouterr().err


def test_a_worker_cannot_report_failures_for_an_address_it_does_not_have(stage):
    stage.begin('failures-before-delay = 1')
    client = stage.connect(source=BAD)
    client.say(
        report='refused',
        peer=[OTHER, 5],
        initiator_name='',
        target_name='',
        why='x',
        status_class=2,
        status_detail=1,
    )
    client.wait_closed()
    assert not stage.master.throttle._offenders


def test_a_login_of_an_initiator_that_has_disconnected_gets_no_worker(stage):
    stage.begin()
    clients = open_logins(stage, 8, BAD)
    stage.until(lambda: under_way(stage) == 8)
    stage.connect(source=BAD).close()
    stage.until(lambda: stage.master.pending_connections.by_age)
    clients[0].say(puppet='idle')
    stage.until(lambda: not stage.master.pending_connections.by_age)
    stage.until(lambda: under_way(stage) == 7)


def test_a_login_that_takes_long_ends_for_another_of_its_address(stage):
    """Connections that stay half logged in leave room for one more of the same address."""
    stage.begin()
    open_logins(stage, 10, BAD)
    stage.until(lambda: under_way(stage) == 8)
    honest = stage.connect(source=BAD)
    for _ in range(3):
        stage.leap(routing.PATIENCE_SECONDS)
        stage.until(lambda: under_way(stage) == 8)
    assert honest.login(DISK)[0] == (0, 0)


def test_a_known_address_comes_before_others(stage):
    """On a full server, also if each stranger has one login only."""
    stage.begin('max-sessions = 1')
    known = stage.connect(source=OTHER)
    assert known.login(DISK)[0] == (0, 0)
    known.close()
    stage.until(lambda: not stage.master.sessions.all())
    for number in range(40):
        stage.connect(source='127.0.1.%d' % (number + 1))
    full = 1 + masters.LOGINS_IN_PROGRESS
    stage.until(lambda: len(stage.master.workers.busy()) == full)
    again = stage.connect(source=OTHER)
    stage.settle()
    stage.leap(routing.PATIENCE_SECONDS)
    assert again.login(DISK)[0] == (0, 0)


def test_joins_wait_for_their_origin_like_other_logins(stage):
    """A host that has guessed the TSIH uses only its own share; the initiator can add connections."""
    stage.begin()
    one = stage.connect()
    tsih = one.login(DISK)[1]['tsih']
    strangers = [stage.connect(tsih=tsih, source=BAD) for _ in range(20)]
    stage.until(lambda: under_way(stage) == routing.LOGINS_PER_ADDRESS)
    assert stage.connect(tsih=tsih, cid=1).login(DISK, tsih=tsih, cid=1)[0] == (0, 0)
    record = stage.master.sessions.owner(tsih).session
    assert len(record.peers) == 2 and record.worker.peers == ['127.0.0.1'] * 2
    del strangers


def test_a_connection_that_takes_the_place_of_another(stage):
    stage.begin('max-connections-per-address = 2')
    one = stage.connect()
    tsih = one.login(DISK)[1]['tsih']
    worker = stage.master.sessions.owner(tsih)
    another = stage.connect(tsih=tsih, source=BAD)
    another.claim(DISK, tsih=tsih, cid=0)  # the same CID: it takes the place of the first
    stage.until(lambda: worker.session.peers[0][0] == BAD)
    one.say(report='closed', peer=list(one.socket.getsockname()), cid=0)
    stage.until(lambda: '127.0.0.1' not in worker.peers)
    assert worker.session.peers[0][0] == BAD
