"""`targetdctl stats` and `targetdctl top` with a real server under load, `top` in a terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time

import pytest
from daemon import eventually

pytestmark = pytest.mark.wire


@contextlib.contextmanager
def load(session, blocks=8):
    """Reads without a pause."""
    is_over, failures = threading.Event(), []

    def run():
        try:
            while not is_over.is_set():
                session.read(0, blocks)
        except Exception as e:  # the test fails
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(20)
    assert not failures and not thread.is_alive()


def test_stats_shows_who_does_what(daemon, ready):
    daemon.target()
    daemon.start()
    busy = ready(daemon)
    idle = ready(daemon, isid=b'\x00\x02\x3d\x00\x00\x09')
    idle.read(0, 1)
    with load(busy):
        code, output = daemon.targetdctl('--json', 'stats', '--seconds', '1')
        text = daemon.control('stats', '--seconds', '1')
        by_lun = json.loads(daemon.control('stats', '--json', '--by', 'lun', '--seconds', '1'))
    assert code == 0, output
    rows = {row['tsih']: row for row in json.loads(output)}
    first, second = sorted(rows.values(), key=lambda row: -row['iops'])
    assert first['iops'] > 10 and second['iops'] == 0
    assert abs(first['read_rate'] - first['reads'] * 4096) <= 4096
    assert first['p50'] and first['p50'] <= first['p99'] < 1000000
    assert first['cpu'] > 0 and first['memory'] > 1 << 20
    (lun,) = by_lun
    assert lun['name'].endswith(':disk/0') and lun['sessions'] == 2 and lun['cpu'] is None
    lines = text.splitlines()
    assert len(lines) == 3 and all(len(line) <= 80 for line in lines)
    assert lines[0].startswith('SESSION') and re.search(r' \d+us |\dms ', text)


def test_wrong_words_and_a_server_that_is_down(daemon):
    code, output = daemon.targetdctl('stats')
    assert code == 7 and 'not running' in output
    code, output = daemon.targetdctl('stats', '--by', 'colour')
    assert code == 1 and 'write one of session, lun, target, initiator' in output
    code, output = daemon.targetdctl('top')
    assert code == 1 and 'targetdctl stats' in output


class Terminal(object):
    """A process in a pseudo-terminal of 80 columns and 24 lines."""

    def __init__(self, daemon, *words):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
        self.attributes = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [daemon.python, '-m', 'targetd.admin.cli']
            + ['-s', os.path.join(daemon.directory, 'targetd.sock')]
            + list(words),
            env=dict(daemon.environment(), TERM='vt100', COLUMNS='80', LINES='24'),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self.text = ''

    def until(self, expression, seconds=15):
        """Read until the new output matches."""
        end, start = time.monotonic() + seconds, len(self.text)
        while not re.search(expression, self.text[start:]):
            assert time.monotonic() < end, 'no %r in %r' % (expression, self.text[start:])
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 65536).decode('utf-8', 'replace')
        return self.text[start:]

    def press(self, key):
        os.write(self.master, key.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(daemon):
    opened = []

    def start(*words):
        opened.append(Terminal(daemon, *words))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def screen_lines(text):
    """The lines of the last complete picture."""
    picture = text.split('\x1b[H')[-2 if text.count('\x1b[H') > 1 else -1]
    return [re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', line) for line in picture.split('\r\n')]


def test_top_shows_sorts_and_leaves(daemon, ready, terminal):
    daemon.target()
    daemon.start()
    busy = ready(daemon)
    ready(daemon, isid=b'\x00\x02\x3d\x00\x00\x09').read(0, 1)
    with load(busy):
        screen = terminal('top', '--seconds', '1')
        text = screen.until(r'\x1b\[H(?s:.*)\d+us(?s:.*)\x1b\[H')
        lines = screen_lines(text)
        assert max(map(len, lines)) <= 80, lines
        assert lines[0].startswith('targetd ') and lines[2].startswith('SESSION')
        screen.press('m')
        screen.until('sorted by memory')
        screen.press('b')
        screen.until(r'LUN .*IOPS(?s:.*)disk/0')
        screen.press('bb')
        screen.until('INITIATOR .*IOPS')
        screen.press('q')
        assert screen.process.wait(10) == 0
    assert termios.tcgetattr(screen.slave)[3] == screen.attributes[3]  # echo and lines again


def test_top_outlives_the_server_and_ends_by_a_signal(daemon, terminal):
    daemon.target()
    daemon.start()
    screen = terminal('top', '--seconds', '1')
    screen.until('no session has sent a command')
    daemon.stop()
    screen.until('targetd is not running')
    daemon.start()
    screen.until('no session has sent a command')
    screen.process.send_signal(signal.SIGTERM)
    assert screen.process.wait(10) == 0
    assert termios.tcgetattr(screen.slave)[3] == screen.attributes[3]
    eventually(lambda: screen.process.poll() is not None)
