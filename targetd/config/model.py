"""The configuration as immutable values, and the steps from one configuration to another.

May import config.settings. A class has one attribute per setting of its section, named like the
setting with underscores (`login-timeout` -> `server.login_timeout`), with a value of the kind in
settings.TABLE; `help(Server)` lists them. Text keys are in `target.keys`. Every attribute has a
default, so `Server()` is an empty server section.

    Configuration   server: Server
                    portal_groups: {tag (int): PortalGroup}; never empty
                    targets: {folded name: Target}, in the order of the files
                    files: (path, ...) of all files, with includes and account files; the main file
                        is the first
                    places: {key: (file, line)}; the keys are ('server',), ('portal-group', tag),
                        ('target', name), ('lun', name, number) and ('account', target name or None
                        for discovery, user or None for the outgoing account)
    Server          see settings.SERVER; times in seconds; accounts as ((user, secret), ...), an
                    outgoing account as (user, secret) or None
    PortalGroup     see settings.PORTAL_GROUP; tag; portals: ((address, port), ...) with numeric
                    addresses; '0.0.0.0' and '::' are the wildcards
    Target          name (folded); see settings.TARGET; and
                    portal_groups: (tag, ...)
                    accounts: ((user, secret), ...) of incominguser and of incominguser-file
                    former_incominguser: ((user, secret, until), ...)
                    outgoing: (user, secret) or None (outgoinguser)
                    initiator_addresses, initiator_names: tuples of the rules of config.acl
                    luns: {number: Lun}, ascending
                    keys: {key of RFC 7143 13: value (tuple of words, bool or int)}, with every key
                        of settings.TEXT_KEYS
    Lun             number; see settings.LUN;
                    backing_store: absolute path, 'serial:…', 'wwn:…' or '' (types ram and null)
                    direct: True if it was written as direct-store; identity is replaced by the
                    settings for which it stands

Secrets are str; they are encoded as UTF-8 for CHAP.
"""

from collections import OrderedDict, namedtuple

from targetd.config import network_kinds, settings
from targetd.config.words import counted


def _class(name, rows, first=(), without=(), more=()):
    """Returns a namedtuple class with the fields `first` (without default), those of the rows, and
    `more` ((field, default, help), ...)."""
    fields = [(row.field, row.default, row.help) for row in rows if row.name not in without] + list(
        more
    )
    base = namedtuple(name, list(first) + [field for field, _, _ in fields])
    base.__module__ = __name__
    base.__new__.__defaults__ = tuple(default for _, default, _ in fields)
    base.__doc__ = '\n'.join(
        ['One %s. Attributes:' % name, ''] + ['%s: %s' % (field, help) for field, _, help in fields]
    )
    return base


Server = _class('Server', settings.SERVER)


PortalGroup = _class(
    'PortalGroup', settings.PORTAL_GROUP, first=('tag', 'portals'), without=('portal',)
)

#: What the listening sockets of a portal group have, and the connections inherit.
SOCKET_SETTINGS = ('interface', 'ipsec', 'congestion_control', 'mss', 'dscp')


Lun = _class(
    'Lun',
    settings.LUN,
    first=('number',),
    without=('direct-store', 'identity'),
    more=[('direct', False, 'True for direct-store: initiators see the identity of the disk.')],
)

DEFAULT_KEYS = OrderedDict((row.name, row.default) for row in settings.TEXT_KEYS)

#: The settings of a target whose attributes have other names, below; every other setting is the
#: attribute that the table of settings names.
TARGET_SETTINGS_WITH_OTHER_NAMES = (
    'portal-group',
    'initiator-address',
    'initiator-name',
    'incominguser',
    'incominguser-file',
    'outgoinguser',
)

Target = _class(
    'Target',
    settings.TARGET,
    first=('name',),
    without=TARGET_SETTINGS_WITH_OTHER_NAMES,
    more=[
        ('portal_groups', (1,), 'Tags of the portal groups through which it is reached.'),
        ('initiator_addresses', (), 'Networks that may log in, or ALL.'),
        ('initiator_names', (), 'Name patterns that may log in, or ALL.'),
        ('accounts', (), 'CHAP accounts of initiators.'),
        ('outgoing', None, 'CHAP account of the target itself.'),
        ('luns', {}, 'Lun by number.'),
        ('keys', DEFAULT_KEYS, 'Value of each text key.'),
    ],
)


class Configuration(namedtuple('Configuration', 'server portal_groups targets files places')):
    """The complete configuration; see the module."""

    __slots__ = ()


DEFAULT_PORTAL_GROUP = PortalGroup(1, (('0.0.0.0', 3260), ('::', 3260)))


def configuration(server=None, portal_groups=(), targets=(), files=(), places=None):
    """Returns a Configuration of a Server, PortalGroups and Targets. Without a portal group it has
    DEFAULT_PORTAL_GROUP."""
    groups = tuple(portal_groups) or (DEFAULT_PORTAL_GROUP,)
    return Configuration(
        server or Server(),
        OrderedDict((group.tag, group) for group in groups),
        OrderedDict((target.name, target) for target in targets),
        tuple(files),
        dict(places or {}),
    )


# -- from one configuration to another -------------------------------------------------------------

#: Attributes of Target and Lun whose name differs from that of the setting.
SETTING_OF = {
    'portal_groups': 'portal-group',
    'initiator_addresses': 'initiator-address',
    'initiator_names': 'initiator-name',
    'accounts': 'incominguser',
    'outgoing': 'outgoinguser',
    'direct': 'direct-store',
}
_ROWS = dict(((row.section, row.name), row) for row in settings.TABLE)
_SEVERITY = (settings.LIVE, settings.NEXT_LOGIN, settings.NEEDS_LOGOUT, settings.NEEDS_RESTART)
_SECRET = frozenset(
    [
        'accounts',
        'former_incominguser',
        'outgoing',
        'incomingdiscoveryuser',
        'outgoingdiscoveryuser',
    ]
)


def row_of(section, field):
    """The settings row of an attribute of the model, or of a text key."""
    return _ROWS[
        section, SETTING_OF.get(field, field if field[0].isupper() else field.replace('_', '-'))
    ]


def _latest(section, fields):
    return max((row_of(section, field).live for field in fields), key=_SEVERITY.index)


def _shown(section, field, value):
    row = row_of(section, field)
    if field in _SECRET:
        accounts = ([value] if value else []) if field.startswith('out') else value
        return (
            'the accounts %s' % ', '.join(account[0] for account in accounts)
            if accounts
            else 'no account'
        )
    if field == 'size' and value is None:
        return 'that of the file'
    if field == 'direct' or value in (None, '', ()):
        return {True: 'yes', False: 'no'}.get(value, 'nothing')
    return row.kind.show(value)


def _changes(section, fields, old, new):
    def of(thing, field):
        return thing.keys[field] if field[0].isupper() else getattr(thing, field)

    texts = []
    for field in fields:
        before, after = (
            _shown(section, field, of(old, field)),
            _shown(section, field, of(new, field)),
        )
        name = row_of(section, field).name
        texts.append(
            '%s from %s to %s' % (name, before, after) if before != after else '%s (secrets)' % name
        )
    return ', '.join(texts)


class AddPortal(namedtuple('AddPortal', 'tag portal')):
    """Step: listen on `portal` (address, port) for group `tag`."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'listen on %s for portal group %d'
            % (network_kinds.Portal().write(self.portal), self.tag)
        )
    )


class RemovePortal(namedtuple('RemovePortal', 'tag portal')):
    """Step: close the listening socket of `portal`. Existing sessions continue."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'no longer listen on %s for portal group %d'
            % (network_kinds.Portal().write(self.portal), self.tag)
        )
    )


class ChangePortalGroup(namedtuple('ChangePortalGroup', 'old new fields')):
    """Step: change a PortalGroup. fields: the attributes that differ, without the portals, which
    have separate steps."""

    __slots__ = ()
    when = property(lambda self: _latest('portal-group', self.fields))
    text = property(
        lambda self: (
            'change portal group %d: %s'
            % (self.new.tag, _changes('portal-group', self.fields, self.old, self.new))
        )
    )

    @property
    def reopened(self):
        """The portals that must be opened again, because their sockets are set up differently."""
        if not set(self.fields) & set(SOCKET_SETTINGS):
            return ()
        return tuple(portal for portal in self.new.portals if portal in self.old.portals)


class ChangeServer(namedtuple('ChangeServer', 'field old new')):
    """Step: change one attribute of Server. old, new: its values."""

    __slots__ = ()
    when = property(lambda self: row_of('server', self.field).live)

    @property
    def text(self):
        """The change in words, without secrets."""
        before, after = (_shown('server', self.field, value) for value in (self.old, self.new))
        return 'change %s %s' % (
            row_of('server', self.field).name,
            'from %s to %s' % (before, after) if before != after else '(secrets)',
        )


class AddTarget(namedtuple('AddTarget', 'target')):
    """Step: serve this Target with all its LUNs."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'add target %s with %s' % (self.target.name, counted(len(self.target.luns), 'LUN'))
        )
    )


class RemoveTarget(namedtuple('RemoveTarget', 'target')):
    """Step: end this Target, its sessions and LUNs."""

    __slots__ = ()
    when = settings.NEEDS_LOGOUT
    text = property(lambda self: 'remove target %s' % self.target.name)


class ChangeTarget(namedtuple('ChangeTarget', 'old new fields')):
    """Step: change a Target. fields: the attributes and text keys that differ, without the LUNs,
    which have separate steps."""

    __slots__ = ()
    when = property(lambda self: _latest('target', self.fields))
    text = property(
        lambda self: (
            'change target %s: %s'
            % (self.new.name, _changes('target', self.fields, self.old, self.new))
        )
    )


class AddLun(namedtuple('AddLun', 'target_name lun')):
    """Step: serve a further Lun of an existing target."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'add lun %d (%s) to target %s'
            % (self.lun.number, self.lun.backing_store or self.lun.type, self.target_name)
        )
    )


class RemoveLun(namedtuple('RemoveLun', 'target_name lun')):
    """Step: end one Lun of a target that continues."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'remove lun %d (%s) from target %s'
            % (self.lun.number, self.lun.backing_store or self.lun.type, self.target_name)
        )
    )


class ChangeMaps(namedtuple('ChangeMaps', 'old new')):
    """Step: the maps of LUNs of a Target that continues (lun-map) change."""

    __slots__ = ()
    when = settings.LIVE
    text = property(
        lambda self: (
            'change target %s: %s'
            % (self.new.name, _changes('target', ('lun_map',), self.old, self.new))
        )
    )


class ChangeLun(namedtuple('ChangeLun', 'target_name old new fields')):
    """Step: change a Lun of a target. fields: the attributes that differ."""

    __slots__ = ()
    when = property(
        lambda self: settings.LIVE if self.loads_medium else _latest('lun', self.fields)
    )
    loads_medium = property(
        lambda self: (
            self.old.type == self.new.type in ('cd', 'tape') and self.fields == ('backing_store',)
        ),
        doc='True if only the medium of an optical or tape drive changes: its sessions see that.',
    )
    opens_medium = property(lambda self: self.when != settings.LIVE or self.loads_medium)
    text = property(
        lambda self: (
            'change lun %d of target %s: %s'
            % (self.new.number, self.target_name, _changes('lun', self.fields, self.old, self.new))
        )
    )


def described(step):
    """A step in one sentence, with the time when it takes effect."""
    return '%s (%s)' % (step.text, settings.WHEN[step.when])


def _different(old, new, without=()):
    return [
        field
        for field in new._fields
        if field not in without and getattr(old, field) != getattr(new, field)
    ]


def changed_settings(old, new):
    """The names of the settings in which two Luns differ."""
    return [field.replace('_', '-') for field in _different(old, new)]


def _portal_steps(old, new):
    before = [(tag, portal) for tag, group in old.items() for portal in group.portals]
    after = [(tag, portal) for tag, group in new.items() for portal in group.portals]
    changed = [
        ChangePortalGroup(old[tag], group, tuple(_different(old[tag], group, ('portals',))))
        for tag, group in new.items()
        if tag in old and _different(old[tag], group, ('portals',))
    ]
    removed = [RemovePortal(*entry) for entry in before if entry not in after]
    return removed + changed + [AddPortal(*entry) for entry in after if entry not in before]


def _lun_steps(old, new):
    """(removals, changes, additions) of the LUNs of one target."""
    removed = [
        RemoveLun(old.name, lun) for number, lun in old.luns.items() if number not in new.luns
    ]
    added = [AddLun(new.name, lun) for number, lun in new.luns.items() if number not in old.luns]
    changed = [
        ChangeLun(new.name, old.luns[number], lun, tuple(_different(old.luns[number], lun)))
        for number, lun in new.luns.items()
        if number in old.luns and old.luns[number] != lun
    ]
    return removed, changed, added


def _map_steps(old, new):
    return [ChangeMaps(old, new)] if old.lun_map != new.lun_map else []


def _target_change(old, new):
    fields = _different(old, new, without=('luns', 'keys', 'lun_map'))
    fields += [key for key in new.keys if new.keys[key] != old.keys.get(key)]
    return [ChangeTarget(old, new, tuple(fields))] if fields else []


def diff(old, new):
    """The steps from one Configuration to another.

    Steps that free an address or a store precede those that may need it. Differences in files and
    places are no steps. Secrets never appear in the text of a step.
    """
    steps = [
        ChangeServer(field, getattr(old.server, field), getattr(new.server, field))
        for field in _different(old.server, new.server)
    ]
    steps += _portal_steps(old.portal_groups, new.portal_groups)
    steps += [
        RemoveTarget(target) for name, target in old.targets.items() if name not in new.targets
    ]
    kept = [
        (old.targets[name], target) for name, target in new.targets.items() if name in old.targets
    ]
    removed, changed, added = [], [], []
    for before, after in kept:
        for steps_of_kind, more in zip((removed, changed, added), _lun_steps(before, after)):
            steps_of_kind += more
    maps = [step for before, after in kept for step in _map_steps(before, after)]
    steps += removed + maps + changed + added
    for before, after in kept:
        steps += _target_change(before, after)
    return steps + [
        AddTarget(target) for name, target in new.targets.items() if name not in old.targets
    ]
