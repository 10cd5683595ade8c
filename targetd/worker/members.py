"""The connections of a session: how they join, leave and are replaced (RFC 7143 6.3.4, 6.3.5, 7.2,
8.2).

    login with the session's TSIH --expect--> (an old connection with the CID leaves)
        --claim--> add --> living
    living --leave--> its tasks are aborted; with ErrorRecoveryLevel 2 the connection is lost and
        its tasks wait for a reassignment, as long as was negotiated
    no connection is living, expected, leaving or lost --> the session is over

There is one Members object for a session. Its lock guards the lists; it is never held during I/O.
"""

import threading

from targetd import log
from targetd.iscsi import const, pdu

#: How long a replaced connection may take to end, and the tasks of a connection to become quiet.
LEAVE_SECONDS = 30.0


class Members(object):
    """The connections of one session. worker: has connections (the living ones), tasks, working,
    session, report()."""

    def __init__(self, worker):
        self._worker = worker
        self._living = worker.connections
        self._changed = threading.Condition()
        self._expected = []  # CIDs
        self._leaving = 0
        self._is_over = False
        self._is_closed = False  # the initiator has logged out, or the master ends the session
        self.lost = {}  # CID -> ended connection whose tasks may be reassigned

    def with_cid(self, cid):
        """Return the living connection with this CID, or None. [any]"""
        for connection in list(self._living):
            if connection.cid == cid:
                return connection
        return None

    def count_others(self, cid):
        """Return the number of living connections with another CID. [any]"""
        return sum(1 for connection in list(self._living) if connection.cid != cid)

    # -- joining ------------------------------------------------------------------------------

    def expect(self, cid):
        """Announce a connection that is to be added; first stop a living one with the same CID (RFC
        7143 6.3.4). Returns False if the session ends or the old connection does not end in time.
        settle() must follow in both cases. [the new connection's thread]"""
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
        """Add an expected connection. Raises ConnectionError if the session was closed meanwhile.
        [the new connection's thread]"""
        with self._changed:
            if self._is_over or self._is_closed:
                raise ConnectionError('the session was closed')
            self._living.append(connection)
            self._changed.notify_all()

    def remove(self, connection):
        """Remove a connection whose last login response could not be sent. [its thread]"""
        with self._changed:
            self._living.remove(connection)

    def settle(self, cid):
        """The expected connection was added, or its login has failed. [its thread]"""
        with self._changed:
            if cid in self._expected:
                self._expected.remove(cid)
            self._changed.notify_all()

    # -- leaving ------------------------------------------------------------------------------

    def leave(self, connection):
        """The connection has ended. Blocks until its tasks are quiet; with ErrorRecoveryLevel 2
        until they have been reassigned or may not be reassigned any more. [its thread]"""
        connection.outbox.discard()
        with self._changed:
            self._living.remove(connection)
            self._leaving += 1
            if connection.keeps_tasks and not self._is_closed:
                self.lost[connection.cid] = connection
            session_continues = bool(self._living or self._expected or self._leaving > 1)
        try:
            if session_continues or connection.keeps_tasks:
                self._end_tasks(connection)
            connection.has_left.set()
            if connection.keeps_tasks:
                self._wait_for_reassignment(connection)
        finally:
            with self._changed:
                self._leaving -= 1

    def _end_tasks(self, connection):
        """Abort the tasks of the connection unless they may be reassigned, and report its end."""
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
                'a command was still waiting for the disk %d seconds after its connection ended',
                LEAVE_SECONDS,
            )
        # the command window advances for the aborted tasks
        connection.outbox.drain_and_wait()
        worker.report('closed', peer=connection.peer, cid=connection.cid)
        if not connection.ended_quietly:
            self._announce_loss(connection)

    def _announce_loss(self, connection):
        """Send the asynchronous message "connection dropped" on another connection (RFC 7143
        11.9.1, event 2)."""
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

    def _wait_for_reassignment(self, connection):
        """Wait in this thread for DefaultTime2Wait plus DefaultTime2Retain seconds (RFC 7143
        7.2.2), then abort the tasks that were not reassigned."""
        seconds = connection.values['DefaultTime2Wait'] + connection.values['DefaultTime2Retain']
        with self._changed:
            self._changed.wait_for(lambda: self.lost.get(connection.cid) is not connection, seconds)
        self.abort_lost_tasks(connection)

    def abort_lost_tasks(self, connection):
        """The tasks of the connection cannot be reassigned any more: abort those that remain. [any]"""
        worker = self._worker
        with worker.working:
            if self.lost.get(connection.cid) is connection:
                del self.lost[connection.cid]
                worker.tasks.abort(lambda task: task.connection is connection, lambda: None)
        with self._changed:
            self._changed.notify_all()

    def close(self):
        """The initiator has logged out of the session: no connection may join any more. [any]"""
        with self._changed:
            self._is_closed = True

    def drop_lost(self, connection):
        """The initiator has logged out a lost connection: its thread stops waiting. [any]"""
        with self._changed:
            if self.lost.get(connection.cid) is connection:
                del self.lost[connection.cid]
            self._changed.notify_all()

    def is_over(self):
        """Return True, once, when no connection is living, expected, leaving or lost: the caller
        then ends the session. [any]"""
        with self._changed:
            if self._is_over or self._living or self._expected or self._leaving or self.lost:
                return False
            self._is_over = True
            return True

    def are_closed_by_initiator(self):
        """Return True if the session ends because each of its connections has ended, or will end when
        its thread has read what arrived before the initiator's FIN or RST. [control]"""
        with self._changed:
            if self._expected or self.lost or not (self._is_over or self._living or self._leaving):
                return self._is_over
            living = list(self._living)
        return all(
            connection.is_closed_by_initiator() and not connection.keeps_tasks
            for connection in living
        )

    def abandon_lost(self):
        """The master ends the session: no connection may join, and no thread waits for a
        reassignment. [control]"""
        with self._changed:
            self._is_closed = True
            self.lost.clear()
            self._changed.notify_all()
