"""Imports IET (iscsitarget): ietd.conf with initiators.allow and initiators.deny beside it.

May import config.identities, migration.imported and migration.files.
"""

import ipaddress
import os
import re

from targetd.config import identities
from targetd.migration import files
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    account_without_secret,
    add_identity,
    admit,
    admit_all,
    network_of,
)

TEXT_KEYS = {
    key.lower(): key
    for key in (
        'MaxConnections InitialR2T ImmediateData MaxRecvDataSegmentLength MaxBurstLength FirstBurstLength '
        'DefaultTime2Wait DefaultTime2Retain MaxOutstandingR2T ErrorRecoveryLevel HeaderDigest DataDigest'
    ).split()
}
WITHOUT_COUNTERPART = (
    'maxsessions maxxmitdatasegmentlength datapduinorder datasequenceinorder wthreads queuedcommands '
    'nopinterval noptimeout alias isnsaccesscontrol'
).split()


def parse(path, text):
    """The Imported of an ietd.conf."""
    return _Importer(path, text).imported


class _Importer(object):
    def __init__(self, path, text):
        self.imported = Imported('IET')
        self.imported.files = [path]
        self._directory = os.path.dirname(path)
        self._target = None
        self._used = {}
        lines = text.split('\n')
        if text and not text.endswith('\n'):
            self.imported.wrong(
                Place(path, len(lines)),
                'the last line has no line end, and IET ignores its last word',
                'add a line end, or remove the line',
            )
        for number, line in enumerate(lines, 1):
            words = line.split()
            if words and not words[0].startswith('#'):
                self._line(words, Place(path, number))
        allow, deny = self._rules('initiators.allow'), self._rules('initiators.deny')
        for target in self.imported.targets:
            self._access(target, allow, deny)

    def _line(self, words, place):
        word, rest = words[0].lower(), words[1:]
        section = self._target or self.imported.server
        if word == 'target':
            self._target = Target(' '.join(rest).lower(), place)
            self.imported.targets.append(self._target)
        elif word in ('incominguser', 'outgoinguser'):
            name = word if self._target else word.replace('user', 'discoveryuser')
            if len(rest) < 2:
                return account_without_secret(
                    self.imported,
                    section,
                    name,
                    rest[0] if rest else '?',
                    place,
                    'it has no secret',
                )
            if word == 'outgoinguser':
                section.replace(name, None)
            section.add_words(name, rest[0], rest[1])
        elif word == 'lun' and self._target is not None:
            self._lun(rest, place)
        elif word == 'isnsserver':
            self.imported.server.add('isns-server', rest[0] if rest else None)
        elif word in TEXT_KEYS and self._target is not None:
            self._target.add(TEXT_KEYS[word], ', '.join(''.join(rest).split(',')))
        elif word in WITHOUT_COUNTERPART:
            self.imported.left_out(place, '%s has no counterpart' % words[0], _remedy(word))
        else:
            self.imported.left_out(
                place, '%s is not a word of IET' % words[0], 'check its spelling'
            )

    def _lun(self, rest, place):
        if len(rest) < 2 or not rest[0].isdigit():
            return self.imported.wrong(place, 'a Lun needs a number and Path=', 'correct the line')
        number = int(rest[0])
        key = (self._target.name, number)
        if key in self._used:
            return self.imported.wrong(
                place,
                'LUN %d of %s is written twice; the other place is %s:%d'
                % ((number, self._target.name) + self._used[key]),
                'remove one of the two',
            )
        self._used[key] = place
        words = {}
        for part in ''.join(rest[1:]).split(','):
            name, _, value = part.partition('=')
            words[name.lower()] = value
        lun = Lun(number, place)
        self._target.luns.append(lun)
        kind = words.pop('type', 'fileio')
        if kind == 'nullio':
            lun.add('type', 'null')
            lun.add('size', str(int(words.pop('sectors', 0) or 0) * 512))
        else:
            lun.add_words('backing-store', words.pop('path', ''))
        mode = words.pop('iomode', '')
        lun.add_flag('write-cache', mode == 'wb')
        if mode == 'ro':
            lun.add('readonly', 'yes')
        lun.add('block-size', words.pop('blocksize', '512'))
        lun.add('rotation-rate', '0')
        scsi_id, serial = words.pop('scsiid', ''), words.pop('scsisn', '')
        add_identity(lun, identities.iet(self._target.name, number, scsi_id, serial))
        for name in sorted(words):
            self.imported.left_out(place, '%s has no counterpart' % name)

    # -- initiators.allow and initiators.deny ------------------------------------------------------

    def _rules(self, name):
        """[(target or 'ALL', [rule], Place)] of a file beside ietd.conf, or None without it."""
        path = os.path.join(self._directory, name)
        if not os.path.exists(path):
            return None
        self.imported.files.append(path)
        rules = []
        lines = files.read_file(path).split('\n')
        for number, line in enumerate(lines, 1):
            words = line.split(None, 1)
            if not words or words[0].startswith('#'):
                continue
            place = Place(path, number)
            if number == len(lines):
                self.imported.wrong(
                    place, 'the line has no line end, and IET ignores it', 'add a line end'
                )
                continue
            items = [item.strip() for item in (words[1] if len(words) > 1 else '').split(',')]
            rules.append((words[0], [item for item in items if item], place))
        return rules

    def _access(self, target, allow, deny):
        if deny is not None:
            return self._old_rule(target, allow, deny)
        if allow is None:
            return admit_all(
                self.imported, target, 'there is no initiators.allow, so IET admits everyone'
            )
        line = _first(allow, target.name)
        if line is None:
            return self.imported.note(
                target.place, 'target %s: no line of initiators.allow admits anyone' % target.name
            )
        _, items, place = line
        if 'ALL' in items:
            return admit_all(self.imported, target, 'initiators.allow admits everyone')
        addresses, names = [], []
        for item in items:
            self._item(item, place, addresses, names)
        admit(self.imported, target, addresses, names, either=True)

    def _item(self, item, place, addresses, names):
        network = network_of(item)
        if network and not network.endswith(('/32', '/128')):
            addresses.append((network, place))
        elif network or re.match(r'[\d.]+/\d+$', item):
            self.imported.left_out(
                place,
                '%s never matches in IET, because of its prefix length' % item,
                'write the address without it if it should match now',
            )
        else:
            name, is_plain = _pattern(item)
            if is_plain:
                names.append((name, place))
            else:
                self.imported.wrong(
                    place,
                    '%s is a regular expression that targetd cannot express' % item,
                    'write initiator-name with * and ?',
                )

    def _old_rule(self, target, allow, deny):
        denied = _first(deny, target.name)
        if denied is None:
            return admit_all(self.imported, target, 'initiators.deny does not name it')
        allowed = _first(allow or [], target.name)
        everyone = 'ALL' in denied[1]
        if everyone and allowed is not None and 'ALL' not in allowed[1]:
            addresses, names = [], []
            for item in allowed[1]:
                self._item(item, allowed[2], addresses, names)
            return admit(self.imported, target, addresses, names, either=True)
        if everyone and allowed is None:
            return None
        is_void = allowed is not None and all(_covers(allowed[1], item) for item in denied[1])
        if is_void:
            return admit_all(
                self.imported,
                target,
                'because initiators.deny exists, IET refuses only whom it denies and initiators.allow '
                'does not admit: that is no initiator',
            )
        self.imported.wrong(
            denied[2],
            'target %s admits everyone but %s; targetd has no list of denied initiators'
            % (target.name, ', '.join(denied[1])),
            'write the initiators that may log in into initiators.allow',
        )


def _remedy(word):
    return {
        'nopinterval': 'write nop-interval in [server] or in the target',
        'alias': 'IET ignores it; write alias in the target',
    }.get(word, '')


def _first(rules, name):
    return next((rule for rule in rules if rule[0] == 'ALL' or rule[0].lower() == name), None)


def _covers(allowed, item):
    """True if one of the allowed items admits the address or network `item`."""

    for each in allowed:
        if each == 'ALL' or each == item:
            return True
        try:
            inner = ipaddress.ip_network(item.strip('[]'))
            outer = ipaddress.ip_network(each.strip('[]'))
        except ValueError:
            continue
        if (
            inner.version == outer.version
            and inner.network_address in outer
            and (inner.prefixlen >= outer.prefixlen)
        ):
            return True
    return False


def _pattern(expression):
    """(pattern of targetd, True if it means the same) of an anchored basic regular expression."""
    text = expression.replace('\\.', '\0').replace('.*', '*').replace('.', '?').replace('\0', '.')
    return text.lower(), not re.search(r'[\\\[\]^$]', text)
