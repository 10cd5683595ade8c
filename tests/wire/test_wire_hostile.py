"""Invalid PDUs and behaviour of initiators. Such an initiator may lose its own connection; other
sessions are not affected.

After each test another session writes and reads, a new initiator can log in, and the master is
the same process as before.
"""

import socket
import struct

import pytest
from daemon import TARGET
from initiator import CHECK_CONDITION, LoginFailed, Session, connect, pattern
from pdus import (
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGIN,
    LOGOUT,
    NO_TAG,
    NOP_IN,
    NOP_OUT,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    SNACK,
    TASK_MANAGEMENT,
    TEXT,
    Closed,
    pack_bhs,
    pack_text,
)

pytestmark = pytest.mark.wire

BYSTANDER = 'iqn.2026-11.test:bystander'
PLACE = 4000  # the bystander's blocks
READ_1 = struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0)
WRITE_16 = struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 16, 0)
OLD = pattern(100, 8192)


@pytest.fixture(scope='module')
def bystander(shared):
    session = connect(shared.address, TARGET, name=BYSTANDER)
    session.clear_attentions()
    yield session
    session.close()


@pytest.fixture(autouse=True)
def nobody_else_is_disturbed(shared, bystander):
    master = shared.process.pid
    bystander.write(0, OLD)
    bystander.write(PLACE, pattern(1, 65536))
    yield
    assert bystander.read(PLACE, 128) == pattern(1, 65536)
    bystander.write(PLACE, pattern(2, 65536))
    assert bystander.read(PLACE, 128) == pattern(2, 65536)
    assert shared.process.poll() is None and shared.process.pid == master
    with connect(shared.address, TARGET, name='iqn.2026-11.test:afterwards') as fresh:
        fresh.clear_attentions()
        assert fresh.read(PLACE, 128) == pattern(2, 65536)
    assert not shared.trouble(), shared.log


def ends(session):
    """Returns the PDUs that are received until the target closes the connection; [] if it closes at
    once."""
    got = []
    try:
        while True:
            got.append(session.wire.receive())
    except Closed:
        return got


def ends_somehow(session):
    """Waits until a connection on which garbage was sent is closed; the last PDU may be
    incomplete."""
    try:
        session.wire.socket.shutdown(socket.SHUT_WR)
        ends(session)
    except (AssertionError, OSError):
        pass


def goes_on(session):
    """Returns True if a NOP-Out is still answered, possibly after other PDUs; False if the target
    closed the connection."""
    try:
        session.wire.send(
            pack_bhs(
                NOP_OUT | IMMEDIATE, FINAL, 0, 0x7A11, NO_TAG, session.cmd_sn, session.exp_stat_sn
            )
        )
        while True:
            pdu = session.step()
            if pdu.opcode == NOP_IN and pdu.itt == 0x7A11:
                return True
    except Closed:
        return False


# -- before any login ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'data',
    [
        b'GET / HTTP/1.1\r\nHost: example\r\nUser-Agent: curious\r\n\r\n',
        b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + bytes(200),
        b'\xff' * 48,
        b'\0' * 48,
        b'\x43' + b'\xff' * 47,
        bytes(range(256)) * 40,
        b'\x43\x87\0\0\xff\xff\xff\xff' + bytes(40),  # a login with every length at its largest
        b'\x03\x87\0\0\0\0\0\0' + bytes(40),
    ],
    ids=['http', 'tls', 'ones', 'zeroes', 'login-ones', 'bytes', 'login-lengths', 'login-empty'],
)
@pytest.mark.clause('RFC 7143 6.3.1')
def test_garbage(shared, data):
    with Session(shared.address) as session:
        session.wire.raw(data)
        ends_somehow(session)


@pytest.mark.clause('RFC 7143 9.1')
def test_half_open_and_silent_connections_use_no_worker_process(shared, bystander):
    before = len(shared.workers())
    silent = [Session(shared.address) for _ in range(10)]
    for number, session in enumerate(silent):
        session.wire.raw(b'\x43' * number)  # less than a header
    assert len(shared.workers()) <= before + 1
    assert bystander.read(PLACE, 128) == pattern(1, 65536)
    for session in silent:
        session.wire.reset()


def test_connections_that_are_closed_immediately(shared):
    for _ in range(50):
        socket.create_connection(shared.address, 5).close()


@pytest.mark.clause('RFC 7143 6.3')
def test_login_in_single_bytes(shared):
    with Session(shared.address) as session:
        sent, session.wire.raw = (
            session.wire.raw,
            lambda data: [sent(bytes([byte])) for byte in data],
        )
        session.login(TARGET)
        session.clear_attentions()
        session.write(50, pattern(3, 512))
        assert session.read(50, 1) == pattern(3, 512)


@pytest.mark.clause('RFC 7143 13.12')
def test_login_pdu_longer_than_allowed(shared):
    """Before MaxRecvDataSegmentLength is declared, a segment may have 8192 bytes (RFC 7143
    13.12)."""
    with Session(shared.address) as session:
        session.login_pdu(b'X-a=' + b'y' * 100000 + b'\0', 0, 1)
        with pytest.raises((LoginFailed, Closed)):
            session.login_response()


@pytest.mark.clause('RFC 7143 6.2')
def test_login_cut_off_in_the_text(shared):
    with Session(shared.address) as session:
        session.wire.raw(
            pack_bhs(LOGIN | IMMEDIATE, 0x81)[:4]
            + struct.pack('>I', 500)
            + bytes(40)
            + b'InitiatorName='
        )
        ends_somehow(session)


# -- framing, in full feature phase ----------------------------------------------------------------


@pytest.mark.clause('RFC 7143 7.14')
def test_pdu_cut_off_in_the_header(shared, ready):
    session = ready(shared)
    worker = shared.worker_of(session)
    session.wire.raw(pack_bhs(SCSI_COMMAND)[:20])
    ends_somehow(session)
    worker.wait(10)


@pytest.mark.clause('RFC 7143 7.14')
def test_pdu_cut_off_in_the_data(shared, ready, bystander):
    session = ready(shared)
    head = (
        pack_bhs(
            SCSI_COMMAND, FINAL | 0x21, 0, 0x50, 8192, session.next_cmd_sn(), session.exp_stat_sn
        )[:32]
        + WRITE_16
    )
    session.wire.raw(
        head[:4] + struct.pack('>I', 8192) + head[8:] + bytes(48 - len(head)) + b'z' * 5000
    )
    session.wire.reset()
    assert bystander.read(0, 16) == OLD


@pytest.mark.parametrize('length', [262145, 0xFFFFFF])
@pytest.mark.clause('RFC 7143 7.13', 'RFC 7143 13.12')
def test_data_longer_than_negotiated(shared, ready, length):
    session = ready(shared)
    assert length > session.send_limit
    session.wire.raw(
        pack_bhs(SCSI_COMMAND, FINAL | 0x21, 0, 0x51, length, session.next_cmd_sn())[:4]
        + struct.pack('>I', length)
        + bytes(40)
    )
    pdus = ends(session)
    assert all(pdu.opcode == REJECT for pdu in pdus)


@pytest.mark.parametrize(
    'ahs',
    [
        struct.pack('>HBB', 0xFFFF, 1, 0) + bytes(252),  # a length that runs over the end
        struct.pack('>HBB', 1, 0x3F, 0),  # an unknown type
        bytes(1020),  # the longest there can be, and meaningless
    ],
    ids=['overlong', 'unknown', 'zeroes'],
)
@pytest.mark.clause('RFC 7143 11.2.2')
def test_strange_additional_headers(shared, ready, ahs):
    session = ready(shared)
    session.wire.send(
        pack_bhs(
            SCSI_COMMAND, FINAL | 0x41, 0, 0x52, 512, session.next_cmd_sn(), session.exp_stat_sn
        )[:32]
        + READ_1
        + bytes(6),
        b'',
        ahs,
    )
    try:
        pdu = session.wire.receive()
        assert pdu.opcode in (REJECT, SCSI_RESPONSE, 0x25)
    except Closed:
        pass


@pytest.mark.parametrize('opcode', [0x1E, 0x07, 0x1C, 0x3E, 0x0F, 0x21, 0x25, 0x31])
@pytest.mark.clause('RFC 7143 11.2.1.2', 'RFC 7143 11.17')
def test_unknown_or_target_opcode_is_rejected(shared, ready, opcode):
    """The Reject PDU contains the rejected header (RFC 7143 11.17), and the session continues."""
    session = ready(shared)
    bhs = pack_bhs(
        opcode | IMMEDIATE, FINAL, 0, 0x1234, NO_TAG, session.cmd_sn, session.exp_stat_sn
    )
    session.wire.send(bhs)
    pdu = session.receive()
    assert pdu.opcode == REJECT and pdu.bhs[2] in (0x04, 0x05)
    assert pdu.data[:48] == bhs and pdu.itt == NO_TAG
    assert goes_on(session)
    session.run(bytes(6)).good()


@pytest.mark.clause('RFC 7143 11.16', 'RFC 7143 13.20')
def test_snack_at_level_zero_is_rejected(shared, ready):
    session = ready(shared)
    session.wire.send(pack_bhs(SNACK | 0x0, FINAL, 0, 0x1, NO_TAG, 0, session.exp_stat_sn))
    pdu = session.receive()
    assert pdu.opcode == REJECT and pdu.bhs[2] in (0x03, 0x04, 0x05)
    assert goes_on(session)


# -- digests ---------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 7.8')
def test_bad_header_digest_ends_the_connection(shared, ready):
    session = ready(shared, keys={'HeaderDigest': 'CRC32C'})
    bhs = pack_bhs(SCSI_COMMAND, FINAL | 1, 0, 0x60, 0, session.next_cmd_sn(), session.exp_stat_sn)
    session.wire.send(bhs, spoil_header=True)
    assert all(pdu.opcode == REJECT for pdu in ends(session))


@pytest.mark.parametrize('how', ['immediate', 'solicited'])
@pytest.mark.clause('RFC 7143 7.8')
def test_bad_data_digest_writes_nothing(shared, ready, bystander, how):
    keys = {'DataDigest': 'CRC32C', 'ImmediateData': 'Yes' if how == 'immediate' else 'No'}
    session = ready(shared, keys=keys)
    sn = session.next_cmd_sn()
    flags = FINAL | 0x21
    head = (
        pack_bhs(SCSI_COMMAND, flags, 0, 0x61, 8192, sn, session.exp_stat_sn)[:32]
        + WRITE_16
        + bytes(6)
    )
    if how == 'immediate':
        session.wire.send(head, b'z' * 8192, spoil_data=True)
    else:
        session.wire.send(head)
        r2t = session.wire.receive()
        assert r2t.opcode == R2T
        session.wire.send(
            pack_bhs(DATA_OUT, FINAL, 0, 0x61, r2t.ttt, 0, session.exp_stat_sn),
            b'z' * 8192,
            spoil_data=True,
        )
    opcodes = set()
    # a refused command is not answered, RFC 7143 7.8
    last = REJECT if how == 'immediate' else SCSI_RESPONSE
    try:
        while last not in opcodes:
            pdu = session.wire.receive()
            opcodes.add(pdu.opcode)
            if pdu.opcode == REJECT:
                assert pdu.bhs[2] == 0x02  # data digest error
            if pdu.opcode == SCSI_RESPONSE:
                assert pdu.bhs[3] == CHECK_CONDITION
    except Closed:
        pass
    assert opcodes <= {REJECT, SCSI_RESPONSE} and opcodes
    assert bystander.read(0, 16) == OLD


# -- data that does not fit ------------------------------------------------------------------------


def solicited(session):
    """A WRITE(10) of 16 blocks at 0 whose R2T has come: (command, the R2T)."""
    session.hold_r2t = True
    command = session.submit(WRITE_16, out=b'z' * 8192)
    return command, session.until(R2T)


@pytest.mark.parametrize(
    'itt, ttt, data_sn, offset, data',
    [
        ('own', 'own', 5, 0, b'z' * 8192),  # DataSN
        ('own', 'own', 0, 512, b'z' * 7680),  # a hole at the beginning
        ('own', 'own', 0, 1 << 30, b'z' * 512),  # far outside
        ('own', 'own', 0, 0, b'z' * 12288),  # more than was asked for
        ('own', 0x7777, 0, 0, b'z' * 8192),  # a transfer tag that was never given
        (0x6666, 'own', 0, 0, b'z' * 8192),  # a task that is not there
        (0x6666, NO_TAG, 0, 0, b'z' * 8192),  # unsolicited, for no task
        ('own', NO_TAG, 0, 0, b'z' * 8192),  # unsolicited, where an R2T was sent
    ],
    ids=['data-sn', 'hole', 'outside', 'too-much', 'ttt', 'itt', 'no-task', 'unasked'],
)
@pytest.mark.clause('RFC 7143 7.9', 'RFC 7143 11.7')
def test_invalid_data_out_is_refused(shared, ready, bystander, itt, ttt, data_sn, offset, data):
    """The target answers with CHECK CONDITION or Reject or closes the connection; the medium is not
    changed."""
    session = ready(shared, keys={'ImmediateData': 'No'})
    command, r2t = solicited(session)
    session.wire.send(
        pack_bhs(
            DATA_OUT,
            FINAL,
            0,
            command.itt if itt == 'own' else itt,
            r2t.ttt if ttt == 'own' else ttt,
            0,
            session.exp_stat_sn,
            0,
            data_sn,
            offset,
        ),
        data,
    )
    if goes_on(session):
        if command.result is not None:
            assert command.result.status == CHECK_CONDITION, command.result
        else:
            assert session.rejects
    session.wire.reset()
    assert bystander.read(0, 16) == OLD


@pytest.mark.clause('RFC 7143 11.7', 'RFC 7143 11.8')
def test_missing_data_out_is_requested_again(shared, ready, bystander):
    """If the F bit is set before all data of an R2T has arrived, the target requests the rest or
    fails the command; it never writes a part."""
    session = ready(shared, keys={'ImmediateData': 'No'})
    command, r2t = solicited(session)
    session.wire.send(
        pack_bhs(DATA_OUT, FINAL, 0, command.itt, r2t.ttt, 0, session.exp_stat_sn), b'z' * 512
    )
    command.solicited = 512
    command.r2ts.clear()
    if goes_on(session):
        assert command.r2ts or command.result.status == CHECK_CONDITION
    session.wire.reset()
    assert bystander.read(0, 16) == OLD


@pytest.mark.parametrize(
    'key, value',
    [
        pytest.param('ImmediateData', 'No', marks=pytest.mark.clause('RFC 7143 13.11')),
        pytest.param('FirstBurstLength', '4096', marks=pytest.mark.clause('RFC 7143 13.14')),
    ],
)
def test_more_immediate_data_than_negotiated(shared, ready, bystander, key, value):
    session = ready(shared, keys={key: value})
    head = pack_bhs(
        SCSI_COMMAND, FINAL | 0x21, 0, 0x70, 8192, session.next_cmd_sn(), session.exp_stat_sn
    )[:32]
    session.wire.send(head + WRITE_16 + bytes(6), b'z' * 8192)
    try:
        pdu = session.wire.receive()
        assert pdu.opcode == REJECT or (
            pdu.opcode == SCSI_RESPONSE and pdu.bhs[3] == CHECK_CONDITION
        )
    except Closed:
        pass
    session.wire.reset()
    assert bystander.read(0, 16) == OLD


@pytest.mark.clause('RFC 7143 11.3', 'RFC 7143 11.4.5')
def test_immediate_data_with_a_command_without_data_out(shared, ready):
    session = ready(shared)
    result = session.run(bytes(6), out=b'z' * 4096)  # TEST UNIT READY with W and data
    assert result.status == CHECK_CONDITION or result.underflow == 4096
    assert goes_on(session)


@pytest.mark.clause('RFC 7143 11.3')
def test_read_and_write_bits_that_contradict_the_command(shared, ready, bystander):
    session = ready(shared)
    wrong = session.run(WRITE_16, read=8192)  # WRITE with R instead of W
    assert wrong.status == CHECK_CONDITION or wrong.overflow
    session.run(READ_1, out=b'z' * 512)  # READ with W instead of R
    assert goes_on(session)
    assert bystander.read(0, 16) == OLD


@pytest.mark.clause('RFC 7143 11.2.1.8', 'RFC 7143 11.17')
def test_a_command_with_a_task_tag_in_use_is_rejected(shared, ready, bystander):
    """A second write with the task tag of a write that waits for its data is rejected; the data of
    the first write is not affected."""
    session = ready(shared, keys={'ImmediateData': 'No'})
    command, r2t = solicited(session)
    head = pack_bhs(
        SCSI_COMMAND, FINAL | 0x21, 0, command.itt, 8192, session.next_cmd_sn(), session.exp_stat_sn
    )[:32]
    session.wire.send(head + WRITE_16 + bytes(6))
    try:
        pdu = session.wire.receive()
        # protocol error, task in progress
        assert pdu.opcode == REJECT and pdu.bhs[2] in (0x04, 0x07)
    except Closed:
        pass
    session.wire.reset()
    assert bystander.read(0, 16) == OLD


# -- requests out of place -------------------------------------------------------------------------


@pytest.mark.parametrize(
    'bhs, data',
    [
        (
            pack_bhs(LOGIN | IMMEDIATE, 0x87, 0, 1, 0x10000, 1, 1),
            pack_text([('InitiatorName', 'iqn.x:y')]),
        ),
        (pack_bhs(TEXT | IMMEDIATE, FINAL, 0, 2, 0x4242, 1, 1), b'SendTargets=All\0'),
        (pack_bhs(TEXT | IMMEDIATE, FINAL | 0x40, 0, 2, NO_TAG, 1, 1), b'SendTargets=All\0'),
        (pack_bhs(TEXT | IMMEDIATE, FINAL, 0, 2, NO_TAG, 1, 1), b'\xff\xfe no key here'),
        (pack_bhs(TEXT | IMMEDIATE, FINAL, 0, NO_TAG, NO_TAG, 1, 1), b''),
        (pack_bhs(LOGOUT | IMMEDIATE, FINAL | 2, 0, 3, 0x630000, 1, 1), b''),
        (pack_bhs(LOGOUT | IMMEDIATE, FINAL | 0x55, 0, 3, 0, 1, 1), b''),
        (pack_bhs(TASK_MANAGEMENT | IMMEDIATE, FINAL | 8, 0, 4, 1, 1, 1), b''),
    ],
    ids=[
        'login',
        'text-ttt',
        'text-f-and-c',
        'text-noise',
        'text-no-tag',
        'logout-recovery',
        'logout-reason',
        'reassign',
    ],
)
@pytest.mark.clause('RFC 7143 7.13')
def test_requests_out_of_place_are_answered_or_end_the_connection(shared, ready, bhs, data):
    session = ready(shared)
    bhs = bhs[:24] + struct.pack('>II', session.cmd_sn, session.exp_stat_sn) + bhs[32:]
    session.wire.send(bhs, data)
    try:
        pdu = session.wire.receive()
        assert pdu.opcode in (REJECT, 0x22, 0x23, 0x24, 0x26)
    except Closed:
        pass


def test_an_initiator_that_never_reads(shared, bystander):
    """The responses accumulate in the session's worker, up to a limit; the worker ends with the
    connection."""
    session = Session(shared.address, 'iqn.2026-11.test:deaf', receive_buffer=4096)
    session.login(TARGET)
    session.clear_attentions()
    worker = shared.worker_of(session)
    read = struct.pack('>BBQIBB', 0x88, 0, 0, 2048, 0, 0)
    session.wire.socket.settimeout(2)
    try:
        for _ in range(30):
            session.submit(read, read=1 << 20)
    except (socket.timeout, Closed):
        pass
    for _ in range(5):
        assert bystander.read(PLACE, 128) == pattern(1, 65536)
    assert worker.memory_info().rss < 200 << 20
    session.wire.reset()
    worker.wait(20)


@pytest.mark.clause('RFC 7143 9.1')
def test_a_flood_of_unfinished_logins(shared):
    for _ in range(20):
        session = Session(shared.address)
        session.login_pdu(
            [
                ('InitiatorName', 'iqn.2026-11.test:flood'),
                ('SessionType', 'Normal'),
                ('TargetName', TARGET),
                ('AuthMethod', 'None'),
            ],
            0,
            1,
        )
        session.wire.reset()
