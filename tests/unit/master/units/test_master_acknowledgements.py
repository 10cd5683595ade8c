"""Acknowledgements: when done() is called, and which workers are killed."""

import pytest
from master_fakes import FakeWorker, kill

from targetd.master.units.acknowledgements import ACKNOWLEDGE_SECONDS, Acknowledgements


@pytest.fixture
def acknowledgements(loop):
    return Acknowledgements(loop, kill)


def expect(acknowledgements, *workers):
    """(message id, list that gets True when done() is called)."""
    done = []
    return acknowledgements.expect(workers, lambda: done.append(True)), done


def test_done_is_called_once_after_the_last_acknowledgement(acknowledgements):
    one, two = FakeWorker('one'), FakeWorker('two')
    message_id, done = expect(acknowledgements, one, two)
    acknowledgements.start_timer(message_id)
    for worker in (one, one):
        acknowledgements.acknowledge(worker, message_id)
        assert not done
    for worker in (two, two):
        acknowledgements.acknowledge(worker, message_id)
    assert done == [True]


def test_a_message_to_no_worker_is_done_when_it_was_sent(acknowledgements):
    message_id, done = expect(acknowledgements)
    assert not done
    acknowledgements.start_timer(message_id)
    assert done == [True]


def test_ids_are_unique_and_never_zero(acknowledgements):
    ids = [expect(acknowledgements)[0] for _ in range(3)]
    assert len(set(ids)) == 3 and 0 not in ids


def test_unknown_ids_and_other_workers_are_ignored(acknowledgements):
    one, two = FakeWorker('one'), FakeWorker('two')
    message_id, done = expect(acknowledgements, one)
    acknowledgements.start_timer(message_id)
    acknowledgements.acknowledge(two, message_id)
    for unknown in (message_id + 1, None, 'x'):
        acknowledgements.acknowledge(one, unknown)
    assert not done


def test_only_late_workers_are_killed_and_their_death_acknowledges(acknowledgements, loop):
    one, two = FakeWorker('one'), FakeWorker('two')
    message_id, done = expect(acknowledgements, one, two)
    acknowledgements.start_timer(message_id)
    acknowledgements.acknowledge(one, message_id)
    loop.pass_time(ACKNOWLEDGE_SECONDS + 0.1)
    assert two.killed and not one.killed and not done
    acknowledgements.worker_gone(two)
    assert done == [True]


def test_a_worker_that_acknowledged_in_time_is_not_killed(acknowledgements, loop):
    one = FakeWorker('one')
    message_id, _ = expect(acknowledgements, one)
    acknowledgements.start_timer(message_id)
    acknowledgements.acknowledge(one, message_id)
    loop.pass_time(ACKNOWLEDGE_SECONDS + 0.1)
    assert not one.killed


def test_a_worker_that_is_gone_acknowledges_all_its_messages(acknowledgements):
    one, two = FakeWorker('one'), FakeWorker('two')
    first, first_done = expect(acknowledgements, one)
    second, second_done = expect(acknowledgements, one, two)
    for message_id in (first, second):
        acknowledgements.start_timer(message_id)
    acknowledgements.worker_gone(one)
    assert first_done == [True] and not second_done


def test_an_acknowledgement_may_arrive_before_the_timer_starts(acknowledgements, loop):
    one = FakeWorker('one')
    message_id, done = expect(acknowledgements, one)
    acknowledgements.acknowledge(one, message_id)
    acknowledgements.start_timer(message_id)
    assert done == [True]
