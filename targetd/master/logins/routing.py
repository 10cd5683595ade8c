"""Routing: which worker process gets a connection whose login has arrived.

     PendingConnections --> a login for which a worker is free: a spare worker
                        --> others wait, no longer than login-timeout

A login for a further connection of a session (TSIH not 0) is served by a spare worker too, and handed
to the worker of the session when it is over (logins.joins).

An address has at most LOGINS_PER_ADDRESS logins in progress, and only one while LOGINS_AT_ONCE logins are
being processed, unless it has had a session: more at once would be slower for all. When a worker is
free, the first to get it is a login from an address that has had a session, then one of the origin
(throttle.origin_of) that has the fewest logins in progress. A login in progress that has taken more
than PATIENCE_SECONDS ends if it keeps others waiting: for a login of its own address, for one of an
origin that has fewer, or, if its own address has had no session, for one from an address that has. So
neither connections that stay half logged in nor a flood of short ones lock others out.
"""

import heapq
from collections import Counter, OrderedDict

from targetd import log
from targetd.iscsi import const
from targetd.master.logins import joins
from targetd.master.logins.admission import Refused
from targetd.master.logins.authentication import HandedOver, handed_over
from targetd.master.logins.claim_fields import check_claim_fields
from targetd.master.logins.pending import has_ended
from targetd.master.logins.portals import shown
from targetd.master.logins.refusals import DelayedAnswers
from targetd.master.logins.throttle import origin_of
from targetd.master.processes.worker_messages import BadMessage

LOGINS_PER_ADDRESS = 8
LOGINS_AT_ONCE = 8
# a login or discovery session that takes longer can be ended in favour of others
PATIENCE_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 0.5  # while logins wait
KNOWN_ADDRESSES = 4096


class _Progress(object):
    """The logins in progress, with those that begin in one pass. active: how many of them are not slow;
    ending: how many workers end; for_spare: how many logins have room, but need a fork."""

    def __init__(self, workers, now):
        self.workers = logging_in(workers)
        self.by_address, self.by_origin = Counter(), Counter()
        self.ending = sum(
            1 for worker in workers.busy() if worker.is_killed and not worker.is_stuck
        )
        self.for_spare = self.active = 0
        for worker in self.workers:
            self.begin(worker.peers[0])
        self.active = sum(
            1 for worker in self.workers if worker.busy_since > now - PATIENCE_SECONDS
        )

    def begin(self, address):
        """A login of this address begins."""
        self.active += 1
        self.by_address[address] += 1
        self.by_origin[origin_of(address)] += 1


def logging_in(workers):
    """The workers with a login in progress or a discovery session."""
    return [
        worker
        for worker in workers.busy()
        if worker.peers
        and worker.ending is None
        and (worker.session is None or worker.session.nexus is None)
    ]


class LoginRouter(object):
    """Assigns connections to worker processes.

    state: server_state.ServerState; workers: processes.workers.Workers; sessions: Sessions;
    authentication: Authentication; connections: PendingConnections, which calls route_login();
    request_spare(): makes the master call assign_spares() and fork workers.
    """

    def __init__(self, loop, state, workers, sessions, authentication, connections, request_spare):
        self.loop = loop
        self.state = state
        self.workers = workers
        # sends an order with a connection of this address (master.capture_links)
        self.hand_over = lambda worker, order, descriptors, address: workers.send(
            worker, order, descriptors
        )
        self.sessions = sessions
        self.authentication = authentication
        self.connections = connections
        self.request_spare = request_spare
        self.origins = None  # set by the master: no rule needs evidence until then
        self.delayed_answers = DelayedAnswers(loop)
        self._waiting = {}  # address -> [PendingConnection that waits for a spare, the oldest first]
        self.known = OrderedDict()  # addresses that have had a normal session
        self._look_again = None

    def route_login(self, pending):
        """A Login Request has arrived on this PendingConnection."""
        self._waiting.setdefault(pending.peer[0], []).append(pending)
        self.request_spare()

    def assign_spares(self):
        """Assign spare workers to the waiting logins. Returns for how many a worker should be
        forked."""
        if not self._waiting:
            return 0
        progress, queue = _Progress(self.workers, self.loop.clock()), []
        for address in list(self._waiting):
            self._queue_next(queue, progress, address, 0)
        while queue:
            _, _, address, index = heapq.heappop(queue)
            pending = self._waiting[address][index]
            if not self._may_begin(pending, progress):
                if pending.socket is not None:  # so the others of this address wait, too
                    pending.has_waited = True
                    continue
            else:
                worker = self.workers.take_spare()
                progress.begin(address)
                pending.has_waited = True
                if worker is not None:
                    self._send_to(worker, pending)
                else:
                    progress.for_spare += 1
            self._queue_next(queue, progress, address, index + 1)
        for address, waiting in list(self._waiting.items()):
            self._waiting[address] = [p for p in waiting if p.socket is not None]
            if not self._waiting[address]:
                del self._waiting[address]
        if self._waiting and self._look_again is None:
            self._look_again = self.loop.call_later(LOOK_AGAIN_SECONDS, self._try_again)
        return progress.for_spare

    def _queue_next(self, queue, progress, address, index):
        """Queue the next login of this address by its rank: that of the lowest rank gets a worker
        first."""
        waiting = self._waiting[address]
        while index < len(waiting):
            pending = waiting[index]
            if pending.socket is not None and pending.has_waited and has_ended(pending.socket):
                self.connections.close(pending)
            if pending.socket is not None:
                rank = (
                    address not in self.known,
                    progress.by_origin[pending.origin],
                    progress.by_address[address],
                )
                heapq.heappush(queue, (rank, pending.number, address, index))
                return
            index += 1

    def _try_again(self):
        self._look_again = None
        self.request_spare()

    def _may_begin(self, pending, progress):
        """Whether the login may have a worker now. If not, it waits, or is refused."""
        address = pending.peer[0]
        used = self.workers.connections_of(address)
        limit = self.connections.limits.per_address
        if used >= limit and not progress.by_address[address]:
            self.connections.refuse(
                pending,
                const.OUT_OF_RESOURCES,
                'there are %d connections from this address already' % used,
            )
            return False
        if used >= limit or progress.by_address[address] >= LOGINS_PER_ADDRESS:
            self._end_slow(progress, lambda other: other == address)
            return False
        is_known = address in self.known
        if progress.active >= LOGINS_AT_ONCE and progress.by_address[address] and not is_known:
            return False
        if self._has_room(progress.for_spare):
            return True
        if progress.ending:  # there will be room
            progress.ending -= 1
            return False
        mine = progress.by_origin[pending.origin]
        self._end_slow(
            progress,
            lambda other: (
                progress.by_origin[origin_of(other)] > mine + 1
                or (is_known and other not in self.known)
            ),
        )
        return False

    def _end_slow(self, progress, may_end):
        """End the oldest slow login of the origin that has the most, among those of addresses for
        which may_end(address) is true."""
        before = self.loop.clock() - PATIENCE_SECONDS
        slow = [
            worker
            for worker in progress.workers
            if worker.busy_since <= before and worker.ending is None and may_end(worker.peers[0])
        ]
        if slow:
            victim = max(
                slow, key=lambda w: (progress.by_origin[origin_of(w.peers[0])], -w.busy_since)
            )
            self.workers.kill(victim, 'its login took long, and others wait for theirs')

    def _has_room(self, for_spare):
        spares = self.state.configuration.server.spare_workers
        return len(self.workers.busy()) + for_spare < self.workers.limit - spares

    def _send_to(self, worker, pending):
        sock = self.connections.hand_over(pending)
        worker.peers.append(pending.peer[0])
        connection = worker.handed[tuple(pending.peer)] = HandedOver(pending, sock)
        log.debug('%s: connection sent to worker %d', shown(*pending.peer), worker.pid)
        evidence = self._evidence(connection)
        if evidence:
            connection.description['evidence'] = evidence
        order = {'do': 'serve', 'connection': connection.description}
        session = self.sessions.by_tsih.get(pending.header.tsih)
        if session is not None and session.nexus is not None and session.ended_why is None:
            order['session_values'] = session.keys
        self.hand_over(worker, order, [sock.fileno()], pending.peer[0])

    def _evidence(self, connection):
        """Evidence of config.acl about the peer of a HandedOver."""
        if self.origins is None:
            return {}
        return self.origins.evidence(connection.peer[0], connection.is_proxied)

    # -- outcomes of logins ------------------------------------------------------------------------

    def on_refused(self, worker, message):
        """`report refused`: a login was refused before its session claim."""
        connection = handed_over(worker, message)
        peer = connection.peer
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
            self.authentication.note_failure(connection)
        if message.get('response') is not None:
            self._delay_answer(connection, message['response'])

    def _delay_answer(self, connection, response):
        """The worker has left the answer to a failed authentication to the master."""
        if not connection.delay or connection.socket is None:
            raise BadMessage('a response of a refusal that does not wait')
        if not isinstance(response, str) or not joins.RESPONSE.match(response):
            raise BadMessage('a refusal without the response that waits')
        sock, connection.socket = connection.socket, None
        self.delayed_answers.send_later(sock, bytes.fromhex(response), connection.delay)

    def on_claim(self, worker, message):
        """`ask claim`: the initiator of this login has passed authentication, if there was any."""
        connection = handed_over(worker, message)
        check_claim_fields(message)
        _check_claim(connection, message['session'])
        connection.is_claimed = True
        message['proved'], message['connection'] = connection.proved, connection
        message['evidence'] = self._evidence(connection)
        message['is_proxied'] = connection.is_proxied
        if connection.proved:
            self.authentication.throttle.note_success(*connection.login)
        if self.workers.is_too_confined(worker):
            why = 'the configuration was reloaded during this login; the next one will be accepted'
            self.sessions.refuse_claim(worker, message, Refused(const.SERVICE_UNAVAILABLE, why))
        else:
            self.sessions.process_claim(worker, message)
        connection.forget()
        if worker.session is not None and worker.session.nexus is not None:
            self._note_known(connection.peer[0])
        if self._waiting and worker.session is not None:
            self.request_spare()  # its origin has one login in progress less

    def _note_known(self, address):
        self.known[address] = None
        self.known.move_to_end(address)
        if len(self.known) > KNOWN_ADDRESSES:
            self.known.popitem(last=False)


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
