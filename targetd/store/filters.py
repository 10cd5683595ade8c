"""Filters: stores on top of stores, with the same verbs, for tests and for proving an initiator's
behaviour.

Imports base. A filter passes on every verb that it does not touch as the lower store's own bound
method, so it costs nothing there. The setting is a list, applied from the left: the last one is met
first.

    filter = readonly
    filter = delay 10ms                              every verb takes 10 ms longer
    filter = delay read=10ms write=5ms cached=yes    reads that the page cache answers are not delayed: a slow disk
    filter = delay read=1s offset=1M..2M             only where the range touches these bytes
    filter = error write offset=1M..2M errno=EIO     writes that touch these bytes fail
    filter = error flush count=1                     the first flush fails, and all later ones: data is lost
    filter = error read+write every=100 after=1000   every hundredth from the thousandth on
    filter = error all probability=0.01 seed=7       one in a hundred, the same ones in every run
    filter = tear piece=64K pause=10ms               a write is done in pieces, with a pause before each but the first
    filter = trace to=/var/tmp/targetd.trace         a line per verb; without `to` they go to the log
    filter = error write errno=ENOSPC, delay 2ms, trace

Verbs: read write flush unmap write_zeroes extents; several joined by + or by spaces; `all`. A
durable write (FUA, or write-cache off) is a write and a flush. Sizes take K M G T (powers of 1024),
times ns us ms s. Counters are each worker's own.
"""

import difflib
import errno
import itertools
import logging
import os
import random
import re
import time
from collections import namedtuple

from .base import Store, failure

VERBS = ('read', 'write', 'flush', 'unmap', 'write_zeroes', 'extents')

_PASSED = VERBS + ('try_read', 'copy', 'rekey', 'resize_check', 'allocated', 'available', 'close')
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
_SIZES = {'': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}
_PER_SECOND = {'ns': 1e9, 'us': 1e6, 'ms': 1e3, 's': 1.0}

_log = logging.getLogger('targetd.store')


def _fact(name):
    def get(self):
        return getattr(self.store, name)

    def put(self, value):
        setattr(self.store, name, value)

    return property(get, put)


class Filter(Store):
    """Passes everything on to `store`, facts and verbs; a subclass defines the verbs it touches."""

    def __init__(self, store):
        self.store = store
        for verb in _PASSED:
            if getattr(type(self), verb) is getattr(Store, verb) and (
                verb != 'copy' or not self._touches_data()
            ):
                setattr(self, verb, getattr(store, verb))

    def _touches_data(self):
        """True if copying must go through this filter's own read and write."""
        return any(
            getattr(type(self), verb) is not getattr(Store, verb) for verb in ('read', 'write')
        )

    def __repr__(self):
        return '<%s %r>' % (type(self).__name__, self.store)


for _name in _FACTS:
    setattr(Filter, _name, _fact(_name))


class ReadOnly(Filter):
    """Nothing that changes the medium passes: OSError(EROFS)."""

    read_only = True

    def reading(self):
        return self.store.reading()

    def write(self, offset, data, durable):
        raise failure(errno.EROFS, self.path)

    def unmap(self, offset, length):
        raise failure(errno.EROFS, self.path)

    def write_zeroes(self, offset, length, may_unmap):
        raise failure(errno.EROFS, self.path)

    def copy(self, source, source_offset, offset, length):
        raise failure(errno.EROFS, self.path)

    def flush(self, offset, length):
        """Nothing was written, so nothing is to be done."""


class _Ruled(Filter):
    """A filter that does something before a verb that touches its range."""

    def __init__(self, store, offset=None):
        super(_Ruled, self).__init__(store)
        self._start, self._end = offset or (0, None)

    def _touches(self, offset, length):
        return (self._end is None or offset < self._end) and offset + length > self._start

    def _before(self, verb, offset, length):
        raise NotImplementedError

    def read(self, offset, length):
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

    def extents(self, offset, length, maximum=None):
        self._before('extents', offset, length)
        return self.store.extents(offset, length, maximum)


class Error(_Ruled):
    """Fails what its rule describes. verbs: words of VERBS; offset: (first byte, end) or None;
    errno: a name; after: matches that pass first; every: then each so-manyth fails; count: so many
    failures at most, 0 without end; probability, seed."""

    def __init__(
        self,
        store,
        verbs=VERBS,
        offset=None,
        errno='EIO',
        every=1,
        after=0,
        count=0,
        probability=1.0,
        seed=None,
    ):
        super(Error, self).__init__(store, offset)
        self._verbs = frozenset(verbs)
        self._number = _errno(errno)
        self._every, self._after, self._count, self._probability = every, after, count, probability
        self._matches, self._failures = itertools.count(1), itertools.count()
        self._random = random.Random(seed)

    def try_read(self, offset, length):
        """Where the rule might strike it is read() that decides, so that a match is counted once."""
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
    """Waits before a verb. verbs: {verb: seconds}; offset: (first byte, end) or None; cached: bool,
    what the page cache answers at once is not delayed."""

    def __init__(self, store, verbs, offset=None, cached=False, sleep=time.sleep):
        super(Delay, self).__init__(store, offset)
        self._seconds, self._cached, self._sleep = dict(verbs), cached, sleep

    @property
    def inline_write_limit(self):
        return 0 if self._seconds.get('write') else self.store.inline_write_limit

    @property
    def durable_is_free(self):
        return self.store.durable_is_free and not self._seconds.get('flush')

    def try_read(self, offset, length):
        if not self._cached and self._seconds.get('read') and self._touches(offset, length):
            return None
        return self.store.try_read(offset, length)

    def _before(self, verb, offset, length):
        seconds = self._seconds.get(verb)
        if seconds and (verb == 'flush' or self._touches(offset, length)):
            self._sleep(seconds)


class Tear(Filter):
    """Writes in pieces, so that a reader, or a death, can come in between. piece: bytes; pause:
    seconds before each but the first; offset: (first byte, end) or None."""

    inline_write_limit = 0

    def __init__(self, store, piece=4096, pause=0.01, offset=None, sleep=time.sleep):
        super(Tear, self).__init__(store)
        self._piece, self._pause, self._sleep = piece, pause, sleep
        self._start, self._end = offset or (0, None)

    def write(self, offset, data, durable):
        if (self._end is not None and offset >= self._end) or offset + len(data) <= self._start:
            self.store.write(offset, data, durable)
            return
        data = memoryview(data)
        for start in range(0, len(data), self._piece):
            if start:
                self._sleep(self._pause)
            self.store.write(offset + start, data[start : start + self._piece], durable)


class Record(namedtuple('Record', 'verb offset length durable errno seconds')):
    """One verb as a Trace saw it. durable: of writes; errno: name or ''; seconds: how long it took."""

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
    """Gives a Record of every verb to `sink`: a callable, else lines to the file `to`, else to the
    log.

    The file is opened by the worker when it has something to write, so the workers' user must be
    allowed to.
    """

    def __init__(self, store, to=None, sink=None):
        super(Trace, self).__init__(store)
        self._to, self._file = to, None
        self._sink = sink or (self._to_file if to else self._to_log)

    def read(self, offset, length):
        return self._traced('read', offset, length, False, self.store.read, offset, length)

    def try_read(self, offset, length):
        began = time.monotonic()
        data = self.store.try_read(offset, length)
        if data is not None:
            self._sink(Record('read', offset, length, False, '', time.monotonic() - began))
        return data

    def write(self, offset, data, durable):
        self._traced('write', offset, len(data), durable, self.store.write, offset, data, durable)

    def flush(self, offset, length):
        self._traced('flush', offset, length, False, self.store.flush, offset, length)

    def unmap(self, offset, length):
        self._traced('unmap', offset, length, False, self.store.unmap, offset, length)

    def write_zeroes(self, offset, length, may_unmap):
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

    def extents(self, offset, length, maximum=None):
        return self._traced(
            'extents', offset, length, False, self.store.extents, offset, length, maximum
        )

    def close(self):
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
        _log.info('%s: %s', self.path or self.kind, record)

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
            _log.warning('filter trace: %s: %s; its records go to the log', self._to, e.strerror)
            self._sink = self._to_log


# -- the setting -------------------------------------------------------------------------------------------------------


def parse(value):
    """[[name, options], …], JSON-able, from the setting: a string, or the list of strings that
    commas made of it.

    Raises ValueError with a sentence that quotes the offending word and names what is possible.
    """
    texts = (
        value.split(',')
        if isinstance(value, str)
        else [part for item in value for part in item.split(',')]
    )
    return [_parse_one(text.split()) for text in texts if text.strip()]


def _parse_one(words):
    name = words[0].lower()
    if name not in _PARSERS:
        raise ValueError('there is no filter "%s"%s' % (words[0], _nearest(name, _PARSERS)))
    bare, options = [], {}
    for word in words[1:]:
        key, equals, value = word.partition('=')
        if not equals:
            bare.append(word)
        elif key.lower() in options:
            raise ValueError('filter %s: %s stands twice' % (name, key))
        else:
            options[key.lower().replace('-', '_')] = value
    return [name, _PARSERS[name](bare, options)]


def _parse_error(bare, options):
    result = {'verbs': _verbs('error', bare)}
    for key, value in options.items():
        result[key] = _option(
            'error',
            key,
            value,
            {
                'offset': parse_range,
                'errno': _errno_name,
                'every': _positive,
                'after': int,
                'count': int,
                'probability': _probability,
                'seed': int,
            },
        )
    return result


def _parse_delay(bare, options):
    verbs, result = {}, {}
    known = dict(
        {'offset': parse_range, 'cached': _boolean, 'all': parse_seconds},
        **dict.fromkeys(VERBS, parse_seconds),
    )
    for word in bare:
        verbs.update(dict.fromkeys(VERBS, _option('delay', 'all', word, known)))
    for key, value in options.items():
        parsed = _option('delay', key, value, known)
        if key == 'all':
            verbs = dict(dict.fromkeys(VERBS, parsed), **verbs)
        elif key in VERBS:
            verbs[key] = parsed
        else:
            result[key] = parsed
    if not verbs:
        raise ValueError('filter delay: how long? write "delay 10ms" or "delay read=10ms"')
    return dict(result, verbs=verbs)


def _parse_tear(bare, options):
    _no_words('tear', bare)
    return {
        key: _option(
            'tear', key, value, {'piece': _piece, 'pause': parse_seconds, 'offset': parse_range}
        )
        for key, value in options.items()
    }


def _parse_readonly(bare, options):
    _no_words('readonly', bare)
    for key in options:
        raise ValueError('filter readonly has no option "%s"' % key)
    return {}


def _parse_trace(bare, options):
    _no_words('trace', bare)
    return {key: _option('trace', key, value, {'to': str}) for key, value in options.items()}


_PARSERS = {
    'error': _parse_error,
    'delay': _parse_delay,
    'readonly': _parse_readonly,
    'tear': _parse_tear,
    'trace': _parse_trace,
}
_CLASSES = {'error': Error, 'delay': Delay, 'readonly': ReadOnly, 'tear': Tear, 'trace': Trace}


def stack(store, filters):
    """The store with the filters [[name, options], …] of parse() on top. Raises ValueError,
    TypeError for others."""
    for name, options in filters:
        if name not in _CLASSES:
            raise ValueError('there is no filter "%s"' % name)
        store = _CLASSES[name](store, **options)
    return store


def _nearest(word, known):
    near = difflib.get_close_matches(word, list(known), 1)
    return ', did you mean "%s"?' % near[0] if near else '; there are: %s' % ' '.join(sorted(known))


def _no_words(name, bare):
    if bare:
        raise ValueError('filter %s takes no word "%s"' % (name, bare[0]))


def _verbs(name, bare):
    verbs = []
    for word in [w for text in bare for w in text.lower().replace('-', '_').split('+') if w]:
        if word != 'all' and word not in VERBS:
            raise ValueError(
                'filter %s: there is no verb "%s"%s'
                % (name, word, _nearest(word, VERBS + ('all',)))
            )
        verbs.extend(VERBS if word == 'all' else [word])
    return [verb for verb in VERBS if verb in verbs] if verbs else list(VERBS)


def _option(name, key, value, known):
    if key not in known:
        raise ValueError('filter %s has no option "%s"%s' % (name, key, _nearest(key, known)))
    try:
        parsed = known[key](value)
        if isinstance(parsed, int) and parsed < 0:
            raise ValueError
    except ValueError:
        raise ValueError('filter %s: %s = "%s" cannot be used' % (name, key, value))
    return parsed


def parse_seconds(text):
    """Seconds as float from '10ms', '1.5s', '200us'; a number alone is seconds."""
    match = re.match(r'^([0-9]*\.?[0-9]+)(ns|us|ms|s|)$', text.lower())
    if not match:
        raise ValueError('"%s" is no time' % text)
    return float(match.group(1)) / _PER_SECOND[match.group(2) or 's']


def _bytes(text):
    match = re.match(r'^([0-9]+)([kmgt]?)i?b?$', text.lower())
    if not match:
        raise ValueError('"%s" is no size' % text)
    return int(match.group(1)) * _SIZES[match.group(2)]


def _piece(text):
    if _bytes(text) < 512 or _bytes(text) % 512:
        raise ValueError
    return _bytes(text)


def parse_range(text):
    """[first byte, end] from '1M..2M' (the end does not belong to it), '1M..' (to the end: None),
    or one offset '4096'."""
    first, dots, last = text.partition('..')
    start = _bytes(first or '0')
    if not dots:
        return [start, start + 1]
    end = _bytes(last) if last else None
    if end is not None and end <= start:
        raise ValueError('"%s" is empty' % text)
    return [start, end]


def _errno(name):
    return getattr(errno, name)


def _errno_name(text):
    if text.isdigit() and int(text) in errno.errorcode:
        return errno.errorcode[int(text)]
    if not isinstance(getattr(errno, text.upper(), None), int):
        raise ValueError
    return text.upper()


def _positive(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def _probability(text):
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def _boolean(text):
    if text.lower() not in ('yes', 'no', 'on', 'off', 'true', 'false', '1', '0'):
        raise ValueError
    return text.lower() in ('yes', 'on', 'true', '1')
