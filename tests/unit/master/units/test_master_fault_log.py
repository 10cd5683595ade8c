"""One log line for a fault of each unit and kind per LOG_SECONDS."""

import errno
from types import SimpleNamespace

from targetd import log
from targetd.master.units import fault_log
from targetd.scsi.sam import Nexus

ONE = Nexus('iqn.x:one', '00023d000001', 'iqn.x:disk', 1)
NOTE = {'kind': 'read', 'errno': errno.EIO, 'offset': 512, 'length': 512}


class Timers(object):
    def __init__(self):
        self.waiting = []

    def call_later(self, seconds, function):
        assert seconds == fault_log.LOG_SECONDS
        self.waiting.append(function)

    def pass_time(self):
        waiting, self.waiting = self.waiting, []
        for function in waiting:
            function()


def unit(name='iqn.x:disk/0'):
    return SimpleNamespace(
        id=name,
        lun=SimpleNamespace(backing_store='/disk.img'),
        store=SimpleNamespace(kind='file', block_size=512),
    )


def test_one_line_per_unit_and_kind(monkeypatch):
    lines, timers = [], Timers()
    monkeypatch.setattr(log, 'error', lambda text, *values: lines.append(text % values))
    faults = fault_log.FaultLog(timers)
    faults.add(unit(), ONE, NOTE)
    assert len(lines) == 1 and 'read EIO at LBA 1, for iqn.x:one' in lines[0]
    assert '/disk.img' in lines[0] and 'targetdctl acknowledge iqn.x:disk/0' in lines[0]
    for offset in range(1024, 1024 * 11, 1024):
        faults.add(unit(), ONE, dict(NOTE, offset=offset, length=1024))
    assert len(lines) == 1
    faults.add(unit(), ONE, dict(NOTE, errno=errno.ENOSPC))
    faults.add(unit('iqn.x:disk/1'), ONE, NOTE)
    assert len(lines) == 3
    timers.pass_time()
    assert len(lines) == 4 and '10 more' in lines[3] and 'LBA 20 to 21' in lines[3]
    faults.add(unit(), ONE, NOTE)
    assert len(lines) == 4  # a minute has not passed since the last line
    timers.pass_time()
    assert len(lines) == 5 and '1 more' in lines[4]
    timers.pass_time()
    assert len(lines) == 5 and timers.waiting == []
    faults.add(unit(), ONE, NOTE)
    assert len(lines) == 6 and 'degraded' in lines[5]


def test_the_line_about_a_restriction(monkeypatch):
    lines = []
    monkeypatch.setattr(log, 'error', lambda text, *values: lines.append(text % values))
    fault_log.log_restriction(unit(), 'read-only')
    assert 'read-only now' in lines[0] and 'acknowledge' in lines[0]
