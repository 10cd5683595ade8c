"""Warnings about settings that are allowed but probably not intended.

May import base, config and host. `warnings(configuration)` examines the configuration and the
permissions of its files. `missing_keys(configuration)` and `contents(configuration)`, for
`targetd -t`, also look at this host, but do not read from its disks: a read may block.
"""

import os
import re
import stat

from targetd.config import acl, lun_maps, network_kinds
from targetd.errors import Complaint, StoreError
from targetd.host import claims, disks, file_space, roots, signatures
from targetd.iscsi import names

#: Commands that an initiator may have in flight, and the seconds that most give each of them.
QUEUE, PATIENCE_SECONDS = 128, 30
SHORTEST_SECRET, LONGEST_SECRET = 12, 16  # bytes that the Windows initiator accepts without IPsec
UNSTABLE = re.compile(
    '/dev/(sd[a-z]+|hd[a-z]|vd[a-z]+|xvd[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+|sg|sr|n?st)p?[0-9]*$'
)


def warnings(configuration):
    """Warnings that do not depend on the disks: [Complaint] in file order."""
    found = _open_secrets(configuration) + _discovery(configuration)
    for target in configuration.targets.values():
        found += _name(configuration, target)
        found += _accounts(configuration, target.name, target.accounts, target.outgoing)
        found += (
            _admission(configuration, target)
            + _luns(configuration, target)
            + _hidden_luns(configuration, target)
            + _limits(configuration, target)
            + _redirect(configuration, target)
            + _moving(configuration, target)
        )
    order = dict((name, number) for number, name in enumerate(configuration.files))
    return sorted(found, key=lambda c: (order.get(c.file, len(order)), c.line or 0))


def _warning(configuration, key, text, remedy):
    file, line = configuration.places.get(key, (None, None))
    return Complaint(file, line, text, remedy)


def _name(configuration, target):
    flaw = names.name_error(target.name)
    if flaw is None:
        return []
    return [
        _warning(
            configuration,
            ('target', target.name),
            'the name %s does not obey RFC 7143 4.2.7: %s; some initiators refuse it'
            % (target.name, flaw),
            'nothing to do while your initiators accept it; name a new target like '
            'iqn.2026-11.com.example:disk1',
        )
    ]


def _moving(configuration, target):
    """LUNs that get another identity on another server."""
    return [
        _warning(
            configuration,
            ('lun', target.name, number),
            'lun %d has unit-state, but its identity is derived from the server-id of this server: '
            'initiators would see another disk on the other server' % number,
            'write the same server-id on both servers, or naa and scsi-sn',
        )
        for number, lun in target.luns.items()
        if lun.unit_state and not (configuration.server.server_id or lun.naa and lun.scsi_sn)
    ]


def _open_secrets(configuration):
    found = []
    for path in sorted(
        set(place[0] for key, place in configuration.places.items() if key[0] == 'account')
    ):
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if mode & stat.S_IROTH:
            found.append(
                Complaint(
                    path,
                    None,
                    'contains secrets, and every user of this host can read it',
                    'chmod 600 %s' % path,
                )
            )
    return found


def _discovery(configuration):
    server = configuration.server
    return _accounts(
        configuration, None, server.incomingdiscoveryuser, server.outgoingdiscoveryuser
    )


def _accounts(configuration, target, accounts, outgoing):
    found = []
    for key, (user, secret) in [(user, (user, secret)) for user, secret in accounts] + (
        [(None, outgoing)] if outgoing else []
    ):
        length = len(secret.encode('utf-8', 'replace'))
        if not SHORTEST_SECRET <= length <= LONGEST_SECRET:
            found.append(
                _warning(
                    configuration,
                    ('account', target, key),
                    'the secret of %r is %d bytes long' % (user, length),
                    'Windows accepts only secrets of %d to %d bytes; other initiators accept it'
                    % (SHORTEST_SECRET, LONGEST_SECRET),
                )
            )
    return found


def _admission(configuration, target):
    place = ('target', target.name)
    if not target.initiator_addresses and not target.initiator_names:
        return [
            _warning(
                configuration,
                place,
                acl.refusal(target, '', '').split('; ')[0],
                'write initiator-address = ALL to admit every initiator%s, or the addresses or '
                'names that may log in' % (' with an account' if target.accounts else ''),
            )
        ]
    if admits_all(target) and not target.accounts:
        return [
            _warning(
                configuration,
                place,
                'target %s admits every initiator, without CHAP' % target.name,
                'write initiator-address, initiator-name or incominguser if other hosts can reach '
                'the network',
            )
        ]
    return []


def admits_all(target):
    """True if the rules refuse no address and no name; CHAP may still refuse the login."""
    rules = [rules for rules in (target.initiator_addresses, target.initiator_names) if rules]
    return bool(rules) and all({'ALL', '*', '0.0.0.0/0'} & set(r) for r in rules)


def _luns(configuration, target):
    found = []
    if not target.luns and target.redirect is None:
        found.append(
            _warning(
                configuration,
                ('target', target.name),
                'target %s has no LUN' % target.name,
                'write backing-store = PATH or a section [[lun 0]]',
            )
        )
    elif target.luns and 0 not in target.luns:
        found.append(
            _warning(
                configuration,
                ('target', target.name),
                'target %s has no LUN 0' % target.name,
                'initiators request the list of LUNs from LUN 0; this works, but number the first '
                'disk 0',
            )
        )
    for number, lun in target.luns.items():
        if UNSTABLE.match(lun.backing_store):
            found.append(
                _warning(
                    configuration,
                    ('lun', target.name, number),
                    '%s may refer to another %s after a boot'
                    % (lun.backing_store, 'device' if lun.type == 'passthrough' else 'disk'),
                    'write /dev/disk/by-id/..., serial: or wwn:',
                )
            )
    return found


def _hidden_luns(configuration, target):
    maps = lun_maps.maps_of(target)
    return [
        _warning(
            configuration,
            ('lun', target.name, number),
            'lun %d of %s is shown to no initiator: no lun-map has it' % (number, target.name),
            'write lun-map = INITIATOR %d, or remove the lun' % number,
        )
        for number in target.luns
        if maps and not any(each.shown(number) for each in maps)
    ]


def _limits(configuration, target):
    """Limits with which the last command of a full queue waits longer than initiators do."""
    place = ('target', target.name)
    written = [
        (place, 'iops-limit', target.iops_limit),
        (place, 'initiator-iops-limit', target.initiator_iops_limit),
    ] + [
        (('lun', target.name, number), 'iops-limit', lun.iops_limit)
        for number, lun in target.luns.items()
    ]
    return [
        _warning(
            configuration,
            key,
            'with %s = %d, the last of %d commands waits %d seconds'
            % (name, rate, QUEUE, QUEUE // rate),
            'most initiators abort a command after %d seconds: write a higher limit, or reduce the queue '
            'depth of the initiators' % PATIENCE_SECONDS,
        )
        for key, name, rate in written
        if 0 < rate * PATIENCE_SECONDS < QUEUE
    ]


def _redirect(configuration, target):
    portals = [
        portal
        for tag in target.portal_groups
        for portal in configuration.portal_groups[tag].portals
    ]
    if target.redirect is None or target.redirect[1:] not in portals:
        return []
    return [
        _warning(
            configuration,
            ('target', target.name),
            'target %s is redirected to its own portal %s'
            % (target.name, network_kinds.Portal().write(target.redirect[1:])),
            'initiators would be redirected endlessly; write the address of the other server',
        )
    ]


def missing_keys(configuration):
    """[Complaint] about LUNs whose key file does not exist now."""
    found = []
    for target in configuration.targets.values():
        for number, lun in target.luns.items():
            if lun.encryption_key_file and not os.path.exists(lun.encryption_key_file):
                found.append(
                    _warning(
                        configuration,
                        ('lun', target.name, number),
                        'its encryption-key-file %s does not exist' % lun.encryption_key_file,
                        'it is created if the disk is empty; for any other disk, restore the file '
                        'from your copy',
                    )
                )
    return found


def overcommitted(configuration):
    """[Complaint] about file systems with less space than their LUNs may still use."""
    files = [
        (lun.backing_store, lun.size)
        for target in configuration.targets.values()
        for lun in target.luns.values()
        if lun.backing_store.startswith('/') and not lun.readonly
    ]
    return [
        _warning(
            configuration,
            ('server',),
            str(system),
            'writes fail when it is full; add space or remove LUNs. With thin = yes, initiators are warned '
            'before (thin-threshold) and can release what they do not need',
        )
        for system in file_space.of_paths(files).values()
        if system.missing
    ]


def contents(configuration):
    """[Complaint] about LUNs on disks that this host is configured to use, or would activate
    automatically, according to its configuration files and udev."""
    found = []
    for target in configuration.targets.values():
        for number, lun in target.luns.items():
            name = None if lun.readonly or lun.allow_in_use else _kernel_name(lun)
            if name is None:
                continue
            path, place = roots.ROOTS.node(name), ('lun', target.name, number)
            found += [
                _warning(
                    configuration,
                    place,
                    sentence,
                    'targetd refuses to serve it without allow-in-use = yes',
                )
                for sentence in claims.find_claims(path, [], None)
            ]
            found += [
                _warning(
                    configuration,
                    place,
                    'the disk contains %s' % noted,
                    'if an initiator created it, prevent this host from using it (global_filter in '
                    'lvm.conf, AUTO -all in mdadm.conf); if this host created it, serve another '
                    'disk',
                )
                for noted in signatures.auto_assembled_by_udev(name)
            ]
    return found


def _kernel_name(lun):
    """The kernel's name of the block device that the Lun serves, or None."""
    try:
        return (
            roots.kernel_name(disks.resolve_backing_store(lun.backing_store))
            if lun.backing_store
            else None
        )
    except StoreError:
        return None
