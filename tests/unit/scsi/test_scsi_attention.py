"""The unit attention queue of one nexus."""

import pytest

from targetd.scsi import attention
from targetd.scsi.attention import (
    BUS_RESET,
    CAPACITY_CHANGED,
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
    DEVICE_RESET,
    LUNS_CHANGED,
    MODE_PARAMETERS_CHANGED,
    NEXUS_LOSS,
    POWER_ON,
    POWER_ON_OR_RESET,
    RESERVATIONS_RELEASED,
    Queue,
)


def drained(queue):
    taken = []
    while queue:
        taken.append(queue.take())
    return taken


def test_an_empty_queue_returns_none():
    queue = Queue()
    assert not queue and queue.take() is None


def test_peek_leaves_the_condition_pending():
    queue = Queue([CAPACITY_CHANGED, LUNS_CHANGED])
    assert queue.peek() == CAPACITY_CHANGED and len(queue) == 2
    assert Queue().peek() is None


def test_conditions_are_reported_in_order_and_once():
    queue = Queue([MODE_PARAMETERS_CHANGED, CAPACITY_CHANGED])
    queue.add(*MODE_PARAMETERS_CHANGED)
    queue.add(*LUNS_CHANGED)
    assert len(queue) == 3
    assert drained(queue) == [MODE_PARAMETERS_CHANGED, CAPACITY_CHANGED, LUNS_CHANGED]


def test_a_condition_that_was_reported_can_come_again():
    queue = Queue([CAPACITY_CHANGED])
    queue.take()
    queue.add(*CAPACITY_CHANGED)
    assert queue.take() == CAPACITY_CHANGED


def test_a_reset_comes_before_pending_conditions():
    queue = Queue([MODE_PARAMETERS_CHANGED, CAPACITY_CHANGED])
    queue.add(*DEVICE_RESET)
    assert drained(queue) == [DEVICE_RESET, MODE_PARAMETERS_CHANGED, CAPACITY_CHANGED]


def test_only_the_most_important_reset_is_reported():
    order = (POWER_ON, POWER_ON_OR_RESET, BUS_RESET, DEVICE_RESET, NEXUS_LOSS)
    for i, major in enumerate(order):
        for minor in order[i:]:
            assert drained(Queue([major, minor])) == [major]
            assert drained(Queue([minor, major])) == [major]


def test_a_reset_removes_commands_cleared_but_a_nexus_loss_does_not():
    assert drained(Queue([COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, DEVICE_RESET])) == [DEVICE_RESET]
    assert drained(Queue([COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, NEXUS_LOSS])) == [
        NEXUS_LOSS,
        COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
    ]


def test_drop_removes_one_condition():
    queue = Queue([LUNS_CHANGED, RESERVATIONS_RELEASED])
    queue.drop(*LUNS_CHANGED)
    queue.drop(*LUNS_CHANGED)
    assert drained(queue) == [RESERVATIONS_RELEASED]


def test_too_many_conditions_become_the_one_that_covers_them():
    queue = Queue([(0x3F, i) for i in range(attention.CAPACITY)])
    assert len(queue) == attention.CAPACITY
    queue.add(*CAPACITY_CHANGED)
    assert drained(queue) == [POWER_ON_OR_RESET]


@pytest.mark.parametrize(
    'name, code',
    [
        ('POWER_ON', (0x29, 0x01)),
        ('DEVICE_RESET', (0x29, 0x03)),
        ('NEXUS_LOSS', (0x29, 0x07)),
        ('MODE_PARAMETERS_CHANGED', (0x2A, 0x01)),
        ('RESERVATIONS_PREEMPTED', (0x2A, 0x03)),
        ('RESERVATIONS_RELEASED', (0x2A, 0x04)),
        ('REGISTRATIONS_PREEMPTED', (0x2A, 0x05)),
        ('CAPACITY_CHANGED', (0x2A, 0x09)),
        ('COMMANDS_CLEARED_BY_ANOTHER_INITIATOR', (0x2F, 0x00)),
        ('THRESHOLD', (0x38, 0x07)),
        ('INQUIRY_CHANGED', (0x3F, 0x03)),
        ('LUNS_CHANGED', (0x3F, 0x0E)),
    ],
)
def test_codes_are_those_of_the_standard(name, code):
    assert getattr(attention, name) == code
