"""Sense data (SPC-4 4.5): the sense keys, the codes targetd uses, and both formats. Pure."""

import struct

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


class StatusReturned(Exception):
    """A command ends with a status that carries no sense data (RESERVATION CONFLICT, BUSY, CONDITION MET, …)."""

    def __init__(self, status):
        super(StatusReturned, self).__init__('status %02Xh' % status)
        self.status = status


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION.

    key: sense key; asc, ascq: additional sense code and qualifier; information: 64-bit int or None (INFORMATION field,
    SPC-4 4.5.2.2); field: (byte offset, bit or None, in_cdb bool) or None, the field pointer of SPC-4 4.5.2.4.2;
    progress: 0..65535 or None, the progress indication of SPC-4 4.5.2.4.4; data: Data-In that goes before the status, or None.
    """

    def __init__(self, key, asc, ascq, information=None, field=None, progress=None, data=None):
        super(CheckCondition, self).__init__('%02X/%02X/%02X' % (key, asc, ascq))
        self.key = key
        self.asc = asc
        self.ascq = ascq
        self.information = information
        self.field = field
        self.progress = progress
        self.data = data

    def sense(self, descriptor=False):
        """The sense data as bytes, in fixed (SPC-4 4.5.3) or descriptor format (SPC-4 4.5.2)."""
        return (descriptor_format if descriptor else fixed_format)(self)


def sense_key_specific(error):
    """The three bytes of SPC-4 4.5.2.4, or None."""
    if error.field is not None:
        offset, bit, in_cdb = error.field
        first = 0x80 | (0x40 if in_cdb else 0) | (0x08 | bit if bit is not None else 0)
        return struct.pack('>BH', first, offset)
    if error.progress is not None:
        return struct.pack('>BH', 0x80, error.progress)
    return None


def fixed_format(error, response_code=0x70):
    """18 bytes, SPC-4 4.5.3. An INFORMATION that does not fit 32 bits leaves VALID at 0."""
    fits = error.information is not None and error.information <= 0xFFFFFFFF
    specific = sense_key_specific(error) or b'\0\0\0'
    return struct.pack('>BBBIB4xBBB3s', response_code | (0x80 if fits else 0), 0, error.key,
                       error.information if fits else 0, 10, error.asc, error.ascq, 0, specific)


def descriptor_format(error, response_code=0x72):
    """8 bytes and the descriptors that apply, SPC-4 4.5.2."""
    descriptors = b''
    if error.information is not None:
        descriptors += struct.pack('>BBBBQ', 0x00, 0x0A, 0x80, 0, error.information)
    specific = sense_key_specific(error)
    if specific:
        descriptors += struct.pack('>BBxx3sx', 0x02, 0x06, specific)
    return struct.pack('>BBBB3xB', response_code, error.key, error.asc, error.ascq, len(descriptors)) + descriptors
