"""DataOut and TaskStarter: the collaborators of Connection that receive Data-Out and start ordered
commands (RFC 7143 11.7, 11.8; SAM-5)."""

from types import SimpleNamespace

import pytest

from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.transfer import Limits, Transfer
from targetd.scsi import sam
from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.connection import data_out
from targetd.worker.connection.data_out import DataOut
from targetd.worker.connection.task_ordering import Ordering, Parked, TaskStarter
from targetd.worker.connection.write_buffers import BUFFER_BYTES, WriteBuffers

KEYS = {
    'InitialR2T': True,
    'ImmediateData': True,
    'FirstBurstLength': 1024,
    'MaxBurstLength': 1024,
    'MaxOutstandingR2T': 1,
    'DataSequenceInOrder': True,
    'DataPDUInOrder': True,
    'ErrorRecoveryLevel': 0,
    'MaxRecvDataSegmentLength': 8192,
}
FINAL, WRITE = 0x80, const.COMMAND_WRITE
ACA = 4


class FakeConnection(object):
    """Records what its collaborators do."""

    def __init__(self):
        self.session = SimpleNamespace(
            limits=Limits.of(KEYS),
            tasks={},
            discarding={},
            initiator_name='iqn.2026-11.test:initiator',
            allot_ttt=lambda: 77,
        )
        self.session.discard_data_out = lambda itt: self.session.discarding.update({itt: True})
        self.sent, self.completed, self.refused, self.results = [], [], [], []
        self.outbox = SimpleNamespace(put_pdu=self.sent.append)
        self.data_out = DataOut(self, Transfer, WriteBuffers())

    def retain(self, task):
        self.session.tasks[task.itt] = task

    def complete(self, task, outcome):
        self.completed.append((task.itt, outcome))

    def refuse(self, task, flags, data, refusal):
        self.refused.append((task.itt, refusal))

    def run_task(self, task):
        return task.run(task)

    def handle_result(self, task, result):
        self.results.append((task.itt, result))


def write_task(connection, length):
    task = sam.Task()
    task.itt, task.edtl, task.data_out_length, task.connection = 5, length, length, connection
    task.lun = 0
    task.run = lambda task: None
    return task


def data_out_fields(itt, ttt, offset, data_sn, final=True):
    """The fields of a Data-Out header, as the Framer returns them."""
    tail = bytes(4) + data_sn.to_bytes(4, 'big') + offset.to_bytes(4, 'big') + bytes(4)
    return (const.DATA_OUT, FINAL if final else 0, 0, 0, 0, itt, ttt, 0, 1, tail)


def test_immediate_data_is_complete_at_once():
    connection = FakeConnection()
    task = write_task(connection, 512)
    assert connection.data_out.has_all(task, WRITE | FINAL, b'x' * 512)
    assert task.data_out == b'x' * 512 and not connection.session.tasks


def test_missing_data_is_solicited_and_the_command_runs_when_it_has_arrived():
    connection = FakeConnection()
    task = write_task(connection, 512)
    assert not connection.data_out.has_all(task, WRITE | FINAL, None)
    (r2t,) = connection.sent
    assert (r2t.ttt, r2t.buffer_offset, r2t.desired_length) == (77, 0, 512)
    connection.data_out.receive(data_out_fields(5, 77, 0, 0), None, b'y' * 512)
    assert connection.completed == [(5, None)] and bytes(task.data_out) == b'y' * 512


LARGE = dict(KEYS, FirstBurstLength=65536, MaxBurstLength=262144)


def write_fields(edtl, immediate):
    """The fields of the header of a write command."""
    return (const.SCSI_COMMAND, WRITE | FINAL, 0, immediate, 0, 5, edtl, 1, 1, bytes(16))


def large_write(edtl, landed=True):
    """(FakeConnection, task) of a write whose 64 KiB of immediate data arrived in two parts, into the
    place that DataOut returned, or with the PDU."""
    connection = FakeConnection()
    connection.session.limits = Limits.of(LARGE)
    receiver = connection.data_out = DataOut(connection, Transfer, WriteBuffers())
    task = write_task(connection, edtl)
    data = memoryview(b'i' * 65536)
    if landed:
        place = receiver.place(write_fields(edtl, 65536))[:65536]
        place[:] = data
        data = place
    connection.all_there = receiver.has_all(task, WRITE | FINAL, data)
    return connection, task, data


def test_the_rest_of_a_large_write_is_received_behind_its_immediate_data():
    connection, task, data = large_write(BUFFER_BYTES)
    assert not connection.all_there and task.transfer.buffer.obj is data.obj
    offset = 65536
    while not connection.completed:
        length = connection.sent[-1].desired_length
        fields = list(data_out_fields(5, 77, offset, 0))
        fields[3] = length
        place = connection.data_out.place(fields)
        place[:] = b'r' * length
        connection.data_out.receive(tuple(fields), None, place)
        offset += length
    assert offset == BUFFER_BYTES and task.data_out.obj is data.obj
    assert task.data_out == b'i' * 65536 + b'r' * (BUFFER_BYTES - 65536)


@pytest.mark.parametrize('edtl, landed', [(BUFFER_BYTES + 512, True), (BUFFER_BYTES, False)])
def test_immediate_data_that_is_elsewhere_is_copied(edtl, landed):
    connection, task, data = large_write(edtl, landed)
    assert not connection.all_there
    assert task.transfer.buffer.obj is not data.obj and task.transfer.buffer[:65536] == data


def test_immediate_data_that_the_command_does_not_use_is_dropped():
    connection, task, data = large_write(65536)
    task.itt, task.data_out_length = 6, 512
    place = connection.data_out.place(write_fields(65536, 65536))[:65536]
    place[:] = b'z' * 65536
    assert connection.data_out.has_all(task, WRITE | FINAL, place)
    assert task.data_out == b'z' * 512


def test_a_large_write_that_is_complete_with_its_pdu_is_not_copied():
    connection, task, data = large_write(65536)
    assert connection.all_there and task.data_out.obj is data.obj


@pytest.mark.clause('RFC 7143 11.4.7.2')
@pytest.mark.parametrize(
    'ttt, offset, data_sn, size, sense',
    [
        (77, 256, 0, 256, (0x0B, 0x0C, 0x0D)),
        (77, 0, 0, 1024, (0x0B, 0x0C, 0x0D)),
        (77, 0, 1, 512, (0x0B, 0x47, 0x05)),
        (78, 0, 0, 512, (0x0B, 0x0C, 0x0C)),
        (0xFFFFFFFF, 0, 0, 512, (0x0B, 0x0C, 0x0C)),
    ],
    ids=['offset', 'too much', 'lost', 'tag', 'unsolicited'],
)
def test_data_that_was_not_agreed_ends_the_command_and_later_data_is_dropped(
    ttt, offset, data_sn, size, sense
):
    connection = FakeConnection()
    connection.data_out.has_all(write_task(connection, 512), WRITE | FINAL, None)
    connection.data_out.receive(data_out_fields(5, ttt, offset, data_sn), None, b'y' * size)
    ((itt, outcome),) = connection.completed
    assert itt == 5 and (outcome.key, outcome.asc, outcome.ascq) == sense
    del connection.session.tasks[5]
    connection.data_out.receive(data_out_fields(5, 77, 0, 0), None, b'y' * 512)
    assert len(connection.completed) == 1


def test_data_for_an_unknown_task_is_rejected():
    with pytest.raises(PduRejected):
        FakeConnection().data_out.receive(data_out_fields(9, 77, 0, 0), None, b'y')


def test_more_unfinished_data_than_the_budget_is_task_set_full(monkeypatch):
    monkeypatch.setattr(data_out, 'DATA_OUT_BYTES', 1 << 20)
    connection = FakeConnection()
    connection.data_out.has_all(write_task(connection, 1 << 20), WRITE | FINAL, None)
    with pytest.raises(StatusReturned) as refusal:
        connection.data_out.has_all(write_task(connection, 1 << 20), WRITE | FINAL, None)
    assert refusal.value.status == sam.TASK_SET_FULL


class FakeUnit(object):
    """Admits every command; running it returns its ITT."""

    is_sequential = False

    def admit(self, task):
        task.data_out_length = 0
        task.run = lambda task: task.itt


def starter():
    """(FakeConnection, Ordering, TaskStarter)"""
    connection = FakeConnection()
    unit = FakeUnit()
    device = SimpleNamespace(unit=lambda lun_field: unit)
    ordering = Ordering(device, connection.session.tasks, [connection])
    return connection, ordering, TaskStarter(connection, ordering, device)


def command_fields(itt, attribute):
    return (const.SCSI_COMMAND, FINAL | attribute, 0, 0, 0, itt, 0, itt, 1, bytes(16))


def test_an_aca_command_is_refused():
    connection, _, start = starter()
    start.start_or_park(command_fields(1, ACA), None, None)
    ((itt, refusal),) = connection.refused
    assert itt == 1 and isinstance(refusal, CheckCondition)
    assert (refusal.key, refusal.asc, refusal.ascq) == (0x05, 0x49, 0x00)


def test_an_ordered_command_starts_at_once_if_it_is_alone():
    connection, ordering, start = starter()
    start.start_or_park(command_fields(1, sam.ORDERED), None, None)
    assert connection.results == [(1, 1)] and not ordering.gates


def test_an_ordered_command_is_parked_until_older_ones_have_ended():
    connection, ordering, start = starter()
    older = sam.Task()
    older.itt, older.lun, older.attribute, older.transfer = 1, 0, sam.SIMPLE, None
    connection.session.tasks[1] = older
    start.start_or_park(command_fields(2, sam.ORDERED), None, None)
    parked = connection.session.tasks[2]
    assert isinstance(parked.transfer, Parked) and not connection.results
    assert list(ordering.startable()) == []
    del connection.session.tasks[1]
    for task in ordering.startable():
        start.start_parked(task)
    assert connection.results == [(2, 2)]
