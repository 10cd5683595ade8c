"""The facts of a logical unit: its fixed properties, as opposed to its state (reservations, modes,
medium). Pure.

One row per fact. The master makes the dict (`facts` of a unit in the catalogue of channel.py) from
the configuration and the store, the worker makes UnitFacts of it, and vpd, modes and lu read the
attributes. Facts do not change while the unit exists. The size, which can change, is not a fact: it
belongs to the store, and LogicalUnit.blocks has it.
"""

from collections import namedtuple
from typing import TYPE_CHECKING, Any, Dict

#: (key, default, meaning). Lengths, sizes, granularities and alignments are bytes unless the
#: meaning says otherwise. A maximum of 0 means that no limit is reported; for compare-and-write and
#: atomic, that the command is not offered.
# fmt: off
FACTS = (
    ('block_size', 512, 'logical block length; a power of two, 512 or more'),
    ('physical_block_size', 0, 'physical block length, a power-of-two multiple of block_size; 0: the same'),
    ('lowest_aligned_block', 0, 'LBA of the first logical block that starts a physical block'),
    ('vendor', 'TARGETD', 'T10 VENDOR IDENTIFICATION, at most 8 ASCII characters'),
    ('product', 'VIRTUAL-DISK', 'PRODUCT IDENTIFICATION, at most 16 ASCII characters'),
    ('revision', '0001', 'PRODUCT REVISION LEVEL, at most 4 ASCII characters'),
    ('serial', '', 'unit serial number, ASCII'),
    ('serial_nuls', 0, 'number of nulls at the end of the serial number in page 80h'),
    ('naa', '', 'NAA identifiers, each 16 or 32 hex digits, separated by blanks; or empty'),
    ('eui', '', 'EUI-64 identifier, 16 hex digits (24 or 32 are also supported), or empty'),
    ('t10', '', "T10 designator: empty (made of vendor, product and serial), 'none', or "
                "'code set:hex digits', as in 'ascii:4945...'"),
    ('scsi_name', '', 'SCSI name string of the unit (designator type 8), or empty'),
    ('vendor_specific', '', "vendor-specific designator (type 0), 'code set:hex digits', or empty"),
    ('designator_order', '', 'kinds of designators that come first in page 83h, separated by blanks'),
    ('rotation_rate', 0, '0: not reported, 1: does not rotate, 1025..65534: revolutions per minute'),
    ('thin', False, 'thin provisioned: LBPME 1, provisioning type 2'),
    ('unmap', False, 'UNMAP and WRITE SAME with UNMAP are accepted (LBPU, LBPWS, LBPWS10)'),
    ('zeroes_after_unmap', False, 'LBPRZ: an unmapped block always reads as zeroes'),
    ('unmap_granularity', 0, 'OPTIMAL UNMAP GRANULARITY; 0: not reported'),
    ('unmap_alignment', 0,
     'UNMAP GRANULARITY ALIGNMENT, offset of the first unit of unmap_granularity; used only if that is set'),
    ('maximum_unmap_length', 1 << 30, 'MAXIMUM UNMAP LBA COUNT, the sum of all descriptors of one UNMAP'),
    ('maximum_unmap_descriptors', 256, 'MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT (a count)'),
    ('maximum_write_same_length', 16 << 20, 'MAXIMUM WRITE SAME LENGTH; 0: no limit'),
    ('write_same_zero_refused', False,
     'WSNZ: a WRITE SAME of 0 blocks is refused instead of running to the end of the medium'),
    ('maximum_transfer_length', 64 << 20,
     'MAXIMUM TRANSFER LENGTH of READ, WRITE, VERIFY and similar commands; 0: no limit'),
    ('optimal_transfer_length', 1 << 20, 'OPTIMAL TRANSFER LENGTH'),
    ('optimal_transfer_granularity', 0, 'OPTIMAL TRANSFER LENGTH GRANULARITY; 0: the physical block size'),
    ('maximum_compare_and_write_length', 65536,
     'MAXIMUM COMPARE AND WRITE LENGTH (255 blocks at most); 0: not offered'),
    ('maximum_atomic_length', 0, 'MAXIMUM ATOMIC TRANSFER LENGTH; 0: WRITE ATOMIC is not offered'),
    ('removable', False, 'RMB: START STOP UNIT can eject, PREVENT ALLOW has effect'),
    ('optical', False, 'an optical drive: peripheral device type 05h, the commands of mmc_opcodes'),
    ('tape', False, 'a tape drive: peripheral device type 01h, the commands of ssc_opcodes'),
    ('passthrough', False, 'a real SCSI device: the commands of passthrough_opcodes'),
    ('peripheral_type', 0, 'PERIPHERAL DEVICE TYPE of a real device'),
    ('inquiry', '', 'standard INQUIRY data of a real device, hex digits'),
    ('vital_pages', '',
     "VPD pages of a real device, separated by blanks: 'PP:' and the hex digits of the whole page"),
    ('transfer_block', 0, 'block length of the READ and WRITE commands of a real disk; 0: not known'),
    ('command_filter', True, 'only commands that are harmless for its type are forwarded to a real device'),
    ('early_warning', 0, 'bytes before the end of a tape where its early warning is; 0: 2 % of the tape'),
    ('read_only', False, 'the store is read-only: WP 1, writes end with 07/27/00'),
    ('write_cache', False, 'default of WCE'),
    ('descriptor_sense', False, 'default of D_SENSE'),
    ('implicit_alua', False,
     'TPGS bit 0: the states of target port groups are reported, and the target may change them'),
    ('explicit_alua', False, 'TPGS bit 1: they are reported, and SET TARGET PORT GROUPS changes them'),
    ('threshold_exponent', 0, 'a threshold set is 2^this blocks (VPD page B2h); 0: no thresholds'),
    ('threshold_count', 0,
     'default threshold: unit attention at this many threshold sets of available space; 0: none'),
    ('mode_pages', '',
     "mode pages of the configuration, separated by commas: 'PP-SS:' and the hex digits of the whole page"),
    ('management_url', '', 'a network address for VPD page 85h, or empty'),
    ('logical_unit_group', 0,
     'designator type 6: units with the same number share the states of their groups; 0: not reported'),
    ('encrypted', False, 'the store encrypts: SANITIZE can erase by replacing the key'),
    ('health', False, 'default of mode page 1Ch: predicted failures of the disk are reported'),
    ('spins_down', False, 'START STOP UNIT has the master stop and start the disk'),
    ('third_party_copy', True, '3PC, VPD page 8Fh: EXTENDED COPY, ROD tokens and their commands are offered'),
)
# fmt: on

#: Peripheral device types of which commands may be executed at the same time: disks. A zoned disk is not
#: among them: the writes to a zone must arrive in order.
CONCURRENT_TYPES = frozenset((0x00, 0x0E))

NAMES = tuple(key for key, _, _ in FACTS)
DEFAULTS: Dict[str, Any] = dict((key, default) for key, default, _ in FACTS)


if TYPE_CHECKING:
    _Facts = Any
else:
    _Facts = namedtuple('UnitFacts', NAMES)


class UnitFacts(_Facts):
    """The facts of one unit, as attributes named like the keys of FACTS. Immutable."""

    __slots__ = ()

    @classmethod
    def from_message(cls, message: Dict[str, Any]) -> 'UnitFacts':
        """UnitFacts of the dict in a `units` or `claim` message. Missing keys get their default;
        unknown keys are ignored (a newer master). A physical_block_size or
        optimal_transfer_granularity of 0 is replaced by what it means. Raises ValueError if a value
        has the wrong type or the block sizes are not valid."""
        values = dict(DEFAULTS)
        for key in NAMES:
            if key in message:
                values[key] = _typed(key, message[key])
        block_size = values['block_size']
        values['physical_block_size'] = values['physical_block_size'] or block_size
        values['optimal_transfer_granularity'] = (
            values['optimal_transfer_granularity'] or values['physical_block_size']
        )
        for key in ('block_size', 'physical_block_size'):
            if values[key] < 512 or values[key] & (values[key] - 1):
                raise ValueError('%s %d is not a power of two from 512 up' % (key, values[key]))
        if values['physical_block_size'] < block_size:
            raise ValueError(
                'physical_block_size %(physical_block_size)d is less than block_size %(block_size)d'
                % values
            )
        return cls(**values)

    @property
    def block_erase(self) -> bool:
        """Can SANITIZE erase by unmapping? Only if unmapped blocks always read as zeroes."""
        return self.unmap and self.zeroes_after_unmap

    def message(self) -> Dict[str, Any]:
        """The dict that from_message() takes."""
        return dict(zip(NAMES, self))

    @property
    def device_type(self) -> int:
        """PERIPHERAL DEVICE TYPE, SPC-4 6.6.2: a direct access block device, a sequential-access device,
        or a CD/DVD device; that of a real device."""
        if self.passthrough:
            return self.peripheral_type
        return 0x01 if self.tape else 0x05 if self.optical else 0x00

    @property
    def is_sequential(self) -> bool:
        """Are the commands executed one after the other, in the order of their arrival? A tape has one
        position, and most real devices have parts that move."""
        return self.tape or self.passthrough and self.peripheral_type not in CONCURRENT_TYPES

    @property
    def target_port_group_support(self) -> int:
        """TPGS of standard INQUIRY data, SPC-4 table 174; if not 0, REPORT TARGET PORT GROUPS is
        supported."""
        return (1 if self.implicit_alua else 0) | (2 if self.explicit_alua else 0)

    @property
    def physical_exponent(self) -> int:
        """LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT, SBC-3 5.16.2."""
        return (self.physical_block_size // self.block_size).bit_length() - 1


def _typed(key: str, value: Any) -> Any:
    wanted = type(DEFAULTS[key])
    if wanted is bool and isinstance(value, int):
        return bool(value)
    if not isinstance(value, wanted) or (wanted is int and (isinstance(value, bool) or value < 0)):
        raise ValueError('%r is not a valid value of the fact %s' % (value, key))
    return value
