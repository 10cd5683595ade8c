"""Trims: blocks of a medium that are all zero are freed (targetdctl trim) while initiators use it.

     job: find_zeroes, which locks nothing --> windows with such blocks, one after the other:
       watched: workers ask the master before they write there --acknowledged by all-->
         a write there is in progress --> the window is tried again at the end
         else job: free_zeroes, which reads again --> the writes that have asked meanwhile go on

The window is *watched* as the bytes of a ROD token are (rod_tokens, ARCHITECTURE D14), in every unit of the
medium: no worker acknowledges that while one of its commands may be writing to the window, unless it has
reported the range. So no write is in progress while blocks are freed, and none is lost. If the medium
hangs, the writes to the window wait until the job has ended, since it may still free blocks.

A trim ends with the server, before an upgrade, and by `targetdctl trim --stop`. Nothing is kept.
"""

from collections import deque

from targetd import log
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.scsi.medium_state import READY
from targetd.store import Atomic, from_descriptor, zeroes

FIND_SECONDS = 1.0
FIND_WINDOWS = 64
#: Time limits of the jobs; one that frees is waited for in any case.
FIND_LIMIT = 120.0
FREE_LIMIT = 20.0
#: A window with a write in progress is tried so often.
TRIES = 5
#: Pause after a window, as a multiple of its time: writes to the medium wait for a part of the time only.
PAUSE = 1.0
LONGEST_PAUSE = 1.0


class Trim(object):
    """A trim of one unit. window: (offset, length) that is watched now, or None; is_freeing: its job runs;
    is_disturbed: a worker writes to the window; held: what goes on when the job has ended."""

    def __init__(self, unit, clock):
        self.unit = unit
        self.store = unit.store
        self.watched_units = []
        self.position = 0
        self.windows = deque()
        self.busy = []  # windows with a write in progress
        self.tries = 0
        self.window = None
        self.is_freeing = False
        self.is_disturbed = False
        self.held = []
        self.freed = 0
        self.began = clock
        self.ended = None
        self.why = ''  # why it has ended before it was done
        self.stop_why = ''


class Trims(object):
    """The trims of all units. by_id: UnitTable; rod_tokens: RodTokens, which sends the watched bytes; state:
    server_state.ServerState."""

    def __init__(self, loop, jobs, by_id, rod_tokens, state):
        self._loop = loop
        self._jobs = jobs
        self._by_id = by_id
        self._rod_tokens = rod_tokens
        self._state = state
        self._trims = {}  # unit id -> its last Trim
        rod_tokens.before_write = self.before_write

    # -- the administrator -------------------------------------------------------------------------

    def start(self, unit):
        """Begin a trim. Raises TargetdError."""
        same_medium = [unit] + self._by_id.same_medium(unit)
        if any(self._running(each) for each in same_medium):
            raise TargetdError('unit %s is being trimmed already' % unit.id)
        why = self._obstacle(unit)
        if why:
            raise TargetdError('unit %s cannot be trimmed: %s' % (unit.id, why))
        trim = self._trims[unit.id] = Trim(unit, self._loop.clock())
        self._loop.call_later(0, lambda: self._step(trim))

    def stop(self, unit, why):
        """End the trim of a unit after its present window. Returns False if there is none."""
        trim = self._running(unit)
        if trim is not None:
            trim.stop_why = why
        return trim is not None

    def stop_all(self, why):
        """End every trim after its present window."""
        for trim in self._trims.values():
            trim.stop_why = trim.stop_why or why

    def described(self, unit):
        """The last trim of the unit in words, or ''."""
        trim = self._trims.get(unit.id)
        if trim is None or trim.unit is not unit:
            return ''
        if trim.ended is None:
            share = 100 * trim.position // max(1, trim.store.size)
            return 'running, %d %%, %s freed' % (share, counted(trim.freed, 'byte'))
        return self._outcome(trim)

    def _outcome(self, trim):
        words = '%s freed' % counted(trim.freed, 'byte')
        if trim.busy and not trim.why:
            words += ', %s in use' % counted(len(trim.busy), 'part')
        return '%s: %s' % ('ended, ' + trim.why if trim.why else 'done', words)

    def _running(self, unit):
        trim = self._trims.get(unit.id)
        return trim if trim is not None and trim.unit is unit and trim.ended is None else None

    # -- writes ------------------------------------------------------------------------------------

    def is_freeing(self, unit):
        """True if blocks of the medium of the unit may be freed at this moment."""
        return any(
            trim.is_freeing and trim.store.key == unit.store.key for trim in self._trims.values()
        )

    def before_write(self, unit, offset, length, go_on):
        """A worker is about to write these bytes of the unit: go_on() now, or when no block of them is
        being freed."""
        for trim in self._trims.values():
            if trim.window is None or unit not in trim.watched_units:
                continue
            start, count = trim.window
            if offset < start + count and start < offset + length:
                if trim.is_freeing:
                    trim.held.append(go_on)
                    return
                trim.is_disturbed = True
        go_on()

    # -- steps -------------------------------------------------------------------------------------

    def _obstacle(self, unit):
        """Why the unit cannot be trimmed now, or ''."""
        for each in [unit] + self._by_id.same_medium(unit):
            operation = each.shared.operation
            if operation is not None and not operation['failed']:
                return 'FORMAT UNIT or SANITIZE is running'
            if each.shared.medium != READY or each.failure:
                return 'its medium is not ready'
            if each.hanging:
                return 'its medium does not answer'
            if each.is_restoring:
                return 'a restore is running'
            if each.lun.state != 'ready':
                return 'it is %s' % each.lun.state
        return zeroes.why_not(unit.store)

    def _why_end(self, trim):
        if self._by_id.get(trim.unit.id) is not trim.unit or trim.unit.store is not trim.store:
            return 'the unit is not served any more, or has another medium'
        if self._state.is_stopping:
            return 'targetd is being stopped'
        return trim.stop_why or self._obstacle(trim.unit)

    def _step(self, trim):
        why = self._why_end(trim)
        if why:
            self._end(trim, why)
        elif trim.windows:
            self._watch(trim, trim.windows.popleft())
        elif trim.position < trim.store.size:
            self._unwatch(trim)
            self._find(trim)
        elif trim.busy and trim.tries < TRIES:
            self._unwatch(trim)
            trim.tries += 1
            trim.windows.extend(trim.busy)
            trim.busy = []
            self._loop.call_later(LONGEST_PAUSE, lambda: self._step(trim))
        else:
            self._end(trim, '')

    def _find(self, trim):
        medium, position = _Medium(trim.unit), trim.position

        def found(result):
            if result.why:
                self._end(trim, result.why)
                return
            trim.position = result.values['position']
            trim.windows.extend(tuple(window) for window in result.values['windows'])
            self._step(trim)

        self._jobs.submit_job(
            ('trim', trim.unit.id),
            lambda: medium.find(position),
            found,
            medium.descriptors,
            FIND_LIMIT,
        )

    def _watch(self, trim, window):
        trim.window, trim.is_disturbed = window, False
        trim.watched_units = [trim.unit] + self._by_id.same_medium(trim.unit)
        waiting = [len(trim.watched_units)]

        def acknowledged():
            waiting[0] -= 1
            if not waiting[0]:
                self._free(trim)

        for unit in trim.watched_units:
            unit.trim_window = window
            self._rod_tokens.send_ranges(unit, acknowledged)

    def _free(self, trim):
        """No worker writes to the window now, unless it has said so."""
        present = [trim.unit] + self._by_id.same_medium(trim.unit)
        if trim.is_disturbed or set(present) - set(trim.watched_units):
            trim.busy.append(trim.window)
            self._loop.call_later(0, lambda: self._step(trim))
            return
        if self._why_end(trim):
            self._step(trim)
            return
        medium, window = _Medium(trim.unit), trim.window
        trim.is_freeing = True
        began = self._loop.clock()

        def freed(result):
            if result.is_late:
                log.error(
                    'unit %s: its medium does not answer while blocks are freed; writes to %d bytes at %d '
                    'wait for it',
                    trim.unit.id,
                    window[1],
                    window[0],
                )
                return
            trim.is_freeing = False
            trim.freed += result.values.get('freed', 0)
            held, trim.held = trim.held, []
            for go_on in held:
                go_on()
            if result.why:
                self._end(trim, result.why)
                return
            pause = min(LONGEST_PAUSE, PAUSE * (self._loop.clock() - began))
            self._loop.call_later(pause, lambda: self._step(trim))

        self._jobs.submit_job(
            ('trim', trim.unit.id),
            lambda: medium.free(window),
            freed,
            medium.descriptors,
            FREE_LIMIT,
            late=freed,
        )

    def _unwatch(self, trim):
        if trim.window is None:
            return
        trim.window = None
        for unit in trim.watched_units:
            unit.trim_window = None
            self._rod_tokens.send_ranges(unit)

    def _end(self, trim, why):
        self._unwatch(trim)
        trim.why, trim.ended = why, self._loop.clock()
        log.info(
            'unit %s: the trim has ended after %d seconds; %s',
            trim.unit.id,
            trim.ended - trim.began,
            self._outcome(trim),
        )


class _Medium(object):
    """What a job needs of the medium of a unit: its store, and the lock file of atomic writes."""

    def __init__(self, unit):
        self.description = unit.store.description()
        self.descriptors = [unit.store.descriptor]
        self.atomic = unit.atomic and unit.atomic.path
        if unit.atomic is not None:
            self.descriptors.append(unit.atomic.descriptor)

    def _opened(self):
        medium = from_descriptor(self.description, self.descriptors[0])
        if len(self.descriptors) > 1:
            medium = Atomic(medium, self.descriptors[1], None, self.atomic)
        return medium

    def find(self, position):
        """The job that looks. Returns (words, descriptors)."""
        return self._run(lambda medium: self._found(medium, position))

    @staticmethod
    def _found(medium, position):
        position, windows = zeroes.find_zeroes(medium, position, FIND_WINDOWS, FIND_SECONDS)
        return {'position': position, 'windows': windows}

    def free(self, window):
        """The job that frees. Returns (words, descriptors)."""
        return self._run(lambda medium: {'freed': zeroes.free_zeroes(medium, *window)})

    def _run(self, work):
        try:
            with self._opened() as medium:
                return work(medium), ()
        except OSError as e:
            return {'failed': e.strerror or str(e)}, ()
