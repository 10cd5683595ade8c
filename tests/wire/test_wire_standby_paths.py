"""Two servers for one disk, with paths to both (partner-groups): the LUN is in standby on the server that
does not serve it, and the sessions there go on when that server takes it over."""

import json
import os
import struct

import pytest
from daemon import TARGET, eventually, watched
from initiator import CHECK_CONDITION, GOOD
from test_wire_takeover import (
    KEY,
    ONE,
    REGISTER_AND_IGNORE,
    RESERVE,
    SERVER_ID,
    SIZE,
    TWO,
    WRITE_EXCLUSIVE,
    keys_of,
    loop_devices,
    reserve_out,
    serial_of,
    shared,
    state_of,
    write,
)

pytestmark = pytest.mark.wire
__all__ = ('loop_devices', 'shared')  # fixtures

OPTIMIZED, STANDBY, UNAVAILABLE = 0, 2, 3
TEST_UNIT_READY = bytes(6)
NOT_READY_STANDBY = (2, 0x04, 0x0B)
STATES_CHANGED = (6, 0x2A, 0x06)
READ = struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0)


def configure(daemon, shared, group, partner, path=None, *more):
    daemon.text.server['server-id'] = SERVER_ID
    (portals,) = daemon.text.groups.values()
    daemon.text.groups = {group: portals}
    luns = {
        0: [
            'backing-store = %s' % (path or shared / 'disk.img'),
            'unit-state = %s' % (shared / 'state'),
        ]
    }
    luns[0] += more
    lines = ('initiator-address = ALL', 'partner-groups = %d' % partner)
    daemon.target(TARGET, luns=luns, lines=lines, group=str(group))


@pytest.fixture
def pair(daemon, shared, tmp_path_factory):
    """Two Daemons that serve the same file through portal groups 1 and 2, neither of which is started."""
    with watched(tmp_path_factory.mktemp('second')) as second:
        for number, each in enumerate((daemon, second), 1):
            each.expected_trouble += ['not served', 'is in use', 'takes over|take over']
            configure(each, shared, number, 3 - number)
        yield daemon, second


def calmly(session, cdb, length):
    """The data of a command, after the unit attentions."""
    result = session.run(cdb, read=length)
    while result.status == CHECK_CONDITION and result.key[0] == 6:
        result = session.run(cdb, read=length)
    return result.good().data


def blocks_of(session):
    """The number of blocks of READ CAPACITY(10)."""
    return struct.unpack('>I', calmly(session, b'\x25' + bytes(9), 8)[:4])[0] + 1


def waits_for_states(session, states):
    eventually(lambda: groups_of(session)[0] == states, 30, 'the states of the groups')


def groups_of(session):
    """{tag: state}, {relative port identifier: tag} of REPORT TARGET PORT GROUPS."""
    data = calmly(session, struct.pack('>BB4xI2x', 0xA3, 0x0A, 1024), 1024)[4:]
    states, ports, offset = {}, {}, 0
    while offset < len(data):
        state, _, tag, _, count = struct.unpack_from('>BBHxBxB', data, offset)[:5]
        states[tag] = state & 0x0F
        for index in range(count):
            ports[struct.unpack_from('>2xH', data, offset + 8 + 4 * index)[0]] = tag
        offset += 8 + 4 * count
    return states, ports


def in_standby(sessions, daemon, name):
    """A session in standby, without attentions."""
    session = sessions(daemon, name=name)
    assert session.run(TEST_UNIT_READY).key[0] == 6
    assert session.run(TEST_UNIT_READY).key == NOT_READY_STANDBY
    return session


def shows(second):
    """Wait until the second server shows the LUN in standby."""
    eventually(lambda: 'is shown to initiators in standby' in second.log, 30, 'the LUN in standby')


def test_both_paths_exist_and_the_session_in_standby_goes_on_after_a_takeover(
    pair, ready, sessions
):
    first, second = pair
    session = ready(first.start(), name=ONE)
    assert write(session, 8, b'a' * 512) == GOOD
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=KEY) == GOOD
    second.start()
    shows(second)
    other = in_standby(sessions, second, TWO)
    assert other.report_luns() == [0]
    assert serial_of(other) == serial_of(session)
    assert other.capacity() == session.capacity() == (SIZE // 512, 512)
    assert groups_of(session) == ({1: OPTIMIZED, 2: STANDBY}, {1: 1, 2: 2})
    assert groups_of(other) == groups_of(session)
    assert keys_of(other) == [KEY]
    # the state file is read for each PERSISTENT RESERVE IN
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=KEY + 1) == GOOD
    assert keys_of(other) == [KEY + 1]
    assert other.run(TEST_UNIT_READY).key == NOT_READY_STANDBY
    assert other.run(READ, read=512).key == NOT_READY_STANDBY
    cdb = struct.pack('>BBIBHB', 0x2A, 8, 8, 0, 1, 0)
    assert other.run(cdb, out=b'b' * 512).key == NOT_READY_STANDBY
    parameters = struct.pack('>QQ8x', 0, KEY)
    cdb = struct.pack('>BBB2xIB', 0x5F, REGISTER_AND_IGNORE, 0, len(parameters), 0)
    assert other.run(cdb, out=parameters).key == NOT_READY_STANDBY
    assert reserve_out(session, RESERVE, WRITE_EXCLUSIVE, KEY + 1) == GOOD
    first.kill()
    assert 'LUN 0 is served' in second.control('takeover', TARGET)
    assert other.run(TEST_UNIT_READY).key == STATES_CHANGED
    assert other.run(TEST_UNIT_READY).status == GOOD
    assert other.read(8, 1) == b'a' * 512
    assert groups_of(other)[0] == {1: STANDBY, 2: OPTIMIZED}
    assert keys_of(other) == [KEY + 1]
    assert write(other, 8, b'b' * 512) == 0x18  # RESERVATION CONFLICT: ONE has the reservation


def test_a_planned_move_ends_no_session(pair, ready, sessions):
    first, second = pair
    session = ready(first.start(), name=ONE)
    second.start()
    shows(second)
    other = in_standby(sessions, second, ONE)
    for turn, group in ((0, 1), (1, 2)):
        assert write(session, turn, b'%d' % turn * 512) == GOOD
        assert 'is in standby' in first.control('standby', TARGET)
        assert session.run(TEST_UNIT_READY).key == STATES_CHANGED
        waits_for_states(session, {group: STANDBY, 3 - group: UNAVAILABLE})
        assert session.run(TEST_UNIT_READY).key == NOT_READY_STANDBY
        second.control('takeover', TARGET)
        waits_for_states(other, {group: STANDBY, 3 - group: OPTIMIZED})
        assert other.read(turn, 1) == b'%d' % turn * 512
        waits_for_states(session, {group: STANDBY, 3 - group: OPTIMIZED})
        first, second, session, other = second, first, other, session


def test_a_server_that_was_replaced_goes_into_standby_and_keeps_its_sessions(
    pair, shared, ready, sessions, loop_devices
):
    """Two loop devices on one file are one disk in two hosts."""
    first, second = pair
    for number, each in enumerate(pair, 1):
        path = loop_devices(shared / 'disk.img')
        configure(each, shared, number, 3 - number, path, 'allow-in-use = yes')
    session = ready(first.start(), name=ONE)
    assert write(session, 8, b'a' * 512) == GOOD
    second.start()
    second.control('takeover', TARGET)
    eventually(
        lambda: session.run(TEST_UNIT_READY).key == NOT_READY_STANDBY,
        30,
        'standby of the first server',
    )
    assert 'has taken it over' in state_of(first)
    other = ready(second, name=TWO)
    assert other.read(8, 1) == b'a' * 512
    assert write(other, 8, b'b' * 512) == GOOD
    cdb = struct.pack('>BBIBHB', 0x2A, 8, 8, 0, 1, 0)
    assert session.run(cdb, out=b'c' * 512).key == NOT_READY_STANDBY
    assert other.read(8, 1) == b'b' * 512
    saved = [name for name in os.listdir(str(shared / 'state')) if name.endswith('.json')]
    assert json.loads((shared / 'state' / saved[0]).read_text())['epoch'] == 2


def test_paths_in_standby_pass_over_an_upgrade(pair, ready, sessions):
    """Of both servers: the sessions of each go on, see what the other one changes, and are served after a
    takeover by the new program."""
    first, second = pair
    session = ready(first.start(), name=ONE)
    assert write(session, 8, b'a' * 512) == GOOD
    second.start()
    shows(second)
    other = in_standby(sessions, second, TWO)
    for each in pair:
        assert '1 session continues' in each.control('upgrade')
    assert other.run(TEST_UNIT_READY).key == NOT_READY_STANDBY
    assert groups_of(other) == groups_of(session) == ({1: OPTIMIZED, 2: STANDBY}, {1: 1, 2: 2})
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=KEY) == GOOD
    assert keys_of(other) == [KEY]  # asked of the new program
    new = in_standby(sessions, second, TWO + '-new')
    in_standby(sessions, second, TWO + '-gone').logout()
    first.kill()
    assert 'LUN 0 is served' in second.control('takeover', TARGET)
    for each in (other, new):
        waits_for_states(each, {1: STANDBY, 2: OPTIMIZED})
        assert each.read(8, 1) == b'a' * 512
    assert write(other, 8, b'b' * 512) == GOOD
    assert new.read(8, 1) == b'b' * 512


def test_sessions_that_were_moved_pass_over_an_upgrade_and_move_back(pair, ready, sessions):
    first, second = pair
    session = ready(first.start(), name=ONE)
    assert write(session, 8, b'a' * 512) == GOOD
    second.start()
    shows(second)
    first.control('standby', TARGET)
    first.control('upgrade')
    assert session.run(TEST_UNIT_READY).key == STATES_CHANGED
    assert session.run(TEST_UNIT_READY).key == NOT_READY_STANDBY
    second.control('takeover', TARGET)
    waits_for_states(session, {1: STANDBY, 2: OPTIMIZED})  # the new program looks for it
    second.control('standby', TARGET)
    first.control('takeover', TARGET)
    waits_for_states(session, {1: OPTIMIZED, 2: STANDBY})
    assert session.read(8, 1) == b'a' * 512
    assert write(session, 8, b'b' * 512) == GOOD


def test_a_size_that_changes_is_seen_in_standby(pair, ready, sessions):
    first, second = pair
    ready(first.start(), name=ONE)
    second.start()
    shows(second)
    other = in_standby(sessions, second, TWO)
    first.control('lun', 'resize', TARGET + '/0', '16M')
    eventually(lambda: blocks_of(other) == (16 << 20) // 512, 30, 'the new size')


@pytest.mark.parametrize(
    'lines, text',
    [
        (['partner-groups = 1'], 'portal group 1 in portal-group and in partner-groups'),
        (['partner-groups = 2', 'alua = explicit'], 'initiators cannot move a target'),
    ],
)
def test_partner_groups_that_cannot_work_are_refused(daemon, shared, lines, text):
    configure(daemon, shared, 1, 2)
    lun = daemon.text.targets[TARGET][1]
    daemon.target(TARGET, luns=lun, lines=['initiator-address = ALL'] + lines, group='1')
    code, output = daemon.check()
    assert code and text in output
    del lun[0][1]
    code, output = daemon.check()
    assert code and 'lun 0 has no unit-state' in output
