"""mt(1) by the ioctls of st(4), since the guest has no such program: mt.py DEVICE COMMAND [COUNT]."""

import fcntl
import os
import struct
import sys

MTIOCTOP, MTIOCGET, MTIOCPOS = 0x40086D01, 0x80306D02, 0x80086D03
OPERATIONS = {
    'fsf': 1, 'bsf': 2, 'fsr': 3, 'bsr': 4, 'weof': 5, 'rewind': 6, 'offline': 7, 'eod': 12, 'erase': 13,
    'setblk': 20, 'seek': 22,
}  # fmt: skip
STATUS = {
    'EOF': 0x80000000,
    'BOT': 0x40000000,
    'EOT': 0x20000000,
    'EOD': 0x08000000,
    'WR_PROT': 0x04000000,
    'ONLINE': 0x01000000,
    'DR_OPEN': 0x00040000,
}


def main(device, command, count='1'):
    # st waits two minutes for a tape if it is opened without O_NONBLOCK
    access = os.O_RDWR if command in ('weof', 'erase') else os.O_RDONLY
    descriptor = os.open(device, access | (os.O_NONBLOCK if command == 'status' else 0))

    def do(operation, number):
        fcntl.ioctl(descriptor, MTIOCTOP, struct.pack('hi', operation, number))

    if command == 'tell':
        print(struct.unpack('l', fcntl.ioctl(descriptor, MTIOCPOS, bytes(8)))[0])
    elif command == 'status':
        kind, _, density, general, _, file, block = struct.unpack(
            'lllllii', fcntl.ioctl(descriptor, MTIOCGET, bytes(48))
        )
        words = [word for word, bit in STATUS.items() if general & bit]
        print('type=%d file=%d block=%d blocksize=%d density=%d %s'
              % (kind, file, block, density & 0xFFFFFF, density >> 24 & 0xFF, ' '.join(words)))  # fmt: skip
    elif command == 'asf':
        do(OPERATIONS['rewind'], 1)
        do(OPERATIONS['fsf'], int(count))
    else:
        do(OPERATIONS[command], int(count))
    os.close(descriptor)


main(*sys.argv[1:])
