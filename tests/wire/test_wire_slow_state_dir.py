"""A disk of state-dir that is slow: only what must be saved waits for it."""

import os
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from initiator import connect, pattern

from targetd import xts

pytestmark = pytest.mark.wire

ENCRYPTED = 'iqn.2026-11.test.targetd:encrypted'
OTHER = 'iqn.2026-11.test.targetd:other'
ATOMIC = 'iqn.2026-11.test.targetd:atomic'
FSYNC_SECONDS = 4.0
LOGIN_SECONDS = 2.0

#: Runs at the start of each Python process of the server.
SITE = '''
import os, time
flag, real_fsync, real_open, real_truncate = %r, os.fsync, os.open, os.ftruncate
def wait():
    if os.path.exists(flag):
        with open(flag + '.pids', 'a') as file:
            print(os.getpid(), file=file)
        with open(flag) as file:
            time.sleep(float(file.read()))
def fsync(descriptor):
    wait()
    real_fsync(descriptor)
def open_slowly(path, *arguments, **options):
    if str(path).endswith(('.json', '.key')):
        wait()
    return real_open(path, *arguments, **options)
def truncate(descriptor, length):
    if '/atomic/' in os.readlink('/proc/self/fd/%%d' %% descriptor):
        wait()
    real_truncate(descriptor, length)
os.fsync, os.open, os.ftruncate = fsync, open_slowly, truncate
'''

#: SANITIZE, CRYPTOGRAPHIC ERASE
ERASE = bytes.fromhex('48 03 0000000000 0000 00')


@pytest.fixture
def slow(daemon):
    """A Daemon with two targets. daemon.slow(seconds): from now on each fsync, each opening of a
    state file or key file, and each extension of a journal takes so long; daemon.waited(): the ids
    of the processes that it delayed."""
    folder, flag = (os.path.join(daemon.directory, name) for name in ('site', 'slow'))
    os.mkdir(folder)
    with open(os.path.join(folder, 'sitecustomize.py'), 'w') as file:
        file.write(SITE % flag)
    environment = daemon.environment
    daemon.environment = lambda: dict(
        environment(), PYTHONPATH=os.pathsep.join([folder, environment()['PYTHONPATH']])
    )

    def begin(seconds=FSYNC_SECONDS):
        with open(flag + '.new', 'w') as file:
            file.write(str(seconds))
        os.rename(flag + '.new', flag)

    def waited():
        with open(flag + '.pids') as file:
            return {int(line) for line in file}

    daemon.slow, daemon.waited = begin, waited
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


def longest_login(daemon, ask, check=lambda: True):
    """Runs ask() in a thread, and logs in to the other target again and again meanwhile; returns how
    long the longest login and check() took."""
    failures = []

    def run():
        try:
            ask()
        except Exception as e:
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    longest = 0.0
    while thread.is_alive():
        begun = time.monotonic()
        with connect(daemon.address, OTHER, name='iqn.2026-11.test:login') as session:
            session.clear_attentions()
            session.logout()
        assert check()
        longest = max(longest, time.monotonic() - begun)
        thread.join(0.1)  # thousands of connections would wait for ports of the kernel
    thread.join()
    assert failures == []
    return longest


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

        longest = longest_login(slow, ask, lambda: keys(other) == [])
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


@pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there')
def test_a_key_file_on_a_slow_disk_delays_no_login_during_an_erase(slow):
    key = os.path.join(slow.directory, 'disk.key')
    image = 'backing-store = %s' % slow.image('encrypted.img', 16 << 20)
    slow.target(ENCRYPTED, luns={0: [image, 'encryption-key-file = %s' % key]})
    slow.reload()
    with open(key) as file:
        before = file.read()
    with connect(slow.address, ENCRYPTED, timeout=90.0) as session:
        session.clear_attentions()
        session.write(0, pattern(1, 512))
        slow.slow(1.0)  # it syncs several times
        took = []

        def erase():
            begun = time.monotonic()
            session.run(ERASE).good()
            took.append(time.monotonic() - begun)

        longest = longest_login(slow, erase)
        assert took[0] >= FSYNC_SECONDS  # the erase waited for the disk
        assert longest < LOGIN_SECONDS
        with open(key) as file:
            assert file.read() != before
        assert session.read(0, 1) != pattern(1, 512)


def test_a_slow_state_file_delays_no_login_during_a_reload(slow):
    with connect(slow.address, TARGET) as session:  # so that there are state files
        session.clear_attentions()
        register(session, 0xAA)
    slow.slow()
    slow.target('iqn.2026-11.test.targetd:added', luns={0: ['type = ram', 'size = 1M']})
    slow.target('iqn.2026-11.test.targetd:file')

    def reload():
        slow.reload('reload: ', 60)

    assert longest_login(slow, reload) < LOGIN_SECONDS
    with connect(slow.address, 'iqn.2026-11.test.targetd:file') as session:
        session.clear_attentions()
        session.read(0, 1)


def test_the_master_does_not_wait_for_a_journal_of_atomic_writes(slow):
    slow.slow(0.1)
    image = 'backing-store = %s' % slow.image('atomic.img')
    slow.target(ATOMIC, luns={0: [image, 'atomic-writes = yes', 'sharing = cluster']})
    slow.reload('reload: ', 60)
    for name in ('one', 'two'):
        with connect(slow.address, ATOMIC, name='iqn.2026-11.test:' + name) as session:
            session.clear_attentions()
            session.read(0, 1)
    waited = slow.waited()
    assert waited and slow.process.pid not in waited
