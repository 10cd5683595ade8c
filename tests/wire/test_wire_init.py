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
            return int(file.read() or 0)  # it is created before it is written


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


# -- the functions of RHEL 6 -----------------------------------------------------------------------

# What /etc/rc.d/init.d/functions of RHEL 6 does that matters here: it sets PATH and umask, and has
# functions with names like those of actions.
RHEL = '''
TEXTDOMAIN=initscripts
umask 022
PATH="/sbin:/usr/sbin:/bin:/usr/bin"
export PATH
BOOTUP=color
success() { [ "$BOOTUP" != verbose ] && echo -n "[  OK  ]"; return 0; }
failure() { local rc=$?; [ "$BOOTUP" != verbose ] && echo -n "[FAILED]"; return $rc; }
warning() { local rc=$?; echo -n "[WARNING]"; return $rc; }
status() { return 99; }
daemon() { return 99; }
killproc() { return 99; }
checkpid() { return 99; }
'''


@pytest.fixture
def rhel(plain):
    """The script with the functions of RHEL 6."""
    functions = os.path.join(plain.daemon.directory, 'functions')
    with open(functions, 'w') as file:
        file.write(RHEL)
    subsys = os.path.join(plain.daemon.directory, 'subsys')
    os.mkdir(subsys)
    plain.shell = ['bash']
    plain.environment.update(
        LSB_FUNCTIONS='/nonexistent', RHEL_FUNCTIONS=functions, SUBSYS=subsys, TARGETD_TEST='1'
    )
    return plain


def test_the_functions_of_rhel_6(rhel):
    lock = os.path.join(rhel.environment['SUBSYS'], 'targetd')
    assert rhel('status')[0] == 3
    code, output = rhel('start')
    assert code == 0 and 'is started: serving 1 of 1 LUN' in output and '[  OK  ]\n' in output
    assert os.path.exists(lock)  # without it RHEL would not stop the service at a shutdown
    assert rhel('status')[0] == 0 and rhel('start')[0] == 0
    assert rhel('restart')[0] == 0 and os.path.exists(lock)
    assert rhel('stop')[0] == 0 and not os.path.exists(lock)
    code, output = rhel('reload')
    assert code == 7 and '[FAILED]\n' in output


# -- check and drain -------------------------------------------------------------------------------


def test_check_explains_the_configuration_and_has_the_codes_of_start(plain):
    code, output = plain('check')
    assert code == 0 and TARGET in output
    lun_1(plain, 'backing-store = /nonexistent/a', 'size = 1M')
    code, output = plain('check')
    assert code == 0 and '/nonexistent/a' in output
    assert plain('check', OPTIONS='--strict')[0] == 1
    plain.daemon.text.server['user'] = 'no-such-user'
    plain.daemon.write_config()
    assert os.geteuid() != 0 or plain('check')[0] == 1
    with open(plain.daemon.config, 'a') as file:
        file.write('nonsense\n')
    code, output = plain('check')
    assert code == 6 and 'this line is neither' in output
    assert plain('status')[0] == 3  # nothing was started


def test_drain_asks_the_running_server(plain):
    directory = plain.daemon.directory
    assert plain('drain')[0] == 7
    assert plain('start')[0] == 0
    control = os.path.join(directory, 'control')
    for exit_code, expected in ((0, 0), (1, 1)):
        with open(control, 'w') as file:
            file.write('#!/bin/sh\necho "asked: $@"\nexit %d\n' % exit_code)
        os.chmod(control, 0o755)
        code, output = plain('drain', CONTROL=control)
        assert code == expected
        assert 'asked: -s %s drain\n' % os.path.join(directory, 'targetd.sock') in output
    assert plain('stop')[0] == 0


# -- upstart, systemd, logrotate ---------------------------------------------------------------------

#: The stanzas that upstart 0.6.5 of RHEL 6 knows, of which some are needed.
UPSTART = (
    'description',
    'start on',
    'stop on',
    'respawn',
    'kill timeout',
    'limit',
    'script',
    'end script',
)


def test_the_job_of_upstart_has_only_stanzas_that_rhel_6_knows():
    with open(os.path.join(ROOT, 'init/upstart/targetd.conf')) as file:
        text = file.read()
    before, script = text.split('\nscript\n')
    body, after = script.split('end script\n')
    for line in before.splitlines():
        assert not line or line[0] == '#' or line.startswith(UPSTART), line
    assert after == '' and before.count('\nrespawn\n') == 1
    assert subprocess.run(['sh', '-n'], input=body.encode()).returncode == 0
    # it does not fork: "expect" would follow a child
    assert 'exec targetd -f ' in body and 'expect' not in before


def test_the_scripts_of_the_supervisors_run_the_server_in_their_place(daemon):
    daemon.target()
    daemon.write_config()
    script = Init(daemon, ['sh'], False)
    for name in ('runit', 's6'):
        run = os.path.join(ROOT, 'init', name, 'run')
        for shell in ('dash', 'bash'):
            process = subprocess.Popen(
                [shell, run],
                env=dict(
                    os.environ,
                    PATH='%s:%s' % (daemon.directory, os.environ['PATH']),
                    CONFIG=daemon.config,
                ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
            )
            try:
                eventually(lambda: is_listening(daemon.address), 20)
                eventually(lambda pid=process.pid: script.pid == pid, 20)
            finally:
                process.terminate()
            assert process.wait(20) == 0


def has(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason='%s is not installed' % program)


@has('systemd-analyze')
@pytest.mark.parametrize('unit', ['targetd.service', 'targetd-web.service'])
def test_systemd_accepts_the_unit(tmp_path, unit):
    shutil.copy(os.path.join(ROOT, 'init', unit), str(tmp_path))
    done = subprocess.run(
        ['systemd-analyze', 'verify', '--man=no', '--recursive-errors=no', str(tmp_path / unit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout.decode()


@has('systemd-sysusers')
@has('systemd-tmpfiles')
def test_the_snippets_make_the_user_and_the_directory(tmp_path):
    root = str(tmp_path)
    for folder in ('etc', 'usr/lib/sysusers.d', 'usr/lib/tmpfiles.d', 'var/lib'):
        os.makedirs(os.path.join(root, folder))
    for kind in ('sysusers', 'tmpfiles'):
        shutil.copy(
            os.path.join(ROOT, 'init/systemd/%s.conf' % kind),
            '%s/usr/lib/%s.d/targetd.conf' % (root, kind),
        )
    (tmp_path / 'etc/passwd').write_text('root:x:0:0::/root:/bin/sh\n')
    (tmp_path / 'etc/group').write_text('root:x:0:\n')
    subprocess.check_call(['systemd-sysusers', '--root', root])
    assert '\ntargetd:' in (tmp_path / 'etc/passwd').read_text()
    subprocess.check_call(['systemd-tmpfiles', '--root', root, '--create', 'targetd.conf'])
    assert (tmp_path / 'var/lib/targetd').is_dir()


@has('logrotate')
@pytest.mark.skipif(os.geteuid() != 0, reason='the log files belong to root')
def test_logrotate_rotates_the_log_of_a_running_server(plain):
    daemon, directory = plain.daemon, plain.daemon.directory
    assert plain('start')[0] == 0
    with open(os.path.join(ROOT, 'etc/logrotate')) as file:
        text = file.read()
    log = '/var/log/targetd.log'
    assert text.count(log) == 1
    text = text.replace(log, daemon.log_file).replace('/etc/default/targetd', plain.defaults)
    rotation = os.path.join(directory, 'rotation')
    with open(rotation, 'w') as file:
        file.write('su root root\n' + text)
    os.chmod(directory, 0o755)
    subprocess.check_call(
        ['logrotate', '-f', '-s', os.path.join(directory, 'rotation.state'), rotation],
        env=dict(os.environ, PATH='%s:%s' % (directory, os.environ['PATH'])),
    )
    with open(daemon.log_file + '.1') as file:
        assert 'serving 1 target' in file.read()
    assert plain('reload')[0] == 0
    eventually(lambda: os.path.getsize(daemon.log_file), 20)  # the server writes into the new file
    assert plain('stop')[0] == 0
