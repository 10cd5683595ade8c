"""Opens a disk image of another program (VHDX, VHD, VMDK, qcow2, VDI) as the medium of a LUN, in the job
that opens the medium.

     examine with qemu-img --> claim the file --> serve it once with qemu-nbd, for its size --> its keeper

The keeper starts the server again when it is needed (image_server). May import host, store, nbd.
"""

import os
import stat

from targetd import compat
from targetd.errors import StoreError
from targetd.host import image_formats, image_info
from targetd.master.exports import image_server, nbd_connecting, nbd_export, rbd_export
from targetd.master.exports.nbd_keeper import start_keeper
from targetd.nbd import handshake, numbers, uri
from targetd.store.opened_store import OpenedStore
from targetd.store.opening import claim_file
from targetd.store.store_request import StoreRequest

#: The formats that can be served: value of the setting `type` -> name in the programs of QEMU.
KINDS = {'vhdx': 'vhdx', 'vhd': 'vpc', 'vmdk': 'vmdk', 'qcow2': 'qcow2', 'vdi': 'vdi'}

#: TRIM is offered for every format; these act on it.
UNMAPS = ('qcow2',)

OPEN_SECONDS = 8.0
PLANNED_BLOCK = 4096


def format_of(lun, path, known):
    """Returns the value of `type` that the medium is served with, '' for one that is not an image. A medium
    keeps what it was when it was first served. known: the record of known_media, or None."""
    if lun.type in KINDS:
        return lun.type
    if lun.type != 'auto' or path is None:
        return ''
    if known is not None and known['named'] == lun.backing_store:
        return known.get('format', '')
    return _detected(path)


def _detected(path):
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ''  # opening it says why
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ''
        found = image_formats.find_image_format(descriptor)
    finally:
        os.close(descriptor)
    names = {qemu: name for name, qemu in KINDS.items()}
    return names.get(found.qemu, '') if found else ''


def open_image(description, held, plan_only, kind, directories):
    """Returns the OpenedStore of a disk image. description: as for store.open_store; held: OpenedStores of
    the same image; plan_only: the image is not opened for writing, and no keeper is started; kind: of
    KINDS; directories: of allow-backing-file. Raises StoreError."""
    wanted = StoreRequest(dict(description, kind=nbd_export.KIND, allow_in_use=False))
    for store in held:
        if store.kind == nbd_export.KIND and store.descriptor is not None:
            _require_same_access(wanted, store)
            return nbd_export.shared(wanted, store, plan_only)
    info = _examine(wanted, kind, [os.path.realpath(each) for each in directories])
    if plan_only:
        return _planned(wanted, info, kind)
    descriptor = _claimed(wanted)
    try:
        export = _look(wanted, kind)
        facts = nbd_export.facts_of(wanted, export, kind in UNMAPS, kind)
        memory = compat.memory_file('targetd-nbd', 4096)
    except BaseException:
        os.close(descriptor)
        raise
    control = _start_keeper(
        wanted.path, kind, facts['offered'], wanted.read_only, [memory, descriptor]
    )
    return OpenedStore(facts, control, _key(descriptor), [memory, descriptor])


def start_again(store):
    """Returns the descriptor of the control socket of a new keeper for an OpenedStore of kind nbd, of an
    image, of an image in a Ceph cluster, or of a server. Raises OSError."""
    if store.image == rbd_export.KIND:
        return rbd_export.start(
            store.path, store.offered, store.read_only, store.claims[0], store.ceph, True
        )
    if store.image:
        return _start_keeper(store.path, store.image, store.offered, store.read_only, store.claims)
    address = uri.parse_uri(store.path)
    return start_keeper(address, store.offered, store.read_only, store.claims[0])


def _start_keeper(path, kind, offered, read_only, claims):
    """claims: the memory file, and the descriptor that holds the claim."""
    return start_keeper(
        None,
        offered,
        read_only,
        claims[0],
        lambda: image_server.ImageServer(path, KINDS[kind], read_only),
        claims[1:],
    )


def _require_same_access(wanted, store):
    """One server has the image, for reading only or not."""
    if store.read_only != wanted.read_only:
        raise StoreError(
            '%s is served with readonly = %s; to change that for a disk image, remove the LUN, reload, and '
            'add it again' % (wanted.path, 'yes' if store.read_only else 'no')
        )


def _key(descriptor):
    status = os.fstat(descriptor)
    return 'file', status.st_dev, status.st_ino


def _examine(wanted, kind, directories):
    """Raises StoreError if qemu-img cannot read the image, or it would have other files opened."""
    if not os.path.exists(wanted.path):
        raise StoreError(
            '%s does not exist; correct the path, or create the image: qemu-img create -f %s %s SIZE'
            % (wanted.path, KINDS[kind], wanted.path)
        )
    if not os.path.isfile(wanted.path):
        raise StoreError(
            '%s is not a regular file; a disk image of type %s is' % (wanted.path, kind)
        )

    def look(path, format):
        return image_info.inspect(path, format, become=lambda: image_server.become_owner(path))

    info = look(wanted.path, KINDS[kind])
    image_info.require_allowed(wanted.path, info, directories, look)
    if info.virtual_size is None and wanted.read_only:
        raise StoreError(
            '%s was not closed in order, and a readonly LUN cannot repair it; run "qemu-img check -r all -f '
            '%s %s"' % (wanted.path, KINDS[kind], wanted.path)
        )
    return info


def _claimed(wanted):
    """Returns a descriptor of the image that holds the claim: qemu's own locks keep other servers of QEMU
    out, and no others."""
    try:
        descriptor = os.open(wanted.path, wanted.flags())
    except OSError as e:
        raise StoreError(
            '%s cannot be opened: %s; correct its permissions, or write readonly = yes'
            % (wanted.path, e.strerror)
        )
    try:
        claim_file(wanted, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _look(wanted, kind):
    """Returns the handshake.Export of the image, which is served for a moment."""
    server = image_server.ImageServer(wanted.path, KINDS[kind], wanted.read_only)
    try:
        sock, export = server.connect(None, OPEN_SECONDS)
        nbd_connecting.disconnect(sock)
        return export
    except nbd_connecting.Unavailable as e:
        raise StoreError('%s %s' % (wanted.path, e))
    finally:
        server.stop()


def _planned(wanted, info, kind):
    """Returns an OpenedStore without a server. An image that must be repaired first has an unknown size, for
    which one block stands."""
    size = info.virtual_size or wanted.block_size or PLANNED_BLOCK
    export = handshake.Export(
        size, numbers.SEND_FLUSH | numbers.SEND_TRIM, 1, PLANNED_BLOCK, 0, True, False, None
    )
    facts = nbd_export.facts_of(wanted, export, kind in UNMAPS, kind)
    facts.update(
        allocated=info.allocated, is_dirty=info.is_dirty, is_size_known=bool(info.virtual_size)
    )
    return OpenedStore(facts, None, ('image', wanted.path))
