"""LUNs on exports of NBD servers: nbdkit and qemu-nbd."""

import os
import struct

import psutil
import pytest
from daemon import TARGET, eventually
from initiator import ABORT_TASK, LoginFailed, pattern
from initiator import LOGICAL_UNIT_RESET as LUN_RESET
from nbd_peer import FLAGS, Peer

from targetd.errors import EXIT_NOT_DURABLE
from targetd.nbd import numbers

pytestmark = pytest.mark.wire

MIB = 1 << 20
SYNCHRONIZE = bytes([0x35]) + bytes(9)


def serve(daemon, server, *rows, **more):
    """Adds TARGET with LUN 0 on the export, with these further settings."""
    daemon.target(TARGET, luns={0: ['backing-store = "%s"' % server.uri] + list(rows)}, **more)


def test_reads_writes_and_flushes_of_an_nbdkit_export(nbdkit, daemon, ready):
    serve(daemon, nbdkit('memory', '64M'))
    daemon.start()
    session = ready(daemon)
    assert session.capacity() == (64 * MIB // 512, 512)
    data = pattern(1, 64 << 10)
    session.write(100, data)
    session.write(5000, data[:512], fua=True)
    assert session.read(100, 128) == data
    assert session.read(5000, 1) == data[:512]
    assert session.run(SYNCHRONIZE).good()
    session.logout()
    session = ready(daemon)
    assert session.read(100, 128) == data


def submit_writes(session, count, blocks=8):
    """Sends `count` writes of different data; returns [(lba, data, command)]."""
    sent = []
    for number in range(count):
        data = pattern(number + 7, blocks * 512)
        cdb = struct.pack('>BBIBHB', 0x2A, 0, number * blocks, 0, blocks, 0)
        sent.append((number * blocks, data, session.submit(cdb, 0, out=data)))
    return sent


@pytest.mark.parametrize('how', ['killed', 'stopped'])
def test_commands_in_flight_go_on_when_the_server_is_back(nbdkit, daemon, ready, how):
    """The server dies, or hangs, while it executes writes: none is lost, and none fails."""
    image = daemon.image()
    server = nbdkit('--filter=delay', 'file', image, 'wdelay=500ms')
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to')
    session = ready(daemon)
    first = pattern(3, 4096)
    session.write(1000, first)  # acknowledged, not flushed
    sent = submit_writes(session, 20)
    if how == 'killed':
        server.kill()
        daemon.logged('cannot be used: it cannot be reached')
        assert all(command.result is None for _, _, command in sent)
        server.start()
    else:
        server.pause()
        assert session.ping(b'alive') is not None
        server.resume()
    for lba, data, command in sent:
        assert session.wait(command).good()
        assert session.read(lba, 8) == data
    assert session.read(1000, 8) == first
    assert session.run(SYNCHRONIZE).good()
    with open(image, 'rb') as f:
        f.seek(512 * 1000)
        assert f.read(4096) == first


def test_unflushed_writes_are_repeated_on_a_server_that_has_lost_them(nbdkit, daemon, ready):
    """The memory of nbdkit is gone when it is killed, as the cache of a server may be."""
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to')
    session = ready(daemon)
    kept = pattern(4, 1 << 16)
    session.write(0, kept)
    session.write(64, pattern(5, 4096))
    session.write(64, kept[:4096])
    server.kill()
    server.start()
    assert session.read(0, 128) == kept[: 64 * 512] + kept[:4096] + kept[72 * 512 :]
    daemon.logged('3 changes that were not flushed were repeated')
    assert session.run(SYNCHRONIZE).good()


@pytest.mark.parametrize('how', ['killed', 'stopped'])
def test_a_stop_does_not_wait_for_a_server_that_is_away_if_all_is_durable(
    nbdkit, daemon, ready, how
):
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.start()
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    assert session.run(SYNCHRONIZE).good()
    server.kill() if how == 'killed' else server.pause()
    session.logout()
    assert daemon.stop(25) == 0
    assert 'is flushed' in daemon.log


def test_a_stop_says_what_a_server_that_is_away_may_have_lost(nbdkit, daemon, ready):
    """It waits for the server for some seconds only."""
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.text.server['stop-timeout'] = '1'
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD|cannot be used|not return|FAILED|NOT ')
    daemon.expected_trouble.append('not everything is durable')
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    server.kill()
    submit_writes(session, 3)
    daemon.logged('cannot be used: it cannot be reached')
    assert daemon.stop(25) == EXIT_NOT_DURABLE
    assert 'could NOT be flushed: its NBD server is away, with unflushed writes' in daemon.log
    daemon.expected_trouble.append('not served until')
    server.start()
    daemon.start()
    assert daemon.units()[0]['state'].startswith('failed: flush failed')


def test_a_server_that_is_not_there_at_the_start_does_not_hold_it_up(nbdkit, daemon, sessions):
    server = nbdkit('memory', '64M')
    server.kill()
    os.unlink(server.path)
    serve(daemon, server)
    daemon.text.targets[TARGET][1][1] = ['backing-store = %s' % daemon.image()]
    daemon.start()
    daemon.expected_trouble.append('is not served until its medium is available')
    daemon.logged('cannot be reached: .*: No such file or directory; start the server')
    assert daemon.units()[0]['state'].startswith('missing: ')
    server.start()
    eventually(lambda: daemon.units()[0]['unit'], 30, 'the LUN of the server')
    session = sessions(daemon)
    session.clear_attentions(0)
    assert session.read(0, 1) == bytes(512)


def sense_of(result):
    return result.status, result.key


def test_errors_of_the_server_are_errors_of_the_medium(nbdkit, daemon, ready, tmp_path):
    switch = tmp_path / 'errors'
    server = nbdkit(
        '--filter=error', 'memory', '64M', 'error=EIO', 'error-rate=100%', 'error-file=%s' % switch
    )
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('error of the medium|medium error|MEDIUM ERROR')
    session = ready(daemon)
    session.write(0, pattern(1, 512), fua=True)
    switch.write_text('')
    read, write = (
        struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0),
        struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 1, 0),
    )
    assert session.run(read, read=512).key[:2] == (3, 0x11)
    assert session.run(write, out=pattern(2, 512)).key[:2] == (3, 0x0C)
    switch.unlink()
    assert session.read(0, 1) == pattern(1, 512)
    session.write(0, pattern(3, 512), fua=True)


def test_a_raw_file_of_qemu_nbd_and_a_second_session(qemu_nbd, daemon, ready, sessions):
    """Without -e 0 it admits one client, and does not offer CAN_MULTI_CONN."""
    image = daemon.image()
    serve(daemon, qemu_nbd('-f', 'raw', image), 'thin = yes')
    daemon.start()
    session = ready(daemon)
    session.write(8, pattern(1, 4096))  # without FUA
    with open(image, 'rb') as f:
        f.seek(4096)
        assert f.read(4096) == pattern(1, 4096)
    other = sessions(daemon, name='iqn.2026-11.test:other')
    assert 0 not in other.report_luns()
    daemon.logged('does not see lun 0 .*does not offer CAN_MULTI_CONN')
    other.logout()
    session.logout()
    again = ready(daemon, name='iqn.2026-11.test:other')
    assert again.read(8, 8) == pattern(1, 4096)


def test_two_sessions_of_a_server_with_multi_conn(qemu_nbd, daemon, ready):
    image = daemon.image()
    serve(daemon, qemu_nbd('-e', '0', '-f', 'raw', image, '--discard=unmap'), 'thin = yes')
    daemon.start()
    one = ready(daemon, name='iqn.2026-11.test:one')
    two = ready(daemon, name='iqn.2026-11.test:two')
    sent = submit_writes(one, 60)
    for lba, data, command in sent:
        assert one.wait(command).good()
        assert two.read(lba, 8) == data
    compare = struct.pack('>BBQ3xBBB', 0x89, 0, 0, 1, 0, 0)
    first = sent[0][1][:512]
    assert two.run(compare, out=first + pattern(9, 512)).good()
    assert one.run(compare, out=first + pattern(10, 512)).key[0] == 0xE  # MISCOMPARE
    parameters = struct.pack('>HH4xQI4x', 22, 16, 0, 480)
    assert one.run(struct.pack('>BB5xHB', 0x42, 0, len(parameters), 0), out=parameters).good()
    assert two.read(0, 480) == bytes(480 * 512)
    assert os.stat(image).st_blocks == 0


@pytest.mark.parametrize(
    'words, text',
    [
        (('-r', 'memory', '64M'), 'is read-only; write readonly = yes'),
        (('-o', 'memory', '64M'), 'uses the oldstyle handshake'),
        (
            ('--filter=blocksize-policy', 'memory', '64M', 'blocksize-minimum=4096'),
            'write block-size = 4096',
        ),
        (('memory', '100001'), 'not a positive multiple of the block size 512'),
    ],
)
def test_an_export_that_cannot_be_served_is_refused_by_the_check(nbdkit, daemon, words, text):
    rows = ['block-size = 512']
    serve(daemon, nbdkit(*words), *rows)
    _, output = daemon.check()
    assert text in output


def test_a_read_only_export(nbdkit, daemon, ready):
    serve(daemon, nbdkit('-r', 'memory', '64M'), 'readonly = yes')
    daemon.start()
    session = ready(daemon)
    assert session.read(0, 8) == bytes(4096)
    write = struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 1, 0)
    assert session.run(write, out=bytes(512)).key[:2] == (7, 0x27)


def test_nothing_acknowledged_is_lost_while_the_server_is_killed_again_and_again(
    nbdkit, daemon, ready
):
    """The server keeps what it was told to flush in a file, and loses nothing else that a SIGKILL
    spares; what counts is that commands in flight are done once it is back, and that the order of
    writes holds."""
    image = daemon.image()
    server = nbdkit('file', image)
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to')
    session = ready(daemon)
    expected = {}
    for turn in range(6):
        sent = []
        for number in range(48):
            lba, data = number % 24 * 16, pattern(turn * 100 + number, 8192)
            if number >= 24:  # the first write of these blocks has been acknowledged
                assert session.wait(sent[number - 24]).good()
            cdb = struct.pack('>BBIBHB', 0x2A, 8 * (number % 5 == 0), lba, 0, 16, 0)
            sent.append(session.submit(cdb, 0, out=data))
            expected[lba] = data
            if number == 10 + turn * 5:
                server.kill()
                server.start()
        for command in sent[24:]:
            assert session.wait(command).good()
        for lba, data in expected.items():
            assert session.read(lba, 16) == data
    assert session.run(SYNCHRONIZE).good()
    with open(image, 'rb') as f:
        for lba, data in expected.items():
            f.seek(lba * 512)
            assert f.read(8192) == data


def keepers(daemon):
    """The keepers of this daemon's exports: they have no parent, but its session's files."""
    return [
        each
        for each in psutil.process_iter(['name', 'cmdline'])
        if each.info['name'] == 'targetd-nbd' and daemon.config in (each.info['cmdline'] or [])
    ]


def test_a_keeper_that_is_killed_is_replaced(nbdkit, daemon, ready):
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.text.server['media-check-interval'] = '1'
    daemon.start()
    daemon.expected_trouble.append(
        'connection to the NBD server|cannot be used|connected to|has ended unexp'
    )
    session = ready(daemon)
    session.write(8, pattern(1, 4096))
    (keeper,) = keepers(daemon)
    keeper.kill()
    daemon.logged('has ended unexpectedly; another one is started')
    eventually(lambda: keepers(daemon), 15, 'another keeper')
    server.kill()
    server.start()
    result = session.run(bytes(6))
    if result.status:  # the unit attention of the new store
        assert result.key[0] == 6
    session.clear_attentions(0)
    session.write(16, pattern(2, 4096))
    assert session.read(16, 8) == pattern(2, 4096)
    assert session.run(SYNCHRONIZE).good()


def test_a_session_that_ends_while_the_server_is_away_loses_nothing(nbdkit, daemon, ready):
    """Its unflushed writes are repeated when the server is back, although its worker is gone."""
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to|hang')
    session = ready(daemon)
    session.write(8, pattern(1, 4096))
    server.kill()
    stuck = session.submit(struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0), 0, read=512)
    daemon.logged('cannot be used: it cannot be reached')
    worker = daemon.worker_of(session)
    assert stuck.result is None
    session.close()
    eventually(lambda: not worker.is_running(), 30, 'the end of the worker')
    server.start()
    again = ready(daemon)
    assert again.read(8, 8) == pattern(1, 4096)
    assert again.run(SYNCHRONIZE).good()


def test_a_stop_while_the_server_is_away_says_what_is_not_durable(nbdkit, daemon, ready):
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('.*')
    session = ready(daemon)
    session.write(8, pattern(1, 4096))
    server.kill()
    assert daemon.stop(60) == 8


def test_sanitize_and_a_reload_with_other_settings(nbdkit, daemon, ready):
    """An operation runs in a worker of its own; a LUN that is opened again shares the keeper."""
    serve(daemon, nbdkit('memory', '16M'))
    daemon.start()
    session = ready(daemon)
    session.write(8, pattern(1, 4096))
    parameters = struct.pack('>BxH', 1, 1) + b'\xc3'
    overwrite = struct.pack('>BB5xHB', 0x48, 0x01, len(parameters), 0)
    assert session.run(overwrite, out=parameters).good()
    session.clear_attentions(0)
    assert session.read(0, 64) == b'\xc3' * 64 * 512
    session.write(8, pattern(2, 4096))
    session.logout()
    (keeper,) = keepers(daemon)
    daemon.text.targets[TARGET][1][0].append('thin = yes')
    daemon.reload()

    def log_in():  # the target admits nobody while it is changed
        try:
            return ready(daemon)
        except LoginFailed:
            return None

    again = eventually(log_in, 20, 'a login after the change')
    assert again.read(8, 8) == pattern(2, 4096)
    assert [each.pid for each in keepers(daemon)] == [keeper.pid]


def extended(image, size):
    with open(image, 'r+b') as f:
        f.truncate(size)


def test_an_export_that_the_server_has_made_larger_is_adopted_by_a_reload(nbdkit, daemon, ready):
    image = daemon.image(size=64 * MIB)
    serve(daemon, nbdkit('file', image))
    daemon.start()
    one = ready(daemon, name='iqn.2026-11.test:one')
    two = ready(daemon, name='iqn.2026-11.test:two')
    one.write(0, pattern(1, 4096))
    two.write(8, pattern(2, 4096))
    extended(image, 96 * MIB)
    daemon.reload()
    daemon.logged('resized from %d to %d' % (64 * MIB, 96 * MIB))
    for session in (one, two):
        session.clear_attentions(0)
        assert session.capacity() == (96 * MIB // 512, 512)
        assert session.read(0, 16) == pattern(1, 4096) + pattern(2, 4096)
    one.write(96 * MIB // 512 - 8, pattern(3, 4096))
    assert two.read(96 * MIB // 512 - 8, 8) == pattern(3, 4096)
    assert one.run(SYNCHRONIZE).good()
    assert daemon.units()[0]['state'] == 'ready'
    code, text = daemon.targetdctl('lun', 'resize', TARGET + '/0', '128M')
    assert code and 'the server decides the size' in text


def test_a_new_connection_shows_that_the_server_has_made_the_export_larger(nbdkit, daemon, ready):
    daemon.text.server['media-check-interval'] = '1'
    image = daemon.image(size=64 * MIB)
    server = nbdkit('file', image)
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to')
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    server.kill()
    extended(image, 96 * MIB)
    server.start()
    assert session.read(0, 8) == pattern(1, 4096)
    daemon.logged('resized from %d to %d' % (64 * MIB, 96 * MIB))
    session.clear_attentions(0)
    assert session.capacity() == (96 * MIB // 512, 512)
    session.write(96 * MIB // 512 - 8, pattern(3, 4096), fua=True)


def test_pre_fetch_asks_the_server_to_cache(daemon, ready, tmp_path):
    peer = Peer(str(tmp_path / 'peer.sock'), 1 << 20, FLAGS | numbers.SEND_CACHE)
    serve(daemon, peer)
    daemon.start()
    session = ready(daemon)
    session.run(struct.pack('>BBIBHB', 0x34, 0, 16, 0, 32, 0)).good()
    asked = [each for each in peer.requests if each[0] == numbers.CMD_CACHE]
    assert [each[3:5] for each in asked] == [(16 * 512, 32 * 512)]
    session.logout()
    daemon.stop()
    peer.close()


def test_short_and_long_commands_at_the_same_time(nbdkit, daemon, ready):
    """Short ones need no thread, long ones have one, which may receive the replies to all."""
    serve(daemon, nbdkit('memory', '64M'))
    daemon.start()
    session = ready(daemon)
    data = pattern(11, 4 * MIB)
    for start in range(0, len(data), MIB):
        session.write(start // 512, data[start : start + MIB])
    for turn in range(6):
        sent = []
        for number in range(40):
            blocks = (1, 8, 128, 520, 2048)[(number + turn) % 5]
            lba = number * 131 % (4 * MIB // 512 - blocks)
            cdb = struct.pack('>BBIBHB', 0x28, 0, lba, 0, blocks, 0)
            sent.append((lba * 512, blocks * 512, session.submit(cdb, read=blocks * 512)))
        for start, length, command in sent:
            result = session.wait(command)
            assert result.good() and result.data == data[start : start + length]


@pytest.mark.parametrize('function', [ABORT_TASK, LUN_RESET])
def test_commands_in_flight_are_aborted_while_the_server_hangs(nbdkit, daemon, ready, function):
    server = nbdkit('memory', '64M')
    serve(daemon, server)
    daemon.start()
    daemon.expected_trouble.append('aborted command|hanging|has not returned|have returned|BUSY')
    session = ready(daemon)
    session.write(0, pattern(1, 4096))
    server.pause()
    read = struct.pack('>BBIBHB', 0x28, 0, 0, 0, 8, 0)
    sent = [session.submit(read, read=4096) for _ in range(4)]
    task = sent[0] if function == ABORT_TASK else None
    assert session.manage(function, 0, task) == 0
    server.resume()
    if function == ABORT_TASK:
        for command in sent[1:]:
            assert session.wait(command).data == pattern(1, 4096)
    session.clear_attentions(0)
    assert session.read(0, 8) == pattern(1, 4096)
