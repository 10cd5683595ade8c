"""Routing: which worker process gets a connection whose login has arrived.

     PendingConnections --> delay after failed authentications --> a spare worker, or wait for one

A login for a further connection of a session (TSIH not 0) is served by a spare worker too, and handed
to the worker of the session when it is over (logins.joins). A login waits while its origin
(throttle.origin_of) has LOGINS_PER_ORIGIN logins in progress. When every worker that the server may
have is in use, the oldest login in progress of the origin that has the most is ended, if that is fair
to the new one; else the new one is refused.
"""

from collections import Counter, deque

from targetd import log
from targetd.iscsi import const
from targetd.master.logins.admission import Refused
from targetd.master.logins.authentication import HandedOver, handed_over
from targetd.master.logins.portals import shown
from targetd.master.logins.sessions import check_claim_fields
from targetd.master.logins.throttle import LOGINS_PER_ORIGIN, origin_of
from targetd.master.processes.worker_messages import BadMessage

# on a full server, a login or discovery session that takes longer can be ended in favour of others
PATIENCE_SECONDS = 5.0


class LoginRouter(object):
    """Assigns connections to worker processes.

    state: server_state.ServerState; workers: processes.workers.Workers; sessions: Sessions; throttle:
    LoginThrottle; connections: PendingConnections, which calls route_login(); request_spare(): makes
    the master call assign_spares() and fork workers.
    """

    def __init__(self, loop, state, workers, sessions, throttle, connections, request_spare):
        self.loop = loop
        self.state = state
        self.workers = workers
        self.sessions = sessions
        self.throttle = throttle
        self.connections = connections
        self.request_spare = request_spare
        self._waiting = deque()  # PendingConnections that wait for a spare

    def route_login(self, pending):
        """A Login Request has arrived on this PendingConnection."""
        seconds = self.throttle.reserve_delay(pending.peer[0])
        if seconds is None:
            self.connections.refuse(
                pending,
                const.OUT_OF_RESOURCES,
                'too many logins of this address wait, because too many failed',
            )
        elif seconds:
            self.connections.delay(pending, seconds, self._assign)
        else:
            self._assign(pending)

    def _assign(self, pending):
        self._waiting.append(pending)
        self.request_spare()

    def assign_spares(self):
        """Assign spare workers to the waiting logins, the oldest first. Returns how many logins still
        wait for a spare; those that wait for their origin do not count."""
        in_progress = Counter(origin_of(worker.peers[0]) for worker in self.workers_logging_in())
        waiting, self._waiting, for_spare = self._waiting, deque(), 0
        for pending in waiting:
            if pending.socket is None:
                continue
            if in_progress[pending.origin] >= LOGINS_PER_ORIGIN:
                self._waiting.append(pending)
            elif self._has_room(for_spare) or self._make_room(pending.origin, in_progress):
                in_progress[pending.origin] += 1
                worker = self.workers.take_spare()
                if worker is not None:
                    self._send_to(worker, pending)
                else:
                    self._waiting.append(pending)
                    for_spare += 1
            else:
                self.connections.refuse(
                    pending,
                    const.OUT_OF_RESOURCES,
                    'max-sessions (%d) and the logins in progress fill the server'
                    % self.state.configuration.server.max_sessions,
                )
        return for_spare

    def workers_logging_in(self):
        """The workers with a login in progress or a discovery session."""
        return [
            worker
            for worker in self.workers.busy()
            if worker.peers
            and worker.ending is None
            and (worker.session is None or worker.session.nexus is None)
        ]

    def _has_room(self, for_spare):
        spares = self.state.configuration.server.spare_workers
        return len(self.workers.busy()) + for_spare < self.workers.limit - spares

    def _make_room(self, origin, in_progress):
        """End the oldest login or discovery session of the origin that has the most, if that origin
        then still has no fewer than `origin`. Returns whether one was ended."""
        before = self.loop.clock() - PATIENCE_SECONDS
        slow = [worker for worker in self.workers_logging_in() if worker.busy_since <= before]
        if not slow:
            return False
        victim = max(
            slow, key=lambda worker: (in_progress[origin_of(worker.peers[0])], -worker.busy_since)
        )
        loser = origin_of(victim.peers[0])
        if in_progress[loser] <= in_progress[origin] + 1:
            return False
        in_progress[loser] -= 1
        self.workers.kill(victim, 'its login took long, and others wait for theirs')
        return True

    def _send_to(self, worker, pending):
        sock = self.connections.hand_over(pending)
        worker.peers.append(pending.peer[0])
        worker.handed[tuple(pending.peer)] = HandedOver(pending, sock)
        log.debug('%s: connection sent to worker %d', shown(*pending.peer), worker.pid)
        order = {'do': 'serve', 'connection': pending.description()}
        session = self.sessions.by_tsih.get(pending.header.tsih)
        if session is not None and session.nexus is not None and session.ended_why is None:
            order['session_values'] = session.keys
        self.workers.send(worker, order, [sock.fileno()])

    # -- outcomes of logins ------------------------------------------------------------------------

    def on_refused(self, worker, message):
        """`report refused`: a login was refused before its session claim."""
        peer = handed_over(worker, message).peer
        status = message.get('status_class'), message.get('status_detail')
        if isinstance(status[0], int) and isinstance(status[1], int):
            status = (status[0] & 0xFF, status[1] & 0xFF)
        else:
            status = None
        self.sessions.note_refusal(
            str(message.get('initiator_name') or ''),
            str(message.get('target_name') or ''),
            peer,
            str(message.get('why') or 'no reason was reported'),
            status,
        )
        if status == const.AUTHENTICATION_FAILURE:
            count, seconds = self.throttle.note_failure(peer[0])
            # etc/fail2ban/filter.d/targetd.conf matches this line. It contains nothing that the
            # initiator sent: a forged name could imitate another line.
            log.warning(
                'authentication failed from %s port %d, %d in a row%s',
                peer[0],
                peer[1],
                count,
                '; the next login from there waits %d s' % seconds if seconds else '',
                origin=peer[0],
            )

    def on_claim(self, worker, message):
        """`ask claim`: the initiator of this login has passed authentication, if there was any."""
        connection = handed_over(worker, message)
        check_claim_fields(message)
        _check_claim(connection, message['session'])
        connection.is_claimed = True
        message['proved'], message['connection'] = connection.proved, connection
        if connection.proved:
            self.throttle.note_success(connection.peer[0])
        if self.workers.is_too_confined(worker):
            why = 'the configuration was reloaded during this login; the next one will be accepted'
            self.sessions.refuse_claim(worker, message, Refused(const.SERVICE_UNAVAILABLE, why))
        else:
            self.sessions.process_claim(worker, message)
        connection.forget()
        if self._waiting and worker.session is not None:
            self.request_spare()  # its origin has one login in progress less


def _check_claim(connection, session):
    """Raise BadMessage unless the claim is about the connection that was handed over. What its first
    Login Request has in its header is known here."""
    header = connection.header
    known = {'group': connection.group, 'isid': header.isid, 'tsih': header.tsih, 'cid': header.cid}
    for name, value in known.items():
        if (session.get(name) or 0) != value:
            raise BadMessage('a session claim with another %s than its login' % name)
    if (session.get('account') or '') != (connection.proved[1] if connection.proved else ''):
        raise BadMessage('a session claim with an account that was not proved')
