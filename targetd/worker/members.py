"""Which connections a session has: they join, they leave, they are replaced (RFC 7143 6.3.4, 6.3.5,
7.2, 8.2).

    login with the session's TSIH --expect--> (an old connection with that CID leaves) --claim--> add --> living
    living --leave--> its tasks end, or with ErrorRecoveryLevel 2 wait, lost, for a reassignment as long as was agreed
    the last one left, nobody expected, no wait --> the session is over

One Members for a session. A lock of its own guards who belongs; it is never held while anything
waits for I/O.
"""

import threading

from targetd import log
from targetd.iscsi import const, pdu

#: How long a connection that is replaced, or the end of tasks of one that was lost, may take.
LEAVE_SECONDS = 30.0


class Members(object):
    """worker: gives connections (the list of the living), tasks, working, session, report."""

    def __init__(self, worker):
        self._worker = worker
        self._living = worker.connections
        self._changed = threading.Condition()
        self._expected = []  # CIDs
        self._leaving = 0
        self._is_over = False
        self._is_closed = False  # the initiator logged out of the session, or the master ends it
        self.lost = {}  # CID -> a connection whose tasks may be reassigned

    def with_cid(self, cid):
        """The living connection with this CID, or None. Any thread."""
        for connection in list(self._living):
            if connection.cid == cid:
                return connection
        return None

    def besides(self, cid):
        """How many living connections have another CID. Any thread."""
        return sum(1 for connection in list(self._living) if connection.cid != cid)

    # -- joining -----------------------------------------------------------------------------------------------------

    def expect(self, cid):
        """A further connection is about to be added: one with its CID leaves first (RFC 7143
        6.3.4). False: the session ends, or the old connection does not leave. settle() must follow
        in any case. [the new connection's thread]"""
        with self._changed:
            self._changed.wait_for(lambda: cid not in self._expected, LEAVE_SECONDS)
            if self._is_over or self._is_closed:
                return False
            self._expected.append(cid)
        old = self.with_cid(cid)
        if old is None:
            return True
        old.stop('the initiator connected again with its CID')
        return old.has_left.wait(LEAVE_SECONDS)

    def add(self, connection):
        """Raises ConnectionError if the session was closed meanwhile. [its thread]"""
        with self._changed:
            if self._is_over or self._is_closed:
                raise ConnectionError('the session was closed')
            self._living.append(connection)
            self._changed.notify_all()

    def remove(self, connection):
        """It was added too early: its login failed after all. [its thread]"""
        with self._changed:
            self._living.remove(connection)

    def settle(self, cid):
        """The expected connection was added, or never will be. [its thread]"""
        with self._changed:
            if cid in self._expected:
                self._expected.remove(cid)
            self._changed.notify_all()

    # -- leaving -----------------------------------------------------------------------------------------------------

    def leave(self, connection):
        """It is over; give its tasks their due. Waits until they are quiet or, if recovery was
        agreed upon, as long as they may be reassigned. [its thread]"""
        connection.outbox.discard()
        with self._changed:
            self._living.remove(connection)
            self._leaving += 1
            if connection.keeps_tasks and not self._is_closed:
                self.lost[connection.cid] = connection
            goes_on = bool(self._living or self._expected or self._leaving > 1)
        try:
            if goes_on or connection.keeps_tasks:
                self._part(connection)
            connection.has_left.set()
            if connection.keeps_tasks:
                self._retain(connection)
        finally:
            with self._changed:
                self._leaving -= 1

    def _part(self, connection):
        worker = self._worker
        quiet = threading.Event()
        with worker.working:
            worker.session.forget_held(connection)
            if connection.keeps_tasks:
                quiet.set()
            else:
                worker.tasks.abort(lambda task: task.connection is connection, quiet.set)
        if not quiet.wait(LEAVE_SECONDS):
            log.warning(
                'a command was still at its disk %d seconds after its connection ended',
                LEAVE_SECONDS,
            )
        # the command window moves on for those that were aborted
        connection.outbox.drain_and_wait()
        worker.report('closed', peer=connection.peer, cid=connection.cid)
        if not connection.ended_quietly:
            self._announce_loss(connection)

    def _announce_loss(self, connection):
        """RFC 7143 11.9.1, event 2."""
        values = connection.values
        for other in list(self._living):
            other.outbox.put_pdu(
                pdu.AsyncMessage(
                    event=const.ASYNC_CONNECTION_DROPPED,
                    parameter1=connection.cid,
                    parameter2=values['DefaultTime2Wait'],
                    parameter3=values['DefaultTime2Retain'],
                )
            )
            other.drain_or_stop()
            return

    def _retain(self, connection):
        """The lost tasks wait for Time2Wait and Time2Retain to pass (RFC 7143 7.2.2), in this
        thread; then they end."""
        seconds = connection.values['DefaultTime2Wait'] + connection.values['DefaultTime2Retain']
        with self._changed:
            self._changed.wait_for(lambda: self.lost.get(connection.cid) is not connection, seconds)
        self.forget(connection)

    def forget(self, connection):
        """Its tasks can be reassigned no more: those that are left end. [any]"""
        worker = self._worker
        with worker.working:
            if self.lost.get(connection.cid) is connection:
                del self.lost[connection.cid]
                worker.tasks.abort(lambda task: task.connection is connection, lambda: None)
        with self._changed:
            self._changed.notify_all()

    def close(self):
        """The initiator logged out of the session: nobody joins any more. Any thread."""
        with self._changed:
            self._is_closed = True

    def drop_lost(self, connection):
        """It was logged out: nobody waits for it any more. Any thread."""
        with self._changed:
            if self.lost.get(connection.cid) is connection:
                del self.lost[connection.cid]
            self._changed.notify_all()

    def is_over(self):
        """True, once, when nobody is left and nobody is expected: the caller ends the session. Any
        thread."""
        with self._changed:
            if self._is_over or self._living or self._expected or self._leaving or self.lost:
                return False
            self._is_over = True
            return True

    def give_up(self):
        """The session is ended by the master: nobody joins, nobody waits for the lost. [control]"""
        with self._changed:
            self._is_closed = True
            self.lost.clear()
            self._changed.notify_all()
