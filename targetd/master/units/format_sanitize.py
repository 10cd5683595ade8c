"""FORMAT UNIT and SANITIZE under way, each done by a worker process that serves no session: it
outlives whoever asked.

     decided --begin--> waiting for a spare --operate--> running --report operated--> over: medium ready, askers answered
        ^                                                   |
     resume (state-dir had one)                             +--- OSError, or the process died ---> failed

A CRYPTOGRAPHIC ERASE is the exception: the master alone has the key files, and replaces the key
itself: a few writes.

     decided --> FILE replaced (key_files.replace_key) --> kept that it is --> told to every worker --> acknowledged --> over

Invariants: a unit has one operation at most, and it is in shared.operation from before the first
byte until after the last; a targetd that ends, however, leaves it there unfailed, and resume()
takes it up again.
"""

import errno
from collections import deque

from targetd import log
from targetd.master.state import key_files
from targetd.master.units import transitions
from targetd.scsi import operations
from targetd.scsi.medium_state import FAILED


class Operations(object):
    """`units`: units.Units; `workers`: workers.Workers, which give and take the processes."""

    def __init__(self, units, workers):
        self.units = units
        self.workers = workers
        self._waiting = deque()  # units whose operation has no process yet
        self._running = {}  # worker -> unit
        self._askers = {}  # unit -> [done, …] of those that wait for the end
        self.on_waiting = self.hand_out  # a spare is wanted: whoever sees to that calls hand_out()

    @property
    def waiting(self):
        """How many spares are wanted."""
        return len(self._waiting)

    def begin(self, unit, decision, done):
        """The decision is in force: do it. `done` is answered at once if the asker said IMMED, else
        at the end."""
        operation = unit.shared.operation
        log.warning(
            'unit %s: %s begins, asked for by %s', unit.id, _named(operation), operation['by'][0]
        )
        if decision.is_immediate:
            done(decision)
        else:
            self._askers.setdefault(unit, []).append(done)
        self._do(unit)

    def resume(self, unit):
        """A unit was exported: its operation, if it has one, goes on."""
        operation = unit.shared.operation
        if operation is not None and not operation['failed']:
            log.warning('unit %s: %s goes on', unit.id, _named(operation))
            self._do(unit)

    def _do(self, unit):
        if unit.shared.operation['method'] == operations.NEW_KEY:
            self._change_key(unit)
        else:
            self._enqueue(unit)

    def _enqueue(self, unit):
        self._waiting.append(unit)
        self.on_waiting()

    def hand_out(self):
        """Give work to spares. Call when there may be one."""
        for unit in [unit for unit in self._waiting if not self.units.is_repairing(unit)]:
            worker = self.workers.take_spare()
            if worker is None:
                break
            self._waiting.remove(unit)
            self._running[worker] = unit
            log.info('unit %s: worker %d does it', unit.id, worker.pid)
            unit.shared = unit.shared._replace(
                operation=operations.sized(unit.shared.operation, unit.store.size)
            )
            descriptor = unit.store.descriptor
            self.workers.send(
                worker,
                {
                    'do': 'operate',
                    'operation': unit.shared.operation,
                    'store': unit.store.description(),
                },
                () if descriptor is None else (descriptor,),
            )

    def drop(self, unit):
        """The unit is exported no more. What was begun goes on when it is exported again."""
        if unit in self._waiting:
            self._waiting.remove(unit)
        self._askers.pop(unit, None)
        for worker in [w for w, u in self._running.items() if u is unit]:
            del self._running[worker]
            self.workers.kill(worker, 'its unit %s is exported no more' % unit.id)

    # -- CRYPTOGRAPHIC ERASE -----------------------------------------------------------------------------------------

    def _change_key(self, unit):
        """Nobody is at the medium now, and nobody gets there before every worker has the new key.
        An erase that was begun before and of whose end no word was kept is done again: nothing was
        written since."""
        failed = ''
        try:
            if not _is_done(unit.shared.operation):
                self._replace_key(unit)
        except OSError as e:
            failed = e.strerror or str(e)
        self.units.tell(
            unit,
            {'key': unit.store.cipher_key} if unit.store.cipher_key else {},
            lambda: self.units.by_id.get(unit.id) is unit and self._over(unit, failed),
        )

    def _replace_key(self, unit):
        """Raises OSError. In any case the store has the key afterwards that is in the file."""
        if not unit.store.cipher_key:
            raise OSError(errno.EOPNOTSUPP, 'it is not encrypted')
        try:
            _use(unit, key_files.replace_key(unit.lun.encryption_key_file))
        except key_files.KeyHalfReplaced as e:
            _use(unit, e.digits)
            if not e.is_lasting:  # what is written with this key now could be lost with it
                unit.failure = 'the new key in %s may not last: %s' % (
                    unit.lun.encryption_key_file,
                    e.strerror,
                )
                self.units.medium(unit, FAILED)
            raise
        size = unit.store.size
        shared = unit.shared._replace(
            operation=dict(unit.shared.operation, size=size, position=size)
        )
        self.units.save(unit, shared)
        unit.shared = shared

    # -- what the process tells --------------------------------------------------------------------------------------

    def told_progress(self, worker, message):
        """So many bytes are done."""
        unit, position = self._running.get(worker), message.get('position')
        if unit is None or not isinstance(position, int):
            return
        shared = unit.shared._replace(operation=dict(unit.shared.operation, position=position))
        if message.get('lasting'):
            try:
                self.units.save(unit, shared)
            except OSError as e:  # it would begin further back: no more
                log.error('unit %s: how far it is cannot be kept: %s', unit.id, e.strerror)
        unit.shared = shared
        self.units.tell_progress(unit)

    def told_operated(self, worker, message):
        """It is over; `failed`: why, or ''."""
        unit = self._running.pop(worker, None)
        if unit is not None:
            self._over(unit, str(message.get('failed') or ''))

    def on_death(self, worker):
        """A worker is gone. At the end of targetd that is no failure."""
        unit = self._running.pop(worker, None)
        if unit is not None and not self.workers.stopping:
            self._over(unit, 'the process that did it died')

    def _over(self, unit, failed):
        operation = unit.shared.operation
        failed = failed or self._kept(unit)
        if failed:
            log.error(
                'unit %s: %s FAILED: %s. Its data can be anything',
                unit.id,
                _named(operation),
                failed,
            )
        else:
            log.warning('unit %s: %s is done', unit.id, _named(operation))
        askers = self._askers.pop(unit, ())

        def answer():
            """Every nexus finds the medium as it is now: whoever asked may tell others to go on."""
            result = transitions.operation_result(unit.shared, operation, failed)
            for done in askers:
                done(result)

        self.units.change(unit, transitions.operation_over(unit.shared, failed), answer)

    def _kept(self, unit):
        """Keep that the operation is over, before anybody may write again: else the next start
        would go on with it, over what was written. Gives why that cannot be, or ''."""
        try:
            self.units.save(unit, transitions.operation_over(unit.shared, '').shared)
        except OSError as e:
            return 'its end cannot be kept in %s: %s' % (self.units.state.path, e.strerror)
        return ''


def _use(unit, digits):
    unit.store.encrypt(digits)
    unit.shared = unit.shared._replace(key_check=key_files.key_check(digits, unit.store.block_size))


def _is_done(operation):
    return (
        operation['size'] > 0 and operation['position'] >= operation['passes'] * operation['size']
    )


def _named(operation):
    if operation['method'] == operations.NEW_KEY:
        return 'a cryptographic erase'
    kind = {'format': 'formatting', 'sanitize': 'sanitizing'}[operation['kind']]
    return '%s (%s, %d passes)' % (kind, operation['method'], operation['passes'])
