"""A connection of a session that may have several (RFC 7143 4.2.2): CmdSN order and the command
window belong to the session.

May import what Connection may. Sessions with MaxConnections 1 and ErrorRecoveryLevel 0 do not use
this module.
"""

import socket

from targetd.crc32c import crc32c
from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected
from targetd.scsi import limits, sam
from targetd.scsi.sbc import run_read_blocking
from targetd.worker.connection.connection import SEND_NOW_BYTES, Connection, ConnectionEnded
from targetd.worker.connection.outbox import SharedOutbox


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


class SharedConnection(Connection):
    """One of several connections of a session.

    `working` is the session's, so only one connection acts at a time. A connection neither blocks
    nor stops receiving because its initiator does not read: commands on the other connections may
    have to wait for a PDU that is still to arrive here (RFC 7143 4.2.2.1)."""

    def __init__(self, *arguments, **more):
        # connections whose held PDUs were acted upon here: their replies are sent here too
        self._acted_for = []
        super(SharedConnection, self).__init__(*arguments, **more)

    def make_outbox(self, stat_sn):
        return self.with_callbacks(
            SharedOutbox(
                self.socket, self.session, stat_sn, crc32c, self.values, self.worker.numbering
            )
        )

    def with_callbacks(self, outbox):
        """Set the outbox's callbacks and return it."""
        outbox.on_failure = lambda error: self.stop(
            'nothing can be sent: %s' % (error.strerror or error)
        )
        outbox.start_read = lambda task: self.worker.executor.submit(
            self._read_and_send, task, task.unit
        )
        return outbox

    def _flush_what_is_due(self):
        self.worker.group_commit.begin()  # other connections may wait for what this one receives

    def _receive_and_act(self):
        super(SharedConnection, self)._receive_and_act()
        while self._acted_for:
            self._acted_for.pop().send_and_check_end()
        self.outbox.wait_while_overfull()

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes a sender thread that blocks in send()
        except OSError:
            pass
        super(SharedConnection, self).close()

    def _command(self, fields, ahs, data):
        is_large_read = fields[6] > SEND_NOW_BYTES and fields[1] & const.COMMAND_READ
        if is_large_read and not self.outbox.has_little_queued():
            if self.is_due(fields, ahs, data):
                self.starter.start_or_park(fields, ahs, data)
        else:
            super(SharedConnection, self)._command(fields, ahs, data)

    def run_task(self, task):
        is_large_read = task.run_blocking is run_read_blocking and task.edtl > SEND_NOW_BYTES
        if is_large_read and not self.outbox.has_little_queued():
            if limits.has_to_wait(task):
                return sam.DELAYED
            return sam.WOULD_BLOCK  # it may have to be postponed
        return task.run(task)

    def run_in_executor(self, task):
        if task.edtl <= SEND_NOW_BYTES or not task.expects_read:
            self._run_to_completion(task)
        elif self.outbox.reserve_read(task, PostponedRead()):
            self._read_and_send(task)

    def _read_and_send(self, task):
        """[any: an executor thread]"""
        try:
            self._run_to_completion(task)
        finally:
            self.outbox.release_read(task)

    def act_on_held(self, held_pdu, runner):
        try:
            self._dispatch((held_pdu,), False)
        except ConnectionEnded as e:
            if runner is self:
                raise
            self.ended = self.ended or str(e)
        if runner is not self:
            runner.acts_for(self)

    def acts_for(self, other):
        """A held PDU of the connection `other` was acted upon in this thread. [connection]"""
        if other not in self._acted_for:
            self._acted_for.append(other)

    def send_and_check_end(self):
        """Send what is queued, and wake the connection's thread if the connection is to end.
        [another connection's thread]"""
        self.drain_or_stop()
        if self.ended is not None:
            self.stop(self.ended)
