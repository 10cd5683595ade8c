"""The orders and reports of a measurement: bounded in time, and checked, since a worker is not trusted."""

from types import SimpleNamespace

import pytest

from targetd.master.control import line_samples
from targetd.master.processes.worker_messages import BadMessage


class Loop(object):
    def __init__(self):
        self.now = 0.0
        self.timers = []

    def clock(self):
        return self.now

    def call_later(self, seconds, function):
        timer = SimpleNamespace(when=self.now + seconds, function=function, is_cancelled=False)
        timer.cancel = lambda: setattr(timer, 'is_cancelled', True)
        self.timers.append(timer)
        return timer

    def pass_time(self, seconds):
        end = self.now + seconds
        while True:
            due = [t for t in self.timers if t.when <= end and not t.is_cancelled]
            if not due:
                break
            timer = min(due, key=lambda t: t.when)
            self.now = max(self.now, timer.when)
            timer.is_cancelled = True
            timer.function()
        self.now = end


class Stage(object):
    def __init__(self):
        self.loop, self.sent, self.done = Loop(), [], []
        self.sampling = line_samples.LineSampling(
            self.loop, lambda worker, message: self.sent.append((worker, message))
        )

    def measure(self, worker='worker', seconds=1):
        self.sampling.measure(
            worker, seconds, lambda samples, why: self.done.append((samples, why))
        )

    def report(self, worker='worker', **more):
        self.sampling.on_line(worker, dict(report(self.sent[-1][1]['id']), **more))


def report(number=1):
    return {
        'id': number,
        'at': 5,
        'connections': [[1, '01' * 104, 'cubic', 0]],
        'counted': [1, 512, 0, 0, 0],
        'waiting': {'line': 0, 'data': 0, 'limit': 0, 'master': 0, 'disk': 1},
    }


def test_a_measurement_takes_its_time():
    stage = Stage()
    stage.measure(seconds=1)
    assert not stage.sampling.is_idle
    while not stage.done:
        stage.report()
        stage.loop.pass_time(line_samples.PAUSE)
    ((samples, why),) = stage.done
    assert why == '' and 5 <= len(samples) <= 7 and stage.loop.now <= 1.4
    assert samples[0].lines[1].congestion == 'cubic' and samples[0].counted['bytes_read'] == 512
    assert stage.sampling.is_idle
    assert all(message['do'] == 'line' for _, message in stage.sent)


def test_a_worker_that_does_not_answer():
    stage = Stage()
    stage.measure()
    stage.loop.pass_time(line_samples.SILENCE + 1)
    ((samples, why),) = stage.done
    assert samples == [] and 'did not answer' in why
    assert len(stage.sent) == 1


def test_a_session_that_ends():
    stage = Stage()
    stage.measure('one')
    stage.measure('two')
    stage.sampling.session_over('one')
    ((samples, why),) = stage.done
    assert samples == [] and 'ended' in why and not stage.sampling.is_idle


def test_a_report_of_another_worker_or_order_is_ignored():
    stage = Stage()
    stage.measure()
    stage.sampling.on_line('another', report(stage.sent[-1][1]['id']))
    stage.sampling.on_line('worker', report(77))
    stage.loop.pass_time(line_samples.PAUSE)
    assert len(stage.sent) == 1


@pytest.mark.parametrize(
    'change',
    [
        {'connections': [[1, 'zz', 'cubic', 0]]},
        {'connections': [[1, '01', 'cubic']]},
        {'connections': [[1, '01' * 600, 'cubic', 0]]},
        {'connections': [[1, '01', 'c' * 40, 0]]},
        {'connections': [[1, '01', 'cubic', -1]]},
        {'connections': [[1, '01', 'cubic', 0]] * 65},
        {'connections': ['x']},
        {'counted': [1, 2, 3]},
        {'counted': [1, 2, 3, 4, 'x']},
        {'waiting': {'data': 1}},
        {'waiting': {'line': 0, 'data': 1, 'limit': 0, 'master': 0, 'disk': None}},
        {'at': -1},
    ],
)
def test_a_malformed_report_is_refused(change):
    stage = Stage()
    stage.measure()
    with pytest.raises(BadMessage):
        stage.report(**change)
