"""The target's side of a login (RFC 7143 6.3, 11.12, 11.13, 12) as a value machine. Pure; imports
the rest of iscsi.

    START ──CSG 0──► SECURITY ──AuthMethod=CHAP──► CHAP_ALGORITHM ──CHAP_A──► CHAP_RESPONSE ──CHAP_N, CHAP_R──► SECURED
      │                 │ T, and no account is asked for                                                        │ T
      └──CSG 1──► OPERATIONAL ◄───────────────────────────── NSG 1 ─────────────────────────────────────────────┤
                        │ T                                                                                     │
                        └──────────► CLAIMING ◄───────────── NSG 3 ─────────────────────────────────────────────┘
                                        │ claimed(tsih)                   any ──── failure ────► FAILED
                                        ▼
                                      DONE

`receive` takes a decoded LoginRequest and gives a step: Reply (send the PDUs, wait for the next request) or Claim (ask the
master, then `claimed` or `refused`), or raises LoginFailure, whose last words are `failure_response(failure)`. Invariants:

* whoever reaches CLAIMING has proved itself if accounts are set, and passed the access rule, whatever stages it took.
* every response is stamped here: StatSN +1 each, MaxCmdSN never before ExpCmdSN. CmdSN and ExpStatSN of the first request are
  taken as they are (Windows goes on counting from its discovery session).
* TargetPortalGroupTag is in the first answer of a new normal session, or Windows waits for ever; keys that were not offered are
  not sent, but for that one, TargetAlias and our MaxRecvDataSegmentLength.
"""

from binascii import hexlify
from collections import namedtuple

from targetd.iscsi import chap, const, keys, names, serial, text
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.pdu import LoginRequest, LoginResponse

MAXIMUM_PDUS = 64  # requests in one login; the longest honest one takes about ten
# MaxRecvDataSegmentLength of both sides until the login is over, RFC 7143 13.12
LOGIN_DATA_SEGMENT = 8192

(START, SECURITY, CHAP_ALGORITHM, CHAP_RESPONSE, SECURED, OPERATIONAL, CLAIMING, DONE, FAILED) = (
    STATES
) = (
    'start',
    'security',
    'chap-algorithm',
    'chap-response',
    'secured',
    'operational',
    'claiming',
    'done',
    'failed',
)

# fmt: off
TRANSITIONS = {
    (START, 'csg-0'): SECURITY,
    (START, 'csg-1'): OPERATIONAL,
    (SECURITY, 'chap'): CHAP_ALGORITHM,
    (SECURITY, 'none'): SECURED,
    (CHAP_ALGORITHM, 'challenge'): CHAP_RESPONSE,
    (CHAP_RESPONSE, 'proof'): SECURED,
    (SECURED, 'nsg-1'): OPERATIONAL,
    (SECURED, 'nsg-3'): CLAIMING,
    (OPERATIONAL, 'nsg-3'): CLAIMING,
    (CLAIMING, 'claimed'): DONE,
}
# fmt: on
TRANSITIONS.update(((state, 'failure'), FAILED) for state in STATES)

_STAGES = {SECURITY: 0, CHAP_ALGORITHM: 0, CHAP_RESPONSE: 0, SECURED: 0, OPERATIONAL: 1}
_OVER = (CLAIMING, DONE, FAILED)


# -- what the worker puts in -------------------------------------------------------------------------------------------


def admit_everyone(initiator_name):
    """A TargetPolicy's `refuse` that refuses nobody."""
    return None


def admit_nobody(initiator_name):
    """A TargetPolicy's `refuse` where no access rule is given."""
    return 'there is no rule that admits "%s"' % initiator_name


class TargetPolicy(object):
    """What a login to one target, or a discovery, has to obey.

    name: the target's name, None for discovery; alias: str or ''; portal_group_tag: of the portal at which the connection
    arrived, None when the target is not reachable there; refuse: callable(folded initiator name) → None, or a sentence that
    names the rule (the address is already bound in it); accounts: [(user, secret bytes)], any of which admits, none set: no
    authentication; outgoing: (user, secret bytes) or None; algorithms: CHAP numbers, the preferred first; keys: {text key:
    typed own value}, keys.OURS where missing; redirect: None or (permanent bool, 'address:port'); not_ready: None or a
    sentence.
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
    )

    def __init__(
        self,
        name=None,
        alias='',
        portal_group_tag=None,
        refuse=admit_nobody,
        accounts=(),
        outgoing=None,
        algorithms=chap.DEFAULT_ALGORITHMS,
        keys=None,
        redirect=None,
        not_ready=None,
    ):
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

    def own(self, key):
        """The typed own value of a text key."""
        return self.keys.get(key, keys.OURS[key])


class LoginPolicy(object):
    """What a connection's login has to obey. targets: callable(folded name) → TargetPolicy or None, or a dict of them;
    discovery: TargetPolicy, or None when discovery is not served; window: commands that an initiator may have on the way;
    maximum_pdus, maximum_text: limits of one login, a count and bytes."""

    __slots__ = ('target', 'discovery', 'window', 'maximum_pdus', 'maximum_text')

    def __init__(
        self,
        targets,
        discovery,
        window=128,
        maximum_pdus=MAXIMUM_PDUS,
        maximum_text=text.MAXIMUM_TEXT,
    ):
        self.target = targets if callable(targets) else targets.get
        self.discovery = discovery
        self.window = window
        self.maximum_pdus = maximum_pdus
        self.maximum_text = maximum_text


# -- what comes out ----------------------------------------------------------------------------------------------------


class Reply(namedtuple('Reply', 'pdus')):
    """Send these LoginResponses; the login goes on, or is over when the negotiation has a result."""

    __slots__ = ()


class Claim(namedtuple('Claim', 'claim')):
    """Ask the master for the session, then call claimed or refused. claim: a LoginResult with the
    tsih of the request (0: a new session) and stat_sn None."""

    __slots__ = ()


class LoginResult(
    namedtuple(
        'LoginResult',
        'session_type initiator_name initiator_alias isid tsih cid target_name '
        'portal_group_tag account values declared_data_segment cmd_sn stat_sn',
    )
):
    """session_type: 'Normal' or 'Discovery'; initiator_name: folded; initiator_alias: str or '';
    isid: 12 hex digits; target_name, portal_group_tag: None in discovery; account: the user that
    proved itself, or None; values: {key: typed value}, every operational key, with
    MaxRecvDataSegmentLength the initiator's; declared_data_segment: our own, bytes; cmd_sn:
    ExpCmdSN to begin with; stat_sn: the next StatSN."""

    __slots__ = ()


class Redirected(LoginFailure):
    """The login is to be tried elsewhere. target_address: 'address:port', without a tag (RFC 7143
    13.8)."""

    def __init__(self, permanent, target_address):
        status = const.MOVED_PERMANENTLY if permanent else const.MOVED_TEMPORARILY
        super(Redirected, self).__init__(
            status[0], status[1], 'the target is to be found at %s' % target_address
        )
        self.target_address = target_address


def failure(status, why):
    """LoginFailure of a status pair of const."""
    return LoginFailure(status[0], status[1], why)


def join(claim, leading, connections):
    """The values {key: typed value} of a further connection of a session: the session's, with its
    own of the connection.

    claim: LoginResult of the connection; leading: LoginResult of the session's first one;
    connections: how many the session has besides, one with the same CID (which this one replaces)
    not counted. Raises LoginFailure.
    """
    for field in ('session_type', 'initiator_name', 'isid', 'target_name', 'portal_group_tag'):
        if getattr(claim, field) != getattr(leading, field):
            raise failure(
                const.CANNOT_INCLUDE_IN_SESSION,
                'the session %d has another %s' % (claim.tsih, field.replace('_', ' ')),
            )
    if connections >= leading.values['MaxConnections']:
        raise failure(
            const.TOO_MANY_CONNECTIONS,
            'the session has %d connections, and so many were agreed on' % connections,
        )
    values = dict(leading.values)
    values.update(
        (name, value)
        for name, value in claim.values.items()
        if keys.KEYS[name].scope == keys.CONNECTION
    )
    return values


class LoginNegotiation(object):
    """One login. policy: LoginPolicy; portal: what the caller calls the portal of arrival, for its own use; random_bytes:
    callable (count) → bytes; numbering: callable () → (exp_cmd_sn, max_cmd_sn) of the session that a connection with
    TSIH ≠ 0 joins, or None when there is no such session; no callable: there is never one.

    Public to read: state; initiator_name, target_name: None until they are known; result:
    LoginResult once the last Reply is out.
    """

    def __init__(self, policy, portal, random_bytes, numbering=None):
        self.state = START
        self.portal = portal
        self.initiator_name = None
        self.target_name = None
        self.result = None
        self._policy = policy
        self._random_bytes = random_bytes
        self._numbering = numbering
        self._target = None  # TargetPolicy, once identified
        self._chap = None
        self._session_type = keys.NORMAL
        self._settled = {}
        self._first = None  # the first request: what later ones must repeat
        self._request = None  # the one being answered
        self._count = 0
        self._collector = text.Collector(policy.maximum_text)
        self._pieces = []  # of our answer, still to send
        self._may_transit = False  # what the answer being sent says to the T bit
        self._unasked = []  # pairs that go out with the next answer without having been offered
        self._declared = False  # our MaxRecvDataSegmentLength is out
        self._stat_sn = 0

    # -- doors -------------------------------------------------------------------------------------------------------

    def receive(self, pdu):
        """The step that this request leads to: Reply or Claim. Raises LoginFailure. `pdu.data` is
        not kept."""
        try:
            return self._receive(pdu)
        except text.TextError as e:
            self._go('failure')
            raise failure(const.INITIATOR_ERROR, str(e))
        except LoginFailure:
            self._go('failure')
            raise

    def claimed(self, tsih):
        """The Reply that ends the login. tsih: not 0."""
        self._go('claimed')
        response = self._response(self._pieces.pop(), transit=True, nsg=const.FULL_FEATURE_PHASE)
        response.tsih = tsih
        self.result = self._outcome(tsih, self._stat_sn)
        return Reply([response])

    def refused(self, refusal):
        """The Reply that ends the login when the master refuses. refusal: LoginFailure."""
        self._go('failure')
        return Reply([self.failure_response(refusal)])

    def failure_response(self, refusal):
        """The LoginResponse that tells the initiator of a LoginFailure; the connection closes after
        it."""
        self._may_transit = False
        data = b''
        if isinstance(refusal, Redirected):
            data = text.render([('TargetAddress', refusal.target_address)])
        response = self._response(data)
        response.status_class = refusal.status_class
        response.status_detail = refusal.status_detail
        return response

    # -- one request -------------------------------------------------------------------------------------------------

    def _go(self, event):
        self.state = TRANSITIONS[self.state, event]

    def _receive(self, pdu):
        self._check_sequence(pdu)
        self._check_flags(pdu)
        if self._pieces:
            return self._go_on(pdu)
        whole = self._collector.add(pdu.data, pdu.continues)
        if whole is None:
            return Reply([self._response(b'')])
        pairs = text.parse(whole)
        if self.state == START:
            self._identify(pairs)
            self._go('csg-%d' % pdu.csg)
        answers, self._may_transit = _RECEIVERS[self.state](self, pairs)
        answers = self._unasked + answers
        self._unasked = []
        self._pieces = text.split(text.render(answers), LOGIN_DATA_SEGMENT)
        return self._send_piece()

    def _check_sequence(self, pdu):
        """What later requests must repeat, RFC 7143 11.12; how many there may be."""
        if self.state in _OVER or not isinstance(pdu, LoginRequest):
            raise failure(
                const.INVALID_DURING_LOGIN,
                'a PDU that may not come now, in a login that is %s' % self.state,
            )
        self._count += 1
        if self._count > self._policy.maximum_pdus:
            raise failure(
                const.INITIATOR_ERROR,
                'a login of more than %d requests' % self._policy.maximum_pdus,
            )
        first = self._first
        # the header alone: `data` may be a view of what changes
        self._request = LoginRequest.decode(pdu.encode())
        if first is None:
            self._first = self._request
            self._stat_sn = pdu.exp_stat_sn
            if pdu.version_min > const.DRAFT_VERSION:
                raise failure(
                    const.UNSUPPORTED_VERSION,
                    'the initiator wants version %d or later' % pdu.version_min,
                )
            return
        if (pdu.isid, pdu.tsih, pdu.cid, pdu.itt) != (first.isid, first.tsih, first.cid, first.itt):
            raise failure(const.INITIATOR_ERROR, 'ISID, TSIH, CID or ITT changed during the login')

    def _check_flags(self, pdu):
        """T, C, CSG and NSG, RFC 7143 11.12.1 to 11.12.3."""
        if pdu.csg not in (const.SECURITY_NEGOTIATION, const.OPERATIONAL_NEGOTIATION):
            raise failure(const.INITIATOR_ERROR, 'there is no login stage %d' % pdu.csg)
        stage = _STAGES.get(self.state, self._first.csg)
        if pdu.csg != stage:
            raise failure(
                const.INITIATOR_ERROR,
                'login stage %d while the login is in stage %d' % (pdu.csg, stage),
            )
        if not pdu.transit:
            return
        if pdu.continues:
            raise failure(const.INITIATOR_ERROR, 'a request with both T and C')
        if pdu.nsg <= pdu.csg or pdu.nsg not in (
            const.OPERATIONAL_NEGOTIATION,
            const.FULL_FEATURE_PHASE,
        ):
            raise failure(
                const.INITIATOR_ERROR,
                'there is no way from login stage %d to %d' % (pdu.csg, pdu.nsg),
            )

    # -- answers -----------------------------------------------------------------------------------------------------

    def _go_on(self, pdu):
        """A request while our own text is not all out: it must be empty (RFC 7143 11.12.2)."""
        if pdu.data or pdu.continues:
            raise failure(const.INITIATOR_ERROR, 'a text that begins before ours is at its end')
        return self._send_piece()

    def _send_piece(self):
        is_last = len(self._pieces) == 1
        if not (is_last and self._may_transit and self._request.transit):
            return Reply([self._response(self._pieces.pop(0), continues=not is_last)])
        if self._request.nsg == const.OPERATIONAL_NEGOTIATION:
            self._go('nsg-1')
            return Reply(
                [
                    self._response(
                        self._pieces.pop(), transit=True, nsg=const.OPERATIONAL_NEGOTIATION
                    )
                ]
            )
        self._check_demands()
        self._go('nsg-3')
        return Claim(self._outcome(self._request.tsih, None))

    def _check_demands(self):
        """What the target demands and no offer brought about: a digest list without 'None'."""
        for key in ('HeaderDigest', 'DataDigest'):
            if (
                text.NONE not in self._target.own(key)
                and self._settled.get(key, text.NONE) == text.NONE
            ):
                raise failure(
                    const.INITIATOR_ERROR, 'the target demands a %s and none was agreed on' % key
                )

    def _response(self, data, transit=False, continues=False, nsg=0):
        request = self._request or LoginRequest()
        exp_cmd_sn, max_cmd_sn = self._window()
        response = LoginResponse(
            csg=request.csg,
            nsg=nsg,
            transit=transit,
            continues=continues,
            version_max=const.DRAFT_VERSION,
            version_active=const.DRAFT_VERSION,
            isid=request.isid,
            tsih=request.tsih,
            itt=request.itt,
            stat_sn=self._stat_sn,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=max_cmd_sn,
            data=data,
        )
        self._stat_sn = serial.add(self._stat_sn, 1)
        return response

    def _window(self):
        if self._first is None:
            return 0, 0
        own = self._first.cmd_sn, serial.add(self._first.cmd_sn, self._policy.window - 1)
        return self._joined() or own

    def _joined(self):
        """(ExpCmdSN, MaxCmdSN) of the session that this connection joins, or None."""
        return self._numbering() if self._first.tsih and self._numbering is not None else None

    def _outcome(self, tsih, stat_sn):
        target = self._target
        return LoginResult(
            session_type=self._session_type,
            initiator_name=self.initiator_name,
            initiator_alias=self._settled.get('InitiatorAlias', ''),
            isid=hexlify(self._first.isid).decode('ascii'),
            tsih=tsih,
            cid=self._first.cid,
            target_name=target.name,
            portal_group_tag=target.portal_group_tag,
            account=self._chap.account if self._chap else None,
            values=keys.whole(self._settled),
            declared_data_segment=self._declared_data_segment(),
            cmd_sn=self._window()[0],
            stat_sn=stat_sn,
        )

    def _declared_data_segment(self):
        return (
            self._target.own('MaxRecvDataSegmentLength')
            if self._declared
            else keys.DEFAULTS['MaxRecvDataSegmentLength']
        )

    # -- who, and to what --------------------------------------------------------------------------------------------

    def _identify(self, pairs):
        """The first text: initiator, session type, target, access rule (RFC 7143 6.3.1)."""
        said = dict(pairs)
        if 'InitiatorName' not in said:
            raise failure(const.MISSING_PARAMETER, 'the first login request has no InitiatorName')
        flaw = names.flaw(said['InitiatorName'], lenient=True)
        if flaw:
            raise failure(
                const.INITIATOR_ERROR,
                'the InitiatorName "%s" cannot be used: %s' % (said['InitiatorName'], flaw),
            )
        self.initiator_name = names.fold(said['InitiatorName'])
        self._session_type = said.get('SessionType', keys.NORMAL)
        if self._session_type == keys.DISCOVERY:
            self._target = self._find_discovery()
        elif self._session_type == keys.NORMAL:
            self._target = self._find_target(said.get('TargetName'))
        else:
            raise failure(
                const.SESSION_TYPE_NOT_SUPPORTED,
                'there is no session type "%s"' % self._session_type,
            )
        self._admit()
        if self._first.tsih and self._joined() is None:
            raise failure(
                const.SESSION_DOES_NOT_EXIST, 'there is no session %d to join' % self._first.tsih
            )
        if self._request.csg == const.OPERATIONAL_NEGOTIATION and self._target.accounts:
            raise failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator skipped authentication, which is asked for',
            )
        if self._session_type == keys.NORMAL and not self._first.tsih:
            self._unasked.append(('TargetPortalGroupTag', str(self._target.portal_group_tag)))
            if self._target.alias:
                self._unasked.append(('TargetAlias', self._target.alias))

    def _find_discovery(self):
        if self._first.tsih:
            raise failure(
                const.CANNOT_INCLUDE_IN_SESSION, 'a discovery session has one connection only'
            )
        if self._policy.discovery is None:
            raise failure(const.SESSION_TYPE_NOT_SUPPORTED, 'discovery is not served here')
        return self._policy.discovery

    def _find_target(self, name):
        if name is None:
            raise failure(
                const.MISSING_PARAMETER,
                'the first login request of a normal session has no TargetName',
            )
        self.target_name = names.fold(name)
        target = self._policy.target(self.target_name)
        if target is None:
            raise failure(const.NOT_FOUND, 'there is no target "%s"' % name)
        if target.portal_group_tag is None:
            raise failure(
                const.NOT_FOUND, 'the target "%s" is not to be reached through this portal' % name
            )
        return target

    def _admit(self):
        target = self._target
        refusal = target.refuse(self.initiator_name)
        if refusal is not None:
            raise failure(const.AUTHORIZATION_FAILURE, refusal)
        if target.redirect is not None:
            raise Redirected(*target.redirect)
        if target.not_ready is not None:
            raise failure(const.SERVICE_UNAVAILABLE, target.not_ready)

    # -- one text in each state: (answers, whether T is granted) ------------------------------------------------------

    def _negotiate(self, pairs, stage):
        negotiated = keys.negotiate(
            pairs, self._target.keys, stage, self._session_type, not self._first.tsih, self._settled
        )
        self._settled.update(negotiated.values)
        return negotiated.answers

    def _split_authentication(self, pairs, allowed):
        """({key: value} of `allowed` that were sent, answers to all the others). Raises TextError
        for keys out of step."""
        said = {}
        others = []
        for key, value in pairs:
            row = keys.check_use(key, value, keys.SECURITY)
            if row is None or row.result != keys.AUTHENTICATION:
                others.append((key, value))
            elif key not in allowed:
                raise keys.KeyMisused('%s has no place in this step of the authentication' % key)
            elif key in said:
                raise keys.KeyMisused('%s was sent twice' % key)
            else:
                said[key] = value
        return said, self._negotiate(others, keys.SECURITY)

    def _security(self, pairs):
        said, answers = self._split_authentication(pairs, ('AuthMethod',))
        if 'AuthMethod' in said:
            return self._choose_method(said['AuthMethod'].split(','), answers)
        if not self._request.transit:
            return answers, False
        if self._target.accounts:
            raise failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator offers no authentication, which is asked for',
            )
        self._go('none')
        return answers, True

    def _choose_method(self, offered, answers):
        target = self._target
        if target.accounts and 'CHAP' in offered:
            self._chap = chap.Chap(
                target.accounts, target.outgoing, target.algorithms, self._random_bytes
            )
            self._go('chap')
            return answers + [('AuthMethod', 'CHAP')], False
        if target.accounts or text.NONE not in offered:
            raise failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator offers %s where the target asks for %s'
                % (', '.join(offered), 'CHAP' if target.accounts else 'no authentication'),
            )
        self._go('none')
        return answers + [('AuthMethod', text.NONE)], True

    def _chap_algorithm(self, pairs):
        said, answers = self._split_authentication(pairs, ('CHAP_A',))
        self._demand(said, ('CHAP_A',))
        challenge = self._checked(self._chap.choose, said['CHAP_A'])
        self._go('challenge')
        return answers + challenge, False

    def _chap_response(self, pairs):
        said, answers = self._split_authentication(pairs, ('CHAP_N', 'CHAP_R', 'CHAP_I', 'CHAP_C'))
        self._demand(said, ('CHAP_N', 'CHAP_R'))
        if 'CHAP_I' in said or 'CHAP_C' in said:
            self._demand(said, ('CHAP_I', 'CHAP_C'))
        proof = self._checked(self._chap.verify, said)
        self._go('proof')
        return answers + proof, True

    @staticmethod
    def _demand(said, wanted):
        for key in wanted:
            if key not in said:
                raise failure(const.MISSING_PARAMETER, '%s is missing in the authentication' % key)

    @staticmethod
    def _checked(step, argument):
        try:
            return step(argument)
        except chap.ProofFailed as e:
            raise failure(const.AUTHENTICATION_FAILURE, str(e))
        except chap.ChapError as e:
            raise failure(const.INITIATOR_ERROR, str(e))

    def _secured(self, pairs):
        _, answers = self._split_authentication(pairs, ())
        return answers, True

    def _operational(self, pairs):
        answers = self._negotiate(pairs, keys.OPERATIONAL)
        if not self._declared:
            self._declared = True
            answers.append(
                ('MaxRecvDataSegmentLength', str(self._target.own('MaxRecvDataSegmentLength')))
            )
        return answers, True


# fmt: off
_RECEIVERS = {
    SECURITY: LoginNegotiation._security,
    CHAP_ALGORITHM: LoginNegotiation._chap_algorithm,
    CHAP_RESPONSE: LoginNegotiation._chap_response,
    SECURED: LoginNegotiation._secured,
    OPERATIONAL: LoginNegotiation._operational,
}
# fmt: on
