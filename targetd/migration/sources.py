"""The formats that can be imported, and the import of several files at once.

May import migration.
"""

from collections import OrderedDict

from targetd.migration import ceph, ctl, files, iet, istgt, lio, microsoft, own, scst, tgt
from targetd.migration.imported import Imported, Place, Unreadable, name_default_group

#: Word of --format -> function of (path, text) that returns an Imported or raises Unreadable.
FORMATS = OrderedDict(
    (
        ('tgt', tgt.parse),
        ('lio', lio.parse),
        ('scst', scst.parse),
        ('iet', iet.parse),
        ('ctl', ctl.parse),
        ('istgt', istgt.parse),
        ('ceph', ceph.parse),
        ('microsoft', microsoft.parse),
        ('targetd', own.parse),
    )
)


def import_files(paths, kind=''):
    """The Imported of these files. kind: a word of FORMATS, or '' to find it out. Raises Unreadable."""
    if kind and kind not in FORMATS:
        raise Unreadable(
            Place(paths[0], None),
            'there is no format %r' % kind,
            'write one of %s' % ', '.join(FORMATS),
        )
    found = []
    while paths:
        text = files.read_file(paths[0])
        its_kind = kind or files.kind_of(text, paths[0])
        if its_kind == 'tgt':  # its target numbers depend on all files
            found.append(tgt.parse(paths[0], text, paths[1:]))
            break
        found.append(FORMATS[its_kind](paths[0], text))
        paths = paths[1:]
    whole = found[0] if len(found) == 1 else merged(found)
    name_default_group(whole)
    if whole.source != own.SOURCE:
        _note_sharing(whole)
    return whole


def _note_sharing(imported):
    """No other target server keeps two hosts from writing one disk."""
    writable = [
        target
        for target in imported.targets
        if any(('readonly', 'yes') not in lun.settings for lun in target.luns)
    ]
    if writable:
        imported.note(
            writable[0].place,
            'any number of hosts may write a LUN of %s at the same time; in targetd one initiator uses a '
            'LUN at a time' % imported.source,
            'write sharing = cluster in the targets whose hosts share a LUN by cluster software (Windows '
            'Failover Clustering, VMFS, GFS2)',
        )


def merged(found):
    """One Imported of several."""
    whole = Imported(', '.join(OrderedDict.fromkeys(each.source for each in found)))
    for each in found:
        whole.files += each.files
        whole.notes += each.notes
        whole.server.settings += each.server.settings
        tags = {}
        for tag, portals in each.groups.items():
            tags[tag] = tag
            if whole.groups.get(tag, portals) != portals:
                tags[tag] = whole.add_portal_group(portals)
            whole.groups[tags[tag]] = portals
        for target in each.targets:
            target.settings = [
                (setting, ', '.join(str(tags.get(int(tag), int(tag))) for tag in text.split(',')))
                if setting == 'portal-group'
                else (setting, text)
                for setting, text in target.settings
            ]
            whole.targets.append(target)
    return whole
