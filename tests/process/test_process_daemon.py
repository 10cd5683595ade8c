"""The command `targetd`: background, pid file, and the exit codes that init scripts use."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from targetd.config import model
from targetd.errors import EXIT_OK, EXIT_PORTAL, EXIT_RUNNING, TargetdError
from targetd.master import daemon
from targetd.master.daemon import PidFile
from targetd.master.logins.portals import free_port

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Home(object):
    """A directory with a configuration."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.port = free_port('127.0.0.1', 0)
        self.config = os.path.join(self.directory, 'targetd.conf')
        self.pid_file = os.path.join(self.directory, 'run', 'pid')
        self.write()

    def write(self, server='', portal=None):
        with open(self.config, 'w') as f:
            f.write(
                '[server]\npid-file = {0}/run/pid\ncontrol-socket = {0}/run/sock\nstate-dir = {0}/state\n'
                'log = {0}/log\n{1}\n'
                '[portal-group 1]\nportal = {2}\n[target iqn.2026-11.test:disk]\ninitiator-address = ALL\n'
                '[[lun 0]]\ntype = ram\nsize = 1M\n'.format(
                    self.directory, server, portal or '127.0.0.1:%d' % self.port
                )
            )
        os.chmod(self.config, 0o600)

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, '-m', 'targetd', '-c', self.config] + list(arguments),
            cwd=ROOT,
            timeout=60,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self):
        with open(self.pid_file) as f:
            return int(f.read())

    @property
    def log(self):
        with open(os.path.join(self.directory, 'log')) as f:
            return f.read()

    def stop(self, number=signal.SIGTERM):
        process = psutil.Process(self.pid)
        workers = process.children()
        process.send_signal(number)
        gone, alive = psutil.wait_procs([process] + workers, 20)
        assert not alive


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    yield home
    if os.path.exists(home.pid_file):
        try:
            os.kill(home.pid, signal.SIGKILL)
        except (OSError, ValueError):
            pass


def accepts(port):
    try:
        socket.create_connection(('127.0.0.1', port), 2).close()
    except OSError:
        return False
    return True


def test_the_command_returns_when_the_server_serves(home):
    result = home.run()
    assert result.returncode == EXIT_OK, result.stderr
    assert accepts(home.port)
    process = psutil.Process(home.pid)
    assert (
        process.terminal() is None
        and process.cwd() == '/'
        and os.getsid(home.pid) not in (home.pid, os.getsid(0))
    )
    assert all(os.readlink('/proc/%d/fd/%d' % (home.pid, n)) == os.devnull for n in (0, 1, 2))
    home.stop()
    assert not os.path.exists(home.pid_file) and not os.path.exists(
        os.path.join(home.directory, 'run', 'sock')
    )
    assert 'stopped' in home.log and not accepts(home.port)


def test_a_second_one_is_refused_with_the_first_ones_process_id(home):
    assert home.run().returncode == EXIT_OK
    result = home.run()
    assert result.returncode == EXIT_RUNNING and str(home.pid).encode() in result.stderr
    assert accepts(home.port)
    home.stop()


def test_a_busy_port_has_an_exit_code_and_a_message_and_leaves_no_files(home):
    with socket.socket() as busy:
        busy.bind(('127.0.0.1', home.port))
        busy.listen(1)
        for arguments in ((), ('-f',)):
            result = home.run(*arguments)
            assert result.returncode == EXIT_PORTAL and b'127.0.0.1:%d' % home.port in result.stderr
            assert b'process %d' % os.getpid() in result.stderr
    assert not os.path.exists(home.pid_file) and not os.path.exists(
        os.path.join(home.directory, 'run', 'sock')
    )


def test_a_user_that_does_not_exist(home):
    home.write('user = nobody-of-that-name')
    result = home.run()
    if os.geteuid() == 0:
        assert result.returncode == 1 and b'nobody-of-that-name' in result.stderr
    else:
        home.stop()


def test_a_log_that_cannot_be_written(home):
    home.write('log-level = info')
    os.mkdir(os.path.join(home.directory, 'log'))
    result = home.run()
    assert result.returncode == 1 and b'the log cannot be written' in result.stderr


def test_kill_9_ends_every_process_and_the_next_start_works(home):
    assert home.run().returncode == EXIT_OK
    first = home.pid
    home.stop(signal.SIGKILL)
    assert os.path.exists(home.pid_file)
    assert home.run().returncode == EXIT_OK
    assert home.pid != first
    home.stop()


def test_in_the_foreground_ctrl_c_is_an_ordered_stop(home):
    process = subprocess.Popen(
        [sys.executable, '-m', 'targetd', '-f', '-c', home.config],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 20
    while not accepts(home.port):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == EXIT_OK
    process.stderr.close()
    assert 'is flushed' in home.log


# -- the pid file ----------------------------------------------------------------------------------


def test_a_pid_file_is_locked_written_and_removed(tmp_path):
    path = str(tmp_path / 'deep' / 'pid')
    one = PidFile(path)
    one.lock_file()
    one.write()
    with open(path) as f:
        assert int(f.read()) == os.getpid()
    one.remove()
    one.remove()
    assert not os.path.exists(path)


def test_a_pid_file_of_a_process_that_is_gone_is_taken(tmp_path):
    path = str(tmp_path / 'pid')
    child = subprocess.Popen(['true'])
    child.wait()
    with open(path, 'w') as f:
        f.write('%d\n' % child.pid)
    one = PidFile(path)
    one.lock_file()
    one.remove()


def test_a_pid_file_that_names_another_program_is_taken(tmp_path):
    path = str(tmp_path / 'pid')
    with open(path, 'w') as f:
        f.write('1\n')
    one = PidFile(path)
    one.lock_file()
    one.remove()


def test_a_pid_file_is_private_and_is_not_opened_through_a_symbolic_link(tmp_path):
    path, victim = tmp_path / 'targetd.pid', tmp_path / 'victim'
    victim.write_text('kept')
    path.symlink_to(victim)
    with pytest.raises(TargetdError):
        PidFile(str(path)).lock_file()
    assert victim.read_text() == 'kept'
    path.unlink()
    path.write_text('')
    path.chmod(0o644)  # of an older version
    pid_file = PidFile(str(path))
    pid_file.lock_file()
    assert path.stat().st_mode & 0o777 == 0o600
    pid_file.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_another_user_cannot_use_the_control_socket_whatever_its_mode_is(stage_of_control):
    stage, path = stage_of_control
    os.chmod(stage.directory, 0o755)
    os.chmod(path, 0o777)
    ask = (
        'import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.settimeout(10); '
        's.connect(sys.argv[1]); sys.exit(len(s.recv(10)))'
    )
    client = subprocess.Popen([sys.executable, '-c', ask, path])
    stage.until(lambda: client.poll() is not None)
    assert client.returncode == 0  # the end of the stream, and no answer
    assert not stage.master.control._clients


@pytest.fixture
def stage_of_control():
    from puppets import DISK, OPEN, RAM, Stage, body

    directory = tempfile.mkdtemp(dir='/tmp')
    stage = Stage(directory)
    stage.port_number = free_port('127.0.0.1', 0)
    stage.start(body(stage, (DISK, OPEN, RAM)))
    yield stage, stage.master.state.configuration.server.control_socket
    stage.close()
    shutil.rmtree(directory)


def test_a_pid_file_that_cannot_be_created(tmp_path):
    with open(str(tmp_path / 'file'), 'w'):
        pass
    with pytest.raises(TargetdError) as caught:
        PidFile(str(tmp_path / 'file' / 'pid')).lock_file()
    assert 'pid file' in str(caught.value)


@pytest.mark.parametrize(
    'is_fast, offered, warnings',
    [(False, ('CRC32C', 'None'), 1), (True, ('CRC32C', 'None'), 0), (False, ('None',), 0)],
)
def test_slow_digests_are_logged_once_if_a_target_offers_them(
    monkeypatch, is_fast, offered, warnings
):
    said = []
    monkeypatch.setattr(daemon.crc32c, 'IS_FAST', is_fast)
    monkeypatch.setattr(daemon.log, 'warning', lambda text, *values: said.append(text % values))
    keys = {'HeaderDigest': offered, 'DataDigest': offered}
    targets = {
        name: model.Target(name=name, keys=keys)
        for name in ('iqn.2026-11.test:a', 'iqn.2026-11.test:b')
    }
    daemon._log_digests(model.Configuration(model.Server(), {}, targets, (), {}))
    assert len(said) == warnings and all('pip install crc32c' in line for line in said)
