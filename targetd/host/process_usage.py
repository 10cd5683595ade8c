"""Processor time, memory and age of a process."""

import time
from collections import namedtuple

try:
    import psutil
except ImportError:  # these columns are empty then
    psutil = None

#: seconds: processor time since its start; memory: resident bytes, without what other processes share
#: if this user may see that; age: seconds since it was started.
Usage = namedtuple('Usage', 'seconds memory age')


def usage(pid):
    """The Usage of a process, or None if it does not exist or may not be examined."""
    if psutil is None:
        return None
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        memory = process.memory_info()
        own = memory.rss - getattr(memory, 'shared', 0)
        age = max(0, int(time.time() - process.create_time()))
        return Usage(times.user + times.system, max(own, 0), age)
    except psutil.Error:
        return None
