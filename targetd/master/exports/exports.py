"""Creates the Unit of each LUN of the configuration: opens and claims its store, determines its
facts and loads its saved state.

May import config.model, host, store, scsi.modes, scsi.reservations. All steps that may block on a
medium are in open_medium and run in child processes (open_batch, processes.jobs), so a disk that
does not respond delays only its own LUN. A medium that is missing or busy takes only its own LUN
away: the other LUNs of the target are served, and opening the medium is retried every RETRY_SECONDS.
Sessions are notified of its return (3F/0E). A target of which no medium is available is not ready:
logins are answered with 'service unavailable', which initiators retry.

An identity (serial number, NAA) is derived from the server's id, the target's name and a key that
belongs to the data (a disk's own name, a file's path), never from a position: moving a LUN to
another number does not rename the disk.
"""

import os

from targetd import events, log
from targetd.config.lun_maps import EVERY_LUN
from targetd.errors import Standby, StoreError, TargetdError
from targetd.host import identity
from targetd.master.exports import known_media, passthrough_export, shared_media
from targetd.master.exports.device_watch import DeviceWatch
from targetd.master.exports.health_watch import HealthWatch
from targetd.master.exports.media_watch import MediaWatch
from targetd.master.exports.nbd_renewal import NbdRenewal
from targetd.master.exports.open_batch import OpenBatch, PlannedUnit
from targetd.master.exports.read_only_times import ReadOnlyTimes
from targetd.master.exports.resizing import shorten
from targetd.master.exports.room_watch import RoomWatch
from targetd.master.exports.standby_units import StandbyUnits
from targetd.master.exports.unit_recovery import UnitRecovery
from targetd.master.state import key_files
from targetd.master.units import shared_state, transitions
from targetd.master.units.atomic_slots import remove_new_journal
from targetd.master.units.unit import Unit
from targetd.scsi import alua, attention, modes
from targetd.store import adopt_store, failure_flags, journal

RETRY_SECONDS = 10.0
BUSY_SECONDS = 0.1  # interval at which an attempt that is made already is looked at
SPACE_SECONDS = 5.0  # interval at which the free space for thin media is checked


class UnavailableLun(object):
    """A LUN whose medium could not be opened yet. why: the error message of the last attempt; shown: the
    state of the LUN, with it."""

    def __init__(self, target, lun, why):
        self.target = target
        self.target_name = target.name
        self.lun = lun
        self.why = why

    @property
    def shown(self):
        return self.why if self.why.startswith('standby: ') else 'missing: %s' % self.why


class Exports(object):
    """Opens and closes the media that the configuration exports. `units`: replication.Units, which
    owns the open units; `jobs`: the jobs that open media in child processes."""

    def __init__(self, loop, units, jobs):
        self.loop = loop
        self.units = units
        self.jobs = jobs
        self.process = os.getpid()
        self.known = known_media.KnownMedia(
            os.path.join(units.replication.state.path, 'media.json'), units.replication.saver
        )
        self.workers_of = lambda target_name: []  # set by Master: the workers of its sessions
        self.served = frozenset()  # see examination
        self.watch = MediaWatch(loop, units, self.known, jobs)
        self.nbd_renewal = NbdRenewal(units, jobs, self.watch.adopt_size)
        self.watch.also = self.nbd_renewal.check_now
        self.recovery = UnitRecovery(units, jobs, self.watch)
        self.health = HealthWatch(loop, units, jobs)
        self.room_watch = RoomWatch()
        self.devices = DeviceWatch(loop, self, jobs)
        self.read_only_times = ReadOnlyTimes(loop, units)
        self.pending = {}  # (target name, number) -> the Unit that it gets after a logout
        self.unavailable = {}  # (target name, number) -> UnavailableLun
        self.server = None
        self.generations = {}
        self.standby = StandbyUnits(units, self._new_id, lambda name: self.workers_of(name))
        self._timer = None
        self._is_retrying = False
        self._opening = set()  # keys of unavailable LUNs that are being opened
        self._space_timer = None

    # -- start and end -----------------------------------------------------------------------------

    def start(self, configuration):
        """Opens all media; those that cannot be opened become `unavailable`. Raises TargetdError if
        the server id can be neither read nor created."""
        server = configuration.server
        self.server = server.server_id or identity.server_id(server.state_dir)
        wanted = [
            (target, lun)
            for target in configuration.targets.values()
            for lun in target.luns.values()
        ]
        self.known.load()
        self.known.keep_only((target.name, lun.number) for target, lun in wanted)
        self.open_media(wanted, lambda outcomes: self._started(wanted, outcomes))
        self.jobs.wait()
        self.check_space()
        self.read_only_times.look()

    def _started(self, wanted, outcomes):
        for target, lun in wanted:
            outcome = outcomes[target.name, lun.number]
            if isinstance(outcome, Unit):
                self._add(outcome)
                continue
            self.unavailable[target.name, lun.number] = UnavailableLun(target, lun, str(outcome))
            if isinstance(outcome, Standby):
                self.note_standby(target, lun, outcome)
                continue
            log.error(
                'lun %d of %s is not served until its medium is available: %s; retrying every %d seconds',
                lun.number,
                target.name,
                outcome,
                RETRY_SECONDS,
            )
        self.known.save()
        self.retry_later()

    def note_standby(self, target, lun, why):
        """Another server serves this LUN. why: Standby."""
        log.warning('lun %d of %s is not served: %s', lun.number, target.name, why)
        self.unavailable[target.name, lun.number] = UnavailableLun(target, lun, str(why))
        self.standby.present(target, lun, why.shown)
        self.retry_later()

    def add_unit(self, unit):
        """Starts to serve a unit, and saves the identity of its medium."""
        self._add(unit)
        self.known.save()

    def _add(self, unit):
        self.units.add_unit(unit)
        if unit.lun.unit_state:
            self.units.replication.state.active.add((unit.target_name, unit.lun.number))
        if unit.lun.spin_down:
            self.units.spin_down.reconsider()
        if unit.lun.health_interval:
            self.health.reconsider()
        if unit.store.kind == passthrough_export.KIND:
            self.devices.reconsider()
        if unit.lun.read_only_schedule:
            self.read_only_times.look()
        seen = unit.found['seen']
        if seen is None:
            return
        before = self.known.former_identity(unit.target_name, unit.lun.number, seen)
        if before is not None:
            known_media.log_new_identity(unit, before)
        if self.known.note(unit.target_name, unit.lun.number, seen):
            known_media.log_new_medium(unit)

    def accept_medium(self, target_name, number):
        """The administrator accepts any medium that is found for this LUN next. Returns False if no
        earlier medium of this LUN is known. Raises TargetdError, and keeps the record, if the LUN
        is served: its medium is the recorded one."""
        if number in self.units.of_target(target_name):
            raise TargetdError(
                'lun %d of %s is served with its recorded medium, so there is nothing to accept'
                % (number, target_name)
            )
        if not self.known.forget(target_name, number):
            return False
        self.known.save()
        self.retry_now()
        return True

    def close(self):
        """Cancels the timers: unavailable media are not retried any more."""
        self.watch.close()
        self.health.close()
        self.devices.close()
        self.read_only_times.close()
        for key in list(self.pending):
            self.pending.pop(key).store.close()
        for timer in (self._timer, self._space_timer):
            if timer is not None:
                timer.cancel()

    def why_not_ready(self, target_name, lun_map=EVERY_LUN):
        """Returns why this target refuses logins with this LunMap: none of its LUNs is available. '' if it is
        ready."""
        numbers = list(self.units.of_target(target_name))
        numbers += [unit.lun.number for unit in self.units.standby_of(target_name)]
        if any(map(lun_map.shown, numbers)):
            return ''
        return self.why_unavailable(target_name, lun_map)

    def why_unavailable(self, target_name, lun_map=EVERY_LUN):
        """Returns a sentence that names the unavailable LUNs of this target and map, or ''."""
        return '; '.join(
            'lun %d: %s' % (missing.lun.number, missing.why)
            for missing in self.unavailable.values()
            if missing.target_name == target_name and lun_map.shown(missing.lun.number)
        )

    def missing_sentences(self):
        """Returns a sentence about each LUN that is not available."""
        return [
            'lun %d of %s: %s' % (missing.lun.number, missing.target_name, missing.why)
            for _, missing in sorted(self.unavailable.items())
        ]

    def forget_unavailable(self, target_name, number):
        """Stops the attempts to open the medium of this LUN."""
        self.unavailable.pop((target_name, number), None)

    def forget_lun(self, target_name, number):
        """Removes all data about a LUN that is no longer in the configuration."""
        self.forget_unavailable(target_name, number)
        self.standby.remove(target_name, number)
        self.units.replication.state.active.discard((target_name, number))
        self.known.forget(target_name, number)
        self.known.save()

    def retry_later(self):
        """Retries unavailable media, if there are any, after RETRY_SECONDS."""
        if self._timer is None and self.unavailable and not self._is_retrying:
            self._timer = self.loop.call_later(RETRY_SECONDS, self._retry)

    def retry_now(self):
        """Retries unavailable media immediately, because a reload may mean that one is back."""
        if self._timer is not None:
            self._timer.cancel()
            self._retry()

    def after_reload(self):
        """Looks again at media and clocks, because settings have changed."""
        self.retry_now()
        self.watch.check_now()
        self.nbd_renewal.look_at_sizes()
        self.read_only_times.look()

    def _retry(self):
        self._timer, self._is_retrying = None, True

        def retried():
            self._is_retrying = False
            self.retry_later()

        self.open_unavailable(sorted(set(self.unavailable) - self._opening), retried)

    def open_unavailable(self, keys, done):
        """Try to open these of the unavailable LUNs; done() afterwards. Waits for an attempt that is made
        already: a second one would take an image in a Ceph cluster from the first."""
        if self._opening.intersection(keys):
            self.loop.call_later(BUSY_SECONDS, lambda: self.open_unavailable(keys, done))
            return
        tried = {}
        for key in self.unavailable.keys() & set(keys):
            missing = self.unavailable[key]
            tried[key] = missing, missing.target, missing.lun
        self._opening.update(tried)

        def opened(outcomes):
            self._opening.difference_update(tried)
            self._tried(tried, outcomes)
            done()

        self.open_media([(target, lun) for _, target, lun in tried.values()], opened)

    def _tried(self, tried, outcomes):
        """Handles the outcomes of an attempt, but not of LUNs that a reload has changed or removed
        meanwhile."""
        for key, outcome in outcomes.items():
            missing = self.unavailable.get(key)
            is_wanted = missing is not None and (missing, missing.target, missing.lun) == tried[key]
            if isinstance(outcome, Standby) and is_wanted:
                self.standby.present(missing.target, missing.lun, outcome.shown)
            if isinstance(outcome, Unit) and is_wanted:
                del self.unavailable[key]
                log.info(
                    'lun %d of %s is available now: %s',
                    missing.lun.number,
                    missing.target_name,
                    missing.lun.backing_store,
                )
                self.add_unit(outcome)
                self.announce_unit(outcome)
            elif isinstance(outcome, Unit):
                self.units.replication.release_journal(outcome)
                outcome.store.close()
            elif is_wanted and str(outcome) != missing.why:
                report = log.info if isinstance(outcome, Standby) else log.error
                report(
                    'lun %d of %s is still not available: %s',
                    missing.lun.number,
                    missing.target_name,
                    outcome,
                )
                missing.why = str(outcome)

    def announce_unit(self, unit):
        """Adds a new unit to the existing sessions of its target, which may have had it in standby."""
        workers = self.workers_of(unit.target_name)
        if not self.standby.activate(unit) and workers:
            self.units.replication.order_units(
                workers, add=[unit], attentions=[attention.LUNS_CHANGED]
            )

    def load_medium(self, unit, fresh, done):
        """An optical drive gets the medium of this fresh Unit, and its sessions see that it has changed;
        done() when they do. The former medium is closed then."""
        replication, former = self.units.replication, unit.store
        self.units.change_medium(unit, fresh)
        self.known.note(unit.target_name, unit.lun.number, unit.found['seen'])
        self.known.save()
        log.info('unit %s has another medium: %s', unit.id, unit.lun.backing_store)

        def replaced():
            self.close_store(former)
            if replication.by_id.get(unit.id) is unit:
                self.units.apply_and_flush(
                    unit, transitions.medium_loaded(unit.shared), lambda error: done()
                )
            else:
                done()

        replication.order_units(unit.workers, replace=[unit], done=replaced)

    # -- opening -----------------------------------------------------------------------------------

    def open_media(self, wanted, done, plan_only=False, leaving=()):
        """Opens the media of [(target, lun)]; none of them delays another. Calls done({(target name,
        number): Unit that is not added yet, or StoreError}). plan_only: the media are opened without
        a change, and the outcomes are PlannedUnits; leaving: {(target name, number)} of the units
        whose export ends, so that another LUN may have their media."""
        OpenBatch(self, wanted, done, plan_only, leaving).open_all()

    def make_planned_unit(self, target, lun, words, descriptors, others=()):
        """Like make_unit(), for a medium that is not going to be served."""
        store = adopt_store(words['store'], words['medium'], descriptors)
        try:
            shared_media.require_compatible(lun, store, others)
        except StoreError:
            store.close()
            raise
        return PlannedUnit(target.name, lun, store, words['facts'])

    def make_unit(self, target, lun, words, descriptors, others=()):
        """Returns the Unit for a result of open_medium.open_medium. others: the Units of the same
        medium that will be served besides it. Raises StoreError after closing everything it opened."""
        offered = descriptors[-1] if words['has_journal'] else None
        if offered is not None:
            descriptors = descriptors[:-1]
        store = adopt_store(words['store'], words['medium'], descriptors, words['spares'])
        store.flag = others[0].store.flag if others else failure_flags.new_flag()
        medium = None
        try:
            key, facts = words['key'], words['facts']
            shared_media.require_compatible(lun, store, others)
            if lun.atomic_writes:
                taken, offered = offered, None
                medium = self.units.replication.atomic_writes.open_medium(
                    store, words['journal'], taken
                )
                facts['maximum_atomic_length'] = journal.LONGEST
            shared = shared_state.initial_state(
                facts,
                self.units.replication.newest_saved(key, words['saved']),
                self.units.replication.state.boot_id,
                configured_alua(target),
            )
        except (ValueError, OSError, TargetdError) as e:
            if offered is not None:
                remove_new_journal(offered, words['journal'])
            if medium is not None:
                self.units.replication.atomic_writes.close_medium(medium)
            store.close()
            if isinstance(e, StoreError):
                raise
            raise StoreError('%s: %s' % (lun.backing_store or lun.type, e))
        if words['rolled_back']:
            log.warning(
                '%s: %d atomic writes that were in progress when targetd died were rolled back',
                store.path,
                words['rolled_back'],
            )
        found = {word: words[word] for word in ('seen', 'contents', 'auto_assembled', 'grown_from')}
        unit = Unit(
            self._new_id(target.name, lun.number),
            key,
            target.name,
            lun,
            store,
            facts,
            shared._replace(
                key_check=words['key_check'], ordered=self.read_only_times.ordered(lun)
            ),
            medium,
            found,
        )
        unit.is_unsaved = words['key_check'] != shared.key_check or bool(lun.unit_state)
        return unit

    def _new_id(self, target_name, number):
        name = '%s/%d' % (target_name, number)
        self.generations[name] = self.generations.get(name, 0) + 1
        return name if self.generations[name] == 1 else '%s#%d' % (name, self.generations[name])

    @property
    def journals(self):
        """The paths of the journals of atomic writes that this server has open."""
        return self.units.replication.atomic_writes.paths

    def open_stores(self):
        """Returns a list of all open stores."""
        return [unit.store for unit in self.units.by_id.values()] + [
            unit.store for unit in self.pending.values()
        ]

    def pending_targets(self):
        """Returns the names of the targets of which a change is pending."""
        return sorted({target_name for target_name, _ in self.pending})

    def discard_pending(self, target_name, number):
        """A change of this LUN that is pending is not made."""
        unit = self.pending.pop((target_name, number), None)
        if unit is not None:
            self.close_unit(unit)

    def close_unit(self, unit):
        """Closes a Unit that no session uses any more, or a PlannedUnit."""
        if isinstance(unit, PlannedUnit):
            self.close_store(unit.store)
            return
        self.units.replication.release_journal(unit)
        self.close_store(unit.store)

    def discard_unit(self, unit):
        """Closes a Unit that was opened for a reload that is refused: its file gets its size back."""
        if isinstance(unit, Unit) and unit.found['grown_from'] is not None:
            served = [u for u in self.units.by_id.values() if u.store.key == unit.store.key]
            shorten(unit.store, unit.found['grown_from'], served)
        self.close_unit(unit)

    def close_store(self, store):
        """Closes a store without blocking. The last close of a block device writes its cached data
        and may block, so a child process does it."""
        if store.kind not in ('block', 'passthrough') or store.descriptor is None:
            store.close()
            return
        owned, (reading, writing) = store.descriptors(), os.pipe()

        def close_last():
            if store.kind == 'passthrough':
                passthrough_export.allow_removal(store)
            os.read(reading, 1)  # blocks until the master has closed its descriptors
            for descriptor in owned:
                os.close(descriptor)
            return {}, ()

        def forked():
            store.close()
            os.close(reading)
            os.close(writing)

        self.jobs.submit_job(
            ('close', store.path), close_last, lambda answer: None, owned + [reading], forked=forked
        )

    # -- space -------------------------------------------------------------------------------------

    def check_space(self):
        """Checks the thin provisioning thresholds of all units, by a timer, which delays no command."""
        for unit in list(self.units.by_id.values()):
            if unit.facts.get('threshold_exponent') and modes.thresholds(unit.shared.modes):
                self._count_space(unit)
            elif not unit.lun.thin:
                self.room_watch.look(unit)
        self._space_timer = self.loop.call_later(SPACE_SECONDS, self.check_space)

    def _count_space(self, unit):
        try:
            available, used = space_of(unit.store)
        except OSError as e:
            log.debug('unit %s: its free space cannot be determined: %s', unit.id, e.strerror)
            return
        size = unit.store.block_size << unit.facts['threshold_exponent']
        was = unit.shared.crossed or ()
        self.units.replication.apply_decision(
            unit, transitions.space_counted(unit.shared, available // size, used // size)
        )
        if set(unit.shared.crossed or ()) - set(was):
            events.emit('space_low', unit=unit.id, path=unit.store.path, available=available)
            log.warning(
                'unit %s: a thin provisioning threshold is reached: %d bytes are available to %s, which '
                'uses %d bytes',
                unit.id,
                available,
                unit.store.path,
                used,
            )


def carry_over_state(old, new):
    """Copies the state of a Unit to the new Unit of the same medium that replaces it, including
    changes made after the new one was opened (a sanitize operation, a replaced key)."""
    shared = new.shared._replace(
        reservations=old.shared.reservations,
        operation=old.shared.operation,
        failure=old.shared.failure,
        medium=shared_state.medium_of(old.shared.operation, old.shared.failure),
        records=old.shared.records,
        restriction=old.shared.restriction,
    )
    if old.store.cipher_key and old.lun.encryption_key_file == new.lun.encryption_key_file:
        new.store.set_cipher_key(old.store.cipher_key)
        shared = shared._replace(
            key_check=key_files.key_check(old.store.cipher_key, new.store.block_size)
        )
    new.shared, new.is_unsaved = shared, True


def space_of(store):
    """Returns (bytes available to a file in its file system, bytes allocated to it). Raises OSError."""
    space, status = os.fstatvfs(store.descriptor), os.fstat(store.descriptor)
    return space.f_bavail * space.f_frsize, status.st_blocks * 512


def configured_alua(target):
    """Returns the scsi.alua state that the configuration assigns to every LUN of the target. The portal
    groups of the other server of a pair are in standby while this one serves it."""
    states = dict((tag, alua.STATE_OF_WORD[word]) for tag, word in target.alua_state)
    states.update(dict.fromkeys(target.partner_groups, alua.STANDBY))
    return alua.initial(
        target.portal_groups + target.partner_groups, states, target.alua in ('explicit', 'both')
    )
