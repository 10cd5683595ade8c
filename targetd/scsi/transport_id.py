"""iSCSI TransportIDs (SPC-4 7.6.4.6), the names of initiator ports in PERSISTENT RESERVE IN and OUT.
Pure.

Elsewhere in targetd an initiator port is identified by its SCSI port name in lower case,
'iqn.…,i,0x00023d000001' (TPID FORMAT 01b), and an initiator device by its iSCSI name alone (TPID
FORMAT 00b).
"""

import struct
from typing import Optional, Tuple

from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

HEADER = struct.Struct('>BBH')
PROTOCOL_ISCSI = 0x05
SEPARATOR = ',i,0x'
ISID_DIGITS = 12
MINIMUM_ADDITIONAL_LENGTH = 20
MAXIMUM_NAME = 223  # bytes of an iSCSI name, RFC 7143 4.2.7.1


def is_port(name: str) -> bool:
    """Is `name` the name of an initiator port (with an ISID), not of an initiator device?"""
    return SEPARATOR in name


def encode(name: str) -> bytes:
    """The TransportID of an initiator port or device name, padded to a multiple of 4."""
    text = name.encode('utf-8') + b'\0'
    text += bytes(max(MINIMUM_ADDITIONAL_LENGTH - len(text), -len(text) % 4))
    return HEADER.pack((0x40 if is_port(name) else 0) | PROTOCOL_ISCSI, 0, len(text)) + text


def decode(data: bytes, offset: int) -> Tuple[str, int]:
    """(name, offset after it) of the TransportID at `offset` of a parameter list.

    Raises CheckCondition 05/1A/00 if the list ends inside the TransportID, 05/26/00 with field
    pointer if it is not an iSCSI TransportID.
    """
    if len(data) < offset + HEADER.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    first, _, length = HEADER.unpack_from(data, offset)
    if first & 0x0F != PROTOCOL_ISCSI:
        raise _refused(offset, 3)
    if first & 0xC0 not in (0x00, 0x40):
        raise _refused(offset, 7)
    if length < MINIMUM_ADDITIONAL_LENGTH or length % 4:
        raise _refused(offset + 2)
    end = offset + HEADER.size + length
    if len(data) < end:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    start = offset + HEADER.size
    return _name(bytes(data[start:end]), bool(first & 0x40), start), end


def _name(text: bytes, with_isid: bool, offset: int) -> str:
    text, terminator, _ = text.partition(b'\0')
    try:
        name = text.decode('utf-8').lower()
    except UnicodeDecodeError:
        raise _refused(offset)
    device, separator, isid = name.partition(SEPARATOR)
    if (
        not terminator
        or not device
        or len(device.encode('utf-8')) > MAXIMUM_NAME
        or with_isid != bool(separator)
    ):
        raise _refused(offset)
    if with_isid and (len(isid) != ISID_DIGITS or set(isid) - set('0123456789abcdef')):
        raise _refused(offset + len(device) + len(SEPARATOR))
    return name


def _refused(offset: int, bit: Optional[int] = None) -> CheckCondition:
    return CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, bit, False))
