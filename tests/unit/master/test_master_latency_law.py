"""Which units are slowed down while others miss their latency-target: a simulated disk."""

import pytest

from targetd.master import latency_law
from targetd.master.latency_law import FLOOR_COMMANDS, LONGEST_PATIENCE, PATIENCE, Law, within
from targetd.scsi.counters import bucket_of

TARGET = 0.020


class Disk(object):
    """One that executes `speed` commands per second, of all units in turn. loads: {unit: commands that it
    has in the queue}, if nothing limits it. The protected unit has one command at a time."""

    def __init__(self, speed, **loads):
        self.speed, self.loads = speed, loads
        self.law = Law()
        self.latencies, self.rates = [], []

    def second(self, share=1.0):
        """A second passes. share: of the speed that is left, as other programs use the disk."""
        speed, rates, queue = self.speed * share, {}, 1.0
        wanted = {unit: depth for unit, depth in self.loads.items() if depth}
        free = {unit: speed * depth / (1 + sum(wanted.values())) for unit, depth in wanted.items()}
        for unit, rate in free.items():
            slowed = self.law.slowed.get(unit)
            rates[unit] = rate if slowed is None else min(rate, slowed.rate)
            # a unit below its share has no queue at the disk, but for what is being executed
            queue += wanted[unit] if rates[unit] == rate else rates[unit] / speed
        latency = queue / speed
        missed = latency > TARGET
        self.law.step(rates, {unit: ['lun 0'] for unit in self.loads} if missed else {})
        self.latencies.append(latency)
        self.rates.append(rates)
        return latency

    def run(self, seconds, **more):
        return [self.second(**more) for _ in range(seconds)]


def late(latencies):
    return sum(latency > TARGET for latency in latencies) / len(latencies)


def test_a_target_that_is_met_slows_nobody_down():
    disk = Disk(1000, one=8)
    assert late(disk.run(60)) == 0 and disk.law.slowed == {}


def test_the_protected_unit_gets_its_latency_and_keeps_it():
    disk = Disk(1000, one=32)
    assert late(disk.run(60)) < 0.2
    assert late(disk.run(300)) < 0.06
    assert disk.rates[-1]['one'] > 300, 'the neighbour uses what is left'


def test_a_neighbour_is_free_again_when_its_load_is_over():
    disk = Disk(1000, one=32)
    disk.run(30)
    disk.loads['one'] = 2
    assert late(disk.run(60)) == 0
    assert disk.law.slowed == {} and disk.rates[-1]['one'] > 600


def test_nobody_starves_if_the_target_cannot_be_met():
    disk = Disk(20, one=4, two=16)
    assert late(disk.run(100)) == 1
    assert set(disk.law.slowed) == {'one', 'two'} or disk.rates[-1]['one'] <= FLOOR_COMMANDS
    assert disk.rates[-1]['two'] >= FLOOR_COMMANDS
    fast = Disk(100000, one=4000, two=9000)
    fast.run(100, share=1.0)
    share = [fast.law.slowed[unit] for unit in ('one', 'two') if unit in fast.law.slowed]
    assert all(slowed.rate >= latency_law.FLOOR_SHARE * slowed.first for slowed in share)


def test_the_rate_falls_by_a_quarter_each_second_and_rises_by_a_quarter():
    law = Law()
    assert law.step({'one': 1000}, {'one': ['lun 0']}) == (['one'], [])
    assert law.slowed['one'].rate == 750 and law.slowed['one'].causes == ['lun 0']
    law.step({'one': 400}, {'one': ['lun 0']})
    assert law.slowed['one'].rate == 300, 'it is the measured rate that falls'
    for _ in range(PATIENCE - 1):
        law.step({'one': 300}, {})
    assert law.slowed['one'].rate == 300
    law.step({'one': 300}, {})
    assert law.slowed['one'].rate == 375
    ended = [law.step({'one': 300}, {})[1] for _ in range(5)]
    assert ended[-1] == ['one'] and law.slowed == {}


def test_a_rate_that_was_raised_too_far_is_raised_later_the_next_time():
    law, seconds = Law(), []
    law.step({'one': 1000}, {'one': ['lun 0']})
    law.step({'one': 750}, {'one': ['lun 0']})
    for _ in range(5):
        before, count = law.slowed['one'].rate, 0
        while law.slowed['one'].rate == before:
            law.step({'one': before}, {})
            count += 1
        seconds.append(count)
        law.step({'one': law.slowed['one'].rate}, {'one': ['lun 0']})
    assert seconds[0] == PATIENCE and seconds[-1] == LONGEST_PATIENCE
    assert seconds == sorted(seconds)


def test_a_unit_with_few_commands_is_left_alone():
    law = Law()
    law.step({'one': FLOOR_COMMANDS}, {'one': ['lun 0'], 'two': ['lun 0']})
    assert law.slowed == {}


def test_a_unit_that_is_gone_is_forgotten():
    law = Law()
    law.step({'one': 100}, {'one': ['lun 0']})
    law.forget('one')
    law.forget('two')
    assert law.slowed == {}


@pytest.mark.parametrize('milliseconds', [0.05, 3, 20, 500])
def test_the_time_of_90_percent_is_exact_to_a_quarter(milliseconds):
    wanted = milliseconds / 1000
    histogram = {bucket_of(int(wanted * 1e6)): 20, bucket_of(5): 75, bucket_of(10**7): 5}
    assert within(histogram) == pytest.approx(wanted, rel=0.25)


def test_without_commands_there_is_no_latency():
    assert within({}) is None
    assert within({0: 1}) <= 1e-6
