"""A real SCSI device (fake_sg.py in its place) over the wire: its data, sense data and residuals, what
several sessions share, and its removal. tests/guest/passthrough has devices of the kernel."""

import errno
import os

import fake_sg
import pytest
from daemon import TARGET, eventually
from initiator import pattern

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
TEST_UNIT_READY = bytes(6)
CAPACITY = b'\x25' + bytes(9)
PREVENT, ALLOW = bytes.fromhex('1e0000000100'), bytes.fromhex('1e0000000000')
MEDIUM_ERROR = 'f0000300001234 0a 00000000 1100 00 8000fe'
ATTENTION = '70000600000000 0a 00000000 2800 00 000000'


@pytest.fixture
def node(daemon):
    """serve(*lines) -> fake_sg.Node of the running server's device."""
    path = os.path.join(daemon.directory, 'sg0')

    def serve(*lines, **settings):
        found = fake_sg.Node(path)
        own = ['type = passthrough', 'backing-store = %s' % path] + list(lines)
        daemon.target(TARGET, ['initiator-address = ALL', 'sharing = cluster'], {0: own})
        plain = daemon.command
        daemon.command = lambda *words: [plain()[0], fake_sg.__file__, path] + list(words)
        daemon.start()
        return found

    return serve


def read_cdb(lba, blocks):
    return b'\x28\0' + lba.to_bytes(4, 'big') + b'\0' + blocks.to_bytes(2, 'big') + b'\0'


def test_the_device_its_data_and_its_commands(daemon, node, ready):
    device = node()
    session = ready(daemon, TARGET)
    data = session.inquiry()
    assert bytes(data[8:36]) == b'ACME    REAL DISK       1.0 '
    assert bytes(session.inquiry(page=0x80))[4:] == b'R-1'
    assert fake_sg.NAA in bytes(session.inquiry(page=0x83))
    assert (
        bytes(session.run(CAPACITY, read=8).good().data) == (4095).to_bytes(4, 'big') + b'\0\0\2\0'
    )
    blocks = pattern(7, 128 * 512)
    session.write(100, blocks).good()
    assert device.data(100, 128) == blocks
    assert bytes(session.read(100, 128)) == blocks
    assert device.commands()[-1].startswith('88')
    assert daemon.units()[0]['path'] == device.path
    assert 'ACME REAL DISK' in daemon.control('identify', TARGET + '/0')


def test_sense_data_and_residuals_arrive_as_the_device_sent_them(daemon, node, ready):
    device = node()
    session = ready(daemon, TARGET)
    device.set(c28=[2, MEDIUM_ERROR, 1024])
    result = session.run(read_cdb(0x1230, 8), read=4096)
    assert bytes(result.sense) == bytes.fromhex(MEDIUM_ERROR)
    assert len(result.data) == 3072 and result.underflow == 1024
    device.set(c8a=[0, '', 512])
    result = session.write(0, bytes(1024))
    assert (result.status, result.underflow) == (0, 512)
    device.set()
    result = session.run(read_cdb(0, 2), read=512)
    assert result.overflow == 512 and len(result.data) == 512
    result = session.run(CAPACITY, read=100)
    assert result.underflow == 92
    for status in (0x08, 0x18, 0x28):
        device.set(c00=[status, '', 0])
        assert session.run(TEST_UNIT_READY).status == status


def test_the_filter(daemon, node, ready):
    device = node()
    session = ready(daemon, TARGET)
    assert session.run(bytes.fromhex('c1000000000000000000')).key == (5, 0x20, 0)
    assert session.run(bytes.fromhex('3b020000000000000400'), out=bytes(4)).key == (5, 0x20, 0)
    assert not [each for each in device.commands() if each.startswith(('c1', '3b'))]


def test_without_the_filter(daemon, node, ready):
    device = node('command-filter = off')
    session = ready(daemon, TARGET)
    session.run(bytes.fromhex('c1000000000000000000')).good()
    assert device.commands()[-1] == 'c1000000000000000000'


def test_what_the_device_reports_once_every_session_learns(daemon, node, ready):
    device = node()
    first, second = ready(daemon, TARGET, name=ONE), ready(daemon, TARGET, name=TWO)
    device.set(c00=[2, ATTENTION, 0])
    assert first.run(TEST_UNIT_READY).key == (6, 0x28, 0)
    device.set()
    eventually(lambda: second.run(TEST_UNIT_READY).key == (6, 0x28, 0), 10, 'a unit attention')
    second.run(TEST_UNIT_READY).good()
    first.run(TEST_UNIT_READY).good()
    second.run(bytes.fromhex('151000000400'), out=bytes(4)).good()
    eventually(lambda: first.run(TEST_UNIT_READY).key == (6, 0x2A, 0x01), 10, 'a unit attention')


def test_reservations_do_not_reach_the_device(daemon, node, ready):
    device = node()
    first, second = ready(daemon, TARGET, name=ONE), ready(daemon, TARGET, name=TWO)
    first.run(bytes.fromhex('160000000000')).good()
    assert second.run(read_cdb(0, 1), read=512).status == 0x18
    assert not [each for each in device.commands() if each.startswith(('16', '28'))]


def test_the_removal_is_allowed_when_nobody_prevents_it_any_more(daemon, node, ready):
    device = node()
    device.set(c1e0000000100=[0, '', 0])

    def locks():
        return [each[8:10] for each in device.commands() if each.startswith('1e')]

    before = locks()
    first, second = ready(daemon, TARGET, name=ONE), ready(daemon, TARGET, name=TWO)
    first.run(PREVENT).good()
    second.run(PREVENT).good()
    first.run(ALLOW).good()
    assert locks() == before + ['01', '01']
    second.logout()  # it is answered when the device knows
    assert locks() == before + ['01', '01', '00']


def test_a_reset_reaches_the_device_if_that_is_configured(daemon, node, ready):
    device = node('device-reset = on')
    session = ready(daemon, TARGET)
    assert session.manage(5) == 0  # LOGICAL UNIT RESET
    assert device.commands()[-1] == 'reset'


def test_a_reset_stays_in_the_target(daemon, node, ready):
    device = node()
    session = ready(daemon, TARGET)
    assert session.manage(5) == 0
    assert session.run(TEST_UNIT_READY).key == (6, 0x29, 0x03)
    assert 'reset' not in device.commands()


def test_a_device_that_is_removed_and_returns(daemon, node, ready):
    device = node()
    session = ready(daemon, TARGET)
    device.set(c=errno.ENODEV)
    open(device.path + '.gone', 'w').close()
    daemon.expected_trouble.append('not attached any more')
    assert session.run(TEST_UNIT_READY).key == (4, 0x3E, 0x01)
    daemon.logged('not attached any more')
    assert bytes(session.inquiry())[8:12] == b'ACME'
    assert 'not attached' in str(daemon.units()[0])
    os.rename(device.path, device.path + '.old')
    fake_sg.Node(device.path)
    os.unlink(device.path + '.gone')
    daemon.logged('the device is back')
    eventually(lambda: session.run(TEST_UNIT_READY).key == (6, 0x28, 0), 10, 'the device')
    session.write(0, pattern(3, 512)).good()
    assert 'not attached' not in str(daemon.units()[0])


def test_the_check_says_what_would_be_served(daemon, node):
    node()
    code, text = daemon.check()
    assert code == 0 and 'ACME REAL DISK' in text and 'a real SCSI device' in text
