"""The status page of a running server, as a browser asks for it."""

import json
import os
import re

import psutil
import pytest
from daemon import TARGET, eventually
from initiator import LoginFailed
from status_page import Page

pytest.importorskip('bottle')
pytestmark = pytest.mark.wire

SECRET = 'a-secret-of-16-c'
UNIT = TARGET + '/0'


@pytest.fixture
def served(daemon):
    """pages(*arguments) -> Page, for a server with two LUNs and an account."""
    opened = []
    lines = ['initiator-address = 127.0.0.1', 'sharing = cluster']
    daemon.target(
        TARGET,
        lines,
        {
            0: ['backing-store = %s' % daemon.image('a.img'), 'product-id = <b>&"x'],
            1: ['type = ram', 'size = 1M'],
        },
    )
    daemon.target(
        'iqn.2026-11.test.targetd:other',
        ['incominguser = erp %s' % SECRET],
        {0: ['type = ram', 'size = 1M']},
    )
    daemon.start()

    def start(*arguments):
        opened.append(Page(daemon, *arguments))
        return opened[-1]

    yield start
    for page in opened:
        if page.process.poll() is None:
            page.close()


PATHS = (
    '/',
    '/targets',
    '/target/' + TARGET,
    '/luns',
    '/lun/' + UNIT,
    '/sessions',
    '/disks',
    '/refusals',
    '/configuration',
    '/configuration/1',
    '/static/page.css',
    '/static/page.js',
    '/static/icon.svg',
)


def test_what_the_pages_show(daemon, sessions, served):
    page = served()
    session = sessions(daemon)
    session.clear_attentions()
    session.write(0, bytes(65536))
    with pytest.raises(LoginFailed):
        sessions(daemon, target='iqn.2026-11.test.targetd:other')
    (row,) = json.loads(daemon.control('--json', 'show', 'sessions'))
    for path in PATHS + ('/session/%d' % row['tsih'],):
        text = page.good(path)
        assert SECRET not in text, path
        if not path.startswith('/static'):
            assert '<main' in text and '<h1' in text and 'targetd' in text
    assert 'All is well' in page.good('/')
    assert '&lt;b&gt;' in page.good('/lun/' + UNIT) and '<b>&"x' not in page.good('/lun/' + UNIT)
    assert 'iqn.2026-11.test.targetd:other' in page.good('/refusals')
    assert 'a.img' in page.good('/luns') and TARGET in page.good('/configuration')
    for path, status in (
        ('/none', 404),
        ('/session/1', 404),
        ('/lun/x/0', 404),
        ('/static/../page.py', 404),
    ):
        assert page.ask(path)[0] == status, path


def test_it_is_read_only_as_shipped(daemon, served):
    page = served()
    for path in ('/login', '/change/lun-remove'):
        assert page.ask(path)[0] == 403
        assert page.ask(path, {'unit': UNIT, 'token': 'x', 'form-token': 'y'})[0] == 403
    assert 'Log in' not in page.good('/')
    assert len(json.loads(daemon.control('--json', 'show', 'units'))) == 3


def test_strangers_are_refused(served):
    page = served('--allow-changes')
    _, _, headers = page.ask('/')
    assert "default-src 'none'" in headers['Content-Security-Policy']
    assert headers['X-Frame-Options'] == 'DENY'
    # a name that somebody else lets resolve to this host
    assert page.ask('/', Host='evil.example')[0] == 421
    assert page.ask('/login', {'token': 'x'}, Origin='http://evil.example')[0] == 403
    assert page.log_in('wrong')[0] == 403
    token = page.token()
    status, headers = page.log_in(token)
    assert status in (302, 303)
    assert 'HttpOnly' in headers['Set-Cookie'] and 'SameSite=Strict' in headers['Set-Cookie']
    for values in ({}, {'form-token': '0' * 64}):
        assert page.ask('/change/lun-remove', dict(values, unit=UNIT))[0] == 403
    assert page.ask('/login?next=//evil.example', {'token': token, 'next': '//evil.example'})[2][
        'Location'
    ].endswith('/')
    assert page.ask('/login', {'token': 'x' * 100000})[0] == 413


def test_changes(daemon, served):
    page = served('--allow-changes')
    page.log_in(page.token())
    status, text, _ = page.change('lun-resize', unit=UNIT, size='80M', do='preview')
    assert status == 200 and 'What would change' in text and '80M' in text
    assert os.path.getsize(os.path.join(daemon.directory, 'a.img')) == 64 << 20
    assert page.change('lun-resize', unit=UNIT, size='80M', do='apply')[0] == 303
    assert '80M' in page.good('/luns')  # said once
    assert os.path.getsize(os.path.join(daemon.directory, 'a.img')) == 80 << 20
    status, text, _ = page.change('lun-resize', unit=UNIT, size='1M', do='apply')
    assert status == 409 and 'role="alert"' in text
    page.change('account-add', target=TARGET, user='new', do='apply')
    made = re.search('The secret is ([A-Za-z0-9]{16})', page.good('/targets')).group(1)
    assert made not in page.good('/targets')
    history = json.loads(daemon.control('--json', 'history'))
    assert 'lun resize' in history[1]['what'] or 'lun resize' in str(history)
    assert page.change('kick', who='4711', do='apply')[0] == 409
    form = page.good('/luns')
    token = re.search('name="form-token" value="([0-9a-f]+)"', form).group(1)
    page.ask('/logout', {'form-token': token})
    assert page.ask('/change/lun-remove')[0] in (302, 303)  # to the login


def test_a_server_that_stops_and_starts(daemon, served):
    page = served()
    daemon.stop()
    status, text, _ = page.ask('/')
    assert status == 503 and 'not running' in text
    daemon.start()
    eventually(lambda: page.ask('/')[0] == 200, 30, 'the server')


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_the_process_that_parses_http_is_unprivileged(served):
    page = served('--user', 'daemon')
    assert 'All is well' in page.good('/')
    (child,) = psutil.Process(page.process.pid).children()
    assert child.uids().effective == child.uids().real != 0
    output = page.close()
    assert 'Traceback' not in output and 'read-only' in output


def test_slow_and_large_requests_do_not_stop_the_page(served):
    import socket

    page = served()
    slow = [socket.create_connection(('127.0.0.1', page.port)) for _ in range(40)]
    for each in slow:
        each.sendall(b'GET / HTTP/1.1\r\n')
    eventually(lambda: _answers(page), 60, 'an answer beside slow requests')
    for each in slow:
        each.close()
    with socket.create_connection(('127.0.0.1', page.port)) as large:
        large.settimeout(30)
        try:
            large.sendall(b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * 100000)
            assert b' 200 ' not in large.recv(100)
        except OSError:
            pass
    assert 'All is well' in page.good('/')


def _answers(page):
    try:
        return page.ask('/')[0] == 200
    except OSError:
        return False


def test_wrong_arguments(daemon, tmp_path):
    daemon.target(TARGET, ['initiator-address = ALL'], {0: ['type = ram', 'size = 1M']})
    daemon.start()
    readable = tmp_path / 'token'
    readable.write_text('x' * 20)
    os.chmod(str(readable), 0o644)
    for words, reason in (
        (['--listen', '0.0.0.0'], '--allow-remote'),
        (['--listen', 'x:1'], 'ADDRESS:PORT'),
        (['--token-file', '/x'], '--allow-changes only'),
        (['--allow-changes', '--token-file', str(readable)], 'chmod 600'),
        (['--user', 'nobody-of-that-name'], 'no user'),
        (['--listen', '127.0.0.1:%d' % daemon.port], 'cannot be opened'),
    ):
        if '--user' in words and os.geteuid() != 0:
            continue
        code, text = daemon.targetdctl('web', *words, seconds=60)
        assert code == 1 and reason in text and 'Traceback' not in text, text
