"""The text format of Login and Text PDUs (RFC 7143 6.1): key=value pairs, each ended by a NUL byte.
Pure.

A text may be longer than a data segment and then goes over several PDUs, the C bit set in all but
the last; a pair may be cut at any byte. Invariant: nothing is collected beyond the limit that the
caller set, whatever the peer sends.
"""

import re

MAXIMUM_KEY = 63
MAXIMUM_VALUE = 255  # of a simple value; a list is as long as its values make it
MAXIMUM_LONG_VALUE = 8192  # of the keys below, encoded, and of any list
LONG_KEYS = frozenset(
    ('CHAP_C', 'CHAP_R', 'SRP_A', 'SRP_B', 'SRP_M', 'SRP_HM', 'KRB_AP_REQ', 'KRB_AP_REP')
)

MAXIMUM_TEXT = 65536  # RFC 7143 6.1: 8192 at least, 64 KiB where authentication needs long items

NOT_UNDERSTOOD = 'NotUnderstood'
IRRELEVANT = 'Irrelevant'
REJECT = 'Reject'
NONE = 'None'
RESERVED_VALUES = frozenset((NOT_UNDERSTOOD, IRRELEVANT, REJECT))

# RFC 7143 13.22 has X#…, and iSCSIProtocolLevel begins small
_KEY = re.compile(r'[A-Za-z][A-Za-z0-9.+@_#-]*\Z')

_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029]')  # would begin a line of its own in a log


class TextError(Exception):
    """What arrived is no text of RFC 7143 6.1, or breaks a rule about keys. The message is one
    plain sentence."""


def parse_text(data):
    """[(key, value), …] in the order sent. Raises TextError.

    The NUL after the last pair may be missing, and further NULs (padding that was counted) are
    skipped: initiators do both.
    """
    pairs = []
    for part in bytes(data).split(b'\0'):
        if part:
            pairs.append(_pair(part))
    return pairs


def _pair(part):
    key, equals, value = part.partition(b'=')
    if not equals:
        raise TextError('"%s" is no key=value pair' % _shown(part))
    if len(key) > MAXIMUM_KEY:
        raise TextError('the key "%s" is longer than %d bytes' % (_shown(key), MAXIMUM_KEY))
    try:
        key = key.decode('ascii')
        value = value.decode('utf-8')
    except UnicodeDecodeError:
        raise TextError('"%s" is not UTF-8' % _shown(part))
    if not _KEY.match(key):
        raise TextError('"%s" is no name for a key' % _shown(part))
    if _CONTROL.search(value):
        raise TextError('the value of %s holds a control character' % key)
    _check_length(key, value)
    return key, value


def _check_length(key, value):
    longest = max(len(item.encode('utf-8')) for item in value.split(','))
    if (
        len(value.encode('utf-8')) > MAXIMUM_LONG_VALUE
        or longest > MAXIMUM_VALUE
        and key not in LONG_KEYS
    ):
        raise TextError('the value of %s is too long' % key)


def _shown(part):
    return _CONTROL.sub('?', part[:40].decode('ascii', 'replace'))


def render_text(pairs):
    """The bytes of [(key, value), …]."""
    return b''.join(('%s=%s' % pair).encode('utf-8') + b'\0' for pair in pairs)


def split_text(data, maximum):
    """`data` cut into pieces of at most `maximum` bytes, at least one piece. maximum: bytes of a data segment."""
    return [data[start : start + maximum] for start in range(0, len(data), maximum)] or [b'']


class TextCollector(object):
    """Puts a text together that comes in pieces. limit: bytes of one whole text."""

    __slots__ = ('_limit', '_pieces')

    def __init__(self, limit=MAXIMUM_TEXT):
        self._limit = limit
        self._pieces = bytearray()

    @property
    def is_empty(self):
        """True between texts."""
        return not self._pieces

    def add_piece(self, data, continues):
        """The whole text as bytes, or None while more is to come. Raises TextError when it grows
        beyond the limit."""
        if len(self._pieces) + len(data) > self._limit:
            self._pieces = bytearray()
            raise TextError('a text of more than %d bytes' % self._limit)
        self._pieces += data
        if continues:
            return None
        whole = bytes(self._pieces)
        self._pieces = bytearray()
        return whole
