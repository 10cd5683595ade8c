"""The command `targetd` up to the start of the server, and the configuration and output of the demo."""

import os
import subprocess
import sys
import types

import pytest

from targetd import cli, demo
from targetd.config import loader, render
from targetd.errors import EXIT_CONFIG, EXIT_OK, EXIT_PORTAL, EXIT_USAGE, PortalError
from targetd.master.logins.portals import free_port

GOOD = '''[target iqn.2026-11.com.example:erp]
alias = ERP data
initiator-address = 10.0.5.0/24
initiator-name = iqn.1991-05.com.microsoft:*
incominguser = erp hidden-12-to-16
outgoinguser = back hidden-2-of-16
MaxBurstLength = 262144
[[lun 0]]
backing-store = /tmp/erp.img
size = 200M
thin = yes
write-cache = off
'''


SERVER = '''
[server]
pid-file = {directory}/pid
control-socket = {directory}/sock
state-dir = {directory}/state
log = stderr
[portal-group 1]
portal = 127.0.0.1:{port}
'''


@pytest.fixture
def conf(tmp_path):
    def conf(text):
        path = tmp_path / 'targetd.conf'
        path.write_text(text + SERVER.format(directory=tmp_path, port=free_port('127.0.0.1', 0)))
        os.chmod(str(path), 0o600)
        return str(path)

    return conf


@pytest.fixture
def server(monkeypatch):
    """Replaces master.daemon. `runs`: the arguments of its calls; `result`: what run() returns or
    raises."""
    import targetd.master as package

    runs = []
    daemon = types.ModuleType('targetd.master.daemon')
    daemon.runs, daemon.result = runs, EXIT_OK

    def run(path, configuration, foreground=False, vault=None, strict=False, whole=None):
        for each in (vault, whole):
            if each is not None:
                each.close()
        runs.append((path, configuration, foreground))
        if isinstance(daemon.result, BaseException):
            raise daemon.result
        return daemon.result

    daemon.run = run
    monkeypatch.setitem(sys.modules, 'targetd.master.daemon', daemon)
    monkeypatch.setattr(package, 'daemon', daemon, raising=False)
    return daemon


def test_t_explains_what_would_be_served_to_whom(conf, capsys, server):
    assert cli.main(['-t', '-c', conf(GOOD)]) == EXIT_OK
    out, err = capsys.readouterr()
    assert err == '' and not server.runs
    for words in (
        'listens on 127.0.0.1:',
        'iqn.2026-11.com.example:erp ("ERP data")',
        'portal group 1',
        'named iqn.1991-05.com.microsoft:*, at 10.0.5.0/24',
        'requires CHAP as erp, and authenticates itself as back (mutual CHAP)',
        'MaxBurstLength = 262144',
        'lun 0: /tmp/erp.img, 200M (created sparse if missing), thin, every write durable',
    ):
        assert words in out
    assert 'hidden' not in out


@pytest.mark.parametrize(
    'text, words',
    [
        ('', 'nothing would be served'),
        (GOOD.replace('initiator-', '#'), 'admits no initiator'),
        (
            GOOD.replace('10.0.5.0/24', 'ALL').replace('iqn.1991-05.com.microsoft:*', 'ALL'),
            'admits every initiator',
        ),
        (GOOD.replace('[[', 'state = offline\n[['), 'offline'),
        (GOOD.split('[[')[0], 'has no LUN'),
        (GOOD.replace('incominguser', '#').replace('outgoinguser', '#'), 'requires no CHAP'),
        (GOOD.replace('backing-store = /tmp/erp.img', 'type = ram'), 'lun 0: a ram store, 200M'),
    ],
)
def test_t_explains_a_setting(conf, capsys, text, words):
    assert cli.main(['-t', '-c', conf(text)]) == EXIT_OK
    assert words in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [['-t'], [], ['-f']])
def test_a_configuration_with_complaints_starts_nothing(conf, capsys, server, arguments):
    path = conf('[server]\nmax-sesions = 3\nuser\n')
    assert cli.main(arguments + ['-c', path]) == EXIT_CONFIG
    out, err = capsys.readouterr()
    assert out == '' and not server.runs
    lines = err.splitlines()
    assert lines[0].startswith('targetd: %s:2: ' % path) and lines[1].startswith(
        'targetd: %s:3: ' % path
    )
    assert '2 errors in the configuration; nothing was started' in lines[2]


OTHER_TARGETD = (
    'password: foo\nblock_pools: [vg-targetd/pool]\nuser: "bar"\nssl: false\n',
    '# /etc/target/targetd.yaml\n\npassword: foo\n',
    '---\nuser: admin\ntarget_name: iqn.2003-01.org.example.mach1:1234\n',
)


@pytest.mark.parametrize('text', OTHER_TARGETD)
@pytest.mark.parametrize('is_included', [False, True])
def test_the_yaml_of_the_other_targetd_is_refused_with_one_sentence(
    conf, capsys, server, tmp_path, text, is_included
):
    other = tmp_path / 'targetd.yaml'
    other.write_text(text)
    path = conf('include = %s\n' % other + GOOD) if is_included else str(other)
    assert cli.main(['-c', path]) == EXIT_CONFIG
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith('targetd: %s: this is the YAML configuration of the other' % other)
    assert 'saveconfig.json' in first and 'nothing was started' in last and not server.runs


def test_a_setting_with_a_colon_is_not_taken_for_yaml(conf, capsys, server):
    assert cli.main(['-t', '-c', conf('[server]\nuser: targetd\n')]) == EXIT_CONFIG
    assert 'YAML' not in capsys.readouterr().err


def test_the_server_is_started_with_path_configuration_and_foreground(conf, server):
    path = conf(GOOD)
    assert cli.main(['-c', path]) == EXIT_OK and cli.main(['-f', '-c', path]) == EXIT_OK
    assert [(p, list(c.targets), f) for p, c, f in server.runs] == [
        (path, ['iqn.2026-11.com.example:erp'], False),
        (path, ['iqn.2026-11.com.example:erp'], True),
    ]


def test_an_error_of_the_server_is_printed_and_sets_the_exit_code(conf, server, capsys):
    server.result = PortalError('portal 0.0.0.0:3260 cannot be opened: the port is taken')
    assert cli.main(['-c', conf(GOOD)]) == EXIT_PORTAL
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == 'targetd: portal 0.0.0.0:3260 cannot be opened: the port is taken'
    )


def test_help_version_and_wrong_arguments(capsys):
    for arguments, code in (
        (['--version'], 0),
        (['-h'], 0),
        (['--nonsense'], EXIT_USAGE),
        (['extra'], EXIT_USAGE),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == code
    assert cli.main(['--demo', '-t']) == EXIT_USAGE
    assert cli.main(['--help-settings', 'max_sessions']) == EXIT_OK
    out = capsys.readouterr().out
    assert '[server]\n\nmax-sessions\n' in out and '[target NAME]\n\nmax-sessions\n' in out
    assert cli.main(['--help-settings']) == EXIT_OK and 'MaxBurstLength' in capsys.readouterr().out
    assert cli.main(['--help-settings', 'max-sesions']) == EXIT_USAGE
    assert 'did you mean max-sessions?' in capsys.readouterr().err


def test_the_configuration_of_the_demo_uses_its_directory_only(tmp_path):
    configuration = loader.load(demo.write_configuration(str(tmp_path), '::1', 3261))
    here = str(tmp_path)
    server, (target,) = configuration.server, configuration.targets.values()
    assert (server.pid_file, server.control_socket, server.state_dir) == (
        here + '/targetd.pid',
        here + '/targetd.sock',
        here + '/state',
    )
    assert server.log == 'stderr' and os.path.isdir(server.state_dir)
    assert configuration.portal_groups[1].portals == (('::1', 3261),)
    assert target.luns[0].backing_store == here + '/disk.img' and target.luns[0].size == 1 << 30


def test_the_demo_prints_the_exact_commands(tmp_path):
    text = demo.instructions('/d', '127.0.0.1', 3260)
    for line in (
        'iscsi-ls -s iscsi://127.0.0.1:3260',
        'iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260',
        'iscsiadm -m node -T %s -p 127.0.0.1:3260 --login' % demo.TARGET_NAME,
        'New-IscsiTargetPortal -TargetPortalAddress 127.0.0.1 -TargetPortalPortNumber 3260',
        'Connect-IscsiTarget -NodeAddress ' + demo.TARGET_NAME,
        '/d/disk.img',
        'from this machine only',
    ):
        assert line in text
    assert 'in use' not in text
    text = demo.instructions('/d', '2001:db8::1', 4000)
    assert (
        'port 3260 is in use' in text
        and 'iscsi://[2001:db8::1]:4000' in text
        and 'from this machine only' not in text
    )
    assert '-TargetPortalAddress 2001:db8::1 ' in text


@pytest.mark.parametrize('result', [EXIT_OK, KeyboardInterrupt()])
def test_the_demo_runs_in_the_foreground_and_prints_the_path_of_the_disk(
    server, capsys, monkeypatch, tmp_path, result
):
    monkeypatch.setattr(demo.tempfile, 'tempdir', str(tmp_path))
    server.result = result
    assert cli.main(['--demo']) == EXIT_OK
    ((path, configuration, foreground),) = server.runs
    out = capsys.readouterr().out
    assert foreground and path.startswith(str(tmp_path / 'targetd-demo-'))
    assert 'The file of the disk was not removed: %s/disk.img' % os.path.dirname(path) in out
    ((address, port),) = configuration.portal_groups[1].portals
    assert address == '127.0.0.1' and 'iscsi://127.0.0.1:%d' % port in out


def test_the_demo_at_an_invalid_address(server, capsys):
    assert cli.main(['--demo', 'localhost']) == EXIT_USAGE
    assert 'localhost' in capsys.readouterr().err and not server.runs


def test_the_demo_at_a_wildcard_names_an_address_of_this_host(
    server, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(demo.tempfile, 'tempdir', str(tmp_path))
    assert cli.main(['--demo', '0.0.0.0']) == EXIT_OK
    assert 'iscsi://0.0.0.0' not in capsys.readouterr().out
    assert server.runs[0][1].portal_groups[1].portals[0][0] == '0.0.0.0'


def test_the_locale_of_init_scripts_is_supported(tmp_path):
    """With LANG=C an alias is shown, and a file found, whose name is not ASCII."""
    (tmp_path / 'gr\u00f6\u00dfe.img').write_bytes(b'x')
    path = tmp_path / 'targetd.conf'
    text = GOOD.replace('ERP data', 'Gr\u00f6\u00dfe').replace(
        '/tmp/erp.img', 'gr\u00f6\u00dfe.img'
    )
    text += SERVER.format(directory=tmp_path, port=free_port('127.0.0.1', 0))
    path.write_bytes(text.encode('utf-8'))
    path.chmod(0o600)
    environment = dict(
        os.environ, LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0', PYTHONIOENCODING=''
    )
    run = subprocess.run(
        [sys.executable, '-m', 'targetd', '-t', '-c', str(path)],
        env=environment,
        cwd=render.TREE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert (run.returncode, run.stderr) == (EXIT_OK, b'')
    assert b'("Gr' in run.stdout


def test_python_m_targetd_is_the_command(capsys):
    import runpy

    saved, sys.argv = sys.argv, ['targetd', '--version']
    try:
        with pytest.raises(SystemExit) as caught:
            runpy.run_module('targetd', run_name='__main__')
    finally:
        sys.argv = saved
    assert caught.value.code == 0 and capsys.readouterr().out.startswith('targetd ')


def test_the_check_prints_the_identity_of_each_lun(conf, capsys, tmp_path):
    text = (
        '[target iqn.2026-11.com.example:t]\n'
        '  [[lun 1]]\n  type = ram\n  size = 1M\n  identity = tgt tid=1 lun=1\n'
        '  [[lun 2]]\n  type = ram\n  size = 1M\n'
    )
    assert cli.main(['-t', '-c', conf(text)]) == EXIT_OK
    output = capsys.readouterr().out
    one, two = output.split('lun 1:')[1].split('lun 2:')
    for line in (
        'INQUIRY: IET VIRTUAL-DISK 0001',
        'serial number: beaf11',
        'naa: 3000000100000001, 60000000000000000e00000000010001',
        't10: IET     00010001',
        'Linux name: 360000000000000000e00000000010001',
    ):
        assert '    %s\n' % line in one
    assert 'naa: derived when targetd first starts' in two and 'Linux name' not in two
    assert not (tmp_path / 'state').exists()
