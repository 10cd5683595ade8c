"""PDUs of full feature phase as lines of text, for transcripts; they contain all 48 bytes of the
header and all the data.

    < data-in flags=81 itt=1 ttt=ffffffff statsn=3 expcmdsn=2 maxcmdsn=257 datasn=0 residual=219
      hex 00000612020000024c494f2d4f524700
      fill 00 4096

Fields that are 0 are left out; numbers are decimal, but flags, tags and codes are hexadecimal. Data
is `hex`, `fill` (a byte, how often) or `text` (a key and its value), as it suits.
"""

import re
import struct

#: Fields: name -> (offset, bytes, is decimal).
COMMON = {
    'flags': (1, 1, False),
    'lun': (8, 8, False),
    'itt': (16, 4, False),
    'ttt': (20, 4, False),
}
REQUEST = dict(COMMON, cmdsn=(24, 4, True), expstatsn=(28, 4, True))
REPLY = dict(COMMON, statsn=(24, 4, True), expcmdsn=(28, 4, True), maxcmdsn=(32, 4, True))


def _fields(base, without=(), **more):
    fields = {name: place for name, place in base.items() if name not in without}
    fields.update(more)
    return sorted(fields.items(), key=lambda row: row[1])


#: Opcode -> (name, [(field, place) …]).
PDUS = {
    0x00: ('nop-out', _fields(REQUEST)),
    0x01: ('scsi-command', _fields(REQUEST, ['ttt'], edtl=(20, 4, True), cdb=(32, 16, False))),
    0x02: (
        'task-management',
        _fields(
            REQUEST, ['ttt'], task=(20, 4, False), refcmdsn=(32, 4, True), expdatasn=(36, 4, True)
        ),
    ),
    0x04: ('text', _fields(REQUEST)),
    0x05: ('data-out', _fields(REQUEST, ['cmdsn'], datasn=(36, 4, True), offset=(40, 4, True))),
    0x06: ('logout', _fields(REQUEST, ['lun', 'ttt'], cid=(20, 2, True))),
    0x10: ('snack', _fields(REQUEST, ['cmdsn'], begrun=(40, 4, True), runlength=(44, 4, True))),
    0x20: ('nop-in', _fields(REPLY)),
    0x21: (
        'scsi-response',
        _fields(
            REPLY,
            ['lun', 'ttt'],
            response=(2, 1, False),
            status=(3, 1, False),
            snack=(20, 4, False),
            expdatasn=(36, 4, True),
            bidiresidual=(40, 4, True),
            residual=(44, 4, True),
        ),
    ),
    0x22: ('task-management-response', _fields(REPLY, ['lun', 'ttt'], response=(2, 1, False))),
    0x24: ('text-response', _fields(REPLY)),
    0x25: (
        'data-in',
        _fields(
            REPLY,
            status=(3, 1, False),
            datasn=(36, 4, True),
            offset=(40, 4, True),
            residual=(44, 4, True),
        ),
    ),
    0x26: (
        'logout-response',
        _fields(
            REPLY,
            ['lun', 'ttt'],
            response=(2, 1, False),
            time2wait=(40, 2, True),
            time2retain=(42, 2, True),
        ),
    ),
    0x31: ('r2t', _fields(REPLY, r2tsn=(36, 4, True), offset=(40, 4, True), length=(44, 4, True))),
    0x32: ('async', _fields(REPLY, event=(36, 1, False))),
    0x3F: ('reject', _fields(REPLY, reason=(2, 1, False))),
}
OPCODES = {name: opcode for opcode, (name, _) in PDUS.items()}
LINE = 48  # bytes of data in a line
FEWEST = 32  # as many of the same byte in a row are a `fill`


def show(bhs, data):
    """Returns [line, …]: the header, then the indented data."""
    opcode = bhs[0] & 0x3F
    name, fields = PDUS[opcode]
    words = [name] + (['immediate'] if bhs[0] & 0x40 else [])
    for field, (offset, size, is_decimal) in fields:
        value = bhs[offset : offset + size]
        number = int.from_bytes(value, 'big')
        if field == 'cdb':
            words.append('cdb=' + bytes(value).hex())
        elif number:
            words.append('%s=%s' % (field, number if is_decimal else '%x' % number))
    shown, _ = parse([' '.join(words)])
    for at in range(48):  # what no field of ours is about
        if shown[at] != bhs[at] and not 4 <= at < 8:
            words.append('byte%d=%02x' % (at, bhs[at]))
    return [' '.join(words)] + ['  ' + line for line in show_data(data, opcode in (0x04, 0x24))]


def show_data(data, is_text):
    """Returns [line, …]."""
    if is_text and data.endswith(b'\0') and re.match(rb'[ -~\0]*\Z', data):
        return ['text ' + pair.decode('ascii') for pair in data[:-1].split(b'\0')]
    lines, position = [], 0
    for run in re.finditer(b'(.)\\1{%d,}' % (FEWEST - 1), data, re.DOTALL):
        lines += _hex(data[position : run.start()])
        lines.append('fill %02x %d' % (run.group()[0], len(run.group())))
        position = run.end()
    return lines + _hex(data[position:])


def _hex(data):
    return ['hex ' + bytes(data[at : at + LINE]).hex() for at in range(0, len(data), LINE)]


def parse(lines):
    """(bhs, data) of show()'s lines; TotalAHSLength is 0, DataSegmentLength that of the data."""
    words = lines[0].split()
    opcode = OPCODES[words[0]]
    places = dict(PDUS[opcode][1])
    bhs = bytearray(48)
    bhs[0] = opcode
    for word in words[1:]:
        name, _, value = word.partition('=')
        if name == 'immediate':
            bhs[0] |= 0x40
        elif name.startswith('byte'):
            bhs[int(name[4:])] = int(value, 16)
        elif name == 'cdb':
            bhs[32:48] = bytes.fromhex(value)
        else:
            offset, size, is_decimal = places[name]
            bhs[offset : offset + size] = int(value, 10 if is_decimal else 16).to_bytes(size, 'big')
    data = b''.join(_data(line.strip()) for line in lines[1:])
    struct.pack_into('>I', bhs, 4, len(data))
    return bytes(bhs), data


def _data(line):
    kind, _, rest = line.partition(' ')
    if kind == 'text':
        return rest.encode('ascii') + b'\0'
    if kind == 'fill':
        byte, count = rest.split()
        return bytes([int(byte, 16)]) * int(count)
    return bytes.fromhex(rest)
