"""Every operation code at a disk: what REPORT SUPPORTED OPERATION CODES lists is known, what it
does not list is refused.

    sweep.py DISK LISTED          LISTED: its parameter data, without command timeouts

A listed command is sent with NACA set in its CONTROL byte, which no unit here does: 05/24/00 says
that the command is known, and nothing is done. Prints one line for each: what sg_opcodes calls it,
and its CDB usage data.
"""

import ctypes
import fcntl
import struct
import sys

SG_IO = 0x2285
DATA_IN, NO_DATA = -3, -1
NACA = 0x04
INVALID_OPCODE, INVALID_FIELD = (5, 0x20, 0x00), (5, 0x24, 0x00)
HEADER = struct.Struct('@iiBBHIPPPIIiPBBBBHHiII')


def send(disk, cdb, length=0):
    """(status, (sense key, ASC, ASCQ) or None, data) of a command without data, or with Data-In."""
    buffers = [ctypes.create_string_buffer(size) for size in (len(cdb), max(length, 1), 64)]
    buffers[0].raw = cdb
    command, data, sense = [ctypes.addressof(b) for b in buffers]
    header = bytearray(
        HEADER.pack(
            ord('S'),
            DATA_IN if length else NO_DATA,
            len(cdb),
            64,
            0,
            length,
            data,
            command,
            sense,
            20000,
            *([0] * 12),
        )
    )
    fcntl.ioctl(disk, SG_IO, header)
    back = HEADER.unpack(bytes(header))
    said = buffers[2].raw
    return (
        back[13],
        (said[2] & 15, said[12], said[13]) if back[16] else None,
        buffers[1].raw[: length - back[19]],
    )


def usage(disk, opcode, action):
    """CDB usage data of one command."""
    options = 1 if action is None else 2
    cdb = struct.pack('>BBBBHIxx', 0xA3, 0x0C, options, opcode, action or 0, 256)
    status, sense, data = send(disk, cdb, 256)
    assert status == 0 and data[1] & 7 == 3, 'no usage data of %02X %r: %r %r' % (
        opcode,
        action,
        status,
        sense,
    )
    return data[4 : 4 + struct.unpack_from('>H', data, 2)[0]]


def length_of(opcode):
    return {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}.get(opcode >> 5, 16)


def main():
    disk = open(sys.argv[1], 'rb+', 0)
    with open(sys.argv[2], 'rb') as f:
        listed = f.read()[4:]
    commands = {}
    for n in range(0, len(listed), 8):
        opcode, action, flags, length = struct.unpack_from('>BxHxBH', listed, n)
        commands.setdefault(opcode, {})[action if flags & 1 else None] = length
    count = 0
    for opcode in range(256):
        actions = commands.get(opcode)
        if actions is None:
            status, sense, _ = send(disk, bytes([opcode]) + bytes(length_of(opcode) - 1))
            assert sense == INVALID_OPCODE, '%02X is not listed, and the answer is %r %r' % (
                opcode,
                status,
                sense,
            )
            continue
        for action in [None] if None in actions else range(32):
            cdb = bytearray(actions.get(action) or length_of(opcode))
            cdb[0], cdb[1], cdb[-1] = opcode, action or 0, NACA
            status, sense, _ = send(disk, bytes(cdb))
            assert sense == INVALID_FIELD, '%02X %r with NACA: %r %r' % (
                opcode,
                action,
                status,
                sense,
            )
            if action not in actions:
                continue
            count += 1
            data = usage(disk, opcode, action)
            assert len(data) == actions[action] and data[0] == opcode, (opcode, action, data)
            print(
                '0x%02x%s %s'
                % (
                    opcode,
                    '' if action is None else ',0x%x' % action,
                    ' '.join('%02x' % one for one in data),
                )
            )
    print('%d commands' % count)


main()
