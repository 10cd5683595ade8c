"""Opens an image of a Ceph cluster as the medium of a LUN, in the job that opens the medium.

     serve it once, for its size and to see that it can be locked --> its keeper, whose store process locks it

Everything else is as for an export of an NBD server (nbd_export). What is acknowledged is durable, so the
workers keep no copies of writes. May import host, store, nbd.
"""

import os

from targetd import compat, log
from targetd.errors import StoreError
from targetd.host import identity
from targetd.master.exports import nbd_connecting, nbd_export, rbd_process
from targetd.master.exports.nbd_keeper import start_keeper
from targetd.master.state.state_directory import boot_id
from targetd.nbd import uri
from targetd.store.opened_store import OpenedStore
from targetd.store.store_request import StoreRequest

KIND = 'rbd'  # of OpenedStore.image
OPEN_SECONDS = 8.0
#: The same by order (targetdctl takeover), which is not repeated by itself: a busy host may need this long.
ORDERED_SECONDS = 20.0
#: Limit of the job for an order: for fence(), _look(), and the state before each of them.
JOB_SECONDS = 50.0
MEMORY_BYTES = 4096


def is_image(path):
    """True if a path is the name of an image."""
    return bool(path) and path.startswith(uri.RBD)


def place_of(lun, state_dir):
    """Returns what the store process must know beside the name of the image. state_dir: path. Raises
    TargetdError."""
    return {
        'conf': lun.ceph_conf,
        'user': lun.ceph_user,
        'node': identity.node_id(state_dir),
        'host': os.uname().nodename,
        'boot': boot_id(),
    }


def open_image(description, held, plan_only, ceph, seconds=OPEN_SECONDS):
    """Returns the OpenedStore of an image. description: as for store.open_store; held: OpenedStores of the
    same image; plan_only: the image is not locked, and no keeper is started; ceph: from place_of(); seconds:
    limit until it is open. Raises StoreError."""
    wanted = StoreRequest(dict(description, kind=nbd_export.KIND))
    if uri.parse_uri(wanted.path).snapshot and not wanted.read_only:
        raise StoreError(
            '%s is a snapshot, which cannot be written; write readonly = yes' % wanted.path
        )
    for store in held:
        if store.kind == nbd_export.KIND and store.descriptor is not None:
            if store.read_only == wanted.read_only:
                return nbd_export.shared(wanted, store, plan_only)
    memory = compat.memory_file('targetd-rbd', MEMORY_BYTES)
    try:
        facts = _look(wanted, ceph, memory, plan_only, seconds)
        if plan_only:
            os.close(memory)
            return OpenedStore(facts, None, nbd_export.key_of(wanted.path))
        control = start(wanted.path, facts['offered'], wanted.read_only, memory, ceph, False)
    except BaseException:
        if not plan_only:
            os.close(memory)
        raise
    return OpenedStore(facts, control, nbd_export.key_of(wanted.path), [memory])


def fence(path, ceph):
    """Take the image from every other client, for good: they cannot write to it any more. ceph: from
    place_of(). Raises StoreError."""
    memory = compat.memory_file('targetd-rbd', MEMORY_BYTES)
    try:
        server = rbd_process.RbdServer(path, ceph, False, memory, fences=True)
        _serve_once(path, server, ORDERED_SECONDS)
    finally:
        os.close(memory)


def start(path, offered, read_only, memory, ceph, is_again):
    """Returns the descriptor of the control socket of a new keeper. is_again: the image is served
    already. Raises OSError."""

    def make_server():
        server = rbd_process.RbdServer(path, ceph, read_only, memory, is_again=is_again)
        server.begin()
        return server

    return start_keeper(None, offered, read_only, memory, make_server)


def _look(wanted, ceph, memory, plan_only, seconds):
    """Returns the facts of the image, which is served for a moment. Raises StoreError."""
    server = rbd_process.RbdServer(wanted.path, ceph, wanted.read_only, memory, is_plan=plan_only)
    export = _serve_once(wanted.path, server, seconds)
    facts = nbd_export.facts_of(wanted, export, True, KIND)
    return dict(facts, ceph=ceph, acknowledges_durable=True)


def _serve_once(path, server, seconds):
    """Returns the handshake.Export of an RbdServer, and stops it. Raises StoreError."""
    try:
        sock, export = server.connect(None, seconds)
        nbd_connecting.disconnect(sock)
        for note in server.notes:
            log.warning('%s: %s', path, note)
        return export
    except nbd_connecting.Unavailable as e:
        raise StoreError('%s %s' % (path, e))
    finally:
        server.stop()
