"""Admission: may this initiator have a session with this target, by the configuration that is in
force now?

A worker may have been forked before a reload, so the master checks every session claim again
(ARCHITECTURE D3). EXTENDED COPY asks the same question about the other targets of the server
(ARCHITECTURE D16).
"""

import time

from targetd.config import acl, lun_maps
from targetd.iscsi import const


class Refused(Exception):
    """A login is refused. status: (class, detail), RFC 7143 11.13.5; the text is one sentence that
    names the rule."""

    def __init__(self, status, why):
        super(Refused, self).__init__(why)
        self.status = status


class Admission(object):
    """The rules for session claims.

    state: server_state.ServerState; missing_stores(target name, LunMap): why no LUN of the
    target that the map has is available, or ''.
    """

    def __init__(self, state, missing_stores):
        self.state = state
        self.missing_stores = missing_stores
        # evidence of config.acl about a session's address; set by the master
        self.evidence_of = lambda session, address: {}
        # {rule: what it admits now} of config.explain; set by the master
        self.origins_now = dict

    def check_claim(self, claim, target_name, sessions):
        """Raise Refused unless the configuration admits this session. Returns its lun_maps.LunMap.

        claim: the `claim` request of a worker (channel.py); target_name: None for discovery;
        sessions: the SessionRecords of the target.
        """
        configuration, session = self.state.configuration, claim['session']
        if self.state.is_stopping:
            raise Refused(const.SERVICE_UNAVAILABLE, 'targetd is being stopped')
        address, evidence = claim['peer'][0], claim.get('evidence') or {}
        if not target_name:
            refusal = acl.discovery_refusal(configuration.server, address, evidence)
            if refusal:
                raise Refused(const.AUTHORIZATION_FAILURE, refusal)
            _check_proof(claim, '', configuration.server.incomingdiscoveryuser)
            return lun_maps.EVERY_LUN
        target = configuration.targets.get(target_name)
        if target is None:
            raise self._not_found(claim, 'there is no target %s' % target_name)
        if session['group'] not in target.portal_groups:
            raise self._not_found(
                claim,
                'target %s is not reached through portal group %d'
                % (target.name, session['group']),
            )
        refusal = acl.refusal(target, session['initiator_name'], address, evidence)
        if refusal:
            raise Refused(const.AUTHORIZATION_FAILURE, refusal)
        _check_proof(claim, target.name, accounts_now(target))
        _check_account(claim, target)
        lun_map = _chosen_map(claim, target)
        self._check_target_available(target, lun_map)
        _check_target_limit(target, session, sessions)
        return lun_map

    def _not_found(self, claim, why):
        """The Refused for a target that is not here: see iscsi.login, which has the same rule."""
        is_stranger = acl.is_stranger(
            self.state.configuration.targets.values(),
            claim['session']['initiator_name'],
            claim['peer'][0],
            claim.get('evidence') or {},
        )
        return Refused(const.AUTHORIZATION_FAILURE if is_stranger else const.NOT_FOUND, why)

    def _check_target_available(self, target, lun_map):
        why = self._unavailable(target)
        missing = '' if why else self.missing_stores(target.name, lun_map)
        if missing:
            why = 'target %s is not ready: %s' % (target.name, missing)
        if why:
            raise Refused(const.SERVICE_UNAVAILABLE, why)

    def _unavailable(self, target):
        """Why the target admits no session now, or ''."""
        if target.state == 'offline':
            return 'target %s has state = offline' % target.name
        if target.redirect is not None:  # the worker was forked before the reload that added it
            return 'target %s is served elsewhere now' % target.name
        if target.name in self.state.changing:
            return 'target %s is being changed; its old sessions log out first' % target.name
        return ''

    def proved_accounts(self, session):
        """[(user, secret)] of the session's target that belong to the account with which the
        initiator logged in."""
        target = self.state.configuration.targets.get(session.nexus.target_name)
        accounts = accounts_now(target) if target else ()
        return [account for account in accounts if account[0] == session.account]

    def map_of(self, session):
        """The lun_maps.LunMap of a session that goes on, by the configuration in force; None if there is none
        for it, or not the same one for all its connections."""
        target = self.state.configuration.targets.get(session.nexus.target_name)
        if target is None:
            return session.lun_map
        accounts = [session.account] if session.account else []
        return _sole_map(target, session, accounts)

    def inadmissible(self, sessions):
        """[(session, why)] of those that go on and that the configuration in force no longer admits."""
        found = [
            (session, self.why_inadmissible(session))
            for session in sessions
            if session.ended_why is None
        ]
        return [(session, why) for session, why in found if why is not None]

    def why_inadmissible(self, session):
        """Why the configuration in force no longer admits a session that goes on, or None."""
        target = self.state.configuration.targets.get(session.nexus.target_name)
        if target is None:
            return None
        addresses = [peer[0] for peer in session.peers.values()]
        refusals = self._refusals(session, target)
        if self.map_of(session) is None:
            where = ', '.join(addresses) or session.address
            refusals.append(lun_maps.no_map(target, session.initiator_name, where, session.account))
        return refusals[0] if refusals else None

    def map_for_copy(self, worker, target_name):
        """The lun_maps.LunMap that the initiator of the worker's session would have at this target, if it
        could log in there too, through the same portal group and with the accounts that it has proved;
        else None."""
        session, target = worker.session, self.state.configuration.targets.get(target_name)
        if session is None or session.ended_why is not None or not session.peers:
            return None
        if target is None or self.state.is_stopping or self._unavailable(target):
            return None
        if session.group not in target.portal_groups:
            return None
        usable = [
            account
            for account in accounts_now(target)
            if not acl.account_refusal(target, account[0], session.initiator_name)
        ]
        proved = set(session.proved) & set(usable)
        if target.accounts and not proved or self._refusals(session, target):
            return None
        return _sole_map(target, session, [user for user, _ in proved])

    def _refusals(self, session, target):
        """Why the rules of the target refuse the initiator of a session (SessionRecord): a sentence for
        each of its addresses that they refuse."""
        found = [
            acl.refusal(target, session.initiator_name, peer[0], self.evidence_of(session, peer[0]))
            for peer in session.peers.values()
        ]
        return [refusal for refusal in found if refusal]


def accounts_now(target, clock=time.localtime):
    """((user, secret), ...) with which an initiator may log in now: the accounts of a target, and those of
    which the secret was changed and is valid for some time."""
    if not target.former_incominguser:
        return target.accounts
    now = time.strftime('%Y-%m-%dT%H:%M', clock())
    return target.accounts + tuple(
        (user, secret) for user, secret, until in target.former_incominguser if now < until
    )


def _check_proof(claim, target_name, accounts):
    """Raise Refused if authentication is required now and the initiator has not proved one of these
    accounts. claim['proved'] is set by the master (logins.routing)."""
    proved = claim.get('proved') or (None, None, None)
    if accounts and not (proved[0] == target_name and tuple(proved[1:]) in accounts):
        raise Refused(
            const.AUTHENTICATION_FAILURE,
            'the initiator has not proved an account that %s requires now'
            % (target_name or 'discovery'),
        )


def _check_account(claim, target):
    """Raise Refused if the account that the initiator has proved is for other initiators."""
    proved = claim.get('proved')
    name = claim['session']['initiator_name']
    refusal = acl.account_refusal(target, proved[1], name) if proved and target.accounts else None
    if refusal:
        raise Refused(const.AUTHORIZATION_FAILURE, refusal)


def _chosen_map(claim, target):
    """The LunMap of a claim. Raises Refused if the target has maps and none for this initiator."""
    name, address, proved = (
        claim['session']['initiator_name'],
        claim['peer'][0],
        claim.get('proved'),
    )
    accounts = [proved[1]] if proved and proved[0] == target.name and target.accounts else []
    lun_map = lun_maps.choose(target, name, address, accounts)
    if lun_map is None:
        why = lun_maps.no_map(target, name, address, ''.join(accounts))
        raise Refused(const.AUTHORIZATION_FAILURE, why)
    return lun_map


def _sole_map(target, session, accounts):
    """The LunMap that all connections of the session have, or None."""
    addresses = {peer[0] for peer in session.peers.values()} or {session.address}
    maps = {
        lun_maps.choose(target, session.initiator_name, address, accounts) for address in addresses
    }
    return maps.pop() if len(maps) == 1 else None


def _check_target_limit(target, session, sessions):
    """max-sessions of the target. A session of the same nexus does not count: the new one replaces
    it."""
    mine = (session['initiator_name'], session['isid'], session['group'])
    others = [s for s in sessions if (s.initiator_name, s.nexus.isid, s.group) != mine]
    if target.max_sessions and len(others) >= target.max_sessions:
        raise Refused(
            const.OUT_OF_RESOURCES,
            'max-sessions (%d) of target %s is reached' % (target.max_sessions, target.name),
        )


__all__ = ('Admission', 'Refused', 'accounts_now')
