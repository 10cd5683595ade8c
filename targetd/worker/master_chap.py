"""CHAP of a login, done by the master: a worker has no secrets (ARCHITECTURE D20).

May import iscsi. Everything runs in the control thread, which waits for the master.
"""

from targetd.iscsi import chap, const
from targetd.iscsi.errors import LoginFailure

ANSWER_SECONDS = 30.0


class MasterChap(object):
    """The methods of iscsi.chap.Chap. ask(what, seconds, **words): Worker.ask_and_wait; peer: of the
    connection; target_name: None for discovery; initiator_name(): what the initiator has sent.

    Public to read: account; is_delayed: True if the master sends the answer to the failure."""

    def __init__(self, ask, peer, target_name, initiator_name):
        self.account = None
        self.is_delayed = False
        self._initiator_name = initiator_name
        self._ask = ask
        self._peer = peer
        self._target_name = target_name

    def choose_algorithm(self, offered):
        """Return the pairs of the challenge. Raises chap.ChapError, LoginFailure."""
        return self._pairs(
            'challenge',
            target_name=self._target_name,
            initiator_name=self._initiator_name(),
            offered=offered,
        )

    def verify_response(self, values):
        """Return the pairs of the last answer. Raises chap.ChapError, LoginFailure."""
        return self._pairs('authenticate', values=values)

    def _pairs(self, what, **words):
        answer = self._ask(what, ANSWER_SECONDS, peer=self._peer, **words)
        if answer is None:
            raise LoginFailure(
                const.TARGET_ERROR[0], const.TARGET_ERROR[1], 'the master did not answer in time'
            )
        if answer['status']:
            raise LoginFailure(answer['status'][0], answer['status'][1], answer['failed'])
        if answer['failed']:
            self.is_delayed = answer['is_delayed']
            kind = chap.AuthenticationFailed if answer['is_authentication'] else chap.ChapError
            raise kind(answer['failed'])
        self.account = answer['account']
        return [(key, value) for key, value in answer['pairs']]
