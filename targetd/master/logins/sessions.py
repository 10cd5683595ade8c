"""The registry of sessions: which nexus is served by which worker, and what a login must pass
before it becomes one.

The master decides here and nowhere else (D3). A claim is checked against the configuration that is
in force *now*, whatever the worker knew when it was forked. Invariants: a nexus has at most one
session; a TSIH names at most one session; a session is in the registry from the answer to its first
claim until its worker is reaped (or, for discovery, idle again).

     claim --> refused                          answer with a status, nothing is kept
       |
       +--> the nexus is free ----------------> granted: TSIH, units
       |
       +--> the nexus has a session --> its worker is told to end ('reinstated') --> reaped --> the claim is tried again
                                           not gone in time: SIGKILL --^
"""

import re
import time

from targetd import log
from targetd.iscsi import const
from targetd.master.logins.portals import shown
from targetd.scsi.sam import Nexus

REINSTATEMENT_SECONDS = 5.0  # how long the old session's worker may take to end by itself
MAXIMUM_TSIH = 0xFFFF

ISID = re.compile('^[0-9a-f]{12}$')


class Refused(Exception):
    """A claim is refused. status: (class, detail), RFC 7143 11.13.5; the text is one plain sentence
    naming the rule."""

    def __init__(self, status, why):
        super(Refused, self).__init__(why)
        self.status = status


class SessionRecord(object):
    """One session. since: wall clock, seconds; peers: {cid: [address, port]}; nexus is None for a
    discovery session."""

    def __init__(self, nexus, tsih, worker, claim, now):
        session = claim['session']
        self.nexus = nexus
        self.tsih = tsih
        self.worker = worker
        self.initiator_name = session['initiator_name']
        self.initiator_alias = session.get('initiator_alias') or ''
        self.account = session.get('account') or ''
        self.proved = []  # (user, secret) with which it logged in, of its target's accounts
        self.keys = session.get('keys') or {}
        self.group = session.get('group')
        self.since = now
        self.peers = {}
        self.ended_why = None

    def described(self):
        """The JSON-able dict of the session list."""
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
            'pid': self.worker.pid,
            'keys': self.keys,
            'ending': self.ended_why,
        }


class WaitingClaim(object):
    """A claim that waits for the end of the session it replaces."""

    def __init__(self, worker, claim):
        self.worker = worker
        self.claim = claim


class Sessions(object):
    """`admit(claim, target_name)` raises Refused when the configuration does not want it; `units(session)` gives
    (unit dicts, descriptors); `answer(worker, message, descriptors)` sends; `end(worker, why, reason)` tells it to end;
    `kill(worker, why)` is the fence. `clock` gives the wall time for the session list."""

    def __init__(self, loop, admit, units, answer, end, kill, clock=time.time):
        self.loop = loop
        self.admit = admit
        self.units = units
        self.answer = answer
        self.end = end
        self.kill = kill
        self.clock = clock
        self.by_nexus = {}
        self.by_tsih = {}
        self.waiting_claims = []
        self.refusals = []  # the newest refused logins, for `targetdctl why`
        self.limit = 64
        self._last_tsih = 0

    # -- what there is -----------------------------------------------------------------------------------------------

    def all(self):
        """Every session, the oldest first."""
        return sorted(self.by_tsih.values(), key=lambda s: s.since)

    def of_target(self, target_name):
        """The sessions of this target."""
        return [s for s in self.by_nexus.values() if s.nexus.target_name == target_name]

    def owner(self, tsih):
        """The worker that owns this TSIH, or None."""
        session = self.by_tsih.get(tsih)
        return session.worker if session else None

    # -- claims ------------------------------------------------------------------------------------------------------

    def process_claim(self, worker, message):
        """A worker asks for a session (or a further connection of its session). Answers now, or
        when an old session ended."""
        problem = malformed(message)
        if problem:
            log.error('worker %d made a claim that is none: %s', worker.pid, problem)
            self.kill(worker, 'it made a claim that is none')
            return
        try:
            self._decide(worker, message)
        except Refused as e:
            self._refuse(worker, message, e)
        except OSError as e:
            # no descriptor is left, say: what was granted in part ends with the worker
            log.error(
                'the login of %s from %s cannot be answered: %s',
                message['session']['initiator_name'],
                shown(*message['peer']),
                e.strerror,
            )
            self.kill(worker, 'its login could not be answered')

    def _decide(self, worker, claim):
        session = claim['session']
        target_name = session.get('target_name')
        if worker.session is not None:
            self._add_connection(worker, claim)
            return
        if session.get('tsih'):
            raise Refused(
                const.SESSION_DOES_NOT_EXIST, 'there is no session with TSIH %d' % session['tsih']
            )
        self.admit(claim, target_name)
        nexus = None
        if target_name:
            nexus = Nexus(session['initiator_name'], session['isid'], target_name, session['group'])
            old = self.by_nexus.get(nexus)
            if old is not None:
                self._reinstate(old, worker, claim)
                return
        if sum(1 for s in self.by_tsih.values() if s.nexus) >= self.limit and nexus:
            raise Refused(
                const.OUT_OF_RESOURCES, 'max-sessions (%d) of the server is reached' % self.limit
            )
        self._grant(nexus, worker, claim)

    def _add_connection(self, worker, claim):
        session, asked = worker.session, claim['session']
        same = (
            session.nexus is not None
            and asked['initiator_name'] == session.initiator_name
            and asked['isid'] == session.nexus.isid
            and asked.get('target_name') == session.nexus.target_name
        )
        if not same or asked.get('tsih') not in (0, None, session.tsih):
            raise Refused(
                const.SESSION_DOES_NOT_EXIST, 'this connection is not of session %d' % session.tsih
            )
        if asked['group'] != session.nexus.target_port_group_tag:
            raise Refused(
                const.CANNOT_INCLUDE_IN_SESSION,
                'session %d is in portal group %d, the connection in %d'
                % (session.tsih, session.nexus.target_port_group_tag, asked['group']),
            )
        others = sum(1 for cid in session.peers if cid != asked['cid'])
        agreed = session.keys.get('MaxConnections', 1)
        if isinstance(agreed, int) and others >= agreed:
            raise Refused(
                const.TOO_MANY_CONNECTIONS,
                'session %d has %d connections, and so many were agreed on (MaxConnections)'
                % (session.tsih, others),
            )
        session.peers[asked['cid']] = claim['peer']
        log.info(
            '%s from %s: a further connection (CID %d) of session %d',
            session.initiator_name,
            shown(*claim['peer']),
            asked['cid'],
            session.tsih,
        )
        self.answer(
            worker,
            {
                'do': 'answer',
                'id': claim['id'],
                'status_class': 0,
                'status_detail': 0,
                'why': '',
                'tsih': session.tsih,
                'units': [],
            },
            (),
        )

    def _reinstate(self, old, worker, claim):
        self.waiting_claims.append(WaitingClaim(worker, claim))
        if old.ended_why is None:
            old.ended_why = 'reinstated'
            log.info(
                '%s logs in to %s again; its old session %d ends',
                old.initiator_name,
                old.nexus.target_name,
                old.tsih,
            )
            self.end(old.worker, 'the initiator logged in again', 'reinstated')
        victim = old.worker
        self.loop.call_later(REINSTATEMENT_SECONDS, lambda: self._insist(old, victim))

    def _insist(self, old, victim):
        if self.by_tsih.get(old.tsih) is old:
            self.kill(
                victim,
                'its session was reinstated and did not end within %d seconds'
                % REINSTATEMENT_SECONDS,
            )

    def _grant(self, nexus, worker, claim):
        session = SessionRecord(nexus, self._allot(), worker, claim, self.clock())
        session.peers[claim['session']['cid']] = claim['peer']
        worker.session = session
        self.by_tsih[session.tsih] = session
        units, descriptors = [], ()
        if nexus is not None:
            self.by_nexus[nexus] = session
            units, descriptors = self.units(session)
        log.info(
            '%s%s from %s logged in to %s (session %d, worker %d)',
            session.initiator_name,
            ' as %s' % session.account if session.account else '',
            shown(*claim['peer']),
            nexus.target_name if nexus else 'discovery',
            session.tsih,
            worker.pid,
        )
        self.answer(
            worker,
            {
                'do': 'answer',
                'id': claim['id'],
                'status_class': 0,
                'status_detail': 0,
                'why': '',
                'tsih': session.tsih,
                'units': units,
            },
            descriptors,
        )

    def _allot(self):
        for _ in range(MAXIMUM_TSIH):
            self._last_tsih = self._last_tsih % MAXIMUM_TSIH + 1
            if self._last_tsih not in self.by_tsih:
                return self._last_tsih
        raise Refused(const.OUT_OF_RESOURCES, 'every TSIH is in use')

    def _refuse(self, worker, claim, refused):
        session = claim['session']
        self.note_refusal(
            session['initiator_name'],
            session.get('target_name'),
            claim['peer'],
            str(refused),
            refused.status,
        )
        self.answer(
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
        """Log a refused login and keep it for `targetdctl why`; the newest 100 are kept."""
        log.warning(
            'login of %s from %s to %s refused%s: %s',
            initiator_name or 'a nameless initiator',
            shown(*peer),
            target_name or 'discovery',
            ' with status %02X%02X' % status if status else '',
            why,
        )
        self.refusals.append(
            {
                'when': self.clock(),
                'initiator_name': initiator_name,
                'target_name': target_name or 'discovery',
                'address': peer[0],
                'why': why,
                'status_class': status[0] if status else None,
                'status_detail': status[1] if status else None,
            }
        )
        del self.refusals[:-100]

    # -- ends --------------------------------------------------------------------------------------------------------

    def leave(self, worker):
        """The worker is reaped, or idle after a discovery session. Returns its SessionRecord or None;
        claims that waited go on."""
        self.waiting_claims = [w for w in self.waiting_claims if w.worker is not worker]
        session, worker.session = worker.session, None
        if session is not None:
            del self.by_tsih[session.tsih]
            if session.nexus is not None:
                del self.by_nexus[session.nexus]
        return session

    def retry_waiting_claims(self):
        """After leave(), when the shared state of the lost session is settled: decide again on the
        claims that waited."""
        waiting, self.waiting_claims = self.waiting_claims, []
        for one in waiting:
            self.process_claim(one.worker, one.claim)


def malformed(message):
    """What keeps this from being a claim (a worker is not trusted), or ''."""
    session, peer = message.get('session'), message.get('peer')
    if not isinstance(session, dict) or not isinstance(message.get('id'), int):
        return 'no session or no id'
    if not (
        isinstance(peer, list)
        and len(peer) == 2
        and isinstance(peer[0], str)
        and isinstance(peer[1], int)
    ):
        return 'no peer'
    if not isinstance(session.get('initiator_name'), str) or not session['initiator_name']:
        return 'no initiator name'
    if not isinstance(session.get('isid'), str) or not ISID.match(session['isid']):
        return 'no ISID'
    for key in ('cid', 'group'):
        if not isinstance(session.get(key), int):
            return 'no %s' % key
    if not isinstance(session.get('tsih', 0) or 0, int) or not isinstance(
        session.get('target_name') or '', str
    ):
        return 'no TSIH or no target name'
    if not isinstance(session.get('keys') or {}, dict):
        return 'no keys'
    return ''
