"""Tests of the limits on the memory that an initiator can make a session use (targetd(8),
MEMORY)."""

import re
import struct

import pytest
from daemon import watched
from pdus import FINAL, IMMEDIATE, R2T, SCSI_COMMAND, pack_bhs

pytestmark = pytest.mark.wire

SLOW = 'iqn.2026-11.test.targetd:slow'
MEGABYTE = 1 << 20


@pytest.fixture(scope='module')
def served_both_ways(tmp_path_factory):
    """A target that responds in the connection's thread (cache), and one that responds in executor
    threads."""
    with watched(tmp_path_factory.mktemp('memory')) as daemon:
        lines = ['initiator-address = ALL', 'MaxConnections = 2']
        daemon.target(lines=lines, size=128 * MEGABYTE)
        daemon.target(
            SLOW,
            lines,
            {0: ['backing-store = %s' % daemon.image('slow.img'), 'filter = delay read=1ms']},
        )
        yield daemon.start()


def resident(daemon, session):
    return daemon.worker_of(session).memory_info().rss


def read_16(blocks):
    return struct.pack('>BBQIBB', 0x88, 0, 0, blocks, 0, 0)


def write_16(blocks):
    return struct.pack('>BBQIBB', 0x8A, 0, 0, blocks, 0, 0)


@pytest.mark.parametrize('connections', ['1', '2'])
@pytest.mark.parametrize('target', ['iqn.2026-11.test.targetd:disk', SLOW])
def test_an_initiator_that_does_not_read(served_both_ways, ready, target, connections):
    """100 reads of 4 MiB whose responses are not received for a while."""
    session = ready(
        served_both_ways,
        target,
        keys={
            'MaxRecvDataSegmentLength': '262144',
            'MaxBurstLength': '1048576',
            'MaxConnections': connections,
        },
    )
    before = resident(served_both_ways, session)
    commands = [session.submit(read_16(8192), read=4 * MEGABYTE) for _ in range(100)]
    most = max(resident(served_both_ways, session) for _ in range(40))
    assert most - before < 200 * MEGABYTE
    for command in commands:
        session.wait(command).good()


@pytest.mark.clause('RFC 7143 11.8')
def test_writes_whose_data_does_not_come(served_both_ways, ready):
    """A write that would exceed 256 MiB of buffers gets TASK SET FULL; the command window stays
    open (SAM-5)."""
    session = ready(served_both_ways, keys={'ImmediateData': 'No'})
    session.hold_r2t = True
    data = bytes(8 * MEGABYTE)
    commands = [session.submit(write_16(16384), out=data) for _ in range(40)]
    while not commands[-1].result:
        session.step()
    assert [command.result.status for command in commands if command.result] == [0x28] * 8
    assert session.max_cmd_sn - session.cmd_sn > 100


@pytest.mark.clause('RFC 7143 4.2.2.1', 'RFC 7143 11.17')
def test_the_number_of_immediate_commands_is_limited(served_both_ways, ready):
    session = ready(served_both_ways, keys={'ImmediateData': 'No'})
    for number in range(500):
        session.wire.send(
            pack_bhs(
                SCSI_COMMAND | IMMEDIATE,
                FINAL | 0x21,
                0,
                0x9000 + number,
                512,
                session.cmd_sn,
                session.exp_stat_sn,
            )[:32]
            + write_16(1)
        )
    kinds = [session.wire.receive() for _ in range(500)]
    refused = [pdu for pdu in kinds if pdu.opcode != R2T]
    assert len(kinds) - len(refused) == 256 + 64 and {pdu.bhs[2] for pdu in refused} == {6}


def most_resident(daemon, session):
    """Returns the greatest number of bytes that the session's worker has had in memory."""
    with open('/proc/%d/status' % daemon.worker_of(session).pid) as file:
        return int(re.search(r'VmHWM:\s+(\d+) kB', file.read()).group(1)) << 10


LARGEST = 64 * MEGABYTE
LARGEST_BLOCKS = LARGEST // 512
FAST = {'MaxRecvDataSegmentLength': '262144', 'MaxBurstLength': '16776192'}


def test_the_largest_transfer_is_the_one_that_vpd_page_b0h_reports(served_both_ways, ready):
    session = ready(served_both_ways, keys=FAST)
    assert struct.unpack_from('>I', session.inquiry(page=0xB0), 8) == (LARGEST_BLOCKS,)
    for cdb in (read_16(LARGEST_BLOCKS + 1), write_16(LARGEST_BLOCKS + 1)):
        assert session.run(cdb, read=512).key == (5, 0x24, 0)


@pytest.mark.parametrize('segment, most', [('262144', 96), ('512', 160)])
@pytest.mark.parametrize('target', ['iqn.2026-11.test.targetd:disk', SLOW])
def test_eight_reads_of_the_largest_size_at_once(served_both_ways, ready, target, segment, most):
    """Seen: 64 MiB; with segments of 512 bytes, whose headers need memory too, 104 MiB."""
    session = ready(served_both_ways, target, keys=dict(FAST, MaxRecvDataSegmentLength=segment))
    before = most_resident(served_both_ways, session)
    commands = [
        session.submit(read_16(LARGEST_BLOCKS), read=LARGEST)
        for _ in range(8 if segment != '512' else 2)
    ]
    for command in commands:
        assert len(session.wait(command).good().data) == LARGEST
        command.received = command.result.data = None
    assert most_resident(served_both_ways, session) - before < most * MEGABYTE


@pytest.mark.parametrize('target', ['iqn.2026-11.test.targetd:disk', SLOW])
def test_eight_writes_of_the_largest_size_at_once(served_both_ways, ready, target):
    """Four fit into 256 MiB of buffers; the others get TASK SET FULL, and succeed when they are
    repeated. Seen: 256 MiB."""
    session = ready(served_both_ways, target, keys=FAST)
    before = most_resident(served_both_ways, session)
    data = bytes(range(256)) * (LARGEST // 256)
    commands = [session.submit(write_16(LARGEST_BLOCKS), out=data) for _ in range(8)]
    statuses = sorted(session.wait(command).status for command in commands)
    assert statuses[:4] == [0] * 4 and set(statuses[4:]) <= {0, 0x28}
    for command in commands:
        if command.result.status:
            session.run(write_16(LARGEST_BLOCKS), out=data).good()
    assert session.read(0, LARGEST_BLOCKS) == data
    assert most_resident(served_both_ways, session) - before < 300 * MEGABYTE
