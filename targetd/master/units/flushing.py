"""Flushes of whole media by the master, in child processes: at the stop, and around a change after
which initiators may stop flushing (shared_state.may_stop_flushing).

     flush_unit --> job: store.flush(everything) --GOOD--> done(None)
                                |-- failed --> the unit has failed --> done(OSError)
                                |-- no answer within the time limit --> done(OSError)

Many files of one file system share jobs, since a thousand forks take far longer than a thousand flushes;
if such a job does not answer in time, each of its files gets a job of its own.
"""

import errno
import functools

from targetd.master.units import descriptions
from targetd.store import from_descriptor

# shorter, together with the other stages of the stop, than a service manager waits
FLUSH_SECONDS = 30.0
GROUP_SECONDS = 10.0  # of a job that flushes several files
FILES_PER_JOB = 64  # each keeps a descriptor


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

        for group in grouped_by_file_system(units):
            if len(group) == 1:
                self.flush_unit(group[0], functools.partial(flushed, group[0]))
            else:
                self._flush_group(group, flushed)
        if not units:
            done(results)

    def _flush_group(self, group, flushed):
        media = [(unit.store.description(), unit.store.descriptor) for unit in group]

        def answered(result):
            for unit, words in zip(group, result.values.get('media') or [None] * len(group)):
                if words is None or words.get('failed'):  # alone: its own time, its own failure
                    self.flush_unit(unit, functools.partial(flushed, unit))
                else:
                    unit.has_flush_timed_out = False
                    flushed(unit, None)

        self.jobs.submit_job(
            ('flush',) + tuple(unit.id for unit in group),
            lambda: ({'media': [flush_medium(*medium)[0] for medium in media]}, ()),
            answered,
            [descriptor for _, descriptor in media],
            GROUP_SECONDS,
        )


def grouped_by_file_system(units):
    """[[unit, ...], ...]: files of one file system together, at most FILES_PER_JOB of them; everything
    else alone."""
    groups, by_device = [], {}
    for unit in units:
        if unit.store.kind != 'file' or not has_cache(unit):
            groups.append([unit])
            continue
        group = by_device.get(unit.store.key[1])
        if group is None or len(group) == FILES_PER_JOB:
            group = by_device[unit.store.key[1]] = []
            groups.append(group)
        group.append(unit)
    return groups


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
