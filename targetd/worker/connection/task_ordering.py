"""ORDERED and HEAD OF QUEUE (SAM-5): which command of a task set has to wait for which.

One Ordering for a session, one task set for each logical unit. A command waits *parked*: as a Task in session.tasks whose
`transfer` is a Parked, so that task management finds it there, and Data-Out that comes early is kept with it.

    ORDERED        starts when nothing else of the task set has yet to end
    HEAD OF QUEUE  starts at once
    SIMPLE         starts when no HEAD OF QUEUE, and no older ORDERED, has yet to end

Nothing of this costs an initiator that sends SIMPLE anything: while a task set has a *gate*, its
connections look up units in a GatedDevice, which gives a Gate whose admit() raises Waits; without
one they look them up in the device itself (D10).

Everything here is called with `working` held, unless marked [any]. May import what Connection may.
"""

from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.scsi import sam
from targetd.scsi.lu import lun_of
from targetd.scsi.sense import ABORTED_COMMAND, ILLEGAL_REQUEST, CheckCondition, StatusReturned

_READ, _WRITE = const.COMMAND_READ, const.COMMAND_WRITE
_INVALID_MESSAGE = (ILLEGAL_REQUEST, 0x49, 0x00)
#: RFC 7143 11.4.7.2: what the initiator is told of data that a command does not take.
UNEXPECTED_DATA = (ABORTED_COMMAND, 0x0C, 0x0C)
_WAITED_FOR = (sam.ORDERED, sam.HEAD_OF_QUEUE)


class Waits(Exception):
    """The command has to wait for older ones of its task set."""


class Gate(object):
    """Stands before a logical unit while commands have to wait. unit: the real one."""

    __slots__ = ('unit',)

    def __init__(self, unit):
        self.unit = unit

    def admit(self, task):
        """Raises Waits."""
        raise Waits


class GatedDevice(object):
    """A scsi.lu.Device some of whose units are behind a Gate."""

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
    """A command that waits: its PDU, and what came of its unsolicited data. Looks like a Transfer
    to those who meet it."""

    __slots__ = ('fields', 'ahs', 'data', 'arrived', 'failed', 'wanted', '_room')
    is_complete = False

    def __init__(self, fields, ahs, data, room):
        self.fields = fields
        self.ahs = ahs
        self.data = None if data is None else bytes(data)
        self.arrived = []  # arguments of Transfer.receive
        self.failed = False
        self.wanted = room  # bytes it may hold
        self._room = room - (len(data) if data is not None else 0)

    def place(self, ttt, offset, data_sn, length):
        """As Transfer.place: nowhere in particular."""
        return None

    def receive(self, ttt, offset, data_sn, data, final):
        """As Transfer.receive: kept for later. Raises PduRejected."""
        self._room -= len(data) if data is not None else 0
        if self._room < 0 or len(self.arrived) > const.MAXIMUM_DATA_SEGMENT >> 9:
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'more unsolicited data than was agreed')
        self.arrived.append((ttt, offset, data_sn, None if data is None else bytes(data), final))

    def solicit(self, allot_ttt):
        """As Transfer.solicit: nothing is asked for yet."""
        return ()

    def fail(self):
        """As Transfer.fail: the task was aborted."""
        self.failed = True


class Ordering(object):
    """Of one session. tasks: session.tasks; connections: the worker's list, its Connections have
    `device`."""

    def __init__(self, device, tasks, connections):
        self.gates = set()  # LUN numbers of the task sets in which somebody has to wait
        self.device = device  # what new connections look units up in
        self._real = device
        self._gated = GatedDevice(device, self.gates)
        self._tasks = tasks
        self._connections = connections

    def _of(self, lun):
        return [task for task in list(self._tasks.values()) if lun_of(task.lun) == lun]

    def has_to_wait(self, lun_field, attribute, itself=None):
        """Must a command with this attribute wait? itself: the parked task that asks; what was
        parked after it does not count, what has started does: a HEAD OF QUEUE that came later went
        first."""
        is_older = True
        for task in self._of(lun_of(lun_field)):
            if task is itself:
                is_older = False
            elif is_older or task.transfer.__class__ is not Parked:
                if attribute == sam.ORDERED or task.attribute in _WAITED_FOR:
                    return attribute != sam.HEAD_OF_QUEUE
        return False

    def close_gate(self, lun_field):
        """A task that others wait for has not ended yet."""
        self.gates.add(lun_of(lun_field))
        self._choose()

    def _choose(self):
        self.device = self._gated if self.gates else self._real
        for connection in list(self._connections):
            connection.device = self.device

    def open_gates(self):
        """Open those that nobody needs any more."""
        for lun in list(self.gates):
            if not any(
                task.transfer.__class__ is Parked or task.attribute in _WAITED_FOR
                for task in self._of(lun)
            ):
                self.gates.discard(lun)
        self._choose()

    def startable(self):
        """Parked tasks whose wait is over, oldest first; each must be started before the next is
        asked for."""
        for task in list(self._tasks.values()):
            parked = task.transfer
            if parked.__class__ is Parked and not self.has_to_wait(task.lun, task.attribute, task):
                yield task
        self.open_gates()


class Unusual(object):
    """The part of Connection that carries out commands which are not SIMPLE, or have to wait for
    one that is not."""

    def _with_attribute(self, fields, ahs, data):
        """A command that is not SIMPLE, or that has to wait for one; its CmdSN is taken.
        [connection]"""
        task = self._new_task(fields)
        ordering = self.worker.ordering
        if task.attribute > sam.HEAD_OF_QUEUE:
            task.unit = self.worker.device.unit(task.lun)
            # ACA is never active: SAM-5
            self._refused(task, fields[1], data, CheckCondition(*_INVALID_MESSAGE))
            return
        # first: a task that ends while we look at it sees the gate and lets ours in
        ordering.close_gate(task.lun)
        if ordering.has_to_wait(task.lun, task.attribute):
            first_burst = self.session.limits.first_burst if task.expects_write else 0
            self._retain(task)
            task.transfer = Parked(fields, ahs, data, first_burst)
            task.unit = self.worker.device.unit(task.lun)
        else:
            self._start(task, fields, ahs, data)
            ordering.open_gates()

    def _new_task(self, fields):
        opcode, flags, _, _, lun, itt, edtl, cmd_sn, _, cdb = fields
        task = sam.Task()
        task.itt, task.lun, task.cdb, task.edtl, task.attribute = itt, lun, cdb, edtl, flags & 7
        task.expects_read, task.expects_write = flags & _READ, flags & _WRITE
        task.cmd_sn = None if opcode & 0x40 else cmd_sn
        task.connection = self
        return task

    def _start(self, task, fields, ahs, data):
        """What _command does, for a task that is not the usual case. [connection or any, with
        `working`]"""
        flags = fields[1]
        task.unit = self.worker.device.unit(task.lun)
        try:
            if ahs:
                task.cdb = task.cdb[:16] + pdu.decode_ahs(ahs).extended_cdb
            task.unit.admit(task)
            if flags & _WRITE or task.data_out_length:
                if not self._has_all_data(task, flags, data):
                    return
            elif data is not None:
                raise CheckCondition(*UNEXPECTED_DATA)
            result = self._try(task)
        except (CheckCondition, StatusReturned) as refusal:
            self._refused(task, flags, data, refusal)
            return
        self._later(task, result)

    def _try(self, task):
        """Run it, if need be in an executor thread: gives what run() does. [as _start]"""
        return task.run(task)

    def start_parked(self, task):
        """The wait of a parked task is over. [any, with `working`]"""
        parked = task.transfer
        del self.session.tasks[task.itt]
        task.transfer = None
        try:
            self._start(task, parked.fields, parked.ahs, parked.data)
        except PduRejected as e:
            self._reject(parked.fields, e)
        for arguments in parked.arrived:
            if self.session.tasks.get(task.itt) is task and task.transfer is not None:
                self._take_data(task, arguments)
