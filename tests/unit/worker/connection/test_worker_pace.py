"""What a slow line is given at a time."""

from targetd.worker.connection.pace import FAST, INTERVAL, QUIET, Pace

MBIT = 1e6 / 8


def measured(rate, first=1e6, seconds=20.0):
    """A Pace that has seen a line of this rate for so long."""
    pace = Pace(first, 0.0)
    steps = int(seconds / 0.1)
    for step in range(steps + 1):
        pace.note(step * 0.1, int(step * 0.1 * rate))
    return pace


def test_the_rate_is_that_of_the_line():
    assert abs(measured(MBIT).rate - MBIT) < 0.02 * MBIT
    assert abs(measured(40 * MBIT).rate - 40 * MBIT) < MBIT


def test_a_line_of_one_megabit_gets_a_fraction_of_a_second():
    pace = measured(MBIT)
    assert pace.unsent_bytes / MBIT < 0.5 and pace.piece_bytes / MBIT < 0.25
    assert pace.piece_bytes % 512 == 0


def test_the_figures_have_bounds():
    for rate in (0, 1, 1e12):
        pace = Pace(rate, 0.0)
        assert 16 << 10 <= pace.unsent_bytes <= 1 << 20
        assert 8 << 10 <= pace.piece_bytes <= 256 << 10
        assert 256 << 10 <= pace.queue_bytes <= 8 << 20


def test_a_time_without_data_is_not_measured():
    pace = measured(MBIT)
    pace.note_idle()
    pace.note(1000.0, int(20 * MBIT))
    pace.note(1000.0 + INTERVAL, int(20 * MBIT + INTERVAL * MBIT))
    assert abs(pace.rate - MBIT) < 0.05 * MBIT


def test_a_line_is_slow_until_it_carries_more_or_is_quiet():
    assert not measured(MBIT).is_over(20.0)
    assert measured(2 * FAST).is_over(20.0)
    pace = measured(MBIT)
    assert not pace.is_over(20.0 + QUIET - 1) and pace.is_over(20.0 + QUIET + 1)


def test_a_line_that_carries_nothing_for_a_moment():
    pace = Pace(0.0, 0.0)
    pace.note(0.0, 0)
    pace.note(5.0, 0)
    assert pace.rate >= 1.0 and pace.unsent_bytes == 16 << 10
