"""The fence around a disk that two servers see (setting fence): the server that holds the state of a LUN has
its own key registered with the disk, and the disk's reservation, so the disk refuses all writes of the other
server, also those that it sends late (SPC-4 5.12.11, PREEMPT AND ABORT).

     free --take()--> ours --the other server: take(is_ordered)--> theirs: every write here fails
                       |
                       +--release()--> free

The reservation is taken and released with the state: a server that stops keeps both. Everything here may
block on the disk, so it runs in jobs. May import base, host, master.state.
"""

import contextlib
import errno
import hashlib
from collections import namedtuple

from targetd import log
from targetd.errors import Standby, StoreError
from targetd.host import disk_reservations, disks
from targetd.host.disk_reservations import WRITE_EXCLUSIVE_REGISTRANTS, Conflict
from targetd.master.state.unit_state import TAKEN_OVER

#: Every key of a targetd begins with this byte string, so that it can be told from those of other programs.
TAG = b'td'

#: A fence that can be put up. nodes: of disk_reservations.find_nodes; keeps: through a loss of power.
Fence = namedtuple('Fence', 'path nodes keeps')

#: What look() finds: ours; lost to another server; incomplete: the disk has forgotten it, and it can be
#: put up again.
OURS, LOST, INCOMPLETE = 'ours', 'lost', 'incomplete'

_REMEDY = (
    '; correct that, or write fence = none, and make certain before each takeover that the other server does '
    'not write'
)


def key_of(node_id):
    """Returns the key (int) of the server whose state-dir has this node id. It never changes, and two servers
    with equal identities have different ones."""
    return int.from_bytes(TAG + hashlib.sha256(node_id.encode('ascii')).digest()[:6], 'big')


def shown(key):
    """A key in words, as sg_persist shows it."""
    return '0x%016x' % key


def find_fence(lun, path):
    """Returns the Fence for the disk of a model.Lun, or None if it has none and needs none. Raises
    StoreError."""
    if (
        lun.fence == 'none'
        or not lun.unit_state
        or lun.readonly
        or lun.type not in ('auto', 'block')
    ):
        return None
    try:
        nodes = disk_reservations.find_nodes(path)
        with disk_reservations.DiskReservations(nodes) as disk:
            fence = Fence(path, nodes, disk.keeps_through_power_loss())
    except disk_reservations.NotOffered as e:
        if lun.fence == 'auto':
            return None
        raise StoreError(
            '%s %s, but the setting fence wants the reservations of the disk; write fence = auto or none, '
            'and make certain before each takeover that the other server does not write' % (path, e)
        )
    except OSError as e:
        raise _unusable(path, e)
    _require_direct(lun, path)
    return fence


def _require_direct(lun, path):
    """A fenced disk is written past the page cache: a write that is answered must have reached the disk."""
    sector = disks.describe_disk(path).logical_sector
    if lun.block_size and int(lun.block_size) < sector:
        raise StoreError(
            '%s has sectors of %d bytes, more than the block size, so it cannot be written without the page '
            'cache, as a fence wants it; write block-size = %d, or fence = none'
            % (path, sector, sector)
        )


def _unusable(path, error):
    if error.errno in (errno.EPERM, errno.EACCES):
        text = 'are not accessible: %s; run targetd as root, and run "modprobe sg"' % error.strerror
    else:
        text = 'cannot be used: %s%s' % (error.strerror or error, _REMEDY)
    return StoreError('the reservations of %s %s' % (path, text))


def take(fence, key, name, is_ordered):
    """Register `key` and reserve the disk of a Fence, and verify both. name: of the target, for messages;
    is_ordered: remove the key of another server. Can be repeated. Raises Standby if another server has the
    disk and there is no order, StoreError."""
    try:
        with disk_reservations.DiskReservations(fence.nodes) as disk:
            _take(disk, fence, key, name, is_ordered)
    except OSError as e:
        raise _unusable(fence.path, e)


def take_held(fence, place, state_key, name, is_ordered):
    """take() with the key of this server, while no other server can take the state. place: the
    unit_state.UnitState that it holds; state_key: of the unit. Raises the same."""
    key = key_of(place.node.id)
    try:
        place.run_while_held(state_key, lambda: take(fence, key, name, is_ordered))
    except OSError as e:
        if e.errno == TAKEN_OVER:
            raise Standby(
                'standby: %s; to serve it here: targetdctl takeover %s' % (e.strerror, name)
            )
        raise StoreError('the state in unit-state %s cannot be used: %s' % (place.name, e.strerror))


def _take(disk, fence, key, name, is_ordered):
    others, holder = _others(disk, key), disk.holder()
    _require_no_stranger(fence.path, others)
    if others and not is_ordered:
        raise _taken(fence.path, others[0], name)
    disk.register(key, fence.keeps)
    for other in others:
        with contextlib.suppress(Conflict):  # it has gone by itself
            disk.preempt(key, other)
            log.warning('%s: the key %s of another server was removed', fence.path, shown(other))
    if holder is None or holder.key != key:
        with contextlib.suppress(Conflict):  # another server was quicker
            disk.reserve(key)
    _verify(disk, fence, key, name)


def _verify(disk, fence, key, name):
    """Raises Standby or StoreError, without a registration of this server, unless the disk is reserved by
    it alone."""
    keys, holder = disk.keys(), disk.holder()
    others = sorted(set(keys) - {key})
    is_ours = key in keys and holder is not None and holder.key == key
    if is_ours and holder.kind == WRITE_EXCLUSIVE_REGISTRANTS and not others:
        return
    disk.register(0, fence.keeps)
    if others:
        _require_no_stranger(fence.path, others)
        raise _taken(fence.path, others[0], name)
    raise StoreError(
        '%s does not keep the reservation that it was given; see "sg_persist --in --read-full-status"%s'
        % (fence.path, _REMEDY)
    )


def _others(disk, key):
    return sorted(set(disk.keys()) - {key})


def _require_no_stranger(path, keys):
    """Raises StoreError if a program that is not targetd uses the reservations of the disk."""
    for key in keys:
        if key >> 48 != int.from_bytes(TAG, 'big'):
            raise StoreError(
                '%s is registered by another program, with the key %s, which can write to it; find out which '
                '("sg_persist --in --read-full-status %s") and stop it; "sg_persist --out --clear" removes '
                'the keys of a program that is gone; or write fence = none'
                % (path, shown(key), path)
            )


def _taken(path, key, name):
    return Standby(
        'standby: another server has the reservation of %s, with the key %s; to serve it here: targetdctl '
        'takeover %s' % (path, shown(key), name)
    )


def look(fence, key):
    """Returns OURS, LOST or INCOMPLETE, and the key (int) of the other server if it is lost. Changes
    nothing. Raises OSError."""
    with disk_reservations.DiskReservations(fence.nodes) as disk:
        keys, holder = disk.keys(), disk.holder()
    others = sorted(set(keys) - {key})
    if holder is not None and holder.key != key:
        return LOST, holder.key
    if key not in keys and others:
        return LOST, others[0]
    return (OURS if key in keys and holder is not None else INCOMPLETE), None


def release(lun, path):
    """Remove the registration of this server from the disk of a model.Lun, and its reservation with it. A
    disk that does not answer keeps them, until another server takes it over."""
    try:
        fence = find_fence(lun, path)
        if fence is not None:
            with disk_reservations.DiskReservations(fence.nodes) as disk:
                disk.register(0, fence.keeps)
    except (OSError, StoreError) as e:
        log.warning('%s keeps the reservation of this server: %s', path, e)
