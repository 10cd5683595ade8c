"""FORMAT UNIT and SANITIZE in progress (SBC-3 5.3, 5.24). A worker process that serves no session
does each of them, so that it continues when the requesting session ends.

     decided --start_operation--> waiting for a spare --operate--> running --report operated--> done
        ^                                                            |
     resume_operation (state-dir has one)                            +-- OSError, the process died --> failed

The exception is CRYPTOGRAPHIC ERASE (ARCHITECTURE D18). Workers cannot open key files, so a job does it
(key_replacement):

     decided --> key file replaced (key_files.replace_key) --> end saved --> new key sent to every worker
                                                                                |
                                                                       done <-- acknowledged

Invariants: a unit has at most one operation; shared.operation has it from before the first byte is
written until after the last. If targetd stops meanwhile, the saved operation is not marked as
failed, and resume_operation() continues it at the next start.
"""

import errno
import functools
from collections import deque

from targetd import log
from targetd.master.processes.worker_messages import BadMessage
from targetd.master.state import key_files
from targetd.master.units import transitions
from targetd.master.units.guards import NoGuards
from targetd.scsi import errno_map, operations


class FormatSanitize(object):
    """The operations of all units. replication: Replication; keys: KeyReplacements; workers: Workers,
    the source of spare workers; request_spare(): called when a spare is wanted, to call
    assign_workers() once there is one; guards: Guards, which is set later."""

    guards = NoGuards()

    def __init__(self, replication, keys, workers, request_spare):
        self.replication = replication
        self.keys = keys
        self.workers = workers
        self.request_spare = request_spare
        self._waiting = deque()  # units whose operation has no worker yet
        self._running = {}  # worker -> unit
        self._answers = {}  # unit -> [answer function] of the requests that wait for the end

    @property
    def spares_wanted(self):
        """The number of spare workers that operations wait for."""
        return len(self._waiting)

    def start_operation(self, unit, decision, answer):
        """The decision is in force: start its operation. answer() is called at once if the command
        has IMMED set, else at the end."""
        operation = unit.shared.operation
        log.warning(
            'unit %s: %s starts, requested by %s',
            unit.id,
            _described(operation),
            operation['by'][0],
        )
        if decision.is_immediate:
            answer(decision)
        else:
            self._answers.setdefault(unit, []).append(answer)
        self._run(unit)

    def resume_operation(self, unit):
        """The unit was exported: continue the operation that was in progress, if there is one."""
        operation = unit.shared.operation
        if operation is not None and not operation['failed']:
            log.warning('unit %s: %s is resumed', unit.id, _described(operation))
            self._run(unit)

    def _run(self, unit):
        if unit.shared.operation['method'] == operations.NEW_KEY:
            self._change_key(unit)
        elif unit.shared.operation['kind'] == 'format' and not unit.shared.operation['position']:
            self._keep_all(unit, unit.shared.operation)
        else:
            self._wait_for_worker(unit)

    def _keep_all(self, unit, operation):
        """The undo journal, if there is one, records the medium before a block of it is overwritten."""

        def kept(why):
            if self.replication.by_id.get(unit.id) is not unit:
                return
            if why:
                self._nothing_done(unit, operation, why)
            else:
                self._wait_for_worker(unit)

        self.guards.keep_all(unit, operation['by'][0].partition(',')[0], kept)

    def _wait_for_worker(self, unit):
        self._waiting.append(unit)
        self.request_spare()

    def _nothing_done(self, unit, operation, why):
        """The old blocks cannot be kept before a format: refuse it, before a block was overwritten."""
        log.error(
            'unit %s: %s is refused, because its undo journal cannot be written: %s',
            unit.id,
            _described(operation),
            why,
        )
        refused = transitions.refusal(
            unit.shared, errno_map.write_failure(OSError(errno.EROFS, ''))
        )
        over = transitions.operation_over(unit.shared, '')

        def saved(error):
            if error is not None:
                self._operation_over(unit, 'its end cannot be saved: %s' % error.strerror)
                return
            answers = self._answers.pop(unit, ())
            self.replication.apply_decision(
                unit, over, lambda: [answer(refused) for answer in answers]
            )

        self.replication.save_state(unit, over.shared, saved)

    def assign_workers(self):
        """Send waiting operations to spare workers. Call when there may be a spare. An operation
        waits until the old blocks of an incomplete atomic write are written back: that would
        otherwise overwrite sanitized blocks."""
        is_repairing = self.replication.atomic_writes.is_repairing
        for unit in [unit for unit in self._waiting if not is_repairing(unit)]:
            worker = self.workers.take_spare()
            if worker is None:
                break
            self._waiting.remove(unit)
            self._running[worker] = unit
            log.info('unit %s: running in worker %d', unit.id, worker.pid)
            unit.shared = unit.shared._replace(
                operation=operations.for_medium_size(unit.shared.operation, unit.store.size)
            )
            descriptor, is_shared = self.replication.descriptions.lend(unit.store)
            description = unit.store.description()
            if is_shared:
                description['is_shared'] = True
            self.workers.send(
                worker,
                {'do': 'operate', 'operation': unit.shared.operation, 'store': description},
                () if descriptor is None else (descriptor, unit.store.claim),
            )

    def cancel_operation(self, unit):
        """The unit is not exported any more: kill its worker. The saved operation is resumed when
        the unit is exported again."""
        if unit in self._waiting:
            self._waiting.remove(unit)
        for answer in self._answers.pop(unit, ()):
            answer(transitions.Refusal(*transitions.UNIT_IS_GONE))
        for worker in [w for w, u in self._running.items() if u is unit]:
            del self._running[worker]
            self.workers.kill(worker, 'its unit %s is not exported any more' % unit.id)

    # -- CRYPTOGRAPHIC ERASE -----------------------------------------------------------------------

    def _change_key(self, unit):
        """Replace the key while no worker accesses the medium, and send it to every worker before
        the medium is ready. An erase that was started before a restart, and whose end was not
        saved, is repeated: no block was written since."""

        def is_wanted():
            return self.replication.by_id.get(unit.id) is unit

        def saved(error):
            if is_wanted():
                self._send_key(unit, (error.strerror or str(error)) if error else '')

        if _is_complete(unit.shared.operation):
            saved(None)
        elif not unit.store.cipher_key:
            saved(OSError(errno.EOPNOTSUPP, 'it is not encrypted'))
        else:
            self.keys.replace(
                unit.lun.encryption_key_file,
                is_wanted,
                lambda digits, error: self._key_replaced(unit, digits, error, saved),
            )

    def _key_replaced(self, unit, digits, error, done):
        """The key file has this key, or the old one if `digits` is ''. Save that it was replaced:
        done(None or OSError)."""
        if digits:
            _use_key(unit, digits)
        if error is not None:
            if digits and not error.is_lasting:  # data of this key could become unreadable
                self.replication.fail_unit(
                    unit,
                    'the new key in %s may not last: %s'
                    % (unit.lun.encryption_key_file, error.strerror),
                )
            done(error)
            return
        size = unit.store.size
        shared = unit.shared._replace(
            operation=dict(unit.shared.operation, size=size, position=size)
        )

        def saved(error):
            if error is None:
                unit.shared = unit.shared._replace(operation=shared.operation)
            done(error)

        self.replication.save_state(unit, shared, saved)

    def _send_key(self, unit, failed):
        def in_force():
            if self.replication.by_id.get(unit.id) is unit:
                self._end_operation(unit, failed)

        words = {'key': unit.store.cipher_key} if unit.store.cipher_key else {}
        self.replication.send_change(unit, words, in_force)

    # -- reports of the worker ---------------------------------------------------------------------

    def on_progress(self, worker, message):
        """`report progress`: this many bytes are done. Ignored from other workers."""
        unit, position = self._running.get(worker), message.get('position')
        if unit is None:
            return
        if not 0 <= position <= unit.shared.operation['passes'] * unit.shared.operation['size']:
            raise BadMessage('progress beyond the end of the operation: %d' % position)
        unit.position = position
        if message.get('lasting'):  # another change may save the shared state at any moment
            shared = unit.shared._replace(operation=dict(unit.shared.operation, position=position))
            self.replication.save_state(unit, shared, functools.partial(_progress_saved, unit))
            unit.shared = shared
        self.replication.send_progress(unit)

    def on_operated(self, worker, message):
        """`report operated`: the operation has ended; failed: why it failed, or ''."""
        unit = self._running.pop(worker, None)
        if unit is not None:
            self._end_operation(unit, str(message.get('failed') or ''))

    def on_worker_death(self, worker):
        """The operation of a dead worker has failed, unless targetd itself is stopping."""
        unit = self._running.pop(worker, None)
        if unit is not None and not self.workers.stopping:
            self._end_operation(unit, 'the worker process died')

    def _end_operation(self, unit, failed):
        """Save that the operation has ended, before any session may write again: otherwise the next
        start would resume it, over data written since."""

        def saved(error):
            why = failed
            if error is not None:
                path = self.replication.state.path
                why = 'its end cannot be saved in %s: %s' % (path, error.strerror)
            if self.replication.by_id.get(unit.id) is unit:
                self._operation_over(unit, why)

        def erased(why):
            if self.replication.by_id.get(unit.id) is not unit:
                return
            if why:
                self._operation_over(unit, 'its undo journal cannot be erased: %s' % why)
            else:
                over = transitions.operation_over(unit.shared, '')
                self.replication.save_state(unit, over.shared, saved)

        if failed:
            saved(None)
        elif unit.shared.operation['kind'] == 'sanitize':
            self.guards.erase_journal(unit, erased)
        else:
            erased('')

    def _operation_over(self, unit, failed):
        operation = unit.shared.operation
        unit.position = None
        if failed:
            log.error(
                'unit %s: %s FAILED: %s. The contents of the medium are undefined',
                unit.id,
                _described(operation),
                failed,
            )
        else:
            log.warning('unit %s: %s is done', unit.id, _described(operation))
        answers = self._answers.pop(unit, ())

        def answer_requests():
            """The command is answered after every replica has the new medium state, because then
            its initiator may have other initiators use the unit."""
            result = transitions.operation_result(unit.shared, operation, failed)
            for answer in answers:
                answer(result)

        decision = transitions.operation_over(unit.shared, failed)
        self.replication.apply_decision(unit, decision, answer_requests)


def _progress_saved(unit, error):
    if error is not None:  # a restart would resume further back, which is harmless
        log.error('unit %s: its progress cannot be saved: %s', unit.id, error.strerror)


def _use_key(unit, digits):
    unit.store.set_cipher_key(digits)
    unit.shared = unit.shared._replace(key_check=key_files.key_check(digits, unit.store.block_size))


def _is_complete(operation):
    return (
        operation['size'] > 0 and operation['position'] >= operation['passes'] * operation['size']
    )


def _described(operation):
    if operation['method'] == operations.NEW_KEY:
        return 'a cryptographic erase'
    kind = {'format': 'formatting', 'sanitize': 'sanitizing'}[operation['kind']]
    return '%s (%s, %d passes)' % (kind, operation['method'], operation['passes'])
