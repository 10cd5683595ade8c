"""Warns of file systems that become full although a file can still grow in them: for files without thin
provisioning, whose initiators cannot be told (exports.Exports.check_space does so for the others).
"""

import os

from targetd import events, log


class RoomWatch(object):
    """low: ids of the units of whose file systems was warned."""

    def __init__(self):
        self.low = set()

    def look(self, unit):
        """Warn, once, if less than thin-threshold percent of the file system are left."""
        store, percent = unit.store, unit.lun.thin_threshold
        if store.kind != 'file' or store.read_only or not percent:
            return
        try:
            space, occupied = (
                os.fstatvfs(store.descriptor),
                os.fstat(store.descriptor).st_blocks * 512,
            )
        except OSError as e:
            log.debug('unit %s: its free space cannot be determined: %s', unit.id, e.strerror)
            return
        available = space.f_bavail * space.f_frsize
        may_grow = store.size - occupied
        is_low = may_grow > 0 and available < space.f_blocks * space.f_frsize * percent // 100
        if not is_low:
            self.low.discard(unit.id)
        elif unit.id not in self.low:
            self.low.add(unit.id)
            events.emit('space_low', unit=unit.id, path=store.path, available=available)
            log.warning(
                'unit %s: %d bytes are available to %s, which may still use %d bytes; writes fail when the '
                'file system is full. Add space, or see targetdctl show space and trim',
                unit.id,
                available,
                store.path,
                may_grow,
            )
