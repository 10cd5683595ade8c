"""Processor time and memory of a process."""

from collections import namedtuple

try:
    import psutil
except ImportError:  # the other columns of the statistics do without it
    psutil = None

#: seconds: processor time since its start; memory: resident bytes, without what other processes share
#: if this user may see that.
Usage = namedtuple('Usage', 'seconds memory')


def usage(pid):
    """The Usage of a process, or None if it does not exist or may not be examined."""
    if psutil is None:
        return None
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        memory = process.memory_info()
        own = memory.rss - getattr(memory, 'shared', 0)
        return Usage(times.user + times.system, max(own, 0))
    except psutil.Error:
        return None
