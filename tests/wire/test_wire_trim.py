"""`targetdctl trim` and `show space`: blocks that are all zero are freed while initiators write, and no write
is lost."""

import json
import os
import random
import struct
import threading
import time

import pytest
from daemon import TARGET, eventually
from initiator import GOOD, pattern

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
MIB = 1 << 20
BLOCK = 4096
UNIT = TARGET + '/0'


def space(daemon, lun=0):
    rows = json.loads(daemon.control('--json', 'show', 'space'))
    return {row['lun']: row for row in rows}[lun]


def trimmed(daemon, lun=0, seconds=60):
    """Waits for the end of the trim; returns what `show space` says about it."""
    return eventually(
        lambda: (lambda text: '' if text.startswith('running') else text)(
            space(daemon, lun)['trim']
        ),
        seconds,
        'the end of the trim',
    )


def full_of_zeroes(daemon, mebibytes=32):
    """Makes a file of which every block occupies space; returns its path."""
    path = os.path.join(daemon.directory, 'zeroes.img')
    with open(path, 'wb') as file:
        for _ in range(mebibytes):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
    return path


@pytest.fixture
def zeroes(daemon):
    """A daemon with a file of 32 MiB of zeroes as LUN 0, without thin provisioning."""
    daemon.target(luns={0: ['backing-store = %s' % full_of_zeroes(daemon)]})
    return daemon.start()


def allocated(path):
    return os.stat(path).st_blocks * 512


def test_blocks_of_zeroes_are_freed_and_data_is_kept(zeroes, ready):
    path = os.path.join(zeroes.directory, 'zeroes.img')
    session = ready(zeroes)
    data = {lba: pattern(lba, BLOCK) for lba in (0, 8 * 100, 8 * 4096, 8 * 8191)}
    for lba, content in data.items():
        session.write(lba, content)
    assert allocated(path) >= 32 * MIB
    zeroes.control('trim', UNIT)
    text = trimmed(zeroes)
    freed = 32 * MIB - len(data) * BLOCK
    assert text == 'done: %d bytes freed' % freed
    assert allocated(path) <= MIB
    row = space(zeroes)
    assert row['size'] == 32 * MIB and row['allocated'] == allocated(path)
    for lba, content in data.items():
        assert session.read(lba, 8) == content
    assert session.read(8 * 200, 8) == bytes(BLOCK)
    zeroes.logged('the trim has ended after [0-9]+ seconds; done: %d bytes freed' % freed)
    zeroes.control('trim', UNIT)
    assert trimmed(zeroes) == 'done: 0 bytes freed'


class Writer(threading.Thread):
    """Writes and verifies random blocks of its own, of which each is zeroed now and then, until stop()."""

    def __init__(self, session, seed, share):
        super(Writer, self).__init__()
        self.session, self.random, self.share = session, random.Random(seed), share
        self.content, self.failure, self.count = {}, None, 0
        self.is_over = threading.Event()

    def run(self):
        try:
            while not self.is_over.is_set():
                self.step()
            for block in sorted(self.content):
                self.verify(block)
        except BaseException as e:
            self.failure = e

    def step(self):
        flying = []
        for block in {self.share + 2 * self.random.randrange(4096) for _ in range(16)}:
            is_zero = self.random.random() < 0.6
            data = bytes(BLOCK) if is_zero else pattern(self.random.randrange(1 << 30), BLOCK)
            cdb = struct.pack('>BBQIBB', 0x8A, 0, block * 8, 8, 0, 0)
            flying.append((block, data, self.session.submit(cdb, out=data)))
        for block, data, command in flying:
            assert self.session.wait(command).status == GOOD
            self.content[block] = data
            self.count += 1
        for block, _, _ in flying[:4]:
            self.verify(block)

    def verify(self, block):
        assert self.session.read(block * 8, 8) == self.content[block], 'block %d' % block

    def stop(self):
        self.is_over.set()
        self.join(60)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize('more', [[], ['atomic-writes = yes'], ['thin = yes', 'write-cache = no']])
def test_no_write_is_lost_during_trims(daemon, ready, more):
    daemon.target(luns={0: ['backing-store = %s' % full_of_zeroes(daemon)] + more})
    daemon.start()
    writers = [Writer(ready(daemon, name=name), name, n) for n, name in enumerate((ONE, TWO))]
    for writer in writers:
        writer.start()
    end, freed = time.monotonic() + 6, 0
    while time.monotonic() < end:
        daemon.control('trim', UNIT)
        words = trimmed(daemon)
        assert words.startswith('done'), words
        freed += int(words.split()[1])
    for writer in writers:
        writer.stop()
    assert freed > 8 * MIB and all(writer.count > 50 for writer in writers)


def test_a_trim_is_ended_and_a_second_one_is_refused(daemon, ready):
    daemon.target(
        luns={
            0: [
                'backing-store = %s' % full_of_zeroes(daemon, 64),
                'filter = delay read=50ms unmap=100ms',
            ]
        }
    )
    daemon.start()
    daemon.control('trim', UNIT)
    code, text = daemon.targetdctl('trim', UNIT)
    assert code == 1 and 'is being trimmed already' in text
    eventually(lambda: space(daemon)['trim'].startswith('running'), 10, 'progress')
    daemon.control('trim', UNIT, '--stop')
    assert trimmed(daemon).startswith('ended, the administrator has ended it: ')
    code, text = daemon.targetdctl('trim', UNIT, '--stop')
    assert code == 1 and 'is not being trimmed' in text
    daemon.control('trim', UNIT)  # the server stops during it


@pytest.mark.parametrize(
    'lines, why',
    [
        (['type = null', 'size = 16M'], 'it has no medium'),
        (['readonly = yes'], 'it is read-only'),
        (['state = offline'], 'it is offline'),
    ],
)
def test_what_cannot_be_trimmed_is_refused(daemon, lines, why):
    store = (
        [] if lines[0].startswith('type') else ['backing-store = %s' % full_of_zeroes(daemon, 1)]
    )
    daemon.target(luns={0: store + lines})
    daemon.start()
    code, text = daemon.targetdctl('trim', UNIT)
    assert code == 1 and why in text


def test_file_systems_with_too_little_space_are_named(daemon, small_disk):
    folder = small_disk(16)
    daemon.target(
        luns={
            0: ['backing-store = %s/a.img' % folder, 'size = 12M'],
            1: ['backing-store = %s/b.img' % folder, 'size = 12M'],
        }
    )
    code, text = daemon.check()
    assert code == 0 and 'may still use' in text and folder in text
    daemon.start()
    text = daemon.control('show', 'space')
    assert 'OVER-COMMITTED' in text and folder in text
    row = space(daemon, 1)
    assert row['mount'] == folder and row['overcommitted'] >= 7 * MIB


def test_written_and_shared_blocks_are_told_apart(daemon, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    session.write(0, pattern(1, MIB))
    daemon.control('trim', UNIT)
    assert trimmed(daemon) == 'done: 0 bytes freed'
    row = space(daemon)
    assert row['allocated'] >= MIB and row['size'] == 64 * MIB
    if row['mapped'] is not None:  # a file system with FIEMAP
        assert row['mapped'] >= MIB and row['shared'] == 0


def test_a_file_without_thin_provisioning_that_may_still_grow_is_watched(daemon, small_disk, ready):
    folder = small_disk(16)
    daemon.target(luns={0: ['backing-store = %s/a.img' % folder, 'size = 32M']})
    daemon.start()
    session = ready(daemon)
    for lba in range(0, 15 * 2048, 2048):
        session.write(lba, pattern(lba, MIB))
    daemon.logged('bytes are available to .*/a.img, which may still use', 30)
    assert daemon.log.count('which may still use') == 1
