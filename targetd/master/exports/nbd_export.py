"""Opens an export of an NBD server as the medium of a LUN, in the job that opens the medium.

     connect, look at the export, disconnect --> start its keeper --> OpenedStore: control socket, memory file

The memory file is the *claim*: every process of the unit has it, and locks ranges on it. LUNs of
one export share the keeper.

May import store, nbd.
"""

import os

from targetd import compat
from targetd.errors import StoreError
from targetd.master.exports import nbd_connecting
from targetd.master.exports.nbd_keeper import start_keeper
from targetd.nbd import numbers, uri
from targetd.store.base import NO_CAPABILITIES
from targetd.store.opened_store import OpenedStore
from targetd.store.store_request import StoreRequest

KIND = 'nbd'

#: A server that has not answered by then is not there: the start waits no longer for its LUN.
OPEN_SECONDS = 4.0

_UNMAPS = numbers.SEND_TRIM | numbers.SEND_FAST_ZERO


def open_export(description, held, plan_only):
    """Returns the OpenedStore of an export. description: as for store.open_store; held:
    OpenedStores of the same export; plan_only: no keeper is started. Raises StoreError."""
    wanted = StoreRequest(dict(description, kind=KIND))
    try:
        address = uri.parse_uri(wanted.path)
    except ValueError as e:
        raise StoreError(str(e))
    for store in held:
        if (
            store.kind == KIND
            and store.descriptor is not None
            and store.read_only == wanted.read_only
        ):
            return shared(wanted, store, plan_only)
    try:
        sock, export = nbd_connecting.connect(address, OPEN_SECONDS)
    except nbd_connecting.Unavailable as e:
        raise StoreError('%s %s' % (wanted.path, e))
    nbd_connecting.disconnect(sock)
    facts = facts_of(wanted, export, bool(export.flags & _UNMAPS))
    control, claims = None, []
    if not plan_only:
        claims = [compat.memory_file('targetd-nbd', 4096)]
        control = start_keeper(address, facts['offered'], wanted.read_only, claims[0])
    return OpenedStore(facts, control, key_of(wanted.path), claims)


def key_of(path):
    """The key of the OpenedStore of this URI. Raises ValueError."""
    return (KIND,) + tuple(uri.parse_uri(path))


def shared(wanted, store, plan_only):
    """Returns the OpenedStore of an export that is open already: for another read-only LUN, or for this one
    with former settings."""
    block_size = wanted.block_size or store.block_size
    facts = wanted.facts(
        KIND,
        store.size,
        block_size,
        store.capabilities,
        multi=store.multi,
        offered=store.offered,
        image=store.image,
        ceph=getattr(store, 'ceph', None),
        acknowledges_durable=getattr(store, 'acknowledges_durable', False),
    )
    if plan_only:
        return OpenedStore(facts, None, store.key)
    return OpenedStore(
        facts, os.dup(store.descriptor), store.key, [os.dup(each) for each in store.claims]
    )


def facts_of(wanted, export, unmaps, image=''):
    """Returns the facts of an OpenedStore on this handshake.Export. unmaps: a TRIM has an effect; image: the
    value of `type` of a disk image. Raises StoreError."""
    block_size = wanted.block_size or max(512, export.minimum)
    if export.size % block_size or not export.size:
        raise StoreError(
            '%s has %d bytes, which is not a positive multiple of the block size %d; write another '
            'block-size, or have '
            'the server extend it' % (wanted.path, export.size, block_size)
        )
    try:
        nbd_connecting.require_usable(export, wanted.read_only, block_size)
    except nbd_connecting.Unavailable as e:
        raise StoreError('%s %s' % (wanted.path, e))
    return wanted.facts(
        KIND,
        export.size,
        block_size,
        _capabilities(export, block_size, unmaps),
        multi=bool(export.flags & numbers.CAN_MULTI_CONN),
        offered=[export.size, export.flags, export.minimum],
        image=image,
    )


def _capabilities(export, block_size, can_unmap):
    """TRIM promises nothing about what is read afterwards."""
    preferred = max(export.preferred, block_size)
    return NO_CAPABILITIES._replace(
        unmap=can_unmap,
        zeroes_after_unmap=False,
        unmap_granularity=preferred if can_unmap else 0,
        physical_block_size=block_size,
        minimum_io_size=preferred,
        extents=export.allocation is not None,
    )
