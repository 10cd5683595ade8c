"""A connection from its first byte to its end: the login, the session claim, then a Connection in
full feature phase.

The login runs in the control thread, which executes the master's orders meanwhile: its answers need no
further thread to wake up. The connection then has a thread of its own. May import iscsi, scsi.sam,
config through policy.
"""

import functools
import os
import socket
import struct
import time
from collections import namedtuple

from targetd import log
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import LoginFailure, PduRejected
from targetd.iscsi.framing import BHS, Framer
from targetd.iscsi.login import LOGIN_DATA_SEGMENT, LoginNegotiation
from targetd.iscsi.login_result import SessionClaim
from targetd.iscsi.session import Session
from targetd.scsi.sam import Nexus
from targetd.worker.connection.blocking import TakenOver
from targetd.worker.connection.error_recovery import connection_class
from targetd.worker.connection.outbox import SEND_SECONDS
from targetd.worker.master_chap import MasterChap

_NOW = socket.MSG_DONTWAIT
_TIMEVAL = struct.Struct('@ll')
CLAIM_SECONDS = 30.0  # the master may first have to end a session that is reinstated


class Start(namedtuple('Start', 'cid stat_sn declared values leftover response')):
    """How a connection begins. stat_sn: the next StatSN; declared: the target's
    MaxRecvDataSegmentLength; values: {key: typed value}, None: those of the session; leftover: bytes
    that arrived after the login; response: the last LoginResponse."""

    __slots__ = ()


class LoginEnded(Exception):
    """The login has ended without a session; the message is the reason."""


def set_timeouts(sock, receive_seconds, send_seconds=SEND_SECONDS):
    """Let blocking receives and sends raise BlockingIOError after so many seconds; 0: never."""
    for option, seconds in (
        (socket.SO_RCVTIMEO, receive_seconds),
        (socket.SO_SNDTIMEO, send_seconds),
    ):
        whole = int(seconds)
        sock.setsockopt(
            socket.SOL_SOCKET, option, _TIMEVAL.pack(whole, int((seconds - whole) * 1000000))
        )


def serve_connection(worker, sock, order, members):
    """Do the login of one connection; if it begins a session, raises TakenOver: a thread of its own serves
    it to its end. Otherwise returns (reason, True if it ended in order). [control]

    order: the order `serve`; members: those of the session that it may begin. A connection that joins
    a session continues in the worker of that session (worker.joining)."""
    where = order['connection']
    sock.setblocking(True)
    set_timeouts(sock, 0, worker.configuration.server.login_timeout)
    login = _Login(worker, sock, where, members, _session_values(order), order['tap'])
    try:
        connection = login.login()
    except (LoginEnded, OSError) as e:
        log.debug('%s: no session: %s', shown(where), e)
        sock.close()
        return str(e), login.session is None
    finally:
        login.settle()
    _be_served(connection, members, where)
    connection.blocking.start()
    raise TakenOver


def _session_values(order):
    """{key: typed value} of the session with the TSIH of the login, None if there is none."""
    values = order.get('session_values')
    if values is None:
        return None
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def run_connection(connection, members, where):
    """Serve a connection in full feature phase to its end; returns (reason, True if it ended in
    order). Raises TakenOver."""
    _be_served(connection, members, where)
    try:
        why = connection.run()
    finally:
        if connection.blocking.is_in_charge():
            members.leave(connection)
            # the connection is in a reference cycle: free its buffer before the garbage collection
            connection.framer.release()
    log.info(
        '%s from %s: connection %d is over: %s',
        connection.session.initiator_name,
        shown(where),
        connection.cid,
        why,
    )
    if not connection.ended_quietly:
        connection.worker.captures.on_trouble('a connection ended without a logout', True)
    return why, connection.ended_quietly


def _be_served(connection, members, where):
    connection.blocking.start = functools.partial(
        connection.worker.start_connection,
        connection.socket,
        members,
        _go_on,
        connection,
        members,
        where,
    )


def _go_on(worker, sock, connection, members, where):
    """run_connection() in a thread that takes over the connection."""
    return run_connection(connection, members, where)


def begin_connection(worker, sock, where, session, members, start, tap=None):
    """Make the Connection of a login that is over, and send the last response of the login. Raises
    OSError."""
    interval, count = keepalive_of(worker.configuration, session.target_name)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_SECONDS * 1000)
    connection = connection_class(session.values)(
        worker,
        sock,
        session,
        start.cid,
        start.stat_sn,
        start.declared,
        (interval, count if interval else 0),
        start.leftover,
        start.values,
        where['peer'],
    )
    set_timeouts(sock, interval, connection.send_seconds)
    connection.where = where
    connection.peer_address = where['peer'][0]
    connection.local_address = where['local'][0]
    connection.evidence = where.get('evidence') or {}
    # the connection is added before the last login response, but sends nothing before it
    with connection.outbox.held():
        members.add(connection)
        try:
            send_pdus(sock, [start.response], tap)
        except OSError:
            members.remove(connection)
            raise
    worker.captures.added(connection, tap)
    return connection


def keepalive_of(configuration, target_name):
    """(seconds of silence before a NOP-In, 0: never; how many may remain unanswered) of a session with
    this target, or of a discovery session (None)."""
    server, target = configuration.server, configuration.targets.get(target_name)
    interval = target.nop_interval if target is not None else None
    return server.nop_interval if interval is None else interval, server.nop_count


def send_pdus(sock, pdus, tap=None):
    """Send the PDUs of a login. Raises OSError."""
    if tap is not None:
        tap.login_sent(pdus)
    for one in pdus:
        data = bytes(one.data)
        sock.sendall(one.encode() + data + bytes(-len(data) % 4))


def shown(where):
    address, port = where['peer'][:2]
    return ('[%s]:%d' if ':' in address else '%s:%d') % (address, port)


class _Login(object):
    """The login of one connection. where: {peer: [address, port], local: [address, port], group}."""

    def __init__(self, worker, sock, where, members, session_values, tap):
        self.session = None  # the session that the connection has begun
        self._worker = worker
        self._members = members
        self._socket = sock
        self._where = where
        self._framer = Framer(LOGIN_DATA_SEGMENT, batch_bytes=2 * (LOGIN_DATA_SEGMENT + 1068))
        self._pending = []
        self._has_received = False  # the first bytes were there when the master sent the socket
        self._tap = tap  # worker.capturing.Tap, or None
        self._deadline = time.monotonic() + worker.configuration.server.login_timeout
        self._expected = None  # the CID that `members` expects
        self._chap = None
        policy = worker.policies.login(
            where['peer'][0], where['group'], self._make_chap, where.get('evidence') or {}
        )
        self._negotiation = LoginNegotiation(policy, where, os.urandom, session_values)

    def settle(self):
        """The login is over, with or without success."""
        if self._expected is not None:
            self._members.settle(self._expected)

    def _make_chap(self, target_name):
        self._chap = MasterChap(
            self._worker.ask_and_wait,
            self._where['peer'],
            target_name,
            lambda: self._negotiation.initiator_name,
        )
        return self._chap

    def login(self):
        """Return the Connection when the master has granted the claim. Raises LoginEnded, OSError."""
        negotiation = self._negotiation
        while True:
            request = self._next_request()
            try:
                step = negotiation.receive_request(request)
            except LoginFailure as e:
                self._refuse(e, negotiation.failure_response(e))
            if isinstance(step, SessionClaim):
                return self._claim(step.claim)
            self._send(step.pdus)

    def _refuse(self, failure, response):
        """Refuse the login, and report it to the master for the log and `targetdctl why`. Raises
        LoginEnded."""
        negotiation = self._negotiation
        is_delayed = self._chap is not None and self._chap.is_delayed
        self._worker.report(
            'refused',
            response=response.encode().hex() if is_delayed else None,
            peer=self._where['peer'],
            initiator_name=negotiation.initiator_name or '',
            target_name=negotiation.target_name or '',
            why=failure.why,
            status_class=failure.status_class,
            status_detail=failure.status_detail,
        )
        if not is_delayed:
            self._send([response])
        raise LoginEnded(failure.why)

    def _claim(self, claim):
        if self._pending or (claim.tsih and self._framer.remaining_bytes()):
            self._fail(const.INITIATOR_ERROR, 'a PDU arrived before the login was over')
        nexus, words = None, {}
        if claim.tsih:
            words['login'] = self._last_response(claim)
        elif claim.target_name is not None:
            nexus = Nexus(claim.initiator_name, claim.isid, claim.target_name, self._where['group'])
        answer = self._worker.claim(
            nexus,
            CLAIM_SECONDS,
            peer=self._where['peer'],
            session={
                'initiator_name': claim.initiator_name,
                'initiator_alias': claim.initiator_alias,
                'isid': claim.isid,
                'target_name': claim.target_name,
                'group': self._where['group'],
                'tsih': claim.tsih,
                'cid': claim.cid,
                'account': claim.account,
                'keys': {
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in claim.values.items()
                },
            },
            **words,
        )
        if answer is None:
            self._fail(const.TARGET_ERROR, 'the master did not answer in time')
        if answer['status_class']:
            self._fail((answer['status_class'], answer['status_detail']), answer['why'])
        if claim.tsih:
            raise LoginEnded('the connection continues in the worker of session %d' % claim.tsih)
        return self._granted(answer['tsih'])

    def _last_response(self, claim):
        """The `login` of a claim for a further connection of a session, whose worker sends the last
        response."""
        response = self._negotiation.last_response(claim.tsih)
        return {
            'response': response.encode().hex(),
            'answer': bytes(response.data).hex(),
            'declared': claim.declared_data_segment,
        }

    def _fail(self, status, why):
        refusal = LoginFailure(status[0], status[1], why)
        self._send(self._negotiation.claim_refused(refusal).pdus)
        raise LoginEnded(why)

    def _granted(self, tsih):
        """Send the last login response, after everything that the session needs is in place."""
        (response,) = self._negotiation.claim_granted(tsih).pdus
        result = self._negotiation.result
        self.session = Session(result)
        self._worker.begin_session(self.session)
        self._expected = result.cid
        self._members.expect(result.cid)
        return begin_connection(
            self._worker,
            self._socket,
            self._where,
            self.session,
            self._members,
            Start(
                result.cid,
                result.stat_sn,
                result.declared_data_segment,
                None,
                self._framer.remaining_bytes(),
                response,
            ),
            self._tap,
        )

    # -- the socket ---------------------------------------------------------------------------

    def _next_request(self):
        while not self._pending:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise LoginEnded('the login took longer than login-timeout')
            if self._has_received and self._worker.execute_order(left, self._socket):
                continue
            self._has_received = True
            try:
                if self._framer.landing is None:
                    count = self._socket.recv_into(self._framer.receive_buffer(), 0, _NOW)
                else:
                    count = self._socket.recvmsg_into(self._framer.receive_buffers(), 0, _NOW)[0]
            except BlockingIOError:
                continue
            if not count:
                raise LoginEnded('the initiator closed the connection during login')
            self._received(count)
        fields, ahs, data = self._pending.pop(0)
        if self._tap is not None:
            self._tap.login_received(fields, ahs, data)
        return self._decoded(fields, ahs, data)

    def _received(self, count):
        try:
            self._pending.extend(self._framer.parse_received(count))
            if self._framer.partial is not None:
                self._framer.land_data(None)
        except PduRejected as e:
            raise LoginEnded('the initiator sent no valid login: %s' % e.why)

    def _decoded(self, fields, ahs, data):
        bhs = BHS.pack(*fields)
        try:
            request = pdu.decode(bhs, ahs or b'', b'' if data is None else bytes(data))
        except PduRejected as e:
            raise LoginEnded(e.why)
        return request

    def _send(self, pdus):
        send_pdus(self._socket, pdus, self._tap)
