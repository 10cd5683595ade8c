"""The setting guard: what a disk had before an initiator wrote to it can be restored."""

import json
import os
import shutil
import signal
import struct
import subprocess

import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.wire

GUARD = 'guard = first-write-snapshot'
WRITE_PROTECTED = (7, 0x27, 0)
SIZE = 64 << 20
LARGE = 320 << 20  # XFS needs 300 MiB


def make(tmp_path, *command):
    """A file whose content a real program has made."""
    if shutil.which(command[0]) is None:
        pytest.skip('%s is not installed' % command[0])
    path = str(tmp_path / 'made.img')
    with open(path, 'wb') as image:
        image.truncate(LARGE)
    subprocess.run(
        list(command) + [path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return path


def content(path):
    with open(path, 'rb') as image:
        return image.read()


def serve(daemon, path, more=()):
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, GUARD] + list(more)})
    return daemon.start()


def kept(daemon):
    return json.loads(daemon.control('--json', 'guard', 'list'))


def log_out(daemon, session):
    session.logout()
    eventually(
        lambda: not json.loads(daemon.control('--json', 'show', 'sessions')),
        30,
        'the end of the session',
    )


def initialize(session):
    """What a click on 'Initialize disk' overwrites: the first and the last MiB."""
    session.write(0, b'I' * (1 << 20))
    session.write((LARGE - (1 << 20)) // 512, b'I' * (1 << 20))


@pytest.mark.parametrize(
    'command, named',
    [
        (('mkfs.ext4', '-q', '-F'), 'ext4'),
        (('mkfs.xfs', '-q', '-f'), 'XFS'),
        (('mkfs.vfat',), 'FAT'),
        (('sgdisk', '-n', '1:2048:', '-t', '1:e75caf8f-f680-4cee-afa3-b001e56efc2d'), 'Storage Sp'),
    ],
)
def test_an_initialized_disk_is_restored_to_the_byte(daemon, ready, tmp_path, command, named):
    path = make(tmp_path, *command)
    before = content(path)
    session = ready(serve(daemon, path))
    session.read(0, 8)
    assert kept(daemon) == []
    initialize(session)
    rows = kept(daemon)
    assert [row['number'] for row in rows] == [1] and rows[0]['state'] == 'complete'
    assert named in rows[0]['contents'] and rows[0]['initiator_name'].startswith('iqn.')
    code, text = daemon.targetdctl('guard', 'restore', TARGET + '/0', '1')
    assert code and 'in use by 1 session' in text
    assert content(path) != before
    log_out(daemon, session)
    assert 'number 2' in daemon.control('guard', 'restore', TARGET + '/0', '1')
    assert content(path) == before
    # the restore itself can be undone, and a session can use the LUN again
    daemon.control('guard', 'restore', TARGET + '/0', '2')
    assert content(path)[:512] == b'I' * 512
    ready(daemon).write(8, b'x' * 512)
    assert 'removed' in daemon.control('guard', 'remove', TARGET + '/0', '--all')
    assert kept(daemon) == []


def test_the_same_content_is_kept_once_and_a_number_that_does_not_exist_is_refused(daemon, ready):
    serve(daemon, daemon.image())
    for _ in range(3):
        session = ready(daemon)
        session.write(SIZE // 1024, b'x' * 512)  # in the middle, which is not kept
        log_out(daemon, session)
    assert [row['number'] for row in kept(daemon)] == [1]
    code, text = daemon.targetdctl('guard', 'restore', TARGET + '/0', '7')
    assert code and 'there is no number 7' in text
    code, text = daemon.targetdctl('guard', 'remove', TARGET + '/0')
    assert code and '--all' in text


@pytest.mark.parametrize(
    'cdb, out',
    [
        (struct.pack('>BBBBBB', 0x04, 0, 0, 0, 0, 0), None),  # FORMAT UNIT
        (struct.pack('>BBBBBBBHB', 0x48, 0x02, 0, 0, 0, 0, 0, 0, 0), None),  # SANITIZE, BLOCK ERASE
        (struct.pack('>BBQIBB', 0x93, 0, 0, (16 << 20) // 512, 0, 0), bytes(512)),  # WRITE SAME(16)
    ],
    ids=['format', 'sanitize', 'write-same'],
)
def test_a_whole_disk_that_is_erased_gets_its_heads_back(daemon, ready, cdb, out):
    path = daemon.image()
    with open(path, 'r+b') as image:
        image.write(b'head' * 4096)
        image.seek(SIZE - 4096)
        image.write(b'tail' * 1024)
    before = content(path)
    session = ready(serve(daemon, path, ['thin = yes']))
    session.run(cdb, out=out).good()
    eventually(lambda: content(path)[:512] == bytes(512), 30, 'the erased disk')
    eventually(lambda: session.run(bytes(6)).status == 0, 30, 'a ready unit')
    assert [row['number'] for row in kept(daemon)] == [1]
    log_out(daemon, session)
    daemon.control('guard', 'restore', TARGET + '/0', '1')
    assert content(path) == before


def test_what_is_kept_outlasts_a_kill_of_the_server(daemon, ready):
    path = daemon.image(size=LARGE)
    with open(path, 'r+b') as image:
        image.write(b'head' * 4096)
    before = content(path)
    session = ready(serve(daemon, path))
    initialize(session)
    daemon.workers()
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait(30)
    eventually(lambda: not daemon.survivors(), 30, 'the end of the workers')
    daemon.start()
    assert [row['state'] for row in kept(daemon)] == ['complete']
    daemon.control('guard', 'restore', TARGET + '/0', '1')
    assert content(path) == before


def test_a_full_state_dir_refuses_the_write_and_nothing_is_lost(daemon, ready, small_disk):
    folder = small_disk(4)
    daemon.text.server['state-dir'] = os.path.join(folder, 'state')
    fill = os.path.join(folder, 'filler')
    with open(fill, 'wb') as file:
        file.write(bytes(3 << 20))
    path = daemon.image()
    with open(path, 'r+b') as image:
        image.write(os.urandom(1 << 20))  # cannot be compressed: more than the file system has
    before = content(path)
    session = ready(serve(daemon, path, ['on-error = offline']))
    command = struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0)
    assert session.run(command, out=b'x' * 512).key == WRITE_PROTECTED
    daemon.logged('cannot be kept: .*No space left on device')
    assert content(path) == before
    assert bytes(session.read(0, 1)) == before[:512]
    assert kept(daemon) == []
    # the medium is not at fault: the LUN is neither offline nor degraded
    assert daemon.units()[0]['state'] == 'ready'
    os.unlink(fill)
    session.write(0, b'x' * 512)
    assert daemon.units()[0]['state'] == 'ready'
    assert [row['state'] for row in kept(daemon)] == ['complete']


def test_without_the_setting_nothing_is_kept(daemon, ready):
    daemon.target(size=LARGE)
    session = ready(daemon.start())
    initialize(session)
    assert kept(daemon) == []
    assert not os.path.exists(os.path.join(daemon.directory, 'state', 'guards'))
