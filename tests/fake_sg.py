"""targetd with one SCSI device that does not exist: fake_sg.py NODE, and the arguments of targetd.

NODE is a file in place of the device's sg node. Workers can open no file, so all of the device is in it:

    0        what the test wants, JSON: {"answers": {CDB in hex digits, or its beginning: Outcome or errno}}
    LOG_AT   the CDBs that were executed, a line of hex digits each
    DATA_AT  the blocks of the disk

While a file NODE.gone exists, the device is not attached. NODE can be a link to such a file.
"""

import json
import os
import struct
import sys
import threading

LOG_AT, DATA_AT = 1 << 16, 1 << 20
BLOCKS = 4096
INQUIRY = bytes([0, 0, 6, 2, 0x5B, 0, 0, 2]) + b'ACME    REAL DISK       1.0 ' + bytes(60)
SERIAL = b'R-1'
NAA = bytes.fromhex('01 03 00 08 5000c50012345678')
_lock = threading.Lock()


class Node(object):
    """The file, as the test uses it."""

    def __init__(self, path):
        self.path = path
        with open(path, 'wb') as file:
            file.truncate(DATA_AT + BLOCKS * 512)
        self.set()

    def set(self, **answers):
        """The answers from now on: {'c' and the beginning of a CDB: [status, sense, residual] or errno}."""
        text = json.dumps({'answers': {name[1:]: value for name, value in answers.items()}})
        with open(self.path, 'r+b') as file:
            file.write(text.encode().ljust(LOG_AT, b' '))

    def commands(self):
        """The CDBs that were executed."""
        with open(self.path, 'rb') as file:
            file.seek(LOG_AT)
            return file.read(DATA_AT - LOG_AT).rstrip(b'\0').decode().split()

    def data(self, lba, blocks):
        with open(self.path, 'rb') as file:
            file.seek(DATA_AT + lba * 512)
            return file.read(blocks * 512)


def _note(descriptor, text):
    with _lock:
        log = os.pread(descriptor, DATA_AT - LOG_AT, LOG_AT).rstrip(b'\0')
        os.pwrite(descriptor, text.encode() + b'\n', LOG_AT + len(log))


def _data_of(descriptor, cdb):
    """The Data-In of a command."""
    code = cdb[0]
    if code == 0x12 and not cdb[1] & 1:
        return INQUIRY
    if code == 0x12:
        pages = {0x00: b'\0\x80\x83', 0x80: SERIAL, 0x83: NAA}
        return bytes((0, cdb[2], 0, len(pages[cdb[2]]))) + pages[cdb[2]]
    if code == 0x25:
        return struct.pack('>II', BLOCKS - 1, 512)
    if code == 0x9E:
        return struct.pack('>QI20x', BLOCKS - 1, 512)
    if code in (0x28, 0x88):
        lba, blocks = struct.unpack_from('>IxH' if code == 0x28 else '>QI', cdb, 2)
        return os.pread(descriptor, blocks * 512, DATA_AT + lba * 512)
    return b''


def execute(descriptor, cdb, data_out=b'', length=0, seconds=60):
    """In place of sg_io.execute."""
    from targetd import sg_io

    _note(descriptor, bytes(cdb).hex())
    wanted = json.loads(os.pread(descriptor, LOG_AT, 0).decode())['answers']
    for digits, answer in wanted.items():
        if not bytes(cdb).hex().startswith(digits):
            continue
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        status, sense, residual = answer
        data = memoryview(bytearray(length - residual if length else 0))
        return sg_io.Outcome(status, 0, 8 if sense else 0, bytes.fromhex(sense), residual, data)
    if cdb[0] in (0x2A, 0x8A):
        (lba,) = struct.unpack_from('>I' if cdb[0] == 0x2A else '>Q', cdb, 2)
        os.pwrite(descriptor, bytes(data_out), DATA_AT + lba * 512)
    data = bytearray(_data_of(descriptor, cdb)[:length])
    return sg_io.Outcome(0, 0, 0, b'', max(length - len(data), 0), memoryview(data))


def main(node):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from targetd import entry, sg_io
    from targetd.errors import StoreError
    from targetd.host import sg_nodes

    def resolve(text):
        if os.path.exists(node + '.gone'):
            raise StoreError('%s does not exist' % text)
        number = os.stat(node).st_ino
        return sg_nodes.ScsiDevice(
            'sg0', node, (0, number), 0, 'ACME', 'REAL DISK', '1.0', 'R-1', 'naa.5000c50012345678', '', '',
            BLOCKS * 512, '%s, disk, ACME REAL DISK' % node,
        )  # fmt: skip

    def is_attached(number):
        return not os.path.exists(node + '.gone') and os.stat(node).st_ino == number[1]

    sg_io.execute, sg_io.longest_transfer = execute, lambda descriptor: 1 << 19
    sg_io.reset = lambda descriptor: _note(descriptor, 'reset')
    sg_nodes.resolve_device = resolve
    sg_nodes.is_attached = is_attached
    sys.argv[1:] = sys.argv[2:]
    sys.exit(entry.targetd())


if __name__ == '__main__':
    main(sys.argv[1])
