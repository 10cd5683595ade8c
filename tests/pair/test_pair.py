"""The tests' initiator and the target's machines, one against the other in one thread and without a
socket: for every negotiated combination, division of the bytes and mixture of commands, the data
written is the data read. Every run is the same as the last.

The initiator is strict about what it is sent (initiator.py); here the bytes on their way may also
be spoilt, and it recovers as RFC 7143 7 has it.
"""

import random
import struct

import in_memory
import pytest
from initiator import Session, pattern
from pdus import (
    DATA_IN,
    DATA_OUT,
    FINAL,
    NO_TAG,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    Chap,
    Closed,
    Wire,
    pack_bhs,
    read_10,
    require,
)

TARGET = 'iqn.2026-11.com.example:recorded'
BLOCKS = 2048  # of the 32768 that the unit has
SNACK, DATA_OR_R2T, STATUS = 0x10, 0, 1
SEEDS = range(8)


@pytest.fixture(scope='module')
def configuration(tmp_path_factory):
    return in_memory.configuration(
        tmp_path_factory.mktemp('pair'), ['ErrorRecoveryLevel = 2', 'MaxOutstandingR2T = 8']
    )


class MemoryWire(Wire):
    """A Wire to an in_memory.Target; the bytes sent arrive in pieces of lengths that `dice`
    chooses."""

    def __init__(self, configuration, dice):
        self.target = in_memory.Target(
            configuration, lambda count: bytes(dice.getrandbits(8) for _ in range(count))
        )
        self.dice = dice
        self.header_digest = self.data_digest = False

    def raw(self, data):
        pieces = [
            self.dice.choice([1, 47, 48, 49, 512, 5000]) for _ in range(self.dice.randrange(5))
        ]
        while data:
            size = pieces.pop() if pieces else len(data)
            if self.target.connection is not None and self.target.connection.ended is not None:
                raise Closed(self.target.connection.ended)
            self.target.feed(data[:size])
            data = data[size:]

    def _exactly(self, count):
        connection = self.target.connection
        if (
            connection is not None
            and connection.ended is not None
            and len(self.target.socket.sent) < count
        ):
            raise Closed(connection.ended)
        return self.target.socket.take(count)

    def close(self):
        pass


class Initiator(Session):
    """A Session with such a wire. `disk`: what the unit must hold."""

    def __init__(self, configuration, seed):
        self.dice = random.Random(seed)
        self.configuration = configuration
        self.disk = bytearray(BLOCKS * 512)
        super(Initiator, self).__init__(None)

    def make_wire(self, *_):
        return MemoryWire(self.configuration, self.dice)

    def drawn_keys(self, **more):
        choice = self.dice.choice
        first_burst = choice([512, 4096, 65536])
        return dict(
            {
                'HeaderDigest': choice(['None', 'CRC32C']),
                'DataDigest': choice(['None', 'CRC32C']),
                'InitialR2T': choice(['Yes', 'No']),
                'ImmediateData': choice(['Yes', 'No']),
                'FirstBurstLength': str(first_burst),
                'MaxBurstLength': str(choice([first_burst, 65536 + 512, 262144])),
                'MaxOutstandingR2T': choice('18'),
                'MaxRecvDataSegmentLength': str(choice([512, 1000, 8192, 262144])),
                'ErrorRecoveryLevel': choice('012'),
                'MaxConnections': choice('14'),
            },
            **more,
        )

    def place(self):
        """(LBA, blocks)"""
        blocks = self.dice.choice([1, 2, 7, 16, 60, 150])
        return self.dice.randrange(BLOCKS - blocks), blocks

    def write_command(self):
        lba, blocks = self.place()
        data = pattern(self.dice.getrandbits(30), blocks * 512)
        self.disk[lba * 512 : (lba + blocks) * 512] = data
        return struct.pack('>BBQIBB', 0x8A, 0, lba, blocks, 0, 0), data

    def read_command(self):
        lba, blocks = self.place()
        return read_10(lba, blocks), blocks * 512, lba * 512

    def read_and_compare(self):
        cdb, length, offset = self.read_command()
        assert self.run(cdb, read=length).good().data == self.disk[offset : offset + length]


def logged_in(configuration, seed, **keys):
    session = Initiator(configuration, seed)
    session.login(
        TARGET, keys=session.drawn_keys(**keys), security=session.dice.choice([None, False])
    )
    session.clear_attentions()
    return session


@pytest.mark.parametrize('seed', SEEDS)
def test_data_written_is_read_back(configuration, seed):
    session = logged_in(configuration, seed)
    for _ in range(25):
        kind = session.dice.randrange(5)
        if kind < 2:
            cdb, data = session.write_command()
            session.run(cdb, out=data).good()
        elif kind < 4:
            session.read_and_compare()
        else:
            assert (
                session.ping(b'here', immediate=session.dice.choice([True, False]))
                == b'here'[: session.receive_limit]
            )
    assert session.rejects == [] and session.logout() == 0


@pytest.mark.parametrize('seed', SEEDS)
def test_many_commands_at_once(configuration, seed):
    """Reads of one place and writes to another at the same time, R2Ts answered late and in an order
    that is drawn."""
    session = logged_in(configuration, seed, MaxOutstandingR2T='8')
    still = pattern(seed, 64 * 512)
    session.write(BLOCKS, still)
    for _ in range(3):
        session.hold_r2t = True
        writes = [
            session.submit(cdb, out=data)
            for cdb, data in (session.write_command() for _ in range(6))
        ]
        reads = [session.submit(read_10(BLOCKS, 64), read=len(still)) for _ in range(6)]
        for command in reads:
            assert session.wait(command).good().data == still
        session.dice.shuffle(writes)
        while not all(command.result for command in writes):
            command = session.dice.choice([each for each in writes if not each.result])
            if command.r2ts:
                session.answer_r2t(command)
            else:
                session.step()
        for command in writes:
            command.result.good()


@pytest.mark.clause('RFC 7143 4.2.2')
@pytest.mark.parametrize('level', '02')
def test_numbers_wrap_around(configuration, level):
    """CmdSN and StatSN go from FFFFFFFFh to 0 in the middle of a session (RFC 1982 arithmetic)."""
    session = Initiator(configuration, 1)
    session.cmd_sn, session.exp_stat_sn = NO_TAG - 20, NO_TAG - 30
    session.login(TARGET, keys={'ErrorRecoveryLevel': level}, security=False)
    session.clear_attentions()
    for _ in range(30):
        cdb, data = session.write_command()
        session.run(cdb, out=data).good()
        session.read_and_compare()
    assert session.cmd_sn < 100 and session.exp_stat_sn < 100


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.clause('RFC 7143 12.1.3')
def test_chap_in_both_directions(configuration, seed):
    session = Initiator(configuration, seed)
    chap = Chap(
        'erp',
        'secret-of-12-to-16',
        '5,6,7',
        back=('erp-back', 'another-secret'),
        challenge=bytes(range(20)),
    )
    session.login(TARGET + '-chap', chap=chap)
    session.clear_attentions()
    session.read_and_compare()


# -- spoilt bytes ----------------------------------------------------------------------------------


class Lossy(Initiator):
    """One command at a time, ErrorRecoveryLevel 1; a part of the data segments in both directions
    has a wrong digest.

    `spoilt`: how many were; those that arrive here are looked at as if their digest had been wrong.
    """

    spoilt = 0

    def is_spoilt(self):
        spoilt = not self.dice.randrange(4)
        self.spoilt += spoilt
        return spoilt

    def send_command(self, bhs, data):
        self.wire.send(bhs, data, spoil_data=bool(data) and self.is_spoilt())

    def carry_out(self, cdb, read=0, out=None):
        """Runs a command to its end, even if PDUs are lost; returns (status, data)."""
        itt, sent = self.next_tag(), b''
        if out is not None and self.immediate_data:
            sent = out[: min(self.first_burst, self.send_limit)]
        flags = FINAL | (0x20 if out is not None else 0x40) | 1
        length = len(out) if out is not None else read
        bhs = pack_bhs(SCSI_COMMAND, flags, 0, itt, length, self.next_cmd_sn(), self.exp_stat_sn)[
            :32
        ] + cdb.ljust(16, b'\0')
        self.send_command(bhs, sent)
        data, status, missing, r2t_sn = bytearray(read), None, set(), 0
        while status is None or missing:
            pdu = self.wire.receive()
            if pdu.opcode == REJECT:
                require(pdu.bhs[2] == 2, 'Reject, reason %d', pdu.bhs[2])
                self.exp_stat_sn = pdu.stat_sn + 1
                # it never came, so it is sent again as it was
                if pdu.data[0] & 0x3F == SCSI_COMMAND:
                    self.send_command(bhs, sent)
            elif pdu.opcode == R2T:
                require(pdu.word36 == r2t_sn, 'R2TSN %d, expected %d', pdu.word36, r2t_sn)
                r2t_sn += 1
                self.answer(itt, out, pdu)
            elif pdu.opcode == DATA_IN:
                require(pdu.itt == itt, 'data for another command')
                if self.is_spoilt():
                    missing.add(pdu.word36)
                    self.snack(DATA_OR_R2T, itt, pdu.word36)
                    continue
                missing.discard(pdu.word36)
                data[pdu.word40 : pdu.word40 + len(pdu.data)] = pdu.data
                if pdu.flags & 1:
                    status, stat_sn = pdu.bhs[3], pdu.stat_sn
            else:
                require((pdu.opcode, pdu.itt) == (SCSI_RESPONSE, itt), 'what is %r?', pdu)
                if self.is_spoilt():
                    self.snack(STATUS, NO_TAG, pdu.stat_sn)
                    continue
                status, stat_sn = pdu.bhs[3], pdu.stat_sn
        self.exp_stat_sn = stat_sn + 1
        return status, bytes(data)

    def snack(self, kind, itt, first):
        self.wire.send(
            pack_bhs(SNACK, FINAL | kind, 0, itt, NO_TAG, 0, self.exp_stat_sn, 0, 0, first, 1)
        )

    def answer(self, itt, out, r2t):
        offset, end, data_sn = r2t.word40, r2t.word40 + r2t.word44, 0
        while offset < end:
            part = out[offset : min(end, offset + min(self.send_limit, 3000))]
            is_last = offset + len(part) == end
            bhs = pack_bhs(
                DATA_OUT,
                FINAL if is_last else 0,
                0,
                itt,
                r2t.ttt,
                0,
                self.exp_stat_sn,
                0,
                data_sn,
                offset,
            )
            self.wire.send(bhs, part, spoil_data=self.is_spoilt())
            offset += len(part)
            data_sn += 1


@pytest.mark.clause('RFC 7143 7.8', 'RFC 7143 11.16')
@pytest.mark.parametrize('seed', SEEDS)
def test_segments_with_wrong_digests_are_recovered(configuration, seed):
    session = Lossy(configuration, seed)
    session.login(
        TARGET,
        keys=session.drawn_keys(ErrorRecoveryLevel='1', DataDigest='CRC32C', InitialR2T='Yes'),
    )
    session.clear_attentions()
    for _ in range(10):
        cdb, data = session.write_command()
        assert session.carry_out(cdb, out=data)[0] == 0
        cdb, length, offset = session.read_command()
        assert session.carry_out(cdb, read=length) == (
            0,
            bytes(session.disk[offset : offset + length]),
        )
    assert session.spoilt > 10
