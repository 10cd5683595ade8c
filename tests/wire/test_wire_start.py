"""`targetd -t`, the start and a reload give the same answer; what waits is served later; one missing LUN
takes only itself away; the lock of the pid file is the truth."""

import json
import os
import re
import shutil
import subprocess
import sys

import psutil
import pytest
from daemon import TARGET, eventually, is_listening
from initiator import connect

pytestmark = pytest.mark.wire

MIB = 1 << 20

#: (settings of LUN 1, what -t, the start and a reload say)
LUNS = [
    (['backing-store = {d}'], 'is a directory; name a file or a block device'),
    (['backing-store = /dev/null'], 'neither a file nor a block device'),
    (
        ['backing-store = {d}/images/a.img', 'size = 1M'],
        'images does not exist; create the directory',
    ),
    (['backing-store = {d}/empty.img'], 'is empty; write a size'),
    (['backing-store = {d}/odd.img'], 'not a multiple of the block size'),
    (['backing-store = {d}/large.img', 'size = 1M'], 'a file is never made shorter'),
    (['backing-store = {d}/none.img', 'size = 1M', 'readonly = yes'], 'cannot be served readonly'),
    (['backing-store = serial:NO-SUCH'], 'matches no disk of this host'),
]

#: (setting of [server], value, what -t, the start and a reload say)
SERVER = [
    ('user', 'no-such-user', 'there is no user no-such-user'),
    ('log', '{d}/none/log', 'there is no directory'),
    ('pid-file', '{d}/odd.img/pid', 'is not a directory'),
    ('control-socket', '{d}/odd.img', 'there is a file of that name'),
    ('state-dir', '{d}/odd.img/x', 'is not a directory'),
]


@pytest.fixture
def files(daemon):
    for name, size in (('empty.img', 0), ('odd.img', MIB + 1), ('large.img', 4 * MIB)):
        daemon.image(name, size)
    return daemon


def good():
    return ['backing-store = {d}/disk.img', 'size = 4M']


def filled(daemon, rows):
    return [row.replace('{d}', daemon.directory) for row in rows]


def serve(daemon, *rows):
    """Write a target whose LUN 0 is good, with these LUNs behind it."""
    luns = dict(enumerate([filled(daemon, good())] + [filled(daemon, r) for r in rows]))
    daemon.text.targets.clear()
    daemon.target(luns=luns)


in_network = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which('ip') and shutil.which('nsenter')),
    reason='needs root and network namespaces',
)


def portals(daemon):
    return json.loads(daemon.targetdctl('--json', 'show', 'portals')[1])


@pytest.mark.parametrize('rows, words', LUNS, ids=[words[:20] for _, words in LUNS])
def test_test_start_and_reload_say_the_same_about_a_lun(files, rows, words):
    daemon = files
    serve(daemon, rows)
    code, output = daemon.check()
    assert code == 5 and words in output and '1 of 2 LUNs would be served' in output, output
    daemon.start()
    daemon.logged('lun 1 of %s is not served.*%s' % (TARGET, re.escape(words)))
    assert daemon.units()[0]['state'] == 'ready' and words in daemon.units()[1]['state']
    serve(daemon)
    daemon.reload('reload: ')
    serve(daemon, rows)
    daemon.write_config()
    for command in (['reload', '--plan'], ['reload']):
        code, output = daemon.targetdctl(*command)
        assert code == 5 and words in output, output
    assert list(daemon.units()) == [0]


@pytest.mark.parametrize('setting, value, words', SERVER, ids=[row[0] for row in SERVER])
def test_test_start_and_reload_say_the_same_about_the_server(files, setting, value, words):
    daemon = files
    serve(daemon)
    daemon.start()
    original = dict(daemon.text.server)
    daemon.text.server[setting] = filled(daemon, [value])[0]
    codes = []
    code, output = daemon.check()
    assert code != 0 and words in output, output
    codes.append(code)
    for command in (['reload', '--plan'], ['reload']):
        code, output = daemon.targetdctl(*command)
        assert words in output, output
        codes.append(code)
    daemon.stop()
    code, output = daemon.run_once()
    assert words in output and code in codes and 0 not in codes
    assert not is_listening(daemon.address)
    daemon.text.server.clear()
    daemon.text.server.update(original)
    daemon.start()  # nothing is left that stands in the way


def test_the_running_server_does_not_disturb_the_test(files):
    daemon = files
    serve(daemon)
    daemon.start()
    code, output = daemon.check()
    assert code == 0 and 'would' not in output, output


@in_network
def test_a_portal_whose_address_is_absent_waits_and_is_opened(files, monkeypatch):
    daemon = files
    serve(daemon)
    daemon.text.portal('192.0.2.177:%d' % daemon.port)
    code, output = daemon.check()
    assert code == 0 and 'this host has no such address' in output
    inside = ['unshare', '-n', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh']
    command = daemon.command
    with monkeypatch.context() as patched:
        patched.setattr(daemon, 'command', lambda *arguments: inside + command(*arguments))
        daemon.launch()
    daemon.logged('serving 1 target')
    rows = portals(daemon)
    assert [row['state'] for row in rows] == ['open', 'waiting'] and 'no such address' in rows[1][
        'why'
    ]
    add = ['nsenter', '-n', '-t', str(daemon.process.pid)]
    subprocess.check_call(add + 'ip address add 192.0.2.177/32 dev lo'.split(), timeout=20)
    eventually(
        lambda: [row['state'] for row in portals(daemon)] == ['open', 'open'], 20, 'the portal open'
    )
    daemon.logged('portal 192.0.2.177:%d is open now' % daemon.port)


def test_a_required_portal_whose_address_is_absent_refuses_start_and_reload(files):
    daemon = files
    serve(daemon)
    daemon.start()
    daemon.text.portal('192.0.2.177:3260')
    daemon.text.server['portal-required'] = 'yes'
    assert daemon.check()[0] == 4
    for command in (['reload', '--plan'], ['reload']):
        code, output = daemon.targetdctl(*command)
        assert code == 4 and 'no such address' in output
    daemon.stop()
    code, output = daemon.run_once()
    assert code == 4 and 'no such address' in output


def test_a_reload_adds_a_portal_that_waits(files):
    daemon = files
    serve(daemon)
    daemon.start()
    daemon.text.portal('192.0.2.177:3260')
    daemon.write_config()
    assert daemon.targetdctl('reload')[0] == 0
    assert 'waiting' in daemon.targetdctl('show', 'portals')[1]
    daemon.text.groups[1].pop()
    daemon.write_config()
    assert daemon.targetdctl('reload')[0] == 0
    assert 'waiting' not in daemon.targetdctl('show', 'portals')[1]


def test_strict_refuses_a_start_that_is_not_complete(files):
    daemon = files
    serve(daemon, LUNS[0][0])
    code, output = daemon.run_once('--strict')
    assert code == 5 and LUNS[0][1] in output and not is_listening(daemon.address)
    assert not os.path.exists(os.path.join(daemon.directory, 'targetd.pid'))


def run(daemon, *arguments, **more):
    """Run `targetd` in the folder of the test."""
    environment = dict(daemon.environment(), **more.pop('environment', {}))
    return subprocess.run(
        daemon.command(*arguments),
        cwd=daemon.directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        **more,
    )


@pytest.fixture
def background(files):
    """A server in the background, started with a relative path; `pid` is its process id."""
    daemon = files
    serve(daemon)
    daemon.write_config()
    done = run(daemon, '-c', 'targetd.conf')
    assert done.returncode == 0, done.stdout
    daemon.pid = int(run(daemon, '--pid', '-c', 'targetd.conf').stdout)
    yield daemon
    process = psutil.Process(daemon.pid)
    daemon.control('stop')
    process.wait(20)


def test_a_configuration_of_a_relative_path_is_reloaded(background):
    assert background.targetdctl('reload')[0] == 0


def test_the_server_is_found_without_its_pid_file_and_with_a_damaged_configuration(background):
    os.unlink(os.path.join(background.directory, 'targetd.pid'))
    with open(background.config, 'a') as f:
        f.write('\nnonsense\n')
    done = run(background, '--pid', '-c', 'targetd.conf')
    assert (done.returncode, int(done.stdout)) == (0, background.pid)


def test_a_word_in_a_command_line_is_not_a_server(files):
    """A pid file that names a program with `targetd` in its command line neither counts as a server nor
    prevents the start."""
    daemon = files
    serve(daemon)
    daemon.write_config()
    other = subprocess.Popen(
        [sys.executable, '-c', 'import sys; sys.stdin.read()', 'targetd'], stdin=subprocess.PIPE
    )
    try:
        with open(os.path.join(daemon.directory, 'targetd.pid'), 'w') as f:
            f.write('%d\n' % other.pid)
        assert run(daemon, '--pid', '-c', 'targetd.conf').returncode == 7
        daemon.start()
        daemon.stop()
        assert other.poll() is None
    finally:
        other.communicate()


@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_standard_files_do_not_disturb(files, closed):
    daemon = files
    serve(daemon)
    daemon.write_config()
    line = 'exec "$@" %s' % closed
    done = subprocess.run(
        ['sh', '-c', line, 'sh'] + daemon.command('-c', daemon.config),
        cwd=daemon.directory,
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 0, done
    pid = int(run(daemon, '--pid', '-c', daemon.config).stdout)
    assert all(os.readlink('/proc/%d/fd/%d' % (pid, n)) == os.devnull for n in (0, 1, 2))
    process = psutil.Process(pid)
    daemon.control('stop')
    process.wait(20)


@pytest.mark.parametrize(
    'command, package', [('targetd', 'configobj'), ('targetdctl', 'configobj')]
)
def test_a_missing_package_is_one_sentence(tmp_path, daemon, command, package):
    (tmp_path / (package + '.py')).write_text('raise ImportError("No module named %s")\n' % package)
    done = subprocess.run(
        [
            daemon.python,
            '-c',
            'import sys; from targetd import entry; sys.exit(entry.%s())' % command,
        ],
        env=dict(
            daemon.environment(),
            PYTHONPATH='%s:%s' % (tmp_path, daemon.environment()['PYTHONPATH']),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode()
    assert done.returncode == 1 and package in output and 'pip install' in output, output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize('addressed', [True, False])
def test_without_psutil_the_server_serves_and_says_what_is_missing(daemon, sessions, addressed):
    absent = os.path.join(daemon.directory, 'absent')
    os.mkdir(absent)
    with open(os.path.join(absent, 'psutil.py'), 'w') as file:
        file.write('raise ImportError("No module named psutil")\n')
    path = '%s:%s' % (absent, daemon.environment()['PYTHONPATH'])
    daemon.environment = lambda: dict(os.environ, PYTHONPATH=path, PYTHONUNBUFFERED='1')
    if not addressed:
        daemon.text.portal('192.0.2.1:3260')  # an address that this host does not have
    daemon.target()
    daemon.start()
    daemon.logged('psutil is not installed')  # after the portals are open
    assert daemon.log.count('psutil is not installed') == 1
    assert sessions(daemon).report_luns() == [0]
    assert TARGET in daemon.control('show', 'targets')


def test_targetdctl_alone_says_which_package_is_missing(tmp_path, daemon):
    (tmp_path / 'configobj.py').write_text('raise ImportError("No module named configobj")\n')
    path = '%s:%s' % (tmp_path, daemon.environment()['PYTHONPATH'])
    done = subprocess.run(
        [daemon.python, '-m', 'targetd.admin.cli', 'import', str(tmp_path / 'targets.conf')],
        env=dict(daemon.environment(), PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode()
    assert done.returncode == 1 and len(output.splitlines()) == 1, output
    assert 'configobj' in output and 'pip install' in output


in_namespace = pytest.mark.skipif(
    subprocess.call(['unshare', '-Urm', 'true'], stderr=subprocess.DEVNULL) != 0
    if os.path.exists('/usr/bin/unshare')
    else True,
    reason='no user namespaces',
)


@in_namespace
def test_a_root_with_one_user_id_is_told_so_in_one_sentence(files):
    daemon = files
    serve(daemon)
    daemon.write_config()
    done = subprocess.run(
        ['unshare', '-Ur'] + daemon.command('-f', '-c', daemon.config),
        cwd=daemon.directory,
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode()
    assert done.returncode == 1 and 'the workers cannot run as user nobody' in output, output
    assert 'Traceback' not in output and 'user = root' in output


@in_namespace
def test_a_host_without_proc_is_told_so_in_one_sentence(files):
    daemon = files
    serve(daemon)
    daemon.write_config()
    command = daemon.command('-f', '-c', daemon.config)
    done = subprocess.run(
        ['unshare', '-Urm', 'sh', '-c', 'mount -t tmpfs none /proc && exec "$@"', 'sh'] + command,
        cwd=daemon.directory,
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode()
    assert (
        done.returncode == 1 and '/proc is not mounted' in output and 'Traceback' not in output
    ), output


def test_a_secret_is_not_in_a_complaint(daemon):
    daemon.target()
    secret = 'very-hidden-word'
    for line in (
        'incominguser erp %s' % secret,
        'erp %s' % secret,
        '[incominguser erp %s' % secret,
        '[[[erp %s]]' % secret,
        'incominguser erp %s=' % secret,
        'incominguser = "erp %s' % secret,
        'incominguser = erp %s %s' % (secret, secret),
        'outgoinguser = erp "%s"x' % secret,
        'incomingusr = erp %s' % secret,
        '%s = x y' % ('a ' + secret),
    ):
        daemon.text.extra = line + '\n'
        code, output = daemon.check()
        assert code == 3 and secret not in output, output


def test_an_empty_file_gets_the_size_of_its_setting(daemon):
    path = daemon.image('empty.img', 0)
    daemon.target(luns={0: ['backing-store = %s' % path, 'size = 4M']})
    assert daemon.check()[0] == 0 and os.path.getsize(path) == 0
    daemon.start()
    assert daemon.units()[0]['size'] == os.path.getsize(path) == 4 * MIB


def test_a_missing_lun_takes_only_itself_away_and_its_return_is_reported(daemon):
    """3F/0E REPORTED LUNS DATA HAS CHANGED in the sessions of the target when the medium is there."""
    path = os.path.join(daemon.directory, 'late.img')
    serve(daemon, ['backing-store = %s' % path])
    daemon.start()
    with connect(daemon.address, TARGET) as session:
        session.clear_attentions()
        assert session.report_luns() == [0]
        assert session.read(0, 1) == bytes(512)
        daemon.image('late.img', 4 * MIB)
        daemon.write_config()
        assert daemon.targetdctl('reload')[0] == 0  # tries missing media at once
        daemon.logged('lun 1 of .* is available now')
        met = eventually(lambda: session.clear_attentions(), 10, 'a unit attention')
        assert met == [(6, 0x3F, 0x0E)]
        assert session.report_luns() == [0, 1]
        session.clear_attentions(1)
        assert session.read(0, 1, lun=1) == bytes(512)
