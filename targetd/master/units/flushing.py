"""Flushes of whole media by the master, in child processes: at the stop, and around a change after
which initiators may stop flushing (shared_state.may_stop_flushing).

     flush_unit --> job: store.flush(everything) --GOOD--> done(None)
                                |-- failed --> the unit has failed --> done(OSError)
                                |-- no answer within the time limit --> done(OSError), in doubt --answer-->

The jobs flush through the master's open file description, which was opened before any other and so
gets every error of the medium. A process that is killed within a flush takes the error with it: the
medium is *in doubt* (store.failure_flags) until a flush of the master has ended. A job that is late is
not killed, since its outcome counts; one that died is repeated, and then counts as failed if it was in
fdatasync.

Many files of one file system share jobs, since a thousand forks take far longer than a thousand flushes;
if such a job does not answer in time, each of its files gets a job of its own.
"""

import collections
import errno
import functools

from targetd.master.processes.jobs import DIED
from targetd.master.units import descriptions
from targetd.store import failure_flags, from_descriptor, nbd_line

# shorter, together with the other stages of the stop, than a service manager waits
FLUSH_SECONDS = 30.0
#: At the stop, a flush waits so long for an NBD server that is away: longer than an attempt of the keeper to
#: connect (exports.nbd_connecting.SECONDS), in which that does not answer.
AWAY_SECONDS = 10.0
GROUP_SECONDS = 10.0  # of a job that flushes several files
FILES_PER_JOB = 64  # each keeps a descriptor


class Flushes(object):
    """Starts flushes. jobs: Jobs; on_failed(unit, why): the medium may have lost data."""

    def __init__(self, jobs, on_failed):
        self.jobs = jobs
        self.on_failed = on_failed
        self._removed = {}  # units that are no longer exported -> those who wait for their last flush
        self._doubts = collections.Counter()  # failure flag -> reasons why its medium is in doubt

    def flush_unit(self, unit, done, is_repeated=False, patience=None):
        """Make durable what any process wrote to the medium of the unit. done(None), or done(OSError) if
        that failed, is called now or within FLUSH_SECONDS. patience: seconds that it waits for an NBD
        server that is away, and then has failed; None: as for a disk that hangs."""
        name = ('flush', unit.id)
        if not has_cache(unit):
            done(None)
            return
        if self.jobs.is_stuck(name):
            done(OSError(errno.ETIMEDOUT, 'an earlier flush has not ended'))
            return
        description, descriptor = flush_description(unit.store), unit.store.descriptor
        description.update(only_flushes=True, patience=patience)
        flag = unit.store.flag

        def flushed(result):
            unit.has_flush_timed_out = (
                result.is_late or result.values.get('errno') == errno.ETIMEDOUT
            )
            if result.is_late:
                self._begin_doubt(flag)
            elif has_died(result) and not is_repeated:
                self.flush_unit(unit, done, True, patience)
                return
            elif result.why:
                self._failed(unit, result)
            number = errno.ETIMEDOUT if result.is_late else result.values.get('errno', errno.EAGAIN)
            done(OSError(number, result.why) if result.why else None)

        def ended(result):
            unit.has_flush_timed_out = False
            if has_died(result):
                self.flush_unit(unit, lambda error: self._end_doubt(flag), True)
                return
            if result.why:
                self._failed(unit, result)
            self._end_doubt(flag)

        self.jobs.submit_job(
            name,
            lambda: flush_medium(description, descriptor),
            flushed,
            [descriptor],
            FLUSH_SECONDS,
            late=ended,
        )

    def flush_removed(self, unit, done):
        """Like flush_unit(), for a unit whose export has ended: wait_for_removed() waits for it."""
        waiting = self._removed[unit] = []

        def flushed(error):
            del self._removed[unit]
            done(error)
            for each in waiting:
                each(unit, error)

        self.flush_unit(unit, flushed)

    def _failed(self, unit, result):
        if result.values.get('failed') or has_died(result):
            self.on_failed(unit, 'flush failed: %s' % result.why)

    # -- media in doubt ----------------------------------------------------------------------------

    def flush_in_doubt(self, units):
        """A process was killed that may have been in a flush of these units: no other flush succeeds
        until the master has flushed them. If that is not possible, they have failed."""
        flags = {unit: unit.store.flag for unit in units if has_cache(unit)}

        def flushed(results):
            for unit, error in results:
                if error is not None and error.errno == errno.EAGAIN:  # there was no flush
                    self.on_failed(
                        unit, 'a process was killed while it may have flushed: %s' % error
                    )
                self._end_doubt(flags[unit])

        for flag in flags.values():
            self._begin_doubt(flag)
        self.flush_units(list(flags), flushed)

    def _begin_doubt(self, flag):
        self._doubts[flag] += 1
        failure_flags.set_doubt(flag, True)

    def _end_doubt(self, flag):
        self._doubts[flag] -= 1
        if self._doubts[flag] <= 0:
            del self._doubts[flag]
            failure_flags.set_doubt(flag, False)

    # -- several units -----------------------------------------------------------------------------

    def flush_units(self, units, done, is_last=False):
        """Flush several units at the same time. Calls done([(unit, None or OSError) …]). is_last: at the
        stop: also of the units that are no longer exported and whose last flush has not ended, and
        with a limit for servers that are away."""
        removed = list(self._removed.values()) if is_last else []
        patience = AWAY_SECONDS if is_last else None
        results, count = [], len(units) + len(removed)

        def flushed(unit, error):
            results.append((unit, error))
            if len(results) == count:
                done(results)

        for group in grouped_by_file_system(units):
            if len(group) == 1:
                each = functools.partial(flushed, group[0])
                self.flush_unit(group[0], each, patience=patience)
            else:
                self._flush_group(group, flushed)
        for waiting in removed:
            waiting.append(flushed)
        if not count:
            done(results)

    def _flush_group(self, group, flushed):
        media = [(flush_description(unit.store), unit.store.descriptor) for unit in group]
        count = len(group)

        def answered(result):
            for unit, words in zip(group, result.values.get('media') or [None] * count):
                if words is None or words.get('failed'):  # alone: its own time, its own failure
                    self.flush_unit(unit, functools.partial(flushed, unit))
                else:
                    unit.has_flush_timed_out = False
                    flushed(unit, None)

        def ended(result):
            for unit, words in zip(group, result.values.get('media') or [{}] * count):
                if words.get('failed'):
                    self.on_failed(unit, 'flush failed: %s' % words['failed'])

        self.jobs.submit_job(
            ('flush',) + tuple(unit.id for unit in group),
            lambda: ({'media': [flush_medium(*medium)[0] for medium in media]}, ()),
            answered,
            [descriptor for _, descriptor in media],
            GROUP_SECONDS,
            late=ended,
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
    return (
        descriptions.needs_own(unit.store) or unit.store.kind == 'nbd' and not unit.store.read_only
    )


def has_died(result):
    """True if a job's process was killed before it had answered."""
    return result.why == DIED


def flush_description(store):
    """The description of an OpenedStore for a flush through the master's open file description, which
    other processes may share."""
    return dict(store.description(), is_shared=True, ends_doubt=True)


def flush_medium(description, descriptor):
    """A job in a child process. Returns (words, descriptors)."""
    try:
        if description['kind'] == 'nbd':
            descriptor = nbd_line.open_line(descriptor, description['flag'], False)
        with from_descriptor(description, descriptor) as medium:
            medium.flush(0, medium.size)
    except OSError as e:
        return {'failed': e.strerror or str(e), 'errno': e.errno or errno.EIO}, ()
    return {}, ()
