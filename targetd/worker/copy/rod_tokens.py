"""The ROD tokens of a unit of this session: each call asks the master and waits for its answer.
Executor threads only.

The master's answer to the use of a token has a read-only descriptor of the source, unless the
session has that unit. May import scsi.sense, store.
"""

from targetd import store
from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.copy import ask_master


class UnitRodTokens(object):
    """The ROD tokens of one unit. worker: sends the questions; replica: finds the units of this
    session."""

    def __init__(self, worker, unit_id, replica):
        self._worker = worker
        self._unit_id = unit_id
        self._replica = replica

    def _ask(self, kind, **words):
        """Return the master's answer, with descriptors. Raises CheckCondition, StatusReturned."""
        return ask_master.wait_for_answer(self._worker, kind, unit=self._unit_id, **words)

    def populate(self, ranges, seconds):
        """Return a token of 512 bytes for these byte ranges [(offset, length), …] of the unit. It
        is valid until the data changes or it was not used for `seconds`."""
        return bytes.fromhex(
            self._ask('token-populate', ranges=[list(r) for r in ranges], seconds=seconds)['data']
        )

    def use(self, token, is_last):
        """Return the Rod that the token represents; is_last: the token becomes invalid afterwards."""
        answer = self._ask('token-use', token=token.hex(), last=is_last)
        unit = self._replica.unit(answer['source'])
        if unit is not None:
            ask_master.close_all(answer)
            return Rod(self, token, unit.store, answer['ranges'], None)
        descriptors = answer['descriptors']
        opened = store.from_descriptor(
            dict(answer['store'], read_only=True), descriptors[0] if descriptors else None
        )
        return Rod(self, token, opened, answer['ranges'], opened)

    def revoke(self, offset, length):
        """Revoke the tokens that represent any of these bytes of the unit; returns when they are
        invalid."""
        self._ask('token-revoke', offset=offset, length=length)

    def tokens(self):
        """Return the tokens that represent data of the unit, without their secrets."""
        return [bytes.fromhex(head) for head in self._ask('token-list')['tokens']]

    def used(self, token):
        """The use of a token has ended. Raises CheckCondition if it was revoked meanwhile."""
        self._ask('token-used', token=token.hex())


class Rod(object):
    """The data that a token represents, while it is used: store, and byte ranges in it. A context
    manager; its user calls check() at the end."""

    def __init__(self, tokens, token, medium, ranges, opened):
        self._tokens = tokens
        self._token = token
        self._opened = opened
        self._is_checked = False
        self.store = medium
        self.ranges = [tuple(r) for r in ranges]

    def check(self):
        """Raise CheckCondition if the token became invalid during its use."""
        self._is_checked = True
        self._tokens.used(self._token)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self._opened is not None:
            ask_master.close_store(self._opened)
        if not self._is_checked:
            try:
                self.check()
            except (CheckCondition, StatusReturned):
                pass  # the command has failed for another reason
