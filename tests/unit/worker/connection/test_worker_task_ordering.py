"""Ordering: which commands of a task set wait (SAM-5), and that other task sets are not affected."""

import inspect
from types import SimpleNamespace

import pytest

from targetd.iscsi.errors import PduRejected
from targetd.iscsi.transfer import Transfer
from targetd.scsi import sam
from targetd.worker.connection.postponing import PostponedRead
from targetd.worker.connection.task_ordering import Gate, Ordering, Parked

SIMPLE, ORDERED, HEAD = sam.SIMPLE, sam.ORDERED, sam.HEAD_OF_QUEUE
LUN_1 = 1 << 48


class Device(object):
    luns = {}

    def unit(self, lun):
        return 'unit %x' % lun


def made(*tasks):
    """Ordering, session.tasks, connection. tasks: (attribute, is parked, lun)."""
    session_tasks = {}
    for itt, (attribute, is_parked, lun) in enumerate(tasks):
        task = sam.Task()
        task.itt, task.attribute, task.lun = itt, attribute, lun
        task.transfer = Parked((), None, None, 0) if is_parked else None
        session_tasks[itt] = task
    connection = SimpleNamespace(device=None)
    return Ordering(Device(), session_tasks, [connection]), session_tasks, connection


@pytest.mark.parametrize(
    'there, comes, waits',
    [
        ([], SIMPLE, False),
        ([], ORDERED, False),
        ([], HEAD, False),
        ([(SIMPLE, False)], SIMPLE, False),
        ([(SIMPLE, False)], ORDERED, True),
        ([(SIMPLE, False)], HEAD, False),
        ([(ORDERED, False)], SIMPLE, True),
        ([(ORDERED, False)], ORDERED, True),
        ([(ORDERED, False)], HEAD, False),
        ([(ORDERED, True)], SIMPLE, True),
        ([(SIMPLE, True)], SIMPLE, False),
        ([(SIMPLE, True)], ORDERED, True),
        ([(HEAD, False)], SIMPLE, True),
        ([(HEAD, False)], ORDERED, True),
        ([(HEAD, False)], HEAD, False),
    ],
)
def test_which_commands_wait_on_arrival(there, comes, waits):
    ordering, _, _ = made(*[(attribute, is_parked, 0) for attribute, is_parked in there])
    assert ordering.has_to_wait(0, comes) is waits
    assert ordering.has_to_wait(LUN_1, comes) is False  # another task set


def test_parked_commands_start_in_the_order_of_arrival():
    ordering, tasks, _ = made(
        (ORDERED, True, 0),
        (SIMPLE, True, 0),
        (SIMPLE, True, 0),
        (ORDERED, True, 0),
        (SIMPLE, True, 0),
    )
    ordering.close_gate(0)
    started = []
    for task in ordering.startable():
        started.append(task.itt)
        del tasks[task.itt]  # it ends at once
    assert started == [0, 1, 2, 3, 4] and not ordering.gates


def test_an_ordered_command_that_has_not_ended_holds_the_others():
    ordering, tasks, _ = made((ORDERED, True, 0), (SIMPLE, True, 0))
    ordering.close_gate(0)
    started = []
    for task in ordering.startable():
        started.append(task.itt)
        task.transfer = None
        tasks[task.itt] = tasks.pop(task.itt)  # retained again: it is the last one now
    assert started == [0] and ordering.gates == {0}


def test_a_gate_affects_only_its_task_set_and_is_removed():
    ordering, tasks, connection = made((ORDERED, False, 0))
    ordering.close_gate(0)
    assert (
        isinstance(connection.device.unit(0), Gate)
        and connection.device.unit(LUN_1) == 'unit %x' % LUN_1
    )
    with pytest.raises(sam.Waits):
        connection.device.unit(0).admit(None)
    tasks.clear()
    ordering.open_gates()
    assert connection.device.__class__ is Device  # no GatedDevice any more


def test_parked_data_is_bounded_by_the_first_burst():
    parked = Parked((), None, b'abcd', 10)
    parked.receive_data_out(0xFFFFFFFF, 4, 0, b'efgh', False)
    with pytest.raises(PduRejected):
        parked.receive_data_out(0xFFFFFFFF, 8, 1, b'ijkl', True)


@pytest.mark.parametrize('stand_in', [Parked, PostponedRead])
@pytest.mark.parametrize('method', ['place_data_out', 'receive_data_out', 'fail'])
def test_a_waiting_task_has_the_methods_of_a_transfer(stand_in, method):
    """Data-Out may arrive for it, and it may be aborted."""
    own, other = getattr(stand_in, method), getattr(Transfer, method)
    assert list(inspect.signature(own).parameters) == list(inspect.signature(other).parameters)


def test_a_parked_task_solicits_nothing():
    assert not Parked((), b'', None, 0).next_r2ts(None)
