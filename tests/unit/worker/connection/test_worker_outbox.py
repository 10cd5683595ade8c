"""Outbox: numbering, segmentation and digests as the initiator receives them, and sending by
several threads."""

import socket
import threading
import zlib
from types import SimpleNamespace

import pytest

from targetd.iscsi import pdu
from targetd.scsi import sam
from targetd.worker.connection.outbox import Outbox
from targetd.worker.connection.read_budget import READ_BUDGET_BYTES
from targetd.worker.connection.shared_outbox import SharedOutbox


def outbox(segment=8192, burst=16384, header_digest='None', data_digest='None', stat_sn=5):
    """(Outbox, the initiator's end of its socket, its session)"""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    session = SimpleNamespace(exp_cmd_sn=10, max_cmd_sn=19)
    values = {
        'MaxRecvDataSegmentLength': segment,
        'MaxBurstLength': burst,
        'HeaderDigest': header_digest,
        'DataDigest': data_digest,
    }
    return Outbox(ours, session, stat_sn, zlib.crc32, values), theirs, session


def receive(sock, count, header_digest=False, data_digest=False):
    """Return `count` PDUs from the wire; checks their digests."""

    def exactly(length):
        data = b''
        while len(data) < length:
            more = sock.recv(length - len(data))
            assert more
            data += more
        return data

    out = []
    for _ in range(count):
        bhs = exactly(48)
        if header_digest:
            assert zlib.crc32(bhs) == int.from_bytes(exactly(4), 'little')
        length = int.from_bytes(bhs[5:8], 'big')
        padded = exactly(length + -length % 4)
        if length and data_digest:
            assert zlib.crc32(padded) == int.from_bytes(exactly(4), 'little')
        out.append(pdu.decode(bhs, b'', padded[:length], pdu.FROM_TARGET))
    return out


def test_a_read_of_one_segment_is_one_pdu_with_status():
    box, wire, session = outbox()
    box.queue.append((7, b'x' * 4096))
    box.drain()
    (answer,) = receive(wire, 1)
    assert (answer.itt, answer.has_status, answer.final, answer.status, bytes(answer.data)) == (
        7,
        True,
        True,
        0,
        b'x' * 4096,
    )
    assert (answer.stat_sn, answer.exp_cmd_sn, answer.max_cmd_sn) == (5, 10, 20)


def test_every_status_takes_the_next_stat_sn_and_moves_the_window():
    box, wire, session = outbox(stat_sn=0xFFFFFFFF)
    box.queue.append((1, None))
    box.queue.append((2, b'abc'))
    box.put_pdu(pdu.ScsiResponse(itt=3, status=2), numbered=True)
    box.put_pdu(pdu.NopIn(itt=4))
    box.drain()
    answers = receive(wire, 4)
    assert [a.stat_sn for a in answers] == [0xFFFFFFFF, 0, 1, 2]
    assert [a.max_cmd_sn for a in answers] == [20, 21, 22, 22]


@pytest.mark.parametrize('one', [pdu.ReadyToTransfer(itt=1, ttt=2), pdu.NopIn(ttt=3)])
def test_r2t_and_pings_use_no_stat_sn(one):
    box, wire, _ = outbox()
    box.put_pdu(one)
    box.queue.append((9, None))
    box.drain()
    assert [a.stat_sn for a in receive(wire, 2)] == [5, 5]


@pytest.mark.parametrize(
    'digests', [('None', 'None'), ('CRC32C', 'None'), ('None', 'CRC32C'), ('CRC32C', 'CRC32C')]
)
@pytest.mark.parametrize('length', [1, 8191, 8192, 8193, 40001])
def test_long_data_is_sent_in_segments_and_bursts(length, digests):
    box, wire, _ = outbox(header_digest=digests[0], data_digest=digests[1])
    data = bytes(range(256)) * 200
    box.queue.append((7, data[:length]))
    box.drain()
    pieces = receive(wire, (length + 8191) // 8192, digests[0] == 'CRC32C', digests[1] == 'CRC32C')
    assert b''.join(bytes(p.data) for p in pieces) == data[:length]
    assert [p.buffer_offset for p in pieces] == [n * 8192 for n in range(len(pieces))]
    assert [p.data_sn for p in pieces] == list(range(len(pieces)))
    ends = [p.final for p in pieces]
    assert ends == [(p.buffer_offset + len(p.data)) % 16384 == 0 for p in pieces[:-1]] + [True]
    assert [p.has_status for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].stat_sn == 5 and box.stat_sn == 6


def test_an_empty_numbered_entry_only_advances_the_window():
    box, wire, session = outbox()
    box.put_pdus((), numbered=True)
    box.drain()
    assert session.max_cmd_sn == 20 and box.stat_sn == 5


def test_a_thread_leaves_its_reply_to_the_thread_that_is_sending():
    box, wire, _ = outbox()
    box._lock.acquire()
    box.queue.append((1, None))
    box.drain()  # returns at once: another thread holds the lock
    wire.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.recv(1)
    wire.settimeout(10)
    box._lock.release()
    threads = [
        threading.Thread(target=lambda n=n: (box.queue.append((n, None)), box.drain()))
        for n in range(2, 40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    answers = receive(wire, 39)
    assert sorted(a.itt for a in answers) == list(range(1, 40))
    assert [a.stat_sn for a in answers] == list(range(5, 44))


def test_more_data_than_the_socket_accepts_at_once_arrives_complete():
    box, wire, _ = outbox(segment=1 << 20, burst=1 << 22)
    data = [bytes([n]) * 700001 for n in range(6)]
    for n, one in enumerate(data):
        box.queue.append((n, one))
    thread = threading.Thread(target=box.drain)
    thread.start()
    answers = receive(wire, 6)
    thread.join(10)
    assert [bytes(a.data) for a in answers] == data


# -- sessions with several connections --------------------------------------------------------


class Callbacks(object):
    """Records the errors and the tasks that a SharedOutbox reports."""

    def __init__(self):
        self.started, self.errors, self.failed = [], [], threading.Event()

    def fail(self, error):
        self.errors.append(error)
        self.failed.set()


def shared_outbox():
    """(SharedOutbox, the initiator's end, Callbacks); the socket's send buffer is small."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(10)
    session = SimpleNamespace(exp_cmd_sn=10, max_cmd_sn=19)
    values = {'MaxRecvDataSegmentLength': 8192, 'MaxBurstLength': 16384}
    box = SharedOutbox(ours, session, 5, zlib.crc32, values, threading.Lock())
    callbacks = Callbacks()
    box.on_failure, box.start_read = callbacks.fail, callbacks.started.append
    return box, theirs, callbacks


def read_task(length, unit='unit'):
    task = sam.Task()
    task.edtl, task.unit = length, unit
    return task


def test_drain_does_not_wait_for_an_initiator_that_does_not_read():
    """Entries are sent in the order in which they were queued, with StatSNs in order."""
    box, wire, callbacks = shared_outbox()
    data = bytes(range(256)) * 256
    for itt in range(20):
        box.queue.append((itt, data))
        box.drain()  # must not block
    assert box.queue
    answers = receive(wire, 20 * 8)
    assert [a.stat_sn for a in answers if a.has_status] == list(range(5, 25))
    assert b''.join(bytes(a.data) for a in answers if a.itt == 19) == data
    box.wait_while_overfull()
    box.queue.append((77, None))
    box.drain()
    assert receive(wire, 1)[0].itt == 77 and callbacks.errors == []


def test_a_sender_thread_that_fails_reports_the_error():
    box, wire, callbacks = shared_outbox()
    box.queue.append((1, bytes(1 << 20)))
    box.drain()
    wire.close()
    assert callbacks.failed.wait(10)
    box.queue.append((2, None))
    with pytest.raises(OSError):
        box.drain()


def test_reads_are_postponed_until_earlier_data_is_sent():
    box, wire, callbacks = shared_outbox()
    first, second, third = read_task(READ_BUDGET_BYTES), read_task(1 << 20), read_task(1 << 20)
    assert box.reserve_read(first, 'postponed')  # the whole budget, and nothing else is queued
    assert not box.reserve_read(second, 'postponed') and second.transfer == 'postponed'
    assert not box.reserve_read(third, 'postponed')
    box.queue.append((1, bytes(1 << 20)))
    box.drain()
    box.release_read(first)
    assert callbacks.started == [second, third] and second.transfer is None
    for task in (second, third):
        box.release_read(task)
    receive(wire, 128)


def test_a_read_that_is_aborted_while_it_is_postponed_ends():
    box, wire, callbacks = shared_outbox()
    first, second = read_task(READ_BUDGET_BYTES), read_task(1 << 20)
    assert box.reserve_read(first, 'postponed')
    second.aborted = True
    assert box.reserve_read(second, 'postponed') and second.transfer is None


def test_a_read_of_another_unit_is_not_postponed_by_reads_that_wait_for_a_medium():
    box, wire, callbacks = shared_outbox()
    stuck, other = read_task(READ_BUDGET_BYTES, 'hanging'), read_task(1 << 20, 'healthy')
    assert box.reserve_read(stuck, 'postponed')
    assert not box.reserve_read(read_task(1 << 20, 'hanging'), 'postponed')
    for _ in range(3):
        assert box.reserve_read(other, 'postponed')
        box.release_read(other)
    box.queue.append((1, bytes(READ_BUDGET_BYTES)))  # data that the initiator does not read
    assert not box.reserve_read(other, 'postponed')
