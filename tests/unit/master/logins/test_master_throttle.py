"""Login throttling: failed authentications delay their own origin and no other."""

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


def test_a_few_failures_cause_no_delay(clock):
    one = LoginThrottle(clock, 3)
    assert [one.note_failure(BAD) for _ in range(2)] == [(1, 0.0), (2, 0.0)]
    assert one.reserve_delay(BAD) == 0.0 and one.reserve_delay(BAD) == 0.0


def test_each_further_failure_doubles_the_delay_up_to_30_seconds(clock):
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


def test_many_logins_at_once_are_queued_and_too_many_are_refused(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 6)  # 8 s apart
    assert [one.reserve_delay(BAD) for _ in range(9)] == [8, 16, 24, 32, 40, 48, 56, None, None]
    clock.now += 20
    assert one.reserve_delay(BAD) == 44


def test_other_origins_are_not_delayed(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 100)
    assert one.reserve_delay(GOOD) == 0.0
    failed(one, 100, '2001:db8::1')
    assert (
        one.reserve_delay('2001:db8::ffff') == 30.0 and one.reserve_delay('2001:db8:0:1::1') == 0.0
    )


def test_a_success_ends_the_delay_until_the_next_failure(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    one.note_success(BAD)
    assert one.reserve_delay(BAD) == 0.0 and one.reserve_delay(BAD) == 0.0
    assert one.note_failure(BAD) == (3, 1.0)  # a known account does not help to guess another one
    one.note_success(GOOD)
    assert one.reserve_delay(GOOD) == 0.0


def test_failures_are_forgotten_after_a_quiet_time(clock):
    one = LoginThrottle(clock, 3)
    failed(one, 9)
    clock.now += module.QUIET_SECONDS
    assert one.reserve_delay(BAD) == 0.0 and one.note_failure(BAD) == (1, 0.0)


def test_the_number_of_origins_is_bounded_and_the_latest_are_kept(clock):
    one = LoginThrottle(clock, 1)
    for number in range(module.ORIGINS + 500):
        failed(one, 2, '10.%d.%d.1' % divmod(number, 256))
    assert len(one._records) == module.ORIGINS
    assert one.reserve_delay('10.5.240.1') == 2.0 and one.reserve_delay('10.0.0.1') == 0.0


def test_delays_can_be_disabled(clock):
    one = LoginThrottle(clock, 0)
    assert failed(one, 100) == (100, 0.0) and one.reserve_delay(BAD) == 0.0
    one.note_success(BAD)
    assert one.reserve_delay(BAD) == 0.0
