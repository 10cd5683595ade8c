"""The table of commands is complete, and an invalid request on the control socket is refused with a
reason."""

import json

import pytest

from targetd.admin import change_commands, commands, image_commands
from targetd.admin.commands import BadRequest, parse_request


def request(**fields):
    return json.dumps(fields).encode('utf-8')


@pytest.mark.parametrize('row', commands.TABLE, ids=lambda row: row.words)
def test_every_row_is_complete(row):
    assert row.help and row.text.endswith('.') and row.seconds > 0
    assert 1 <= len(row.words.split()) <= 2 and row.words == row.words.lower()
    assert bool(row.columns) == bool(row.empty) or row.words == 'status'
    assert {a.kind for a in row.arguments} <= (
        {'number', 'text', 'texts', 'option', 'flag', 'path'}
        if row.local
        else {'number', 'text', 'flag', 'option', 'options', 'path', 'secret'}
    )
    assert {c.form for c in row.columns} <= {'text', 'bytes', 'yes-no'}
    keys = [c.key for c in row.columns]
    assert len(keys) == len(set(keys))
    assert not [a for a in row.arguments if a.kind in ('flag', 'option', 'options') and a.required]


def test_command_names_are_unique():
    assert len(commands.BY_NAME) == len(commands.TABLE + image_commands.REQUESTS)


def test_the_requests_of_the_client_are_not_for_members_of_the_control_group():
    row, arguments = parse_request(request(command='image-begin', unit='a/0', name='monday'))
    assert arguments == {'unit': 'a/0', 'name': 'monday'} and not commands.is_read_only(row)


def test_a_request_finds_its_row_and_arguments():
    row, arguments = parse_request(request(command='end', session=3))
    assert row.words == 'end' and arguments == {'session': 3}
    row, arguments = parse_request(request(command='show-sessions'))
    assert row.words == 'show sessions' and arguments == {}


def test_missing_optional_arguments_have_their_default():
    assert parse_request(request(command='reload'))[1] == {'plan': False, 'now': False}
    assert parse_request(request(command='why'))[1] == {'who': None, 'target': None}
    assert parse_request(request(command='logout', session=1))[1] == {'session': 1, 'seconds': None}


@pytest.mark.parametrize(
    'line, words',
    [
        (b'', 'not JSON'),
        (b'\xff\xfe', 'not JSON'),
        (b'{"command"', 'not JSON'),
        (b'[' * 5000, 'not JSON'),
        (b'[]', 'not a JSON object'),
        (b'"status"', 'not a JSON object'),
        (b'null', 'not a JSON object'),
        (b'{}', 'unknown command'),
        (b'{"command": "format"}', 'unknown command'),
        (b'{"command": ["status"]}', 'unknown command'),
        (b'{"command": null}', 'unknown command'),
        (b'{"command": {}}', 'unknown command'),
        (b'{"command": "disks"}', 'unknown command'),
        (b'{"command": "end"}', 'end: the session is missing'),
        (b'{"command": "end", "session": "3"}', "session: '3' is not a valid number"),
        (b'{"command": "end", "session": true}', 'is not a valid number'),
        (b'{"command": "end", "session": -1}', 'is not a valid number'),
        (b'{"command": "end", "session": 1e400}', 'is not a valid number'),
        (b'{"command": "end", "session": 99999999999}', 'is not a valid number'),
        (b'{"command": "reload", "plan": 1}', 'is not a valid flag'),
        (b'{"command": "acknowledge", "unit": ""}', 'is not a valid text'),
        (b'{"command": "acknowledge", "unit": ["a"]}', 'is not a valid text'),
        (b'{"command": "status", "verbose": true}', "unknown argument 'verbose'"),
    ],
)
def test_a_request_that_fits_no_row_is_refused(line, words):
    with pytest.raises(BadRequest) as caught:
        parse_request(line)
    assert words in str(caught.value)


def test_a_request_that_is_too_long_is_refused():
    with pytest.raises(BadRequest, match='longer than 65536 bytes'):
        parse_request(request(command='acknowledge', unit='x' * (64 << 10)))
    with pytest.raises(BadRequest, match='is not a valid text'):
        parse_request(request(command='acknowledge', unit='x' * 5000))


def test_every_reply_is_one_line():
    for line in (
        commands.reply_message('a\nb'),
        commands.reply_rows([{'a': 'b\nc'}]),
        commands.reply_error('a\nb', 3),
    ):
        assert line.count(b'\n') == 1 and line.endswith(b'\n')
    assert json.loads(commands.reply_error('no', 3).decode('utf-8')) == {
        'ok': False,
        'error': 'no',
        'exit_code': 3,
    }


def test_members_of_a_group_that_may_only_look_change_nothing():
    allowed = {row.words for row in commands.TABLE if commands.is_read_only(row)}
    changing = {row.words for row in change_commands.TABLE} - {'history', 'diff'}
    changing |= {'reservation clear', 'drain', 'kick', 'stop', 'reload'}
    assert not allowed & changing and {'history', 'identify', 'reservation show'} <= allowed
