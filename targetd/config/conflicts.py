"""Conflicts between parts of a complete Configuration: portals, stores and keys that are used twice.

May import base, config.network_kinds and the pure scsi.designators and nbd.uri. Each function
returns [Complaint].
"""

import ipaddress
import os

from targetd.config import network_kinds
from targetd.errors import Complaint
from targetd.nbd import uri
from targetd.scsi.designators import NONE


def conflicts(configuration):
    """All conflicts of a Configuration: [Complaint]."""
    return (
        _portals(configuration)
        + _stores(configuration)
        + _identities(configuration)
        + _serving(configuration)
        + _partners(configuration)
    )


def _partners(configuration):
    """Targets with paths to another server that cannot work."""
    found = []
    for name, target in configuration.targets.items():
        place = configuration.places.get(('target', name), (None, None))
        both = sorted(set(target.partner_groups).intersection(target.portal_groups))
        without = [n for n, lun in target.luns.items() if not lun.unit_state]
        refused = (
            (
                both,
                'portal group %s in portal-group and in partner-groups' % ', '.join(map(str, both)),
                'give each server portal groups of its own',
            ),
            (
                without,
                'partner-groups, but lun %s has no unit-state' % ', '.join(map(str, without)),
                'write unit-state = DIRECTORY, or remove partner-groups',
            ),
            (
                target.alua not in ('auto', 'implicit'),
                'partner-groups, and alua = %s' % target.alua,
                'write alua = implicit: initiators cannot move a target between servers',
            ),
        )
        found += [
            Complaint(*place, text='target %s has %s' % (name, text), remedy=remedy)
            for is_wrong, text, remedy in refused
            if is_wrong and target.partner_groups
        ]
    return found


def _serving(configuration):
    """Targets that wait for an order, with LUNs that no order can move."""
    return [
        Complaint(
            *configuration.places.get(('lun', name, number), (None, None)),
            text='target %s has serving = when-active, but lun %d has no unit-state'
            % (name, number),
            remedy='write unit-state = DIRECTORY, or serving = always',
        )
        for name, target in configuration.targets.items()
        for number, lun in target.luns.items()
        if target.serving == 'when-active' and not lun.unit_state
    ]


# -- portals ---------------------------------------------------------------------------------------


def _portals(configuration):
    """Portals of which only one could be opened: the same port, an address that is equal or a
    wildcard, and not two different interfaces."""
    found, taken = [], []  # taken: (address object, scope, port, interface, tag)
    for tag, group in configuration.portal_groups.items():
        for address, port in group.portals:
            plain, _, scope = address.partition(network_kinds.SCOPE)
            parsed = ipaddress.ip_address(plain)
            for other in taken:
                if _overlap((parsed, scope, port, group.interface), other[:4]):
                    found.append(_portal_complaint(configuration, (tag, parsed, port), other))
            taken.append((parsed, scope, port, group.interface, tag))
    return found


def _overlap(one, other):
    address, scope, port, interface = one
    other_address, other_scope, other_port, other_interface = other
    if port != other_port or address.version != other_address.version:
        return False
    if interface and other_interface and interface != other_interface:
        return False
    is_same = address == other_address and scope == other_scope
    return is_same or address.is_unspecified or other_address.is_unspecified


def _portal_complaint(configuration, this, other):
    tag, address, port = this
    other_address, _, _, _, other_tag = other
    places = configuration.places
    file, line = places.get(('portal-group', tag), (None, None))
    other_file, other_line = places.get(('portal-group', other_tag), (None, 0))
    shown = network_kinds.Portal().write((str(address), port))
    if address == other_address:
        text = 'portal %s is defined twice' % shown
    else:
        other_shown = network_kinds.Portal().write((str(other_address), port))
        text = 'portal %s overlaps with %s' % (shown, other_shown)
    return Complaint(
        file,
        line,
        '%s; the other place is portal group %d at %s:%d'
        % (text, other_tag, other_file, other_line),
        'remove one of the two, or change the port of one',
    )


# -- stores and keys -------------------------------------------------------------------------------


def _stores(configuration):
    """Stores that two LUNs share, and keys that two stores share.

    Two LUNs with one store would not know each other's reservations and caches; two disks with one
    key would reveal which of their blocks are equal.
    """
    found, stores, keys = [], {}, {}
    for target in configuration.targets.values():
        for lun in target.luns.values():
            if not lun.backing_store:
                continue
            real = _real_path(lun.backing_store)
            place = configuration.places['lun', target.name, lun.number]
            this = (target, lun, place)
            if real in stores and not (lun.readonly and stores[real][1].readonly):
                found.append(_store_complaint(this, stores[real]))
            stores.setdefault(real, this)
            if lun.encryption_key_file:
                key = os.path.realpath(lun.encryption_key_file)
                other_real, other = keys.setdefault(key, (real, this))
                if other_real != real:
                    found.append(_key_complaint(this, other))
    return found


def _real_path(path):
    """The path without symbolic links; the address that a URI means; a selector such as serial:X as it is."""
    if uri.is_uri(path):
        return uri.parse_uri(path)
    return os.path.realpath(path) if path.startswith('/') else path


def _store_complaint(this, other):
    target, lun, (file, line) = this
    other_target, other_lun, other_place = other
    return Complaint(
        file,
        line,
        'lun %d of %s serves %s, which lun %d of %s serves already, at %s:%d'
        % (
            (lun.number, target.name, lun.backing_store, other_lun.number, other_target.name)
            + other_place
        ),
        'serve it once, and admit several initiators to that target; or make both readonly',
    )


def _key_complaint(this, other):
    target, lun, (file, line) = this
    other_target, other_lun, other_place = other
    return Complaint(
        file,
        line,
        'lun %d of %s has the encryption-key-file of lun %d of %s, at %s:%d'
        % ((lun.number, target.name, other_lun.number, other_target.name) + other_place),
        'write a different key file for each disk',
    )


# -- identities ------------------------------------------------------------------------------------


def _identities(configuration):
    """Identifiers that two LUNs with different stores have: multipath software makes one disk of
    both."""
    found, taken = [], {}
    for target in configuration.targets.values():
        for lun in target.luns.values():
            for setting, value in _identifiers(lun):
                other_target, other = taken.setdefault((setting, value), (target, lun))
                is_same_store = bool(lun.backing_store) and (
                    _real_path(lun.backing_store) == _real_path(other.backing_store)
                )
                if other is not lun and not is_same_store:
                    found.append(
                        _identity_complaint(
                            configuration, setting, target, lun, other_target, other
                        )
                    )
    return found


def _identifiers(lun):
    """[(setting, identifier)] that only one disk may have."""
    single = [('eui', lun.eui), ('t10', lun.t10), ('scsi-sn', lun.scsi_sn.strip().lower())]
    found = [('naa', digits) for digits in lun.naa] + single
    return [(setting, value) for setting, value in found if value not in ('', NONE)]


def _identity_complaint(configuration, setting, target, lun, other_target, other):
    file, line = configuration.places['lun', target.name, lun.number]
    return Complaint(
        file,
        line,
        'lun %d of %s has the %s of lun %d of %s, which is another disk, at %s:%d'
        % (
            (lun.number, target.name, setting, other.number, other_target.name)
            + configuration.places['lun', other_target.name, other.number]
        ),
        'write a different %s for each disk: multipath software makes one disk of both' % setting,
    )
