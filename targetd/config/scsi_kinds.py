"""The kinds of value of SCSI settings: states of portal groups, mode pages, designators, the disks that
smartctl asks, and what is kept before initiators write.

May import config.kinds, config.identities and the pure scsi.alua, scsi.designators and scsi.modes, so
that the name of a state and the length of a page are defined once.
"""

import re

from targetd.config import identities
from targetd.config.kinds import Choice, Duration, Kind, Listed, Naa, Number, Size
from targetd.config.words import Unusable, join
from targetd.scsi import alua, designators, modes


class Rate(Kind):
    """0 for no limit, or a value of another kind -> int."""

    def __init__(self, kind):
        self.kind = kind
        self.says = '%s, or 0 for no limit' % kind.says

    def parse(self, text):
        if text == '0':
            return 0
        try:
            return self.kind.parse(text)
        except Unusable as e:
            raise Unusable(e.text, 'write ' + self.says)

    def write(self, value):
        return self.kind.write(value)


class GroupStates(Listed):
    """Portal groups, each with a state: `1 optimized, 2 standby` -> ((tag, word), …)."""

    says = 'portal groups, each with one of the states %s' % ', '.join(
        word for word, _ in alua.WORDS
    )
    TAG = Number(1, 65535)

    def __init__(self):
        super(GroupStates, self).__init__(self.TAG)
        self.says = GroupStates.says

    def item(self, words):
        if len(words) != 2:
            raise Unusable(
                '%r is not a portal group and a state' % ' '.join(words),
                'write, for example, 2 standby',
            )
        word = words[1].lower().replace('-', '').replace('_', '')
        if word not in alua.STATE_OF_WORD:
            raise Unusable(
                'there is no state %r' % words[1],
                'write one of ' + ', '.join(each for each, _ in alua.WORDS),
            )
        return self.TAG.parse(words[0]), word

    def written(self, item):
        return [str(item[0]), item[1]]


class ModePages(Listed):
    """Mode pages in the notation of tgt, page:subpage:length:byte:byte:… -> ('PP-SS:' and the
    page in hex digits, …)."""

    def __init__(self):
        super(ModePages, self).__init__(Number(0, 255))
        self.says = (
            'mode pages, each as page:subpage:length:byte:byte:… with as many bytes as its length'
        )

    def item(self, words):
        numbers = [self.number(text) for text in ''.join(words).split(':')]
        if len(numbers) < 4 or len(numbers) != 3 + numbers[2]:
            raise Unusable(
                'the mode page has %d bytes, which differs from its length'
                % max(len(numbers) - 3, 0),
                'write page:subpage:length and then as many bytes, like '
                '2:0:14:0x80:0x80:0:0xa:0:0:0:0:0:0:0:0:0:0',
            )
        code, subpage, length = numbers[:3]
        if not 0 < code < modes.ALL_PAGES or subpage >= modes.ALL_SUBPAGES:
            raise Unusable(
                'there is no mode page %d, subpage %d' % (code, subpage),
                'write a page from 1 to 62',
            )
        row = modes.Page(code, subpage, (4 if subpage else 2) + length, {}, '')
        known = modes.BY_KEY.get(row.key, row)
        if known.length != row.length:
            raise Unusable(
                'mode page %d has %d bytes after its length'
                % (code, known.length - len(known.header)),
                'write that number of bytes',
            )
        return '%s:%s' % (row.key, (row.header + bytes(numbers[3:])).hex())

    @staticmethod
    def number(text):
        try:
            value = int(text.strip(), 0)
        except ValueError:
            raise Unusable(
                '%r is not a number' % text, 'write numbers like 18 or 0x12, separated by :'
            )
        if not 0 <= value <= 255:
            raise Unusable('%s is not a byte' % text, 'write numbers from 0 to 255')
        return value

    def written(self, item):
        key, _, digits = item.partition(':')
        data = bytes.fromhex(digits)[4 if key[3:] != '00' else 2 :]
        return [
            ':'.join(
                str(number)
                for number in [int(key[:2], 16), int(key[3:], 16), len(data)] + list(data)
            )
        ]


class Naas(Listed):
    """NAA identifiers -> tuple of lower-case digits, or ('none',)."""

    def __init__(self):
        super(Naas, self).__init__(Naa())
        self.says = 'none, or ' + self.says

    def read(self, items):
        if [[word.lower() for word in words] for words in items] == [[designators.NONE]]:
            return (designators.NONE,)
        return super(Naas, self).read(items)


class Designator(Kind):
    """The content of a designator: its code set, its text or hex digits, and its length if it is
    filled with NULs -> 'code set:hex digits', or 'none'."""

    MOST = 252
    takes_commas = True

    def __init__(self, may_be_none=False):
        self.may_be_none = may_be_none
        self.says = (
            '%sa code set (ascii, utf-8 or binary), the text or, for binary and after 0x, hex digits, '
            'and optionally the length in bytes to which it is filled with NULs'
            % ('none, or ' if may_be_none else '')
        )

    def read(self, items):
        words = [word for item in items for word in item]
        if self.may_be_none and [word.lower() for word in words] == [designators.NONE]:
            return designators.NONE
        if len(items) > 1 or not 2 <= len(words) <= 3:
            raise Unusable(
                'the designator has %d words' % len(words),
                'write %s, and quote a text that contains blanks or commas' % self.says,
            )
        code_set = Choice(*sorted(designators.CODE_SETS)).parse(words[0])
        content = self._content(code_set, words[1])
        if len(words) == 3:
            content = content.ljust(Number(len(content), self.MOST).parse(words[2]), b'\0')
        if not 1 <= len(content) <= self.MOST:
            raise Unusable(
                'the designator is %d bytes long' % len(content),
                'write from 1 to %d bytes' % self.MOST,
            )
        return '%s:%s' % (code_set, content.hex())

    @staticmethod
    def _content(code_set, text):
        digits = text[2:] if text[:2].lower() == '0x' else text
        if code_set == 'binary' or digits != text:
            try:
                return bytes.fromhex(digits)
            except ValueError:
                raise Unusable('%r is not a row of hex digits' % text, 'write two for each byte')
        if code_set == 'ascii' and not all(' ' <= character <= '~' for character in text):
            raise Unusable(
                '%r contains a character that is not printable ASCII' % text,
                'write its bytes as hex digits after 0x, or the code set utf-8',
            )
        return text.encode('utf-8')

    def show(self, value):
        if value == designators.NONE:
            return value
        code_set, _, digits = value.partition(':')
        return identities.designator(code_set, bytes.fromhex(digits))


class Identity(Kind):
    """The identity that another target gave to the LUN: the name of the target and words of it ->
    (name, ((word, value), ...))."""

    takes_commas = True
    says = 'the name of a target (%s) and its words, each as word=value' % ', '.join(
        identities.FORMATS
    )

    def read(self, items):
        if len(items) > 1:
            raise Unusable('one identity is expected', 'quote a word that contains a comma')
        name = Choice(*identities.FORMATS).parse(items[0][0])
        found = {}
        for word in items[0][1:]:
            key, equals, value = word.partition('=')
            if not equals or key in found:
                raise Unusable(
                    'identity: %r is not word=value' % word
                    if not equals
                    else 'identity: %s is written twice' % key,
                    'write, for example, identity = tgt tid=1 lun=1',
                )
            found[key.lower().replace('-', '_')] = value
        return name, tuple(sorted(found.items()))

    def show(self, value):
        name, words = value
        return join([[name] + ['%s=%s' % word for word in words]])


class SmartDevices(Kind):
    """Devices for smartctl, separated by blanks, each `PATH` or `TYPE@PATH` -> ((type or '', path), …)."""

    PATTERN = re.compile(r'(?:([A-Za-z0-9,+:/_-]+)@)?(/dev/[^\s@]+)$')
    says = (
        'devices of this host separated by blanks, each a path in /dev, or TYPE@PATH with a type of '
        "smartctl's option -d"
    )

    def parse(self, text):
        found = []
        for word in text.split():
            match = self.PATTERN.match(word)
            if not match or '/../' in word or (match.group(1) or '').startswith('-'):
                raise Unusable(
                    '%r is not a device' % word, 'write, for example, "megaraid,5@/dev/bus/0"'
                )
            found.append((match.group(1) or '', match.group(2)))
        return tuple(found)

    def write(self, value):
        return ' '.join('%s@%s' % each if each[0] else each[1] for each in value)


class SpinDown(Duration):
    """A time, never or on-stop -> seconds, 0 or ON_STOP."""

    ON_STOP = -1

    def __init__(self):
        super(SpinDown, self).__init__(60, 86400, off=True)
        self.says = 'a time from 1min to 24h, like 30min, or never, or on-stop'

    def parse(self, text):
        word = text.lower()
        if word == 'on-stop':
            return self.ON_STOP
        return 0 if word == 'never' else super(SpinDown, self).parse(text)

    def write(self, value):
        if value == self.ON_STOP:
            return 'on-stop'
        return super(SpinDown, self).write(value) if value else 'never'


class Guards(Listed):
    """What is kept before initiators write: `first-write-snapshot, undo-journal 4G` -> ((word, bytes or 0),
    …); off -> ()."""

    OFF, SNAPSHOT, JOURNAL = 'off', 'first-write-snapshot', 'undo-journal'
    SIZE = Size(16 << 20, 1 << 50)

    def __init__(self):
        super(Guards, self).__init__(Choice(self.SNAPSHOT, self.JOURNAL))
        self.says = 'off, or first-write-snapshot, or undo-journal and its size, or both'

    def read(self, items):
        if [[word.lower() for word in words] for words in items] == [[self.OFF]]:
            return ()
        found = super(Guards, self).read(items)
        if len(dict(found)) < len(found):
            raise Unusable('a guard is written twice', 'write ' + self.says)
        return tuple(sorted(found))

    def item(self, words):
        word = words[0].lower()
        if word == self.SNAPSHOT and len(words) == 1:
            return word, 0
        if word == self.JOURNAL and len(words) == 2:
            return word, self.SIZE.parse(words[1])
        if word == self.JOURNAL:
            raise Unusable('undo-journal needs its size', 'write, for example, undo-journal 4G')
        raise Unusable('%r is not a guard' % ' '.join(words), 'write ' + self.says)

    def resolve(self, value, directory):
        return value

    def show(self, value):
        return super(Guards, self).show(value) if value else self.OFF

    def written(self, item):
        return [item[0]] + ([self.SIZE.write(item[1])] if item[1] else [])
