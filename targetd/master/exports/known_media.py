"""Records which medium was served as which LUN, so that another medium under the same name is not
mistaken for it: /dev/sdb after a boot with an additional disk, a by-path name after cables were
exchanged, a file whose file system is not mounted.

A LUN whose `backing-store` setting has changed is accepted. A LUN whose setting is unchanged but
leads to another medium is refused until the administrator accepts it. The records are in
state-dir/media.json; if that file is missing (or unreadable, which is logged), every medium is
new.
"""

import json
import os

from targetd import log
from targetd.errors import StoreError
from targetd.host import disks, identity, sg_nodes
from targetd.master.state.saver import DirectSaver
from targetd.master.state.state_directory import boot_id, require_known_format
from targetd.trusted_path import open_trusted

VERSION = 1


class KnownMedia(object):
    """The records: {(target name, number): result of describe_medium()}. path: of the file; saver:
    saver.Saver."""

    def __init__(self, path, saver=None):
        self.path = path
        self._saver = saver or DirectSaver()
        self._records = {}
        self._former = {}  # key of a medium -> a record that was removed since the start
        self._is_changed = False

    def load(self):
        """Reads the file. An unreadable file is logged and counts as empty. Raises StoreError if a newer
        version of targetd wrote it."""
        try:
            with os.fdopen(open_trusted(self.path, os.O_RDONLY), encoding='utf-8') as f:
                document = json.load(f)
            require_known_format(self.path, document['version'], VERSION)
            self._records = {(row['target'], row['lun']): row['seen'] for row in document['media']}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as e:
            log.error(
                '%s cannot be read (%s): a disk that changed its name since the last start will not be '
                'detected',
                self.path,
                e,
            )

    def get(self, target_name, number):
        """Returns the record of this LUN, or None."""
        return self._records.get((target_name, number))

    def note(self, target_name, number, description):
        """Records the medium of this LUN. Returns True if it is new for this LUN."""
        old = self._records.get((target_name, number))
        if old != description:
            self._records[target_name, number] = description
            self._is_changed = True
        return old is None or (old['named'], old['key']) != (
            description['named'],
            description['key'],
        )

    def former_identity(self, target_name, number, description):
        """Returns the identity {setting: value} that initiators saw of this LUN, or of its medium under
        the name of another target or LUN, if it differs from the one in `description`; else None."""
        old = self._records.get((target_name, number)) or self._former.get(description['key'])
        identity = (old or {}).get('identity')
        return identity if identity and identity != description['identity'] else None

    def note_size(self, target_name, number, size):
        """Records the present size (bytes) of the medium of this LUN."""
        old = self._records.get((target_name, number))
        if old is not None and old['size'] != size:
            self._records[target_name, number] = dict(old, size=size)
            self._is_changed = True

    def forget(self, target_name, number):
        """Removes the record of this LUN: any medium is accepted next. Returns False if there was
        none."""
        removed = self._records.pop((target_name, number), None)
        if removed is None:
            return False
        self._former[removed.get('key')] = removed
        self._is_changed = True
        return True

    def keep_only(self, keys):
        """Removes the records of all LUNs that are not in `keys`."""
        for key in set(self._records) - set(keys):
            self.forget(*key)

    def save(self):
        """Has the file written to stable storage if a record has changed. An error is logged."""
        if not self._is_changed:
            return
        rows = [
            {'target': target_name, 'lun': number, 'seen': description}
            for (target_name, number), description in sorted(self._records.items())
        ]
        self._is_changed = False
        text = json.dumps({'version': VERSION, 'media': rows}, indent=1, sort_keys=True)
        self._saver.write(self.path, text, self._saved)

    def _saved(self, error):
        if error is not None:
            self._is_changed = True
            log.error(
                '%s cannot be written (%s): a disk that changes its name before the next start will not '
                'be detected',
                self.path,
                error.strerror,
            )


def log_new_medium(unit):
    """Logs the content of a disk that is served for the first time, so that the administrator can
    notice a wrong disk."""
    if unit.store.kind != 'block':
        return
    log.info(
        'unit %s: %s is served for the first time; its content: %s',
        unit.id,
        unit.found['seen']['shown'],
        ', '.join(unit.found['contents']) or 'no known format',
    )
    if unit.found['auto_assembled']:
        log.warning(
            'unit %s: %s contains %s. If an initiator created that, prevent this host from using it (a '
            'global_filter in lvm.conf, AUTO -all in mdadm.conf); if this host created it, initiators are '
            'going to overwrite it',
            unit.id,
            unit.store.path,
            ', '.join(unit.found['auto_assembled']),
        )


def log_new_identity(unit, before):
    """Logs how to keep the identity that initiators know. before: as in known_media."""
    now = unit.found['seen']['identity']
    changed = [name for name in sorted(now) if now[name] != before.get(name)]
    log.warning(
        'unit %s: initiators see another disk than before: %s now, %s before (the identity is derived from '
        'server-id, the name of the target, and the disk or path). If it is the same disk, keep its '
        'identity: write in [[lun %d]] of target %s: %s',
        unit.id,
        ', '.join('%s %s' % (name, now[name] or 'none') for name in changed),
        ', '.join('%s %s' % (name, before.get(name) or 'none') for name in changed),
        unit.lun.number,
        unit.target_name,
        ', '.join('%s = %s' % (name, before.get(name, '')) for name in changed),
    )


def describe_medium(lun, path):
    """Returns the JSON-able record of a LUN's medium. named: the backing-store setting; key:
    identifies the medium; shown: its description in messages; inode: of a file, and device: of its
    file system in the boot `boot`. open_medium adds identity: what initiators see, {setting: value}.
    Raises StoreError."""
    if lun.type == 'passthrough':
        device = sg_nodes.resolve_device(lun.backing_store)
        key = sg_nodes.stable_key(device)
        if key.startswith('device:'):  # it has only the name of its node, which may change
            key = 'model:%s %s' % (device.vendor, device.model)
        return {
            'named': lun.backing_store,
            'key': key,
            'is_file': False,
            'size': 0,  # that of a medium can change
            'shown': device.shown,
        }
    key = identity.stable_key(path)
    disk = disks.describe_disk(path)
    if key.startswith('device:'):  # the disk has only a kernel name, and that name may change
        key = 'model:%s %s:%d' % (disk.vendor, disk.model, disk.size)
    record = {
        'named': lun.backing_store,
        'key': key,
        'is_file': disk.kind == 'file',
        'size': disk.size,
        'shown': disks.one_line(disk),
    }
    if disk.kind == 'file':
        record.update(_file_identity(path))
    return record


def describe_export(lun, size):
    """The same record of an export of an NBD server; its URI is its name."""
    return {
        'named': lun.backing_store,
        'key': 'nbd:' + lun.backing_store,
        'is_file': False,
        'size': size,
        'shown': '%s, %s' % (lun.backing_store, disks.human_size(size)),
    }


def require_not_shorter(target, lun, size, known):
    """Raises StoreError if the medium of the LUN has become shorter. known: the record or None."""
    if known is None or known['named'] != lun.backing_store or size >= known['size']:
        return
    raise StoreError(
        '%s is shorter than when it was last served: %d bytes now, %d then; restore it; if this is intended: '
        'targetdctl accept %s/%d'
        % (lun.backing_store, size, known['size'], target.name, lun.number)
    )


def _file_identity(path):
    """What distinguishes a file from another one at the same path. The device number of a file system can
    differ after each boot, and without a block device after each mount."""
    status = os.stat(path)
    device = status.st_dev if os.major(status.st_dev) else 0
    return {'inode': status.st_ino, 'device': device, 'boot': boot_id()}


def _is_another_file(now, known):
    if 'inode' not in known:  # recorded by an earlier version
        return False
    is_same_boot = now['boot'] == known['boot'] != ''
    return now['inode'] != known['inode'] or (is_same_boot and now['device'] != known['device'])


def require_known(target, lun, path, known):
    """Raises StoreError if the medium of the LUN is not the recorded one. known: the record or None."""
    if known is None or known['named'] != lun.backing_store:
        return
    accept = 'if this is intended: targetdctl accept %s/%d' % (target.name, lun.number)
    if not os.path.exists(path):
        if lun.size is not None:  # opening would create an empty file
            raise StoreError(
                '%s no longer exists; it had %s when it was last served; is its file system mounted? To '
                'create an empty file instead: targetdctl accept %s/%d'
                % (path, disks.human_size(known['size']), target.name, lun.number)
            )
        return
    now = describe_medium(lun, path)
    if now['is_file'] != known['is_file'] or (now['key'] != known['key'] and not now['is_file']):
        raise StoreError(
            '%s is another disk than before: %s now, %s when it was last served; name disks by serial:, '
            'wwn: or /dev/disk/by-id; %s'
            % (lun.backing_store, now['shown'], known['shown'], accept)
        )
    if now['is_file'] and _is_another_file(now, known):
        raise StoreError(
            '%s is another file than before: it was replaced, or a link or a mount has changed since it was '
            'last served (%s now, %s then); %s'
            % (
                lun.backing_store,
                disks.human_size(now['size']),
                disks.human_size(known['size']),
                accept,
            )
        )
    require_not_shorter(target, lun, now['size'], known)
