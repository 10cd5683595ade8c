"""The ordered stop: no new login, initiators asked to log out, a bounded wait, the rest ended,
everything flushed.

serving --SIGTERM--> asking to log out --all gone, or stop-timeout, or a second signal--> ending
        --all gone, or END_SECONDS, or a further signal--> killing --all reaped--> flushing --done, or time over--> gone
"""

from targetd import log

END_SECONDS = 5.0  # what a worker may take to end, after its initiator had its time


class Stop(object):
    """The stop of one Master. `report`: what became of sessions and units, plain sentences, when it
    is done."""

    def __init__(self, master):
        self.master = master
        self.stage = None  # None, 'asking', 'ending', 'killing', 'done'
        self.report = []
        self._timer = None

    @property
    def is_stopping(self):
        """True from start_stop() on."""
        return self.stage is not None

    def start_stop(self, why):
        """Start the stop, or hurry it if it has started."""
        if self.stage is None:
            self._ask(why)
        elif self.stage == 'asking':
            log.info('%s: not waiting any longer', why)
            self._end()
        elif self.stage == 'ending':
            self._kill()

    def _ask(self, why):
        master = self.master
        self.stage = 'asking'
        seconds = master.configuration.server.stop_timeout
        sessions = [s for s in master.sessions.all() if s.nexus is not None]
        log.info(
            'stopping (%s): %d sessions are asked to log out within %d seconds',
            why,
            len(sessions),
            seconds,
        )
        master.isns.deregister_all()
        master.portals.clear()
        master.pending_connections.close_all()
        master.workers.stopping = True
        for session in sessions:
            master.workers.send(session.worker, {'do': 'logout', 'seconds': seconds})
        for worker in master.workers.all():
            master.workers.retire(worker)
            if worker.busy_since is not None and (
                worker.session is None or worker.session.nexus is None
            ):
                master.workers.send(
                    worker, {'do': 'end', 'why': 'targetd stops', 'reason': 'stopped'}
                )
        self._timer = master.loop.call_later(seconds if sessions else END_SECONDS, self._end)
        self.check()

    def _next_in(self, seconds, step):
        self._timer.cancel()
        self._timer = self.master.loop.call_later(seconds, step)

    def _end(self):
        master = self.master
        self.stage = 'ending'
        for worker in master.workers.all():
            if worker.session is not None and worker.session.nexus is not None:
                self._say(
                    'session %d of %s with %s did not log out and is ended',
                    worker.session.tsih,
                    worker.session.initiator_name,
                    worker.session.nexus.target_name,
                )
                worker.session.ended_why = 'stopped'
            master.workers.send(worker, {'do': 'end', 'why': 'targetd stops', 'reason': 'stopped'})
        self._next_in(END_SECONDS, self._kill)

    def _kill(self):
        self.stage = 'killing'
        for worker in self.master.workers.all():
            self.master.workers.kill(worker, 'targetd stops and it did not end')
        self._next_in(END_SECONDS, self._finish)

    def check(self):
        """After a death: when nobody is left, flush and be gone."""
        if self.stage in ('asking', 'ending', 'killing') and not self.master.workers.by_pid:
            self._finish()

    def _finish(self):
        if self.stage in ('flushing', 'done') or self.master.isns.is_deregistering(self._finish):
            return
        self.stage = 'flushing'
        self._timer.cancel()
        self.master.units.flush_all(self.master.jobs, self._flushed)

    def _flushed(self, results):
        self.stage = 'done'
        for unit, why in results:
            if not why:
                self._say('unit %s is flushed', unit.id)
            else:
                log.error('unit %s could NOT be flushed: %s', unit.id, why)
                self.report.append('unit %s could NOT be flushed: %s' % (unit.id, why))
        log.info('stopped')
        self.master.loop.stop()

    def _say(self, text, *values):
        self.report.append(text % values)
        log.info(text, *values)
