"""Two servers for one disk, which its persistent reservations keep for one of them (setting fence). The disk
is fake_shared_disk.py."""

import re
import signal
import socket

import fake_shared_disk
import pytest
from daemon import TARGET, eventually, watched
from initiator import GOOD, LoginFailed
from pdus import Closed
from takeovers import Takeovers

pytestmark = pytest.mark.wire

ONE = 'iqn.2026-11.test:one'
SERVER_ID = '6c1a9a3e-3a36-4b0f-8a44-0c8f5c0a7d11'
BLOCK = 4096
SIZE = 8 << 20
STRANGER = 0x1122334455667788
#: Data of a write, a block each.
OLD, LATE, NEW = (letter * BLOCK for letter in (b'o', b'l', b'n'))


@pytest.fixture
def disk(tmp_path):
    return fake_shared_disk.Disk(str(tmp_path / 'disk.img'), SIZE)


@pytest.fixture
def pair(daemon, disk, tmp_path, tmp_path_factory):
    """configure(*lines of the LUN) -> two Daemons, neither of which is started."""
    (tmp_path / 'state').mkdir()
    with watched(tmp_path_factory.mktemp('second')) as second:

        def configure(*lines):
            for each, host in ((daemon, 'first'), (second, 'second')):
                _configure(each, host, disk.path, tmp_path / 'state', lines)
            return daemon, second

        yield configure


def _configure(daemon, host, path, state, lines):
    daemon.text.server.update({'server-id': SERVER_ID, 'stop-timeout': '1'})
    own = ['backing-store = %s' % path, 'unit-state = %s' % state, 'block-size = %d' % BLOCK]
    daemon.target(
        TARGET, ['initiator-address = ALL', 'serving = when-active'], {0: own + list(lines)}
    )
    daemon.expected_trouble += ['not served', 'is not served any more', 'was removed', 'orders']
    daemon.command = lambda *words: (
        [daemon.python, fake_shared_disk.__file__, path, host] + list(words)
    )


def row(daemon):
    return daemon.units()[0]


def key_of(daemon):
    """The key that the server says it has, 0 for none."""
    found = re.search('0x([0-9a-f]{16})', row(daemon)['fence'])
    return int(found.group(1), 16) if found else 0


def write(session, lba, data):
    cdb = (
        b'\x2a\0' + lba.to_bytes(4, 'big') + b'\0' + (len(data) // BLOCK).to_bytes(2, 'big') + b'\0'
    )
    return session.submit(cdb, out=data)


def test_what_a_stopped_server_writes_after_the_takeover_is_refused_by_the_disk(pair, disk, ready):
    first, second = pair('fence = reservations')
    first.start()
    assert disk.keys() == {}  # in standby it does not touch the disk
    assert 'has the reservation of its disk' in first.control('takeover', TARGET)
    own = key_of(first)
    assert disk.keys() == {'first': own} and disk.table()['holder'] == ['first', own, 5]
    session = ready(first, name=ONE)
    session.write(0, OLD, size=BLOCK)
    second.start()

    Takeovers.signal(first, signal.SIGSTOP)
    late = write(session, 0, LATE)
    text = second.control('takeover', TARGET)
    assert 'LUN 0 is served' in text and 'has the reservation of its disk' in text
    other = key_of(second)
    assert other not in (0, own)
    assert disk.keys() == {'second': other} and disk.table()['holder'] == ['second', other, 5]
    assert ['second', 0x5F, fake_shared_disk.PREEMPT_AND_ABORT] in disk.table()['commands']
    new = ready(second, name=ONE)
    assert bytes(new.read(0, 1, size=BLOCK)) == OLD
    new.write(0, NEW, size=BLOCK)
    Takeovers.signal(first, signal.SIGCONT)
    try:
        assert session.wait(late).status != GOOD
    except (Closed, OSError, socket.timeout):
        pass  # its session has ended
    eventually(lambda: 'standby' in row(first)['state'], 30, 'standby')
    assert row(first)['fence'] == ''
    assert bytes(new.read(0, 1, size=BLOCK)) == NEW
    assert disk.keys() == {'second': other}
    assert not row(second)['errors']
    with pytest.raises(LoginFailed):
        ready(first, name=ONE)
    # and back
    assert 'LUN 0 is served' in first.control('takeover', TARGET)
    assert disk.keys() == {'first': own}
    assert bytes(ready(first, name=ONE).read(0, 1, size=BLOCK)) == NEW
    eventually(lambda: 'standby' in row(second)['state'], 30, 'standby')


def test_a_refused_write_ends_the_export_before_the_state_is_taken(pair, disk, ready):
    first, _ = pair()
    first.start()
    first.control('takeover', TARGET)
    session = ready(first, name=ONE)
    # as a second server does before it takes the state
    disk.change(keys={'second': 0x7464 << 48}, holder=['second', 0x7464 << 48, 5])
    try:
        result = session.wait(write(session, 0, LATE))
        assert (result.status, result.key) == (2, (2, 0x04, 0x0A))
    except (Closed, OSError):
        pass
    eventually(lambda: 'standby' in row(first)['state'], 30, 'standby')
    first.logged('the server with the reservation key 0x7464000000000000 has taken it over')
    assert disk.keys() == {'second': 0x7464 << 48}


def test_standby_gives_the_disk_back_and_a_stop_does_not(pair, disk, ready):
    first, second = pair()
    first.start()
    first.control('takeover', TARGET)
    own = key_of(first)
    assert first.stop() == 0
    assert disk.keys() == {'first': own}
    first.start()
    assert 'serving = when-active' in row(first)['state']
    first.control('takeover', TARGET)
    assert key_of(first) == own
    ready(first, name=ONE).write(1, OLD, size=BLOCK)
    first.control('standby', TARGET)
    assert disk.keys() == {} and disk.table()['holder'] is None
    second.start()
    second.control('takeover', TARGET)
    assert bytes(ready(second, name=ONE).read(1, 1, size=BLOCK)) == OLD


def test_a_disk_that_has_forgotten_the_reservation_gets_it_again(pair, disk, ready):
    first, second = pair()
    first.start()
    first.control('takeover', TARGET)
    own = key_of(first)
    disk.lose_power()
    disk.change(attention={'first': [0x29, 0x00]})
    first.expected_trouble.append('is reserved again')
    first.logged('is reserved again', 40)
    assert disk.keys() == {'first': own} and disk.table()['holder'] == ['first', own, 5]
    ready(first, name=ONE).write(0, OLD, size=BLOCK)


def test_a_takeover_does_not_remove_the_keys_of_other_programs(pair, disk, ready):
    first, _ = pair()
    disk.change(keys={'cluster': STRANGER})
    first.start()
    code, text = first.targetdctl('takeover', TARGET)
    assert code and 'registered by another program' in text and '0x1122334455667788' in text
    assert disk.keys() == {'cluster': STRANGER}
    disk.change(keys={})
    assert 'LUN 0 is served' in first.control('takeover', TARGET)


def test_a_disk_without_reservations_is_refused_only_if_they_are_wanted(pair, disk, ready):
    first, _ = pair('fence = reservations')
    disk.change(refused=[[0x5E, 2]])
    first.start()
    code, text = first.targetdctl('takeover', TARGET)
    assert code and 'no persistent reservations' in text and 'write fence = auto' in text
    first.stop()
    first, _ = pair('fence = auto')
    first.start()
    text = first.control('takeover', TARGET)
    assert 'nothing keeps the other server from writing to LUN 0' in text
    assert row(first)['fence'] == '' and disk.keys() == {}


def test_without_a_fence_the_disk_is_not_asked(pair, disk):
    first, _ = pair('fence = none')
    first.start()
    first.control('takeover', TARGET)
    assert disk.table()['commands'] == []
