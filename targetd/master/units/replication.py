"""The logical units' shared state, owned by the master alone (D3): reservations, mode parameters,
medium.

A change runs in these steps, and one change of a unit is finished before the next one of it begins:

     ask --> queued --> decided (pure, decisions.py) --> persisted, if it must --> sent to every worker that serves the unit,
                            |                                |                      the asking one included
                            v refused                        v failed                  |
                          answer                           answer            every acknowledgement, or the worker's death
                                                                                       |
                                                                                     answer

Invariants: nothing is sent before it is on stable storage, and nothing is answered before everybody
has it in force; a worker that does not acknowledge within ACKNOWLEDGE_SECONDS is killed, and its
death counts as its acknowledgement (the fence: a dead process writes nothing). What the master
changes by itself (a nexus is lost, a medium failed, a reload) is applied at once, in between: a
worker's replica is right because messages arrive in order and carry whole states.
"""

import functools
import os
import time
from collections import deque

from targetd import log
from targetd.master.processes.jobs import JobResult
from targetd.master.units import transitions
from targetd.master.units.rod_tokens import Rods
from targetd.master.units.transitions import Decision, Refusal
from targetd.scsi import operations
from targetd.scsi.medium_state import FAILED

ACKNOWLEDGE_SECONDS = 10.0
FLUSH_SECONDS = 30.0  # at the end; with the stages of the stop less than a service manager waits
TELL_SECONDS = 1.0  # how long errors are collected before every nexus is told their number
# with two descriptors each, that travel with one message, below channel.MAXIMUM_DESCRIPTORS
UNITS_PER_MESSAGE = 120


class Unit(object):
    """One export. id: lasts as long as the export; key: belongs to the data, names the saved state;
    lun: config.model.Lun; store: the master's; facts: dict; shared: decisions.Shared; workers:
    {worker: Nexus} that hold a replica; guests: {worker: (Nexus, how often)} whose copies reach it
    (visits); watched: see rods; atomic: atomic.Medium or None; slots: {worker, or (message id,
    worker) of a replaced store: journal.Slot} in it."""

    def __init__(
        self, unit_id, key, target_name, lun, store, facts, shared, atomic=None, found=None
    ):
        self.id = unit_id
        self.key = key
        self.target_name = target_name
        self.lun = lun
        self.store = store
        self.facts = facts
        self.shared = shared
        self.atomic = atomic
        self.slots = {}
        self.found = found  # seen, contents, auto_assembled: of exports.open_medium
        self.workers = {}
        self.guests = {}
        self.watched = []
        self.queue = deque()  # (asker or None, message, done)
        self.is_busy = False
        self.failure = None  # what the worker told that failed it
        self.told_size = store.size  # the size that replicas know
        self.since = int(time.time() * 1000)
        self.is_silent = False  # it did not answer when it was to be flushed
        self.is_telling = False  # the records are about to be told
        self.is_unsaved = False  # `shared` has what must outlast us and is not kept yet

    @property
    def progress(self):
        """Of its operation, 0..65535."""
        return operations.progress(self.shared.operation, self.store.size)

    def audience(self):
        """[(worker, Nexus)] of all that must hear of its changes."""
        return list(self.workers.items()) + [
            (worker, nexus) for worker, (nexus, _) in self.guests.items()
        ]

    def is_served_by(self, worker):
        """Has this worker a descriptor of its medium?"""
        return worker in self.workers or worker in self.guests

    def message(self, descriptor):
        """The unit as the catalogue of channel.py has it. `descriptor`: index or None."""
        shared = self.shared
        return {
            'lun': self.lun.number,
            'unit': self.id,
            'descriptor': descriptor,
            'store': self.store.description(),
            'facts': self.facts,
            'reservations': shared.reservations,
            'modes': shared.modes,
            'medium': shared.medium,
            'access': shared.access,
            'progress': self.progress,
            'records': shared.records,
            'since': self.since,
            'watched': self.watched,
        }

    def __repr__(self):
        return '<unit %s>' % self.id


class Acknowledgements(object):
    """Who still has to acknowledge one message, and what is done when all have."""

    def __init__(self, workers, done):
        self.awaited = set(workers)
        self.done = done
        self.timer = None


class Units(object):
    """`send(worker, message, descriptors)`, `kill(worker, why)`; `state`: state_directory.StateDirectory."""

    def __init__(self, loop, send, kill, state):
        self.loop = loop
        self.send = send
        self.kill = kill
        self.state = state
        self.rods = Rods(self)
        self.operating = None  # operating.Operations, once there are any
        self.visits = None  # visits.Visits
        self.atomic = None  # atomic.AtomicWrites, once there are any
        self.by_id = {}
        self._awaiting = {}  # message id -> Acknowledgements
        self._next_id = 0

    # -- what there is -----------------------------------------------------------------------------------------------

    def add(self, unit):
        """Export it."""
        self.by_id[unit.id] = unit
        if unit.is_unsaved:
            self.change(unit, Decision(unit.shared, persist=True))
            unit.is_unsaved = False
        if self.operating is not None:
            self.operating.resume(unit)

    def remove(self, unit):
        """Export it no more. Its asks are answered as for a unit that is gone."""
        self.by_id.pop(unit.id, None)
        self.rods.forget(unit)
        if self.operating is not None:
            self.operating.drop(unit)
        while unit.queue:
            asker, message, done = unit.queue.popleft()
            done(Refusal(*transitions.UNIT_IS_GONE))

    def release(self, unit):
        """Nobody serves it any more: let go of what it has beside its store. Before that is closed."""
        slots, unit.slots = list(unit.slots.values()), {}
        for slot in slots:
            self.atomic.retire(unit, slot)
        if unit.atomic is not None:
            self.atomic.close(unit.atomic)
            unit.atomic = None

    def is_repairing(self, unit):
        """Was something on its medium left half done, that is not put right yet?"""
        return self.atomic is not None and self.atomic.is_repairing(unit)

    def of_target(self, target_name):
        """{lun number: Unit} of a target."""
        return {u.lun.number: u for u in self.by_id.values() if u.target_name == target_name}

    def find(self, text):
        """The unit with this id, or named TARGET/LUN; None if there is none."""
        if text in self.by_id:
            return self.by_id[text]
        target_name, _, number = text.rpartition('/')
        return self.of_target(target_name).get(int(number)) if number.isdigit() else None

    # -- sessions ----------------------------------------------------------------------------------------------------

    def serve(self, worker, nexus):
        """(unit dicts, descriptors) for the answer to a claim; the worker gets every change from
        now on. What does not fit one message follows by itself (`units` orders)."""
        mine = [unit for _, unit in sorted(self.of_target(nexus.target_name).items())]
        for unit in mine:
            unit.workers[worker] = nexus
        for start in range(UNITS_PER_MESSAGE, len(mine), UNITS_PER_MESSAGE):
            rest = mine[start : start + UNITS_PER_MESSAGE]
            self.loop.call_later(0, lambda more=rest: self.order_units([worker], add=more))
        return with_descriptors(worker, mine[:UNITS_PER_MESSAGE])

    def leave(self, worker):
        """The worker is gone: its nexus is lost, its acknowledgements are given, nobody answers it."""
        for unit in list(self.by_id.values()):
            nexus = unit.workers.pop(worker, None)
            unit.guests.pop(worker, None)
            unit.queue = deque(entry for entry in unit.queue if entry[0] is not worker)
            if worker in unit.slots:
                self.atomic.retire(unit, unit.slots.pop(worker))
            if nexus is not None:
                self._apply_now(unit, transitions.session_lost(unit.shared, nexus))
        self.rods.leave(worker)
        for number in [n for n, a in self._awaiting.items() if worker in a.awaited]:
            self._acknowledged(number, worker)

    def depart(self, worker, message):
        """A session logs out: its nexus is lost now, and its worker hears so when that is in force
        everywhere."""
        left = [1]

        def one_done():
            left[0] -= 1
            if not left[0]:
                self.send(
                    worker,
                    {
                        'do': 'answer',
                        'id': message.get('id'),
                        'status': 0,
                        'sense': None,
                        'data': None,
                    },
                    (),
                )

        for unit in list(self.by_id.values()):
            nexus = unit.workers.get(worker)
            decision = transitions.session_lost(unit.shared, nexus) if nexus is not None else None
            if decision is not None:
                left[0] += 1
                self._apply_now(unit, decision, one_done)
        one_done()

    # -- asks --------------------------------------------------------------------------------------------------------

    def ask(self, worker, message):
        """A worker asks for a change. The answer comes when it is in force everywhere."""

        def answer(decision, words=None, descriptors=()):
            self.send(
                worker,
                dict(
                    words or {},
                    do='answer',
                    id=message.get('id'),
                    status=decision.status,
                    sense=decision.sense.hex() if decision.sense else None,
                    data=decision.data.hex() if decision.data else None,
                ),
                descriptors,
            )

        unit = self.by_id.get(message.get('unit'))
        nexus = unit.workers.get(worker) if unit is not None else None
        if nexus is None and not (
            message.get('ask') == 'token-revoke' and unit is not None and worker in unit.guests
        ):
            answer(Refusal(*transitions.UNIT_IS_GONE))
        elif message.get('ask') == 'reset' and message.get('function') in transitions.OF_A_TARGET:
            self._reset_target(worker, unit.target_name, message, answer)
        elif message.get('ask') in self.rods.asks:
            self._ask_of(self.rods, unit, worker, message, answer)
        elif message.get('ask') == 'copy-reach':
            self._ask_of(self.visits, unit, worker, message, answer)
        else:
            self.enqueue(unit, worker, message, answer)

    def _ask_of(self, whom, unit, worker, message, answer):
        try:
            whom.ask(unit, worker, message, answer)
        except transitions.Malformed as e:
            log.error('worker %d asked for what cannot be: %s', worker.pid, e)
            self.kill(worker, 'it asked for what cannot be')

    def _reset_target(self, worker, target_name, message, answer):
        units = list(self.of_target(target_name).values())
        left = [len(units)]

        def one_done(decision):
            left[0] -= 1
            if not left[0]:
                answer(decision)

        for unit in units:
            self.enqueue(unit, worker, message, one_done)

    def enqueue(self, unit, asker, message, done):
        """Decide on this message of the asker after those that are before it; done(decision) when
        it is in force."""
        unit.queue.append((asker, message, done))
        self._next(unit)

    def _next(self, unit):
        while unit.queue and not unit.is_busy:
            asker, message, done = unit.queue.popleft()
            nexus = unit.workers.get(asker)
            if nexus is not None:
                self._begin(unit, asker, nexus, message, done)

    def _begin(self, unit, asker, nexus, message, done):
        try:
            decision = transitions.decide(unit.shared, nexus, message, known_ports(unit))
        except transitions.Malformed as e:
            log.error('worker %d asked for what cannot be: %s', asker.pid, e)
            self.kill(asker, 'it asked for what cannot be')
            return
        if isinstance(decision, Decision) and decision.persist:
            decision = self._persisted(unit, decision)
        if isinstance(decision, Refusal) or not decision.concerns_others:
            done(decision)
            return
        unit.is_busy = True

        def in_force():
            unit.is_busy = False
            if decision.begins:
                self.operating.begin(unit, decision, done)
            else:
                done(decision)
            self._next(unit)

        self._distribute(unit, decision, asker, in_force)

    def _persisted(self, unit, decision):
        try:
            self.save(unit, decision.shared)
        except OSError as e:
            log.error(
                'unit %s: its reservations or saved mode pages cannot be kept in %s: %s; the command is refused',
                unit.id,
                self.state.path,
                e.strerror,
            )
            return transitions.cannot_persist(unit.shared)
        return decision

    def save(self, unit, shared):
        """Put what must outlast us on stable storage. Raises OSError."""
        self.state.save(unit.key, transitions.saved_state(shared, self.state.boot_id))

    # -- distribution ------------------------------------------------------------------------------------------------

    def _apply_now(self, unit, decision, done=lambda: None):
        """A change of the master's own: in force in the master at once, and sent; done() when
        everybody has it in force."""
        if decision is None:
            return
        if decision.persist:
            try:
                self.save(unit, decision.shared)
            except OSError as e:
                log.error(
                    'unit %s: its state cannot be kept in %s: %s',
                    unit.id,
                    self.state.path,
                    e.strerror,
                )
        self._distribute(unit, decision, None, done)

    def _distribute(self, unit, decision, asker, done):
        changed = decision.changed(unit.shared)
        if decision.size is not None:
            changed['size'] = decision.size
        unit.shared = decision.shared
        told = []
        number = self._number()
        acknowledgements = Acknowledgements((), done)
        self._awaiting[number] = acknowledgements
        for worker, nexus in unit.audience():
            message = dict(changed)
            attentions = decision.attentions_of(nexus)
            if attentions:
                message['attentions'] = attentions
            abort = decision.abort_of(nexus, worker is asker)
            if abort:
                message['abort'] = abort
            if message:
                message.update(do='change', id=number, unit=unit.id)
                told.append((worker, message))
        acknowledgements.awaited.update(worker for worker, _ in told)
        for worker, message in told:
            self.send(worker, message, ())
        self.watch(number)

    def tell(self, unit, words, done=None):
        """Tell these words of a `change` to every worker that serves the unit; done() when they are
        in force."""
        workers = [worker for worker, _ in unit.audience()]
        number = self.await_acknowledgements(workers, done or (lambda: None))
        for worker in workers:
            self.send(worker, dict(words, do='change', id=number, unit=unit.id), ())
        self.watch(number)

    def order_units(self, workers, add=(), remove=(), replace=(), attentions=(), done=None):
        """Tell these workers of units that came, went (numbers) or are others now; attentions:
        [(asc, ascq) …] owed by every unit that the nexus had before and keeps; done() when it is in
        force."""
        number = self.await_acknowledgements(workers, lambda: self._ordered(number, replace, done))
        for unit in replace:  # the workers have these until they acknowledge
            for worker in [worker for worker in workers if worker in unit.slots]:
                unit.slots[number, worker] = unit.slots.pop(worker)
        for worker in list(workers):
            for unit in add:
                nexus = worker.session.nexus if worker.session else None
                if nexus is not None:
                    unit.workers[worker] = nexus
            dicts, descriptors = with_descriptors(worker, list(add) + list(replace))
            self.send(
                worker,
                {
                    'do': 'units',
                    'id': number,
                    'add': dicts[: len(add)],
                    'remove': list(remove),
                    'replace': dicts[len(add) :],
                    'attentions': [list(a) for a in attentions],
                },
                descriptors,
            )
        self.watch(number)

    def _ordered(self, number, replaced, done):
        for unit in replaced:
            for key in [key for key in unit.slots if isinstance(key, tuple) and key[0] == number]:
                self.atomic.retire(unit, unit.slots.pop(key))
        if done is not None:
            done()

    def _number(self):
        self._next_id += 1
        return self._next_id

    def await_acknowledgements(self, workers, done):
        """The number of a message that goes to these workers; done() when all have acknowledged it,
        once watch() was called."""
        number = self._number()
        self._awaiting[number] = Acknowledgements(workers, done)
        return number

    def watch(self, number):
        """The message was sent: see to it that it is acknowledged in time."""
        acknowledgements = self._awaiting.get(number)
        if acknowledgements is None:
            return
        if acknowledgements.awaited:
            acknowledgements.timer = self.loop.call_later(
                ACKNOWLEDGE_SECONDS, lambda: self._too_late(number)
            )
        else:
            del self._awaiting[number]
            acknowledgements.done()

    def acknowledge(self, worker, message):
        """A worker has a change or an order in force."""
        self._acknowledged(message.get('id'), worker)

    def _acknowledged(self, number, worker):
        acknowledgements = self._awaiting.get(number)
        if acknowledgements is None or worker not in acknowledgements.awaited:
            return
        acknowledgements.awaited.discard(worker)
        if not acknowledgements.awaited:
            del self._awaiting[number]
            if acknowledgements.timer is not None:
                acknowledgements.timer.cancel()
            acknowledgements.done()

    def _too_late(self, number):
        for worker in list(self._awaiting[number].awaited):
            self.kill(
                worker, 'it did not acknowledge a change within %d seconds' % ACKNOWLEDGE_SECONDS
            )

    # -- the master's own changes ------------------------------------------------------------------------------------

    def failed(self, worker, message):
        """A worker tells that acknowledged data may be lost: nobody is to take the unit for whole
        any more."""
        unit = self.by_id.get(message.get('unit'))
        if unit is not None and unit.is_served_by(worker):
            self.fail(unit, str(message.get('text', '')))

    def fail(self, unit, why):
        """See failed()."""
        if unit.shared.medium == FAILED:
            return
        unit.failure = why
        log.error(
            'unit %s (%s) FAILED: %s. Data that was acknowledged may be lost. Every command is refused until the disk '
            'was checked and "targetdctl acknowledge %s" is given',
            unit.id,
            unit.lun.backing_store,
            unit.failure,
            unit.id,
        )
        self._apply_now(unit, transitions.medium_changed(unit.shared, FAILED))

    def change(self, unit, decision, done=lambda: None):
        """Put a Decision of the master's own in force; done() when everybody has it."""
        self._apply_now(unit, decision, done)

    def tell_progress(self, unit):
        """Tell every nexus how far the operation is; nobody waits for that (0 is no message's
        number)."""
        self._tell_all(unit, {'progress': unit.progress})

    def _tell_all(self, unit, words):
        for worker, _ in unit.audience():
            self.send(worker, dict(words, do='change', id=0, unit=unit.id), ())

    def noted(self, worker, message):
        """A worker tells of an error of the medium, or of a self-test. Errors come in floods: they
        are passed on later."""
        unit = self.by_id.get(message.get('unit'))
        nexus = dict(unit.audience()).get(worker) if unit is not None else None
        if nexus is None:
            return
        try:
            decision = transitions.noted(unit.shared, nexus, message)
        except transitions.Malformed as e:
            log.error('worker %d told what cannot be: %s', worker.pid, e)
            self.kill(worker, 'it told what cannot be')
            return
        if decision.persist:
            self._apply_now(unit, decision)
            return
        unit.shared = decision.shared
        if not unit.is_telling:
            unit.is_telling = True
            self.loop.call_later(TELL_SECONDS, lambda: self._tell_records(unit))

    def _tell_records(self, unit):
        unit.is_telling = False
        self._tell_all(unit, {'records': unit.shared.records})

    def medium(self, unit, medium):
        """Say of the medium what it is now."""
        self._apply_now(unit, transitions.medium_changed(unit.shared, medium))

    def flush_all(self, jobs, done):
        """At the end: have everything made durable, by children; done([(unit, '' or why it is
        not)]), within FLUSH_SECONDS."""
        units, results = list(self.by_id.values()), []

        def flushed(unit, answer):
            unit.is_silent = answer.is_late
            results.append((unit, answer.why))
            if len(results) == len(units):
                done(results)

        for unit in units:
            if unit.store.read_only or unit.store.kind not in ('file', 'block'):
                flushed(unit, JobResult({}, [], '', False))
            else:
                jobs.submit_job(
                    ('flush', unit.id),
                    functools.partial(flush, unit.store.descriptor),
                    functools.partial(flushed, unit),
                    [unit.store.descriptor],
                    FLUSH_SECONDS,
                )
        if not units:
            done(results)

    def close_all(self):
        """Let go of every store; but one that did not answer could keep us from ending, and is the
        kernel's to close."""
        if self.atomic is not None:
            self.atomic.is_over = True
        for unit in self.by_id.values():
            try:
                self.release(unit)
                if not unit.is_silent:
                    unit.store.close()
            except OSError as e:
                log.error('unit %s: %s', unit.id, e.strerror)
        self.by_id.clear()


def flush(descriptor):
    """A job: make durable what any process wrote."""
    try:
        os.fdatasync(descriptor)
    except OSError as e:
        return {'failed': e.strerror}, ()
    return {}, ()


def known_ports(unit):
    """The initiator ports that are logged in to the unit's target."""
    return sorted({nexus.initiator_port for nexus in unit.workers.values()})


def with_descriptors(worker, units):
    """(dicts, descriptors) of units for a message to this worker (None: a guest); each dict has the
    index of its descriptor, and of the journal's where writes are atomic, in which a worker is
    granted a slot. Raises OSError."""
    dicts, descriptors = [], []
    for unit in units:
        index = None
        if unit.store.descriptor is not None:
            index = len(descriptors)
            descriptors.append(unit.store.descriptor)
        dicts.append(unit.message(index))
        if unit.atomic is not None:
            slot = None
            if worker is not None:
                slot = unit.slots[worker] = unit.atomic.grant()
            dicts[-1]['atomic'] = {
                'descriptor': len(descriptors),
                'slot': slot and slot.number,
                'path': unit.atomic.path,
            }
            descriptors.append(slot.descriptor if slot else unit.atomic.descriptor)
    return dicts, descriptors


__all__ = ('Unit', 'Units', 'with_descriptors')
