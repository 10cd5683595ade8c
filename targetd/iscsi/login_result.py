"""The results of a login: the steps that a negotiation returns, and what a successful login agreed
on. Pure."""

from collections import namedtuple
from typing import Any, Dict, Tuple

from targetd.iscsi import const, keys
from targetd.iscsi.errors import LoginFailure


class LoginReply(namedtuple('LoginReply', 'pdus')):
    """A step: send these LoginResponses. The login goes on, or is over when the negotiation has a
    result."""

    __slots__ = ()


class SessionClaim(namedtuple('SessionClaim', 'claim')):
    """A step: ask the master for the session, then call claim_granted or claim_refused.

    claim: a LoginResult with the TSIH of the request (0: a new session) and stat_sn None.
    """

    __slots__ = ()


class LoginResult(
    namedtuple(
        'LoginResult',
        'session_type initiator_name initiator_alias isid tsih cid target_name '
        'portal_group_tag account values declared_data_segment cmd_sn stat_sn',
    )
):
    """What a login agreed on.

    session_type: 'Normal' or 'Discovery'; initiator_name: folded; initiator_alias: str or '';
    isid: 12 hex digits; target_name, portal_group_tag: None in discovery; account: the CHAP user
    that authenticated, or None; values: {key: typed value} of every operational key, where
    MaxRecvDataSegmentLength is the initiator's; declared_data_segment: the target's
    MaxRecvDataSegmentLength, bytes; cmd_sn: the first ExpCmdSN; stat_sn: the next StatSN.
    """

    __slots__ = ()


class Redirected(LoginFailure):
    """The initiator must log in at another address. target_address: 'address:port', without a
    portal group tag (RFC 7143 13.8)."""

    def __init__(self, permanent: bool, target_address: str) -> None:
        status = const.MOVED_PERMANENTLY if permanent else const.MOVED_TEMPORARILY
        super(Redirected, self).__init__(
            status[0], status[1], 'the target has moved to %s' % target_address
        )
        self.target_address = target_address


def login_failure(status: Tuple[int, int], why: str) -> LoginFailure:
    """The LoginFailure with a status pair of `const`."""
    return LoginFailure(status[0], status[1], why)


def joined_session_values(
    offered: Dict[str, Any], leading: LoginResult, connections: int
) -> Dict[str, Any]:
    """The values {key: typed value} of a further connection of a session: the session's, with the
    connection's values of connection scope.

    offered: the values that the login of the connection determined, of which others than those of
    connection scope and of the right type are ignored; leading: LoginResult of the session's first
    connection; connections: how many other connections the session has, without one of the same
    CID, which this connection replaces. Raises LoginFailure.
    """
    if connections >= leading.values['MaxConnections']:
        raise login_failure(
            const.TOO_MANY_CONNECTIONS,
            'the session already has the negotiated maximum of %d connections' % connections,
        )
    values = dict(leading.values)
    values.update(
        (name, value)
        for name, value in offered.items()
        if name in values
        and keys.KEYS[name].scope == keys.CONNECTION
        and isinstance(value, type(values[name]))
    )
    return values
