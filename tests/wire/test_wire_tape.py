"""A tape drive: blocks and filemarks over the wire, one session at a time, other tapes, crashes."""

import os
import struct

import pytest
from daemon import TARGET, eventually
from initiator import pattern

from targetd import store

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
OTHER_ISID = bytes.fromhex('80112233000f')
NO_MEDIUM, CHANGED = (2, 0x3A, 0), (6, 0x28, 0)
REWIND, UNLOAD, LOAD = (bytes.fromhex(d) for d in ('010000000000', '1b0000000000', '1b0000000100'))
FILEMARK, ILI = 0x80, 0x20


def write_cdb(length):
    return b'\x0a\0' + length.to_bytes(3, 'big') + b'\0'


def read_cdb(length):
    return b'\x08\0' + length.to_bytes(3, 'big') + b'\0'


def marks_cdb(count):
    return b'\x10\0' + count.to_bytes(3, 'big') + b'\0'


def space_cdb(code, count):
    return bytes((0x11, code)) + count.to_bytes(3, 'big', signed=True) + b'\0'


def location(session):
    """The first logical object location of READ POSITION."""
    data = session.run(b'\x34'.ljust(10, b'\0'), read=20).good().data
    return struct.unpack_from('>I', data, 4)[0]


def put(session, *blocks):
    """Write blocks; None: a filemark, and everything is durable."""
    for data in blocks:
        if data is None:
            session.run(marks_cdb(1)).good()
        else:
            session.run(write_cdb(len(data)), out=data).good()


def get(session, length):
    return bytes(session.run(read_cdb(length), read=length).good().data)


def serve(daemon, *more, size=64 << 20, name='tape.img'):
    """A target with a tape, which targetd creates. Returns the path of its file."""
    path = os.path.join(daemon.directory, name)
    lines = ['type = tape', 'backing-store = %s' % path, 'size = %d' % size] + list(more)
    daemon.target(TARGET, ['initiator-address = ALL'], {0: lines})
    daemon.start()
    return path


def test_blocks_and_filemarks_with_their_sense_data_and_residuals(daemon, ready):
    serve(daemon)
    session = ready(daemon)
    data = session.inquiry()
    assert data[0] == 1 and data[1] == 0x80 and bytes(data[16:32]) == b'VIRTUAL-TAPE    '
    put(session, b'a' * 10240, b'b' * 100, None, pattern(1, 300000), None, None)
    session.run(REWIND).good()
    assert get(session, 10240) == b'a' * 10240
    result = session.run(read_cdb(10240), read=10240)
    assert result.sense[2] == ILI and struct.unpack_from('>i', result.sense, 3)[0] == 10140
    assert bytes(result.data) == b'b' * 100 and result.underflow == 10140
    result = session.run(read_cdb(512), read=512)
    assert (
        result.sense[2] == FILEMARK and result.sense[12:14] == b'\0\1' and result.underflow == 512
    )
    assert get(session, 300000) == pattern(1, 300000)
    session.run(space_cdb(3, 0)).good()
    assert location(session) == 6
    assert session.run(read_cdb(512), read=512).key == (8, 0, 5)
    session.run(space_cdb(1, -3)).good()
    assert location(session) == 2
    session.run(bytes.fromhex('92080000 0000000000000001 00000000'.replace(' ', ''))).good()
    assert location(session) == 3
    assert os.stat(os.path.join(daemon.directory, 'tape.img')).st_blocks * 512 < 2 << 20
    code, text = daemon.targetdctl('trim', TARGET + '/0')
    assert code != 0 and 'tape' in text


def test_commands_that_wait_in_a_queue_are_executed_in_their_order(daemon, ready):
    """Some writes are immediate data, others need R2Ts."""
    serve(daemon)
    session = ready(daemon, keys={'InitialR2T': 'Yes', 'FirstBurstLength': '4096'})
    blocks = [pattern(n, length) for n, length in enumerate((100, 200000, 512, 70000, 4096, 1) * 4)]
    for _ in range(2):
        sent = [session.submit(REWIND)]
        sent += [session.submit(write_cdb(len(each)), out=each, attribute=n % 4 or 1)
                 for n, each in enumerate(blocks)]  # fmt: skip
        sent += [session.submit(marks_cdb(1)), session.submit(REWIND, attribute=0)]
        reads = [session.submit(read_cdb(len(each)), read=len(each)) for each in blocks]
        for command in sent:
            session.wait(command).good()
        found = [bytes(session.wait(command).good().data) for command in reads]
        assert found == blocks


def test_one_session_at_a_time_has_the_tape(daemon, sessions, ready):
    serve(daemon)
    first = ready(daemon, name=ONE)
    put(first, b'x', None)
    for name in (ONE, TWO):
        second = sessions(daemon, name=name, isid=OTHER_ISID)
        assert second.run(bytes(6)).key == (5, 0x25, 0)
        assert second.run(REWIND).key == (5, 0x25, 0)
        second.logout()
    assert location(first) == 2
    other = sessions(daemon, name=TWO)
    why = daemon.control('why', TWO)
    assert ONE in why and 'one session at a time' in why
    first.logout()
    other.logout()
    eventually(
        lambda: 'iqn' not in daemon.control('show', 'sessions'), 10, 'the end of the sessions'
    )
    other = ready(daemon, name=TWO)
    assert location(other) == 2  # a drive does not move its tape because of a logout
    other.run(REWIND).good()
    assert get(other, 1) == b'x'


def test_a_killed_worker_costs_nothing_and_the_position_is_kept(daemon, ready):
    serve(daemon)
    session = ready(daemon)
    put(session, b'a', None, b'b' * 50000, b'c')
    session.run(space_cdb(0, -1)).good()
    daemon.worker_of(session).kill()
    session.wait_closed()
    session = ready(daemon)
    assert location(session) == 3
    assert get(session, 1) == b'c'
    put(session, b'd')
    session.run(REWIND).good()
    session.run(space_cdb(1, 1)).good()
    assert [get(session, 50000), get(session, 1), get(session, 1)] == [b'b' * 50000, b'c', b'd']


def test_a_restart_begins_at_the_beginning_and_an_upgrade_does_not(daemon, ready):
    serve(daemon)
    session = ready(daemon)
    put(session, b'a', None, b'b', None)
    session.run(space_cdb(1, -1)).good()
    daemon.control('upgrade')
    assert location(session) == 3
    session.logout()
    session = ready(daemon)  # a worker of the new program
    assert location(session) == 3
    put(session, b'new', None)
    daemon.stop()
    daemon.start()
    session = ready(daemon)
    assert location(session) == 0
    session.run(space_cdb(1, 1)).good()
    assert get(session, 1) == b'b' and get(session, 3) == b'new'


def test_another_tape_is_put_into_the_drive(daemon, ready):
    path = serve(daemon)
    other = daemon.image('other.img', 80 << 20)  # longer than size, which is that of new tapes
    session = ready(daemon)
    put(session, b'one', None)
    assert 'is in the drive' in daemon.control('medium', TARGET + '/0', other)
    assert CHANGED in session.clear_attentions()
    assert location(session) == 0
    assert session.run(read_cdb(1), read=1).key == (8, 0, 5)  # blank
    put(session, b'two', None)
    session.run(UNLOAD).good()
    assert session.run(bytes(6)).key == NO_MEDIUM
    assert session.run(REWIND).key == NO_MEDIUM
    session.run(LOAD).good()
    session.clear_attentions()
    assert get(session, 3) == b'two'
    daemon.control('medium', TARGET + '/0', path)
    session.clear_attentions()
    assert location(session) == 0 and get(session, 3) == b'one'
    assert 'has no medium' in daemon.control('medium', TARGET + '/0', 'none')
    eventually(lambda: session.run(bytes(6)).key == NO_MEDIUM, 10, 'the end of the medium')
    daemon.control('medium', TARGET + '/0', path)
    session.clear_attentions()
    assert location(session) == 0
    session.run(bytes.fromhex('1e0000000100')).good()  # prevent
    code, text = daemon.targetdctl('medium', TARGET + '/0', other, seconds=60)
    assert code == 1 and 'does not allow its removal' in text
    session.clear_attentions()  # of the request to remove it
    assert session.run(UNLOAD).key == (5, 0x53, 2)
    session.run(bytes.fromhex('1e0000000000')).good()
    code, text = daemon.targetdctl('medium', TARGET + '/0', daemon.config)
    assert code != 0 and 'tape' in text, text
    session.clear_attentions()
    assert get(session, 3) == b'one'


def test_the_block_length_and_other_modes_outlive_a_session(daemon, ready):
    serve(daemon)
    session = ready(daemon)
    data = bytes.fromhex('00001008 00000000 00002800'.replace(' ', ''))
    session.run(bytes.fromhex('15100000 0c00'.replace(' ', '')), out=data).good()
    put(session, b'a' * 10240, b'b' * 10240)
    session.logout()
    session = ready(daemon)
    session.run(REWIND).good()
    read = bytes.fromhex('080100000200')
    assert bytes(session.run(read, read=20480).good().data) == b'a' * 10240 + b'b' * 10240
    session.manage(5)  # LOGICAL UNIT RESET
    session.clear_attentions()
    assert location(session) == 2
    assert session.run(read, read=20480).key == (5, 0x24, 0)  # blocks of variable length again


def test_a_protected_tape_and_its_early_warning(daemon, ready):
    serve(daemon, 'early-warning = 1M', size=2 << 20)
    session = ready(daemon)
    for _ in range(2):
        put(session, bytes(500000))
    result = session.run(write_cdb(500000), out=bytes(500000))
    assert result.sense[2] == 0x40 and result.key == (0, 0, 2) and not result.underflow
    session.run(marks_cdb(1))
    session.logout()
    daemon.control('lun', 'readonly', TARGET + '/0')
    session = ready(daemon)
    assert session.run(write_cdb(1), out=b'x').key == (7, 0x27, 0)
    session.run(REWIND).good()
    assert get(session, 500000) == bytes(500000)


def test_a_tape_of_a_read_only_file(daemon, ready):
    path = daemon.image('tape.img', 4 << 20)
    with store.open_store({'kind': 'file', 'path': path, 'tape': True}) as opened:
        tape = opened.store()
        with tape.loaded((0, 0)):
            tape.write_blocks([b'one', b'second'])
        tape.close()
    serve(daemon, 'readonly = yes', size=4 << 20)
    session = ready(daemon)
    assert get(session, 3) == b'one'
    assert session.run(write_cdb(1), out=b'x').key == (7, 0x27, 0)
    session.run(UNLOAD).good()
    session.run(LOAD).good()
    session.clear_attentions()
    assert get(session, 3) == b'one'


def test_what_is_not_a_tape_is_not_served(daemon):
    path = daemon.image('disk.img', 4 << 20)
    with open(path, 'r+b') as file:
        file.seek(1024)
        file.write(b'a file system')
    lines = ['type = tape', 'backing-store = %s' % path]
    daemon.target(TARGET, ['initiator-address = ALL'], {0: lines})
    daemon.write_config()
    code, text = daemon.check()
    assert code != 0 and 'cannot be served as a tape' in text and path in text


@pytest.mark.parametrize(
    'line', ['thin = yes', 'direct-io = yes', 'early-warning = 64M', 'guard = first-write-snapshot']
)
def test_settings_that_a_tape_cannot_have(daemon, line):
    lines = ['type = tape', 'backing-store = %s' % daemon.image('a.img'), 'size = 64M', line]
    daemon.target(TARGET, ['initiator-address = ALL'], {0: lines})
    daemon.write_config()
    code, text = daemon.check()
    assert code != 0 and line.split()[0] in text, text
