"""Faults of one kind are collected before they are reported."""

import errno

import pytest

from targetd.worker import fault_reports

NOTE = {'kind': 'write', 'errno': errno.ENOSPC, 'offset': 0, 'length': 512, 'is_exact': False}
KEY = ('write', errno.ENOSPC)


class NoTimer(object):
    """A Timer that never ends by itself."""

    made = []

    def __init__(self, seconds, function, arguments):
        assert seconds == fault_reports.COLLECT_SECONDS
        self.made.append(lambda: function(*arguments))

    def start(self):
        assert self.daemon


@pytest.fixture
def timers(monkeypatch):
    monkeypatch.setattr(fault_reports.threading, 'Timer', NoTimer)
    monkeypatch.setattr(NoTimer, 'made', [])
    monkeypatch.setattr(fault_reports.time, 'monotonic', lambda: 2.5)
    return NoTimer.made


def test_the_first_fault_is_sent_at_once_and_the_next_ones_together(timers):
    sent = []
    reports = fault_reports.FaultReports(sent.append)
    for offset in range(5):
        reports.add(dict(NOTE, offset=offset))
    assert sent == [NOTE]
    timers.pop()()
    assert sent == [NOTE, dict(NOTE, offset=4, count=4, seen=2500000)]
    reports.add(NOTE)  # a new period begins
    assert sent[2] == NOTE
    timers.pop()()
    assert len(sent) == 3


def test_kinds_are_collected_separately(timers):
    sent = []
    reports = fault_reports.FaultReports(sent.append)
    reports.add(NOTE)
    reports.add(dict(NOTE, errno=errno.EIO))
    reports.add(dict(NOTE, kind='read'))
    assert len(sent) == len(timers) == 3


def test_a_bad_block_is_sent_at_once(timers):
    sent = []
    reports = fault_reports.FaultReports(sent.append)
    for offset in range(3):
        reports.add(dict(NOTE, offset=offset, is_exact=True))
    assert [note['offset'] for note in sent] == [0, 1, 2] and timers == []
