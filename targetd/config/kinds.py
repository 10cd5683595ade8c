"""The kinds of value that a setting can have: how each is read, written back and described.

May import config.words. Kinds of network values are in config.network_kinds, those of SCSI values in
config.scsi_kinds, those of media in config.place_kinds. A kind has

    read(items)              the value of the items that words.split returned; raises Unusable
    show(value)              the text that read() converts to the same value
    resolve(value, directory)  the value with relative paths made absolute
    says                     a noun phrase for 'write …' and for the manual page
"""

import difflib
import os
import re
import time

from targetd.config.words import Unusable, join


def nearest(word, known):
    """The most similar of the known words, or None. '_' and '-' are equal."""
    folded = dict((k.lower().replace('_', '-'), k) for k in known)
    close = difflib.get_close_matches(word.lower().replace('_', '-'), list(folded), 1, 0.6)
    return folded[close[0]] if close else None


class Kind(object):
    """A kind of one item. Its words are joined by blanks and passed to parse()."""

    says = 'one value'
    repeatable = False  # True if the setting may be written several times; the values are joined
    takes_commas = False  # True if a value may contain a comma, in quotes

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'one value is expected, but there are %d' % len(items),
                'quote a value that contains a comma'
                if self.takes_commas
                else 'write ' + self.says,
            )
        return self.parse(' '.join(items[0]))

    def parse(self, text):
        """The value of one item. Raises Unusable."""
        return text

    def resolve(self, value, directory):
        """The value for a file in this directory. Only paths depend on the directory."""
        return value

    def show(self, value):
        return join([[self.write(value)]])

    def write(self, value):
        return str(value)


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
                'write yes or no (synonyms: on, off, true, false, 1, 0)',
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
            raise Unusable('%r is not a whole number' % text, 'write ' + self.says)
        value = int(text, 0) if text[:2].lower() == '0x' else int(text)
        if not self.low <= value <= self.high:
            raise Unusable('%s is out of range' % text, 'write ' + self.says)
        return value


class Auto(Kind):
    """The word `auto`, or a value of another kind -> None or that value."""

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
            raise Unusable('%r is not a valid size' % text, 'write ' + self.says)
        number, unit = match.groups()
        whole, _, fraction = number.partition('.')
        factor = 1024 ** self.UNITS.index(unit.upper())
        value, odd = divmod(int(whole + fraction) * factor, 10 ** len(fraction))
        if odd:
            raise Unusable('%r is not a whole number of bytes' % text, 'write ' + self.says)
        if not self.low <= value <= self.high:
            raise Unusable('the size %s is out of range' % text, 'write ' + self.says)
        if value % self.multiple:
            raise Unusable(
                'the size %s is not a multiple of %s' % (text, self.write(self.multiple)),
                'write ' + self.says,
            )
        return value

    def write(self, value):
        unit = 0
        while value and value % 1024 == 0 and unit < len(self.UNITS) - 1:
            value, unit = value // 1024, unit + 1
        return '%d%s' % (value, self.UNITS[unit])


class ByteCount(Size):
    """A size that is shown as a plain number, as in RFC 7143 -> int."""

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
            raise Unusable('%s is not a power of two' % text, 'write ' + self.says)
        return value

    def write(self, value):
        return '%d' % value


class Duration(Kind):
    """A time; a number without a unit is in seconds -> seconds: int if whole, else float."""

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
            raise Unusable('%r is not a valid time' % text, 'write ' + self.says)
        value = round(float(match.group(1)) * self.FACTORS[match.group(2).lower()], 3)
        if not (self.low <= value <= self.high or (self.off and value == 0)):
            raise Unusable('the time %s is out of range' % text, 'write ' + self.says)
        return int(value) if value == int(value) else value

    def write(self, value):
        if value != int(value):
            return '%dms' % round(value * 1000)
        for unit, factor in (('h', 3600), ('min', 60)):
            if value and value % factor == 0:
                return '%d%s' % (value // factor, unit)
        return '%ds' % value if value else '0'


class Text(Kind):
    """Text of at most `longest` bytes of UTF-8, or of printable ASCII -> str."""

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
                '%r contains a character that is not printable ASCII' % text, 'write ' + self.says
            )
        if any(0 < ord(character) < 32 for character in text):
            raise Unusable('%r contains a control character' % text, 'remove the character')
        if len(text.encode('utf-8', 'replace')) > self.longest:
            raise Unusable(
                '%r is %d bytes long' % (text, len(text.encode('utf-8', 'replace'))),
                'write ' + self.says,
            )
        return text


class Path(Kind):
    """A path; a relative one is relative to the directory of the configuration file -> str."""

    says = 'a path'
    takes_commas = True

    def parse(self, text):
        if not text:
            raise Unusable('the path is empty', 'write a path')
        return text

    def resolve(self, value, directory):
        """The absolute path of a value in a file of this directory.

        The name of the file is its UTF-8 bytes in any locale: with LANG=C Python 3.6 could not
        encode the text of a name that is not ASCII.
        """
        return os.path.normpath(
            os.path.join(directory, os.fsdecode(value.encode('utf-8', 'surrogateescape')))
        )


class Choice(Kind):
    """One of a few words, in any case, or a synonym -> the word as spelled in the table."""

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
            '%r is not a valid value' % text,
            'did you mean %s? Valid values are %s' % (near, self.says)
            if near
            else 'write ' + self.says,
        )


class LogPlace(Kind):
    """The destination of the log -> 'syslog', 'stderr' or an absolute path."""

    says = 'syslog, stderr or an absolute path'
    takes_commas = True

    def parse(self, text):
        if text.lower() in ('syslog', 'stderr'):
            return text.lower()
        if not text.startswith('/'):
            near = nearest(text, ('syslog', 'stderr'))
            raise Unusable(
                '%r is not a valid destination of the log' % text, 'write ' + (near or self.says)
            )
        return text


class Hex(Kind):
    """A number of hex digits of one of the given lengths -> str of lower-case digits."""

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
    """A NAA identifier (SPC-4): 16 digits for NAA 2, 3 or 5, 32 digits for NAA 6 -> str of
    lower-case digits."""

    def __init__(self):
        super(Naa, self).__init__(16, 32)
        self.says = '16 hex digits that begin with 2, 3 or 5, or 32 hex digits that begin with 6'

    def parse(self, text):
        digits = super(Naa, self).parse(text)
        if digits[0] not in ('6' if len(digits) == 32 else '235'):
            raise Unusable('%r begins with %s' % (text, digits[0]), 'write ' + self.says)
        return digits


class Listed(object):
    """Items of one kind, separated by commas; the setting may be repeated -> tuple."""

    repeatable = True
    takes_commas = False

    def __init__(self, kind):
        self.kind = kind
        self.says = kind.says + '; separate several by commas, or repeat the setting'

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
    """Items of one kind, separated by commas or blanks -> tuple. For kinds without blanks in a
    value."""

    def read(self, items):
        return tuple(self.kind.parse(word) for words in items for word in words)


class Account(Kind):
    """Two words, the name and the secret of a user -> (user, secret)."""

    says = 'a name and a secret'
    repeatable = False

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'one account is expected, but there are %d' % len(items),
                'quote a secret that contains a comma',
            )
        return self.item(items[0])

    def item(self, words):
        # A complaint is logged, so it must not contain a word that may be the secret.
        if len(words) == 1:
            raise Unusable(
                'the account has only one word',
                'write a name and a secret, separated by a blank; '
                'quote a secret that begins with # or contains a comma or a blank',
            )
        if len(words) != 2:
            raise Unusable(
                'account %r has %d words after its name' % (words[0], len(words) - 1),
                'write a name and one secret; quote a secret that contains blanks',
            )
        if not words[0] or not words[1]:
            raise Unusable(
                'the account has an empty %s' % ('secret' if words[0] else 'name'),
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


class FormerAccounts(Listed):
    """Accounts with the date until which they are valid -> tuple of (user, secret, 'YYYY-MM-DDTHH:MM'),
    in local time."""

    DATE = re.compile('[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2})?$')

    def __init__(self):
        super(FormerAccounts, self).__init__(Account())
        self.says = (
            'a name, a secret and a date like 2026-12-31 or 2026-12-31T18:00; separate several by commas, '
            'or repeat the setting'
        )

    def item(self, words):
        if len(words) != 3:
            # no word is shown: it may be the secret
            raise Unusable(
                'three words are expected, but there are %d' % len(words),
                'write a name, a secret and a date like 2026-12-31T18:00',
            )
        return self.kind.item(words[:2]) + (self.date(words[2]),)

    def date(self, text):
        """'2026-12-31T00:00' of a date or time as it is written. Raises Unusable."""
        text = text.replace(' ', 'T')
        try:
            if not self.DATE.match(text):
                raise ValueError()
            full = text if 'T' in text else text + 'T00:00'
            time.strptime(full, '%Y-%m-%dT%H:%M')
        except ValueError:
            raise Unusable('the date is not valid', 'write it like 2026-12-31 or 2026-12-31T18:00')
        return full

    def written(self, item):
        return list(item)


class KeyWords(Kind):
    """Words of a list-valued text key, in order of preference -> tuple of words as spelled in the
    table."""

    repeatable = True

    def __init__(self, *words):
        self.words = words
        self.choice = Choice(*words)
        self.says = 'one or more of %s, in order of preference' % ', '.join(words)

    def read(self, items):
        return tuple(self.choice.parse(word) for words in items for word in words)

    def show(self, value):
        return join([[word] for word in value])


class Filters(Listed):
    """Filters of a store, each a name and arguments, which store.filters parses -> tuple of
    'name argument argument'."""

    NAMES = ('delay', 'error', 'readonly', 'tear', 'trace')

    def __init__(self):
        super(Filters, self).__init__(Choice(*self.NAMES))

    def item(self, words):
        return ' '.join([self.kind.parse(words[0])] + words[1:])

    def written(self, item):
        return item.split(' ')
