"""Processor time, memory and age of a process."""

import os
import subprocess
import sys

from targetd.host import process_usage


def test_this_process_has_used_time_and_memory():
    found = process_usage.usage(os.getpid())
    assert found.seconds > 0 and 1 << 20 < found.memory < 1 << 40 and 0 <= found.age < 86400


def test_a_process_that_has_ended_has_no_usage():
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait(60)
    assert process_usage.usage(ended.pid) is None


def test_without_psutil_nothing_is_known(monkeypatch):
    monkeypatch.setattr(process_usage, 'psutil', None)
    assert process_usage.usage(os.getpid()) is None
