"""Ending tasks before their time: task management, other nexuses' preemptions, the end of a session
(SAM-5, RFC 7143 11.5).

Whoever asks for an abort is told when it is *quiet*: when no aborted task can touch the medium any
more. A task that runs in an executor thread is let to finish, its reply is dropped. May import
base, scsi.sam. Any thread, as marked in Connection.
"""

import threading

from targetd.scsi import sam
from targetd.scsi.sense import StatusReturned


class _Abort(object):
    __slots__ = ('tasks', 'on_quiet')

    def __init__(self, tasks, on_quiet):
        self.tasks = tasks
        self.on_quiet = on_quiet


class Tasks(object):
    """Of one session. on_end: called, by any thread, when a task that others may wait for is gone."""

    def __init__(self, session, gates=(), on_end=None):
        self._session = session
        self._gates = gates
        self._on_end = on_end
        self._lock = threading.Lock()
        self._aborts = []

    def abort(self, wanted, on_quiet, status=None):
        """Abort the tasks for which wanted(task) is true; call on_quiet() when none of them can
        touch the medium.

        The caller holds the connection's `working`. status: what the initiator is told of each
        (TAS), None: nothing.
        """
        running = set()
        for task in list(self._session.tasks.values()):
            if task.aborted or not wanted(task):
                if task.aborted and wanted(task):
                    running.add(task)
                continue
            task.abort_status = status
            task.aborted = True
            if task.asked:  # waits for the master, which may itself wait for this abort
                self._forget(task)
            elif task.transfer is not None:  # still waiting for its data: nobody else holds it
                task.transfer.fail()
                task.transfer = None
                self._session.discard(task.itt)
                self._forget(task)
            else:
                running.add(task)
        with self._lock:
            running = {task for task in running if self._session.tasks.get(task.itt) is task}
            if running:
                self._aborts.append(_Abort(running, on_quiet))
                return
        on_quiet()

    def each(self, act):
        """[act(task)] of each retained task. The caller holds the connections' `working`."""
        return [act(task) for task in list(self._session.tasks.values())]

    def finished(self, task):
        """A retained task will not touch the medium again. True if its initiator is to be answered
        as usual. Any thread."""
        with self._lock:
            known = self._session.tasks.get(task.itt) is task
            if known:
                del self._session.tasks[task.itt]
            if self._gates:
                self._on_end()
            if not task.aborted or not known:
                return known
            quiet = []
            for abort in list(self._aborts):
                abort.tasks.discard(task)
                if not abort.tasks:
                    self._aborts.remove(abort)
                    quiet.append(abort)
        self._answer_aborted(task)
        for abort in quiet:
            abort.on_quiet()
        return False

    def _forget(self, task):
        with self._lock:
            self._session.tasks.pop(task.itt, None)
        self._answer_aborted(task)
        if self._gates:
            self._on_end()

    @staticmethod
    def _answer_aborted(task):
        """No answer, or TASK ABORTED; the command window moves on either way."""
        connection = task.connection
        if task.abort_status == sam.TASK_ABORTED:
            connection.reply(task, StatusReturned(sam.TASK_ABORTED))
        elif task.cmd_sn is not None:
            connection.outbox.put_pdus((), numbered=True)
        if connection.ended is not None:
            connection.drain_or_stop()  # nobody else does; its outbox only moves the window
