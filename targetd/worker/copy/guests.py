"""Units of other targets of this server, which copies of this session reach; and who uses which
unit for a copy besides the one that was asked (scsi.third_party.NoReach says what for).

The master's answer brings a unit with its descriptor, if the initiator of this session may log in
to its target. The session is that unit's guest until it leaves it: it hears of every change of it,
so that reservations, tokens and the medium's word are heeded as at the units of its own. May import
scsi, store.
"""

import threading

from targetd.worker.copy import ask_master


class Guests(object):
    """Of one session. make(unit message, descriptors) -> LogicalUnit that is in no Device;
    tell(unit id): it was left."""

    def __init__(self, make, tell):
        self._make = make
        self._tell = tell
        self._lock = threading.Lock()
        self._units = {}  # unit id -> [LogicalUnit, how many use it]
        self._copies = []  # (LogicalUnit, Copy) of what is going on
        self._stops = []  # (set of those that have to be over, on_quiet)

    def unit(self, unit_id):
        """The LogicalUnit with this id, or None. Any thread."""
        entry = self._units.get(unit_id)
        return entry[0] if entry else None

    def arrive(self, message):
        """A unit arrived with an answer, or did not. [control]"""
        words = message.get('reached')
        if message['status'] or not words:
            return
        with self._lock:
            entry = self._units.get(words['unit'])
            if entry is None:
                self._units[words['unit']] = [self._make(words, message['descriptors']), 1]
                message['descriptors'] = ()
            else:
                entry[1] += 1  # it has a descriptor: whoever asked closes this one

    def give_back(self, unit_id):
        """One use of a unit is over. [executor]"""
        with self._lock:
            entry = self._units[unit_id]
            entry[1] -= 1
            if not entry[1]:
                del self._units[unit_id]
        if not entry[1]:
            ask_master.close_store(entry[0].store)
        self._tell(unit_id)

    def id_of(self, unit):
        """The id of a unit of another target; None for one of ours."""
        return next(
            (unit_id for unit_id, entry in list(self._units.items()) if entry[0] is unit), None
        )

    def enter(self, unit, copy):
        """A copy uses this unit."""
        with self._lock:
            self._copies.append((unit, copy))

    def leave(self, unit, copy):
        """It does so no more."""
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
        """Tasks at the units for which wanted(unit) is true are ended: so are the copies that use
        them; on_quiet() when none of these does any more, in this thread or another. [control]"""
        with self._lock:
            running = {(unit, copy) for unit, copy in self._copies if wanted(unit)}
            for _, copy in running:
                copy.stopped = True
            if running:
                self._stops.append((running, on_quiet))
                return
        on_quiet()

    def close(self):
        """The session is over, and quiet: let go of every medium."""
        for unit, _ in list(self._units.values()):
            unit.store.close()


class Reach(object):
    """Of one unit of ours, scsi.third_party.NoReach's verbs. Executor threads."""

    def __init__(self, worker, unit_id, guests):
        self._worker = worker
        self._unit_id = unit_id
        self._guests = guests
        self.enter = guests.enter
        self.leave = guests.leave

    def find(self, code_set, kind, designator):
        """The LogicalUnit of another target that has this designator, or None. Raises
        CheckCondition, StatusReturned."""
        answer = ask_master.ask(
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
