"""The histogram of latencies and the counters of a logical unit."""

import pytest

from targetd.scsi import counters


def test_buckets_follow_each_other_without_gap_or_overlap():
    last = -1
    for microseconds in range(20000):
        bucket = counters.bucket_of(microseconds)
        assert bucket in (last, last + 1)
        last = bucket
        assert microseconds < counters.upper_bound(bucket)
        assert not bucket or microseconds >= counters.upper_bound(bucket - 1)


@pytest.mark.parametrize('microseconds', [100, 12345, 1000000, 60 * 10**6, 10**10])
def test_the_upper_bound_is_at_most_a_quarter_above_the_value(microseconds):
    bound = counters.upper_bound(counters.bucket_of(microseconds))
    assert microseconds < bound <= microseconds * 1.25 + 1


def test_percentiles_are_those_of_the_samples():
    found = counters.Counters()
    for microseconds in [100] * 90 + [5000] * 9 + [2000000]:
        found.note_latency(True, microseconds)
    reads, others = found.latencies
    assert sum(reads.values()) == 100 and not others
    assert 100 < counters.percentile(reads, 0.5) <= 125
    assert 5000 < counters.percentile(reads, 0.99) <= 6250
    assert 2000000 < counters.percentile(reads, 0.999) <= 2500000
    assert counters.percentile(others, 0.5) == 0
