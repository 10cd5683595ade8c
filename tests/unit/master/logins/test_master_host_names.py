"""The cache of host names: what counts when, and how often the resolver is asked."""

import socket

import pytest
from master_fakes import StillLoop

from targetd.master.logins import host_names
from targetd.master.logins.host_names import (
    FRESH_SECONDS,
    KEPT_SECONDS,
    RETRY_SECONDS,
    RUNNING,
    HostNames,
)
from targetd.master.processes.jobs import JobResult

NAME, ADDRESS, OTHER = 'host1.example.com', '192.0.2.7', '2001:db8::7'


class Resolver(object):
    """Implements Jobs: the test answers the questions."""

    def __init__(self):
        self.asked = []  # (name, done)

    def submit_job(self, name, work, done, seconds):
        self.asked.append((name[1], done))

    def answer(self, addresses=(), is_known=True, why=''):
        """The oldest question is answered."""
        _, done = self.asked.pop(0)
        values = {'addresses': list(addresses), 'is_known': is_known, 'why': why}
        done(JobResult(values, [], '', False))

    def fail(self):
        self.answer(is_known=False, why='the resolver does not answer (try again)')

    def hang(self):
        """The job is killed."""
        _, done = self.asked.pop(0)
        done(JobResult({}, [], 'there was no answer within 5 seconds', True))


@pytest.fixture
def loop():
    loop = StillLoop()
    yield loop
    loop.close()


@pytest.fixture
def resolver():
    return Resolver()


@pytest.fixture
def names(loop, resolver):
    names = HostNames(loop, resolver)
    names.apply([NAME])
    yield names
    names.close()


def known(names, resolver, *addresses):
    names.ask_stale()
    resolver.answer(addresses)
    return names


def test_a_name_that_was_never_resolved_admits_nothing(names):
    assert 'not resolved yet' in names.why_not(NAME, ADDRESS)
    assert names.why_not('other.example.com', ADDRESS)


def test_the_addresses_of_the_answer_count_in_any_spelling(names, resolver):
    known(names, resolver, ADDRESS, OTHER)
    assert names.why_not(NAME, ADDRESS) == names.why_not(NAME, '2001:0DB8::0007') == ''
    assert names.why_not(NAME, '::ffff:192.0.2.7') == ''
    assert 'it has 192.0.2.7, 2001:db8::7' in names.why_not(NAME, '192.0.2.8')
    assert names.why_not(NAME, 'no address')


def test_a_login_asks_again_only_when_the_answer_is_old(names, resolver, loop):
    assert names.ask_stale() == {NAME} and names.is_asking({NAME})
    assert names.ask_stale() == {NAME} and len(resolver.asked) == 1  # many logins, one question
    resolver.answer([ADDRESS])
    assert names.ask_stale() == set() and not resolver.asked
    loop.pass_time(FRESH_SECONDS)
    assert names.ask_stale() == {NAME} and len(resolver.asked) == 1


def test_a_new_answer_replaces_the_old_one(names, resolver, loop):
    known(names, resolver, ADDRESS)
    loop.pass_time(FRESH_SECONDS)
    known(names, resolver, OTHER)
    assert names.why_not(NAME, ADDRESS) and not names.why_not(NAME, OTHER)


@pytest.mark.parametrize('failure', ['fail', 'hang'])
def test_the_last_answer_counts_while_the_resolver_does_not_answer(names, resolver, loop, failure):
    known(names, resolver, ADDRESS)
    loop.pass_time(FRESH_SECONDS)
    assert names.ask_stale() == {NAME}
    getattr(resolver, failure)()
    assert names.why_not(NAME, ADDRESS) == ''
    assert 'although' in names.described(NAME)
    # the failure is asked about in the background, and no login waits for it
    loop.pass_time(RETRY_SECONDS)
    assert len(resolver.asked) == 1 and names.ask_stale() == set()
    getattr(resolver, failure)()
    loop.pass_time(KEPT_SECONDS - FRESH_SECONDS - RETRY_SECONDS)
    assert names.why_not(NAME, ADDRESS) == ''
    loop.pass_time(1)
    assert 'it has no address now' in names.why_not(NAME, ADDRESS)


def test_the_name_resolves_again(names, resolver, loop):
    names.ask_stale()
    resolver.fail()
    assert 'does not answer' in names.why_not(NAME, ADDRESS)
    loop.pass_time(RETRY_SECONDS)
    resolver.answer([ADDRESS])
    assert names.why_not(NAME, ADDRESS) == ''
    loop.pass_time(RETRY_SECONDS)
    assert not resolver.asked


def test_a_name_that_does_not_exist_any_more_admits_nothing_at_once(names, resolver, loop):
    known(names, resolver, ADDRESS)
    loop.pass_time(FRESH_SECONDS)
    names.ask_stale()
    resolver.answer(why='the name does not exist')
    assert 'does not exist' in names.why_not(NAME, ADDRESS)


def test_some_names_are_asked_for_at_a_time(names, resolver):
    many = ['host%d' % number for number in range(3 * RUNNING)]
    names.apply(many)
    assert names.ask_stale() == set(many)
    asked = []
    while resolver.asked:
        assert len(resolver.asked) <= RUNNING
        asked.append(resolver.asked[0][0])
        resolver.answer([ADDRESS])
    assert asked == many


def test_a_name_that_left_the_configuration_is_forgotten(names, resolver):
    names.ask_stale()
    names.apply([])
    resolver.answer([ADDRESS])
    assert names.why_not(NAME, ADDRESS) and names.handed_over() == []


def test_what_is_known_passes_over_an_upgrade(names, resolver, loop):
    known(names, resolver, ADDRESS)
    loop.pass_time(100)
    after = HostNames(loop, resolver)
    after.apply([NAME])
    after.take_over(names.handed_over() + [('gone.example.com', [OTHER], 5)])
    assert after.why_not(NAME, ADDRESS) == ''
    assert after.ask_stale() == {NAME}
    resolver.fail()
    assert after.why_not(NAME, ADDRESS) == ''
    loop.pass_time(KEPT_SECONDS - 99)
    assert after.why_not(NAME, ADDRESS)
    after.close()


@pytest.mark.parametrize(
    'error, is_known',
    [
        (socket.gaierror(socket.EAI_NONAME, 'unknown'), True),
        (socket.gaierror(socket.EAI_AGAIN, 'temporary'), False),
        (socket.gaierror(socket.EAI_FAIL, 'failed'), False),
        (OSError(24, 'too many files'), False),
        (UnicodeError('label too long'), False),
    ],
)
def test_which_errors_say_that_there_is_no_such_name(monkeypatch, error, is_known):
    def ask(*arguments):
        raise error

    monkeypatch.setattr(socket, 'getaddrinfo', ask)
    answer = host_names.resolve(NAME)
    assert answer.addresses == [] and answer.is_known == is_known and answer.why


def test_both_families_are_asked_for(monkeypatch):
    def ask(name, port, family, kind):
        assert (name, family, kind) == (NAME, socket.AF_UNSPEC, socket.SOCK_STREAM)
        return [
            (socket.AF_INET6, kind, 6, '', (OTHER, 0, 0, 0)),
            (socket.AF_INET6, kind, 6, '', ('fe80::1%eth0', 0, 0, 2)),
            (socket.AF_INET, kind, 6, '', (ADDRESS, 0)),
            (socket.AF_INET, kind, 6, '', (ADDRESS, 0)),
        ]

    monkeypatch.setattr(socket, 'getaddrinfo', ask)
    assert host_names.resolve(NAME) == ([ADDRESS, OTHER, 'fe80::1'], True, '')
