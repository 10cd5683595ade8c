"""Limits on the commands and bytes per second: the real daemon delays what is above them, and nothing else.

A slow machine can only make a test take longer: each asserts that a number of commands took at least the
time that the limit and the burst of one second allow.
"""

import json
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from initiator import ABORT_TASK, LOGICAL_UNIT_RESET, pattern
from members import Member, Numbering, join

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
PATH_A, PATH_B = bytes.fromhex('80abcdef0001'), bytes.fromhex('80abcdef0002')
KIB = 1 << 10
#: How early the last command may be: each LUN of a session has reserved the time of one command ahead.
SLACK = 0.1


def read_16(lba, blocks=8):
    return struct.pack('>BBQIBB', 0x88, 0, lba, blocks, 0, 0)


def run_reads(session, count, depth=32, lun=0):
    """Runs so many READs of 4 KiB with so many in flight; returns the seconds that they took."""
    began, flying, started = time.monotonic(), [], 0
    while started < count or flying:
        while started < count and len(flying) < depth:
            flying.append(session.submit(read_16(started * 8), lun, read=4 * KIB))
            started += 1
        session.wait(flying.pop(0)).good()
    return time.monotonic() - began


def together(*functions):
    """Calls the functions in threads; returns the seconds until all have returned."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as e:
            failures.append(e)

    began = time.monotonic()
    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads), failures
    return time.monotonic() - began


def limited(daemon, lun=(), target=(), luns=1):
    """Starts the daemon with these lines for LUN 0 and for the target."""
    daemon.target(
        lines=['initiator-address = ALL'] + list(target),
        luns={
            number: ['backing-store = %s' % daemon.image('%d.img' % number)]
            + (list(lun) if not number else [])
            for number in range(luns)
        },
    )
    return daemon.start()


def limits(daemon):
    """{what: row} of `show limits`."""
    rows = json.loads(daemon.control('--json', 'show', 'limits'))
    return {row['what']: row for row in rows}


def test_commands_of_a_lun_do_not_exceed_its_limit(daemon, ready):
    session = ready(limited(daemon, ['iops-limit = 50']))
    assert run_reads(session, 150) >= (150 - 50) / 50 - SLACK
    row = limits(daemon)['lun 0']
    assert row['iops'] == 50 and row['bandwidth'] is None
    assert 50 <= row['delayed'] <= 150 and row['delay_seconds'] > 1


def test_bytes_of_a_lun_do_not_exceed_its_limit(daemon, ready):
    session = ready(limited(daemon, ['bandwidth-limit = 1M']))
    began, data = time.monotonic(), pattern(5, 64 * KIB)
    writes = [
        session.submit(struct.pack('>BBQIBB', 0x8A, 0, n * 128, 128, 0, 0), out=data)
        for n in range(48)
    ]
    for write in writes:
        session.wait(write).good()
    assert time.monotonic() - began >= (3 - 1) - SLACK
    assert session.read(47 * 128, 128) == data, 'a delayed write is written'


def test_sessions_share_the_limits_of_lun_and_target(daemon, ready):
    limited(daemon, ['iops-limit = 100'], ['iops-limit = 50'])
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    seconds = together(lambda: run_reads(one, 75), lambda: run_reads(two, 75))
    assert seconds >= (150 - 50) / 50 - SLACK
    assert limits(daemon)['target']['delayed'] >= 50


def test_an_initiator_has_one_limit_for_all_its_paths(daemon, ready):
    limited(daemon, target=['initiator-iops-limit = 50'])
    paths = [ready(daemon, name=ONE, isid=isid) for isid in (PATH_A, PATH_B)]
    other = ready(daemon, name=TWO)
    seconds = together(*[lambda path=path: run_reads(path, 75) for path in paths])
    assert seconds >= (150 - 50) / 50 - SLACK
    run_reads(other, 40)  # fewer than its own burst
    rows = limits(daemon)
    assert rows['initiator ' + ONE]['delayed'] >= 50
    assert rows['initiator ' + TWO]['delayed'] == 0


def test_initiators_that_see_a_lun_by_other_numbers_share_its_limit(daemon, ready):
    maps = ['lun-map = %s 0=7' % ONE, 'lun-map = %s 0=0 3=7' % TWO, 'sharing = cluster']
    daemon.target(
        lines=['initiator-address = ALL'] + maps,
        luns={
            0: ['backing-store = %s' % daemon.image('0.img')],
            7: ['backing-store = %s' % daemon.image('7.img'), 'iops-limit = 50'],
        },
    )
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO, lun=3)
    two.clear_attentions(0)
    seconds = together(lambda: run_reads(one, 75), lambda: run_reads(two, 75, lun=3))
    assert seconds >= (150 - 50) / 50 - SLACK
    delayed = limits(daemon)['lun 7']['delayed']
    run_reads(two, 60)
    assert limits(daemon)['lun 7']['delayed'] == delayed, 'the other LUN has no limit'


@pytest.fixture
def slow(daemon, ready):
    """(daemon, session): one command per second at LUN 0, of which four wait."""
    limited(daemon, ['iops-limit = 1'], luns=2)
    session = ready(daemon)
    session.clear_attentions(1)
    session.read(0, 8)
    session.waiting = [session.submit(read_16(n * 8), read=4 * KIB) for n in range(4)]
    return daemon, session


def test_delayed_commands_delay_nothing_else(slow):
    daemon, session = slow
    assert session.ping(b'are you there') == b'are you there'
    session.read(0, 8, lun=1)
    session.inquiry()
    assert session.waiting[3].result is None
    for command in session.waiting:
        session.wait(command).good()


@pytest.mark.clause('RFC 7143 11.5')
def test_delayed_commands_are_aborted(slow):
    daemon, session = slow
    third, fourth = session.waiting[2:]
    assert session.manage(ABORT_TASK, task=third) == 0
    session.wait(fourth).good()
    assert third.result is None
    later = [session.submit(read_16(n * 8), read=4 * KIB) for n in range(40)]
    assert session.manage(LOGICAL_UNIT_RESET) == 0
    assert not any(command.result for command in later[2:])
    for command in later + [third]:
        session.commands.pop(command.itt, None)
    session.ping()


def test_a_session_ends_while_its_commands_are_delayed(slow):
    daemon, session = slow
    worker = daemon.worker_of(session)
    session.close()
    eventually(lambda: not worker.is_running() or not _sessions(daemon), 10, 'the session over')


def _sessions(daemon):
    return json.loads(daemon.control('--json', 'show', 'sessions'))


def test_a_limit_is_changed_and_removed_while_commands_wait(slow):
    daemon, session = slow
    more = [session.submit(read_16(n * 8), read=4 * KIB) for n in range(60)]
    daemon.control('lun', 'limit', TARGET + '/0', '--iops', '100')
    for command in session.waiting + more:  # a minute with the old limit
        session.wait(command).good()
    assert limits(daemon)['lun 0']['iops'] == 100
    daemon.control('lun', 'limit', TARGET + '/0', '--iops', '1')
    more = [session.submit(read_16(n * 8), read=4 * KIB) for n in range(60)]
    daemon.control('lun', 'limit', TARGET + '/0', '--iops', '0')
    for command in more:
        session.wait(command).good()
    assert limits(daemon) == {}
    daemon.control('target', 'limit', TARGET, '--iops', '50')
    assert run_reads(session, 150) >= (150 - 50) / 50 - SLACK


def test_a_session_that_follows_another_in_the_same_worker_has_its_own_limits(daemon, ready):
    daemon.text.server['spare-workers'] = '0'
    limited(daemon, ['iops-limit = 50'])
    for _ in range(2):
        session = ready(daemon)
        run_reads(session, 60)
        session.logout()
    daemon.control('lun', 'limit', TARGET + '/0', '--iops', '0')
    session = ready(daemon)
    run_reads(session, 200)
    assert limits(daemon) == {}


def test_the_connections_of_a_session_share_the_limit(daemon):
    limited(daemon, ['iops-limit = 20'], ['MaxConnections = 4'])
    with Member(daemon.address, 1, Numbering()) as first:
        first.login(TARGET, keys={'MaxConnections': '4'})
        first.clear_attentions()
        with join(first, 2, TARGET) as second:
            began = time.monotonic()
            # READs that are so large that one connection may have to wait for the initiator
            reads = [
                (connection, connection.submit(read_16(n * 512, 512), read=256 * KIB))
                for n in range(30)
                for connection in (first, second)
            ]
            connection, last = reads.pop()
            assert connection is second and first.manage(ABORT_TASK, task=last) == 0
            for connection, read in reads:
                assert connection.wait(read).good().data == bytes(256 * KIB)
            assert time.monotonic() - began >= (59 - 20) / 20 - SLACK
            assert last.result is None


def test_ordered_commands_keep_their_order_behind_delayed_ones(daemon, ready):
    session = ready(limited(daemon, ['iops-limit = 20']))
    reads = [session.submit(read_16(n * 8), read=4 * KIB) for n in range(30)]
    ordered = session.submit(
        struct.pack('>BBQIBB', 0x8A, 0, 0, 8, 0, 0), out=pattern(9, 4 * KIB), attribute=2
    )
    head = session.submit(read_16(80), read=4 * KIB, attribute=3)
    session.wait(head).good()
    assert ordered.result is None, 'HEAD OF QUEUE does not wait'
    session.wait(ordered).good()
    assert all(session.wait(read).good() for read in reads)
    assert reads[0].result.data == bytes(4 * KIB)


def test_the_metrics_have_the_delays(daemon, ready):
    session = ready(limited(daemon, ['iops-limit = 20']))
    run_reads(session, 40)
    text = daemon.control('metrics')
    label = 'limit="lun 0",target="%s"' % TARGET
    assert 'targetd_limit_delayed_commands_total{%s}' % label in text
    assert 'targetd_limit_delay_seconds_total{%s}' % label in text
