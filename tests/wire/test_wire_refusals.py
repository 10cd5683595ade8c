"""Tests of redirected and refused logins: each login status of RFC 7143 11.13.5, and the end of
each condition."""

import os

import pytest
from daemon import TARGET, eventually, watched
from initiator import ISID, OPERATIONAL, Closed, LoginFailed, Session, connect
from pdus import unpack_pairs

pytestmark = pytest.mark.wire

TEMPORARY = 'iqn.2026-11.test.targetd:temporary'
PERMANENT = 'iqn.2026-11.test.targetd:permanent'
GUARDED = 'iqn.2026-11.test.targetd:guarded'  # redirected, but admits another address only
OTHER = 'iqn.2026-11.test.targetd:other'
SECRET = 'iqn.2026-11.test.targetd:secret'


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('refusals')) as daemon:
        everyone = ['initiator-address = ALL']
        daemon.target(TARGET)
        daemon.target(OTHER)
        daemon.target(SECRET, everyone + ['incominguser = erp 12-to-16-chars'])
        daemon.target(TEMPORARY, everyone + ['redirect = temporary 192.0.2.7'])
        daemon.target(PERMANENT, everyone + ['redirect = permanent [2001:db8::7]:3261'], luns={})
        daemon.target(
            GUARDED, ['initiator-address = 192.0.2.0/24', 'redirect = temporary 192.0.2.7']
        )
        yield daemon.start()


def first(target, name='iqn.2026-11.test:i', method='None', kind='Normal'):
    pairs = [
        ('InitiatorName', name),
        ('SessionType', kind),
        ('TargetName', target),
        ('AuthMethod', method),
    ]
    return [pair for pair in pairs if pair[1] is not None]


def refused(daemon, pairs, csg=0, nsg=1, tsih=0, isid=ISID, cid=1, version=b'\0\0'):
    """Returns (status, text keys) of the response to a first Login Request, after which the target
    must close the connection."""
    with Session(daemon.address, 'iqn.2026-11.test:i', isid=isid, cid=cid) as session:
        session.login_pdu(pairs, csg, nsg, tsih=tsih, version=version)
        pdu = session.wire.receive()
        with pytest.raises(Closed):
            session.wire.receive()
        return pdu.bhs[36] << 8 | pdu.bhs[37], unpack_pairs(pdu.data)


# -- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'target, status, address',
    [(TEMPORARY, 0x0101, '192.0.2.7:3260'), (PERMANENT, 0x0102, '[2001:db8::7]:3261')],
)
@pytest.mark.parametrize('security', [True, False])
@pytest.mark.clause('RFC 7143 11.13.5', 'RFC 7143 13.8')
def test_a_redirect_names_the_address_and_no_tag(many, target, status, address, security):
    if security:
        answer = refused(many, first(target))
    else:
        answer = refused(many, first(target, method=None) + list(OPERATIONAL.items()), 1, 3)
    assert answer == (status, [('TargetAddress', address)])


def test_a_refused_initiator_is_not_redirected(many):
    assert refused(many, first(GUARDED)) == (0x0202, [])


def test_discovery_shows_redirected_targets_here(many):
    with connect(many.address) as session:
        found = dict(session.send_targets())
    assert found[TEMPORARY] == found[PERMANENT] == ['127.0.0.1:%d,1' % many.port]


def test_a_reload_adds_and_removes_a_redirect_and_sessions_continue(daemon, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    lines = daemon.text.targets[TARGET][0]
    lines.append('redirect = temporary 127.0.0.1:%d' % (daemon.port + 1))
    daemon.reload('reload: change target')
    assert refused(daemon, first(TARGET), isid=b'\x80\0\0\0\0\x09')[0] == 0x0101
    assert session.capacity() == (131072, 512)
    lines.pop()
    daemon.reload('reload: change target')
    connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x09').close()
    assert session.capacity() == (131072, 512)


def test_an_initiator_that_follows_a_redirect_reaches_the_disk(daemon, tmp_path_factory):
    """The first server redirects the initiator to the second one, which has the target of the same
    name."""
    with watched(tmp_path_factory.mktemp('second')) as second:
        second.target(size=8 << 20)
        second.start()
        daemon.target(
            TARGET,
            ['initiator-address = ALL', 'redirect = temporary 127.0.0.1:%d' % second.port],
            luns={},
        )
        daemon.start()
        status, keys = refused(daemon, first(TARGET))
        host, port = dict(keys)['TargetAddress'].rsplit(':', 1)
        with connect((host, int(port)), TARGET) as session:
            session.clear_attentions()
            assert session.capacity() == (16384, 512)


# -- the statuses that say why not -----------------------------------------------------------------


@pytest.mark.parametrize(
    'status, question',
    [
        (0x0201, dict(pairs=first(SECRET))),
        (0x0202, dict(pairs=first(GUARDED))),
        (0x0203, dict(pairs=first('iqn.2026-11.test.targetd:no-such'))),
        (0x0205, dict(pairs=first(TARGET), version=b'\x01\x01')),
        (0x0207, dict(pairs=first(TARGET, name=None))),
        (0x0207, dict(pairs=first(None))),
        (0x0208, dict(pairs=first(None, kind='Discovery'), tsih=0x7777)),
        (0x0209, dict(pairs=first(TARGET, kind='Sometimes'))),
        (0x020A, dict(pairs=first(TARGET), tsih=0x7777)),
    ],
    ids=['0201', '0202', '0203', '0205', '0207-initiator', '0207-target', '0208', '0209', '020A'],
)
@pytest.mark.clause('RFC 7143 11.13.5')
def test_each_refusal_has_its_login_status(many, status, question):
    assert refused(many, **question) == (status, [])


@pytest.mark.clause('RFC 7143 13.2', 'RFC 7143 11.13.5')
def test_one_connection_more_than_negotiated(many, ready):
    """With MaxConnections=1, a second connection of the session gets status 0206h, and the session
    continues."""
    session = ready(many, keys={'MaxConnections': '1'})
    with Session(many.address, session.name, cid=2) as second:
        with pytest.raises(LoginFailed) as failure:
            second.login(TARGET, tsih=session.tsih)
    assert failure.value.status == 0x0206
    assert session.capacity() == (131072, 512)


@pytest.mark.parametrize(
    'what',
    [
        dict(name='iqn.2026-11.test:somebody-else'),
        dict(isid=b'\x80\0\0\0\0\x77'),
        dict(target=OTHER),
    ],
    ids=['name', 'isid', 'target'],
)
@pytest.mark.clause('RFC 7143 6.3.1', 'RFC 7143 11.13.5')
def test_a_connection_cannot_join_the_session_of_another_initiator(many, ready, what):
    """The TSIH is not sufficient: the name, the ISID and the target must also match the session."""
    session = ready(many)
    target = what.pop('target', TARGET)
    with Session(many.address, cid=2, **dict(dict(name=session.name), **what)) as second:
        with pytest.raises(LoginFailed) as failure:
            second.login(target, tsih=session.tsih)
    assert failure.value.status in (0x0208, 0x020A)
    assert session.capacity() == (131072, 512)


def test_failed_joins_do_not_use_up_limits(daemon, ready):
    """Failed joins do not count towards the limits of their address or of the session."""
    daemon.text.server['max-connections-per-address'] = '4'
    daemon.target()
    daemon.start()
    session = ready(daemon)
    for _ in range(12):
        with Session(daemon.address, 'iqn.2026-11.test:somebody-else', cid=2) as second:
            with pytest.raises(LoginFailed) as failure:
                second.login(TARGET, tsih=session.tsih)
        assert failure.value.status in (0x0208, 0x020A)
    eventually(lambda: connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x09').close() is None, 5)
    assert session.capacity() == (131072, 512)


# -- a disk that is not there yet ------------------------------------------------------------------


def late(daemon):
    """A target whose only disk is missing, another target that is complete, and the path of the missing
    disk."""
    path = os.path.join(daemon.directory, 'late.img')
    daemon.target(TARGET, luns={1: ['backing-store = %s' % path]})
    daemon.target(OTHER)
    daemon.start()
    return path


def admits(daemon):
    try:
        connect(daemon.address, TARGET).close()
    except LoginFailed as failure:
        assert failure.status == 0x0301
        return False
    return True


@pytest.mark.clause('RFC 7143 11.13.5')
def test_a_target_is_not_ready_until_one_of_its_disks_is_available(daemon):
    """The status is 0301h, which initiators retry; other targets are served, and discovery lists
    the target all the time."""
    path = late(daemon)
    assert not admits(daemon)
    connect(daemon.address, OTHER).close()
    with connect(daemon.address) as session:
        assert TARGET in dict(session.send_targets())
    assert daemon.logged(r'login of .* refused with status 0301: .*').group().count(path) == 1
    with open(path, 'wb') as file:
        file.truncate(2 << 20)
    daemon.reload('reloaded|there now')  # the administrator need not wait for the next look
    eventually(lambda: admits(daemon), 8)
    with connect(daemon.address, TARGET) as session:
        session.clear_attentions(1)
        assert session.capacity(1) == (4096, 512)


@pytest.mark.slow
def test_a_disk_that_appears_is_opened_without_a_command(daemon):
    path = late(daemon)
    assert not admits(daemon)
    with open(path, 'wb') as file:
        file.truncate(1 << 20)
    eventually(lambda: admits(daemon), 20)


def test_why_shows_the_status_what_windows_shows_and_where_to_look(daemon):
    """The real targetdctl asks the real server."""
    daemon.target(lines=['initiator-address = 10.0.0.0/8'])
    daemon.start()
    with pytest.raises(LoginFailed):
        connect(daemon.address, TARGET)
    code, text = daemon.targetdctl('why')
    assert code == 0
    assert '0202' in text and 'Authorization failure' in text
    assert 'initiator-address' in text and '127.0.0.1' in text
