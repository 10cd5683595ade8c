"""worker.connection.pipelining: commands that are begun, over a scripted NBD server."""

import errno
import socket
import threading
from types import SimpleNamespace

import pytest
from fake_pipeline import FLAGS, SIZE, Store, arrived, data_reply
from nbd_peer import simple

from targetd.nbd.handshake import Export
from targetd.scsi.sbc import run_read_blocking, run_write
from targetd.store import nbd_log
from targetd.store.nbd_pipeline import PipelinedConnection
from targetd.worker.connection.blocking import Blocking
from targetd.worker.connection.pipelining import run_elsewhere
from targetd.worker.connection.read_budget import ByteBudget


class Connection(object):
    """The connection of an initiator, and its worker. finished: [(task, outcome)]; submitted: the work of
    executor threads, [(function, argument)]; acted, drained: how often."""

    may_pipeline, pipelining = True, None

    def __init__(self):
        self.socket, self.initiator = socket.socketpair()
        self.worker, self.outbox = self, self
        self.executor = SimpleNamespace(
            submit=lambda work, argument, share=None: self.submitted.append((work, argument))
        )
        self.watch = SimpleNamespace(is_running=True)
        self.requests = SimpleNamespace(keepalive_seconds=0.02, on_silence=self._on_silence)
        self.blocking = Blocking()
        self.blocking.begin()
        self.finished, self.submitted = [], []
        self.acted = self.drained = self.silences = 0
        self.read_budget = ByteBudget(1 << 20)

    def _receive_and_act(self):
        self.socket.recv(100)
        self.acted += 1

    def _on_silence(self):
        self.silences += 1

    def finish(self, task, outcome):
        self.finished.append((task, outcome))

    def run_in_executor(self, task):
        """Only submitted here."""

    def drain(self):
        self.drained += 1

    drain_or_stop = drain

    def run_submitted(self):
        work, self.submitted = self.submitted, []
        for function, argument in work:
            function(argument)


class Unit(object):
    def __init__(self, store):
        self.store = store

    @staticmethod
    def write_failure(error, task):
        return error.errno


@pytest.fixture
def bench():
    """A Connection, the server's socket, and read(number, length), write(number, data), which make a task and
    run it elsewhere."""
    ours, server = socket.socketpair()
    server.settimeout(10)
    link = PipelinedConnection(ours, Export(SIZE, FLAGS, 1, 4096, SIZE, True, False, 5))
    store = Store(link)
    connection = Connection()
    unit = Unit(store)

    def run(run_blocking, number, length, data=None, aborted=False):
        task = SimpleNamespace(
            unit=unit,
            started=None,
            aborted=aborted,
            data_out=data,
            durable=False,
            run_blocking=run_blocking,
            offset=512 * number,
            length=length,
            edtl=length,
        )
        run_elsewhere(connection, task)
        return task

    def read(number, length=512):
        return run(run_read_blocking, number, length)

    def write(number, data, aborted=False):
        return run(run_write, number, len(data), data, aborted)

    yield SimpleNamespace(
        connection=connection, server=server, link=link, store=store, read=read, write=write
    )
    for each in (ours, server, connection.socket, connection.initiator):
        each.close()


def test_the_replies_to_a_batch_are_sent_together(bench):
    tasks = [bench.read(number) for number in range(4)]
    assert all(task.started is not None for task in tasks)
    bench.connection.requests.keepalive_seconds = 10
    bench.connection._receive_and_act()  # sends, and finds nothing
    found = arrived(bench.server, 4)
    bench.server.sendall(b''.join(data_reply(each[2], each[3], b'y' * 512) for each in found))
    drained = bench.connection.drained
    bench.connection._receive_and_act()
    assert bench.connection.finished == [(task, b'y' * 512) for task in tasks]
    assert bench.connection.drained == drained + 1 and not bench.connection.acted
    assert not bench.connection.submitted


def test_nothing_is_sent_for_a_command_that_was_aborted(bench):
    """It may have been answered already."""
    task = bench.write(1, b'x' * 512, aborted=True)
    assert bench.connection.submitted == [(bench.connection.run_in_executor, task)]
    assert bench.link.in_flight == 0


def test_the_initiator_is_heard_while_the_server_hangs(bench):
    bench.read(0)
    bench.connection._receive_and_act()
    # nothing came from either side for the keepalive interval
    assert bench.connection.silences == 1
    bench.connection.initiator.sendall(b'PDU')
    bench.connection._receive_and_act()
    assert bench.connection.acted == 1


def test_without_a_request_on_its_way_the_thread_only_receives(bench):
    bench.read(0)
    bench.connection._receive_and_act()
    bench.server.sendall(data_reply(arrived(bench.server)[0][2], 0, b'y' * 512))
    bench.connection._receive_and_act()
    bench.connection.initiator.sendall(b'PDU')
    bench.connection._receive_and_act()
    assert bench.connection.acted == 1 and not bench.connection.pipelining._links


def test_the_data_of_long_reads_fits_into_the_budget_of_the_connection(bench):
    """A thread waits for what does not."""
    connection, length = bench.connection, 512 << 10
    first, second = bench.read(0, length), bench.read(1, length + 512)
    short = bench.read(2)
    assert connection.submitted == [(connection.run_in_executor, second)]
    connection._receive_and_act()
    found, server = arrived(bench.server, 2), bench.server
    reply = data_reply(found[0][2], 0, b'y' * length) + data_reply(found[1][2], 1024, b'z' * 512)
    thread = threading.Thread(target=server.sendall, args=(reply,), daemon=True)
    thread.start()
    while len(connection.finished) < 2:
        connection._receive_and_act()
    thread.join(10)
    assert connection.finished == [(first, b'y' * length), (short, b'z' * 512)]
    assert not connection.read_budget.held


def test_an_error_of_a_write_is_that_of_the_medium(bench):
    task = bench.write(0, b'x' * 512)
    bench.connection._receive_and_act()
    bench.server.sendall(simple(arrived(bench.server, 1, 512)[0][2], 28))
    bench.connection._receive_and_act()
    assert bench.connection.finished == [(task, errno.ENOSPC)]


@pytest.mark.parametrize('loss', ['noticed here', 'noticed by another thread'])
def test_an_executor_thread_does_what_was_on_a_lost_connection(bench, loss):
    connection = bench.connection
    tasks = [bench.read(0), bench.write(1, b'x' * 512)]
    connection._receive_and_act()
    if loss == 'noticed here':
        bench.server.close()
        connection._receive_and_act()
    else:
        bench.link.fail('the server is gone')
    connection.run_submitted()
    assert connection.submitted == [(connection.run_in_executor, task) for task in tasks]
    assert not connection.finished


def test_a_write_that_fills_the_log_is_not_sent_twice(bench, monkeypatch):
    """Its reply waits until the flush that was begun has made room."""
    monkeypatch.setattr(nbd_log, 'MOST_BYTES', 1024)
    connection, server = bench.connection, bench.server
    tasks = []
    for number in range(2):
        tasks.append(bench.write(number, b'x' * 512))
        connection._receive_and_act()
        server.sendall(simple(arrived(server, 1, 512)[0][2]))
        connection._receive_and_act()
    ((work, task),) = connection.submitted
    assert (work, task) == (connection.run_in_executor, tasks[1])
    assert connection.finished == [(tasks[0], None)]
    server.sendall(simple(arrived(server)[0][2]))  # the flush
    connection._receive_and_act()
    assert task.run_blocking(task) is None
    assert not bench.store.flushes and not connection.pipelining._links
    assert [change[3] for change in bench.store.changes.all()] == [512]


def test_another_thread_and_a_slow_line_use_an_executor_thread(bench):
    connection = bench.connection
    thread = threading.Thread(target=bench.read, args=(0,))
    thread.start()
    thread.join(10)
    connection.may_pipeline = False
    bench.read(1)
    assert [work for work, _ in connection.submitted] == [connection.run_in_executor] * 2
    assert bench.link.begun == 0


def test_a_connection_that_ends_leaves_its_replies_to_a_thread(bench):
    """One command has been sent, the other one has only been begun."""
    connection = bench.connection
    tasks = [bench.read(0)]
    connection._receive_and_act()
    tasks.append(bench.read(1))
    connection.pipelining.leave()
    thread = threading.Thread(target=connection.run_submitted, daemon=True)
    thread.start()
    for _, _, cookie, offset, _ in arrived(bench.server, 2):
        bench.server.sendall(data_reply(cookie, offset, b'y' * 512))
    thread.join(10)
    assert not thread.is_alive()
    assert connection.finished == [(task, b'y' * 512) for task in tasks]


def test_while_another_thread_receives_the_descriptor_is_not_polled(bench):
    connection = bench.connection
    task = bench.read(0)
    connection._receive_and_act()
    bench.link._has_reader = True
    bench.server.sendall(data_reply(arrived(bench.server)[0][2], 0, b'y' * 512))
    for _ in range(3):
        connection._receive_and_act()
    assert not connection.finished and connection.silences == 1
    bench.link._has_reader = False
    for _ in range(2):  # it is polled again after the next turn
        connection._receive_and_act()
    assert connection.finished == [(task, b'y' * 512)]
