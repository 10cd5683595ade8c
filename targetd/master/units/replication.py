"""Replication of the logical units' shared state (ARCHITECTURE D3): the master saves a decided
change, puts it in force and sends it to every worker that holds a replica of the unit.

     transitions.Decision --> saved, if a command needs it --> unit.shared --> sent to every replica holder
                                                                                |
                                  done() <-- every acknowledgement, or the worker's death

Invariants: the change of a command is on stable storage before it is sent, if it must persist; a
change that the master makes by itself takes effect at once and is saved meanwhile. done() is called
only when every replica has the change in force. A replica is correct because messages arrive in order
and carry whole states.
"""

import functools
import time

from targetd import events, log
from targetd.master.state import state_places, unit_state
from targetd.master.state.saver import DirectSaver, OutcomeUnknown
from targetd.master.units import fault_transitions, shared_state, sharing, transitions
from targetd.master.units.acknowledgements import Acknowledgements
from targetd.master.units.fault_log import FaultLog, log_restriction
from targetd.master.units.unit import UnitTable, shown_to, to_message_with_descriptors
from targetd.scsi.medium_state import FAILED
from targetd.store import failure_flags

SAVE_SECONDS = 10.0  # interval at which a state that could not be saved is saved again
RECORDS_SECONDS = 1.0  # errors of the medium are collected this long before they are sent
NO_ACKNOWLEDGEMENT = 0  # the id of a message that no worker's acknowledgement is awaited for


class Replication(object):
    """The units that are exported, and the distribution of their changes.

    send(worker, message, descriptors) and kill(worker, why) reach the workers; state:
    state_directory.StateDirectory; saver: saver.Saver; atomic_writes: atomic_slots.AtomicWrites;
    descriptions: Descriptions."""

    def __init__(self, loop, send, kill, state, atomic_writes, descriptions, saver=None):
        self.loop = loop
        self.send = send
        self.kill = kill
        self.state = state
        self.saver = saver or DirectSaver()
        self.atomic_writes = atomic_writes
        self.descriptions = descriptions
        self.acknowledgements = Acknowledgements(loop, kill)
        self.fault_log = FaultLog(loop)
        self.by_id = UnitTable()
        self.of_target = self.by_id.of_target
        self._save_timer = None
        self._unable_to_save = set()  # ids of units about which that was logged
        self._saved = {}  # key -> the dict that this server saved last, or is saving
        self.allow_removal = lambda unit, done: done()  # set by Master: of a real device
        self.on_taken_over = lambda unit, why: None  # set by Master: another server holds the state
        self.on_refused = lambda unit, number: False  # of exports.fence_watch, as the next one
        self.before_failure = lambda unit, fail: fail()

    def save_state(self, unit, shared, done):
        """Write the persistent part of `shared` to stable storage; done(None or OSError) when it is
        there. Changes are written in the order of the calls."""

        before = self._saved.get(unit.key)
        state = shared_state.saved_state(shared, self.state.boot_id)

        def saved(error):
            if error is None:
                unit.is_unsaved = False
                if unit.id in self._unable_to_save:
                    self._unable_to_save.discard(unit.id)
                    log.info('unit %s: its state is saved now', unit.id)
            elif isinstance(error, OutcomeUnknown):
                self._save_later(unit)  # the file must have the state that is in force
            elif self._saved.get(unit.key) is state:
                self._saved[unit.key] = before
            done(error)
            if error is not None and error.errno == unit_state.TAKEN_OVER:
                self.on_taken_over(unit, error.strerror)

        self._saved[unit.key] = state
        place = state_places.place_of(self.state, unit.lun)
        medium = {'facts': unit.facts, 'size': unit.replicated_size}
        path, text = place.document(unit.key, state, medium)
        self.saver.write(path, text, saved, place.node)

    def newest_saved(self, key, found):
        """The saved state of a unit that is opened. found: what a job read from its file, perhaps before
        this server saved the state of an earlier export of the same medium."""
        saved = self._saved.get(key)
        return found if saved is None else saved

    def forget_saved(self, key):
        """Another server may change the saved state of this key from now on."""
        self._saved.pop(key, None)

    def save_when_possible(self, unit, shared):
        """Write the persistent part of `shared` to stable storage, again later if that fails."""

        def saved(error):
            if error is not None:
                log.error(
                    'unit %s: its state cannot be saved in %s: %s; trying again every %d seconds',
                    unit.id,
                    self.state.path,
                    error.strerror,
                    SAVE_SECONDS,
                )
                self._unable_to_save.add(unit.id)
                self._save_later(unit)

        self.save_state(unit, shared, saved)

    def _save_later(self, unit):
        unit.is_unsaved = True
        if self._save_timer is None:
            self._save_timer = self.loop.call_later(SAVE_SECONDS, self._save_unsaved)

    def save_in_force(self, unit):
        """A state of this unit was saved that did not come into force: save the one that is, be it
        that of another export of the same medium."""
        present = [other for other in self.by_id.values() if other.key == unit.key]
        for each in present or [unit]:
            self.save_when_possible(each, each.shared)

    def _save_unsaved(self):
        def again():
            if self.unsaved_units() and self._save_timer is None:
                self._save_timer = self.loop.call_later(SAVE_SECONDS, self._save_unsaved)

        self._save_timer = None
        self.save_unsaved(again)

    def save_unsaved(self, done):
        """Try once to save the states that could not be saved; done() when all states that wait are
        saved or failed."""

        def saved(unit, error):
            if error is not None:
                log.debug('unit %s: its state cannot be saved yet: %s', unit.id, error.strerror)

        for unit in self.unsaved_units():
            self.save_state(unit, unit.shared, functools.partial(saved, unit))
        self.saver.when_idle(done)

    def unsaved_units(self):
        """The units whose state could not be saved."""
        return [unit for unit in self.by_id.values() if unit.is_unsaved]

    # -- decisions ---------------------------------------------------------------------------------

    def apply_decision(self, unit, decision, done=lambda: None):
        """Save and distribute a Decision that the master made by itself (a nexus is lost, a medium
        failed, a reload); done() when every replica has it in force. It takes effect before it is
        saved, and even if it cannot be saved now. A decision of None changes nothing, and done() is
        not called."""
        if decision is None:
            return
        if decision.persist:
            self.save_when_possible(unit, decision.shared)
        self.distribute(unit, decision, None, done)

    def distribute(self, unit, decision, asker, done):
        """Put a Decision in force and send each replica holder what it changes for its nexus. asker:
        the worker that requested it, or None; done() when every replica has it in force."""
        if unit.shared.prevented_by and not decision.shared.prevented_by:
            done = functools.partial(self.allow_removal, unit, done)
        changed = decision.changed(unit.shared)
        if decision.size is not None:
            changed['size'] = decision.size
        unit.shared = decision.shared
        messages = []
        for worker, nexus in unit.replica_holders():
            message = dict(changed)
            attentions = decision.attentions_of(nexus)
            if attentions:
                message['attentions'] = attentions
            abort = decision.abort_of(nexus, worker is asker)
            if abort:
                message['abort'] = abort
            if message:
                messages.append((worker, message))
        message_id = self.acknowledgements.expect([worker for worker, _ in messages], done)
        for worker, message in messages:
            self.send(worker, dict(message, do='change', id=message_id, unit=unit.id), ())
        self.acknowledgements.start_timer(message_id)

    # -- messages to replica holders ---------------------------------------------------------------

    def send_change(self, unit, words, done=None):
        """Send these words of a `change` to every replica holder; done() when all of them have
        acknowledged it."""
        self.send_change_to([worker for worker, _ in unit.replica_holders()], unit, words, done)

    def send_change_to(self, workers, unit, words, done=None):
        """Send these words of a `change` to these workers; done() when all have acknowledged it."""
        message_id = self.acknowledgements.expect(workers, done or (lambda: None))
        for worker in workers:
            self.send(worker, dict(words, do='change', id=message_id, unit=unit.id), ())
        self.acknowledgements.start_timer(message_id)

    def send_progress(self, unit):
        """Send the progress of the operation to every replica holder; it is not acknowledged."""
        self._send_unacknowledged(unit, {'progress': unit.progress})

    def _send_unacknowledged(self, unit, words):
        for worker, _ in unit.replica_holders():
            self.send(worker, dict(words, do='change', id=NO_ACKNOWLEDGEMENT, unit=unit.id), ())

    def give_unit(self, unit, worker, nexus):
        """The worker's session gets the unit, unless its map does not have it (lun-map), or it is left out
        because another initiator holds it (sharing). Returns True if it does."""
        shown = shown_to(worker.session, unit)
        if shown is None:
            return False
        if unit.give_to(worker, nexus, self.by_id.same_medium(unit), shown):
            if worker in unit.readers and not shown.read_only:
                log.warning(
                    '%s may only read lun %d of %s, because another initiator writes it '
                    '(sharing = readers)',
                    nexus.initiator_name,
                    unit.lun.number,
                    unit.target_name,
                )
            return True
        log.warning(
            '%s does not see lun %d of %s: %s',
            nexus.initiator_name,
            unit.lun.number,
            unit.target_name,
            sharing.why_left_out(unit, unit.left_out[worker]),
        )
        return False

    def order_units(
        self,
        workers,
        add=(),
        remove=None,
        replace=(),
        attentions=(),
        done=None,
        is_last=False,
        replaced_attention=None,
    ):
        """Send these workers the units that were added, removed or have another store now. remove:
        {worker: [LUN as its session knows it]}; attentions: [(asc, ascq) …], pending afterwards at every
        unit that the nexus had before and keeps; done() when all workers have acknowledged it; is_last:
        the login for which the units were sent is complete; replaced_attention: (asc, ascq), what alone
        is pending at the units in `replace`."""
        message_id = self.acknowledgements.expect(
            workers, lambda: self._on_units_ordered(message_id, replace, done)
        )
        for unit in replace:  # a worker uses the slot of the old store until it acknowledges
            for worker in [worker for worker in workers if worker in unit.slots]:
                unit.slots[message_id, worker] = unit.slots.pop(worker)
        for worker in list(workers):
            nexus = worker.session.nexus if worker.session else None
            given = [u for u in add if nexus is None or self.give_unit(u, worker, nexus)]
            dicts, descriptors = to_message_with_descriptors(
                self.descriptions.lend, worker, given + list(replace)
            )
            for each in dicts[len(given) :] if replaced_attention else ():
                each['attention'] = list(replaced_attention)
            removed = (remove or {}).get(worker, [])
            is_changed = given or removed or replace
            self.send(
                worker,
                {
                    'do': 'units',
                    'id': message_id,
                    'add': dicts[: len(given)],
                    'remove': removed,
                    'replace': dicts[len(given) :],
                    'attentions': [list(a) for a in attentions] if is_changed else [],
                    'last': is_last,
                },
                descriptors,
            )
        self.acknowledgements.start_timer(message_id)

    def _on_units_ordered(self, message_id, replaced, done):
        for unit in replaced:
            for key in [k for k in unit.slots if isinstance(k, tuple) and k[0] == message_id]:
                self.atomic_writes.retire_slot(unit, unit.slots.pop(key))
        if done is not None:
            done()

    # -- reports of workers ------------------------------------------------------------------------

    def on_acknowledge(self, worker, message):
        """`report acknowledge`: the worker has applied a `change` or `units` message."""
        self.acknowledgements.acknowledge(worker, message.get('id'))

    def on_failed(self, worker, message):
        """`report failed`: acknowledged data may be lost. Ignored if the worker has no replica."""
        unit = self.by_id.get(message.get('unit'))
        if unit is not None and unit.has_replica_in(worker):
            text = str(message.get('text', ''))
            self.before_failure(unit, lambda: self.fail_unit(unit, text))

    def fail_unit(self, unit, why):
        """Set the medium to failed, because data may be lost: writes and flushes are refused until
        the administrator acknowledges it."""
        if unit.shared.medium == FAILED:
            return
        failure_flags.set_flag(unit.store.flag)  # no flush of any session succeeds from now on
        self.apply_decision(unit, transitions.medium_failed(unit.shared, why))
        events.emit('failed', unit=unit.id, path=unit.lun.backing_store, why=why)
        log.error(
            'unit %s (%s) FAILED: %s. Data that was acknowledged may be lost. Writes and flushes are '
            'refused, also after a restart, until you check the disk and run "targetdctl acknowledge '
            '%s"; reads are answered',
            unit.id,
            unit.lun.backing_store,
            why,
            unit.id,
        )

    def fail_medium(self, unit, why):
        """The same for a unit that may not be exported any more, and for the others of its medium."""
        same = [each for each in self.by_id.values() if each.key == unit.key]
        for each in same or [unit]:
            self.fail_unit(each, why)

    def on_note(self, worker, message):
        """`report note`: a fault of the medium, rewritten blocks, or a step of a self-test. Faults can
        be many, so their counts are saved and sent to the replicas after RECORDS_SECONDS. A malformed
        note ends the worker."""
        unit = self.by_id.get(message.get('unit'))
        nexus = dict(unit.replica_holders()).get(worker) if unit is not None else None
        if nexus is None:
            return
        try:
            decision = fault_transitions.noted(
                unit.shared,
                nexus,
                message,
                unit.lun.on_error,
                int(time.time() * 1000),
                unit.acknowledged_at,
            )
        except transitions.Malformed as e:
            log.error('worker %d sent an invalid report: %s', worker.pid, e)
            self.kill(worker, 'it sent an invalid report')
            return
        if message['kind'] == 'error' and self.on_refused(unit, message['note']['errno']):
            return
        if message['kind'] == 'error':
            self.fault_log.add(unit, nexus, message['note'])
        if decision.shared.restriction != unit.shared.restriction:
            log_restriction(unit, decision.shared.restriction)
        if decision.persist:
            self.apply_decision(unit, decision)
            return
        unit.shared = decision.shared
        if not unit.are_records_scheduled:
            self.send_records_later(unit)

    def send_records_later(self, unit):
        """Save the records of the unit, and send them to its replicas, after RECORDS_SECONDS."""
        unit.are_records_scheduled = True
        self.loop.call_later(RECORDS_SECONDS, lambda: self._send_records(unit))

    def _send_records(self, unit):
        unit.are_records_scheduled = False
        if self.by_id.get(unit.id) is unit:
            self.save_when_possible(unit, unit.shared)
        self._send_unacknowledged(unit, {'records': unit.shared.records})

    # -- release -----------------------------------------------------------------------------------

    def release_journal(self, unit):
        """No worker serves the unit any more: retire its journal slots and release its journal.
        Call before its store is closed."""
        slots, unit.slots = list(unit.slots.values()), {}
        for slot in slots:
            self.atomic_writes.retire_slot(unit, slot)
        if unit.atomic is not None:
            self.atomic_writes.close_medium(unit.atomic)
            unit.atomic = None
