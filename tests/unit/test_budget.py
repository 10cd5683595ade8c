"""The cost of a READ and of a WRITE, counted and not timed, so that it cannot grow unnoticed.

The whole path of a command is measured: a batch of bytes from a socket → Framer → Connection →
task admission of the LUN → its store (memory) → Outbox → one sendmsg. The test counts the calls of
Python functions, the calls of C functions and the lines that run, inside the package only. A count
is the same on every run and every machine. A change that makes the path more expensive raises a
figure here, and its commit message states the benefit; a change that makes it cheaper lowers it.
"""

import itertools
import os
import resource
import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from targetd import compat
from targetd.config import model
from targetd.iscsi.session import Session
from targetd.scsi import attention, persistent_reserve, reservations
from targetd.scsi.device import Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import Nexus, Port
from targetd.store.file import FileStore
from targetd.store.ram import RamStore
from targetd.worker import group_commit
from targetd.worker.connection.connection import Connection
from targetd.worker.connection_login import keepalive_of
from targetd.worker.main import Worker

#: The folder of the package as the code objects name it.
PACKAGE = os.path.dirname(compat.memory_file.__code__.co_filename) + os.sep

NEXUS = Nexus('iqn.2026-11.test:initiator', '00023d000001', 'iqn.2026-11.test:target', 1)
PORTS = (Port(1, 1, NEXUS.target_port),)
OTHER = ('iqn.2026-11.test:other,i,0x00023d000002', NEXUS.target_port)
SIZE = 1 << 20
BLOCK = 512
FEW, MANY = 16, 48  # beyond what polling calls few

#: command -> (calls of Python functions, calls of C functions, lines) that one of a batch may cost.
#: When the rows were written it was (6, 14, 70) for a READ and (11, 17, 102) for a WRITE, on every
#: Python from 3.6 to 3.13 but 3.9, which counts the lines of a call that is written on several lines (103
#: for a WRITE); a call more is never an accident, a few lines may be.
PER_COMMAND = {'READ(10)': (6, 15, 70), 'READ(16)': (6, 15, 70), 'WRITE(10)': (11, 18, 103)}
#: A durable write of a unit with write-cache = off: into the cache of the store, then one flush for
#: all of the batch. The executor's part is counted too, in the same thread.
PER_DURABLE_WRITE = (17, 26, 160)
#: A write of 1 MiB: immediate data and four R2Ts. Its memory is that of earlier writes.
PER_LARGE_WRITE = (140, 275, 1320)
#: Page faults of a write of 256 KiB or 1 MiB.
PAGE_FAULTS = 2
#: The same for a batch beside its commands, receiving, locking, sending: (8, 6, 53).
PER_BATCH = (8, 8, 58)


class Socket(object):
    """Returns one batch for each receive, and accepts everything that is sent."""

    def __init__(self):
        self.batch = b''
        self.sent = []

    def recv_into(self, view, count=0, flags=0):
        view[: len(self.batch)] = self.batch
        return len(self.batch)

    def sendmsg(self, buffers):
        self.sent += [bytes(each) for each in buffers]
        return sum(map(len, buffers))

    def sendall(self, data):
        self.sent.append(bytes(data))


class Counts(object):
    """calls, c_calls, lines of the code in targetd/ while a `with` block runs."""

    def __init__(self):
        self.calls = self.c_calls = self.lines = 0

    def _profile(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(PACKAGE):
            if event == 'call':
                self.calls += 1
            elif event == 'c_call':
                self.c_calls += 1

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == 'line':
            self.lines += 1
        return self._trace

    def of(self, function):
        """Run it twice, as counting calls and counting lines exclude each other; (calls, c_calls,
        lines)."""
        outside = sys.gettrace(), sys.getprofile()  # a coverage run has its own
        try:
            sys.settrace(None)
            sys.setprofile(self._profile)
            function()
            sys.setprofile(None)
            sys.settrace(self._trace)
            function()
        finally:
            sys.setprofile(outside[1])
            sys.settrace(outside[0])
        return self.calls, self.c_calls, self.lines


class Bench(object):
    """One connection in full feature phase with one unit of 1 MiB. A unit with write cache is in
    memory; one without is a file, whose durable writes need a flush."""

    def __init__(self, sock=None, write_cache=True):
        kind, store_class = ('ram', RamStore) if write_cache else ('file', FileStore)
        store = store_class({'kind': kind, 'size': SIZE}, compat.memory_file('budget', SIZE))
        self.store = store
        self.device = Device(NEXUS, PORTS)
        self.unit = LogicalUnit(
            UnitFacts.from_message({'write_cache': write_cache}), store, NEXUS, self.device
        )
        self.device.add(0, self.unit)
        self.unit.take_sense()
        worker = Worker(None, model.configuration())
        worker.device = self.device
        values = {
            'HeaderDigest': 'None',
            'DataDigest': 'None',
            'MaxRecvDataSegmentLength': 65536,
            'MaxBurstLength': 262144,
            'FirstBurstLength': 65536,
            'InitialR2T': False,
            'ImmediateData': True,
            'MaxOutstandingR2T': 1,
        }
        login = SimpleNamespace(
            initiator_name=NEXUS.initiator_name,
            initiator_alias='',
            isid=NEXUS.isid,
            tsih=1,
            target_name=NEXUS.target_name,
            portal_group_tag=1,
            account=None,
            session_type='Normal',
            values=values,
            cmd_sn=1,
        )
        self.socket = sock or Socket()
        session = Session(login)
        worker.begin_session(session)
        self.connection = Connection(
            worker, self.socket, session, 1, 1, 262144, keepalive_of(worker.configuration, None)
        )
        worker.connections.append(self.connection)
        self._cmd_sn = itertools.count(1)

    def batch(self, kind, count):
        """The PDUs of so many commands of 4 KiB, as bytes."""
        return b''.join(
            self._pdu(kind, next(self._cmd_sn), number * 8 % 2048) for number in range(count)
        )

    @staticmethod
    def _pdu(kind, cmd_sn, lba):
        cdb = {
            'READ(10)': struct.pack('>BBIBHB6x', 0x28, 0, lba, 0, 8, 0),
            'READ(16)': struct.pack('>BBQIBB', 0x88, 0, lba, 8, 0, 0),
            'WRITE(10)': struct.pack('>BBIBHB6x', 0x2A, 0, lba, 0, 8, 0),
        }[kind]
        writes = kind.startswith('WRITE')
        data = bytes(4096) if writes else b''
        return (
            struct.pack(
                '>BBHIQIIII',
                0x01,
                0xA1 if writes else 0xC1,
                0,
                len(data),
                0,
                cmd_sn & 0xFFFF,
                4096,
                cmd_sn,
                1,
            )
            + cdb
            + data
        )

    def run(self, kind, count):
        """One receive with so many commands, one send. Fails if any of them was not answered with
        GOOD."""
        self.socket.batch = self.batch(kind, count)
        del self.socket.sent[:]
        self.connection._receive_and_act()
        headers = [each for each in self.socket.sent if len(each) == 48]
        assert len(headers) == count and all(
            each[0] in (0x21, 0x25) and each[3] == 0 for each in headers
        )

    def count(self, kind, count):
        """(calls, c_calls, lines) of a batch."""
        return Counts().of(lambda: self.run(kind, count))

    def per_command(self, kind):
        """The cost of each further command of a batch. It must be a whole number, or the counting is
        wrong."""
        few, many = self.count(kind, FEW), self.count(kind, MANY)
        costs = [(b - a) / float(MANY - FEW) for a, b in zip(few, many)]
        assert costs == [int(cost) for cost in costs]
        return tuple(int(cost) for cost in costs)


@pytest.fixture
def bench():
    made = Bench()
    made.run('READ(10)', 1)  # whatever is made at first use
    made.run('WRITE(10)', 1)
    made.run('READ(10)', MANY)  # after a small batch the next is polled for
    yield made
    made.store.close()


@pytest.fixture(params=[True, False])
def durable(request, monkeypatch):
    """A Bench whose writes are durable. The connection's thread flushes at the end of each batch, or an
    executor does, in the same thread here."""
    made = Bench(write_cache=False)
    worker, work = made.connection.worker, []
    if request.param:
        monkeypatch.setattr(group_commit, 'SHORT_SECONDS', float('inf'))
        made.unit.flush_seconds = 0.0
        made.connection.blocking.start = lambda: None
    worker.executor = SimpleNamespace(submit=lambda *arguments: work.append(arguments[:2]))
    worker.watch = SimpleNamespace(is_running=True)
    receive = made.connection._receive_and_act

    def receive_and_flush():
        receive()
        while work:
            function, argument = work.pop()
            function(argument)

    made.connection._receive_and_act = receive_and_flush
    made.run('WRITE(10)', 1)
    made.run('WRITE(10)', MANY)
    yield made
    made.store.close()


class Initiator(object):
    """A socket with an initiator that sends writes of one size, and Data-Out for each R2T.
    immediate: bytes of immediate data; depth: writes that it sends at once."""

    def __init__(self, size, depth=1, immediate=65536):
        self._depth, self._immediate, self._size = depth, min(immediate, size), size
        self._payload = memoryview(os.urandom(size))
        self._incoming = []  # views that have not been received
        self._cmd_sn = itertools.count(1)
        self._unanswered = 0

    def write(self, connection, count):
        """Send so many groups of writes one after the other, and have the connection act on them."""
        now = self._immediate
        for _ in range(count):
            for tag in range(self._depth):
                header = struct.pack(
                    '>BBHIQIIII', 1, 0xA1, 0, now, 0, tag, self._size, next(self._cmd_sn), 1
                )
                cdb = struct.pack('>BBIBHB6x', 0x2A, 0, 0, 0, self._size // BLOCK, 0)
                self._incoming += [memoryview(header + cdb), self._payload[:now]]
            self._unanswered = self._depth
            while self._unanswered:
                connection._receive_and_act()

    def recv_into(self, view, *_):
        return self.recvmsg_into([view])[0]

    def recvmsg_into(self, views):
        assert self._incoming, 'the connection waits for data that nobody sends'
        total = 0
        for view in views:
            while view and self._incoming:
                piece = self._incoming[0]
                count = min(len(view), len(piece))
                view[:count] = piece[:count]
                total += count
                view = view[count:]
                if count == len(piece):
                    del self._incoming[0]
                else:
                    self._incoming[0] = piece[count:]
        return total, (), 0, None

    def sendmsg(self, buffers):
        for each in buffers:
            self._answer(bytes(each))
        return sum(map(len, buffers))

    def sendall(self, data):
        self._answer(bytes(data))

    def _answer(self, header):
        if header[0] == 0x21:
            assert header[3] == 0, 'the write was not answered with GOOD'
            self._unanswered -= 1
            return
        assert header[0] == 0x31
        offset, length = struct.unpack('>II', header[40:48])
        data_out = struct.pack('>BBHIQ', 5, 0x80, 0, length, 0) + header[16:24]
        data_out += struct.pack('>8xIIII', 0, 0, offset, 0)
        self._incoming += [memoryview(data_out), self._payload[offset : offset + length]]

    def was_written(self, store):
        return store.read(0, self._size) == self._payload


def large(*initiator):
    """(Bench, Initiator) after some writes."""
    peer = Initiator(*initiator)
    made = Bench(peer)
    peer.write(made.connection, 4)
    return made, peer


def faults_of_a_write(size, depth):
    """Page faults of each write, in a thread as that of a connection: the C library gives the memory
    of such threads back to the kernel."""
    found = []

    def run():
        made, peer = large(size, depth)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        peer.write(made.connection, 16)
        after = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        assert peer.was_written(made.store)
        made.store.close()
        found.append((after - before) / (16.0 * depth))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize('size', [1 << 20, 256 << 10])
@pytest.mark.parametrize('depth', [1, 8])
def test_a_large_write_uses_the_memory_of_earlier_ones(size, depth):
    assert faults_of_a_write(size, depth) <= PAGE_FAULTS


def test_a_large_write_costs_no_more_than_its_budget():
    made, peer = large(1 << 20)
    few = Counts().of(lambda: peer.write(made.connection, 2))
    many = Counts().of(lambda: peer.write(made.connection, 6))
    cost = tuple((b - a) / 4.0 for a, b in zip(few, many))
    assert within(cost, PER_LARGE_WRITE), 'calls, C calls, lines of a large write: %s' % (cost,)
    made.store.close()


def test_a_durable_write_costs_no_more_than_its_budget(durable):
    cost = durable.per_command('WRITE(10)')
    assert within(cost, PER_DURABLE_WRITE), 'calls, C calls, lines: %s' % (cost,)


def test_a_batch_of_durable_writes_is_flushed_once(durable):
    flushes = []
    durable.unit.flush = lambda *_: flushes.append(1)
    durable.run('WRITE(10)', MANY)
    assert len(flushes) == 1


def within(cost, budget):
    return all(part <= limit for part, limit in zip(cost, budget))


@pytest.mark.parametrize('kind', sorted(PER_COMMAND))
def test_a_command_costs_no_more_than_its_budget(bench, kind):
    cost = bench.per_command(kind)
    assert within(cost, PER_COMMAND[kind]), '%s: %s calls, C calls, lines; the budget is %s' % (
        kind,
        cost,
        PER_COMMAND[kind],
    )


@pytest.mark.parametrize('kind', sorted(PER_COMMAND))
def test_a_batch_costs_no_more_than_its_budget(bench, kind):
    each = bench.per_command(kind)
    rest = tuple(total - FEW * cost for total, cost in zip(bench.count(kind, FEW), each))
    assert within(rest, PER_BATCH), 'a batch of %s: %s beside its commands; the budget is %s' % (
        kind,
        rest,
        PER_BATCH,
    )


def reserved(holder):
    """A persistent reservation, Write Exclusive - Registrants Only, held by (initiator_port,
    target_port)."""
    ours = (NEXUS.initiator_port, NEXUS.target_port)
    rows = [
        {'initiator_port': a, 'target_port': b, 'key': '%016x' % number, 'all_tg_pt': False}
        for number, (a, b) in enumerate((ours, OTHER), 1)
    ]
    return dict(
        reservations.initial(),
        generation=2,
        registrations=rows,
        holder=list(holder),
        type=persistent_reserve.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    )


def reserve_for_a_cluster(bench):
    """The state on a node of a cluster: another node holds the reservation, and this nexus is
    registered."""
    bench.unit.replace_shared_state(reservations=reserved(OTHER))


def take_an_attention(bench):
    bench.unit.raise_attention(*attention.POWER_ON_OR_RESET)
    bench.unit.take_sense()


def owe_an_attention_elsewhere(bench):
    """Another unit of the same session has a unit attention pending, and is stopped."""
    other = LogicalUnit(
        UnitFacts.from_message({}), bench.store, NEXUS, bench.device, medium='stopped'
    )
    bench.device.add(1, other)


@pytest.mark.parametrize('kind', sorted(PER_COMMAND))
@pytest.mark.parametrize(
    'feature', (reserve_for_a_cluster, take_an_attention, owe_an_attention_elsewhere)
)
def test_features_that_a_command_does_not_use_cost_it_nothing(bench, kind, feature):
    plain = bench.per_command(kind)
    feature(bench)
    assert bench.per_command(kind) == plain


def test_many_units_cost_a_command_nothing(bench):
    plain = bench.per_command('READ(10)')
    for lun in range(1, 300):
        bench.device.add(
            lun, LogicalUnit(UnitFacts.from_message({}), bench.store, NEXUS, bench.device)
        )
    assert bench.per_command('READ(10)') == plain


def test_the_whole_package_is_counted():
    assert os.path.basename(os.path.dirname(PACKAGE)) == 'targetd'


def test_one_additional_call_is_counted(bench):
    """A path with one more call of one line is counted as exactly that."""
    plain = bench.per_command('READ(10)')
    names = {'admit': bench.unit.dispatch[0x28]}
    exec(
        compile('def dearer(task):\n    return admit(task)\n', PACKAGE + 'dearer.py', 'exec'), names
    )
    bench.unit.dispatch[0x28] = names['dearer']
    assert bench.per_command('READ(10)') == (plain[0] + 1, plain[1], plain[2] + 1)
