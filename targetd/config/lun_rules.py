"""Values of one LUN that contradict each other.

May import config.model's Lun, config.scsi_kinds, xts (whether this host can encrypt) and nbd.uri. Pure
apart from that.
"""

from targetd import xts
from targetd.config import scsi_kinds
from targetd.nbd import uri

#: SBC-3: values of MEDIUM ROTATION RATE between 1 and 1025 are reserved, as is FFFFh.
LOWEST_ROTATION_RATE, RESERVED_ROTATION_RATE = 1025, 65535


def contradictions(lun, stores, unusable):
    """[(setting that the complaint is about, text, remedy)] of one model.Lun.

    stores: which of 'backing-store' and 'direct-store' are written; unusable: names of settings
    that were written with a value that cannot be used, so that they do not count as missing.
    """
    return (
        _store_and_type(lun, stores, unusable)
        + _drive(lun, stores)
        + _tape(lun)
        + _passthrough(lun, stores)
        + _unit_state(lun)
        + _fence(lun)
        + _nbd(lun, stores)
        + (of_image(lun, lun.type) if lun.type in IMAGES else [])
        + _encryption(lun)
        + _journal(lun)
        + _sizes(lun)
        + _alignment(lun)
        + _rotation_rate(lun)
    )


def _store_and_type(lun, stores, unusable):
    found = []
    if len(stores) > 1:
        text = 'lun %d has a backing-store and a direct-store' % lun.number
        found.append(('direct-store', text, 'write one of the two'))
    if lun.type in ('ram', 'null'):
        if stores:
            text = 'a lun of type %s has no %s' % (lun.type, stores[0])
            found.append((stores[0], text, 'remove one of the two settings'))
        if lun.size is None and 'size' not in unusable:
            text = 'a lun of type %s needs a size' % lun.type
            found.append(('type', text, 'write a size, for example size = 1G'))
    elif not stores and not unusable & {'backing-store', 'direct-store', 'type'}:
        text = 'lun %d has no backing-store' % lun.number
        found.append(('lun', text, 'write backing-store = PATH'))
    if lun.type == 'block' and lun.size is not None:
        found.append(('size', 'a lun of type block has the size of its disk', 'remove size'))
    return found


#: What a drive for CDs and DVDs is, and one for tapes, whatever the configuration says.
OPTICAL = dict(
    readonly=True, removable=True, block_size=2048, write_cache=False, third_party_copy=False
)
TAPE = dict(removable=True, third_party_copy=False)
DRIVES = {'cd': OPTICAL, 'tape': TAPE}


def with_type(lun):
    """The Lun with the values that its type implies."""
    implied = PASSTHROUGH if lun.type == 'passthrough' else DRIVES.get(lun.type, {})
    return lun._replace(**implied)


def _drive(lun, stores):
    if lun.type not in DRIVES:
        return []
    is_tape = lun.type == 'tape'
    refused = (
        ('size', lun.size is not None and not is_tape),
        ('thin', lun.thin),
        ('atomic-writes', lun.atomic_writes),
        ('encryption-key-file', bool(lun.encryption_key_file)),
        ('direct-store', 'direct-store' in stores),
        ('block-size', lun.block_size not in (None, DRIVES[lun.type].get('block_size'))),
        ('direct-io', lun.direct_io and is_tape),
        ('guard', bool(lun.guard) and is_tape),
        ('mode-page', bool(lun.mode_page) and is_tape),
    )
    return [
        (setting, 'a lun of type %s cannot have %s' % (lun.type, setting), 'remove %s' % setting)
        for setting, is_written in refused
        if is_written
    ]


#: What a real SCSI device is, whatever the configuration says: its initiators see all of that in the device.
PASSTHROUGH = dict(third_party_copy=False)


def _passthrough(lun, stores):
    """Settings that a real SCSI device cannot have."""
    if lun.type != 'passthrough':
        text = 'a lun of type %s has no commands of a real device' % lun.type
        return [
            (setting, text, 'remove ' + setting)
            for setting, is_written in (
                ('command-filter', not lun.command_filter),
                ('device-reset', lun.device_reset),
            )
            if is_written
        ]
    own = 'the device has its own'
    blocks = 'targetd does not see its blocks'
    refused = (
        ('direct-store', 'direct-store' in stores, 'write backing-store in place of it'),
        ('size', lun.size is not None, own),
        ('thin', lun.thin, own),
        ('block-size', lun.block_size is not None, own),
        ('physical-block-size', lun.physical_block_size is not None, own),
        ('lowest-aligned-block', bool(lun.lowest_aligned_block), own),
        ('removable', lun.removable, own),
        ('rotation-rate', lun.rotation_rate is not None, own),
        ('optimal-transfer-length', lun.optimal_transfer_length is not None, own),
        ('optimal-transfer-granularity', lun.optimal_transfer_granularity is not None, own),
        ('vendor-id', bool(lun.vendor_id), own),
        ('product-id', bool(lun.product_id), own),
        ('product-rev', bool(lun.product_rev), own),
        ('scsi-sn', bool(lun.scsi_sn), own),
        ('naa', bool(lun.naa), own),
        ('eui', bool(lun.eui), own),
        ('t10', bool(lun.t10), own),
        ('scsi-name', bool(lun.scsi_name), own),
        ('vendor-specific', bool(lun.vendor_specific), own),
        ('management-url', bool(lun.management_url), own),
        ('mode-page', bool(lun.mode_page), own),
        (
            'write-cache',
            not lun.write_cache,
            'the initiator sets that of the device (mode page 08h)',
        ),
        ('sense-format', lun.sense_format != 'fixed', 'the initiator sets that of the device'),
        ('direct-io', lun.direct_io, 'no page cache is used'),
        ('atomic-writes', lun.atomic_writes, blocks),
        ('encryption-key-file', bool(lun.encryption_key_file), blocks),
        ('guard', bool(lun.guard), blocks),
        ('filter', bool(lun.filter), blocks),
        ('unit-state', bool(lun.unit_state), 'the state would be beside its data'),
        ('health-interval', bool(lun.health_interval), 'initiators ask the device (LOG SENSE)'),
        ('spin-down', bool(lun.spin_down), 'initiators stop the device (START STOP UNIT)'),
    )
    return [
        (
            setting,
            'a lun of type passthrough cannot have %s: %s' % (setting, why),
            'remove %s' % setting,
        )
        for setting, is_written, why in refused
        if is_written
    ]


def _fence(lun):
    """What cannot be fenced by the reservations of a disk."""
    if lun.fence != 'reservations':
        return []
    refused = (
        (
            not lun.unit_state,
            'without unit-state no other server serves the disk',
            'write unit-state',
        ),
        (lun.readonly, 'a LUN that is readonly writes nothing', 'remove one of the two'),
        (lun.type not in ('auto', 'block'), 'its type is %s' % lun.type, 'write type = block'),
        (
            uri.is_uri(lun.backing_store or ''),
            'it is not a disk of this host',
            'write fence = auto',
        ),
    )
    return [
        ('fence', 'lun %d has fence = reservations, but %s' % (lun.number, text), remedy)
        for is_wrong, text, remedy in refused
        if is_wrong
    ]


def _unit_state(lun):
    if lun.unit_state.startswith('rados:') and lun.atomic_writes:
        text = 'the journal of atomic-writes cannot be in a pool, and would not follow the disk'
        return [('unit-state', text, 'name a directory, or write atomic-writes = no')]
    if not lun.unit_state or lun.type not in ('ram', 'null', 'cd', 'tape'):
        return []
    text = 'a lun of type %s has no state that could follow it to another server' % lun.type
    return [('unit-state', text, 'remove unit-state')]


def _tape(lun):
    if lun.type != 'tape' or lun.size is None or (lun.early_warning or 0) < lun.size:
        return []
    text = 'early-warning %d is not less than the size of the tape' % lun.early_warning
    return [('early-warning', text, 'write a smaller one; 2 % of the tape is usual')]


def _nbd(lun, stores):
    """What an export of an NBD server cannot have: it is neither a disk of this host nor a file."""
    if not uri.is_uri(lun.backing_store):
        return []
    is_image = lun.backing_store.startswith(uri.RBD)
    refused = (
        ('direct-store', 'direct-store' in stores, 'write backing-store in place of it'),
        ('type', lun.type != 'auto', 'remove type'),
        ('size', lun.size is not None, 'remove size: ' + why_not_resizable('')),
        (
            'direct-io',
            lun.direct_io,
            'remove direct-io: start the server with it (qemu-nbd --cache=none)',
        ),
        ('atomic-writes', lun.atomic_writes, 'write atomic-writes = no'),
        (
            'encryption-key-file',
            bool(lun.encryption_key_file),
            'have the server encrypt (qemu-nbd with LUKS)',
        ),
        ('guard', bool(lun.guard), 'write guard = off'),
        ('health-interval', bool(lun.health_interval), 'write health-interval = 0'),
        ('allow-in-use', lun.allow_in_use, 'remove allow-in-use'),
        ('unit-state', bool(lun.unit_state) and not is_image, 'remove unit-state'),
    )
    return [
        (setting, 'a lun on an NBD server cannot have %s' % setting, remedy)
        for setting, is_written, remedy in refused
        if is_written
    ]


#: Values of `type` that are formats of disk images.
IMAGES = ('vhdx', 'vhd', 'vmdk', 'qcow2', 'vdi')
#: Those that qemu-img can make larger.
RESIZABLE_IMAGES = ('qcow2',)


def why_not_resizable(kind):
    """Why the size of such an image, or of an NBD export (''), cannot be set, with the remedy."""
    if not kind:
        return 'the server decides the size: extend it there, then run "targetdctl reload"'
    return (
        'an image of type %s cannot be resized; make a larger one, copy it while the LUN is not served '
        '("qemu-img convert -n"), and name the new file' % kind
    )


def of_image(lun, kind):
    """[(setting, text, remedy)] of settings that a disk image, of this value of `type`, cannot have."""
    refused = (
        ('direct-store', lun.direct, 'write backing-store in place of it'),
        (
            'size',
            lun.size is not None and kind not in RESIZABLE_IMAGES,
            'remove size: ' + why_not_resizable(kind),
        ),
        ('direct-io', lun.direct_io, 'write direct-io = no'),
        ('atomic-writes', lun.atomic_writes, 'write atomic-writes = no'),
        ('encryption-key-file', bool(lun.encryption_key_file), 'remove encryption-key-file'),
        ('guard', bool(lun.guard), 'write guard = off'),
        ('health-interval', bool(lun.health_interval), 'write health-interval = 0'),
        ('allow-in-use', lun.allow_in_use, 'remove allow-in-use'),
    )
    return [
        (setting, 'a lun with an image of type %s cannot have %s' % (kind, setting), remedy)
        for setting, is_written, remedy in refused
        if is_written
    ]


def _encryption(lun):
    if not lun.encryption_key_file:
        return []
    found = []
    if lun.type in ('ram', 'null'):
        text = 'a lun of type %s cannot be encrypted' % lun.type
        found.append(('encryption-key-file', text, 'remove encryption-key-file'))
    elif xts.why_not():
        text = 'encryption is not available on this host'
        found.append(('encryption-key-file', text, xts.why_not()))
    if lun.atomic_writes:
        text = 'the journal of atomic-writes would contain the data of an encrypted disk in clear'
        found.append(('atomic-writes', text, 'write one of the two settings'))
    return found


def _journal(lun):
    if scsi_kinds.Guards.JOURNAL not in dict(lun.guard):
        return []
    if lun.type in ('ram', 'null'):
        text = 'a lun of type %s has no undo journal: its content ends with the server' % lun.type
        return [('guard', text, 'write guard = off in this lun')]
    if lun.unit_state:
        text = 'the undo journal does not record what the other server of unit-state writes'
        return [('guard', text, 'write one of the two settings')]
    return []


def _sizes(lun):
    """Sizes that must be multiples of the block size."""
    found = []
    block = lun.block_size or 512
    if lun.size is not None and lun.size % block:
        text = 'size %d is not a multiple of the block size %d' % (lun.size, block)
        found.append(('size', text, 'write a whole number of blocks'))
    for setting, value in (
        ('optimal-transfer-length', lun.optimal_transfer_length),
        ('optimal-transfer-granularity', lun.optimal_transfer_granularity),
    ):
        if value is not None and value % block:
            text = '%s %d is not a multiple of the block size %d' % (setting, value, block)
            found.append((setting, text, 'write a whole number of blocks'))
    return found


def _alignment(lun):
    found = []
    block, physical = lun.block_size or 512, lun.physical_block_size
    if physical is not None and physical < block:
        text = 'physical-block-size %d is less than block-size %d' % (physical, block)
        found.append(('physical-block-size', text, 'write %d or more' % block))
    ratio = max(physical or 4096, block) // block
    if lun.lowest_aligned_block >= ratio and lun.lowest_aligned_block:
        text = 'lowest-aligned-block %d is outside the first physical block' % (
            lun.lowest_aligned_block
        )
        found.append(('lowest-aligned-block', text, 'write a number from 0 to %d' % (ratio - 1)))
    return found


def _rotation_rate(lun):
    rate = lun.rotation_rate
    is_reserved = rate is not None and (
        1 < rate < LOWEST_ROTATION_RATE or rate == RESERVED_ROTATION_RATE
    )
    if not is_reserved:
        return []
    text = 'rotation-rate %d is reserved (SBC-3)' % rate
    return [('rotation-rate', text, 'write 0, 1 or a number from 1025 to 65534')]
