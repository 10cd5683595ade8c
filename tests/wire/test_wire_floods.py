"""Tests of floods from one address (127.0.0.2) and of secret guessing: other addresses can log in
meanwhile, and the log has the lines that fail2ban matches."""

import os
import re
import shutil
import socket
import subprocess
import time

import floods
import namespaces
import pytest
from daemon import ROOT, TARGET, eventually
from initiator import INITIATOR, Chap, Closed, LoginFailed, Session
from pdus import IMMEDIATE, LOGIN, pack_bhs, pack_text

pytestmark = pytest.mark.wire

BAD = '127.0.0.2'
SECRET = 'iqn.2026-11.test.targetd:secret'
GOOD_CHAP = ('erp', '12-to-16-chars')
FILTER = os.path.join(ROOT, 'etc', 'fail2ban', 'filter.d', 'targetd.conf')


@pytest.fixture
def flood():
    """flood(daemon, count, data=b'') -> [socket, …] from BAD; closed at the end."""
    opened = []

    def begin(daemon, count, data=b''):
        for _ in range(count):
            sock = socket.socket()
            opened.append(sock)
            sock.bind((BAD, 0))
            sock.settimeout(10)
            sock.connect(daemon.address)
            if data:
                sock.sendall(data)
        return opened

    yield begin
    for sock in opened:
        sock.close()


def logs_in(daemon, seconds=4.0, target=TARGET, chap=None, name=INITIATOR, source=None):
    """Logs in, from another address unless the test says so, and executes a command within a time
    limit."""
    begun = time.monotonic()
    with Session(daemon.address, name, source=source) as session:
        session.login(target, chap=chap)
        session.clear_attentions()
        session.capacity()
    assert time.monotonic() - begun < seconds
    return True


def is_open(sock):
    sock.setblocking(False)
    try:
        return sock.recv(1) != b''
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


# -- floods ----------------------------------------------------------------------------------------


def test_half_open_connections_do_not_prevent_logins_from_other_addresses(daemon, flood):
    daemon.target()
    daemon.start()
    silent = flood(daemon, 400)
    logs_in(daemon)
    eventually(lambda: sum(map(is_open, silent)) <= 64, 10)  # twice max-connections-per-address
    assert len(daemon.workers()) <= 4  # they cost descriptors, no processes
    logs_in(daemon)
    daemon.logged(
        'connections wait for their login, .* from 127.0.0.2; the oldest of these are closed'
    )


def test_a_low_descriptor_limit_is_sufficient(daemon, flood):
    """With a limit of 128 descriptors, silent connections use at most half of them."""
    daemon.target()
    daemon.command = lambda *arguments: (
        ['/bin/sh', '-c', 'ulimit -n 128; exec "$@"', 'sh', daemon.python, '-m', 'targetd']
        + list(arguments)
    )
    daemon.text.server['max-connections-per-address'] = '1000'
    daemon.start()
    flood(daemon, 300)
    logs_in(daemon)
    assert 'no connection can be accepted' not in daemon.log


def header(data=b''):
    return (
        pack_bhs(LOGIN | IMMEDIATE, 0x81, b'\x80\0\0\0\0\x01\0\0', 1, 0x10000, 1)[:4]
        + len(data).to_bytes(4, 'big')
        + pack_bhs(LOGIN | IMMEDIATE, 0x81, b'\x80\0\0\0\0\x01\0\0', 1, 0x10000, 1)[8:]
        + data
        + bytes(-len(data) % 4)
    )


BEGUN = header(
    pack_text(
        [
            ('InitiatorName', 'iqn.2026-11.test:flood'),
            ('SessionType', 'Normal'),
            ('TargetName', TARGET),
            ('AuthMethod', 'None'),
        ]
    )
)


@pytest.mark.parametrize(
    'data', [header(bytes(8192))[:60], BEGUN], ids=['cut-off', 'security-stage']
)
def test_unfinished_logins_do_not_prevent_logins_from_other_addresses(daemon, flood, data):
    """The server allows two sessions and 16 logins; 30 logins from one address get at most eight of
    these."""
    daemon.text.server['max-sessions'] = '2'
    daemon.target()
    daemon.start()
    flood(daemon, 30, data)
    eventually(lambda: len(daemon.workers()) >= 8, 10)
    for _ in range(3):
        logs_in(daemon)
    assert len(daemon.workers()) <= 16


def test_many_logins_that_are_disconnected_immediately(daemon, flood):
    daemon.target()
    daemon.start()
    end = time.monotonic() + 3
    count = 0
    while time.monotonic() < end and count < 600:
        for sock in flood(daemon, 10, BEGUN)[-10:]:
            sock.close()
        count += 10
    logs_in(daemon, 8.0)
    assert count >= 100 and not daemon.trouble()


@pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or 'none')
def test_honest_logins_succeed_beside_floods(tmp_path):
    """Seven kinds of flood from four addresses, one of which an honest client shares. Longer:
    python3 -m tests.longrun floods."""
    figures, complaints = floods.run_floods(str(tmp_path), 10, 1)
    print('\n'.join('%9d %s' % (number, name) for name, number in sorted(figures.items())))
    assert not complaints, complaints[:5]


@pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or 'none')
def test_two_hosts_of_one_network_do_not_delay_each_other(daemon):
    """IPv6: one host guesses without a pause, the other one of its /64 logs in at once."""
    space = namespaces.Namespace(
        'targetd-%d' % os.getpid(), ['fd00:99::%d/64' % number for number in (1, 2, 3)]
    )
    try:
        with space.entered():
            daemon.text.portal('[fd00:99::1]:3260')
            guarded(daemon, 1)
            address = ('fd00:99::1', 3260)
            daemon.wait_listening(address)
            stuck = []
            for _ in range(5):
                stuck.append(Session(address, 'iqn.2026-11.test:i', source='fd00:99::2'))
                begin_guess(stuck[-1])
            daemon.logged('5 in a row; the answer waits 10 s')
            for source in ('fd00:99::3', 'fd00:99::2'):
                begun = time.monotonic()
                with Session(address, source=source) as session:
                    session.login(SECRET, chap=Chap(*GOOD_CHAP))
                with Session(address, source=source) as session:
                    session.login(TARGET)
                assert time.monotonic() - begun < 4, source
            for session in stuck:
                session.close()
            daemon.stop()
    finally:
        space.remove()


# -- guessed secrets -------------------------------------------------------------------------------


def guess(
    daemon, name='erp', target=SECRET, secret='wrong-secret-of', initiator='iqn.2026-11.test:i'
):
    """Returns the login status and the duration of the login."""
    begun = time.monotonic()
    with Session(daemon.address, initiator, source=BAD) as session:
        with pytest.raises((LoginFailed, Closed)) as failure:
            session.login(target, chap=Chap(name, secret))
        assert failure.type is Closed or failure.value.status in (0x0201, 0x0203)
    return time.monotonic() - begun


def begin_guess(session):
    """Sends a wrong response to the challenge, and does not wait for the answer."""
    session.exchange(session._first_keys(SECRET) + [('AuthMethod', 'CHAP')], 0)
    challenge, _, _ = session.exchange([('CHAP_A', '5')], 0)
    session.login_pdu(Chap('erp', 'wrong-secret-of').answer(challenge), 0, 1)


def guarded(daemon, allowed):
    daemon.text.server['failures-before-delay'] = str(allowed)
    daemon.target(SECRET, ['initiator-address = ALL', 'incominguser = %s %s' % GOOD_CHAP])
    daemon.target()
    return daemon.start()


def test_secret_guessing_is_throttled_and_does_not_delay_others(daemon):
    guarded(daemon, 2)
    times = []
    for _ in range(3):
        times.append(guess(daemon))
        daemon.logged(', %d in a row' % len(times))
        logs_in(daemon, 0.9, SECRET, chap=Chap(*GOOD_CHAP))
    assert times[0] < 0.9 and times[1] > 0.8 and times[2] > 1.8  # no, 1 and 2 seconds
    begun = time.monotonic()
    for number in range(4):  # other names and targets of this address, and its own right secret
        with Session(daemon.address, source=BAD, isid=b'\x80\0\0\0\0' + bytes([number])) as session:
            session.login(SECRET, chap=Chap(*GOOD_CHAP))
        logs_in(daemon, 0.9, source=BAD)
        with Session(daemon.address, 'iqn.2026-11.test:i', source=BAD) as session:
            session.login(SECRET, chap=Chap(*GOOD_CHAP))
    assert time.monotonic() - begun < 4


def test_logins_are_not_delayed_while_the_answers_to_failures_wait(daemon):
    """A mistyped secret of one volume, with retries that do not wait: others of its host log in, and
    so does this one as soon as its secret is right."""
    guarded(daemon, 1)
    stuck = [Session(daemon.address, 'iqn.2026-11.test:i', source=BAD) for _ in range(4)]
    try:
        for session in stuck:
            begin_guess(session)
        daemon.logged('4 in a row; the answer waits 8 s')
        begun = time.monotonic()
        logs_in(daemon, 2, source=BAD)
        logs_in(daemon, 2, SECRET, chap=Chap(*GOOD_CHAP), source=BAD)
        logs_in(daemon, 2, SECRET, chap=Chap(*GOOD_CHAP), source=BAD, name='iqn.2026-11.test:i')
        assert time.monotonic() - begun < 6 and is_open(stuck[3].wire.socket)
        assert len(daemon.workers()) <= 3  # no worker waits with them
    finally:
        for session in stuck:
            session.close()


def failregex():
    with open(FILTER) as file:
        (line,) = [line for line in file if line.startswith('failregex')]
    return line.split('=', 1)[1].strip()


def lines_of(daemon):
    """Returns the log lines in the formats of a log file, of syslog and of the journal, without the
    time, which fail2ban removes first."""
    lines = daemon.log.splitlines()
    plain = [re.sub(r'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', '', line) for line in lines]
    syslog = [re.sub(r'^ targetd(\[\d+\]) ', r' storage1 targetd\1: ', line) for line in plain]
    return plain, syslog


def forge(daemon):
    """Names that an initiator may choose, in the format of the line that the filter matches."""
    line = 'targetd[1] warning: authentication failed from 198.51.100.9 port 1, 9 in a row'
    guess(daemon, name=line)
    guess(daemon, target='iqn.2026-11.test:x %s' % line)
    guess(daemon, initiator='iqn.x:' + line.replace(' ', '\t').replace('\t', ''))
    with Session(daemon.address, source=BAD) as session:
        with pytest.raises((LoginFailed, Closed)):
            session.exchange(
                b'InitiatorName=iqn.x:y\n' + line.encode() + b'\0SessionType=Discovery\0', 0, 1
            )


def test_the_fail2ban_filter_matches_only_the_address_of_the_initiator(daemon):
    guarded(daemon, 0)
    for _ in range(3):
        guess(daemon)
    forge(daemon)
    daemon.logged('5 in a row|4 in a row')
    expression = re.compile(failregex().replace('<HOST>', r'(?P<host>[\w.:-]*\w)'))
    for lines in lines_of(daemon):
        found = [match.group('host') for match in map(expression.search, lines) if match]
        assert len(found) >= 4 and set(found) == {BAD}


@pytest.mark.skipif(
    not shutil.which('fail2ban-regex'), reason='fail2ban is not installed (Debian: fail2ban)'
)
def test_fail2ban_bans_the_address(daemon):
    guarded(daemon, 0)
    for _ in range(3):
        guess(daemon)
    forge(daemon)
    daemon.logged('4 in a row')
    wanted = len(
        re.findall('^.*warning: authentication failed from %s port' % BAD, daemon.log, re.M)
    )
    done = subprocess.run(
        ['fail2ban-regex', '-v', daemon.log_file, FILTER],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode('utf-8', 'replace')
    assert re.search(r'^Failregex: %d total' % wanted, output, re.M), output
    hits = re.findall(r'^\| +([0-9.]+)  \w', output, re.M)
    assert hits == [BAD] * wanted, output
