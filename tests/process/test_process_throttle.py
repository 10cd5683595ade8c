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
    return len(stage.master.router.workers_logging_in())


def failures(stage, source):
    record = stage.master.throttle._records.get(source)
    return record.failures if record else 0


def fails(stage, source, times=1):
    """Logins whose worker reports that the authentication failed."""
    for _ in range(times):
        client = stage.connect(source=source)
        before = failures(stage, source)
        client.say(
            report='refused',
            initiator_name='iqn.x:i',
            target_name=DISK,
            why='CHAP',
            status_class=2,
            status_detail=1,
        )
        stage.until(lambda before=before: failures(stage, source) == before + 1)
        client.say(puppet='idle')


def test_a_flood_of_logins_gets_no_more_than_the_share_of_one_origin(stage):
    stage.begin('max-sessions = 4')
    flood = open_logins(stage, 20, BAD)
    stage.until(lambda: under_way(stage) == throttle.LOGINS_PER_ORIGIN)
    # though more than a server's worth of logins is waiting
    status, _ = stage.connect(source=OTHER).login(DISK)
    assert status == (0, 0)
    assert under_way(stage) == throttle.LOGINS_PER_ORIGIN
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
    stage.until(lambda: under_way(stage) == throttle.LOGINS_PER_ORIGIN)
    for client in clients:
        assert client.login(DISK)[0] == (0, 0)
    assert len(stage.master.sessions.all()) == 12 and under_way(stage) == 0


def test_on_a_full_server_slow_logins_are_ended_for_other_addresses(stage):
    stage.begin('max-sessions = 1')
    for number in range(3):
        open_logins(stage, 8, '127.0.0.%d' % (number + 2))
    full = 1 + masters.LOGINS_IN_PROGRESS
    stage.until(lambda: len(stage.master.workers.busy()) == full)
    early = stage.connect(source='127.0.0.9')
    stage.until(lambda: (early.listen(), early.received)[1])
    assert early.received[36:38] == b'\x03\x02'  # the others are not slow yet
    stage.leap(routing.PATIENCE_SECONDS)
    late = stage.connect(source='127.0.0.9')
    assert late.login(DISK)[0] == (0, 0)


def test_failed_authentications_delay_their_address(stage, capfd):
    stage.begin('failures-before-delay = 2')
    fails(stage, BAD, 2)
    client = stage.connect(source=BAD)
    client.claim(DISK)
    stage.settle(20)
    stage.connect(source=OTHER, isid=isid(7)).login(DISK)
    assert not client.heard  # it is delayed; the other one was not
    stage.leap(1)
    stage.until(lambda: (client.listen(), client.of('answer'))[1])
    errors = capfd.readouterr().err
    assert 'warning: authentication failed from 127.0.0.2 port ' in errors
    assert (
        ', 1 in a row\n' in errors and ', 2 in a row; the next login from there waits 1 s' in errors
    )


def test_an_initiator_that_disconnects_while_it_waits_uses_no_worker(stage):
    stage.begin('failures-before-delay = 2')
    fails(stage, BAD, 2)
    stage.until(lambda: not under_way(stage))
    stage.connect(source=BAD).close()
    stage.until(
        lambda: [pending for pending in stage.master.pending_connections.by_age if pending.header]
    )
    stage.leap(1)
    stage.until(lambda: not stage.master.pending_connections.by_age)
    assert under_way(stage) == 0


def test_a_success_ends_the_delays(stage):
    stage.begin('failures-before-delay = 2', 'incominguser = erp "secret of 14 b"')
    fails(stage, BAD, 2)
    client = stage.connect(source=BAD)
    stage.settle()
    stage.leap(1)
    assert not client.authenticate(DISK, 'erp', 'secret of 14 b')['failed']
    assert client.login(DISK, account='erp')[0] == (0, 0)
    assert stage.master.throttle.reserve_delay(BAD) == 0


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
    assert not stage.master.throttle._records


def test_too_many_delayed_logins_are_refused(stage):
    stage.begin('failures-before-delay = 1')
    fails(stage, BAD, 1)
    for _ in range(5):
        stage.master.throttle.note_failure(BAD)
    clients = open_logins(stage, 6, BAD)  # 30 s apart, and none waits longer than a minute
    stage.until(
        lambda: (
            [c.listen() for c in clients],
            sum(c.received[36:38] == b'\x03\x02' for c in clients) == 4,
        )[1]
    )


def test_joins_wait_for_their_origin_like_other_logins(stage):
    """A host that has guessed the TSIH uses only its own share; the initiator can add connections."""
    stage.begin()
    one = stage.connect()
    tsih = one.login(DISK)[1]['tsih']
    strangers = [stage.connect(tsih=tsih, source=BAD) for _ in range(20)]
    stage.until(lambda: under_way(stage) == throttle.LOGINS_PER_ORIGIN)
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
