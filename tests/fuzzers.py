"""Faulty initiators for tests: they send garbage, mutated logins and PDUs, lose, replace and log
out connections of their sessions at any time, and log in to sessions of others. A Fuzzer ends
when its event is set; `wrong` has the violations of the target.
"""

import contextlib
import random
import socket
import struct
import threading

from initiator import OPERATIONAL, LoginFailed, Session
from members import SESSION_KEYS
from pdus import (
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGIN,
    LOGOUT,
    NO_TAG,
    NOP_OUT,
    SCSI_COMMAND,
    SNACK,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    TEXT,
    Closed,
    Violation,
    pack_bhs,
    pack_text,
)

OPCODES = (
    [SCSI_COMMAND] * 8
    + [DATA_OUT] * 3
    + [NOP_OUT, TASK_MANAGEMENT, LOGIN, TEXT, LOGOUT, SNACK, 0x1C, 0x3E]
)
NUMBERS = [0, 1, 2, 3, 4, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, NO_TAG]
TASK_REASSIGN = 8


class Fuzzer(threading.Thread):
    """Sends random requests to `target`, generated from `seed`, until `over` is set. others: TSIHs of
    other initiators' sessions.

    `count`: connections opened; `logged_in`: those that reached full feature phase; `joined`:
    connections added to the fuzzer's own sessions; `refused`: refused logins into sessions of other
    initiators; `reassigned`: tasks reassigned to another connection; `wrong`: a violation by the
    target, or None."""

    def __init__(self, address, target, seed, over, others=()):
        super(Fuzzer, self).__init__(daemon=True)
        self.address, self.target, self.over, self.others = address, target, over, others
        self.draw = random.Random(seed)
        self.count = self.logged_in = self.joined = self.refused = self.reassigned = 0
        self.wrong = None

    def run(self):
        kinds = [
            self.garbage,
            self.login,
            self.full_feature,
            self.full_feature,
            self.several,
            self.several,
            self.lose_and_reassign,
            self.trespass,
        ]
        try:
            while not self.over.is_set():
                self.count += 1
                try:
                    self.draw.choice(kinds)()
                except (Closed, LoginFailed, Violation, OSError, struct.error):
                    pass  # it asked for it
        except BaseException as e:
            self.wrong = e
            raise

    def session(self):
        return Session(
            self.address,
            'iqn.2026-11.test:fuzzer%d' % self.draw.randrange(4),
            bytes.fromhex('80abcdef00') + bytes([self.draw.randrange(1, 4)]),
            timeout=2.0,
        )

    def bytes(self, most):
        return bytes(
            bytearray(self.draw.getrandbits(8) for _ in range(self.draw.randrange(most + 1)))
        )

    def mutated(self, data):
        """Returns `data` with a few bytes changed, removed or inserted."""
        data = bytearray(data)
        for _ in range(self.draw.randrange(1, 5)):
            if data:
                data[self.draw.randrange(len(data))] = self.draw.getrandbits(8)
        if data and not self.draw.randrange(4):
            at = self.draw.randrange(len(data))
            data[at : at + self.draw.randrange(9)] = self.bytes(8)
        return bytes(data)

    def end(self, session):
        """Receives for a moment, then ends the connection in one of three ways."""
        way = self.draw.randrange(3)
        session.wire.socket.settimeout(0.05)
        try:
            if way == 0:
                session.wire.socket.shutdown(socket.SHUT_WR)
            while session.wire.socket.recv(65536):
                pass
        except OSError:
            pass
        if way == 1:
            session.wire.reset()

    # -- what it sends -----------------------------------------------------------------------------

    def garbage(self):
        with self.session() as session:
            session.wire.raw(self.bytes(600))
            self.end(session)

    def login_bytes(self, session, pairs, tsih=0):
        """Sends a login in one PDU."""
        text = pack_text(pairs)
        if self.draw.randrange(2):
            text = self.mutated(text)
        flags = self.draw.choice([0x87, 0x81, 0x83, 0x04, 0x40, 0x00])
        head = pack_bhs(
            LOGIN | IMMEDIATE,
            flags,
            session.isid + struct.pack('>H', tsih),
            1,
            session.cid << 16,
            1,
            0,
        )
        head = head[:4] + struct.pack('>I', len(text)) + head[8:]
        return head + text + bytes(-len(text) % 4)

    def login(self):
        """Sends a mutated login in one PDU, sometimes in several parts."""
        with self.session() as session:
            pairs = [
                ('InitiatorName', session.name),
                ('SessionType', 'Normal'),
                ('TargetName', self.target),
            ]
            pairs += list(OPERATIONAL.items())
            self.draw.shuffle(pairs)
            data = self.login_bytes(session, pairs[: self.draw.randrange(3, len(pairs) + 1)])
            data = self.mutated(data) if self.draw.randrange(2) else data
            cut = self.draw.randrange(len(data))
            session.wire.raw(data[:cut])
            session.wire.raw(data[cut:])
            self.end(session)

    def drawn_keys(self):
        draw = self.draw
        return {
            'HeaderDigest': draw.choice(['None', 'CRC32C']),
            'DataDigest': draw.choice(['None', 'CRC32C']),
            'ErrorRecoveryLevel': draw.choice('012'),
            'InitialR2T': draw.choice(['Yes', 'No']),
            'ImmediateData': draw.choice(['Yes', 'No']),
            'MaxConnections': draw.choice('14'),
            'MaxRecvDataSegmentLength': draw.choice(['512', '8192', '262144']),
            'DefaultTime2Retain': draw.choice('01'),
            'DefaultTime2Wait': '0',
        }

    def full_feature(self):
        """Sends a valid login with random keys, valid commands, and mutated PDUs with correct
        lengths and digests."""
        draw = self.draw
        with self.session() as session:
            session.login(self.target, keys=self.drawn_keys())
            self.logged_in += 1
            session.run(bytes(6))
            for number in range(draw.randrange(1, 40)):
                self.one_pdu(session, number)
                if not draw.randrange(8):
                    self.take(session)
            if not draw.randrange(4):
                session.wire.raw(self.bytes(300))
            self.end(session)

    def one_pdu(self, session, number):
        draw = self.draw
        opcode = draw.choice(OPCODES)
        immediate = opcode != DATA_OUT and not draw.randrange(3)
        data = self.bytes(64) if draw.randrange(3) else b''
        words = [draw.choice(NUMBERS) for _ in range(7)]
        words[1] = session.cmd_sn if draw.randrange(8) else draw.choice(NUMBERS)
        if opcode == SCSI_COMMAND:
            cdb = bytes(
                [
                    draw.choice(
                        [0x28, 0x2A, 0x88, 0x8A, 0x12, 0x1A, 0xA0, 0x5F, 0x42, draw.getrandbits(8)]
                    )
                ]
            )
            cdb += (
                bytes(7) + bytes([draw.randrange(9)]) + bytes(4) + self.bytes(1)
                if draw.randrange(2)
                else self.bytes(15)
            )
            flags = draw.choice([0xC1, 0xA1, 0x81, 0xE1, 0x21, draw.getrandbits(8)])
            head = pack_bhs(
                opcode,
                flags,
                0,
                number,
                draw.choice([0, 4, 512, 4096, 1 << 20, NO_TAG]),
                words[1],
                session.exp_stat_sn,
            )
            head = head[:32] + cdb.ljust(16, b'\0')[:16]
        else:
            # mostly for a recent command, with a tag that may be outstanding
            if opcode == DATA_OUT:
                words[0], words[4] = draw.choice([1, 2, 3, 4, NO_TAG]), draw.choice([0, 0, 1])
                words[5] = draw.choice([0, 0, 512])
            flags = draw.choice([FINAL, FINAL | 1, FINAL | 2, draw.getrandbits(8)])
            head = pack_bhs(
                opcode,
                flags,
                0,
                draw.choice([number, max(0, number - draw.randrange(1, 5)), NO_TAG]),
                *words,
            )
        if immediate:
            head = bytes([head[0] | IMMEDIATE]) + head[1:]
        elif opcode != DATA_OUT and words[1] == session.cmd_sn:
            session.cmd_sn = session.cmd_sn + 1 & NO_TAG
        if not draw.randrange(4):
            head = self.mutated(head)[:48].ljust(48, b'\0')
        ahs = (
            bytes(bytearray(draw.getrandbits(8) for _ in range(4 * draw.randrange(4))))
            if not draw.randrange(6)
            else b''
        )
        session.wire.send(
            head, data, ahs, spoil_header=not draw.randrange(40), spoil_data=not draw.randrange(20)
        )

    def take(self, session):
        """Receives and discards pending data."""
        session.wire.socket.settimeout(0.01)
        try:
            while session.wire.socket.recv(65536):
                pass
        except socket.timeout:
            pass
        session.wire.socket.settimeout(2.0)

    # -- several connections -----------------------------------------------------------------------

    def further(self, first, cid):
        """Adds a connection to one of the fuzzer's sessions, or reinstates the one with this
        CID."""
        connection = Session(self.address, first.name, first.isid, timeout=2.0, cid=cid)
        connection.keys.update((key, first.keys[key]) for key in SESSION_KEYS if key in first.keys)
        connection.cmd_sn = first.cmd_sn
        try:
            connection.login(
                self.target, tsih=first.tsih, security=False, keys=dict.fromkeys(SESSION_KEYS)
            )
        except BaseException:
            connection.close()
            raise
        self.joined += 1
        return connection

    def half_join(self, first, cid):
        """Starts a login into one of the fuzzer's sessions and does not finish it."""
        connection = Session(self.address, first.name, first.isid, timeout=2.0, cid=cid)
        pairs = [
            ('InitiatorName', first.name),
            ('SessionType', 'Normal'),
            ('TargetName', self.target),
        ]
        data = self.login_bytes(connection, pairs, first.tsih)
        connection.wire.raw(data[: self.draw.randrange(40, len(data) + 1)])
        return connection

    def several(self):
        """Runs a session of several connections: adds, drops, reinstates and logs out connections
        and sends on all of them."""
        draw = self.draw
        keys = dict(self.drawn_keys(), MaxConnections='4')
        with contextlib.ExitStack() as opened:
            first = opened.enter_context(self.session()).login(self.target, keys=keys)
            self.logged_in += 1
            first.run(bytes(6))
            members, cmd_sn = {1: first}, first.cmd_sn
            for number in range(draw.randrange(10, 60)):
                cid = draw.randrange(1, 6)
                first.cmd_sn = cmd_sn
                if not draw.randrange(6):
                    self.change(members, cid, first, opened)
                elif cid in members:
                    member = members[cid]
                    member.cmd_sn = cmd_sn
                    try:
                        self.to_a_member(member, number)
                    except Closed:
                        del members[cid]
                    cmd_sn = member.cmd_sn
            for member in members.values():
                self.end(member)

    def change(self, members, cid, first, opened):
        """Adds or removes a connection."""
        what = self.draw.randrange(5)
        try:
            if what == 0 and cid in members:
                members.pop(cid).wire.reset()
            elif what == 1:
                half = self.half_join(first, cid)
                opened.callback(half.close)
            else:
                members[cid] = self.further(first, cid)
                opened.callback(members[cid].close)
        except (Closed, LoginFailed, Violation, OSError):
            pass  # one too many, or the session has come to its end

    def to_a_member(self, member, number):
        """Sends a PDU of any kind, or one that affects other connections."""
        draw = self.draw
        what = draw.randrange(10)
        tag = max(0, number - draw.randrange(8))
        acknowledged = member.exp_stat_sn + draw.choice([0, 0, 1, 5, 1 << 30]) & NO_TAG
        if what == 0:  # a SNACK of some kind, for what may have been sent
            member.wire.send(
                pack_bhs(
                    SNACK,
                    FINAL | draw.randrange(5),
                    0,
                    draw.choice([tag, NO_TAG]),
                    draw.choice([1, 2, 3, NO_TAG]),
                    0,
                    acknowledged,
                    0,
                    0,
                    draw.choice([0, 1, 2, member.exp_stat_sn]),
                    draw.choice([0, 1, 2, 300]),
                )
            )
        elif what == 1:
            function = draw.choice([1, 2, 3, 4, 5, TASK_REASSIGN, TASK_REASSIGN, TASK_REASSIGN])
            member.wire.send(
                pack_bhs(
                    TASK_MANAGEMENT | IMMEDIATE,
                    FINAL | function,
                    0,
                    1000 + number,
                    tag,
                    member.cmd_sn,
                    acknowledged,
                    draw.choice([0, member.cmd_sn]),
                    draw.choice([0, 1]),
                )
            )
        elif what == 2 and not draw.randrange(4):
            member.wire.send(
                pack_bhs(
                    LOGOUT | IMMEDIATE,
                    FINAL | draw.choice([0, 1, 1, 2, 2]),
                    0,
                    1000 + number,
                    draw.randrange(1, 6) << 16,
                    member.cmd_sn,
                    acknowledged,
                )
            )
        else:
            self.one_pdu(member, number)
        if not draw.randrange(8):
            self.take(member)

    def lose_and_reassign(self):
        """Drops a connection with outstanding commands and reassigns them to another one."""
        draw = self.draw
        keys = dict(
            self.drawn_keys(), MaxConnections='4', ErrorRecoveryLevel='2', DefaultTime2Retain='2'
        )
        with contextlib.ExitStack() as opened:
            first = opened.enter_context(self.session()).login(self.target, keys=keys)
            self.logged_in += 1
            first.run(bytes(6))
            second = self.further(first, 2)
            opened.callback(second.close)
            second.cmd_sn = first.cmd_sn
            tags = []
            for _ in range(draw.randrange(1, 5)):
                blocks = draw.choice([1, 64, 2048])
                first.max_cmd_sn = None  # it does not look at the window
                if draw.randrange(2):
                    tags.append(
                        first.submit(
                            struct.pack('>BBQIBB', 0x88, 0, 0, blocks, 0, 0), read=512 * blocks
                        ).itt
                    )
                else:
                    tags.append(
                        first.submit(
                            struct.pack('>BBQIBB', 0x8A, 0, 0, blocks, 0, 0),
                            out=bytes(512 * blocks),
                        ).itt
                    )
            first.wire.reset()
            second.cmd_sn = first.cmd_sn
            for number, tag in enumerate(tags + [tags[0], 4711]):
                second.wire.send(
                    pack_bhs(
                        TASK_MANAGEMENT | IMMEDIATE,
                        FINAL | TASK_REASSIGN,
                        0,
                        1000 + number,
                        tag,
                        second.cmd_sn,
                        second.exp_stat_sn,
                    )
                )
                pdu = second.receive()
                while pdu.opcode != TASK_MANAGEMENT_RESPONSE:
                    pdu = second.receive()
                self.reassigned += pdu.bhs[2] == 0
            self.end(second)

    # -- sessions of others ------------------------------------------------------------------------

    def trespass(self):
        """Sends a complete, incomplete or mutated login with the TSIH of another initiator's
        session, or with a guessed TSIH; it must never succeed."""
        draw = self.draw
        tsih = draw.choice(
            list(self.others) * 2 + [draw.randrange(1, 64), draw.randrange(1, 0x10000)]
        )
        with Session(
            self.address,
            'iqn.2026-11.test:trespasser',
            bytes.fromhex('80abcdef0e01'),
            timeout=2.0,
            cid=draw.randrange(3),
        ) as session:
            if draw.randrange(2):
                pairs = [
                    ('InitiatorName', session.name),
                    ('SessionType', 'Normal'),
                    ('TargetName', self.target),
                ]
                data = self.login_bytes(session, pairs + list(OPERATIONAL.items()), tsih)
                session.wire.raw(
                    data[: draw.choice([len(data), draw.randrange(48, len(data) + 1)])]
                )
                self.end(session)
                return
            try:
                session.login(
                    self.target, tsih=tsih, security=False, keys=dict.fromkeys(SESSION_KEYS)
                )
            except (LoginFailed, Closed, socket.timeout):
                self.refused += 1
                return
            raise AssertionError('joined session %d, which belongs to another initiator' % tsih)
