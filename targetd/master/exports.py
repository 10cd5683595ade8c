"""From a LUN of the configuration to a Unit: its store opened and claimed, its facts found, its saved state loaded.

May import config.model, host, store, scsi.modes, scsi.reservations. A medium that is missing or busy does not keep the server
from starting: its target is not ready (logins are answered 'service unavailable', which initiators retry), the other targets
are served, and the medium is looked for again every RETRY_SECONDS. A server without any usable medium still runs.

An identity (serial number, NAA) is made of the server's id, the target's name and a key that belongs to the data (a disk's own
name, a file's path), never of a position: moving a LUN to another number renames no disk.
"""

import os

from targetd import log
from targetd.errors import StoreError, TargetdError
from targetd.host import disks, identity, in_use
from targetd.master import decisions
from targetd.master.units import FAILED, READY, Unit
from targetd.scsi import access, attention, modes
from targetd.scsi.facts import DEFAULTS
from targetd.store import open_store

RETRY_SECONDS = 10.0
SPACE_SECONDS = 5.0              # how often the space that thin media can still get is looked at
THRESHOLD_SET = 1 << 20          # bytes
PRODUCT_REVISION = '0001'


class Late(object):
    """A LUN whose medium could not be opened yet. why: the sentence of the last attempt."""

    def __init__(self, target, lun, why):
        self.target = target
        self.target_name = target.name
        self.lun = lun
        self.why = why


class Exports(object):
    """Opens and closes what the configuration exports; `units`: units.Units, which own what is open."""

    def __init__(self, loop, units):
        self.loop = loop
        self.units = units
        self.late = {}                   # (target name, number) -> Late
        self.server = None
        self._generations = {}
        self._timer = None
        self._space_timer = None

    # -- start and end -----------------------------------------------------------------------------------------------

    def start(self, configuration):
        """Open everything; what cannot be opened is late. Raises TargetdError if the server has no identity."""
        server = configuration.server
        self.server = server.server_id or identity.server_id(server.state_dir)
        for target in configuration.targets.values():
            for lun in target.luns.values():
                self.open_or_wait(target, lun)
        self._look_at_space()

    def open_or_wait(self, target, lun):
        """Export this LUN now, or as soon as its medium is there. Returns the Unit or None."""
        try:
            unit = self.open(target, lun)
        except StoreError as e:
            self.late[target.name, lun.number] = Late(target, lun, str(e))
            log.error('lun %d of %s is not served, and the target refuses logins until it is: %s; looking again every %d '
                      'seconds', lun.number, target.name, e, RETRY_SECONDS)
            self._retry_later()
            return None
        self.units.add(unit)
        return unit

    def close(self):
        """Look for late media no more."""
        for timer in (self._timer, self._space_timer):
            if timer is not None:
                timer.cancel()

    def missing(self, target_name):
        """A sentence on what this target still waits for, or ''."""
        return '; '.join('lun %d: %s' % (late.lun.number, late.why) for late in self.late.values()
                         if late.target_name == target_name)

    def forget_late(self, target_name, number):
        """The configuration wants it no more."""
        self.late.pop((target_name, number), None)

    def _retry_later(self):
        if self._timer is None:
            self._timer = self.loop.call_later(RETRY_SECONDS, self._retry)

    def look_again(self):
        """Look for late media now: the administrator reloaded, perhaps because one is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._retry()

    def _retry(self):
        self._timer = None
        for key, late in list(self.late.items()):
            try:
                unit = self.open(late.target, late.lun)
            except StoreError as e:
                if str(e) != late.why:
                    log.error('lun %d of %s is still not served: %s', late.lun.number, late.target_name, e)
                late.why = str(e)
                continue
            del self.late[key]
            log.info('lun %d of %s is there now: %s', late.lun.number, late.target_name, late.lun.backing_store)
            self.units.add(unit)
            self.tell_new(unit)
        if self.late:
            self._retry_later()

    def tell_new(self, unit):
        """Give a unit that was just added to the sessions that its target has already."""
        workers = {w for other in self.units.of_target(unit.target_name).values() for w in other.workers}
        if workers:
            self.units.order_units(workers, add=[unit], attentions=[attention.LUNS_CHANGED])

    # -- one LUN -----------------------------------------------------------------------------------------------------

    def open(self, target, lun):
        """A Unit that is not added yet. Raises StoreError."""
        target_name = target.name
        path = disks.resolve(lun.backing_store) if lun.backing_store else None
        store = self._open_store(lun, path)
        try:
            key = '%s\0%s' % (target_name, identity.stable_key(path) if path else '%s:%d' % (lun.type, lun.number))
            facts = facts_of(lun, store, self._identity(lun, path, key))
            facts.update(alua_facts(target, lun))
            shared = decisions.initial(facts, self.units.state.load(key), self.units.state.boot_id, configured_access(target))
        except (ValueError, OSError, TargetdError) as e:
            store.close()
            raise e if isinstance(e, StoreError) else StoreError('%s: %s' % (lun.backing_store or lun.type, e))
        return Unit(self._new_id(target_name, lun.number), key, target_name, lun, store, facts, shared)

    def _new_id(self, target_name, number):
        name = '%s/%d' % (target_name, number)
        self._generations[name] = self._generations.get(name, 0) + 1
        return name if self._generations[name] == 1 else '%s#%d' % (name, self._generations[name])

    def held(self):
        """Every store that is open."""
        return [unit.store for unit in self.units.by_id.values()]

    def _open_store(self, lun, path):
        description = {'path': path, 'size': lun.size, 'read_only': lun.readonly, 'direct': lun.direct_io, 'thin': lun.thin,
                       'block_size': lun.block_size and int(lun.block_size), 'filters': lun.filter,
                       'allow_in_use': lun.allow_in_use}
        if lun.type != 'auto':
            description['kind'] = lun.type
        grows = path is not None and os.path.isfile(path)
        if grows:
            description['size'] = None
        held = self.held()
        if path is not None and not lun.allow_in_use and not any(same_medium(path, store.path) for store in held):
            in_use.require_free(path)
        store = open_store(description, held)
        if grows and lun.size:
            try:
                grow(store, lun.size)
            except BaseException:
                store.close()
                raise
        return store

    def _identity(self, lun, path, key):
        """{vendor, product, revision, serial, naa, eui} of the facts."""
        own = identity.disk_identity(path) if lun.direct and path else None
        return {
            'vendor': lun.vendor_id or own and own.vendor or DEFAULTS['vendor'],
            'product': lun.product_id or own and own.product or DEFAULTS['product'],
            'revision': lun.product_rev or own and own.revision or PRODUCT_REVISION,
            'serial': lun.scsi_sn or own and own.serial or identity.serial(self.server, key),
            'naa': (lun.naa or own and len(own.naa) == 32 and own.naa or identity.naa6(self.server, key)).lower(),
            'eui': lun.eui.lower(),
        }

    # -- space -------------------------------------------------------------------------------------------------------

    def _look_at_space(self):
        """Tell initiators whose thresholds are crossed: by the clock, so that no command pays for it."""
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
        self.units.change(unit, decisions.space_counted(unit.shared, available // size, used // size))
        if set(unit.shared.crossed or ()) - set(was):
            log.warning('unit %s: a threshold of its space is reached: %d bytes are available to %s, which uses %d', unit.id,
                        available, unit.store.path, used)

    # -- what changes while it is served -----------------------------------------------------------------------------

    def resize(self, unit, wanted=None):
        """Follow the medium's size, after growing a file to `wanted` bytes. Everybody is told 2A/09. Raises StoreError."""
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
            self.units.change(unit, decisions.resized(unit.shared, size))

    def recover(self, unit):
        """The administrator has seen that the unit failed, and wants it used again. False if it had not failed."""
        if unit.shared.medium != FAILED:
            return False
        log.warning('unit %s is used again although it failed (%s)', unit.id, unit.failure)
        unit.failure = None
        self.units.order_units(unit.workers, replace=[unit])      # new Stores in the workers: the old remember the failure
        self.units.medium(unit, READY)
        return True


def grow(store, size):
    """Make a file at least this long (bytes); never shorter. Raises StoreError."""
    now = store.resize_check()
    if now > size:
        raise StoreError('%s has %d bytes, more than size = %d; a file is never made shorter: write size = %d, or leave it out'
                         % (store.path, now, size, now))
    if now < size:
        try:
            os.ftruncate(store.descriptor, size)
        except OSError as e:
            raise StoreError('%s cannot grow to %d bytes: %s' % (store.path, size, e.strerror))
        store.resized(size)


def space_of(store):
    """(bytes that a file can still get from its file system, bytes that it takes). Raises OSError."""
    space, status = os.fstatvfs(store.descriptor), os.fstat(store.descriptor)
    return space.f_bavail * space.f_frsize, status.st_blocks * 512


def same_medium(path, other):
    """True if both paths lead to the same file or device."""
    try:
        return other is not None and os.path.samefile(path, other)
    except OSError:
        return False


def facts_of(lun, store, names):
    """The facts dict (scsi.facts) of a LUN on an opened store; names: vendor, product, revision, serial, naa, eui."""
    can = store.capabilities
    block_size = store.block_size
    facts = dict(names, block_size=block_size, scsi_name='',
                 physical_block_size=physical_block_size(lun, store),
                 lowest_aligned_block=lun.lowest_aligned_block or can.alignment_offset // block_size,
                 rotation_rate=rotation_rate(lun, can), thin=lun.thin, unmap=bool(lun.thin and can.unmap),
                 zeroes_after_unmap=bool(lun.thin and can.unmap and can.zeroes_after_unmap),
                 removable=lun.removable, read_only=bool(store.read_only), write_cache=lun.write_cache,
                 descriptor_sense=lun.sense_format == 'descriptor', third_party_copy=lun.third_party_copy)
    if facts['unmap']:
        facts.update(unmap_granularity=can.unmap_granularity, unmap_alignment=can.unmap_alignment)
        if can.maximum_unmap_length:
            facts['maximum_unmap_length'] = min(can.maximum_unmap_length, DEFAULTS['maximum_unmap_length'])
    facts.update(threshold_facts(lun, store), mode_pages=','.join(lun.mode_page), management_url=lun.management_url)
    optimal = lun.optimal_transfer_length or can.optimal_io_size
    if optimal:
        facts['optimal_transfer_length'] = optimal
    granularity = lun.optimal_transfer_granularity or can.minimum_io_size
    if granularity:
        facts['optimal_transfer_granularity'] = granularity
    return facts


def alua_facts(target, lun):
    """The facts that say how target port groups are served. With auto there is something to say when the target is reached by
    several groups, or one is configured; Windows and Linux are known to work with implicit."""
    mode = target.alua
    if mode == 'auto':
        mode = 'implicit' if len(target.portal_groups) > 1 or target.alua_state else 'off'
    return {'implicit_alua': mode in ('implicit', 'both'), 'explicit_alua': mode in ('explicit', 'both'),
            'logical_unit_group': lun.number + 1 if mode != 'off' else 0}


def configured_access(target):
    """The scsi.access state that the configuration gives every LUN of the target."""
    return access.initial(target.portal_groups, dict((tag, access.STATE_OF_WORD[word]) for tag, word in target.alua_state),
                          target.alua in ('explicit', 'both'))


def threshold_facts(lun, store):
    """{threshold_exponent, threshold_count} of a thin file: threshold sets of THRESHOLD_SET bytes, more if their number would
    not fit 31 bits, and thin-threshold percent of the file system in these."""
    if not (lun.thin and store.kind == 'file'):
        return {}
    exponent = 0
    while store.block_size << exponent < max(THRESHOLD_SET, store.size >> 31):
        exponent += 1
    space = os.fstatvfs(store.descriptor)
    least = space.f_blocks * space.f_frsize * lun.thin_threshold // 100
    return {'threshold_exponent': exponent, 'threshold_count': min(least // (store.block_size << exponent), 0x7FFFFFFF)}


def physical_block_size(lun, store):
    """What is configured, else a disk's own. A file has none: its file system maps any block, and initiators that align to
    more than they must would leave blocks mapped that could be given back."""
    own = store.capabilities.physical_block_size if store.kind == 'block' else 0
    return max(lun.physical_block_size or own, store.block_size)


def rotation_rate(lun, capabilities):
    """For VPD page B1h: what is configured, else 1 for a medium that does not rotate; a disk's speed is not known."""
    if lun.rotation_rate is not None:
        return lun.rotation_rate
    return 1 if capabilities.rotational is False else 0


__all__ = ('Exports', 'Late', 'facts_of', 'grow')
