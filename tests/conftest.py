"""Fixtures that start the real targetd, and fixtures for all test directories."""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import nbd_servers
import pytest

# daemon, initiator, pdus: plain modules of this folder
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import initiator as initiators  # noqa: E402
from daemon import LIVING, TARGET, watched  # noqa: E402

# A shell starts what it does not wait for with SIGINT ignored, and programs that tests interrupt would
# inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# servers that tests start compile nothing twice, wherever their bytecode may be kept
if hasattr(sys, 'pycache_prefix'):
    os.environ['PYTHONPYCACHEPREFIX'] = tempfile.mkdtemp(prefix='targetd-bytecode-')
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
    atexit.register(shutil.rmtree, os.environ['PYTHONPYCACHEPREFIX'], True)

# Garbage collections would examine ten thousand tests and their modules again and again: while pytest
# collects them that is a third of the processor time, afterwards much of it.
gc.disable()


def pytest_collection_finish():
    """What exists now is never examined again."""
    gc.collect()
    if hasattr(gc, 'freeze'):  # Python 3.7
        gc.freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the log of the daemon to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for each in LIVING:
            report.sections.append(('log of targetd', each.log[-6000:]))


@pytest.fixture
def daemon(tmp_path):
    """A Daemon that is not started: the test adds targets and calls start(). It is stopped and
    checked afterwards."""
    with watched(tmp_path) as each:
        yield each


@pytest.fixture
def served(daemon):
    """A Daemon that serves one sparse 64 MiB file as LUN 0 of TARGET to everyone."""
    daemon.target()
    return daemon.start()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """The same Daemon for all tests of a module; the tests must not leave changed state."""
    with watched(tmp_path_factory.mktemp('shared')) as each:
        each.target()
        yield each.start()


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(mebibytes) mounts a file system of this size and returns the path of its folder.
    Needs root."""
    mounted = []

    def mount(mebibytes):
        if os.geteuid() != 0:
            pytest.skip('mounting needs root')
        folder = str(tmp_path / ('small-%d' % len(mounted)))
        os.mkdir(folder)
        ran = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=%dm' % mebibytes, 'tmpfs', folder],
            stderr=subprocess.PIPE,
            timeout=60,
        )
        if ran.returncode:
            pytest.skip(ran.stderr.decode().strip())
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(['umount', '-l', folder], timeout=60)


class LosingDevice(object):
    """A loop device of 8 MiB whose file system has room for less than one: writes go into the cache,
    writing back fails. device: its path; image: path of the file below it."""

    def __init__(self, device, image):
        self.device = device
        self.image = image

    def read(self, offset, length):
        """Returns what is on the medium."""
        with open(self.image, 'rb') as file:
            file.seek(offset)
            return file.read(length)


@pytest.fixture
def losing(small_disk):
    """A LosingDevice. Needs root and loop devices."""
    image = small_disk(1) + '/loop.img'
    with open(image, 'wb') as file:
        file.truncate(8 << 20)
    ran = subprocess.run(
        ['losetup', '-f', '--show', image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    if ran.returncode:
        pytest.skip('losetup: %s' % ran.stderr.decode().strip())
    device = ran.stdout.decode().strip()
    # The driver reports success for a request of which its file system took only a part, so a request
    # must not be larger than what the file system takes whole or not at all.
    with open('/sys/block/%s/queue/max_sectors_kb' % os.path.basename(device), 'w') as file:
        file.write('4')
    yield LosingDevice(device, image)
    subprocess.run(['losetup', '-d', device], timeout=60)


@pytest.fixture
def sessions():
    """connect(daemon, target=TARGET, name=…, isid=…, keys=…) -> Session, closed at the end of the
    test."""
    opened = []

    def connect(daemon, target=TARGET, address=None, **more):
        session = initiators.connect(address or daemon.address, target, **more)
        opened.append(session)
        return session

    yield connect
    for session in opened:
        session.close()


@pytest.fixture
def ready(sessions):
    """Like sessions, after the pending unit attentions of LUN 0 (or lun=…) have been cleared."""

    def connect(daemon, *arguments, **more):
        lun = more.pop('lun', 0)
        session = sessions(daemon, *arguments, **more)
        session.clear_attentions(lun)
        return session

    return connect


@pytest.fixture
def nbdkit(tmp_path):
    """nbdkit(*words) -> a running Nbdkit, ended at the end of the test."""
    servers = []

    def start(*words, **more):
        servers.append(nbd_servers.Nbdkit(tmp_path, *words, **more))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def qemu_nbd(tmp_path):
    """The same with QemuNbd."""
    servers = []

    def start(*words, **more):
        servers.append(nbd_servers.QemuNbd(tmp_path, *words, **more))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def loop_device():
    """attach(path) -> a loop device on the file; detached at the end."""
    made = []

    def attach(path):
        ran = subprocess.run(
            ['losetup', '--show', '-f', path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if ran.returncode:
            pytest.skip(ran.stderr.decode().strip())
        made.append(ran.stdout.decode().strip())
        return made[-1]

    yield attach
    for device in made:
        subprocess.call(['losetup', '-d', device])
