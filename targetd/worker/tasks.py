"""Aborting tasks: by task management, by other nexuses' preemptions, at the end of a session
(SAM-5, RFC 7143 11.5).

The caller of abort() is called back when the tasks are *quiet*: no aborted task can touch the
medium any more. A task that runs in an executor thread is allowed to finish; its reply is dropped.
May import base. Threads are marked as in Connection.
"""

import collections
import threading
import time


def _no_reply(task):
    return None


class _Abort(object):
    """An unfinished abort: the tasks that still run, the callback, and when it began."""

    __slots__ = ('tasks', 'on_quiet', 'began')

    def __init__(self, tasks, on_quiet):
        self.tasks = tasks
        self.on_quiet = on_quiet
        self.began = time.monotonic()


class Tasks(object):
    """Task table of one session. gates: Ordering.gates; on_end: called by any thread when a task has
    ended and other tasks may wait for it; on_wait(): an abort waits for tasks, so give_up() must be
    called from time to time; on_return(): a task that had hung has ended; cancel(task): True if the limits
    delayed the task, which does not run any more (worker.throttling). hung: the aborted tasks that were
    forgotten while they ran."""

    def __init__(
        self,
        session,
        gates=(),
        on_end=None,
        on_wait=None,
        on_return=None,
        cancel=lambda task: False,
    ):
        self.hung = set()
        self._session = session
        self._gates = gates
        self._on_end = on_end
        self._on_wait = on_wait
        self._on_return = on_return
        self._cancel = cancel
        self._lock = threading.Lock()
        self._aborts = []

    def abort(self, wanted, on_quiet, reply_to=_no_reply):
        """Abort the tasks for which wanted(task) is true; call on_quiet() when none of them can
        touch the medium.

        The caller holds the session's `working`. reply_to(task): the StatusReturned (TAS) or
        CheckCondition that ends the task, None: it gets no reply.
        """
        running = set()
        for task in list(self._session.tasks.values()):
            if task.aborted or not wanted(task):
                if task.aborted and wanted(task):
                    running.add(task)
                continue
            task.abort_reply = reply_to(task)
            task.aborted = True
            if task.sent_to_master:  # it waits for the master, which may wait for this abort
                self._forget(task)
            elif task.transfer is not None:  # it waits for Data-Out: no other thread uses it
                task.transfer.fail()
                task.transfer = None
                self._session.discard_data_out(task.itt)
                self._forget(task)
            elif self._cancel(task):
                self._forget(task)
            else:
                running.add(task)
        with self._lock:
            running = {task for task in running if self._session.tasks.get(task.itt) is task}
            if running:
                self._aborts.append(_Abort(running, on_quiet))
        if not running:
            on_quiet()
        elif self._on_wait is not None:
            self._on_wait()

    def give_up(self, before):
        """Forget the aborted tasks of aborts that began before this monotonic time: their commands
        end now, although a thread may still execute them. Returns [(on_quiet, the tasks that still
        run)]; the caller calls on_quiet() when these tasks are fenced. [any]

        A task that no thread has started never starts: its thread sees `aborted` after it has set
        `started`, and this function reads `started` after `aborted` was set."""
        forgotten, late = set(), []
        with self._lock:
            for abort in [each for each in self._aborts if each.began < before]:
                self._aborts.remove(abort)
                forgotten |= abort.tasks
                late.append((abort.on_quiet, {task for task in abort.tasks if task.started}))
            forgotten = {t for t in forgotten if self._session.tasks.get(t.itt) is t}
            for task in forgotten:
                del self._session.tasks[task.itt]
            self.hung.update(task for task in forgotten if task.started)
        for task in forgotten:
            self._answer_aborted(task)
            task.connection.drain_in_executor()
        if forgotten and self._gates:
            self._on_end()
        return late

    def running(self):
        """The tasks that executor threads run. [any]"""
        tasks = list(self._session.tasks.values()) + list(self.hung)
        return [task for task in tasks if task.started is not None]

    def are_unfinished(self):
        """True if there are tasks. [any]"""
        return bool(self._session.tasks or self.hung or self._aborts)

    def by_unit(self):
        """Return {unit: number of its unfinished tasks}. [any]"""
        return collections.Counter(
            getattr(task, 'unit', None) for task in list(self._session.tasks.values())
        )

    def each(self, act):
        """Return [act(task), …] for the retained tasks. The caller holds the session's `working`."""
        return [act(task) for task in list(self._session.tasks.values())]

    def retains_any(self, tasks):
        """True if one of these tasks has not ended yet. [any]"""
        with self._lock:
            return any(self._session.tasks.get(task.itt) is task for task in tasks)

    def finished(self, task):
        """A retained task will not touch the medium again. Returns True if it gets a normal reply,
        False if it was aborted. [any]"""
        with self._lock:
            known = self._session.tasks.get(task.itt) is task
            if known:
                del self._session.tasks[task.itt]
            if self._gates:
                self._on_end()
            if not task.aborted:
                return known
            has_hung = task in self.hung
            self.hung.discard(task)
            quiet = []
            for abort in list(self._aborts):
                abort.tasks.discard(task)
                if not abort.tasks:
                    self._aborts.remove(abort)
                    quiet.append(abort)
        if known:
            self._answer_aborted(task)
        for abort in quiet:
            abort.on_quiet()
        if has_hung:
            self._on_return()
        return False

    def _forget(self, task):
        with self._lock:
            self._session.tasks.pop(task.itt, None)
        self._answer_aborted(task)
        if self._gates:
            self._on_end()

    @staticmethod
    def _answer_aborted(task):
        """Reply as the abort has decided, or not at all; the command window advances in both cases."""
        connection = task.connection
        if task.abort_reply is not None:
            connection.reply(task, task.abort_reply)
        elif task.cmd_sn is not None:
            connection.outbox.put_pdus((), numbered=True)
        if connection.ended is not None:
            connection.drain_or_stop()  # no other thread drains it; this only advances the window
