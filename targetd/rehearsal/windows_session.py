"""A blocking initiator session on one connection, with the login keys of Windows in its order.

May import base and iscsi. Every wait is bounded. It checks what the initiator of Windows checks, and keeps
what that would complain about (`complaints`).
"""

import socket
import struct
import time
from collections import OrderedDict, namedtuple

from targetd.errors import TargetdError
from targetd.iscsi import chap, const, pdu, text

#: First bytes of the ISIDs of Windows: the type EN with the enterprise number of Microsoft (311).
ISID = bytes.fromhex('40000137')
#: Windows counts its sessions from 0. These are others, so that the sessions of the host of this name go on.
FIRST_QUALIFIER = 0xFE00
SECONDS = 60.0  # TimeOutValue of the class driver
LONGEST_SEGMENT = 65536
OPERATIONAL = (
    ('HeaderDigest', 'None,CRC32C'),
    ('DataDigest', 'None,CRC32C'),
    ('ErrorRecoveryLevel', '2'),
    ('InitialR2T', 'No'),
    ('ImmediateData', 'Yes'),
    ('MaxRecvDataSegmentLength', str(LONGEST_SEGMENT)),
    ('MaxBurstLength', '262144'),
    ('FirstBurstLength', '65536'),
    ('MaxConnections', '32'),
    ('DataPDUInOrder', 'Yes'),
    ('DataSequenceInOrder', 'Yes'),
    ('DefaultTime2Wait', '0'),
    ('DefaultTime2Retain', '60'),
    ('MaxOutstandingR2T', '16'),
)
OF_DISCOVERY = ('HeaderDigest', 'DataDigest', 'MaxRecvDataSegmentLength')
OF_DISCOVERY += ('DefaultTime2Wait', 'DefaultTime2Retain')
MD5 = '5'
SECURITY, NEGOTIATION, FULL_FEATURE = 0, 1, 3

#: The outcome of a SCSI command. sense: bytes; seconds: that it took.
Reply = namedtuple('Reply', 'status sense data seconds')


class Lost(TargetdError):
    """The connection cannot be opened, or ended, or the target does not answer."""


class LoginRefused(TargetdError):
    """The target refused the login. status: (class, detail)."""

    def __init__(self, status):
        super(LoginRefused, self).__init__('login refused with status %02X%02X' % status)
        self.status = status


class Session(object):
    """A session. qualifier: added to FIRST_QUALIFIER, the last two
    bytes of the ISID; keys: {key: value} that the target has answered;
    first_keys: those of its first answer."""

    def __init__(self, address, port, name, qualifier=1, seconds=SECONDS):
        self.name = name
        self.isid = ISID + struct.pack('>H', FIRST_QUALIFIER + qualifier)
        self.keys, self.first_keys = OrderedDict(), None
        self.complaints = []
        self.tsih = 0
        self._cmd_sn, self._itt, self._exp_stat_sn = 1, 0, 0
        self._max_cmd_sn = None
        try:
            self._socket = socket.create_connection((address, port), seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            raise Lost('%s port %d: %s' % (address, port, e.strerror or e))

    def close(self):
        """Close the connection."""
        self._socket.close()

    # -- PDUs --------------------------------------------------------------------------------------

    def _send(self, request):
        data = bytes(request.data)
        try:
            self._socket.sendall(request.encode() + data + bytes(-len(data) % 4))
        except OSError as e:
            raise Lost('the connection is lost: %s' % (e.strerror or e))

    def _exactly(self, count):
        data = b''
        while len(data) < count:
            try:
                piece = self._socket.recv(count - len(data))
            except OSError as e:
                raise Lost('the target does not answer: %s' % (e.strerror or e))
            if not piece:
                raise Lost('the target has closed the connection')
            data += piece
        return data

    def _receive(self):
        """The next PDU that belongs to what was asked. A ping is answered."""
        while True:
            header = self._exactly(const.BHS_LENGTH)
            length = int.from_bytes(header[5:8], 'big')
            extra = self._exactly(header[4] * 4)
            data = self._exactly(length + -length % 4)[:length]
            if length > LONGEST_SEGMENT:
                self._complain(
                    'event 21: a data segment of %d bytes, and %d are allowed'
                    % (length, LONGEST_SEGMENT)
                )
            answer = pdu.decode(header, extra, data, pdu.FROM_TARGET)
            self._note_numbers(answer)
            if isinstance(answer, pdu.NopIn):
                if answer.ttt != const.RESERVED_TAG:
                    self._answer_ping(answer)
            elif isinstance(answer, pdu.AsyncMessage):
                self._complain('event 32: the target asks for a logout')
            elif isinstance(answer, pdu.Reject):
                raise Lost('event 29: the target rejects a PDU (reason %02Xh)' % answer.reason)
            else:
                return answer

    def _answer_ping(self, ping):
        self._send(
            pdu.NopOut(
                immediate=True,
                lun=ping.lun,
                ttt=ping.ttt,
                cmd_sn=self._cmd_sn,
                exp_stat_sn=self._exp_stat_sn,
            )
        )

    def _note_numbers(self, answer):
        stat_sn = getattr(answer, 'stat_sn', None)
        has_status = not isinstance(answer, pdu.DataIn) or answer.has_status
        if (
            isinstance(answer, (pdu.ReadyToTransfer, pdu.NopIn))
            or stat_sn is None
            or not has_status
        ):
            return
        self._exp_stat_sn = (stat_sn + 1) & 0xFFFFFFFF
        self._max_cmd_sn = answer.max_cmd_sn
        if (answer.max_cmd_sn - answer.exp_cmd_sn + 1) & 0xFFFFFFFF > 1 << 31:
            self._complain('event 3: MaxCmdSN is below ExpCmdSN')

    def _complain(self, complaint):
        if complaint not in self.complaints:
            self.complaints.append(complaint)

    # -- login -------------------------------------------------------------------------------------

    def login(self, target=None, account=None, mutual=None):
        """Log in as Windows does. target: None for discovery; account: (user, secret) of CHAP; mutual: (user,
        secret) with which the target proves itself, or None. Raises LoginRefused, Lost."""
        pairs = [('InitiatorName', self.name)]
        pairs += [('SessionType', 'Normal' if target else 'Discovery')]
        pairs += [('TargetName', target)] if target else []
        if account is None:
            self._exchange(pairs + [('AuthMethod', 'None')], SECURITY, NEGOTIATION)
        else:
            self._exchange(pairs + [('AuthMethod', 'CHAP')], SECURITY)
            if self.keys.get('AuthMethod') == 'CHAP':
                self._authenticate(account, mutual)
        self._check_first_answer(target)
        offered = [pair for pair in OPERATIONAL if target or pair[0] in OF_DISCOVERY]
        self._exchange(offered, NEGOTIATION, FULL_FEATURE)
        self._check_answers()

    def _exchange(self, pairs, csg, nsg=None):
        """One step of the login. nsg: the next stage, or None."""
        request = pdu.LoginRequest(
            immediate=True,
            isid=self.isid,
            itt=1,
            cid=1,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
            data=text.render_text(pairs),
        )
        request.csg = csg
        if nsg is not None:
            request.transit, request.nsg = True, nsg
        self._send(request)
        received = b''
        while True:
            answer = self._receive()
            if not isinstance(answer, pdu.LoginResponse):
                raise Lost('event 11: no login response, but %r' % answer)
            if answer.status != (0, 0):
                raise LoginRefused(answer.status)
            received += answer.data
            if not answer.continues:
                break
            request.data, request.flags = b'', csg << 2
            request.exp_stat_sn = self._exp_stat_sn
            self._send(request)
        answered = OrderedDict(text.parse_text(received))
        self.keys.update(answered)
        if self.first_keys is None:
            self.first_keys = answered
        self.tsih = answer.tsih
        if nsg is not None and not answer.transit:
            raise Lost('the target does not go on to the next stage of the login')

    def _authenticate(self, account, mutual):
        user, secret = account
        self._exchange([('CHAP_A', MD5)], SECURITY)
        try:
            challenge = chap.decode_binary(self.keys['CHAP_C'], chap.MAXIMUM_CHALLENGE)
            identifier = int(self.keys['CHAP_I'], 0)
        except (KeyError, ValueError, chap.ChapError):
            raise Lost('event 16: the target sends no valid CHAP challenge')
        response = chap.chap_response(const.CHAP_MD5, identifier, secret.encode('utf-8'), challenge)
        pairs = [('CHAP_N', user), ('CHAP_R', chap.encode_binary(response))]
        mine = bytes(range(16))
        if mutual is not None:
            pairs += [('CHAP_I', '5'), ('CHAP_C', chap.encode_binary(mine))]
        self._exchange(pairs, SECURITY, NEGOTIATION)
        if mutual is not None:
            proof = chap.chap_response(const.CHAP_MD5, 5, mutual[1].encode('utf-8'), mine)
            if self.keys.get('CHAP_R', '').lower() != chap.encode_binary(proof):
                self._complain('event 17: the target does not prove its secret')

    def _check_first_answer(self, target):
        if target and 'TargetPortalGroupTag' not in self.first_keys:
            self._complain('no TargetPortalGroupTag in the first answer: Windows waits for ever')
        if 'AuthMethod' not in self.keys:
            self._complain('event 41: the target does not answer AuthMethod')

    def _check_answers(self):
        for key, event in (('DataPDUInOrder', 61), ('DataSequenceInOrder', 62)):
            if self.keys.get(key) == 'No':
                self._complain('event %d: %s is No' % (event, key))
        bursts = self.keys.get('MaxBurstLength', '262144'), self.keys.get('FirstBurstLength', '0')
        if int(bursts[0]) < int(bursts[1]):
            self._complain('event 4: MaxBurstLength is below FirstBurstLength')

    # -- full feature phase ------------------------------------------------------------------------

    def _next_tag(self):
        self._itt += 1
        return self._itt

    def send_targets(self):
        """[(key, value)] of SendTargets=All."""
        request = pdu.TextRequest(
            itt=self._next_tag(),
            ttt=const.RESERVED_TAG,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
            data=text.render_text([('SendTargets', 'All')]),
        )
        received = b''
        while True:
            request.final = True
            request.cmd_sn, request.exp_stat_sn = self._cmd_sn, self._exp_stat_sn
            self._send(request)
            self._cmd_sn += 1
            answer = self._receive()
            if not isinstance(answer, pdu.TextResponse):
                raise Lost('event 46: no answer to SendTargets')
            received += answer.data
            if not answer.continues and answer.ttt == const.RESERVED_TAG:
                return text.parse_text(received)
            request.data, request.ttt = b'', answer.ttt

    def run(self, cdb, lun=0, read=0, out=b''):
        """Execute a SCSI command; returns its Reply. lun: the 8 bytes of the LUN as a number; read: bytes
        that are expected; out: Data-Out. Raises Lost."""
        began, data = time.monotonic(), bytearray()
        command = pdu.ScsiCommand(
            lun=lun,
            itt=self._next_tag(),
            edtl=read or len(out),
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
            cdb=cdb.ljust(16, b'\0'),
        )
        command.final = True
        command.read, command.write, command.attribute = bool(read), bool(out), 1
        command.data = out[: self._immediate()]
        self._send(command)
        self._cmd_sn = (self._cmd_sn + 1) & 0xFFFFFFFF
        while True:
            answer = self._receive()
            if getattr(answer, 'itt', None) != command.itt:
                self._complain('event 27: an answer to no command')
            elif isinstance(answer, pdu.ReadyToTransfer):
                self._send_data(command, answer, out)
            elif isinstance(answer, pdu.DataIn):
                if len(data) + len(answer.data) > read:
                    self._complain('event 26: more data than was asked for')
                data += answer.data
                if answer.has_status:
                    return Reply(answer.status, b'', bytes(data), time.monotonic() - began)
            else:
                seconds = time.monotonic() - began
                return Reply(answer.status, answer.sense, bytes(data), seconds)

    def _immediate(self):
        if self.keys.get('ImmediateData') != 'Yes':
            return 0
        segment = int(self.keys.get('MaxRecvDataSegmentLength', 8192))
        return min(segment, int(self.keys.get('FirstBurstLength', 65536)))

    def _send_data(self, command, r2t, out):
        if r2t.buffer_offset + r2t.desired_length > len(out):
            raise Lost('event 28: an R2T beyond the end of the command')
        segment = int(self.keys.get('MaxRecvDataSegmentLength', 8192))
        offset, end, number = r2t.buffer_offset, r2t.buffer_offset + r2t.desired_length, 0
        while offset < end:
            data = out[offset : min(end, offset + segment)]
            piece = pdu.DataOut(
                itt=command.itt,
                ttt=r2t.ttt,
                lun=r2t.lun,
                exp_stat_sn=self._exp_stat_sn,
                data_sn=number,
                buffer_offset=offset,
                data=data,
            )
            offset, number = offset + len(data), number + 1
            piece.final = offset >= end
            self._send(piece)

    def logout(self):
        """Close the session."""
        request = pdu.LogoutRequest(
            immediate=True,
            itt=self._next_tag(),
            cid=1,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
        )
        request.final = True
        try:
            self._send(request)
            self._receive()
        except Lost:
            pass
        self.close()
