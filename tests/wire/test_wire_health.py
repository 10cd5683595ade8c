"""The health of the disks behind LUNs: a program in the place of smartctl replays answers; the real server,
initiators, and sg_logs, which decodes the log pages."""

import json
import os
import re
import shutil
import stat
import struct
import subprocess

import pytest
from daemon import TARGET, eventually
from initiator import GOOD

pytestmark = pytest.mark.wire

ANSWERS = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'unit/host/smart'
)
TEST_UNIT_READY = bytes(6)
REQUEST_SENSE = bytes([3, 0, 0, 0, 252, 0])


class Disks(object):
    """The disks that the program in the place of smartctl knows; `asked` lists its calls."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.path = os.path.join(self.directory, 'bin')
        os.makedirs(self.path)
        program = os.path.join(self.path, 'smartctl')
        with open(program, 'w') as f:
            f.write(
                '#!/bin/sh\n'
                'for node; do :; done\n'
                'name=%(top)s/$(basename $node)\n'
                'echo "$(cat /proc/$PPID/comm) $*" >> %(top)s/asked\n'
                '[ -e $name.hangs ] && exec sleep 600\n'
                'cat $name.json\n'
                'exit $(cat $name.code)\n' % {'top': self.directory}
            )
        os.chmod(program, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)

    def put(self, node, answer):
        """The disk at this node gives the answer of this name from now on."""
        with open(os.path.join(ANSWERS, answer + '.json')) as f:
            text = f.read()
        name = os.path.join(self.directory, node)
        with open(name + '.new', 'w') as f:
            f.write(text)
        with open(name + '.code', 'w') as f:
            f.write('%d\n' % json.loads(text)['smartctl']['exit_status'])
        os.rename(name + '.new', name + '.json')

    @property
    def asked(self):
        path = os.path.join(self.directory, 'asked')
        return open(path).read().splitlines() if os.path.exists(path) else []


@pytest.fixture
def disks(daemon, tmp_path, monkeypatch):
    found = Disks(tmp_path / 'smart')
    monkeypatch.setenv('PATH', found.path + os.pathsep + os.environ['PATH'])
    return found


def serve(daemon, *devices, more=()):
    daemon.target(
        luns={
            number: ['backing-store = %s' % daemon.image('disk%d.img' % number)]
            + ['health-interval = 1', 'health-device = "%s"' % device]
            + list(more)
            for number, device in enumerate(devices)
        }
    )
    return daemon.start()


def shown(daemon):
    """{disk: row} of `show disks`."""
    code, output = daemon.targetdctl('--json', 'show', 'disks')
    assert code == 0, output
    return {row['node']: row for row in json.loads(output)}


def until_state(daemon, node, state):
    return eventually(
        lambda: (lambda row: row and row['state'] == state and row)(shown(daemon).get(node)),
        30,
        lambda: '%s %s; shown: %r' % (node, state, shown(daemon)),
    )


def log_page(session, code, lun=0):
    cdb = struct.pack('>BBBBxHHB', 0x4D, 0, 0x40 | code, 0, 0, 0xFFFF, 0)
    return session.run(cdb, lun=lun, read=0xFFFF).good().data


def decoded(data, tmp_path):
    """What sg_logs says about a log page."""
    if shutil.which('sg_logs') is None:
        pytest.skip('sg_logs is not installed (package sg3-utils)')
    path = tmp_path / 'page.hex'
    path.write_text(' '.join('%02x' % byte for byte in data) + '\n')
    return subprocess.run(
        ['sg_logs', '--in=%s' % path], stdout=subprocess.PIPE, universal_newlines=True, timeout=30
    ).stdout


def sense_after(session, lun=0):
    """The next unit attention, which must come."""
    return eventually(lambda: session.run(TEST_UNIT_READY, lun=lun).key, 30, 'a unit attention')


def test_initiators_see_what_the_disk_says(daemon, disks, ready, tmp_path):
    disks.put('sdx', 'hgst-sas')
    serve(daemon, '/dev/sdx')
    row = until_state(daemon, '/dev/sdx', 'healthy')
    assert (row['model'], row['temperature'], row['hours']) == ('HGST HUS726040ALS214', 36, 41021)
    session = ready(daemon)
    assert 'Current temperature = 36 C' in decoded(log_page(session, 0x0D), tmp_path)
    assert 'Reference temperature = 65 C' in decoded(log_page(session, 0x0D), tmp_path)
    cycles = decoded(log_page(session, 0x0E), tmp_path)
    assert 'Specified cycle count over device lifetime = 50000' in cycles
    assert 'Accumulated start-stop cycles = 61' in cycles
    errors = decoded(log_page(session, 0x03), tmp_path)
    assert 'Total errors corrected = 12' in errors
    assert 'Total bytes processed = 184211501000000' in errors
    assert 'short' in decoded(log_page(session, 0x10), tmp_path).lower()
    exceptions = decoded(log_page(session, 0x2F), tmp_path)
    assert 'IE asc = 0x0' in exceptions and '36 C' in exceptions


def test_a_predicted_failure_reaches_every_initiator_once(daemon, disks, ready, tmp_path):
    disks.put('sdx', 'wd-healthy')
    disks.put('sdy', 'wd-healthy')
    found = tmp_path / 'events'
    hook = tmp_path / 'hook'
    hook.write_text(
        '#!/bin/sh\nenv | grep ^TARGETD_ | tr "\\n" "|" >> %s\necho >> %s\n' % (found, found)
    )
    hook.chmod(0o755)
    daemon.text.server['on-event'] = str(hook)
    daemon.expected_trouble.append('FAILING')
    serve(daemon, '/dev/sdx', '/dev/sdy', more=['sharing = cluster'])
    until_state(daemon, '/dev/sdx', 'healthy')
    one, other = ready(daemon), ready(daemon, name='iqn.2026-11.test:other')
    one.clear_attentions(1)
    disks.put('sdx', 'seagate-sas-failing')
    assert sense_after(one) == sense_after(other) == (6, 0x5D, 0x14)
    assert one.run(TEST_UNIT_READY).status == other.run(TEST_UNIT_READY).status == GOOD
    assert one.run(TEST_UNIT_READY, lun=1).status == GOOD
    calls = len(disks.asked)
    eventually(lambda: len(disks.asked) > calls + 2, 30, 'more looks at the disks')
    assert one.run(TEST_UNIT_READY).status == GOOD  # not again
    assert 'TOO MANY BLOCK REASSIGNS' in decoded(log_page(one, 0x2F), tmp_path).upper()
    daemon.logged('the disk /dev/sdx SEAGATE .* is FAILING: HARDWARE IMPENDING FAILURE')
    eventually(lambda: found.exists() and 'TARGETD_STATE=failing' in found.read_text(), 30, 'event')
    text = found.read_text()
    assert 'TARGETD_EVENT=health' in text and 'TARGETD_UNIT=%s/0' % TARGET in text
    assert 'failing: /dev/sdx' in daemon.units()[0]['state']
    assert daemon.targetdctl('nagios')[0] == 1
    _, metrics = daemon.targetdctl('metrics')
    assert re.search(r'^targetd_unit_disk_failing{lun="0",.*} 1$', metrics, re.M)
    assert re.search(r'^targetd_unit_disk_failing{lun="1",.*} 0$', metrics, re.M)
    assert re.search(r'^targetd_unit_temperature_celsius{lun="0",.*} 44$', metrics, re.M)
    # one that logs in later hears of it, and so does everybody after a restart
    daemon.stop()
    daemon.start()
    late = ready(daemon, name='iqn.2026-11.test:late')
    data = log_page(late, 0x2F)
    assert data[8:10] == b'\x5d\x14'


def test_request_sense_reports_it_if_the_initiator_selects_that(daemon, disks, ready):
    disks.put('sdx', 'wd-healthy')
    serve(daemon, '/dev/sdx')
    until_state(daemon, '/dev/sdx', 'healthy')
    session = ready(daemon)
    page = session.run(struct.pack('>BBBB3xHB', 0x5A, 8, 0x1C, 0, 255, 0), read=255).good().data
    assert page[8] & 0x3F == 0x1C and page[8 + 2] == 0 and page[8 + 3] == 2
    data = bytes(8) + bytes([0x1C]) + page[9:11] + b'\x06' + page[12:]
    session.run(struct.pack('>BB5xHB', 0x55, 0x10, len(data), 0), out=data).good()
    daemon.expected_trouble.append('FAILING')
    disks.put('sdx', 'seagate-failing')
    until_state(daemon, '/dev/sdx', 'failing')
    eventually(
        lambda: session.run(REQUEST_SENSE, read=252).good().data[12:14] == b'\x5d\x10', 30, '5D/10'
    )
    assert session.run(TEST_UNIT_READY).status == GOOD


def test_a_sleeping_disk_is_not_woken_and_keeps_what_it_said(daemon, disks, ready):
    disks.put('sdx', 'wd-healthy')
    serve(daemon, '/dev/sdx')
    until_state(daemon, '/dev/sdx', 'healthy')
    disks.put('sdx', 'wd-asleep')
    row = until_state(daemon, '/dev/sdx', 'asleep')
    assert (row['temperature'], row['model']) == (33, 'WDC WD40EFRX-68N32N0')
    assert log_page(ready(daemon), 0x0D)[9] == 33
    assert all('-n standby' in call for call in disks.asked)


def test_a_disk_that_does_not_answer_delays_nobody(daemon, disks, ready):
    disks.put('sdy', 'wd-healthy')
    open(os.path.join(disks.directory, 'sdx.hangs'), 'w').close()
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'health-interval = 1',
                            'health-device = /dev/sdx']})  # fmt: skip
    daemon.start()
    eventually(lambda: disks.asked, 30, 'the question to the disk')
    session = ready(daemon)
    session.write(0, bytes(4096))
    assert bytes(session.read(0, 8)) == bytes(4096)
    daemon.targetdctl('show', 'units')
    assert len(disks.asked) == 1


def test_no_worker_asks_a_disk(daemon, disks, ready):
    disks.put('sdx', 'wd-healthy')
    serve(daemon, '/dev/sdx')
    session = ready(daemon)
    for code in (0x02, 0x03, 0x05, 0x0D, 0x0E, 0x10, 0x2F):
        log_page(session, code)
    until_state(daemon, '/dev/sdx', 'healthy')
    assert {call.split()[0] for call in disks.asked} == {'targetd-job'}


def test_nothing_is_asked_without_the_setting(daemon, disks, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    assert log_page(session, 0x0D)[9] == 0xFF
    assert shown(daemon) == {}
    assert disks.asked == []
