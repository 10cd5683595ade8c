"""ROD tokens (SPC-4; SBC-3 POPULATE TOKEN, WRITE USING TOKEN; ARCHITECTURE D14): made in one session,
valid in every session of the server.

A token represents byte ranges of a unit and is valid until one of these bytes is written. Every
worker that serves the unit knows the ranges (`watched`): they are sent, and acknowledged, before
the token is returned. A worker asks the master to revoke the tokens before it writes to their
ranges. So a unit without tokens has no extra work, and a token never represents changed bytes. A
worker that copies by a token asks once more when the copy is done (`token-used`), and the copy
fails if the token was revoked meanwhile.

Tokens are lost when the master stops.
"""

import errno
import hashlib
import itertools
import os
from collections import OrderedDict

from targetd.master.processes.worker_messages import VALUE_ERRORS
from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import sam
from targetd.scsi.copy import copy_manager, rod_tokens
from targetd.scsi.facts import UnitFacts
from targetd.scsi.medium_state import READABLE
from targetd.scsi.sense import HARDWARE_ERROR, ILLEGAL_REQUEST, CheckCondition
from targetd.store import linux, nbd_line

MAXIMUM_TOKENS = 1024  # when there are more, the least recently used one is dropped
MAXIMUM_ENDED = 1024  # ended tokens of which the reason is kept
#: ASCQ of 05/23, INVALID TOKEN OPERATION
CAUSE_NOT_REPORTABLE, UNKNOWN, REVOKED, EXPIRED, DELETED = 0x00, 0x04, 0x06, 0x07, 0x09


class RodToken(object):
    """One token. digest: SHA-256 of it; head: the part without the secret; ranges: [(offset, length)]
    bytes of the unit's store; users: [worker], once for each copy that uses it now; is_last: it is
    deleted when these copies are done."""

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


class RodTokens(object):
    """All tokens of the server. replication: Replication, which sends workers the token ranges."""

    #: before_write(unit, offset, length, go_on): calls go_on() when a worker may write there (trimming).
    before_write = staticmethod(lambda unit, offset, length, go_on: go_on())

    def __init__(self, replication):
        self.replication = replication
        self.loop = replication.loop
        self._tokens = OrderedDict()  # digest -> RodToken, the most recently used at the end
        self._ended = OrderedDict()  # digest -> ASCQ that says why
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), 'big'))
        self.requests = {
            'token-populate': self._populate,
            'token-use': self._use,
            'token-used': self._used,
            'token-revoke': self._revoke,
            'token-list': self._list,
        }

    def on_request(self, unit, worker, message, answer):
        """A worker's `ask token-…`; answer(decision, words, descriptors). Raises Malformed."""
        try:
            self.requests[message['ask']](unit, worker, message, answer)
        except VALUE_ERRORS as e:
            raise Malformed('%r: %s' % (message.get('ask'), e))

    # -- requests ----------------------------------------------------------------------------------

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
        data = rod_tokens.make_token(
            UnitFacts.from_message(unit.facts),
            next(self._numbers) & (1 << 64) - 1,
            rod_tokens.total_length(ranges),
            unit.target_name,
            os.urandom(rod_tokens.SECRET_LENGTH),
        )
        head = data[: rod_tokens.MANAGED_LENGTH]
        token = RodToken(_digest(data), head, unit, ranges, max(1, seconds))
        if len(self._tokens) >= MAXIMUM_TOKENS:
            self._end_tokens([next(iter(self._tokens.values()))], UNKNOWN)
        self._tokens[token.digest] = token
        self._restart_timer(token)
        self.send_ranges(unit, lambda: answer(Refusal(sam.GOOD, data=data)))

    def _use(self, unit, worker, message, answer):
        token, refusal = self._find(message['token'])
        if token is None:
            answer(refusal)
            return
        if token.unit.shared.medium not in READABLE:
            answer(_refusal(CAUSE_NOT_REPORTABLE))
            return
        descriptors = []
        if worker not in token.unit.workers and token.store.descriptor is not None:
            try:
                descriptors.append(_reopened(token.store))
            except OSError:
                error = CheckCondition(HARDWARE_ERROR, 0x44, 0x00)
                answer(Refusal(sam.CHECK_CONDITION, error.sense()))
                return
        token.users.append(worker)
        self._tokens.move_to_end(token.digest)
        self._restart_timer(token)
        token.is_last = token.is_last or bool(message.get('last'))
        answer(
            Refusal(sam.GOOD),
            {'source': token.unit.id, 'ranges': token.ranges, 'store': token.store.description()},
            descriptors,
        )
        for descriptor in descriptors:
            os.close(descriptor)

    def _used(self, unit, worker, message, answer):
        token, refusal = self._find(message['token'])
        if token is None:
            answer(refusal)
            return
        if worker in token.users:
            token.users.remove(worker)
        if token.is_last and not token.users:
            self._end_tokens([token], DELETED)
        else:
            self._restart_timer(token)
        answer(Refusal(sam.GOOD))

    def _revoke(self, unit, worker, message, answer):
        offset = _number(message['offset'], unit.store.size)
        length = _number(message['length'], unit.store.size)
        touched = [
            token
            for token in self._tokens_of(unit)
            if rod_tokens.overlaps(rod_tokens.merge_ranges(token.ranges), offset, length)
        ]
        self._end_tokens(touched, REVOKED)
        self.before_write(unit, offset, length, lambda: answer(Refusal(sam.GOOD)))

    def _list(self, unit, worker, message, answer):
        answer(Refusal(sam.GOOD), {'tokens': [token.head.hex() for token in self._tokens_of(unit)]})

    def _tokens_of(self, unit):
        return [token for token in self._tokens.values() if token.unit is unit]

    def _find(self, text):
        """(RodToken, None) for a token in hex digits, or (None, the Refusal)."""
        digest = _digest(bytes.fromhex(text))
        token = self._tokens.get(digest)
        if token is not None and token.store is not token.unit.store:  # the medium was replaced
            self._end_tokens([token], REVOKED)
            token = None
        if token is None:
            return None, _refusal(self._ended.get(digest, UNKNOWN))
        return token, None

    # -- upgrade -----------------------------------------------------------------------------------

    def handed_over(self):
        """The tokens as plain values, for the program that takes over (ARCHITECTURE D24)."""
        tokens = [
            {
                'digest': token.digest,
                'head': token.head,
                'unit': token.unit.id,
                'ranges': token.ranges,
                'seconds': token.seconds,
                'users': [worker.pid for worker in token.users],
                'is_last': token.is_last,
            }
            for token in self._tokens.values()
            if token.store is token.unit.store
        ]
        return {'tokens': tokens, 'ended': list(self._ended.items())}

    def take_over(self, words, worker_of):
        """Continue with the tokens of another program. worker_of: {pid: WorkerProcess}. Each token lasts as
        long as if it had been used now."""
        for row in words['tokens']:
            unit = self.replication.by_id[row['unit']]
            token = RodToken(row['digest'], row['head'], unit, row['ranges'], row['seconds'])
            token.users = [worker_of[pid] for pid in row['users'] if pid in worker_of]
            token.is_last = row['is_last']
            self._tokens[token.digest] = token
            self._restart_timer(token)
        self._ended.update(words['ended'])

    # -- ends --------------------------------------------------------------------------------------

    def revoke_tokens_of(self, unit):
        """The unit is not exported any more: revoke its tokens."""
        self._end_tokens(self._tokens_of(unit), REVOKED)

    def worker_gone(self, worker):
        """The worker serves no session any more, so none of its copies uses a token."""
        for token in self._tokens.values():
            token.users = [user for user in token.users if user is not worker]

    def _end_tokens(self, tokens, ascq):
        for token in tokens:
            del self._tokens[token.digest]
            token.timer.cancel()
            self._ended[token.digest] = ascq
            if len(self._ended) > MAXIMUM_ENDED:
                self._ended.popitem(False)
        for unit in {token.unit for token in tokens}:
            self.send_ranges(unit)

    def _restart_timer(self, token):
        if token.timer is not None:
            token.timer.cancel()
        token.timer = self.loop.call_later(token.seconds, lambda: self._expire(token))

    def _expire(self, token):
        if token.users:
            self._restart_timer(token)
        else:
            self._end_tokens([token], EXPIRED)

    def send_ranges(self, unit, done=None):
        """Send the workers of the unit the bytes that its tokens represent, and those where blocks are
        being freed (trimming); done() when all of them have acknowledged."""
        ranges = [r for t in self._tokens_of(unit) for r in t.ranges]
        ranges += [unit.trim_window] if unit.trim_window else []
        unit.watched = rod_tokens.merge_ranges(ranges)
        self.replication.send_change(unit, {'watched': unit.watched}, done)


def _reopened(store):
    """A descriptor with which a worker that does not serve the unit reads its medium. Raises OSError."""
    if store.kind != 'nbd':
        return linux.reopen(store.descriptor, True)
    if not store.multi:  # another connection need not see what was written
        raise OSError(errno.EBUSY, 'the NBD server does not offer CAN_MULTI_CONN', store.path)
    return nbd_line.open_line(store.descriptor, store.flag, False)


def _digest(data):
    return hashlib.sha256(data).digest()


def _number(value, most):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError('%r is not a number from 0 to %d' % (value, most))
    return value


def _refusal(ascq):
    return Refusal(sam.CHECK_CONDITION, CheckCondition(ILLEGAL_REQUEST, 0x23, ascq).sense())
