"""The changes that targetdctl makes to a configuration: functions of sections that return the wanted
sections.

Each function of EDITS takes the [Section] in force and its arguments, all text or numbers, and returns
[Section]. It raises TargetdError if there is no such target, LUN or item, or if the change would admit
more initiators than the administrator may expect; config.check decides everything else. May import base,
config.sections, config.kinds, config.network_kinds and config.words.
"""

from targetd.config import lun_maps, network_kinds, settings
from targetd.config.kinds import nearest
from targetd.config.sections import (
    Entry,
    Section,
    combined,
    copied,
    folded,
    row_of,
    value_of,
    with_lun_sections,
)
from targetd.config.words import Unusable, join, split
from targetd.errors import TargetdError
from targetd.iscsi import names

#: Settings with accounts, which no option of a command line may contain.
ACCOUNTS = (
    'incominguser',
    'incominguser-file',
    'former-incominguser',
    'outgoinguser',
    'incomingdiscoveryuser',
    'outgoingdiscoveryuser',
)


class Draft(object):
    """Sections that are being changed."""

    def __init__(self, sections):
        self.by_key = combined(sections)

    def sections(self):
        """The [Section] with the changes."""
        return list(self.by_key.values())

    def target(self, name):
        """The Section of a target. Raises TargetdError."""
        key = ('target', names.fold(name))
        if key not in self.by_key:
            raise TargetdError(
                'there is no target %s; targetdctl show targets lists them%s'
                % (name, self._meant(key[1]))
            )
        return self.by_key[key]

    def _meant(self, name):
        known = [key[1] for key in self.by_key if key[0] == 'target']
        near = nearest(name, known) or next((n for n in known if n.endswith(':' + name)), None)
        return ', did you mean %s?' % near if near else ''

    def target_with_luns(self, name):
        """The same, and each LUN is a section."""
        key = ('target', self.target(name).argument)
        key = ('target', names.fold(key[1]))
        self.by_key[key] = copied(with_lun_sections(self.by_key[key]))
        return self.by_key[key]

    def lun(self, target_name, number):
        """The Section of a LUN. Raises TargetdError."""
        target = self.target_with_luns(target_name)
        for section in target.sections:
            if section.argument == str(number):
                return section
        raise TargetdError(
            'target %s has no lun %d; targetdctl show units lists them' % (target_name, number)
        )

    def server(self):
        """The section [server]."""
        if ('server', '') not in self.by_key:
            self.by_key['server', ''] = Section('server', '', '/', None, [], [])
        return self.by_key['server', '']


def put(section, name, text):
    """Set a setting to this text."""
    drop(section, name)
    section.entries.append(Entry(name, text, '/', None))


def drop(section, name):
    """Remove a setting."""
    section.entries[:] = [e for e in section.entries if folded(e.name) != folded(name)]


def quoted(text):
    """A text as one word of a value. Raises TargetdError."""
    try:
        return join([[text]])
    except ValueError as e:
        raise TargetdError(str(e))


def _settings(section, pairs, size=None):
    """Put the settings of `--set NAME=VALUE`."""
    for pair in pairs or ():
        name, equals, text = pair.partition('=')
        if not equals or not name.strip() or not text.strip():
            raise TargetdError('"%s" is not NAME=VALUE; write for example --set thin=yes' % pair)
        name = folded(name.strip())
        if name in ACCOUNTS:
            raise TargetdError(
                '%s contains a secret, which other users could see in the list of processes; use '
                'targetdctl account add' % name
            )
        put(section, name, text.strip())
    if size is not None:
        put(section, 'size', quoted(size))


def _take(draft, kind, argument):
    """A new section. Raises TargetdError if there is one already."""
    section = Section(kind, argument, '/', None, [], [])
    key = (kind, names.fold(argument) if kind == 'target' else int(argument))
    if key in draft.by_key:
        raise TargetdError(
            'there is a %s %s already, at %s:%s'
            % (kind.replace('-', ' '), argument, draft.by_key[key].file, draft.by_key[key].line)
        )
    draft.by_key[key] = section
    return section


# -- targets ---------------------------------------------------------------------------------------


def add_target(sections, name, settings=()):
    """A new target without LUNs."""
    draft = Draft(sections)
    _settings(_take(draft, 'target', name), settings)
    return draft.sections()


def remove_target(sections, name):
    """A target and its LUNs are not served any more."""
    draft = Draft(sections)
    draft.target(name)
    del draft.by_key['target', names.fold(name)]
    return draft.sections()


def rename_target(sections, name, new_name, identities=None):
    """The target gets another name. identities: {lun number: {setting: text}} of identifiers that are
    derived from the name, so that initiators recognize the disks."""
    draft = Draft(sections)
    old = draft.target_with_luns(name)
    new = _take(draft, 'target', new_name)
    new.entries.extend(old.entries)
    new.sections.extend(old.sections)
    for lun in new.sections:
        for setting, text in sorted((identities or {}).get(int(lun.argument), {}).items()):
            if not lun.of(setting) and not lun.of('identity'):
                put(lun, setting, text)
    del draft.by_key['target', names.fold(name)]
    return draft.sections()


def set_target(sections, name, setting, text):
    """A setting of a target."""
    draft = Draft(sections)
    put(draft.target(name), setting, text)
    return draft.sections()


# -- LUNs ------------------------------------------------------------------------------------------


def add_lun(sections, target, number, store, size=None, settings=()):
    """A further LUN. number None: the first free one."""
    draft = Draft(sections)
    section = draft.target_with_luns(target)
    taken = {lun.argument: lun for lun in section.sections}
    if number is None:
        number = next(n for n in range(len(taken) + 1) if str(n) not in taken)
    if str(number) in taken:
        raise TargetdError(
            'target %s has a lun %d already, at %s:%s; write another number, or remove that LUN first'
            % (target, number, taken[str(number)].file, taken[str(number)].line)
        )
    lun = Section('lun', str(number), '/', None, [], [])
    if store in ('ram', 'null'):
        put(lun, 'type', store)
    else:
        put(lun, 'backing-store', quoted(store))
    _settings(lun, settings, size)
    section.sections.append(lun)
    return draft.sections()


def remove_lun(sections, target, number):
    """A LUN is not served any more; its file or disk remains."""
    draft = Draft(sections)
    lun = draft.lun(target, number)
    draft.target(target).sections.remove(lun)
    return draft.sections()


def move_lun(sections, target, number, new_target, new_number, identity=None):
    """A LUN gets another number, or another target."""
    draft = Draft(sections)
    lun = draft.lun(target, number)
    draft.target(target).sections.remove(lun)
    receiver = draft.target_with_luns(new_target)
    if any(each.argument == str(new_number) for each in receiver.sections):
        raise TargetdError('target %s has a lun %d already' % (new_target, new_number))
    moved = copied(lun)._replace(argument=str(new_number))
    if receiver is not draft.target(target):
        for row in settings.of('lun'):  # what the LUN had from its old target
            if row.shared and not moved.of(row.name):
                moved.entries.extend(draft.target(target).of(row.name))
    else:
        _renumber_maps(receiver, int(number), int(new_number))
    for setting, text in sorted((identity or {}).items()):
        if not moved.of(setting) and not moved.of('identity'):
            put(moved, setting, text)
    receiver.sections.append(moved)
    return draft.sections()


def set_lun(sections, target, number, setting, text):
    """A setting of a LUN."""
    draft = Draft(sections)
    put(draft.lun(target, number), setting, text)
    return draft.sections()


# -- lists: accounts, rules, portals ---------------------------------------------------------------


def _items(kind, section, name):
    """The items of a list. Raises TargetdError."""
    try:
        return list(value_of(kind, section.of(name)) or ())
    except Unusable as e:
        raise TargetdError('%s: %s' % (name, e))


def _put_items(kind, section, name, items):
    drop(section, name)
    for item in items:
        text = row_of(kind, name).kind.show((item,))
        section.entries.append(Entry(name, text, '/', None))


def _accounts(section, user, must_exist):
    """[(user, secret)] of a target. Raises TargetdError."""
    found = _items('target', section, 'incominguser')
    exists = any(account[0] == user for account in found)
    if exists != must_exist:
        raise TargetdError(
            'target %s has %s account %s; %s'
            % (
                section.argument,
                'no' if must_exist else 'an',
                user,
                'targetdctl account add makes one'
                if must_exist
                else 'targetdctl account rotate gives it another secret',
            )
        )
    return found


def add_account(sections, target, user, secret):
    """A further CHAP account of a target."""
    draft = Draft(sections)
    section = draft.target(target)
    found = _accounts(section, user, False)
    _put_items('target', section, 'incominguser', found + [(user, secret)])
    return draft.sections()


def remove_account(sections, target, user, without_chap=False):
    """An account of a target, and its former secret, are not valid any more."""
    draft = Draft(sections)
    section = draft.target(target)
    left = [each for each in _accounts(section, user, True) if each[0] != user]
    if not left and not without_chap:
        raise TargetdError(
            '%s is the last account of %s, which then would admit initiators without CHAP; add another '
            'account first, or write --without-chap' % (user, target)
        )
    if not left:
        drop(section, 'outgoinguser')
    _put_items('target', section, 'incominguser', left)
    if not left:
        section.entries.append(Entry('incominguser', None, '/', None))
    for name in ('former-incominguser', 'incominguser-for'):
        rest = [each for each in _items('target', section, name) if each[0] != user]
        _put_items('target', section, name, rest)
    return draft.sections()


def rotate_account(sections, target, user, secret, until):
    """An account gets another secret; the present one is valid until then, too."""
    draft = Draft(sections)
    section = draft.target(target)
    found = _accounts(section, user, True)
    old = [each for each in found if each[0] == user]
    if old[0][1] == secret:
        raise TargetdError('%s has this secret already' % user)
    _put_items(
        'target',
        section,
        'incominguser',
        [(each[0], secret) if each[0] == user else each for each in found],
    )
    former = [each for each in _items('target', section, 'former-incominguser') if each[0] != user]
    if until:
        former.append((user, old[0][1], until))
    _put_items('target', section, 'former-incominguser', former)
    return draft.sections()


def rule_setting(rule):
    """(setting, value) of an access rule: a name or an address. Raises TargetdError."""
    try:
        return 'initiator-address', network_kinds.Origin().parse(rule)
    except Unusable as e:
        text = e
    if rule.lower().startswith(('iqn.', 'eui.', 'naa.', '*', '?')):
        try:
            return 'initiator-name', network_kinds.NamePattern().parse(rule)
        except Unusable as e:
            text = e
    raise TargetdError(
        '%s is not an access rule: %s; or write an iSCSI name, in which * matches any characters'
        % (rule, str(text).split('; write')[0])
    )


def add_rule(sections, target, rule):
    """A further name or address that may log in."""
    draft = Draft(sections)
    section, (setting, value) = draft.target(target), rule_setting(rule)
    found = _items('target', section, setting)
    other = {'initiator-address': 'initiator-name', 'initiator-name': 'initiator-address'}[setting]
    if not found and section.of(other):
        raise TargetdError(
            'target %s has rules of %s only, and both must match if both are written: this rule would '
            'refuse initiators that are admitted now; write %s = ALL in the target first'
            % (target, other, setting)
        )
    if value in found:
        raise TargetdError('%s of target %s has %s already' % (setting, target, value))
    _put_items('target', section, setting, found + [value])
    return draft.sections()


def remove_rule(sections, target, rule):
    """A name or address may not log in any more."""
    draft = Draft(sections)
    section, (setting, value) = draft.target(target), rule_setting(rule)
    found = _items('target', section, setting)
    if value == 'ALL' and value not in found:
        setting = 'initiator-name'
        found = _items('target', section, setting)
    if value not in found:
        raise TargetdError(
            '%s of target %s has no item %s; it has %s'
            % (setting, target, value, ', '.join(found) or 'none')
        )
    other = {'initiator-address': 'initiator-name', 'initiator-name': 'initiator-address'}[setting]
    if len(found) == 1 and section.of(other):
        raise TargetdError(
            '%s is the last %s of target %s, which then would admit every initiator that %s admits; add '
            'another rule first' % (value, setting, target, other)
        )
    _put_items('target', section, setting, [each for each in found if each != value])
    return draft.sections()


def _map_items(text):
    """The LunMap of "WHO LUNS", LUNS with blanks or commas in between. Raises TargetdError."""
    kind = row_of('target', 'lun-map').kind
    try:
        return kind.item(text.replace(',', ' ').split())
    except Unusable as e:
        raise TargetdError(str(e))


def set_map(sections, target, who, luns):
    """An initiator sees these LUNs of a target, and no others."""
    draft = Draft(sections)
    section, new = draft.target(target), _map_items('%s %s' % (who, luns))
    found = _items('target', section, 'lun-map')
    if not found and new.kind != lun_maps.EVERYONE:
        raise TargetdError(
            'target %s has no lun-map: all initiators see all its LUNs, and those without a map would be '
            'refused then; first write "targetdctl map set %s ALL all" (or none, in place of all)'
            % (target, target)
        )
    kept = [each for each in found if each[:2] != new[:2]]
    _put_items('target', section, 'lun-map', kept + [new])
    return draft.sections()


def remove_map(sections, target, who, all_luns=False):
    """An initiator has no map of its own any more."""
    draft = Draft(sections)
    section, old = draft.target(target), _map_items('%s none' % who)
    found = _items('target', section, 'lun-map')
    kept = [each for each in found if each[:2] != old[:2]]
    if len(kept) == len(found):
        raise TargetdError(
            'target %s has no lun-map for %s; it has %s'
            % (target, who, ', '.join(each.written for each in found) or 'none')
        )
    if not kept and not all_luns:
        raise TargetdError(
            'it is the last lun-map of target %s, and all initiators that are admitted would see all its '
            'LUNs then; write --all-luns if they may' % target
        )
    _put_items('target', section, 'lun-map', kept)
    return draft.sections()


def _renumber_maps(section, number, new_number):
    """A LUN of the target gets another number: initiators see it under the same one as before."""

    def renumbered(entry):
        return entry._replace(lun=new_number) if entry.lun == number else entry

    found = _items('target', section, 'lun-map')
    if found:
        new = [each._replace(entries=tuple(map(renumbered, each.entries))) for each in found]
        _put_items('target', section, 'lun-map', new)


def add_portal(sections, group, portal):
    """A further portal; the group is created if it does not exist."""
    draft = Draft(sections)
    if not any(key[0] == 'portal-group' for key in draft.by_key) and group == 1:
        section = _take(draft, 'portal-group', '1')
        put(section, 'portal', '0.0.0.0:3260, [::]:3260')
    elif ('portal-group', group) not in draft.by_key:
        section = _take(draft, 'portal-group', str(group))
    section = draft.by_key['portal-group', group]
    found, value = _items('portal-group', section, 'portal'), _portal(portal)
    if value in found:
        raise TargetdError('portal group %d has %s already' % (group, portal))
    _put_items('portal-group', section, 'portal', found + [value])
    return draft.sections()


def _portal(text):
    try:
        return network_kinds.Portal().parse(text)
    except Unusable as e:
        raise TargetdError(str(e))


def remove_portal(sections, group, portal):
    """A portal is closed; sessions continue."""
    draft = Draft(sections)
    section = draft.by_key.get(('portal-group', group))
    found = _items('portal-group', section, 'portal') if section else []
    value = _portal(portal)
    if value not in found:
        raise TargetdError(
            'portal group %d has no portal %s; targetdctl show portals lists them' % (group, portal)
        )
    if len(found) == 1:
        raise TargetdError(
            '%s is the last portal of group %d; add another one first' % (portal, group)
        )
    _put_items('portal-group', section, 'portal', [each for each in found if each != value])
    return draft.sections()


# -- server ----------------------------------------------------------------------------------------


def set_server(sections, setting, text):
    """A setting of [server]."""
    draft = Draft(sections)
    put(draft.server(), setting, quoted(text) if not split(text) else text)
    return draft.sections()
