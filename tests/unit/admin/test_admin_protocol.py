"""Requests to the server: every failure is one sentence and the right exit code."""

import errno
import json
import os
import socket

import pytest
from fake_server import FakeServer

from targetd.admin import commands, protocol
from targetd.errors import EXIT_CONFIG, EXIT_FAILURE, EXIT_NOT_RUNNING, TargetdError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'targetd.sock')


def failure(path, seconds=5, **more):
    with pytest.raises(TargetdError) as caught:
        protocol.send_request(path, {'command': 'status'}, seconds, **more)
    return caught.value


def test_a_request_and_its_reply(path):
    server = FakeServer(path, commands.reply_rows([{'name': 'version', 'value': 'x'}]))
    assert protocol.send_request(path, {'command': 'status'})['rows'] == [
        {'name': 'version', 'value': 'x'}
    ]
    server.wait()
    assert server.requests == [{'command': 'status'}]


def test_a_reply_in_pieces(path):
    line = commands.reply_message('größer')
    server = FakeServer(path, lambda server: [line[i : i + 1] for i in range(len(line))])
    assert protocol.send_request(path, {'command': 'reopen-logs'})['message'] == 'größer'
    server.wait()


def test_a_long_reply(path):
    rows = [{'initiator_name': 'iqn.2026-11.com.example:%d' % i} for i in range(20000)]
    server = FakeServer(path, commands.reply_rows(rows))
    assert protocol.send_request(path, {'command': 'show-sessions'})['rows'] == rows
    server.wait()


def test_no_socket(path):
    error = failure(path)
    assert (
        error.exit_code == EXIT_NOT_RUNNING and path in str(error) and 'start targetd' in str(error)
    )


def test_a_socket_that_was_left_behind(path):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(path)
    left.close()
    error = failure(path)
    assert error.exit_code == EXIT_NOT_RUNNING and 'left behind' in str(error)


def test_a_file_that_is_not_a_socket(path):
    open(path, 'w').close()
    assert path in str(failure(path))


def test_a_path_that_is_too_long(path):
    assert 'cannot be a control socket' in str(failure('/tmp/' + 'x' * 200))


def test_a_missing_permission_differs_from_a_missing_server(path, monkeypatch):
    class Forbidden(socket.socket):
        def connect(self, address):
            raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(protocol.socket, 'socket', Forbidden)
    error = failure(path)
    assert error.exit_code == EXIT_FAILURE and 'this user has no permission to use' in str(error)


def test_a_refusal_has_the_text_and_exit_code_of_the_server(path):
    server = FakeServer(path, commands.reply_error('targetd.conf:3: no such setting', EXIT_CONFIG))
    error = failure(path)
    server.wait()
    assert str(error) == 'targetd.conf:3: no such setting' and error.exit_code == EXIT_CONFIG


@pytest.mark.parametrize('code', [0, -1, 300, None, 'x', True])
def test_a_refusal_never_exits_with_0(path, code):
    server = FakeServer(path, commands.pack({'ok': False, 'error': 'no', 'exit_code': code}))
    error = failure(path)
    server.wait()
    assert error.exit_code == EXIT_FAILURE


@pytest.mark.parametrize(
    'answer',
    [
        b'\n',
        b'hello\n',
        b'[]\n',
        b'{}\n',
        b'{"ok": 1}\n',
        b'\xff\n',
        b'{"ok": true, "rows": 3}\n',
        b'{"ok": true, "rows": [3]}\n',
        b'[' * 100000 + b'\n',
    ],
)
def test_an_invalid_reply_is_reported(path, answer):
    server = FakeServer(path, answer)
    assert 'the reply is not valid' in str(failure(path))
    server.wait()


@pytest.mark.parametrize('answer', [b'', b'{"ok": true'])
def test_a_server_that_closes_the_connection(path, answer):
    server = FakeServer(path, answer)
    assert 'without a reply' in str(failure(path))
    server.wait()


def test_a_server_that_does_not_reply(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    assert 'did not reply within' in str(failure(path, seconds=0.05))
    listener.close()


def test_an_endless_reply_is_refused(path, monkeypatch):
    monkeypatch.setattr(protocol, 'MAXIMUM_REPLY', 1 << 18)
    server = FakeServer(path, lambda server: (b'x' * (1 << 16) for _ in range(64)))
    assert 'longer than 262144 bytes' in str(failure(path))
    server.wait()


def test_a_request_that_is_too_long_is_not_sent(path):
    with pytest.raises(TargetdError, match='too long'):
        protocol.send_request(path, {'command': 'acknowledge', 'unit': 'x' * (1 << 17)})


def test_stop_waits_until_the_server_has_ended(path):
    gone = []

    def answer(server):
        yield commands.reply_message('targetd stops')
        gone.append(True)
        server.close_listener()

    server = FakeServer(path, answer)
    assert (
        protocol.send_request(path, {'command': 'stop'}, 10, until_gone=True)['message']
        == 'targetd stops'
    )
    assert gone
    server.wait()


def test_stop_reports_a_server_that_does_not_end(path):
    server = FakeServer(path, commands.reply_message('targetd stops'), stays=True)
    error = failure(path, seconds=0.05, until_gone=True)
    assert 'has not ended' in str(error)
    server.wait()


def test_the_socket_can_be_set_in_the_environment(monkeypatch):
    monkeypatch.delenv('TARGETD_SOCKET', raising=False)
    assert protocol.default_socket() == '/var/run/targetd.sock'
    monkeypatch.setenv('TARGETD_SOCKET', '/tmp/other.sock')
    assert protocol.default_socket() == '/tmp/other.sock'


def test_the_server_decodes_a_request(path):
    line = commands.pack({'command': 'end', 'session': 3})
    assert json.loads(line.decode('utf-8')) == {'command': 'end', 'session': 3}
    assert commands.parse_request(line[:-1])[1] == {'session': 3}
    assert not os.path.exists(path)
