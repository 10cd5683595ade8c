"""The identity of a unit as facts of scsi.facts: configured, of the disk (direct-store), or derived.

May import config.model, host.identity and scsi.
"""

from targetd.errors import StoreError
from targetd.host import disks, identity, sg_nodes
from targetd.scsi import designators
from targetd.scsi.facts import DEFAULTS, UnitFacts

PRODUCT_REVISION = '0001'
PRODUCT = {'cd': 'VIRTUAL-CDROM', 'tape': 'VIRTUAL-TAPE'}


def names_of(lun, path, key, server):
    """Returns the facts that identify a LUN. path: of its medium, or None; key, server: from which a
    serial number and a NAA identifier are derived that are not configured."""
    own = identity.disk_identity(path) if lun.direct and path else None
    if lun.type == 'passthrough':
        return _names_of_device(sg_nodes.resolve_device(lun.backing_store))
    if lun.naa:
        naa = ' '.join(digits for digits in lun.naa if digits != designators.NONE)
    else:
        naa = own and len(own.naa) == 32 and own.naa or identity.naa6(server, key)
    return {
        'vendor': lun.vendor_id or own and own.vendor or DEFAULTS['vendor'],
        'product': lun.product_id
        or own
        and own.product
        or PRODUCT.get(lun.type, DEFAULTS['product']),
        'revision': lun.product_rev or own and own.revision or PRODUCT_REVISION,
        'serial': lun.scsi_sn or own and own.serial or identity.serial(server, key),
        'serial_nuls': lun.scsi_sn_nuls,
        'naa': naa,
        'eui': lun.eui,
        't10': lun.t10,
        'scsi_name': lun.scsi_name,
        'vendor_specific': lun.vendor_specific,
        'designator_order': ' '.join(lun.designator_order),
    }


def _names_of_device(device):
    """The facts that identify a real SCSI device (sg_nodes.ScsiDevice): it has all of them itself."""
    digits = device.wwn[4:].lower() if device.wwn.startswith('naa.') else ''
    return dict(
        dict.fromkeys(('eui', 't10', 'scsi_name', 'vendor_specific', 'designator_order'), ''),
        vendor=device.vendor[:8],
        product=device.model[:16],
        revision=device.revision[:4],
        serial=device.serial,
        serial_nuls=0,
        naa=digits if len(digits) in (16, 32) else '',
    )


def data_key(target_name, lun, path):
    """Returns (key of the medium, key of the unit): the first is '' without a medium; from the second
    the identity of the unit is derived."""
    if lun.type == 'passthrough':
        medium = sg_nodes.stable_key(sg_nodes.resolve_device(lun.backing_store))
        return medium, '%s\0%s' % (target_name, medium)
    is_disk = lun.type not in PRODUCT  # a drive keeps its own identity
    medium = identity.stable_key(path) if path and is_disk else ''
    return medium, '%s\0%s' % (target_name, medium or '%s:%d' % (lun.type, lun.number))


def shown_settings(facts):
    """Returns {setting: text} of the identity that initiators see, as targetd.conf would have it."""
    return {
        'naa': ', '.join(facts['naa'].split()) or designators.NONE,
        'eui': facts['eui'],
        'scsi-sn': facts['serial'],
    }


def identifiers(facts):
    """Returns [(setting, identifier)] that only one medium may have."""
    found = [('naa', digits) for digits in facts.get('naa', '').split()]
    found += [('eui', facts.get('eui')), ('scsi-sn', facts.get('serial'))]
    return [(setting, value) for setting, value in found if value]


def describer(server):
    """Returns a function of (target, lun) that returns [(what, value)] of the identity of the LUN, in
    words for `targetd -t`. server: model.Server."""
    server_id = server.server_id or identity.known_server_id(server.state_dir)
    return lambda target, lun: _described(target, lun, server_id)


def _described(target, lun, server):
    try:
        is_path = lun.backing_store and lun.type != 'passthrough'
        path = disks.resolve_backing_store(lun.backing_store) if is_path else None
        names = names_of(lun, path, data_key(target.name, lun, path)[1], server or '')
    except StoreError as e:
        return [('identity', 'not known: %s' % e)]
    derived = [
        what for what, value in (('serial number', lun.scsi_sn), ('naa', lun.naa)) if not value
    ]
    if server is None and derived and not lun.direct and lun.type != 'passthrough':
        if not lun.naa:
            names['naa'] = ''
        return _rows(names, dict.fromkeys(derived, 'derived when targetd first starts'))
    if lun.type == 'passthrough':  # what else the device has is not known before it is opened
        return [row for row in _rows(names, {}) if row[0] != _KINDS[designators.T10_VENDOR]]
    return _rows(names, {})


def _rows(names, unknown):
    facts = UnitFacts.from_message(names)
    rows = [
        ('INQUIRY', '%s %s %s' % (facts.vendor, facts.product, facts.revision)),
        ('serial number', unknown.get('serial number', facts.serial.strip())),
        ('naa', unknown.get('naa', ', '.join(facts.naa.split()))),
        ('eui', facts.eui),
    ]
    if 'serial number' not in unknown or facts.t10:
        rows += [
            (_KINDS[kind], _text(content))
            for _, kind, content in designators.unit_designators(facts)
            if kind in _KINDS
        ]
    if 'naa' not in unknown:
        rows.append(('Linux name', designators.linux_name(facts)))
    return [(what, value) for what, value in rows if value]


_KINDS = {
    designators.T10_VENDOR: 't10',
    designators.SCSI_NAME: 'SCSI name',
    designators.VENDOR_SPECIFIC: 'vendor-specific',
}


def _text(content):
    """The content of a designator as text if it is printable ASCII and NULs, else its hex digits."""
    bare = content.rstrip(b'\0')
    if bare and all(0x20 <= byte < 0x7F for byte in bare):
        return bare.decode('ascii').rstrip()
    return content.hex()
