"""Builds a Configuration from sections: reads every value by its kind and finds contradictions.

May import config and iscsi.names. The input is the Section and Entry of config.loader. All
complaints are collected; the first one does not end the check. A complaint about an account
contains the user and never the secret. Rules within one LUN are in config.lun_rules, those between
targets and portal groups in config.conflicts.
"""

import os
from collections import OrderedDict

from targetd.config import (
    account_files,
    conflicts,
    identities,
    kinds,
    lun_maps,
    lun_rules,
    model,
    pasted,
    settings,
)
from targetd.config.words import Unusable, shown_name, split
from targetd.errors import Complaint
from targetd.iscsi import names

MAXIMUM_LUN = 16383  # flat space addressing, SAM-5
STORES = ('backing-store', 'direct-store')
_LUN_ROWS = settings.of('lun')
_SHARED = tuple(row for row in _LUN_ROWS if row.shared)
#: Rows of the settings of each kind of section. In a target the stores are lists: lun 0, lun 1, ...
KNOWN = {
    'server': settings.of('server'),
    'portal-group': settings.of('portal-group'),
    'target': settings.of('target')
    + _SHARED
    + tuple(
        row._replace(kind=kinds.Listed(row.kind), default=())
        for row in _LUN_ROWS
        if row.name in STORES
    ),
    'lun': _LUN_ROWS,
}


def _folded(name):
    return name.lower().replace('_', '-')


_ROW_BY_NAME = dict(
    (section, dict((_folded(row.name), row) for row in rows)) for section, rows in KNOWN.items()
)


class Found(OrderedDict):
    """The settings of one section: {setting name: (value, Entry)}.

    pieces: {name: [(value, Entry)]}, one item per line, for settings that may be repeated;
    unusable: names of settings that were written with a value that cannot be used. They count as
    written, so that there is no further complaint that they are missing;
    defaults: names of settings that have their default here, whatever the target says for its LUNs.
    """

    def __init__(self, *args, **kwargs):
        super(Found, self).__init__(*args, **kwargs)
        self.pieces = {}
        self.unusable = set()
        self.defaults = set()

    def with_defaults(self, other):
        """A Found with these settings and, for the names that are missing here, those of `other`."""
        both = Found(((k, v) for k, v in other.items() if k not in self.defaults), **self)
        both.unusable = self.unusable | other.unusable
        both.defaults = self.defaults
        return both

    def is_written(self, name):
        return name in self or name in self.unusable


def build(sections, files):
    """Returns (Configuration, [Complaint]). Use the Configuration only if there is no complaint."""
    checker = Checker(files)
    for section in sections:
        checker.section(section)
    return checker.configuration(), checker.complaints


class Checker(object):
    """Collects the parts of a Configuration, their places and the complaints, section by section."""

    def __init__(self, files):
        self.complaints = []
        self.files = list(files)
        self.places = {}  # as in Configuration.places
        self._server = Found()
        self._groups = OrderedDict()
        self._targets = OrderedDict()
        self._tags_wanted = []  # (tag, Entry)

    def complain(self, place, text, remedy=''):
        """Add a Complaint. place: an object with the attributes file and line."""
        self.complaints.append(Complaint(place.file, place.line, text, remedy))

    def configuration(self):
        """The Configuration of all sections so far. Adds the complaints that depend on several
        sections."""
        server = model.Server(
            **dict(
                (settings_field('server', name), value) for name, (value, _) in self._server.items()
            )
        )
        configuration = model.configuration(
            server, self._groups.values(), self._targets.values(), self.files, self.places
        )
        for tag, entry in self._tags_wanted:
            if tag not in configuration.portal_groups:
                self.complain(
                    entry,
                    'there is no portal group %d' % tag,
                    'write a section [portal-group %d] with a portal, or one of the tags %s'
                    % (tag, ', '.join(str(t) for t in configuration.portal_groups)),
                )
        self.complaints += conflicts.conflicts(configuration)
        return configuration

    # -- sections ----------------------------------------------------------------------------------

    def section(self, section):
        """Check one section of the top level."""
        kind = {
            'server': self._server_section,
            'portal-group': self._portal_group,
            'target': self._target,
        }.get(section.kind)
        if kind is None:
            near = kinds.nearest(section.kind, ['server', 'portal-group', 'target'])
            of_others = pasted.remedy_of(section.kind)
            remedy = of_others or (
                'did you mean %s?' % settings.HEADINGS[near]
                if near
                else ('sections are [server], [portal-group TAG] and [target NAME]')
            )
            if section.kind == 'lun':
                remedy = 'write [[lun %s]] inside a [target NAME]' % (section.argument or 'N')
            return self.complain(
                section, 'there is no kind of section called %r' % section.kind, remedy
            )
        kind(section)

    def _nothing_nested(self, section):
        for nested in section.sections:
            self.complain(
                nested,
                'there is a section %r inside [%s]' % (nested.kind, section.kind),
                'only a [target NAME] may contain sections, [[lun N]]',
            )

    def _server_section(self, section):
        self._nothing_nested(section)
        if section.argument:
            self.complain(section, '[server] has an argument', 'write [server]')
        self.places.setdefault(('server',), (section.file, section.line))
        found = self.values(section, 'server')
        for name in found:
            if name in self._server:
                self._clash(found[name][1], name, self._server[name][1])
        self._server.update(found)
        self._server.unusable |= found.unusable
        self._server.pieces.update(found.pieces)
        accounts = self._pieces(self._server, 'incomingdiscoveryuser')
        self._check_accounts(
            self._server, 'incomingdiscoveryuser', 'outgoingdiscoveryuser', accounts
        )
        self._note_accounts(None, self._server, accounts, 'outgoingdiscoveryuser')

    def _portal_group(self, section):
        self._nothing_nested(section)
        found = self.values(section, 'portal-group')
        tag = self._number(section, 'portal-group', 'a portal group', 1, 65535)
        if tag is None or not self._is_new(section, ('portal-group', tag), 'portal group %d' % tag):
            return
        if not found.is_written('portal'):
            self.complain(
                section,
                'portal group %d has no portal' % tag,
                'write a portal, for example portal = 0.0.0.0:3260, [::]:3260',
            )
        portals = found.get('portal', ((), None))[0]
        options = {
            row.field: found[row.name][0]
            for row in settings.PORTAL_GROUP
            if row.name != 'portal' and row.name in found
        }
        self._groups[tag] = model.PortalGroup(tag, tuple(OrderedDict.fromkeys(portals)), **options)

    def _number(self, section, kind, what, low, high):
        try:
            return kinds.Number(low, high).parse(section.argument)
        except Unusable:
            self.complain(
                section,
                '%r is not a valid number of %s' % (section.argument, what),
                'write %s with a number from %d to %d' % (settings.HEADINGS[kind], low, high),
            )
            return None

    def _is_new(self, section, key, what):
        """If `key` is new, record its place and return True; else add a complaint with both places."""
        if key in self.places:
            self.complain(
                section,
                '%s is defined twice; the other place is %s:%d' % ((what,) + self.places[key]),
                'remove one of the two',
            )
            return False
        self.places[key] = (section.file, section.line)
        return True

    def _clash(self, entry, name, other):
        self.complain(
            entry,
            '%s is set twice; the other place is %s:%d' % (name, other.file, other.line),
            'remove one of the two',
        )

    # -- settings ----------------------------------------------------------------------------------

    def values(self, section, kind):
        """The Found of the settings of one section. Adds a complaint for each unusable value."""
        gathered = Found()
        for entry in section.entries:
            row = _ROW_BY_NAME[kind].get(_folded(entry.name))
            if row is None:
                self.complain(
                    entry,
                    '%s is not a setting of %s' % (shown_name(entry.name), settings.HEADINGS[kind]),
                    remedy_for_unknown(entry.name, kind),
                )
                continue
            if entry.text is None:
                gathered.defaults.add(row.name)
                continue
            try:
                items = split(entry.text)
                if not items:
                    raise Unusable(
                        '%s has no value' % row.name, 'write %s, or remove the line' % row.kind.says
                    )
                value = row.kind.resolve(row.kind.read(items), os.path.dirname(entry.file))
            except Unusable as e:
                self.complain(
                    entry,
                    e.text if e.text.startswith(row.name) else '%s: %s' % (row.name, e.text),
                    e.remedy,
                )
                gathered.unusable.add(row.name)
                continue
            gathered.pieces.setdefault(row.name, []).append((value, entry))
            if row.name not in gathered:
                gathered[row.name] = (value, entry)
            elif row.kind.repeatable:
                gathered[row.name] = (gathered[row.name][0] + value, gathered[row.name][1])
            else:
                self._clash(entry, row.name, gathered[row.name][1])
        return gathered

    # -- targets -----------------------------------------------------------------------------------

    def _target(self, section):
        found = self.values(section, 'target')
        name = names.fold(section.argument)
        flaw = names.name_error(name, lenient=True) if name else 'it is empty'
        if flaw:
            self.complain(
                section,
                '%r is not an iSCSI name: %s' % (section.argument, flaw),
                'write a name like iqn.2026-11.com.example:disk1',
            )
        if flaw or not self._is_new(section, ('target', name), 'target %s' % name):
            name = None
        for tag in found.get('portal-group', ((), None))[0]:
            self._tags_wanted.append((tag, found['portal-group'][1]))
        self._check_alua(found)
        accounts = self._accounts(found, section.without)
        self._check_accounts(found, 'incominguser', 'outgoinguser', accounts)
        self._check_former(found, accounts)
        luns = self._luns(section, name or '%s:%d' % (section.file, section.line), found)
        maps, users = self._pieces(found, 'lun-map'), [user for (user, _), _ in accounts]
        for place, text, remedy in lun_maps.contradictions(maps, luns, users):
            self.complain(place, text, remedy)
        text_keys = self._text_keys(found)
        if name is None:
            return
        self._note_accounts(name, found, accounts, 'outgoinguser')
        self._targets[name] = self._made_target(name, found, accounts, luns, text_keys)

    def _check_alua(self, found):
        if 'alua-state' not in found:
            return
        states, entry = found['alua-state']
        groups = found['portal-group'][0] if 'portal-group' in found else (1,)
        for tag, _ in states:
            if tag not in groups:
                self.complain(
                    entry,
                    'portal group %d is not a portal-group of the target' % tag,
                    'write one of %s' % ', '.join(str(each) for each in groups),
                )
        if len(set(tag for tag, _ in states)) < len(states):
            self.complain(entry, 'a portal group has two states', 'write each portal group once')
        if found.get('alua', ('auto', None))[0] == 'off':
            self.complain(
                entry,
                'alua-state has no effect with alua = off',
                'write alua = implicit, or remove alua-state',
            )

    @staticmethod
    def _made_target(name, found, accounts, luns, text_keys):
        def value(setting, default):
            return found[setting][0] if setting in found else default

        plain = {
            row.field: value(row.name, row.default)
            for row in settings.TARGET
            if row.name not in model.TARGET_SETTINGS_WITH_OTHER_NAMES
        }
        return model.Target(
            name=name,
            portal_groups=tuple(OrderedDict.fromkeys(value('portal-group', (1,)))),
            initiator_addresses=value('initiator-address', ()),
            initiator_names=value('initiator-name', ()),
            accounts=tuple(OrderedDict.fromkeys(account for account, _ in accounts)),
            outgoing=value('outgoinguser', None),
            luns=luns,
            keys=text_keys,
            **plain,
        )

    def _text_keys(self, found):
        values = OrderedDict(
            (row.name, found[row.name][0] if row.name in found else row.default)
            for row in settings.TEXT_KEYS
        )
        first, burst = values['FirstBurstLength'], values['MaxBurstLength']
        if first > burst:
            if 'FirstBurstLength' in found:
                self.complain(
                    found['FirstBurstLength'][1],
                    'FirstBurstLength %d is greater than MaxBurstLength %d' % (first, burst),
                    'write at most %d (RFC 7143 13.14)' % burst,
                )
            else:
                values['FirstBurstLength'] = burst
        return values

    # -- accounts ----------------------------------------------------------------------------------

    def _accounts(self, found, without):
        """[((user, secret), Entry)] of incominguser and of the files of incominguser-file; without: users
        that the files have and the target has not."""
        accounts = self._pieces(found, 'incominguser')
        for path, entry in self._pieces(found, 'incominguser-file'):
            of_file = self._accounts_of_file(path, entry)
            accounts += [account for account in of_file if account[0][0] not in without]
        return accounts

    @staticmethod
    def _pieces(found, name):
        """[(item, Entry)] of a setting that is a list; each item has the Entry of its line."""
        return [(item, entry) for value, entry in found.pieces.get(name, ()) for item in value]

    def _note_accounts(self, target, found, accounts, outgoing):
        for (user, _), entry in accounts:
            self.places['account', target, user] = (entry.file, entry.line)
        if outgoing in found:
            entry = found[outgoing][1]
            self.places['account', target, None] = (entry.file, entry.line)

    def _accounts_of_file(self, path, entry):
        found, wrong = account_files.read_file(path, entry)
        if found is not None and path not in self.files:
            self.files.append(path)
        for here, text, remedy in wrong:
            self.complain(here, text, remedy)
        return found or []

    def _check_accounts(self, found, incoming, outgoing, accounts):
        """Check that each user has one secret, that there is no mutual CHAP without one-way CHAP, and
        that its secret differs from the others (RFC 7143 12.1.3)."""
        secrets = {}
        for (user, secret), entry in accounts:
            if secrets.setdefault(user, (secret, entry))[0] != secret:
                other = secrets[user][1]
                self.complain(
                    entry,
                    'user %r has two secrets; the other place is %s:%d'
                    % (user, other.file, other.line),
                    'remove one of the two',
                )
        if outgoing not in found:
            return
        (user, secret), entry = found[outgoing]
        if not accounts and not found.is_written(incoming):
            self.complain(
                entry,
                '%s without %s: a target authenticates itself only to an initiator that does so too'
                % (outgoing, incoming),
                'also write %s = NAME SECRET' % incoming,
            )
        for (other, theirs), _ in accounts:
            if theirs == secret:
                self.complain(
                    entry,
                    '%s %r has the same secret as %s %r' % (outgoing, user, incoming, other),
                    'write different secrets for the two directions: equal ones prove nothing',
                )
                break

    def _check_former(self, found, accounts):
        users = [user for (user, _), _ in accounts]
        for (user, _), entry in self._pieces(found, 'incominguser-for'):
            if user not in users:  # the word is not shown: it may be a secret
                text = 'incominguser-for names an account that the target does not have'
                self.complain(entry, text, 'write incominguser = NAME SECRET, or remove the line')
        for (user, secret, _), entry in self._pieces(found, 'former-incominguser'):
            if user not in users:
                self.complain(
                    entry,
                    'former-incominguser %r is no incominguser' % user,
                    'also write incominguser = NAME SECRET, or remove the line',
                )
            if found.get('outgoinguser', ((None, None), None))[0][1] == secret:
                self.complain(
                    entry,
                    'former-incominguser %r has the same secret as outgoinguser' % user,
                    'write different secrets for the two directions: equal ones prove nothing',
                )

    # -- luns --------------------------------------------------------------------------------------

    def _luns(self, section, name, found):
        shared = Found((row.name, found[row.name]) for row in _SHARED if row.name in found)
        luns = {}
        stores = [
            (store, entry, path)
            for store in STORES
            if store in found
            for value, entry in [found[store]]
            for path in value
        ]
        if len(set(store for store, _, _ in stores)) > 1:
            self.complain(
                found['direct-store'][1],
                'the target has both backing-store and direct-store',
                'write a section [[lun N]] for each, so that their numbers are defined',
            )
        for number, (store, entry, path) in enumerate(stores):
            self.places['lun', name, number] = (entry.file, entry.line)
            luns[number] = self._made_lun(
                number, entry, Found([(store, (path, entry))]).with_defaults(shared)
            )
        for nested in section.sections:
            self._lun_section(nested, name, shared, luns)
        return OrderedDict((number, luns[number]) for number in sorted(luns))

    def _lun_section(self, nested, name, shared, luns):
        for deeper in nested.sections:
            self.complain(
                deeper, 'there is a section inside a [[lun N]]', 'a lun contains only settings'
            )
        if nested.kind != 'lun':
            near = kinds.nearest(nested.kind, ['lun'])
            return self.complain(
                nested,
                'there is no kind of section called %r in a target' % nested.kind,
                'did you mean [[lun %s]]?' % (nested.argument or 'N')
                if near
                else 'write [[lun N]]',
            )
        own = self.values(nested, 'lun')
        number = self._number(nested, 'lun', 'a lun', 0, MAXIMUM_LUN)
        if number is None or not self._is_new(
            nested, ('lun', name, number), 'lun %d of target %s' % (number, name)
        ):
            return
        own = own.with_defaults(self._identity(own))
        luns[number] = self._made_lun(number, nested, own.with_defaults(shared))

    def _identity(self, own):
        """The Found of the settings for which `identity` stands."""
        found = Found()
        if 'identity' in own:
            (name, words), entry = own.pop('identity')
            try:
                for setting, text in identities.settings_of(name, dict(words)).items():
                    found[setting] = _ROW_BY_NAME['lun'][setting].kind.read(split(text)), entry
            except Unusable as e:
                self.complain(entry, e.text, e.remedy)
                own.unusable.add('identity')
        return found

    def _made_lun(self, number, place, found):
        fields = dict(
            (settings_field('lun', setting), value)
            for setting, (value, _) in found.items()
            if setting not in STORES
        )
        stores = [setting for setting in STORES if setting in found]
        for setting in stores:
            fields.update(backing_store=found[setting][0], direct=setting == 'direct-store')
        lun = model.Lun(number=number, **fields)
        for setting, text, remedy in lun_rules.contradictions(lun, stores, found.unusable):
            self.complain(found[setting][1] if setting in found else place, text, remedy)
        return lun_rules.with_type(lun)


def settings_field(section, name):
    """The attribute of the model that contains the setting."""
    return _ROW_BY_NAME[section][_folded(name)].field


def remedy_for_unknown(name, kind):
    """The remedy for the name of a setting that this kind of section does not have."""
    folded = _folded(name)
    homes = [
        section
        for section in ('server', 'portal-group', 'target', 'lun')
        if folded in _ROW_BY_NAME[section]
    ]
    if homes:
        return 'write it in %s' % ' or '.join(settings.HEADINGS[section] for section in homes)
    written = folded.split()[0] if folded.split() else folded
    if written != folded and written in _ROW_BY_NAME[kind]:
        # `backing-store /a=b`: the equals sign is missing
        return 'write %s = ...' % written
    if pasted.remedy_of(name):
        return pasted.remedy_of(name)
    near = kinds.nearest(name, [row.name for row in KNOWN[kind]])
    if near:
        return 'did you mean %s?' % near
    everywhere = kinds.nearest(name, [row.name for row in settings.TABLE])
    return (
        'did you mean %s? ' % everywhere + remedy_for_unknown(everywhere, kind)
        if everywhere
        else 'see targetd.conf(5)'
    )
