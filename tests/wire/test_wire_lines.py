"""Long, slow and broken lines: `targetdctl why slow` names what limits a session, and the log names a path
that loses full packets. The line is tests/lines.py; without root and /dev/net/tun these tests are skipped.
"""

import contextlib
import json
import os
import threading

import lines
import pytest
from daemon import TARGET, eventually
from initiator import Session
from pdus import IMMEDIATE, NOP_OUT, pack_bhs
from saturation import LONGEST_PING, MEBIBYTE, Saturated, read

pytestmark = [
    pytest.mark.wire,
    pytest.mark.skipif(bool(lines.why_not()), reason=lines.why_not() or 'none'),
]

KEYS = {'MaxRecvDataSegmentLength': '262144', 'MaxBurstLength': '1048576'}


@pytest.fixture
def line():
    with lines.Line('l%d' % os.getpid()) as each:
        yield each


@contextlib.contextmanager
def served_over(daemon, line, *settings):
    """The daemon serves TARGET, with sessions of up to two connections, on the far end of the line. settings:
    further lines of its portal group."""
    rows = ('[portal-group 2]', 'portal = %s:%d' % (lines.SERVER, daemon.port)) + settings
    daemon.text.extra = '\n'.join(rows) + '\n'
    daemon.target(lines=('initiator-address = ALL', 'MaxConnections = 2'), group='1, 2')
    with line.server.entered():
        daemon.start()
        yield (lines.SERVER, daemon.port)
        daemon.stop()


def far_session(line, address, keys=(), **more):
    with line.client.entered():
        session = Session(address, **more)
    session.login(TARGET, dict(KEYS, **dict(keys)))
    session.clear_attentions()
    return session


class Load(object):
    """Keeps commands in progress in a thread of its own until it is left. begin(session, number) submits
    one."""

    def __init__(self, session, begin, depth):
        self.session, self.begin, self.depth = session, begin, depth
        self.is_over = False
        self.error = None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        running, number = [], 0
        try:
            while running or not self.is_over:
                while len(running) < self.depth and not self.is_over:
                    running.append(self.begin(self.session, number))
                    number += 1
                self.session.wait(running.pop(0)).good()
        except Exception as e:
            self.error = e

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.is_over = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert kind or self.error is None, self.error


def write(blocks):
    data = bytes(blocks * 512)

    def begin(session, number):
        lba = number * blocks % (32 * MEBIBYTE)
        cdb = bytes([0x2A, 0]) + lba.to_bytes(4, 'big') + b'\0' + blocks.to_bytes(2, 'big') + b'\0'
        return session.submit(cdb, out=data)

    return begin


def why_slow(daemon, session, *more):
    """The rows of `why slow`: the first has the figures, the others the limits."""
    code, output = daemon.targetdctl('--json', 'why', 'slow', str(session.tsih), *more)
    assert code == 0, output
    rows = json.loads(output)
    assert 'round trip' in rows[0]['seen']
    return rows[1:]


def limits(daemon, session, *more):
    return [row['limit'] for row in why_slow(daemon, session, *more)]


def test_the_receive_window_of_the_initiator_is_named(daemon, line):
    line.rtt = 0.04
    with served_over(daemon, line) as address:
        with far_session(line, address, receive_buffer=65536) as session:
            with Load(session, read(1024), 8):
                row, *_ = why_slow(daemon, session)
            assert row['limit'] == 'receive window', row
            assert 'tcp.window_size' in row['remedy'] and 'KiB' in row['why']


def test_losses_are_named(daemon, line):
    line.rtt, line.loss = 0.02, 0.03
    with served_over(daemon, line, 'congestion-control = reno') as address:
        with far_session(line, address) as session:
            with Load(session, read(1024), 8):
                row, *_ = why_slow(daemon, session, '--seconds', '4')
            assert row['limit'] == 'loss', row
            assert 'congestion-control = bbr' in row['remedy']


def test_a_full_line_is_named(daemon, line):
    line.rtt, line.rate = 0.02, 2e6 / 8
    with served_over(daemon, line) as address:
        with far_session(line, address) as session:
            with Load(session, read(128), 8):
                row, *_ = why_slow(daemon, session)
            assert row['limit'] == 'line', row


def test_round_trips_for_r2ts_are_named(daemon, line):
    line.rtt = 0.05
    with served_over(daemon, line) as address:
        with far_session(line, address, {'FirstBurstLength': '65536'}) as session:
            with Load(session, write(256), 1):
                row = why_slow(daemon, session)[0]
            assert row['limit'] == 'R2T', row
            assert 'waits for 1 round trip' in row['why'] and 'InitialR2T = No' in row['remedy']


def test_single_commands_at_a_distance_are_named(daemon, line):
    line.rtt = 0.05
    with served_over(daemon, line) as address:
        with far_session(line, address) as session:
            with Load(session, read(8), 1):
                row, *_ = why_slow(daemon, session)
            assert row['limit'] == 'round trips', row


def test_a_slow_disk_is_named(daemon, ready):
    luns = {0: ['backing-store = ' + daemon.image(), 'filter = delay 100ms']}
    daemon.target(luns=luns)
    daemon.start()
    session = ready(daemon)
    with Load(session, read(8), 4):
        row, *_ = why_slow(daemon, session)
    assert row['limit'] == 'disk', row


def test_a_session_without_commands(served, ready):
    session = ready(served)
    assert limits(served, session, '--seconds', '1') == ['no commands']
    code, output = served.targetdctl('why', 'slow', str(session.tsih), '--seconds', '0')
    assert code == 1 and 'from 1 to 30' in output
    code, output = served.targetdctl('why', 'slow', '0')
    assert code == 1 and 'there is no session 0' in output


def test_a_session_that_ends_ends_the_measurement(served, ready):
    session = ready(served)
    answers = []
    words = ('why', 'slow', str(session.tsih), '--seconds', '30')
    thread = threading.Thread(target=lambda: answers.append(served.targetdctl(*words, seconds=40)))
    thread.start()
    session.close()
    thread.join(20)
    ((code, output),) = answers
    assert code == 1 and ('ended' in output or 'no session' in output)


def test_a_path_that_loses_full_packets_is_named(daemon, line):
    """Logins work, and short commands, and then nothing."""
    line.longest = 1400
    with served_over(daemon, line) as address:
        with far_session(line, address, timeout=30.0) as session:
            read(128)(session, 0)
            # the ping of an initiator that hears nothing; its answer stands behind the lost packet

            def has_logged():
                session.wire.send(nop_out(session))
                return 'path MTU black hole' in daemon.log

            eventually(has_logged, 20)
            answers = why_slow(daemon, session, '--seconds', '1')
            assert [row['limit'] for row in answers] == ['path MTU'], answers
            code, output = daemon.targetdctl('why')
            assert 'full packets do not reach the initiator' in output
            assert 'mss' in output and 'ICMP' in output
        assert daemon.log.count('path MTU black hole') == 1


def nop_out(session):
    return pack_bhs(NOP_OUT | IMMEDIATE, 0x80, 0, 0x7E000000, 0xFFFFFFFF, session.cmd_sn)


def test_mss_passes_the_path(daemon, line):
    """The cure: full packets are short enough."""
    line.longest = 1400
    with served_over(daemon, line, 'mss = 1288') as address:
        with far_session(line, address) as session:
            assert len(session.read(0, 128)) == 65536


# -- a slow line -----------------------------------------------------------------------------------


def full_line(line):
    """1 Mbit/s with a queue of some 400 ms, as a modem has."""
    line.rtt, line.rate, line.queue = 0.03, 1e6 / 8, 50000


DIGESTS = {'HeaderDigest': 'CRC32C', 'DataDigest': 'CRC32C'}
SEVERAL = {'MaxConnections': '2'}


@pytest.mark.parametrize('keys', [{}, DIGESTS, SEVERAL, dict(SEVERAL, **DIGESTS)], ids=' '.join)
def test_pings_on_a_slow_line_do_not_wait_for_data(daemon, line, keys):
    full_line(line)
    with served_over(daemon, line) as address:
        with far_session(line, address, keys) as session:
            assert session.value('MaxConnections') == keys.get('MaxConnections', '1')
            saturated = Saturated(session, 8)
            saturated.pass_data(640 << 10)  # the target has seen by now what the line carries
            pings = []
            for _ in range(6):
                pings.append(saturated.ping())
                saturated.pass_data(32 << 10)
            assert max(pings) < LONGEST_PING, pings
            began = [command for command in saturated.commands if command.received]
            assert 1 <= len(began) <= 8
            line.rate = 0.0  # the rest quickly: the data must be right
            for command in saturated.commands:
                result = session.wait(command).good()
                assert len(result.data) == 1 << 20


@pytest.mark.parametrize('keys', [{}, SEVERAL], ids=' '.join)
def test_a_session_ends_whose_initiator_leaves_a_slow_line_amid_the_data(daemon, line, keys):
    full_line(line)
    with served_over(daemon, line) as address:
        with far_session(line, address, keys) as session:
            Saturated(session, 8).pass_data(640 << 10)
            began = 'session %d of ' % session.tsih
            line.rate = 0.0
        eventually(
            lambda: any(began in row and ' is over' in row for row in daemon.log.split('\n'))
        )
