"""Tests of the states that protect data after a failure: they outlast a reload, a signal, a crash
and a restart, until the administrator ends them."""

import signal
import struct

import pytest
from daemon import EXIT_NOT_DURABLE, TARGET, eventually

pytestmark = pytest.mark.wire

INTERNAL_TARGET_FAILURE = (4, 0x44, 0)
WRITE_ERROR = (3, 0x0C, 0)
STOP = bytes([0x1B]) + bytes(5)


def flush(session):
    """Sends SYNCHRONIZE CACHE(10) for the whole medium."""
    return session.run(struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0))


def try_write(session):
    return session.run(struct.pack('>BBQIBB', 0x8A, 0, 8, 1, 0, 0), out=b'w' * 512)


def is_refusing(session):
    """Asserts that writes and flushes are refused and that everything else is answered."""
    session.run(bytes(6)).good()
    assert session.read(0, 1) == b'a' * 512
    assert try_write(session).key == INTERNAL_TARGET_FAILURE
    assert flush(session).key == INTERNAL_TARGET_FAILURE
    assert session.run(STOP).key == INTERNAL_TARGET_FAILURE  # it would flush


@pytest.fixture
def failed(daemon, ready):
    """A Daemon with one unit whose first flush has failed, and a session."""
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = error flush count=1']}
    )
    daemon.start()
    session = ready(daemon)
    session.write(0, b'a' * 512)
    assert flush(session).key == WRITE_ERROR
    daemon.logged('FAILED')
    return daemon, session


def test_a_failed_unit_stays_failed_after_a_signal_and_a_reload(failed):
    daemon, session = failed
    daemon.reload('nothing changed')
    is_refusing(session)
    daemon.text.server['stop-timeout'] = '1'
    daemon.reload('reload: change stop-timeout')
    is_refusing(session)
    assert daemon.targetdctl('reload')[0] == 0
    is_refusing(session)
    assert 'failed: flush failed' in daemon.targetdctl('show', 'units')[1]


@pytest.mark.parametrize('how', ['stopped', 'killed'])
def test_a_failed_unit_stays_failed_after_a_restart(failed, ready, how):
    daemon, _ = failed
    if how == 'stopped':
        daemon.stop()
    else:
        daemon.workers()
        daemon.signal(signal.SIGKILL)
        daemon.kill()
    daemon.start()
    daemon.logged('has FAILED before: flush failed')
    is_refusing(ready(daemon))


def test_a_failed_unit_stays_failed_when_its_lun_is_opened_again(failed, ready):
    """A reload that changes the identity of a LUN closes and opens its medium."""
    daemon, session = failed
    daemon.text.server['stop-timeout'] = '1'
    image = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image, 'vendor-id = ACME']})
    daemon.reload('reload: change lun 0')
    daemon.control('reload', '--now')
    session.wait_closed()
    eventually(lambda: 'failed' in daemon.targetdctl('show', 'units')[1])
    again = eventually(lambda: logged_in(daemon, ready), 20)
    assert b'ACME' in again.inquiry()
    is_refusing(again)


def logged_in(daemon, ready):
    try:
        return ready(daemon)
    except Exception:
        return None


def test_an_acknowledged_failure_does_not_come_back(failed, ready):
    daemon, session = failed
    code, output = daemon.targetdctl('acknowledge', TARGET + '/0')
    assert code == 0, output
    assert (6, 0x28, 0) in session.clear_attentions()
    try_write(session).good()
    daemon.workers()
    daemon.signal(signal.SIGKILL)
    daemon.kill()
    daemon.start()
    again = ready(daemon)
    assert again.read(8, 1) == b'w' * 512
    try_write(again).good()


# -- a stop that cannot flush ----------------------------------------------------------------------


def test_a_stop_whose_flush_fails_has_its_own_exit_code_and_the_unit_is_failed_afterwards(
    daemon, ready
):
    image = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image, 'filter = error flush']})
    daemon.start()
    session = ready(daemon)
    session.write(0, b'a' * 512)
    session.logout()
    assert daemon.stop() == EXIT_NOT_DURABLE
    assert TARGET + '/0 could NOT be flushed: Input/output error' in daemon.log
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image]})
    daemon.start()
    is_refusing(ready(daemon))
    assert daemon.targetdctl('acknowledge', TARGET + '/0')[0] == 0


def test_a_stop_names_a_unit_that_failed_earlier(failed):
    daemon, session = failed
    session.logout()
    assert daemon.stop() == EXIT_NOT_DURABLE
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image()]})
    daemon.start()
    assert daemon.stop() == EXIT_NOT_DURABLE  # although its flush succeeds now
    assert TARGET + '/0 has FAILED, and data may be lost' in daemon.log
