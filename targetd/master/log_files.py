"""The log of the server: started from the configuration, opened again after a rotation."""

from targetd import log
from targetd.errors import TargetdError


def start_log(server, foreground):
    """Start the log by the [server] section; in the foreground standard error replaces syslog. Raises
    OSError."""
    where = 'stderr' if foreground and server.log == 'syslog' else server.log
    log.start(where, server.log_level)


class LogFiles(object):
    """The log of the master and of its workers. state: ServerState; workers: Workers."""

    def __init__(self, state, workers, foreground):
        self.state = state
        self.workers = workers
        self.foreground = foreground

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
        descriptor = log.descriptor()
        for worker in self.workers.all():
            self.workers.send(
                worker, {'do': 'reopen-logs'}, () if descriptor is None else (descriptor,)
            )
        return ''
