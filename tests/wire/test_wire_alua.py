"""Tests of ALUA: two portal groups of one target, commands of the administrator, and two initiators
with one path each."""

import os
import struct
import subprocess

import iso
import pytest
from daemon import ROOT, TARGET, eventually, free_port
from initiator import CHECK_CONDITION, GOOD, pattern

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE, OFFLINE, TRANSITIONING = 0, 1, 2, 3, 0xE, 0xF
STATES_CHANGED = (6, 0x2A, 0x06)
TEST_UNIT_READY = bytes(6)
READ = struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0)


class TwoPaths(object):
    """A daemon whose TARGET has portal groups 1 and 2; `path(1)` opens a new session through the
    first."""

    def __init__(self, daemon, ready):
        self.daemon, self.ready, self.second = daemon, ready, free_port()
        daemon.text.portal('127.0.0.1:%d' % self.second, 2)

    def start(self, *lines):
        self.daemon.target(lines=('initiator-address = ALL',) + lines, group='1, 2')
        self.daemon.start()
        return self

    def path(self, group, name=ONE):
        return self.ready(
            self.daemon,
            address=('127.0.0.1', {1: self.daemon.port, 2: self.second}[group]),
            name=name,
        )

    def command(self, *words):
        """Runs targetdctl; returns (exit code, output)."""
        done = subprocess.run(
            [
                self.daemon.python,
                '-m',
                'targetd.admin.cli',
                '-s',
                os.path.join(self.daemon.directory, 'targetd.sock'),
            ]
            + list(words),
            env=dict(os.environ, PYTHONPATH=ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
        )
        return done.returncode, done.stdout.decode()

    def set(self, group, state):
        assert self.command('alua', TARGET, str(group), state)[0] == 0


@pytest.fixture
def paths(daemon, ready):
    return TwoPaths(daemon, ready)


def groups(session, extended=False):
    """{tag: (state, status, [relative port …])}."""
    cdb = struct.pack('>BB4xIxx', 0xA3, 0x2A if extended else 0x0A, 4356)
    data = session.run(cdb, read=4356).good().data
    assert struct.unpack_from('>I', data)[0] == len(data) - 4
    data, found = data[8 if extended else 4 :], {}
    while data:
        state, supported, tag, status, count = struct.unpack_from('>BBHxBxB', data)
        assert supported == 0xCF, 'no PREF, no LBD'
        found[tag] = (
            state,
            status,
            [struct.unpack_from('>2xH', data, 8 + 4 * n)[0] for n in range(count)],
        )
        data = data[8 + 4 * count :]
    return found


def states(session):
    return {tag: state for tag, (state, _, _) in groups(session).items()}


def set_groups(session, *pairs):
    data = bytes(4) + b''.join(struct.pack('>BxH', state, tag) for state, tag in pairs)
    return session.run(struct.pack('>BB4xIxx', 0xA4, 0x0A, len(data)), out=data)


def own_group(session):
    """(relative port, target port group, logical unit group) of the designators of VPD page 83h."""
    data, found, offset = (
        session.run(bytes.fromhex('12 01 83 00ff 00'), read=255).good().data,
        {},
        4,
    )
    while offset + 4 <= len(data):
        found[data[offset + 1] & 0x3F] = data[offset + 4 : offset + 4 + data[offset + 3]]
        offset += 4 + data[offset + 3]
    return tuple(struct.unpack('>2xH', found[kind])[0] for kind in (0x14, 0x15, 0x06))


def tpgs(session):
    return session.run(bytes.fromhex('12 00 00 0060 00'), read=96).good().data[5] >> 4 & 3


def test_a_target_with_one_portal_group_reports_no_target_port_groups(served, ready):
    session = ready(served)
    assert tpgs(session) == 0
    assert session.run(bytes.fromhex('a3 0a 00000000 00001104 00 00'), read=4356).key == (
        5,
        0x24,
        0,
    )


@pytest.mark.clause('SPC-4 6.37')
def test_two_portal_groups_are_implicit_and_optimized(paths):
    paths.start()
    one, two = paths.path(1), paths.path(2, TWO)
    assert tpgs(one) == tpgs(two) == 1
    assert (
        groups(one)
        == groups(two)
        == groups(one, extended=True)
        == {1: (OPTIMIZED, 0, [1]), 2: (OPTIMIZED, 0, [2])}
    )
    assert own_group(one) == (1, 1, 1) and own_group(two) == (2, 2, 1)
    assert set_groups(one, (STANDBY, 2)).key == (5, 0x24, 0)


def next_key(session):
    """The sense of the next TEST UNIT READY that fails."""
    return eventually(lambda: session.run(TEST_UNIT_READY).key, 10)


@pytest.mark.clause('SPC-4 6.37')
def test_the_configured_state_is_reported_and_changed_by_a_reload(paths):
    paths.start('alua-state = 2 nonoptimized')
    one, two = paths.path(1), paths.path(2, TWO)
    assert states(one) == {1: OPTIMIZED, 2: NON_OPTIMIZED}
    assert two.run(READ, read=512).status == GOOD
    paths.daemon.text.targets[TARGET][0][-1] = 'alua-state = 2 standby'
    paths.daemon.reload('change target')
    for session in (one, two):  # the state is saved before the workers get it
        assert next_key(session) == STATES_CHANGED
    assert states(one) == {1: OPTIMIZED, 2: STANDBY}
    assert two.run(READ, read=512).key == (2, 0x04, 0x0B)
    assert one.run(READ, read=512).status == GOOD


@pytest.mark.parametrize(
    'word, state, qualifier',
    [
        ('standby', STANDBY, 0x0B),
        ('unavailable', UNAVAILABLE, 0x0C),
        ('offline', OFFLINE, 0x12),
        ('transitioning', TRANSITIONING, 0x0A),
    ],
)
def test_the_administrator_closes_a_path_and_opens_it_again(paths, word, state, qualifier):
    paths.start()
    one, two = paths.path(1), paths.path(2, TWO)
    paths.set(2, word)
    for session in (one, two):
        assert session.run(TEST_UNIT_READY).key == STATES_CHANGED
    assert states(two) == {1: OPTIMIZED, 2: state}
    refused = (2, 0x04, qualifier)
    assert two.run(READ, read=512).key == refused
    assert two.run(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 8, 0), out=pattern(1, 4096)).key == refused
    assert two.run(TEST_UNIT_READY).key == refused
    assert two.run(bytes.fromhex('12 00 00 0060 00'), read=96).status == GOOD
    assert (two.run(bytes.fromhex('1a 00 3f 00 ff 00'), read=255).status == GOOD) == (
        word == 'standby'
    )
    assert one.run(READ, read=512).status == GOOD
    assert one.read(0, 1) == bytes(512), 'the refused write left no trace'
    paths.set(2, 'optimized')
    assert two.run(TEST_UNIT_READY).key == STATES_CHANGED
    assert two.run(READ, read=512).status == GOOD


def test_a_new_session_sees_the_state_set_by_the_administrator(paths):
    paths.start()
    paths.set(2, 'standby')
    assert states(paths.path(1)) == {1: OPTIMIZED, 2: STANDBY}
    rows = paths.command('show', 'alua')[1].splitlines()
    assert any('standby' in row and 'administrator' in row for row in rows)


@pytest.mark.clause('SPC-4 6.45')
def test_invalid_states_are_refused(paths):
    paths.start()
    for words in (
        ['iqn.2026-11.none:x', '1', 'standby'],
        [TARGET, '3', 'standby'],
        [TARGET, '1', 'asleep'],
    ):
        code, text = paths.command('alua', *words)
        assert code == 1 and text.strip()


@pytest.mark.clause('SPC-4 6.45')
def test_explicit_alua_changes_both_paths(paths):
    """An initiator changes the active path; the other initiator gets a unit attention, it gets
    none."""
    paths.start('alua = both')
    one, two = paths.path(1), paths.path(2, TWO)
    assert tpgs(one) == 3
    assert set_groups(two, (OPTIMIZED, 2), (STANDBY, 1)).status == GOOD
    assert two.run(TEST_UNIT_READY).status == GOOD
    assert one.run(TEST_UNIT_READY).key == STATES_CHANGED
    assert one.run(READ, read=512).key == (2, 0x04, 0x0B)
    assert groups(two) == {1: (STANDBY, 1, [1]), 2: (OPTIMIZED, 0, [2])}
    assert set_groups(one, (OPTIMIZED, 1)).status == GOOD, (
        'a path in standby takes the command that ends it'
    )
    assert one.run(READ, read=512).status == GOOD
    assert set_groups(one, (OFFLINE, 1)).key == (5, 0x26, 0)
    assert set_groups(one, (STANDBY, 9)).key == (5, 0x26, 0)
    assert set_groups(one).status == GOOD
    refused = one.run(struct.pack('>BB4xIxx', 0xA4, 0x0A, 3), out=bytes(3))
    assert refused.status == CHECK_CONDITION and refused.key == (5, 0x1A, 0)


def test_alua_states_are_kept_after_a_kill_of_the_server(paths):
    paths.start('alua = explicit')
    one = paths.path(1)
    assert tpgs(one) == 2
    assert set_groups(one, (NON_OPTIMIZED, 2)).status == GOOD
    paths.daemon.workers()
    paths.daemon.kill()
    paths.daemon.start()
    assert states(paths.path(1)) == {1: OPTIMIZED, 2: NON_OPTIMIZED}


def test_referrals_and_pages_agree_with_the_groups(paths):
    paths.start('alua-state = 2 standby')
    session = paths.path(1)
    listed = session.run(bytes.fromhex('12 01 00 00ff 00'), read=255).good().data[4:]
    assert 0xB3 in listed
    assert session.run(bytes.fromhex('12 01 b3 00ff 00'), read=255).good().data == bytes.fromhex(
        '00b3000c'
    ) + bytes(12)
    data = session.run(struct.pack('>BBQIBB', 0x9E, 0x13, 0, 255, 0, 0), read=255).good().data
    assert data == struct.pack(
        '>2xH3xBQQBxHBxH', 28, 2, 0, (64 << 20) // 512 - 1, OPTIMIZED, 1, STANDBY, 2
    )


# -- drives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind, device_type', [('cd', 5), ('tape', 1)])
def test_a_drive_reports_the_groups_that_its_inquiry_data_promise(
    paths, tmp_path, kind, device_type
):
    if kind == 'cd':
        path = tmp_path / 'disc.iso'
        path.write_bytes(iso.image('LABEL', {'A.TXT': b'a' * 5000}))
        luns = {0: ['type = cd', 'backing-store = %s' % path]}
    else:
        luns = {0: ['type = tape', 'backing-store = %s' % (tmp_path / 'tape.img'), 'size = 64M']}
    daemon = paths.daemon
    daemon.target(TARGET, ['initiator-address = ALL'], luns, group='1, 2')
    daemon.start()
    first = paths.path(1)
    assert first.inquiry()[0] & 0x1F == device_type and tpgs(first) == 1
    assert states(first) == {1: OPTIMIZED, 2: OPTIMIZED}
    second = paths.path(2) if kind == 'cd' else None  # a tape is for one session
    paths.set(2, 'standby')
    assert STATES_CHANGED in first.clear_attentions()
    assert states(first) == {1: OPTIMIZED, 2: STANDBY}
    if second:
        assert second.run(TEST_UNIT_READY).key == STATES_CHANGED
        assert second.run(READ, read=2048).key == (2, 0x04, 0x0B)
        assert states(second) == {1: OPTIMIZED, 2: STANDBY}
        assert first.run(READ, read=2048).status == GOOD
