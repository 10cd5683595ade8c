"""What the sessions have read and written, with real workers."""

import json
import os
import signal

import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.wire


def counters(daemon):
    code, output = daemon.targetdctl('--json', 'show', 'counters')
    assert code == 0, output
    return json.loads(output)


def test_every_command_is_counted_once(daemon, ready):
    luns = {n: ['backing-store = %s' % daemon.image('%d.img' % n)] for n in (0, 1)}
    daemon.target(luns=luns)
    daemon.start()
    one, two = ready(daemon), ready(daemon, isid=b'\x00\x02\x3d\x00\x00\x09', lun=1)
    for number in range(200):
        one.read(number, 8)
    one.write(0, bytes(1 << 20))  # with R2Ts
    one.read(0, 2048)
    two.write(8, bytes(4096), lun=1, fua=True)
    rows = {row['lun']: row for row in counters(daemon)}
    assert rows[0]['reads'] == 201 and rows[0]['bytes_read'] == 200 * 4096 + (1 << 20)
    assert (rows[0]['writes'], rows[0]['bytes_written']) == (1, 1 << 20)
    assert (rows[1]['reads'], rows[1]['writes'], rows[1]['bytes_written']) == (0, 1, 4096)
    assert rows[0]['unfinished'] == 0 and rows[0]['errors'] == 0 and rows[0]['others'] > 0
    assert {rows[0]['pid'], rows[1]['pid']} == {daemon.worker_of(s).pid for s in (one, two)}
    assert sum(samples for _, samples in rows[0]['read_latencies']) >= 3


def test_the_counters_outlive_the_session(daemon, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    for number in range(10):
        session.read(number, 1)
    session.logout()
    other = ready(daemon)
    other.read(0, 1)
    other.close()  # without a logout: its worker ends
    eventually(lambda: all(row['tsih'] is None for row in counters(daemon)))
    (row,) = counters(daemon)
    assert (row['reads'], row['bytes_read'], row['target_name']) == (11, 11 * 512, TARGET)
    assert daemon.control('show', 'counters').splitlines()[1].startswith('- ')


def test_an_error_of_the_medium_is_counted_and_a_refused_command_is_not(daemon, ready):
    path = daemon.image()
    daemon.target(luns={0: ['backing-store = %s' % path, 'filter = error read']})
    daemon.start()
    session = ready(daemon)
    assert session.run(bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), read=512).status == 2
    assert session.run(bytes([0xFF] + [0] * 9), read=0).status == 2  # no such command
    (row,) = counters(daemon)
    assert (row['reads'], row['errors']) == (1, 1)


def test_a_worker_that_hangs_is_named_and_the_others_are_counted(daemon, ready):
    daemon.target()
    daemon.start()
    one, two = ready(daemon), ready(daemon, isid=b'\x00\x02\x3d\x00\x00\x09')
    one.read(0, 1)
    two.read(0, 1)
    frozen = daemon.worker_of(one).pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        for _ in range(2):
            output = daemon.control('show', 'counters')
            assert 'not counted: session ' in output and '(process %d)' % frozen in output
            assert len(counters(daemon)) == 1
    finally:
        os.kill(frozen, signal.SIGCONT)
    eventually(lambda: len(counters(daemon)) == 2)


def test_no_session_has_sent_a_command(served):
    assert served.control('show', 'counters') == 'no session has sent a command\n'
