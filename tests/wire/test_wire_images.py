"""`targetdctl create`, `snapshot` and `restore` with the real server: what an initiator reads afterwards."""

import os
import shutil
import struct
import subprocess
import threading

import pytest
from daemon import TARGET, eventually
from initiator import connect

pytestmark = pytest.mark.wire
UNIT = TARGET + '/0'


def refused(daemon, *words):
    code, output = daemon.targetdctl(*words)
    assert code == 1 and 'Traceback' not in output, output
    return output


def test_a_file_is_created_without_a_server_and_then_served(daemon):
    path = os.path.join(daemon.directory, 'new.img')
    assert 'would be created' in daemon.control('create', path, '8M', '--dry-run')
    assert not os.path.exists(path)
    assert 'lun add' in daemon.control('create', path, '8M', '--full')
    assert os.stat(path).st_blocks * 512 >= 8 << 20
    assert 'exists already' in refused(daemon, 'create', path, '8M')
    assert 'not a valid size' in refused(daemon, 'create', path + '2', 'much')
    assert 'no directory' in refused(daemon, 'create', '/nonexistent/x', '8M')
    daemon.target()
    daemon.start()
    daemon.control('lun', 'add', TARGET, path)
    assert daemon.units()[1]['size'] == 8 << 20


def test_a_snapshot_is_restored_and_the_initiator_is_notified(daemon, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    session.write(0, b'a' * 512)
    code, output = daemon.targetdctl('snapshot', UNIT, 'one')
    if code:  # no reflink here: the copy needs that nothing writes
        assert 'lun readonly' in output
        daemon.control('lun', 'readonly', UNIT)
        daemon.control('snapshot', UNIT, 'one')
        daemon.control('lun', 'online', UNIT)
        session.clear_attentions()
    session.write(0, b'b' * 512)
    assert 'lun offline' in refused(daemon, 'restore', UNIT, 'one')
    assert 'there is one' in refused(daemon, 'restore', UNIT, 'two')
    assert 'exists already' in refused(daemon, 'snapshot', UNIT, 'one', '--dry-run')
    daemon.control('lun', 'offline', UNIT)
    assert 'would get' in daemon.control('restore', UNIT, 'one', '--dry-run')
    daemon.control('restore', UNIT, 'one')
    daemon.control('lun', 'online', UNIT)
    assert (6, 0x28, 0x00) in session.clear_attentions()
    assert session.read(0, 1) == b'a' * 512
    session.close()
    eventually(lambda: 'no initiator' in daemon.control('show', 'sessions'))
    daemon.control('snapshot', UNIT, 'two')
    daemon.control('restore', UNIT, 'two')
    with connect(daemon.address, TARGET) as again:
        again.clear_attentions()
        assert again.read(0, 1) == b'a' * 512


@pytest.fixture
def reflink_folder(tmp_path):
    """A folder on a file system that can share blocks (XFS on a loop device). Needs root."""
    if os.geteuid() != 0 or not shutil.which('mkfs.xfs'):
        pytest.skip('mkfs.xfs and a mount need root')
    image, folder = str(tmp_path / 'xfs.img'), str(tmp_path / 'xfs')
    os.mkdir(folder)
    with open(image, 'wb') as f:
        f.truncate(400 << 20)
    for words in (
        ['mkfs.xfs', '-q', '-m', 'reflink=1', image],
        ['mount', '-o', 'loop', image, folder],
    ):
        ran = subprocess.run(words, stderr=subprocess.PIPE, timeout=60)
        if ran.returncode:
            pytest.skip(ran.stderr.decode().strip())
    yield folder
    subprocess.run(['umount', '-l', folder], timeout=60)


def test_a_snapshot_of_shared_blocks_has_every_write_that_was_completed_before(
    daemon, ready, reflink_folder
):
    path = os.path.join(reflink_folder, 'disk.img')
    daemon.target(luns={0: ['backing-store = ' + path, 'size = 64M']})
    daemon.start()
    session, is_over, completed = ready(daemon), threading.Event(), [0]

    def write_one_after_the_other():
        while not is_over.is_set() and completed[0] < (64 << 11) - 1:
            session.write(completed[0], struct.pack('>Q', completed[0] + 1) * 64)
            completed[0] += 1

    writer = threading.Thread(target=write_one_after_the_other, daemon=True)
    writer.start()
    found = []
    for name in ('one', 'two', 'three'):
        eventually(lambda: completed[0] > 100 * (len(found) + 1))
        before = completed[0]
        assert 'shares the blocks' in daemon.control('snapshot', UNIT, name)
        found.append((name, before, completed[0]))
    is_over.set()
    writer.join(30)
    for name, before, after in found:
        with open('%s.snapshot-%s' % (path, name), 'rb') as f:
            data = f.read()
        numbers = [number for (number,) in struct.iter_unpack('>Q504x', data)]
        written = numbers.index(0)
        assert before <= written <= after + 1, name
        assert numbers[:written] == list(range(1, written + 1)), name
        assert not any(numbers[written:]), name


def test_what_is_not_a_file_or_not_there_is_refused(daemon):
    daemon.target(luns={0: ['type = ram', 'size = 1M']})
    assert daemon.targetdctl('snapshot', UNIT, 'one')[0] == 7
    daemon.start()
    assert refused(daemon, 'snapshot', UNIT, 'one')
    assert 'no unit' in refused(daemon, 'snapshot', TARGET + '/9', 'one')
    assert daemon.targetdctl('snapshot', UNIT)[0] == 2
