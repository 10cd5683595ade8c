"""The kinds of value of SCSI settings: states of portal groups, and mode pages.

May import config.kinds and the pure tables scsi.alua and scsi.modes, so that the name of a state
and the length of a page are defined once.
"""

from targetd.config.kinds import Listed, Number
from targetd.config.words import Unusable
from targetd.scsi import alua, modes


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
