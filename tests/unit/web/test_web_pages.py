"""The pages without a network: what they escape, what they refuse, what they send to the server."""

import io
import re

import pytest

pytest.importorskip('bottle')

from targetd.errors import TargetdError  # noqa: E402
from targetd.web import forms, gate, pages, samples, source, visitors  # noqa: E402

EVIL = '<script>alert(1)</script>'
TOKEN = 'token-of-the-test-1'
STATUS = [{'name': 'state', 'value': 'running'}]


class FakeGate(object):
    """Replies by name of a command; the requests that were made."""

    def __init__(self, **replies):
        self.replies = dict({'status': STATUS}, **replies)
        self.requests = []

    def execute(self, request):
        self.requests.append(request)
        found = self.replies.get(request['command'].replace('-', '_'), [])
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, dict) else {'ok': True, 'rows': found}


class Client(object):
    def __init__(self, a_gate, token=None):
        asking = source.Source(a_gate)
        logins = visitors.Logins(visitors.digest(token) if token else None)
        self.application = pages.application(asking, source.Sampler(asking), logins, {'localhost'})
        self.cookie = ''

    def __call__(self, path, body=None, host='localhost:8260', **more):
        path, _, query = path.partition('?')
        data = body.encode() if body is not None else b''
        environ = {
            'REQUEST_METHOD': 'GET' if body is None else 'POST', 'PATH_INFO': path, 'QUERY_STRING': query,
            'SCRIPT_NAME': '', 'SERVER_NAME': 'x', 'SERVER_PORT': '80', 'SERVER_PROTOCOL': 'HTTP/1.0',
            'HTTP_HOST': host, 'CONTENT_LENGTH': str(len(data)), 'wsgi.input': io.BytesIO(data),
            'CONTENT_TYPE': 'application/x-www-form-urlencoded', 'wsgi.errors': io.StringIO(),
            'wsgi.url_scheme': 'http', 'HTTP_COOKIE': self.cookie,
        }  # fmt: skip
        environ.update(more)
        seen = []
        body = b''.join(
            self.application(
                environ, lambda status, headers, e=None: seen.append((status, headers))
            )
        )
        (status, headers) = seen[0]
        self.headers = dict(headers)
        if 'Set-Cookie' in self.headers:
            self.cookie = self.headers['Set-Cookie'].split(';')[0]
        return int(status.split()[0]), body.decode('utf-8')


UNIT = {
    'unit': 'iqn.t/0', 'target_name': 'iqn.t', 'lun': 0, 'path': EVIL, 'size': 1 << 30,
    'state': 'failed: ' + EVIL, 'errors': 2, 'sessions': 0, 'pending': None,
}  # fmt: skip


def test_what_the_server_replies_is_escaped():
    client = Client(
        FakeGate(show_units=[UNIT], why=[{'why': EVIL, 'time': 'now', 'status': '0202'}])
    )
    for path in ('/', '/luns', '/refusals', '/lun/iqn.t/0'):
        status, text = client(path)
        assert status == 200 and '&lt;script&gt;' in text and EVIL not in text, path
    assert 'Authorization failure' in client('/refusals')[1]
    assert "default-src 'none'" in client.headers['Content-Security-Policy']


def test_another_name_of_the_host_is_refused_with_all_headers():
    client = Client(FakeGate())
    assert client('/', host='evil.example:8260')[0] == 421
    assert client.headers['X-Frame-Options'] == 'DENY'


def test_a_server_that_does_not_run_is_a_page():
    error = TargetdError('targetd is not running: no socket')
    error.exit_code = 7
    status, text = Client(FakeGate(show_units=error, status=error))('/luns')
    assert status == 503 and 'no socket' in text


def test_pages_that_do_not_exist():
    client = Client(FakeGate())
    for path in ('/x', '/lun/iqn.t/9', '/session/4', '/static/../pages.py', '/target/' + EVIL):
        status, text = client(path)
        assert status == 404 and client.headers['Content-Type'].startswith('text/plain'), (
            path,
            text,
        )


def test_a_snapshot_in_the_history_has_no_configuration_to_return_to():
    row = {'time': 'today', 'who': 'root', 'steps': [], 'number': 7, 'what': 'reload'}
    note = dict(row, number=None, what='restore t/0 monday', steps=['it has the content of a file'])
    status, body = Client(FakeGate(history=[note, row]))('/configuration')
    assert status == 200 and 'restore t/0 monday' in body and 'None' not in body
    assert re.findall('/configuration/([^"]*)"', body) == ['7']


def test_a_page_that_is_read_only_changes_nothing():
    a_gate = FakeGate()
    client = Client(a_gate)
    assert client('/change/kick?who=1')[0] == 403
    assert client('/change/kick', 'who=1')[0] == 403 and client('/login', 'token=')[0] == 403
    assert a_gate.requests == []


def form_token(text):
    return re.search('name="form-token" value="([0-9a-f]+)"', text).group(1)


def test_a_change_needs_the_cookie_and_the_token_of_its_form():
    a_gate = FakeGate(lun_resize={'ok': True, 'rows': [{'step': 'resized', 'effect': EVIL}]})
    client = Client(a_gate, TOKEN)
    status, _ = client('/change/lun-resize?unit=iqn.t/0')
    assert status == 303 and client.headers['Location'].startswith('/login?next=')
    assert client('/login', 'token=wrong')[0] == 403
    assert client('/login', 'token=' + TOKEN + '&next=//evil.example')[0] == 303
    assert client.headers['Location'] == '/'
    assert 'HttpOnly; SameSite=Strict' in client.headers['Set-Cookie']
    status, text = client('/change/lun-resize?unit=iqn.t/0')
    assert status == 200 and 'value="iqn.t/0"' in text
    sent = 'unit=iqn.t/0&size=20G'
    assert client('/change/lun-resize', sent)[0] == 403
    good = sent + '&form-token=' + form_token(text)
    assert client('/change/lun-resize', good, HTTP_ORIGIN='http://evil.example')[0] == 403
    assert [r for r in a_gate.requests if r['command'] == 'lun-resize'] == []
    status, text = client('/change/lun-resize', good + '&do=preview')
    assert status == 200 and a_gate.requests[-1]['dry-run'] is True and EVIL not in text
    assert client('/change/lun-resize', good + '&do=apply')[0] == 303
    assert a_gate.requests[-1] == {'command': 'lun-resize', 'unit': 'iqn.t/0', 'size': '20G'}
    assert 'resized: &lt;script&gt;' in client('/luns')[1]
    assert 'resized' not in client('/luns')[1]
    assert client('/logout', 'form-token=' + form_token(client('/luns')[1]))[0] == 303
    assert client('/change/lun-resize', good)[0] == 403


def test_a_form_that_is_too_large_is_refused():
    assert Client(FakeGate(), TOKEN)('/login', 'token=' + 'x' * 70000)[0] == 413


@pytest.mark.parametrize('name', sorted(gate.CHANGES))
def test_each_change_has_a_form_whose_request_fits_its_row(name):
    row = gate.CHANGES[name]
    assert forms.back_of(name).startswith('/') and forms.verb_of(row) and forms.text_of(row)
    values = {a.name: '1' if a.kind == 'number' else '/x=1' for a in row.arguments}
    arguments, made = forms.request_of(row, values, False)
    assert made is None and 'dry-run' not in arguments
    arguments.pop('secret', None)
    gate.commands.parse_request(gate.commands.pack(dict(arguments, command=name)))
    assert len(forms.fields(row, values)) == len([a for a in row.arguments if a.name != 'dry-run'])


def test_an_empty_secret_is_made_and_a_relative_path_is_refused():
    row = gate.CHANGES['account-add']
    arguments, made = forms.request_of(row, {'target': 'iqn.t', 'user': 'anna'}, False)
    assert len(made) == 16 and arguments['secret'] == made
    assert made in forms.outcome(row, {'rows': []}, made)
    with pytest.raises(TargetdError, match='whole path'):
        forms.request_of(gate.CHANGES['lun-add'], {'target': 'iqn.t', 'store': 'a.img'}, False)


def test_the_gate_admits_what_the_page_needs_and_no_more():
    closed, opened = gate.Gate('/nonexistent/socket', False), gate.Gate('/nonexistent/socket', True)
    for request in (
        {'command': 'kick', 'who': '1'},
        {'command': 'stop'},
        {},
        {'command': ['status']},
    ):
        with pytest.raises(TargetdError, match='not allowed'):
            closed.execute(request)
    for name in ('stop', 'upgrade', 'capture', 'create', 'restore', 'export'):
        with pytest.raises(TargetdError, match='not allowed'):
            opened.execute({'command': name})
    assert b'not valid' in gate.reply_line(opened, b'[]\n')
    assert b'not running' in gate.reply_line(closed, b'{"command":"status"}\n')
    assert not set(gate.READS) & set(gate.CHANGES)


def test_a_reply_is_kept_for_a_second_and_forgotten_after_a_change():
    now, a_gate = [0.0], FakeGate()
    asking = source.Source(a_gate, lambda: now[0])
    for when in (0.0, 0.5, 2.0):
        now[0] = when
        asking.rows('show-units')
    assert len(a_gate.requests) == 2
    asking.change('kick', {'who': '1'})
    asking.rows('show-units')
    assert len(a_gate.requests) == 4


def test_a_sampler_outlives_a_server_that_does_not_answer():
    sampler = source.Sampler(source.Source(FakeGate(show_counters=TargetdError('gone'))))
    sampler.take()
    assert sampler.points(*samples.ALL) == []
