"""The master process: it wires the parts together and runs the event loop. Single-threaded; it never
parses a login's text and never waits for a medium.

     pending_connections --router--> workers --messages--> sessions (claims), units (changes), ...
        ^                               |
     listeners                       reaped --_on_death--> units, sessions, claims that wait, spares

Invariants: every listening socket is in `listeners`; every session is in `sessions` until its worker
is reaped, or idle; only `units` and `replication` change state that sessions share (ARCHITECTURE D3);
the configuration in force is `state.configuration`, which a reload replaces whole.
"""

import os
import resource
import signal
import time

from targetd import log
from targetd.config.words import counted
from targetd.master import feasible
from targetd.master.capture_links import Captures
from targetd.master.control.control import Control
from targetd.master.control.control_answers import ControlAnswers
from targetd.master.control.line_samples import LineSampling
from targetd.master.counting import Counting
from targetd.master.event_commands import EventCommands
from targetd.master.exporters import Exporters
from targetd.master.exports.exports import Exports
from targetd.master.exports.takeovers import Takeovers
from targetd.master.isns.client import IsnsClients
from targetd.master.latency_targets import LatencyTargets
from targetd.master.log_files import LogFiles
from targetd.master.logins.admission import Admission
from targetd.master.logins.authentication import Authentication
from targetd.master.logins.origins import Origins
from targetd.master.logins.pending import Limits, PendingConnections
from targetd.master.logins.portals import PortalListeners
from targetd.master.logins.routing import LoginRouter
from targetd.master.logins.sessions import Sessions
from targetd.master.logins.throttle import LoginThrottle
from targetd.master.processes.jobs import Jobs
from targetd.master.processes.loop import Loop
from targetd.master.processes.worker_messages import BadMessage, MessageHandlers
from targetd.master.processes.workers import Workers
from targetd.master.rate_limits import RateLimits
from targetd.master.reload import Reload
from targetd.master.server_state import ServerState
from targetd.master.service_notices import ServiceNotices
from targetd.master.state.history import History
from targetd.master.state.saver import Savers
from targetd.master.state.state_directory import StateDirectory
from targetd.master.statistics import Statistics
from targetd.master.stop import Stop
from targetd.master.units import transitions
from targetd.master.units.atomic_slots import AtomicWrites
from targetd.master.units.copy_guests import CopyGuests
from targetd.master.units.descriptions import Descriptions
from targetd.master.units.flushing import Flushes
from targetd.master.units.format_sanitize import FormatSanitize
from targetd.master.units.guards import Guards
from targetd.master.units.key_replacement import KeyReplacements
from targetd.master.units.logical_units import Units
from targetd.master.units.replication import Replication
from targetd.master.units.rod_tokens import RodTokens
from targetd.master.units.spin_down import SpinDown
from targetd.master.units.trimming import Trims
from targetd.master.upgrade.upgrade import Upgrade
from targetd.master.vault import seal_here
from targetd.store import opened_store
from targetd.worker import main as worker_main

MAXIMUM_PENDING = 1024  # connections that have not sent their login yet
LOGINS_IN_PROGRESS = 16  # workers beyond max-sessions, for logins in progress and discovery


def serve(channel, configuration):
    """Run as a worker, in a forked child. worker.main is imported before the fork: its memory is
    shared then, and the user of the workers may read no file."""
    worker_main.run_worker(channel, configuration)


class Master(object):
    """The master of one server.

    path: of the configuration file, or None; serve_worker(channel, configuration) runs in each
    worker; clock, fork: for tests; foreground: True if the log may go to standard error; vault: of a
    sealed configuration, None if it is not sealed yet.
    """

    def __init__(
        self,
        path,
        configuration,
        serve_worker=serve,
        clock=time.monotonic,
        fork=os.fork,
        foreground=True,
        vault=None,
    ):
        if vault is None:
            configuration, vault = seal_here(configuration)
        self.state = ServerState(path, configuration, vault)
        self.loop = Loop(clock)
        self.messages = MessageHandlers()
        self.workers = Workers(
            self.loop,
            lambda channel: serve_worker(channel, self.state.configuration),
            self._on_message,
            self._on_death,
            self._request_spares,
            fork,
        )
        self.workers.secrets = lambda: [key for key in opened_store.KEYS if key]
        self.workers.on_unkillable = self._on_unkillable
        self.jobs = Jobs(self.loop, fork)
        self.saver = Savers(self.loop, fork)
        self._is_forking = False  # set by fork_workers()
        self.pid_file = None  # set by daemon
        self._create_units(configuration)
        self._create_logins()
        self._create_administration(foreground)
        self._register_handlers()
        self.apply_server()

    def _create_units(self, configuration):
        self.admission = Admission(self.state, self._missing_stores)
        self.atomic_writes = AtomicWrites(self.jobs, self._on_repair_failed, self._on_repaired)
        self.replication = Replication(
            self.loop,
            self.workers.send,
            self.workers.kill,
            StateDirectory(configuration.server.state_dir),
            self.atomic_writes,
            Descriptions(self.loop, self.jobs),
            self.saver,
        )
        self.rod_tokens = RodTokens(self.replication)
        self.copy_guests = CopyGuests(self.replication, self.admission.map_for_copy)
        self.format_sanitize = FormatSanitize(
            self.replication,
            KeyReplacements(self.jobs, self.loop),
            self.workers,
            self._request_spares,
        )
        self.units = Units(
            self.replication,
            self.rod_tokens,
            self.copy_guests,
            self.format_sanitize,
            Flushes(self.jobs, self.replication.fail_medium),
        )
        self.units.guards = Guards(
            self.jobs, os.path.join(configuration.server.state_dir, 'guards')
        )
        self.format_sanitize.guards = self.units.guards
        self.units.trims = Trims(
            self.loop, self.jobs, self.units.by_id, self.rod_tokens, self.state
        )
        self.units.spin_down = SpinDown(self.loop, self.units, self.jobs)
        self.exports = Exports(self.loop, self.units, self.jobs)
        self.history = History(os.path.join(configuration.server.state_dir, 'history'), self.jobs)

    def _create_logins(self):
        self.sessions = Sessions(
            self.loop, self.admission, self._serve_session, self.workers.send, self.workers.kill
        )
        self.rate_limits = RateLimits(self.state, self.sessions, self.workers.send)
        self.exports.devices.targets = lambda: self.state.configuration.targets
        self.exports.workers_of = lambda name: [s.worker for s in self.sessions.of_target(name)]
        self.origins = Origins(self.loop, self.state, self.jobs)
        self.admission.evidence_of = self.origins.of_session
        self.admission.origins_now = self.origins.now
        self.throttle = LoginThrottle(self.loop.clock)
        self.authentication = Authentication(self.state, self.throttle, self.workers.send)
        self.pending_connections = PendingConnections(
            self.loop, self._on_login, self._limits(), self._proxies_of
        )
        self.router = LoginRouter(
            self.loop,
            self.state,
            self.workers,
            self.sessions,
            self.authentication,
            self.pending_connections,
            self._request_spares,
        )
        self.router.origins = self.origins
        self.listeners = PortalListeners(
            self.loop, self.pending_connections, self._on_portal_opened
        )
        self.portals = self.listeners.sockets
        self.isns = IsnsClients(self.loop, self.portals)

    def _create_administration(self, foreground):
        self.log_files = LogFiles(self.state, self.loop, self.jobs, foreground)
        self.stop = Stop(
            loop=self.loop,
            state=self.state,
            workers=self.workers,
            sessions=self.sessions,
            units=self.units,
            listeners=self.listeners,
            isns=self.isns,
        )
        self.captures = Captures(self.workers, self.sessions, self.jobs, self.state)
        self.sessions.hand_over = self.router.hand_over = self.captures.hand_over
        self.counting = Counting(self.loop, self.workers, self.units)
        self.units.statistics = Statistics(self.counting)
        self.latency_targets = LatencyTargets(
            self.loop, self.jobs, self.state, self.units, self.counting, self.rate_limits
        )
        self.line_sampling = LineSampling(self.loop, self.workers.send)
        self.reload = Reload(
            loop=self.loop,
            state=self.state,
            workers=self.workers,
            sessions=self.sessions,
            units=self.units,
            exports=self.exports,
            jobs=self.jobs,
            listeners=self.listeners,
            isns=self.isns,
            log_files=self.log_files,
            apply_server=self.apply_server,
            history=self.history,
        )
        self.reload.when_known = self.origins.when_known
        self.takeovers = Takeovers(
            self.loop,
            self.exports,
            self.sessions,
            self.reload.replacements,
            lambda: self.state.configuration,
        )
        self.upgrade = Upgrade(self)
        self.answers = ControlAnswers(
            loop=self.loop,
            state=self.state,
            workers=self.workers,
            sessions=self.sessions,
            units=self.units,
            exports=self.exports,
            listeners=self.listeners,
            isns=self.isns,
            log_files=self.log_files,
            reload=self.reload,
            stop=self.stop,
            counting=self.counting,
            line_sampling=self.line_sampling,
            history=self.history,
            upgrade=self.upgrade,
            captures=self.captures,
            rate_limits=self.rate_limits,
            takeovers=self.takeovers,
        )
        self.control = Control(self.loop, self.answers.answer, self.state)
        self.exporters = Exporters(self.loop, self.control, lambda: self.workers.credentials)
        self.event_commands = EventCommands(self.jobs, self.state)
        self.notices = ServiceNotices(self.loop, self.status_line)
        self.reload.on_begin, self.stop.on_begin = self.notices.reload_began, self.notices.stopping

    def _register_handlers(self):
        """The kinds of message that workers send (channel.py), and the part that handles each."""
        requests = dict.fromkeys(transitions.KINDS, self.units.on_request)
        requests.update(dict.fromkeys(self.rod_tokens.requests, self.units.on_request))
        requests.update(
            {
                'claim': self.router.on_claim,
                'challenge': self.authentication.on_challenge,
                'authenticate': self.authentication.on_authenticate,
                'leave': self.units.log_out_session,
                'fence': self.units.hanging.on_fence,
                'copy-reach': self.units.on_request,
                'guard': self.units.on_request,
                'wake': self.units.on_request,
                'spin': self.units.on_request,
                'statistics': self.units.on_request,
                'refresh': self.units.on_request,
                'reset': self._on_reset,
            }
        )
        self.messages.register_requests(requests)
        self.messages.register_reports(
            {
                'ready': _handled_by_workers,
                'log': self.log_files.on_log,
                'idle': self._on_idle,
                'ended': self._on_ended,
                'refused': self.router.on_refused,
                'closed': self.sessions.on_closed,
                'continues': self.sessions.on_continues,
                'acknowledge': self.replication.on_acknowledge,
                'failed': self.replication.on_failed,
                'note': self.replication.on_note,
                'attention': self.exports.devices.on_attention,
                'progress': self.format_sanitize.on_progress,
                'operated': self.format_sanitize.on_operated,
                'copy-left': self.copy_guests.on_copy_left,
                'counted': self.counting.on_counted,
                'line': self.line_sampling.on_line,
                'black-hole': self.sessions.on_black_hole,
                'ring': self.captures.on_ring,
                'hanging': self.units.hanging.on_hanging,
                'fence-over': self.units.hanging.on_fence_over,
            }
        )

    def _limits(self):
        server = self.state.configuration.server
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        pending = (
            MAXIMUM_PENDING
            if descriptors == resource.RLIM_INFINITY
            else min(MAXIMUM_PENDING, max(descriptors // 2, 16))
        )
        return Limits(server.login_timeout, pending, server.max_connections_per_address)

    def apply_server(self):
        """Apply the [server] section of the configuration in force to the parts."""
        server = self.state.configuration.server
        self.pending_connections.limits = self._limits()
        self.control.group_access = server.control_group_access
        self.throttle.allowed = server.failures_before_delay
        self.sessions.limit = server.max_sessions
        self.exports.watch.set_interval(server.media_check_interval)
        self.exports.health.reconsider()
        self.exports.devices.reconsider()
        self.rate_limits.apply()
        self.latency_targets.apply()
        self.units.spin_down.reconsider()
        self.origins.apply()
        if self._is_forking:
            self.origins.resolve_now()
            self.exporters.apply(server)
        self.workers.sandbox = feasible.sandbox_rules(self.state.configuration)
        self.workers.wanted_spares = server.spare_workers
        self.workers.limit = server.max_sessions + server.spare_workers + LOGINS_IN_PROGRESS

    # -- start and end -----------------------------------------------------------------------------

    def start(self):
        """Open the stores, the control socket and, last, the portals, so that an initiator that logs
        in again does not get 'not found'.

        Raises PortalError, TargetdError; then nothing is open.
        """
        try:
            # first, because a signal may arrive as soon as another process can see this one
            self.watch_signals()
            self.event_commands.listen()
            self.workers.credentials = feasible.credentials(self.state.configuration.server.user)
            self.replication.state.lock()
            self.exports.start(self.state.configuration)
            self.control.open(self.state.configuration.server.control_socket)
            self.listeners.open_configured(self.state.configuration)
            self.isns.apply_configuration(self.state.configuration)
        except BaseException:
            self.close()
            raise

    def watch_signals(self):
        """Handle the signals of this process from now on."""
        self.loop.on_signal(signal.SIGCHLD, self.reap)
        self.loop.on_signal(signal.SIGTERM, lambda: self.stop.start_stop('SIGTERM'))
        self.loop.on_signal(signal.SIGINT, lambda: self.stop.start_stop('SIGINT'))
        self.loop.on_signal(signal.SIGHUP, self.reload.on_signal)
        self.loop.on_signal(signal.SIGUSR1, self.log_files.reopen_logs)
        self.loop.on_signal(signal.SIGUSR2, self.upgrade.on_signal)

    def run(self):
        """Serve until stopped."""
        self.fork_workers()
        self.loop.run()

    def fork_workers(self):
        """Start to fork workers. No worker is forked before, because it would not have the standard
        input and output that the server keeps."""
        self._is_forking = True
        self._request_spares()
        self.origins.resolve_now()
        self.exporters.apply(self.state.configuration.server)
        self.event_commands.begin()
        self.takeovers.watch()

    def pause_workers(self):
        """Fork and assign no workers until resume_workers(): logins wait."""
        self._is_forking = False
        self.workers.pause()

    def resume_workers(self):
        """The end of pause_workers()."""
        self._is_forking = True
        self.workers.resume()
        self._request_spares()

    def close(self):
        """Close and end everything, after a stop or a start that failed."""
        self.exporters.close()
        self.isns.close()
        self.origins.close()
        self.listeners.close_all()
        self.router.delayed_answers.close_all()
        self.workers.close()
        self.control.close()
        self.exports.close()
        self.takeovers.close()
        self.units.spin_down.close()
        self.jobs.close()
        self.units.close_all()
        self.saver.close()
        self.replication.state.unlock()
        self.state.vault.close()
        self.latency_targets.close()
        self.rate_limits.close()
        self.loop.close()

    # -- workers -----------------------------------------------------------------------------------

    def reap(self):
        """Reap the children that have ended."""
        self.workers.reap()
        self.jobs.reap()
        self.saver.reap()
        self.log_files.reap()
        self.exporters.reap()

    def _request_spares(self):
        """There may be a spare, or there is work for one: assign the spares, logins first, and fork
        those that are missing."""
        if not self._is_forking:
            return
        logins = self.router.assign_spares()
        self.format_sanitize.assign_workers()
        self.workers.waiting = logins + self.format_sanitize.spares_wanted
        self.workers.keep_spares()

    def _serve_session(self, worker, nexus):
        """As Units.serve_session; the worker has the limits before the units."""
        self.rate_limits.serve(worker, nexus)
        return self.units.serve_session(worker, nexus)

    def _on_login(self, pending):
        self.origins.when_known(lambda: self.router.route_login(pending))

    def _proxies_of(self, tag):
        group = self.state.configuration.portal_groups.get(tag)
        return group.proxy_protocol_from if group is not None else ()

    def _on_portal_opened(self):
        self.isns.apply_configuration(self.state.configuration)

    def status_line(self):
        """What `systemctl status` shows."""
        waiting = self.waiting()
        return '%s, %s, %s%s' % (
            counted(len(self.state.configuration.targets), 'target'),
            counted(len(self.units.by_id), 'LUN'),
            counted(len(self.sessions.normal()), 'session'),
            '; not served yet: %s' % '; '.join(waiting) if waiting else '',
        )

    def waiting(self):
        """Sentences about the portals and LUNs of the configuration that are not served yet."""
        return sorted(self.listeners.waiting.values()) + self.exports.missing_sentences()

    def _missing_stores(self, target_name, lun_map):
        return self.exports.why_not_ready(target_name, lun_map)

    def _on_message(self, worker, message):
        try:
            self.messages.dispatch_message(worker, message)
        except BadMessage as e:
            self.workers.distrust(worker, 'an invalid message', str(e))

    def _on_reset(self, worker, message):
        self.units.on_request(worker, message)
        if message.get('function') == 'target-cold-reset':
            self.sessions.reset_target(worker)

    def _on_idle(self, worker, message):
        if worker.session is not None:
            self._session_over(worker, str(message.get('why') or ''))

    def _on_ended(self, worker, message):
        """The session is over and the worker exits. If commands hang, it is gone only when they have
        returned; their units are fenced, and nothing else has to wait for them."""
        worker.is_quiet = message.get('quiet', True)
        if message.get('hangs'):
            self._end_stuck(worker, message.get('why', ''))

    def _on_unkillable(self, worker):
        log.error(
            'worker %d was killed and does not end: a medium does not answer it; commands for its '
            'units end with BUSY until it does',
            worker.pid,
        )
        self.units.hanging.fence_unkillable(
            worker, lambda: self._end_stuck(worker, worker.ending or '')
        )

    def _end_stuck(self, worker, why):
        if not worker.is_stuck:
            worker.is_stuck, worker.peers = True, []
            worker.in_doubt = self.units.may_be_flushing(worker)
            self._session_over(worker, why)

    def _on_death(self, worker, _status):
        self.log_files.forget_worker(worker)
        self.format_sanitize.on_worker_death(worker)
        if not (worker.is_stuck or worker.is_quiet):
            worker.in_doubt = self.units.may_be_flushing(worker)
        worker.is_stuck = False
        self.units.flush_in_doubt(worker.in_doubt)
        self._session_over(worker, worker.ended_cleanly or worker.ending or '')
        self.units.hanging.worker_gone(worker)

    def _session_over(self, worker, why):
        """The worker is dead or stuck, or a spare again after a logout."""
        session = worker.session
        self.counting.session_over(worker)
        self.line_sampling.session_over(worker)
        self.rate_limits.session_over(worker)
        self.units.end_session(worker, worker.is_stuck)
        self.sessions.remove_session_of(worker)
        if session is not None and session.nexus is not None:
            log.info(
                'session %d of %s with %s is over: %s',
                session.tsih,
                session.initiator_name,
                session.nexus.target_name,
                why or session.ended_why or 'its worker died',
                origin=session.peers[min(session.peers)][0] if session.peers else '',
            )
        self.reload.check()
        self.sessions.retry_waiting_claims()
        self.stop.check()

    # -- repairs of incomplete atomic writes -------------------------------------------------------

    def _on_repair_failed(self, unit, why):
        self.replication.fail_unit(unit, why)

    def _on_repaired(self):
        """An incomplete atomic write was written back: continue what waited for that."""
        self.format_sanitize.assign_workers()
        self.reload.check()


def _handled_by_workers(worker, message):
    """Workers acts on this report after its dispatch."""
