"""From a LUN of the configuration to a Unit: its store opened and claimed, its facts found, its
saved state loaded.

May import config.model, host, store, scsi.modes, scsi.reservations. What may have to wait for a
medium is in media, and done by children (opening, jobs): a disk that does not answer delays
nobody but its own target. A medium that is missing or busy does not keep the server from starting:
its target is not ready (logins are answered 'service unavailable', which initiators retry), the
other targets are served, and the medium is looked for again every RETRY_SECONDS. A server without
any usable medium still runs.

An identity (serial number, NAA) is made of the server's id, the target's name and a key that
belongs to the data (a disk's own name, a file's path), never of a position: moving a LUN to another
number renames no disk.
"""

import os

from targetd import log
from targetd.errors import StoreError, TargetdError
from targetd.host import identity
from targetd.master.exports.known_media import KnownMedia
from targetd.master.exports.open_batch import Batch
from targetd.master.exports.open_medium import grow
from targetd.master.state import key_files
from targetd.master.units import transitions
from targetd.master.units.replication import Unit
from targetd.scsi import alua, attention, modes, operations
from targetd.scsi.medium_state import FAILED, READY
from targetd.store import adopted, journal

RETRY_SECONDS = 10.0
SPACE_SECONDS = 5.0  # how often the space that thin media can still get is looked at


class Late(object):
    """A LUN whose medium could not be opened yet. why: the sentence of the last attempt."""

    def __init__(self, target, lun, why):
        self.target = target
        self.target_name = target.name
        self.lun = lun
        self.why = why


class Exports(object):
    """Opens and closes what the configuration exports. `units`: units.Units, which own what is
    open; `jobs`: who opens."""

    def __init__(self, loop, units, jobs):
        self.loop = loop
        self.units = units
        self.jobs = jobs
        self.process = os.getpid()
        self.known = KnownMedia(os.path.join(units.state.path, 'media.json'))
        self.late = {}  # (target name, number) -> Late
        self.server = None
        self._generations = {}
        self._timer = None
        self._is_looking = False  # for late media, at this moment
        self._space_timer = None

    # -- start and end -----------------------------------------------------------------------------

    def start(self, configuration):
        """Open everything; what cannot be opened is late. Raises TargetdError if the server has no
        identity."""
        server = configuration.server
        self.server = server.server_id or identity.server_id(server.state_dir)
        wanted = [
            (target, lun)
            for target in configuration.targets.values()
            for lun in target.luns.values()
        ]
        self.known.load()
        self.known.keep_only((target.name, lun.number) for target, lun in wanted)
        self.open_all(wanted, lambda outcomes: self._started(wanted, outcomes))
        self.jobs.wait()
        self._look_at_space()

    def _started(self, wanted, outcomes):
        for target, lun in wanted:
            outcome = outcomes[target.name, lun.number]
            if isinstance(outcome, Unit):
                self._add(outcome)
                continue
            self.late[target.name, lun.number] = Late(target, lun, str(outcome))
            log.error(
                'lun %d of %s is not served, and the target refuses logins until it is: %s; looking again every %d '
                'seconds',
                lun.number,
                target.name,
                outcome,
                RETRY_SECONDS,
            )
        self.known.save()
        self._retry_later()

    def add(self, unit):
        """Serve it, and remember what it is."""
        self._add(unit)
        self.known.save()

    def _add(self, unit):
        self.units.add(unit)
        if unit.found['seen'] is not None and self.known.note(
            unit.target_name, unit.lun.number, unit.found['seen']
        ):
            _say_new(unit)

    def accept(self, target_name, number):
        """Whatever is found for this LUN next is right, says the administrator. False if nothing is
        known of it."""
        if not self.known.forget(target_name, number):
            return False
        self.known.save()
        self.look_again()
        return True

    def close(self):
        """Look for late media no more."""
        for timer in (self._timer, self._space_timer):
            if timer is not None:
                timer.cancel()

    def missing(self, target_name):
        """A sentence on what this target still waits for, or ''."""
        return '; '.join(
            'lun %d: %s' % (late.lun.number, late.why)
            for late in self.late.values()
            if late.target_name == target_name
        )

    def forget_late(self, target_name, number):
        """It is not waited for any more."""
        self.late.pop((target_name, number), None)

    def forget(self, target_name, number):
        """The configuration has no such LUN any more."""
        self.forget_late(target_name, number)
        self.known.forget(target_name, number)
        self.known.save()

    def _retry_later(self):
        if self._timer is None and self.late and not self._is_looking:
            self._timer = self.loop.call_later(RETRY_SECONDS, self._retry)

    def look_again(self):
        """Look for late media now: the administrator reloaded, perhaps because one is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._retry()

    def _retry(self):
        self._timer, self._is_looking = None, True
        looked_for = {key: (late, late.target, late.lun) for key, late in self.late.items()}
        wanted = [(target, lun) for _, target, lun in looked_for.values()]
        self.open_all(wanted, lambda outcomes: self._retried(looked_for, outcomes))

    def _retried(self, looked_for, outcomes):
        """What a reload changed or took away meanwhile is not what was looked for."""
        self._is_looking = False
        for key, outcome in outcomes.items():
            late = self.late.get(key)
            is_wanted = late is not None and (late, late.target, late.lun) == looked_for[key]
            if isinstance(outcome, Unit) and is_wanted:
                del self.late[key]
                log.info(
                    'lun %d of %s is there now: %s',
                    late.lun.number,
                    late.target_name,
                    late.lun.backing_store,
                )
                self.add(outcome)
                self.tell_new(outcome)
            elif isinstance(outcome, Unit):
                self.units.release(outcome)
                outcome.store.close()
            elif is_wanted and str(outcome) != late.why:
                log.error(
                    'lun %d of %s is still not served: %s',
                    late.lun.number,
                    late.target_name,
                    outcome,
                )
                late.why = str(outcome)
        self._retry_later()

    def tell_new(self, unit):
        """Give a unit that was just added to the sessions that its target has already."""
        workers = {
            w for other in self.units.of_target(unit.target_name).values() for w in other.workers
        }
        if workers:
            self.units.order_units(workers, add=[unit], attentions=[attention.LUNS_CHANGED])

    # -- opening -----------------------------------------------------------------------------------

    def open_all(self, wanted, done):
        """Open the media of [(target, lun)], none of which holds up another; done({(target name,
        number): Unit that is not added yet, or StoreError})."""
        Batch(self, wanted, done).begin()

    def made(self, target, lun, words, descriptors, others=()):
        """The Unit of what media.open_medium gave. others: the Units there will be beside it.
        Raises StoreError, and then nothing stays open."""
        store = adopted(words['store'], words['medium'], descriptors)
        medium = None
        try:
            key, facts = words['key'], words['facts']
            require_agreement(lun, store, others)
            if lun.atomic_writes:
                medium = self.units.atomic.open(store, words['journal'])
                facts['maximum_atomic_length'] = journal.LONGEST
            shared = transitions.initial(
                facts,
                self.units.state.load(key),
                self.units.state.boot_id,
                configured_access(target),
            )
        except (ValueError, OSError, TargetdError) as e:
            if medium is not None:
                self.units.atomic.close(medium)
            store.close()
            raise (
                e
                if isinstance(e, StoreError)
                else StoreError('%s: %s' % (lun.backing_store or lun.type, e))
            )
        if words['taken_back']:
            log.warning(
                '%s: %d atomic writes that were under way when targetd died were taken back',
                store.path,
                words['taken_back'],
            )
        found = {word: words[word] for word in ('seen', 'contents', 'auto_assembled')}
        unit = Unit(
            self._new_id(target.name, lun.number),
            key,
            target.name,
            lun,
            store,
            facts,
            shared._replace(key_check=words['key_check']),
            medium,
            found,
        )
        unit.is_unsaved = words['key_check'] != shared.key_check
        return unit

    def _new_id(self, target_name, number):
        name = '%s/%d' % (target_name, number)
        self._generations[name] = self._generations.get(name, 0) + 1
        return name if self._generations[name] == 1 else '%s#%d' % (name, self._generations[name])

    def held(self):
        """Every store that is open."""
        return [unit.store for unit in self.units.by_id.values()]

    def close_unit(self, unit):
        """A Unit that nobody serves any more."""
        self.units.release(unit)
        self.close_store(unit.store)

    def close_store(self, store):
        """Close it without waiting. The last close of a disk writes what is not on it yet: that is
        a child's."""
        if store.kind != 'block':
            store.close()
            return
        owned, (reading, writing) = store.owned(), os.pipe()

        def close_last():
            os.read(reading, 1)  # until ours are closed
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

    def _look_at_space(self):
        """Tell initiators whose thresholds are crossed: by the clock, so that no command pays for
        it."""
        for unit in list(self.units.by_id.values()):
            if unit.facts.get('threshold_exponent') and modes.thresholds(unit.shared.modes):
                self._count_space(unit)
        self._space_timer = self.loop.call_later(SPACE_SECONDS, self._look_at_space)

    def _count_space(self, unit):
        try:
            available, used = space_of(unit.store)
        except OSError as e:
            log.debug('unit %s: its space cannot be looked at: %s', unit.id, e.strerror)
            return
        size = unit.store.block_size << unit.facts['threshold_exponent']
        was = unit.shared.crossed or ()
        self.units.change(
            unit, transitions.space_counted(unit.shared, available // size, used // size)
        )
        if set(unit.shared.crossed or ()) - set(was):
            log.warning(
                'unit %s: a threshold of its space is reached: %d bytes are available to %s, which uses %d',
                unit.id,
                available,
                unit.store.path,
                used,
            )

    # -- what changes while it is served -----------------------------------------------------------

    def resize(self, unit, wanted=None):
        """Follow the medium's size, after growing a file to `wanted` bytes. Everybody is told
        2A/09. Raises StoreError."""
        store = unit.store
        if wanted and store.kind == 'file':
            grow(store, wanted)
        try:
            size = store.resize_check()
        except OSError as e:
            raise StoreError('%s: its size cannot be found: %s' % (store.path, e.strerror))
        size -= size % store.block_size
        if size > 0 and size != unit.told_size:
            log.info('unit %s: %d bytes now, %d before', unit.id, size, unit.told_size)
            store.resized(size)
            unit.told_size = size
            self.units.change(unit, transitions.resized(unit.shared, size))

    def recover(self, unit):
        """The administrator has seen that the unit failed, and wants it used again. False if it had
        not failed."""
        if unit.shared.medium != FAILED:
            return False
        log.warning('unit %s is used again although it failed (%s)', unit.id, unit.failure)
        unit.failure = None
        # new Stores in the workers: the old remember the failure
        self.units.order_units(unit.workers, replace=[unit])
        self.units.medium(unit, READY)
        if unit.atomic is not None:
            self.units.atomic.retry(unit)
        return True


def succeed(old, new):
    """One medium, another Unit: what happened to the old one after the new was opened (a sanitize,
    another key) holds."""
    shared = new.shared._replace(
        reservations=old.shared.reservations,
        operation=old.shared.operation,
        medium=operations.medium(old.shared.operation) or READY,
    )
    if old.store.cipher_key and old.lun.encryption_key_file == new.lun.encryption_key_file:
        new.store.encrypt(old.store.cipher_key)
        shared = shared._replace(
            key_check=key_files.check_of(old.store.cipher_key, new.store.block_size)
        )
    new.shared, new.is_unsaved = shared, True


def require_agreement(lun, store, others):
    """Everybody who has a medium locks what he reads and writes, or nobody does. Raises StoreError."""
    for other in others:
        if other.store.key == store.key and other.lun.atomic_writes != lun.atomic_writes:
            raise StoreError(
                '%s is lun %d of %s too, with another atomic-writes; write the same for both'
                % (store.path, other.lun.number, other.target_name)
            )


def _say_new(unit):
    """What an administrator wants to have read when a disk is served for the first time."""
    if unit.store.kind != 'block':
        return
    log.info(
        'unit %s: %s is served for the first time; on it is %s',
        unit.id,
        unit.found['seen']['shown'],
        ', '.join(unit.found['contents']) or 'nothing that is known',
    )
    if unit.found['auto_assembled']:
        log.warning(
            'unit %s: %s holds %s. If an initiator made that, keep this host from using it (a global_filter in '
            'lvm.conf, AUTO -all in mdadm.conf); if this host did, it is about to be destroyed',
            unit.id,
            unit.store.path,
            ', '.join(unit.found['auto_assembled']),
        )


def space_of(store):
    """(bytes that a file can still get from its file system, bytes that it takes). Raises OSError."""
    space, status = os.fstatvfs(store.descriptor), os.fstat(store.descriptor)
    return space.f_bavail * space.f_frsize, status.st_blocks * 512


def configured_access(target):
    """The scsi.access state that the configuration gives every LUN of the target."""
    return alua.initial(
        target.portal_groups,
        dict((tag, alua.STATE_OF_WORD[word]) for tag, word in target.alua_state),
        target.alua in ('explicit', 'both'),
    )


__all__ = ('Exports', 'Late', 'configured_access')
