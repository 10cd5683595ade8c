"""Which LUNs of a target an initiator sees, under which numbers, and whether it may write them
(the setting lun-map). Pure; may import config.network_kinds and iscsi.names.

One map alone counts for a session, the most specific one that matches:

     an initiator name > a CHAP account > the longest name pattern > the smallest network > ALL

A target without maps shows every LUN to every initiator that it admits. A target with maps refuses the
initiators that no map matches.
"""

import ipaddress
from collections import OrderedDict, namedtuple

from targetd.config.network_kinds import ALL, network_has
from targetd.iscsi import names

NAME, ACCOUNT, PATTERN, NETWORK, EVERYONE = 'name', 'account', 'pattern', 'network', 'everyone'
ORDER = (NAME, ACCOUNT, PATTERN, NETWORK, EVERYONE)

#: In place of a LUN number: all LUNs of the target, under their own numbers.
EVERY = -1

#: How a session sees a LUN. number: the LUN that it addresses; read_only: it may only read.
Shown = namedtuple('Shown', 'number read_only')

#: An entry of a map. number: what the initiator addresses; lun: the LUN of the target, or EVERY.
Entry = namedtuple('Entry', 'number lun read_only')


class LunMap(namedtuple('LunMap', 'kind who entries')):
    """One map. kind: of ORDER; who: an initiator name, the name of an account, a pattern of names, a network,
    or ALL; entries: (Entry, ...)."""

    __slots__ = ()

    def shown(self, lun):
        """How this LUN of the target is seen (Shown), or None if it is not."""
        for entry in self.entries:
            if entry.lun == lun:
                return Shown(entry.number, entry.read_only)
            if entry.lun == EVERY:
                return Shown(lun, entry.read_only)
        return None

    @property
    def written(self):
        """Whom the map is for, as the setting has it."""
        return 'account:' + self.who if self.kind == ACCOUNT else self.who


#: What a session of a target without maps has.
EVERY_LUN = LunMap(EVERYONE, ALL, (Entry(EVERY, EVERY, False),))


def maps_of(target):
    """The LunMaps of a model.Target: the entries of several lines for one initiator are one map."""
    found = OrderedDict()
    for each in target.lun_map:
        before = found.get(each[:2])
        found[each[:2]] = each._replace(entries=before.entries + each.entries) if before else each
    return list(found.values())


def choose(target, initiator_name, address, accounts):
    """The LunMap of an initiator, or None if no map matches it. address: of the connection; accounts: the
    names of the CHAP accounts that it has proved for this target."""
    if not target.lun_map:
        return EVERY_LUN
    matching = [
        each for each in maps_of(target) if _matches(each, initiator_name, address, accounts)
    ]
    return min(matching, key=rank) if matching else None


def refusal(target, initiator_name, address):
    """None if a map may match this initiator, which may not have proved an account yet, else a sentence about
    the maps."""
    if not target.lun_map:
        return None
    users = [user for user, _ in target.accounts if _may_use(target, user, initiator_name)]
    if choose(target, initiator_name, address, users) is not None:
        return None
    return no_map(target, initiator_name, address, '')


def no_map(target, initiator_name, address, account):
    """The sentence about an initiator for which a target has no map."""
    return (
        'target %s shows no LUN to %s at %s%s: it matches none of lun-map = %s; write a lun-map for it, '
        'or for ALL'
        % (
            target.name,
            initiator_name,
            address,
            ' with the account %s' % account if account else '',
            ', '.join(each.written for each in maps_of(target)),
        )
    )


def _may_use(target, user, initiator_name):
    patterns = [pattern for account, pattern in target.incominguser_for if account == user]
    return not patterns or names.matches_any(patterns, initiator_name)


def _matches(lun_map, initiator_name, address, accounts):
    if lun_map.kind in (NAME, PATTERN):
        return names.matches_pattern(lun_map.who, initiator_name)
    if lun_map.kind == ACCOUNT:
        return lun_map.who in accounts
    return lun_map.kind == EVERYONE or network_has(lun_map.who, address)


def rank(lun_map):
    """The lowest is the most specific one. Of two patterns with as many characters, the first one counts."""
    length = 0
    if lun_map.kind == PATTERN:
        length = sum(character not in '*?' for character in lun_map.who)
    elif lun_map.kind == NETWORK:
        length = ipaddress.ip_network(lun_map.who).prefixlen
    return ORDER.index(lun_map.kind), -length


def as_plain(lun_map):
    """A LunMap, or None, as lists, texts and numbers: from_plain() makes it again."""
    return lun_map and [lun_map.kind, lun_map.who, [list(entry) for entry in lun_map.entries]]


def from_plain(words):
    """The LunMap, or None, that as_plain() has made of it."""
    return words and LunMap(words[0], words[1], tuple(Entry(*entry) for entry in words[2]))


def have_common_lun(one, other):
    """True unless two LunMaps of a target have no LUN in common. None, an unknown map, may have any."""
    maps = (one, other)
    if None in maps:
        return True
    return any(
        all(each.shown(entry.lun) for each in maps) for each in maps for entry in each.entries
    )


def contradictions(items, luns, users):
    """[(place, text, remedy)] of the maps of one target. items: [(LunMap, place)], one for each item of the
    setting; luns: its LUNs by number; users: the names of its accounts."""
    found, seen = [], {}
    for lun_map, place in items:
        if lun_map.kind == ACCOUNT and lun_map.who not in users:
            text = 'lun-map names an account that the target does not have'  # it may be a secret
            found.append((place, text, 'write incominguser = NAME SECRET, or remove the map'))
        before = seen.get(lun_map[:2])
        found += [(place,) + each for each in _clashes(lun_map, before, luns)]
        entries = before.entries if before else ()
        seen[lun_map[:2]] = lun_map._replace(entries=entries + lun_map.entries)
    return found


def _clashes(lun_map, before, luns):
    """[(text, remedy)] of one item. before: the map of the same initiators as the items before it make it,
    or None."""
    who, earlier = lun_map.written, list(before.entries) if before else []
    if before and (_is_whole(before) or _is_whole(lun_map)):
        yield (
            'there are two maps for %s, one of them "all" or "none"' % who,
            'remove one of the two',
        )
        return
    for entry in lun_map.entries:
        if entry.lun != EVERY and entry.lun not in luns:
            yield (
                'the map for %s has lun %d, which the target does not have' % (who, entry.lun),
                'write one of its LUNs (%s), or a section [[lun %d]]'
                % (', '.join(str(number) for number in luns) or 'it has none', entry.lun),
            )
        if any(other.number == entry.number for other in earlier):
            yield (
                'the map for %s has number %d twice' % (who, entry.number),
                'write a different number for each LUN',
            )
        elif any(other.lun == entry.lun for other in earlier):
            yield (
                'the map for %s has lun %d twice' % (who, entry.lun),
                'write it once: an initiator takes two numbers for two disks',
            )
        earlier.append(entry)


def _is_whole(lun_map):
    """True for "all" and "none"."""
    return not lun_map.entries or lun_map.entries[0].lun == EVERY
