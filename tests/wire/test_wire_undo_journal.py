"""guard = undo-journal on the real daemon: a LUN goes back to the content that it had at a time."""

import os
import random
import signal
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from initiator import pattern
from pdus import Closed
from test_wire_guards import SIZE, content, kept, log_out
from test_wire_upgrade import installed  # noqa: F401

from targetd import xts
from targetd.store import undo_records

pytestmark = pytest.mark.wire

UNIT = TARGET + '/0'
ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
JOURNAL = 'guard = undo-journal 256M'
WRITE_PROTECTED = (7, 0x27, 0)


def serve(daemon, *more, guard=JOURNAL, path=None):
    """Serves 64 MiB with old content; returns the path of the file."""
    path = path or daemon.image()
    with open(path, 'r+b') as image:
        image.write(b'old content ' * 87382)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, guard] + list(more)})
    daemon.start()
    return path


def next_second():
    """A time as text before which all writes so far are, and after which all later ones are."""
    second = int(time.time()) + 1
    eventually(lambda: time.time() >= second, 5, 'the next second')
    return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(second))


def restore(daemon, when):
    return daemon.control('guard', 'restore', UNIT, when)


def refused(daemon, when):
    code, text = daemon.targetdctl('guard', 'restore', UNIT, when)
    assert code
    return text


def folder(daemon):
    guards = os.path.join(daemon.directory, 'state', 'guards')
    (name,) = [name for name in os.listdir(guards) if name.endswith('.undo')]
    return os.path.join(guards, name)


def segments(daemon):
    return sorted(name for name in os.listdir(folder(daemon)) if name.endswith('.undo'))


def cdb_16(operation, lba, blocks, second=0):
    return struct.pack('>BBQIBB', operation, second, lba, blocks, 0, 0)


def compare_and_write(session, lba, old, new):
    cdb = struct.pack('>BBQ3xBBB', 0x89, 0, lba, len(old) // 512, 0, 0)
    session.run(cdb, out=old + new).good()


def unmap(session, lba, blocks):
    data = struct.pack('>HHxxxxQIxxxx', 22, 16, lba, blocks)
    session.run(struct.pack('>BBxxxxBHB', 0x42, 0, 0, len(data), 0), out=data).good()


def until_ready(session):
    eventually(lambda: session.run(bytes(6)).status == 0, 60, 'a ready unit')


CHANGES = {
    'write': lambda s: s.write(8, pattern(1, 1 << 20)),
    'write-same': lambda s: s.run(cdb_16(0x93, 0, 4096), out=b'x' * 512).good(),
    'write-same-zeroes': lambda s: s.run(cdb_16(0x93, 0, 32768), out=bytes(512)).good(),
    'write-same-unmap': lambda s: s.run(cdb_16(0x93, 0, 32768, 8), out=bytes(512)).good(),
    'unmap': lambda s: unmap(s, 0, SIZE // 512),
    'compare-and-write': lambda s: compare_and_write(s, 3, bytes(s.read(3, 1)), b'n' * 512),
    'format': lambda s: (s.run(struct.pack('>BBBBBB', 4, 0, 0, 0, 0, 0)).good(), until_ready(s)),
}


@pytest.mark.parametrize('change', sorted(CHANGES))
def test_every_command_that_overwrites_is_undone_and_the_undo_too(daemon, ready, change):
    path = serve(daemon, 'thin = yes')
    session = ready(daemon)
    session.write(100000, pattern(2, 8192))
    before = content(path)
    when = next_second()
    CHANGES[change](session)
    changed = content(path)
    assert changed != before
    assert 'in use by 1 session' in refused(daemon, when)
    log_out(daemon, session)
    later = next_second()
    assert 'were restored' in restore(daemon, when)
    assert content(path) == before
    restore(daemon, later)
    assert content(path) == changed
    restore(daemon, when)
    assert bytes(ready(daemon).read(100000, 16)) == pattern(2, 8192)


def test_each_time_has_the_content_of_that_time(daemon, ready):
    path = serve(daemon)
    generator = random.Random(1)
    states = []
    session = ready(daemon)
    for _ in range(3):
        states.append((next_second(), content(path)))
        for _ in range(60):
            lba, blocks = generator.randrange(1000), generator.randrange(1, 200)
            session.write(lba, pattern(generator.randrange(1 << 30), blocks * 512))
    log_out(daemon, session)
    for when, wanted in reversed(states):
        restore(daemon, when)
        assert content(path) == wanted, when
    rows = kept(daemon)
    assert {row['state'] for row in rows} == {'complete'}
    assert [row for row in rows if row['initiator_name'].startswith('iqn.')]
    assert 'its undo journal begins at' in refused(daemon, '2026-01-01')
    assert 'nothing was written since' in refused(daemon, next_second())
    assert 'is neither a number nor a time' in refused(daemon, 'yesterday')
    assert 'there is no number 1' in refused(daemon, '1')


@pytest.mark.parametrize('victim', ['worker', 'master'])
def test_what_is_recorded_outlasts_a_kill_in_mid_write(daemon, ready, victim):
    path = serve(daemon)
    session = ready(daemon)
    before, when = content(path), next_second()
    written = []

    def load():
        generator = random.Random(2)
        try:
            while True:
                lba = generator.randrange(2000)
                session.write(lba, pattern(generator.randrange(1 << 30), 64 << 10))
                written.append(lba)
        except (OSError, Closed):
            pass

    thread = threading.Thread(target=load)
    thread.start()
    eventually(lambda: len(written) > 30, 60, 'some writes')
    if victim == 'worker':
        os.kill(daemon.worker_of(session).pid, signal.SIGKILL)
    else:
        daemon.workers()
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait(30)
        eventually(lambda: not daemon.survivors(), 30, 'the end of the workers')
    thread.join(60)
    assert not thread.is_alive() and content(path) != before
    if victim == 'master':
        daemon.start()
    eventually(lambda: daemon.units()[0]['sessions'] == 0, 30, 'the end of the session')
    restore(daemon, when)
    assert content(path) == before


def test_two_initiators_that_write_the_same_blocks_are_undone_in_order(daemon, ready):
    path = serve(daemon, 'sharing = cluster')
    both = [ready(daemon, name=name) for name in (ONE, TWO)]
    before, when = content(path), next_second()

    def load(number):
        generator = random.Random(number)
        for n in range(60):
            both[number].write(generator.randrange(64), bytes([n + 100 * number]) * 8192)

    threads = [threading.Thread(target=load, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    middle, between = content(path), next_second()
    for number in (0, 1):
        both[number].write(number, b'last' * 1024)
    for session in both:
        session.logout()
    eventually(lambda: daemon.units()[0]['sessions'] == 0, 30, 'the end of the sessions')
    assert {row['initiator_name'] for row in kept(daemon)} == {ONE, TWO}
    restore(daemon, between)
    assert content(path) == middle
    restore(daemon, when)
    assert content(path) == before


def test_the_journal_is_a_ring_and_says_how_far_back_it_goes(daemon, ready):
    path = serve(daemon, guard='guard = undo-journal 16M')
    session = ready(daemon)
    noise = random.Random(3)
    begin = next_second()
    for n in range(40):  # what cannot be compressed, twice: 40 MiB of old blocks
        session.write(n % 20 * 2048, bytes(noise.getrandbits(8) for _ in range(4096)) * 256)
    for n in range(20):
        session.write(n * 2048, os.urandom(1 << 20))
    for n in range(20):
        session.write(n * 2048, os.urandom(1 << 20))
    total = sum(os.path.getsize(os.path.join(folder(daemon), name)) for name in segments(daemon))
    assert total <= 16 << 20
    before, when = content(path), next_second()
    session.write(0, b'x' * 512)
    log_out(daemon, session)
    assert 'its undo journal begins at' in refused(daemon, begin)
    restore(daemon, when)
    assert content(path) == before


def test_a_command_that_overwrites_more_than_the_journal_holds_ends_the_history(daemon, ready):
    path = daemon.image()
    with open(path, 'wb') as image:
        image.write(os.urandom(SIZE))
    serve(daemon, 'thin = yes', guard='guard = undo-journal 16M', path=path)
    session = ready(daemon)
    early = next_second()
    session.write(0, b'x' * 512)
    unmap(session, 0, SIZE // 512)
    before, when = content(path), next_second()
    session.write(0, b'y' * 512)
    log_out(daemon, session)
    assert 'overwrote more than the journal holds' in refused(daemon, early)
    assert 'overwrote more than' in kept(daemon)[0]['contents']
    restore(daemon, when)
    assert content(path) == before


def test_a_sanitize_erases_the_journal(daemon, ready):
    secret = b'secret formula ' * 35
    path = serve(daemon)
    session = ready(daemon)
    session.write(0, secret[:512])
    when = next_second()
    session.write(0, bytes(512))
    held = open(os.path.join(folder(daemon), segments(daemon)[0]), 'rb')
    assert any(secret[:512] in blocks for blocks in old_blocks(held))
    # SANITIZE, OVERWRITE with zeroes
    session.run(struct.pack('>BBxxxxxHB', 0x48, 1, 8, 0), out=bytes([1, 0, 0, 4]) + bytes(4)).good()
    until_ready(session)
    assert segments(daemon) == []
    held.seek(0)
    assert not held.read().strip(b'\0')  # the space that it had
    held.close()
    session.write(0, b'z' * 512)
    assert len(segments(daemon)) == 1
    log_out(daemon, session)
    assert 'its undo journal begins at' in refused(daemon, when)
    assert content(path)[:512] == b'z' * 512


def old_blocks(file):
    size = os.fstat(file.fileno()).st_size
    return [
        undo_records.read_blocks(file.fileno(), position)[1]
        for position, _ in undo_records.entries(file.fileno(), size)
    ]


@pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there')
def test_the_journal_of_an_encrypted_disk_is_encrypted(daemon, ready):
    text = b'payroll of November ' * 205
    path = daemon.image()
    key = os.path.join(daemon.directory, 'disk.key')
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % path, JOURNAL, 'encryption-key-file = %s' % key]}
    )
    daemon.start()
    session = ready(daemon)
    session.write(0, text[:4096])
    before, when = content(path), next_second()
    session.write(0, bytes(8192))
    for name in segments(daemon):
        with open(os.path.join(folder(daemon), name), 'rb') as file:
            assert not any(text[:512] in blocks for blocks in old_blocks(file))
    log_out(daemon, session)
    restore(daemon, when)
    assert content(path) == before
    assert bytes(ready(daemon).read(0, 8)) == text[:4096]


def test_a_full_state_dir_refuses_the_write_and_the_lun_is_not_degraded(daemon, ready, small_disk):
    small = small_disk(8)
    daemon.text.server['state-dir'] = os.path.join(small, 'state')
    fill = os.path.join(small, 'filler')
    with open(fill, 'wb') as file:
        file.write(bytes(6 << 20))
    path = serve(daemon, 'on-error = offline', guard='guard = undo-journal 64M')
    before = content(path)
    session = ready(daemon)
    assert session.run(cdb_16(0x8A, 0, 1), out=b'x' * 512).key == WRITE_PROTECTED
    daemon.logged('undo journal cannot be written: .*No space left on device')
    assert content(path) == before and daemon.units()[0]['state'] == 'ready'
    # FORMAT UNIT is refused before a block is overwritten
    assert session.run(struct.pack('>BBBBBB', 4, 0, 0, 0, 0, 0)).key == WRITE_PROTECTED
    assert content(path) == before and session.run(bytes(6)).status == 0
    os.unlink(fill)
    session.write(0, b'x' * 512)
    assert content(path)[:512] == b'x' * 512


def test_a_time_without_the_journal_ends_the_history(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    when = next_second()
    session.write(0, b'1' * 512)
    log_out(daemon, session)
    lines = daemon.text.targets[TARGET][1][0]
    lines.remove(JOURNAL)
    assert daemon.stop() == 0
    daemon.start()
    session = ready(daemon)
    session.write(8, b'2' * 512)
    log_out(daemon, session)
    assert 'interrupted' in kept(daemon)[0]['state']
    assert 'served without its undo journal since' in refused(daemon, when)
    lines.append(JOURNAL)
    assert daemon.stop() == 0
    daemon.start()
    assert kept(daemon) == []
    session = ready(daemon)
    before, when = content(path), next_second()
    session.write(0, b'3' * 512)
    log_out(daemon, session)
    restore(daemon, when)
    assert content(path) == before


def test_a_session_that_continues_after_an_upgrade_records_too(daemon, ready, installed):  # noqa: F811
    path = serve(daemon, guard='guard = undo-journal 16M')
    session = ready(daemon)
    session.write(0, b'1' * 512)
    before, when = content(path), next_second()
    installed.upgrade()
    daemon.control('upgrade')
    for n in range(4):  # further segments come from the new master
        session.write(n * 2048, os.urandom(1 << 20))
        session.write(n * 2048, bytes(1 << 20))
    assert len(segments(daemon)) > 1
    log_out(daemon, session)
    restore(daemon, when)
    assert content(path) == before


def test_both_guards_and_remove(daemon, ready):
    path = serve(daemon, guard='guard = first-write-snapshot, undo-journal 16M')
    before = content(path)
    session = ready(daemon)
    session.write(0, b'x' * (2 << 20))
    log_out(daemon, session)
    changed, when = content(path), next_second()
    assert [row['number'] for row in kept(daemon)] == [1, None]
    daemon.control('guard', 'restore', UNIT, '1')  # the heads, and this is undone by the journal
    assert content(path)[:512] == before[:512]
    restore(daemon, when)
    assert content(path) == changed
    assert 'removed' in daemon.control('guard', 'remove', UNIT, '--all')
    assert kept(daemon) == [] and segments(daemon) == []


def test_a_segment_that_is_removed_under_a_session_is_replaced(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    session.write(0, b'1' * 512)
    daemon.control('guard', 'remove', UNIT, '--all')
    before, when = content(path), next_second()
    session.write(0, b'2' * 512)
    log_out(daemon, session)
    restore(daemon, when)
    assert content(path) == before


def test_the_check_knows_the_setting(daemon):
    daemon.target(TARGET, luns={0: ['type = ram', 'size = 64M', JOURNAL]})
    code, text = daemon.check()
    assert code and 'type ram has no undo journal' in text
    daemon.text.targets[TARGET][1][0][:] = ['type = ram', 'size = 64M', 'guard = undo-journal']
    code, text = daemon.check()
    assert code and 'undo-journal needs its size' in text
