"""Busy polling: when a connection polls, when it pauses, and that results and errors of recv() are
passed on unchanged."""

import socket

import pytest

from targetd.worker.connection import busy_poll
from targetd.worker.connection.busy_poll import BusyPoll

LENGTH = 0.0001


class Line(object):
    """A socket and a clock in one. Bytes arrive at `arrives`; a poll takes a microsecond, a blocking
    receive lasts until the bytes arrive."""

    def __init__(self):
        self.now = 0.0
        self.arrives = 0.0
        self.polls = self.sleeps = 0
        self.lost_seconds = 0.0  # the next poll is interrupted for so long

    def clock(self):
        return self.now

    def recv_into(self, view, count=0, flags=0):
        if flags & socket.MSG_DONTWAIT:
            self.polls += 1
            self.now += 1e-6 + self.lost_seconds
            self.lost_seconds = 0.0
            if self.now < self.arrives:
                raise BlockingIOError()
        else:
            self.sleeps += 1
            self.now = max(self.now, self.arrives)
        view[:1] = b'x'
        return 1

    def receive(self, by, after):
        """Receive bytes that arrive `after` so many seconds; True if the receive did not block."""
        self.arrives = self.now + after
        before = self.sleeps
        assert by.receive(self.recv_into, bytearray(8)) == 1
        return self.sleeps == before


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def polling(line):
    """A BusyPoll after the first receives of its connection."""
    made = BusyPoll(LENGTH, line.clock)
    while not line.polls:
        line.receive(made, 0)
    line.now, line.polls, line.sleeps = 0.0, 0, 0
    return made


def test_a_short_session_is_not_polled_for(line):
    short = BusyPoll(LENGTH, line.clock)
    for _ in range(5):  # TEST UNIT READY twice, INQUIRY twice, logout
        assert not line.receive(short, 20e-6)
    assert not line.polls


def test_polling_never_blocks_while_the_initiator_is_quick(line, polling):
    assert all(line.receive(polling, 20e-6) for _ in range(1000))


def test_polling_pauses_while_the_initiator_is_slow(line, polling):
    """A thousand commands, a millisecond apart, cost a small part of the polls that polling without
    a pause would cost."""
    blocked = [not line.receive(polling, 1e-3) for _ in range(1000)]
    assert all(blocked)
    assert line.polls < 1000 * LENGTH / 1e-6 / 50


def test_polling_resumes_when_the_initiator_has_become_quick(line, polling):
    for _ in range(20):
        line.receive(polling, 1e-3)
    found = [line.receive(polling, 20e-6) for _ in range(5000)]
    assert not found[0] and all(found[-100:])


def test_one_slow_command_does_not_stop_polling(line, polling):
    for _ in range(10):
        line.receive(polling, 20e-6)
    assert not line.receive(polling, 1e-3)
    assert line.receive(polling, 20e-6)


def test_polling_pauses_when_another_process_needs_the_cpu(line, polling):
    for _ in range(10):
        line.receive(polling, 20e-6)
    line.lost_seconds = 0.003
    assert not line.receive(polling, 0.1)
    assert not line.receive(polling, 20e-6)


def test_end_of_file_and_errors_are_passed_on(line, polling):
    def ended(view, count=0, flags=0):
        return 0

    def broken(view, count=0, flags=0):
        raise ConnectionResetError()

    assert polling.receive(ended, bytearray(8)) == 0
    with pytest.raises(ConnectionResetError):
        polling.receive(broken, bytearray(8))


def test_a_timeout_is_passed_on(line, polling):
    """The blocking receive raises BlockingIOError after the keepalive interval; the connection then
    sends a ping."""

    def silent(view, count=0, flags=0):
        line.now += 1e-6
        raise BlockingIOError()

    with pytest.raises(BlockingIOError):
        polling.receive(silent, bytearray(8))


@pytest.mark.parametrize(
    'seconds, cpus, polls', [(LENGTH, 2, True), (0, 2, False), (LENGTH, 1, False)]
)
def test_no_polling_without_the_setting_or_with_one_cpu(monkeypatch, seconds, cpus, polls):
    monkeypatch.setattr(busy_poll, 'usable_cpus', lambda: cpus)
    assert (busy_poll.busy_poll(seconds) is not None) is polls
