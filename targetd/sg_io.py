"""SCSI commands to a device by SG_IO, the ioctl of the sg driver and of disks (struct sg_io_hdr, version 3).

May be imported by anyone. A call blocks until the device has answered, or the kernel has given up after the
time limit and has aborted the command.
"""

import ctypes
import fcntl
import struct
from collections import namedtuple

SG_IO, SG_GET_VERSION_NUM, BLKSECTGET = 0x2285, 0x2282, 0x1267
SG_SCSI_RESET, _RESET_DEVICE, _NO_ESCALATE = 0x2284, 1, 0x100
_NO_DATA, _TO_DEVICE, _FROM_DEVICE = -1, -2, -3
SENSE_BYTES = 252

#: status: of the SCSI device; host, driver: statuses of the kernel, 0: none; sense: bytes; residual: bytes
#: that were not transferred; data: a memoryview of those that arrived.
Outcome = namedtuple('Outcome', 'status host driver sense residual data')

_FIELDS = [
    ('interface_id', ctypes.c_int),
    ('dxfer_direction', ctypes.c_int),
    ('cmd_len', ctypes.c_ubyte),
    ('mx_sb_len', ctypes.c_ubyte),
    ('iovec_count', ctypes.c_ushort),
    ('dxfer_len', ctypes.c_uint),
    ('dxferp', ctypes.c_void_p),
    ('cmdp', ctypes.c_void_p),
    ('sbp', ctypes.c_void_p),
    ('timeout', ctypes.c_uint),
    ('flags', ctypes.c_uint),
    ('pack_id', ctypes.c_int),
    ('usr_ptr', ctypes.c_void_p),
    ('status', ctypes.c_ubyte),
    ('masked_status', ctypes.c_ubyte),
    ('msg_status', ctypes.c_ubyte),
    ('sb_len_wr', ctypes.c_ubyte),
    ('host_status', ctypes.c_ushort),
    ('driver_status', ctypes.c_ushort),
    ('resid', ctypes.c_int),
    ('duration', ctypes.c_uint),
    ('info', ctypes.c_uint),
]


class _Header(ctypes.Structure):
    _fields_ = _FIELDS


def execute(descriptor, cdb, data_out=b'', length=0, seconds=60, ioctl=fcntl.ioctl):
    """Send a command and return its Outcome. data_out: bytes-like, what it writes; length: bytes that it may
    read; a command does not do both. Raises OSError if the kernel does not execute it."""
    command = ctypes.create_string_buffer(bytes(cdb), len(cdb))
    sense = ctypes.create_string_buffer(SENSE_BYTES)
    count, received, buffer = len(data_out) or length, bytearray(), None
    if len(data_out):
        direction, buffer = _TO_DEVICE, _buffer_of(data_out)
    elif length:
        direction, received = _FROM_DEVICE, bytearray(length)
        buffer = (ctypes.c_char * length).from_buffer(received)
    else:
        direction = _NO_DATA
    header = _Header(
        interface_id=ord('S'),
        dxfer_direction=direction,
        cmd_len=len(cdb),
        mx_sb_len=SENSE_BYTES,
        dxfer_len=count,
        dxferp=None if buffer is None else ctypes.addressof(buffer),
        cmdp=ctypes.addressof(command),
        sbp=ctypes.addressof(sense),
        timeout=seconds * 1000,
    )
    ioctl(descriptor, SG_IO, header)
    residual = min(max(header.resid, 0), count)
    return Outcome(
        header.status,
        header.host_status,
        header.driver_status & 0x0F,
        sense.raw[: header.sb_len_wr],
        residual,
        memoryview(received)[: length - residual] if length else memoryview(b''),
    )


def _buffer_of(data):
    """A ctypes array of these bytes: the same memory, unless it is read-only."""
    view = memoryview(data)
    if view.readonly:
        return ctypes.create_string_buffer(bytes(view), len(view))
    return (ctypes.c_char * len(view)).from_buffer(view)


def parse_sense(sense):
    """(sense key, ASC, ASCQ) of sense data in fixed or descriptor format (SPC-4 4.5); zeroes if there is
    none."""
    padded = bytes(sense) + bytes(14)
    if padded[0] & 0x7F in (0x72, 0x73):
        return padded[1] & 15, padded[2], padded[3]
    return padded[2] & 15, padded[12], padded[13]


def has_scsi_commands(descriptor):
    """True if the device takes SCSI commands by SG_IO."""
    try:
        version = fcntl.ioctl(descriptor, SG_GET_VERSION_NUM, struct.pack('=i', 0))
    except OSError:
        return False
    return struct.unpack('=i', version)[0] >= 30000


def longest_transfer(descriptor):
    """The bytes that one command of this sg node may transfer. Raises OSError."""
    return struct.unpack('=I', fcntl.ioctl(descriptor, BLKSECTGET, struct.pack('=I', 0)))[0]


def reset(descriptor):
    """Reset the device of this sg node, its logical unit only: neither its target nor its bus. Raises
    OSError."""
    fcntl.ioctl(descriptor, SG_SCSI_RESET, struct.pack('=i', _RESET_DEVICE | _NO_ESCALATE))
