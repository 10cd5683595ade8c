"""Tests of init/targetd, the SysV script, in a temporary folder: every action, LSB exit codes,
several shells, with and without LSB functions."""

import os
import shutil
import signal
import socket
import stat
import subprocess

import psutil
import pytest
from daemon import ROOT, TARGET, eventually, is_listening

pytestmark = pytest.mark.wire

SCRIPT = os.path.join(ROOT, 'init', 'targetd')
SHELLS = [
    (['dash'], False),
    (['dash'], True),
    (['bash'], True),
    (['bash', '--posix'], False),
    (['busybox', 'sh'], False),
]
LSB = '''
log_success_msg() { echo "LSB ok: $@"; }
log_failure_msg() { echo "LSB failure: $@"; }
log_warning_msg() { echo "LSB warning: $@"; }
'''


class Init(object):
    """The script; all files that it uses are in `directory`."""

    def __init__(self, daemon, shell, with_lsb):
        self.daemon = daemon
        self.shell = shell
        directory = daemon.directory
        self.program = os.path.join(directory, 'targetd')
        with open(self.program, 'w') as file:
            file.write('#!/bin/sh\nPYTHONPATH=%s exec %s -m targetd "$@"\n' % (ROOT, daemon.python))
        os.chmod(self.program, 0o755)
        self.defaults = os.path.join(directory, 'defaults')
        with open(self.defaults, 'w') as file:
            file.write('DAEMON=%s\nCONFIG=%s\nSTOP_SECONDS=20\n' % (self.program, daemon.config))
        functions = os.path.join(directory, 'init-functions')
        if with_lsb:
            with open(functions, 'w') as file:
                file.write(LSB)
        self.environment = dict(
            os.environ,
            DEFAULTS=self.defaults,
            SYSCONFIG='/nonexistent',
            LSB_FUNCTIONS=functions,
            ALLOW_USER='1',
        )
        daemon.write_config()

    def __call__(self, action, **more):
        """Runs an action; returns (exit code, output)."""
        done = subprocess.run(
            self.shell + [SCRIPT] + ([action] if action else []),
            env=dict(self.environment, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return done.returncode, done.stdout.decode()

    @property
    def pid(self):
        with open(os.path.join(self.daemon.directory, 'targetd.pid')) as file:
            return int(file.read())


@pytest.fixture(
    params=SHELLS, ids=lambda value: '%s-%s' % ('_'.join(value[0]), 'lsb' if value[1] else 'plain')
)
def init(daemon, request):
    shell, with_lsb = request.param
    if shutil.which(shell[0]) is None:
        pytest.skip('%s is not installed' % shell[0])
    daemon.target()
    daemon.text.server['stop-timeout'] = '2'
    script = Init(daemon, shell, with_lsb)
    yield script
    try:
        # only where the test failed: an ordered stop removes the file
        psutil.Process(script.pid).kill()
    except (OSError, ValueError, psutil.NoSuchProcess):
        pass


def test_every_action_of_the_init_script(init):
    daemon = init.daemon
    assert init('status')[0] == 3
    code, output = init('start')
    assert code == 0, output + daemon.log
    assert is_listening(daemon.address)  # start returns only when it serves
    pid = init.pid
    assert init('status')[0] == 0 and str(pid) in init('status')[1]
    assert init('start')[0] == 0 and init.pid == pid
    for action in ('reload', 'force-reload'):
        before = daemon.log.count('reload')
        assert init(action)[0] == 0
        eventually(lambda before=before: daemon.log.count('reload') > before, 5)
        assert init.pid == pid
    assert init('restart')[0] == 0
    assert init.pid != pid
    pid = init.pid
    assert init('try-restart')[0] == 0 and init.pid != pid
    code, output = init('stop')
    assert code == 0 and 'stopped' in output
    assert not is_listening(daemon.address)
    assert init('stop')[0] == 0
    assert init('reload')[0] == 7 and init('force-reload')[0] == 7
    assert init('condrestart')[0] == 0 and init('status')[0] == 3


@pytest.fixture
def plain(daemon):
    daemon.target()
    daemon.text.server['stop-timeout'] = '2'
    return Init(daemon, ['sh'], False)


def test_an_unknown_action_prints_the_usage(plain):
    for action in ('', 'nonsense'):
        code, output = plain(action)
        assert code == 2 and 'Usage' in output


def test_an_invalid_configuration_does_not_stop_the_daemon(plain):
    assert plain('start')[0] == 0
    pid = plain.pid
    with open(plain.daemon.config, 'a') as file:
        file.write('\nnonsense\n')
    for action in ('restart', 'try-restart', 'reload', 'force-reload'):
        code, output = plain(action)
        assert code == 6 and 'this line is neither' in output
        assert plain.pid == pid and is_listening(plain.daemon.address)
    assert plain('stop')[0] == 0
    code, output = plain('start')
    assert code == 6 and plain.daemon.config in output


def test_missing_programs_and_files_have_lsb_exit_codes(plain):
    with open(plain.defaults, 'a') as file:
        file.write('DAEMON=/nonexistent/targetd\n')
    assert plain('start')[0] == 5
    with open(plain.defaults, 'a') as file:
        file.write('DAEMON=%s\nCONFIG=/nonexistent.conf\n' % plain.program)
    assert plain('start')[0] == 6


@pytest.mark.skipif(os.geteuid() == 0, reason='run as root, who may')
def test_only_root_starts(plain):
    assert plain('start', ALLOW_USER='')[0] == 4


def test_a_stale_pid_file(plain):
    assert plain('start')[0] == 0
    master = psutil.Process(plain.pid)
    workers = master.children()
    master.send_signal(signal.SIGKILL)
    psutil.wait_procs([master] + workers, 10)
    assert plain('status')[0] == 1
    assert plain('start')[0] == 0
    assert plain('stop')[0] == 0


def test_a_pid_file_that_names_another_program(plain):
    with subprocess.Popen(['sleep', '60']) as other:
        with open(os.path.join(plain.daemon.directory, 'targetd.pid'), 'w') as file:
            file.write('%d\n' % other.pid)
        assert plain('status')[0] == 1
        assert plain('stop')[0] == 0
        assert other.poll() is None
        other.kill()


def test_a_busy_port_is_reported(plain):
    with socket.socket() as taken:
        taken.bind(plain.daemon.address)
        taken.listen(1)
        code, output = plain('start')
        assert code == 1 and str(plain.daemon.port) in output
        assert plain('status')[0] in (1, 3)


@pytest.mark.skipif(shutil.which('shellcheck') is None, reason='shellcheck is not installed')
def test_shellcheck():
    done = subprocess.run(['shellcheck', SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


def test_script_may_be_executed():
    assert os.stat(SCRIPT).st_mode & stat.S_IXUSR


def test_the_init_script_reports_a_disk_that_could_not_be_flushed(init):
    daemon = init.daemon
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'filter = error flush']})
    daemon.write_config()
    assert init('start')[0] == 0
    for action, code in (('stop', 1), ('start', 0), ('restart', 1), ('stop', 1), ('stop', 0)):
        found, output = init(action)
        assert found == code, output + daemon.log
        assert not code or TARGET + '/0 ' in output and 'data may be lost' in output
    assert os.path.exists(os.path.join(daemon.directory, 'targetd.pid.failures'))
    daemon.target()
    daemon.write_config()
    assert init('start')[0] == 0
    assert not os.path.exists(os.path.join(daemon.directory, 'targetd.pid.failures'))


def lun_1(init, *rows):
    init.daemon.text.targets.clear()
    luns = {0: ['backing-store = %s' % init.daemon.image()]}
    if rows:
        luns[1] = list(rows)
    init.daemon.target(luns=luns)
    init.daemon.write_config()


def test_start_says_what_is_served_and_what_waits(plain):
    lun_1(plain)
    code, output = plain('start')
    assert (
        code == 0
        and 'serving 1 of 1 LUN on 1 of 1 portal' in output
        and 'not served yet' not in output
    )
    assert plain('stop')[0] == 0
    lun_1(plain, 'backing-store = /nonexistent/a', 'size = 1M')
    code, output = plain('start')
    assert code == 0 and 'not served yet: lun 1' in output and 'serving 1 of 2 LUNs' in output
    pid = plain.pid
    assert plain('restart')[0] == 0 and plain.pid != pid
    pid = plain.pid
    code, output = plain('restart', OPTIONS='--strict')
    assert code == 1 and 'nothing was changed' in output and plain.pid == pid
    assert plain('stop')[0] == 0
    code, output = plain('start', OPTIONS='--strict')
    assert code == 1 and '/nonexistent' in output and plain('status')[0] != 0


def test_a_restart_does_not_stop_a_server_for_a_configuration_that_cannot_start(plain):
    assert plain('start')[0] == 0
    pid = plain.pid
    plain.daemon.text.server['user'] = 'no-such-user'
    plain.daemon.write_config()
    for action in ('restart', 'try-restart', 'reload'):
        code, output = plain(action)
        assert (code == 0 and os.geteuid() != 0) or (code == 1 and 'no-such-user' in output)
        assert plain.pid == pid and is_listening(plain.daemon.address)
    del plain.daemon.text.server['user']
    plain.daemon.write_config()
    assert plain('stop')[0] == 0


def test_a_server_without_its_pid_file_is_found_and_another_program_is_left_alone(plain):
    assert plain('start')[0] == 0
    pid = plain.pid
    path = os.path.join(plain.daemon.directory, 'targetd.pid')
    os.unlink(path)
    assert plain('status')[0] == 0 and str(pid) in plain('status')[1]
    assert plain('start')[0] == 0 and 'already running' in plain('start')[1]
    other = subprocess.Popen(['tail', '-f', plain.daemon.log_file], stdout=subprocess.DEVNULL)
    try:
        with open(path, 'w') as file:
            file.write('%d\n' % other.pid)
        assert plain('stop')[0] == 0
        assert not is_listening(plain.daemon.address)
        with open(path, 'w') as file:
            file.write('%d\n' % other.pid)
        assert plain('status')[0] == 1 and plain('stop')[0] == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
