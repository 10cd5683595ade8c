"""Lets the disks of units sleep: after the idle time `spin-down` of the LUN, or when the only initiator that
uses the unit sends START STOP UNIT; and wakes them for the next access.

     idle, or ordered --> every replica: FALLING --acknowledged--> job: flush, START STOP UNIT (stop)
                      --> every replica: STOPPED
     a worker asks `wake` --> job: START STOP UNIT (start), wait until ready --> every replica: ROTATES
                          --> answers

Nothing is stopped before every session knows it and has no write in progress, and the disk is flushed after
that, so no write that was acknowledged waits in the page cache for a disk that sleeps. A command for the
medium waits, in its session, until the disk is ready: initiators wait 30 to 60 seconds for a command, and a
spin-up takes 5 to 20; NOT READY, IN PROCESS OF BECOMING READY would make QEMU and libiscsi report an error at
once. INQUIRY, TEST UNIT READY, READ CAPACITY and the other commands without medium are answered by what is
known, and wake no disk.

Idle means that the kernel has counted no access of the disk, by whomever: what the page cache answers keeps
no disk awake. Runs in the master's thread; only jobs send commands to disks.
"""

import time

from targetd import log, sg_io
from targetd.errors import StoreError
from targetd.host import spin
from targetd.master.units.spin_state import ASLEEP, AWAKE, STARTING, STOPPING, SpinState
from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import sam
from targetd.store import failure_flags
from targetd.store.sleeping import FALLING, ROTATES, STOPPED

LOOK_SECONDS = 60.0  # at least so often the counters of a disk are compared
SHORTEST_LOOK = 1.0
FIRST_SECONDS = 1.0  # after a start or a reload
JOB_SECONDS = 100.0  # a start or a stop; longer than its commands may take
EXAMINE_SECONDS = 20.0
DOWN, UP = 'down', 'up'


class _Disk(object):
    """The disk of a unit. name: its kernel name, '' until it was examined; why_not: why it does not sleep,
    or ''; spin: SpinState; waiting: functions to call when the disk is awake."""

    def __init__(self, spin_state):
        self.name = ''
        self.why_not = ''
        self.spin = spin_state
        self.waiting = []
        self.is_waking_next = False  # an access waits while the disk is being stopped


class SpinDown(object):
    """units: logical_units.Units; jobs: Jobs; accesses: spin.accesses, or a substitute of a test."""

    def __init__(self, loop, units, jobs, accesses=spin.accesses):
        self.loop = loop
        self.units = units
        self.jobs = jobs
        self._accesses = accesses
        self._disks = {}  # unit -> _Disk
        self._timer = None

    # -- which units -------------------------------------------------------------------------------

    def reconsider(self):
        """Units or their settings may have changed: examine soon which disks may sleep."""
        self._schedule(FIRST_SECONDS, self._examine)

    def close(self):
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, seconds, function):
        self.close()
        self._timer = self.loop.call_later(seconds, function)

    def _watched(self):
        return [unit for unit in self.units.by_id.values() if unit.lun.spin_down]

    def disk(self, unit):
        """The _Disk of a unit with spin-down; a new one if it is exported for the first time."""
        found = self._disks.get(unit)
        if found is None:
            found = self._disks[unit] = _Disk(SpinState(unit.lun.spin_down, self.loop.clock()))
            if unit.sleep == STOPPED:  # the program before this one has stopped it
                found.spin.state, found.spin.why = ASLEEP, 'stopped before the upgrade'
        return found

    def _examine(self):
        """Find out which disks may sleep: another LUN or the host may share them now."""
        self._timer = None
        watched = self._watched()
        for gone in set(self._disks) - set(watched):
            self._forget(gone)
        if not watched:
            return
        wanted = [(unit.id, _path(unit)) for unit in watched]
        every = [(each.id, _path(each)) for each in self.units.by_id.values()]
        self.jobs.submit_job(
            ('spin-down', 'examine'),
            lambda: examine(wanted, every),
            lambda result: self._examined(watched, result),
            seconds=EXAMINE_SECONDS,
        )

    def _forget(self, unit):
        disk = self._disks.pop(unit)
        for answer in disk.waiting:
            answer()

    def _examined(self, watched, result):
        found = result.values.get('found', {})
        for unit in watched:
            if self.units.by_id.get(unit.id) is not unit:
                continue
            disk = self.disk(unit)
            name, why = found.get(unit.id) or ('', result.why or 'it was not examined')
            if why and why != disk.why_not:
                log.warning('unit %s: its disk does not sleep (spin-down): %s', unit.id, why)
            disk.name, disk.why_not = name or disk.name, why
            if why and disk.spin.state == ASLEEP:
                self._wake(unit, disk)
        self._look()

    # -- idle disks --------------------------------------------------------------------------------

    def _look(self):
        """Compare the counters of every disk, and stop those that were idle for long enough."""
        self._timer = None
        now, left = self.loop.clock(), []
        for unit in self._watched():
            disk = self.disk(unit)
            if disk.why_not or not disk.name:
                continue
            if disk.spin.note_accesses(now, self._accesses(disk.name)):
                log.info(
                    'unit %s: something else has accessed its disk %s; it is awake',
                    unit.id,
                    disk.name,
                )
                self._tell(unit, ROTATES, lambda: None)
            if disk.spin.is_idle(now) and self._why_busy(unit) == '':
                self._stop(unit, disk, 'idle for %d s' % unit.lun.spin_down)
            left.append(disk.spin.seconds_left(now))
        if self._disks:
            soonest = min([each for each in left if each is not None], default=LOOK_SECONDS)
            self._schedule(max(SHORTEST_LOOK, min(LOOK_SECONDS, soonest / 4 or 0)), self._look)

    def _why_busy(self, unit):
        """Why the disk must not be stopped now, or ''."""
        if unit.shared.operation is not None:
            return 'an operation runs'
        if unit.is_busy or unit.is_restoring or unit.is_resizing or unit.hanging:
            return 'it is in use'
        if unit.guests:
            return 'a copy uses it'
        return ''

    # -- down --------------------------------------------------------------------------------------

    def _stop(self, unit, disk, why):
        disk.spin.stop_begins(why)
        self._tell(unit, FALLING, lambda: self._stop_now(unit, disk))

    def _stop_now(self, unit, disk):
        """Every session knows that the disk sleeps."""
        store, name = unit.store, disk.name
        if self.units.by_id.get(unit.id) is not unit or store.descriptor is None:
            return
        self.jobs.submit_job(
            ('spin-down', unit.id),
            lambda: stop_disk(store.descriptor, store.flag, store.read_only, name),
            lambda result: self._stopped(unit, disk, result),
            [store.descriptor],
            JOB_SECONDS,
        )

    def _stopped(self, unit, disk, result):
        if self._disks.get(unit) is not disk:
            return
        if result.why:
            disk.spin.stop_failed(self.loop.clock(), result.why)
            log.warning(
                'unit %s: its disk %s was not spun down: %s%s',
                unit.id,
                disk.name,
                result.why,
                '; it is not tried again before a reload' if disk.spin.given_up else '',
            )
            if failure_flags.is_set(unit.store.flag):
                self.units.replication.fail_medium(unit, 'a flush failed')
            self._be_awake(unit, disk)
            return
        accesses = result.values.get('accesses')
        disk.spin.stopped(spin.Accesses(tuple(accesses[0]), accesses[1]) if accesses else None)
        unit.asleep_since = int(time.time())
        unit.spin_downs += 1
        log.info('unit %s: its disk %s sleeps now (%s)', unit.id, disk.name, disk.spin.why)
        self._tell(unit, STOPPED, lambda: None)
        if disk.waiting or disk.is_waking_next:
            self._wake(unit, disk)

    # -- up ----------------------------------------------------------------------------------------

    def on_ask(self, unit, worker, message, answer):
        """`ask spin`: START STOP UNIT; `ask wake`: an access of the medium. Raises Malformed."""

        def good():
            answer(Refusal(sam.GOOD))

        action = message.get('action') if message['ask'] == 'spin' else UP
        if action not in (UP, DOWN) or not unit.lun.spin_down:
            raise Malformed('spin: an unknown action, or a disk that does not spin down')
        disk = self.disk(unit)
        if action == DOWN:
            self._ordered(unit, disk, worker)
        if action == DOWN or disk.spin.state == AWAKE:
            good()
            return
        if message.get('immediate'):
            good()
        else:
            disk.waiting.append(good)
        if disk.spin.state == ASLEEP:
            self._wake(unit, disk)
        else:
            disk.is_waking_next = True

    def _ordered(self, unit, disk, worker):
        """START STOP UNIT stops the disk, unless somebody else needs it."""
        name = worker.session.nexus.initiator_name if worker.session else ''
        others = sorted({nexus.initiator_name for _, nexus in unit.replica_holders()} - {name})
        why = disk.why_not or disk.spin.given_up or self._why_busy(unit)
        if others:
            why = '%s uses the unit too' % ', '.join(others)
        if disk.spin.state != AWAKE or not disk.name:
            return
        if why:
            log.info('unit %s: START STOP UNIT of %s stops no disk: %s', unit.id, name, why)
            return
        self._stop(unit, disk, 'ordered by %s' % name)

    def _wake(self, unit, disk):
        disk.is_waking_next = False
        disk.spin.start_begins()
        descriptor = unit.store.descriptor
        self.jobs.submit_job(
            ('spin-down', unit.id),
            lambda: start_disk(descriptor),
            lambda result: self._started(unit, disk, result),
            [descriptor],
            JOB_SECONDS,
        )

    def _started(self, unit, disk, result):
        if self._disks.get(unit) is not disk:
            return
        disk.spin.started(self.loop.clock())
        if result.why:
            log.error(
                'unit %s: its disk %s does not spin up: %s; commands get the errors that it reports',
                unit.id,
                disk.name,
                result.why,
            )
        else:
            log.info(
                'unit %s: its disk %s is awake, after %d seconds',
                unit.id,
                disk.name,
                result.values.get('seconds', 0),
            )
        unit.spin_ups += 1
        self._be_awake(unit, disk)

    def _be_awake(self, unit, disk):
        """Tell every session, then answer whoever waits."""
        waiting, disk.waiting = disk.waiting, []
        disk.is_waking_next = False

        def told():
            for answer in waiting:
                answer()

        self._tell(unit, ROTATES, told)

    def _tell(self, unit, sleep, done):
        """Tell every replica what store.sleeping must know; done() when all have it in force."""
        unit.sleep = sleep
        unit.hanging = self.units.hanging.state_of(unit)
        self.units.replication.send_change(unit, {'sleep': sleep, 'hanging': unit.hanging}, done)

    def wake_then(self, unit, then):
        """Call then() when the disk of the unit is awake; at once if it does not sleep."""
        disk = self.disk(unit) if unit.sleep != ROTATES else None
        if disk is None or disk.spin.state == AWAKE:
            then()
            return
        disk.waiting.append(then)
        if disk.spin.state == ASLEEP:
            self._wake(unit, disk)

    # -- what the administrator sees ---------------------------------------------------------------

    def described(self, unit):
        """What `show disks` says of the power of the unit's disk, '' for a unit that never sleeps."""
        disk = self._disks.get(unit)
        if disk is None:
            return ''
        if disk.why_not or disk.spin.given_up:
            return 'never sleeps: %s' % (disk.why_not or disk.spin.given_up)
        if disk.spin.state == ASLEEP:
            since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(unit.asleep_since))
            return 'asleep since %s, %s' % (since, disk.spin.why)
        return {AWAKE: 'awake', STOPPING: 'spinning down', STARTING: 'spinning up'}[disk.spin.state]

    def node(self, unit):
        """The kernel name of the unit's disk, '' if it is not known."""
        disk = self._disks.get(unit)
        return disk.name if disk is not None else ''


def _path(unit):
    return unit.store.path or ''


# -- in the job ------------------------------------------------------------------------------------


def examine(wanted, every):
    """Runs in a child process. wanted: [(unit id, path)] of the units that may sleep; every: of all units.
    Returns ({'found': {unit id: [kernel name of the disk or '', why it does not sleep or '']}}, ())."""
    found, tables = {}, spin.HostTables()
    for unit_id, path in wanted:
        others = [(_named(other), place) for other, place in every if other != unit_id and place]
        try:
            name, why = spin.why_not(path, others, tables=tables)
        except StoreError as e:
            name, why = None, str(e)
        found[unit_id] = [name or '', why]
    return {'found': found}, ()


def _named(unit_id):
    return 'unit %s' % unit_id if isinstance(unit_id, str) else 'lun %d of %s' % unit_id[::-1]


def stop_disk(descriptor, flag, is_read_only, name):
    """Runs in a child process: flush, then stop. Returns ({'accesses': [completed, in flight] afterwards,
    'failed': ''}, ())."""
    try:
        if not sg_io.has_scsi_commands(descriptor):
            return {'failed': 'it takes no SCSI commands'}, ()
        spin.let_kernel_restart(name)
        if not is_read_only:
            failure_flags.sync(descriptor, flag, False)
        spin.stop(descriptor)
    except (OSError, spin.Refused) as e:
        return {'failed': str(e)}, ()
    found = spin.accesses(name)
    return {'accesses': [list(found.completed), found.in_flight] if found else None}, ()


def start_disk(descriptor):
    """Runs in a child process. Returns ({'seconds': the time that it took, 'failed': ''}, ())."""
    began = time.monotonic()
    try:
        spin.start(descriptor)
    except (OSError, spin.Refused) as e:
        return {'failed': str(e)}, ()
    return {'seconds': time.monotonic() - began}, ()
