"""Upgrades without a logout: the real daemon continues with another program while sessions write.

The program is a copy of targetd/ in a folder of the test, so that a test can change it.
"""

import fcntl
import json
import os
import shutil
import signal
import struct
import time

import psutil
import pytest
import upgrades
from daemon import ROOT, TARGET, eventually, is_listening
from initiator import RESERVATION_CONFLICT, Chap, LoginFailed, Session, pattern
from members import Member, Numbering
from pdus import write_10
from test_wire_lives import ONE, TWO, Load

pytestmark = pytest.mark.wire

NEW = '0.2.0'
SECRET = 'iqn.2026-11.test.targetd:secret'
HANDOVER_UNITS = ('master', 'upgrade', 'handover_units.py')


class Installed(object):
    """The copy of targetd that the daemon runs."""

    def __init__(self, folder):
        self.folder = folder
        self.second = int(time.time())
        shutil.copytree(
            os.path.join(ROOT, 'targetd'),
            os.path.join(folder, 'targetd'),
            ignore=shutil.ignore_patterns('__pycache__'),
        )

    def path(self, *names):
        return os.path.join(self.folder, 'targetd', *names)

    def replace(self, old, new, *names):
        """Write other text into a file of the program, as a package's upgrade does."""
        with open(self.path(*names)) as file:
            text = file.read()
        assert old in text
        with open(self.path(*names) + '.new', 'w') as file:
            file.write(text.replace(old, new))
        os.rename(self.path(*names) + '.new', self.path(*names))
        # Python takes a compiled file for current if the source has the same size and second.
        self.second += 1
        os.utime(self.path(*names), (self.second, self.second))

    def upgrade(self):
        with open(self.path('__init__.py')) as file:
            (line,) = [line for line in file if line.startswith('__version__')]
        self.replace(line.strip(), '__version__ = %r' % NEW, '__init__.py')


@pytest.fixture
def installed(daemon, tmp_path, monkeypatch):
    program = Installed(str(tmp_path / 'program'))
    environment = dict(daemon.environment(), PYTHONPATH=program.folder)
    daemon.environment = lambda: environment
    return program


def rows(daemon, *words):
    return json.loads(daemon.control('--json', *words))


def facts(daemon):
    return {row['name']: row['value'] for row in rows(daemon, 'status')}


def parameters(key, service_action_key):
    return struct.pack('>QQ8x', key, service_action_key)


def persistent_reserve_out(service_action, kind=0):
    return struct.pack('>BBB4xH', 0x5F, service_action, kind, 24) + bytes(1)


def set_swp(session, is_on):
    """MODE SELECT(6) of the Control mode page: software write protection, SPC-4 7.5.8."""
    page = bytearray(session.run(bytes([0x1A, 8, 0x0A, 0, 255, 0]), read=255).data[4:])
    page[0] &= 0x3F
    page[4] = page[4] & ~8 | (8 if is_on else 0)
    data = bytes(4) + bytes(page)
    assert session.run(bytes([0x15, 0x10, 0, 0, len(data), 0]), out=data).good


def test_sessions_continue_beside_new_ones(daemon, installed, ready):
    daemon.target()
    daemon.start()
    loads = [Load(ready(daemon, name=ONE), 0), Load(ready(daemon, name=TWO), 65536)]
    for load in loads:
        load.start()
        load.wait_until_busy()
    workers = [daemon.worker_of(load.session) for load in loads]
    pid = daemon.process.pid
    installed.upgrade()
    text = daemon.control('upgrade')
    assert 'targetd 0.2.0 serves now (before: 0.1.0); 2 sessions continue' in text
    assert facts(daemon)['version'] == NEW and facts(daemon)['process'] == str(pid)
    assert facts(daemon)['sessions of an earlier program'] == '2 (version 0.1.0)'
    new = ready(daemon, name='iqn.2026-11.test:three')
    assert new.capacity() == (131072, 512)
    for load, worker in zip(loads, workers):
        count = len(load.acknowledged)
        number = max(load.acknowledged.values())
        eventually(lambda load=load, number=number: max(load.acknowledged.values()) > number + 50)
        assert load.failure is None and count
        assert daemon.worker_of(load.session).pid == worker.pid
    for load in loads:
        load.stopping = True
        load.join(10)
        assert load.failure is None
        load.verify(load.session)
        load.session.logout()
    for worker in workers:
        eventually(lambda worker=worker: not worker.is_running() or _is_gone(worker))
    assert facts(daemon)['sessions of an earlier program'] == '0'
    again = ready(daemon, name=ONE)
    loads[0].verify(again)


def _is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_no_session_is_lost_under_a_verified_load(tmp_path):
    """Some seconds of `python -m tests.longrun upgrades`."""
    figures, complaints = upgrades.run_upgrades(str(tmp_path), 8, 7143)
    assert not complaints, complaints
    for name in ('upgrades', 'acknowledged writes', 'verified blocks', 'logins meanwhile'):
        assert figures.get(name), figures


def test_a_program_that_cannot_take_over_leaves_the_old_one_in_charge(daemon, installed, ready):
    """A syntax error, an exception in the take-over, a program that hangs, other formats."""
    daemon.target()
    daemon.expected_trouble = ['Traceback']
    daemon.start()
    load = Load(ready(daemon, name=ONE), 0)
    load.start()
    load.wait_until_busy()
    pid = daemon.process.pid
    installed.upgrade()
    for old, new, names, reason in (
        ('import os\n', 'import os)\n', ('master', 'upgrade', 'handover.py'), 'SyntaxError'),
        (
            '    exports.server = server',
            '    exports.server = 1 / 0  # ',
            HANDOVER_UNITS,
            'division',
        ),
        (
            'FORMAT = 1\n',
            'FORMAT = 2\n',
            ('master', 'upgrade', 'handover.py'),
            'state of version 0.1.0 has the f',
        ),
        (
            'PROTOCOL = 1\n',
            'PROTOCOL = 2\n',
            ('channel.py',),
            'worker protocol of version 0.1.0 has',
        ),
    ):
        installed.replace(old, new, *names)
        code, text = daemon.targetdctl('upgrade', seconds=60)
        assert code == 1 and 'nothing was changed' in text and reason in text, text
        installed.replace(new, old, *names)
    assert facts(daemon)['version'] == '0.1.0' and facts(daemon)['process'] == str(pid)
    ready(daemon, name=TWO).logout()  # logins are served again
    load.stopping = True
    load.join(10)
    assert load.failure is None
    load.verify(load.session)
    assert 'serves now' in daemon.control('upgrade')
    assert facts(daemon)['version'] == NEW


def test_a_configuration_that_is_not_in_force_is_refused(daemon, installed):
    daemon.target()
    daemon.start()
    daemon.target('iqn.2026-11.test.targetd:other')
    daemon.write_config()
    code, text = daemon.targetdctl('upgrade')
    assert code == 1 and 'changes that are not in force' in text and 'targetdctl reload' in text
    with open(daemon.config, 'a') as file:
        file.write('[target\n')
    code, text = daemon.targetdctl('upgrade')
    assert code == 1 and 'the configuration has errors' in text and daemon.config in text


def test_state_passes_over(daemon, installed, ready, sessions):
    """Reservations, mode parameters, ALUA states, refused logins, throttled failures and TSIHs."""
    daemon.target(lines=['initiator-name = iqn.2026-11.test:*', 'alua = implicit'])
    daemon.target(
        SECRET, lines=['initiator-address = ALL', 'incominguser = "user" "correct-secret"']
    )
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    assert one.run(persistent_reserve_out(0), out=parameters(0, 0x1234)).good
    assert one.run(persistent_reserve_out(1, 5), out=parameters(0x1234, 0)).good
    set_swp(one, True)
    daemon.control('alua', TARGET, '1', 'nonoptimized')
    with pytest.raises(LoginFailed):
        sessions(daemon, name='iqn.2026-11.other:stranger')
    for _ in range(6):  # the answer to the sixth is delayed
        with pytest.raises(LoginFailed):
            sessions(daemon, target=SECRET, name=ONE, chap=Chap('user', 'wrong-secret--'))
    before = {row['tsih']: row for row in rows(daemon, 'show', 'sessions')}
    daemon.control('upgrade')
    assert {row['tsih']: row for row in rows(daemon, 'show', 'sessions')} == before
    one.clear_attentions()
    two.clear_attentions()
    assert rows(daemon, 'show', 'units')[0]['reserved_by'].startswith(ONE)
    assert [row['access'] for row in rows(daemon, 'show', 'alua')][0] == 'nonoptimized'
    assert 'stranger' in daemon.control('why')
    began = time.monotonic()
    with pytest.raises(LoginFailed):
        sessions(daemon, target=SECRET, name=ONE, chap=Chap('user', 'wrong-secret--'))
    assert time.monotonic() - began >= 2.0
    three = ready(daemon, name='iqn.2026-11.test:three')
    for session in (two, three):
        assert session.run(write_10(0, 1), out=bytes(512)).status == RESERVATION_CONFLICT
    assert one.run(write_10(0, 1), out=bytes(512)).key == (7, 0x27, 2)  # SWP
    set_swp(one, False)  # the change reaches workers of both programs
    three.clear_attentions()
    one.write(0, pattern(1, 512))
    assert three.read(0, 1) == pattern(1, 512)
    assert one.run(persistent_reserve_out(2, 5), out=parameters(0x1234, 0)).good
    two.clear_attentions()
    two.write(0, pattern(2, 512))


def test_limits_hold_across_an_upgrade_and_can_be_changed_after_it(daemon, installed, ready):
    daemon.target(luns={0: ['backing-store = %s' % daemon.image('limited.img'), 'iops-limit = 1']})
    session = ready(daemon.start())
    read = struct.pack('>BBQIBB', 0x88, 0, 0, 8, 0, 0)
    waiting = [session.submit(read, read=4096) for _ in range(100)]
    assert rows(daemon, 'show', 'limits')[0]['delayed'] >= 1
    installed.upgrade()
    daemon.control('upgrade')
    assert rows(daemon, 'show', 'limits')[0]['delayed'] >= 1
    assert waiting[-1].result is None
    daemon.control('lun', 'limit', TARGET + '/0', '--iops', '0')
    for command in waiting:
        session.wait(command).good()


def test_a_connection_that_waits_is_served_by_the_new_program(daemon, installed):
    daemon.target()
    daemon.start()
    session = Session(daemon.address, name=ONE, timeout=30)
    daemon.control('upgrade')
    session.login(TARGET)
    session.clear_attentions()
    assert session.capacity() == (131072, 512)
    session.logout()


def test_every_kind_of_medium_passes_over(daemon, installed, ready):
    """Memory, a file with atomic writes and its journal, thin and direct files; the failure flags are shared
    by workers of both programs."""
    kinds = ['', 'atomic-writes = yes', 'thin = yes', 'direct-io = yes', 'write-cache = off']
    luns = {
        number: ['backing-store = %s' % daemon.image('%d.img' % number), line]
        for number, line in enumerate(kinds)
    }
    luns[5] = ['type = ram', 'size = 16M']
    daemon.target(luns=luns)
    daemon.start()
    old = ready(daemon, name=ONE)
    for lun in luns:
        old.clear_attentions(lun)
        old.write(8, pattern(lun, 4096), lun)
    daemon.control('upgrade')
    new = ready(daemon, name=TWO)
    for lun in luns:
        new.clear_attentions(lun)
        assert new.read(8, 8, lun) == pattern(lun, 4096)
        new.write(16, pattern(lun + 10, 4096), lun, fua=True)
        assert old.read(16, 8, lun) == pattern(lun + 10, 4096)
    assert old.run(write_atomic_16(8, 8), 1, out=pattern(99, 4096)).good
    assert new.run(write_atomic_16(16, 8), 1, out=pattern(98, 4096)).good
    assert new.read(8, 16, 1) == pattern(99, 4096) + pattern(98, 4096)
    old.logout()
    daemon.logged('session .* of %s .* is over' % ONE)
    again = ready(daemon, name=ONE, lun=1)
    assert again.run(write_atomic_16(24, 8), 1, out=pattern(97, 4096)).good


def test_sessions_and_their_exports_pass_over_an_upgrade(nbdkit, daemon, installed, ready):
    server = nbdkit('memory', '64M')
    daemon.target(TARGET, luns={0: ['backing-store = "%s"' % server.uri]})
    daemon.start()
    daemon.expected_trouble.append('connection to the NBD server|cannot be used|connected to')
    old = ready(daemon, name=ONE)
    old.write(8, pattern(1, 4096))
    daemon.control('upgrade')
    new = ready(daemon, name=TWO)
    assert new.read(8, 8) == pattern(1, 4096)
    assert old.run(bytes([0x35]) + bytes(9)).good()
    server.kill()
    server.start()
    old.write(8, pattern(2, 4096))
    assert new.read(8, 8) == pattern(2, 4096)


def write_atomic_16(lba, blocks):
    return struct.pack('>BBQHHBB', 0x9C, 0, lba, 0, blocks, 0, 0)


def test_an_old_session_gets_a_further_connection_and_is_reinstated(daemon, installed):
    """The login of the further connection is served by a worker of the new program, and joins the worker of
    the old one; then the initiator logs in again with the same ISID."""
    daemon.target(lines=['initiator-address = ALL', 'MaxConnections = 4'])
    daemon.start()
    isid, keys = bytes.fromhex('80abcdef0077'), {'MaxConnections': '4', 'InitialR2T': 'Yes'}
    first = Member(daemon.address, 1, Numbering(), isid=isid)
    first.login(TARGET, keys=keys)
    first.clear_attentions()
    worker = daemon.worker_of(first)
    installed.upgrade()
    daemon.control('upgrade')
    with Member(daemon.address, 2, first.numbering, isid=isid) as second:
        second.join(first, TARGET)
        first.write(0, pattern(1, 4096))
        assert second.read(0, 8) == pattern(1, 4096)
        assert daemon.worker_of(second).pid == worker.pid
        with Session(daemon.address, isid=isid, timeout=60) as again:
            again.login(TARGET)
            again.clear_attentions()
            assert again.read(0, 8) == pattern(1, 4096)
            assert facts(daemon)['sessions of an earlier program'] == '0'
            assert facts(daemon)['sessions'] == '1'
            again.logout()
    first.close()


def test_signals_and_a_second_upgrade(daemon, installed, ready):
    daemon.target()
    daemon.start()
    session = ready(daemon, name=ONE)
    installed.upgrade()
    daemon.signal(signal.SIGUSR2)
    daemon.logged('targetd 0.2.0 serves now', 60)
    daemon.signal(signal.SIGUSR2)
    daemon.logged(r'targetd 0.2.0 serves now \(before: 0.2.0\)', 60)
    assert facts(daemon)['sessions of an earlier program'] == '1 (version 0.1.0)'
    daemon.reload()
    os.rename(daemon.log_file, daemon.log_file + '.1')
    daemon.signal(signal.SIGUSR1)
    daemon.logged('the log was opened again', 15)
    session.write(0, pattern(1, 512))
    for name in ('targetd.pid', 'state/lock'):  # the locks are held
        with open(os.path.join(daemon.directory, name), 'r+') as file:
            with pytest.raises(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    daemon.signal(signal.SIGUSR2)
    daemon.signal(signal.SIGTERM)  # blocked for a moment, not lost
    assert daemon.process.wait(60) == 0
    daemon.process = None


@pytest.mark.parametrize('delay', [0.0, 0.8])
def test_a_kill_during_an_upgrade_is_a_crash(daemon, installed, ready, delay):
    daemon.target()
    daemon.start()
    load = Load(ready(daemon, name=ONE), 0)
    load.start()
    load.wait_until_busy()
    daemon.workers()
    daemon.signal(signal.SIGUSR2)
    time.sleep(delay)  # the moment of the kill, not a wait
    children = daemon.workers()
    daemon.process.kill()
    daemon.process.wait(10)
    load.join(20)
    for child in children:
        eventually(lambda child=child: _is_gone(child), 10, 'the end of %s' % child)
    daemon.process = None
    eventually(lambda: not is_listening(daemon.address))
    daemon.start()
    load.verify(ready(daemon, name=ONE))
