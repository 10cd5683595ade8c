"""Log lines about faults of the media: one at the first fault of a unit and a kind, then at most one
every LOG_SECONDS for that unit and kind, which says how many there were.
"""

from targetd import events, log
from targetd.scsi import faults

LOG_SECONDS = 60.0


class FaultLog(object):
    """Writes the lines. One for all units; the kind of a fault is its access and its errno."""

    def __init__(self, loop):
        self._loop = loop
        self._waiting = {}  # (unit id, kind) -> [faults since the last line, last note, initiator]

    def add(self, unit, nexus, note):
        """A fault was noted: log it now, or count it if its kind was logged less than LOG_SECONDS ago.
        note: as in scsi.records."""
        key = unit.id, '%s %s' % (note['kind'], faults.name_of(note['errno']))
        if key in self._waiting:
            count = self._waiting[key][0] + note.get('count', 1)
            self._waiting[key] = [count, note, nexus.initiator_name]
            return
        events.emit(
            'disk_error',
            unit=unit.id,
            path=unit.lun.backing_store,
            why=key[1],
            place=_place(unit, note),
            initiator=nexus.initiator_name,
        )
        log.error(
            'unit %s (%s): %s at %s, for %s; the unit is degraded until you run '
            '"targetdctl acknowledge %s"',
            unit.id,
            unit.lun.backing_store or unit.store.kind,
            key[1],
            _place(unit, note),
            nexus.initiator_name,
            unit.id,
        )
        self._wait(unit, key)

    def _wait(self, unit, key):
        self._waiting[key] = [0, None, '']
        self._loop.call_later(LOG_SECONDS, lambda: self._time_is_over(unit, key))

    def _time_is_over(self, unit, key):
        count, note, initiator = self._waiting.pop(key)
        if not count:
            return
        log.error(
            'unit %s: %s: %d more since the last line, the latest at %s, for %s',
            unit.id,
            key[1],
            count,
            _place(unit, note),
            initiator,
        )
        self._wait(unit, key)


def _place(unit, note):
    size = unit.store.block_size
    first, count = note['offset'] // size, note['length'] // size
    return 'LBA %d' % first if count <= 1 else 'LBA %d to %d' % (first, first + count - 1)


def log_restriction(unit, restriction):
    """`on-error` has restricted the unit."""
    log.error(
        'unit %s (%s) is %s now, because of this fault and on-error = %s. Check the disk, then run '
        '"targetdctl acknowledge %s"',
        unit.id,
        unit.lun.backing_store or unit.store.kind,
        restriction,
        restriction,
        unit.id,
    )
