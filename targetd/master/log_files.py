"""The log of the server: started from the configuration, opened again after a rotation."""

from targetd import log
from targetd.errors import TargetdError
from targetd.master.processes.worker_messages import BadMessage

LINES_AT_ONCE = 1000
LINES_PER_SECOND = 100


def start_log(server, foreground):
    """Start the log by the [server] section; in the foreground standard error replaces syslog. Raises
    OSError."""
    where = 'stderr' if foreground and server.log == 'syslog' else server.log
    log.start(where, server.log_level)


class LogFiles(object):
    """The log of the master and of its workers. state: ServerState; clock(): monotonic seconds."""

    def __init__(self, state, clock, foreground):
        self.state = state
        self.clock = clock
        self.foreground = foreground
        self._budgets = {}  # worker -> _Budget

    def restart_log(self):
        """The log settings have changed. An error is logged to the old log."""
        server = self.state.configuration.server
        try:
            start_log(server, self.foreground)
        except OSError as e:
            log.error('the log cannot be written to %s: %s', server.log, e.strerror)

    @staticmethod
    def try_log(server):
        """Raises TargetdError if the log of this [server] section cannot be written."""
        try:
            log.try_place(server.log)
        except OSError as e:
            raise TargetdError(
                'the log cannot be written to %s: %s; write another log' % (server.log, e.strerror)
            )

    def reopen_logs(self):
        """The log file was rotated: open the new one, and send its descriptor to the workers. Returns
        '' or a complaint."""
        try:
            log.reopen()
        except OSError as e:
            log.error('the log file cannot be opened again: %s', e.strerror)
            return 'the log file cannot be opened again: %s' % e.strerror
        log.info('the log was opened again')
        return ''

    def on_log(self, worker, message):
        """`report log`: a line of a worker. A worker that logs too much is not allowed to fill the
        log: of each worker, LINES_AT_ONCE lines are written at once and LINES_PER_SECOND after that."""
        level, text = message['level'], message['text']
        if not log.DEBUG <= level <= log.ERROR:
            raise BadMessage('a log line of level %d' % level)
        now = self.clock()
        budget = self._budgets.setdefault(worker, _Budget(now))
        if not budget.take(now):
            return
        if budget.suppressed:
            log.warning('%d messages of worker %d were suppressed', budget.suppressed, worker.pid)
            budget.suppressed = 0
        log.write_line(level, text, worker.pid)

    def forget_worker(self, worker):
        """The worker is dead."""
        budget = self._budgets.pop(worker, None)
        if budget is not None and budget.suppressed:
            log.warning('%d messages of worker %d were suppressed', budget.suppressed, worker.pid)


class _Budget(object):
    """How many lines a worker may log now; suppressed: lines that were not written."""

    def __init__(self, now):
        self.left, self.since, self.suppressed = float(LINES_AT_ONCE), now, 0

    def take(self, now):
        earned = (now - self.since) * LINES_PER_SECOND
        self.left, self.since = min(float(LINES_AT_ONCE), self.left + earned), now
        if self.left < 1.0:
            self.suppressed += 1
            return False
        self.left -= 1.0
        return True
