"""The target's side of a login (RFC 7143 6.3, 11.12, 11.13, 12) as a state machine. Pure; imports the
rest of iscsi.

The states and their transitions are in `login_states`. `receive_request` takes a decoded
LoginRequest and returns a step: LoginReply (send the PDUs and wait for the next request) or
SessionClaim (ask the master, then call `claim_granted` or `claim_refused`). It raises
LoginFailure when the login has failed; `failure_response(failure)` is then the last PDU to send.

Invariants
 1. An initiator that reaches CLAIMING has authenticated if accounts are configured, and has passed
    the access rule, whatever stages it went through.
 2. Every response is stamped here: StatSN increases by 1 each, MaxCmdSN is never before ExpCmdSN.
    CmdSN and ExpStatSN of the first request are accepted as they are (Windows continues the
    numbers of its discovery session).
 3. TargetPortalGroupTag is in the first response of a new normal session; without it Windows waits
    forever. Of the keys that the initiator did not offer, only that one, TargetAlias and the
    target's MaxRecvDataSegmentLength are sent.
"""

from binascii import hexlify
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from targetd.iscsi import chap, const, keys, names, serial, text
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.login_policy import LoginPolicy
from targetd.iscsi.login_result import (
    LoginReply,
    LoginResult,
    Redirected,
    SessionClaim,
    login_failure,
)
from targetd.iscsi.login_states import (
    CHAP_ALGORITHM,
    CHAP_RESPONSE,
    FINISHED,
    OPERATIONAL,
    SECURED,
    SECURITY,
    STAGES,
    START,
    TRANSITIONS,
)
from targetd.iscsi.pdu import LoginRequest, LoginResponse, Pdu

Pairs = List[Tuple[str, str]]
Step = Union[LoginReply, SessionClaim]

# MaxRecvDataSegmentLength of both sides until the login is over, RFC 7143 13.12
LOGIN_DATA_SEGMENT = 8192


class LoginNegotiation(object):
    """The state machine of one login.

    policy: LoginPolicy; portal: the caller's value for the portal at which the connection arrived,
    kept for the caller; random_bytes: callable(count) -> bytes; session_values: the values {key:
    typed value} in force in the session that a connection with TSIH != 0 joins, or None when that
    session does not exist.

    Public to read: state; initiator_name, target_name: None until they are known; result: the
    LoginResult after the last LoginReply was returned.
    """

    def __init__(
        self,
        policy: LoginPolicy,
        portal: Any,
        random_bytes: Callable[[int], bytes],
        session_values: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.state = START
        self.portal = portal
        self.initiator_name: Optional[str] = None
        self.target_name: Optional[str] = None
        self.result: Optional[LoginResult] = None
        self._policy = policy
        self._random_bytes = random_bytes
        self._session_values = session_values
        self._target: Any = None  # TargetPolicy, once identified
        self._chap: Any = None
        self._session_type = keys.NORMAL
        self._settled: Dict[str, Any] = {}
        self._first: Any = None  # the first request; later ones must repeat its fields
        self._request: Any = None  # the request that is being answered
        self._count = 0
        self._collector = text.TextCollector(policy.maximum_text)
        self._pieces: List[bytes] = []  # pieces of the answer that are still to be sent
        self._may_transit = False  # True if the answer that is being sent grants the T bit
        self._unoffered: Pairs = []  # pairs for the next answer that the initiator did not offer
        self._declared = False  # True when the target's MaxRecvDataSegmentLength was sent
        self._stat_sn = 0

    # -- public --------------------------------------------------------------------------------

    def receive_request(self, request: Pdu) -> Step:
        """Return the step that follows from this request: LoginReply or SessionClaim. Raises
        LoginFailure. Does not keep `request.data`."""
        try:
            return self._handle_request(request)
        except text.TextError as e:
            self._change_state('failure')
            raise login_failure(const.INITIATOR_ERROR, str(e))
        except LoginFailure:
            self._change_state('failure')
            raise

    def claim_granted(self, tsih: int) -> LoginReply:
        """Return the LoginReply that ends the login successfully. tsih: not 0."""
        self._change_state('claimed')
        response = self._response(self._pieces.pop(), transit=True, nsg=const.FULL_FEATURE_PHASE)
        response.tsih = tsih
        self.result = self._login_result(tsih, self._stat_sn)
        return LoginReply([response])

    def last_response(self, tsih: int) -> LoginResponse:
        """Return the response that would end the login successfully, for a connection whose login
        another process ends. The login stays in its state."""
        stat_sn = self._stat_sn
        response = self._response(self._pieces[-1], transit=True, nsg=const.FULL_FEATURE_PHASE)
        response.tsih, self._stat_sn = tsih, stat_sn
        return response

    def claim_refused(self, refusal: LoginFailure) -> LoginReply:
        """Return the LoginReply that ends the login after the master refused the claim. refusal:
        LoginFailure."""
        self._change_state('failure')
        return LoginReply([self.failure_response(refusal)])

    def failure_response(self, refusal: LoginFailure) -> LoginResponse:
        """Return the LoginResponse that reports a LoginFailure to the initiator. The caller sends it
        and closes the connection."""
        self._may_transit = False
        data = b''
        if isinstance(refusal, Redirected):
            data = text.render_text([('TargetAddress', refusal.target_address)])
        response = self._response(data)
        response.status_class = refusal.status_class
        response.status_detail = refusal.status_detail
        return response

    # -- one request ---------------------------------------------------------------------------

    def _change_state(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _handle_request(self, request: Pdu) -> Step:
        self._check_sequence(request)
        self._check_flags(request)
        if self._pieces:
            return self._continue_answer(request)
        whole = self._collector.add_piece(request.data, request.continues)
        if whole is None:
            return LoginReply([self._response(b'')])
        pairs = text.parse_text(whole)
        if self.state == START:
            self._identify(pairs)
            self._change_state('csg-%d' % request.csg)
        answers, self._may_transit = _RECEIVERS[self.state](self, pairs)
        answers = self._unoffered + answers
        self._unoffered = []
        self._pieces = text.split_text(text.render_text(answers), LOGIN_DATA_SEGMENT)
        return self._send_piece()

    def _check_sequence(self, request: Pdu) -> None:
        """Check the fields that every request must repeat (RFC 7143 11.12) and the number of
        requests."""
        if self.state in FINISHED or not isinstance(request, LoginRequest):
            raise login_failure(
                const.INVALID_DURING_LOGIN,
                'a PDU that is not allowed in login state "%s"' % self.state,
            )
        self._count += 1
        if self._count > self._policy.maximum_pdus:
            raise login_failure(
                const.INITIATOR_ERROR,
                'the login has more than %d requests' % self._policy.maximum_pdus,
            )
        first = self._first
        # Only the header is kept: `data` may be a view of a buffer that is used again.
        self._request = LoginRequest.decode(request.encode())
        if first is None:
            self._first = self._request
            self._stat_sn = request.exp_stat_sn
            if request.version_min > const.DRAFT_VERSION:
                raise login_failure(
                    const.UNSUPPORTED_VERSION,
                    'the initiator wants version %d or later' % request.version_min,
                )
            return
        if (request.isid, request.tsih, request.cid, request.itt) != (
            first.isid,
            first.tsih,
            first.cid,
            first.itt,
        ):
            raise login_failure(
                const.INITIATOR_ERROR, 'ISID, TSIH, CID or ITT changed during the login'
            )

    def _check_flags(self, request: Pdu) -> None:
        """T, C, CSG and NSG, RFC 7143 11.12.1 to 11.12.3."""
        if request.csg not in (const.SECURITY_NEGOTIATION, const.OPERATIONAL_NEGOTIATION):
            raise login_failure(
                const.INITIATOR_ERROR, '%d is not a valid current login stage (CSG)' % request.csg
            )
        stage = STAGES.get(self.state, self._first.csg)
        if request.csg != stage:
            raise login_failure(
                const.INITIATOR_ERROR,
                'the request is for login stage %d while the login is in stage %d'
                % (request.csg, stage),
            )
        if not request.transit:
            return
        if request.continues:
            raise login_failure(const.INITIATOR_ERROR, 'a request has both the T bit and the C bit')
        if request.nsg <= request.csg or request.nsg not in (
            const.OPERATIONAL_NEGOTIATION,
            const.FULL_FEATURE_PHASE,
        ):
            raise login_failure(
                const.INITIATOR_ERROR,
                'a transition from login stage %d to stage %d is not allowed'
                % (request.csg, request.nsg),
            )

    # -- answers -------------------------------------------------------------------------------

    def _continue_answer(self, request: Pdu) -> Step:
        """Answer a request that arrives while pieces of the answer are still to be sent. It must be
        empty (RFC 7143 11.12.2)."""
        if request.data or request.continues:
            raise login_failure(
                const.INITIATOR_ERROR, 'a new text begins before the whole answer was sent'
            )
        return self._send_piece()

    def _send_piece(self) -> Step:
        is_last = len(self._pieces) == 1
        if not (is_last and self._may_transit and self._request.transit):
            return LoginReply([self._response(self._pieces.pop(0), continues=not is_last)])
        if self._request.nsg == const.OPERATIONAL_NEGOTIATION:
            self._change_state('nsg-1')
            return LoginReply(
                [
                    self._response(
                        self._pieces.pop(), transit=True, nsg=const.OPERATIONAL_NEGOTIATION
                    )
                ]
            )
        self._check_required_digests()
        self._change_state('nsg-3')
        return SessionClaim(self._login_result(self._request.tsih, None))

    def _check_required_digests(self):
        """Fail if the target's list of digests has no 'None' and no digest was negotiated."""
        for key in ('HeaderDigest', 'DataDigest'):
            if (
                text.NONE not in self._target.own_value(key)
                and self._settled.get(key, text.NONE) == text.NONE
            ):
                raise login_failure(
                    const.INITIATOR_ERROR, 'the target requires a %s, and none was negotiated' % key
                )

    def _response(
        self, data: bytes, transit: bool = False, continues: bool = False, nsg: int = 0
    ) -> LoginResponse:
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

    def _window(self) -> Tuple[int, int]:
        if self._first is None:
            return 0, 0
        start, window = self._first.cmd_sn, self._policy.window
        if self._first.tsih:
            # Numbers that the session has passed: the initiator has never more than a window of
            # commands that are not acknowledged. RFC 7143 4.2.2.1: it ignores smaller numbers than
            # it has. The last response has the numbers of the session.
            start = serial.add(start, -window)
        return start, serial.add(start, window - 1)

    def _login_result(self, tsih, stat_sn):
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
            values=keys.effective_values(self._settled),
            declared_data_segment=self._declared_data_segment(),
            cmd_sn=self._window()[0],
            stat_sn=stat_sn,
        )

    def _declared_data_segment(self):
        return (
            self._target.own_value('MaxRecvDataSegmentLength')
            if self._declared
            else keys.DEFAULTS['MaxRecvDataSegmentLength']
        )

    # -- the initiator, the target and the access rule -----------------------------------------

    def _identify(self, pairs: Pairs) -> None:
        """Evaluate the first text: initiator, session type, target, access rule (RFC 7143 6.3.1)."""
        sent = dict(pairs)
        if 'InitiatorName' not in sent:
            raise login_failure(
                const.MISSING_PARAMETER, 'the first login request has no InitiatorName'
            )
        flaw = names.name_error(sent['InitiatorName'], lenient=True)
        if flaw:
            raise login_failure(
                const.INITIATOR_ERROR,
                'the InitiatorName "%s" is not valid: %s' % (sent['InitiatorName'], flaw),
            )
        self.initiator_name = names.fold(sent['InitiatorName'])
        self._session_type = sent.get('SessionType', keys.NORMAL)
        if self._session_type == keys.DISCOVERY:
            self._target = self._find_discovery()
        elif self._session_type == keys.NORMAL:
            self._target = self._find_target(sent.get('TargetName'))
        else:
            raise login_failure(
                const.SESSION_TYPE_NOT_SUPPORTED,
                '"%s" is not a valid SessionType' % self._session_type,
            )
        self._check_admission()
        if self._first.tsih and self._session_values is None:
            raise login_failure(
                const.SESSION_DOES_NOT_EXIST, 'session %d does not exist' % self._first.tsih
            )
        if self._request.csg == const.OPERATIONAL_NEGOTIATION and self._target.accounts:
            raise login_failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator skipped authentication, which is required',
            )
        if self._session_type == keys.NORMAL and not self._first.tsih:
            self._unoffered.append(('TargetPortalGroupTag', str(self._target.portal_group_tag)))
            if self._target.alias:
                self._unoffered.append(('TargetAlias', self._target.alias))

    def _find_discovery(self):
        if self._first.tsih:
            raise login_failure(
                const.CANNOT_INCLUDE_IN_SESSION, 'a discovery session can have only one connection'
            )
        if self._policy.discovery is None:
            raise login_failure(
                const.SESSION_TYPE_NOT_SUPPORTED, 'discovery is not offered at this portal'
            )
        return self._policy.discovery

    def _find_target(self, name):
        if name is None:
            raise login_failure(
                const.MISSING_PARAMETER,
                'the first login request of a normal session has no TargetName',
            )
        self.target_name = names.fold(name)
        target = self._policy.target(self.target_name)
        if target is None:
            raise self._not_found('there is no target "%s"' % name)
        if target.portal_group_tag is None:
            raise self._not_found('the target "%s" is not reachable through this portal' % name)
        return target

    def _not_found(self, why):
        """The LoginFailure for a target that is not here. 'Not found' would tell a stranger which
        names exist, because 'authorization failure' is the answer of those that do."""
        is_stranger = self._policy.is_stranger(self.initiator_name)
        return login_failure(const.AUTHORIZATION_FAILURE if is_stranger else const.NOT_FOUND, why)

    def _check_admission(self):
        target = self._target
        refusal = target.refuse(self.initiator_name)
        if refusal is not None:
            raise login_failure(const.AUTHORIZATION_FAILURE, refusal)
        if target.redirect is not None:
            raise Redirected(*target.redirect)
        if target.not_ready is not None:
            raise login_failure(const.SERVICE_UNAVAILABLE, target.not_ready)

    # -- one text in each state: (answers, True if the T bit is granted) -----------------------

    def _negotiate(self, pairs: Pairs, stage: str) -> Pairs:
        negotiated = keys.negotiate_keys(
            pairs,
            self._target.keys,
            stage,
            self._session_type,
            self._session_values if self._first.tsih else None,
            self._settled,
        )
        self._settled.update(negotiated.values)
        return negotiated.answers

    def _split_authentication(
        self, pairs: Pairs, allowed: Sequence[str]
    ) -> Tuple[Dict[str, str], Pairs]:
        """Return ({key: value} of the authentication keys in `allowed` that were sent, answers to
        all other keys). Raises TextError for an authentication key that is not in `allowed`."""
        sent = {}
        others = []
        for key, value in pairs:
            row = keys.check_key_use(key, value, keys.SECURITY)
            if row is None or row.result != keys.AUTHENTICATION:
                others.append((key, value))
            elif key not in allowed:
                raise keys.KeyMisused('%s is not allowed in this step of the authentication' % key)
            elif key in sent:
                raise keys.KeyMisused('%s was sent twice' % key)
            else:
                sent[key] = value
        return sent, self._negotiate(others, keys.SECURITY)

    def _security(self, pairs):
        sent, answers = self._split_authentication(pairs, ('AuthMethod',))
        if 'AuthMethod' in sent:
            return self._choose_method(sent['AuthMethod'].split(','), answers)
        if not self._request.transit:
            return answers, False
        if self._target.accounts:
            raise login_failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator offers no authentication, which is required',
            )
        self._change_state('none')
        return answers, True

    def _choose_method(self, offered, answers):
        target = self._target
        if target.accounts and 'CHAP' in offered:
            self._chap = target.new_chap(self._random_bytes)
            self._change_state('chap')
            return answers + [('AuthMethod', 'CHAP')], False
        if target.accounts or text.NONE not in offered:
            raise login_failure(
                const.AUTHENTICATION_FAILURE,
                'the initiator offers %s, and the target requires %s'
                % (', '.join(offered), 'CHAP' if target.accounts else 'no authentication'),
            )
        self._change_state('none')
        return answers + [('AuthMethod', text.NONE)], True

    def _chap_algorithm(self, pairs):
        sent, answers = self._split_authentication(pairs, ('CHAP_A',))
        self._require(sent, ('CHAP_A',))
        challenge = self._run_chap_step(self._chap.choose_algorithm, sent['CHAP_A'])
        self._change_state('challenge')
        return answers + challenge, False

    def _chap_response(self, pairs):
        sent, answers = self._split_authentication(pairs, ('CHAP_N', 'CHAP_R', 'CHAP_I', 'CHAP_C'))
        self._require(sent, ('CHAP_N', 'CHAP_R'))
        if 'CHAP_I' in sent or 'CHAP_C' in sent:
            self._require(sent, ('CHAP_I', 'CHAP_C'))
        proof = self._run_chap_step(self._chap.verify_response, sent)
        self._change_state('proof')
        return answers + proof, True

    @staticmethod
    def _require(sent, wanted):
        for key in wanted:
            if key not in sent:
                raise login_failure(
                    const.MISSING_PARAMETER, 'the key %s of the authentication is missing' % key
                )

    @staticmethod
    def _run_chap_step(step, argument):
        try:
            return step(argument)
        except chap.AuthenticationFailed as e:
            raise login_failure(const.AUTHENTICATION_FAILURE, str(e))
        except chap.ChapError as e:
            raise login_failure(const.INITIATOR_ERROR, str(e))

    def _secured(self, pairs):
        _, answers = self._split_authentication(pairs, ())
        return answers, True

    def _operational(self, pairs):
        answers = self._negotiate(pairs, keys.OPERATIONAL)
        if not self._declared:
            self._declared = True
            answers.append(
                (
                    'MaxRecvDataSegmentLength',
                    str(self._target.own_value('MaxRecvDataSegmentLength')),
                )
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
