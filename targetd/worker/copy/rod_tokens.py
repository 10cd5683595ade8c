"""ROD tokens as a unit of this session sees them: each call asks the master, and waits. Executor
threads only.

The master's answer to the use of a token brings a descriptor of the source, for reading only,
unless this session has that unit itself. May import scsi.sense, store.
"""

from targetd import store
from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.copy import ask_master


class UnitRods(object):
    """Of one unit. worker: asks; unit_id: the unit's; replica: finds the units that this session
    has."""

    def __init__(self, worker, unit_id, replica):
        self._worker = worker
        self._unit_id = unit_id
        self._replica = replica

    def _ask(self, kind, **words):
        """The master's answer, with descriptors. Raises CheckCondition, StatusReturned."""
        return ask_master.ask(self._worker, kind, unit=self._unit_id, **words)

    def populate(self, ranges, seconds):
        """A token, 512 bytes, for these byte ranges of the unit; good until they change, or for so
        long without use."""
        return bytes.fromhex(
            self._ask('token-populate', ranges=[list(r) for r in ranges], seconds=seconds)['data']
        )

    def use(self, token, is_last):
        """The Rod that the token stands for; is_last: it is good no more afterwards."""
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
        """Revoke the tokens that stand for any of these bytes of the unit; returns when they are
        good no more."""
        self._ask('token-revoke', offset=offset, length=length)

    def tokens(self):
        """The tokens that stand for data of the unit, without their secrets."""
        return [bytes.fromhex(head) for head in self._ask('token-list')['tokens']]

    def used(self, token):
        """The use of a token is over. Raises CheckCondition if it was revoked meanwhile."""
        self._ask('token-used', token=token.hex())


class Rod(object):
    """What a token stands for, while it is used: store and byte ranges in it. A context manager;
    check() at the end of it."""

    def __init__(self, rods, token, medium, ranges, opened):
        self._rods = rods
        self._token = token
        self._opened = opened
        self._is_checked = False
        self.store = medium
        self.ranges = [tuple(r) for r in ranges]

    def check(self):
        """Raise CheckCondition unless the token was good all the time."""
        self._is_checked = True
        self._rods.used(self._token)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self._opened is not None:
            ask_master.close_store(self._opened)
        if not self._is_checked:
            try:
                self.check()
            except (CheckCondition, StatusReturned):
                pass  # the command has failed anyway
