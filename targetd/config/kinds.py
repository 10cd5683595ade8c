"""The kinds of value that a setting can have: how each is read, written back, and described in one
phrase.

May import config.words, the pure iscsi.names, and host.disks for the ways to name a disk. A kind
has `read(items)` (items: what words.split gave; raises Unusable), `show(value)` (text that read()
turns into the same value), `resolve(value, directory)` for paths, and `says` (a phrase for 'write
…').
"""

import difflib
import ipaddress
import os
import re

from targetd.config.words import Unusable, join
from targetd.host import disks
from targetd.iscsi import names

ALL = 'ALL'  # the word that admits every address or name
ISCSI_PORT = 3260
SCOPE = '%'  # fe80::1%eth0


def nearest(word, known):
    """The known word that was probably meant, or None."""
    folded = dict((k.lower().replace('_', '-'), k) for k in known)
    close = difflib.get_close_matches(word.lower().replace('_', '-'), list(folded), 1, 0.6)
    return folded[close[0]] if close else None


class Kind(object):
    """A kind of one item; its words are joined by one blank and given to parse()."""

    says = 'one value'
    repeatable = False

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'one value is wanted and %d stand there' % len(items),
                'quote a value that holds a comma' if self.takes_commas else 'write ' + self.says,
            )
        return self.parse(' '.join(items[0]))

    takes_commas = False

    def parse(self, text):
        return text

    def resolve(self, value, directory):
        """The value as it is meant in a file of this directory; differs from the value for paths
        only."""
        return value

    def show(self, value):
        return join([[self.write(value)]])

    def write(self, value):
        return str(value)

    def refuse(self, text):
        return Unusable('%r is not %s' % (text, self.says), '')


class Flag(Kind):
    """yes or no -> bool."""

    says = 'yes or no'
    WORDS = {
        'yes': True,
        'on': True,
        'true': True,
        '1': True,
        'no': False,
        'off': False,
        'false': False,
        '0': False,
    }

    def parse(self, text):
        try:
            return self.WORDS[text.lower()]
        except KeyError:
            raise Unusable(
                '%r is neither yes nor no' % text,
                'write yes or no (on, off, true, false, 1, 0 are the same)',
            )

    def __init__(self, yes='yes', no='no'):
        self.yes, self.no = yes, no

    def write(self, value):
        return self.yes if value else self.no


class Number(Kind):
    """A whole number between low and high -> int."""

    def __init__(self, low, high):
        self.low, self.high = low, high
        self.says = 'a whole number from %d to %d' % (low, high)

    def parse(self, text):
        if not re.match('(0[xX][0-9a-fA-F]+|[0-9]+)$', text):
            raise Unusable('%r is no whole number' % text, 'write ' + self.says)
        value = int(text, 0) if text[:2].lower() == '0x' else int(text)
        if not self.low <= value <= self.high:
            raise Unusable('%s is out of range' % text, 'write ' + self.says)
        return value


class Auto(Kind):
    """The word `auto`, or another kind -> None or the other's value."""

    def __init__(self, kind):
        self.kind = kind
        self.says = 'auto or ' + kind.says

    def parse(self, text):
        if text.lower() == 'auto':
            return None
        try:
            return self.kind.parse(text)
        except Unusable as e:
            raise Unusable(e.text, e.remedy + ', or auto' if e.remedy else 'or write auto')

    def write(self, value):
        return 'auto' if value is None else self.kind.write(value)


class Size(Kind):
    """Bytes, with K, M, G, T, P for powers of 1024 -> int."""

    UNITS = ('', 'K', 'M', 'G', 'T', 'P')
    PATTERN = re.compile(r'([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:I?B)?$', re.IGNORECASE)

    def __init__(self, low=0, high=1 << 60, multiple=1):
        self.low, self.high, self.multiple = low, high, multiple
        self.says = 'a size from %s to %s, like 512, 64K, 200G' % (
            self.write(low),
            self.write(high),
        )
        if multiple > 1:
            self.says += ', a multiple of %s' % self.write(multiple)

    def parse(self, text):
        match = self.PATTERN.match(text)
        if not match:
            raise Unusable('%r is no size' % text, 'write ' + self.says)
        number, unit = match.groups()
        whole, _, fraction = number.partition('.')
        factor = 1024 ** self.UNITS.index(unit.upper())
        value, odd = divmod(int(whole + fraction) * factor, 10 ** len(fraction))
        if odd:
            raise Unusable('%r is no whole number of bytes' % text, 'write ' + self.says)
        if not self.low <= value <= self.high or value % self.multiple:
            raise Unusable('a size of %s is not possible here' % text, 'write ' + self.says)
        return value

    def write(self, value):
        unit = 0
        while value and value % 1024 == 0 and unit < len(self.UNITS) - 1:
            value, unit = value // 1024, unit + 1
        return '%d%s' % (value, self.UNITS[unit])


class ByteCount(Size):
    """A size that is written back as a plain number, as the RFC spells it -> int."""

    def write(self, value):
        return '%d' % value


class PowerOfTwo(Size):
    """A size that is a power of two -> int."""

    def __init__(self, low, high):
        super(PowerOfTwo, self).__init__(low, high)
        self.says = 'a power of two from %d to %d' % (low, high)

    def parse(self, text):
        value = super(PowerOfTwo, self).parse(text)
        if value & (value - 1):
            raise Unusable('%s is no power of two' % text, 'write ' + self.says)
        return value

    def write(self, value):
        return '%d' % value


class Duration(Kind):
    """A time; a bare number is seconds -> seconds, int where whole, else float."""

    FACTORS = {'ms': 0.001, '': 1, 's': 1, 'sec': 1, 'm': 60, 'min': 60, 'h': 3600, 'd': 86400}
    PATTERN = re.compile(r'([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)$', re.IGNORECASE)

    def __init__(self, low, high, off=False):
        self.low, self.high, self.off = low, high, off
        self.says = 'a time from %s to %s, like 500ms, 30s, 2min%s' % (
            self.write(low),
            self.write(high),
            ', or 0 for never' if off else '',
        )

    def parse(self, text):
        match = self.PATTERN.match(text)
        if not match or match.group(2).lower() not in self.FACTORS:
            raise Unusable('%r is no time' % text, 'write ' + self.says)
        value = round(float(match.group(1)) * self.FACTORS[match.group(2).lower()], 3)
        if not (self.low <= value <= self.high or (self.off and value == 0)):
            raise Unusable('a time of %s is not possible here' % text, 'write ' + self.says)
        return int(value) if value == int(value) else value

    def write(self, value):
        if value != int(value):
            return '%dms' % round(value * 1000)
        for unit, factor in (('h', 3600), ('min', 60)):
            if value and value % factor == 0:
                return '%d%s' % (value // factor, unit)
        return '%ds' % value if value else '0'


class Text(Kind):
    """Characters, at most `longest` bytes of UTF-8 (or of ASCII, if only that is allowed) -> str."""

    takes_commas = True

    def __init__(self, longest, ascii_only=False):
        self.longest, self.ascii_only = longest, ascii_only
        self.says = 'at most %d %s' % (
            longest,
            'ASCII characters' if ascii_only else 'bytes of text',
        )

    def parse(self, text):
        if self.ascii_only and not all(' ' <= character <= '~' for character in text):
            raise Unusable(
                '%r holds a character that is not printable ASCII' % text, 'write ' + self.says
            )
        if any(0 < ord(character) < 32 for character in text):
            raise Unusable('%r holds a control character' % text, 'leave it out')
        if len(text.encode('utf-8', 'replace')) > self.longest:
            raise Unusable(
                '%r is %d bytes long' % (text, len(text.encode('utf-8', 'replace'))),
                'write ' + self.says,
            )
        return text


class Path(Kind):
    """A file's path; a relative one is taken from the directory of the file it stands in -> str."""

    says = 'a path'
    takes_commas = True

    def parse(self, text):
        if not text:
            raise Unusable('the path is empty', 'write a path')
        return text

    def resolve(self, value, directory):
        """The absolute path of a value that stands in a file of this directory.

        The file's UTF-8 bytes name it, whatever the locale: under LANG=C Python 3.6 could not open
        it as plain text.
        """
        return os.path.normpath(
            os.path.join(directory, os.fsdecode(value.encode('utf-8', 'surrogateescape')))
        )


class StorePath(Path):
    """What a store is: a path, or serial:…, wwn:… and the other names that host.disks finds a disk
    by -> str."""

    SELECTOR = re.compile('([a-z][a-z-]*):(?!//)(.*)$', re.DOTALL)
    says = 'a path, or serial:NUMBER, wwn:0xNUMBER, by-id:NAME, model:NAME to find a disk by'

    def parse(self, text):
        match = self.SELECTOR.match(super(StorePath, self).parse(text))
        if match and match.group(1) not in disks.KEYS:
            near = nearest(match.group(1), disks.KEYS)
            raise Unusable(
                '%s: is no way to find a disk' % match.group(1),
                'did you mean %s:?' % near
                if near
                else 'known are %s' % ', '.join(key + ':' for key in disks.KEYS),
            )
        if match and not match.group(2).strip():
            raise Unusable('nothing stands after %s:' % match.group(1), 'write ' + self.says)
        return text

    def resolve(self, value, directory):
        if self.SELECTOR.match(value):
            return value
        return super(StorePath, self).resolve(value, directory)


class Choice(Kind):
    """One of a few words -> the word as spelled in the table."""

    def __init__(self, *words, **synonyms):
        self.words = words
        self.synonyms = synonyms.get('also', {})
        self.says = ', '.join(words[:-1]) + ' or ' + words[-1]

    def parse(self, text):
        wanted = self.synonyms.get(text.lower(), text.lower())
        for word in self.words:
            if word.lower() == wanted:
                return word
        near = nearest(text, self.words)
        raise Unusable(
            '%r is not possible here' % text,
            'did you mean %s? ' % near + 'Possible are ' + self.says
            if near
            else 'write ' + self.says,
        )


class LogPlace(Kind):
    """Where the log goes -> 'syslog', 'stderr' or an absolute path."""

    says = 'syslog, stderr or an absolute path'
    takes_commas = True

    def parse(self, text):
        if text.lower() in ('syslog', 'stderr'):
            return text.lower()
        if not text.startswith('/'):
            near = nearest(text, ('syslog', 'stderr'))
            raise Unusable('%r is no place for a log' % text, 'write ' + (near or self.says))
        return text


class Hex(Kind):
    """Hex digits in one of a few lengths, or nothing -> str of lower-case digits."""

    def __init__(self, *lengths):
        self.lengths = lengths
        self.says = '%s hex digits' % ' or '.join(str(n) for n in lengths)

    def parse(self, text):
        digits = re.sub('^(0x|naa\\.|eui\\.|wwn-0x)|[-:.]', '', text.lower())
        if not re.match('[0-9a-f]+$', digits) or len(digits) not in self.lengths:
            raise Unusable(
                '%r is not %s' % (text, self.says), 'write %s, with or without 0x' % self.says
            )
        return digits


class Naa(Hex):
    """A NAA identifier (SPC-4): 16 digits for NAA 2, 3 or 5, 32 for NAA 6 -> str of lower-case
    digits."""

    def __init__(self):
        super(Naa, self).__init__(16, 32)
        self.says = '16 hex digits that begin with 2, 3 or 5, or 32 that begin with 6'

    def parse(self, text):
        digits = super(Naa, self).parse(text)
        if digits[0] not in ('6' if len(digits) == 32 else '235'):
            raise Unusable('%r begins with %s' % (text, digits[0]), 'write ' + self.says)
        return digits


class Listed(object):
    """Items of one kind, comma-separated; the setting may be repeated -> tuple."""

    repeatable = True
    takes_commas = False

    def __init__(self, kind):
        self.kind = kind
        self.says = kind.says + '; several with commas between them, or on lines of their own'

    def read(self, items):
        return tuple(self.item(words) for words in items)

    def item(self, words):
        return self.kind.parse(' '.join(words))

    def resolve(self, value, directory):
        return tuple(self.kind.resolve(item, directory) for item in value)

    def show(self, value):
        return join([self.written(item) for item in value])

    def written(self, item):
        return [self.kind.write(item)]


class Several(Listed):
    """Items of one kind, of which commas *or blanks* may stand between -> tuple. For words that
    hold no blank."""

    def read(self, items):
        return tuple(self.kind.parse(word) for words in items for word in words)


class Account(Kind):
    """A user's name and secret, two words -> (user, secret)."""

    says = 'a name and a secret'
    repeatable = False

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'one account is wanted and %d stand there' % len(items),
                'quote a secret that holds a comma',
            )
        return self.item(items[0])

    def item(self, words):
        # The complaint never shows what may be the secret: complaints end in logs.
        if len(words) == 1:
            raise Unusable(
                'an account of one word',
                'write a name and a secret with a blank between them; '
                'a secret that begins with # or holds a comma or a blank must stand in quotes',
            )
        if len(words) != 2:
            raise Unusable(
                'account %r has %d words after its name' % (words[0], len(words) - 1),
                'write a name and one secret; a secret that holds blanks must stand in quotes',
            )
        if not words[0] or not words[1]:
            raise Unusable(
                'an account has an empty %s' % ('secret' if words[0] else 'name'),
                'write a name and a secret',
            )
        return words[0], words[1]

    def show(self, value):
        return join([list(value)])


class Accounts(Listed):
    """Several accounts -> tuple of (user, secret)."""

    def __init__(self):
        super(Accounts, self).__init__(Account())

    def item(self, words):
        return self.kind.item(words)

    def written(self, item):
        return list(item)


class Portal(Kind):
    """A numeric address and a port -> (address, port). port: where none is written; of_others: not
    an address of this host, so that a wildcard has no meaning."""

    def __init__(self, port=ISCSI_PORT, of_others=False):
        self.port, self.of_others = port, of_others
        self.says = 'an address and a port, like 10.0.0.1:%d, [2001:db8::1]:%d' % (port, port)
        if not of_others:
            self.says += ', 0.0.0.0 or [::] for every address of this host'

    def parse(self, text):
        address, number = self.taken_apart(text)
        plain, _, scope = address.partition(SCOPE)
        try:
            parsed = ipaddress.ip_address(plain)
        except ValueError:
            raise Unusable(
                '%r is no address' % text, 'write %s (numbers, not a host name)' % self.says
            )
        if self.of_others and parsed.is_unspecified:
            raise Unusable('%s is no address of another host' % parsed, 'write ' + self.says)
        return str(parsed) + (SCOPE + scope if scope else ''), number

    def taken_apart(self, text):
        """(what stands before the port, the port)."""
        match = re.match(r'\[([^\]]*)\](?::([0-9]+))?$', text) or re.match(
            r'([^:\[\]]+)(?::([0-9]+))?$', text
        )
        if not match and text.count(':') > 1 and '[' not in text:
            raise Unusable(
                '%r does not tell address and port apart' % text,
                'write an IPv6 address in brackets, like [::1]:%d' % self.port,
            )
        address, port = match.groups() if match else (text, None)
        number = int(port) if port else self.port
        if not 1 <= number <= 65535:
            raise Unusable('port %s is out of range' % port, 'write a port from 1 to 65535')
        return address, number

    def write(self, value):
        return ('[%s]:%d' if ':' in value[0] else '%s:%d') % tuple(value)


class Redirection(Kind):
    """Where a target is to be found instead: a word and an address or host name -> (permanent,
    address, port)."""

    says = (
        'temporary or permanent, and an address and port like 10.0.0.2:3260 or storage2.example.com'
    )
    HOST = re.compile(r'(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*$')
    WORDS = Choice('temporary', 'permanent')
    PORTAL = Portal(of_others=True)

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'a portal group tag or another address stands after the comma',
                'write one address without a tag: a redirect has none (RFC 7143 13.8)',
            )
        if len(items[0]) != 2:
            raise Unusable(
                'two words are wanted and %d stand there' % len(items[0]), 'write ' + self.says
            )
        word = self.WORDS.parse(items[0][0])
        host, port = self.PORTAL.taken_apart(items[0][1])
        if not self.HOST.match(host) or re.match(r'[0-9.]+$', host) or items[0][1].startswith('['):
            host, port = self.PORTAL.parse(items[0][1])
        return word == 'permanent', host.lower(), port

    def show(self, value):
        permanent, host, port = value
        return '%s %s' % (
            'permanent' if permanent else 'temporary',
            self.PORTAL.write((host, port)),
        )


class Network(Kind):
    """An address, a net, or ALL -> the network's canonical text, or 'ALL'."""

    says = 'an address like 10.0.5.7, a net like 10.0.5.0/24 or 2001:db8::/64, or ALL'

    def parse(self, text):
        if text.upper() == ALL:
            return ALL
        try:
            return self.write(ipaddress.ip_network(text))
        except ValueError:
            pass
        try:
            net = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Unusable('%r is neither an address nor a net' % text, 'write ' + self.says)
        raise Unusable(
            '%s has bits of a host behind its prefix' % text,
            'write %s for the net or %s for the one address' % (net, text.split('/')[0]),
        )

    def write(self, value):
        if value == ALL:
            return ALL
        value = ipaddress.ip_network(value)
        return str(value.network_address) if value.prefixlen == value.max_prefixlen else str(value)


class KeyWords(Kind):
    """Words of a list-valued text key in order of preference -> tuple of words as the table spells
    them."""

    repeatable = True

    def __init__(self, *words):
        self.words = words
        self.choice = Choice(*words)
        self.says = 'one or more of %s, the preferred first' % ', '.join(words)

    def read(self, items):
        return tuple(self.choice.parse(word) for words in items for word in words)

    def show(self, value):
        return join([[word] for word in value])


class NamePattern(Kind):
    """An iSCSI name, folded, in which * and ? stand for others; or ALL -> the folded pattern, or
    'ALL'."""

    says = 'an iSCSI name, in which * stands for any characters and ? for one, or ALL'

    def parse(self, text):
        if text.upper() == ALL:
            return ALL
        folded = names.fold(text)
        literal = re.split('[*?]', folded)[0]
        if literal == folded:
            flaw = names.flaw(folded, lenient=True)
        elif not any(kind.startswith(literal[:4]) for kind in ('iqn.', 'eui.', 'naa.')):
            flaw = 'it begins with none of iqn., eui. and naa.'
        else:
            flaw = (
                None
                if folded.isprintable() and ' ' not in folded
                else 'it holds a blank or an unprintable character'
            )
        if flaw:
            raise Unusable('%r is no iSCSI name: %s' % (text, flaw), 'write ' + self.says)
        return folded


class Filters(Listed):
    """Filters of a store, each a name and its words, which the store itself understands -> tuple of
    'name word word'."""

    NAMES = ('delay', 'error', 'readonly', 'tear', 'trace')

    def __init__(self):
        super(Filters, self).__init__(Choice(*self.NAMES))

    def item(self, words):
        return ' '.join([self.kind.parse(words[0])] + words[1:])

    def written(self, item):
        return item.split(' ')
