"""The registry of sessions: which worker process serves which I_T nexus.

Only the master decides on session claims (ARCHITECTURE D3), by the configuration that is in force
now (logins.admission). Invariants: a nexus has at most one session; a TSIH names at most one session;
a session is in the registry from the answer to its first claim until its worker is reaped, or idle
again.

     claim --> refused: answered with a status
       |
       +--> the nexus is free ----------------> granted: TSIH, units
       |      ^
       |      +-- the initiator has other sessions with the target: the worker of each says that the
       |          session goes on, or is reaped; at most END_SECONDS
       |
       +--> the nexus has a session --> its worker ends it --> reaped --> the claim is decided again
                                          not reaped after END_SECONDS: SIGKILL --^
"""

import random
import time

from targetd import events, log, tcp_info
from targetd.config.lun_maps import EVERY_LUN, have_common_lun
from targetd.iscsi import const
from targetd.master.logins import joins
from targetd.master.logins.admission import Refused
from targetd.master.logins.origins import note_evidence
from targetd.master.logins.portals import shown
from targetd.scsi.sam import Nexus

END_SECONDS = 5.0  # a worker that was ordered to end its session and takes longer is killed
MAXIMUM_TSIH = 0xFFFF
REPEAT_SECONDS = 600  # the same line with a black hole is logged so often
_RANDOM = random.SystemRandom()
#: If an initiator has more sessions with a target, a login waits only for those of its initiator port.
MOST_CHECKED = 8


class SessionRecord(object):
    """What the master knows about a session. nexus: scsi.sam.Nexus, None for a discovery session;
    since: wall clock, seconds; peers: {CID: [address, port]}; address: of the first connection; lun_map:
    which LUNs it sees (lun_maps.LunMap), None if a reload has left none for it; satisfied: access rules
    that need evidence (config.acl) and were satisfied at the login; is_proxied: True if a PROXY header has
    told an address; ended_why: None, or the reason of the `end` order."""

    def __init__(self, nexus, tsih, worker, claim, now):
        session = claim['session']
        self.nexus = nexus
        self.tsih = tsih
        self.worker = worker
        self.initiator_name = session['initiator_name']
        self.initiator_alias = session.get('initiator_alias') or ''
        self.account = session.get('account') or ''
        self.proved = []  # [(user, secret)] of its target with which the initiator logged in
        self.keys = session.get('keys') or {}
        self.group = session.get('group')
        self.since = now
        self.peers = {}
        self.address = ''
        self.lun_map = EVERY_LUN
        self.satisfied, self.is_proxied = [], False
        note_evidence(self, claim)
        self.ended_why = None
        self.logout_by = None  # (time of the loop, why, reason): when logout_session() ends it

    def described(self):
        """A row of `targetdctl show sessions`; JSON-able."""
        return {
            'tsih': self.tsih,
            'initiator_name': self.initiator_name,
            'alias': self.initiator_alias,
            'isid': self.nexus.isid if self.nexus else '',
            'target_name': self.nexus.target_name if self.nexus else '',
            'group': self.group,
            'address': ', '.join(shown(*self.peers[cid]) for cid in sorted(self.peers)),
            'connections': len(self.peers),
            'since': self.since,
            'account': self.account,
            'lun_map': self.lun_map.written if self.lun_map not in (None, EVERY_LUN) else '',
            'pid': self.worker.pid,
            'keys': self.keys,
            'ending': self.ended_why,
        }


class WaitingClaim(object):
    """A claim that waits for the end of the session that it replaces, or for news of the other sessions
    of its initiator.

    checks: {id of the order `check-connections`: TSIH}, not answered; continuing: TSIHs of sessions
    that go on, for which the claim does not wait any more."""

    def __init__(self, worker, claim):
        self.worker = worker
        self.claim = claim
        self.checks = {}
        self.continuing = set()


class Sessions(object):
    """The sessions of the server.

    admission: Admission; serve_units(worker, nexus) -> (unit dicts, descriptors, do more follow?) for
    the answer to a claim; send(worker, message, descriptors) and kill(worker, why) of Workers;
    clock(): wall clock, seconds.
    """

    def __init__(self, loop, admission, serve_units, send, kill, clock=time.time):
        self.loop = loop
        self.admission = admission
        self.serve_units = serve_units
        self.send = send
        self.kill = kill
        # sends an order with a connection of this address (master.capture_links)
        self.hand_over = lambda worker, order, descriptors, address: send(
            worker, order, descriptors
        )
        self.clock = clock
        self.by_nexus = {}
        self.by_tsih = {}
        self.waiting_claims = []
        self.refusals = []  # the newest refused logins, for `targetdctl why`
        self.limit = 64
        self.last_check = 0

    # -- state -------------------------------------------------------------------------------------

    def all(self):
        """Every session, discovery sessions too, the oldest first."""
        return sorted(self.by_tsih.values(), key=lambda s: s.since)

    def normal(self):
        """Every normal session (RFC 7143 2.2), the oldest first."""
        return [session for session in self.all() if session.nexus is not None]

    def of_target(self, target_name):
        """The sessions of this target, as a list."""
        return [s for s in self.by_nexus.values() if s.nexus.target_name == target_name]

    def owner(self, tsih):
        """The worker that serves the session with this TSIH, or None."""
        session = self.by_tsih.get(tsih)
        return session.worker if session else None

    # -- claims ------------------------------------------------------------------------------------

    def process_claim(self, worker, message):
        """A worker claims a session, or a further connection of its session. The answer is sent now,
        or when the session that the new one replaces has ended. message: has passed
        check_claim_fields()."""
        self._process(WaitingClaim(worker, message))

    def _process(self, waiting):
        worker, message = waiting.worker, waiting.claim
        try:
            self._decide(waiting)
        except Refused as e:
            self.refuse_claim(worker, message, e)
        except OSError as e:
            # For example, no descriptor is left. What was granted already ends with the worker.
            log.error(
                'the login of %s from %s cannot be answered: %s',
                message['session']['initiator_name'],
                shown(*message['peer']),
                e.strerror,
                origin=message['peer'][0],
            )
            self.kill(worker, 'its login could not be answered')

    def _decide(self, waiting):
        worker, claim = waiting.worker, waiting.claim
        session = claim['session']
        target_name = session.get('target_name')
        if session.get('tsih'):
            self._add_connection(worker, claim)
            return
        sessions = self.of_target(target_name) if target_name else []
        lun_map = self.admission.check_claim(claim, target_name, sessions)
        nexus = None
        if target_name:
            nexus = Nexus(session['initiator_name'], session['isid'], target_name, session['group'])
            old = self.by_nexus.get(nexus)
            if old is not None:
                self._reinstate(old, waiting)
                return
            if self._await_lost_sessions(nexus, waiting):
                return
        if sum(1 for s in self.by_tsih.values() if s.nexus) >= self.limit and nexus:
            raise Refused(
                const.OUT_OF_RESOURCES, 'max-sessions (%d) of the server is reached' % self.limit
            )
        self._grant(nexus, worker, claim, lun_map)

    def _add_connection(self, worker, claim):
        """The login of a further connection is over: hand the connection to the worker of the
        session."""
        asked = claim['session']
        session = self.by_tsih.get(asked['tsih'])
        joins.check_join(session, claim)
        lun_map = self.admission.check_claim(
            claim, session.nexus.target_name, self.of_target(session.nexus.target_name)
        )
        joins.check_map(session, lun_map)
        joins.check_room(session, asked['cid'])
        connection = claim['connection']
        order = joins.order(session, claim, connection.description)
        session.peers[asked['cid']] = claim['peer']
        note_evidence(session, claim)
        session.worker.peers.append(claim['peer'][0])
        log.info(
            '%s from %s: a further connection (CID %d) of session %d',
            session.initiator_name,
            shown(*claim['peer']),
            asked['cid'],
            session.tsih,
            origin=claim['peer'][0],
        )
        self.hand_over(session.worker, order, [connection.socket.fileno()], claim['peer'][0])
        self._answer_granted(worker, claim, session, {'units': []}, ())

    def _answer_granted(self, worker, claim, session, words, descriptors):
        answer = {'do': 'answer', 'id': claim['id'], 'status_class': 0, 'status_detail': 0}
        answer.update(words, why='', tsih=session.tsih)
        self.send(worker, answer, descriptors)

    def _reinstate(self, old, waiting):
        self.waiting_claims.append(waiting)
        if old.ended_why is None:
            old.ended_why = 'reinstated'
            log.info(
                '%s logs in to %s again; its old session %d ends',
                old.initiator_name,
                old.nexus.target_name,
                old.tsih,
                origin=waiting.claim['peer'][0],
            )
            self._order_end(old.worker, 'the initiator logged in again', 'reinstated')
        victim = old.worker
        self.loop.call_later(END_SECONDS, lambda: self._kill_reinstated(old, victim))

    def _kill_reinstated(self, old, victim):
        if self.by_tsih.get(old.tsih) is old:
            self.kill(
                victim, 'its session was reinstated and did not end within %d seconds' % END_SECONDS
            )

    def _await_lost_sessions(self, nexus, waiting):
        """The claim waits for the sessions of the same initiator, through other portal groups or with
        other ISIDs, whose connection is lost, but whose worker has not noticed it: their nexus is lost
        before this one is served. Returns False if there is nothing to wait for."""
        others = [
            session
            for session in self.of_target(nexus.target_name)
            if session.nexus.initiator_name == nexus.initiator_name
        ]
        if len(others) > MOST_CHECKED:
            others = [s for s in others if s.nexus.initiator_port == nexus.initiator_port]
        unknown = [session for session in others if session.tsih not in waiting.continuing]
        if not unknown:
            return False
        self.waiting_claims.append(waiting)
        for session in unknown:
            if session.tsih not in waiting.checks.values():
                self.last_check += 1
                waiting.checks[self.last_check] = session.tsih
                order = {'do': 'check-connections', 'id': self.last_check}
                self.send(session.worker, order, ())
        self.loop.call_later(END_SECONDS, lambda: self._stop_waiting(waiting))
        return True

    def _stop_waiting(self, waiting):
        if waiting in self.waiting_claims and waiting.checks:
            waiting.continuing.update(waiting.checks.values())
            self.retry_waiting_claims()

    def on_continues(self, worker, message):
        """`report continues`, the answer to `check-connections`: the session of this worker goes on."""
        session = worker.session
        for waiting in self.waiting_claims:
            if session is not None and waiting.checks.get(message['id']) == session.tsih:
                del waiting.checks[message['id']]
                waiting.continuing.add(session.tsih)
                self.retry_waiting_claims()
                return

    def _grant(self, nexus, worker, claim, lun_map):
        session = SessionRecord(nexus, self._free_tsih(), worker, claim, self.clock())
        session.peers[claim['session']['cid']] = claim['peer']
        session.address, session.lun_map = claim['peer'][0], lun_map
        worker.session = session
        self.by_tsih[session.tsih] = session
        units, descriptors, more = [], (), False
        if nexus is not None:
            self.by_nexus[nexus] = session
            session.proved = self.admission.proved_accounts(session)
            units, descriptors, more = self.serve_units(worker, nexus)
        log.info(
            '%s%s from %s logged in to %s%s (session %d, worker %d)',
            session.initiator_name,
            ' as %s' % session.account if session.account else '',
            shown(*claim['peer']),
            nexus.target_name if nexus else 'discovery',
            ' with the lun-map for %s' % lun_map.written if lun_map != EVERY_LUN else '',
            session.tsih,
            worker.pid,
            origin=claim['peer'][0],
        )
        if nexus is not None:
            events.emit('login', session=session.tsih, **_who(session, claim['peer']))
        self._answer_granted(worker, claim, session, {'units': units, 'more': more}, descriptors)

    def _free_tsih(self):
        """A random TSIH: a stranger cannot guess those of others from its own."""
        free = MAXIMUM_TSIH - len(self.by_tsih)
        if free <= 0:
            raise Refused(const.OUT_OF_RESOURCES, 'every TSIH is in use')
        while True:
            tsih = 1 + _RANDOM.randrange(MAXIMUM_TSIH)
            if tsih not in self.by_tsih:
                return tsih

    def refuse_claim(self, worker, claim, refused):
        """Answer the claim with the status of this Refused."""
        session = claim['session']
        self.note_refusal(
            session['initiator_name'],
            session.get('target_name'),
            claim['peer'],
            str(refused),
            refused.status,
        )
        self.send(
            worker,
            {
                'do': 'answer',
                'id': claim['id'],
                'status_class': refused.status[0],
                'status_detail': refused.status[1],
                'why': str(refused),
            },
            (),
        )

    def note_refusal(self, initiator_name, target_name, peer, why, status=None):
        """Log a refused login and keep it for `targetdctl why`, which has the newest 100.

        peer: [address, port]; status: (class, detail), or None if unknown.
        """
        log.warning(
            'login of %s from %s to %s refused%s: %s',
            initiator_name or 'an initiator without a name',
            shown(*peer),
            target_name or 'discovery',
            ' with status %02X%02X' % status if status else '',
            why,
            origin=peer[0],
        )
        events.emit(
            'refusal',
            initiator=initiator_name or '',
            target=target_name or 'discovery',
            address=peer[0],
            why=why,
        )
        self.refusals.append(
            {
                'when': self.clock(),
                'initiator_name': initiator_name,
                'target_name': target_name or 'discovery',
                'address': peer[0],
                'why': why,
                'status': '%02X%02X' % status if status else '',
            }
        )
        del self.refusals[:-100]

    def on_black_hole(self, worker, message):
        """`report black-hole`: full packets do not reach an initiator. Log it, and keep it for `targetdctl
        why`. An initiator that logs in again and again is named once in REPEAT_SECONDS."""
        session, peer, now = worker.session, message['peer'], self.clock()
        if session is None or peer not in session.peers.values():
            return
        why = tcp_info.hole_text(message['segment'], message['times'])
        row = {
            'when': now,
            'initiator_name': session.initiator_name,
            'target_name': session.nexus.target_name if session.nexus else 'discovery',
            'address': peer[0],
            'why': '%s. %s' % (why, tcp_info.HOLE_REMEDY),
            'status': '',
        }
        same = ('initiator_name', 'target_name', 'address', 'status')
        for known in self.refusals:
            is_same = all(known[name] == row[name] for name in same)
            if is_same and now - known['when'] < REPEAT_SECONDS:
                return
        log.warning(
            '%s from %s: %s. %s',
            session.initiator_name,
            shown(*peer),
            why,
            tcp_info.HOLE_REMEDY,
            origin=peer[0],
        )
        self.refusals.append(row)
        del self.refusals[:-100]

    # -- end of a session --------------------------------------------------------------------------

    def end_session(self, session, why, reason):
        """Order the session to end now; its worker exits, and is killed if it does not within
        END_SECONDS. reason: of the `end` order (channel.py)."""
        self._order_end(session.worker, why, reason)
        self._kill_later(session, 'it was ordered to end: ' + why)

    def _kill_later(self, session, why):
        worker = session.worker

        def kill_late():
            if worker.session is session:
                self.kill(worker, why)

        self.loop.call_later(END_SECONDS, kill_late)

    def _order_end(self, worker, why, reason):
        if worker.session is not None and worker.session.ended_why is None:
            worker.session.ended_why = reason
        # It exits then, even if its session is over already and its report of that is on the way.
        worker.retiring = True
        self.send(worker, {'do': 'end', 'why': why, 'reason': reason}, ())

    def logout_session(self, session, seconds, why, reason='administrator'):
        """Ask the initiator to log out (RFC 7143 11.9.1); end the session if it has not done so after
        so many seconds."""
        worker = session.worker
        self.send(worker, {'do': 'logout', 'seconds': seconds}, ())
        session.logout_by = self.loop.clock() + seconds, why, reason
        self._end_late(session)

    def _end_late(self, session):
        worker, (when, why, reason) = session.worker, session.logout_by

        def end_late():
            if worker.session is session and session.ended_why is None:
                self.end_session(session, why, reason)

        self.loop.call_later(max(0.0, when - self.loop.clock()), end_late)

    def adopt(self, session):
        """A session of the program that this one replaces (ARCHITECTURE D24)."""
        session.worker.session = self.by_tsih[session.tsih] = session
        if session.nexus is not None:
            self.by_nexus[session.nexus] = session
        if session.ended_why is not None:
            self._kill_later(session, 'it was ordered to end (%s)' % session.ended_why)
        elif session.logout_by is not None:
            self._end_late(session)

    def reset_target(self, worker):
        """TARGET COLD RESET, RFC 7143 11.5.1: end every session of the target that sees a LUN of the one that
        requested it, whose worker ends its session itself."""
        session = worker.session
        if session is None or session.nexus is None:
            return
        log.warning(
            '%s resets target %s; its sessions end',
            session.initiator_name,
            session.nexus.target_name,
            origin=worker.peers[0] if worker.peers else '',
        )
        for other in self.of_target(session.nexus.target_name):
            if other is not session and have_common_lun(session.lun_map, other.lun_map):
                self.end_session(
                    other,
                    'the target was reset by %s' % session.initiator_name,
                    'target-cold-reset',
                )

    def on_closed(self, worker, message):
        """`report closed`: a connection of a session has ended, or its login has failed; the session
        continues."""
        peer, session, cid = message.get('peer'), worker.session, message.get('cid')
        if peer[0] in worker.peers:
            worker.peers.remove(peer[0])
        worker.handed.pop(tuple(peer), None)
        # another connection may have taken the place of this one
        if session is not None and isinstance(cid, int) and session.peers.get(cid) == peer:
            del session.peers[cid]

    def remove_session_of(self, worker):
        """The worker is reaped, or idle again: forget its session and its waiting claims. Returns its
        SessionRecord, or None."""
        self.waiting_claims = [w for w in self.waiting_claims if w.worker is not worker]
        session, worker.session = worker.session, None
        if session is not None:
            del self.by_tsih[session.tsih]
            if session.nexus is not None:
                del self.by_nexus[session.nexus]
        return session

    def retry_waiting_claims(self):
        """Decide again on the claims that wait. Call after remove_session_of(), when the units'
        shared state no longer has the lost nexus."""
        claims, self.waiting_claims = self.waiting_claims, []
        for waiting in claims:
            self._process(waiting)


def _who(session, peer):
    return {
        'initiator': session.initiator_name,
        'target': session.nexus.target_name,
        'address': peer[0],
        'account': session.account,
    }
