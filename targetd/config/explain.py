"""A Configuration in plain words: what would be served, where, and to whom. For `targetd -t`.

May import config. Shows no secret.
"""

from targetd.config import kinds, lint, model, settings


def explained(configuration):
    """Lines of text, with a line end after each."""
    lines = ['The configuration can be used (%s).' % _files(configuration.files)]
    for tag, group in configuration.portal_groups.items():
        portals = ', '.join(kinds.Portal().write(portal) for portal in group.portals)
        lines.append('Portal group %d listens at %s.' % (tag, portals))
    if not configuration.targets:
        lines.append('There is no target: nothing would be served.')
    for target in configuration.targets.values():
        lines += [
            '',
            'Target %s%s' % (target.name, ' ("%s")' % target.alias if target.alias else ''),
        ]
        lines += ['  ' + line for line in _target(target)]
    return '\n'.join(lines) + '\n'


def _files(files):
    return (
        files[0]
        if len(files) == 1
        else '%s and %d more file%s' % (files[0], len(files) - 1, 's' if len(files) > 2 else '')
    )


def _target(target):
    lines = [
        'is reached through portal group%s %s%s'
        % (
            's' if len(target.portal_groups) > 1 else '',
            ', '.join(str(tag) for tag in target.portal_groups),
            '' if target.state == 'ready' else ', but offline: logins are refused',
        )
    ]
    if target.redirect is not None:
        permanent, host, port = target.redirect
        lines.append(
            'sends every login to %s, %s'
            % (kinds.Portal().write((host, port)), 'for good' if permanent else 'for now')
        )
    lines.append(admission(target))
    lines.append(_accounts(target))
    changed = [
        row for row in settings.TEXT_KEYS if target.keys[row.name] != model.DEFAULT_KEYS[row.name]
    ]
    if changed:
        lines.append(
            'negotiates '
            + ', '.join(
                '%s = %s' % (row.name, row.kind.show(target.keys[row.name])) for row in changed
            )
        )
    return lines + ([_lun(lun) for lun in target.luns.values()] or ['has no LUN'])


def admission(target):
    """Whom the two rules let in, as one clause."""
    addresses, patterns = target.initiator_addresses, target.initiator_names
    if not addresses and not patterns:
        return 'admits nobody: neither initiator-address nor initiator-name is written'
    if lint.admits_everyone(target):
        return 'admits every initiator'
    rules = []
    if patterns and 'ALL' not in patterns:
        rules.append('named %s' % ' or '.join(patterns))
    if addresses and 'ALL' not in addresses:
        rules.append('at %s' % ' or '.join(addresses))
    return 'admits initiators ' + ', '.join(rules)


def _accounts(target):
    if not target.accounts:
        return 'asks for no CHAP'
    users = 'demands CHAP of %s' % ' or '.join(user for user, _ in target.accounts)
    return users + (', and proves itself as %s' % target.outgoing[0] if target.outgoing else '')


def _lun(lun):
    facts = [lun.backing_store or 'a %s store' % lun.type]
    if lun.size is not None:
        facts.append(
            '%s%s'
            % (
                kinds.Size().write(lun.size),
                ' (created sparse if missing)' if lun.backing_store else '',
            )
        )
    facts += [
        word
        for word, holds in (
            ('read-only', lun.readonly),
            ('thin', lun.thin),
            ('removable', lun.removable),
            ('identity of the disk', lun.direct),
            ('direct I/O', lun.direct_io),
            ('every write durable', not lun.write_cache),
        )
        if holds
    ]
    facts += ['encrypted with %s' % lun.encryption_key_file] if lun.encryption_key_file else []
    facts += ['filter ' + item for item in lun.filter]
    return 'lun %d: %s' % (lun.number, ', '.join(facts))
