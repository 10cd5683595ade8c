"""A connection whose large reads wait, without a thread, until the initiator has received earlier data.

May import what Connection may.
"""

import socket

from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected
from targetd.scsi import limits, sam
from targetd.scsi.sbc import run_read_blocking
from targetd.worker.connection.connection import SEND_NOW_BYTES, Connection


class PostponedRead(object):
    """The transfer of a read that waits until the initiator has received earlier data. Implements
    Transfer's interface."""

    __slots__ = ('failed',)
    is_complete = False
    wanted = 0

    def __init__(self):
        self.failed = False

    def place_data_out(self, ttt, offset, data_sn, length):
        """As Transfer.place_data_out."""
        return None

    def receive_data_out(self, ttt, offset, data_sn, data, final):
        """As Transfer.receive_data_out. Raises PduRejected."""
        raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'Data-Out for a read')

    def fail(self):
        """As Transfer.fail: the task was aborted."""
        self.failed = True


class PostponingConnection(Connection):
    """Its outbox has the interface of PostponedReads. postponed_bytes: reads of more may be postponed."""

    postponed_bytes = SEND_NOW_BYTES

    def with_callbacks(self, outbox):
        """Set the outbox's callbacks and return it."""
        outbox.on_failure = lambda error: self.stop(
            'nothing can be sent: %s' % (error.strerror or error)
        )
        outbox.start_read = lambda task: self.worker.executor.submit(
            self._read_and_send, task, task.unit
        )
        return outbox

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes a sender thread that blocks in send()
        except OSError:
            pass
        Connection.close(self)

    def _command(self, fields, ahs, data):
        is_large_read = fields[6] > self.postponed_bytes and fields[1] & const.COMMAND_READ
        if is_large_read and not self.outbox.has_little_queued():
            if self.is_due(fields, ahs, data):
                self.starter.start_or_park(fields, ahs, data)
        else:
            Connection._command(self, fields, ahs, data)

    def run_task(self, task):
        is_large_read = task.run_blocking is run_read_blocking and task.edtl > self.postponed_bytes
        if is_large_read and not self.outbox.has_little_queued():
            if limits.has_to_wait(task):
                return sam.DELAYED
            return sam.WOULD_BLOCK  # it may have to be postponed
        return task.run(task)

    def run_in_executor(self, task):
        if task.edtl <= self.postponed_bytes or not task.expects_read:
            self._run_to_completion(task)
        elif self.outbox.reserve_read(task, PostponedRead()):
            self._read_and_send(task)

    def _read_and_send(self, task):
        """[any: an executor thread]"""
        try:
            self._run_to_completion(task)
        finally:
            self.outbox.release_read(task)
