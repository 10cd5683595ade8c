"""Imports istgt: istgt.conf and the auth.conf that it names.

May import config.identities, migration.imported and migration.files.
"""

import os
import re
from collections import OrderedDict

from targetd.config import identities
from targetd.migration import files
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    Unreadable,
    account_without_secret,
    add_identity,
    admit,
    admit_all,
    admit_nobody,
    network_of,
)

WITHOUT_COUNTERPART = 'queuedepth usedigest'.split()


def parse(path, text):
    """The Imported of an istgt.conf. Raises Unreadable."""
    return _Importer(path, text).imported


def read(path, text):
    """{section: [(words, Place)]}, in the order of the file. Raises Unreadable."""
    sections, name, joined, start = OrderedDict(), None, '', 0
    for number, line in enumerate(text.split('\n'), 1):
        line, start = (joined + line if joined else line), start if joined else number
        if line.endswith('\\'):
            joined = line[:-1]
            continue
        joined = ''
        if line.lstrip().startswith('#') or not line.strip():
            continue
        heading = re.match(r'\s*\[([^\]]+)\]', line)
        if heading:
            name = heading.group(1)
            sections.setdefault(name, [])
        elif name is None:
            raise Unreadable(
                Place(path, start), 'a line stands before the first section', 'remove it'
            )
        else:
            sections[name].append((_words(line, Place(path, start)), Place(path, start)))
    return sections


def _words(line, place):
    words = []
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|(\S+)', line.strip()):
        double, single, bare = match.groups()
        if bare is not None and bare[0] in '"\'':
            raise Unreadable(place, 'a quote is never closed', 'close it on the same line')
        words.append(
            re.sub(r'\\(.)', r'\1', double)
            if double is not None
            else single
            if bare is None
            else bare
        )
    return words


class _Importer(object):
    def __init__(self, path, text):
        self.imported = Imported('istgt')
        self.imported.files = [path]
        self._path = path
        self._sections = read(path, text)
        self._global = self._section('Global')
        self._accounts = self._auth_groups()
        self._numbers = {}
        for name in self._sections:
            match = re.match(r'LogicalUnit(\d+)$', name, re.IGNORECASE)
            if match:
                self._unit(name, match.group(1))
            elif name == 'UnitControl':
                self.imported.left_out(
                    Place(path, None),
                    'the section [UnitControl] is the control port of istgt itself',
                )
            elif not re.match(
                r'(Global|PortalGroup\d+|InitiatorGroup\d+|AuthGroup\d+)$', name, re.I
            ):
                self.imported.left_out(Place(path, None), '[%s] is not a section of istgt' % name)

    def _section(self, name):
        """{word in small letters: [(words behind it, Place)]} of a section."""
        found = OrderedDict()
        for key, lines in self._sections.items():
            if key.lower() == name.lower():
                for words, place in lines:
                    found.setdefault(words[0].lower(), []).append((words[1:], place))
        return found

    @staticmethod
    def _first(section, word, default=''):
        return section[word][0][0][0] if section.get(word) and section[word][0][0] else default

    def _auth_groups(self):
        """{name of the group in small letters: [(words, Place)]}."""
        sections = dict(self._sections)
        named = self._first(self._global, 'authfile')
        if named:
            beside = os.path.join(os.path.dirname(self._path), os.path.basename(named))
            path = next((each for each in (named, beside) if os.path.exists(each)), None)
            if path is None:
                self.imported.wrong(
                    self._global['authfile'][0][1],
                    'the file %s with the accounts does not exist' % named,
                    'copy it to the folder of istgt.conf',
                )
            else:
                self.imported.files.append(path)
                sections.update(read(path, files.read_file(path)))
        return {
            name.lower(): [each for each in lines if each[0][:1] and each[0][0].lower() == 'auth']
            for name, lines in sections.items()
            if name.lower().startswith('authgroup')
        }

    def _unit(self, name, number):
        unit = self._section(name)
        place = Place(self._path, None)
        if 'targetname' not in unit:
            return self.imported.wrong(place, '[%s] has no TargetName' % name, 'write it')
        named, place = self._first(unit, 'targetname'), unit['targetname'][0][1]
        if not re.match(r'(iqn|eui|naa)\.', named):
            named = '%s:%s' % (self._first(self._global, 'nodebase'), named)
        target = Target(named.lower(), place)
        self.imported.targets.append(target)
        if 'targetalias' in unit:
            target.add_words('alias', self._first(unit, 'targetalias'))
        self._mapping(target, unit)
        self._authentication(target, unit)
        for word in unit:
            if word in WITHOUT_COUNTERPART:
                self.imported.left_out(unit[word][0][1], '%s has no counterpart' % word)
        kind = self._first(unit, 'unittype', 'Disk')
        if kind.lower() != 'disk':
            self.imported.targets.remove(target)
            return self.imported.left_out(place, '%s is a %s, not a disk' % (target.name, kind))
        self._luns(target, unit, number, named)

    def _mapping(self, target, unit):
        tags, addresses, names, pairs = [], [], [], []
        for words, place in unit.get('mapping', ()):
            if len(words) != 2:
                self.imported.wrong(place, 'Mapping needs two groups', 'correct the line')
                continue
            tag = self._portal_group(words[0], place)
            if tag not in tags:
                tags.append(tag)
            if words[1] not in pairs:
                pairs.append(words[1])
                self._initiators(words[1], place, addresses, names)
        target.add('portal-group', ', '.join(str(tag) for tag in tags if tag) or None)
        if len(pairs) > 1:
            self.imported.note(
                target.place,
                'target %s has several InitiatorGroups; targetd has one list for all portal groups, and '
                'names and addresses of different groups match together' % target.name,
            )
        is_open = [('ALL', None)] == [(text, None) for text, _ in names] and (
            [text for text, _ in addresses] == ['ALL']
        )
        if is_open:
            return admit_all(self.imported, target, 'its InitiatorGroup admits everyone')
        if [text for text, _ in addresses] == ['ALL'] and names:
            addresses = []
        if [text for text, _ in names] == ['ALL'] and addresses:
            names = []
        admit(self.imported, target, addresses, names)

    def _portal_group(self, name, place):
        match = re.match(r'PortalGroup(\d+)$', name, re.IGNORECASE)
        section = self._section(name)
        if not match or not section.get('portal'):
            self.imported.wrong(place, '%s has no portal' % name, 'write it')
            return None
        self.imported.groups[int(match.group(1))] = [
            words[1] for words, _ in section['portal'] if len(words) > 1
        ]
        return int(match.group(1))

    def _initiators(self, name, place, addresses, names):
        section = self._section(name)
        if not section:
            return self.imported.wrong(place, 'there is no section [%s]' % name, 'write it')
        for words, at in section.get('initiatorname', ()):
            if words and words[0].startswith('!'):
                self.imported.note(
                    at,
                    'InitiatorName %s: targetd cannot refuse single names; only the listed ones are '
                    'admitted' % words[0],
                )
            elif words:
                text = words[0] if words[0] == 'ALL' else words[0].lower()
                names.append((text, at))
        for words, at in section.get('netmask', ()):
            value = network_of(words[0]) if words else None
            if words and words[0] == 'ALL':
                addresses.append(('ALL', at))
            elif value is None:
                self.imported.left_out(
                    at, 'Netmask %s never matches in istgt' % ' '.join(words), 'write the network'
                )
            else:
                addresses.append((value, at))

    def _authentication(self, target, unit):
        method = ' '.join(unit['authmethod'][0][0]).lower() if 'authmethod' in unit else 'auto'
        group = self._first(unit, 'authgroup', 'None').lower()
        if group == 'none':
            if 'chap' in method:
                admit_nobody(
                    self.imported, target, target.place, 'it demands CHAP, but has no AuthGroup'
                )
            return
        accounts = self._accounts.get(group)
        if not accounts:
            return admit_nobody(
                self.imported,
                target,
                target.place,
                'the accounts of %s are missing' % group,
                'write incominguser, and initiator-name',
            )
        mutual = []
        for words, place in accounts:
            if len(words) < 3:
                user = words[1] if len(words) > 1 else '?'
                account_without_secret(
                    self.imported, target, 'incominguser', user, place, 'it has no secret'
                )
                continue
            target.add_words('incominguser', words[1], words[2])
            if len(words) > 4:
                mutual.append((words[3], words[4]))
        if 'chap' not in method:
            self.imported.note(
                target.place,
                'AuthMethod %s of %s does not demand CHAP; targetd demands it of every initiator now'
                % (method, target.name),
            )
        for account in mutual[:1]:
            target.add_words('outgoinguser', *account)
        if mutual and len(mutual) < len(accounts):
            self.imported.note(
                target.place,
                'mutual CHAP belongs to one user in istgt; targetd has one outgoinguser for %s'
                % target.name,
            )

    def _luns(self, target, unit, number, named):
        inquiry = unit['unitinquiry'][0][0] if 'unitinquiry' in unit else []
        inquiry = dict(zip(('vendor', 'product', 'revision', 'serial'), inquiry))
        for word, lines in unit.items():
            match = re.match(r'lun(\d+)$', word)
            if not match:
                continue
            lun = Lun(int(match.group(1)), lines[0][1])
            options = {
                words[1].lower(): words[2]
                for words, _ in lines
                if len(words) > 2 and words[0].lower() == 'option'
            }
            storage = [
                (words, place) for words, place in lines if words and words[0].lower() == 'storage'
            ]
            if len(storage) != 1 or len(storage[0][0]) < 2:
                self.imported.wrong(
                    lines[0][1], '%s of %s has no or several Storage lines' % (word, target.name)
                )
                continue
            words, lun.place = storage[0]
            target.luns.append(lun)
            lun.add_words('backing-store', words[1])
            size = words[2] if len(words) > 2 else 'Auto'
            if re.match(r'\d+(\.\d+)?[KMGT]?B?$', size, re.IGNORECASE):
                lun.add('size', size)
            elif size.lower() != 'auto':
                self.imported.wrong(
                    lun.place, 'the size %s has no counterpart' % size, 'write size'
                )
            if self._first(unit, 'readonly').lower() in ('yes', 'true', 'on'):
                lun.add('readonly', 'yes')
            is_through = (self._first(unit, 'writecache') or options.get('writecache', '')).lower()
            lun.add_flag('write-cache', is_through != 'disable')
            lun.add('block-size', self._first(unit, 'blocklength', '512'))
            lun.add('rotation-rate', options.get('rpm') or self._first(unit, 'rpm', '7200'))
            names = dict(inquiry)
            if names.get('serial') and lun.number:
                names['serial'] += 'L%d' % lun.number
            names['serial'] = options.get('serial') or names.get('serial', '')
            names = {key: value for key, value in names.items() if value}
            add_identity(lun, identities.istgt(named, lun.number, number, **names))
