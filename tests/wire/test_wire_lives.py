"""Tests of killed processes, stops and reloads of the real daemon under load."""

import os
import signal
import socket
import struct
import threading
import time

import psutil
import pytest
from daemon import TARGET, eventually, free_port, is_listening
from initiator import ABORT_TASK, Chap, LoginFailed, Session, connect, pattern
from pdus import ASYNC, Closed, read_10, write_10

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
OTHER = 'iqn.2026-11.test.targetd:other'


class Load(threading.Thread):
    """Writes patterns in a thread until the connection ends, and records which writes were
    acknowledged."""

    def __init__(self, session, first_block, slots=64, blocks=128):
        super(Load, self).__init__(daemon=True)
        self.session, self.first, self.slots, self.blocks = session, first_block, slots, blocks
        self.acknowledged = {}  # slot -> number of the pattern that was last acknowledged there
        self.sent = {}  # slot -> number that was last sent there
        self.stopping = False
        self.failure = None
        self.logout_asked = False
        self.ended = None  # monotonic time

    def run(self):
        number = 0
        try:
            while not self.stopping:
                number += 1
                slot = number % self.slots
                self.sent[slot] = number
                self.session.write(
                    self.first + slot * self.blocks, pattern(number, self.blocks * 512)
                )
                self.acknowledged[slot] = number
                if self.session.events:
                    self.logout_asked = True
                    self.session.logout()
                    break
        except (Closed, socket.timeout, OSError) as e:
            self.failure = e
        self.ended = time.monotonic()

    def wait_until_busy(self, count=20):
        eventually(lambda: len(self.acknowledged) >= count or not self.is_alive(), 20)
        assert self.is_alive(), self.failure

    def verify(self, session):
        """Every slot holds what was acknowledged last, or the one write that was on its way."""
        for slot, number in self.acknowledged.items():
            data = session.read(self.first + slot * self.blocks, self.blocks)
            wanted = {number, self.sent[slot]}
            assert any(
                data == pattern(each, self.blocks * 512) for each in wanted
            ) or self._is_torn(data, number, slot)

    def _is_torn(self, data, number, slot):
        """A write that was never acknowledged may have got half way; each block is still one or the
        other."""
        old, new = pattern(number, len(data)), pattern(self.sent[slot], len(data))
        return all(
            data[at : at + 512] in (old[at : at + 512], new[at : at + 512])
            for at in range(0, len(data), 512)
        )


def gone(process, seconds=10):
    try:
        psutil.Process(process.pid).wait(seconds)
    except psutil.NoSuchProcess:
        pass


# -- a worker dies ---------------------------------------------------------------------------------


@pytest.mark.parametrize('write_cache', ['on', 'off'])
def test_kill_of_one_worker_under_load(daemon, ready, write_cache):
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'write-cache = %s' % write_cache]}
    )
    daemon.start()
    victim = Load(ready(daemon, name=ONE), 0)
    bystander = Load(ready(daemon, name=TWO), 65536)
    for load in (victim, bystander):
        load.start()
        load.wait_until_busy()
    doomed, other = daemon.worker_of(victim.session), daemon.worker_of(bystander.session)
    doomed.kill()
    victim.join(10)
    assert isinstance(victim.failure, (Closed, OSError))
    number = max(bystander.acknowledged.values())
    # only its session is lost
    eventually(lambda: max(bystander.acknowledged.values()) > number + 5, 10)
    assert bystander.failure is None and other.is_running()
    again = ready(daemon, name=ONE)
    victim.verify(again)
    again.write(0, pattern(1, 512))
    bystander.stopping = True
    bystander.join(10)
    bystander.verify(again)
    daemon.logged(r'worker %d .*(?:signal|SIGKILL|killed)' % doomed.pid)


def test_ended_workers_are_replaced(served, ready):
    for _ in range(6):
        session = ready(served)
        served.worker_of(session).kill()
        session.wait_closed()
    assert ready(served).capacity() == (131072, 512)


# -- the master stops ------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.9', 'RFC 7143 7.5')
def test_stop_under_load_asks_for_logout(served, ready):
    """The target sends an Asynchronous Message with event 1; the stop is quick if the initiators
    log out."""
    loads = [Load(ready(served, name=ONE), 0), Load(ready(served, name=TWO), 65536)]
    for load in loads:
        load.start()
        load.wait_until_busy()
    began = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - began < 8
    for load in loads:
        load.join(10)
        assert load.logout_asked and load.failure is None
        [event] = load.session.events[:1]
        assert event.bhs[36] == 1 and event.itt == 0xFFFFFFFF  # RFC 7143 11.9.1
    assert not is_listening(served.address)
    served.start()
    again = ready(served, name=ONE)
    for load in loads:
        load.verify(again)


@pytest.mark.clause('RFC 7143 11.9')
def test_stop_does_not_wait_for_initiators_that_ignore_the_logout_request(daemon, ready):
    daemon.target()
    daemon.text.server['stop-timeout'] = '1'
    daemon.start()
    deaf = ready(daemon)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 8
    pdu = deaf.until(ASYNC)
    assert pdu.bhs[36] == 1
    deaf.wait_closed()


def test_no_new_login_during_a_stop(daemon, ready):
    daemon.target()
    daemon.text.server['stop-timeout'] = '3'
    daemon.start()
    session = ready(daemon)
    daemon.signal(signal.SIGTERM)
    session.until(ASYNC)
    with pytest.raises((OSError, Closed, LoginFailed)):
        connect(daemon.address, TARGET, name=TWO, timeout=2)
    session.write(0, pattern(1, 4096))  # while it is asked, it may still work
    session.logout()
    gone(daemon.process)


def test_second_signal_hurries_the_stop(daemon, ready):
    daemon.target()
    daemon.text.server['stop-timeout'] = '60'
    daemon.start()
    session = ready(daemon)
    daemon.signal(signal.SIGTERM)
    session.until(ASYNC)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10


def test_data_is_there_after_a_stop(served, ready):
    session = ready(served)
    session.write(500, pattern(5, 1 << 20))
    session.logout()
    assert served.stop() == 0
    with open(served.image('disk.img'), 'rb') as file:
        file.seek(500 * 512)
        assert file.read(1 << 20) == pattern(5, 1 << 20)
    assert not os.path.exists(os.path.join(served.directory, 'targetd.pid'))
    assert not os.path.exists(os.path.join(served.directory, 'targetd.sock'))


def test_kill_of_the_master(served, ready):
    """No worker survives, the port and the disk are free, and acknowledged data is on the disk."""
    load = Load(ready(served, name=ONE), 0)
    load.start()
    load.wait_until_busy()
    served.workers()
    served.process.kill()
    served.process.wait(5)
    eventually(lambda: not served.survivors(), 5, lambda: 'workers gone: %s' % served.survivors())
    load.join(10)
    assert load.failure is not None
    assert not is_listening(served.address)
    served.start()  # the old pid file and socket do not matter
    load.verify(ready(served, name=ONE))


def test_a_stopped_master_does_not_stop_its_sessions(served, ready):
    """During SIGSTOP, commands that do not need the master are executed; after SIGCONT all commands
    are."""
    session = ready(served)
    served.signal(signal.SIGSTOP)
    try:
        session.write(0, pattern(1, 65536))
        assert session.read(0, 128) == pattern(1, 65536)
    finally:
        served.signal(signal.SIGCONT)
    assert ready(served, name=TWO).read(0, 128) == pattern(1, 65536)


# -- reload ----------------------------------------------------------------------------------------


@pytest.fixture
def busy(daemon, ready):
    """(daemon, load): a daemon with one target under load; the load's session must not be
    affected."""
    daemon.target()
    daemon.text.server['stop-timeout'] = '3'
    daemon.start()
    load = Load(ready(daemon, name=ONE), 0)
    load.start()
    load.wait_until_busy()
    yield daemon, load
    number = max(load.acknowledged.values())
    eventually(lambda: max(load.acknowledged.values()) > number + 5 or not load.is_alive(), 10)
    assert load.is_alive() and load.failure is None and not load.session.events
    load.stopping = True
    load.join(10)
    load.verify(load.session)
    load.session.logout()


def test_add_and_remove_a_target(busy, ready):
    daemon, _ = busy
    daemon.target(OTHER)
    daemon.reload()
    session = eventually(lambda: try_login(daemon, OTHER), 5)
    session.clear_attentions()
    session.write(0, pattern(9, 512))
    del daemon.text.targets[OTHER]
    daemon.reload()
    assert session.until(ASYNC).bhs[36] == 1  # asked to log out
    session.logout()
    eventually(lambda: status(daemon, OTHER) == 0x0203, 5)
    daemon.target(OTHER)
    daemon.reload()
    again = eventually(lambda: try_login(daemon, OTHER), 5)
    again.clear_attentions()
    assert again.read(0, 1) == pattern(9, 512)
    again.close()


def try_login(daemon, target, address=None, **more):
    try:
        return connect(address or daemon.address, target, name=TWO, **more)
    except (LoginFailed, OSError, Closed):
        return None


def status(daemon, target, **more):
    try:
        connect(daemon.address, target, name=TWO, **more).close()
        return 0
    except LoginFailed as failure:
        return failure.status


def test_add_and_remove_a_lun(daemon, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    lines, luns = daemon.text.targets[TARGET]
    luns[5] = ['backing-store = %s' % daemon.image('five.img', 32 << 20)]
    daemon.reload()
    # reported LUNs data has changed
    eventually(lambda: session.run(bytes(6)).key == (6, 0x3F, 0x0E), 5)
    session.clear_attentions()
    assert session.report_luns() == [0, 5]
    session.clear_attentions(5)
    assert session.capacity(5) == (65536, 512)
    session.write(0, pattern(5, 512), 5)
    del luns[5]
    daemon.reload()
    eventually(lambda: session.run(bytes(6)).key == (6, 0x3F, 0x0E), 5)
    assert session.report_luns() == [0]
    assert session.run(bytes(6), 5).key == (5, 0x25, 0)
    assert session.run(bytes(6)).status == 0


def test_grow_a_lun(daemon, ready):
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'size = 64M']})
    daemon.start()
    session = ready(daemon)
    daemon.text.targets[TARGET][1][0][1] = 'size = 128M'
    daemon.reload()
    eventually(lambda: session.run(bytes(6)).key == (6, 0x2A, 0x09), 5)  # capacity data has changed
    assert session.capacity() == (262144, 512)
    session.write(262143, pattern(1, 512))
    assert session.read(262143, 1) == pattern(1, 512)


def test_change_of_a_lun_that_is_in_use(busy, ready):
    """If the LUN gets another file, the session is asked to log out (reload --now) and finds the new
    file after its next login."""
    daemon, _ = busy
    daemon.target(OTHER, luns={0: ['backing-store = %s' % daemon.image('first.img')]})
    daemon.reload()
    session = eventually(lambda: try_login(daemon, OTHER), 5)
    session.clear_attentions()
    session.write(0, pattern(1, 512))
    daemon.text.targets[OTHER][1][0][0] = 'backing-store = %s' % daemon.image('second.img')
    daemon.write_config()
    assert 'waits for the logout' in daemon.control('reload')
    session.ping()
    daemon.control('reload', '--now')
    assert session.until(ASYNC).bhs[36] == 1
    session.logout()
    again = eventually(lambda: try_login(daemon, OTHER), 5)
    again.clear_attentions()
    assert again.read(0, 1) == bytes(512)
    again.close()


def test_access_rules(busy, ready):
    daemon, _ = busy
    daemon.target(OTHER)
    daemon.reload()
    session = eventually(lambda: try_login(daemon, OTHER), 5)
    daemon.text.targets[OTHER][0][1] = 'initiator-address = 192.0.2.1'
    daemon.reload()
    session.wait_closed()  # no longer welcome
    assert status(daemon, OTHER) == 0x0202
    daemon.text.targets[OTHER][0][1] = 'initiator-address = 127.0.0.1'
    daemon.reload()
    eventually(lambda: status(daemon, OTHER) == 0, 5)


def test_accounts(busy):
    daemon, _ = busy
    daemon.target(OTHER)
    daemon.reload()
    eventually(lambda: status(daemon, OTHER) == 0, 5)
    daemon.text.targets[OTHER][0].append('incominguser = erp secret-of-12-to-16')
    daemon.reload()
    eventually(lambda: status(daemon, OTHER) == 0x0201, 5)
    assert status(daemon, OTHER, chap=Chap('erp', 'secret-of-12-to-16')) == 0
    daemon.text.targets[OTHER][0][-1] = 'incominguser = erp a-new-secret-now'
    daemon.reload()
    eventually(lambda: status(daemon, OTHER, chap=Chap('erp', 'a-new-secret-now')) == 0, 5)
    assert status(daemon, OTHER, chap=Chap('erp', 'secret-of-12-to-16')) == 0x0201


def test_portals(busy):
    daemon, _ = busy
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other)
    daemon.reload()
    daemon.wait_listening(('127.0.0.1', other), 5)
    session = try_login(daemon, TARGET, ('127.0.0.1', other))
    session.clear_attentions()
    daemon.text.groups[1].pop()
    daemon.reload()
    eventually(lambda: not is_listening(('127.0.0.1', other)), 5)
    assert session.capacity() == (131072, 512)  # existing sessions continue
    session.logout()


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: setattr(text, 'extra', '[target iqn.2026-11.broken:x\n'),
        lambda text: setattr(text, 'extra', '\n[target iqn.2026-11.broken:x]\nbacking-stor = /x\n'),
        lambda text: text.portal('127.0.0.1:99999'),
        lambda text: text.server.update({'login-timeout': 'soon'}),
    ],
    ids=['syntax', 'word', 'port', 'value'],
)
def test_a_broken_file_changes_nothing(busy, damage):
    daemon, _ = busy
    del daemon.text.targets[TARGET]
    daemon.target(OTHER)
    damage(daemon.text)
    daemon.reload('not reloaded|nothing was changed')
    assert status(daemon, TARGET) == 0
    assert status(daemon, OTHER) == 0x0203
    assert is_listening(daemon.address)


def test_a_port_in_use_changes_nothing(busy):
    daemon, _ = busy
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        daemon.text.portal('127.0.0.1:%d' % taken.getsockname()[1])
        daemon.target(OTHER)
        daemon.reload('not reloaded|nothing was changed')
        assert status(daemon, OTHER) == 0x0203


def test_reload_without_change(busy):
    daemon, load = busy
    worker = daemon.worker_of(load.session).pid
    for _ in range(3):
        daemon.reload()
    assert daemon.worker_of(load.session).pid == worker


def test_log_is_opened_again(served):
    moved = served.log_file + '.1'
    os.rename(served.log_file, moved)
    served.signal(signal.SIGUSR1)
    eventually(lambda: os.path.exists(served.log_file), 15)
    with connect(served.address, TARGET, name='iqn.2026-11.test:after-rotation'):
        eventually(lambda: 'after-rotation' in open(served.log_file).read(), 15)
    assert 'after-rotation' not in open(moved).read()


# -- the disk --------------------------------------------------------------------------------------


def test_a_missing_disk_affects_only_its_own_target(daemon, ready):
    missing = os.path.join(daemon.directory, 'not-there.img')
    daemon.target()
    daemon.target(OTHER, luns={0: ['backing-store = %s' % missing]})
    daemon.start()
    daemon.logged('not-there.img')
    assert ready(daemon).capacity() == (131072, 512)
    assert status(daemon, OTHER) == 0x0301  # service unavailable: initiators try again
    daemon.image('not-there.img')
    daemon.reload()
    eventually(lambda: status(daemon, OTHER) == 0, 25)


def test_medium_errors_are_reported_as_medium_error(daemon, ready):
    """Only defective blocks fail; all other blocks are read and written as before."""
    daemon.target(
        TARGET,
        luns={
            0: [
                'backing-store = %s' % daemon.image(),
                'filter = error read+write offset=1M..2M errno=EIO',
            ]
        },
    )
    daemon.start()
    session = ready(daemon)
    assert session.run(read_10(2048), read=512).key[:2] == (3, 0x11)  # unrecovered read error
    assert session.run(write_10(2048), out=bytes(512)).key[:2] == (3, 0x0C)  # write error
    session.write(0, pattern(1, 4096))
    assert session.read(0, 8) == pattern(1, 4096)
    assert session.ping(b'x') == b'x'


def test_a_full_store_is_reported_as_space_allocation_failed(daemon, ready):
    daemon.target(
        TARGET,
        luns={0: ['backing-store = %s' % daemon.image(), 'filter = error write errno=ENOSPC']},
    )
    daemon.start()
    session = ready(daemon)
    # space allocation failed write protect
    assert session.run(write_10(0), out=bytes(512)).key == (7, 0x27, 7)


def test_a_failed_flush_fails_the_unit_permanently(daemon, ready):
    """Acknowledged data may be lost, so every later command of every session is refused, and this
    is logged."""
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = error flush count=1']}
    )
    daemon.start()
    session, other = ready(daemon), ready(daemon, name=TWO)
    session.write(0, pattern(1, 4096))
    flush = struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0)
    assert session.run(flush).key[0] in (3, 4)
    assert session.run(flush).status == 2  # not GOOD the second time
    eventually(lambda: other.run(write_10(0), out=bytes(512)).status == 2, 5)
    daemon.logged('FAILED')


def test_a_slow_disk_does_not_delay_nops_and_other_sessions(daemon, ready):
    slow = ['backing-store = %s' % daemon.image('slow.img'), 'filter = delay read=1500ms']
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image()], 1: slow})
    daemon.start()
    session, other = ready(daemon), ready(daemon, name=TWO)
    session.clear_attentions(1)
    commands = [
        session.submit(struct.pack('>BBIBHB', 0x28, 0, n, 0, 1, 0), 1, read=512) for n in range(4)
    ]
    began = time.monotonic()
    assert session.ping(b'x', immediate=True) == b'x'
    assert session.read(0, 1) == bytes(512)
    assert other.read(0, 1) == bytes(512)
    assert time.monotonic() - began < 1.4 and all(command.result is None for command in commands)
    for command in commands:
        session.wait(command).good()
    assert time.monotonic() - began < 4  # they waited side by side


@pytest.mark.clause('RFC 7143 11.14')
def test_a_logout_directly_after_an_abort_is_answered(daemon, ready):
    """The responses of the abort and of the logout come from different threads; the connection must
    not be closed before both are sent."""
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = delay write=5ms']}
    )
    daemon.start()
    for _ in range(40):
        session = ready(daemon)
        command = session.submit(write_10(0), out=bytes(512))
        session.manage(ABORT_TASK, task=command)
        assert session.logout() == 0


@pytest.mark.clause('RFC 7143 11.14')
def test_logout_waits_for_running_commands(daemon, ready):
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = delay write=300ms']}
    )
    daemon.start()
    session = ready(daemon)
    command = session.submit(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 8, 0), out=pattern(3, 4096))
    assert session.logout() == 0
    with connect(daemon.address, TARGET) as again:
        again.clear_attentions()
        assert command.result is None or again.read(0, 8) == pattern(3, 4096)


@pytest.mark.clause('RFC 7143 4.2.3', 'RFC 7143 11.6')
def test_abort_waits_until_the_write_cannot_touch_the_medium(daemon, ready):
    """After 'function complete' of ABORT TASK the aborted write changes nothing any more (SAM-5)."""
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = delay write=500ms']}
    )
    daemon.start()
    session, other = ready(daemon), ready(daemon, name=TWO)
    command = session.submit(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 8, 0), out=pattern(3, 4096))
    assert session.manage(ABORT_TASK, task=command) in (0, 1)
    first = other.read(0, 8)
    session.commands.pop(command.itt, None)
    assert other.run(struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0)).status == 0
    assert other.read(0, 8) == first


def test_forty_simultaneous_sessions(daemon):
    """Forty sessions, each with a separate worker and separate data."""
    daemon.text.server['max-connections-per-address'] = '100'
    daemon.target()
    daemon.start()
    sessions = []
    for number in range(40):
        session = Session(daemon.address, 'iqn.2026-11.test:many-%d' % number)
        sessions.append(session.login(TARGET))
        session.clear_attentions()
        session.write(number * 128, pattern(number, 65536))
    for number, session in enumerate(sessions):
        assert session.read(number * 128, 128) == pattern(number, 65536)
    assert len({daemon.worker_of(session).pid for session in sessions[::8]}) == len(sessions[::8])
    for session in sessions:
        assert session.logout() == 0
