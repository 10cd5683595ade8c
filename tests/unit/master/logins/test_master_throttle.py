"""Login throttling: answers to failed authentications are delayed for the one that fails, and for no
other."""

import pytest
from master_fakes import Clock

from targetd.master.logins import throttle as module
from targetd.master.logins.throttle import ANSWERS_AT_ONCE, MANY, LoginThrottle, origin_of

BAD, GOOD = '192.0.2.7', '192.0.2.8'
NAME, TARGET = 'iqn.x:i', 'iqn.x:t'


@pytest.fixture
def clock():
    return Clock()


def failed(throttle, times, address=BAD, name=NAME, target=TARGET):
    for _ in range(times):
        answer = throttle.note_failure(address, name, target)
    return answer


@pytest.mark.parametrize(
    'address, origin',
    [
        ('192.0.2.7', '192.0.2.7'),
        ('2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'),
        ('2001:db8:1:2::9', '2001:db8:1:2::/64'),
        ('fe80::1%eth0', 'fe80::/64'),
        ('no:address', 'no:address'),
    ],
)
def test_an_origin_is_an_address_or_a_network_of_one_host(address, origin):
    assert origin_of(address) == origin


def test_each_failure_beyond_those_allowed_doubles_the_delay_up_to_the_longest(clock):
    one = LoginThrottle(clock, 3)
    steps = [one.note_failure(BAD, NAME, TARGET) for _ in range(8)]
    assert steps == list(zip(range(1, 9), [0, 0, 1, 2, 4, 8, 10, 10]))
    assert failed(LoginThrottle(clock, 1), 3000) == (3000, 10.0)


@pytest.mark.parametrize(
    'other',
    [(GOOD, NAME, TARGET), (BAD, 'iqn.x:other', TARGET), (BAD, NAME, 'iqn.x:other')],
    ids=['address', 'name', 'target'],
)
def test_failures_are_counted_for_address_name_and_target(clock, other):
    one = LoginThrottle(clock, 2)
    failed(one, 30)
    assert not one.may_try(BAD, NAME, TARGET)
    assert one.may_try(*other) and one.note_failure(*other) == (1, 0.0)


def test_hosts_of_one_network_do_not_delay_each_other(clock):
    one = LoginThrottle(clock, 2)
    failed(one, 30, '2001:db8::1')
    assert failed(one, 1, '2001:db8::2') == (1, 0.0)


def test_an_address_that_fails_with_many_names_is_one_offender(clock):
    one = LoginThrottle(clock, 2)
    for number in range(MANY - 1):
        assert failed(one, 1, name='iqn.x:%d' % number) == (1, 0.0)
    assert failed(one, 1, name='iqn.x:last') == (MANY, 10.0)
    assert failed(one, 1, name='iqn.x:another') == (MANY + 1, 10.0)
    assert failed(one, 1, GOOD) == (1, 0.0)


def test_a_network_with_many_addresses_that_fail_is_one_offender(clock):
    one = LoginThrottle(clock, 2)
    for host in range(MANY):
        for number in range(MANY):
            failed(one, 1, '2001:db8::%x' % host, 'iqn.x:%d' % number)
    assert failed(one, 1, '2001:db8::ffff')[1] == 10.0
    assert failed(one, 1, '2001:db8:0:1::1') == (1, 0.0)


def test_challenges_are_refused_while_many_answers_wait(clock):
    """An initiator cannot guess faster with many connections."""
    one = LoginThrottle(clock, 1)
    for _ in range(ANSWERS_AT_ONCE):
        assert one.may_try(BAD, NAME, TARGET)
        failed(one, 1)
    assert not one.may_try(BAD, NAME, TARGET)
    clock.now += 10.1
    assert one.may_try(BAD, NAME, TARGET)


def test_a_login_that_has_succeeded_before_is_never_refused(clock):
    one = LoginThrottle(clock, 1)
    one.note_success(BAD, NAME, TARGET)
    failed(one, 50)
    assert one.may_try(BAD, NAME, TARGET)


def test_a_failure_without_a_response_to_a_challenge_is_not_delayed(clock):
    one = LoginThrottle(clock, 1)
    for number in range(20):
        assert one.note_failure(BAD, NAME, TARGET, is_guess=False) == (number + 1, 0.0)
    assert one.may_try(BAD, NAME, TARGET)


def test_a_success_ends_the_delay_until_the_next_failure(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    one.note_success(BAD, NAME, TARGET)
    # a known account does not help to guess another one
    assert one.note_failure(BAD, NAME, TARGET) == (3, 1.0)


def test_failures_are_forgotten_after_a_quiet_time(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    clock.now += module.QUIET_SECONDS
    assert failed(one, 1) == (1, 0.0)


def test_the_number_of_offenders_is_bounded_and_the_latest_are_kept(clock):
    one = LoginThrottle(clock, 1)
    for number in range(module.OFFENDERS * 2):
        one.note_success('10.%d.%d.1' % divmod(number, 256), NAME, TARGET)
        failed(one, 2, '10.%d.%d.1' % divmod(number, 256))
    assert len(one._offenders) <= 3 * module.OFFENDERS
    assert len(one._proved) <= module.PROVED
    assert failed(one, 1, '10.7.255.1')[0] == 3 and failed(one, 1, '10.0.0.1')[0] == 1


def test_delays_can_be_disabled(clock):
    one = LoginThrottle(clock, 0)
    assert failed(one, 100) == (100, 0.0) and one.may_try(BAD, NAME, TARGET)
    one.note_success(BAD, NAME, TARGET)
    assert failed(one, 1) == (1, 0.0)
