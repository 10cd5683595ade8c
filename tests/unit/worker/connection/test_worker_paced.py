"""The outbox of a slow line: what overtakes what, numbers in the order of the wire, and its beginning in
the middle of a send. The line is a socket pair with a small buffer whose far end the test reads.
"""

import socket
import struct
import threading
import zlib
from types import SimpleNamespace

import pytest
from daemon import eventually
from test_worker_outbox import receive

from targetd.iscsi import pdu
from targetd.worker.connection import paced
from targetd.worker.connection.multi_connection import PacedSharedOutbox
from targetd.worker.connection.outbox import DiscardingSocket
from targetd.worker.connection.pace import FAST, QUIET
from targetd.worker.connection.shared_outbox import SharedOutbox

SLOW_RATE = 20000.0
PIECE = 8192


class Line(object):
    """A PacedOutbox and the initiator's end of its line. The outbox becomes paced when `sent` bytes of
    the first entries are sent. several: it is a PacedSharedOutbox. fast, slow: its classes."""

    def __init__(self, entries=(), sent=0, rate=SLOW_RATE, several=False, **digests):
        ours, self.wire = socket.socketpair()
        self.wire.settimeout(10)
        self.ours = ours
        self.session = SimpleNamespace(exp_cmd_sn=10, max_cmd_sn=19)
        values = {'MaxRecvDataSegmentLength': 65536, 'MaxBurstLength': 131072}
        self.digests = dict(digests)
        values.update(digests)
        self.fast, self.slow = paced.PaceableOutbox, paced.PacedOutbox
        more = ()
        if several:
            self.fast, self.slow = SharedOutbox, PacedSharedOutbox
            more = (threading.Lock(),)
        self.box = self.fast(ours, self.session, 5, zlib.crc32, values, *more)
        self.ended, self.started, self.errors = threading.Event(), [], []
        self.failed = threading.Event()
        self.box.start_read, self.box.on_failure = self.started.append, self._fail
        for entry in entries:
            self.box.queue.append(entry)
        with self.box.held():
            buffers = self.box._stamp()
            self._send_first(ours, buffers, sent)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('@ll', 0, 50000))
            self.box.__class__ = self.slow
            self.box.begin(buffers, sent, rate, self.ended.set)
            self.box._pacing.pace.note = lambda *_: None  # the line of a test has a fixed rate

    @staticmethod
    def _send_first(sock, buffers, sent):
        for buffer in buffers:
            part = bytes(buffer)[:sent]
            if part:
                sock.sendall(part)
            sent -= len(part)

    def _fail(self, error):
        self.errors.append(error)
        self.failed.set()

    def receive(self, count):
        return receive(
            self.wire,
            count,
            self.digests.get('HeaderDigest') == 'CRC32C',
            self.digests.get('DataDigest') == 'CRC32C',
        )

    def close(self):
        self.ours.shutdown(socket.SHUT_RDWR)
        self.box.discard()
        self.wire.close()


@pytest.fixture(params=[False, True], ids=['one connection', 'several'])
def line(request):
    made = Line(several=request.param)
    yield made
    made.close()


@pytest.fixture
def only_line():
    made = Line()
    yield made
    made.close()


def everything(line, wanted, before=()):
    """The PDUs until every one of these tags has its status; checks StatSN and the data's offsets.
    before: PDUs that were received before."""
    found, missing, data, before = [], set(wanted), {}, list(before)
    while missing:
        (one,) = before[:1] or line.receive(1)
        del before[:1]
        found.append(one)
        if one.opcode == 0x25:
            so_far = data.setdefault(one.itt, bytearray())
            assert one.buffer_offset == len(so_far)
            so_far += one.data
            if one.has_status:
                missing.discard(one.itt)
        else:
            missing.discard(one.itt)
    numbers = [one.stat_sn for one in found if one.opcode != 0x25 or one.has_status]
    assert numbers == sorted(numbers)
    return found, data


def test_equal_replies_end_one_after_the_other(line):
    one, two = bytes(range(256)) * 512, bytes(range(255, -1, -1)) * 512
    line.box.queue.append((1, one))
    line.box.queue.append((2, two))
    line.box.drain()
    found, data = everything(line, {1, 2})
    assert data == {1: one, 2: two}
    assert [each.itt for each in found] == sorted(each.itt for each in found)
    assert max(len(each.data) for each in found) <= PIECE
    assert [each.stat_sn for each in found if each.has_status] == [5, 6]


def test_a_shorter_reply_overtakes_and_the_longer_one_goes_on(line):
    line.box.queue.append((1, bytes(1 << 18)))
    line.box.drain()
    first = line.receive(1)
    line.box.queue.append((2, bytes(1 << 17)))
    line.box.drain()
    found, _ = everything(line, {1, 2}, first)
    tags = [each.itt for each in found]
    end = max(at for at, tag in enumerate(tags) if tag == 2)
    begin = tags.index(2)
    assert end < len(tags) - 8 and tags[begin:end].count(1) >= (end - begin) // 5


def test_pings_and_r2ts_overtake_data(line):
    line.box.queue.append((1, bytes(1 << 18)))
    line.box.drain()
    first = line.receive(1)
    line.box.put_pdu(pdu.NopIn(itt=7))
    line.box.put_pdu(pdu.ReadyToTransfer(itt=8, ttt=3, desired_length=512))
    line.box.drain()
    found, _ = everything(line, {1}, first)
    kinds = [each.opcode for each in found]
    assert kinds.index(0x20) < 5 and kinds.index(0x31) == kinds.index(0x20) + 1
    # the ping used StatSN 5, the R2T shows the next one, and the read has it
    assert [each.stat_sn for each in found if each.opcode != 0x25] == [5, 6]
    assert found[-1].stat_sn == 6


def test_small_replies_of_others_overtake_long_ones(line):
    line.box.queue.append((1, bytes(1 << 18)))
    line.box.drain()
    first = line.receive(1)
    line.box.queue.append((2, bytes(512)))
    line.box.put_pdus((pdu.ScsiResponse(itt=3, status=2),), numbered=True)
    line.box.drain()
    found, _ = everything(line, {1, 2, 3}, first)
    tags = [each.itt for each in found]
    assert tags.index(2) < len(tags) // 2 and tags.index(3) < len(tags) // 2


@pytest.mark.parametrize(
    'barrier', [pdu.TaskManagementResponse(itt=9, response=0), pdu.LogoutResponse(itt=9)]
)
def test_what_may_not_overtake_waits_for_the_replies_before_it(line, barrier):
    line.box.queue.append((1, bytes(1 << 17)))
    line.box.put_pdu(barrier)
    line.box.queue.append((2, None))
    line.box.drain()
    found, _ = everything(line, {1, 9, 2})
    order = [each.itt for each in found if each.opcode != 0x25 or each.has_status]
    assert order == [1, 9, 2]


@pytest.mark.parametrize('sent', [0, 20, 48, 60000, 65536 + 48, 65536 + 96, 131072 + 150])
@pytest.mark.parametrize('digest', ['None', 'CRC32C'])
def test_a_send_that_is_half_done_goes_on(sent, digest):
    """The bytes that are sent stay as they are; the rest gets new numbers, and can be overtaken."""
    data = bytes(range(256)) * 600  # three PDUs
    line = Line([(1, data), (2, None)], sent, HeaderDigest=digest, DataDigest=digest)
    line.box.put_pdu(pdu.NopIn(itt=7), numbered=True)
    line.box.drain()
    found, received = everything(line, {1, 2, 7})
    assert received == {1: data}
    assert sorted(each.stat_sn for each in found if each.opcode != 0x25 or each.has_status) == [
        5,
        6,
        7,
    ]
    assert line.session.max_cmd_sn == 22
    line.close()


def test_long_pdus_are_cut():
    """A PDU of 64 KiB that was stamped and not begun would take seconds."""
    line = Line([(1, bytes(range(256)) * 600)], 100)
    found, data = everything(line, {1})
    assert data == {1: bytes(range(256)) * 600}
    assert [len(each.data) > PIECE for each in found] == [True] + [False] * (len(found) - 1)
    # at the end of the burst, and of the data
    assert [each.final for each in found].count(True) == 2
    assert [each.data_sn for each in found] == list(range(len(found)))
    line.close()


def test_only_the_last_replies_are_renumbered():
    """The first reply is sent whole: its number is used."""
    line = Line([(1, bytes(512)), (2, bytes(512)), (3, None)], 48 + 512)
    line.box.put_pdu(pdu.NopIn(itt=7))
    line.box.drain()
    found, _ = everything(line, {1, 2, 3, 7})
    assert {each.itt: each.stat_sn for each in found}[1] == 5
    assert {each.itt for each in found} == {1, 2, 3, 7}
    line.close()


def test_drain_does_not_block_and_drain_and_wait_does(line):
    line.box.queue.append((1, bytes(1 << 17)))
    line.box.drain()
    assert line.box.has_more() and line.box.is_outstanding() and line.box.unsent_bytes() > 0
    thread = threading.Thread(target=line.box.drain_and_wait)
    thread.start()
    everything(line, {1})
    thread.join(10)
    assert not thread.is_alive() and not line.box.has_more()


def test_held_finds_nothing_half_sent(line):
    line.box.queue.append((1, bytes(1 << 17)))
    line.box.drain()
    reader = threading.Thread(target=everything, args=(line, {1}))
    reader.start()
    with line.box.held():
        assert not line.box._pacing.rest
    reader.join(10)
    assert not reader.is_alive()


def test_reads_wait_for_earlier_data(line):
    task = SimpleNamespace(edtl=1 << 20, unit='unit', transfer=None, aborted=False)
    line.box.queue.append((1, bytes(1 << 19)))
    assert not line.box.has_little_queued()
    assert not line.box.reserve_read(task, 'postponed') and task.transfer == 'postponed'
    line.box.drain()
    everything(line, {1})
    line.box.drain_and_wait()
    assert line.started == [task] and task.transfer is None
    line.box.release_read(task)


def test_reads_that_began_before_hold_their_part_of_the_budget(only_line):
    """Else a line that turns slow, or fast, would keep twice the data in memory."""
    line = only_line
    unit, late = (
        object(),
        SimpleNamespace(edtl=4 << 20, unit=object(), transfer=None, aborted=False),
    )
    line.box.read_budget.take(64 << 20, unit)
    assert not line.box.reserve_read(late, object()) and line.started == []
    line.box.read_budget.give_back(64 << 20, unit)
    eventually(lambda: line.started == [late], 10, 'the postponed read')
    # and a thread that began under the other rule waits for this one
    taken = threading.Event()

    def take():
        line.box.read_budget.take(64 << 20, unit)
        taken.set()

    threading.Thread(target=take, daemon=True).start()
    assert not taken.wait(0.2)
    line.box.release_read(late)
    assert taken.wait(10) and line.box.read_budget.held == 64 << 20


def test_short_segments_share_a_send(line):
    box = line.box
    reply = paced.LongReply(1, (bytes(1 << 16),))
    with box.held():
        box._segment = 512
        box._pacing.long.append(reply)
        buffers = box._next_buffers(box._pacing)
    assert len(buffers) >= 2 * 8 and sum(map(len, buffers)) >= box._pacing.pace.piece_bytes


def test_a_broken_line_is_reported(line):
    line.box.queue.append((1, bytes(1 << 20)))
    line.box.drain()
    line.wire.close()
    assert line.failed.wait(10)
    with pytest.raises(OSError):
        line.box.drain_and_wait()


def test_after_the_end_only_the_window_advances(line):
    line.box.queue.append((1, bytes(1 << 20)))
    line.box.drain()
    line.ours.shutdown(socket.SHUT_RDWR)
    line.box.discard()
    assert line.session.max_cmd_sn == 20 and line.box._socket is DiscardingSocket
    line.box.queue.append((2, None))
    line.box.drain()
    assert not line.box.queue and line.session.max_cmd_sn == 21


def test_a_line_that_is_fast_again_ends_it(line):
    line.box._pacing.pace.rate = FAST + 1.0
    line.box.queue.append((1, bytes(100)))
    line.box.drain()
    everything(line, {1})
    assert line.ended.wait(10)
    assert line.box.__class__ is line.fast
    line.box.put_pdu(pdu.NopIn(itt=7))
    line.box.drain()
    assert line.receive(1)[0].itt == 7


def test_a_quiet_line_ends_it(line):
    line.box._pacing.pace._waited -= QUIET + 1
    line.box.drain()
    assert line.ended.wait(10)


def test_nothing_is_lost_between_the_two(line):
    """A ping that another thread queues while the line becomes fast."""
    pacing = line.box._pacing
    pacing.pace.rate = FAST + 1.0
    pacing.wake.set()
    assert line.ended.wait(10)
    line.slow.put_pdu(line.box, pdu.NopIn(itt=7))
    line.box.drain()
    assert line.receive(1)[0].itt == 7


def test_methods_of_the_class_before_can_finish(line):
    """A thread that was in one of them when the class changed."""
    pacing = line.box._pacing
    pacing.pace.rate = FAST + 1.0
    pacing.wake.set()
    assert line.ended.wait(10)
    box, slow = line.box, line.slow
    assert box.__class__ is line.fast
    box.queue.append((1, None))
    slow.drain(box)
    slow.wait_while_overfull(box)
    box.wait_while_overfull()
    assert slow.has_little_queued(box) and slow._queued_bytes(box) == 0
    slow.is_outstanding(box)
    slow.drain_and_wait(box)
    with slow.held(box):
        pass
    assert line.receive(1)[0].itt == 1


def test_methods_of_the_fast_class_can_finish(line):
    """A thread that was in one of them when the line was found slow."""
    data = bytes(1 << 17)
    line.box.queue.append((1, data))
    line.fast.drain(line.box)
    waiting = threading.Thread(target=line.fast.drain_and_wait, args=(line.box,), daemon=True)
    waiting.start()
    found, received = everything(line, {1})
    assert received == {1: data}
    waiting.join(10)
    assert not waiting.is_alive()


def test_several_connections_are_not_delayed_by_a_slow_one():
    line = Line(several=True)
    for itt in range(1, 21):
        line.box.queue.append((itt, bytes(1 << 20)))
        line.box.drain()  # must not block
    assert line.box.is_outstanding() and not line.box.has_little_queued()
    assert line.receive(1)[0].itt == 1
    line.close()
