"""Disk images of other programs (VHDX, VHD, VMDK, qcow2, VDI) through qemu-nbd, with the real programs."""

import json
import os
import shutil
import signal
import subprocess
import threading

import psutil
import pytest
from daemon import TARGET, eventually
from initiator import GOOD
from nbd_servers import require

pytestmark = pytest.mark.wire

MIB = 1 << 20
KINDS = {'vhdx': 'vhdx', 'vhd': 'vpc', 'vmdk': 'vmdk', 'qcow2': 'qcow2', 'vdi': 'vdi'}


def create(path, kind, *options):
    require('qemu-img')
    command = ['qemu-img', 'create', '-q', '-f', KINDS[kind], *options, str(path), '64M']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return str(path)


def as_raw(path, kind, tmp_path):
    """The content of the disk in an image."""
    raw = str(tmp_path / 'converted')
    subprocess.run(
        ['qemu-img', 'convert', '-f', KINDS[kind], '-O', 'raw', path, raw], check=True, timeout=60
    )
    with open(raw, 'rb') as f:
        return f.read()


def serve(daemon, path, *more):
    require('qemu-nbd')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path] + list(more)})
    return daemon.start()


def state_of(daemon):
    return daemon.units()[0]['state']


def server_of(path):
    """The process of qemu-nbd that has the image, or None."""
    for process in psutil.process_iter(['name', 'cmdline']):
        if process.info['name'] == 'qemu-nbd' and path in (process.info['cmdline'] or ()):
            return process
    return None


@pytest.mark.parametrize('kind', sorted(KINDS))
@pytest.mark.parametrize('is_named', [True, False], ids=['named', 'auto'])
def test_what_an_initiator_writes_is_in_the_disk_of_the_image(
    daemon, ready, tmp_path, kind, is_named
):
    path = create(tmp_path / 'disk.image', kind)
    serve(daemon, path, *(['type = %s' % kind] if is_named else []))
    session = ready(daemon)
    data = os.urandom(MIB)
    session.write(0, data)
    session.write(40 * MIB // 512, data)
    assert session.read(40 * MIB // 512, MIB // 512) == data
    session.run(b'\x35' + bytes(9)).good()  # SYNCHRONIZE CACHE
    session.logout()
    assert daemon.stop() == 0
    assert server_of(path) is None  # the stop waits until the image is closed in order
    content = as_raw(path, kind, tmp_path)
    assert content[:MIB] == data and content[40 * MIB : 41 * MIB] == data


def test_a_fixed_vhd_is_served_as_one(daemon, ready, tmp_path):
    path = create(tmp_path / 'fixed.vhd', 'vhd', '-o', 'subformat=fixed,force_size=on')
    serve(daemon, path)
    session = ready(daemon)
    last = 64 * MIB // 512 - 1
    session.write(last, b'z' * 512)
    session.run(b'\x35' + bytes(9)).good()
    with open(path, 'rb') as f:
        f.seek(last * 512)
        assert f.read(512) == b'z' * 512
        assert f.read(8) == b'conectix'


def test_an_image_keeps_its_format_whatever_an_initiator_writes(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.vhd', 'vhd', '-o', 'subformat=fixed,force_size=on')
    serve(daemon, path)
    session = ready(daemon)
    session.write(0, b'QFI\xfb' + bytes(508))  # in a fixed VHD the first bytes of the file
    session.run(b'\x35' + bytes(9)).good()
    session.logout()
    records = daemon.directory + '/state/media.json'
    eventually(lambda: '"format"' in open(records).read(), 30, 'the record')
    assert daemon.stop() == 0
    daemon.start()
    assert state_of(daemon) == 'ready'
    assert ready(daemon).read(0, 1)[:4] == b'QFI\xfb'


def test_a_server_that_is_killed_is_started_again_and_nothing_is_lost(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    serve(daemon, path)
    session = ready(daemon)
    blocks = {}
    for number in range(40):
        data = os.urandom(4096)
        session.write(number * 64, data)
        blocks[number * 64] = data
        if number in (10, 25):
            os.kill(server_of(path).pid, signal.SIGKILL)
    session.run(b'\x35' + bytes(9)).good()
    os.kill(server_of(path).pid, signal.SIGKILL)
    for lba, data in blocks.items():
        assert session.read(lba, 8) == data
    assert state_of(daemon) == 'ready'


def test_a_server_that_is_stopped_delays_its_own_lun_only(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.vmdk', 'vmdk')
    require('qemu-nbd')
    luns = {
        0: ['backing-store = %s' % path],
        1: ['backing-store = %s' % daemon.image('raw.img', MIB)],
    }
    daemon.target(TARGET, luns=luns)
    session = ready(daemon.start())
    session.clear_attentions(1)
    other = ready(daemon, name='iqn.2026-11.test:other', lun=1)
    session.write(0, b'a' * 512)
    server = server_of(path)
    server.suspend()
    outcomes = []

    def write():
        session.write(8, b'b' * 512)
        outcomes.append('written')

    thread = threading.Thread(target=write)
    thread.start()
    assert other.read(0, 1, lun=1) == bytes(512) and not outcomes
    server.resume()
    thread.join(60)
    assert outcomes == ['written'] and session.read(8, 1) == b'b' * 512


def test_a_killed_master_leaves_no_server_behind_and_starts_again(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.vhdx', 'vhdx')
    serve(daemon, path)
    session = ready(daemon)
    for lba in range(0, 64 * MIB // 512, 8 * MIB // 512):  # each write allocates a block
        session.write(lba, b'c' * 512)
    session.run(b'\x35' + bytes(9)).good()
    daemon.kill()
    eventually(lambda: server_of(path) is None, 60, 'the end of qemu-nbd')
    daemon.start()
    eventually(lambda: state_of(daemon) == 'ready', 30, 'the LUN')
    session = ready(daemon)
    for lba in range(0, 64 * MIB // 512, 8 * MIB // 512):
        assert session.read(lba, 1) == b'c' * 512


@pytest.mark.parametrize('what', ['backing file', 'data file'])
def test_an_image_that_names_other_files_needs_permission(daemon, ready, tmp_path, what):
    others = tmp_path / 'others'
    others.mkdir()
    base = create(others / 'base.qcow2', 'qcow2')
    if what == 'backing file':
        path = create(tmp_path / 'disk.qcow2', 'qcow2', '-b', base, '-F', 'qcow2')
    else:
        path = create(tmp_path / 'disk.qcow2', 'qcow2', '-o', 'data_file=%s/data' % others)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path]})
    code, text = daemon.check()
    assert code == 5 and what in text and 'allow-backing-file = %s' % others in text
    daemon.start()
    assert what in state_of(daemon)
    assert server_of(path) is None
    daemon.text.targets[TARGET][1][0].append('allow-backing-file = %s' % others)
    daemon.reload('reload: change')
    eventually(lambda: state_of(daemon) == 'ready', 30, 'the LUN')
    session = ready(daemon)
    session.write(0, b'd' * 512)
    assert session.read(0, 1) == b'd' * 512


def test_an_address_as_backing_file_is_never_opened(daemon, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2', '-u', '-b', 'nbd://127.0.0.1:1/x', '-F', 'raw')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, 'allow-backing-file = /']})
    code, text = daemon.check()
    assert code == 5 and 'nbd://127.0.0.1:1/x' in text and 'never opened' in text


def test_a_corrupt_image_and_a_wrong_type_are_refused_with_the_words_of_the_program(
    daemon, tmp_path
):
    path = create(tmp_path / 'disk.vhdx', 'vhdx')
    with open(path, 'r+b') as f:
        f.seek(64 << 10)
        f.write(bytes(192 << 10))  # both headers
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path]})
    code, text = daemon.check()
    assert code == 5 and path in text and 'vhdx' in text
    path = create(tmp_path / 'disk.vdi', 'vdi')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, 'type = vmdk']})
    code, text = daemon.check()
    assert code == 5 and 'correct type' in text


def test_an_image_that_another_program_serves_is_not_served(daemon, tmp_path):
    path = create(tmp_path / 'disk.vhdx', 'vhdx')
    require('qemu-nbd')
    socket = str(tmp_path / 'other.sock')
    other = subprocess.Popen(
        ['qemu-nbd', '-t', '-f', 'vhdx', '-k', socket, path], stdin=subprocess.DEVNULL
    )
    try:
        eventually(lambda: os.path.exists(socket), 30, 'the other server')
        daemon.target(TARGET, luns={0: ['backing-store = %s' % path]})
        daemon.start()
        assert 'qemu-nbd' in state_of(daemon)
    finally:
        other.kill()
        other.wait(30)
    daemon.reload()
    eventually(lambda: state_of(daemon) == 'ready', 30, 'the LUN')


def test_a_read_only_image(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    shutil.copy(path, str(tmp_path / 'before'))
    serve(daemon, path, 'readonly = yes')
    session = ready(daemon)
    assert session.read(0, 8) == bytes(4096)
    assert session.run(b'\x2a' + bytes(6) + b'\0\1\0', out=bytes(512)).status != GOOD
    session.logout()
    with open(path, 'rb') as now, open(str(tmp_path / 'before'), 'rb') as before:
        assert now.read() == before.read()


def test_a_keeper_that_is_killed_takes_its_server_with_it_and_is_replaced(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.vhdx', 'vhdx')
    daemon.text.server['media-check-interval'] = '1'
    serve(daemon, path)
    session = ready(daemon)
    session.write(0, b'k' * 512)
    session.run(b'\x35' + bytes(9)).good()
    server = server_of(path)
    daemon.expected_trouble += ['ended unexpectedly']
    os.kill(server.ppid(), signal.SIGKILL)
    eventually(lambda: not server.is_running(), 30, 'the end of qemu-nbd')

    def is_written():
        result = session.run(b'\x2a' + bytes(4) + b'\x08' + bytes(1) + b'\0\1\0', out=b'n' * 512)
        return result.status == GOOD

    eventually(is_written, 60, 'a write after the renewal')
    assert session.read(0, 1) == b'k' * 512 and session.read(8, 1) == b'n' * 512


def grow(daemon, size, text='resized from'):
    daemon.control('lun', 'resize', TARGET + '/0', size)
    daemon.logged(text)


def test_an_image_is_made_larger_and_sessions_notice_only_its_size(
    daemon, ready, sessions, tmp_path
):
    """Two sessions with writes that no flush has covered, and commands in flight."""
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    serve(daemon, path)
    one = ready(daemon, name='iqn.2026-11.test:one')
    two = ready(daemon, name='iqn.2026-11.test:two')
    data = os.urandom(MIB)
    one.write(0, data)
    two.write(8192, data)
    stop, wrong, turns = threading.Event(), [], []

    def load():
        while not stop.is_set():
            block = os.urandom(4096)
            try:
                one.write(16384, block)
                if one.read(16384, 8) != block:
                    wrong.append('other data')
            except AssertionError as e:
                if '2a' not in str(e).lower():  # CAPACITY DATA HAS CHANGED
                    wrong.append(str(e))
            turns.append(1)

    thread = threading.Thread(target=load)
    thread.start()
    eventually(lambda: len(turns) > 20, 30, 'a load')
    first = server_of(path).pid
    grow(daemon, '96M')
    assert server_of(path) is None or server_of(path).pid != first
    count = len(turns)
    eventually(lambda: len(turns) > count + 20, 30, 'the load to go on')
    stop.set()
    thread.join(30)
    assert not wrong
    two.clear_attentions(0)
    assert two.capacity() == (96 * MIB // 512, 512)
    assert two.read(0, MIB // 512) == data and one.read(8192, MIB // 512) == data
    two.write(96 * MIB // 512 - 8, data[:4096])
    assert one.read(96 * MIB // 512 - 8, 8) == data[:4096]
    assert one.run(b'\x35' + bytes(9)).good() and two.run(b'\x35' + bytes(9)).good()
    assert state_of(daemon) == 'ready'


def test_an_image_gets_its_size_at_the_start_and_is_never_made_shorter(daemon, ready, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    serve(daemon, path, 'size = 80M')
    session = ready(daemon)
    assert session.capacity() == (80 * MIB // 512, 512)
    session.logout()
    code, text = daemon.targetdctl('lun', 'resize', TARGET + '/0', '64M')
    assert code and 'never made shorter' in text
    assert daemon.stop() == 0
    daemon.start()
    assert ready(daemon).capacity() == (80 * MIB // 512, 512)


def test_a_plan_changes_no_image(daemon, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    serve(daemon, path)
    daemon.control('lun', 'resize', TARGET + '/0', '1G', '--dry-run')
    assert daemon.stop() == 0
    assert len(as_raw(path, 'qcow2', tmp_path)) == 64 * MIB


@pytest.mark.parametrize('kind', ['vhdx', 'vhd', 'vmdk', 'vdi'])
def test_an_image_that_cannot_be_resized_says_so(daemon, tmp_path, kind):
    path = create(tmp_path / 'disk.image', kind)
    serve(daemon, path)
    code, text = daemon.targetdctl('lun', 'resize', TARGET + '/0', '80M')
    assert code and 'an image of type %s cannot be resized' % kind in text
    assert 'qemu-img convert' in text
    assert daemon.stop() == 0
    daemon.text.targets[TARGET][1][0] += ['type = %s' % kind, 'size = 80M']
    code, text = daemon.check()
    assert code and 'an image of type %s cannot be resized' % kind in text


def test_an_image_is_shown_with_its_sizes(daemon, tmp_path):
    path = create(tmp_path / 'disk.qcow2', 'qcow2')
    serve(daemon, path)
    code, text = daemon.check()
    assert not code and 'qcow2 image, 67108864 bytes' in text and 'allocated' in text
    rows = json.loads(daemon.control('--json', 'disks', path))
    assert [row['format'] for row in rows] == ['qcow2']
    assert rows[0]['size'] == 64 * MIB and rows[0]['allocated'] < 1 * MIB
    assert 'qcow2' in daemon.control('disks', path)
