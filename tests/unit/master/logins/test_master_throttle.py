"""Whose login is next: failed authentications slow their own address down and nobody else."""

import pytest
from master_fakes import Clock

from targetd.master.logins import throttle as module
from targetd.master.logins.throttle import LoginThrottle, origin_of

BAD, GOOD = '192.0.2.7', '192.0.2.8'


@pytest.fixture
def clock():
    return Clock()


def failed(throttle, times, address=BAD):
    for _ in range(times):
        answer = throttle.note_failure(address)
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


def test_a_few_mistakes_cost_nothing(clock):
    one = LoginThrottle(clock, 3)
    assert [one.note_failure(BAD) for _ in range(2)] == [(1, 0.0), (2, 0.0)]
    assert one.reserve_delay(BAD) == 0.0 and one.reserve_delay(BAD) == 0.0


def test_further_ones_wait_twice_as_long_each_time_up_to_half_a_minute(clock):
    one, steps = LoginThrottle(clock, 3), []
    failed(one, 2)
    for _ in range(8):
        count, step = one.note_failure(BAD)
        steps.append(step)
        assert one.reserve_delay(BAD) == step
        clock.now += step + 0.1
    assert steps == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_thousand_failures_overflow_nothing(clock):
    assert failed(LoginThrottle(clock, 1), 3000) == (3000, 30.0)


def test_many_at_once_come_one_after_the_other_and_too_many_are_sent_away(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 6)  # 8 s apart
    assert [one.reserve_delay(BAD) for _ in range(9)] == [8, 16, 24, 32, 40, 48, 56, None, None]
    clock.now += 20
    assert one.reserve_delay(BAD) == 44


def test_others_do_not_notice(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 100)
    assert one.reserve_delay(GOOD) == 0.0
    failed(one, 100, '2001:db8::1')
    assert (
        one.reserve_delay('2001:db8::ffff') == 30.0 and one.reserve_delay('2001:db8:0:1::1') == 0.0
    )


def test_a_success_forgives_but_not_the_next_failure(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    one.note_success(BAD)
    assert one.reserve_delay(BAD) == 0.0 and one.reserve_delay(BAD) == 0.0
    assert one.note_failure(BAD) == (
        3,
        1.0,
    )  # whoever owns one account guesses another one no faster
    one.note_success(GOOD)
    assert one.reserve_delay(GOOD) == 0.0


def test_it_is_forgotten_in_time(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    clock.now += module.QUIET_SECONDS
    assert one.reserve_delay(BAD) == 0.0 and one.note_failure(BAD) == (1, 0.0)


def test_what_is_remembered_is_bounded_and_the_latest_stay(clock):
    one = LoginThrottle(clock, 1)
    for number in range(module.ORIGINS + 500):
        failed(one, 2, '10.%d.%d.1' % divmod(number, 256))
    assert len(one._records) == module.ORIGINS
    assert one.reserve_delay('10.5.240.1') == 2.0 and one.reserve_delay('10.0.0.1') == 0.0


def test_it_can_be_switched_off(clock):
    one = LoginThrottle(clock, 0)
    assert failed(one, 100) == (100, 0.0) and one.reserve_delay(BAD) == 0.0
    one.note_success(BAD)
    assert one.reserve_delay(BAD) == 0.0
