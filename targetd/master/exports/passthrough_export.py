"""Opens a real SCSI device (type = passthrough) as the medium of a LUN, in the job that opens the medium.

     any node of the device --> its sg node, opened --> INQUIRY, VPD pages, capacity --> OpenedStore
                            --> the claim: its block or tape device, so that this host does not use it

The claim of a disk or an optical drive is its block device, opened with O_EXCL: it cannot be mounted, and the
kernel does not ask an optical drive for events, which initiators then would not see. That of a tape drive is
its tape device, which the kernel opens once. Other devices have the sg node itself, opened with O_EXCL.

May import host, store.
"""

import errno
import os

from targetd import sg_io
from targetd.errors import StoreError
from targetd.host import sg_nodes
from targetd.store.base import NO_CAPABILITIES
from targetd.store.opened_store import OpenedStore

KIND = 'passthrough'
COMMAND_SECONDS = 8  # less than the time of the job
LONGEST_PAGE = 4096
MOST_PAGES = 32
ATTENTIONS = 6  # so many times a command is sent again that ended with a unit attention
CHECK_CONDITION, UNIT_ATTENTION = 0x02, 6
ALLOW = bytes((0x1E, 0, 0, 0, 0, 0))  # PREVENT ALLOW MEDIUM REMOVAL


def device_of(lun):
    """Returns the sg_nodes.ScsiDevice of a LUN with type = passthrough, None for other LUNs. Raises
    StoreError."""
    return sg_nodes.resolve_device(lun.backing_store) if lun.type == KIND else None


def facts_of(lun, store, names):
    """Returns the facts dict (scsi.facts) of a LUN on an OpenedStore of open_device. names: as returned by
    unit_identity.names_of."""
    return dict(
        names,
        read_only=lun.readonly,
        third_party_copy=False,
        command_filter=lun.command_filter,
        **store.device,
    )


def open_device(device, lun, held, is_served, plan_only):
    """Returns the OpenedStore of a sg_nodes.ScsiDevice. held: OpenedStores of the same device; is_served:
    the running server has claimed it, and this process only examines it; plan_only: it is not locked in a
    drive. Raises StoreError."""
    key = key_of(device)
    holder = next(
        (store for store in held if store.key == key and store.descriptor is not None), None
    )
    claims = _claims(device, lun, holder, is_served)
    try:
        descriptor = _open_node(
            device, is_exclusive=not (claims or holder or is_served or lun.allow_in_use)
        )
    except BaseException:
        _close(claims)
        raise
    try:
        facts = device_facts(descriptor, device)
        if facts['removable'] and not plan_only:
            # the kernel locked the medium when the block device was opened; initiators do that themselves
            _command(descriptor, ALLOW)
    except OSError as e:
        _close([descriptor] + claims)
        raise StoreError('%s does not answer: %s' % (device.shown, e.strerror or e))
    except BaseException:
        _close([descriptor] + claims)
        raise
    return OpenedStore(_store_facts(device, lun, facts), descriptor, key, claims)


def key_of(device):
    """The key of the OpenedStore of a ScsiDevice."""
    return (KIND,) + tuple(device.number)


def _store_facts(device, lun, facts):
    return {
        'kind': KIND,
        'path': device.node,
        'size': facts.pop('size'),
        'read_only': lun.readonly,
        'direct': False,
        'thin': False,
        'block_size': facts['block_size'],
        'filters': [],
        'cipher_key': '',
        'tape': False,
        'capabilities': NO_CAPABILITIES._replace(physical_block_size=facts['block_size']),
        'device': facts,
        'shown': device.shown,
    }


def _close(descriptors):
    for each in descriptors:
        os.close(each)


# -- the claim -------------------------------------------------------------------------------------


def _claims(device, lun, holder, is_served):
    """[descriptor that keeps this host from using the device], [] if the sg node itself is it."""
    if holder is not None:
        return [os.dup(holder.claim)]
    path = device.block or device.tape
    if not path or is_served or lun.allow_in_use:
        return []
    exclusive = os.O_EXCL if device.block else 0
    # Linux stops its own polling of an optical drive only for a claim that writes
    access = os.O_RDWR if device.device_type == 0x05 else os.O_RDONLY
    for mode in (access, os.O_RDONLY):
        try:
            return [os.open(path, mode | exclusive | os.O_NONBLOCK | os.O_CLOEXEC)]
        except OSError as e:
            if mode != os.O_RDONLY and e.errno in (errno.EROFS, errno.EACCES):
                continue
            raise _claim_error(device, path, e)
    return []


def _claim_error(device, path, error):
    if error.errno == errno.EBUSY:
        return StoreError(
            '%s is in use on this host, as %s: mounted, part of a RAID or an LVM group, or opened by a '
            'program ("fuser -v %s" shows which); free it, or name another device'
            % (device.shown, path, path)
        )
    return StoreError('%s cannot be claimed: %s: %s' % (device.shown, path, error.strerror))


def _open_node(device, is_exclusive):
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_EXCL if is_exclusive else 0)
    try:
        return os.open(device.node, flags)
    except OSError as e:
        if e.errno == errno.EBUSY:
            raise StoreError(
                '%s is in use on this host: another program has opened %s ("fuser -v %s" shows which); end '
                'it, or name another device' % (device.shown, device.node, device.node)
            )
        if e.errno in (errno.EACCES, errno.EPERM):
            raise StoreError(
                '%s cannot be opened: %s; run targetd as root, or give its user access to it'
                % (device.node, e.strerror)
            )
        raise StoreError('%s cannot be opened: %s' % (device.node, e.strerror))


def allow_removal(store):
    """Have the device of an OpenedStore allow the removal of its medium: no initiator prevents it any more.
    A job: it may block."""
    try:
        _command(store.descriptor, ALLOW)
    except OSError:
        pass  # it is gone


# -- what the device says about itself -------------------------------------------------------------


def _command(descriptor, cdb, length=0):
    """(status, data) of a command. Raises OSError if the device does not answer."""
    for _ in range(ATTENTIONS):
        found = sg_io.execute(descriptor, cdb, b'', length, COMMAND_SECONDS)
        if found.status == 0 and (found.host or found.driver):
            raise OSError(errno.EIO, 'the host adapter reports error %02Xh' % found.host)
        is_attention = sg_io.parse_sense(found.sense)[0] == UNIT_ATTENTION
        if found.status != CHECK_CONDITION or not is_attention:
            break
    return found.status, bytes(found.data)


def device_facts(descriptor, device, command=_command):
    """{fact: value} of scsi.facts, and `size` in bytes. Raises OSError, StoreError."""
    status, inquiry = command(descriptor, bytes((0x12, 0, 0, 0, 96, 0)), 96)
    if status or len(inquiry) < 36:
        raise StoreError('%s does not answer INQUIRY (status %02Xh)' % (device.shown, status))
    kind = inquiry[0] & 0x1F
    if inquiry[0] >> 5:
        raise StoreError('%s says that no device is connected to it' % device.shown)
    pages = _vital_pages(descriptor, command)
    size, block = _capacity(descriptor, command) if kind in (0x00, 0x07, 0x0E, 0x14) else (0, 0)
    is_usual = block >= 512 and not block & (block - 1)
    return {
        'passthrough': True,
        'peripheral_type': kind,
        'inquiry': inquiry[: inquiry[4] + 5].hex(),
        'vital_pages': ' '.join(
            '%02x:%s' % (code, page.hex()) for code, page in sorted(pages.items())
        ),
        'removable': bool(inquiry[1] & 0x80),
        'transfer_block': block,
        'block_size': block if is_usual else 512,
        'physical_block_size': block if is_usual else 512,
        'maximum_transfer_length': sg_io.longest_transfer(descriptor),
        'size': size,
    }


def _vital_pages(descriptor, command):
    """{code: page} of the VPD pages that the device lists; {} if it has none."""
    status, supported = command(descriptor, bytes((0x12, 1, 0, 0, 255, 0)), 255)
    if status or len(supported) < 4 or supported[1]:
        return {}
    pages = {0x00: supported[: 4 + supported[3]]}
    for code in sorted(set(supported[4 : 4 + supported[3]]))[:MOST_PAGES]:
        status, page = command(descriptor, bytes((0x12, 1, code)) + LONGEST_PAGE.to_bytes(2, 'big') + b'\0',
                               LONGEST_PAGE)  # fmt: skip
        if not status and len(page) >= 4 and page[1] == code:
            pages[code] = page[: 4 + int.from_bytes(page[2:4], 'big')]
    return pages


def _capacity(descriptor, command):
    """(bytes, block length) of a disk; (0, 0) if it has no medium."""
    status, data = command(descriptor, bytes((0x9E, 0x10)) + bytes(11) + bytes((32, 0, 0)), 32)
    if not status and len(data) >= 12:
        last, block = int.from_bytes(data[:8], 'big'), int.from_bytes(data[8:12], 'big')
        return (last + 1) * block, block
    status, data = command(descriptor, bytes((0x25,)) + bytes(9), 8)
    if status or len(data) < 8:
        return 0, 0
    last, block = int.from_bytes(data[:4], 'big'), int.from_bytes(data[4:8], 'big')
    return (last + 1) * block, block
