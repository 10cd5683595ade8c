"""Filters: stores that wrap another store and change its behaviour, for tests and for checking how
an initiator reacts to errors.

Imports base. A filter forwards each verb that it does not change as the bound method of the lower
store, so forwarding adds no cost. The setting `filter`, which builds a stack of filters, is
described in filter_settings. Each worker process has separate counters.
"""

import errno
import itertools
import os
import random
import time
from collections import namedtuple
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from .. import log
from .base import BytesLike, Store, failure

VERBS = ('read', 'write', 'flush', 'unmap', 'write_zeroes', 'extents')

_PASSED_VERBS = VERBS + (
    'try_read',
    'copy',
    'rekey',
    'resize_check',
    'allocated',
    'available',
    'leave',
    'lock_file',
    'close',
)
#: (first byte, end); end None: to the end of the medium.
ByteRange = Sequence[Optional[int]]

_FACTS = (
    'kind',
    'path',
    'size',
    'block_size',
    'read_only',
    'direct',
    'thin',
    'capabilities',
    'inline_write_limit',
    'durable_is_free',
    'lost',
    'descriptor',
)


def _fact(name):
    def get(self):
        return getattr(self.store, name)

    def put(self, value):
        setattr(self.store, name, value)

    return property(get, put)


def _overlaps(start, end, offset, length):
    return (end is None or offset < end) and offset + length > start


class Filter(Store):
    """A store that forwards all attributes and verbs to `store`. A subclass overrides the verbs
    that it changes."""

    def __init__(self, store: 'Store') -> None:
        self.store = store
        for verb in _PASSED_VERBS:
            is_overridden = getattr(type(self), verb) is not getattr(Store, verb)
            if not is_overridden and (verb != 'copy' or not self._touches_data()):
                setattr(self, verb, getattr(store, verb))

    def _touches_data(self):
        """Returns True if copy() must use the read() and write() of this filter."""
        return any(
            getattr(type(self), verb) is not getattr(Store, verb) for verb in ('read', 'write')
        )

    def __repr__(self):
        return '<%s %r>' % (type(self).__name__, self.store)


for _name in _FACTS:
    setattr(Filter, _name, _fact(_name))


class ReadOnly(Filter):
    """Rejects every verb that changes the medium with OSError(EROFS)."""

    read_only = True

    @property
    def pipelines(self) -> bool:  # type: ignore[override]
        """Reads are begun as those of the store; the unit admits no write."""
        return self.store.pipelines

    def begin_read(self, *arguments: Any) -> Any:
        """As nbd_pipeline.PipelinedStore.begin_read."""
        return self.store.begin_read(*arguments)  # type: ignore[attr-defined]

    def begin_write(self, *arguments: Any) -> None:
        """Always None: write() refuses it."""
        return None

    def reading(self) -> Store:
        return self.store.reading()

    def prefetch(self, offset: int, length: int) -> None:
        self.store.prefetch(offset, length)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        raise failure(errno.EROFS, self.path)

    def unmap(self, offset: int, length: int) -> None:
        raise failure(errno.EROFS, self.path)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        raise failure(errno.EROFS, self.path)

    def copy(self, source: 'Store', source_offset: int, offset: int, length: int) -> None:
        raise failure(errno.EROFS, self.path)

    def flush(self, offset: int, length: int) -> None:
        """Does nothing: no data was written through this store."""


class _Ruled(Filter):
    """Base class of filters that act before each verb whose range overlaps theirs."""

    def __init__(self, store, offset=None):
        super(_Ruled, self).__init__(store)
        self._start, self._end = offset or (0, None)

    def _touches(self, offset, length):
        return _overlaps(self._start, self._end, offset, length)

    def _before(self, verb, offset, length):
        raise NotImplementedError

    def read(self, offset: int, length: int) -> BytesLike:
        self._before('read', offset, length)
        return self.store.read(offset, length)

    def write(self, offset, data, durable):
        self._before('write', offset, len(data))
        self.store.write(offset, data, durable)
        if durable:
            self._before('flush', offset, len(data))

    def flush(self, offset, length):
        self._before('flush', offset, length)
        self.store.flush(offset, length)

    def unmap(self, offset, length):
        self._before('unmap', offset, length)
        self.store.unmap(offset, length)

    def write_zeroes(self, offset, length, may_unmap):
        self._before('write_zeroes', offset, length)
        self.store.write_zeroes(offset, length, may_unmap)

    def extents(
        self, offset: int, length: int, maximum: Optional[int] = None
    ) -> List[Tuple[int, int, bool]]:
        self._before('extents', offset, length)
        return self.store.extents(offset, length, maximum)


def _errno_number(name):
    return getattr(errno, name)


class Error(_Ruled):
    """Fails the verbs that its rule selects.

    verbs: items of VERBS; offset: (first byte, end) or None for the whole medium; errno: a name
    such as 'EIO'; after: number of matches that succeed first; every: of the later matches, each
    n-th fails; count: maximum number of failures, 0 means unlimited; probability: 0..1 and seed: of
    the random generator.
    """

    def __init__(
        self,
        store: 'Store',
        verbs: Iterable[str] = VERBS,
        offset: Optional[ByteRange] = None,
        errno: str = 'EIO',
        every: int = 1,
        after: int = 0,
        count: int = 0,
        probability: float = 1.0,
        seed: Optional[int] = None,
    ) -> None:
        super(Error, self).__init__(store, offset)
        self._verbs = frozenset(verbs)
        self._number = _errno_number(errno)
        self._every, self._after, self._count, self._probability = every, after, count, probability
        self._matches, self._failures = itertools.count(1), itertools.count()
        self._random = random.Random(seed)

    def try_read(self, offset: int, length: int) -> 'Optional[BytesLike]':
        """Returns None where the rule may apply, so that only read() counts the match."""
        if 'read' in self._verbs and self._touches(offset, length):
            return None
        return self.store.try_read(offset, length)

    def _before(self, verb, offset, length):
        if verb == 'flush' and self.lost:
            raise failure(self.lost, self.path)
        if verb not in self._verbs or not (verb == 'flush' or self._touches(offset, length)):
            return
        past = next(self._matches) - self._after
        if past <= 0 or past % self._every or self._random.random() >= self._probability:
            return
        if self._count and next(self._failures) >= self._count:
            return
        if verb == 'flush':
            self.lost = self._number
        raise failure(self._number, self.path)


class Delay(_Ruled):
    """Waits before each selected verb.

    verbs: {verb: seconds}; offset: (first byte, end) or None for the whole medium; cached: True if
    reads that the page cache can answer are not delayed.
    """

    def __init__(
        self,
        store: 'Store',
        verbs: Dict[str, float],
        offset: Optional[ByteRange] = None,
        cached: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super(Delay, self).__init__(store, offset)
        self._seconds, self._cached, self._sleep = dict(verbs), cached, sleep

    @property
    def inline_write_limit(self) -> int:  # type: ignore[override]
        return 0 if self._seconds.get('write') else self.store.inline_write_limit

    @property
    def durable_is_free(self) -> bool:  # type: ignore[override]
        return self.store.durable_is_free and not self._seconds.get('flush')

    def try_read(self, offset: int, length: int) -> 'Optional[BytesLike]':
        if not self._cached and self._seconds.get('read') and self._touches(offset, length):
            return None
        return self.store.try_read(offset, length)

    def _before(self, verb, offset, length):
        seconds = self._seconds.get(verb)
        if seconds and (verb == 'flush' or self._touches(offset, length)):
            self._sleep(seconds)


class Tear(Filter):
    """Writes in pieces, so that a concurrent read or a crash can occur between two pieces.

    piece: bytes; pause: seconds before each piece except the first; offset: (first byte, end) or
    None for the whole medium.
    """

    inline_write_limit = 0

    def __init__(
        self,
        store: 'Store',
        piece: int = 4096,
        pause: float = 0.01,
        offset: Optional[ByteRange] = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super(Tear, self).__init__(store)
        self._piece, self._pause, self._sleep = piece, pause, sleep
        self._start, self._end = offset or (0, None)

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        if not _overlaps(self._start, self._end, offset, len(data)):
            self.store.write(offset, data, durable)
            return
        data = memoryview(data)
        for start in range(0, len(data), self._piece):
            if start:
                self._sleep(self._pause)
            self.store.write(offset + start, data[start : start + self._piece], durable)


class Record(namedtuple('Record', 'verb offset length durable errno seconds')):
    """One traced call of a verb. durable: bool, for writes; errno: its name, or '' for success;
    seconds: duration."""

    __slots__ = ()

    def __str__(self):
        return '%s offset=%d length=%d%s %s %.6f' % (
            self.verb,
            self.offset,
            self.length,
            ' durable' if self.durable else '',
            self.errno or 'ok',
            self.seconds,
        )


class Trace(Filter):
    """Passes a Record of every verb to `sink` (a callable), or writes it as a line to the file
    `to`, or to the log.

    The worker opens the file when it writes the first line, so the user of the worker processes
    needs write permission.
    """

    def __init__(
        self,
        store: 'Store',
        to: Optional[str] = None,
        sink: Optional[Callable[[Record], object]] = None,
    ) -> None:
        super(Trace, self).__init__(store)
        self._to, self._file = to, None
        self._sink = sink or (self._to_file if to else self._to_log)

    def read(self, offset: int, length: int) -> BytesLike:
        return self._traced('read', offset, length, False, self.store.read, offset, length)

    def try_read(self, offset: int, length: int) -> 'Optional[BytesLike]':
        began = time.monotonic()
        data = self.store.try_read(offset, length)
        if data is not None:
            self._sink(Record('read', offset, length, False, '', time.monotonic() - began))
        return data

    def write(self, offset: int, data: BytesLike, durable: bool) -> None:
        self._traced('write', offset, len(data), durable, self.store.write, offset, data, durable)

    def flush(self, offset: int, length: int) -> None:
        self._traced('flush', offset, length, False, self.store.flush, offset, length)

    def unmap(self, offset: int, length: int) -> None:
        self._traced('unmap', offset, length, False, self.store.unmap, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._traced(
            'write_zeroes',
            offset,
            length,
            False,
            self.store.write_zeroes,
            offset,
            length,
            may_unmap,
        )

    def extents(
        self, offset: int, length: int, maximum: Optional[int] = None
    ) -> List[Tuple[int, int, bool]]:
        return self._traced(
            'extents', offset, length, False, self.store.extents, offset, length, maximum
        )

    def close(self) -> None:
        opened, self._file = self._file, None
        if opened is not None:
            os.close(opened)
        self.store.close()

    def _traced(self, verb, offset, length, durable, function, *arguments):
        began, number = time.monotonic(), None
        try:
            return function(*arguments)
        except OSError as e:
            number = e.errno
            raise
        finally:
            name = '' if number is None else errno.errorcode.get(number, str(number))
            self._sink(Record(verb, offset, length, durable, name, time.monotonic() - began))

    def _to_log(self, record):
        log.info('%s: %s', self.path or self.kind, record)

    def _to_file(self, record):
        try:
            if self._file is None:
                self._file = os.open(
                    self._to, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
                )
            os.write(
                self._file,
                (
                    '%.6f %d %s %s\n' % (time.time(), os.getpid(), self.path or self.kind, record)
                ).encode(),
            )
        except OSError as e:
            log.warning('filter trace: %s: %s; its records go to the log', self._to, e.strerror)
            self._sink = self._to_log
