"""Replies are shared for a second, and a change is seen at once."""

import pytest

from targetd.admin import protocol
from targetd.errors import TargetdError
from targetd.web import source
from targetd.web.samples import ALL


class FakeGate(object):
    def __init__(self):
        self.requests = []
        self.error = None

    def execute(self, request):
        self.requests.append(request)
        if self.error:
            raise self.error
        return {'ok': True, 'rows': [len(self.requests)]}


@pytest.fixture
def times():
    return [0.0]


@pytest.fixture
def asked(times):
    return source.Source(FakeGate(), lambda: times[0])


def test_many_browsers_cost_the_server_one_request(asked, times):
    assert asked.rows('show-units') == asked.rows('show-units') == [1]
    assert asked.rows('show-errors', unit='a/0') == [2]
    times[0] = source.FRESH_SECONDS + 0.1
    assert asked.rows('show-units') == [3]


def test_a_change_is_seen_at_once(asked):
    asked.rows('show-units')
    asked.change('lun-remove', {'unit': 'a/0'})
    assert asked.rows('show-units') == [3]


def test_a_failure_is_not_kept(asked):
    asked._gate.error = protocol.NotRunning('no')
    with pytest.raises(TargetdError) as e:
        asked.rows('show-units')
    assert source.is_not_running(e.value)
    asked._gate.error = None
    assert asked.rows('show-units') == [2]


def test_a_sample_that_fails_is_a_gap(asked):
    sampler = source.Sampler(asked)
    asked._gate.error = TargetdError('no')
    sampler.take()
    assert sampler.points(*ALL) == []
