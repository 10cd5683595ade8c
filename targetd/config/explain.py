"""Describes a Configuration in words for `targetd -t`: what would be served, where, and to whom.

May import config. The text contains no secret.
"""

from targetd.config import (
    kinds,
    lint,
    lun_maps,
    lun_rules,
    model,
    network_kinds,
    scsi_kinds,
    settings,
    sharing_rules,
)
from targetd.config.words import counted

SHARED = {
    sharing_rules.EXCLUSIVE: 'for one initiator at a time',
    sharing_rules.READERS: 'the first initiator may write, others may read',
    sharing_rules.CLUSTER: 'for all its initiators at the same time',
}


#: Whom a map of LUNs is for.
WHO = {
    lun_maps.NAME: '%s',
    lun_maps.ACCOUNT: 'the account %s',
    lun_maps.PATTERN: 'initiators named %s',
    lun_maps.NETWORK: 'initiators at %s',
    lun_maps.EVERYONE: 'everyone else%.0s',
}


def explained(configuration, identity_of=None, found=None, origins=None):
    """The description: lines of text, each with a line end. identity_of: function of (target, lun)
    that returns [(what, value)] of the identity of the LUN; found: {(target name, number): what the LUN
    would be now}, as far as the media were examined; origins: {rule dns: or mac: of initiator-address: what
    it admits now}."""
    lines = ['The configuration is valid (%s).' % _files(configuration.files)]
    for tag, group in configuration.portal_groups.items():
        portals = ', '.join(network_kinds.Portal().write(portal) for portal in group.portals)
        lines.append(
            'Portal group %d listens on %s%s.' % (tag, portals, ''.join(_portal_options(group)))
        )
    if not configuration.targets:
        lines.append('There is no target: nothing would be served.')
    for target in configuration.targets.values():
        lines += [
            '',
            'Target %s%s' % (target.name, ' ("%s")' % target.alias if target.alias else ''),
        ]
        lines += ['  ' + line for line in _target(target, identity_of, found, origins or {})]
    return '\n'.join(lines) + '\n'


def _portal_options(group):
    """The settings of a portal group that decide who reaches it and where, in words."""
    if group.interface:
        yield ' of interface %s' % group.interface
    if group.ipsec == 'required':
        yield ' through IPsec only'
    if group.advertise is not None:
        yield ', and discovery reports %s' % (
            network_kinds.Advertised().write(group.advertise)
            if group.advertise != network_kinds.Advertised.NONE
            else 'no address'
        )
    if group.proxy_protocol_from:
        yield '; connections from %s begin with a PROXY header' % ', '.join(
            group.proxy_protocol_from
        )


def _files(files):
    return (
        files[0]
        if len(files) == 1
        else '%s and %s' % (files[0], counted(len(files) - 1, 'more file'))
    )


def _target(target, identity_of, found, origins):
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
            'redirects every login to %s, %s'
            % (
                network_kinds.Portal().write((host, port)),
                'permanently' if permanent else 'temporarily',
            )
        )
    lines.append(admission(target, origins))
    lines += maps(target)
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
    for number, lun in target.luns.items():
        lines.append(_lun(lun))
        if found is not None:
            if (target.name, number) not in found:
                continue
            lines.append('  now: ' + found[target.name, number])
        lines += ['  %s: %s' % row for row in (identity_of(target, lun) if identity_of else ())]
    return lines if target.luns else lines + ['has no LUN']


def admission(target, origins=None):
    """Which initiators the two rules admit, as one clause. origins: as in explained()."""
    addresses, patterns = target.initiator_addresses, target.initiator_names
    if not addresses and not patterns:
        return 'admits no initiator: neither initiator-address nor initiator-name is written'
    if lint.admits_all(target):
        return 'admits every initiator'
    rules = []
    if patterns and 'ALL' not in patterns:
        rules.append('named %s' % ' or '.join(patterns))
    if addresses and 'ALL' not in addresses:
        rules.append('at %s' % ' or '.join(_address(rule, origins or {}) for rule in addresses))
    return 'admits initiators ' + ', '.join(rules)


def maps(target):
    """Which LUNs each initiator sees, one clause for each map (lun-map), the most specific one first."""
    found = sorted(lun_maps.maps_of(target), key=lun_maps.rank)
    lines = ['shows %s: %s' % (WHO[each.kind] % each.who, _shown_luns(each)) for each in found]
    if found and found[-1].kind != lun_maps.EVERYONE:
        lines.append('refuses initiators for which it has no lun-map')
    return lines


def _shown_luns(lun_map):
    shown = [
        'all LUNs'
        if entry.lun == lun_maps.EVERY
        else 'lun %d' % entry.lun + (' as %d' % entry.number if entry.number != entry.lun else '')
        for entry in lun_map.entries
    ]
    rights = [' read-only' if entry.read_only else '' for entry in lun_map.entries]
    return ', '.join(map(''.join, zip(shown, rights))) or 'no LUN'


def _address(rule, origins):
    return '%s (now: %s)' % (rule, origins[rule]) if origins.get(rule) else rule


def _accounts(target):
    if not target.accounts:
        return 'requires no CHAP'
    users = 'requires CHAP as %s' % ' or '.join(user for user, _ in target.accounts)
    users += ''.join(
        ', former secret of %s until %s' % (user, until.replace('T', ' '))
        for user, _, until in target.former_incominguser
    )
    users += ''.join(', %s only for %s' % account for account in target.incominguser_for)
    if target.outgoing is None:
        return users
    return '%s, and authenticates itself as %s (mutual CHAP)' % (users, target.outgoing[0])


def _lun(lun):
    # what a drive always is need not be said
    is_drive, facts = lun.type in lun_rules.DRIVES, [lun.backing_store or 'a %s store' % lun.type]
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
            ('in a CD or DVD drive', lun.type == 'cd'),
            ('in a tape drive', lun.type == 'tape'),
            ('a real SCSI device', lun.type == 'passthrough'),
            ('every command is forwarded', not lun.command_filter),
            ('read-only', lun.type != 'cd' and lun.readonly or lun.state == 'read-only'),
            ('OFFLINE', lun.state == 'offline'),
            ('thin', lun.thin),
            ('removable', lun.removable and not is_drive),
            ('identity of the disk', lun.direct),
            ('direct I/O', lun.direct_io),
            (
                'its disk sleeps when an initiator stops it'
                if lun.spin_down == scsi_kinds.SpinDown.ON_STOP
                else 'its disk sleeps after %s' % scsi_kinds.SpinDown().write(lun.spin_down),
                bool(lun.spin_down),
            ),
            ('every write durable', not lun.write_cache and not is_drive),
        )
        if holds
    ]
    if lun.read_only_schedule:
        times = model.row_of('lun', 'read_only_schedule').kind.show(lun.read_only_schedule)
        facts.append('read-only at %s' % times)
    facts.append(
        'for one session at a time' if lun.type == 'tape' else SHARED[sharing_rules.sharing_of(lun)]
    )
    facts += ['encrypted with %s' % lun.encryption_key_file] if lun.encryption_key_file else []
    facts += ['filter ' + item for item in lun.filter]
    return 'lun %d: %s' % (lun.number, ', '.join(facts))
