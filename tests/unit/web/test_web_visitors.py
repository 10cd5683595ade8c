"""Who may use the status page: names, logins, tokens of forms."""

import pytest

from targetd.web import visitors

TOKEN = 'a-token-of-24-characters'


class Clock(object):
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def logins(clock):
    return visitors.Logins(visitors.digest(TOKEN), clock)


@pytest.mark.parametrize(
    'header, name',
    [
        ('localhost:8260', 'localhost'),
        ('127.0.0.1', '127.0.0.1'),
        ('[::1]:8260', '::1'),
        ('Server.Example.COM.:80', 'server.example.com'),
        ('', ''),
        (None, ''),
        ('a b', ''),
        ('host:port', ''),
        ('host/path', ''),
    ],
)
def test_host_of(header, name):
    assert visitors.host_of(header) == name


def test_a_name_that_the_page_does_not_have_is_not_allowed():
    allowed = visitors.allowed_hosts('192.0.2.7', ['Files.example.com'])
    assert {'localhost', '127.0.0.1', '::1', '192.0.2.7', 'files.example.com'} == allowed


@pytest.mark.parametrize(
    'origin, same',
    [
        (None, True),
        ('', True),
        ('http://localhost:8260', True),
        ('https://localhost:8260', True),
        ('http://localhost:9', False),
        ('http://evil.example', False),
        ('null', False),
    ],
)
def test_the_origin_of_a_form(origin, same):
    assert visitors.is_same_origin(origin, 'LOCALHOST:8260') is same


def test_a_login_lasts_for_its_time_and_ends_at_logout(logins, clock):
    assert logins.log_in('another') is None
    cookie = logins.log_in(TOKEN)
    assert (
        logins.is_logged_in(cookie)
        and not logins.is_logged_in('x')
        and not logins.is_logged_in(None)
    )
    clock.now += visitors.SESSION_SECONDS + 1
    assert not logins.is_logged_in(cookie)
    second = logins.log_in(TOKEN)
    logins.log_out(second)
    assert not logins.is_logged_in(second)


def test_a_page_that_is_read_only_admits_nobody(clock):
    logins = visitors.Logins(None, clock)
    assert not logins.allows_changes and logins.log_in(TOKEN) is None and logins.log_in('') is None


def test_many_wrong_tokens_end_logins_for_a_while(logins, clock):
    for _ in range(visitors.FAILURES):
        assert logins.log_in('wrong') is None
    assert logins.is_blocked() and logins.log_in(TOKEN) is None
    clock.now += visitors.FAILURE_SECONDS + 1
    assert logins.log_in(TOKEN)


def test_logins_are_bounded(logins, clock):
    first = logins.log_in(TOKEN)
    for _ in range(visitors.MOST_SESSIONS):
        clock.now += 1
        last = logins.log_in(TOKEN)
    assert not logins.is_logged_in(first) and logins.is_logged_in(last)


def test_a_form_needs_the_token_of_its_login(logins):
    one, two = logins.log_in(TOKEN), logins.log_in(TOKEN)
    token = logins.form_token(one)
    assert logins.is_form_token(one, token)
    assert not logins.is_form_token(two, token)
    assert not logins.is_form_token(one, '') and not logins.is_form_token(None, token)
    assert not logins.is_form_token(one, 'ü' * 64)
    logins.log_out(one)
    assert not logins.is_form_token(one, token)


def test_what_is_said_is_said_once_and_to_one_login(logins):
    one, two = logins.log_in(TOKEN), logins.log_in(TOKEN)
    logins.say(one, 'done')
    assert logins.take_said(two) == '' and logins.take_said(None) == ''
    assert logins.take_said(one) == 'done' and logins.take_said(one) == ''
