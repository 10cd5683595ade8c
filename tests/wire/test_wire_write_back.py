"""The real daemon on a device that loses data when it is written back: no command is answered GOOD
whose data is not on the medium, however many sessions use the LUN. The guest job "write-back" does the
same with disks of the device mapper."""

import pytest
from daemon import TARGET, eventually
from initiator import GOOD
from write_back import CACHED, KINDS, fill, flush_all, has_failed, missing, run_all

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
