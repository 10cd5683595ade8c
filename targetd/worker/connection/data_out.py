"""The Data-Out of one connection's commands: immediate, unsolicited and solicited data (RFC 7143
11.7, 11.8).

Everything here runs in the connection's thread, with `working` held. May import iscsi, scsi.
"""

import struct

from targetd import log
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import LOST_DATA, UNEXPECTED_DATA, WRONG_AMOUNT, DataRefused, PduRejected
from targetd.iscsi.framing import LANDING_BYTES
from targetd.scsi import sam
from targetd.scsi.sense import ABORTED_COMMAND, CheckCondition, StatusReturned
from targetd.worker.connection.pipelining import run_elsewhere
from targetd.worker.connection.write_buffers import BUFFER_BYTES

_DATA_OUT_TAIL = struct.Struct('>4xII4x').unpack  # DataSN, buffer offset
_MASK = 0xFFFFFFFF
_WRITE = const.COMMAND_WRITE

#: Sense data of a command whose Data-Out did not arrive as negotiated (RFC 7143 11.4.7.2).
SENSE = {
    UNEXPECTED_DATA: (ABORTED_COMMAND, 0x0C, 0x0C),
    WRONG_AMOUNT: (ABORTED_COMMAND, 0x0C, 0x0D),
    LOST_DATA: (ABORTED_COMMAND, 0x47, 0x05),
}
#: Sense data of a command that received data which it does not take.
UNEXPECTED_SENSE = SENSE[UNEXPECTED_DATA]

#: Data-Out that the unfinished commands of a session may hold. A command that would exceed it ends
#: with TASK SET FULL.
DATA_OUT_BYTES = 256 << 20
#: Only writes of this size or more are counted: 256 smaller ones hold less than DATA_OUT_BYTES.
_COUNTED_BYTES = 512 << 10
#: Data-Out of this size or more is received into buffers that are used again; new memory for less is
#: not cleared by the kernel each time.
_POOLED_BYTES = LANDING_BYTES


class DataOut(object):
    """Receives the Data-Out of one connection. transfer_class: Transfer or a subclass; buffers: the
    WriteBuffers of the session; `connection` retains, refuses, runs and completes the tasks."""

    def __init__(self, connection, transfer_class, buffers):
        self._connection = connection
        self._session = connection.session
        self._transfer_class = transfer_class
        limits = connection.session.limits
        self._max_immediate = limits.max_immediate if limits else 0
        self._buffers = buffers
        self._command_buffer = None  # the one into which the data of a partial command is received

    def has_all(self, task, flags, data):
        """Return True if all Data-Out of the command has arrived with it (task.data_out is set);
        else retain the task and solicit the data. Raises PduRejected, CheckCondition,
        StatusReturned. Hot."""
        wanted = min(task.edtl, task.data_out_length) if flags & _WRITE else 0
        if data is None or len(data) <= self._max_immediate:
            if data is None and not wanted and flags & 0x80:
                task.data_out = b''
                return True
            if data is not None and flags & 0x80 and wanted <= len(data) <= task.edtl:
                task.data_out = data if len(data) == wanted else data[:wanted]
                return True
        if wanted >= _COUNTED_BYTES:
            self._check_budget(wanted)
        buffer, self._command_buffer = self._command_buffer, None
        is_placed = (
            buffer is not None
            and len(buffer) >= wanted >= len(data or b'')
            and data.__class__ is memoryview
            and data.obj is buffer.obj
        )
        if not is_placed:
            buffer = self._buffers.take(wanted) if wanted >= _POOLED_BYTES else None
        transfer = task.transfer = self._transfer_class(
            task.itt, wanted, task.edtl, self._session.limits, buffer
        )
        try:
            transfer.receive_immediate(data, flags & 0x80, is_placed)
        except DataRefused as e:
            log.info('%s: a write is refused: %s', self._session.initiator_name, e.why)
            raise CheckCondition(*SENSE[e.fault])
        if transfer.is_complete:
            task.data_out = transfer.buffer
            task.transfer = None
            return True
        self._connection.retain(task)
        self.solicit(transfer, task)
        return False

    def _check_budget(self, wanted):
        """Raise TASK SET FULL if the unfinished commands hold so much data that `wanted` bytes more
        would exceed DATA_OUT_BYTES."""
        for task in list(self._session.tasks.values()):
            wanted += (
                task.transfer.wanted if task.transfer is not None else len(task.data_out or ())
            )
        if wanted > DATA_OUT_BYTES:
            raise StatusReturned(sam.TASK_SET_FULL)

    def place(self, fields):
        """Return the buffer for the data of a PDU of which only the header has arrived, or None if
        the framer is to keep the data."""
        if fields[0] & 0x3F != const.DATA_OUT:
            return self._place_immediate(fields)
        task = self._session.tasks.get(fields[5])
        if task is None or task.transfer is None or task.transfer.failed:
            return None
        if task.connection is not self._connection:
            return None
        data_sn, offset = _DATA_OUT_TAIL(fields[9])
        try:
            return task.transfer.place_data_out(fields[6], offset, data_sn, fields[3] & 0xFFFFFF)
        except DataRefused:
            return None  # receive() rejects it when it is complete

    def _place_immediate(self, fields):
        """Return a buffer for the immediate data of a partial command. It has room for all Data-Out of
        the command if that is not more than what is used again."""
        if fields[0] & 0x3F != const.SCSI_COMMAND:
            return None
        length = fields[3] & 0xFFFFFF
        self.forget_command_buffer()  # it is free now
        self._command_buffer = self._buffers.take(
            max(length, fields[6]) if fields[6] <= BUFFER_BYTES else length
        )
        return self._command_buffer

    def forget_command_buffer(self):
        """Release the buffer of the last partial command, unless a task uses it."""
        self._command_buffer = None

    def receive(self, fields, ahs, data):
        """A SCSI Data-Out PDU. LUN and ExpStatSN are not checked: old initiators set them to 0.
        Raises PduRejected."""
        itt = fields[5]
        final = fields[1] & 0x80
        task = self._session.tasks.get(itt)
        if task is None or task.transfer is None or task.connection is not self._connection:
            if self._session.discarding.get(itt):
                if final and fields[6] == _MASK:
                    self._session.discarding.pop(itt, None)
                return
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'Data-Out for a task that expects none')
        data_sn, offset = _DATA_OUT_TAIL(fields[9])
        self.take(task, (fields[6], offset, data_sn, data, final))

    def take(self, task, arguments):
        """Data-Out for a task that waits for it. arguments: those of Transfer.receive_data_out."""
        transfer = task.transfer
        try:
            transfer.receive_data_out(*arguments)
        except DataRefused as e:
            log.info('%s: a write is aborted: %s', self._session.initiator_name, e.why)
            self.fail(task, e.fault)
            return
        if transfer.is_complete:
            self.run_complete(task)
        elif arguments[4]:
            self.solicit(transfer, task)

    def run_complete(self, task):
        """Run a retained task whose Data-Out has arrived completely."""
        connection = self._connection
        task.data_out = task.transfer.buffer
        task.transfer = None
        if task.aborted:
            connection.complete(task, None)
            return
        try:
            result = task.run(task)
        except (CheckCondition, StatusReturned) as refusal:
            result = refusal
        if result is sam.WOULD_BLOCK:
            run_elsewhere(connection, task)
        elif result.__class__ is sam.Change:
            connection.worker.ask_change(task, result, connection.complete)
        else:
            connection.complete(task, result)

    def fail(self, task, fault):
        """End a command whose Data-Out did not arrive as negotiated; Data-Out that still arrives
        for it is dropped (RFC 7143 7.9, ErrorRecoveryLevel 0). fault: a key of SENSE."""
        self._session.discard_data_out(task.itt)
        task.transfer = None
        self._connection.complete(task, CheckCondition(*SENSE[fault]))

    def solicit(self, transfer, task, again=()):
        """Queue the R2Ts that the transfer may send now, or these again: (TTT, R2TSN, offset, length)."""
        for ttt, r2t_sn, offset, length in again or transfer.next_r2ts(self._session.allot_ttt):
            self._connection.outbox.put_pdu(
                pdu.ReadyToTransfer(
                    lun=task.lun,
                    itt=task.itt,
                    ttt=ttt,
                    r2t_sn=r2t_sn,
                    buffer_offset=offset,
                    desired_length=length,
                )
            )
