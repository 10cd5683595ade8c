"""The kind of value of the setting lun-map.

May import config.kinds, config.lun_maps, config.network_kinds and config.words.
"""

import re

from targetd.config.kinds import Kind, Listed, Number
from targetd.config.lun_maps import ACCOUNT, EVERY, EVERYONE, NAME, NETWORK, PATTERN, Entry, LunMap
from targetd.config.network_kinds import ALL, NamePattern, Network
from targetd.config.words import Unusable

ACCOUNT_PREFIX = 'account:'
READ_ONLY = 'read-only'
ALL_LUNS, NO_LUN = 'all', 'none'


class LunMaps(Listed):
    """Initiators, each with the LUNs that it sees -> tuple of LunMap."""

    EXAMPLE = 'iqn.1993-08.org.debian:web1 0 1=4 2=5:read-only'
    LUN = Number(0, 16383)
    NAME = NamePattern()

    def __init__(self):
        super(LunMaps, self).__init__(Kind())
        self.says = (
            'an initiator name (in which * matches any characters and ? matches one), a network, %sNAME or '
            'ALL, and the LUNs that it sees, like %s; all and none are possible; separate several by '
            'commas, or repeat the setting' % (ACCOUNT_PREFIX, self.EXAMPLE.partition(' ')[2])
        )

    def item(self, words):
        if len(words) < 2:
            # no word is shown: it may be a secret that belongs to incominguser
            raise Unusable(
                'an initiator and the LUNs that it sees are expected',
                'write, for example, %s' % self.EXAMPLE,
            )
        kind, who = self._who(words[0])
        lowered = [word.lower() for word in words[1:]]
        if len(lowered) > 1 and any(
            each.partition(':')[0] in (ALL_LUNS, NO_LUN) for each in lowered
        ):
            raise Unusable(
                '"all" and "none" are not combined with other LUNs', 'write one of them alone'
            )
        if lowered == [NO_LUN]:
            return LunMap(kind, who, ())
        return LunMap(kind, who, tuple(self._entry(word) for word in lowered))

    def _who(self, word):
        if word.lower().startswith(ACCOUNT_PREFIX):
            account = word[len(ACCOUNT_PREFIX) :]
            if not account:
                raise Unusable('the name of the account is missing', 'write account:NAME')
            return ACCOUNT, account
        if word.upper() == ALL:
            return EVERYONE, ALL
        if re.match(r'[0-9.]+(/|$)|[0-9a-fA-F]*:[0-9a-fA-F:.]*(/|$)', word):
            return NETWORK, Network().parse(word)
        pattern = self.NAME.parse(word)
        return (PATTERN if '*' in pattern or '?' in pattern else NAME), pattern

    def _entry(self, word):
        text, colon, option = word.partition(':')
        if colon and option not in (READ_ONLY, 'readonly', 'ro'):
            raise Unusable(
                '%r does not end with :%s' % (word, READ_ONLY), 'write, for example, 2=5:read-only'
            )
        if text == ALL_LUNS:
            return Entry(EVERY, EVERY, bool(colon))
        shown, equals, lun = text.partition('=')
        number = self._number(word, shown)
        return Entry(number, self._number(word, lun) if equals else number, bool(colon))

    def _number(self, word, text):
        try:
            return self.LUN.parse(text)
        except Unusable:
            raise Unusable(
                '%r is not a LUN' % word,
                'write the number of a LUN, or NUMBER=LUN to show the LUN under another number, like 1=4',
            )

    def written(self, item):
        return [item.written] + ([_written(each) for each in item.entries] or [NO_LUN])


def _written(entry):
    if entry.lun == EVERY:
        text = ALL_LUNS
    elif entry.number == entry.lun:
        text = str(entry.lun)
    else:
        text = '%d=%d' % (entry.number, entry.lun)
    return text + (':' + READ_ONLY if entry.read_only else '')
