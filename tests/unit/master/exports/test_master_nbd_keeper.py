"""master.exports.nbd_keeper: lines, back-off, draining, the flush after a session. See also
test_store_nbd_store."""

import os
import socket

import pytest
from nbd_peer import FLAGS

from targetd import compat
from targetd.master.exports import nbd_keeper
from targetd.master.exports.nbd_connecting import Unavailable
from targetd.nbd import numbers
from targetd.nbd.handshake import Export
from targetd.store import failure_flags, nbd_line

OFFERED = Export(1 << 20, FLAGS, 1, 4096, 32 << 20, True, False, None)


class Bench(object):
    """A Keeper whose connections are socket pairs. servers: their other ends; why: '' or why no
    connection can be made."""

    def __init__(self):
        self.now, self.why, self.servers, self.attempts = 100.0, '', [], []
        self.offered, self.tended = OFFERED, []
        self.claim = compat.memory_file('test', 4096)
        self.control, theirs = nbd_line.pair()
        self.keeper = nbd_keeper.Keeper(
            theirs,
            None,
            (1 << 20, FLAGS, 1),
            False,
            self.claim,
            connect=self.connect,
            clock=lambda: self.now,
            tend=lambda: self.tended.append(self.now),
        )
        self.lines = []

    def connect(self, address, seconds):
        self.attempts.append(self.now)
        if self.why:
            raise Unavailable(self.why)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.servers.append(theirs)
        return ours, self.offered

    def line(self, flag=1):
        descriptor = nbd_line.open_line(self.control.fileno(), flag)
        self.lines.append(socket.socket(fileno=descriptor))
        self.steps()
        return self.lines[-1]

    def ask(self, line, slot=0):
        nbd_line.send(line, {'connect': slot})
        self.steps()

    def steps(self):
        for _ in range(4):
            self.keeper.step(0)

    def answer(self, line):
        """The next message to a line, or None; the descriptor with it is closed."""
        try:
            words, descriptors = nbd_line.receive(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        for descriptor in descriptors:
            os.close(descriptor)
        return words

    def close(self):
        for sock in self.lines + self.servers + [self.control]:
            sock.close()
        os.close(self.claim)


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def has_ended(server):
    """True if the keeper sends no more on a connection."""
    try:
        return server.recv(1) == b''
    except BlockingIOError:
        return False


def test_a_line_that_asks_gets_a_connection(bench):
    line = bench.line()
    assert bench.answer(line) is None
    bench.ask(line)
    answer = bench.answer(line)
    assert Export(*answer['export']) == OFFERED and not answer['company']


def test_a_server_that_has_to_run_is_started_although_nobody_asks_for_a_connection(bench):
    bench.steps()
    assert bench.tended == []
    for now in (102.5, 103.0, 105.0):
        bench.now = now
        bench.steps()
    assert bench.tended == [102.5, 105.0]
    bench.control.close()
    bench.steps()
    bench.now = 110.0
    bench.steps()
    assert bench.tended == [102.5, 105.0]  # the image is given up


def test_attempts_have_a_back_off_and_the_reason_is_told_once(bench):
    bench.why = 'cannot be reached'
    line = bench.line()
    bench.ask(line)
    for _ in range(200):
        bench.now += 0.1
        bench.steps()
    gaps = [b - a for a, b in zip(bench.attempts, bench.attempts[1:])]
    assert gaps[0] < 0.35 and max(gaps) < nbd_keeper.LONGEST_BACK_OFF + 0.2
    assert gaps == sorted(gaps)
    assert bench.answer(line) == {'why': 'cannot be reached'}
    assert bench.answer(line) is None
    bench.why = ''
    bench.now += 10
    bench.steps()
    assert 'export' in bench.answer(line)


def test_nobody_gets_a_connection_before_the_server_has_closed_the_former_one(bench):
    """It may still execute what it has received."""
    line, other = bench.line(), bench.line()
    bench.ask(line)
    assert bench.answer(line)
    line.close()
    bench.ask(other)
    assert bench.answer(other) is None
    assert has_ended(bench.servers[0])
    bench.servers[0].close()
    bench.steps()
    assert 'export' in bench.answer(other)


def test_a_worker_that_asks_again_gives_up_its_former_connections(bench):
    line = bench.line()
    bench.ask(line)
    bench.ask(line, 1)
    assert bench.answer(line) and bench.answer(line)
    bench.now += 10
    bench.ask(line)
    assert bench.answer(line) is None
    for server in bench.servers:
        assert has_ended(server)
        server.close()
    bench.steps()
    assert 'export' in bench.answer(line)


def test_connections_that_do_not_last_have_a_back_off(bench):
    line = bench.line()
    bench.ask(line)
    assert bench.answer(line)
    bench.servers[0].close()
    bench.ask(line)
    assert bench.answer(line) is None
    bench.now += 1
    bench.steps()
    assert bench.answer(line)


def test_an_export_that_has_shrunk_is_not_given(bench):
    bench.offered = OFFERED._replace(size=1 << 19)
    line = bench.line()
    bench.ask(line)
    assert 'has become shorter' in bench.answer(line)['why']
    assert has_ended(bench.servers[0])


def test_a_second_connection_that_cannot_be_had_is_refused_at_once(bench):
    line = bench.line()
    bench.ask(line)
    assert bench.answer(line)
    bench.why = 'has no place'
    bench.ask(line, 1)
    assert bench.answer(line) == {'why': 'has no place'}
    bench.now += 10
    bench.steps()
    assert len(bench.attempts) == 2


def test_the_reason_is_told_again_after_a_second_connection_was_refused_with_it(bench):
    """Only a worker that waits for its first connection puts the reason into the log."""
    line = bench.line()
    bench.ask(line)
    assert bench.answer(line)
    bench.why = 'cannot be reached'
    bench.ask(line, 1)
    assert bench.answer(line) == {'why': 'cannot be reached'}
    bench.servers[0].close()
    bench.ask(line)
    bench.now += 10
    bench.steps()
    assert bench.answer(line) == {'why': 'cannot be reached'}


@pytest.mark.parametrize('is_dirty', [False, True])
def test_a_killed_worker_whose_server_is_dead_has_lost_what_it_had_not_flushed(bench, is_dirty):
    flag = failure_flags.new_flag()
    line = bench.line(flag)
    bench.ask(line)
    place = bench.answer(line)['place']
    os.pwrite(bench.claim, b'\1' if is_dirty else b'\0', place)
    bench.servers[0].close()
    line.close()
    bench.steps()
    assert failure_flags.is_set(flag) == is_dirty


def test_lines_have_bytes_of_their_own(bench):
    lines = [bench.line() for _ in range(3)]
    places = set()
    for line in lines:
        bench.ask(line)
        places.add(bench.answer(line)['place'])
    assert len(places) == 3


@pytest.mark.parametrize('message', [b'[]', b'nonsense', b'{"connect": 2}', b'{}'])
def test_a_message_that_is_not_valid_ends_the_line(bench, message):
    line = bench.line()
    line.send(message)
    bench.steps()
    assert line.recv(1) == b''


def test_the_keeper_is_needed_until_everyone_is_gone(bench):
    line = bench.line()
    bench.ask(line)
    bench.control.close()
    bench.steps()
    assert bench.keeper.is_needed()
    line.close()
    bench.steps()
    assert bench.keeper.is_needed()  # the server has not closed the connection
    bench.servers[0].close()
    bench.steps()
    assert not bench.keeper.is_needed()


def test_a_keeper_that_nobody_needs_does_not_wait_for_a_server_that_hangs(bench):
    line = bench.line()
    bench.ask(line)
    bench.control.close()
    line.close()
    bench.steps()
    assert bench.keeper.is_needed()
    bench.now += nbd_keeper.LAST_SECONDS + 1
    assert not bench.keeper.is_needed()


def test_what_was_left_is_lost_if_the_server_does_not_come_back_in_time(bench):
    flag = failure_flags.new_flag()
    line = bench.line(flag)
    bench.ask(line)
    os.pwrite(bench.claim, b'\1', bench.answer(line)['place'])
    bench.servers[0].close()
    bench.why = 'is away'
    nbd_line.leave(line, [(1, numbers.CMD_WRITE, 0, 0, 3, b'abc')])
    line.close()
    bench.control.close()
    for _ in range(3):
        bench.steps()
    assert not failure_flags.is_set(flag)
    assert bench.keeper.is_needed()
    bench.now += nbd_keeper.LAST_SECONDS + 1
    assert not bench.keeper.is_needed()
    assert failure_flags.is_set(flag)


def test_who_only_flushes_needs_no_server_while_everything_is_durable(bench):
    worker, job = bench.line(), bench.line()
    bench.ask(worker)
    place = bench.answer(worker)['place']
    bench.why = 'cannot be reached'
    nbd_line.send(job, {'connect': 0, 'unless_clean': True})
    bench.steps()
    assert bench.answer(job) == {'clean': True}
    os.pwrite(bench.claim, b'\1', place)  # the worker has written
    nbd_line.send(job, {'connect': 0, 'unless_clean': True})
    bench.steps()
    assert bench.answer(job) == {'why': 'cannot be reached'}


def test_a_session_that_has_ended_with_unflushed_writes_needs_the_server(bench):
    worker = bench.line()
    bench.ask(worker)
    os.pwrite(bench.claim, b'\1', bench.answer(worker)['place'])
    worker.close()
    job = bench.line()
    nbd_line.send(job, {'connect': 0, 'unless_clean': True})
    bench.steps()
    assert 'clean' not in (bench.answer(job) or {})
