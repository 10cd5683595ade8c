"""LUNs on images of a Ceph cluster of one node, which the tests start."""

import json
import os
import struct
import subprocess
import threading
import time

import clients
import psutil
import pytest
from daemon import TARGET, eventually, watched
from initiator import GOOD, RESERVATION_CONFLICT, LoginFailed, pattern

pytestmark = pytest.mark.client

SYNCHRONIZE = bytes([0x35]) + bytes(9)
WRITE_PROTECTED, SPACE_ALLOCATION_FAILED = (7, 0x27, 0), (7, 0x27, 7)
SERVING_SECONDS = 120
NOISE = 'connection to the NBD server|cannot be used|connected to the NBD'


def store_process(daemon):
    """The store process of the only image of a daemon, a psutil.Process."""
    with open(os.path.join(daemon.directory, 'state', 'node-id')) as f:
        node = f.read().strip()

    def find():
        # it is no descendant of the daemon, and serves also while it is opened by a job
        found = [
            each
            for each in psutil.process_iter(['name', 'cmdline'])
            if each.info['name'] == 'targetd-rbd' and node in str(each.info['cmdline'])
        ]
        return found[0] if len(found) == 1 else None

    return eventually(find, 20, 'the store process')


def processes_of(daemon, pid=None):
    """All processes of a server that serves one image. pid: of the master, if it was started otherwise."""
    master = psutil.Process(pid or daemon.process.pid)
    store = store_process(daemon)
    return [master] + master.children(recursive=True) + [store.parent(), store]


@pytest.fixture
def image(ceph, daemon, request):
    """serve(megabytes, *rows) makes an image of the test's name and a LUN 0 on it; returns its name."""

    def serve(megabytes=64, *rows):
        name = request.node.name.replace('[', '-').replace(']', '')[:60]
        daemon.target(TARGET, luns={0: ceph.image(name, megabytes) + list(rows)})
        return 'disks/' + name

    return serve


def start(daemon):
    """Start a server and wait until it serves its LUN, which it tries again and again on a busy machine."""
    daemon.expected_trouble.append('is not served until|still not available')
    daemon.start()
    eventually(lambda: daemon.units()[0]['state'] == 'ready', SERVING_SECONDS, 'the LUN')
    return daemon


def submit_writes(session, count, seed, blocks=8):
    """Sends writes of different data; returns [(lba, data, command)]."""
    sent = []
    for number in range(count):
        data = pattern(number + seed, blocks * 512)
        cdb = struct.pack('>BBIBHB', 0x2A, 0, number * blocks, 0, blocks, 0)
        sent.append((number * blocks, data, session.submit(cdb, 0, out=data)))
    return sent


def test_what_is_written_is_in_the_image(ceph, image, daemon, ready, tmp_path):
    name = image(64, 'thin = yes')
    start(daemon)
    session = ready(daemon)
    assert session.capacity() == ((64 << 20) // 512, 512)
    data = pattern(1, 1 << 20)
    session.write(2048, data)
    session.write(8, data[:512], fua=True)
    assert session.read(2048, 2048) == data and session.read(8, 1) == data[:512]
    assert session.run(SYNCHRONIZE).good()
    session.logout()
    daemon.stop()
    copy = str(tmp_path / 'copy')
    ceph.rbd('export', '--no-progress', name, copy)
    with open(copy, 'rb') as f:
        content = f.read()
    assert content[1 << 20 : 2 << 20] == data and content[4096:4608] == data[:512]
    assert not ceph.rbd('status', name).count('watcher=')  # the daemon has gone in order


@pytest.mark.parametrize('how', ['killed', 'paused'])
def test_commands_in_flight_go_on_after_the_store_process(image, daemon, ready, how):
    """It is killed, or hangs for some seconds, while it executes writes: none is lost, and none fails."""
    image()
    start(daemon)
    daemon.expected_trouble.append(NOISE)
    session = ready(daemon)
    first = pattern(3, 4096)
    session.write(4096, first)  # acknowledged, and never flushed
    server = store_process(daemon)
    server.suspend()
    sent = submit_writes(session, 20, 7)
    assert session.ping(b'alive') is not None
    assert all(command.result is None for _, _, command in sent)
    server.kill() if how == 'killed' else server.resume()
    for lba, data, command in sent:
        assert session.wait(command).good()
        assert session.read(lba, 8) == data
    assert session.read(4096, 8) == first


def test_a_killed_keeper_is_replaced_with_its_store_process(image, daemon, ready):
    image()
    daemon.text.server['media-check-interval'] = '1'
    start(daemon)
    daemon.expected_trouble.append(NOISE + '|ended unexpectedly')
    session = ready(daemon)
    session.write(0, pattern(3, 4096))
    server = store_process(daemon)
    server.parent().kill()
    daemon.logged('ended unexpectedly')
    eventually(lambda: store_process(daemon).pid != server.pid, 30, 'another store process')

    def is_written():
        cdb = struct.pack('>BBIBHB', 0x2A, 0, 8, 0, 8, 0)
        return session.run(cdb, out=pattern(4, 4096)).status == GOOD

    eventually(is_written, 40, 'a write')
    assert session.read(0, 8) == pattern(3, 4096) and session.read(8, 8) == pattern(4, 4096)


def test_sessions_and_the_store_process_outlast_an_upgrade(image, daemon, ready):
    image()
    start(daemon)
    session = ready(daemon)
    session.write(0, pattern(3, 4096))
    server = store_process(daemon)
    daemon.control('upgrade')
    assert session.read(0, 8) == pattern(3, 4096)
    session.write(8, pattern(4, 4096))
    assert store_process(daemon).pid == server.pid
    other = ready(daemon, name=TWO)
    assert other.read(8, 8) == pattern(4, 4096)


def test_the_load_goes_on_when_the_osd_hangs(ceph, image, daemon, ready, sessions):
    """An OSD that does not answer for some seconds: logins are answered, and no command fails."""
    image()
    daemon.target('iqn.2026-11.test:file', luns={0: ['backing-store = %s' % daemon.image()]})
    start(daemon)
    session = ready(daemon)
    ceph.pause_osd()
    try:
        sent = submit_writes(session, 20, 40)
        other = sessions(daemon, 'iqn.2026-11.test:file')
        other.clear_attentions(0)
        other.write(0, pattern(1, 512))  # its target is not affected
        time.sleep(3)
        assert all(command.result is None for _, _, command in sent)
    finally:
        ceph.resume_osd()
    for lba, data, command in sent:
        assert session.wait(command).good()
        assert session.read(lba, 8) == data


def test_an_image_that_another_client_has_open_is_refused_with_its_address(
    ceph, image, daemon, ready, tmp_path
):
    name = image()
    holder = subprocess.Popen(
        [
            '/usr/bin/python3',
            '-c',
            'import rados, rbd, sys\n'
            'c = rados.Rados(conffile=sys.argv[1]); c.connect(); i = c.open_ioctx("disks")\n'
            'image = rbd.Image(i, sys.argv[2]); print(c.get_addrs(), flush=True)\n'
            'sys.stdin.read(); image.close(); i.close(); c.shutdown()',
            ceph.conf,
            name.partition('/')[2],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        address = holder.stdout.readline().decode().strip()
        daemon.expected_trouble.append('is not served until|still not available')
        daemon.start()
        daemon.logged('the client %s has it open' % address)
        assert daemon.units()[0]['state'].startswith('missing: ')
        holder.communicate(timeout=20)
        eventually(lambda: daemon.units()[0]['unit'], 30, 'the LUN')
        ready(daemon).write(0, bytes(512))
    finally:
        holder.kill()
    # and the other way round: a client that wants to write fails at once
    code, text = clients.run(
        'rbd', '-c', ceph.conf, 'bench', '--io-type', 'write', '--io-total', '1M', name
    )
    assert code != 0, text


def test_an_image_that_is_taken_by_force_is_served_again_when_it_is_free(
    ceph, image, daemon, ready
):
    name = image()
    daemon.expected_trouble.append(NOISE + '|not served|still not available')
    start(daemon)
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    first = store_process(daemon)
    owner = json.loads(ceph.rbd('lock', 'ls', '--format', 'json', name))[0]['address']
    ceph.command('osd', 'blocklist', 'add', owner)
    daemon.logged('is not served any more: another client of the Ceph cluster has its image')
    eventually(lambda: daemon.units()[0].get('unit'), 40, 'the LUN again')
    session = ready(daemon)
    assert session.read(0, 8) == pattern(1, 4096)
    assert store_process(daemon).pid != first.pid


def test_a_snapshot_is_read_only_and_stays_as_it_was(ceph, image, daemon, ready):
    name = image()
    daemon.target(
        'iqn.2026-11.test:snapshot',
        luns={0: ceph.rows('rbd:%s@before' % name) + ['readonly = yes']},
    )
    ceph.rbd('snap', 'create', '--no-progress', name + '@before')
    start(daemon)
    session = ready(daemon)
    session.write(0, pattern(9, 4096))
    old = ready(daemon, 'iqn.2026-11.test:snapshot')
    assert old.read(0, 8) == bytes(4096)
    refused = old.run(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 1, 0), out=bytes(512))
    assert refused.key == WRITE_PROTECTED
    daemon.text.targets['iqn.2026-11.test:snapshot'][1][0].pop()
    daemon.write_config()
    code, text = daemon.targetdctl('reload')
    assert code != 0 and 'is a snapshot, which cannot be written' in text


def test_another_client_resizes_the_image(ceph, image, daemon, ready):
    name = image()
    daemon.text.server['media-check-interval'] = '1'
    start(daemon)
    session = ready(daemon)
    ceph.rbd('resize', '--no-progress', '--size', '80M', name)
    eventually(lambda: '%d bytes' % (80 << 20) in daemon.log, 20, 'the new size')
    eventually(lambda: (6, 0x2A, 0x09) in session.clear_attentions(0), 20, 'the unit attention')
    assert session.capacity()[0] == (80 << 20) // 512
    session.write((72 << 20) // 512, pattern(2, 4096))
    assert session.read((72 << 20) // 512, 8) == pattern(2, 4096)


def test_a_full_cluster_refuses_new_blocks_and_serves_the_rest(ceph, image, daemon, ready):
    image()
    start(daemon)
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    ratios = ('nearfull', '0.0001'), ('backfillfull', '0.0002'), ('full', '0.0003')
    for name, ratio in ratios:
        ceph.command('osd', 'set-%s-ratio' % name, ratio)
    try:
        eventually(lambda: 'full' in ceph.flags('disks'), 30, 'the flag of the full pool')
        refused = session.run(struct.pack('>BBIBHB', 0x2A, 0, 65536, 0, 8, 0), out=bytes(4096))
        assert refused.key == SPACE_ALLOCATION_FAILED
        assert session.read(0, 8) == pattern(1, 4096)
        session.write(0, pattern(2, 4096))  # these blocks are there
    finally:
        for name, ratio in (('full', '0.95'), ('backfillfull', '0.9'), ('nearfull', '0.85')):
            ceph.command('osd', 'set-%s-ratio' % name, ratio)
    eventually(lambda: 'full' not in ceph.flags('disks'), 30, 'the pool with room')
    session.write(65536, pattern(3, 4096))
    assert session.read(0, 8) == pattern(2, 4096)


def test_settings_that_cannot_be_used_are_refused_with_the_remedy(ceph, image, daemon):
    image()
    start(daemon)
    for rows, said in (
        (ceph.rows('rbd:nowhere/disk'), 'there is no pool nowhere'),
        (ceph.rows('rbd:disks/none'), 'there is no image disks/none in the cluster'),
        (
            ceph.rows('rbd:disks/none') + ['ceph-user = stranger'],
            'no keyring for the user client.stranger',
        ),
        (
            ['backing-store = rbd:disks/none', 'ceph-conf = /nowhere.conf'],
            'the file /nowhere.conf, which',
        ),
        (ceph.rows('rbd:disks'), 'does not name an image'),
        (ceph.rows('rbd:disks/none') + ['size = 64M'], 'a lun on an NBD server cannot have size'),
    ):
        daemon.text.targets[TARGET][1][1] = rows
        daemon.write_config()
        code, text = daemon.targetdctl('reload')
        assert code != 0 and said in text, text


# -- two servers -----------------------------------------------------------------------------------

SERVER_ID = '6c1a9a3e-3a36-4b0f-8a44-0c8f5c0a7d11'
ONE, TWO = ('iqn.2026-11.test:%s' % word for word in ('one', 'two'))
KEY = 0x1111222233334444
#: Limit of a takeover on a busy machine; the summary of the run has the times (idle: 2 to 4 s).
TAKEOVER_SECONDS = 60.0


@pytest.fixture
def pair(ceph, daemon, request, tmp_path_factory):
    """Two Daemons for one image, whose state is in the pool `states`; neither is started."""
    name = request.node.name.replace('[', '-').replace(']', '')[:60]
    rows = ceph.image(name, 64) + ['unit-state = rados:states']
    with watched(tmp_path_factory.mktemp('second')) as second:
        for each in (daemon, second):
            each.text.server['server-id'] = SERVER_ID
            each.target(TARGET, luns={0: rows})
            each.expected_trouble.append('not served|still not available|not releas|' + NOISE)
        yield daemon, second


def reserve_out(session, action, kind=0, key=0, action_key=0):
    """PERSISTENT RESERVE OUT (SPC-4 6.16) without APTPL."""
    parameters = struct.pack('>QQ8x', key, action_key)
    cdb = struct.pack('>BBB2xIB', 0x5F, action, kind, len(parameters), 0)
    return session.run(cdb, out=parameters).status


def keys_of(session):
    data = session.run(struct.pack('>BB5xHB', 0x5E, 0, 1024, 0), read=1024).good().data[8:]
    return list(struct.unpack('>%dQ' % (len(data) // 8), data))


def reserve(session):
    """Register, and reserve for one host that writes."""
    assert reserve_out(session, 6, action_key=KEY) == GOOD
    assert reserve_out(session, 1, 1, KEY) == GOOD


def login_status(daemon, sessions):
    """The login status of TWO, 0 for a success."""
    try:
        sessions(daemon, name=TWO).logout()
    except LoginFailed as e:
        return e.status
    return 0


def take_over(daemon, ready):
    """Order a takeover; returns a session of ONE that has read a block."""
    start = time.monotonic()
    assert 'LUN 0 is served' in daemon.control('takeover', TARGET)
    session = ready(daemon, name=ONE)
    session.read(0, 1)
    seconds = time.monotonic() - start
    clients.SUMMARY.append('takeover of a Ceph image: %.1f s to the first READ' % seconds)
    assert seconds < TAKEOVER_SECONDS
    return session


def test_the_state_is_in_a_pool_and_survives_the_servers_and_a_standby(pair, ready, sessions):
    first, second = pair
    session = ready(start(first), name=ONE)
    reserve(session)
    session.write(8, pattern(1, 512))
    second.start()
    assert login_status(second, sessions) == 0x0301
    session.logout()
    first.control('standby', TARGET)
    assert login_status(first, sessions) == 0x0301
    session = take_over(second, ready)
    assert keys_of(session) == [KEY] and session.read(8, 1) == pattern(1, 512)
    other = ready(second, name=TWO)
    refused = other.run(struct.pack('>BBIBHB', 0x2A, 0, 8, 0, 1, 0), out=bytes(512))
    assert refused.status == RESERVATION_CONFLICT


def sequenced_writes(session, acknowledged):
    """Write blocks with their numbers in turn; note those that are acknowledged."""
    for number in range(100000):
        lba = number % 1000
        session.write(lba, pattern(number, 512), fua=True)
        acknowledged[lba] = number


def begin_load(session, second):
    """Reserve the unit, start the server that is to take over, and write until the session is at its end;
    returns (thread, {block: number of its last write that was acknowledged}) after some writes."""
    reserve(session)
    second.start()
    acknowledged = {}
    load = threading.Thread(target=_until_the_end, args=(sequenced_writes, session, acknowledged))
    load.start()
    eventually(lambda: len(acknowledged) > 200, 60, 'some writes')
    return load, acknowledged


def overwrite(session):
    """Write other data to all blocks of the load, after the takeover."""
    for lba in range(0, 1000, 8):
        session.write(lba, pattern(lba + 500000, 4096))


def require_overwritten(session):
    """Nothing has been written since overwrite()."""
    for lba in range(0, 1000, 8):
        assert session.read(lba, 8) == pattern(lba + 500000, 4096)


def test_a_killed_server_is_replaced_without_the_loss_of_a_block(pair, ready):
    """kill -9 of every process of the active server, under load."""
    first, second = pair
    load, acknowledged = begin_load(ready(start(first), name=ONE), second)
    for each in processes_of(first):
        each.kill()
    load.join(20)
    first.kill()
    session = take_over(second, ready)
    assert keys_of(session) == [KEY]
    require_written(session, acknowledged)


def _until_the_end(call, *arguments):
    try:
        call(*arguments)
    except Exception:  # the connection is lost: that is what the test does
        pass


def require_written(session, acknowledged):
    """Every block has what was acknowledged last, or what was sent after that."""
    for lba, number in acknowledged.items():
        data = session.read(lba, 1)
        assert data in (pattern(number, 512), pattern(number + 1000, 512)), (lba, number)


@pytest.fixture
def suspended():
    """A list of processes that the test suspends; they go on at its end, so that none is left behind."""
    processes = []
    yield processes
    for each in processes:
        if each.is_running():
            each.resume()


def test_a_server_that_was_stopped_and_replaced_never_writes_again(
    pair, ready, sessions, suspended
):
    """SIGSTOP of every process of the active server under load, takeover, other data, SIGCONT."""
    first, second = pair
    load, acknowledged = begin_load(ready(start(first), name=ONE), second)
    suspended.extend(processes_of(first))
    sent = submit_writes(sessions(first, name=TWO), 0, 0)  # TWO has a session, too
    for each in suspended:
        each.suspend()
    fresh = take_over(second, ready)
    require_written(fresh, acknowledged)
    overwrite(fresh)
    for each in suspended:
        each.resume()
    eventually(lambda: first.units()[0]['state'].startswith('standby'), 30, 'the standby state')
    load.join(30)
    assert not load.is_alive() and not sent
    require_overwritten(fresh)
    assert login_status(first, sessions) == 0x0301
    assert keys_of(fresh) == [KEY]
    # and back again, by order
    fresh.logout()
    second.control('standby', TARGET)
    again = take_over(first, ready)
    assert again.read(0, 8) == pattern(500000, 4096) and keys_of(again) == [KEY]
