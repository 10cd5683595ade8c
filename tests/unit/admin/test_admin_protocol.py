"""Asking the server: what is said arrives, and everything that can go wrong ends in one sentence
and the right exit code."""

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
        protocol.ask(path, {'command': 'status'}, seconds, **more)
    return caught.value


def test_a_question_and_its_answer(path):
    server = FakeServer(path, commands.reply_rows([{'name': 'version', 'value': 'x'}]))
    assert protocol.ask(path, {'command': 'status'})['rows'] == [{'name': 'version', 'value': 'x'}]
    server.wait()
    assert server.requests == [{'command': 'status'}]


def test_an_answer_in_pieces(path):
    line = commands.reply_message('größer')
    server = FakeServer(path, lambda server: [line[i : i + 1] for i in range(len(line))])
    assert protocol.ask(path, {'command': 'reopen-logs'})['message'] == 'größer'
    server.wait()


def test_a_long_answer(path):
    rows = [{'initiator_name': 'iqn.2026-11.com.example:%d' % i} for i in range(20000)]
    server = FakeServer(path, commands.reply_rows(rows))
    assert protocol.ask(path, {'command': 'show-sessions'})['rows'] == rows
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


def test_a_file_that_is_no_socket(path):
    open(path, 'w').close()
    assert path in str(failure(path))


def test_a_path_that_is_too_long(path):
    assert 'cannot be a control socket' in str(failure('/tmp/' + 'x' * 200))


def test_no_permission_is_told_apart_from_no_server(path, monkeypatch):
    class Forbidden(socket.socket):
        def connect(self, address):
            raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(protocol.socket, 'socket', Forbidden)
    error = failure(path)
    assert error.exit_code == EXIT_FAILURE and 'may not be used by this user' in str(error)


def test_a_refusal_carries_the_servers_words_and_exit_code(path):
    server = FakeServer(path, commands.reply_error('targetd.conf:3: no such setting', EXIT_CONFIG))
    error = failure(path)
    server.wait()
    assert str(error) == 'targetd.conf:3: no such setting' and error.exit_code == EXIT_CONFIG


@pytest.mark.parametrize('code', [0, -1, 300, None, 'x', True])
def test_a_refusal_never_looks_like_success(path, code):
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
def test_what_is_no_answer_is_said_to_be_none(path, answer):
    server = FakeServer(path, answer)
    assert "does not speak targetd's language" in str(failure(path))
    server.wait()


@pytest.mark.parametrize('answer', [b'', b'{"ok": true'])
def test_a_server_that_goes_away(path, answer):
    server = FakeServer(path, answer)
    assert 'without an answer' in str(failure(path))
    server.wait()


def test_a_server_that_does_not_answer(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    assert 'did not answer within' in str(failure(path, seconds=0.05))
    listener.close()


def test_an_answer_without_end_is_cut(path, monkeypatch):
    monkeypatch.setattr(protocol, 'MAXIMUM_REPLY', 1 << 18)
    server = FakeServer(path, lambda server: (b'x' * (1 << 16) for _ in range(64)))
    assert 'more than 262144 bytes' in str(failure(path))
    server.wait()


def test_a_request_that_is_too_long_is_not_sent(path):
    with pytest.raises(TargetdError, match='too long'):
        protocol.ask(path, {'command': 'acknowledge', 'unit': 'x' * (1 << 17)})


def test_stop_waits_until_the_server_is_gone(path):
    gone = []

    def answer(server):
        yield commands.reply_message('targetd stops')
        gone.append(True)
        server.close_listener()

    server = FakeServer(path, answer)
    assert (
        protocol.ask(path, {'command': 'stop'}, 10, until_gone=True)['message'] == 'targetd stops'
    )
    assert gone
    server.wait()


def test_stop_says_when_the_server_stays(path):
    server = FakeServer(path, commands.reply_message('targetd stops'), stays=True)
    error = failure(path, seconds=0.05, until_gone=True)
    assert 'has not ended' in str(error)
    server.wait()


def test_the_socket_may_come_from_the_environment(monkeypatch):
    monkeypatch.delenv('TARGETD_SOCKET', raising=False)
    assert protocol.default_socket() == '/var/run/targetd.sock'
    monkeypatch.setenv('TARGETD_SOCKET', '/tmp/other.sock')
    assert protocol.default_socket() == '/tmp/other.sock'


def test_a_request_is_what_the_server_reads(path):
    line = commands.pack({'command': 'end', 'session': 3})
    assert json.loads(line.decode('utf-8')) == {'command': 'end', 'session': 3}
    assert commands.parse_request(line[:-1])[1] == {'session': 3}
    assert not os.path.exists(path)
