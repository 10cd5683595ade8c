"""Command line and output of targetdctl."""

import json
import os
import re

import pytest
from fake_server import FakeServer

from targetd.admin import cli, commands, local, windows
from targetd.errors import EXIT_CONFIG, EXIT_NOT_RUNNING, EXIT_OK, EXIT_USAGE


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'targetd.sock')


def test_why_slow_is_a_command_beside_why():
    """`why` takes the name of an initiator; `why slow` is another command."""
    parse = cli.build_parser().parse_args
    slow = parse(cli.joined(['why', 'slow', '7', '--seconds', '5']))
    assert (slow.row.words, slow.session, slow.seconds) == ('why slow', 7, 5)
    assert parse(cli.joined(['--json', 'why', 'slow', '7'])).row.words == 'why slow'
    assert parse(cli.joined(['why', 'slow.example'])).who == 'slow.example'
    assert parse(cli.joined(['why'])).row.words == 'why'
    assert cli.joined(['show', 'sessions']) == ['show', 'sessions']


def test_only_the_command_that_is_used_is_added_to_the_parser():
    """With the others, building the parser would take as long as the rest of a command."""
    for before in ([], ['-s', 'show'], ['--json'], ['--wide', '--socket', 'x', '--json']):
        for row in commands.TABLE:
            found = cli.rows_of(before + row.words.split() + ['x'])
            assert row in found and len(found) <= 2, row.words
    assert [row.words for row in cli.rows_of(['why', 'slow', '7'])] == ['why', 'why slow']
    for other in ([], ['show'], ['show', 'x'], ['--help', 'status'], ['-s'], ['nonsense']):
        assert cli.rows_of(other) == commands.TABLE
    # what is said about a wrong argument does not depend on the other commands
    small, large = cli.build_parser(cli.rows_of(['show', 'units'])), cli.build_parser()
    assert small.format_usage() == large.format_usage()


def targetdctl(path, answer, *arguments):
    """Run the command against a server that sends one reply; returns (exit code, request)."""
    server = FakeServer(path, answer)
    code = cli.main(['-s', path] + list(arguments))
    server.wait()
    return code, server.requests[0]


SESSIONS = [
    {
        'tsih': 1,
        'initiator_name': 'iqn.1991-05.com.microsoft:pc',
        'address': '10.0.5.17',
        'target_name': 'iqn.2026-11.com.example:a',
        'account': None,
        'connections': 1,
        'since': '2026-11-23 10:00:00',
        'pid': 4711,
        'extra': [1, 2],
    },
    {
        'tsih': 12,
        'initiator_name': 'iqn.x',
        'address': 'fe80::1',
        'target_name': 'iqn.2026-11.com.example:b',
        'account': 'erp',
        'connections': 2,
        'since': '2026-11-23 10:00:01',
        'pid': 4712,
    },
]


def test_sessions_are_printed_in_columns(path, capsys):
    code, request = targetdctl(path, commands.reply_rows(SESSIONS), 'show', 'sessions')
    assert code == EXIT_OK and request == {'command': 'show-sessions'}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == [
        'SESSION',
        'INITIATOR',
        'ADDRESS',
        'TARGET',
        'ACCOUNT',
        'LUN-MAP',
        'CONNECTIONS',
        'SINCE',
        'PROCESS',
    ]
    words = ('TARGET', 'iqn.2026-11.com.example:a', 'iqn.2026-11.com.example:b')
    starts = {line.index(word) for line, word in zip(lines, words)}
    assert len(starts) == 1
    assert lines[1].split()[4] == '-'  # no account
    assert all(line == line.rstrip() for line in lines)


def test_json_has_every_key_and_is_json(path, capsys):
    targetdctl(path, commands.reply_rows(SESSIONS), 'show', 'sessions', '--json')
    assert json.loads(capsys.readouterr().out) == SESSIONS


def test_no_rows_print_a_sentence_or_an_empty_list(path, capsys):
    targetdctl(path, commands.reply_rows([]), 'show', 'sessions')
    assert capsys.readouterr().out == 'no initiator is logged in\n'
    targetdctl(path, commands.reply_rows([]), '--json', 'show', 'sessions')
    assert json.loads(capsys.readouterr().out) == []


def test_options_may_precede_or_follow_the_command(path, capsys):
    server = FakeServer(path, commands.reply_rows([]))
    assert cli.main(['show', 'sessions', '--json', '-s', path]) == EXIT_OK
    server.wait()
    assert capsys.readouterr().out.strip() == '[]'


@pytest.mark.parametrize(
    'arguments, request_',
    [
        (['end', '3'], {'command': 'end', 'session': 3}),
        (['logout', '3'], {'command': 'logout', 'session': 3}),
        (['logout', '3', '--seconds', '60'], {'command': 'logout', 'session': 3, 'seconds': 60}),
        (['acknowledge', 'iqn.x/0'], {'command': 'acknowledge', 'unit': 'iqn.x/0'}),
        (['reload', '--plan'], {'command': 'reload', 'plan': True}),
        (['reload'], {'command': 'reload'}),
        (['why', '10.0.5.17'], {'command': 'why', 'who': '10.0.5.17'}),
        (['why'], {'command': 'why'}),
        (['reopen-logs'], {'command': 'reopen-logs'}),
    ],
)
def test_the_server_receives_what_was_typed(path, capsys, arguments, request_):
    code, request = targetdctl(path, commands.reply_message('done'), *arguments)
    assert code == EXIT_OK and request == request_
    assert commands.parse_request(commands.pack(request))
    assert capsys.readouterr().out == 'done\n'


@pytest.mark.parametrize(
    'arguments, words',
    [([], 'a command is missing'), (['show'], 'write what to show: sessions, targets')],
)
def test_a_missing_command(arguments, words, capsys):
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


LONG = {
    'sessions': [
        dict(
            SESSIONS[0],
            initiator_name='iqn.1991-05.com.microsoft:a-very-long-name-of-a-host.example.com',
            address='2001:db8:0:1:2:3:4:5',
        )
    ],
    'units': [
        {
            'unit': 'iqn.2026-11.com.example:storage.disk.accounting/0',
            'target_name': 'iqn.2026-11.com.example:storage.disk.accounting',
            'lun': 0,
            'path': '/dev/disk/by-id/ata-WDC_WD40EFRX-68N32N0_WD-WCC7K0123456',
            'size': 4 << 40,
            'state': 'degraded: 3 errors, the latest EIO at LBA 123456789; pending: readonly',
            'errors': 3,
            'sessions': 2,
        }
    ],
}


@pytest.mark.parametrize('what', sorted(LONG))
def test_a_table_fits_a_terminal_of_80_columns_and_wide_shows_all(path, capsys, monkeypatch, what):
    monkeypatch.setattr(cli.sys.stdout, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(cli.shutil, 'get_terminal_size', lambda *_: os.terminal_size((60, 24)))
    targetdctl(path, commands.reply_rows(LONG[what]), 'show', what)
    narrow = capsys.readouterr().out
    assert all(len(line) <= 80 for line in narrow.splitlines())
    for value in re.split('[.:]', LONG[what][0]['target_name']):
        assert value in narrow
    targetdctl(path, commands.reply_rows(LONG[what]), 'show', what, '--wide')
    wide = capsys.readouterr().out
    assert LONG[what][0]['target_name'] in wide and len(wide.splitlines()) == 2
    assert len(wide.split('\n')[0].split()) > len(narrow.split('\n')[0].split())


@pytest.mark.parametrize(
    'arguments',
    [
        ['format'],
        ['end'],
        ['end', 'x'],
        ['end', '-1'],
        ['end', '99999999999'],
        ['show', 'x'],
        ['logout', '1', '--seconds', 'x'],
        ['status', '--nonsense'],
    ],
)
def test_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert 'usage: targetdctl' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        ['save'],
        ['clear', '--help'],
        ['restore', '/etc/target/saveconfig.json'],
        ['--json', 'clear'],
    ],
)
def test_a_command_of_targetctl_names_the_other_tool(arguments, capsys):
    assert cli.main(arguments) == EXIT_USAGE
    captured = capsys.readouterr()
    word = next(each for each in arguments if each in cli.LIO_COMMANDS)
    assert captured.out == ''
    assert captured.err.startswith('targetdctl: "%s" is a command of targetctl' % word)
    assert 'LIO' in captured.err and 'python3-rtslib-fb' in captured.err
    assert set(cli.LIO_COMMANDS) & {row.words.split()[0] for row in commands.TABLE} <= {'restore'}


def test_every_command_has_help(capsys):
    for row in commands.TABLE:
        with pytest.raises(SystemExit) as caught:
            cli.main(row.words.split() + ['--help'])
        assert caught.value.code == 0
        text = ' '.join(capsys.readouterr().out.split())
        assert text.startswith('usage: targetdctl %s ' % row.words)
        assert all(a.help.split()[-1] in text for a in row.arguments if a.kind != 'secret')
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert all(row.help in text for row in commands.TABLE if ' ' not in row.words)


def test_the_exit_code_without_a_server_is_7(path, capsys):
    assert cli.main(['-s', path, 'status']) == EXIT_NOT_RUNNING
    captured = capsys.readouterr()
    assert captured.out == '' and path in captured.err


def test_errors_are_printed_on_standard_error_with_their_exit_code(path, capsys):
    code, _ = targetdctl(
        path, commands.reply_error('a.conf:1: x\na.conf:2: y', EXIT_CONFIG), 'reload'
    )
    assert code == EXIT_CONFIG
    assert capsys.readouterr().err == 'targetdctl: a.conf:1: x\na.conf:2: y\n'


def test_a_refused_login_is_explained_with_the_message_of_windows(path, capsys):
    rows = [
        {
            'time': '2026-11-23 10:00',
            'address': '10.0.5.17',
            'initiator_name': 'iqn.x',
            'target_name': 'iqn.y',
            'status': '0202',
            'why': 'initiator-name admits iqn.1991-05.com.microsoft:* only',
        },
        {
            'time': '2026-11-23 09:00',
            'address': '10.0.5.18',
            'initiator_name': 'iqn.z',
            'target_name': '',
            'status': '0201',
            'why': 'wrong secret',
        },
    ]
    targetdctl(path, commands.reply_rows(rows), 'why')
    first, second = capsys.readouterr().out.split('\n\n')
    assert 'why: initiator-name admits iqn.1991-05.com.microsoft:* only' in first
    assert (
        'status: 0202' in first and 'windows shows: "Authorization failure" (0xEFFF000A)' in first
    )
    assert 'look at: initiator-name and initiator-address' in first
    assert '"Authentication failure" (0xEFFF0009)' in second and 'target:' not in second


@pytest.mark.parametrize('status_class, status_detail', sorted(windows.STATUSES))
def test_every_login_status_has_a_message_of_windows(status_class, status_detail):
    assert re.match(
        r'^"[A-Z][^"]+" \(0xEFFF00[0-9A-F]{2}\), iScsiPrt event 10$',
        windows.message(status_class, status_detail),
    )


def test_the_message_of_windows_for_an_unknown_status():
    assert (
        windows.message(0, 0) == ''
        and windows.message(2, 99).startswith('"Login failed"')
        and windows.advice(2, 99) == ''
    )


def test_sizes_are_readable_in_columns(path, capsys):
    row = {
        'unit': 'a',
        'target_name': 't',
        'lun': 0,
        'path': '/x',
        'size': 200 << 30,
        'state': 'ready',
        'read_only': False,
        'reserved_by': '',
        'sessions': 1,
    }
    targetdctl(path, commands.reply_rows([row, dict(row, size=None)]), 'show', 'units')
    lines = capsys.readouterr().out.splitlines()
    assert '200 GiB' in lines[1] and ' no ' in lines[1] and '200' not in lines[2]


@pytest.mark.parametrize(
    'number, text',
    [
        (0, '0 bytes'),
        (1023, '1023 bytes'),
        (1024, '1 KiB'),
        (1536, '1.5 KiB'),
        (3 << 40, '3 TiB'),
        (1 << 70, '1024 EiB'),
    ],
)
def test_sizes(number, text):
    assert cli.human_bytes(number) == text


def test_control_characters_of_an_initiator_name_are_not_printed(path, capsys):
    hostile = dict(SESSIONS[0], initiator_name='iqn.\x1b[2Jx\ny\r')
    targetdctl(path, commands.reply_rows([hostile]), 'show', 'sessions')
    out = capsys.readouterr().out
    assert '\x1b' not in out and '\r' not in out and len(out.splitlines()) == 2
    targetdctl(path, commands.reply_error('no \x1b[31m'), 'show', 'sessions')
    assert '\x1b' not in capsys.readouterr().err


def test_reload_shows_its_plan(path, capsys):
    targetdctl(
        path,
        commands.reply_rows([{'step': 'add target iqn.y', 'effect': 'at once'}]),
        'reload',
        '--plan',
    )
    assert capsys.readouterr().out.splitlines()[1].split() == [
        'add',
        'target',
        'iqn.y',
        'at',
        'once',
    ]
    targetdctl(path, commands.reply_rows([]), 'reload')
    assert capsys.readouterr().out == 'nothing changed\n'


def test_stop_returns_when_the_server_has_ended(path, capsys):
    def answer(server):
        yield commands.reply_message('targetd stops')
        server.close_listener()

    code, request = targetdctl(path, answer, 'stop')
    assert code == EXIT_OK and request == {'command': 'stop'}


def test_disks_needs_no_server(monkeypatch, capsys):
    rows = [
        {
            'path': '/dev/sdb',
            'size': 4000787030016,
            'model': 'ATA X',
            'transport': 'sata',
            'backing_store': 'serial:WD-1',
            'used_by': ['/dev/sdb1 is mounted on /a (ext4); free it with: umount /a'],
        }
    ]
    monkeypatch.setitem(local.ANSWERS, 'disks', lambda parsed: {'ok': True, 'rows': rows})
    assert cli.main(['disks', '-s', '/nonexistent']) == EXIT_OK
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith('/dev/sdb  3.6 TiB  ATA X  sata  serial:WD-1') and line.endswith(
        'umount /a'
    )


def test_disks_lists_the_disks_of_this_host(capsys):
    assert cli.main(['disks', '--json']) == EXIT_OK
    for row in json.loads(capsys.readouterr().out):
        assert (
            row['path'].startswith('/dev/')
            and row['size'] > 0
            and isinstance(row['used_by'], list)
            and row['backing_store']
        )


def test_help_lists_every_command_once_in_an_order_that_is_complete(capsys):
    assert sorted(cli.ORDER) == sorted({row.words.split()[0] for row in cli.TABLE})
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    listed = re.findall(r'^    ([a-z-]+)  ', capsys.readouterr().out, re.M)
    assert listed == cli.ORDER


def test_a_uri_of_an_nbd_export_is_not_a_path_of_this_folder():
    for text in ('nbd://192.0.2.9/vm7', 'nbd+unix:///vm7?socket=/run/nbd.sock'):
        assert cli._path(text) == text
    assert cli._path('disk.img').startswith('/')
