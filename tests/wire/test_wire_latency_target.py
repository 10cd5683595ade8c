"""latency-target: the real daemon slows the neighbours of a LUN down while its disk is too slow for it."""

import json
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from nbd_peer import SlowDisk

pytestmark = pytest.mark.wire

PROTECTED, BUSY = 'iqn.2026-11.test:protected', 'iqn.2026-11.test:busy'
LINES = ['initiator-address = ALL']
SECONDS = 40  # until the law has had its effect, also on a slow machine
WANTED = 0.06


def read_10(lba):
    return struct.pack('>BBIBHB', 0x28, 0, lba, 0, 8, 0)


class Load(object):
    """Reads through a session in a thread, with so many commands in flight. latencies: [(time at which it
    ended, seconds)] of the commands."""

    def __init__(self, session, depth, lun=0):
        self.session, self.depth, self.lun = session, depth, lun
        self.latencies, self.failure = [], None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        flying, lba = [], 0
        try:
            while flying or not self._stop.is_set():
                while len(flying) < self.depth and not self._stop.is_set():
                    lba = (lba + 8) % 1024
                    sent = self.session.submit(read_10(lba), self.lun, read=4096)
                    flying.append((time.monotonic(), sent))
                began, command = flying.pop(0)
                self.session.wait(command).good()
                now = time.monotonic()
                self.latencies.append((now, now - began))
        except BaseException as e:
            self.failure = e

    def stop(self):
        self._stop.set()
        self._thread.join(60)
        assert self.failure is None and not self._thread.is_alive(), self.failure

    def last(self, seconds):
        """The latencies of the commands that have ended in the last seconds."""
        since = time.monotonic() - seconds
        return [latency for at, latency in list(self.latencies) if at >= since]

    def p90(self, seconds=1.0):
        """The time within which 90 percent of them were answered; infinity without any."""
        found = sorted(self.last(seconds))
        return found[int(len(found) * 0.9)] if found else float('inf')


def limits(daemon):
    """{(target, what): row} of `show limits`."""
    rows = json.loads(daemon.control('--json', 'show', 'limits'))
    return {(row['target_name'], row['what']): row for row in rows}


@pytest.fixture
def disk(tmp_path):
    found = SlowDisk(str(tmp_path / 'disk.sock'), 0.004)
    yield found
    found.close()


def export(disk, name):
    return 'backing-store = "nbd+unix:///%s?socket=%s"' % (name, disk.path)


def test_a_lun_gets_its_latency_from_a_disk_that_a_neighbour_keeps_busy(disk, daemon, ready):
    """Without a limit the neighbour has 32 commands in the queue of the disk, each of 4 ms."""
    other = TARGET + '-other'
    daemon.target(
        TARGET,
        lines=LINES,
        luns={0: [export(disk, 'a'), 'latency-target = %dms' % (WANTED * 1000)]},
    )
    daemon.target(other, lines=LINES, luns={0: [export(disk, 'b')]})
    daemon.start()
    protected = Load(ready(daemon, name=PROTECTED), 1)
    session = ready(daemon, name=BUSY, target=other)
    busy = Load(session, 32)
    slowed = other, 'lun 0 slowed down'
    row = eventually(lambda: limits(daemon).get(slowed), SECONDS, 'the neighbour slowed down')
    assert row['slowed_for'] == 'lun 0 of %s (60ms)' % TARGET
    daemon.logged('is slowed down: lun 0 of %s misses its latency-target of 60ms' % TARGET)
    eventually(lambda: protected.p90() <= WANTED, SECONDS, 'the latency of the protected LUN')
    eventually(lambda: len(busy.last(1)) >= 10, SECONDS, 'commands of the neighbour')
    assert limits(daemon)[TARGET, 'lun 0']['latency_target'] == '60ms'
    text = daemon.control('metrics')
    assert 'targetd_latency_target_seconds{limit="lun 0",target="%s"} 0.06' % TARGET in text
    busy.stop()
    eventually(lambda: slowed not in limits(daemon), SECONDS + 30, 'the neighbour free again')
    daemon.logged('is not slowed down any more')
    protected.stop()


def test_files_of_one_file_system_and_why_slow_has_the_names(daemon, ready):
    """The delay of the protected LUN is its own, so the neighbour falls to the floor."""
    daemon.target(
        TARGET,
        lines=LINES,
        luns={
            0: [
                'backing-store = %s' % daemon.image('a'),
                'latency-target = 10ms',
                'filter = delay 50ms',
            ],
            1: ['backing-store = %s' % daemon.image('b')],
        },
    )
    daemon.start()
    protected = Load(ready(daemon, name=PROTECTED), 2)
    session = ready(daemon, name=BUSY, lun=1)
    session.clear_attentions(0)
    busy = Load(session, 16, lun=1)
    row = eventually(
        lambda: limits(daemon).get((TARGET, 'lun 1 slowed down')),
        SECONDS,
        'the neighbour slowed down',
    )
    assert row['slowed_for'] == 'lun 0 of %s (10ms)' % TARGET
    eventually(
        lambda: limits(daemon)[TARGET, 'lun 1 slowed down']['delayed'], SECONDS, 'delayed commands'
    )
    number = [
        row['tsih']
        for row in json.loads(daemon.control('--json', 'show', 'sessions'))
        if row['initiator_name'] == BUSY
    ][0]
    rows = json.loads(daemon.control('--json', 'why', 'slow', str(number), '--seconds', '2'))
    (found,) = [row for row in rows if row.get('limit') == 'limit']
    assert 'lun 1 slowed down' in found['why']
    assert 'for the latency-target of lun 0 of %s' % TARGET in found['why']
    assert protected.last(5), 'a LUN is never delayed for its own target'
    assert 'serves now' in daemon.control('upgrade')
    assert limits(daemon)[TARGET, 'lun 0']['latency_target'] == '10ms'
    daemon.control('lun', 'limit', TARGET + '/0', '--latency-target', '0')
    eventually(lambda: not limits(daemon), SECONDS, 'no limit any more')
    before = len(busy.latencies)
    eventually(lambda: len(busy.latencies) > before + 500, SECONDS, 'the neighbour at full speed')
    busy.stop()
    protected.stop()
