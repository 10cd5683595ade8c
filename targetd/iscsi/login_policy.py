"""What one login must obey: the policy of a target or of discovery, and the policy of a connection.
Pure.

The worker makes these values from its configuration; `login.LoginNegotiation` reads them.
"""

from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

from targetd.iscsi import chap, keys, text

MAXIMUM_PDUS = 64  # Login Requests in one login; a well-behaved initiator needs about ten

#: (user name, secret) of a CHAP account
Account = Tuple[str, bytes]


def refuse_no_initiator(initiator_name: str) -> Optional[str]:
    """A TargetPolicy's `refuse` that admits every initiator."""
    return None


def refuse_every_initiator(initiator_name: str) -> Optional[str]:
    """A TargetPolicy's `refuse` when no access rule is configured: no initiator is admitted."""
    return 'no access rule admits "%s"' % initiator_name


class TargetPolicy(object):
    """What a login to one target, or a discovery login, must obey.

    name: the target's name, None for discovery.
    alias: str or ''.
    portal_group_tag: of the portal at which the connection arrived; None when the target is not
    reachable through that portal.
    refuse: callable(folded initiator name) -> None, or a sentence that names the access rule that
    refuses; the callable already knows the initiator's address.
    accounts: [(user, secret bytes)], any one of which admits; empty: no authentication is required.
    outgoing: (user, secret bytes) with which the target authenticates itself, or None.
    algorithms: CHAP algorithm numbers that the target accepts.
    make_chap: callable(name) -> an object with the methods and the `account` of chap.Chap, if the
    secrets are not here; None: a chap.Chap of `accounts`.
    keys: {text key: typed value of the target}; keys.OURS holds the others.
    redirect: None or (permanent: bool, 'address:port').
    not_ready: None, or a sentence that says why the target cannot be used now.
    """

    __slots__ = (
        'name',
        'alias',
        'portal_group_tag',
        'refuse',
        'accounts',
        'outgoing',
        'algorithms',
        'keys',
        'redirect',
        'not_ready',
        'make_chap',
    )

    def __init__(
        self,
        name: Optional[str] = None,
        alias: str = '',
        portal_group_tag: Optional[int] = None,
        refuse: Callable[[str], Optional[str]] = refuse_every_initiator,
        accounts: Sequence[Account] = (),
        outgoing: Optional[Account] = None,
        algorithms: Sequence[int] = chap.DEFAULT_ALGORITHMS,
        keys: Optional[Dict[str, Any]] = None,
        redirect: Optional[Tuple[bool, str]] = None,
        not_ready: Optional[str] = None,
        make_chap: Optional[Callable[[Optional[str]], Any]] = None,
    ) -> None:
        self.name = name
        self.alias = alias
        self.portal_group_tag = portal_group_tag
        self.refuse = refuse
        self.accounts = accounts
        self.outgoing = outgoing
        self.algorithms = algorithms
        self.keys = keys or {}
        self.redirect = redirect
        self.not_ready = not_ready
        self.make_chap = make_chap

    def new_chap(self, random_bytes: Callable[[int], bytes]) -> Any:
        """The target's side of a CHAP authentication."""
        if self.make_chap is not None:
            return self.make_chap(self.name)
        return chap.Chap(self.accounts, self.outgoing, self.algorithms, random_bytes)

    def own_value(self, key: str) -> Any:
        """The target's typed value of a text key."""
        return self.keys.get(key, keys.OURS[key])


class LoginPolicy(object):
    """What the login of one connection must obey.

    targets: callable(folded name) -> TargetPolicy or None, or a dict of them; discovery:
    TargetPolicy, or None when discovery is not offered; window: number of commands that an
    initiator may have outstanding; maximum_pdus, maximum_text: limits of one login, a count of
    requests and bytes of text; is_stranger: callable(folded initiator name) -> True if no target
    admits the initiator, which then receives the same status for a target that does not exist as for
    one that refuses it.
    """

    __slots__ = ('target', 'discovery', 'window', 'maximum_pdus', 'maximum_text', 'is_stranger')

    def __init__(
        self,
        targets: Union[Callable[[str], Optional[TargetPolicy]], Dict[str, TargetPolicy]],
        discovery: Optional[TargetPolicy],
        window: int = 128,
        maximum_pdus: int = MAXIMUM_PDUS,
        maximum_text: int = text.MAXIMUM_TEXT,
        is_stranger: Callable[[str], bool] = lambda initiator_name: False,
    ) -> None:
        self.target = targets if callable(targets) else targets.get
        self.discovery = discovery
        self.window = window
        self.maximum_pdus = maximum_pdus
        self.maximum_text = maximum_text
        self.is_stranger = is_stranger
