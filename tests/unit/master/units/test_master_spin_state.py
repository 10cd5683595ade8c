"""When the disk of a unit sleeps: every state and what leaves it."""

import pytest

from targetd.host.spin import Accesses
from targetd.master.units.spin_state import (
    ASLEEP,
    AWAKE,
    MOST_FAILURES,
    STARTING,
    STOPPING,
    SpinState,
)

LIMIT = 600


def seen(count, in_flight=0):
    return Accesses((count, count), in_flight)


def idle(limit=LIMIT):
    """A disk that was looked at at 0, and is idle since then."""
    spin = SpinState(limit, 0)
    assert not spin.note_accesses(0, seen(5))
    return spin


def asleep():
    spin = idle()
    spin.stop_begins('idle')
    spin.stopped(seen(7))
    return spin


def test_a_disk_sleeps_after_its_idle_time():
    spin = idle()
    assert not spin.note_accesses(LIMIT - 1, seen(5)) and not spin.is_idle(LIMIT - 1)
    assert spin.seconds_left(LIMIT - 1) == 1
    assert not spin.note_accesses(LIMIT, seen(5)) and spin.is_idle(LIMIT)
    assert spin.seconds_left(LIMIT) == 0


@pytest.mark.parametrize('accesses', [seen(6), seen(5, in_flight=1)])
def test_an_access_begins_the_time_anew(accesses):
    spin = idle()
    spin.note_accesses(LIMIT - 1, accesses)
    assert not spin.is_idle(LIMIT + 1)
    spin.note_accesses(LIMIT, accesses._replace(in_flight=0))
    assert spin.is_idle(2 * LIMIT)


def test_a_disk_whose_accesses_are_not_known_is_not_idle():
    spin = SpinState(LIMIT, 0)
    assert not spin.note_accesses(LIMIT, None) and not spin.is_idle(2 * LIMIT)


def test_the_time_before_the_first_look_does_not_count():
    spin = SpinState(LIMIT, 0)
    spin.note_accesses(LIMIT, seen(5))
    assert not spin.is_idle(LIMIT) and spin.is_idle(2 * LIMIT)


@pytest.mark.parametrize('limit', [0, -1])
def test_a_disk_that_sleeps_by_order_only_is_never_idle(limit):
    spin = idle(limit)
    assert not spin.is_idle(10 * LIMIT) and spin.seconds_left(10 * LIMIT) is None


def test_the_flush_before_the_stop_is_no_access_while_it_sleeps():
    spin = idle()
    spin.stop_begins('ordered by iqn.a')
    assert spin.state == STOPPING and not spin.note_accesses(1, seen(9))
    spin.stopped(seen(9))
    assert (
        spin.state == ASLEEP
        and not spin.note_accesses(2, seen(9))
        and spin.why == 'ordered by iqn.a'
    )
    assert not spin.is_idle(10 * LIMIT)


def test_an_access_of_others_means_that_the_disk_is_awake():
    spin = asleep()
    assert spin.note_accesses(100, seen(8)) and spin.state == AWAKE
    assert not spin.is_idle(100 + LIMIT - 1) and spin.is_idle(100 + LIMIT)


def test_after_an_upgrade_the_first_look_is_no_access():
    spin = SpinState(LIMIT, 0)
    spin.state = ASLEEP
    assert not spin.note_accesses(1, seen(3)) and spin.state == ASLEEP
    assert spin.note_accesses(2, seen(4))


def test_a_start_begins_the_idle_time_anew():
    spin = asleep()
    spin.start_begins()
    assert spin.state == STARTING and not spin.note_accesses(700, seen(20))
    spin.started(710)
    assert spin.state == AWAKE
    spin.note_accesses(720, seen(21))
    assert not spin.is_idle(720 + LIMIT - 1) and spin.is_idle(720 + LIMIT)


def test_a_disk_that_does_not_stop_is_left_alone_in_the_end():
    spin = idle()
    now = 0
    for _ in range(MOST_FAILURES):
        assert not spin.given_up
        now += LIMIT
        spin.note_accesses(now, seen(5))
        spin.note_accesses(now + LIMIT, seen(5))
        now += LIMIT
        assert spin.is_idle(now)
        spin.stop_begins('idle')
        spin.stop_failed(now, 'sense 5/20/00')
        assert spin.state == AWAKE
    assert spin.given_up == 'sense 5/20/00'
    spin.note_accesses(now + LIMIT, seen(5))
    assert not spin.is_idle(now + 9 * LIMIT) and spin.seconds_left(now) is None


def test_failures_count_only_one_after_the_other():
    spin = idle()
    for _ in range(MOST_FAILURES):
        spin.stop_begins('idle')
        spin.stop_failed(1, 'failed')
        spin.stop_begins('idle')
        spin.stopped(None)
        spin.start_begins()
        spin.started(2)
    assert not spin.given_up
