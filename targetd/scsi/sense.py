"""Sense data (SPC-4): the sense keys, the codes targetd uses, and both formats. Pure."""

import struct
from collections import namedtuple
from typing import Optional, Tuple

# Sense keys, SPC-4 table 48
NO_SENSE = 0x0
RECOVERED_ERROR = 0x1
NOT_READY = 0x2
MEDIUM_ERROR = 0x3
HARDWARE_ERROR = 0x4
ILLEGAL_REQUEST = 0x5
UNIT_ATTENTION = 0x6
DATA_PROTECT = 0x7
BLANK_CHECK = 0x8
COPY_ABORTED = 0xA
ABORTED_COMMAND = 0xB
VOLUME_OVERFLOW = 0xD
MISCOMPARE = 0xE
COMPLETED = 0xF

# fmt: off
KEYS = (
    'NO SENSE', 'RECOVERED ERROR', 'NOT READY', 'MEDIUM ERROR', 'HARDWARE ERROR', 'ILLEGAL REQUEST',
    'UNIT ATTENTION', 'DATA PROTECT', 'BLANK CHECK', 'VENDOR SPECIFIC', 'COPY ABORTED',
    'ABORTED COMMAND', 'RESERVED', 'VOLUME OVERFLOW', 'MISCOMPARE', 'COMPLETED',
)
# fmt: on

#: {(ASC, ASCQ): text of SPC-4 annex E, for logs and traces} of the codes that targetd reports.
CODES = {
    (0x00, 0x00): 'no additional sense information',
    (0x00, 0x06): 'I/O process terminated',
    (0x00, 0x16): 'operation in progress',
    (0x04, 0x00): 'logical unit not ready, cause not reportable',
    (0x04, 0x01): 'logical unit is in process of becoming ready',
    (0x04, 0x02): 'logical unit not ready, initializing command required',
    (0x04, 0x03): 'logical unit not ready, manual intervention required',
    (0x04, 0x04): 'logical unit not ready, format in progress',
    (0x04, 0x09): 'logical unit not ready, self-test in progress',
    (0x04, 0x0A): 'logical unit not accessible, asymmetric access state transition',
    (0x04, 0x0B): 'logical unit not accessible, target port in standby state',
    (0x04, 0x0C): 'logical unit not accessible, target port in unavailable state',
    (0x04, 0x12): 'logical unit not ready, offline',
    (0x04, 0x14): 'logical unit not ready, space allocation in progress',
    (0x04, 0x1B): 'logical unit not ready, sanitize in progress',
    (0x08, 0x00): 'logical unit communication failure',
    (0x08, 0x04): 'unreachable copy target',
    (0x0C, 0x00): 'write error',
    (0x0D, 0x01): 'third party device failure',
    (0x0D, 0x02): 'copy target device not reachable',
    (0x0D, 0x03): 'incorrect copy target device type',
    (0x0E, 0x03): 'invalid field in command information unit',
    (0x10, 0x00): 'ID CRC or ECC error',
    (0x11, 0x00): 'unrecovered read error',
    (0x1A, 0x00): 'parameter list length error',
    (0x1D, 0x00): 'miscompare during verify operation',
    (0x20, 0x00): 'invalid command operation code',
    (0x21, 0x00): 'logical block address out of range',
    (0x23, 0x00): 'invalid token operation, cause not reportable',
    (0x23, 0x01): 'invalid token operation, unsupported token type',
    (0x23, 0x04): 'invalid token operation, token unknown',
    (0x23, 0x06): 'invalid token operation, token revoked',
    (0x23, 0x07): 'invalid token operation, token expired',
    (0x23, 0x09): 'invalid token operation, token deleted',
    (0x23, 0x0A): 'invalid token operation, invalid token length',
    (0x24, 0x00): 'invalid field in CDB',
    (0x25, 0x00): 'logical unit not supported',
    (0x26, 0x00): 'invalid field in parameter list',
    (0x26, 0x04): 'invalid release of persistent reservation',
    (0x26, 0x06): 'too many target descriptors',
    (0x26, 0x07): 'unsupported target descriptor type code',
    (0x26, 0x08): 'too many segment descriptors',
    (0x26, 0x09): 'unsupported segment descriptor type code',
    (0x26, 0x0A): 'unexpected inexact segment',
    (0x26, 0x0B): 'inline data length exceeded',
    (0x27, 0x00): 'write protected',
    (0x27, 0x02): 'logical unit software write protected',
    (0x27, 0x07): 'space allocation failed write protect',
    (0x28, 0x00): 'not ready to ready change, medium may have changed',
    (0x29, 0x00): 'power on, reset, or bus device reset occurred',
    (0x29, 0x01): 'power on occurred',
    (0x29, 0x02): 'SCSI bus reset occurred',
    (0x29, 0x03): 'bus device reset function occurred',
    (0x29, 0x07): 'I_T nexus loss occurred',
    (0x2A, 0x01): 'mode parameters changed',
    (0x2A, 0x02): 'log parameters changed',
    (0x2A, 0x03): 'reservations preempted',
    (0x2A, 0x04): 'reservations released',
    (0x2A, 0x05): 'registrations preempted',
    (0x2A, 0x06): 'asymmetric access state changed',
    (0x2A, 0x09): 'capacity data has changed',
    (0x2A, 0x10): 'timestamp changed',
    (0x2C, 0x00): 'command sequence error',
    (0x2F, 0x00): 'commands cleared by another initiator',
    (0x30, 0x02): 'cannot read medium, incompatible format',
    (0x31, 0x00): 'medium format corrupted',
    (0x31, 0x01): 'format command failed',
    (0x31, 0x03): 'sanitize command failed',
    (0x38, 0x07): 'thin provisioning soft threshold reached',
    (0x39, 0x00): 'saving parameters not supported',
    (0x3A, 0x00): 'medium not present',
    (0x3A, 0x02): 'medium not present, tray open',
    (0x3E, 0x01): 'logical unit failure',
    (0x3E, 0x02): 'timeout on logical unit',
    (0x3E, 0x03): 'logical unit failed self-test',
    (0x3F, 0x03): 'inquiry data has changed',
    (0x3F, 0x05): 'device identifier changed',
    (0x3F, 0x0E): 'reported LUNs data has changed',
    (0x44, 0x00): 'internal target failure',
    (0x53, 0x02): 'medium removal prevented',
    (0x55, 0x03): 'insufficient resources',
    (0x55, 0x04): 'insufficient registration resources',
    (0x55, 0x0D): 'insufficient resources to create ROD token',
    (0x5D, 0x00): 'failure prediction threshold exceeded',
    (0x5E, 0x03): 'idle condition activated by command',
    (0x5E, 0x04): 'standby condition activated by command',
    (0x64, 0x00): 'illegal mode for this track',
}


def describe(key: int, asc: int, ascq: int) -> str:
    """Text for logs: 'ILLEGAL REQUEST: invalid field in CDB (5/24/00)'."""
    return '%s: %s (%X/%02X/%02X)' % (
        KEYS[key & 0xF],
        CODES.get((asc, ascq), 'additional sense'),
        key,
        asc,
        ascq,
    )


class StatusReturned(Exception):
    """A command ends with a status that carries no sense data (RESERVATION CONFLICT, BUSY,
    CONDITION MET, …)."""

    def __init__(self, status: int) -> None:
        super(StatusReturned, self).__init__('status %02Xh' % status)
        self.status = status


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION.

    key          sense key
    asc, ascq    additional sense code and qualifier
    information  64-bit int or None, the INFORMATION field (SPC-4)
    field        (byte offset, bit or None, is the field in the CDB?) or None: the field pointer
                 (SPC-4). With COPY ABORTED it is a segment pointer, and the bool means that the offset
                 is relative to the segment descriptor, not to the parameter list
    progress     0..65535 or None, the progress indication (SPC-4)
    data         Data-In to send before the status, or None
    copy         CopyFailure or None
    stream       the bits FILEMARK, EOM and ILI of a tape
    """

    def __init__(
        self,
        key: int,
        asc: int,
        ascq: int,
        information: Optional[int] = None,
        field: Optional[Tuple[int, Optional[int], bool]] = None,
        progress: Optional[int] = None,
        data: Optional[bytes] = None,
        copy: Optional['CopyFailure'] = None,
        stream: int = 0,
    ) -> None:
        super(CheckCondition, self).__init__('%02X/%02X/%02X' % (key, asc, ascq))
        self.key = key
        self.asc = asc
        self.ascq = ascq
        self.information = information
        self.field = field
        self.progress = progress
        self.data = data
        self.copy = copy
        self.stream = stream

    def sense(self, descriptor: bool = False) -> bytes:
        """The sense data in fixed or descriptor format (SPC-4)."""
        return (descriptor_format if descriptor else fixed_format)(self)


class CopyFailure(namedtuple('CopyFailure', 'segment is_source status sense')):
    """Why a third-party copy ended (SPC-4).

    segment: the number of the segment. If a command failed at the source or the destination:
    is_source: bool, where; status: its status; sense: its sense data in fixed format, or b''. If no
    command failed, status is None.
    """

    __slots__ = ()

    def __new__(
        cls, segment: int, is_source: bool = False, status: Optional[int] = None, sense: bytes = b''
    ) -> 'CopyFailure':
        return super(CopyFailure, cls).__new__(cls, segment, is_source, status, sense)


def sense_key_specific(error: CheckCondition) -> Optional[bytes]:
    """The three sense key specific bytes (SPC-4), or None."""
    if error.field is not None:
        offset, bit, in_cdb = error.field
        flag = 0x20 if error.key == COPY_ABORTED else 0x40
        first = 0x80 | (flag if in_cdb else 0) | (0x08 | bit if bit is not None else 0)
        return struct.pack('>BH', first, offset)
    if error.progress is not None:
        return struct.pack('>BH', 0x80, error.progress)
    return None


def fixed_format(error: CheckCondition, response_code: int = 0x70) -> bytes:
    """Fixed format sense data (SPC-4): 18 bytes, and forwarded sense data. If INFORMATION does not
    fit 32 bits, VALID is 0; it can be negative for a tape, as a two's complement (SSC-3)."""
    information = error.information
    is_valid = information is not None and -(1 << 31) <= information <= 0xFFFFFFFF
    specific = sense_key_specific(error) or b'\0\0\0'
    about_command, forwarded = _fixed_copy_failure(error.copy) if error.copy else (0, b'')
    return (
        struct.pack(
            '>BBBIBIBBB3s',
            response_code | (0x80 if is_valid else 0),
            0,
            error.key | error.stream,
            (information or 0) & 0xFFFFFFFF if is_valid else 0,
            10 + len(forwarded),
            about_command,
            error.asc,
            error.ascq,
            0,
            specific,
        )
        + forwarded
    )


def _fixed_copy_failure(copy: CopyFailure) -> Tuple[int, bytes]:
    """(COMMAND-SPECIFIC INFORMATION, forwarded sense data after the 18 bytes): the former has the
    offsets of the status and sense data of the source and of the destination, 0 if there are none,
    and the segment number (SPC-3)."""
    if copy.status is None:
        return copy.segment, b''
    return 18 << (24 if copy.is_source else 16) | copy.segment, bytes([copy.status]) + copy.sense


def descriptor_format(error: CheckCondition, response_code: int = 0x72) -> bytes:
    """Descriptor format sense data (SPC-4): 8 bytes, and the descriptors that apply."""
    descriptors = b''
    if error.information is not None:
        information = error.information & 0xFFFFFFFFFFFFFFFF
        descriptors += struct.pack('>BBBBQ', 0x00, 0x0A, 0x80, 0, information)
    specific = sense_key_specific(error)
    if specific:
        descriptors += struct.pack('>BBxx3sx', 0x02, 0x06, specific)
    if error.stream:  # stream commands, SSC-3
        descriptors += struct.pack('>BBxB', 0x04, 0x02, error.stream)
    if error.copy:
        descriptors += struct.pack('>BBxxQ', 0x01, 0x0A, error.copy.segment)
        if error.copy.status is not None:  # forwarded sense data, SPC-4
            end, forwarded = 1 if error.copy.is_source else 2, error.copy.sense
            descriptors += struct.pack('>BBBB', 0x0C, 2 + len(forwarded), end, error.copy.status)
            descriptors += forwarded
    header = struct.pack(
        '>BBBB3xB', response_code, error.key, error.asc, error.ascq, len(descriptors)
    )
    return header + descriptors


# The most frequent errors. offset: byte of the field in error; bit: its most significant bit, or None
# for a field of whole bytes.


def invalid_opcode() -> CheckCondition:
    """05/20/00, SPC-4 annex E."""
    return CheckCondition(ILLEGAL_REQUEST, 0x20, 0x00, field=(0, None, True))


def invalid_field_in_cdb(offset: int, bit: Optional[int] = None) -> CheckCondition:
    """05/24/00 with its field pointer, SPC-4."""
    return CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(offset, bit, True))


def invalid_field_in_parameter_list(offset: int, bit: Optional[int] = None) -> CheckCondition:
    """05/26/00 with its field pointer, counted from the first byte of the parameter list."""
    return CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, bit, False))


def parameter_list_length_error() -> CheckCondition:
    """05/1A/00: the length of the parameter list is not valid, or it cuts the list inside a field."""
    return CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)


def invalid_field_in_information_unit() -> CheckCondition:
    """05/0E/03: EDTL does not match the CDB, and the command cannot be executed in part."""
    return CheckCondition(ILLEGAL_REQUEST, 0x0E, 0x03)


def lba_out_of_range(offset: int = 2) -> CheckCondition:
    """05/21/00. offset: the byte of the CDB where the LBA starts."""
    return CheckCondition(ILLEGAL_REQUEST, 0x21, 0x00, field=(offset, None, True))


def unit_not_supported() -> CheckCondition:
    """05/25/00: the logical unit does not exist."""
    return CheckCondition(ILLEGAL_REQUEST, 0x25, 0x00)


def miscompare(information: Optional[int] = None) -> CheckCondition:
    """0E/1D/00. information: byte offset of the first difference in the Data-Out (SBC-3 5.2), or
    None."""
    return CheckCondition(MISCOMPARE, 0x1D, 0x00, information=information)
