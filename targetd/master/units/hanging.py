"""Units whose medium does not answer, as the workers report it, and the fences around their media.

    a worker has given up waiting for an aborted command that may still write
        --ask fence--> every session answers BUSY for the units of this medium --> answer
    the command has returned --report fence-over--+--> no worker has a fence there: BUSY ends
    the worker is reaped -------------------------+

A fence belongs to the data (Unit.key): a unit that is removed and added again stays fenced. Initiators
send a command again that ended with BUSY; QEMU's does not after NOT READY.
"""

import time

from targetd import log
from targetd.scsi import sam
from targetd.scsi.medium_state import ANSWERS, FENCED, HANGS
from targetd.store.sleeping import ROTATES

#: So many removed units are remembered, for fences that workers ask for later.
REMOVED_UNITS = 1000


class Hang(object):
    """The oldest command that a worker waits for. command: its name; lba: or None; since: wall clock,
    seconds."""

    def __init__(self, command, lba, initiator_name, commands, since):
        self.command = command
        self.lba = lba
        self.initiator_name = initiator_name
        self.commands = commands
        self.since = since

    def __str__(self):
        where = '' if self.lba is None else ' of LBA %d' % self.lba
        return '%s%s by %s' % (self.command, where, self.initiator_name)


class HangingUnits(object):
    """replication: Replication; clock(): wall clock, seconds."""

    def __init__(self, replication, clock=time.time):
        self.replication = replication
        self.clock = clock
        self._fences = {}  # Unit.key -> set of workers
        self._hangs = {}  # (worker, unit id) -> Hang
        self.removed = {}  # id of a removed unit -> (its key, the workers that served it)

    # -- units -------------------------------------------------------------------------------------

    def add_unit(self, unit):
        """The unit is exported now."""
        unit.hanging = self.state_of(unit)

    def remove_unit(self, unit):
        """The unit is no longer exported; its workers may still wait for its medium."""
        self.removed[unit.id] = unit.key, {worker for worker, _ in unit.replica_holders()}
        while len(self.removed) > REMOVED_UNITS:
            del self.removed[next(iter(self.removed))]

    def withdrawn(self, unit, worker):
        """The worker does not serve the unit any more, and no command of it waits for the medium."""
        if self._hangs.pop((worker, unit.id), None) is not None:
            self._distribute([unit])

    def described(self, unit):
        """What `targetdctl show units` adds to the unit's state, or ''."""
        hangs = [hang for (_, unit_id), hang in self._hangs.items() if unit_id == unit.id]
        if not hangs:
            return 'busy until an aborted write returns' if unit.key in self._fences else ''
        oldest = min(hangs, key=lambda hang: hang.since)
        return 'hanging since %s (%d s): %s, %d commands%s' % (
            time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(oldest.since)),
            self.clock() - oldest.since,
            oldest,
            sum(hang.commands for hang in hangs),
            ', busy until an aborted write returns' if unit.key in self._fences else '',
        )

    @property
    def is_quiet(self):
        """True if every medium answers."""
        return not (self._fences or self._hangs)

    def is_fenced(self, unit):
        """True if an aborted command may still write the medium."""
        return unit.key in self._fences

    def state_of(self, unit):
        """ANSWERS, HANGS or FENCED. A disk that sleeps counts as one that hangs: no command may wait for it
        in a connection's thread."""
        if unit.key in self._fences:
            return FENCED
        if unit.sleep != ROTATES:
            return HANGS
        return HANGS if any(unit_id == unit.id for _, unit_id in self._hangs) else ANSWERS

    def _distribute(self, units, done=lambda: None, without=None):
        """Send every replica holder of these units but `without` their state, where it has changed;
        done() when all have it in force."""
        left = [1]

        def one_done():
            left[0] -= 1
            if not left[0]:
                done()

        for unit in units:
            if unit.hanging != self.state_of(unit):
                unit.hanging = self.state_of(unit)
                left[0] += 1
                workers = [w for w, _ in unit.replica_holders() if w is not without]
                self.replication.send_change_to(workers, unit, {'hanging': unit.hanging}, one_done)
        one_done()

    def _with_key(self, key):
        return [unit for unit in self.replication.by_id.values() if unit.key == key]

    # -- messages ----------------------------------------------------------------------------------

    def on_fence(self, worker, message):
        """`ask fence`: answered when the fence is in force in every session."""

        def answer():
            self.replication.send(
                worker, {'do': 'answer', 'id': message.get('id'), 'status': sam.GOOD}, ()
            )

        unit = self.replication.by_id.get(message['unit'])
        key, workers = self.removed.get(message['unit'], (None, ()))
        if unit is not None and unit.has_replica_in(worker):
            key = unit.key
        elif worker not in workers:
            answer()  # it has no replica of the unit
            return
        if key not in self._fences:
            log.warning(
                'unit %s: an aborted command of worker %d has not returned from the medium; commands '
                'for the unit end with BUSY until it does',
                message['unit'],
                worker.pid,
            )
        self._put_up(key, worker, answer)

    def _put_up(self, key, worker, done, without=None):
        self._fences.setdefault(key, set()).add(worker)
        self._distribute(self._with_key(key), done, without)

    def on_fence_over(self, worker, message):
        """`report fence-over`: the aborted commands of the worker have returned."""
        unit = self.replication.by_id.get(message['unit'])
        key = unit.key if unit is not None else self.removed.get(message['unit'], (None,))[0]
        self._take_down(key, worker)

    def _take_down(self, key, worker):
        workers = self._fences.get(key, set())
        if worker not in workers:
            return
        workers.discard(worker)
        if not workers:
            del self._fences[key]
            for unit in self._with_key(key):
                log.info('unit %s: the aborted commands have returned; it is used again', unit.id)
            self._distribute(self._with_key(key))

    def on_hanging(self, worker, message):
        """`report hanging`: the oldest command of a unit for which the worker waits; commands 0: none
        any more."""
        unit = self.replication.by_id.get(message['unit'])
        if unit is None or not unit.has_replica_in(worker) or worker.session is None:
            return
        before = self._hangs.pop((worker, unit.id), None)
        if message['commands'] > 0 and unit.sleep != ROTATES:
            return  # it waits until the disk is awake
        if message['commands'] > 0:
            hang = self._hangs[worker, unit.id] = Hang(
                message.get('command', ''),
                message.get('lba'),
                worker.session.initiator_name,
                message['commands'],
                self.clock() - message.get('milliseconds', 0) / 1000.0,
            )
            if before is None:
                log.warning('unit %s: the medium does not answer: %s', unit.id, hang)
        elif before is not None:
            log.warning(
                'unit %s: the medium answers the commands of %s again, after %d seconds',
                unit.id,
                before.initiator_name,
                self.clock() - before.since,
            )
        self._distribute([unit])

    # -- workers -----------------------------------------------------------------------------------

    def fence_unkillable(self, worker, done):
        """The worker was killed and still exists: a thread of it is in a call of the kernel. Fence the
        units whose media do not answer it, or all its units if it has reported none; done() when the
        fences are in force in the other workers."""
        units = [unit for unit in self.replication.by_id.values() if unit.has_replica_in(worker)]
        hanging = [unit for unit in units if (worker, unit.id) in self._hangs]
        keys = {unit.key for unit in hanging or units}
        left = [1 + len(keys)]

        def one_done():
            left[0] -= 1
            if not left[0]:
                done()

        for key in keys:
            self._put_up(key, worker, one_done, worker)
        one_done()

    def session_over(self, worker):
        """The worker serves its session no more; what it has fenced stays fenced."""
        gone = [unit_id for each, unit_id in self._hangs if each is worker]
        for unit_id in gone:
            del self._hangs[worker, unit_id]
        self._distribute([u for u in map(self.replication.by_id.get, gone) if u is not None])

    def worker_gone(self, worker):
        """The worker is reaped: it writes nothing any more."""
        for key in [key for key, workers in self._fences.items() if worker in workers]:
            self._take_down(key, worker)


__all__ = ('HangingUnits',)
