"""iSCSI names: iqn., eui. and naa. (RFC 7143 4.2.7, RFC 3722, RFC 3980): syntax, folding, patterns
for access lists. Pure.

Two names are the same if their folded forms are equal. Folding is Unicode NFKC normalization and case
folding; for the characters that a name may contain, this is the stringprep profile of RFC 3722.
"""

import functools
import re
import unicodedata
from typing import Iterable, Optional

MAXIMUM_BYTES = 223  # RFC 7143 4.2.7.2, in UTF-8, folded
EVERYONE = 'ALL'  # a pattern that every name matches

_IQN = re.compile(r'iqn\.([0-9]{4})-([0-9]{2})\.(.+)\Z', re.DOTALL)
_EUI = re.compile(r'eui\.[0-9a-f]{16}\Z')
_NAA = re.compile(r'naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})\Z')
_LABEL = re.compile(r'[^-](?:.*[^-])?\Z', re.DOTALL)
_ASCII = frozenset('abcdefghijklmnopqrstuvwxyz0123456789-.:')
_PROHIBITED = frozenset(('Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zs', 'Zl', 'Zp'))


def fold(name: str) -> str:
    """Return the form in which names are compared and kept (RFC 3722):
    'IQN.2026-11.Com.Example:X' becomes 'iqn.2026-11.com.example:x'."""
    return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', name).casefold())


def name_error(name: str, lenient: bool = False) -> Optional[str]:
    """Return why this is not a valid iSCSI name, as a plain phrase, or None if it is valid.

    lenient: allows printable ASCII characters that RFC 3722 prohibits ('_' is common), and dates and
    domains of any form, as many initiators and targets have them.
    """
    folded = fold(name)
    if len(folded.encode('utf-8', 'surrogatepass')) > MAXIMUM_BYTES:
        return 'it is longer than %d bytes' % MAXIMUM_BYTES
    for character in () if _ASCII.issuperset(folded) else folded:
        if not _is_allowed(character, lenient):
            return 'it must not contain %s' % _shown(character)
    kind = folded[:4]
    if kind == 'iqn.':
        return None if lenient and len(folded) > 4 else _iqn_error(folded)
    if kind == 'eui.':
        return None if _EUI.match(folded) else 'eui. is followed by 16 hexadecimal digits'
    if kind == 'naa.':
        return None if _NAA.match(folded) else 'naa. is followed by 16 or 32 hexadecimal digits'
    if folded.startswith('iscsi://'):
        return 'it is a URL; write the name of the initiator, which begins with iqn., eui. or naa.'
    return 'it does not begin with iqn., eui. or naa.'


def _is_allowed(character, lenient):
    if character in _ASCII:
        return True
    if character < '\x80':
        return lenient and '!' <= character <= '~'
    return unicodedata.category(character) not in _PROHIBITED


def _shown(character):
    if character == ' ':
        return 'a blank'
    return '"%s"' % character if character.isprintable() else 'U+%04X' % ord(character)


def _iqn_error(folded):
    match = _IQN.match(folded)
    if not match:
        return (
            'iqn. is followed by year-month, a dot and a reversed domain name, '
            'as in iqn.2026-11.com.example:disk'
        )
    _, month, rest = match.groups()
    if not '01' <= month <= '12':
        return '%s is not a valid month' % month
    domain = rest.partition(':')[0]
    if not all(_LABEL.match(label) for label in domain.split('.')):
        return '"%s" is not a valid reversed domain name' % domain
    return None


@functools.lru_cache(maxsize=1024)
def _compiled(pattern):
    parts = re.split(r'([*?])', fold(pattern))
    return re.compile(
        ''.join({'*': '.*', '?': '.'}.get(part, re.escape(part)) for part in parts) + r'\Z',
        re.DOTALL,
    )


def matches_pattern(pattern: str, name: str) -> bool:
    """Return True if the pattern matches `name`. In a pattern * matches any characters and ? one
    character; the pattern ALL matches every name."""
    return pattern == EVERYONE or _compiled(pattern).match(fold(name)) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Return True if any of the patterns matches the name."""
    return any(matches_pattern(pattern, name) for pattern in patterns)
