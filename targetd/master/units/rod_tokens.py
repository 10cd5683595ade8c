"""ROD tokens, which are the server's: made in one session, good in every other (SPC-4, SBC-3).

A token stands for byte ranges of a unit as long as nobody writes to them. Every worker that serves
the unit knows the ranges (`watched`, told and acknowledged before the token is given out), and asks
for its tokens to be revoked before it writes to them; so a unit without tokens pays nothing, and a
token is never good for other bytes than it was made for. A worker that copies by a token asks again
when it is done (`token-used`).

May import scsi.tokens, scsi.facts, scsi.sense. Tokens do not outlast the master.
"""

import fcntl
import hashlib
import itertools
import os
from collections import OrderedDict

from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import sam
from targetd.scsi.copy import copy_manager, rod_tokens
from targetd.scsi.facts import UnitFacts
from targetd.scsi.medium_state import READABLE
from targetd.scsi.sense import HARDWARE_ERROR, ILLEGAL_REQUEST, CheckCondition

MAXIMUM_TOKENS = 1024  # the one that was used the longest time ago makes room
REMEMBERED = 1024  # why so many tokens are good no more is remembered
UNKNOWN, REVOKED, EXPIRED, DELETED = 0x04, 0x06, 0x07, 0x09  # ASCQ of 05/23


class Rod(object):
    """One token. digest: of it; head: what may be shown of it; ranges: [(offset, length)] bytes of
    the unit's store; users: the workers that copy by it now, as often as they do; is_last: it is
    good no more when they are done."""

    def __init__(self, digest, head, unit, ranges, seconds):
        self.digest = digest
        self.head = head
        self.unit = unit
        self.store = unit.store
        self.ranges = ranges
        self.seconds = seconds
        self.users = []
        self.timer = None
        self.is_last = False


class Rods(object):
    """units: units.Units, which tell the workers what is watched."""

    def __init__(self, units):
        self.units = units
        self.loop = units.loop
        self._rods = OrderedDict()  # digest -> Rod, the one used last at the end
        self._gone = OrderedDict()  # digest -> ASCQ
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), 'big'))
        self.asks = {
            'token-populate': self._populate,
            'token-use': self._use,
            'token-used': self._used,
            'token-revoke': self._revoke,
            'token-list': self._list,
        }

    def ask(self, unit, worker, message, answer):
        """A worker's ask about tokens; answer(decision, words, descriptors). Raises Malformed."""
        try:
            self.asks[message['ask']](unit, worker, message, answer)
        except (KeyError, ValueError, TypeError) as e:
            raise Malformed('%r: %s' % (message.get('ask'), e))

    # -- asks --------------------------------------------------------------------------------------------------------

    def _populate(self, unit, worker, message, answer):
        ranges = [
            (_number(offset, unit.store.size), _number(length, unit.store.size))
            for offset, length in message['ranges']
        ]
        seconds = _number(message['seconds'], copy_manager.MAXIMUM_TIMEOUT)
        if not 0 < len(ranges) <= copy_manager.MAXIMUM_RANGES or any(
            offset + length > unit.store.size for offset, length in ranges
        ):
            raise ValueError('ranges %r' % (ranges,))
        token = rod_tokens.make(
            UnitFacts.from_message(unit.facts),
            next(self._numbers) & (1 << 64) - 1,
            rod_tokens.total(ranges),
            unit.target_name,
            os.urandom(rod_tokens.SECRET_LENGTH),
        )
        rod = Rod(_digest(token), token[: rod_tokens.MANAGED_LENGTH], unit, ranges, max(1, seconds))
        if len(self._rods) >= MAXIMUM_TOKENS:
            self._end([next(iter(self._rods.values()))], UNKNOWN)
        self._rods[rod.digest] = rod
        self._rearm(rod)
        self._watch(unit, lambda: answer(Refusal(sam.GOOD, data=token)))

    def _use(self, unit, worker, message, answer):
        rod, refusal = self._find(message['token'])
        if rod is None:
            answer(refusal)
            return
        if rod.unit.shared.medium not in READABLE:
            answer(_refusal(0x00))
            return
        descriptors = []
        if worker not in rod.unit.workers and rod.store.descriptor is not None:
            try:
                descriptors.append(for_reading(rod.store.descriptor))
            except OSError:
                answer(
                    Refusal(sam.CHECK_CONDITION, CheckCondition(HARDWARE_ERROR, 0x44, 0x00).sense())
                )
                return
        rod.users.append(worker)
        self._rods.move_to_end(rod.digest)
        self._rearm(rod)
        rod.is_last = rod.is_last or bool(message.get('last'))
        answer(
            Refusal(sam.GOOD),
            {'source': rod.unit.id, 'ranges': rod.ranges, 'store': rod.store.description()},
            descriptors,
        )
        for descriptor in descriptors:
            os.close(descriptor)

    def _used(self, unit, worker, message, answer):
        rod, refusal = self._find(message['token'])
        if rod is None:
            answer(refusal)
            return
        if worker in rod.users:
            rod.users.remove(worker)
        if rod.is_last and not rod.users:
            self._end([rod], DELETED)
        else:
            self._rearm(rod)
        answer(Refusal(sam.GOOD))

    def _revoke(self, unit, worker, message, answer):
        offset, length = (
            _number(message['offset'], unit.store.size),
            _number(message['length'], unit.store.size),
        )
        self._end(
            [
                rod
                for rod in self._rods.values()
                if rod.unit is unit
                and rod_tokens.touches(rod_tokens.union(rod.ranges), offset, length)
            ],
            REVOKED,
        )
        answer(Refusal(sam.GOOD))

    def _list(self, unit, worker, message, answer):
        answer(
            Refusal(sam.GOOD),
            {'tokens': [rod.head.hex() for rod in self._rods.values() if rod.unit is unit]},
        )

    def _find(self, text):
        """(Rod, None) of a token in hex digits, or (None, the Refusal)."""
        digest = _digest(bytes.fromhex(text))
        rod = self._rods.get(digest)
        if rod is not None and rod.store is not rod.unit.store:  # the unit has another medium now
            self._end([rod], REVOKED)
            rod = None
        return (rod, None) if rod is not None else (None, _refusal(self._gone.get(digest, UNKNOWN)))

    # -- ends --------------------------------------------------------------------------------------------------------

    def forget(self, unit):
        """The unit is exported no more."""
        self._end([rod for rod in self._rods.values() if rod.unit is unit], REVOKED)

    def leave(self, worker):
        """The worker is gone; it uses nothing any more."""
        for rod in self._rods.values():
            rod.users = [user for user in rod.users if user is not worker]

    def _end(self, rods, ascq):
        """These tokens are good no more."""
        for rod in rods:
            del self._rods[rod.digest]
            rod.timer.cancel()
            self._gone[rod.digest] = ascq
            if len(self._gone) > REMEMBERED:
                self._gone.popitem(False)
        for unit in {rod.unit for rod in rods}:
            self._watch(unit)

    def _rearm(self, rod):
        if rod.timer is not None:
            rod.timer.cancel()
        rod.timer = self.loop.call_later(rod.seconds, lambda: self._expire(rod))

    def _expire(self, rod):
        if rod.users:
            self._rearm(rod)
        else:
            self._end([rod], EXPIRED)

    def _watch(self, unit, done=None):
        """Tell the unit's workers which bytes tokens stand for; done() when all of them heed it."""
        unit.watched = rod_tokens.union(
            r for rod in self._rods.values() if rod.unit is unit for r in rod.ranges
        )
        self.units.tell(unit, {'watched': unit.watched}, done)


def for_reading(descriptor):
    """Another descriptor of the same medium, which cannot write. Raises OSError."""
    direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, 'O_DIRECT', 0)
    return os.open('/proc/self/fd/%d' % descriptor, os.O_RDONLY | os.O_CLOEXEC | direct)


def _digest(token):
    return hashlib.sha256(token).digest()


def _number(value, most):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError('%r is no number up to %d' % (value, most))
    return value


def _refusal(ascq):
    return Refusal(sam.CHECK_CONDITION, CheckCondition(ILLEGAL_REQUEST, 0x23, ascq).sense())
