"""The mode parameters that only a tape drive has (SSC-3): its pages, and the block descriptor with the
device-specific parameter, which MODE SELECT changes. Pure.

The state of the mode parameters keeps the descriptor like a page, with a page code that no command can
request. So resets, saving and the rules for changeable bits are those of every page.
"""

import struct
from typing import Any, Dict, Mapping, Optional, Tuple

#: Page code of the kept descriptor; one that MODE SENSE could request has 6 bits.
DESCRIPTOR_CODE = 0x40
DESCRIPTOR = '40-00'
# DEVICE-SPECIFIC PARAMETER; DENSITY CODE, NUMBER OF BLOCKS, reserved, BLOCK LENGTH
# 11 bytes with the page header
_SPECIFIC_AT, _BLOCK_LENGTH_AT = 2, 8
#: BUFFERED MODE, all its bits and the value 001b
BUFFERED_MODE, BUFFERED = 0x70, 0x10
DESCRIPTOR_MASK = dict([(_SPECIFIC_AT, BUFFERED_MODE)] + [(at, 0xFF) for at in (8, 9, 10)])

DATA_COMPRESSION, DEVICE_CONFIGURATION = 0x0F, 0x10
#: {key: {offset: value}}: block identifiers are supported (LOIS), and EOD is recognized (EEG)
DEFAULTS: Dict[str, Dict[int, int]] = {
    DESCRIPTOR: {_SPECIFIC_AT: BUFFERED},
    '10-00': {8: 0x40, 10: 0x10},
}
#: The pages that a tape drive has, and the others do not.
OWN = frozenset((DESCRIPTOR, '0f-00', '10-00'))
#: The pages that a tape drive has too.
SHARED = frozenset(('01-00', '02-00', '0a-00', '1c-00'))

LONGEST_BLOCK = 8 << 20  # bytes
DEFAULT_DENSITY, UNCHANGED_DENSITY = 0x00, 0x7F
# DENSITY CODE, NUMBER OF BLOCKS (24 bits), BLOCK LENGTH (24 bits)
_SHORT = struct.Struct('>BBHBBH')
SIZE = _SHORT.size


def _kept(pages: Mapping[str, str]) -> bytes:
    return bytes.fromhex(pages[DESCRIPTOR])


def block_length(state: Mapping[str, Any]) -> int:
    """BLOCK LENGTH: bytes of a block, 0 if blocks have different lengths. state: of scsi.modes."""
    return int.from_bytes(_kept(state['current'])[_BLOCK_LENGTH_AT:], 'big')


def is_buffered(state: Mapping[str, Any]) -> bool:
    """May a WRITE end before its data is durable?"""
    return bool(_kept(state['current'])[_SPECIFIC_AT] & BUFFERED_MODE)


def specific(pages: Mapping[str, str], is_protected: bool) -> int:
    """DEVICE-SPECIFIC PARAMETER: WP and BUFFERED MODE."""
    return _kept(pages)[_SPECIFIC_AT] | (0x80 if is_protected else 0)


def descriptor(pages: Mapping[str, str]) -> bytes:
    """The mode parameter block descriptor."""
    return _kept(pages)[3:]


def changed(
    pages: Mapping[str, str], new_specific: int, new_descriptor: Optional[bytes]
) -> Tuple[Optional[bytes], Optional[int]]:
    """(the kept descriptor after a MODE SELECT, None), or (None, offset in the descriptor of what cannot
    be selected; -1: the device-specific parameter). new_descriptor: None if there is none."""
    kept = bytearray(_kept(pages))
    mode = new_specific & BUFFERED_MODE
    if mode > BUFFERED:
        return None, -1
    kept[_SPECIFIC_AT] = mode
    if new_descriptor is not None:
        density, high, low, _, length_high, length_low = _SHORT.unpack(new_descriptor)
        if density not in (DEFAULT_DENSITY, UNCHANGED_DENSITY):
            return None, 0
        if high or low:
            return None, 1
        if length_high << 16 | length_low > LONGEST_BLOCK:
            return None, 5
        kept[8:11] = new_descriptor[5:8]
    return bytes(kept), None
