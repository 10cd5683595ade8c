"""The ordered stop: no new logins, initiators are asked to log out, the wait is bounded, the other
sessions are ended, every unit is flushed.

serving --SIGTERM--> asking --all workers reaped, or stop-timeout, or a second signal--> ending
     --all reaped, or END_SECONDS, or a further signal--> killing --all reaped--> flushing --> done
"""

from targetd import log
from targetd.config.words import counted
from targetd.errors import EXIT_NOT_DURABLE, EXIT_OK

END_SECONDS = 5.0  # a worker that was ordered to end and takes longer is killed

END_ORDER = {'do': 'end', 'why': 'targetd stops', 'reason': 'stopped'}


class Stop(object):
    """The stop of a master. report: sentences on the outcome for each session and unit; failures: those
    of them that mean that data or state may be lost. Both are complete when stage is 'done'."""

    def __init__(self, loop, state, workers, sessions, units, listeners, isns):
        self.loop = loop
        self.state = state
        self.workers = workers
        self.sessions = sessions
        self.units = units
        self.listeners = listeners
        self.isns = isns
        self.stage = None  # None, 'asking', 'ending', 'killing', 'flushing', 'done'
        self.report = []
        self.failures = []
        self._timer = None
        self.on_begin = lambda: None  # called when the stop begins

    def start_stop(self, why):
        """Start the stop; if it has started, go to its next stage now."""
        if self.stage is None:
            self._ask_for_logout(why)
        elif self.stage == 'asking':
            log.info('%s: not waiting any longer', why)
            self._end_sessions()
        elif self.stage == 'ending':
            self._kill_workers()

    def _ask_for_logout(self, why):
        self.stage = 'asking'
        self.state.is_stopping = True
        self.on_begin()
        seconds = self.state.configuration.server.stop_timeout
        sessions = self.sessions.normal()
        log.info(
            'stopping (%s): asking %s to log out within %s',
            why,
            counted(len(sessions), 'session'),
            counted(seconds, 'second'),
        )
        self.isns.deregister_all()
        self.listeners.close_all()
        self.workers.stopping = True
        for session in sessions:
            self.workers.send(session.worker, {'do': 'logout', 'seconds': seconds})
        for worker in self.workers.all():
            self.workers.retire(worker)
            has_session = worker.session is not None and worker.session.nexus is not None
            if worker.busy_since is not None and not has_session:
                self.workers.send(worker, END_ORDER)
        self._timer = self.loop.call_later(seconds if sessions else END_SECONDS, self._end_sessions)
        self.check()

    def _restart_timer(self, seconds, next_stage):
        self._timer.cancel()
        self._timer = self.loop.call_later(seconds, next_stage)

    def _end_sessions(self):
        self.stage = 'ending'
        for worker in self.workers.all():
            if worker.session is not None and worker.session.nexus is not None:
                self._report(
                    'session %d of %s with %s did not log out and is ended',
                    worker.session.tsih,
                    worker.session.initiator_name,
                    worker.session.nexus.target_name,
                )
                worker.session.ended_why = 'stopped'
            self.workers.send(worker, END_ORDER)
        self._restart_timer(END_SECONDS, self._kill_workers)

    def _kill_workers(self):
        self.stage = 'killing'
        for worker in self.workers.all():
            self.workers.kill(worker, 'targetd stops and it did not end')
        self._restart_timer(END_SECONDS, self._flush)

    def check(self):
        """Flush the units if no worker is left. Call after a worker was reaped."""
        if self.stage in ('asking', 'ending', 'killing') and all(
            worker.is_stuck for worker in self.workers.all()
        ):
            self._flush()

    def _flush(self):
        if self.stage in ('flushing', 'done') or self.isns.is_deregistering(self._flush):
            return
        self.stage = 'flushing'
        self._timer.cancel()
        self.units.flush_all(self._flushed)

    def _flushed(self, results):
        for unit, error in results:
            if unit.has_flush_timed_out:  # nothing learns its outcome any more
                self.units.replication.fail_unit(unit, 'flush failed: %s' % error.strerror)
            if error is not None:
                self._fail('unit %s could NOT be flushed: %s', unit.id, error.strerror)
            elif unit.failure:
                self._fail('unit %s has FAILED, and data may be lost: %s', unit.id, unit.failure)
            else:
                self._report('unit %s is flushed', unit.id)
        self.units.replication.save_unsaved(self._saved)

    def _saved(self):
        self.stage = 'done'
        for unit in self.units.replication.unsaved_units():
            self._fail(
                'the state of unit %s could NOT be saved in %s',
                unit.id,
                self.units.replication.state.path,
            )
        if self.failures:
            log.error('stopped, but not everything is durable (exit code %d)', self.exit_code)
        else:
            log.info('stopped')
        self.loop.stop()

    @property
    def exit_code(self):
        """The exit code of the server."""
        return EXIT_NOT_DURABLE if self.failures else EXIT_OK

    def _fail(self, text, *values):
        self.failures.append(text % values)
        self.report.append(text % values)
        log.error(text, *values)

    def _report(self, text, *values):
        self.report.append(text % values)
        log.info(text, *values)
