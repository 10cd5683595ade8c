"""The text format of Login and Text PDUs (RFC 7143 6.1): key=value pairs, each ended by a NUL byte.
Pure.

A text that is longer than a data segment is sent in several PDUs with the C bit set in all but the
last; a pair may be divided at any byte. Invariant: never more bytes are collected than the limit that
the caller set, whatever the peer sends.
"""

import re
from typing import Iterable, List, Optional, Tuple, Union

MAXIMUM_KEY = 63
MAXIMUM_VALUE = 255  # of a simple value and of each value of a list
MAXIMUM_LONG_VALUE = 8192  # of the encoded value of a key in LONG_KEYS, and of any list
LONG_KEYS = frozenset(
    ('CHAP_C', 'CHAP_R', 'SRP_A', 'SRP_B', 'SRP_M', 'SRP_HM', 'KRB_AP_REQ', 'KRB_AP_REP')
)

MAXIMUM_TEXT = 65536  # RFC 7143 6.1: 8192 at least, 64 KiB where authentication needs long items

NOT_UNDERSTOOD = 'NotUnderstood'
IRRELEVANT = 'Irrelevant'
REJECT = 'Reject'
NONE = 'None'
RESERVED_VALUES = frozenset((NOT_UNDERSTOOD, IRRELEVANT, REJECT))

# RFC 7143 13.22 defines keys that begin with 'X#'; iSCSIProtocolLevel begins with a small letter.
_KEY = re.compile(r'[A-Za-z][A-Za-z0-9.+@_#-]*\Z')

# These characters could start a new line in the log.
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029]')


class TextError(Exception):
    """A received text is not in the format of RFC 7143 6.1 or breaks a rule about keys. The message
    is one plain sentence."""


def parse_text(data: Union[bytes, bytearray, memoryview]) -> List[Tuple[str, str]]:
    """Return [(key, value), …] in the order in which they were sent. Raises TextError.

    The NUL after the last pair may be missing, and further NULs (padding that the initiator counted
    as data) are skipped, because some initiators send such texts.
    """
    pairs = []
    for part in bytes(data).split(b'\0'):
        if part:
            pairs.append(_pair(part))
    return pairs


def _pair(part):
    key, equals, value = part.partition(b'=')
    if not equals:
        raise TextError('"%s" is not a key=value pair' % _shown(part))
    if len(key) > MAXIMUM_KEY:
        raise TextError('the key "%s" is longer than %d bytes' % (_shown(key), MAXIMUM_KEY))
    try:
        key = key.decode('ascii')
        value = value.decode('utf-8')
    except UnicodeDecodeError:
        raise TextError('"%s" is not UTF-8' % _shown(part))
    if not _KEY.match(key):
        raise TextError('"%s" does not begin with a valid key name' % _shown(part))
    if _CONTROL.search(value):
        raise TextError('the value of %s contains a control character' % key)
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


def render_text(pairs: Iterable[Tuple[str, str]]) -> bytes:
    """Return the bytes of [(key, value), …]."""
    return b''.join(('%s=%s' % pair).encode('utf-8') + b'\0' for pair in pairs)


def split_text(data: bytes, maximum: int) -> List[bytes]:
    """Return `data` divided into pieces of at most `maximum` bytes (the length of a data segment);
    at least one piece, which may be empty."""
    return [data[start : start + maximum] for start in range(0, len(data), maximum)] or [b'']


class TextCollector(object):
    """Joins the pieces of a text that arrives in several PDUs. limit: maximum bytes of a whole text."""

    __slots__ = ('_limit', '_pieces')

    def __init__(self, limit: int = MAXIMUM_TEXT) -> None:
        self._limit = limit
        self._pieces = bytearray()

    @property
    def is_empty(self) -> bool:
        """True when no piece of an incomplete text is kept."""
        return not self._pieces

    def add_piece(
        self, data: Union[bytes, bytearray, memoryview], continues: bool
    ) -> Optional[bytes]:
        """Add a piece. Returns the whole text as bytes, or None if `continues` (the C bit) announces
        more. Raises TextError if the text is longer than the limit."""
        if len(self._pieces) + len(data) > self._limit:
            self._pieces = bytearray()
            raise TextError('the text is longer than %d bytes' % self._limit)
        self._pieces += data
        if continues:
            return None
        whole = bytes(self._pieces)
        self._pieces = bytearray()
        return whole
