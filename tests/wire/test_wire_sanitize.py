"""FORMAT UNIT and SANITIZE on the real daemon: progress, kill -9 of the process that does it, kill
-9 of the master; and what a unit remembers. The delay filter makes the medium slow enough to be
caught in the act."""

import os
import re
import signal
import struct

import pytest
from daemon import TARGET, eventually
from initiator import CHECK_CONDITION, GOOD, LOGICAL_UNIT_RESET

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
SIZE = 24 << 20
SANITIZING, SANITIZE_FAILED = (2, 0x04, 0x1B), (3, 0x31, 0x03)
TEST_UNIT_READY = bytes(6)


@pytest.fixture
def slow(daemon):
    """A daemon with a thin 24 MiB file of 'x' whose MiBs take 0.1 s to write each."""
    path = os.path.join(daemon.directory, 'slow.img')
    with open(path, 'wb') as file:
        file.write(b'x' * SIZE)
    daemon.target(
        luns={0: ['backing-store = %s' % path, 'thin = yes', 'filter = delay write=100ms']}
    )
    # for a logout, which our own initiator does not hear it ask for
    daemon.text.server['stop-timeout'] = '1'
    return daemon.start()


def overwrite(session, pattern=b'\xc3', passes=1, immediate=True, ause=False, wait=True):
    data = struct.pack('>BxH', passes, len(pattern)) + pattern
    cdb = struct.pack(
        '>BB5xHB', 0x48, 0x01 | (0x80 if immediate else 0) | (0x20 if ause else 0), len(data), 0
    )
    command = session.submit(cdb, out=data)
    return session.wait(command) if wait else command


def progress(session):
    """PROGRESS INDICATION of REQUEST SENSE, or None when the unit is ready."""
    data = session.run(bytes.fromhex('03 00 0000 fc 00'), read=252).good().data
    if (data[2] & 0xF, data[12], data[13]) == SANITIZING:
        assert data[15] & 0x80
        return struct.unpack('>H', data[16:18])[0]
    return None


def state(session):
    """Sends TEST UNIT READY and returns (status, sense)."""
    result = session.run(TEST_UNIT_READY)
    return result.key if result.status == CHECK_CONDITION else result.status


def eraser(daemon):
    """Returns the process id of the process that executes the operation."""
    return int(re.findall(r'running in worker (\d+)', daemon.log)[-1])


def content(daemon):
    with open(os.path.join(daemon.directory, 'slow.img'), 'rb') as file:
        return file.read()


@pytest.mark.clause('SBC-3 5.24')
def test_a_sanitize_is_visible_to_all_sessions_and_continues_after_the_session(slow, ready):
    one, two = ready(slow, name=ONE), ready(slow, name=TWO)
    assert overwrite(one).status == GOOD
    assert state(one) == state(two) == SANITIZING
    seen = {progress(two)}
    eventually(
        lambda: seen.add(progress(two)) or len(seen) > 2, 10, 'progress that moves: %r' % seen
    )
    one.manage(LOGICAL_UNIT_RESET)
    one.close()
    assert two.inquiry()
    assert two.run(struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0), read=512).key in (
        SANITIZING,
        (6, 0x29, 0x03),
    )
    eventually(lambda: state(two) == GOOD, 20, 'the end of the sanitize')
    assert content(slow) == b'\xc3' * SIZE


@pytest.mark.clause('SBC-3 5.24')
def test_without_immed_the_response_is_sent_at_the_end(slow, ready):
    session = ready(slow)
    assert overwrite(session, b'\x11\x22', immediate=False).status == GOOD
    assert content(slow) == b'\x11\x22' * (SIZE // 2)


@pytest.mark.clause('SBC-3 5.24')
def test_block_erase_frees_the_space(slow, ready):
    session = ready(slow)
    session.run(bytes.fromhex('48 02 0000000000 0000 00')).good()
    assert content(slow) == bytes(SIZE)
    assert os.stat(os.path.join(slow.directory, 'slow.img')).st_blocks * 512 < SIZE // 4


@pytest.mark.clause('SBC-3 5.3')
def test_format_unit(slow, ready):
    session = ready(slow)
    session.run(bytes.fromhex('04 00 00 0000 00')).good()
    assert content(slow) == bytes(SIZE)
    session.run(
        bytes.fromhex('04 10 00 0000 00'), out=bytes.fromhex('00 8a 0000 00 01 0001 77')
    ).good()
    assert state(session) == (2, 0x04, 0x04)
    eventually(lambda: state(session) == GOOD, 20, 'the end of the format')
    assert content(slow) == b'\x77' * SIZE


@pytest.mark.parametrize('ause', [True, False])
@pytest.mark.clause('SBC-3 5.24')
def test_a_sanitize_whose_process_is_killed_fails_and_must_be_exited_properly(slow, ready, ause):
    session = ready(slow)
    command = overwrite(session, immediate=False, ause=ause, wait=False)
    eventually(lambda: 'running in worker' in slow.log, 5, 'the process')
    os.kill(eraser(slow), signal.SIGKILL)
    result = session.wait(command)
    assert result.key == SANITIZE_FAILED
    assert state(session) == SANITIZE_FAILED
    leave = session.run(bytes.fromhex('48 1f 0000000000 0000 00'))
    if ause:
        assert leave.status == GOOD and state(session) == GOOD
    else:
        assert leave.key == (5, 0x24, 0) and state(session) == SANITIZE_FAILED
        assert overwrite(session, immediate=False).status == GOOD
        assert content(slow) == b'\xc3' * SIZE


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_sanitize_continues_after_the_master_was_killed_or_stopped(slow, ready, sessions, number):
    session = ready(slow)
    assert overwrite(session).status == GOOD
    slow.workers()
    slow.signal(number)
    slow.process.wait(30)
    session.close()
    eventually(lambda: not slow.survivors(), 5, 'workers that outlive their master')
    assert content(slow)[-512:] == b'x' * 512
    slow.start()
    again = sessions(slow)
    eventually(lambda: state(again) == SANITIZING, 5, 'a sanitize that goes on')
    eventually(lambda: state(again) == GOOD, 30, 'the end of the sanitize')
    assert content(slow) == b'\xc3' * SIZE


def test_a_sanitize_of_a_removed_unit_continues_when_the_unit_is_added_again(slow, ready, sessions):
    session = ready(slow)
    assert overwrite(session).status == GOOD
    session.logout()
    kept = slow.text.targets.pop(TARGET)
    slow.text.target('iqn.2026-11.test.targetd:other', luns={0: ['type = null', 'size = 1M']})
    slow.reload()
    eventually(lambda: not os.path.exists('/proc/%d' % eraser(slow)), 10, 'the end of the process')
    assert content(slow)[-512:] == b'x' * 512
    slow.text.targets[TARGET] = kept
    slow.reload()
    slow.logged('is resumed', 5)
    again = sessions(slow, name=TWO)
    eventually(lambda: state(again) == GOOD, 30, 'the end of the sanitize')
    assert content(slow) == b'\xc3' * SIZE


# -- what a unit remembers -------------------------------------------------------------------------


def identify(session, text):
    session.run(struct.pack('>BB4xIBB', 0xA4, 0x06, len(text), 2 << 1, 0), out=text).good()


def identified(session):
    data = session.run(struct.pack('>BB4xIBB', 0xA3, 0x05, 512, 2 << 1, 0), read=512).good().data
    return data[4:]


def timestamp(session):
    data = session.run(bytes.fromhex('a3 0f 00000000 0000000c 00 00'), read=12).good().data
    return data[2] & 7, int.from_bytes(data[4:10], 'big')


def self_tests(session):
    """Returns the self-test codes and results of log page 10h."""
    data = session.run(bytes.fromhex('4d 00 50 00 00 0000 ffff 00'), read=65535).good().data
    return [(data[n] >> 5, data[n] & 15) for n in range(8, len(data), 20) if any(data[n : n + 16])]


def test_identifying_information_and_timestamp_are_shared_and_kept_after_a_kill(served, ready):
    one, two = ready(served, name=ONE), ready(served, name=TWO)
    identify(one, b'payroll\0')
    assert state(two) == (6, 0x3F, 0x05) and identified(two) == b'payroll\0'
    one.run(
        bytes.fromhex('a4 0f 00000000 0000000c 00 00'),
        out=bytes(4) + (10**9).to_bytes(6, 'big') + bytes(2),
    ).good()
    assert state(two) == (6, 0x2A, 0x10)
    origin, now = timestamp(two)
    assert origin == 2 and 10**9 <= now < 10**9 + 60000
    served.workers()
    served.signal(signal.SIGKILL)
    served.process.wait(10)
    eventually(lambda: not served.survivors(), 5, 'workers that outlive their master')
    served.start()
    again = ready(served)
    assert identified(again) == b'payroll\0'
    assert timestamp(again)[0] == 2 and timestamp(again)[1] >= now


def test_self_test_results_are_visible_to_all_sessions(served, ready):
    one, two = ready(served, name=ONE), ready(served, name=TWO)
    one.run(bytes.fromhex('1d a0 00 0000 00')).good()
    assert self_tests(one) == [(5, 0)]
    one.run(bytes.fromhex('1d 40 00 0000 00')).good()
    eventually(
        lambda: self_tests(two) == [(2, 0), (5, 0)], 10, lambda: 'both tests: %r' % self_tests(two)
    )


def test_buffers_over_the_wire(served, ready):
    one, two = ready(served, name=ONE), ready(served, name=TWO)
    data = bytes(range(256)) * 256
    one.run(bytes.fromhex('3b 02 00 000000 010000 00'), out=data).good()
    assert one.run(bytes.fromhex('3c 02 00 000000 010000 00'), read=65536).good().data == data
    assert two.run(bytes.fromhex('3c 02 00 000000 000010 00'), read=16).good().data == bytes(16)


def test_windows_finds_the_provisioning_page(daemon, ready):
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'thin = yes']})
    session = ready(daemon.start())
    data = session.run(bytes.fromhex('4d 00 0c 00 00 0000 0100 00'), read=256).good().data
    assert data[0] == 0x8C and (len(data) - 4) % 12 == 0 and data[6:8] == b'\x03\x08'


def test_a_worker_is_forked_when_there_is_no_spare_one(daemon, ready):
    daemon.text.server['spare-workers'] = '0'
    daemon.target(size=4 << 20)
    daemon.start()
    session = ready(daemon)
    assert overwrite(session, immediate=False).status == GOOD
    assert bytes(session.read(0, 8)) == b'\xc3' * 4096
