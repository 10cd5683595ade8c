"""A small blocking initiator for tests. It shares no code with the target.

It is strict: every received PDU is checked against RFC 7143 (StatSN, DataSN and offsets in order,
segments and bursts within the negotiated limits, R2Ts within the transfer), and a violation raises
Violation in every test. Every wait ends after `timeout` seconds.
"""

import collections
import hashlib
import struct
import time

from pdus import (
    ASYNC,
    DATA_IN,
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGIN,
    LOGIN_RESPONSE,
    LOGOUT,
    LOGOUT_RESPONSE,
    NO_TAG,
    NOP_IN,
    NOP_OUT,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    TEXT,
    TEXT_RESPONSE,
    Chap,
    Closed,
    Violation,
    Wire,
    lun_field,
    pack_bhs,
    pack_text,
    require,
    unpack_pairs,
    unpack_text,
)

__all__ = [
    'Chap',
    'Closed',
    'LoginFailed',
    'Rejected',
    'Session',
    'Violation',
    'connect',
    'pattern',
]

GOOD, CHECK_CONDITION, RESERVATION_CONFLICT, TASK_ABORTED = 0x00, 0x02, 0x18, 0x40

# Task management functions, RFC 7143 11.5.1
(
    ABORT_TASK,
    ABORT_TASK_SET,
    CLEAR_ACA,
    CLEAR_TASK_SET,
    LOGICAL_UNIT_RESET,
    TARGET_WARM_RESET,
    TARGET_COLD_RESET,
) = range(1, 8)

INITIATOR = 'iqn.2026-11.test.targetd:initiator'
ISID = bytes.fromhex('80abcdef0001')

#: Keys that login() offers by default: the values of a plain initiator, all of them sent
#: explicitly.
OPERATIONAL = collections.OrderedDict(
    [
        ('HeaderDigest', 'None'),
        ('DataDigest', 'None'),
        ('InitialR2T', 'Yes'),
        ('ImmediateData', 'Yes'),
        ('MaxRecvDataSegmentLength', '65536'),
        ('MaxBurstLength', '262144'),
        ('FirstBurstLength', '65536'),
        ('MaxConnections', '1'),
        ('MaxOutstandingR2T', '1'),
        ('DataPDUInOrder', 'Yes'),
        ('DataSequenceInOrder', 'Yes'),
        ('DefaultTime2Wait', '2'),
        ('DefaultTime2Retain', '0'),
        ('ErrorRecoveryLevel', '0'),
    ]
)
DISCOVERY = collections.OrderedDict(
    (key, OPERATIONAL[key])
    for key in (
        'HeaderDigest',
        'DataDigest',
        'MaxRecvDataSegmentLength',
        'DefaultTime2Wait',
        'DefaultTime2Retain',
        'ErrorRecoveryLevel',
    )
)


class LoginFailed(Exception):
    """The target sent a Login Response with a status class other than 0."""

    def __init__(self, status_class, detail):
        super(LoginFailed, self).__init__('login status %02x%02x' % (status_class, detail))
        self.status = (status_class << 8) | detail


class Rejected(Exception):
    """The target sent a Reject PDU. `reason`: RFC 7143 11.17.1; `header`: the rejected header in
    it."""

    def __init__(self, pdu):
        super(Rejected, self).__init__('Reject, reason %02x' % pdu.bhs[2])
        self.pdu = pdu
        self.reason = pdu.bhs[2]
        self.header = pdu.data


class Result(object):
    """The result of a command: status, sense (bytes), data (bytes), overflow and underflow
    (residual counts, 0 if none)."""

    def __init__(self, status, sense, data, overflow, underflow, response=0):
        self.status, self.sense, self.data, self.response = status, sense, data, response
        self.overflow, self.underflow = overflow, underflow

    def __repr__(self):
        key = '%02x/%02x/%02x' % self.key if self.key else 'none'
        return 'Result(status %02x, sense %s, %d bytes)' % (self.status, key, len(self.data))

    @property
    def key(self):
        """Returns (sense key, ASC, ASCQ) of sense data in fixed or descriptor format, or None."""
        if not self.sense:
            return None
        if self.sense[0] & 0x7F in (0x72, 0x73):
            return (self.sense[1] & 0xF, self.sense[2], self.sense[3])
        return (self.sense[2] & 0xF, self.sense[12], self.sense[13])

    def good(self):
        """Returns self; raises AssertionError unless the status is GOOD."""
        assert self.status == GOOD and self.response == 0, repr(self)
        return self


class Command(object):
    """One outstanding command."""

    def __init__(self, itt, lun, edtl, out, cdb):
        self.itt, self.lun, self.edtl, self.out, self.cdb = itt, lun, edtl, out, cdb
        self.received = bytearray()
        self.data_sn = 0  # of the next Data-In
        self.r2t_sn = 0
        self.solicited = 0  # bytes of Data-Out already asked for or sent unasked
        self.r2ts = []  # answered later, when the test holds them back
        self.data_in = []  # (flags, length) of each Data-In
        self.burst = 0  # bytes of the current Data-In sequence
        self.result = None


class Session(object):
    """A normal or discovery session on one connection.

    Attributes a test looks at: keys (what the target answered in login, all stages), tsih, events
    (asynchronous messages), rejects, hold_r2t (True: R2Ts are collected in the command and not
    answered).
    """

    def __init__(
        self,
        address,
        name=INITIATOR,
        isid=ISID,
        timeout=20.0,
        cid=1,
        receive_buffer=None,
        source=None,
    ):
        self.address, self.name, self.isid, self.cid = address, name, isid, cid
        self.timeout = timeout
        self.wire = self.make_wire(address, timeout, receive_buffer, source)
        self.cmd_sn, self.exp_stat_sn, self.itt = 1, None, 0
        self.exp_cmd_sn = self.max_cmd_sn = None
        self.tsih = 0
        self.keys = {}
        self.offered = {}
        self.commands = {}
        self.events, self.rejects, self.pings = [], [], []
        self.hold_r2t = False
        self.answer_pings = True
        self.full_feature = False

    make_wire = Wire

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def close(self):
        self.wire.close()

    # -- login -------------------------------------------------------------------------------------

    def login_pdu(
        self, pairs, csg, nsg=None, more=False, tsih=0, version=b'\0\0', raw_flags=None, itt=0
    ):
        """Sends one Login Request. `nsg` None: no stage transition."""
        flags = (csg << 2) | (0x40 if more else 0)
        if nsg is not None:
            flags |= 0x80 | nsg
        data = pairs if isinstance(pairs, bytes) else pack_text(pairs)
        lun = self.isid + struct.pack('>H', tsih)
        self.wire.send(
            pack_bhs(
                LOGIN | IMMEDIATE,
                flags if raw_flags is None else raw_flags,
                lun,
                itt,
                self.cid << 16,
                self.cmd_sn,
                self.exp_stat_sn or 0,
                second=version,
            ),
            data,
        )

    def login_response(self):
        """Returns the next Login Response after checking it; raises LoginFailed if its status is
        not 0."""
        pdu = self.receive()
        require(pdu.opcode == LOGIN_RESPONSE, 'expected a Login response, got %r', pdu)
        if pdu.bhs[36]:
            raise LoginFailed(pdu.bhs[36], pdu.bhs[37])
        require(pdu.bhs[8:14] == self.isid, 'the ISID came back as %s', pdu.bhs[8:14].hex())
        require(pdu.bhs[2] == pdu.bhs[3] == 0, 'version %r', pdu.bhs[2:4])
        return pdu

    def exchange(self, pairs, csg, nsg=None, **flags):
        """Sends one Login Request and receives all PDUs of the response; returns (keys, transit
        bit, last Pdu)."""
        self.login_pdu(pairs, csg, nsg, **flags)
        data, pdu = b'', self.login_response()
        while pdu.flags & 0x40:  # C: more text comes (RFC 7143 6.2)
            require(not pdu.flags & 0x80, 'a Login response with both T and C')
            data += pdu.data
            self.login_pdu([], csg)
            pdu = self.login_response()
        keys = unpack_text(data + pdu.data)
        self.keys.update(keys)
        if pdu.flags & 0x80:
            require(nsg is not None, 'the target goes on though it was not asked to')
            require(pdu.flags & 3 == nsg, 'asked for stage %s, went to %s', nsg, pdu.flags & 3)
        return keys, bool(pdu.flags & 0x80), pdu

    def _first_keys(self, target):
        keys = [('InitiatorName', self.name)]
        keys.append(('SessionType', 'Discovery' if target is None else 'Normal'))
        if target is not None:
            keys.append(('TargetName', target))
        return keys

    def login(self, target=None, keys=None, chap=None, security=None, tsih=0):
        """Logs in and returns self; without a target it is a discovery session. `keys` change the keys
        that OPERATIONAL offers (None removes a key); `security` False skips the security stage, as
        Linux does without CHAP."""
        offer = collections.OrderedDict(DISCOVERY if target is None else OPERATIONAL)
        offer.update(keys or {})
        self.offered = collections.OrderedDict((k, v) for k, v in offer.items() if v is not None)
        first = self._first_keys(target)
        if security is False:
            pairs = first + list(self.offered.items())
            stage = 1
        else:
            self._security(first, chap, tsih)
            pairs, stage = list(self.offered.items()), 1
        for _ in range(10):
            answer, went, pdu = self.exchange(pairs, stage, 3, tsih=tsih)
            if went:
                break
            pairs = []
        require(went, 'ten login exchanges and still no full feature phase')
        self.tsih = struct.unpack_from('>H', pdu.bhs, 14)[0]
        require(self.tsih != 0, 'TSIH 0 in the final Login response')
        self._enter_full_feature()
        return self

    def _security(self, first, chap, tsih):
        method = 'CHAP' if chap else 'None'
        answer, went, _ = self.exchange(
            first + [('AuthMethod', method)], 0, None if chap else 1, tsih=tsih
        )
        require(
            answer.get('AuthMethod') == method,
            'AuthMethod=%s answered with %r',
            method,
            answer.get('AuthMethod'),
        )
        if chap:
            answer, _, _ = self.exchange([('CHAP_A', chap.algorithms)], 0, tsih=tsih)
            answer, went, _ = self.exchange(chap.answer(answer), 0, 1, tsih=tsih)
            chap.verify(answer)
        require(went, 'no transition out of the security stage')

    def value(self, key):
        """Returns the value of a key after the login: the target's answer, else the default of RFC
        7143."""
        defaults = {
            'InitialR2T': 'Yes',
            'ImmediateData': 'Yes',
            'MaxBurstLength': '262144',
            'FirstBurstLength': '65536',
            'MaxOutstandingR2T': '1',
            'MaxRecvDataSegmentLength': '8192',
            'HeaderDigest': 'None',
            'DataDigest': 'None',
        }
        return self.keys.get(key, defaults.get(key))

    def _enter_full_feature(self):
        self.full_feature = True
        self.wire.header_digest = self.value('HeaderDigest') == 'CRC32C'
        self.wire.data_digest = self.value('DataDigest') == 'CRC32C'
        self.initial_r2t = self.value('InitialR2T') == 'Yes'
        self.immediate_data = self.value('ImmediateData') == 'Yes'
        self.max_burst = int(self.value('MaxBurstLength'))
        self.first_burst = int(self.value('FirstBurstLength'))
        self.max_r2t = int(self.value('MaxOutstandingR2T'))
        self.send_limit = int(self.value('MaxRecvDataSegmentLength'))
        self.receive_limit = int(self.offered.get('MaxRecvDataSegmentLength', 8192))

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self):
        """Returns the next Pdu after checking its sequence numbers."""
        pdu = self.wire.receive()
        if self.full_feature:
            require(
                len(pdu.data) <= self.receive_limit,
                '%r: MaxRecvDataSegmentLength is %d',
                pdu,
                self.receive_limit,
            )
        self._check_stat_sn(pdu)
        window = (pdu.max_cmd_sn - pdu.exp_cmd_sn + 1) & 0xFFFFFFFF
        require(
            window < 1 << 31, 'MaxCmdSN %d is below ExpCmdSN %d - 1', pdu.max_cmd_sn, pdu.exp_cmd_sn
        )
        if self.max_cmd_sn is None or 0 < (pdu.max_cmd_sn - self.max_cmd_sn) & 0xFFFFFFFF < 1 << 31:
            self.max_cmd_sn = pdu.max_cmd_sn
        self.exp_cmd_sn = pdu.exp_cmd_sn
        return pdu

    def _check_stat_sn(self, pdu):
        if pdu.opcode == DATA_IN and not pdu.flags & 1:
            return
        if self.exp_stat_sn is None:
            self.exp_stat_sn = pdu.stat_sn
        require(
            pdu.stat_sn == self.exp_stat_sn,
            '%r has StatSN %d, expected %d',
            pdu,
            pdu.stat_sn,
            self.exp_stat_sn,
        )
        if pdu.opcode == R2T or (pdu.opcode == NOP_IN and pdu.itt == NO_TAG):
            return  # these show StatSN and do not use it up
        self.exp_stat_sn = (self.exp_stat_sn + 1) & 0xFFFFFFFF

    def step(self):
        """Receives one PDU, handles it (collects data, answers R2T and NOP-In, records others) and
        returns it."""
        pdu = self.receive()
        if pdu.opcode == DATA_IN:
            self._data_in(pdu)
        elif pdu.opcode == SCSI_RESPONSE:
            self._response(pdu)
        elif pdu.opcode == R2T:
            self._r2t(pdu)
        elif pdu.opcode == NOP_IN and pdu.itt == NO_TAG:
            self.pings.append(pdu)
            if pdu.ttt != NO_TAG and self.answer_pings:
                self.wire.send(
                    pack_bhs(
                        NOP_OUT | IMMEDIATE,
                        FINAL,
                        pdu.lun,
                        NO_TAG,
                        pdu.ttt,
                        self.cmd_sn,
                        self.exp_stat_sn,
                    )
                )
        elif pdu.opcode == ASYNC:
            self.events.append(pdu)
        elif pdu.opcode == REJECT:
            self.rejects.append(pdu)
        return pdu

    def _steps(self):
        """Yields the PDUs of further steps within one total timeout, which NOP-Ins of the target
        cannot extend."""
        end = time.monotonic() + self.timeout
        while True:
            yield self.step()
            require(
                time.monotonic() < end, 'the awaited PDU did not arrive within %g s', self.timeout
            )

    def until(self, opcode, itt=None):
        """Steps until a PDU with this opcode (and ITT) arrives; returns it. An unexpected Reject
        raises Rejected."""
        for pdu in self._steps():
            if pdu.opcode == opcode and (itt is None or pdu.itt == itt):
                return pdu
            if pdu.opcode == REJECT:
                raise Rejected(pdu)

    def _find(self, pdu):
        require(pdu.itt in self.commands, '%r for a task that is not there', pdu)
        return self.commands[pdu.itt]

    def _data_in(self, pdu):
        command = self._find(pdu)
        require(
            pdu.word36 == command.data_sn, 'DataSN %d, expected %d', pdu.word36, command.data_sn
        )
        require(
            pdu.word40 == len(command.received),
            'Data-In offset %d, expected %d',
            pdu.word40,
            len(command.received),
        )
        command.data_sn += 1
        command.received += pdu.data
        command.data_in.append((pdu.flags, len(pdu.data)))
        command.burst += len(pdu.data)
        # RFC 7143 11.7.1
        require(
            command.burst <= self.max_burst,
            'a Data-In sequence of %d bytes, MaxBurstLength is %d',
            command.burst,
            self.max_burst,
        )
        if pdu.flags & FINAL:
            command.burst = 0
        require(
            len(command.received) <= command.edtl,
            'more data than was asked for: %d > %d',
            len(command.received),
            command.edtl,
        )
        if pdu.flags & 1:
            require(pdu.flags & FINAL, 'status in a Data-In without F')
            self._finish(command, pdu, pdu.bhs[3], b'')

    def _response(self, pdu):
        command = self._find(pdu)
        sense = b''
        if len(pdu.data) >= 2:
            (length,) = struct.unpack_from('>H', pdu.data)
            sense = pdu.data[2 : 2 + length]
            require(len(sense) == length, 'sense length %d in %d bytes', length, len(pdu.data))
        require(
            pdu.word36 == command.data_sn or pdu.bhs[2] != 0 or command.out is not None,
            'ExpDataSN %d after %d Data-In',
            pdu.word36,
            command.data_sn,
        )
        self._finish(command, pdu, pdu.bhs[3], sense, pdu.bhs[2])

    def _finish(self, command, pdu, status, sense, response=0):
        overflow = pdu.word44 if pdu.flags & 0x04 else 0
        underflow = pdu.word44 if pdu.flags & 0x02 else 0
        require(not (pdu.flags & 0x04 and pdu.flags & 0x02), 'both residual overflow and underflow')
        if status == GOOD and command.out is None and not response and not overflow:
            require(
                len(command.received) + underflow == command.edtl,
                '%d bytes, residual %d, %d expected',
                len(command.received),
                underflow,
                command.edtl,
            )
        command.result = Result(
            status, sense, bytes(command.received), overflow, underflow, response
        )
        del self.commands[pdu.itt]

    def _r2t(self, pdu):
        command = self._find(pdu)
        require(pdu.ttt != NO_TAG, 'an R2T without a target transfer tag')
        require(pdu.lun == lun_field(command.lun), 'an R2T with LUN %s', pdu.lun.hex())
        require(pdu.word36 == command.r2t_sn, 'R2TSN %d, expected %d', pdu.word36, command.r2t_sn)
        require(
            0 < pdu.word44 <= self.max_burst,
            'an R2T for %d bytes, MaxBurstLength is %d',
            pdu.word44,
            self.max_burst,
        )
        require(
            pdu.word40 == command.solicited,
            'an R2T at %d, expected %d',
            pdu.word40,
            command.solicited,
        )
        require(
            pdu.word40 + pdu.word44 <= command.edtl,
            'an R2T beyond the expected data transfer length',
        )
        require(command.out is not None, 'an R2T for a command that does not write')
        command.r2t_sn += 1
        command.solicited += pdu.word44
        command.r2ts.append(pdu)
        require(
            len(command.r2ts) <= self.max_r2t,
            '%d R2Ts, MaxOutstandingR2T is %d',
            len(command.r2ts),
            self.max_r2t,
        )
        if not self.hold_r2t:
            self.answer_r2t(command)

    def answer_r2t(self, command):
        """Sends the data of the oldest unanswered R2T."""
        pdu = command.r2ts.pop(0)
        self.data_out(command, pdu.word40, pdu.word44, pdu.ttt)

    def data_out(self, command, offset, length, ttt, data_sn=0):
        """Sends a sequence of Data-Out PDUs of the largest length that the target accepts."""
        end = offset + length
        while offset < end:
            part = command.out[offset : min(offset + self.send_limit, end)]
            last = offset + len(part) == end
            self.wire.send(
                pack_bhs(
                    DATA_OUT,
                    FINAL if last else 0,
                    command.lun,
                    command.itt,
                    ttt,
                    0,
                    self.exp_stat_sn,
                    0,
                    data_sn,
                    offset,
                ),
                part,
            )
            data_sn += 1
            offset += len(part)

    # -- full feature phase ------------------------------------------------------------------------

    def next_tag(self):
        self.itt += 1
        return self.itt

    def next_cmd_sn(self):
        sn = self.cmd_sn
        self.cmd_sn = (sn + 1) & 0xFFFFFFFF
        return sn

    def wait_for_window(self):
        while (
            self.max_cmd_sn is not None and (self.max_cmd_sn - self.cmd_sn) & 0xFFFFFFFF >= 1 << 31
        ):
            self.step()

    def submit(
        self,
        cdb,
        lun=0,
        read=0,
        out=None,
        attribute=1,
        edtl=None,
        immediate=False,
        immediate_limit=None,
        ahs=b'',
    ):
        """Sends a command with all the unsolicited data that was negotiated, and returns a Command;
        command.result is None until the command is complete. `edtl` overrides the expected data
        transfer length. `immediate`: I bit."""
        if not immediate:
            self.wait_for_window()
        expected = edtl if edtl is not None else (len(out) if out is not None else read)
        command = Command(self.next_tag(), lun, expected, out, cdb)
        self.commands[command.itt] = command
        burst = b''
        unsolicited = min(self.first_burst, expected, len(out)) if out is not None else 0
        if out is not None and self.immediate_data:
            limit = min(unsolicited, self.send_limit)
            burst = out[: limit if immediate_limit is None else min(limit, immediate_limit)]
        more = out is not None and not self.initial_r2t and len(burst) < unsolicited
        flags = (
            (0 if more else FINAL)
            | (0x40 if read else 0)
            | (0x20 if out is not None else 0)
            | attribute
        )
        sn = self.cmd_sn if immediate else self.next_cmd_sn()
        self.wire.send(
            pack_bhs(
                SCSI_COMMAND | (IMMEDIATE if immediate else 0),
                flags,
                lun,
                command.itt,
                expected,
                sn,
                self.exp_stat_sn,
            )[:32]
            + bytes(cdb[:16])
            + bytes(16 - min(16, len(cdb))),
            burst,
            ahs,
        )
        command.solicited = len(burst)
        if more:
            self.data_out(command, len(burst), unsolicited - len(burst), NO_TAG)
            command.solicited = unsolicited
        return command

    def wait(self, command):
        """Waits for a submitted command; returns its Result."""
        steps = self._steps()
        while command.result is None:
            pdu = next(steps)
            if pdu.opcode == REJECT:
                raise Rejected(pdu)
        return command.result

    def run(self, cdb, lun=0, read=0, out=None, **more):
        """Submits a command and waits for it; returns its Result."""
        return self.wait(self.submit(cdb, lun, read, out, **more))

    def clear_attentions(self, lun=0, count=5):
        """Sends TEST UNIT READY until the status is GOOD; returns the unit attentions as (key, ASC,
        ASCQ)."""
        met = []
        for _ in range(count):
            result = self.run(bytes(6), lun)
            if result.status != CHECK_CONDITION:
                result.good()
                return met
            assert result.key[0] == 6, repr(result)
            met.append(result.key)
        raise AssertionError('still not ready after %s' % met)

    def read(self, lba, blocks, lun=0, size=512):
        """Sends READ(16); returns the data."""
        return (
            self.run(struct.pack('>BBQIBB', 0x88, 0, lba, blocks, 0, 0), lun, read=blocks * size)
            .good()
            .data
        )

    def write(self, lba, data, lun=0, size=512, fua=False):
        """Sends WRITE(16)."""
        cdb = struct.pack('>BBQIBB', 0x8A, 8 if fua else 0, lba, len(data) // size, 0, 0)
        return self.run(cdb, lun, out=data).good()

    def inquiry(self, lun=0, page=None, length=255):
        cdb = struct.pack('>BBBHB', 0x12, 0 if page is None else 1, page or 0, length, 0)
        return self.run(cdb, lun, read=length).good().data

    def capacity(self, lun=0):
        """Sends READ CAPACITY(16); returns (blocks, block size)."""
        data = self.run(struct.pack('>BBQIBB', 0x9E, 0x10, 0, 32, 0, 0), lun, read=32).good().data
        last, size = struct.unpack_from('>QI', data)
        return last + 1, size

    def report_luns(self, lun=0):
        data = self.run(struct.pack('>B5xIBB', 0xA0, 4096, 0, 0), lun, read=4096).good().data
        (length,) = struct.unpack_from('>I', data)
        return [struct.unpack_from('>H', data, 8 + at)[0] & 0x3FFF for at in range(0, length, 8)]

    def ping(self, data=b'', immediate=False, itt=None):
        """Sends a NOP-Out with a tag; returns the data of the NOP-In."""
        itt = self.next_tag() if itt is None else itt
        sn = self.cmd_sn if immediate else self.next_cmd_sn()
        self.wire.send(
            pack_bhs(
                NOP_OUT | (IMMEDIATE if immediate else 0),
                FINAL,
                0,
                itt,
                NO_TAG,
                sn,
                self.exp_stat_sn,
            ),
            data,
        )
        return self.until(NOP_IN, itt).data

    def text(self, pairs):
        """Executes a complete text exchange; returns [(key, value), …]."""
        itt, ttt, request, collected = self.next_tag(), NO_TAG, pack_text(pairs), b''
        while True:
            self.wire.send(
                pack_bhs(TEXT | IMMEDIATE, FINAL, 0, itt, ttt, self.cmd_sn, self.exp_stat_sn),
                request,
            )
            pdu = self.until(TEXT_RESPONSE, itt)
            collected += pdu.data
            if pdu.flags & FINAL:
                require(pdu.ttt == NO_TAG, 'a final Text response with a target transfer tag')
                return unpack_pairs(collected)
            require(pdu.ttt != NO_TAG, 'an unfinished Text response without a target transfer tag')
            ttt, request = pdu.ttt, b''

    def send_targets(self, value='All'):
        """Sends SendTargets; returns [(name, [address, …]), …]."""
        targets = []
        for key, text in self.text([('SendTargets', value)]):
            if key == 'TargetName':
                targets.append((text, []))
            elif key == 'TargetAddress':
                targets[-1][1].append(text)
        return targets

    def manage(self, function, lun=0, task=None):
        """Sends a task management request; returns the response code."""
        itt = self.next_tag()
        self.wire.send(
            pack_bhs(
                TASK_MANAGEMENT | IMMEDIATE,
                FINAL | function,
                lun,
                itt,
                task.itt if task else NO_TAG,
                self.cmd_sn,
                self.exp_stat_sn,
                (self.cmd_sn - 1) & 0xFFFFFFFF if task else 0,
            )
        )
        return self.until(TASK_MANAGEMENT_RESPONSE, itt).bhs[2]

    def logout(self, reason=0):
        """Logs out and closes the connection; returns the response code."""
        itt = self.next_tag()
        self.wire.send(
            pack_bhs(
                LOGOUT | IMMEDIATE,
                FINAL | reason,
                0,
                itt,
                self.cid << 16,
                self.cmd_sn,
                self.exp_stat_sn,
            )
        )
        code = self.until(LOGOUT_RESPONSE, itt).bhs[2]
        self.close()
        return code

    def wait_closed(self):
        """Steps until the target closes the connection."""
        try:
            for _ in self._steps():
                pass
        except Closed:
            self.wire.close()


def connect(address, target=None, name=INITIATOR, isid=ISID, timeout=20.0, **login):
    """Returns a Session that is logged in; unit attentions of LUN 0 remain pending."""
    session = Session(address, name, isid, timeout)
    try:
        return session.login(target, **login)
    except BaseException:
        session.close()
        raise


def pattern(seed, length):
    """Returns `length` bytes that differ for each block and seed."""
    block = hashlib.sha256(b'%d' % seed).digest()
    return b''.join(struct.pack('>Q', number) + block[8:] for number in range(length // 32 + 1))[
        :length
    ]
