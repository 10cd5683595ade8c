"""Which units have a physical disk in common, for latency-target.

A job per file system looks for the disks, because a path may hang (ARCHITECTURE D1); until it has answered,
and where the disks cannot be told, the file system or the device counts. For an NBD export it is the server.
"""

from targetd.errors import StoreError
from targetd.host.beneath import storage_beneath, unknown_storage
from targetd.nbd import uri

JOB_SECONDS = 20.0
#: Disks are looked for again after this time: volumes can be moved while they are used.
AGAIN_SECONDS = 300.0


class CommonDisks(object):
    """loop: Loop, for its clock; jobs: Jobs."""

    def __init__(self, loop, jobs):
        self._loop = loop
        self._jobs = jobs
        self._found = {}  # unit id -> frozenset, from a job
        self._due = {}  # unit id -> (key of its store, time of the next look)
        self._running = set()  # names of the jobs that have not answered

    def beneath(self, unit):
        """What the unit's data is on: a frozenset of names like 'disk sda'. Two units whose sets have a
        member in common slow each other down. Empty for memory."""
        if uri.is_uri(unit.lun.backing_store):
            address = uri.parse_uri(unit.lun.backing_store)
            place = address.path or '%s:%d' % (address.host, address.port)
            return frozenset(['nbd server ' + place])
        if not _has_path(unit):
            return frozenset()
        return self._found.get(unit.id) or frozenset([unknown_storage(*unit.store.key[:2])])

    def look(self, units):
        """Look for the disks of these units where that is due."""
        now, groups = self._loop.clock(), {}
        for table in (self._found, self._due):
            for gone in set(table) - {unit.id for unit in units}:
                del table[gone]
        for unit in units:
            key, due = self._due.get(unit.id, (None, now))
            if _has_path(unit) and (key != unit.store.key or due <= now):
                name = ('disks beneath',) + tuple(unit.store.key[:2])
                groups.setdefault(name, []).append(unit)
        for name, members in groups.items():
            if name in self._running or self._jobs.is_stuck(name):
                continue
            self._running.add(name)
            for unit in members:
                self._due[unit.id] = unit.store.key, now + AGAIN_SECONDS
            self._submit(name, [(unit.id, unit.store.path) for unit in members])

    def _submit(self, name, wanted):
        self._jobs.submit_job(
            name,
            lambda: find_storage(wanted),
            lambda result: self._answered(name, result),
            seconds=JOB_SECONDS,
        )

    def _answered(self, name, result):
        self._running.discard(name)
        for unit_id, names in result.values.get('found', {}).items():
            if unit_id in self._due:
                self._found[unit_id] = frozenset(names)


def _has_path(unit):
    """Is the medium a file or a device? The key of a disk image is that of its file."""
    return unit.store.key[0] in ('file', 'block')


def find_storage(wanted):
    """The work of a job. wanted: [(unit id, path)]. Returns ({'found': {unit id: names}}, ())."""
    found = {}
    for unit_id, path in wanted:
        try:
            found[unit_id] = storage_beneath(path)
        except StoreError:
            continue  # it was removed or renamed while it is open
    return {'found': found}, ()
