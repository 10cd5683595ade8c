"""Watches the latency-targets of the LUNs and slows the others on their disks down while one is missed.

     each second: collect the counters of the sessions --> latency of each protected LUN and initiator
         --> LatencyLaw --> limits of the LUNs that share a disk with one that misses its target (rate_limits)

A LUN or initiator whose commands are all unfinished is late, too: the age of the oldest one counts. A LUN
with the same latency-target or a stricter one is not slowed down. Nothing runs without a latency-target.
"""

from targetd import events, log
from targetd.config import kinds
from targetd.master.common_disks import CommonDisks
from targetd.master.latency_law import Law, within

SECONDS = 1.0
#: Seconds between two lines of the log about one unit.
QUIET_SECONDS = 60.0

_TIME = kinds.Duration(0.001, 60)


def tightest(configuration, unit):
    """The strictest latency-target that protects the unit, in seconds; infinity: none does."""
    target = configuration.targets.get(unit.target_name)
    wanted = [unit.lun.latency_target, target.initiator_latency_target if target else 0]
    return min([seconds for seconds in wanted if seconds] or [float('inf')])


class Protected(object):
    """A LUN, or an initiator, with a latency-target. what: its name within the target; seconds: the
    latency-target; units: [Unit] that its commands are for; latency: seconds, of the last second, None if
    it had no command."""

    def __init__(self, target_name, what, seconds, units):
        self.target_name = target_name
        self.what = what
        self.seconds = seconds
        self.units = units
        self.latency = None
        self.histogram = {}
        self.oldest = 0.0  # seconds

    @property
    def name(self):
        return '%s of %s' % (self.what, self.target_name)

    def add(self, samples, oldest):
        """Add what a session has measured in the last second."""
        for bucket, count in samples.items():
            self.histogram[bucket] = self.histogram.get(bucket, 0) + count
        self.oldest = max(self.oldest, oldest / 1e6)

    def finish(self):
        """All sessions were added."""
        self.latency = within(self.histogram)
        if self.latency is None and self.oldest:
            self.latency = self.oldest

    @property
    def is_missed(self):
        return self.latency is not None and self.latency > self.seconds


class LatencyTargets(object):
    """jobs: Jobs; state: ServerState; units: logical_units.Units; counting: Counting; rate_limits:
    RateLimits."""

    def __init__(self, loop, jobs, state, units, counting, rate_limits):
        self._loop = loop
        self._state = state
        self._units = units
        self._counting = counting
        self._disks = CommonDisks(loop, jobs)
        self._rate_limits = rate_limits
        rate_limits.latencies = self.measured
        self._law = Law()
        self._latest = {}  # (TSIH, unit id) -> (commands, samples) since the login
        self._counted_at = None
        self._said = {}  # unit id -> time at which the log has said that it is slowed down
        # ids of the units of which the log has not said yet that they are free again
        self._open = set()
        self._protected = []
        self._timer = None

    def apply(self):
        """The configuration has changed."""
        if self._is_wanted() and self._timer is None:
            self._timer = self._loop.call_later(SECONDS, self._tick)

    def close(self):
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_wanted(self):
        return any(
            target.initiator_latency_target
            or any(lun.latency_target for lun in target.luns.values())
            for target in self._state.configuration.targets.values()
        )

    def _tick(self):
        self._timer = None
        if not self._is_wanted():
            self._release()
            return
        units = list(self._units.by_id.values())
        self._disks.look(units)
        configuration = self._state.configuration
        watched = set()
        for unit in units:
            if tightest(configuration, unit) < float('inf'):
                watched |= self._disks.beneath(unit)
        workers = {
            worker
            for unit in units
            if tightest(configuration, unit) < float('inf') or watched & self._disks.beneath(unit)
            for worker in unit.workers
        }
        self._timer = self._loop.call_later(SECONDS, self._tick)
        self._counting.collect(self._counted, workers)

    def _release(self):
        self._law = Law()
        self._latest.clear()
        self._protected, self._counted_at = [], None
        self._rate_limits.slow({}, {})

    # -- a second is over --------------------------------------------------------------------------

    def _counted(self, rows, _silent):
        now, before = self._loop.clock(), self._counted_at
        self._counted_at = now
        latest = {}
        since = [self._since_last(session, row, latest) for session, row in rows]
        self._latest = latest
        if before is None or now - before < SECONDS / 4:
            return  # nothing was counted before, or a reply was late
        units = self._units.by_id
        self._protected = self._protections(since)
        rates = {}
        for _, unit_id, commands, _, _ in since:
            rates[unit_id] = rates.get(unit_id, 0) + commands / (now - before)
        begun, ended = self._law.step(rates, self._missing())
        for unit_id in set(self._law.slowed) - set(units):
            self._law.forget(unit_id)
            self._open.discard(unit_id)
            self._said.pop(unit_id, None)
        self._say(begun, ended)
        self._put_in_force()

    def _since_last(self, session, row, latest):
        """(session, unit id, commands, samples, oldest) of a row of Counting since the row before."""
        key = session.tsih, row['unit']
        commands = row['reads'] + row['writes'] + row['others']
        samples = {}
        for name in ('read_latencies', 'other_latencies'):
            for bucket, count in row[name]:
                samples[bucket] = samples.get(bucket, 0) + count
        latest[key] = commands, samples
        old_commands, old_samples = self._latest.get(key, (commands, samples))
        if commands < old_commands:  # the unit has another store: it counts anew
            old_commands, old_samples = commands, samples
        new = {b: count - old_samples.get(b, 0) for b, count in samples.items()}
        new = {bucket: count for bucket, count in new.items() if count > 0}
        return session, row['unit'], commands - old_commands, new, row['oldest']

    def _protections(self, since):
        """[Protected] with their latencies. since: of _since_last."""
        found, units = {}, self._units.by_id
        for unit in units.values():
            if unit.lun.latency_target:
                what = 'lun %d' % unit.lun.number
                found[unit.id] = Protected(unit.target_name, what, unit.lun.latency_target, [unit])
        for session, unit_id, _, samples, oldest in since:
            unit = units.get(unit_id)
            if unit is None:
                continue
            if unit_id in found:
                found[unit_id].add(samples, oldest)
            target = self._state.configuration.targets.get(unit.target_name)
            seconds = target.initiator_latency_target if target is not None else 0
            if seconds:
                key = unit.target_name, session.initiator_name
                what = 'initiator ' + session.initiator_name
                mine = found.setdefault(key, Protected(unit.target_name, what, seconds, []))
                mine.units.append(unit)
                mine.add(samples, oldest)
        for each in found.values():
            each.finish()
        return list(found.values())

    def _missing(self):
        """{unit id: [Protected]}: who shares a disk with somebody that misses a stricter target."""
        found, configuration = {}, self._state.configuration
        for protected in self._protected:
            if not protected.is_missed:
                continue
            disks = frozenset().union(*map(self._disks.beneath, protected.units))
            for unit in self._units.by_id.values():
                is_looser = tightest(configuration, unit) > protected.seconds
                if is_looser and disks & self._disks.beneath(unit):
                    found.setdefault(unit.id, []).append(protected)
        return found

    def _say(self, begun, ended):
        now = self._loop.clock()
        for unit_id in begun:
            unit, why = self._units.by_id.get(unit_id), self._why(unit_id)
            if unit is None or now - self._said.get(unit_id, -QUIET_SECONDS) < QUIET_SECONDS:
                continue
            self._said[unit_id] = now
            self._open.add(unit_id)
            log.info('unit %s is slowed down: %s', unit_id, why)
            events.emit(
                'slowed', unit=unit_id, path=unit.lun.backing_store, state='slowed', why=why
            )
        for unit_id in ended:
            unit = self._units.by_id.get(unit_id)
            if unit is None or unit_id not in self._open:
                continue
            self._open.discard(unit_id)
            log.info('unit %s is not slowed down any more', unit_id)
            events.emit('slowed', unit=unit_id, path=unit.lun.backing_store, state='free', why='')

    def _why(self, unit_id):
        return ', and '.join(
            '%s misses its latency-target of %s: it takes %.1f ms'
            % (each.name, _TIME.write(each.seconds), each.latency * 1000)
            for each in self._law.slowed[unit_id].causes
        )

    def _put_in_force(self):
        wanted, causes = {}, {}
        for unit_id, slowed in self._law.slowed.items():
            unit = self._units.by_id[unit_id]
            place = unit.target_name, unit.lun.number
            wanted[place] = max(1, int(slowed.rate))
            causes[place] = [
                '%s (%s)' % (each.name, _TIME.write(each.seconds)) for each in slowed.causes
            ]
        self._rate_limits.slow(wanted, causes)

    # -- what is shown -----------------------------------------------------------------------------

    def measured(self):
        """{(target name, what): seconds of the last second, or None} of the protected."""
        return {(each.target_name, each.what): each.latency for each in self._protected}
