"""The relay executes what is listed, whatever the page sends, and outlives every request."""

import json
import socket
import threading

import pytest

from targetd.admin import protocol
from targetd.errors import TargetdError
from targetd.web import gate


@pytest.fixture
def sent(monkeypatch):
    """The requests that reach the server: (request, secret)."""
    found = []

    def send(path, request, seconds, secret=None):
        found.append((request, secret))
        return {'ok': True, 'rows': [{'path': path}]}

    monkeypatch.setattr(protocol, 'send_request', send)
    return found


def test_a_page_that_is_read_only_asks_and_changes_nothing(sent):
    reading = gate.Gate('/s', False)
    assert reading.execute({'command': 'show-units'})['rows'] == [{'path': '/s'}]
    for name in ('lun-remove', 'stop', 'upgrade', 'create', None, 'capture'):
        with pytest.raises(TargetdError) as e:
            reading.execute({'command': name})
        assert 'not allowed here' in str(e.value)
    assert [request['command'] for request, _ in sent] == ['show-units']


def test_changes_with_their_secret(sent):
    changing = gate.Gate('/s', True)
    changing.execute(
        {'command': 'account-add', 'target': 't', 'user': 'u', 'secret': '12-to-16-chars'}
    )
    request, secret = sent[0]
    assert secret == '12-to-16-chars' and 'secret' not in request
    for name in ('stop', 'upgrade', 'reopen-logs'):
        with pytest.raises(TargetdError):
            changing.execute({'command': name})
    with pytest.raises(TargetdError):
        changing.execute({'command': 'lun-resize', 'unit': 'a/0', 'size': 3, 'more': 1})


@pytest.mark.parametrize(
    'line', [b'', b'x', b'[]', b'"a"', b'[' * 100000, b'\xff', b'{"command": {}}']
)
def test_what_is_no_request_is_answered_with_an_error(line, sent):
    reply = json.loads(gate.reply_line(gate.Gate('/s', True), line).decode())
    assert not reply['ok'] and reply['error'] and sent == []


def test_page_and_relay(sent):
    ours, theirs = socket.socketpair()
    relay = gate.Relay(ours, gate.Gate('/s', False))
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()
    page = gate.RelayedGate(theirs)
    assert page.execute({'command': 'show-targets'})['rows'] == [{'path': '/s'}]
    with pytest.raises(TargetdError) as e:
        page.execute({'command': 'lun-remove', 'unit': 'a/0'})
    assert 'not allowed here' in str(e.value)
    for _ in range(2 * gate.MOST_REQUESTS):
        page.execute({'command': 'show-targets'})
    theirs.close()
    thread.join(10)
    assert not thread.is_alive()
    ours.close()
