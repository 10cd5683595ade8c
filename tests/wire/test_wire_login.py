"""Tests of refused logins, their status and log lines; of CHAP; and of discovery and its access
rules."""

import pytest
from daemon import TARGET, eventually, free_port, has_ipv6, watched
from initiator import OPERATIONAL, Chap, Closed, LoginFailed, Rejected, Session, connect
from pdus import FINAL, NOP_OUT, decode_binary, pack_bhs

pytestmark = pytest.mark.wire

CLOSED = 'iqn.2026-11.test.targetd:closed'  # admits another address
NAMED = 'iqn.2026-11.test.targetd:named'  # admits names of one maker
SECRET = 'iqn.2026-11.test.targetd:secret'  # CHAP
MUTUAL = 'iqn.2026-11.test.targetd:mutual'  # CHAP, both ways
OFFLINE = 'iqn.2026-11.test.targetd:offline'
EMPTY = (
    'iqn.2026-11.test.targetd:nobody'  # admits no initiator: neither address nor name is written
)

NORMAL = [
    ('InitiatorName', 'iqn.2026-11.test:i'),
    ('SessionType', 'Normal'),
    ('TargetName', TARGET),
    ('AuthMethod', 'None'),
]


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    with watched(tmp_path_factory.mktemp('login')) as daemon:
        # many of these tests fail to authenticate
        daemon.text.server['failures-before-delay'] = '0'
        everyone = ['initiator-address = ALL']
        daemon.target(TARGET, everyone + ['alias = Disks for tests'])
        daemon.target(CLOSED, ['initiator-address = 192.0.2.0/24'])
        daemon.target(
            NAMED,
            ['initiator-address = 127.0.0.0/8', 'initiator-name = iqn.1991-05.com.microsoft:*'],
        )
        daemon.target(
            SECRET,
            everyone
            + [
                'incominguser = erp "a secret, with # and =="',
                'incominguser = second another-secret',
            ],
        )
        daemon.target(
            MUTUAL,
            everyone
            + ['incominguser = erp secret-of-12-to-16', 'outgoinguser = erp-back another-secret'],
        )
        daemon.target(OFFLINE, everyone + ['state = offline'])
        daemon.target(EMPTY, [])
        yield daemon.start()


def status_of(daemon, *arguments, **more):
    """The login status: 0, or that of the failure."""
    try:
        connect(daemon.address, *arguments, **more).close()
    except LoginFailed as failure:
        return failure.status
    return 0


# -- who may log in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'target, name, status',
    [
        (TARGET, 'iqn.2026-11.test:anyone', 0),
        (TARGET, 'eui.02004567A425678D', 0),
        (TARGET, 'naa.52004567BA64678D', 0),
        # names are folded, RFC 3722
        (TARGET.upper().replace('IQN', 'iqn'), 'iqn.2026-11.test:anyone', 0),
        ('iqn.2026-11.test.targetd:no-such', 'iqn.2026-11.test:anyone', 0x0203),
        (CLOSED, 'iqn.2026-11.test:anyone', 0x0202),
        (NAMED, 'iqn.2026-11.test:anyone', 0x0202),  # the address matches, the name does not
        (NAMED, 'iqn.1991-05.com.microsoft:server', 0),
        (NAMED, 'IQN.1991-05.COM.MICROSOFT:SERVER', 0),
        (EMPTY, 'iqn.2026-11.test:anyone', 0x0202),
        (OFFLINE, 'iqn.2026-11.test:anyone', 0x0301),
    ],
)
@pytest.mark.clause('RFC 7143 6.3.1', 'RFC 7143 11.13.5')
def test_who_may_log_in(many, target, name, status):
    assert status_of(many, target, name=name) == status


def test_a_stranger_is_not_told_which_targets_exist(daemon):
    """An initiator that no target admits receives one status, through every portal; the log and
    `targetdctl why` have the reason. One that a target admits receives the true status."""
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other, group=7)
    daemon.target(NAMED, ['initiator-name = iqn.2026-11.test:known'])
    daemon.target(OFFLINE, ['initiator-name = iqn.2026-11.test:known', 'state = offline'])
    daemon.target('iqn.2026-11.test.targetd:seventh', ['initiator-name = iqn.x:y'], group=7)
    daemon.start()
    daemon.wait_listening(('127.0.0.1', other))
    stranger, no_such = 'iqn.2026-11.test:stranger', 'iqn.2026-11.test.targetd:no-such'
    names = (NAMED, OFFLINE, 'iqn.2026-11.test.targetd:seventh', no_such)
    assert [status_of(daemon, name, name=stranger) for name in names] == [0x0202] * 4
    known = 'iqn.2026-11.test:known'
    assert [status_of(daemon, name, name=known) for name in names] == [0, 0x0301, 0x0203, 0x0203]
    daemon.logged('%s .*refused with status 0202: there is no target "%s"' % (stranger, no_such))
    _, output = daemon.targetdctl('why')
    assert 'there is no target "%s"' % no_such in output and 'initiator-name' in output


def test_the_log_names_the_refused_initiator_and_the_rule(many):
    assert status_of(many, NAMED, name='iqn.2026-11.test:curious') == 0x0202
    line = many.logged(r'.*iqn\.2026-11\.test:curious.*').group()
    assert '127.0.0.1' in line and NAMED in line and 'initiator-name' in line


def test_the_log_names_the_initiator_of_each_login_and_logout(many):
    session = connect(many.address, TARGET, name='iqn.2026-11.test:logged')
    line = many.logged(r'.*iqn\.2026-11\.test:logged.*').group()
    assert '127.0.0.1' in line and TARGET in line
    session.logout()
    many.logged(r'(?i)iqn\.2026-11\.test:logged.*log.*out|log.*out.*iqn\.2026-11\.test:logged')


# -- logins that make no sense ---------------------------------------------------------------------


def fails(daemon, act):
    """act(session) must end in a login failure: its status."""
    with Session(daemon.address, 'iqn.2026-11.test:i') as session:
        with pytest.raises(LoginFailed) as failure:
            act(session)
        # the failure is the last word on this connection (RFC 7143 6.3)
        with pytest.raises(Closed):
            session.wire.receive()
        return failure.value.status


def without(key):
    return [pair for pair in NORMAL if pair[0] != key]


def replaced(key, value):
    return [(k, value if k == key else v) for k, v in NORMAL]


@pytest.mark.parametrize(
    'keys, status',
    [
        (without('InitiatorName'), 0x0207),
        (without('TargetName'), 0x0207),
        (replaced('SessionType', 'Sometimes'), 0x0209),
        (replaced('TargetName', 'not a name'), 0x0200),
        (replaced('InitiatorName', ''), 0x0200),
        (replaced('InitiatorName', 'iqn.2026-11.test:' + 'x' * 300), 0x0200),
        (replaced('AuthMethod', 'KRB5'), 0x0201),
        (b'InitiatorName', 0x0200),  # no value at all
        (b'=\xff\xfe\0', 0x0200),
    ],
    ids=[
        'no-initiator',
        'no-target',
        'session-type',
        'bad-target',
        'empty-name',
        'long-name',
        'kerberos',
        'no-value',
        'noise',
    ],
)
@pytest.mark.clause('RFC 7143 6.3.1', 'RFC 7143 11.12.10', 'RFC 7143 13.5')
def test_bad_first_keys(many, keys, status):
    got = fails(many, lambda session: session.exchange(keys, 0, 1))
    if status == 0x0200:
        assert got in (0x0200, 0x0203, 0x0207)  # 'initiator error', or the nearer word for it
    else:
        assert got == status


@pytest.mark.parametrize(
    'act, status',
    [
        (lambda s: s.exchange(NORMAL, 0, 1, version=b'\x01\x01'), 0x0205),
        (lambda s: s.exchange(NORMAL, 2, None), 0x0200),  # CSG 2 is reserved
        (lambda s: s.exchange(NORMAL, 0, 2), 0x0200),  # NSG 2 is reserved
        (lambda s: s.exchange(NORMAL, 0, None, raw_flags=0xC1), 0x0200),  # T and C together
        (lambda s: s.exchange(NORMAL, 1, 0), 0x0200),  # backwards
        (lambda s: s.exchange(NORMAL, 3, 3), 0x0200),
        # back to a stage that is over
        (lambda s: (s.exchange(NORMAL, 0, 1), s.exchange([], 0, 1)), 0x0200),
        (lambda s: s.exchange(NORMAL, 0, 1, tsih=0x7777), 0x020A),  # a session that does not exist
    ],
    ids=['version', 'csg2', 'nsg2', 't-and-c', 'backwards', 'csg3', 'again', 'tsih'],
)
@pytest.mark.clause('RFC 7143 6.3', 'RFC 7143 11.12')
def test_bad_headers(many, act, status):
    assert fails(many, act) == status


@pytest.mark.clause('RFC 7143 6.3')
def test_other_requests_before_the_login_is_over(many):
    with Session(many.address) as session:
        session.exchange(NORMAL, 0, 1)
        session.wire.send(pack_bhs(NOP_OUT, FINAL, 0, 1, 0xFFFFFFFF, 1, session.exp_stat_sn))
        with pytest.raises((LoginFailed, Closed)) as end:
            session.login_response()
        assert end.type is Closed or end.value.status == 0x020B


@pytest.mark.clause('RFC 7143 6.3.1')
def test_a_first_pdu_that_is_not_a_login_request(many):
    with Session(many.address) as session:
        session.wire.send(pack_bhs(NOP_OUT, FINAL, 0, 1, 0xFFFFFFFF, 1, 1))
        with pytest.raises((LoginFailed, Closed)):
            session.login_response()


@pytest.mark.clause('RFC 7143 6.2')
def test_an_endless_login_text_is_refused(many):
    """The C bit is always set: the target refuses the login before it has stored one megabyte."""
    with Session(many.address) as session:
        with pytest.raises((LoginFailed, Closed)):
            for number in range(1200):
                session.login_pdu(b'X-%05d=' % number + b'y' * 1000 + b'\0', 0, more=True)
                session.login_response()


@pytest.mark.clause('RFC 7143 6.3.1')
def test_security_stage_may_be_skipped(many):
    with connect(many.address, TARGET, security=False) as session:  # as the Linux kernel does
        assert session.keys['TargetPortalGroupTag'] == '1'
        session.clear_attentions()
        assert session.capacity() == (131072, 512)


@pytest.mark.clause('RFC 7143 13.6', 'RFC 7143 13.9')
def test_alias_and_portal_group_tag(many):
    with connect(many.address, TARGET) as session:
        assert session.keys['TargetAlias'] == 'Disks for tests'
        assert session.keys['TargetPortalGroupTag'] == '1'


# -- CHAP ------------------------------------------------------------------------------------------

ODD = 'a secret, with # and =='


@pytest.mark.parametrize('algorithm', ['5', '6', '7', '8'])
@pytest.mark.parametrize('encoding', ['hex', 'base64'])
@pytest.mark.parametrize('target', [SECRET, MUTUAL])
@pytest.mark.clause('RFC 7143 12.1.3')
def test_chap(many, algorithm, encoding, target):
    chap = (
        Chap('erp', ODD, algorithm, encoding=encoding)
        if target == SECRET
        else Chap('erp', 'secret-of-12-to-16', algorithm, ('erp-back', 'another-secret'), encoding)
    )
    assert status_of(many, target, chap=chap) == 0
    assert chap.algorithm == int(algorithm)


@pytest.mark.parametrize('size', [1, 1024])
@pytest.mark.parametrize('encoding', ['hex', 'base64'])
@pytest.mark.clause('RFC 7143 12.1.3')
def test_challenges_of_any_size_are_answered(many, size, encoding):
    chap = Chap(
        'erp',
        'secret-of-12-to-16',
        '5',
        ('erp-back', 'another-secret'),
        encoding,
        challenge=b'\x01' * size,
    )
    assert status_of(many, MUTUAL, chap=chap) == 0


@pytest.mark.clause('RFC 7143 6.2.1', 'RFC 7143 12.1.3')
@pytest.mark.parametrize('offered, used', [('5,6,7', 5), ('7,6,5', 7), ('42,6,5', 6)])
def test_the_first_chap_algorithm_of_the_initiator_s_list_is_used(many, offered, used):
    chap = Chap('erp', ODD, offered)
    assert status_of(many, SECRET, chap=chap) == 0
    assert chap.algorithm == used


@pytest.mark.parametrize(
    'chap',
    [
        Chap('erp', 'wrong'),
        Chap('nobody', ODD),
        Chap('erp', ''),
        Chap('second', ODD),
        Chap('erp', ODD.upper(), '7'),
    ],
    ids=['secret', 'name', 'empty', 'other-account', 'case'],
)
@pytest.mark.clause('RFC 7143 6.3.2', 'RFC 7143 12.1.3')
def test_wrong_chap(many, chap):
    assert status_of(many, SECRET, chap=chap) == 0x0201


@pytest.mark.clause('RFC 7143 12.1.3')
def test_second_account(many):
    assert status_of(many, SECRET, chap=Chap('second', 'another-secret')) == 0


@pytest.mark.clause('RFC 7143 6.3.2', 'RFC 7143 12.1')
def test_chap_is_not_optional(many):
    """A target with accounts refuses initiators that skip, decline or omit CHAP."""
    # AuthMethod=None
    assert fails(many, lambda s: s.exchange(replaced('TargetName', SECRET), 0, 1)) == 0x0201
    first = [pair for pair in replaced('TargetName', SECRET) if pair[0] != 'AuthMethod']
    # straight to stage 1
    assert fails(many, lambda s: s.exchange(first + list(OPERATIONAL.items()), 1, 3)) == 0x0201
    both = [(k, 'CHAP,None' if k == 'AuthMethod' else v) for k, v in replaced('TargetName', SECRET)]

    def offer_both(session):
        keys, went, _ = session.exchange(both, 0, 1)
        assert keys['AuthMethod'] == 'CHAP' and not went
        session.exchange([], 0, 1)  # and now no CHAP_A
        session.exchange([], 1, 3)

    assert fails(many, offer_both) in (0x0200, 0x0201, 0x0207)


@pytest.mark.clause('RFC 7143 12.1.3')
def test_only_an_unknown_algorithm(many):
    def act(session):
        session.exchange(
            [(k, 'CHAP' if k == 'AuthMethod' else v) for k, v in replaced('TargetName', SECRET)], 0
        )
        session.exchange([('CHAP_A', '42')], 0)

    assert fails(many, act) in (0x0200, 0x0201)


@pytest.mark.clause('RFC 7143 9.2.1')
def test_reflected_challenge_is_refused(many):
    """A challenge that the target sent itself is not answered (RFC 7143 9.2.1)."""

    class Mirror(Chap):
        def answer(self, keys):
            self.challenge = decode_binary(keys['CHAP_C'])
            self.identifier = int(keys['CHAP_I'])
            return super(Mirror, self).answer(keys)

    assert (
        status_of(
            many,
            MUTUAL,
            chap=Mirror('erp', 'secret-of-12-to-16', '5', ('erp-back', 'another-secret')),
        )
        == 0x0201
    )


@pytest.mark.clause('RFC 7143 12.1.3')
def test_mutual_chap_may_be_left_out_by_the_initiator(many):
    assert status_of(many, MUTUAL, chap=Chap('erp', 'secret-of-12-to-16')) == 0


def test_secrets_stay_out_of_the_log(many):
    status_of(many, SECRET, chap=Chap('erp', 'wrong-secret-of-mine'))
    many.logged('(?i)chap|authent')
    assert (
        ODD not in many.log
        and 'wrong-secret-of-mine' not in many.log
        and 'another-secret' not in many.log
    )


# -- discovery -------------------------------------------------------------------------------------


def discover(daemon, value='All', **more):
    with connect(daemon.address, None, **more) as session:
        found = session.send_targets(value)
        assert session.logout() == 0
        return dict(found)


@pytest.mark.clause('RFC 7143 13.3', 'RFC 7143 C')
def test_send_targets_shows_what_this_initiator_may_see(many):
    address = '127.0.0.1:%d,1' % many.port
    found = discover(many, name='iqn.2026-11.test:anyone')
    assert found == {name: [address] for name in (TARGET, SECRET, MUTUAL, OFFLINE)} or found == {
        name: [address] for name in (TARGET, SECRET, MUTUAL)
    }
    assert NAMED in discover(many, name='iqn.1991-05.com.microsoft:server')


@pytest.mark.clause('RFC 7143 13.3', 'RFC 7143 C')
def test_send_targets_by_name(many):
    assert list(discover(many, TARGET)) == [TARGET]
    assert discover(many, CLOSED) == {}
    assert discover(many, 'iqn.2026-11.test.targetd:no-such') == {}


@pytest.mark.clause('RFC 7143 13.3', 'RFC 7143 C')
def test_send_targets_in_a_normal_session(many):
    with connect(many.address, TARGET) as session:
        # its own target (RFC 7143 appendix C)
        assert [name for name, _ in session.send_targets('')] == [TARGET]
        address = '127.0.0.1:%d,1' % many.port
        assert session.send_targets(TARGET) == [(TARGET, [address])]
        assert session.send_targets(TARGET.upper().replace('IQN', 'iqn')) == [(TARGET, [address])]
        assert session.send_targets(SECRET) == []  # no other one, though it may be logged in to
        with pytest.raises(Rejected):
            session.send_targets('All')  # for discovery sessions only
        session.clear_attentions()
        assert session.capacity()[1] == 512


@pytest.mark.clause('RFC 7143 11.10', 'RFC 7143 11.11')
def test_a_long_target_list_is_sent_in_several_responses(daemon):
    names = ['iqn.2026-11.test.targetd:%s-%03d' % ('x' * 150, number) for number in range(60)]
    for name in names:
        daemon.target(name, luns={0: ['type = null', 'size = 1M']})
    daemon.start()
    with connect(daemon.address, None, keys={'MaxRecvDataSegmentLength': '512'}) as session:
        assert [name for name, _ in session.send_targets()] == names


@pytest.mark.clause('RFC 7143 4.3', 'RFC 7143 12.1.3')
def test_discovery_accounts(daemon):
    daemon.target()
    daemon.text.server['incomingdiscoveryuser'] = 'finder secret-of-12-to-16'
    daemon.start()
    assert status_of(daemon) == 0x0201
    assert status_of(daemon, chap=Chap('finder', 'wrong')) == 0x0201
    assert TARGET in discover(daemon, chap=Chap('finder', 'secret-of-12-to-16'))
    assert status_of(daemon, TARGET) == 0


@pytest.mark.clause('RFC 7143 4.3', 'RFC 7143 13.21')
def test_a_discovery_session_cannot_access_disks(many):
    with connect(many.address) as session:
        command = session.submit(bytes(6))
        session.wire.socket.settimeout(5)
        try:
            pdu = session.receive()
            assert pdu.opcode == 0x3F  # Reject, or the connection ends
        except Closed:
            pass
        assert command.result is None


@pytest.mark.skipif(not has_ipv6(), reason='no IPv6 on this machine')
@pytest.mark.clause('RFC 7143 13.8')
def test_ipv6_portal_and_address_rules(daemon):
    other = free_port('::1')
    daemon.text.portal('[::1]:%d' % other)
    daemon.target(TARGET, ['initiator-address = ::1/128'])
    daemon.start()
    daemon.wait_listening(('::1', other))
    assert status_of(daemon, TARGET) == 0x0202  # 127.0.0.1 is not in the list
    with connect(('::1', other), None) as session:
        [(name, addresses)] = session.send_targets()
        assert name == TARGET and '[::1]:%d,1' % other in addresses
    with connect(('::1', other), TARGET) as session:
        session.clear_attentions()
        assert session.capacity() == (131072, 512)


@pytest.mark.clause('RFC 7143 13.8')
def test_a_wildcard_portal_is_reported_as_the_local_address_of_the_connection(daemon):
    daemon.text.groups = {1: ['0.0.0.0:%d' % daemon.port]}
    daemon.target()
    daemon.start()
    assert discover(daemon) == {TARGET: ['127.0.0.1:%d,1' % daemon.port]}


@pytest.mark.clause('RFC 7143 13.9')
def test_a_target_is_reached_through_its_own_portal_group_only(daemon):
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other, group=7)
    daemon.target()
    daemon.target('iqn.2026-11.test.targetd:seventh', group=7)
    daemon.start()
    daemon.wait_listening(('127.0.0.1', other))
    assert status_of(daemon, 'iqn.2026-11.test.targetd:seventh') == 0x0203
    with connect(('127.0.0.1', other), 'iqn.2026-11.test.targetd:seventh') as session:
        assert session.keys['TargetPortalGroupTag'] == '7'


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.13.5')
def test_max_sessions(daemon):
    daemon.target()
    daemon.text.server['max-sessions'] = '2'
    daemon.start()
    first = connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x01')
    second = connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x02')
    with pytest.raises(LoginFailed) as failure:
        connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x03')
    assert failure.value.status == 0x0302
    first.clear_attentions()
    first.logout()
    daemon.logged('(?i)log.*out')
    eventually(lambda: status_of(daemon, TARGET, isid=b'\x80\0\0\0\0\x03') == 0, 5)
    second.close()


def test_max_sessions_of_one_target(daemon):
    daemon.target(TARGET, ['initiator-address = ALL', 'max-sessions = 1'])
    daemon.target(SECRET)
    daemon.start()
    with connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0\x01'):
        assert status_of(daemon, TARGET, isid=b'\x80\0\0\0\0\x02') == 0x0302
        assert status_of(daemon, SECRET, isid=b'\x80\0\0\0\0\x02') == 0


def test_connections_of_one_address(daemon):
    """A connection above the limit gets a Login Response with a status; it is not just closed."""
    daemon.target()
    daemon.text.server['max-connections-per-address'] = '2'
    daemon.start()
    sessions = [
        connect(daemon.address, TARGET, isid=b'\x80\0\0\0\0' + bytes([number])) for number in (1, 2)
    ]
    assert status_of(daemon, TARGET, isid=b'\x80\0\0\0\0\x03') == 0x0302
    for session in sessions:
        session.close()


@pytest.mark.clause('RFC 7143 6.3')
def test_login_deadline(daemon):
    daemon.target()
    daemon.text.server['login-timeout'] = '1'
    daemon.start()
    silent = Session(daemon.address)
    begun = Session(daemon.address)
    begun.exchange(NORMAL, 0, 1)
    for session in (silent, begun):
        with pytest.raises((Closed, LoginFailed)):
            session.login_response()
    assert status_of(daemon, TARGET) == 0
