"""Asking for the next command before sleeping: when it is done, when it is left alone, and that
nothing else changes."""

import socket

import pytest

from targetd.worker.connection import busy_poll
from targetd.worker.connection.busy_poll import Polling

LENGTH = 0.0001


class Line(object):
    """A socket and a clock in one: bytes arrive at `arrives`; a question takes a microsecond,
    sleeping as long as it takes."""

    def __init__(self):
        self.now = 0.0
        self.arrives = 0.0
        self.questions = self.sleeps = 0
        self.lost_seconds = 0.0  # that another process takes away at the next question

    def clock(self):
        return self.now

    def recv_into(self, view, count=0, flags=0):
        if flags & socket.MSG_DONTWAIT:
            self.questions += 1
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
        """One receive of bytes that come `after` so many seconds; True if it was done without
        sleeping."""
        self.arrives = self.now + after
        before = self.sleeps
        assert by.receive(self.recv_into, bytearray(8)) == 1
        return self.sleeps == before


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def asking(line):
    return Polling(LENGTH, line.clock)


def test_an_initiator_that_answers_at_once_never_finds_us_asleep(line, asking):
    assert all([line.receive(asking, 20e-6) for _ in range(1000)])


def test_an_initiator_that_thinks_for_long_is_not_asked_for_ever(line, asking):
    """A thousand commands a millisecond apart: what is burnt in vain is a small part of what
    polling always would burn."""
    asleep = [not line.receive(asking, 1e-3) for _ in range(1000)]
    assert all(asleep)
    assert line.questions < 1000 * LENGTH / 1e-6 / 50


def test_it_is_tried_again_when_the_initiator_has_become_quick(line, asking):
    for _ in range(20):
        line.receive(asking, 1e-3)
    found = [line.receive(asking, 20e-6) for _ in range(5000)]
    assert not found[0] and all(found[-100:])


def test_one_slow_command_among_quick_ones_changes_nothing(line, asking):
    for _ in range(10):
        line.receive(asking, 20e-6)
    assert not line.receive(asking, 1e-3)
    assert line.receive(asking, 20e-6)


def test_who_was_interrupted_leaves_the_processor_to_others(line, asking):
    for _ in range(10):
        line.receive(asking, 20e-6)
    line.lost_seconds = 0.003
    assert not line.receive(asking, 0.1)
    assert not line.receive(asking, 20e-6)


def test_the_end_and_errors_pass_through(line, asking):
    def ended(view, count=0, flags=0):
        return 0

    def broken(view, count=0, flags=0):
        raise ConnectionResetError()

    assert asking.receive(ended, bytearray(8)) == 0
    with pytest.raises(ConnectionResetError):
        asking.receive(broken, bytearray(8))


def test_silence_is_told_as_ever(line, asking):
    """The receive that sleeps ends with BlockingIOError after the keepalive interval; the
    connection then pings."""

    def silent(view, count=0, flags=0):
        line.now += 1e-6
        raise BlockingIOError()

    with pytest.raises(BlockingIOError):
        asking.receive(silent, bytearray(8))


@pytest.mark.parametrize(
    'seconds, processors, asks', [(LENGTH, 2, True), (0, 2, False), (LENGTH, 1, False)]
)
def test_neither_without_the_setting_nor_on_one_processor(monkeypatch, seconds, processors, asks):
    monkeypatch.setattr(busy_poll, 'processors', lambda: processors)
    assert (busy_poll.polling(seconds) is not None) is asks
