"""ORDERED and HEAD OF QUEUE (SAM-5): which command of a task set has to wait for which.

There is one Ordering for a session and one task set for each logical unit. A command that waits is
*parked*: it is a Task in session.tasks whose `transfer` is a Parked. So task management finds it
there, and Data-Out that arrives early is kept with it.

    ORDERED        starts when all older tasks of the task set have ended
    HEAD OF QUEUE  starts at once
    SIMPLE         starts when all HEAD OF QUEUE tasks and all older ORDERED tasks have ended

In the task set of a tape, which has one position, every command counts as ORDERED.

An initiator that sends only SIMPLE commands pays nothing for this: only while a task set has a
*gate* do its connections look up units in a GatedDevice, which returns a Gate whose admit() raises
Waits. Otherwise they look up units in the Device itself (ARCHITECTURE D10).

Everything here is called with `working` held, unless marked [any]. May import what Connection may.
"""

from targetd.iscsi import const, pdu
from targetd.iscsi.errors import WRONG_AMOUNT, DataRefused, PduRejected
from targetd.scsi import sam
from targetd.scsi.device import lun_of
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition, StatusReturned
from targetd.worker.connection.data_out import UNEXPECTED_SENSE

_READ, _WRITE = const.COMMAND_READ, const.COMMAND_WRITE
_INVALID_MESSAGE = (ILLEGAL_REQUEST, 0x49, 0x00)
#: Task attributes for which younger tasks of the task set wait.
_BLOCKING_ATTRIBUTES = (sam.ORDERED, sam.HEAD_OF_QUEUE)


class Gate(object):
    """Takes the place of a logical unit while commands have to wait. unit: the logical unit."""

    __slots__ = ('unit',)

    def __init__(self, unit):
        self.unit = unit

    def admit(self, task):
        """Raises Waits."""
        raise sam.Waits


class GatedDevice(object):
    """A scsi.device.Device in which the units with a LUN in `gates` are replaced by a Gate."""

    def __init__(self, device, gates):
        self._device = device
        self._gates = gates

    def unit(self, lun_field):
        """As Device.unit."""
        unit = self._device.unit(lun_field)
        return Gate(unit) if lun_of(lun_field) in self._gates else unit

    def __getattr__(self, name):
        return getattr(self._device, name)


class Parked(object):
    """The PDU of a command that waits, and its Data-Out that has arrived. Implements Transfer's
    interface. budget: bytes of Data-Out that it may hold."""

    __slots__ = ('fields', 'ahs', 'data', 'arrived', 'failed', 'wanted', '_left')
    is_complete = False

    def __init__(self, fields, ahs, data, budget):
        self.fields = fields
        self.ahs = ahs
        self.data = None if data is None else bytes(data)
        self.arrived = []  # arguments of Transfer.receive_data_out
        self.failed = False
        self.wanted = budget
        self._left = budget - (len(data) if data is not None else 0)

    def place_data_out(self, ttt, offset, data_sn, length):
        """As Transfer.place_data_out; the framer keeps the data."""
        return None

    def receive_data_out(self, ttt, offset, data_sn, data, final):
        """As Transfer.receive_data_out; the data is kept until the command starts. Raises
        DataRefused."""
        self._left -= len(data) if data is not None else 0
        if self._left < 0 or len(self.arrived) > const.MAXIMUM_DATA_SEGMENT >> 9:
            raise DataRefused(WRONG_AMOUNT, 'more unsolicited data than was agreed')
        self.arrived.append((ttt, offset, data_sn, None if data is None else bytes(data), final))

    def next_r2ts(self, allot_ttt):
        """As Transfer.next_r2ts; a command that waits solicits nothing."""
        return ()

    def fail(self):
        """As Transfer.fail: the task was aborted."""
        self.failed = True


class Ordering(object):
    """The gates of one session's task sets. tasks: session.tasks; connections: the worker's list of
    Connections, whose `device` is changed here."""

    def __init__(self, device, tasks, connections):
        self.gates = set()  # LUNs of the task sets in which a command may have to wait
        self.device = device  # where new connections look up units
        self._real = device
        self._gated = GatedDevice(device, self.gates)
        self._tasks = tasks
        self._connections = connections

    def _task_set(self, lun):
        return [task for task in list(self._tasks.values()) if lun_of(task.lun) == lun]

    def has_to_wait(self, lun_field, attribute, parked=None):
        """Return True if a command with this attribute has to wait.

        parked: the parked task in question, None for a command that has just arrived. Tasks that
        were parked after it do not count. Tasks that have started do: a HEAD OF QUEUE command that
        arrived later started first."""
        is_older = True
        for task in self._task_set(lun_of(lun_field)):
            if task is parked:
                is_older = False
            elif is_older or task.transfer.__class__ is not Parked:
                if attribute == sam.ORDERED or task.attribute in _BLOCKING_ATTRIBUTES:
                    return attribute != sam.HEAD_OF_QUEUE
        return False

    def close_gate(self, lun_field):
        """Other tasks of this task set may have to wait from now on."""
        self.gates.add(lun_of(lun_field))
        self._select_device()

    def _select_device(self):
        self.device = self._gated if self.gates else self._real
        for connection in list(self._connections):
            connection.device = self.device

    def open_gates(self):
        """Open the gates of the task sets in which no task waits or can be waited for."""
        for lun in list(self.gates):
            if not any(
                task.transfer.__class__ is Parked or task.attribute in _BLOCKING_ATTRIBUTES
                for task in self._task_set(lun)
            ):
                self.gates.discard(lun)
        self._select_device()

    def startable(self):
        """Yield the parked tasks that may start, oldest first. The caller must start each one
        before it takes the next."""
        for task in list(self._tasks.values()):
            is_parked = task.transfer.__class__ is Parked
            if is_parked and not self.has_to_wait(task.lun, task.attribute, task):
                yield task
        self.open_gates()


class TaskStarter(object):
    """Starts the commands of one connection that are not on the hot path: those that are not
    SIMPLE, those that have to wait, and those that have waited.

    connection: runs, retains and refuses tasks, replies, and receives Data-Out; ordering, device:
    of the session, None in a discovery session."""

    def __init__(self, connection, ordering, device):
        self._connection = connection
        self._session = connection.session
        self._ordering = ordering
        self._device = device

    def start_or_park(self, fields, ahs, data):
        """Start a command, or park it if it has to wait. Its CmdSN is already counted. Raises
        PduRejected. [connection]"""
        task = self._new_task(fields)
        ordering = self._ordering
        if self._device.unit(task.lun).is_sequential and task.attribute != sam.ACA:
            task.attribute = sam.ORDERED
        if task.attribute > sam.HEAD_OF_QUEUE:
            task.unit = self._device.unit(task.lun)
            # an ACA condition is never established, so the ACA attribute is invalid (SAM-5)
            self._connection.refuse(task, fields[1], data, CheckCondition(*_INVALID_MESSAGE))
            return
        # The gate is closed first: a task that ends meanwhile sees it and starts the parked ones.
        ordering.close_gate(task.lun)
        if ordering.has_to_wait(task.lun, task.attribute):
            first_burst = self._session.limits.first_burst if task.expects_write else 0
            self._connection.retain(task)
            task.transfer = Parked(fields, ahs, data, first_burst)
            task.unit = self._device.unit(task.lun)
        else:
            self._start(task, fields, ahs, data)
            ordering.open_gates()

    def _new_task(self, fields):
        opcode, flags, _, _, lun, itt, edtl, cmd_sn, _, cdb = fields
        task = sam.Task()
        task.itt, task.lun, task.cdb, task.edtl, task.attribute = itt, lun, cdb, edtl, flags & 7
        task.expects_read, task.expects_write = flags & _READ, flags & _WRITE
        task.cmd_sn = None if opcode & 0x40 else cmd_sn
        task.connection = self._connection
        return task

    def _start(self, task, fields, ahs, data):
        """Connection._command for a task that is not on the hot path. [connection, or any with
        `working` held]"""
        connection, flags = self._connection, fields[1]
        task.unit = self._device.unit(task.lun)
        try:
            if ahs:
                task.cdb = task.cdb[:16] + pdu.decode_ahs(ahs).extended_cdb
            task.unit.admit(task)
            if flags & _WRITE or task.data_out_length:
                if not connection.data_out.has_all(task, flags, data):
                    return
            elif data is not None:
                raise CheckCondition(*UNEXPECTED_SENSE)
            result = connection.run_task(task)
        except (CheckCondition, StatusReturned) as refusal:
            connection.refuse(task, flags, data, refusal)
            return
        connection.handle_result(task, result)

    def start_parked(self, task):
        """Start a parked task that does not have to wait any longer. [any, with `working` held]"""
        parked = task.transfer
        del self._session.tasks[task.itt]
        task.transfer = None
        try:
            self._start(task, parked.fields, parked.ahs, parked.data)
        except PduRejected as e:
            self._connection.reject_pdu(parked.fields, e)
        for arguments in parked.arrived:
            if self._session.tasks.get(task.itt) is task and task.transfer is not None:
                self._connection.data_out.take(task, arguments)
