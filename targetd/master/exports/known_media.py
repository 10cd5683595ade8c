"""Which disk was served as which LUN, so that another one under the same name is not mistaken for
it: /dev/sdb after a boot with one disk more, a by-path name after a change of cables, a file whose
file system is not mounted.

A LUN whose `backing-store` was written anew is taken as it is; one that names the same thing and
finds another is refused until the administrator accepts it. Kept in state-dir/media.json; without
that file (or with one that cannot be read, which is said) every disk is new.
"""

import json
import os

from targetd import log
from targetd.errors import StoreError
from targetd.host import disks, identity
from targetd.master.state.state_directory import write_durably

VERSION = 1


class KnownMedia(object):
    """{(target name, number): what media.open_medium saw there}. path: of the file."""

    def __init__(self, path):
        self.path = path
        self._seen = {}
        self._is_changed = False

    def load(self):
        """At the start."""
        try:
            with open(self.path, encoding='utf-8') as f:
                document = json.load(f)
            if document['version'] != VERSION:
                raise ValueError('unknown version %r' % document['version'])
            self._seen = {(row['target'], row['lun']): row['seen'] for row in document['media']}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as e:
            log.error(
                '%s cannot be read (%s): a disk that changed its name since the last start is not noticed',
                self.path,
                e,
            )

    def get(self, target_name, number):
        """What was seen there, or None."""
        return self._seen.get((target_name, number))

    def note(self, target_name, number, seen):
        """This is served there now. True if it is new there."""
        old = self._seen.get((target_name, number))
        if old != seen:
            self._seen[target_name, number] = seen
            self._is_changed = True
        return old is None or (old['named'], old['key']) != (seen['named'], seen['key'])

    def forget(self, target_name, number):
        """Whatever is found there next is right. False if nothing was known."""
        self._is_changed = self._is_changed or (target_name, number) in self._seen
        return self._seen.pop((target_name, number), None) is not None

    def keep_only(self, keys):
        """The configuration has no other LUNs."""
        for key in set(self._seen) - set(keys):
            self.forget(*key)

    def save(self):
        """Put it on stable storage, if it changed."""
        if not self._is_changed:
            return
        rows = [
            {'target': target_name, 'lun': number, 'seen': seen}
            for (target_name, number), seen in sorted(self._seen.items())
        ]
        try:
            write_durably(
                self.path, json.dumps({'version': VERSION, 'media': rows}, indent=1, sort_keys=True)
            )
            self._is_changed = False
        except OSError as e:
            log.error(
                '%s cannot be written (%s): a disk that changes its name until the next start is not noticed',
                self.path,
                e.strerror,
            )


def seen(lun, path):
    """What a LUN's medium is: JSON-able. named: the configuration's word; key: what tells it from
    others; shown: for people."""
    key = identity.stable_key(path)
    disk = disks.describe_disk(path)
    if key.startswith('device:'):  # it has no name of its own, and the kernel's is what may change
        key = 'model:%s %s:%d' % (disk.vendor, disk.model, disk.size)
    return {
        'named': lun.backing_store,
        'key': key,
        'is_file': disk.kind == 'file',
        'size': disk.size,
        'shown': disks.one_line(disk),
    }


def require_known(target, lun, path, known):
    """Raise StoreError if the LUN's medium is not what it was. known: what was seen there, or None."""
    if known is None or known['named'] != lun.backing_store:
        return
    accept = 'if that is as it should be: targetdctl accept %s/%d' % (target.name, lun.number)
    if not os.path.exists(path):
        if lun.size is not None:  # it would be created
            raise StoreError(
                '%s is gone, which had %s when it was served last; is its file system mounted? To have an empty '
                'one made: targetdctl accept %s/%d'
                % (path, disks.human_size(known['size']), target.name, lun.number)
            )
        return
    now = seen(lun, path)
    if now['is_file'] != known['is_file'] or (now['key'] != known['key'] and not now['is_file']):
        raise StoreError(
            '%s is another disk than it was: %s now, %s when it was served last; name disks by serial:, wwn: or '
            '/dev/disk/by-id; %s' % (lun.backing_store, now['shown'], known['shown'], accept)
        )
