"""A connection of a session that may have several (RFC 7143 4.2.2): CmdSN order and the command
window belong to the session.

May import what Connection may. Sessions with MaxConnections 1 and ErrorRecoveryLevel 0 do not use
this module.
"""

from targetd.crc32c import crc32c
from targetd.worker.connection.connection import ConnectionEnded
from targetd.worker.connection.postponing import PostponingConnection
from targetd.worker.connection.shared_outbox import SharedOutbox


class SharedConnection(PostponingConnection):
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

    def _flush_what_is_due(self):
        self.worker.group_commit.begin()  # other connections may wait for what this one receives

    def _receive_and_act(self):
        super(SharedConnection, self)._receive_and_act()
        while self._acted_for:
            self._acted_for.pop().send_and_check_end()
        self.outbox.wait_while_overfull()

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
