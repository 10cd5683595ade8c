"""Guest units: units of other targets of this server that copies of this session use (ARCHITECTURE
D16); and which copies use which unit (see scsi.copy.extended_copy.NoCopyGuests).

The master answers with the unit and its descriptor if the initiator of this session may log in to
the unit's target. The worker is a guest of the unit until the copy has ended: the master sends it
every change of the unit, so that reservations, ROD tokens and the state of the medium are enforced
as for the session's units. May import scsi, store.
"""

import threading
import time

from targetd.worker.copy import ask_master


class GuestUnits(object):
    """The guest units and the running copies of one session. make(unit message, descriptors) ->
    LogicalUnit that is in no Device; report_left(unit id): one use of the unit has ended."""

    def __init__(self, make, report_left):
        self._make = make
        self._report_left = report_left
        self._lock = threading.Lock()
        self._units = {}  # unit id -> [LogicalUnit, number of uses]
        self._copies = []  # (LogicalUnit, Copy) of running copies
        self._stops = []  # (set of (LogicalUnit, Copy) that must end, on_quiet, monotonic time)

    def unit(self, unit_id):
        """Return the LogicalUnit with this id, or None. [any]"""
        entry = self._units.get(unit_id)
        return entry[0] if entry else None

    def arrive(self, message):
        """Count one use of the unit in an answer, if it has one. [control]"""
        words = message.get('reached')
        if message['status'] or not words:
            return
        with self._lock:
            entry = self._units.get(words['unit'])
            if entry is None:
                self._units[words['unit']] = [self._make(words, message['descriptors']), 1]
                message['descriptors'] = ()
            else:
                entry[1] += 1  # the store is open already: the caller closes this descriptor

    def give_back(self, unit_id):
        """One use of a unit has ended. [executor]"""
        with self._lock:
            entry = self._units[unit_id]
            entry[1] -= 1
            if not entry[1]:
                del self._units[unit_id]
        if not entry[1]:
            ask_master.close_store(entry[0].store)
        self._report_left(unit_id)

    def id_of(self, unit):
        """Return the id of a guest unit; None for a unit of the session."""
        return next(
            (unit_id for unit_id, entry in list(self._units.items()) if entry[0] is unit), None
        )

    def enter(self, unit, copy):
        """A copy starts to use this unit. [executor]"""
        with self._lock:
            self._copies.append((unit, copy))

    def leave(self, unit, copy):
        """A copy does not use this unit any more. [executor]"""
        unit_id = self.id_of(unit)
        quiet = []
        with self._lock:
            self._copies.remove((unit, copy))
            if (unit, copy) not in self._copies:
                for stop in list(self._stops):
                    stop[0].discard((unit, copy))
                    if not stop[0]:
                        self._stops.remove(stop)
                        quiet.append(stop[1])
        if unit_id is not None:
            self.give_back(unit_id)
        for on_quiet in quiet:
            on_quiet()

    def stop(self, wanted, on_quiet):
        """Stop the copies that use units for which wanted(unit) is true. on_quiet() is called when
        none of them uses such a unit any more, in this thread or another. [control]"""
        with self._lock:
            running = {(unit, copy) for unit, copy in self._copies if wanted(unit)}
            for _, copy in running:
                copy.stopped = True
            if running:
                self._stops.append((running, on_quiet, time.monotonic()))
                return
        on_quiet()

    def give_up(self, before):
        """Stop waiting for copies that were stopped before this monotonic time and did not end.
        Returns [(on_quiet, the units that they may still write)]. [any]"""
        with self._lock:
            late = [stop for stop in self._stops if stop[2] < before]
            self._stops = [stop for stop in self._stops if stop[2] >= before]
            return [
                (on_quiet, {unit for unit, copy in self._copies if copy.stopped})
                for _, on_quiet, _ in late
            ]

    def units_of_copies(self):
        """The units that running copies use. [any]"""
        with self._lock:
            return {unit for unit, _ in self._copies}

    def close(self):
        """The session is over and quiet: close every store."""
        for unit, _ in list(self._units.values()):
            unit.store.close()


class GuestFinder(object):
    """Finds guest units for the copies of one unit of the session. Implements the interface of
    scsi.copy.extended_copy.NoCopyGuests. Executor threads only."""

    def __init__(self, worker, unit_id, guests):
        self._worker = worker
        self._unit_id = unit_id
        self._guests = guests
        self.enter = guests.enter
        self.leave = guests.leave

    def find(self, code_set, kind, designator):
        """Return the LogicalUnit of another target that has this designator, or None. Raises
        CheckCondition, StatusReturned."""
        answer = ask_master.wait_for_answer(
            self._worker,
            'copy-reach',
            self._guests.arrive,
            self._too_late,
            unit=self._unit_id,
            code_set=code_set,
            kind=kind,
            designator=designator.hex(),
        )
        ask_master.close_all(answer)
        words = answer.get('reached')
        return self._guests.unit(words['unit']) if words else None

    def _too_late(self, answer):
        """[control]"""

        def give_back(_):
            ask_master.close_all(answer)
            if not answer['status'] and answer.get('reached'):
                self._guests.give_back(answer['reached']['unit'])

        self._worker.executor.submit(give_back, None)
