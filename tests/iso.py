"""Makes a small ISO 9660 image (ECMA-119) with files in its root directory. For the wire tests and, as a
program, for the guest:

    python3 iso.py IMAGE LABEL [FILE ...]
"""

import os
import struct
import sys

BLOCK = 2048
ROOT = 20  # the block of the root directory


def _both(number):
    """A 32-bit number in both byte orders."""
    return struct.pack('<I', number) + struct.pack('>I', number)


def _both_16(number):
    return struct.pack('<H', number) + struct.pack('>H', number)


def _record(name, block, length, is_directory):
    """A directory record, ECMA-119 9.1."""
    pad = b'' if len(name) % 2 else b'\0'
    body = b'\0' + _both(block) + _both(length) + bytes((126, 1, 1, 0, 0, 0, 0))
    body += bytes((2 if is_directory else 0, 0, 0)) + _both_16(1) + bytes((len(name),)) + name + pad
    return bytes((len(body) + 1,)) + body


def image(label, files):
    """The image as bytes. files: {name in upper case: content}, in a root directory of one block."""
    names = sorted(files)
    at, blocks, records = ROOT + 1, {}, []
    for name in names:
        blocks[name] = at
        at += -(-len(files[name]) // BLOCK)
        records.append(
            _record((name + ';1').encode('ascii'), blocks[name], len(files[name]), False)
        )
    root = _record(b'\0', ROOT, BLOCK, True) + _record(b'\1', ROOT, BLOCK, True) + b''.join(records)
    path_table = struct.pack('<BBIH', 1, 0, ROOT, 1) + b'\0\0'
    volume = b'\x01CD001\x01\0' + b' ' * 32 + label.encode('ascii').ljust(32) + bytes(8) + _both(at)
    volume += bytes(32) + _both_16(1) + _both_16(1) + _both_16(BLOCK) + _both(len(path_table))
    volume += (
        struct.pack('<II', 18, 0) + struct.pack('>II', 19, 0) + _record(b'\0', ROOT, BLOCK, True)
    )
    volume = volume.ljust(813, b' ') + (b'0' * 16 + b'\0') * 4 + b'\x01\0'
    found = bytearray(at * BLOCK)
    found[16 * BLOCK : 16 * BLOCK + len(volume)] = volume
    found[17 * BLOCK : 17 * BLOCK + 7] = b'\xffCD001\x01'  # the volume descriptor set terminator
    found[18 * BLOCK : 18 * BLOCK + 10] = path_table
    found[19 * BLOCK : 19 * BLOCK + 10] = struct.pack('>BBIH', 1, 0, ROOT, 1) + b'\0\0'
    found[ROOT * BLOCK : ROOT * BLOCK + len(root)] = root
    for name in names:
        found[blocks[name] * BLOCK : blocks[name] * BLOCK + len(files[name])] = files[name]
    return bytes(found)


def main(path, label, *names):
    """Writes the image of these files."""
    files = {}
    for name in names:
        with open(name, 'rb') as file:
            files[os.path.basename(name).upper()] = file.read()
    with open(path, 'wb') as file:
        file.write(image(label, files))


if __name__ == '__main__':
    main(*sys.argv[1:])
