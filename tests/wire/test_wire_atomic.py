"""Tests of WRITE ATOMIC on a disk with atomic-writes = yes: concurrent reads and killed processes
never expose an incomplete write."""

import os
import signal
import struct
import subprocess
import threading

import pytest
from daemon import TARGET, eventually
from initiator import LoginFailed
from test_wire_reach import OTHER, copy, naa_of

pytestmark = pytest.mark.wire

ONE, TWO, THREE = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two', 'iqn.2026-11.test:three'
BLOCKS = 64
LENGTH = BLOCKS * 512
TEAR = 'filter = tear piece=4K pause=%s offset=0..1M'


def cdb(opcode, lba, blocks):
    """Sends WRITE ATOMIC(16), or another command with the same CDB format."""
    return struct.pack('>BBQIBB', opcode, 0, lba, blocks, 0, 0)


def write_atomic(session, lba, data):
    return session.run(cdb(0x9C, lba, len(data) // 512), out=data)


def filled(letter, length=LENGTH):
    return letter * length


def serve(daemon, *lines):
    image = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image] + list(lines)})
    daemon.start()
    return image


@pytest.fixture
def atomic(daemon):
    serve(daemon, 'atomic-writes = yes')
    return daemon


def limits(session):
    return struct.unpack_from('>5I', session.inquiry(0, 0xB0), 44)


# -- what is offered -------------------------------------------------------------------------------


def test_write_atomic_is_supported_when_configured(atomic, ready):
    session = ready(atomic)
    assert limits(session) == (2048, 0, 0, 0, 0)
    assert write_atomic(session, 7, filled(b'a', 1 << 20)).good()
    assert session.read(7, 2048) == filled(b'a', 1 << 20)
    assert write_atomic(session, 7, filled(b'b', (1 << 20) + 512)).key == (5, 0x24, 0)
    assert session.read(7, 1) == filled(b'a', 512)
    assert os.listdir(os.path.join(atomic.directory, 'state', 'atomic'))


def test_write_atomic_is_not_supported_by_default(served, ready):
    session = ready(served)
    assert limits(session) == (0, 0, 0, 0, 0)
    assert write_atomic(session, 0, filled(b'a')).key == (5, 0x20, 0)
    assert not os.path.exists(os.path.join(served.directory, 'state', 'atomic'))


def test_no_journal_remains_after_a_normal_stop(daemon, ready):
    daemon.text.server['stop-timeout'] = '1'
    serve(daemon, 'atomic-writes = yes')
    session = ready(daemon)
    write_atomic(session, 0, filled(b'a')).good()
    assert daemon.stop() == 0
    assert os.listdir(os.path.join(daemon.directory, 'state', 'atomic')) == []


# -- others ----------------------------------------------------------------------------------------


class Reader(threading.Thread):
    """Reads the range repeatedly until `stopping` is set. `seen`: every content that was read."""

    def __init__(self, session):
        super(Reader, self).__init__(daemon=True)
        self.session = session
        self.seen = set()
        self.count = 0
        self.stopping = False
        self.failure = None

    def run(self):
        try:
            while not self.stopping:
                self.seen.add(bytes(self.session.read(0, BLOCKS)))
                self.count += 1
        except Exception as e:
            self.failure = e


def wait_for_reads(readers):
    """Waits until each reader has completed another read, or has failed."""
    before = [reader.count for reader in readers]
    eventually(lambda: all(r.count > b or r.failure for r, b in zip(readers, before)), 20)


def mixtures(daemon, ready, write, rounds=12):
    """Returns the contents that are neither old nor new and that two readers in separate sessions
    have read while `write` was in progress."""
    writer = ready(daemon, name=ONE)
    writer.write(0, filled(b'\0'))
    readers = [Reader(ready(daemon, name=name)) for name in (TWO, THREE)]
    for reader in readers:
        reader.start()
    for number in range(1, rounds + 1):
        write(writer, bytes([number]) * LENGTH)
        wait_for_reads(readers)
    for reader in readers:
        reader.stopping = True
        reader.join(20)
        assert reader.failure is None and not reader.is_alive()
    whole = {bytes([number]) * LENGTH for number in range(rounds + 1)}
    found = set().union(*(reader.seen for reader in readers))
    assert len(found & whole) > 1  # some reads were in time
    return found - whole


def test_readers_see_incomplete_writes_without_atomic_writes(daemon, ready):
    """Shows that the readers detect incomplete writes, so that the next test can fail."""
    serve(daemon, TEAR % '2ms')
    assert mixtures(daemon, ready, lambda session, data: session.write(0, data))


@pytest.mark.parametrize('command', ['WRITE ATOMIC', 'WRITE'])
def test_readers_never_see_an_incomplete_atomic_write(daemon, ready, command):
    serve(daemon, 'atomic-writes = yes', TEAR % '2ms')
    write = {
        'WRITE ATOMIC': lambda session, data: write_atomic(session, 0, data).good(),
        'WRITE': lambda session, data: session.write(0, data),
    }[command]
    assert mixtures(daemon, ready, write) == set()


def lost_writes(daemon, ready, rounds=12):
    """Counts the writes of one session that a COMPARE AND WRITE of another session has overwritten
    because it compared before the write and wrote after it."""
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    lost = []
    for number in range(1, rounds + 1):
        one.write(0, filled(b'\0', 512))
        swap = one.submit(
            struct.pack('>BBQ3xBBB', 0x89, 0, 0, 1, 0, 0),
            out=filled(b'\0', 512) + filled(b'\xff', 512),
        )
        two.write(0, bytes([number]) * 512)
        result = one.wait(swap)
        assert result.status == 0 or result.key[0] == 0xE
        if one.read(0, 1) != bytes([number]) * 512:
            lost.append(number)
    return lost


def test_compare_and_write_can_overwrite_a_concurrent_write_without_atomic_writes(daemon, ready):
    """The manual documents this; it also shows that the next test can fail."""
    serve(daemon, 'filter = delay read=1ms write=10ms')
    assert lost_writes(daemon, ready)


@pytest.mark.clause('SBC-3 5.2')
def test_compare_and_write_is_atomic_against_plain_writes(daemon, ready):
    serve(daemon, 'atomic-writes = yes', 'filter = delay read=1ms write=10ms')
    assert lost_writes(daemon, ready) == []


def test_a_copy_from_another_target_reads_old_or_new_data(daemon, sessions, ready):
    """The worker that executes EXTENDED COPY has no session with that target, and locks the blocks
    nevertheless."""
    daemon.target(TARGET)
    daemon.target(
        OTHER,
        luns={
            3: [
                'backing-store = %s' % daemon.image('other.img'),
                'atomic-writes = yes',
                TEAR % '2ms',
            ]
        },
    )
    daemon.start()
    copier, writer = ready(daemon, name=ONE), ready(daemon, OTHER, name=TWO, lun=3)
    names = naa_of(writer, 3), naa_of(copier, 0)
    found = set()
    for number in range(1, 9):
        write = writer.submit(cdb(0x9C, 0, BLOCKS), lun=3, out=bytes([number]) * LENGTH)
        for _ in range(4):
            assert copy(copier, *names, blocks=BLOCKS, to=0).status == 0
            found.add(bytes(copier.read(0, BLOCKS)))
        writer.wait(write).good()
    assert len(found) > 1 and all(len(set(each)) == 1 for each in found)


# -- deaths ----------------------------------------------------------------------------------------


def content(image):
    with open(image, 'rb') as file:
        return file.read(LENGTH)


def begin(daemon, ready, image):
    """A session with an atomic write in progress: the old data is 'o', the new data is 'n'."""
    session = ready(daemon, name=ONE)
    session.write(0, filled(b'o'))
    session.submit(cdb(0x9C, 0, BLOCKS), out=filled(b'n'))
    eventually(lambda: len(set(content(image))) == 2, 10, 'a write that is half done')
    return session


def test_an_atomic_write_is_rolled_back_after_its_worker_is_killed(daemon, ready):
    image = serve(daemon, 'atomic-writes = yes', TEAR % '300ms')
    victim = begin(daemon, ready, image)
    bystander = ready(daemon, name=TWO)
    tag = bystander.submit(cdb(0x88, 0, BLOCKS), read=LENGTH)  # waits for the lock
    daemon.worker_of(victim).kill()
    assert bystander.wait(tag).good().data == filled(b'o')
    daemon.logged('atomic write was rolled back')
    assert content(image) == filled(b'o')
    bystander.write(0, filled(b'p', 512))
    assert write_atomic(ready(daemon, name=THREE), 2048, filled(b'q')).good()


def kill_amid_a_write(daemon, ready, image):
    """Kills the master; its workers end with it."""
    begin(daemon, ready, image)
    daemon.workers()
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)
    eventually(lambda: not daemon.survivors(), 10)


def test_an_atomic_write_is_rolled_back_after_the_master_is_killed(daemon, ready):
    image = serve(daemon, 'atomic-writes = yes', TEAR % '300ms')
    kill_amid_a_write(daemon, ready, image)
    assert len(set(content(image))) == 2
    daemon.start()
    assert ready(daemon).read(0, BLOCKS) == filled(b'o')
    daemon.logged('1 atomic writes that were in progress when targetd died were rolled back')


def test_an_incomplete_write_is_rolled_back_even_if_the_setting_was_removed(daemon, ready):
    image = serve(daemon, 'atomic-writes = yes', TEAR % '300ms')
    kill_amid_a_write(daemon, ready, image)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image]})
    daemon.start()
    assert ready(daemon).read(0, BLOCKS) == filled(b'o')
    assert os.listdir(os.path.join(daemon.directory, 'state', 'atomic')) == []


def test_blocks_of_an_undetermined_write_are_locked_until_recovery(daemon, ready):
    """The disk fails to flush during the write and again during the rollback. Other blocks remain
    readable."""
    image = serve(
        daemon, 'atomic-writes = yes', 'filter = error flush after=1 count=1 offset=0..1M'
    )
    writer, reader = ready(daemon, name=ONE), ready(daemon, name=TWO)
    writer.write(0, filled(b'o'))
    assert write_atomic(writer, 0, filled(b'n')).key == (3, 0x0C, 0)
    daemon.logged('bytes 0..%d are in doubt' % LENGTH)
    daemon.logged('FAILED')
    assert reader.run(cdb(0x88, 8, 8), read=4096).key == (0xB, 0x3E, 2)
    assert reader.read(BLOCKS, 8) == bytes(4096)
    assert reader.run(cdb(0x8A, BLOCKS, 1), out=bytes(512)).key == (4, 0x44, 0)
    control = os.path.join(daemon.directory, 'targetd.sock')
    subprocess.run(
        [daemon.python, '-m', 'targetd.admin.cli', '-s', control, 'acknowledge', TARGET + '/0'],
        timeout=60,
        env=daemon.environment(),
        check=True,
    )
    daemon.logged('atomic write was rolled back')
    reader.clear_attentions(0)
    assert reader.read(0, BLOCKS) == filled(b'o') == content(image)
    reader.write(0, filled(b'p'))


def test_the_setting_changes_with_a_reload(daemon, ready):
    image = serve(daemon)
    daemon.text.server['stop-timeout'] = '1'
    session = ready(daemon)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image, 'atomic-writes = yes']})
    daemon.reload('reload: change lun 0')
    daemon.control('reload', '--now')
    session.wait_closed()
    session = eventually(lambda: login(daemon, ready), 20)
    assert write_atomic(session, 0, filled(b'a')).good()


def login(daemon, ready):
    try:
        return ready(daemon)
    except LoginFailed:
        return None
