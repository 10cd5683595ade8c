"""The setting `filter`: parses it, and builds the stack of filters that it describes.

Imports base, filters. The setting is a list; the first filter is the lowest, so a request passes
the last one first.

    filter = readonly
    filter = delay 10ms                              every verb takes 10 ms longer
    filter = delay read=10ms write=5ms cached=yes    a slow disk: page cache hits are not delayed
    filter = delay read=1s offset=1M..2M             only reads that overlap these bytes
    filter = error write offset=1M..2M errno=EIO     writes that overlap these bytes fail
    filter = error flush count=1                     the first flush fails, and all later ones: data is lost
    filter = error read+write every=100 after=1000   every hundredth read or write after the first thousand
    filter = error all probability=0.01 seed=7       one in a hundred, the same ones in every run
    filter = tear piece=64K pause=10ms               writes are split, with pauses between the pieces
    filter = trace to=/var/tmp/targetd.trace         a line per verb; without `to` the lines go to the log
    filter = error write errno=ENOSPC, delay 2ms, trace

Verbs: read write flush unmap write_zeroes extents, joined by + or by spaces, or `all`. A durable
write (FUA, or write cache disabled) counts as a write and a flush. Sizes take the suffixes K M G T
(powers of 1024), times take ns us ms s.
"""

import difflib
import errno
import re
from typing import Any, Iterable, List, Optional, Sequence, Union

from .base import Store
from .filters import VERBS, Delay, Error, ReadOnly, Tear, Trace

_SIZES = {'': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}
_PER_SECOND = {'ns': 1e9, 'us': 1e6, 'ms': 1e3, 's': 1.0}


def parse_filters(value: Union[str, Iterable[str]]) -> List[List[Any]]:
    """Parse the setting, a string or a list of strings, into [[name, options], …], which can be
    stored as JSON.

    Raises ValueError with a message that quotes the invalid word and lists the valid ones.
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
            raise ValueError('filter %s: %s is given twice' % (name, key))
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
        raise ValueError(
            'filter delay: the time is missing; write "delay 10ms" or "delay read=10ms"'
        )
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


def stack_filters(store: 'Store', filters: Iterable[Sequence[Any]]) -> Store:
    """Returns the store with the filters [[name, options], …] from parse_filters() on top. Raises
    ValueError or TypeError for anything else."""
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
        raise ValueError('filter %s does not take the word "%s"' % (name, bare[0]))


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
        raise ValueError('filter %s: %s = "%s" is not valid' % (name, key, value))
    return parsed


def parse_seconds(text: str) -> float:
    """Returns seconds for '10ms', '1.5s', '200us'; a number without a unit is seconds. Raises
    ValueError."""
    match = re.match(r'^([0-9]*\.?[0-9]+)(ns|us|ms|s|)$', text.lower())
    if not match:
        raise ValueError('"%s" is not a valid time' % text)
    return float(match.group(1)) / _PER_SECOND[match.group(2) or 's']


def _bytes(text):
    match = re.match(r'^([0-9]+)([kmgt]?)i?b?$', text.lower())
    if not match:
        raise ValueError('"%s" is not a valid size' % text)
    return int(match.group(1)) * _SIZES[match.group(2)]


def _piece(text):
    if _bytes(text) < 512 or _bytes(text) % 512:
        raise ValueError
    return _bytes(text)


def parse_range(text: str) -> List[Optional[int]]:
    """Returns [first byte, end] for '1M..2M' (end exclusive), [first byte, None] for '1M..' (to the
    end of the medium), and the range of one byte for '4096'. Raises ValueError."""
    first, dots, last = text.partition('..')
    start = _bytes(first or '0')
    if not dots:
        return [start, start + 1]
    end = _bytes(last) if last else None
    if end is not None and end <= start:
        raise ValueError('"%s" is empty' % text)
    return [start, end]


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
