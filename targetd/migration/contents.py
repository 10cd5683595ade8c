"""What is on the disks of an imported configuration: a disk with the content of a Linux host gets
`content = keep`, since another target server has served it already.

May import base, config.words, host.disks, host.signatures and migration.imported. Reads a few blocks of
each disk, and changes nothing.
"""

import os
import stat

from targetd.config import words
from targetd.host import disks, signatures

KEEP, REMEDY = 'content = keep', 'remove it if this is the wrong disk'


def _is_disk(path):
    """True for a block device; False if there is none, because it is of another machine perhaps: then
    targetd asks when it serves the disk."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _signatures_of(path):
    return signatures.device_signatures(path, disks.describe_disk(path).logical_sector)


def confirm(imported, is_disk=_is_disk, examine=_signatures_of):
    """Write `content = keep` for each writable disk of an Imported whose content is a Linux host's, with
    a note that names it. is_disk(path) -> bool; examine(path) -> [Signature], raises OSError."""
    for target in imported.targets:
        for lun in target.luns:
            path = _path_to_confirm(lun)
            if path is not None and is_disk(path):
                _confirm(imported, target, lun, path, examine)


def _path_to_confirm(lun):
    """The path of the medium, or None if targetd does not ask about its content."""
    if lun.get('content') or ('readonly', 'yes') in lun.settings:
        return None
    if ('allow-in-use', 'yes') in lun.settings:
        return None
    paths = lun.get('backing-store') + lun.get('direct-store')
    try:
        found = [word for text in paths for item in words.split(text) for word in item]
    except words.Unusable:  # the check of the configuration complains about it
        return None
    return found[0] if len(found) == 1 else None


def _confirm(imported, target, lun, path, examine):
    name = '%s/%d' % (target.name, lun.number)
    try:
        found = [each for each in examine(path) if each.owner == 'host']
    except OSError as e:
        imported.note(
            lun.place,
            '%s: %s cannot be read (%s), so it is not known whether it has the content of a Linux host'
            % (name, path, e.strerror),
            'import as root, or write %s if targetd asks for it' % KEEP,
        )
        return
    if found:
        lun.add('content', 'keep')
        imported.note(
            lun.place,
            '%s: %s contains %s, so %s is written: targetd would otherwise ask before it serves such a disk '
            'for the first time'
            % (name, path, ', '.join(signatures.one_line(each) for each in found), KEEP),
            REMEDY,
        )
