"""Mode parameters (SPC-4, SBC-3): the pages, their changeable bits, MODE SENSE and MODE SELECT data.
Pure.

The mode parameters of one logical unit are one JSON-able dict, never changed in place: {'current':
pages, 'saved': pages, 'default': pages}, where pages is {'08-00': the whole page as hex digits with
PS 0, …}. All nexuses share them (VPD page 87h): the master applies changes (apply_mode_select,
reset), every worker reads a replica (mode_sense_data, parameters).

Invariant: the three sets differ in changeable bits only.
"""

import re
import struct
from collections import namedtuple
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Tuple, Union

from targetd.scsi import disk_geometry, health, tape_modes
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)  # PAGE CONTROL, SPC-4 table 178
ALL_PAGES, ALL_SUBPAGES = 0x3F, 0xFF
VENDOR_PAGE = 0x00


class Page(namedtuple('Page', 'code subpage length mask name')):
    """One mode page. code, subpage: page and subpage code; length: bytes of the whole page; mask:
    {offset: bits that MODE SELECT may change}; name: in the standard. A page with changeable bits is
    savable."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """The key of the page in the state: '08-00'."""
        return '%02x-%02x' % (self.code, self.subpage)

    @property
    def header(self) -> bytes:
        """The page header: page code, subpage code if it has one, and length; PS 0."""
        if self.subpage:
            return struct.pack('>BBH', 0x40 | self.code, self.subpage, self.length - 4)
        return struct.pack('>BB', self.code, self.length - 2)

    def changeable(self) -> bytes:
        """The page with the changeable bits set (PAGE CONTROL 01b)."""
        data = bytearray(self.header + bytes(self.length - len(self.header)))
        for offset, bits in self.mask.items():
            data[offset] = bits
        return bytes(data)


READ_WRITE_ERROR_RECOVERY, DISCONNECT_RECONNECT, FORMAT_DEVICE, RIGID_DISK = 0x01, 0x02, 0x03, 0x04
VERIFY_ERROR_RECOVERY, CACHING, CONTROL, POWER_CONDITION = 0x07, 0x08, 0x0A, 0x1A
INFORMATIONAL_EXCEPTIONS, TIMEOUT_AND_PROTECT, CAPABILITIES = 0x1C, 0x1D, 0x2A

LBPERE = 0x80  # READ-WRITE ERROR RECOVERY byte 3: thresholds are reported
WCE = 0x04  # CACHING byte 2
D_SENSE = 0x04  # CONTROL byte 2
SWP = 0x08  # CONTROL byte 4
TST, SEPARATE_TASK_SETS = 0xE0, 0x20  # CONTROL byte 2
TAS = 0x40  # CONTROL byte 5
IALUAE = 0x01  # CONTROL EXTENSION byte 4
SCSIP = 0x02  # SET TIMESTAMP has precedence over the clock of the host
TCMOS = 0x04

# Threshold descriptors of LOGICAL BLOCK PROVISIONING, SBC-3
# ENABLED, THRESHOLD TYPE (soft), ARMING; THRESHOLD RESOURCE; THRESHOLD COUNT
THRESHOLD = struct.Struct('>BBxxI')
THRESHOLDS_AT = (16, 24)
ENABLED, ARM_DECREASING, ARM_INCREASING = 0x80, 0, 1
# THRESHOLD RESOURCE: the log parameters of page 0Ch, in threshold sets
AVAILABLE, USED = 0x01, 0x02

#: offsets of both thresholds: ENABLED may change, and THRESHOLD COUNT
_THRESHOLD_BITS = {
    at + offset: bits
    for at in THRESHOLDS_AT
    for offset, bits in ((0, ENABLED), (4, 0xFF), (5, 0xFF), (6, 0xFF), (7, 0xFF))
}

# fmt: off
TABLE = (
    Page(READ_WRITE_ERROR_RECOVERY, 0x00, 12, {3: LBPERE}, 'Read-Write Error Recovery'),  # SBC-3
    Page(DISCONNECT_RECONNECT, 0x00, 16, {}, 'Disconnect-Reconnect'),                     # SPC-4
    Page(FORMAT_DEVICE, 0x00, 24, {}, 'Format Device'),                                   # SCSI-2 9.3.3.3
    Page(RIGID_DISK, 0x00, 24, {}, 'Rigid Disk Device Geometry'),                         # SCSI-2 9.3.3.7
    Page(VERIFY_ERROR_RECOVERY, 0x00, 12, {}, 'Verify Error Recovery'),                   # SBC-3
    Page(CACHING, 0x00, 20, {2: WCE}, 'Caching'),                                         # SBC-3
    Page(CONTROL, 0x00, 12, {2: D_SENSE, 4: SWP, 5: TAS}, 'Control'),                     # SPC-4
    Page(CONTROL, 0x01, 32, {}, 'Control Extension'),                                     # SPC-4
    Page(POWER_CONDITION, 0x00, 40, {}, 'Power Condition'),                               # SPC-4
    Page(INFORMATIONAL_EXCEPTIONS, 0x00, 12, health.CHANGEABLE, 'Informational Exceptions Control'),  # SPC-4
    Page(INFORMATIONAL_EXCEPTIONS, 0x02, 32, _THRESHOLD_BITS, 'Logical Block Provisioning'),  # SBC-3
    Page(TIMEOUT_AND_PROTECT, 0x00, 12, {}, 'Timeout and Protect'),                       # MMC-6
    Page(CAPABILITIES, 0x00, 22, {}, 'MM Capabilities and Mechanical Status'),            # MMC-3
    Page(tape_modes.DATA_COMPRESSION, 0x00, 16, {}, 'Data Compression'),                  # SSC-3
    Page(tape_modes.DEVICE_CONFIGURATION, 0x00, 16, {}, 'Device Configuration'),          # SSC-3
    Page(tape_modes.DESCRIPTOR_CODE, 0x00, 11, tape_modes.DESCRIPTOR_MASK, 'block descriptor of a tape'),
)
# fmt: on
BY_KEY = dict((page.key, page) for page in TABLE)
#: The pages that only a disk has, and those that only an optical drive has.
OF_DISKS = frozenset(('02-00', '03-00', '04-00', '07-00', '0a-01', '1c-02'))
OF_OPTICAL = frozenset(('1d-00', '2a-00'))


def _absent(facts: UnitFacts) -> FrozenSet[str]:
    """The keys of the pages of TABLE that this type of device does not have."""
    if facts.tape:
        return frozenset(BY_KEY) - tape_modes.OWN - tape_modes.SHARED
    return tape_modes.OWN | (OF_DISKS if facts.optical else OF_OPTICAL)


def _defaults(facts: UnitFacts, write_cache: bool) -> Dict[str, Dict[int, int]]:
    """{key: {offset: value}} of the bytes that are not 0."""
    caching = dict.fromkeys((4, 5, 8, 9, 10, 11), 0xFF)  # prefetch limits: none
    caching[2] = WCE if write_cache else 0
    return {
        **tape_modes.DEFAULTS,
        # AWRE, ARRE: the disk behind the store reassigns bad blocks
        '01-00': {2: 0xC0, 3: LBPERE if facts.threshold_exponent else 0},
        '08-00': caching,
        # TST, GLTSD; QUEUE ALGORITHM MODIFIER 1: commands are reordered; BUSY TIMEOUT PERIOD 5 s
        '0a-00': {
            2: SEPARATE_TASK_SETS | 0x02 | (D_SENSE if facts.descriptor_sense else 0),
            3: 0x10,
            9: 50,
        },
        '0a-01': {4: TCMOS | SCSIP | (IALUAE if facts.implicit_alua else 0)},
        # reads CD-R, CD-RW, DVD-ROM; tray, EJECT and LOCK; speeds and buffer in kilobytes
        '2a-00': {2: 0x0B, 4: 0x40, 6: 0x29, 8: 0x56, 9: 0x22, 12: 0x02, 14: 0x56, 15: 0x22},
        '1c-00': health.default_bytes(facts.health),
        '1c-02': dict(
            enumerate(
                THRESHOLD.pack(
                    ARM_DECREASING | (ENABLED if facts.threshold_count else 0),
                    AVAILABLE,
                    min(facts.threshold_count, 0xFFFFFFFF),
                )
                + THRESHOLD.pack(ARM_INCREASING, USED, 0),
                THRESHOLDS_AT[0],
            )
        ),
    }


def configured(facts: UnitFacts) -> Dict[str, bytes]:
    """{key: whole page} of the pages that the configuration sets. Raises ValueError if a page has
    the wrong length."""
    pages = {}
    for written in facts.mode_pages.split(',') if facts.mode_pages else ():
        key, _, digits = written.partition(':')
        pages[key] = bytes.fromhex(digits)
        if key in BY_KEY and len(pages[key]) != BY_KEY[key].length:
            raise ValueError(
                'mode page %s must have %d bytes, not %d'
                % (key, BY_KEY[key].length, len(pages[key]))
            )
    return pages


def _page_of(key: str, data: bytes) -> Page:
    return Page(int(key[:2], 16), int(key[3:], 16), len(data), {}, 'as configured')


def offered(facts: UnitFacts) -> Tuple[Page, ...]:
    """The Page rows that a unit with these facts has, in the order of page and subpage code."""
    written, absent = configured(facts), _absent(facts)
    rows = [
        page
        for page in TABLE
        if page.key in written
        or page.key not in absent
        and (page.key != '1c-02' or facts.threshold_exponent)
    ]
    if not written:
        return tuple(rows)
    return tuple(
        sorted(rows + [_page_of(key, data) for key, data in written.items() if key not in BY_KEY])
    )


# -- the state -------------------------------------------------------------------------------------


def initial(
    facts: Union[UnitFacts, Dict[str, Any]], write_cache: Optional[bool] = None
) -> Dict[str, Any]:
    """The state in which all pages have their default values. facts: UnitFacts, or the dict in a
    message; write_cache: WCE, None: as in the facts."""
    facts = _facts(facts)
    values = _defaults(facts, facts.write_cache if write_cache is None else write_cache)
    written = configured(facts)
    pages = {}
    for page in offered(facts):
        data = bytearray(page.header + bytes(page.length - len(page.header)))
        for offset, value in values.get(page.key, {}).items():
            data[offset] = value
        pages[page.key] = written.get(page.key, data).hex()
    return {'current': pages, 'saved': pages, 'default': pages}


def _facts(facts: Union[UnitFacts, Dict[str, Any]]) -> UnitFacts:
    return UnitFacts.from_message(facts) if isinstance(facts, dict) else facts


def saved(state: Dict[str, Any]) -> Dict[str, str]:
    """The JSON-able dict to keep in stable storage for restore(): the saved pages that differ from
    the defaults."""
    return dict(
        (key, data) for key, data in state['saved'].items() if data != state['default'][key]
    )


def restore(
    facts: Union[UnitFacts, Dict[str, Any]], kept: Any, write_cache: Optional[bool] = None
) -> Dict[str, Any]:
    """The state after a start. kept: as returned by saved(), or None if nothing was saved. Bits that
    are not changeable get their defaults, and pages that the unit no longer has are ignored. Raises
    ValueError if `kept` is damaged."""
    state = initial(facts, write_cache)
    if kept is None:
        return state
    if not isinstance(kept, dict):
        raise ValueError('the saved mode pages are damaged: %r' % (kept,))
    pages = dict(state['default'])
    for key, data in kept.items():
        if key in pages and key in BY_KEY:
            pages[key] = _merged(
                bytes.fromhex(pages[key]), _page_bytes(key, data), BY_KEY[key].mask
            ).hex()
    return {'current': pages, 'saved': pages, 'default': state['default']}


def _merged(old: bytes, new: bytes, mask: Mapping[int, int]) -> bytearray:
    data = bytearray(old)
    for offset, bits in mask.items():
        data[offset] = old[offset] & ~bits | new[offset] & bits
    return data


HEX = re.compile('(?:[0-9a-f]{2})*$')


def _page_bytes(key: str, data: Any) -> bytes:
    if (
        key not in BY_KEY
        or not isinstance(data, str)
        or not HEX.match(data)
        or len(data) != 2 * BY_KEY[key].length
    ):
        raise ValueError('not a valid mode page %s: %r' % (key, data))
    return bytes.fromhex(data)


def apply_mode_select(state: Dict[str, Any], arguments: Dict[str, Any]) -> Dict[str, Any]:
    """The state after a MODE SELECT; the old object itself if nothing changes. arguments: as
    returned by parse_select (other keys are ignored). Raises ValueError if parse_select cannot have
    returned them: they come from a worker."""
    pages = arguments.get('pages')
    if not isinstance(pages, dict) or not all(key in state['current'] for key in pages):
        raise ValueError('not mode pages: %r' % (pages,))
    base = state['default'] if arguments.get('revert') else state['current']
    for key, data in pages.items():
        if _first_difference(_page_bytes(key, data), bytes.fromhex(base[key]), BY_KEY[key].mask):
            raise ValueError('mode page %s: bits that are not changeable' % key)
        if key == '1c-00' and health.has_unknown_method(_page_bytes(key, data)):
            raise ValueError('mode page %s: a method that the unit does not have' % key)
    current = dict(base, **pages)
    new = {'current': current, 'saved': state['saved'], 'default': state['default']}
    if arguments.get('save'):  # all savable pages, not just those that were sent (SPC-4 6.11)
        new['saved'] = current
    return state if new == state else new


def reset(state: Dict[str, Any]) -> Dict[str, Any]:
    """The state after a reset: the current values become the saved ones (SPC-4)."""
    return state if state['current'] == state['saved'] else dict(state, current=state['saved'])


def has_separate_task_sets(state: Dict[str, Any]) -> bool:
    """TST: does each nexus have a separate task set? False if the configuration sets a control mode
    page with one task set for all."""
    return bytes.fromhex(state['current']['0a-00'])[2] & TST == SEPARATE_TASK_SETS


Parameters = namedtuple('Parameters', 'wce d_sense swp tas')
Parameters.__doc__ = (
    """The current mode parameters that change the behaviour of the unit, as bools."""
)


def parameters(state: Dict[str, Any]) -> Parameters:
    """The Parameters of this state. They are computed: call this once for each change."""
    # a tape has no such page
    caching = bytes.fromhex(state['current'].get('08-00', '0000%02x' % WCE))
    control = bytes.fromhex(state['current']['0a-00'])
    return Parameters(
        bool(caching[2] & WCE),
        bool(control[2] & D_SENSE),
        bool(control[4] & SWP),
        bool(control[5] & TAS),
    )


Threshold = namedtuple('Threshold', 'index resource increasing count')
Threshold.__doc__ = """An enabled threshold. index: number of the descriptor; resource: AVAILABLE or USED;
increasing: bool, is it reached when the resource grows? count: in threshold sets."""


def thresholds(state: Dict[str, Any]) -> List[Threshold]:
    """The enabled Thresholds; [] if the unit does not have the page, or LBPERE is 0."""
    page, found = state['current'].get('1c-02'), []
    is_reported = bytes.fromhex(state['current']['01-00'])[3] & LBPERE
    for index, offset in enumerate(THRESHOLDS_AT if page and is_reported else ()):
        flags, resource, count = THRESHOLD.unpack_from(bytes.fromhex(page), offset)
        if flags & ENABLED:
            found.append(Threshold(index, resource, flags & 0x07 == ARM_INCREASING, count))
    return found


# -- MODE SENSE ------------------------------------------------------------------------------------

# MODE DATA LENGTH, MEDIUM TYPE, DEVICE-SPECIFIC PARAMETER, descriptor length
HEADER_6 = struct.Struct('>BBBB')
HEADER_10 = struct.Struct('>HBBBxH')  # …, LONGLBA, …
SHORT_DESCRIPTOR = struct.Struct('>II')  # NUMBER OF LOGICAL BLOCKS, LOGICAL BLOCK LENGTH (24 bits)
LONG_DESCRIPTOR = struct.Struct('>Q4xI')
WP, DPOFUA = 0x80, 0x10


def mode_sense_data(
    state: Dict[str, Any],
    facts: UnitFacts,
    page: int,
    subpage: int,
    control: int,
    dbd: bool,
    long_header: bool,
    llbaa: bool,
    blocks: int,
    read_only: bool = False,
) -> bytes:
    """The MODE SENSE(6/10) data, all of it; the caller cuts it at the allocation length. page,
    subpage, control (PAGE CONTROL), dbd, llbaa: fields of the CDB; long_header: MODE SENSE(10);
    blocks: the capacity in logical blocks; read_only: writes are refused, for another reason than SWP.

    For page 00h the data has no pages: Windows 2000 reads it and fails on an error.
    Raises CheckCondition 05/24/00 for a page or subpage that the unit does not have.
    """
    data = b''.join(
        _shown(state, facts, row, control, blocks) for row in _wanted(facts, page, subpage)
    )
    descriptor = b''
    if not dbd and not facts.optical:
        descriptor = _block_descriptor(facts, blocks, long_header and llbaa)
    is_protected = read_only or facts.read_only or parameters(state).swp
    specific = DPOFUA | (WP if is_protected else 0)
    if facts.optical:  # MMC-6: no block descriptors, and nothing device-specific
        specific = 0
    elif facts.tape:
        specific = tape_modes.specific(_pages(state, control), is_protected)
        descriptor = descriptor and tape_modes.descriptor(_pages(state, control))
    if long_header:
        length = HEADER_10.size + len(descriptor) + len(data)
        header = HEADER_10.pack(
            length - 2, 0, specific, len(descriptor) == LONG_DESCRIPTOR.size, len(descriptor)
        )
    else:
        header = HEADER_6.pack(
            HEADER_6.size + len(descriptor) + len(data) - 1, 0, specific, len(descriptor)
        )
    return header + descriptor + data


def _pages(state: Dict[str, Any], control: int) -> Dict[str, str]:
    """The pages that PAGE CONTROL selects; CHANGEABLE is not among them."""
    return state[{DEFAULT: 'default', SAVED: 'saved'}.get(control, 'current')]


def _wanted(facts: UnitFacts, code: int, subpage: int) -> List[Page]:
    rows = [row for row in offered(facts) if row.code != tape_modes.DESCRIPTOR_CODE]
    if code == ALL_PAGES and subpage in (0x00, ALL_SUBPAGES):
        return [row for row in rows if subpage == ALL_SUBPAGES or not row.subpage]
    if code == VENDOR_PAGE and not subpage:
        return []
    wanted = [row for row in rows if row.code == code and subpage in (row.subpage, ALL_SUBPAGES)]
    if not wanted:
        known = any(row.code == code for row in rows) or code == ALL_PAGES
        raise CheckCondition(
            ILLEGAL_REQUEST, 0x24, 0x00, field=(3, 7, True) if known else (2, 5, True)
        )
    return wanted


def _shown(state: Dict[str, Any], facts: UnitFacts, row: Page, control: int, blocks: int) -> bytes:
    """The page with the values that PAGE CONTROL selects, and PS."""
    if control == CHANGEABLE:
        data = row.changeable()
    else:
        data = _value(_pages(state, control), facts, row, blocks)
    return bytes([data[0] | (0x80 if row.mask else 0)]) + data[1:]


def _value(pages: Dict[str, str], facts: UnitFacts, row: Page, blocks: int) -> bytes:
    """The whole page with its fields that depend on the capacity, which the state does not contain."""
    data = bytes.fromhex(pages[row.key])
    if row.key in configured(facts):
        return data
    if row.key == '03-00':
        return disk_geometry.format_device(data, facts)
    if row.key == '04-00':
        return disk_geometry.rigid_disk(data, facts, blocks)
    return data


def _block_descriptor(facts: UnitFacts, blocks: int, long_lba: bool) -> bytes:
    if long_lba:
        return LONG_DESCRIPTOR.pack(blocks, facts.block_size)
    return SHORT_DESCRIPTOR.pack(min(blocks, 0xFFFFFFFF), facts.block_size)


# -- MODE SELECT -----------------------------------------------------------------------------------


def parse_select(
    state: Dict[str, Any],
    facts: UnitFacts,
    data: bytes,
    long_header: bool,
    pf: bool,
    sp: bool,
    blocks: int,
    rtd: bool = False,
) -> Dict[str, Any]:
    """The arguments (JSON-able) of a MODE SELECT(6/10) for apply_mode_select. data: the parameter
    list; long_header: MODE SELECT(10); pf, sp, rtd: fields of the CDB; blocks: the capacity in
    logical blocks.

    Raises CheckCondition: 05/1A/00 if the list ends too early, 05/26/00 with field pointer for
    values that cannot be set, 05/24/00 for pages without PF and for a list with RTD.
    """
    data = bytes(data)
    if rtd and data:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(1, 1, True))
    pages = {}
    if data:
        offset = _after_block_descriptors(facts, data, long_header, blocks)
        if facts.tape:
            pages[tape_modes.DESCRIPTOR] = _tape_descriptor(state, data, long_header, offset)
        if offset < len(data) and not pf:
            raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(1, 4, True))
        rows = dict((row.key, row) for row in offered(facts))
        while offset < len(data):
            row, page = _page_at(rows, data, offset)
            _check_page(state, facts, row, page, offset, blocks)
            if row.mask:
                pages[row.key] = page.hex()
            offset += row.length
    return {'pages': pages, 'save': bool(sp), 'revert': bool(rtd)}


def _after_block_descriptors(facts: UnitFacts, data: bytes, long_header: bool, blocks: int) -> int:
    """The offset of the first page. Raises CheckCondition if the header or the block descriptor is
    not acceptable."""
    header = HEADER_10 if long_header else HEADER_6
    if len(data) < header.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    if long_header:
        _, medium_type, _, long_lba, length = header.unpack_from(data)
    else:
        (_, medium_type, _, length), long_lba = header.unpack_from(data), 0
    if medium_type:
        raise _refused(2 if long_header else 1)
    descriptor = LONG_DESCRIPTOR if long_lba & 0x01 else SHORT_DESCRIPTOR
    if length not in (0, descriptor.size):
        raise _refused(6 if long_header else 3)
    if len(data) < header.size + length:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    if length and not facts.tape:
        _check_block_descriptor(facts, data, header.size, descriptor, blocks)
    return header.size + length


def _tape_descriptor(state: Dict[str, Any], data: bytes, long_header: bool, end: int) -> str:
    """The block descriptor of a tape that this list selects. end: where its pages begin."""
    start = (HEADER_10 if long_header else HEADER_6).size
    if end - start > tape_modes.SIZE:  # LONGLBA
        raise _refused(4)
    descriptor = data[start:end] or None
    kept, wrong = tape_modes.changed(state['current'], data[3 if long_header else 2], descriptor)
    if kept is None:
        raise _refused((3 if long_header else 2) if wrong == -1 else start + (wrong or 0))
    return kept.hex()


def _check_block_descriptor(
    facts: UnitFacts, data: bytes, offset: int, descriptor: struct.Struct, blocks: int
) -> None:
    """Raise CheckCondition 05/26/00 if the block descriptor would change the length or the number of
    blocks; 0 and all ones mean no change (SBC-3)."""
    number, block_length = descriptor.unpack_from(data, offset)
    long_lba = descriptor is LONG_DESCRIPTOR
    if not long_lba:
        block_length &= 0xFFFFFF
    ones = (1 << (64 if long_lba else 32)) - 1
    if number not in (0, ones, blocks):
        raise _refused(offset)
    if block_length not in (0, facts.block_size):
        raise _refused(offset + (12 if long_lba else 5))


def _page_at(rows: Mapping[str, Page], data: bytes, offset: int) -> Tuple[Page, bytes]:
    """(Page row, its bytes with PS 0) of the page at `offset`."""
    header_length = 4 if data[offset] & 0x40 else 2
    if len(data) < offset + header_length:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    code, subpage = data[offset] & 0x3F, data[offset + 1] if header_length == 4 else 0
    row = rows.get('%02x-%02x' % (code, subpage))
    if row is None or (row.subpage == 0) != (header_length == 2):
        raise _refused(offset, 5)
    at = header_length // 2  # of PAGE LENGTH
    if data[offset + at : offset + header_length] != row.header[at:]:
        raise _refused(offset + at)
    if len(data) < offset + row.length:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    return row, bytes([data[offset] & 0x7F]) + data[offset + 1 : offset + row.length]


def _check_page(state, facts, row, page, offset, blocks):
    difference = _first_difference(page, _value(state['current'], facts, row, blocks), row.mask)
    if difference:
        raise _refused(offset + difference[0], difference[1])
    if row.key == '1c-00' and health.has_unknown_method(page):
        raise _refused(offset + health.MRIE_AT, health.MRIE.bit_length() - 1)


def _first_difference(new: bytes, old: bytes, mask: Mapping[int, int]) -> Optional[Tuple[int, int]]:
    """(offset, bit) of the first bit that differs and is not in the mask, or None."""
    for offset, (a, b) in enumerate(zip(new, old)):
        bits = (a ^ b) & ~mask.get(offset, 0)
        if bits:
            return offset, bits.bit_length() - 1
    return None


def _refused(offset: int, bit: Optional[int] = None) -> CheckCondition:
    return CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, bit, False))
