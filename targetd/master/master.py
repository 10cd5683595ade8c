"""The master: one poll loop that wires the parts together. Single-threaded; never parses a login,
never touches a medium.

     arrivals --route--> workers --on_message--> sessions (claims), units (changes), control
        ^                   |                        |
     portals             reaped --on_death--> units.end_session, sessions.leave, waiting claims go on, a new spare

Invariants: every descriptor that listens is in arrivals; every session is in sessions until its
worker is reaped; shared state changes in units only; the configuration in force is `configuration`,
replaced whole by reload.
"""

import os
import resource
import signal
import time
from collections import Counter, deque

from targetd import log
from targetd.config import acl
from targetd.errors import PortalError, TargetdError
from targetd.iscsi import const
from targetd.master.control import Control
from targetd.master.exports.exports import Exports
from targetd.master.isns.client import IsnsClients
from targetd.master.logins import sessions as registry
from targetd.master.logins.pending import Limits, PendingConnections
from targetd.master.logins.portals import open_portal, shown
from targetd.master.logins.sessions import Refused, Sessions
from targetd.master.logins.throttle import LOGINS_PER_ORIGIN, LoginThrottle, origin_of
from targetd.master.processes import child
from targetd.master.processes.jobs import Jobs
from targetd.master.processes.loop import Loop
from targetd.master.processes.workers import Workers
from targetd.master.reload import Reload
from targetd.master.state.state_directory import StateDirectory
from targetd.master.stop import Stop
from targetd.master.units.atomic_slots import AtomicWrites
from targetd.master.units.copy_guests import CopyGuests
from targetd.master.units.format_sanitize import FormatSanitize
from targetd.master.units.logical_units import Units
from targetd.master.units.replication import Replication
from targetd.master.units.rod_tokens import RodTokens
from targetd.worker import main as worker_main

MAXIMUM_PENDING = 1024  # connections that have not sent their login yet
LOGINS_IN_PROGRESS = 16  # workers beyond max-sessions: for logins that are under way, and discovery
# connections that a session's worker may have beyond those that belong to the session,
JOINS_IN_PROGRESS = 32
# and those from one origin: whoever guesses a TSIH keeps nobody else from joining
JOINS_PER_ORIGIN = 8
# when the server is full, a login or discovery that takes longer gives way to others
PATIENCE_SECONDS = 5.0


def serve(channel, configuration):
    """What a forked child does: be a worker. (Loaded before the fork: its memory is shared, and its
    user may read no file.)"""
    worker_main.run_worker(channel, configuration)


class Master(object):
    """`path`: the configuration file; `serve_worker(channel, configuration)` runs in each worker; `clock`: for tests."""

    def __init__(
        self,
        path,
        configuration,
        serve_worker=serve,
        clock=time.monotonic,
        fork=os.fork,
        foreground=True,
    ):
        self.path = path
        self.foreground = foreground
        self.configuration = configuration
        self.started = time.time()
        self.loop = Loop(clock)
        self.workers = Workers(
            self.loop,
            lambda channel: serve_worker(channel, self.configuration),
            self._on_message,
            self._on_death,
            self._on_spare,
            fork,
        )
        self.jobs = Jobs(self.loop, fork)
        self.atomic_writes = AtomicWrites(self.jobs, self._on_repair_failed, self._on_repaired)
        self.replication = Replication(
            self.loop,
            self.workers.send,
            self.workers.kill,
            StateDirectory(configuration.server.state_dir),
            self.atomic_writes,
        )
        self.copy_guests = CopyGuests(self.replication, self._may_log_in)
        self.format_sanitize = FormatSanitize(self.replication, self.workers, self._request_spare)
        self.units = Units(
            self.replication, RodTokens(self.replication), self.copy_guests, self.format_sanitize
        )
        self.exports = Exports(self.loop, self.units, self.jobs)
        self.sessions = Sessions(
            self.loop, self._admit, self._units_for, self.workers.send, self._end, self.workers.kill
        )
        self.throttle = LoginThrottle(self.loop.clock)
        self.pending_connections = PendingConnections(
            self.loop, self._route, self._held, self._limits()
        )
        self.portals = {}  # (tag, address, port) as configured -> listening socket
        self.isns = IsnsClients(self.loop, self.portals)
        self.control = Control(self)
        self.reload = Reload(self)
        self.stop = Stop(self)
        self._is_running = False
        self._waiting = deque()  # PendingConnection that wait for a spare
        self.apply_server()

    def _limits(self):
        server = self.configuration.server
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        pending = (
            MAXIMUM_PENDING
            if descriptors == resource.RLIM_INFINITY
            else min(MAXIMUM_PENDING, max(descriptors // 2, 16))
        )
        return Limits(server.login_timeout, pending, server.max_connections_per_address)

    def apply_server(self):
        """Obey the [server] section of the configuration in force."""
        server = self.configuration.server
        self.pending_connections.limits = self._limits()
        self.throttle.allowed = server.failures_before_delay
        self.sessions.limit = server.max_sessions
        self.workers.wanted_spares = server.spare_workers
        self.workers.limit = server.max_sessions + server.spare_workers + LOGINS_IN_PROGRESS

    # -- start -------------------------------------------------------------------------------------------------------

    def start(self):
        """Open stores, control socket and, last, portals, so that nobody who comes back is told
        'not found'.

        Raises PortalError, TargetdError; then nothing is open."""
        try:
            # before anybody can see that we serve: what comes now is obeyed once we do
            self._heed_signals()
            self.workers.credentials = credentials(self.configuration.server.user)
            self.exports.start(self.configuration)
            self.control.open(self.configuration.server.control_socket)
            self.open_portals()
            self.isns.apply_configuration(self.configuration)
        except BaseException:
            self.close()
            raise

    def _heed_signals(self):
        self.loop.on_signal(signal.SIGCHLD, self._reap)
        self.loop.on_signal(signal.SIGTERM, lambda: self.stop.start_stop('SIGTERM'))
        self.loop.on_signal(signal.SIGINT, lambda: self.stop.start_stop('SIGINT'))
        self.loop.on_signal(signal.SIGHUP, self.reload.on_signal)
        self.loop.on_signal(signal.SIGUSR1, self.reopen_logs)

    def open_portals(self):
        """Open every configured portal. Raises PortalError; but '[::]' on a host without IPv6 is
        only warned about, if another portal serves."""
        errors = []
        for tag, group in self.configuration.portal_groups.items():
            for address, port in group.portals:
                try:
                    self.open_portal(tag, address, port)
                except PortalError as e:
                    errors.append(e)
        for error in errors:
            if not (self.portals and error.is_family_absent):
                raise error
            log.warning('%s', error)

    def open_portal(self, tag, address, port):
        """Listen there, for this portal group. Raises PortalError."""
        if (tag, address, port) not in self.portals:
            sock = open_portal(address, port)
            self.portals[tag, address, port] = sock
            self.pending_connections.listen(sock, tag)

    def close_portal(self, tag, address, port):
        """Listen there no more; sessions that came through it go on."""
        sock = self.portals.pop((tag, address, port), None)
        if sock is not None:
            self.pending_connections.unlisten(sock)

    def run(self):
        """Until stopped. Workers are forked only now: they inherit standard input and output as
        they are to stay."""
        self._is_running = True
        self._on_spare()
        self.loop.run()

    def close(self):
        """Let go of everything, in whatever state; the end."""
        self.isns.close()
        self.portals.clear()
        self.pending_connections.close_all()
        self.workers.close()
        self.control.close()
        self.exports.close()
        self.jobs.close()
        self.units.close_all()
        self.loop.close()

    def _reap(self):
        self.workers.reap()
        self.jobs.reap()

    # -- arriving connections ----------------------------------------------------------------------------------------

    def _held(self, address):
        return sum(w.peers.count(address) for w in self.workers.all())

    def _route(self, pending):
        """A login is there: whose turn is it?"""
        seconds = self.throttle.reserve_delay(pending.peer[0])
        if seconds is None:
            self.pending_connections.refuse(
                pending,
                const.OUT_OF_RESOURCES,
                'too many logins of this address wait, because too many failed',
            )
        elif seconds:
            self.pending_connections.hold(pending, seconds, self._take_turn)
        else:
            self._take_turn(pending)

    def _take_turn(self, pending):
        if pending.header.tsih:
            owner = self.sessions.owner(pending.header.tsih)
            if (
                owner is not None
                and owner.session.ended_why is None
                and owner.session.nexus is not None
            ):
                if self._too_many_join(owner, pending.origin):
                    self.pending_connections.refuse(
                        pending,
                        const.OUT_OF_RESOURCES,
                        'so many connections of session %d are logging in already'
                        % pending.header.tsih,
                    )
                else:
                    self._give(pending, owner, 'join')
                return
        self._waiting.append(pending)
        self._on_spare()

    @staticmethod
    def _too_many_join(owner, origin):
        """Are so many connections of its session logging in already, or so many from there?"""
        joining = Counter(origin_of(address) for address in owner.peers)
        joining.subtract(origin_of(address) for address, _ in owner.session.peers.values())
        return sum(joining.values()) >= JOINS_IN_PROGRESS or joining[origin] >= JOINS_PER_ORIGIN

    def _on_spare(self):
        """Give spares to the logins that wait, in order; but those whose origin has enough logins
        under way wait on."""
        under_way = Counter(origin_of(worker.peers[0]) for worker in self._logging_in())
        waiting, self._waiting, for_spare = self._waiting, deque(), 0
        for pending in waiting:
            if pending.socket is None:
                continue
            if under_way[pending.origin] >= LOGINS_PER_ORIGIN:
                self._waiting.append(pending)
            elif self._has_room(for_spare) or self._make_room(pending.origin, under_way):
                under_way[pending.origin] += 1
                worker = self.workers.take_spare()
                if worker is not None:
                    self._give(pending, worker, 'serve')
                else:
                    self._waiting.append(pending)
                    for_spare += 1
            else:
                self.pending_connections.refuse(
                    pending,
                    const.OUT_OF_RESOURCES,
                    'max-sessions (%d) and the logins in progress fill the server'
                    % self.configuration.server.max_sessions,
                )
        self.format_sanitize.assign_workers()
        self.workers.waiting = for_spare + self.format_sanitize.spares_wanted
        self.workers.keep_spares()

    def _request_spare(self):
        """A formatting or sanitizing operation waits for a spare. No worker is forked before run()."""
        if self._is_running:
            self._on_spare()

    def _on_repair_failed(self, unit, why):
        self.replication.fail_unit(unit, why)

    def _on_repaired(self):
        """An incomplete atomic write was written back: continue what waited for that."""
        self.format_sanitize.assign_workers()
        self.reload.check()

    def _logging_in(self):
        """The workers with a login under way or a discovery session."""
        return [
            worker
            for worker in self.workers.busy()
            if worker.peers
            and worker.ending is None
            and (worker.session is None or worker.session.nexus is None)
        ]

    def _has_room(self, for_spare):
        return (
            len(self.workers.busy()) + for_spare
            < self.workers.limit - self.configuration.server.spare_workers
        )

    def _make_room(self, origin, under_way):
        """The server is full: the oldest login or discovery of the origin that has the most gives
        way, if that is fairer."""
        before = self.loop.clock() - PATIENCE_SECONDS
        slow = [worker for worker in self._logging_in() if worker.busy_since <= before]
        if not slow:
            return False
        victim = max(
            slow, key=lambda worker: (under_way[origin_of(worker.peers[0])], -worker.busy_since)
        )
        loser = origin_of(victim.peers[0])
        if under_way[loser] <= under_way[origin] + 1:
            return False
        under_way[loser] -= 1
        self.workers.kill(victim, 'its login took long, and others wait for theirs')
        return True

    def _give(self, pending, worker, order):
        sock = self.pending_connections.hand_over(pending)
        worker.peers.append(pending.peer[0])
        log.debug('%s: connection given to worker %d (%s)', shown(*pending.peer), worker.pid, order)
        self.workers.send(
            worker, {'do': order, 'connection': pending.description()}, [sock.fileno()]
        )
        sock.close()

    # -- what workers say --------------------------------------------------------------------------------------------

    def _on_message(self, worker, message):
        if message.get('ask') == 'claim':
            self.sessions.process_claim(worker, message)
            self._note_success(worker, message)
            if self._waiting and worker.session is not None:
                self._on_spare()  # one login of its origin less is under way
        elif message.get('ask') == 'leave':
            self.units.log_out_session(worker, message)
        elif 'ask' in message:
            self.units.on_request(worker, message)
            if message.get('function') == 'target-cold-reset':
                self._cold_reset(worker)
        else:
            told = TOLD.get(message.get('report'))
            if told is not None:
                told(self, worker, message)

    def _told_idle(self, worker, message):
        if worker.session is not None:
            self._session_over(worker, str(message.get('why') or ''))

    def _told_refused(self, worker, message):
        peer = message.get('peer')
        peer = (
            peer
            if isinstance(peer, list) and len(peer) == 2 and isinstance(peer[1], int)
            else ['?', 0]
        )
        status = None
        if isinstance(message.get('status_class'), int) and isinstance(
            message.get('status_detail'), int
        ):
            status = (message['status_class'] & 0xFF, message['status_detail'] & 0xFF)
        self.sessions.note_refusal(
            str(message.get('initiator_name') or ''),
            str(message.get('target_name') or ''),
            [str(peer[0]), peer[1]],
            str(message.get('why') or 'no reason given'),
            status,
        )

        if status == const.AUTHENTICATION_FAILURE and peer[0] in worker.peers:
            count, seconds = self.throttle.note_failure(peer[0])
            # etc/fail2ban/filter.d/targetd.conf matches this line; what an initiator says of itself
            # does not stand in it
            log.warning(
                'authentication failed from %s port %d, %d in a row%s',
                peer[0],
                peer[1],
                count,
                '; the next login from there waits %d s' % seconds if seconds else '',
            )

    def _note_success(self, worker, claim):
        """A worker makes a claim when the initiator has proved itself, where it has to."""
        session, peer = claim.get('session'), claim.get('peer')
        if (
            isinstance(session, dict)
            and session.get('account')
            and isinstance(peer, list)
            and peer
            and peer[0] in worker.peers
        ):
            self.throttle.note_success(peer[0])

    def _told_closed(self, worker, message):
        """A connection of a session that goes on is over, or did not come about."""
        peer, session, cid = message.get('peer'), worker.session, message.get('cid')
        if isinstance(peer, list) and peer and peer[0] in worker.peers:
            worker.peers.remove(peer[0])
        if session is not None and isinstance(cid, int) and session.peers.get(cid) == peer:
            del session.peers[cid]  # unless another connection has taken its place

    def _told_acknowledge(self, worker, message):
        self.replication.on_acknowledge(worker, message)

    def _told_progress(self, worker, message):
        self.format_sanitize.on_progress(worker, message)

    def _told_operated(self, worker, message):
        self.format_sanitize.on_operated(worker, message)

    def _told_note(self, worker, message):
        self.replication.on_note(worker, message)

    def _told_failed(self, worker, message):
        self.replication.on_failed(worker, message)

    def _told_copy_left(self, worker, message):
        self.copy_guests.on_copy_left(worker, message)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _admit(self, claim, target_name):
        """Raise Refused unless the configuration in force wants this session."""
        configuration, session = self.configuration, claim['session']
        if self.stop.is_stopping:
            raise Refused(const.SERVICE_UNAVAILABLE, 'targetd is being stopped')
        address = claim['peer'][0]
        if not target_name:
            refusal = acl.discovery_refusal(configuration.server, address)
            if refusal:
                raise Refused(const.AUTHORIZATION_FAILURE, refusal)
            return
        target = configuration.targets.get(target_name)
        if target is None:
            raise Refused(const.NOT_FOUND, 'there is no target %s' % target_name)
        if session['group'] not in target.portal_groups:
            raise Refused(
                const.NOT_FOUND,
                'target %s is not reached through portal group %d'
                % (target.name, session['group']),
            )
        refusal = acl.refusal(target, session['initiator_name'], address)
        if refusal:
            raise Refused(const.AUTHORIZATION_FAILURE, refusal)
        self._admit_to(target, session)

    def _admit_to(self, target, session):
        if target.state == 'offline':
            raise Refused(const.SERVICE_UNAVAILABLE, 'target %s has state = offline' % target.name)
        if target.redirect is not None:  # the worker was forked before the reload that says so
            raise Refused(
                const.SERVICE_UNAVAILABLE, 'target %s is served elsewhere now' % target.name
            )
        if target.name in self.reload.changing:
            raise Refused(
                const.SERVICE_UNAVAILABLE,
                'target %s is being changed; its old sessions log out first' % target.name,
            )
        missing = self.exports.why_unavailable(target.name)
        if missing:
            raise Refused(
                const.SERVICE_UNAVAILABLE, 'target %s is not ready: %s' % (target.name, missing)
            )
        mine = (session['initiator_name'], session['isid'], session['group'])
        others = [
            s
            for s in self.sessions.of_target(target.name)
            if (s.initiator_name, s.nexus.isid, s.group) != mine
        ]
        if target.max_sessions and len(others) >= target.max_sessions:
            raise Refused(
                const.OUT_OF_RESOURCES,
                'max-sessions (%d) of target %s is reached' % (target.max_sessions, target.name),
            )

    def _units_for(self, session):
        target = self.configuration.targets.get(session.nexus.target_name)
        session.proved = (
            [account for account in target.accounts if account[0] == session.account]
            if target
            else []
        )
        return self.units.serve_session(session.worker, session.nexus)

    def _may_log_in(self, worker, target_name):
        """May the initiator of the worker's session log in to this target too, as it is, with what
        it has proved?"""
        session, target = worker.session, self.configuration.targets.get(target_name)
        if (
            session is None
            or session.ended_why is not None
            or target is None
            or self.stop.is_stopping
        ):
            return False
        if (
            target.state == 'offline'
            or target.redirect is not None
            or target_name in self.reload.changing
        ):
            return False
        if session.group not in target.portal_groups or not session.peers:
            return False
        if target.accounts and not set(session.proved) & set(target.accounts):
            return False
        return not any(
            acl.refusal(target, session.initiator_name, peer[0]) for peer in session.peers.values()
        )

    def _end(self, worker, why, reason):
        if worker.session is not None and worker.session.ended_why is None:
            worker.session.ended_why = reason
        self.workers.send(worker, {'do': 'end', 'why': why, 'reason': reason})

    def end_session(self, session, why, reason):
        """End it now; its worker exits, and is killed if it does not."""
        worker = session.worker
        self._end(worker, why, reason)
        self.loop.call_later(
            registry.REINSTATEMENT_SECONDS,
            lambda: (
                worker.session is session
                and self.workers.kill(worker, 'it was told to end: ' + why)
            ),
        )

    def logout_session(self, session, seconds, why, reason='administrator'):
        """Ask the initiator to log out; end the session if it has not done so when the seconds are
        over."""
        worker = session.worker
        self.workers.send(worker, {'do': 'logout', 'seconds': seconds})
        self.loop.call_later(
            seconds,
            lambda: (
                worker.session is session
                and session.ended_why is None
                and self.end_session(session, why, reason)
            ),
        )

    def _cold_reset(self, worker):
        """TARGET COLD RESET ends every session of the target (RFC 7143 11.5.1), the asking one
        last."""
        session = worker.session
        if session is None or session.nexus is None:
            return
        log.warning(
            '%s resets target %s; its sessions end',
            session.initiator_name,
            session.nexus.target_name,
        )
        for other in self.sessions.of_target(session.nexus.target_name):
            if other is not session:
                self.end_session(
                    other,
                    'the target was reset by %s' % session.initiator_name,
                    'target-cold-reset',
                )

    def _on_death(self, worker, status):
        self.format_sanitize.on_worker_death(worker)
        self._session_over(worker, worker.ended_cleanly or worker.ending or '')

    def _session_over(self, worker, why):
        """The worker serves its session no more: it is dead, or, after a logout, a spare again."""
        session = worker.session
        self.units.end_session(worker)
        self.sessions.leave(worker)
        if session is not None and session.nexus is not None:
            log.info(
                'session %d of %s with %s is over: %s',
                session.tsih,
                session.initiator_name,
                session.nexus.target_name,
                why or session.ended_why or 'its worker died',
            )
        self.reload.check()
        self.sessions.retry_waiting_claims()
        self.stop.check()

    # -- logs --------------------------------------------------------------------------------------------------------

    def start_log(self):
        """Log where the configuration in force says; in the foreground syslog is left for stderr.
        Complains if it cannot."""
        try:
            begin_log(self.configuration.server, self.foreground)
        except OSError as e:
            log.error(
                'the log cannot be written to %s: %s', self.configuration.server.log, e.strerror
            )

    def reopen_logs(self):
        """After the log file was rotated: the master opens the new one, the workers get its
        descriptor. Returns a complaint, or ''."""
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


def credentials(user):
    """What a root master's workers become (child.credentials_of), else None. Raises TargetdError if
    nobody is called so."""
    if os.geteuid() != 0 or not user:
        return None
    try:
        return child.credentials_of(user)
    except KeyError:
        raise TargetdError(
            'there is no user %s for the workers; write another user, or create it' % user
        )


def begin_log(server, foreground):
    """Log as [server] wants it. Raises OSError."""
    where = 'stderr' if foreground and server.log == 'syslog' else server.log
    log.start(where, server.log_level)


TOLD = {
    'idle': Master._told_idle,
    'refused': Master._told_refused,
    'closed': Master._told_closed,
    'acknowledge': Master._told_acknowledge,
    'failed': Master._told_failed,
    'progress': Master._told_progress,
    'operated': Master._told_operated,
    'note': Master._told_note,
    'copy-left': Master._told_copy_left,
}
