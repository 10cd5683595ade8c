"""Compares the media that are served with what is found now: the size, and whether the configured
path still leads to the medium that is open.

     check_now --> a job per file system looks --> size larger:  adopted, 2A/09 CAPACITY DATA HAS CHANGED
                                               --> size smaller: the unit is SHRUNK until acknowledged
                                               --> another medium at the path: unit.path_problem

Looking can block (a dead NFS server), so a job does it; a file system whose job does not end
delays only its own units. While a job of a file system runs, no second one is started.
"""

import os
import stat

from targetd import log
from targetd.errors import StoreError
from targetd.host import disks
from targetd.master.units import transitions
from targetd.scsi.medium_state import FAILED, SHRUNK
from targetd.store import linux

WATCHED_KINDS = ('file', 'block')


class MediaWatch(object):
    """The periodic comparison. units: logical_units.Units; known: known_media.KnownMedia; jobs:
    Jobs; seconds: the interval, 0 for never."""

    def __init__(self, loop, units, known, jobs):
        self.loop = loop
        self.units = units
        self.known = known
        self.jobs = jobs
        self.seconds = 0
        self.also = lambda: None  # looks at media that are not files or disks (nbd_renewal)
        self._timer = None
        self._running = set()  # names of the jobs that have not answered

    # -- timer -------------------------------------------------------------------------------------

    def set_interval(self, seconds):
        """Look every `seconds` from now on; 0: never."""
        self.seconds = seconds
        self.close()
        if seconds:
            self._timer = self.loop.call_later(seconds, self._tick)

    def _tick(self):
        self._timer = self.loop.call_later(self.seconds, self._tick)
        self.check_now()

    def close(self):
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- looking -----------------------------------------------------------------------------------

    def check_now(self):
        """Starts to look at all media; the outcome is applied when it is known."""
        self.also()
        groups = {}
        for unit in list(self.units.by_id.values()):
            if unit.store.kind in WATCHED_KINDS and unit.store.descriptor is not None:
                groups.setdefault(_group_of(unit.store), []).append(unit)
            elif unit.store.kind == 'nbd' and unit.store.descriptor is not None:
                self._note_size(unit, unit.store.resize_check())  # reads memory only
        for group, units in groups.items():
            name = ('look', group)
            if name not in self._running and not self.jobs.is_stuck(name):
                self._running.add(name)
                self._look_at(name, units)

    def _look_at(self, name, units):
        changes = {unit: unit.sizes_changed for unit in units}
        wanted = [
            (unit.id, unit.lun.backing_store, unit.store.key, unit.store.descriptor)
            for unit in units
        ]
        self.jobs.submit_job(
            name,
            lambda: look_at_media(wanted),
            lambda answer: self._answered(name, changes, answer),
            [descriptor for _, _, _, descriptor in wanted],
        )

    def _answered(self, name, changes, answer):
        """changes: {Unit: its sizes_changed when the job was started}."""
        self._running.discard(name)
        seen = answer.values.get('seen', {})
        for unit in changes:
            if unit.id in seen and self.units.by_id.get(unit.id) is unit:
                size, problem = seen[unit.id]
                self._note_path(unit, problem)
                if not unit.is_resizing and unit.sizes_changed == changes[unit]:
                    self._note_size(unit, size)
        self.known.save()

    def _note_path(self, unit, problem):
        if problem == unit.path_problem:
            return
        unit.path_problem = problem
        if problem:
            log.error('unit %s: %s', unit.id, problem)
        else:
            log.info('unit %s: %s is the medium that is served again', unit.id, unit.store.path)

    def _note_size(self, unit, found):
        size = found - found % unit.store.block_size
        if size == unit.replicated_size or unit.shared.medium == SHRUNK:
            return
        if size < unit.replicated_size:
            self._shrunk(unit, found)
        elif unit.lun.size is None or size <= unit.lun.size or unit.store.kind == 'block':
            self.adopt_size(unit, size)

    # -- sizes -------------------------------------------------------------------------------------

    def adopt_size(self, unit, size):
        """The unit has this size (bytes) from now on. All initiators get unit attention 2A/09
        (CAPACITY DATA HAS CHANGED)."""
        if size == unit.replicated_size:
            return
        log.info('unit %s: resized from %d to %d bytes', unit.id, unit.replicated_size, size)
        unit.store.set_size(size)
        unit.replicated_size = size
        self.units.replication.apply_decision(unit, transitions.resized(unit.shared, size))
        self.known.note_size(unit.target_name, unit.lun.number, size)
        if unit.lun.unit_state:
            self.units.replication.save_when_possible(unit, unit.shared)

    def _shrunk(self, unit, found):
        if unit.shared.medium == FAILED:
            return
        unit.shrinkage = '%s has %d bytes, %d when it was exported' % (
            unit.store.path,
            found,
            unit.replicated_size,
        )
        log.error(
            'unit %s has SHRUNK: %s. Data beyond its end is lost. Every command that needs the medium is '
            'refused until you check the disk and run "targetdctl acknowledge %s", which serves it with '
            'its present size',
            unit.id,
            unit.shrinkage,
            unit.id,
        )
        self.units.replication.apply_decision(unit, transitions.medium_shrunk(unit.shared))

    def acknowledge_shrunk(self, unit):
        """The administrator accepts the present size of a unit that has shrunk. Raises StoreError if
        nothing is left of it."""
        size = unit.store.resize_check()
        size -= size % unit.store.block_size
        if size <= 0:
            raise StoreError(
                '%s has no complete block, so it cannot be served; restore it, and restart targetd'
                % unit.store.path
            )
        log.warning('unit %s is put into service again after it has shrunk', unit.id)
        unit.shrinkage = ''
        self.adopt_size(unit, size)
        self.units.replication.apply_decision(unit, transitions.shrinking_acknowledged(unit.shared))
        self.known.save()


def _group_of(store):
    """The units that one job looks at: those of a file system, which may hang together. Block
    devices are looked at through the kernel's tables, which do not hang."""
    return 'block' if store.kind == 'block' else store.key[1]


# -- in the job ------------------------------------------------------------------------------------


def look_at_media(wanted):
    """Runs in a child process. wanted: [(unit id, backing-store, key of the open store,
    descriptor)]. Returns ({'seen': {unit id: [size, what is wrong with the path, or '']}}, ()). A
    medium that was closed meanwhile is left out."""
    seen = {}
    for unit_id, backing_store, key, descriptor in wanted:
        try:
            status = os.fstat(descriptor)
            if _key_of(status) != tuple(key):
                continue
            size = linux.device_size(descriptor) if key[0] == 'block' else status.st_size
        except OSError:
            continue
        seen[unit_id] = [size, path_problem(backing_store, status, descriptor)]
    return {'seen': seen}, ()


def _key_of(status):
    if stat.S_ISBLK(status.st_mode):
        return ('block', status.st_rdev)
    return ('file', status.st_dev, status.st_ino)


def path_problem(backing_store, status, descriptor):
    """Says how the medium at the path differs from the one that is open; '' if it is the same.
    status: os.fstat() of the descriptor."""
    try:
        path = disks.resolve_backing_store(backing_store)
        found = os.stat(path)
    except StoreError as e:
        return '%s; the disk that was found at the start is still served' % e
    except FileNotFoundError:
        return _absence(backing_store, status, descriptor)
    except OSError as e:
        return '%s cannot be examined: %s; the medium that was opened is still served' % (
            backing_store,
            e.strerror,
        )
    if _key_of(found) == _key_of(status):
        return ''
    if stat.S_ISBLK(status.st_mode):
        return (
            '%s is another disk than the one that is served; name the disk by serial:, wwn: or '
            '/dev/disk/by-id' % backing_store
        )
    return (
        '%s is another file than the one that is served (it was replaced, or a link or a mount has '
        'changed); what initiators write goes to the earlier file%s. After a restart the LUN is refused '
        'until "targetdctl accept"' % (backing_store, _rescue(status, descriptor))
    )


def _absence(backing_store, status, descriptor):
    if stat.S_ISBLK(status.st_mode):
        return '%s no longer exists; the disk was removed, or its name has changed' % backing_store
    if status.st_nlink:
        return (
            '%s no longer exists; the file was renamed, or its file system is mounted elsewhere; it is '
            'still served; restore the path before targetd stops' % backing_store
        )
    return '%s was deleted; it is still served, but its data is LOST when targetd stops%s' % (
        backing_store,
        _rescue(status, descriptor),
    )


def _rescue(status, descriptor):
    """How to save the data of a file that has no name any more."""
    if status.st_nlink:
        return ''
    return (
        '; to save it, let the initiators log out, then: cp --sparse=always /proc/%d/fd/%d FILE'
        % (os.getppid(), descriptor)
    )
