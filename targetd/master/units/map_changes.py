"""Other maps of LUNs for sessions that go on (lun-map, after a reload).

     ChangeMaps --> withdraw what a session no longer sees --> acknowledged by all --> give what it sees now

A LUN that goes from one initiator to another is given only when the commands of the first one have ended.
A LUN of which only the right to write changes stays: the right is taken in the first step, and given in the
second one, unless another initiator holds the LUN then (sharing).
"""

import functools

from targetd import log
from targetd.master.units import sharing
from targetd.master.units.unit import shown_to
from targetd.scsi import attention

#: A login whose units are still being sent is looked at again after so many seconds.
LOGIN_SECONDS = 0.1


class MapChanges(object):
    """units: Units; sessions: Sessions."""

    def __init__(self, units, sessions):
        self.units = units
        self.sessions = sessions
        self.replication = units.replication

    def change(self, target_name, done):
        """The maps of this target have changed in the configuration in force. done(): they are in force in
        every session."""
        sessions = self.sessions.of_target(target_name)
        for session in sessions:
            session.lun_map = self.sessions.admission.map_of(session)
        served = list(self.units.of_target(target_name).values())
        self._end_copies(served)
        steps = [step for session in sessions for step in self._withdrawals(session, served)]
        withdrawn = _after(len(steps) + 1, lambda: self._give_all(sessions, target_name, done))
        for step in steps:
            step(withdrawn)
        withdrawn()

    def _end_copies(self, units):
        """Copies of other targets' sessions may not use what is not shown to their initiators any more."""
        guests = self.units.copy_guests
        for unit in units:
            if not all(guests.may_use(worker, unit) for worker in unit.guests):
                guests.end_copies(unit, lambda: None)

    # -- withdraw ----------------------------------------------------------------------------------

    def _withdrawals(self, session, units):
        """[function(done)] that take from a session the units, and the rights to write, that its map does not
        have."""
        worker, gone, protected = session.worker, [], []
        for unit in units:
            now = shown_to(session, unit)
            if worker in unit.left_out and now is None:
                unit.forget_session(worker)
            if worker not in unit.workers:
                continue
            was = unit.view_of(worker)
            if now is None or now.number != was.number:
                gone.append((unit, was.number))
            elif now.read_only and not was.read_only:
                protected.append(unit)
        steps = [functools.partial(self._remove, session, gone)] if gone else []
        return steps + ([functools.partial(self._protect, session, protected)] if protected else [])

    def _remove(self, session, gone, done):
        worker, nexus = session.worker, session.nexus
        for unit, number in gone:
            log.info(
                'lun %d of %s is not shown to %s any more (lun-map)',
                number,
                unit.target_name,
                session.initiator_name,
            )
            self.units.withdraw(unit, worker)

        def removed():
            for unit, _ in gone:
                self.units.withdrawn(unit, worker, nexus)
            done()

        self.replication.order_units(
            [worker],
            remove={worker: [number for _, number in gone]},
            attentions=[attention.LUNS_CHANGED],
            done=removed,
        )

    def _protect(self, session, units, done):
        for unit in units:
            unit.show(session.worker, shown_to(session, unit))
        self._replace(session, units, done)

    def _replace(self, session, units, done):
        """The rights of a session have changed: its worker gets the units again, and its initiator sees that
        MODE SENSE returns another WP bit."""
        worker, replication = session.worker, self.replication

        def replaced():
            served = [unit for unit in units if worker in unit.workers]
            finished = _after(len(served) + 1, done)
            words = {'attentions': [list(attention.MODE_PARAMETERS_CHANGED)]}
            for unit in served:
                replication.send_change_to([worker], unit, words, finished)
            finished()

        for unit in units:
            log.info(
                '%s may %s lun %d of %s now (lun-map)',
                session.initiator_name,
                'only read' if worker in unit.readers else 'write',
                unit.view_of(worker).number,
                unit.target_name,
            )
        replication.order_units([worker], replace=units, done=replaced)

    # -- give --------------------------------------------------------------------------------------

    def _give_all(self, sessions, target_name, done):
        finished = _after(len(sessions) + 1, done)
        for session in sessions:
            self._give(session, target_name, finished)
        finished()

    def _give(self, session, target_name, done):
        """Give a session the units, and the rights to write, that its map has and it has not."""
        worker = session.worker
        if worker.session is not session or session.ended_why is not None:
            done()
            return
        if self.units.is_incomplete(worker):
            again = functools.partial(self._give, session, target_name, done)
            self.replication.loop.call_later(LOGIN_SECONDS, again)
            return
        wanted, writable = [], []
        for _, unit in sorted(self.units.of_target(target_name).items()):
            now = shown_to(session, unit)
            if now is None or worker in unit.left_out:
                continue
            if worker not in unit.workers:
                wanted.append(unit)
            elif unit.view_of(worker).read_only and not now.read_only:
                if self._may_write(session, unit):
                    unit.show(worker, now)
                    writable.append(unit)
        finished = _after(bool(writable) + 1, done)
        if writable:
            self._replace(session, writable, finished)
        self.units.give_units(session, wanted, finished)

    def _may_write(self, session, unit):
        """True if no other initiator holds the unit."""
        same = self.replication.by_id.same_medium(unit)
        allowed, holder = sharing.access(unit, same, session.initiator_name, session.worker)
        if allowed == sharing.WRITE:
            return True
        log.warning(
            '%s may still only read lun %d of %s: %s',
            session.initiator_name,
            unit.view_of(session.worker).number,
            unit.target_name,
            sharing.why_left_out(unit, holder),
        )
        return False


def _after(number, done):
    """A function that calls done() when it is called for the last of so many times."""
    left = [number]

    def one_done():
        left[0] -= 1
        if not left[0]:
            done()

    return one_done


__all__ = ("MapChanges",)
