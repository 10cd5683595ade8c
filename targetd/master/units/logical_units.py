"""The logical units of the server: exported, served to sessions, changed at the request of a worker
(ARCHITECTURE D3: the master alone owns the state that sessions share).

A request for a change takes these steps; the next change of the same unit starts only after it:

     request --> queued --> decided --> saved, if it must persist --> distributed (replication)
                               |                 |                         |
                               v refused         v failed                  every replica has it in force
                             answer            answer                      |
                                                                         answer

A change that the master makes by itself (a nexus is lost, a medium failed, a reload) does not wait
in the queue.
"""

import os
from collections import deque

from targetd import log
from targetd.master.units import guards, transitions
from targetd.master.units.hanging import HangingUnits
from targetd.master.units.shared_state import durable_part, may_stop_flushing
from targetd.master.units.transitions import Decision, Refusal
from targetd.master.units.unit import to_message_with_descriptors
from targetd.scsi import alua, attention, sam
from targetd.scsi.errno_map import PROTECTED
from targetd.scsi.sense import CheckCondition
from targetd.store import failure_flags, nbd_line

# Each unit can have three descriptors, and a message at most channel.MAXIMUM_DESCRIPTORS.
UNITS_PER_MESSAGE = 80
#: More than a keeper waits for the end of its server (exports.image_server.STOP_SECONDS).
KEEPER_SECONDS = 12.0


class Units(object):
    """The units and the requests of workers about them. The parts are given: replication:
    Replication; rod_tokens: RodTokens; copy_guests: CopyGuests; format_sanitize: FormatSanitize;
    flushes: Flushes. Set later: statistics: master.statistics.Statistics; guards: Guards; trims: Trims;
    reset_device."""

    statistics = None
    guards = None
    spin_down = None
    trims = None
    reset_device = None  # exports.device_watch.DeviceWatch.after_reset

    def __init__(self, replication, rod_tokens, copy_guests, format_sanitize, flushes):
        self.replication = replication
        self.rod_tokens = rod_tokens
        self.copy_guests = copy_guests
        self.format_sanitize = format_sanitize
        self.flushes = flushes
        self.hanging = HangingUnits(replication)
        self.by_id = replication.by_id
        self.of_target = replication.of_target
        self.in_standby = {}  # {Unit.id: StandbyUnit}: of exports.standby_units, which fills it
        # has the state of a StandbyUnit read again, then calls done(True if that was possible)
        self.on_refresh = lambda unit, done: done(False)
        self._incomplete = {}  # {worker: Nexus} of the logins that wait for units

    @property
    def has_incomplete_logins(self):
        """True if a login waits for further units."""
        return bool(self._incomplete)

    def add_unit(self, unit):
        """Export the unit. An operation that was in progress at the last stop is resumed."""
        self.by_id[unit.id] = unit
        self.hanging.add_unit(unit)
        if unit.is_unsaved:
            self.replication.save_when_possible(unit, unit.shared)
        if unit.failure:
            log.error(
                'unit %s (%s) has FAILED before: %s. Writes and flushes are refused until you check the '
                'disk and run "targetdctl acknowledge %s"',
                unit.id,
                unit.lun.backing_store,
                unit.failure,
                unit.id,
            )
        if unit.shared.restriction:
            log.error(
                'unit %s (%s) is %s because of an earlier error of its medium, until you check the disk '
                'and run "targetdctl acknowledge %s"',
                unit.id,
                unit.lun.backing_store,
                unit.shared.restriction,
                unit.id,
            )
        self.format_sanitize.resume_operation(unit)

    def change_medium(self, unit, fresh):
        """The unit has the store of this fresh Unit from now on, and its Lun; the caller tells the
        sessions, and closes the former store."""
        self.by_id.pop(unit.id)
        unit.lun, unit.store, unit.found = fresh.lun, fresh.store, fresh.found
        unit.replicated_size = fresh.store.size
        unit.path_problem = unit.shrinkage = ''
        self.by_id[unit.id] = unit

    def remove_unit(self, unit):
        """End the export. Requests that are queued are refused with LOGICAL UNIT NOT SUPPORTED."""
        self.by_id.pop(unit.id, None)
        self._save_scheduled_records(unit)
        self.hanging.remove_unit(unit)
        self.rod_tokens.revoke_tokens_of(unit)
        self.format_sanitize.cancel_operation(unit)
        while unit.queue:
            _, _, answer = unit.queue.popleft()
            answer(Refusal(*transitions.UNIT_IS_GONE))

    def take_from_sessions(self, unit, done):
        """The sessions of a unit that was removed lose it, and are told; done() when all have."""
        numbers = unit.forget_sessions()
        self.copy_guests.end_copies(
            unit,
            lambda: self.replication.order_units(
                list(numbers),
                remove={worker: [number] for worker, number in numbers.items()},
                attentions=[attention.LUNS_CHANGED],
                done=done,
            ),
        )

    def _save_scheduled_records(self, unit):
        if unit.are_records_scheduled:
            self.replication.save_when_possible(unit, unit.shared)

    def find(self, text):
        """The unit with this id, or named TARGET/LUN; None if there is none."""
        if text in self.by_id:
            return self.by_id[text]
        target_name, _, number = text.rpartition('/')
        return self.of_target(target_name).get(int(number)) if number.isdigit() else None

    def standby_of(self, target_name):
        """The StandbyUnits of a target."""
        return [unit for unit in self.in_standby.values() if unit.target_name == target_name]

    def _is_present(self, unit):
        return self.by_id.get(unit.id) is unit or self.in_standby.get(unit.id) is unit

    # -- sessions ----------------------------------------------------------------------------------

    def serve_session(self, worker, nexus):
        """(unit dicts, descriptors, True if more units follow) for the answer to a session claim. The
        worker holds a replica of these units from now on. The others follow in `units` orders, one
        after the other; the login waits for the last. Raises OSError."""
        mine = dict(self.of_target(nexus.target_name))
        mine.update({unit.lun.number: unit for unit in self.standby_of(nexus.target_name)})
        mine = [unit for _, unit in sorted(mine.items())]
        first, rest = mine[:UNITS_PER_MESSAGE], mine[UNITS_PER_MESSAGE:]
        given = [unit for unit in first if self.replication.give_unit(unit, worker, nexus)]
        if rest:
            self._incomplete[worker] = nexus
            self.replication.loop.call_later(0, lambda: self._serve_more(worker, nexus, rest))
        lend = self.replication.descriptions.lend
        return to_message_with_descriptors(lend, worker, given) + (bool(rest),)

    def _serve_more(self, worker, nexus, units):
        """Send the next of these units to a worker whose login waits for them, with their present
        state; then the others. Units that are gone meanwhile are left out."""
        if self._incomplete.get(worker) is not nexus:
            return
        present = [unit for unit in units if self._is_present(unit)]
        rest = present[UNITS_PER_MESSAGE:]
        self.replication.order_units(
            [worker],
            add=present[:UNITS_PER_MESSAGE],
            done=lambda: self._serve_more(worker, nexus, rest),
            is_last=not rest,
        )
        if not rest:
            del self._incomplete[worker]

    def end_session(self, worker, is_stuck=False):
        """The worker is dead, or serves its session no more: its nexus is lost, its acknowledgements
        count as received, and its queued requests are dropped. is_stuck: a thread of it is in a call
        of the kernel, so it keeps its journal slots until it is reaped."""
        self._incomplete.pop(worker, None)
        for unit in [unit for unit in self.by_id.values() if unit.involves(worker)]:
            nexus = unit.forget_session(worker)
            unit.guests.pop(worker, None)
            unit.leaving.pop(worker, None)
            unit.queue = deque(entry for entry in unit.queue if entry[0] is not worker)
            if worker in unit.slots and not is_stuck:
                self.replication.atomic_writes.retire_slot(unit, unit.slots.pop(worker))
            if nexus is not None:
                self.replication.apply_decision(unit, transitions.session_lost(unit.shared, nexus))
            if failure_flags.is_set(unit.store.flag):
                # the worker may have died before it could report this
                self.replication.fail_unit(unit, 'a flush failed')
        for unit in self.in_standby.values():
            unit.forget_session(worker)
        self.hanging.session_over(worker)
        self.rod_tokens.worker_gone(worker)
        self.replication.acknowledgements.worker_gone(worker)

    def may_be_flushing(self, worker):
        """The units that this worker may be flushing, if it was killed or a command of it hangs."""
        return [unit for unit in self.by_id.values() if unit.has_replica_in(worker)]

    def flush_in_doubt(self, units):
        """The worker that may have been flushing these units is dead."""
        self.flushes.flush_in_doubt([unit for unit in units if self.by_id.get(unit.id) is unit])

    def log_out_session(self, worker, message):
        """`ask leave`: the session logs out, so its nexus is lost now. The request is answered when
        every replica has that in force."""
        pending = [1]

        def one_done():
            pending[0] -= 1
            if not pending[0]:
                self.replication.send(worker, _answer(message, Refusal(0)), ())

        for unit in list(self.by_id.values()):
            nexus = unit.workers.get(worker)
            decision = transitions.session_lost(unit.shared, nexus) if nexus is not None else None
            if decision is not None:
                pending[0] += 1
                self.replication.apply_decision(unit, decision, one_done)
        one_done()

    def is_incomplete(self, worker):
        """True if the login of this worker's session still waits for units."""
        return worker in self._incomplete

    def give_units(self, session, units, done):
        """Send a session that goes on these further units, as many as it may have now, then done()."""
        worker = session.worker
        present = [unit for unit in units if self.by_id.get(unit.id) is unit]
        if worker.session is not session or not present:
            done()
            return
        rest = present[UNITS_PER_MESSAGE:]
        self.replication.order_units(
            [worker],
            add=present[:UNITS_PER_MESSAGE],
            attentions=[attention.LUNS_CHANGED],
            done=lambda: self.give_units(session, rest, done),
        )

    def withdraw(self, unit, worker):
        """The session of the worker goes on without the unit; the caller tells it. Until withdrawn() its
        initiator still holds it."""
        is_reader = worker in unit.readers
        nexus = unit.forget_session(worker)
        unit.leaving[worker] = '' if is_reader else nexus.initiator_name
        if worker in unit.slots:
            unit.slots['leaving', worker] = unit.slots.pop(worker)
        mine = [answer for asker, _, answer in unit.queue if asker is worker]
        unit.queue = deque(entry for entry in unit.queue if entry[0] is not worker)
        for answer in mine:
            answer(Refusal(*transitions.UNIT_IS_GONE))
        self.rod_tokens.revoke_tokens_of(unit)

    def withdrawn(self, unit, worker, nexus):
        """No command of this nexus can touch the unit any more."""
        unit.leaving.pop(worker, None)
        self.hanging.withdrawn(unit, worker)
        slot = unit.slots.pop(('leaving', worker), None)
        if slot is not None:
            self.replication.atomic_writes.retire_slot(unit, slot)
        if self.by_id.get(unit.id) is unit:
            self.replication.apply_decision(unit, transitions.session_lost(unit.shared, nexus))

    # -- requests ----------------------------------------------------------------------------------

    def on_request(self, worker, message):
        """An `ask` of a worker about a unit. The answer is sent when the change is in force in every
        replica. A malformed request ends the worker."""

        def answer(decision, words=None, descriptors=()):
            self.replication.send(worker, _answer(message, decision, words), descriptors)

        unit, kind = self.by_id.get(message.get('unit')), message.get('ask')
        if message.get('unit') in self.in_standby:
            self._on_standby_request(self.in_standby[message['unit']], kind, answer)
            return
        is_serving = unit is not None and worker in unit.workers
        is_of_guest = (
            unit is not None and kind in ('token-revoke', 'guard', 'wake') and worker in unit.guests
        )
        if not is_serving and not is_of_guest:
            answer(Refusal(*transitions.UNIT_IS_GONE))
        elif kind == 'reset' and message.get('function') in transitions.OF_A_TARGET:
            self._reset_target(worker, unit.target_name, message, answer)
        elif kind in self.rod_tokens.requests:
            self._handle(self.rod_tokens.on_request, unit, worker, message, answer)
        elif kind == 'statistics':
            self._handle(self._on_statistics, unit, worker, message, answer)
        elif kind == 'guard':
            self._handle(self.guards.on_guard, unit, worker, message, answer)
        elif kind in ('wake', 'spin'):
            self._handle(self.spin_down.on_ask, unit, worker, message, answer)
        elif kind == 'operate' and unit.sleep:
            self.spin_down.wake_then(unit, lambda: self.on_request(worker, message))
        elif kind == 'operate' and guards.has_snapshot(unit.lun):
            self._guard_first(unit, worker, message, answer)
        elif kind == 'copy-reach':
            self._handle(self.copy_guests.on_copy_reach, unit, worker, message, answer)
        else:
            if kind == 'log-select' and (message.get('reset') or message.get('statistics')):
                self.statistics.reset(unit)
            self._enqueue(unit, worker, message, answer)

    def _on_standby_request(self, unit, kind, answer):
        """Another server serves the unit, so nothing is changed here: a reset has ended the tasks of its
        nexus, and what is asked about the reservations is read from the state file."""
        refused = transitions.refusal(unit.shared, alua.refusal(alua.STANDBY))
        if kind == 'refresh':
            self.on_refresh(unit, lambda is_read: answer(Refusal(0) if is_read else refused))
        else:
            answer(Refusal(0) if kind == 'reset' else refused)

    def _on_statistics(self, unit, worker, message, answer):
        self.statistics.on_request(unit, message, answer)

    def _handle(self, handler, unit, worker, message, answer):
        try:
            handler(unit, worker, message, answer)
        except transitions.Malformed as e:
            self._kill_malformed(worker, e)

    def _kill_malformed(self, worker, error):
        log.error('worker %d sent an invalid request: %s', worker.pid, error)
        self.replication.kill(worker, 'it sent an invalid request')

    def _reset_target(self, worker, target_name, message, answer):
        units = [unit for unit in self.of_target(target_name).values() if worker in unit.workers]
        pending = [len(units)]

        def one_done(decision):
            pending[0] -= 1
            if not pending[0]:
                answer(decision)

        for unit in units:
            self._enqueue(unit, worker, message, one_done)

    def _guard_first(self, unit, worker, message, answer):
        """Keep the old blocks before FORMAT UNIT or SANITIZE is decided."""

        def kept(outcome):
            if outcome.status != sam.GOOD:
                answer(outcome)
            elif self.by_id.get(unit.id) is not unit:
                answer(Refusal(*transitions.UNIT_IS_GONE))
            elif worker in unit.workers:
                self._enqueue(unit, worker, message, answer)
            else:
                answer(Refusal(*transitions.UNIT_IS_GONE))

        self.guards.keep(unit, worker, guards.OPERATION, kept)

    def _enqueue(self, unit, worker, message, answer):
        if message['ask'] == 'reset' and unit.lun.device_reset:
            answer = self.reset_device(unit, message, answer)
        unit.queue.append((worker, message, answer))
        self._process_queue(unit)

    def _process_queue(self, unit):
        while unit.queue and not unit.is_busy:
            worker, message, answer = unit.queue.popleft()
            nexus = unit.workers.get(worker)
            if nexus is not None:
                self._decide(unit, worker, nexus, message, answer)

    def _decide(self, unit, worker, nexus, message, answer, is_flushed=False, saved=None):
        """saved: what was saved for an earlier decision about this message, or None."""
        if message['ask'] == 'operate' and (
            self.hanging.is_fenced(unit) or self.trims is not None and self.trims.is_freeing(unit)
        ):
            answer(Refusal(sam.BUSY))
            return
        if message['ask'] == 'operate' and worker in unit.readers:
            # it may have become a reader just now
            answer(transitions.refusal(unit.shared, CheckCondition(*PROTECTED)))
            return
        try:
            decision = transitions.decide(unit.shared, nexus, message, unit.initiator_ports())
        except transitions.Malformed as e:
            self._kill_malformed(worker, e)
            return
        is_decision = isinstance(decision, Decision)
        flushes = is_decision and may_stop_flushing(unit.shared, decision.shared)
        if flushes and unit.failure and message.get('ask') == 'mode-select':
            answer(transitions.unit_has_failed(unit.shared))
            return
        flushes = flushes and not unit.failure
        if flushes and not is_flushed and message.get('ask') != 'reset':
            self._flush_first(unit, worker, message, answer)
            return
        if is_decision and decision.persist == transitions.WHEN_POSSIBLE:
            self.replication.save_when_possible(unit, decision.shared)
        elif is_decision and decision.persist:
            wanted = durable_part(decision.shared)
            if saved != wanted:
                self._save_first(unit, worker, message, answer, is_flushed, decision)
                return
        elif saved is not None:  # the saved decision is not the one that is made now
            self.replication.save_in_force(unit)
        if isinstance(decision, Refusal):
            answer(decision)
            return
        unit.is_busy = True

        def in_force():
            if flushes and is_flushed:
                self.flushes.flush_unit(unit, durable)
                return
            if flushes:  # a reset does not wait for the medium
                self.flushes.flush_unit(unit, lambda error: None)
            durable(None)

        def durable(error):
            unit.is_busy = False
            if decision.operation_start:
                self.format_sanitize.start_operation(unit, decision, answer)
            else:
                answer(transitions.cannot_flush(unit.shared, error) if error else decision)
            self._process_queue(unit)

        self.replication.distribute(unit, decision, worker, in_force)

    def _flush_first(self, unit, worker, message, answer):
        """Flush, and decide afterwards: if the flush fails, nothing has changed. What is written
        meanwhile is flushed when the change is in force."""
        unit.is_busy = True

        def flushed(error):
            unit.is_busy = False
            nexus = unit.workers.get(worker)
            if self.by_id.get(unit.id) is not unit or nexus is None:
                answer(Refusal(*transitions.UNIT_IS_GONE))
            elif error is not None:
                answer(transitions.cannot_flush(unit.shared, error))
            else:
                self._decide(unit, worker, nexus, message, answer, True)
            self._process_queue(unit)

        self.flushes.flush_unit(unit, flushed)

    def apply_and_flush(self, unit, decision, done=lambda error: None):
        """Put a Decision of the master in force, and flush if initiators may stop flushing then.
        done(None, or the OSError of the flush). A decision of None changes nothing, and done() is not
        called."""
        if decision is None:
            return
        if may_stop_flushing(unit.shared, decision.shared):
            self.replication.apply_decision(
                unit, decision, lambda: self.flushes.flush_unit(unit, done)
            )
        else:
            self.replication.apply_decision(unit, decision, lambda: done(None))

    def _save_first(self, unit, worker, message, answer, is_flushed, decision):
        """Save what is decided, and decide again when it is saved: the unit may have changed by an
        event, and then the result may be another one."""
        unit.is_busy = True
        wanted = durable_part(decision.shared)

        def saved(error):
            unit.is_busy = False
            nexus = unit.workers.get(worker)
            if error is not None:
                log.error(
                    'unit %s: its reservations or saved mode pages cannot be saved in %s: %s; the '
                    'command is refused',
                    unit.id,
                    self.replication.state.path,
                    error.strerror,
                )
                answer(transitions.cannot_persist(unit.shared, message, error.errno))
            elif self.by_id.get(unit.id) is not unit or nexus is None:
                self.replication.save_in_force(unit)
                answer(Refusal(*transitions.UNIT_IS_GONE))
            else:
                self._decide(unit, worker, nexus, message, answer, is_flushed, wanted)
            self._process_queue(unit)

        self.replication.save_state(unit, decision.shared, saved)

    # -- stop --------------------------------------------------------------------------------------

    def flush_all(self, done):
        """At the stop: make every medium durable. done([(unit, None or OSError) …]) is called within
        flushing.FLUSH_SECONDS."""
        self.flushes.flush_units(list(self.by_id.values()), done, is_last=True)

    def close_all(self):
        """Close every store. A store whose flush timed out is left to the kernel, because close()
        could block; keepers of NBD exports have KEEPER_SECONDS to end."""
        self.replication.atomic_writes.is_stopping = True
        keepers = []
        for unit in self.by_id.values():
            self._save_scheduled_records(unit)
            try:
                self.replication.release_journal(unit)
                if not unit.has_flush_timed_out:
                    if unit.store.kind == 'nbd' and unit.store.descriptor is not None:
                        keepers.append(os.dup(unit.store.descriptor))
                    unit.store.close()
            except OSError as e:
                log.error('unit %s: %s', unit.id, e.strerror)
        self.by_id.clear()
        nbd_line.end_keepers(keepers, KEEPER_SECONDS)


def _answer(message, decision, words=None):
    """The answer to this request: its status, sense and data, and further words."""
    return dict(
        words or {},
        do='answer',
        id=message.get('id'),
        status=decision.status,
        sense=decision.sense.hex() if decision.sense else None,
        data=decision.data.hex() if decision.data else None,
    )


__all__ = ('Units',)
