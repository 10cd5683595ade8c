"""The log of the server: started from the configuration, opened again after a rotation, kept from being
flooded."""

import os

from targetd import log
from targetd.errors import TargetdError
from targetd.master import feasible
from targetd.master.processes import log_writer
from targetd.master.processes.loop import READ
from targetd.master.processes.worker_messages import BadMessage

LINES_AT_ONCE = 1000  # of a worker; a line counts more than once if it is long
LINES_PER_SECOND = 100
LONG_LINE = 200  # characters
RESTART_SECONDS = 5.0  # between two attempts to start a log writer


def destination_of(server, foreground):
    """The destination that the [server] section names; in the foreground standard error replaces
    syslog."""
    return 'stderr' if foreground and server.log == 'syslog' else server.log


def start_log(server, foreground):
    """Start the log by the [server] section, and return its LogWriter. Raises OSError."""
    log.set_level(server.log_level)
    writer = log_writer.LogWriter(destination_of(server, foreground))
    writer.wait_started()
    writer.use()
    return writer


def adopted_writer(words):
    """The LogWriter that another program has handed over, or None."""
    if words is None:
        return None
    adopted = words['pid'], words['queue'], words['control']
    return log_writer.LogWriter(words['where'], adopted=adopted)


class LogFiles(object):
    """The log of the master and of its workers. state: ServerState; loop: Loop. `writer`: the
    LogWriter that is in use; None (of a Master in a test): the log goes to stderr."""

    def __init__(self, state, loop, jobs, foreground):
        self.state = state
        self.loop = loop
        self.jobs = jobs
        self.clock = loop.clock
        self.foreground = foreground
        self.writer = None
        self._next = None  # a LogWriter that is being started
        self._ending = []  # LogWriters that write what is left
        self._reopening = []  # functions that wait for the file to be opened again
        self._budgets = {}  # worker -> log.Budget
        self._suppressed = {}  # worker -> lines that were not written
        self._of_workers = log.Limiter(300, 2, 5000, 100)
        self._is_reporting = False

    def adopt_writer(self, writer):
        """This LogWriter is in use."""
        self.writer = writer
        log.on_loss(self._report_later)
        self.loop.watch(writer.control, READ, lambda events: self._on_answer())

    # -- upgrade -----------------------------------------------------------------------------------

    @property
    def is_changing(self):
        """True while a log writer is being started, or the log is opened again."""
        return self._next is not None or bool(self._reopening)

    @property
    def children(self):
        """The process ids of log writers that write what is left."""
        return [writer.pid for writer in self._ending if writer.pid is not None]

    def handed_over(self, keep):
        """The log writer as plain values, for the program that takes over (ARCHITECTURE D24)."""
        if self.writer is None or self.writer.pid is None:
            return None
        return {
            'where': self.writer.where,
            'pid': self.writer.pid,
            'queue': keep(self.writer.queue),
            'control': keep(self.writer.control.fileno()),
        }

    def renew_writer(self):
        """Replace the log writer, which another program has started, by one of this program."""
        if self.writer is not None:
            self._start(self.writer.where)

    # -- changes -----------------------------------------------------------------------------------

    def restart_log(self):
        """The log settings have changed. An error is logged to the old log."""
        server = self.state.configuration.server
        log.set_level(server.log_level)
        where = destination_of(server, self.foreground)
        if self.writer is not None and where != self.writer.where:
            self._start(where)

    def _start(self, where):
        if self._next is not None:
            self._drop(self._next)
        try:
            writer = self._next = log_writer.LogWriter(where)
        except OSError as e:
            log.error('no log writer can be started: %s', e.strerror)
            return
        self.loop.watch(writer.control, READ, lambda events: self._on_started(writer))
        self.loop.call_later(
            log_writer.START_SECONDS, lambda: self._not_started(writer, 'no answer')
        )

    def _on_started(self, writer):
        failed = writer.answer()
        if failed:
            self._not_started(writer, failed)
        elif failed == '' and writer is self._next:
            self._next = None
            self._drop(self.writer)
            writer.use()
            self.adopt_writer(writer)

    def _not_started(self, writer, why):
        if writer is self._next:
            self._next = None
            self._drop(writer)
            log.error('the log cannot be written to %s: %s', writer.where, why)

    def _drop(self, writer):
        self.loop.forget(writer.control)
        writer.release()
        self._ending.append(writer)

    def reap(self):
        """Reap log writers that have ended. One that is in use and died is replaced. Call after
        SIGCHLD."""
        self._ending = [writer for writer in self._ending if not writer.has_ended()]
        if self.writer is not None and self.writer.has_ended():
            self._restart_dead()

    def _restart_dead(self):
        if self._next is None and self.writer.has_ended():
            self._start(self.writer.where)
            self.loop.call_later(RESTART_SECONDS, self._restart_dead)

    def try_log(self, server, done):
        """Calls done(None), or done(TargetdError) if the log of this [server] section cannot be
        written."""

        def attempt():
            try:
                log_writer.try_destination(server.log)
            except OSError as e:
                return {'failed': feasible.log_problem(server, e.strerror)}, ()
            return {}, ()

        def tried(result):
            text = 'the log cannot be written to %s: %s; write another log'
            why = result.values.get('failed') or text % (server.log, result.why)
            done(TargetdError(why) if result.why else None)

        self.jobs.submit_job(('log', server.log), attempt, tried)

    # -- rotation ----------------------------------------------------------------------------------

    def reopen_logs(self, done=lambda complaint: None):
        """The log file was rotated: have it opened again. done('' or a complaint) is called now or
        later."""
        if self.writer is None:
            done('')
            return
        self._reopening.append(done)
        self.writer.order_reopen()
        self.loop.call_later(
            log_writer.ANSWER_SECONDS, lambda: self._reopened('the log does not answer', done)
        )

    def _on_answer(self):
        failed = self.writer.answer()
        if failed is not None:
            if self.writer.has_ended():
                self.loop.forget(self.writer.control)
            self._reopened(failed)

    def _reopened(self, failed, only=None):
        waiting = [done for done in self._reopening if only is None or done is only]
        self._reopening = [done for done in self._reopening if done not in waiting]
        if not waiting:
            return
        complaint = 'the log file cannot be opened again: %s' % failed if failed else ''
        if failed:
            log.error('%s', complaint)
        else:
            log.info('the log was opened again')
        for done in waiting:
            done(complaint)

    # -- floods ------------------------------------------------------------------------------------

    def on_log(self, worker, message):
        """`report log`: a line of a worker. Neither a worker nor an address is allowed to fill the
        log: of each worker, LINES_AT_ONCE lines are written at once and LINES_PER_SECOND after that,
        and the lines of one kind are limited for each address."""
        level, text = message['level'], message['text']
        if not log.DEBUG <= level <= log.ERROR:
            raise BadMessage('a log line of level %d' % level)
        now = self.clock()
        budget = self._budgets.get(worker)
        if budget is None:
            budget = self._budgets[worker] = log.Budget(LINES_AT_ONCE, LINES_PER_SECOND, now)
        if not budget.take(now, 1.0 + len(text) // LONG_LINE):
            self._suppressed[worker] = self._suppressed.get(worker, 0) + 1
            self._report_later()
            return
        key = message.get('kind', ''), worker.peers[0] if worker.peers else worker.pid
        if level > log.DEBUG and not self._of_workers.allows(key, level, text, now):
            self._report_later()
            return
        log.write_line(level, text, worker.pid)

    def forget_worker(self, worker):
        """The worker is dead."""
        self._budgets.pop(worker, None)
        self._report_worker(worker)

    def _report_worker(self, worker):
        count = self._suppressed.pop(worker, 0)
        if count:
            log.warning('%d messages of worker %d were suppressed', count, worker.pid)

    def _report_later(self):
        if not self._is_reporting:
            self._is_reporting = True
            self.loop.call_later(log.SUPPRESSED_SECONDS, self._report)

    def _report(self):
        self._is_reporting = False
        for worker in list(self._suppressed):
            self._report_worker(worker)
        for count, level, line in self._of_workers.collect(self.clock(), log.SUPPRESSED_SECONDS):
            log.write_line(max(level, log.INFO), log.suppressed_text(count, line), os.getpid())
        if log.report_suppressed() or self._of_workers.has_suppressed:
            self._report_later()


__all__ = ('LogFiles', 'adopted_writer', 'start_log')
