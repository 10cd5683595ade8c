"""Log page 19h, which the master makes."""

import struct
from types import SimpleNamespace

import pytest

from targetd.master.statistics import Statistics
from targetd.master.units.transitions import Malformed


class FakeCounting(object):
    def __init__(self):
        self.values = {'reads': 3, 'writes': 2, 'bytes_written': 8192, 'bytes_read': 1 << 20}

    def collect(self, done):
        done([], [])

    def sums(self, unit_id):
        return dict(self.values)


UNIT = SimpleNamespace(id='u1', facts={'block_size': 4096})


def counts(statistics, **words):
    answers = []
    message = dict({'control': 1, 'pointer': 0, 'length': 255}, **words)
    statistics.on_request(UNIT, message, answers.append)
    return struct.unpack_from('>4Q', answers[0].data, 8)


@pytest.mark.clause('SPC-4 7.3.6')
def test_the_counts_are_commands_and_blocks():
    assert counts(Statistics(FakeCounting())) == (3, 2, 2, 256)
    assert counts(Statistics(FakeCounting()), control=3) == (0, 0, 0, 0)


def test_after_a_reset_the_counts_begin_at_zero():
    counting = FakeCounting()
    statistics = Statistics(counting)
    statistics.reset(UNIT)
    assert counts(statistics) == (0, 0, 0, 0)
    counting.values['reads'] += 5
    assert counts(statistics) == (5, 0, 0, 0)


@pytest.mark.parametrize('words', [{'control': 4}, {'pointer': -1}, {'length': None}])
def test_malformed_requests_are_noticed(words):
    with pytest.raises(Malformed):
        counts(Statistics(FakeCounting()), **words)
