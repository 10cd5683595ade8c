"""The limits of targets, initiators and LUNs in the master: their places in memory that the workers of a
target share, and who is told which (worker.throttling applies them).

     login, reload --> limits of each session --changed?--> order `limits` + the memory file
     targetdctl show limits <-- numbers that the workers have written there

Places: 0 is the target, 1 + LUN its LUNs, then the initiators, then once more the LUNs, for the limits of
those that are slowed down for the latency-target of another one (master.latency_targets), which is in force
beside the configured limit. The memory is written by workers, which are not trusted: its numbers are shown,
and nothing is decided by them.
"""

import os

from targetd import compat
from targetd.config import kinds
from targetd.scsi.limits import SECOND, STATE
from targetd.store import linux

LUNS = 16384
MOST_INITIATORS = 16384  # more than sessions
TARGET, FIRST_LUN, FIRST_INITIATOR = 0, 1, 1 + LUNS
FIRST_SLOWED = FIRST_INITIATOR + MOST_INITIATORS
MEMORY_BYTES = (FIRST_SLOWED + LUNS) * STATE.size
#: A LUN that is slowed down cannot save its rate for long: it would be as late as before for a second.
SLOWED_BURST = SECOND // 10

_TIME = kinds.Duration(0.001, 60)


class _Shared(object):
    """The memory of one target. initiators: {iSCSI name: place}."""

    def __init__(self, descriptor, initiators=()):
        self.descriptor = descriptor
        self.initiators = dict(initiators)

    def place_of(self, name, in_use):
        """The place of an initiator. One of a name that is not in use is used again."""
        place = self.initiators.get(name)
        if place is None:
            unused = next((each for each in self.initiators if each not in in_use), None)
            place = FIRST_INITIATOR + len(self.initiators)
            if unused is not None:
                place = self.initiators.pop(unused)
                os.pwrite(self.descriptor, bytes(STATE.size), place * STATE.size)
            self.initiators[name] = place
        return place

    def counts(self, place):
        """(number of delayed commands, seconds of their delays) of a place."""
        data = os.pread(self.descriptor, STATE.size, place * STATE.size)
        _, _, delayed, delay = STATE.unpack(data.ljust(STATE.size, b'\0'))  # workers may shorten it
        return delayed, delay / SECOND


class RateLimits(object):
    """state: ServerState; sessions: Sessions; send(worker, order, descriptors): of Workers."""

    def __init__(self, state, sessions, send):
        self._state = state
        self._sessions = sessions
        self._send = send
        self._shared = {}  # target name -> _Shared, once the target has had limits
        self._sent = {}  # worker -> its order
        self._slowed = {}  # (target name, LUN) -> commands per second
        self._causes = {}  # the same -> [text]
        self.latencies = dict  # LatencyTargets.measured

    def close(self):
        """Close the memory files."""
        for shared in self._shared.values():
            os.close(shared.descriptor)
        self._shared.clear()

    def serve(self, worker, nexus):
        """A session begins: send its limits before its units. Raises OSError."""
        self._sent.pop(worker, None)
        self._update(worker, nexus)

    def apply(self):
        """The configuration has changed: send their limits to the sessions for which they differ."""
        for session in self._sessions.normal():
            self._update(session.worker, session.nexus)

    def slow(self, slowed, causes):
        """From now on these LUNs are slowed down, and no others. slowed: {(target name, LUN): commands per
        second}; causes: {the same: [for whom]}."""
        changed = {
            name
            for name, lun in set(slowed) | set(self._slowed)
            if slowed.get((name, lun)) != self._slowed.get((name, lun))
        }
        self._slowed, self._causes = slowed, causes
        for session in self._sessions.normal() if changed else ():
            if session.nexus.target_name in changed:
                self._update(session.worker, session.nexus)

    def session_over(self, worker):
        """The worker serves the session no more."""
        self._sent.pop(worker, None)

    def _update(self, worker, nexus):
        order = self._order(nexus)
        is_empty = not (order['session'] or order['luns'] or order['timed'])
        if order == self._sent.get(worker) or is_empty and worker not in self._sent:
            return
        descriptor = linux.reopen(self._shared_of(nexus.target_name).descriptor)
        try:
            self._send(worker, order, [descriptor])
        finally:
            os.close(descriptor)
        self._sent[worker] = order

    def _order(self, nexus):
        """The order `limits` for a session with this nexus."""
        target = self._state.configuration.targets.get(nexus.target_name)
        order = {'do': 'limits', 'session': [], 'luns': {}, 'timed': []}
        if target is None:
            return order
        if target.iops_limit or target.bandwidth_limit:
            order['session'].append([TARGET, target.iops_limit, target.bandwidth_limit])
        if target.initiator_iops_limit or target.initiator_bandwidth_limit:
            place = self._place_of(nexus)
            rates = [target.initiator_iops_limit, target.initiator_bandwidth_limit]
            order['session'].append([place] + rates)
        for number, lun in target.luns.items():
            rows = []
            if lun.iops_limit or lun.bandwidth_limit:
                rows.append([FIRST_LUN + number, lun.iops_limit, lun.bandwidth_limit])
            slowed = self._slowed.get((nexus.target_name, number))
            if slowed:
                rows.append([FIRST_SLOWED + number, slowed, 0, SLOWED_BURST])
            if rows:
                order['luns'][str(number)] = rows
            if lun.latency_target or target.initiator_latency_target:
                order['timed'].append(number)
        return order

    def _place_of(self, nexus):
        in_use = {s.initiator_name for s in self._sessions.of_target(nexus.target_name)}
        return self._shared_of(nexus.target_name).place_of(nexus.initiator_name, in_use)

    def _shared_of(self, target_name):
        shared = self._shared.get(target_name)
        if shared is None:
            shared = _Shared(compat.memory_file('targetd-limits', MEMORY_BYTES))
            self._shared[target_name] = shared
        return shared

    # -- what is shown -----------------------------------------------------------------------------

    def rows(self):
        """The rows of `show limits`."""
        return [row for name in self._state.configuration.targets for row in self._of_target(name)]

    def of_session(self, nexus):
        """The rows of `show limits` about the limits of a session."""
        mine = {'target'} | {'initiator ' + nexus.initiator_name}
        return [
            row
            for row in self._of_target(nexus.target_name)
            if row['what'] in mine or row['what'].startswith('lun ')
        ]

    def _of_target(self, name):
        target = self._state.configuration.targets.get(name)
        if target is None:
            return []
        found = self._row(name, 'target', TARGET, target.iops_limit, target.bandwidth_limit)
        for number, lun in target.luns.items():
            what, rates = 'lun %d' % number, (lun.iops_limit, lun.bandwidth_limit)
            found += self._row(name, what, FIRST_LUN + number, *rates, wanted=lun.latency_target)
            slowed, why = self._slowed.get((name, number)), self._causes.get((name, number))
            row = self._row(name, what + ' slowed down', FIRST_SLOWED + number, slowed, 0)
            found += [dict(each, slowed_for=', '.join(why)) for each in row]
        rates = target.initiator_iops_limit, target.initiator_bandwidth_limit
        shared = self._shared.get(name)
        for initiator in sorted({s.initiator_name for s in self._sessions.of_target(name)}):
            place = shared.initiators.get(initiator) if shared is not None else None
            wanted = target.initiator_latency_target
            found += self._row(name, 'initiator ' + initiator, place, *rates, wanted=wanted)
        return found

    def _row(self, target_name, what, place, commands, size, wanted=0):
        if not commands and not size and not wanted:
            return []
        shared, counts = self._shared.get(target_name), (0, 0.0)
        if shared is not None and place is not None:
            counts = shared.counts(place)
        latency = self.latencies().get((target_name, what))
        return [
            {
                'target_name': target_name,
                'what': what,
                'iops': commands or None,
                'bandwidth': size or None,
                'delayed': counts[0],
                'delay_seconds': round(counts[1], 3),
                'average': '%.1f ms' % (1000 * counts[1] / counts[0]) if counts[0] else '',
                'latency_target': _TIME.write(wanted) if wanted else '',
                'latency_target_seconds': wanted or None,
                'latency': '' if latency is None else '%.1f ms' % (1000 * latency),
                'latency_seconds': latency,
                'slowed_for': '',
            }
        ]

    # -- upgrade -----------------------------------------------------------------------------------

    def handed_over(self, keep):
        """The state as plain values, for the program that takes over (ARCHITECTURE D24)."""
        shared = {
            name: (keep(each.descriptor), each.initiators) for name, each in self._shared.items()
        }
        return {
            'shared': shared,
            'sent': {w.pid: order for w, order in self._sent.items()},
            'slowed': self._slowed,
        }

    def take_over(self, words, by_pid):
        """Continue with the memory of another program. by_pid: {pid: worker}."""
        for name, (descriptor, initiators) in words['shared'].items():
            # a program of an earlier version made less of it
            os.ftruncate(descriptor, MEMORY_BYTES)
            self._shared[name] = _Shared(descriptor, initiators)
        self._slowed = words['slowed']  # until LatencyTargets has counted anew
        self._causes = {place: ['a latency-target before the upgrade'] for place in self._slowed}
        self._sent.update((by_pid[p], order) for p, order in words['sent'].items() if p in by_pid)
