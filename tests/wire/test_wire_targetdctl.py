"""Each command of `targetdctl` with the real server: what it prints, without a server, with a wrong
argument, and by a member of control-group."""

import grp
import json
import os
import subprocess
import sys

import pytest
from daemon import ROOT, TARGET, eventually
from initiator import ASYNC, INITIATOR, LoginFailed, connect

from targetd.admin import cli, commands

pytestmark = pytest.mark.wire

ROWS = [row for row in commands.TABLE if not row.local]

#: words of a command -> (arguments, exit code, a part of the output) with one session and a refused login
OUTCOMES = {
    'status': ([], 0, 'running'),
    'show sessions': ([], 0, INITIATOR),
    'show targets': ([], 0, TARGET),
    'show units': ([], 0, TARGET + '/0'),
    'show errors': ([TARGET + '/0'], 0, 'no error is recorded'),
    'show portals': ([], 0, '127.0.0.1'),
    'show alua': ([], 0, 'no target reports ALUA states'),
    'why': ([], 0, 'iqn.2026-11.test:stranger'),
    'reload': (['--plan'], 0, 'nothing changed'),
    'reopen-logs': ([], 0, 'opened again'),
    'acknowledge': ([TARGET + '/0'], 1, 'has not failed'),
    'accept': ([TARGET + '/0'], 1, 'nothing to accept'),
    'alua': ([TARGET, '1', 'standby'], 1, 'write alua = implicit'),
    'kick': (['iqn.none'], 1, 'has no session'),
    'logout': (['4000000'], 1, 'there is no session'),
    'end': (['4000000'], 1, 'there is no session'),
}


@pytest.fixture(scope='module')
def served_by(shared):
    """The server of the module, with a session, and with a login that was refused."""
    with connect(shared.address, TARGET):
        try:
            connect(shared.address, 'iqn.2026-11.test:none', name='iqn.2026-11.test:stranger')
        except LoginFailed:
            pass
        yield shared


@pytest.mark.parametrize('words', sorted(OUTCOMES))
def test_a_command_and_the_server_understand_each_other(served_by, words):
    arguments, code, text = OUTCOMES[words]
    found, output = served_by.targetdctl(*(words.split() + arguments))
    assert found == code and text in output, output
    found, output = served_by.targetdctl(*(words.split() + arguments + ['--json']))
    assert found == code
    if code == 0:
        json.loads(output)


def test_why_names_status_windows_message_and_where_to_look(served_by):
    by_address = served_by.targetdctl('why', '127.0.0.1')[1]
    assert by_address == served_by.targetdctl('why')[1]
    for part in ('status: 02', 'windows shows: "', 'iScsiPrt event 10', 'look at: '):
        assert part in by_address, by_address
    assert 'no login was refused' in served_by.targetdctl('why', '10.9.9.9')[1]


@pytest.mark.parametrize('row', ROWS, ids=[row.words for row in ROWS])
def test_without_a_server_the_exit_code_is_7_and_a_wrong_argument_is_2(tmp_path, capsys, row):
    """In this process: the other tests start the program."""
    needed = {'number': '1', 'text': 'x', 'path': 'x'}
    words = ['-s', str(tmp_path / 'targetd.sock')] + row.words.split()
    words += [needed[a.kind] for a in row.arguments if a.required and a.kind in needed]
    assert cli.main(words) == 7
    assert 'is not running' in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(words + ['--nonsense'])
    assert caught.value.code == 2 and 'nonsense' in capsys.readouterr().err


def test_kick_asks_the_initiator_to_log_out_and_ends_its_session_then(daemon):
    daemon.target()
    daemon.start()
    with connect(daemon.address, TARGET) as polite, connect(
        daemon.address, TARGET, name='iqn.2026-11.test:other'
    ) as other:
        polite.clear_attentions()
        other.clear_attentions()
        output = daemon.control('kick', INITIATOR, '--seconds', '20')
        assert '1 session of %s is asked' % INITIATOR in output
        assert polite.until(ASYNC).bhs[36] == 1
        assert polite.logout() == 0
        assert other.read(0, 1) == bytes(512)
        daemon.control('kick', '127.0.0.1', '--seconds', '0')
        other.wait_closed()
    eventually(lambda: 'no initiator' in daemon.targetdctl('show', 'sessions')[1])


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_a_member_of_the_control_group_may_look_and_with_full_access_change(daemon):
    os.chmod(daemon.directory, 0o755)
    parent = os.path.dirname(daemon.directory)
    while parent != '/':
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
        parent = os.path.dirname(parent)
    group = grp.getgrgid(12) if any(g.gr_gid == 12 for g in grp.getgrall()) else grp.getgrall()[-1]
    daemon.text.server['control-group'] = group.gr_name
    daemon.target()
    daemon.start()
    code = (
        # who is no longer root may not be able to read the checkout
        'import os, sys; sys.path.insert(0, %r); import targetd.admin.cli as c, targetd.admin.local; '
        'os.setgroups(eval(sys.argv[1])); os.setgid(65534); os.setuid(65534); sys.exit(c.main(sys.argv[2:]))'
    ) % ROOT

    def run(groups, *words):
        done = subprocess.run(
            [sys.executable, '-c', code, repr(groups), '-s', daemon.directory + '/targetd.sock']
            + list(words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return done.returncode, done.stdout.decode()

    found = run([group.gr_gid], 'show', 'units')
    assert found[0] == 0, found
    code_, output = run([group.gr_gid], 'reload')
    assert code_ == 1 and 'is not allowed' in output
    for words in (['lun', 'remove', TARGET + '/0'], ['rollback', '1'], ['drain', TARGET]):
        code_, output = run([group.gr_gid], *words)
        assert code_ == 1 and 'is not allowed' in output
    assert run([group.gr_gid], 'show', 'config')[0] == 0
    assert run([], 'show', 'units')[0] == 1
    daemon.text.server['control-group-access'] = 'full'
    daemon.reload('control-group-access')
    assert run([group.gr_gid], 'reload')[0] == 0
