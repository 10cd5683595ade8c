"""Requests and replies of the transmission phase, as bytes (proto.md, "Transmission").

     simple reply       16 bytes, then the data of a READ
     structured reply   chunks of a 20-byte header and a payload; the last has REPLY_DONE
     extended headers   requests and chunks with headers of 32 bytes and lengths of 64 bits

Invalid bytes raise ProtocolError: what follows them on the connection cannot be understood.
"""

import struct
from collections import namedtuple

from targetd.nbd import numbers

#: Bytes of a chunk's payload that is not data of a READ, at most.
LONGEST_PAYLOAD = 1 << 20
#: The same of the text and the numbers of an error.
LONGEST_ERROR = 4096 + 16

_REQUEST = struct.Struct('>IHHQQI')
_EXTENDED_REQUEST = struct.Struct('>IHHQQQ')
_SIMPLE = struct.Struct('>IIQ')
_STRUCTURED = struct.Struct('>IHHQI')
_EXTENDED = struct.Struct('>IHHQQQ')
_MAGIC = struct.Struct('>I')

SIMPLE_SIZE, STRUCTURED_SIZE, EXTENDED_SIZE = _SIMPLE.size, _STRUCTURED.size, _EXTENDED.size

#: The header of a reply or chunk. kind: REPLY_… of numbers, or None for a simple reply; is_last: no
#: further chunk follows; error: of a simple reply; length: bytes of the payload, of a simple reply 0
#: (the data of a READ follows a simple reply without an error).
Header = namedtuple('Header', 'cookie kind is_last error length')


class ProtocolError(Exception):
    """The server violates the protocol."""


def request(command, flags, cookie, offset, length, extended=False):
    """The header of a request. length: bytes that the command is about. With extended headers a WRITE
    states that its length is that of its payload."""
    if not extended:
        return _REQUEST.pack(numbers.REQUEST_MAGIC, flags, command, cookie, offset, length)
    if command == numbers.CMD_WRITE:
        flags |= numbers.FLAG_PAYLOAD_LEN
    return _EXTENDED_REQUEST.pack(
        numbers.EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length
    )


def header_size(buffer, offset, available, structured, extended):
    """Bytes of the header that begins at `offset`, or 0 if more bytes are needed to know it. Raises
    ProtocolError."""
    if available < 4:
        return 0
    (magic,) = _MAGIC.unpack_from(buffer, offset)
    if extended:
        size = EXTENDED_SIZE if magic == numbers.EXTENDED_REPLY_MAGIC else None
    elif magic == numbers.SIMPLE_REPLY_MAGIC:
        size = SIMPLE_SIZE
    else:
        is_chunk = structured and magic == numbers.STRUCTURED_REPLY_MAGIC
        size = STRUCTURED_SIZE if is_chunk else None
    if size is None:
        raise ProtocolError('a reply begins with %08Xh' % magic)
    return size if available >= size else 0


def parse_header(buffer, offset, size):
    """The Header of `size` bytes (from header_size) at `offset`."""
    if size == SIMPLE_SIZE:
        _, error, cookie = _SIMPLE.unpack_from(buffer, offset)
        return Header(cookie, None, True, error, 0)
    if size == STRUCTURED_SIZE:
        _, flags, kind, cookie, length = _STRUCTURED.unpack_from(buffer, offset)
    else:
        _, flags, kind, cookie, _, length = _EXTENDED.unpack_from(buffer, offset)
    return Header(cookie, kind, bool(flags & numbers.REPLY_DONE), 0, length)


def check_length(header, command, length):
    """Raises ProtocolError if the payload of a chunk is impossible for a request of this command and
    length."""
    kind, size = header.kind, header.length
    if kind == numbers.REPLY_OFFSET_DATA:
        is_valid = command == numbers.CMD_READ and 8 < size <= 8 + length
    elif kind == numbers.REPLY_OFFSET_HOLE:
        is_valid = command == numbers.CMD_READ and size == 12
    elif kind in (numbers.REPLY_BLOCK_STATUS, numbers.REPLY_BLOCK_STATUS_EXT):
        is_valid = command == numbers.CMD_BLOCK_STATUS and 8 < size <= LONGEST_PAYLOAD
    elif kind == numbers.REPLY_NONE:
        is_valid = size == 0 and header.is_last
    else:
        is_valid = bool(kind & numbers.REPLY_ERROR_BIT) and 6 <= size <= LONGEST_ERROR
    if not is_valid:
        raise ProtocolError(
            'a chunk of type %d and %d bytes in the reply to %s of %d bytes'
            % (kind, size, numbers.COMMAND_NAMES[command], length)
        )


def parse_error(payload):
    """(error number of the protocol, text) of an error chunk. Raises ProtocolError."""
    number, length = struct.unpack_from('>IH', payload)
    if not number or 6 + length > len(payload):
        raise ProtocolError('an invalid error chunk')
    return number, bytes(payload[6 : 6 + length]).decode('utf-8', 'replace')


def parse_hole(payload):
    """(offset, length) of a chunk REPLY_OFFSET_HOLE."""
    return struct.unpack('>QI', payload)


def parse_status(kind, payload, context):
    """[(length, is a hole that reads as zeroes)] of a chunk with the status of blocks. Raises
    ProtocolError."""
    is_extended = kind == numbers.REPLY_BLOCK_STATUS_EXT
    start, pair = (8, struct.Struct('>QQ')) if is_extended else (4, struct.Struct('>II'))
    (found,) = struct.unpack_from('>I', payload)
    size = len(payload) - start
    if found != context or size <= 0 or size % pair.size:
        raise ProtocolError('an invalid chunk of block status')
    hole = numbers.STATE_HOLE | numbers.STATE_ZERO
    extents = [
        (length, state & hole == hole) for length, state in pair.iter_unpack(payload[start:])
    ]
    if not all(length for length, _ in extents):
        raise ProtocolError('an extent of 0 bytes')
    return extents
