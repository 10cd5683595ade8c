"""The real daemon on a device that loses data when it is written back: no command is answered GOOD
whose data is not on the medium, however many sessions use the LUN."""

import os
import re
import signal
import subprocess
import time

import pytest
from daemon import TARGET, eventually
from initiator import GOOD
from write_back import CACHED, KINDS, fill, flush_all, has_failed, missing, run_all, write

from targetd.worker.fault_reports import COLLECT_SECONDS

pytestmark = pytest.mark.wire

NAA = '60014050000000000000000000000007'


@pytest.mark.parametrize('count', [1, 3, 8])
@pytest.mark.parametrize('kind', sorted(KINDS))
def test_what_is_good_is_on_the_medium(daemon, losing, ready, kind, count):
    commands_of, lines = KINDS[kind]
    with open(losing.device, 'r+b') as file:
        fill(file)
    daemon.text.server['stop-timeout'] = '1'
    rows = ['backing-store = %s' % losing.device, 'naa = %s' % NAA]
    daemon.target(TARGET, luns={0: rows + list(lines)})
    daemon.start()
    sessions = [
        ready(daemon, name='iqn.2026-11.test:i%d' % number, isid=b'\x80\0\0\0\0' + bytes([number]))
        for number in range(count)
    ]
    works = run_all(sessions, commands_of(sessions[0], 0, bytes.fromhex(NAA)))
    statuses = [work.command.result.status for work in works]
    if kind == CACHED:
        assert set(statuses) == {GOOD}
        assert GOOD not in flush_all(sessions)
    else:
        assert missing(losing.read, works) == []
        assert set(statuses) != {GOOD}  # something was lost, or the test proves nothing
    eventually(lambda: has_failed(sessions), 10, 'the unit failed in every session')
    daemon.logged('FAILED')
    daemon.stop()


def test_an_error_that_only_a_killed_worker_has_seen_fails_the_unit(daemon, losing, ready):
    """Linux reports an error to each open description, and to one that is opened later only if no other
    has reported it yet. Here the test takes the part of a worker that is killed within fdatasync."""
    rows = ['backing-store = %s' % losing.device]
    daemon.target(TARGET, luns={0: rows})
    daemon.start()
    for _ in range(3):  # uses up descriptions that were opened in advance
        ready(daemon).close()
    session = ready(daemon)
    works = run_all([session], write(0x8A))
    assert {work.command.result.status for work in works} == {GOOD}
    seen = os.open(losing.device, os.O_RDWR)
    with pytest.raises(OSError):
        os.fsync(seen)
    os.close(seen)
    worker = int(re.findall(r'\(session \d+, worker (\d+)\)', daemon.log)[-1])
    os.kill(worker, signal.SIGKILL)
    daemon.logged('session .* is over: its worker died')
    again = ready(daemon, name='iqn.2026-11.test:again')
    eventually(lambda: has_failed([again]), 10, 'the unit failed')
    daemon.logged('FAILED')
    daemon.stop()


def test_an_acknowledged_failure_is_reported_to_no_session_again(daemon, losing, ready):
    """Linux would report it once to each description that was opened before."""
    daemon.text.server['stop-timeout'] = '1'
    daemon.target(TARGET, luns={0: ['backing-store = %s' % losing.device]})
    daemon.start()
    sessions = [ready(daemon, name='iqn.2026-11.test:i%d' % number) for number in range(6)]
    run_all(sessions, write(0x8A))
    assert GOOD not in flush_all(sessions)
    folder = os.path.dirname(losing.image)
    subprocess.check_call(['mount', '-o', 'remount,size=16m', folder])
    assert daemon.targetdctl('acknowledge', TARGET + '/0')[0] == 0
    for session in sessions:
        session.clear_attentions()
    works = run_all(sessions, write(0x8A))
    assert set(flush_all(sessions)) == {GOOD}
    assert missing(losing.read, works) == []
    assert set(flush_all([ready(daemon) for _ in range(6)][-1:])) == {GOOD}
    time.sleep(2 * COLLECT_SECONDS)  # what the workers have collected before it arrives after it
    assert daemon.units()[0]['state'] == 'ready'
