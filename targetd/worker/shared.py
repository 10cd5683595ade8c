"""A connection beside which its session may have others (RFC 7143 4.2.2): command order and the window are the session's.

May import what Connection may. Sessions that agreed upon one connection and ErrorRecoveryLevel 0 never come here.
"""

from targetd.crc32c import crc32c
from targetd.worker.connection import Connection, ConnectionEnded
from targetd.worker.outbox import SharedOutbox


class SharedConnection(Connection):
    """One of several that a session may have. `working` is the session's, so only one of them acts at a time."""

    def __init__(self, *arguments, **more):
        self._acted_for = []             # connections whose held PDUs were acted upon here: what they have to send goes out too
        super(SharedConnection, self).__init__(*arguments, **more)

    def make_outbox(self, stat_sn):
        return SharedOutbox(self.socket, self.session, stat_sn, crc32c, self.values, self.worker.numbering)

    def _receive_and_act(self):
        super(SharedConnection, self)._receive_and_act()
        while self._acted_for:
            self._acted_for.pop().send_and_see()

    def act_on_held(self, whole, by):
        try:
            self._dispatch((whole,), False)
        except ConnectionEnded as e:
            if by is self:
                raise
            self.ended = self.ended or str(e)
        if by is not self:
            by.acts_for(self)

    def acts_for(self, other):
        """[connection]"""
        if other not in self._acted_for:
            self._acted_for.append(other)

    def send_and_see(self):
        """Send what is queued, and wake our thread if it is to end. [another connection's thread]"""
        self.drain_from_elsewhere()
        if self.ended is not None:
            self.stop(self.ended)
