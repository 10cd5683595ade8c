"""A connection of a session that may have several (RFC 7143 4.2.2): CmdSN order and the command
window belong to the session.

May import what Connection may. Sessions with MaxConnections 1 and ErrorRecoveryLevel 0 do not use
this module.
"""

from targetd.crc32c import crc32c
from targetd.worker.connection.connection import ConnectionEnded
from targetd.worker.connection.paced import PACED_POSTPONED_BYTES, SEND_STEP, PacedOutbox
from targetd.worker.connection.postponing import PostponingConnection
from targetd.worker.connection.shared_outbox import PostponedReads, SharedOutbox


class PacedSharedOutbox(PacedOutbox):
    """What the SharedOutbox of a SharedConnection is while its line is slow: it does not delay other
    connections either."""

    __slots__ = ()
    is_paced = True
    fast_class = SharedOutbox
    # all large reads of the connection are postponed ones, whether the line is slow or not
    _begin_read = PostponedReads._begin_read
    release_read = PostponedReads.release_read
    _fits_budget = PostponedReads._fits_budget

    def drain(self):
        """Let the sender thread send what is queued. [any]"""
        PacedOutbox._wake_sender(self)
        self.start_postponed()


class SharedConnection(PostponingConnection):
    """One of several connections of a session.

    `working` is the session's, so only one connection acts at a time. A connection neither blocks
    nor stops receiving because its initiator does not read: commands on the other connections may
    have to wait for a PDU that is still to arrive here (RFC 7143 4.2.2.1)."""

    def __init__(self, *arguments, **more):
        # connections whose held PDUs were acted upon here: their replies are sent here too
        self._acted_for = []
        super(SharedConnection, self).__init__(*arguments, **more)

    send_seconds = SEND_STEP

    def make_outbox(self, stat_sn):
        outbox = SharedOutbox(
            self.socket, self.session, stat_sn, crc32c, self.values, self.worker.numbering
        )
        outbox.on_slow = self._become_paced
        return self.with_callbacks(outbox)

    def _become_paced(self, buffers, sent, rate):
        """[the sender thread, with the outbox's lock held]"""
        self.outbox.__class__ = PacedSharedOutbox
        self.outbox.begin(buffers, sent, rate, self.become_fast)
        self.postponed_bytes = PACED_POSTPONED_BYTES

    def become_fast(self):
        """[the sender thread, with the outbox's lock held]"""
        self.postponed_bytes = PostponingConnection.postponed_bytes

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
