"""A connection from its first byte to its end: the login, the session claim, then a Connection in
full feature phase.

Runs in the connection's thread. May import iscsi, scsi.sam, config through policy. The socket is
blocking, with timeouts.
"""

import os
import socket
import struct
import time

from targetd import log
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import LoginFailure, PduRejected
from targetd.iscsi.framing import BHS, Framer
from targetd.iscsi.login import LOGIN_DATA_SEGMENT, LoginNegotiation
from targetd.iscsi.login_result import SessionClaim, joined_session_values
from targetd.iscsi.session import Session
from targetd.scsi.sam import Nexus
from targetd.worker.connection.error_recovery import connection_class
from targetd.worker.master_chap import MasterChap

_TIMEVAL = struct.Struct('@ll')
SEND_SECONDS = 60  # a peer that receives nothing for so long is considered lost
CLAIM_SECONDS = 30.0  # the master may first have to end a session that is reinstated


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


def serve_connection(worker, sock, where, members, session):
    """Serve one connection from login to end; returns (reason, True if it ended in order).

    where: the `connection` of the order; session: the session that it may join, or None; members:
    those of the session that it may join or begin, None if the login can only be refused."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    login = _Login(worker, sock, where, members, session)
    try:
        connection = login.login()
    except (LoginEnded, OSError) as e:
        log.debug('%s: no session: %s', _shown(where), e)
        sock.close()
        # it would have joined a session: the master counts the connections of each address
        if login.session is not None:
            worker.report('closed', peer=where['peer'], cid=login.cid)
        return str(e), login.session is None
    finally:
        login.settle()
    try:
        why = connection.run()
    finally:
        members.leave(connection)
        # the connection is in a reference cycle: free its buffer before the garbage collection
        connection.framer.release()
    log.info(
        '%s from %s: connection %d is over: %s',
        connection.session.initiator_name,
        _shown(where),
        connection.cid,
        why,
    )
    return why, connection.ended_quietly


def _numbering_of(session):
    """Return a function for the LoginNegotiation that returns ExpCmdSN and MaxCmdSN, or None. It
    holds no reference to the _Login, which is freed when the login is over."""
    if session is None or session.is_discovery:
        return None
    return lambda: (session.exp_cmd_sn, session.max_cmd_sn)


def _shown(where):
    address, port = where['peer'][:2]
    return ('[%s]:%d' if ':' in address else '%s:%d') % (address, port)


class _Login(object):
    """The login of one connection. where: {peer: [address, port], local: [address, port], group}."""

    def __init__(self, worker, sock, where, members, session):
        self.session = session  # the session that the connection joins or has begun
        self._worker = worker
        self._members = members
        self._socket = sock
        self._where = where
        self._framer = Framer(LOGIN_DATA_SEGMENT, batch_bytes=2 * (LOGIN_DATA_SEGMENT + 1068))
        self._pending = []
        self._deadline = time.monotonic() + worker.configuration.server.login_timeout
        self._joined = None  # negotiated keys of a connection that joins a session
        self._expected = None  # the CID that `members` expects
        policy = worker.policies.login(
            where['peer'][0],
            where['group'],
            lambda target_name: MasterChap(worker.ask_and_wait, where['peer'], target_name),
        )
        self._negotiation = LoginNegotiation(
            policy, where, os.urandom, _numbering_of(session), session and session.values
        )

    @property
    def cid(self):
        """The CID, or None before it was claimed."""
        return self._expected

    def settle(self):
        """The login is over, with or without success."""
        if self._expected is not None:
            self._members.settle(self._expected)

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
        self._worker.report(
            'refused',
            peer=self._where['peer'],
            initiator_name=negotiation.initiator_name or '',
            target_name=negotiation.target_name or '',
            why=failure.why,
            status_class=failure.status_class,
            status_detail=failure.status_detail,
        )
        self._send([response])
        raise LoginEnded(failure.why)

    def _join(self, claim):
        """The claim is for a further connection of the session, or for one that replaces another."""
        try:
            values = joined_session_values(
                claim, self.session.login, self._members.count_others(claim.cid)
            )
        except LoginFailure as e:
            self._fail(e)
        self._joined = values
        self._expected = claim.cid
        if not self._members.expect(claim.cid):
            status = const.SESSION_DOES_NOT_EXIST
            self._fail(
                LoginFailure(status[0], status[1], 'the session %d is about to end' % claim.tsih)
            )

    def _claim(self, claim):
        if claim.tsih:
            self._join(claim)
        nexus = None
        if claim.target_name is not None:
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
        )
        if answer is None:
            self._fail(
                LoginFailure(
                    const.TARGET_ERROR[0],
                    const.TARGET_ERROR[1],
                    'the master did not answer in time',
                )
            )
        if answer['status_class']:
            refusal = LoginFailure(answer['status_class'], answer['status_detail'], answer['why'])
            self._fail(refusal)
        return self._granted(answer)

    def _fail(self, refusal):
        self._send(self._negotiation.claim_refused(refusal).pdus)
        raise LoginEnded(refusal.why)

    def _granted(self, answer):
        """Send the last login response, after everything that the session needs is in place."""
        if self._pending:
            self._fail(
                LoginFailure(
                    const.INITIATOR_ERROR[0],
                    const.INITIATOR_ERROR[1],
                    'a PDU arrived before the login was over',
                )
            )
        reply = self._negotiation.claim_granted(answer['tsih'])
        result = self._negotiation.result
        worker = self._worker
        if self._joined is None:
            self.session = Session(result)
            worker.begin_session(self.session)
            self._expected = result.cid
            self._members.expect(result.cid)
        session = self.session
        interval, count = worker.keepalive_of(result.target_name)
        set_timeouts(self._socket, interval)
        if hasattr(socket, 'TCP_USER_TIMEOUT'):
            self._socket.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_SECONDS * 1000
            )
        make = connection_class(session.values)
        connection = make(
            worker,
            self._socket,
            session,
            result.cid,
            result.stat_sn,
            result.declared_data_segment,
            (interval, count if interval else 0),
            self._framer.remaining_bytes(),
            self._joined,
            self._where['peer'],
        )
        connection.peer_address = self._where['peer'][0]
        connection.local_address = self._where['local'][0]
        # the connection is added before the last login response, but sends nothing before it
        with connection.outbox.held():
            self._members.add(connection)
            try:
                self._send(reply.pdus)
            except OSError:
                self._members.remove(connection)
                raise
        return connection

    # -- the socket ---------------------------------------------------------------------------

    def _next_request(self):
        while not self._pending:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise LoginEnded('the login took longer than login-timeout')
            set_timeouts(self._socket, max(left, 0.01))
            try:
                if self._framer.landing is None:
                    count = self._socket.recv_into(self._framer.receive_buffer())
                else:
                    count = self._socket.recvmsg_into(self._framer.receive_buffers())[0]
            except BlockingIOError:
                continue
            if not count:
                raise LoginEnded('the initiator closed the connection during login')
            self._received(count)
        fields, ahs, data = self._pending.pop(0)
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
        for one in pdus:
            data = bytes(one.data)
            self._socket.sendall(one.encode() + data + bytes(-len(data) % 4))
