"""Calls of the kernel that cannot be interrupted, with the real daemon: an image on a file system that
is frozen, so that a write into the page cache does not return."""

import os
import subprocess
import time

import pytest
from copies import populate, token_of, write_using
from daemon import TARGET, eventually
from initiator import LOGICAL_UNIT_RESET, pattern
from pdus import write_10

MIB = 1 << 20
TWO = 'iqn.2026-11.test:two'
BUSY = 0x08
ANSWERED_SECONDS = 3  # 2 s are promised; the machine may be slow


class Frozen(object):
    """A file system that the test freezes."""

    def __init__(self, folder):
        self.folder = folder
        self.is_frozen = False

    def freeze(self):
        subprocess.check_call(['fsfreeze', '-f', self.folder])
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            subprocess.check_call(['fsfreeze', '-u', self.folder])
        self.is_frozen = False


@pytest.fixture
def file_system(tmp_path):
    """A Frozen that is not frozen yet. It must be set up before the fixture `daemon`, so that it is thawed
    after the daemon was stopped, and tests thaw it themselves."""
    image, folder = str(tmp_path / 'fs.img'), str(tmp_path / 'fs')
    with open(image, 'wb') as file:
        file.truncate(64 * MIB)
    os.mkdir(folder)
    subprocess.check_call(['mkfs.ext4', '-q', '-F', image])
    ran = subprocess.run(['mount', '-o', 'loop', image, folder], stderr=subprocess.PIPE)
    if ran.returncode:
        pytest.skip(ran.stderr.decode().strip())
    made = Frozen(folder)
    yield made
    made.thaw()
    subprocess.check_call(['umount', '-l', folder])


@pytest.fixture
def stuck(file_system, daemon, ready):
    """(file system, first, second): sessions with a healthy LUN 0 and a LUN 1 on the file system, which is
    frozen. The connection's thread of the first session is in a write to LUN 1."""
    path = os.path.join(file_system.folder, 'disk.img')
    with open(path, 'wb') as file:
        file.truncate(16 * MIB)
    luns = {0: ['backing-store = %s' % daemon.image()], 1: ['backing-store = %s' % path]}
    daemon.target(TARGET, luns=luns)
    daemon.start()
    first, second = ready(daemon), ready(daemon, name=TWO)
    first.clear_attentions(1)
    second.clear_attentions(1)
    file_system.freeze()
    write = first.submit(write_10(0, 8), 1, out=pattern(1, 4096))
    eventually(lambda: is_in_uninterruptible_sleep(daemon), 10, 'a thread in state D')
    yield file_system, first, second, write
    file_system.thaw()


def is_in_uninterruptible_sleep(daemon):
    ran = subprocess.run(
        ['ps', '-eLo', 'stat,ppid'], stdout=subprocess.PIPE, universal_newlines=True, check=True
    )
    return any(
        state.startswith('D') and int(parent) == daemon.process.pid
        for state, parent in (line.split() for line in ran.stdout.splitlines()[1:])
    )


def clear_busy(session):
    """Receives the pending unit attentions of LUN 1, which answers BUSY afterwards."""
    while session.run(bytes(6), 1).status == 2:
        pass


def timed(function, *arguments):
    began = time.monotonic()
    return function(*arguments), time.monotonic() - began


@pytest.mark.clause('RFC 7143 11.6')
def test_a_reset_is_answered_while_a_write_of_another_session_hangs_in_the_page_cache(
    daemon, stuck
):
    file_system, first, second, write = stuck
    code, seconds = timed(second.manage, LOGICAL_UNIT_RESET, 1)
    assert code == 0 and seconds < ANSWERED_SECONDS
    clear_busy(second)
    new = pattern(2, 4096)
    assert second.run(write_10(0, 8), 1, out=new).status == BUSY
    assert second.read(0, 1) == bytes(512)
    file_system.thaw()
    eventually(lambda: second.run(write_10(0, 8), 1, out=new).status == 0, 15, 'the fence is over')
    first.wait(write)
    assert first.read(0, 1) == bytes(512)
    first.clear_attentions(1)
    assert first.read(0, 8, lun=1) == new
    assert 'SIGKILL' not in daemon.log


def test_tokens_are_created_while_a_write_of_another_session_hangs_in_the_page_cache(daemon, stuck):
    """The write may change the data that the token represents, so the token is revoked."""
    file_system, first, second, write = stuck
    result, seconds = timed(populate, second, [(0, 8)], 1, 1)
    assert result.status == 0 and seconds < ANSWERED_SECONDS
    token = token_of(second, 1, 1)
    file_system.thaw()
    first.wait(write).good()
    assert write_using(second, token, [(64, 8)], lun=1).key[:2] == (5, 0x23)


def test_a_session_that_hangs_in_the_page_cache_is_replaced_and_other_luns_are_served(
    daemon, stuck, ready
):
    file_system, first, second, write = stuck
    again, seconds = timed(ready, daemon)
    assert seconds < 15  # the old worker is killed after 5 s, which has no effect yet
    assert again.read(0, 1) == bytes(512) and second.read(0, 1) == bytes(512)
    clear_busy(again)
    new = pattern(2, 4096)
    assert again.run(write_10(0, 8), 1, out=new).status == BUSY
    assert 'busy until an aborted write returns' in daemon.control('show', 'units')
    file_system.thaw()
    eventually(lambda: again.run(write_10(0, 8), 1, out=new).status == 0, 15, 'the fence is over')
    assert again.read(0, 8, lun=1) == new


@pytest.fixture
def slow_flush(file_system, daemon, ready):
    """(file system, session): LUN 1 has no write cache and is a loop device on a file of the file system.
    Its flushes are short until the file system is frozen; its page cache takes writes then."""
    path = os.path.join(file_system.folder, 'disk.img')
    with open(path, 'wb') as file:
        file.write(bytes(16 * MIB))
    device = subprocess.check_output(['losetup', '--show', '-f', path], universal_newlines=True)
    device = device.strip()
    daemon.target(
        TARGET,
        luns={
            0: ['backing-store = %s' % daemon.image()],
            1: ['backing-store = %s' % device, 'write-cache = off'],
        },
    )
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    yield file_system, session
    file_system.thaw()
    session.close()
    daemon.stop()
    subprocess.check_call(['losetup', '-d', device])


def hanging_write(slow_flush):
    """A durable write whose flush does not return, after some that were short."""
    file_system, session = slow_flush
    for number in range(20):
        session.write(8 * number, pattern(number, 4096), lun=1)
    file_system.freeze()
    return session.submit(write_10(0, 8), 1, out=pattern(99, 4096))


def test_a_session_goes_on_while_the_flush_of_a_durable_write_hangs(daemon, slow_flush):
    file_system, session = slow_flush
    for _ in range(2):  # the second time in the thread that has taken over the connection
        write = hanging_write(slow_flush)
        for number in range(3):
            assert timed(session.ping)[1] < ANSWERED_SECONDS
            data, seconds = timed(session.read, number, 1)
            assert data == bytes(512) and seconds < ANSWERED_SECONDS
        late = session.submit(write_10(8, 8), 1, out=pattern(98, 4096))
        session.ping()
        assert write.result is None and late.result is None
        file_system.thaw()
        session.wait(write).good()
        session.wait(late).good()
        assert session.read(0, 8, lun=1) == pattern(99, 4096)
        assert session.read(8, 8, lun=1) == pattern(98, 4096)
    session.logout()
    daemon.logged('connection 0 is over|logged out')


@pytest.mark.clause('RFC 7143 11.6')
def test_a_reset_is_answered_while_the_flush_of_a_durable_write_hangs(daemon, slow_flush, ready):
    file_system, session = slow_flush
    write = hanging_write(slow_flush)
    code, seconds = timed(session.manage, LOGICAL_UNIT_RESET, 1)
    assert code == 0 and seconds < ANSWERED_SECONDS
    assert session.read(0, 1) == bytes(512)
    file_system.thaw()
    clear_busy(session)
    eventually(lambda: session.run(write_10(0, 8), 1, out=pattern(2, 4096)).status == 0, 15)
    assert write.result is None


def test_a_session_whose_flush_hangs_is_replaced(daemon, slow_flush, ready):
    file_system, session = slow_flush
    write = hanging_write(slow_flush)
    session.ping()
    again, seconds = timed(ready, daemon)
    assert seconds < 15 and again.read(0, 1) == bytes(512)
    assert write.result is None
    file_system.thaw()
    clear_busy(again)
    eventually(lambda: again.run(write_10(0, 8), 1, out=pattern(2, 4096)).status == 0, 15)
    again.close()
