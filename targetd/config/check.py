"""From sections to a Configuration: every value read by its kind, everything that contradicts
something else found.

May import config and iscsi.names. Works on what config.loader gives (its Section and Entry) and
never stops at the first complaint. A complaint about an account names the user and never the
secret.
"""

import ipaddress
import os
from collections import OrderedDict

from targetd import xts
from targetd.config import kinds, model, settings
from targetd.config.tgt_settings import FORMER
from targetd.config.words import Unusable, split
from targetd.errors import Complaint
from targetd.iscsi import names

MAXIMUM_LUN = 16383  # flat space addressing, SAM-5
STORES = ('backing-store', 'direct-store')
_LUN_ROWS = settings.of('lun')
_SHARED = tuple(row for row in _LUN_ROWS if row.shared)
#: The settings that a kind of section may hold. In a target the stores are lists: lun 0, lun 1, ...
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
    """{setting name: (value, Entry)} of one section. pieces: {name: [(value, Entry)]} of a setting
    that may be repeated, line by line; unusable: names of settings that were written and complained
    of, which count as written."""

    def __init__(self, *args, **kwargs):
        super(Found, self).__init__(*args, **kwargs)
        self.pieces = {}
        self.unusable = set()

    def over(self, other):
        """These settings, and those of `other` that are not among them."""
        both = Found(other, **self)
        both.unusable = self.unusable | other.unusable
        return both

    def is_written(self, name):
        return name in self or name in self.unusable


def build(sections, files):
    """(Configuration, complaints). The Configuration is to be used only if there is no complaint."""
    checker = Checker(files)
    for section in sections:
        checker.section(section)
    return checker.configuration(), checker.complaints


class Checker(object):
    """Collects the parts of a Configuration, their places, and the complaints."""

    def __init__(self, files):
        self.complaints = []
        self.files = list(files)
        self.places = {}  # as in Configuration.places
        self._server = Found()
        self._groups = OrderedDict()
        self._targets = OrderedDict()
        self._tags_wanted = []  # (tag, Entry)

    def complain(self, place, text, remedy=''):
        """place: anything with file and line."""
        self.complaints.append(Complaint(place.file, place.line, text, remedy))

    def configuration(self):
        """The Configuration of all sections so far; complains of what only shows when all are
        known."""
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
                    'write a section [portal-group %d] with its portal, or one of %s'
                    % (tag, ', '.join(str(t) for t in configuration.portal_groups)),
                )
        self._check_portals(configuration)
        self._check_stores(configuration)
        return configuration

    # -- sections ----------------------------------------------------------------------------------

    def section(self, section):
        """One section of the top level."""
        kind = {
            'server': self._server_section,
            'portal-group': self._portal_group,
            'target': self._target,
        }.get(section.kind)
        if kind is None:
            near = kinds.nearest(section.kind, ['server', 'portal-group', 'target'])
            remedy = (
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
                'a section %r stands inside a [%s]' % (nested.kind, section.kind),
                'only a [target NAME] holds sections, [[lun N]]',
            )

    def _server_section(self, section):
        self._nothing_nested(section)
        if section.argument:
            self.complain(
                section, '[server] is followed by %r' % section.argument, 'write [server]'
            )
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
                'write portal = 0.0.0.0:3260, [::]:3260 or like it',
            )
        portals = found.get('portal', ((), None))[0]
        self._groups[tag] = model.PortalGroup(tag, tuple(OrderedDict.fromkeys(portals)))

    def _number(self, section, kind, what, low, high):
        try:
            return kinds.Number(low, high).parse(section.argument)
        except Unusable:
            self.complain(
                section,
                '%r is no number of %s' % (section.argument, what),
                'write %s with a number from %d to %d' % (settings.HEADINGS[kind], low, high),
            )
            return None

    def _is_new(self, section, key, what):
        """True, and the place noted, if nothing like it stood before; else complains with both
        places."""
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
        """The Found of a section's own settings; complains of all that cannot be used."""
        gathered = Found()
        for entry in section.entries:
            row = _ROW_BY_NAME[kind].get(_folded(entry.name))
            if row is None:
                self.complain(
                    entry,
                    '%s is no setting of %s' % (entry.name, settings.HEADINGS[kind]),
                    remedy_for_unknown(entry.name, kind),
                )
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
        flaw = names.flaw(name) if name else 'it is empty'
        if flaw:
            self.complain(
                section,
                '%r is no iSCSI name: %s' % (section.argument, flaw),
                'write a name like iqn.2026-11.com.example:disk1',
            )
        if flaw or not self._is_new(section, ('target', name), 'target %s' % name):
            name = None
        for tag in found.get('portal-group', ((), None))[0]:
            self._tags_wanted.append((tag, found['portal-group'][1]))
        self._check_alua(found)
        accounts = self._accounts(found)
        self._check_accounts(found, 'incominguser', 'outgoinguser', accounts)
        luns = self._luns(section, name or '%s:%d' % (section.file, section.line), found)
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
                    'the target is not reached through portal group %d' % tag,
                    'write one of %s' % ', '.join(str(each) for each in groups),
                )
        if len(set(tag for tag, _ in states)) < len(states):
            self.complain(entry, 'a portal group has two states', 'write each group once')
        if found.get('alua', ('auto', None))[0] == 'off':
            self.complain(
                entry,
                'alua-state with alua = off',
                'write alua = implicit, or leave alua-state out',
            )

    @staticmethod
    def _made_target(name, found, accounts, luns, text_keys):
        def value(setting, default):
            return found[setting][0] if setting in found else default

        plain = dict(
            (field, value(field.replace('_', '-'), default))
            for field, default in (
                ('alias', ''),
                ('state', 'ready'),
                ('redirect', None),
                ('max_sessions', 0),
                ('alua', 'auto'),
                ('alua_state', ()),
            )
        )
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
                    'FirstBurstLength %d is more than MaxBurstLength %d' % (first, burst),
                    'write at most %d (RFC 7143 13.14)' % burst,
                )
            else:
                values['FirstBurstLength'] = burst
        return values

    # -- accounts ----------------------------------------------------------------------------------

    def _accounts(self, found):
        """[((user, secret), Entry)] of incominguser and the files of incominguser-file."""
        accounts = self._pieces(found, 'incominguser')
        for path, entry in self._pieces(found, 'incominguser-file'):
            accounts += self._accounts_of_file(path, entry)
        return accounts

    @staticmethod
    def _pieces(found, name):
        """[(item, Entry)] of a setting that is a list, each with its own line."""
        return [(item, entry) for value, entry in found.pieces.get(name, ()) for item in value]

    def _note_accounts(self, target, found, accounts, outgoing):
        for (user, _), entry in accounts:
            self.places['account', target, user] = (entry.file, entry.line)
        if outgoing in found:
            entry = found[outgoing][1]
            self.places['account', target, None] = (entry.file, entry.line)

    def _accounts_of_file(self, path, entry):
        try:
            with open(path, encoding='utf-8') as f:
                lines = f.read().split('\n')
        except (OSError, UnicodeDecodeError) as e:
            self.complain(
                entry,
                'incominguser-file: %s cannot be read: %s'
                % (path, getattr(e, 'strerror', None) or 'not UTF-8'),
                'correct the path or the file',
            )
            return []
        if path not in self.files:
            self.files.append(path)
        accounts, kind = [], kinds.Account()
        for number, line in enumerate(lines, 1):
            here = entry._replace(file=path, line=number)
            try:
                items = split(line.rstrip('\r'))
                if items:
                    accounts.append((kind.read(items), here))
            except Unusable as e:
                self.complain(here, e.text, e.remedy)
        return accounts

    def _check_accounts(self, found, incoming, outgoing, accounts):
        """One secret for each user; mutual CHAP needs one-way CHAP and a secret of its own (RFC
        7143 12.1.3)."""
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
                '%s without %s: a target proves itself only to an initiator that proves itself'
                % (outgoing, incoming),
                'write %s = NAME SECRET too' % incoming,
            )
        for (other, theirs), _ in accounts:
            if theirs == secret:
                self.complain(
                    entry,
                    '%s %r has the same secret as %s %r' % (outgoing, user, incoming, other),
                    'give the two directions different secrets: with equal ones the proof is '
                    'worthless',
                )
                break

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
                'backing-store and direct-store both stand in the target',
                'write a section [[lun N]] for each, so that their numbers are certain',
            )
        for number, (store, entry, path) in enumerate(stores):
            self.places['lun', name, number] = (entry.file, entry.line)
            luns[number] = self._made_lun(
                number, entry, Found([(store, (path, entry))]).over(shared)
            )
        for nested in section.sections:
            self._lun_section(nested, name, shared, luns)
        return OrderedDict((number, luns[number]) for number in sorted(luns))

    def _lun_section(self, nested, name, shared, luns):
        for deeper in nested.sections:
            self.complain(
                deeper, 'a section stands inside a [[lun N]]', 'a lun holds settings only'
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
        luns[number] = self._made_lun(number, nested, own.over(shared))

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
        for setting, text, remedy in _contradictions(lun, stores, found.unusable):
            self.complain(found[setting][1] if setting in found else place, text, remedy)
        return lun

    # -- what only shows when everything is known --------------------------------------------------

    def _check_portals(self, configuration):
        taken = []  # (address object, scope, port, tag)
        for tag, group in configuration.portal_groups.items():
            for address, port in group.portals:
                plain, _, scope = address.partition(kinds.SCOPE)
                parsed = ipaddress.ip_address(plain)
                for other, other_scope, other_port, other_tag in taken:
                    same = other == parsed and scope == other_scope
                    if (
                        port == other_port
                        and parsed.version == other.version
                        and (same or other.is_unspecified or parsed.is_unspecified)
                    ):
                        self._complain_of_portal(
                            configuration, (tag, parsed, port), (other_tag, other)
                        )
                taken.append((parsed, scope, port, tag))

    def _complain_of_portal(self, configuration, this, other):
        tag, address, port = this
        place = Complaint(
            *(configuration.places.get(('portal-group', tag), (None, None)) + ('', ''))
        )
        where = configuration.places.get(('portal-group', other[0]), (None, 0))
        text = (
            'portal %s stands twice'
            if address == other[1]
            else 'portal %s overlaps with {}'.format(kinds.Portal().write((str(other[1]), port)))
        ) % kinds.Portal().write((str(address), port))
        self.complain(
            place,
            '%s; the other place is portal group %d at %s:%d' % ((text, other[0]) + where),
            'remove one of the two, or give it another port',
        )

    def _check_stores(self, configuration):
        """Two LUNs on one store would not know of each other's reservations and caches; two disks
        with one key would show where they are equal."""
        seen, keys = {}, {}
        for target in configuration.targets.values():
            for lun in target.luns.values():
                path = lun.backing_store
                if not path:
                    continue
                real = os.path.realpath(path) if path.startswith('/') else path
                here = configuration.places['lun', target.name, lun.number]
                if real in seen and not (lun.readonly and seen[real][1].readonly):
                    other, other_lun, there = seen[real]
                    self.complain(
                        Complaint(here[0], here[1], '', ''),
                        'lun %d of %s serves %s, which lun %d of %s serves already, at %s:%d'
                        % ((lun.number, target.name, path, other_lun.number, other.name) + there),
                        'serve it once, and let several initiators into that target; or make both '
                        'readonly',
                    )
                seen.setdefault(real, (target, lun, here))
                if lun.encryption_key_file:
                    other = keys.setdefault(
                        os.path.realpath(lun.encryption_key_file), (real, target, lun, here)
                    )
                    self._check_key(other, real, target, lun, here)

    def _check_key(self, other, real, target, lun, here):
        other_real, other_target, other_lun, there = other
        if other_real != real:
            self.complain(
                Complaint(here[0], here[1], '', ''),
                'lun %d of %s has the encryption-key-file of lun %d of %s, at %s:%d'
                % ((lun.number, target.name, other_lun.number, other_target.name) + there),
                'give each disk a key of its own',
            )


def settings_field(section, name):
    """The model's attribute of a setting."""
    return _ROW_BY_NAME[section][_folded(name)].field


def _contradictions(lun, stores, unusable):
    """[(setting that it is about, text, remedy)] of values of one Lun that do not go together.
    unusable: as in Found."""
    found = []
    if len(stores) > 1:
        found.append(
            (
                'direct-store',
                'lun %d has a backing-store and a direct-store' % lun.number,
                'write one of the two',
            )
        )
    if lun.type in ('ram', 'null'):
        if stores:
            found.append(
                (
                    stores[0],
                    'a lun of type %s has no %s' % (lun.type, stores[0]),
                    'remove one of the two settings',
                )
            )
        if lun.size is None and 'size' not in unusable:
            found.append(
                ('type', 'a lun of type %s needs a size' % lun.type, 'write size = 1G or like it')
            )
    elif not stores and not unusable & {'backing-store', 'direct-store', 'type'}:
        found.append(
            ('lun', 'lun %d has no backing-store' % lun.number, 'write backing-store = PATH')
        )
    if lun.type in ('ram', 'null') and lun.encryption_key_file:
        found.append(
            (
                'encryption-key-file',
                'a lun of type %s keeps nothing that could be encrypted' % lun.type,
                'remove encryption-key-file',
            )
        )
    elif lun.encryption_key_file and xts.why_not():
        found.append(('encryption-key-file', 'nothing can be encrypted here', xts.why_not()))
    if lun.encryption_key_file and lun.atomic_writes:
        found.append(
            (
                'atomic-writes',
                'what is encrypted on the disk would stand in the journal of atomic-writes as it '
                'is',
                'write one of the two settings',
            )
        )
    if lun.type == 'block' and lun.size is not None:
        found.append(('size', 'a lun of type block has the size of its disk', 'remove size'))
    return found + _contradicting_numbers(lun)


def _contradicting_numbers(lun):
    found = []
    block, physical = lun.block_size or 512, lun.physical_block_size
    if lun.size is not None and lun.size % block:
        found.append(
            (
                'size',
                'size %d is no multiple of the block size %d' % (lun.size, block),
                'write a whole number of blocks',
            )
        )
    if physical is not None and physical < block:
        found.append(
            (
                'physical-block-size',
                'physical-block-size %d is less than block-size %d' % (physical, block),
                'write %d or more' % block,
            )
        )
    ratio = max(physical or 4096, block) // block
    if lun.lowest_aligned_block >= ratio and lun.lowest_aligned_block:
        found.append(
            (
                'lowest-aligned-block',
                'lowest-aligned-block %d is beyond the first physical block'
                % (lun.lowest_aligned_block),
                'write a number from 0 to %d' % (ratio - 1),
            )
        )
    if lun.rotation_rate is not None and 1 < lun.rotation_rate < 1025 or lun.rotation_rate == 65535:
        found.append(
            (
                'rotation-rate',
                'rotation-rate %d has no meaning (SBC-3)' % lun.rotation_rate,
                'write 0, 1 or a number from 1025 to 65534',
            )
        )
    for setting in ('optimal-transfer-length', 'optimal-transfer-granularity'):
        value = getattr(lun, settings_field('lun', setting))
        if value is not None and value % block:
            found.append(
                (
                    setting,
                    '%s %d is no multiple of the block size %d' % (setting, value, block),
                    'write a whole number of blocks',
                )
            )
    return found


def remedy_for_unknown(name, kind):
    """What to write instead of a setting that this kind of section does not know."""
    folded = _folded(name)
    homes = [
        section
        for section in ('server', 'portal-group', 'target', 'lun')
        if folded in _ROW_BY_NAME[section]
    ]
    if homes:
        return 'it belongs into %s' % ' or '.join(settings.HEADINGS[section] for section in homes)
    if folded in FORMER:
        return FORMER[folded]
    near = kinds.nearest(name, [row.name for row in KNOWN[kind]])
    if near:
        return 'did you mean %s?' % near
    everywhere = kinds.nearest(name, [row.name for row in settings.TABLE])
    return (
        'did you mean %s? ' % everywhere + remedy_for_unknown(everywhere, kind)
        if everywhere
        else 'see targetd.conf(5)'
    )
