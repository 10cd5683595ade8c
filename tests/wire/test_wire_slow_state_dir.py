"""A disk of state-dir that is slow: only what must be saved waits for it."""

import os
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from initiator import connect

pytestmark = pytest.mark.wire

OTHER = 'iqn.2026-11.test.targetd:other'
FSYNC_SECONDS = 4.0
LOGIN_SECONDS = 2.0

#: Runs at the start of each Python process of the server.
SITE = '''
import os, time
real = os.fsync
def fsync(descriptor):
    if os.path.exists(%r):
        time.sleep(%r)
    real(descriptor)
os.fsync = fsync
'''


@pytest.fixture
def slow(daemon):
    """A Daemon with two targets. daemon.slow(): from now on each fsync takes FSYNC_SECONDS."""
    folder, flag = (os.path.join(daemon.directory, name) for name in ('site', 'slow'))
    os.mkdir(folder)
    with open(os.path.join(folder, 'sitecustomize.py'), 'w') as file:
        file.write(SITE % (flag, FSYNC_SECONDS))
    environment = daemon.environment
    daemon.environment = lambda: dict(
        environment(), PYTHONPATH=os.pathsep.join([folder, environment()['PYTHONPATH']])
    )
    daemon.slow = lambda: open(flag, 'w').close()
    daemon.target()
    daemon.target(OTHER)
    daemon.start()
    yield daemon
    os.unlink(flag)


def register(session, key):
    """PERSISTENT RESERVE OUT, REGISTER with APTPL."""
    session.run(struct.pack('>BBB2xIx', 0x5F, 0, 0, 24), out=struct.pack('>QQ4xB3x', 0, key, 1))


def keys(session):
    data = session.run(struct.pack('>BB5xHx', 0x5E, 0, 256), read=256).data
    count = struct.unpack_from('>I', data, 4)[0] // 8
    return list(struct.unpack_from('>%dQ' % count, data, 8))


def test_a_slow_state_dir_delays_no_login_and_no_other_unit(slow):
    with connect(slow.address, TARGET) as asking, connect(slow.address, OTHER) as other:
        asking.clear_attentions()
        other.clear_attentions()
        slow.slow()
        took = []

        def ask():
            begun = time.monotonic()
            register(asking, 0xAA)
            took.append(time.monotonic() - begun)

        thread = threading.Thread(target=ask)
        thread.start()
        longest = 0.0
        while thread.is_alive():
            begun = time.monotonic()
            with connect(slow.address, OTHER, name='iqn.2026-11.test:login') as session:
                session.clear_attentions()
                session.logout()
            assert keys(other) == []  # the other unit
            longest = max(longest, time.monotonic() - begun)
            thread.join(0.1)  # thousands of connections would wait for ports of the kernel
        thread.join()
        assert took[0] >= FSYNC_SECONDS  # the command waited for the disk
        assert longest < LOGIN_SECONDS
        assert keys(asking) == [0xAA]


def test_a_change_that_is_being_saved_survives_a_kick_and_a_restart(slow):
    """The session of one command ends while its change is saved; another one registers."""
    with connect(slow.address, TARGET, name='iqn.2026-11.test:b') as second:
        second.clear_attentions()
        first = connect(slow.address, TARGET, name='iqn.2026-11.test:a')
        first.clear_attentions()
        slow.slow()
        thread = threading.Thread(target=register, args=(second, 0xBB))
        first.submit(
            struct.pack('>BBB2xIx', 0x5F, 0, 0, 24), out=struct.pack('>QQ4xB3x', 0, 0xAA, 1)
        )
        thread.start()
        first.wire.reset()
        thread.join(60)
        assert not thread.is_alive() and 0xBB in keys(second)
        seen = keys(second)
    slow.kill()
    slow.start()
    with connect(slow.address, TARGET, name='iqn.2026-11.test:b') as second:
        second.clear_attentions()
        eventually(lambda: keys(second) == seen, 5)
