"""Fuzzers on several connections, and a session beside them that writes, reads and compares all the while.

SOAK_SECONDS: how long (20); SOAK_SEED: what the fuzzers draw from, printed when the test fails. They may end their own
sessions and workers; the verified session never meets an error, the log holds nothing unexpected, the master is alive and has
not grown.
"""

import os
import random
import socket
import struct
import threading
import time

import psutil
import pytest

from daemon import TARGET, eventually
from initiator import LoginFailed, OPERATIONAL, Session, connect, pattern
from pdus import (Closed, DATA_OUT, FINAL, IMMEDIATE, LOGIN, LOGOUT, NO_TAG, NOP_OUT, SCSI_COMMAND, SNACK, TASK_MANAGEMENT,
                  TEXT, Violation, pack_bhs, pack_text)

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SECONDS = float(os.environ.get('SOAK_SECONDS', 20))
SEED = int(os.environ.get('SOAK_SEED', 7143))
FUZZED = 'iqn.2026-11.test.targetd:fuzzed'
FUZZERS = 3
GROWTH = 24 << 20                        # bytes that the master may have more at the end than after the first quarter
OPCODES = [SCSI_COMMAND] * 8 + [DATA_OUT] * 3 + [NOP_OUT, TASK_MANAGEMENT, LOGIN, TEXT, LOGOUT, SNACK, 0x1C, 0x3E]
NUMBERS = [0, 1, 2, 3, 4, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, NO_TAG]


class Fuzzer(threading.Thread):
    """Sends what it draws until `over` is set. `count`: connections made; `logged_in`: those that reached full feature phase;
    `wrong`: what it met that no peer may do to it, or None."""

    def __init__(self, address, seed, over):
        super(Fuzzer, self).__init__(daemon=True)
        self.address, self.over = address, over
        self.draw = random.Random(seed)
        self.count = self.logged_in = 0
        self.wrong = None

    def run(self):
        kinds = [self.garbage, self.login, self.full_feature, self.full_feature]
        try:
            while not self.over.is_set():
                self.count += 1
                try:
                    self.draw.choice(kinds)()
                except (Closed, LoginFailed, Violation, OSError, struct.error):
                    pass                                     # it asked for it
        except BaseException as e:
            self.wrong = e
            raise

    def session(self):
        return Session(self.address, 'iqn.2026-11.test:fuzzer%d' % self.draw.randrange(4),
                       bytes.fromhex('80abcdef00') + bytes([self.draw.randrange(1, 4)]), timeout=2.0)

    def bytes(self, most):
        return bytes(bytearray(self.draw.getrandbits(8) for _ in range(self.draw.randrange(most + 1))))

    def mutated(self, data):
        """A few bytes of `data` changed, some taken away, or some put in."""
        data = bytearray(data)
        for _ in range(self.draw.randrange(1, 5)):
            if data:
                data[self.draw.randrange(len(data))] = self.draw.getrandbits(8)
        if data and not self.draw.randrange(4):
            at = self.draw.randrange(len(data))
            data[at:at + self.draw.randrange(9)] = self.bytes(8)
        return bytes(data)

    def end(self, session):
        """Take what comes for a moment, then go in one of the three ways."""
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

    # -- what it sends ---------------------------------------------------------------------------------------------------

    def garbage(self):
        with self.session() as session:
            session.wire.raw(self.bytes(600))
            self.end(session)

    def login(self):
        """A login in one PDU, mutated; sometimes in pieces."""
        with self.session() as session:
            pairs = [('InitiatorName', session.name), ('SessionType', 'Normal'), ('TargetName', FUZZED)]
            pairs += list(OPERATIONAL.items())
            self.draw.shuffle(pairs)
            text = pack_text(pairs[:self.draw.randrange(3, len(pairs) + 1)])
            if self.draw.randrange(2):
                text = self.mutated(text)
            flags = self.draw.choice([0x87, 0x81, 0x83, 0x04, 0x40, 0x00])
            head = pack_bhs(LOGIN | IMMEDIATE, flags, session.isid + bytes(2), 1, 1 << 16, 1, 0)
            head = head[:4] + struct.pack('>I', len(text)) + head[8:]
            data = head + text + bytes(-len(text) % 4)
            data = self.mutated(data) if self.draw.randrange(2) else data
            cut = self.draw.randrange(len(data))
            session.wire.raw(data[:cut])
            session.wire.raw(data[cut:])
            self.end(session)

    def full_feature(self):
        """A valid login with keys it draws, valid commands, and mutated PDUs with right lengths and digests."""
        draw = self.draw
        keys = {'HeaderDigest': draw.choice(['None', 'CRC32C']), 'DataDigest': draw.choice(['None', 'CRC32C']),
                'ErrorRecoveryLevel': draw.choice('012'), 'InitialR2T': draw.choice(['Yes', 'No']),
                'ImmediateData': draw.choice(['Yes', 'No']), 'MaxConnections': draw.choice('14'),
                'MaxRecvDataSegmentLength': draw.choice(['512', '8192', '262144']), 'DefaultTime2Retain': draw.choice('01'),
                'DefaultTime2Wait': '0'}
        with self.session() as session:
            session.login(FUZZED, keys=keys)
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
            cdb = bytes([draw.choice([0x28, 0x2A, 0x88, 0x8A, 0x12, 0x1A, 0xA0, 0x5F, 0x42, draw.getrandbits(8)])])
            cdb += bytes(7) + bytes([draw.randrange(9)]) + bytes(4) + self.bytes(1) if draw.randrange(2) else self.bytes(15)
            flags = draw.choice([0xC1, 0xA1, 0x81, 0xE1, 0x21, draw.getrandbits(8)])
            head = pack_bhs(opcode, flags, 0, number, draw.choice([0, 4, 512, 4096, 1 << 20, NO_TAG]), words[1],
                            session.exp_stat_sn)
            head = head[:32] + cdb.ljust(16, b'\0')[:16]
        else:
            if opcode == DATA_OUT:                           # mostly for a command of late, with a tag that may be outstanding
                words[0], words[4] = draw.choice([1, 2, 3, 4, NO_TAG]), draw.choice([0, 0, 1])
                words[5] = draw.choice([0, 0, 512])
            flags = draw.choice([FINAL, FINAL | 1, FINAL | 2, draw.getrandbits(8)])
            head = pack_bhs(opcode, flags, 0, draw.choice([number, max(0, number - draw.randrange(1, 5)), NO_TAG]), *words)
        if immediate:
            head = bytes([head[0] | IMMEDIATE]) + head[1:]
        elif opcode != DATA_OUT and words[1] == session.cmd_sn:
            session.cmd_sn = session.cmd_sn + 1 & NO_TAG
        if not draw.randrange(4):
            head = self.mutated(head)[:48].ljust(48, b'\0')
        ahs = bytes(bytearray(draw.getrandbits(8) for _ in range(4 * draw.randrange(4)))) if not draw.randrange(6) else b''
        session.wire.send(head, data, ahs, spoil_header=not draw.randrange(40), spoil_data=not draw.randrange(20))

    def take(self, session):
        """What has come so far, unread by anyone."""
        session.wire.socket.settimeout(0.01)
        try:
            while session.wire.socket.recv(65536):
                pass
        except socket.timeout:
            pass
        session.wire.socket.settimeout(2.0)


def write_and_verify(session, seed, number):
    """One round in a place of its own: writes of several sizes, each read back at once and once more later."""
    place = number % 16 * 512
    blocks = (1, 8, 128, 512)[number % 4]
    data = pattern(seed + number, blocks * 512)
    session.write(place, data)
    assert session.read(place, blocks) == data
    return place, blocks, data


def around_trouble(log):
    """The log from a little before its first traceback on."""
    at = log.find('Traceback')
    return log[max(0, at - 1500):at + 3500]


def test_soak(daemon):
    daemon.target()
    daemon.target(FUZZED, ['initiator-address = ALL', 'HeaderDigest = None, CRC32C', 'DataDigest = None, CRC32C',
                           'ErrorRecoveryLevel = 2', 'MaxConnections = 4'],
                  {0: ['backing-store = %s' % daemon.image('fuzzed.img', 16 << 20), 'thin = yes']})
    daemon.text.server['max-sessions'] = 200
    daemon.text.server['max-connections-per-address'] = 200
    daemon.start()
    master = psutil.Process(daemon.process.pid)
    with connect(daemon.address, TARGET, name='iqn.2026-11.test:verified') as verified:
        verified.clear_attentions()
        worker = daemon.worker_of(verified)
        normal = len(daemon.workers())
        over = threading.Event()
        fuzzers = [Fuzzer(daemon.address, SEED * 100 + number, over) for number in range(FUZZERS)]
        for fuzzer in fuzzers:
            fuzzer.start()
        began, rounds, grown_from, kept = time.monotonic(), 0, None, {}
        try:
            while time.monotonic() < began + SECONDS:
                place, blocks, data = write_and_verify(verified, SEED, rounds)
                kept[place] = blocks, data
                rounds += 1
                if grown_from is None and time.monotonic() > began + SECONDS / 4:
                    grown_from = master.memory_info().rss
                if rounds % 50 == 0:
                    assert not daemon.trouble(), around_trouble(daemon.log)
        finally:
            over.set()
            for fuzzer in fuzzers:
                fuzzer.join(20)
            print('seed %d: %d rounds verified, fuzzers %s' % (
                SEED, rounds, [(each.count, each.logged_in) for each in fuzzers]))
        assert [each.wrong for each in fuzzers] == [None] * FUZZERS
        assert not any(each.is_alive() for each in fuzzers)
        for place, (blocks, data) in kept.items():
            assert verified.read(place, blocks) == data
        assert verified.rejects == [] and verified.events == []
        assert rounds > SECONDS and sum(each.logged_in for each in fuzzers) > FUZZERS
        eventually(lambda: len(daemon.workers()) <= normal, 30,
                   lambda: 'workers left: %s\n%s' % (daemon.workers(), daemon.log[-3000:]))
        assert daemon.worker_of(verified).pid == worker.pid
        assert master.memory_info().rss - grown_from < GROWTH
        verified.logout()
    with connect(daemon.address, FUZZED, name='iqn.2026-11.test:afterwards') as fresh:
        fresh.run(bytes(6))
        fresh.inquiry()
