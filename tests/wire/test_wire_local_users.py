"""What a local user without privileges can do against the server: nothing that stops it."""

import os
import subprocess
import sys

import pytest
from daemon import TARGET
from initiator import connect

pytestmark = [pytest.mark.wire, pytest.mark.skipif(os.geteuid() != 0, reason='needs a second user')]

LOCKER = '''
import fcntl, os, sys, time
os.setgid(65534)
os.setuid(65534)
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.lockf(file, fcntl.LOCK_SH)
print('locked', flush=True)
time.sleep(120)
'''


@pytest.fixture
def stranger():
    """stranger(path): a process of another user that locks this file in every way."""
    begun = []

    def lock(path):
        begun.append(subprocess.Popen([sys.executable, '-c', LOCKER, path], stdout=subprocess.PIPE))
        assert begun[-1].stdout.readline() == b'locked\n'

    yield lock
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def open_to_all(path):
    """Let other users reach this file by its folders."""
    while path != '/':
        os.chmod(path, os.stat(path).st_mode | 0o755)
        path = os.path.dirname(path)


def test_a_lock_of_a_stranger_on_an_image_does_not_stop_a_restart(served, stranger):
    image = os.path.join(served.directory, 'disk.img')
    assert served.stop() == 0
    open_to_all(image)
    stranger(image)
    served.start()
    served.logged('disk.img is locked by a process of another user')
    with connect(served.address, TARGET) as session:
        session.clear_attentions()
        session.write(0, bytes(4096))
    assert served.targetdctl('status')[0] == 0


def test_a_lock_of_another_server_is_respected(served, tmp_path_factory):
    """A process of root that has the file open for writing."""
    import fcntl

    image = os.path.join(served.directory, 'disk.img')
    assert served.stop() == 0
    with open(image, 'r+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        served.start()
        served.logged('disk.img is in use')


def test_files_and_directories_that_others_can_write_are_warned_of(daemon):
    daemon.target()
    os.chmod(os.path.join(daemon.directory, 'disk.img'), 0o666)
    os.mkdir(os.path.join(daemon.directory, 'state'))
    os.chmod(os.path.join(daemon.directory, 'state'), 0o777)
    daemon.start()
    daemon.logged('warning: other users can write state-dir .*; run "chown root')
    daemon.logged('disk.img can be written by every user of this host; run "chmod o-w')


def test_no_state_file_is_written_through_a_link_of_another_user(daemon):
    daemon.target()
    state = os.path.join(daemon.directory, 'state')
    victim = os.path.join(daemon.directory, 'victim')
    with open(victim, 'w') as file:
        file.write('precious')
    os.mkdir(state)
    os.symlink(victim, os.path.join(state, 'media.json.new'))
    os.chmod(state, 0o777)
    daemon.start()
    daemon.logged('media.json cannot be written')
    with open(victim) as file:
        assert file.read() == 'precious'
