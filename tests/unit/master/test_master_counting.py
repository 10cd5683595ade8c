"""Counters that workers report: collected, bounded in time, and kept when a session ends."""

from types import SimpleNamespace

import pytest

from targetd.master import counting
from targetd.master.processes.worker_messages import BadMessage


class Loop(object):
    def __init__(self):
        self.timers = []

    def call_later(self, seconds, function):
        timer = SimpleNamespace(function=function, seconds=seconds, is_cancelled=False)
        timer.cancel = lambda: setattr(timer, 'is_cancelled', True)
        self.timers.append(timer)
        return timer

    def expire(self):
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.is_cancelled:
                timer.function()


class Worker(object):
    def __init__(self, pid):
        self.pid = pid
        self.session = SimpleNamespace(tsih=pid, nexus=1)


class Stage(object):
    def __init__(self, count):
        self.loop, self.sent, self.done = Loop(), [], []
        self.workers = [Worker(pid) for pid in range(1, count + 1)]
        unit = SimpleNamespace(id='disk/0', workers=dict.fromkeys(self.workers))
        self.units = SimpleNamespace(by_id={'disk/0': unit})
        self.counting = counting.Counting(
            self.loop,
            SimpleNamespace(
                busy=lambda: list(self.workers), send=lambda w, m: self.sent.append((w, m))
            ),
            self.units,
        )

    def collect(self):
        self.counting.collect(lambda rows, silent: self.done.append((rows, silent)))

    def report(self, worker, reads, number=None, more=False, unit='disk/0', histogram=()):
        if number is None:
            number = [m['id'] for w, m in self.sent if w is worker][-1]
        row = [unit, reads, reads * 512, 0, 0, 0, 0, 0, 0, list(histogram), []]
        self.counting.on_counted(worker, {'id': number, 'units': [row], 'more': more})


def test_the_answers_of_all_workers_are_one_result():
    stage = Stage(2)
    stage.collect()
    stage.report(stage.workers[0], 3)
    assert not stage.done
    stage.report(stage.workers[1], 4)
    ((rows, silent),) = stage.done
    assert [(s.tsih, row['reads'], row['bytes_read']) for s, row in rows] == [
        (1, 3, 1536),
        (2, 4, 2048),
    ]
    assert silent == []


def test_a_worker_that_hangs_is_left_out_and_not_asked_again():
    stage = Stage(2)
    stage.collect()
    stage.report(stage.workers[0], 3)
    stage.loop.expire()
    ((rows, silent),) = stage.done
    assert len(rows) == 1 and silent == [stage.workers[1]]
    stage.collect()
    assert [w.pid for w, _ in stage.sent] == [1, 2, 1]
    stage.report(stage.workers[1], 9)  # the late answer to the first order
    stage.report(stage.workers[0], 5)
    assert {row['reads'] for _, row in stage.done[1][0]} == {9, 5}


def test_a_report_in_parts_is_complete_with_the_last_one():
    stage = Stage(1)
    stage.collect()
    stage.report(stage.workers[0], 1, more=True)
    assert not stage.done
    stage.report(stage.workers[0], 2)
    assert len(stage.done[0][0]) == 2


def test_without_sessions_the_result_is_empty():
    stage = Stage(0)
    stage.collect()
    stage.loop.expire()
    assert stage.done == [([], [])]


def test_the_counters_of_sessions_that_are_over_are_kept():
    stage = Stage(2)
    one, two = stage.workers
    stage.collect()
    stage.report(one, 3, histogram=[[9, 1]])
    stage.report(one, 7, counting.FINAL, histogram=[[9, 2], [12, 1]])
    stage.report(two, 5)
    assert stage.counting.ended() == []
    stage.counting.session_over(one)
    stage.counting.session_over(two)  # it was killed: its last report counts
    (ended,) = stage.counting.ended()
    assert (ended['unit'], ended['reads'], ended['bytes_read']) == ('disk/0', 12, 12 * 512)
    assert ended['read_latencies'] == [[9, 2], [12, 1]]
    stage.units.by_id.clear()
    assert stage.counting.ended() == []


def test_a_unit_with_another_store_counts_anew_and_nothing_is_lost():
    stage = Stage(1)
    (worker,) = stage.workers
    stage.report(worker, 10, 1)
    stage.report(worker, 2, 1)
    stage.counting.session_over(worker)
    assert stage.counting.ended()[0]['reads'] == 12


def test_counters_of_a_unit_that_the_worker_does_not_serve_are_ignored():
    stage = Stage(1)
    stage.collect()
    stage.report(stage.workers[0], 1, unit='other/0')
    assert stage.done == [([], [])]


@pytest.mark.parametrize(
    'row',
    [
        7,
        [],
        ['disk/0', 1, 2],
        ['disk/0', 1, 1, 1, 1, 1, 1, -1, [], []],
        ['disk/0', 1, 1, 1, 1, 1, 1, 'x', [], []],
        ['disk/0', 1, 1, 1, 1, 1, 1, 1, [[1]], []],
        ['disk/0', 1, 1, 1, 1, 1, 1, 1, [], 5],
        [['x'], 1, 1, 1, 1, 1, 1, 1, [], []],
        ['disk/0', 1, 1, 1, 1, 1, 1, 1, [[1, 1]] * 1000, []],
    ],
)
def test_a_malformed_row_is_refused(row):
    stage = Stage(1)
    with pytest.raises(BadMessage):
        stage.counting.on_counted(stage.workers[0], {'id': 1, 'units': [row], 'more': False})
