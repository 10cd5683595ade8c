"""The series of the last hour."""

from targetd.admin.rates import Sample
from targetd.web import samples

WHEN = 100000.0


def sample(seconds, reads, tsih=7):
    row = dict.fromkeys(('writes', 'bytes_written', 'others', 'errors', 'unfinished', 'lun'), 0)
    row.update(
        tsih=tsih,
        initiator_name='iqn.2026-11.test:one',
        target_name='iqn.2026-11.test:disk',
        unit='iqn.2026-11.test:disk/0',
        pid=1,
        reads=reads,
        bytes_read=reads * 4096,
        read_latencies=[[10, reads]],
        other_latencies=[],
    )
    return Sample(seconds, [row], {1: None})


def test_rates_of_each_series_and_of_all():
    history = samples.History()
    history.add(sample(10, 100), WHEN)
    assert history.points(*samples.ALL) == []  # the first sample is no rate
    history.add(sample(15, 200), WHEN + 5)
    name = '7 iqn.2026-11.test:one'
    for key in (
        samples.ALL,
        ('session', name),
        ('lun', 'iqn.2026-11.test:disk/0'),
        ('target', 'iqn.2026-11.test:disk'),
    ):
        (point,) = history.points(*key)
        assert (point.when, point.read, point.write, point.iops) == (WHEN + 5, 81920, 0, 20)
    assert history.latest('session', name, WHEN + 6).read == 81920
    assert history.latest('session', name, WHEN + 60) == samples.EMPTY
    assert history.latest('session', 'none', WHEN) == samples.EMPTY


def test_after_a_failure_the_rates_begin_anew():
    history = samples.History()
    history.add(sample(10, 100), WHEN)
    history.failed()  # the server was started again: its counters begin at 0
    history.add(sample(15, 3), WHEN + 5)
    history.add(sample(20, 8), WHEN + 10)
    assert [point.iops for point in history.points(*samples.ALL)] == [1]


def test_an_hour_is_kept_and_sessions_that_ended_are_forgotten():
    history = samples.History()
    for n in range(samples.KEPT + 10):
        history.add(sample(5 * n, n, tsih=1 if n < 5 else 2), WHEN + 5 * n)
    assert len(history.points(*samples.ALL)) == samples.KEPT
    assert history.points('session', '1 iqn.2026-11.test:one') == []
    assert len(history.points('session', '2 iqn.2026-11.test:one')) > 700
