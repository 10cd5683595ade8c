"""iSCSI names: iqn., eui. and naa. (RFC 7143 4.2.7, RFC 3722, RFC 3980): syntax, folding, patterns
for access lists. Pure.

Two names are the same when their folded forms are. Folding is Unicode NFKC and case folding, which
for what a name may hold is what the stringprep profile of RFC 3722 does.
"""

import functools
import re
import unicodedata

MAXIMUM_BYTES = 223  # RFC 7143 4.2.7.2, in UTF-8, folded
EVERYONE = 'ALL'  # a pattern that every name matches

_IQN = re.compile(r'iqn\.([0-9]{4})-([0-9]{2})\.(.+)\Z', re.DOTALL)
_EUI = re.compile(r'eui\.[0-9a-f]{16}\Z')
_NAA = re.compile(r'naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})\Z')
_LABEL = re.compile(r'[^-](?:.*[^-])?\Z', re.DOTALL)
_ASCII = frozenset('abcdefghijklmnopqrstuvwxyz0123456789-.:')
_PROHIBITED = frozenset(('Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zs', 'Zl', 'Zp'))


def fold(name):
    """The one form in which names are compared and kept (RFC 3722): 'IQN.2026-11.Com.Example:X' is
    in small letters."""
    return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', name).casefold())


def name_error(name, lenient=False):
    """Why this is no iSCSI name, as a plain phrase, or None if it is one.

    lenient: for names that initiators bring: printable ASCII that RFC 3722 prohibits passes ('_' is
    common), so do dates and domains of any form.
    """
    folded = fold(name)
    if len(folded.encode('utf-8', 'surrogatepass')) > MAXIMUM_BYTES:
        return 'it is longer than %d bytes' % MAXIMUM_BYTES
    for character in () if _ASCII.issuperset(folded) else folded:
        if not _is_allowed(character, lenient):
            return 'it may not hold %s' % _shown(character)
    kind = folded[:4]
    if kind == 'iqn.':
        return None if lenient and len(folded) > 4 else _iqn_error(folded)
    if kind == 'eui.':
        return None if _EUI.match(folded) else 'eui. is followed by 16 hexadecimal digits'
    if kind == 'naa.':
        return None if _NAA.match(folded) else 'naa. is followed by 16 or 32 hexadecimal digits'
    return 'it begins with none of iqn., eui. and naa.'


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
        return 'iqn. is followed by year-month, a dot and a domain written backwards, as in iqn.2026-11.com.example:disk'
    _, month, rest = match.groups()
    if not '01' <= month <= '12':
        return 'there is no month %s' % month
    domain = rest.partition(':')[0]
    if not all(_LABEL.match(label) for label in domain.split('.')):
        return '"%s" is no domain written backwards' % domain
    return None


@functools.lru_cache(maxsize=1024)
def _compiled(pattern):
    parts = re.split(r'([*?])', fold(pattern))
    return re.compile(
        ''.join({'*': '.*', '?': '.'}.get(part, re.escape(part)) for part in parts) + r'\Z',
        re.DOTALL,
    )


def matches_pattern(pattern, name):
    """True when `name` is one that the pattern admits: * stands for any characters, ? for any one,
    ALL for every name."""
    return pattern == EVERYONE or _compiled(pattern).match(fold(name)) is not None


def matches_any(patterns, name):
    """True when any of the patterns admits the name."""
    return any(matches_pattern(pattern, name) for pattern in patterns)
