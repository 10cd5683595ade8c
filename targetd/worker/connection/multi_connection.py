"""A connection beside which its session may have others (RFC 7143 4.2.2): command order and the
window are the session's.

May import what Connection may. Sessions that agreed upon one connection and ErrorRecoveryLevel 0
never come here.
"""

import socket

from targetd.crc32c import crc32c
from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected
from targetd.scsi import sam
from targetd.scsi.sbc import run_read_blocking
from targetd.worker.connection.connection import SEND_NOW_BYTES, Connection, ConnectionEnded
from targetd.worker.connection.outbox import SharedOutbox


class PutOff(object):
    """In place of the Transfer of a read that waits until its initiator takes what it asked for
    before."""

    __slots__ = ('failed',)
    is_complete = False
    wanted = 0

    def __init__(self):
        self.failed = False

    def place(self, ttt, offset, data_sn, length):
        """As Transfer.place."""
        return None

    def receive(self, ttt, offset, data_sn, data, final):
        """As Transfer.receive. Raises PduRejected."""
        raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'Data-Out for a read')

    def fail(self):
        """As Transfer.fail: the task was aborted."""
        self.failed = True


class SharedConnection(Connection):
    """One of several that a session may have. `working` is the session's, so only one of them acts
    at a time. None waits in it for an initiator that does not read, and none stops receiving
    because of that: the commands of the others may have to wait for what is still to come here (RFC
    7143 4.2.2.1)."""

    def __init__(self, *arguments, **more):
        # connections whose held PDUs were acted upon here: what they have to send goes out too
        self._acted_for = []
        super(SharedConnection, self).__init__(*arguments, **more)

    def make_outbox(self, stat_sn):
        return self.wire(
            SharedOutbox(
                self.socket, self.session, stat_sn, crc32c, self.values, self.worker.numbering
            )
        )

    def wire(self, outbox):
        """The outbox, knowing whom to tell."""
        outbox.failed = lambda error: self.stop(
            'nothing can be sent: %s' % (error.strerror or error)
        )
        outbox.begin = lambda task: self.worker.executor.submit(self._read_and_send, task)
        return outbox

    def _receive_and_act(self):
        super(SharedConnection, self)._receive_and_act()
        while self._acted_for:
            self._acted_for.pop().send_and_see()
        self.outbox.wait_while_much()

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # a sender that waits in there is woken
        except OSError:
            pass
        super(SharedConnection, self).close()

    def _command(self, fields, ahs, data):
        if (
            fields[6] > SEND_NOW_BYTES
            and fields[1] & const.COMMAND_READ
            and not self.outbox.is_little()
        ):
            if self.is_due(fields, ahs, data):
                self.starter.start_or_park(fields, ahs, data)
        else:
            super(SharedConnection, self)._command(fields, ahs, data)

    def run_task(self, task):
        if (
            task.run_blocking is run_read_blocking
            and task.edtl > SEND_NOW_BYTES
            and not self.outbox.is_little()
        ):
            return sam.WOULD_BLOCK  # it may have to be put off
        return task.run(task)

    def run_in_executor(self, task):
        if task.edtl <= SEND_NOW_BYTES or not task.expects_read:
            self._run_to_completion(task)
        elif self.outbox.may_read(task, PutOff()):
            self._read_and_send(task)

    def _read_and_send(self, task):
        """In an executor thread. [any]"""
        try:
            self._run_to_completion(task)
        finally:
            self.outbox.has_read(task)

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
        """[connection]"""
        if other not in self._acted_for:
            self._acted_for.append(other)

    def send_and_see(self):
        """Send what is queued, and wake our thread if it is to end. [another connection's thread]"""
        self.drain_or_stop()
        if self.ended is not None:
            self.stop(self.ended)
