"""Failing media: what the initiator gets, what the administrator sees, and what `on-error` does."""

import json
import os
import struct
import subprocess
import sys

import pytest
from daemon import ROOT, TARGET, eventually
from initiator import pattern
from pdus import read_10, write_10

pytestmark = pytest.mark.wire

TWO = 'iqn.2026-11.test:two'
TEST_UNIT_READY = bytes(6)
FLUSH = struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0)
UNIT = TARGET + '/0'


def ctl(daemon, *words):
    """Runs targetdctl; returns the rows or the message of its JSON reply, or the text of its error."""
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'targetd.admin.cli',
            '--json',
            '-s',
            os.path.join(daemon.directory, 'targetd.sock'),
        ]
        + list(words),
        env=dict(os.environ, PYTHONPATH=ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=30,
    )
    if done.returncode:
        return done.stderr.decode()
    reply = json.loads(done.stdout.decode())
    return reply


def unit_row(daemon):
    return ctl(daemon, 'show', 'units')[0]


def served_with(daemon, *lines):
    """Starts the daemon with a LUN 0 of 64 MiB and these lines."""
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image()] + list(lines)})
    return daemon.start()


@pytest.mark.parametrize(
    'verb, name, run, sense',
    [
        ('read', 'EIO', lambda s: s.run(read_10(2048), read=512), (3, 0x11, 0)),
        ('read', 'ENODEV', lambda s: s.run(read_10(2048), read=512), (4, 0x3E, 1)),
        ('read', 'ENOMEDIUM', lambda s: s.run(read_10(2048), read=512), (2, 0x3A, 0)),
        ('read', 'ETIMEDOUT', lambda s: s.run(read_10(2048), read=512), (0xB, 0x3E, 2)),
        ('write', 'EIO', lambda s: s.run(write_10(2048), out=bytes(512)), (3, 0x0C, 0)),
        ('write', 'ENOSPC', lambda s: s.run(write_10(2048), out=bytes(512)), (7, 0x27, 7)),
        ('write', 'EROFS', lambda s: s.run(write_10(2048), out=bytes(512)), (7, 0x27, 0)),
        ('flush', 'EIO', lambda s: s.run(FLUSH), (3, 0x0C, 0)),
    ],
)
def test_an_error_is_logged_and_counted_and_the_unit_is_degraded(
    daemon, ready, verb, name, run, sense
):
    served_with(daemon, 'filter = error %s errno=%s' % (verb, name))
    session = ready(daemon)
    assert unit_row(daemon)['state'] == 'ready' and unit_row(daemon)['errors'] == 0
    assert run(session).key == sense
    row = eventually(lambda: [r for r in [unit_row(daemon)] if r['errors']], 10)[0]
    kind = '%s %s' % (verb, name)
    assert kind in row['latest_error'] and session.name in row['latest_error']
    if verb != 'flush':
        assert row['state'].startswith('degraded: 1 error, the latest: %s at LBA 2048' % kind)
    daemon.logged(r'error: unit %s \(.*\): %s at LBA \d+.*%s' % (UNIT, kind, session.name))
    facts = {row['name']: row['value'] for row in ctl(daemon, 'status')}
    assert facts['degraded units'] == '1' and kind in facts['latest error']
    ctl(daemon, 'acknowledge', UNIT)
    assert unit_row(daemon)['state'] == 'ready' and unit_row(daemon)['errors'] == 0
    assert 'no errors' in ctl(daemon, 'acknowledge', UNIT)


def test_many_errors_make_one_log_line_and_are_all_counted(daemon, ready):
    served_with(daemon, 'filter = error write errno=ENOSPC')
    session = ready(daemon)
    for lba in range(50):
        assert session.run(write_10(lba), out=bytes(512)).key == (7, 0x27, 7)
    eventually(lambda: unit_row(daemon)['errors'] == 50, 10)
    assert daemon.log.count('write ENOSPC') == 1
    assert session.run(write_10(50), out=bytes(512)).key == (7, 0x27, 7)
    assert daemon.stop() == 0  # counts that were not saved yet are saved now
    daemon.start()
    assert unit_row(daemon)['errors'] == 51


def test_a_read_delivers_the_data_before_the_first_bad_block(daemon, ready):
    """The LBA in the INFORMATION field is exact, and the residual count covers what is missing."""
    served_with(daemon, 'filter = error read offset=1000000..1100000')
    session = ready(daemon)
    session.write(0, pattern(7, 4096 * 512))
    first = 1000000 // 512
    result = session.run(read_10(0, 4096), read=4096 * 512)
    assert result.key == (3, 0x11, 0)
    assert struct.unpack('>I', result.sense[3:7])[0] == first and result.sense[0] & 0x80
    assert result.data == pattern(7, 4096 * 512)[: first * 512]
    assert result.underflow == (4096 - first) * 512
    at_once = session.run(read_10(first, 8), read=4096)
    assert at_once.key == (3, 0x11, 0) and at_once.data == b''


def test_bad_blocks_are_listed_until_they_are_rewritten(daemon, ready):
    served_with(daemon, 'filter = error read offset=1M..1025K count=2')
    session, other = ready(daemon), ready(daemon, name=TWO)
    for lba in (2048, 2049):
        assert session.run(read_10(lba), read=512).key == (3, 0x11, 0)

    def bad():
        return [
            (row['first'], row['last'])
            for row in ctl(daemon, 'show', 'errors', UNIT)
            if row['what'] == 'bad blocks'
        ]

    eventually(lambda: bad() == [(2048, 2049)], 10, bad)
    ctl(daemon, 'acknowledge', UNIT)
    assert bad() == [(2048, 2049)]
    assert daemon.stop() == 0
    daemon.start()
    assert bad() == [(2048, 2049)]  # the list is kept in state-dir
    other = ready(daemon, name=TWO)
    other.write(2049, pattern(1, 512))
    eventually(lambda: bad() == [(2048, 2048)], 10, bad)
    other.write(2040, pattern(2, 16 * 512))
    eventually(lambda: bad() == [], 10, bad)


def test_on_error_read_only_survives_a_restart_until_it_is_acknowledged(daemon, ready):
    served_with(daemon, 'filter = error read offset=1M..2M', 'on-error = read-only')
    session, other = ready(daemon), ready(daemon, name=TWO)
    session.write(0, pattern(1, 4096))
    assert session.run(read_10(2048), read=512).key == (3, 0x11, 0)
    # the mode parameter header has changed: WP
    eventually(lambda: other.run(TEST_UNIT_READY).key == (6, 0x2A, 1), 10)
    session.clear_attentions(0)
    assert other.run(write_10(0), out=bytes(512)).key == (7, 0x27, 0)
    assert session.run(write_10(0), out=bytes(512)).key == (7, 0x27, 0)
    assert session.read(0, 8) == pattern(1, 4096)
    mode = session.run(struct.pack('>BBBBBB', 0x1A, 8, 0x3F, 0, 255, 0), read=255).good()
    assert mode.data[2] & 0x80
    assert unit_row(daemon)['state'].startswith('read-only: 1 error')
    daemon.logged('is read-only now')
    daemon.kill()
    daemon.start()
    session = ready(daemon)
    assert session.run(write_10(0), out=bytes(512)).key == (7, 0x27, 0)
    assert unit_row(daemon)['state'].startswith('read-only: 1 error')
    ctl(daemon, 'acknowledge', UNIT)
    session.clear_attentions(0)
    session.write(0, pattern(2, 4096))
    assert unit_row(daemon)['state'] == 'ready'


def test_on_error_offline_refuses_every_access_in_every_session(daemon, ready, sessions):
    served_with(daemon, 'filter = error write offset=1M..2M', 'on-error = offline')
    session, other = ready(daemon), ready(daemon, name=TWO)
    assert session.run(write_10(2048), out=bytes(512)).key == (3, 0x0C, 0)
    eventually(lambda: other.run(TEST_UNIT_READY).key == (2, 4, 3), 10)
    for each in (session, other):
        assert each.run(read_10(0), read=512).key == (2, 4, 3)
        assert each.run(write_10(0), out=bytes(512)).key == (2, 4, 3)
    assert other.ping(b'x') == b'x'  # the sessions remain
    assert other.run(struct.pack('>BBBBBB', 0x12, 0, 0, 0, 36, 0), read=36).status == 0
    daemon.kill()
    daemon.start()
    session = sessions(daemon)
    assert session.run(TEST_UNIT_READY).key[0] == 6
    assert session.run(read_10(0), read=512).key == (2, 4, 3)
    assert unit_row(daemon)['state'].startswith('offline: 1 error')
    ctl(daemon, 'acknowledge', UNIT)
    session = ready(daemon)
    assert session.read(0, 1) == bytes(512)


def test_on_error_does_nothing_when_the_store_is_full(daemon, ready):
    served_with(daemon, 'filter = error write errno=ENOSPC count=1', 'on-error = offline')
    session = ready(daemon)
    assert session.run(write_10(0), out=bytes(512)).key == (7, 0x27, 7)
    eventually(lambda: unit_row(daemon)['state'].startswith('degraded'), 10)
    session.write(0, pattern(1, 512))
    assert session.read(0, 1) == pattern(1, 512)


def test_a_disk_that_is_slow_at_bad_sectors_is_not_tried_for_long(daemon, ready):
    """Each failing read takes 3 s: after 5 s of retries the error is reported without an LBA."""
    served_with(daemon, 'filter = error read offset=1M..2M, delay read=3s offset=1M..2M')
    session = ready(daemon)
    result = session.run(read_10(2048, 256), read=256 * 512)
    assert result.key == (3, 0x11, 0) and not result.sense[0] & 0x80 and result.data == b''
