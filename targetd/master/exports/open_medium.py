"""Examines, opens and describes the medium of a LUN: the part of an export that may block on the
medium.

May import config.model, host, store, scsi.facts, master.state. `open_medium` runs in a child
process (processes.jobs) and does not use any state of the master; it returns a JSON-able dict and
the open descriptors.
"""

import os
import stat

from targetd.config import lun_rules
from targetd.errors import Standby, StoreError, TargetdError
from targetd.host import block_sizes, claims, disks, image_formats, in_use, roots, signatures
from targetd.master.exports import (
    disk_fence,
    image_export,
    known_media,
    nbd_export,
    passthrough_export,
    rbd_export,
    unit_identity,
)
from targetd.master.exports.resizing import grow
from targetd.master.state import journal_recovery, key_files, state_places, undo_files
from targetd.master.units import descriptions, guards
from targetd.nbd import uri
from targetd.scsi.facts import DEFAULTS
from targetd.store import adopt_store, open_store, why_not_a_tape

THRESHOLD_SET = 1 << 20  # bytes


def open_medium(
    target,
    lun,
    held,
    server,
    state,
    master,
    known,
    plan_only=False,
    tables=None,
    served=frozenset(),
    journals=frozenset(),
):
    """Opens the medium of a LUN. Returns (words, descriptors): the store's description with its encryption
    key, the LUN's facts and the key of its saved state; or {'failed': message} and no descriptors. Incomplete
    atomic writes of a server that died are rolled back first.

    held: OpenedStores of the master; server: the server id from which identities are derived; state:
    state_directory.StateDirectory; master: process id of the master; known: the medium that this LUN had
    before (known_media), or None; plan_only: try everything that can be tried without a change, and create,
    extend and roll back nothing; tables: in_use.HostTables, if they were read already; served: keys of the
    media that the running server has claimed, if this process only examines them (examination); journals:
    paths of the journals of atomic writes that the server or this process has open: any other that the LUN
    needs is created, and its descriptor is the last.
    """
    created, check, saved = [], '', {}
    try:
        device, path = medium_of(lun)
        is_served = path is not None and key_of_path(device.node if device else path) in served
        held = _without_others(device.node if device else path, held)
        _require_turn(target, lun, path, state, plan_only)
        _require_usable(target, lun, path, known, held or is_served, master, tables)
        found = [] if device and not device.is_disk else _checked_signatures(lun, path)
        _require_intended(target, lun, path, known, found)
        data_key, key = unit_identity.data_key(target.name, lun, path)
        image = image_export.format_of(lun, path, known)
        place, fenced = _place_of_state(target, lun, key, state, plan_only, '' if image else path)
        wanted = device or path, held, plan_only, is_served, image, state, fenced
        store, grown = _open_store(lun, *wanted)
        _require_same_content(target, lun, store, known)
        left = journal_recovery.journal_path(place.journal_directory, data_key)
        rolled_back = 0 if plan_only else _settle_journals(lun, state, key, left, store, held)
        if not plan_only or os.path.exists(lun.encryption_key_file):
            saved = place.load(key)
            check = key_files.set_store_key(lun, store, saved, place.file_of(key))
        if not plan_only and store.kind == 'block' and descriptions.needs_own(store):
            store.spares += descriptions.open_spares(store.descriptor)[1]
        facts = facts_of(lun, store, unit_identity.names_of(lun, path, key, server))
        facts.update(alua_facts(target, lun))
        seen = None if plan_only or not path else _seen(lun, path, facts, store, image)
        if lun.atomic_writes and not (plan_only or left is None or left in journals):
            created.append(journal_recovery.create_journal(left))
    except (ValueError, OSError, TargetdError) as e:
        return _failure(lun, e), ()
    return {
        'store': store.description(),
        'medium': store.key,
        'spares': len(store.spares),
        'key': key,
        'saved': saved,
        'key_check': check,
        'facts': facts,
        'journal': left,
        'has_journal': bool(created),
        'rolled_back': rolled_back,
        'grown_from': grown,
        'seen': seen,
        'contents': [signatures.one_line(each) for each in found],
        'auto_assembled': [signatures.one_line(each) for each in signatures.auto_assembled(found)],
    }, store.descriptors() + created


def medium_of(lun):
    """Returns (sg_nodes.ScsiDevice or None, path) of the medium of a LUN. The path is None if there is no
    medium; of a ScsiDevice it is the block device, if it has one. Raises StoreError."""
    device = passthrough_export.device_of(lun)
    if device:
        return device, device.block or device.node
    return None, disks.resolve_backing_store(lun.backing_store) if lun.backing_store else None


def _failure(lun, error):
    """Returns the words of open_medium() after this exception."""
    text = str(error)
    if not isinstance(error, StoreError):
        text = '%s: %s' % (lun.backing_store or lun.type, text)
    shown = getattr(error, 'shown', None)
    return {'failed': text, 'is_standby': isinstance(error, Standby), 'shown': shown}


def _require_turn(target, lun, path, state, plan_only):
    """Raises Standby if this server must not serve the LUN, before the medium is looked at, StoreError."""
    if lun.unit_state:
        key = unit_identity.data_key(target.name, lun, path)[1]
        _place_of_state(target, lun, key, state, plan_only, path, takes=False)


def _place_of_state(target, lun, key, state, plan_only, path, takes=True):
    """Returns what keeps the state of the LUN: `state`, or a UnitState that this server holds from now on,
    so that it may change the medium; and OpenedStore.fence. path: of the medium, '' if it has no fence;
    takes: False if it only looks whether it may. By order, the medium is first taken from the other server,
    if there is a fence. Raises Standby if it must not serve the LUN, StoreError."""
    place, which = state_places.place_of(state, lun), (target.name, lun.number)
    fence = disk_fence.find_fence(lun, path) if takes and path else None
    own_key = disk_fence.key_of(place.node.id) if fence else 0
    if lun.unit_state and not plan_only:
        get = place.take if takes else place.require_turn
        is_ordered, is_active = which in state.ordered, which in state.active
        if takes and is_ordered and rbd_export.is_image(lun.backing_store) and not lun.readonly:
            rbd_export.fence(lun.backing_store, rbd_export.place_of(lun, state.path))
        try:
            if fence and is_ordered:
                disk_fence.take(fence, own_key, target.name, True)
            get(key, target.name, is_ordered, is_active, target.serving == 'when-active')
            if fence:
                disk_fence.take_held(fence, place, key, target.name, is_ordered)
        except Standby as e:
            shown = place.glance(key) if target.partner_groups else None
            e.shown = shown and dict(shown, key=key)
            raise
    return place, '%016x' % own_key if fence else ''


def _settle_journals(lun, state, key, left, store, held):
    """Note that a medium is about to be served with or without its undo journal, and roll back the atomic
    writes of a server that died. Returns how many. Raises StoreError."""
    directory = os.path.join(state.path, 'guards')
    if guards.journal_bytes(lun):
        undo_files.resume(directory, key)
    elif not lun.readonly:
        undo_files.interrupt(directory, key)
    return 0 if held else journal_recovery.roll_back_writes(left, store)


def _require_usable(target, lun, path, known, is_ours, master, tables):
    """Raises StoreError if the LUN had another medium before, or another program uses this one. is_ours:
    this server serves it."""
    if path is None or uri.is_uri(path):
        return
    known_media.require_known(target, lun, path, known)
    if not (lun.allow_in_use or is_ours) and roots.ROOTS.character_number(path) is None:
        in_use.require_free(path, ours=master, tables=tables)


def _seen(lun, path, facts, store, image):
    """Returns the record of known_media for a medium that will be served. image: as returned by
    image_export.format_of."""
    is_export = uri.is_uri(path)
    seen = (
        known_media.describe_export(lun, store.size)
        if is_export
        else known_media.describe_medium(lun, path)
    )
    if image:
        seen['format'] = image
    return dict(seen, identity=unit_identity.shown_settings(facts))


def open_files(
    requests, held, server, state, master, plan_only=False, served=frozenset(), journals=frozenset()
):
    """Opens the files of several LUNs, one after the other. requests: [(target, lun, known)]; the
    other arguments as for open_medium. Returns ({'media': [words of open_medium, with the number of
    its descriptors]}, all descriptors)."""
    shared = _stores_by_file(held, [lun.backing_store for _, lun, _ in requests])
    tables = in_use.HostTables()
    media, descriptors, journals = [], [], set(journals)
    for target, lun, known in requests:
        identity = _file_identity(lun.backing_store)
        same = [] if identity is None else shared.get(identity, [])
        words, own = open_medium(
            target, lun, same, server, state, master, known, plan_only, tables, served, journals
        )
        media.append(dict(words, descriptors=len(own)))
        descriptors += own
        if own and lun.backing_store:
            if words['has_journal']:
                own = own[:-1]
                journals.add(words['journal'])
            opened = adopt_store(words['store'], words['medium'], own, words['spares'])
            shared.setdefault(_file_identity(lun.backing_store), []).append(opened)
    return {'media': media}, descriptors


def _file_identity(path):
    """Returns (device, inode), or None if there is no such file yet, or no path."""
    if not path:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stores_by_file(held, paths):
    """Returns {(device, inode): stores of `held`} for these paths, and closes the other stores: this
    process may get stuck and would keep them open."""
    wanted = {_file_identity(path) for path in paths} - {None}
    found = {}
    for store in held:
        file = _file_identity(store.path) if store.path else None
        if file in wanted:
            found.setdefault(file, []).append(store)
        else:
            store.close()
    return found


def _without_others(path, held):
    """Returns those stores of `held` that use the same medium and closes the others: this process
    may get stuck and would keep them open."""
    same = [store for store in held if path is not None and same_medium(path, store.path)]
    for store in held:
        if store not in same:
            store.close()
    return same


def key_of_path(path):
    """Returns the key that the OpenedStore of this file or device has, or None."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISBLK(status.st_mode):
        return 'block', status.st_rdev
    return 'file', status.st_dev, status.st_ino


def _open_store(lun, path, held, plan_only, is_served, image, state, fenced):
    """Returns (OpenedStore, the size of the file before it was extended, or None). path: or the ScsiDevice;
    image: as returned by image_export.format_of; state: StateDirectory; fenced: of OpenedStore.fence."""
    if lun.type == passthrough_export.KIND:
        return passthrough_export.open_device(path, lun, held, is_served, plan_only), None
    description = {
        'path': path,
        'size': lun.size,
        'read_only': lun.readonly,
        'direct': lun.direct_io or bool(fenced),
        'thin': lun.thin,
        'block_size': lun.block_size and int(lun.block_size),
        'filters': lun.filter,
        'allow_in_use': lun.allow_in_use,
        'plan_only': plan_only,
        'is_served': is_served,
    }
    if image:
        _require_plain(lun, image)
        return _open_image(lun, description, held, plan_only, image)
    if lun.type == 'tape':
        description.update(kind='file', tape=True)
    elif lun.type not in ('auto', 'cd'):
        description['kind'] = lun.type
    if rbd_export.is_image(path):
        ceph = rbd_export.place_of(lun, state.path)
        seconds = rbd_export.ORDERED_SECONDS if state.ordered else rbd_export.OPEN_SECONDS
        return rbd_export.open_image(description, held, plan_only, ceph, seconds), None
    if path is not None and uri.is_uri(path):
        return nbd_export.open_export(description, held, plan_only), None
    grows = path is not None and os.path.isfile(path)
    if grows:
        description.update(size=None, grows_to=lun.size)
    store = open_store(description, held)
    store.set_fence(fenced)
    before = store.size
    is_longer_tape = lun.type == 'tape' and store.size > (lun.size or 0)  # size is for new ones
    if grows and lun.size and not is_longer_tape:
        grow(store, lun.size, plan_only)
    return store, before if store.size > before else None


def _open_image(lun, description, held, plan_only, image):
    """Returns the same as _open_store()."""
    store = image_export.open_image(description, held, plan_only, image, lun.allow_backing_file)
    before = store.size
    if lun.size:
        try:
            grow(store, lun.size, plan_only)
        except BaseException:
            store.close()
            raise
    return store, before if store.size > before else None


def _checked_signatures(lun, path):
    """Returns the signatures on a disk that will be written. Raises StoreError if this host relies
    on it.

    They are read before the disk is opened for writing: when such a descriptor is closed, udev
    examines the disk again, and mdadm or LVM might start to use it.
    """
    if lun.readonly or path is None or uri.is_uri(path) or not _is_disk(path):
        return []
    sector = disks.describe_disk(path).logical_sector
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = signatures.find_signatures(descriptor, os.lseek(descriptor, 0, os.SEEK_END), sector)
        reasons = [] if lun.allow_in_use else claims.find_claims(path, found, descriptor)
    finally:
        os.close(descriptor)
    if reasons:
        raise StoreError(
            '%s. To export it nevertheless, write allow-in-use = yes' % '. '.join(reasons)
        )
    return found


def _require_intended(target, lun, path, known, found):
    """Raises StoreError if the medium is to be served for the first time, and its content makes it likely
    that this is a mistake. A medium that was served before is not looked at again: its initiators may have
    written anything. known, found: as in open_medium."""
    if known is None or known['named'] != lun.backing_store:
        _require_confirmed(target, lun, path, found)
        _require_raw(lun, path)


def _require_confirmed(target, lun, path, found):
    """Raises StoreError if the disk is served writable, and has content that Linux hosts write and
    initiators could overwrite."""
    of_hosts = [each for each in found if each.owner == 'host']
    if not of_hosts or lun.content == 'keep' or lun.allow_in_use:
        return
    raise StoreError(
        '%s is not served yet, because it contains %s, and initiators could overwrite that: make certain '
        'that it is the right disk and that this host does not need its content; then write content = keep '
        'in [[lun %d]] of target %s'
        % (path, ', '.join(signatures.one_line(each) for each in of_hosts), lun.number, target.name)
    )


def _require_raw(lun, path):
    """Raises StoreError if the medium is a disk image of another program, and `type` does not say
    that its bytes are to be served as they are."""
    if path is None or lun.type != 'auto' or not os.path.exists(path):
        return
    if image_export.format_of(lun, path, None):  # it is served as an image
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = image_formats.find_image_format(descriptor)
        kind = 'block' if stat.S_ISBLK(os.fstat(descriptor).st_mode) else 'file'
    finally:
        os.close(descriptor)
    if found:
        raise StoreError(
            '%s is not served yet, because it is a disk image in the format %s: initiators would see '
            'the bytes of the image instead of the disk in it, and could destroy the image; convert it '
            'with "qemu-img convert -f %s -O raw IMAGE NEW-FILE" and name the new file; or write '
            'type = %s to serve the bytes as they are' % (path, found.what, found.qemu, kind)
        )


def _require_plain(lun, image):
    """Raises StoreError if a LUN whose image was found by its signature has settings that images cannot
    have."""
    for _, text, remedy in lun_rules.of_image(lun, image):
        raise StoreError('%s: %s; %s' % (lun.backing_store, text, remedy))


def _require_same_content(target, lun, store, known):
    """Raises StoreError if an export has become shorter, or the content of the medium has another
    block size."""
    if uri.is_uri(store.path or ''):
        known_media.require_not_shorter(target, lun, store.size, known)
    _require_content(lun, store)


def _require_block_size(lun, store):
    """Raises StoreError, after closing the store, if the content of the medium was written with another
    block size: initiators would find no partition, or read a file system wrongly."""
    is_readable = store.kind in ('file', 'block') and not lun.encryption_key_file
    if not is_readable or lun.allow_other_block_size or not os.path.exists(store.path):
        return
    # not the store's descriptor: it may be for direct I/O
    descriptor = os.open(store.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        misfit = block_sizes.find_misfit(descriptor, store.block_size)
    finally:
        os.close(descriptor)
    if misfit:
        store.close()
        raise StoreError(
            '%s %s: initiators would not find its data; write the block-size that it was written with; '
            'or, if the content is no longer needed, write allow-other-block-size = yes'
            % (store.path, misfit)
        )


def _require_content(lun, store):
    """Raises StoreError, after closing the store, if the content is of another block size, or the file of
    a tape is neither a tape nor blank: an initiator would overwrite what it is."""
    if lun.type != 'tape':
        _require_block_size(lun, store)
        return
    problem = why_not_a_tape(lambda at, length: os.pread(store.descriptor, length, at), store.size)
    if problem:
        store.close()
        raise StoreError(
            '%s cannot be served as a tape: %s; name the file of a tape, or one that does not exist, with a '
            'size' % (store.path, problem)
        )


def _is_disk(path):
    return roots.kernel_name(path) is not None


def same_medium(path, other):
    """True if both paths refer to the same file, or are nodes of the same device."""
    if other is None:
        return False
    if uri.is_uri(path) or uri.is_uri(other):
        return (
            uri.is_uri(path) and uri.is_uri(other) and uri.parse_uri(path) == uri.parse_uri(other)
        )
    try:
        return os.path.samefile(path, other) or (
            roots.ROOTS.device_number(path) is not None
            and roots.ROOTS.device_number(path) == roots.ROOTS.device_number(other)
        )
    except OSError:
        return False


def facts_of(lun, store, names):
    """Returns the facts dict (scsi.facts) of a LUN on an opened store; names: as returned by
    unit_identity.names_of."""
    can = store.capabilities
    block_size = store.block_size
    if store.kind == passthrough_export.KIND:
        return passthrough_export.facts_of(lun, store, names)
    facts = dict(
        names,
        block_size=block_size,
        physical_block_size=physical_block_size(lun, store),
        lowest_aligned_block=lun.lowest_aligned_block or can.alignment_offset // block_size,
        rotation_rate=rotation_rate(lun, can),
        thin=lun.thin,
        unmap=bool(lun.thin and can.unmap),
        zeroes_after_unmap=bool(lun.thin and can.unmap and can.zeroes_after_unmap),
        removable=lun.removable,
        optical=lun.type == 'cd',
        tape=lun.type == 'tape',
        early_warning=lun.early_warning or 0,
        read_only=bool(store.read_only),
        encrypted=bool(store.cipher_key),
        write_cache=lun.write_cache,
        descriptor_sense=lun.sense_format == 'descriptor',
        third_party_copy=lun.third_party_copy,
        spins_down=bool(lun.spin_down) and store.kind == 'block',
        health=bool(lun.health_interval) and store.kind in ('file', 'block'),
    )
    if facts['unmap']:
        facts.update(unmap_granularity=can.unmap_granularity, unmap_alignment=can.unmap_alignment)
        if can.maximum_unmap_length:
            facts['maximum_unmap_length'] = min(
                can.maximum_unmap_length, DEFAULTS['maximum_unmap_length']
            )
    facts.update(
        threshold_facts(lun, store),
        mode_pages=','.join(lun.mode_page),
        management_url=lun.management_url,
    )
    optimal = lun.optimal_transfer_length or can.optimal_io_size
    if optimal:
        facts['optimal_transfer_length'] = optimal
    granularity = lun.optimal_transfer_granularity or can.minimum_io_size
    if granularity:
        facts['optimal_transfer_granularity'] = granularity
    return facts


def alua_facts(target, lun):
    """Returns the facts about asymmetric logical unit access (SPC-4 5.15). With `auto`, ALUA is
    implicit when the target has several portal groups or a configured state, and off otherwise;
    Windows and Linux are known to work with implicit ALUA."""
    mode = target.alua
    if mode == 'auto':
        has_states = len(target.portal_groups) > 1 or target.alua_state or target.partner_groups
        mode = 'implicit' if has_states else 'off'
    return {
        'implicit_alua': mode in ('implicit', 'both'),
        'explicit_alua': mode in ('explicit', 'both'),
        'logical_unit_group': lun.number + 1 if mode != 'off' else 0,
    }


def threshold_facts(lun, store):
    """Returns {threshold_exponent, threshold_count} of a thin file, {} for other media. A threshold
    set has THRESHOLD_SET bytes, or more if their number would not fit into 31 bits; the count is
    thin-threshold percent of the file system."""
    if not (lun.thin and store.kind == 'file'):
        return {}
    exponent = 0
    while store.block_size << exponent < max(THRESHOLD_SET, store.size >> 31):
        exponent += 1
    space = os.fstatvfs(store.descriptor)
    least = space.f_blocks * space.f_frsize * lun.thin_threshold // 100
    return {
        'threshold_exponent': exponent,
        'threshold_count': min(least // (store.block_size << exponent), 0x7FFFFFFF),
    }


def physical_block_size(lun, store):
    """Returns the configured physical block size, else the disk's. A file has none: its file system
    maps any block, and initiators that align to larger blocks would leave blocks mapped that they
    could unmap."""
    own = store.capabilities.physical_block_size if store.kind == 'block' else 0
    return max(lun.physical_block_size or own, store.block_size)


def rotation_rate(lun, capabilities):
    """Returns the MEDIUM ROTATION RATE of VPD page B1h (SBC-3): the configured value, else
    that of the disk, also of the disk that a file is on; 0 (not reported) if it is unknown."""
    return capabilities.rotation_rate if lun.rotation_rate is None else lun.rotation_rate
