"""Flushes of whole media by the master, in child processes: at the stop, and around a change after
which initiators may stop flushing (shared_state.may_stop_flushing).

     flush_unit --> job: store.flush(everything) --GOOD--> done(None)
                                |-- failed --> the unit has failed --> done(OSError)
                                |-- no answer within the time limit --> done(OSError)
"""

import errno
import functools

from targetd.master.units import descriptions
from targetd.store import from_descriptor

# shorter, together with the other stages of the stop, than a service manager waits
FLUSH_SECONDS = 30.0


class Flushes(object):
    """Starts flushes. jobs: Jobs; on_failed(unit, why): the medium may have lost data."""

    def __init__(self, jobs, on_failed):
        self.jobs = jobs
        self.on_failed = on_failed

    def flush_unit(self, unit, done):
        """Make durable what any process wrote to the medium of the unit. done(None), or done(OSError) if
        that failed, is called now or within FLUSH_SECONDS."""
        if not has_cache(unit):
            done(None)
            return
        description, descriptor = unit.store.description(), unit.store.descriptor

        def flushed(result):
            unit.has_flush_timed_out = result.is_late
            if result.values.get('failed'):
                self.on_failed(unit, 'flush failed: %s' % result.why)
            number = errno.ETIMEDOUT if result.is_late else result.values.get('errno', errno.EAGAIN)
            done(OSError(number, result.why) if result.why else None)

        self.jobs.submit_job(
            ('flush', unit.id),
            lambda: flush_medium(description, descriptor),
            flushed,
            [descriptor],
            FLUSH_SECONDS,
        )

    def flush_units(self, units, done):
        """Flush several units at the same time. Calls done([(unit, None or OSError) …])."""
        results, count = [], len(units)

        def flushed(unit, error):
            results.append((unit, error))
            if len(results) == count:
                done(results)

        for unit in units:
            self.flush_unit(unit, functools.partial(flushed, unit))
        if not units:
            done(results)


def has_cache(unit):
    """True if data that was written to the unit can be in a volatile cache."""
    return descriptions.needs_own(unit.store)


def flush_medium(description, descriptor):
    """A job in a child process. Returns (words, descriptors)."""
    try:
        with from_descriptor(description, descriptor) as medium:
            medium.flush(0, medium.size)
    except OSError as e:
        return {'failed': e.strerror or str(e), 'errno': e.errno or errno.EIO}, ()
    return {}, ()
