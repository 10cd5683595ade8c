"""Imports the XML that Microsoft's Export-IscsiTargetServerConfiguration writes.

May import migration.imported. The export has no secrets, sizes, sector sizes or identities, and the data is
in VHDX files: what must be added by hand is an error, so that it is not overlooked.
"""

import xml.etree.ElementTree as ElementTree

from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    Unreadable,
    account_without_secret,
    admit,
    admit_all,
    network_of,
)

KINDS = {'0': 'a NetBIOS name', '1': 'a DNS name', '3': 'a MAC address'}
TEXT_KEYS = ('FirstBurstLength', 'MaxBurstLength', 'MaxRecvDataSegmentLength')


def parse(path, text):
    """The Imported of an exported XML file. Raises Unreadable."""
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise Unreadable(Place(path, None), 'the XML defines entities', 'export it again')
    try:
        root = ElementTree.fromstring(
            text[text.index('<') :]
            .encode('utf-8')
            .replace(b'encoding="utf-16"', b'encoding="utf-8"', 1)
            .replace(b'encoding="Unicode"', b'encoding="utf-8"', 1)
        )
    except ElementTree.ParseError as e:
        raise Unreadable(
            Place(path, e.position[0]), 'this is not complete XML', 'copy the whole file'
        )
    return _Importer(path, text, root).imported


def _name(element):
    return element.tag.rpartition('}')[2]


def _children(element, name):
    return [each for each in element.iter() if _name(each) == name]


def _text(element, name):
    for each in element:
        if _name(each) == name:
            return (each.text or '').strip()
    return ''


class _Importer(object):
    def __init__(self, path, text, root):
        self.imported = Imported('Microsoft iSCSI Target Server')
        self.imported.files = [path]
        self._path, self._source = path, text
        self._disks = {_text(disk, 'DiskId'): disk for disk in _children(root, 'iSCSIVirtualDisk')}
        self._uses = {}
        targets = _children(root, 'iSCSITarget')
        if not targets:
            raise Unreadable(Place(path, None), 'the XML has no iSCSITarget', 'export it again')
        for target in targets:
            self._target(target)
        self.imported.note(
            Place(path, None),
            'portals, iSNS servers and snapshots are not in the export; the portals are those of every '
            'address of this host',
        )
        self.imported.note(
            Place(path, None),
            'sizes, sector sizes, serial numbers and NAA identifiers are not in the export',
            'read them on a client before the move (Get-Disk | Select Number, SerialNumber, UniqueId, Size, '
            'LogicalSectorSize), and write scsi-sn, naa and block-size',
        )

    def _place(self, word):
        at = self._source.find('>%s<' % word)
        return Place(self._path, self._source.count('\n', 0, at) + 1 if at >= 0 else None)

    def _target(self, element):
        name = _text(element, 'TargetIQN')
        target = Target(name.lower(), self._place(name))
        self.imported.targets.append(target)
        if _text(element, 'Description'):
            target.add_words('alias', _text(element, 'Description'))
        if _text(element, 'Enabled') == 'False':
            target.add('state', 'offline')
            self.imported.note(target.place, '%s is not enabled: state = offline' % name)
        self._access(target, element)
        for setting, enabled, user in (
            ('incominguser', 'EnableCHAP', 'CHAPUserName'),
            ('outgoinguser', 'EnableReverseCHAP', 'ReverseCHAPUserName'),
        ):
            if _text(element, enabled) == 'True':
                account_without_secret(
                    self.imported,
                    target,
                    setting,
                    _text(element, user) or '?',
                    self._place(_text(element, user)),
                    'its secret is not in the export',
                )
        for key in TEXT_KEYS:
            if _text(element, key):
                target.add(key, _text(element, key))
        for mapping in _children(element, 'LunMapping'):
            self._lun(target, mapping)

    def _access(self, target, element):
        addresses, names = [], []
        for each in _children(element, 'InitiatorID'):
            method, value = _text(each, 'Method'), _text(each, 'Value')
            place = self._place(value)
            if method == '4' and value == '*':
                return admit_all(self.imported, target, 'IQN * admits everyone')
            if method == '4':
                names.append((value.lower(), place))
            elif method in ('2', '5') and network_of(value):
                addresses.append((network_of(value), place))
            else:
                self.imported.left_out(
                    place,
                    '%s is %s, which targetd cannot check'
                    % (value, KINDS.get(method, 'of an unknown kind')),
                    'write the iSCSI name or the address of that initiator',
                )
        if not addresses and not names:
            self.imported.note(target.place, '%s admits nobody' % target.name)
        admit(self.imported, target, addresses, names, either=True)

    def _lun(self, target, mapping):
        number, identifier = _text(mapping, 'LUN'), _text(mapping, 'DiskId')
        disk = self._disks.get(identifier)
        if disk is None or not number.isdigit():
            return self.imported.wrong(
                target.place,
                '%s maps a disk %s that is not in the export' % (target.name, identifier),
            )
        path = _text(disk, 'DevicePath')
        place = self._place(path)
        if int(number) in [lun.number for lun in target.luns]:
            return self.imported.wrong(
                place,
                'LUN %s of %s is written twice' % (number, target.name),
                'remove one of the two',
            )
        lun = Lun(int(number), place)
        target.luns.append(lun)
        parent = _text(disk, 'ParentPath')
        self.imported.wrong(
            place,
            'LUN %s of %s is the VHDX file %s%s'
            % (number, target.name, path, ', which needs its parent %s' % parent if parent else ''),
            'convert it with qemu-img convert -O raw, and write backing-store with its new path',
        )
        if _text(disk, 'Enabled') == 'False':
            self.imported.left_out(place, '%s is not enabled; one LUN cannot be offline' % path)
        if identifier in self._uses:
            self.imported.note(
                place,
                '%s is in two targets: %s and %s' % (path, self._uses[identifier], target.name),
            )
        self._uses[identifier] = target.name
        lun.add('vendor-id', 'MSFT')
        lun.add('product-id', '"Virtual HD"')
