"""Joins: further connections of a session (RFC 7143 6.3.4), whose login a spare worker has done.

     spare --claim, with the last response--> check_join() --> order `join` to the session's worker
                                                           --> answer to the spare, which is idle then

The worker of the session receives nothing before the initiator has proved the account of the session
and the claim has passed the same checks as that of a new session.
"""

import re

from targetd.iscsi import const
from targetd.master.logins.admission import Refused
from targetd.master.processes.worker_messages import BadMessage

RESPONSE = re.compile('(?:[0-9a-f]{2}){48}\\Z')
ANSWER = re.compile('(?:[0-9a-f]{2}){0,8192}\\Z')
SHORTEST_SEGMENT, LONGEST_SEGMENT = 512, 0xFFFFFF  # RFC 7143 13.12


def check_join(session, claim):
    """Raise Refused unless the connection of this claim may join the session (a SessionRecord or
    None)."""
    asked = claim['session']
    if session is None or session.nexus is None or session.ended_why is not None:
        raise Refused(
            const.SESSION_DOES_NOT_EXIST, 'there is no session with TSIH %d' % asked['tsih']
        )
    if (asked['initiator_name'], asked['isid'], asked.get('target_name')) != (
        session.initiator_name,
        session.nexus.isid,
        session.nexus.target_name,
    ):
        raise Refused(
            const.SESSION_DOES_NOT_EXIST, 'this connection is not of session %d' % session.tsih
        )
    if asked['group'] != session.nexus.target_port_group_tag:
        raise Refused(
            const.CANNOT_INCLUDE_IN_SESSION,
            'session %d is in portal group %d, the connection in %d'
            % (session.tsih, session.nexus.target_port_group_tag, asked['group']),
        )
    if (asked.get('account') or '') != session.account:
        raise Refused(
            const.AUTHORIZATION_FAILURE,
            'session %d is of account "%s", and the connection proved "%s"'
            % (session.tsih, session.account, asked.get('account') or ''),
        )


def check_map(session, lun_map):
    """Raise Refused if a connection has another map of LUNs than its session: for another address."""
    if lun_map != session.lun_map:
        raise Refused(
            const.AUTHORIZATION_FAILURE,
            'session %d has another lun-map than this connection, whose map is that for %s'
            % (session.tsih, lun_map.written),
        )


def check_room(session, cid):
    """Raise Refused if the session has as many connections as were negotiated, without the one of
    this CID, which the new one replaces."""
    others = sum(1 for other in session.peers if other != cid)
    agreed = session.keys.get('MaxConnections', 1)
    if isinstance(agreed, int) and others >= agreed:
        raise Refused(
            const.TOO_MANY_CONNECTIONS,
            'session %d has %d connections, as many as were negotiated (MaxConnections)'
            % (session.tsih, others),
        )


def order(session, claim, connection):
    """The order `join` (channel.py) for the worker of the session. Raises BadMessage if the claim has
    no valid `login`."""
    login = claim.get('login')
    if not isinstance(login, dict) or set(login) != {'response', 'answer', 'declared'}:
        raise BadMessage('a claim for a further connection without the end of its login')
    for name, pattern in (('response', RESPONSE), ('answer', ANSWER)):
        if not isinstance(login[name], str) or not pattern.match(login[name]):
            raise BadMessage('a claim for a further connection with a malformed %s' % name)
    declared = login['declared']
    if type(declared) is not int or not SHORTEST_SEGMENT <= declared <= LONGEST_SEGMENT:
        raise BadMessage('a claim for a further connection with a malformed segment length')
    return {
        'do': 'join',
        'connection': connection,
        'tsih': session.tsih,
        'cid': claim['session']['cid'],
        'keys': claim['session'].get('keys') or {},
        'login': login,
    }


__all__ = ('check_join', 'check_map', 'check_room', 'order')
