"""A Configuration of targetd as one Imported: for `targetdctl export`, and for `import` of targetd's own
files.

May import config.loader, config.model, config.settings, config.words and migration.imported. What is
written is what the Configuration has: includes, files with accounts, defaults of the target and
`identity` are resolved, and comments are lost.
"""

from targetd.config import loader, model, network_kinds, settings
from targetd.config.words import join
from targetd.errors import ConfigError
from targetd.migration.imported import Imported, Lun, Place, Section, Target, Unreadable

SOURCE = 'targetd'


def parse(path, text=None):
    """The Imported of a configuration of targetd with its includes. Raises Unreadable."""
    try:
        configuration = loader.load(path)
    except ConfigError as e:
        first = e.complaints[0]
        raise Unreadable(Place(first.file or path, first.line), first.text, first.remedy)
    return from_configuration(configuration)


def from_configuration(configuration):
    """The Imported of a Configuration."""
    imported = Imported(SOURCE)
    imported.files = list(configuration.files)
    for row in settings.of('server'):
        _add(imported.server, row, getattr(configuration.server, row.field))
    for tag, group in configuration.portal_groups.items():
        imported.groups[tag] = [network_kinds.Portal().write(each) for each in group.portals]
        more = imported.group_settings[tag] = Section(None)
        for row in settings.of('portal-group'):
            if row.name != 'portal':
                _add(more, row, getattr(group, row.field))
    for target in configuration.targets.values():
        imported.targets.append(_target(configuration, target))
    return imported


def _add(section, row, value):
    """Write a setting unless it has its default."""
    if value == row.default:
        return
    if row.kind.repeatable and not isinstance(value, str):
        for item in value:  # one line each: an item may be long
            section.add(row.name, row.kind.show((item,)))
    else:
        section.add(row.name, row.kind.show(value))


def _target(configuration, target):
    made = Target(target.name, Place(*configuration.places['target', target.name]))
    made.add('portal-group', ', '.join(str(tag) for tag in target.portal_groups))
    for setting, rules in (
        ('initiator-address', target.initiator_addresses),
        ('initiator-name', target.initiator_names),
    ):
        for rule in rules:
            made.add(setting, join([[rule]]))
    for account in target.accounts:
        made.add_words('incominguser', *account)
    if target.outgoing is not None:
        made.add_words('outgoinguser', *target.outgoing)
    for row in settings.of('target'):
        if row.is_text_key:
            if target.keys[row.name] != model.DEFAULT_KEYS[row.name]:
                made.add(row.name, row.kind.show(target.keys[row.name]))
        elif row.name not in model.TARGET_SETTINGS_WITH_OTHER_NAMES:
            _add(made, row, getattr(target, row.field))
    for lun in target.luns.values():
        made.luns.append(_lun(configuration, target, lun))
    return made


def _lun(configuration, target, lun):
    made = Lun(lun.number, Place(*configuration.places['lun', target.name, lun.number]))
    if lun.backing_store:
        made.add_words('direct-store' if lun.direct else 'backing-store', lun.backing_store)
    for row in settings.of('lun'):
        if row.name not in ('backing-store', 'direct-store', 'identity'):
            _add(made, row, getattr(lun, row.field))
    return made
