"""Two servers for one disk: the state of a LUN (unit-state) follows it, and one server at a time
serves it."""

import json
import os
import struct
import subprocess

import pytest
from daemon import TARGET, eventually, watched
from initiator import GOOD, RESERVATION_CONFLICT, LoginFailed

pytestmark = pytest.mark.wire

ONE, TWO = ('iqn.2026-11.test:%s' % word for word in ('one', 'two'))
SERVER_ID = '6c1a9a3e-3a36-4b0f-8a44-0c8f5c0a7d11'
KEY = 0x1111222233334444
REGISTER_AND_IGNORE, RESERVE, WRITE_EXCLUSIVE = 6, 1, 1
SIZE = 8 << 20


def reserve_out(session, action, kind=0, key=0, action_key=0):
    """PERSISTENT RESERVE OUT (SPC-4 6.16) without APTPL."""
    parameters = struct.pack('>QQ8x', key, action_key)
    cdb = struct.pack('>BBB2xIB', 0x5F, action, kind, len(parameters), 0)
    return session.run(cdb, out=parameters).status


def keys_of(session):
    data = session.run(struct.pack('>BB5xHB', 0x5E, 0, 1024, 0), read=1024).good().data[8:]
    return list(struct.unpack('>%dQ' % (len(data) // 8), data))


def serial_of(session):
    return session.run(struct.pack('>BBBHB', 0x12, 1, 0x80, 255, 0), read=255).good().data


def write(session, lba, data):
    cdb = struct.pack('>BBIBHB', 0x2A, 8, lba, 0, len(data) // 512, 0)  # FUA
    return session.run(cdb, out=data).status


def state_of(daemon):
    return daemon.units()[0]['state']


@pytest.fixture
def shared(tmp_path):
    """The directory that both servers of the pair can reach: the state, and the file disk.img."""
    directory = tmp_path / 'shared'
    directory.mkdir()
    (directory / 'state').mkdir()
    with open(str(directory / 'disk.img'), 'wb') as f:
        f.truncate(SIZE)
    return directory


@pytest.fixture
def pair(daemon, shared, tmp_path_factory):
    """Two Daemons that serve the same file, neither of which is started."""
    with watched(tmp_path_factory.mktemp('second')) as second:
        for each in (daemon, second):
            configure(each, shared)
        yield daemon, second


def configure(daemon, shared, path=None, *more):
    daemon.text.server['server-id'] = SERVER_ID
    luns = {
        0: [
            'backing-store = %s' % (path or shared / 'disk.img'),
            'unit-state = %s' % (shared / 'state'),
        ]
    }
    luns[0] += more
    daemon.target(TARGET, luns=luns)


def login_status(daemon, sessions):
    """The login status of TWO, 0 for a success."""
    try:
        sessions(daemon, name=TWO).logout()
    except LoginFailed as e:
        return e.status
    return 0


def test_the_state_follows_the_disk_to_the_server_that_takes_it_over(pair, ready, sessions):
    first, second = pair
    session = ready(first.start(), name=ONE)
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=KEY) == GOOD
    assert reserve_out(session, RESERVE, WRITE_EXCLUSIVE, KEY) == GOOD
    assert write(session, 8, b'a' * 512) == GOOD
    serial = serial_of(session)

    second.expected_trouble += ['is in use', 'still not available', 'not served']
    second.start()
    assert login_status(second, sessions) == 0x0301
    first.kill()  # without a chance to release anything
    eventually(lambda: 'standby: the server' in state_of(second), 30, 'the standby state')
    assert 'LUN 0 is served' in second.control('takeover', TARGET)
    other = ready(second, name=TWO)
    assert serial_of(other) == serial
    assert keys_of(other) == [KEY]
    assert write(other, 8, b'b' * 512) == RESERVATION_CONFLICT  # ONE still has the reservation
    again = ready(second, name=ONE)
    assert again.read(8, 1) == b'a' * 512 and write(again, 8, b'c' * 512) == GOOD


def test_a_server_that_returns_waits_in_standby_also_after_a_restart(pair, ready, sessions):
    first, second = pair
    first.start()
    first.kill()
    second.expected_trouble += ['not served']
    second.start()
    second.control('takeover', TARGET)
    first.expected_trouble += ['not served', 'is in use', 'still not available']
    for _ in range(2):
        first.start()
        assert login_status(first, sessions) == 0x0301
        assert first.stop() == 0
    assert ready(second, name=ONE).read(0, 1) == b'\0' * 512


def test_a_planned_move_ends_the_sessions_and_releases_the_state(pair, ready, sessions):
    first, second = pair
    first.text.server['stop-timeout'] = '1'
    session = ready(first.start(), name=ONE)
    session.write(0, b'x' * 512)
    text = first.control('standby', TARGET)
    assert 'is in standby' in text
    assert login_status(first, sessions) == 0x0301
    assert 'no server serves it, by order' in state_of(first)
    # a restart takes nothing back
    first.expected_trouble += ['not served']
    assert first.stop() == 0
    first.start()
    assert login_status(first, sessions) == 0x0301
    second.expected_trouble += ['not served']
    second.start()
    assert login_status(second, sessions) == 0x0301
    second.control('takeover', TARGET)
    assert ready(second, name=ONE).read(0, 1) == b'x' * 512
    second.control('standby', TARGET)
    first.control('takeover', TARGET)
    assert ready(first, name=ONE).read(0, 1) == b'x' * 512


def test_a_server_of_a_cluster_manager_waits_for_an_order(pair, ready, sessions):
    first, _ = pair
    first.text.targets[TARGET][0].append('serving = when-active')
    first.expected_trouble += ['not served']
    first.start()
    assert 'serving = when-active' in state_of(first)
    assert login_status(first, sessions) == 0x0301
    first.control('takeover', TARGET)
    session = ready(first, name=ONE)
    assert session.read(0, 1) == b'\0' * 512
    session.logout()
    # a change that opens the medium again needs no order
    first.text.targets[TARGET][1][0].append('rotation-rate = 7200')
    first.reload('reload: change')
    eventually(lambda: login_status(first, sessions) == 0, 30, 'a login after the change')
    assert first.stop() == 0
    first.start()
    assert login_status(first, sessions) == 0x0301


def test_a_lun_that_another_server_has_can_be_added_by_a_reload(pair, ready, sessions):
    first, second = pair
    luns = second.text.targets.pop(TARGET)
    second.start()
    first.start()
    second.expected_trouble += ['not served', 'is in use', 'still not available']
    second.text.targets[TARGET] = luns
    first.kill()
    second.reload('reload: add')
    assert login_status(second, sessions) == 0x0301
    second.control('takeover', TARGET)
    assert login_status(second, sessions) == 0


def test_the_state_directory_must_exist(pair, shared):
    first, _ = pair
    (shared / 'state').rmdir()
    first.expected_trouble += ['is not served']
    first.start()
    assert 'is its file system mounted?' in state_of(first)
    (shared / 'state').mkdir()
    first.reload()
    eventually(lambda: state_of(first) == 'ready', 30, 'the LUN')


def test_only_targets_whose_state_can_follow_are_moved(daemon, shared):
    configure(daemon, shared)
    daemon.text.targets[TARGET][1][1] = ['type = ram', 'size = 8M']
    daemon.start()
    for verb in ('takeover', 'standby'):
        code, text = daemon.targetdctl(verb, TARGET)
        assert code and 'LUN 1 has no unit-state' in text
    code, text = daemon.targetdctl('takeover', 'iqn.2026-11.test:unknown')
    assert code and 'there is no target' in text


def test_a_server_that_was_replaced_ends_its_sessions_and_saves_nothing(
    pair, shared, ready, sessions, loop_devices
):
    """Two loop devices on one file are one disk in two hosts."""
    first, second = pair
    for each in pair:
        configure(each, shared, loop_devices(shared / 'disk.img'), 'allow-in-use = yes')
        each.expected_trouble += ['not served']
    session = ready(first.start(), name=ONE)
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=KEY) == GOOD
    second.start()
    assert login_status(second, sessions) == 0x0301
    second.control('takeover', TARGET)
    assert keys_of(ready(second, name=TWO)) == [KEY]

    def is_gone():
        return not json.loads(first.control('--json', 'show', 'sessions'))

    first.text.server['stop-timeout'] = '1'
    eventually(lambda: 'has taken it over' in state_of(first), 30, 'the loss')
    session.close()
    eventually(is_gone, 90, 'the end of the sessions')
    assert login_status(first, sessions) == 0x0301
    saved = [name for name in os.listdir(str(shared / 'state')) if name.endswith('.json')]
    assert len(saved) == 1
    document = json.loads((shared / 'state' / saved[0]).read_text())
    assert document['epoch'] == 2 and document['state']['reservations']


@pytest.fixture
def loop_devices():
    """attach(path) -> a loop device on the file, with direct access to it."""
    made = []

    def attach(path):
        command = ['losetup', '--show', '--direct-io=on', '-f', str(path)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if ran.returncode:
            pytest.skip(ran.stderr.decode().strip())
        made.append(ran.stdout.decode().strip())
        return made[-1]

    yield attach
    for device in made:
        subprocess.call(['losetup', '-d', device])
