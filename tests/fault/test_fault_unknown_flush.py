"""Flushes whose process is killed before it has the answer, with the real daemon: a disk that hangs, and
loses what was written when it answers again."""

import os
import re
import signal
import struct
import subprocess

import pytest
from daemon import TARGET, eventually
from initiator import GOOD, pattern
from pdus import write_10
from write_back import FAILED, SYNCHRONIZE_CACHE, has_failed

MIB = 1 << 20


def run(*words):
    ran = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=60
    )
    if ran.returncode:
        pytest.skip('%s: %s' % (words[0], ran.stdout.strip()))
    return ran.stdout.strip()


class Disk(object):
    """A loop device on a file for which its file system has no room. While that is frozen, writing back to
    the device hangs; afterwards it fails."""

    def __init__(self, folder):
        self.folder = folder
        self.device = None
        self.is_frozen = False

    def attach(self):
        path = os.path.join(self.folder, 'disk')
        with open(path, 'wb') as file:
            file.truncate(16 * MIB)
        self.device = run('losetup', '-f', '--show', path)
        with open(
            '/sys/block/%s/queue/max_sectors_kb' % os.path.basename(self.device), 'w'
        ) as file:
            file.write('4')  # a request is written whole or not at all

    def fill(self):
        """Take all room that the file system has."""
        with open(os.path.join(self.folder, 'full'), 'wb', buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        run('sync', '-f', self.folder)

    def freeze(self):
        run('fsfreeze', '-f', self.folder)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            run('fsfreeze', '-u', self.folder)
        self.is_frozen = False


@pytest.fixture
def disk(tmp_path):
    """A Disk. Set up before `daemon`, so that it answers when the daemon is stopped."""
    image, folder = str(tmp_path / 'fs.img'), str(tmp_path / 'fs')
    with open(image, 'wb') as file:
        file.truncate(32 * MIB)
    os.mkdir(folder)
    run('mkfs.ext4', '-q', '-F', '-m', '0', image)
    run('mount', '-o', 'loop', image, folder)
    made = Disk(folder)
    made.attach()
    yield made
    made.thaw()
    subprocess.call(['losetup', '-d', made.device])
    subprocess.call(['umount', '-l', folder])


@pytest.fixture
def image(disk, tmp_path):
    """The path of an image of 4 MiB in a file system on the disk."""
    folder = str(tmp_path / 'on-disk')
    os.mkdir(folder)
    run('mkfs.ext4', '-q', '-F', '-O', '^has_journal', disk.device)
    run('mount', '-o', 'errors=continue', disk.device, folder)
    path = os.path.join(folder, 'lun.img')
    with open(path, 'wb') as file:
        file.write(bytes(64 << 10))
        file.truncate(4 * MIB)
    run('sync', '-f', folder)
    yield path
    disk.thaw()
    subprocess.call(['umount', '-l', folder])


def worker_of(daemon):
    """The process of the newest session."""
    return int(re.findall(r'\(session \d+, worker (\d+)\)', daemon.log)[-1])


def waits_for_disk(pid):
    """True if a thread of the process is in uninterruptible sleep."""
    ran = subprocess.run(
        ['ps', '-L', '-o', 'stat=', '-p', str(pid)], stdout=subprocess.PIPE, universal_newlines=True
    )
    return any(line.startswith('D') for line in ran.stdout.split())


def serve(daemon, disk, image, ready, kind):
    """The daemon serves the disk, or the image on it. Returns a session."""
    if kind == 'block':
        subprocess.check_call(['umount', os.path.dirname(image)])
    path = image if kind == 'file' else disk.device
    lines = ['backing-store = %s' % path]
    if kind == 'block':
        lines.append('content = keep')  # the file system that held the image
    daemon.target(TARGET, luns={0: lines})
    daemon.text.server['stop-timeout'] = '1'
    daemon.start()
    return ready(daemon)


def hang_and_kill_worker(daemon, disk, session, is_full=True):
    """The session's worker is killed while it flushes what the disk, if it is full, loses afterwards."""
    if is_full:
        disk.fill()
    # Not before: another program's sync(1) could write it to a disk that still has room.
    session.run(write_10(4096, 8), out=pattern(1, 4096)).good()
    disk.freeze()
    session.submit(SYNCHRONIZE_CACHE)
    worker = worker_of(daemon)
    eventually(lambda: waits_for_disk(worker), 10, 'the flush hangs')
    os.kill(worker, signal.SIGKILL)
    disk.thaw()
    daemon.logged('session .* is over: its worker died')


@pytest.mark.parametrize('kind', ['block', 'file'])
def test_no_later_flush_succeeds_after_a_worker_was_killed_in_one_that_failed(
    daemon, disk, image, ready, kind
):
    session = serve(daemon, disk, image, ready, kind)
    hang_and_kill_worker(daemon, disk, session)
    for number in range(6):  # more than there are descriptions that were opened in advance
        again = ready(daemon, name='iqn.2026-11.test:again%d' % number)
    flush = again.run(SYNCHRONIZE_CACHE)
    assert flush.status != GOOD
    eventually(lambda: has_failed([again]), 10, 'the unit failed')
    daemon.stop()


def jobs_of(daemon):
    ran = subprocess.run(
        ['ps', '-o', 'pid=,comm=', '--ppid', str(daemon.process.pid)],
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    return [int(line.split()[0]) for line in ran.stdout.splitlines() if 'targetd-job' in line]


def disabling_cache(session):
    """A MODE SELECT(10) that disables the write cache: (cdb, data)."""
    page = session.run(struct.pack('>BBBB3xHB', 0x5A, 8, 8, 0, 255, 0), read=255).good().data[8:]
    data = bytes(8) + bytes([page[0] & 0x7F, page[1], page[2] & ~4]) + page[3:]
    return struct.pack('>BB5xHB', 0x55, 0x10, len(data), 0), data


@pytest.mark.parametrize('kind', ['block', 'file'])
def test_a_flush_of_the_master_that_was_killed_counts_as_failed(daemon, disk, image, ready, kind):
    session = serve(daemon, disk, image, ready, kind)
    cdb, parameters = disabling_cache(session)
    disk.fill()
    session.run(write_10(4096, 8), out=pattern(1, 4096)).good()
    disk.freeze()
    change = session.submit(cdb, out=parameters)
    job = eventually(lambda: [pid for pid in jobs_of(daemon) if waits_for_disk(pid)], 10, 'a job')
    os.kill(job[0], signal.SIGKILL)
    disk.thaw()
    assert session.wait(change).status != GOOD
    assert session.run(cdb, out=parameters).status != GOOD
    assert session.run(SYNCHRONIZE_CACHE).key == FAILED
    daemon.stop()


@pytest.mark.parametrize('kind', ['block', 'file'])
def test_a_unit_has_not_failed_if_the_flush_of_a_killed_process_succeeded(
    daemon, disk, image, ready, kind
):
    session = serve(daemon, disk, image, ready, kind)
    cdb, parameters = disabling_cache(session)
    hang_and_kill_worker(daemon, disk, session, is_full=False)
    again = ready(daemon)
    again.run(SYNCHRONIZE_CACHE).good()
    again.run(cdb, out=parameters).good()
    assert again.read(4096, 8) == pattern(1, 4096)
    assert daemon.units()[0]['state'] == 'ready'
