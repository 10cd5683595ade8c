"""LUNs that are read-only at certain times of the week (read-only-schedule).

     look (each minute, after a reload) --> by setting and clock --> differs --> in force in every session

Without such a LUN there is no timer. The clock is looked at each time, so a change of the clock or of the
time zone counts from the next minute.
"""

import time

from targetd import log
from targetd.config import schedule_kinds
from targetd.master.units import fault_transitions
from targetd.master.units.shared_state import ORDERED

MINUTE = 60
#: A timer may fire a little early.
SLACK_SECONDS = 0.05


class ReadOnlyTimes(object):
    """units: Units; clock(): wall clock, seconds."""

    def __init__(self, loop, units, clock=time.time):
        self.loop = loop
        self.units = units
        self.clock = clock
        self._timer = None

    def state_of(self, lun):
        """The word of the setting `state` that is in force for this model.Lun now."""
        if lun.state != 'ready' or not lun.read_only_schedule:
            return lun.state
        is_protected = schedule_kinds.is_within(lun.read_only_schedule, *self._now())
        return 'read-only' if is_protected else 'ready'

    def ordered(self, lun):
        """What the administrator has ordered for this model.Lun now: scsi.faults.NONE or a restriction."""
        return ORDERED[self.state_of(lun)]

    def decision(self, unit):
        """The Decision that puts this in force, None if it is."""
        return fault_transitions.state_ordered(unit.shared, self.state_of(unit.lun))

    def _now(self):
        """(day of the week, minute of the day) of the local time."""
        now = time.localtime(self.clock())
        return now.tm_wday, now.tm_hour * 60 + now.tm_min

    def look(self):
        """Put in force what the clock says, now and each minute from now on."""
        self.close()
        scheduled = [unit for unit in self.units.by_id.values() if unit.lun.read_only_schedule]
        for unit in scheduled:
            self._look_at(unit)
        if scheduled:
            self._timer = self.loop.call_later(
                MINUTE - self.clock() % MINUTE + SLACK_SECONDS, self.look
            )

    def _look_at(self, unit):
        decision = self.decision(unit)
        if decision is None:
            return
        self.units.apply_and_flush(unit, decision)
        log.info(
            'unit %s %s', unit.id, self.described(unit) or 'is writable again (read-only-schedule)'
        )

    def described(self, unit):
        """That the unit is read-only by its schedule, and until when; '' if it is not."""
        lun = unit.lun
        if lun.state != 'ready' or unit.shared.ordered != ORDERED['read-only']:
            return ''
        end = schedule_kinds.end_of(lun.read_only_schedule, *self._now())
        return 'is read-only until %s (read-only-schedule)' % end if end else 'is read-only always'

    def close(self):
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
